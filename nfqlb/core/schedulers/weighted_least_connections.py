"""Weighted least connections: the server with the fewest connections for its weight (R096, A31)."""

from typing import TYPE_CHECKING

from nfqlb.core.schedulers.base import Ranked

if TYPE_CHECKING:
    from nfqlb.core.server import Link


class WeightedLeastConnections(Ranked):
    """With equal weights this is least connections.

    Equal shares give equal numbers, as division rounds correctly: 2/6 is the very same
    number as 1/3, so ties are seen as ties.
    """

    name = "weighted-least-connections"

    def indicium(self, link: "Link") -> float:
        """Connections (all of the real server's, A35) divided by weight; the weight is not 0 here (A14)."""
        return link.real.connections / link.real.weight
