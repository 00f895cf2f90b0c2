"""The links that a virtual server had, to be used again where its new configuration has a place for them.

Owns `FormerLinks`. A connection holds on to its link, so a place that stays must stay the same object.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfqlb.core.server import Link, RealServer


class FormerLinks:
    """Links by real server and port: usually one each, two where a server is its neighbour's backup too."""

    def __init__(self, links: "Iterable[Link]") -> None:
        self._links: dict[tuple[RealServer, int | None], list[Link]] = {}
        for link in links:
            self._links.setdefault((link.real, link.port), []).append(link)

    def take(self, real: "RealServer", port: int | None, *, backup: bool) -> "Link | None":
        """One that nobody has taken yet, best one that was a `backup`, or was none; None if there is none."""
        found = self._links.get((real, port), [])
        same = (each for each in found if not each.leaving and (each.stands_for is not None) is backup)
        link = next(same, found[0] if found else None)
        if link is not None:
            found.remove(link)
        return link

    def held(self) -> "list[Link]":
        """Those that nobody took, and that have connections."""
        return [link for links in self._links.values() for link in links if link.held]
