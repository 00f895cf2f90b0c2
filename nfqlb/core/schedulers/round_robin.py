"""Round robin: the next server in the order, each in its turn (R099)."""

from typing import TYPE_CHECKING

from nfqlb.core.schedulers.base import Ranked

if TYPE_CHECKING:
    from nfqlb.core.server import Link


class RoundRobin(Ranked):
    """Every available link is as good as any other, so the order after the last used one decides."""

    name = "round-robin"

    def indicium(self, link: "Link") -> float:
        """The same for all."""
        return 0.0
