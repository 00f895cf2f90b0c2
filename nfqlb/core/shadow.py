"""A second scheme that is asked and never obeyed: what would another scheduler have chosen?

Owns `Shadow`, which a virtual server with `shadow` has. It is asked wherever the desired scheduler has
made the choice, in the same moment, among the same servers. Where something else decided (a sticky entry,
a test, the startup scheduler, a backup) another scheduler would not have been asked either, so its
shadow is not. What it keeps of the past is its own: whose turn it is by its own choices, which servers it
would have tried already. Connections, weights and response times are those of what really happened.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING

from nfqlb.core.response import FASTEST_RESPONSE
from nfqlb.core.schedulers import SCHEDULERS
from nfqlb.core.schedulers.base import Scheduler
from nfqlb.core.schedulers.fastest_response import FastestResponse

if TYPE_CHECKING:  # a virtual server is built with its shadow
    from nfqlb.core.server import Link, VirtualServer


class Shadow:
    """The shadow of one virtual server's scheduler.

    `evaluated` counts the decisions that it was asked about and that were followed, `differed` those in
    which it would have taken another server. `last` is the position of the link after which it takes
    equals in order: its own choice, or where it was not asked, the one that was used (A12, A29).
    """

    __slots__ = ("differed", "evaluated", "last", "scheduler")

    def __init__(self, virtual: "VirtualServer") -> None:
        name = virtual.spec.shadow
        make = FromAside if name == FASTEST_RESPONSE else SCHEDULERS[name]
        self.scheduler: Scheduler = make(virtual.links)
        self.last = -1
        self.evaluated = 0
        self.differed = 0

    def choose(self, client: bytes, now: float, allowed: "Callable[[Link], bool] | None") -> "Link | None":
        """What it would take; arguments as of `Scheduler.choose`, `now` in seconds."""
        self.scheduler.now = now
        return self.scheduler.choose(client, self.last, allowed)

    def used(self, link: "Link", would: "Link | None") -> None:
        """A connection went to `link`, one of the virtual server's own; `would` is what `choose` said."""
        if would is None:
            self.last = link.position
            return
        self.scheduler.chosen(would)
        self.last = would.position
        self.evaluated += 1
        if would is not link:
            self.differed += 1


class FromAside(FastestResponse):
    """Fastest response whose trying of an unmeasured server nobody else notices."""

    def __init__(self, links: "Sequence[Link]") -> None:
        self._would_have_tried = [-inf] * len(links)
        super().__init__(links)

    def chosen(self, link: "Link") -> None:
        """Remember that a server which has not been measured would be tried now."""
        if link.real.response.last is None:
            self._would_have_tried[link.position] = self.now
            self.update(link)

    def tried(self, link: "Link") -> float:
        """When a server was last tried, by whoever goes by response times (seconds)."""
        return max(link.real.response.tried, self._would_have_tried[link.position])
