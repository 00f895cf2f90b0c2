"""Least connections: the server with the fewest connections (R095)."""

from typing import TYPE_CHECKING

from nfqlb.core.schedulers.base import Ranked

if TYPE_CHECKING:
    from nfqlb.core.server import Link


class LeastConnections(Ranked):
    """Counts all of a real server's connections, those through other virtual servers too (A35)."""

    name = "least-connections"

    def indicium(self, link: "Link") -> float:
        """The number of connections (NC, 371)."""
        return float(link.real.connections)  # as all other ranks are: kinds that mix cost the interpreter
