"""Power of two choices: the better of two servers drawn at random (Mitzenmacher, 2001).

Owns the draw: a generator of its own (xorshift, Marsaglia 2003) from a fixed seed, so that a replay
draws the same. Better is by connections for the weight, as in weighted least connections.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nfqlb.core.schedulers.base import Scheduler, Way

if TYPE_CHECKING:
    from nfqlb.core.server import Link

_SEED = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Pool:
    """Links to draw from, in no order: entering and leaving cost the same however many there are."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self._place: dict[int, int] = {}  # by the link's position, where it stands in `links`

    def put(self, link: "Link", inside: bool) -> None:
        """Let the link in, or out; nothing happens where it is so already."""
        place = self._place.get(link.position)
        if inside and place is None:
            self._place[link.position] = len(self.links)
            self.links.append(link)
        elif not inside and place is not None:
            del self._place[link.position]
            moved = self.links.pop()
            if moved is not link:
                self.links[place] = moved
                self._place[moved.position] = place


class PowerOfTwo(Scheduler):
    """Draws among the available links; among those over their SYN limit only where there is no other.

    Its `note` are the positions of the one or two links drawn, in that order.
    """

    name = "power-of-two"
    way = Way.DRAWS

    def __init__(self, links: Sequence["Link"], seed: int = _SEED) -> None:
        self._state = seed
        self._good = Pool()
        self._bad = Pool()
        for link in links:
            self.update(link)

    def update(self, link: "Link") -> None:
        """Enter the link where it belongs, or let it go (R144, R147)."""
        available, bad = link.available, link.real.overloaded
        self._good.put(link, available and not bad)
        self._bad.put(link, available and bad)

    def choose(
        self, client: bytes, last: int, allowed: Callable[["Link"], bool] | None = None
    ) -> "Link | None":
        """The better of two different links; of equals the one drawn first."""
        for pool in (self._good.links, self._bad.links):
            links = pool if allowed is None else [link for link in pool if allowed(link)]
            if links:
                return min(self._two(links), key=self.indicium)
        return None

    def indicium(self, link: "Link") -> float:
        """Connections divided by weight."""
        return link.real.connections / link.real.weight

    def _two(self, links: "list[Link]") -> "tuple[Link, ...]":
        if len(links) == 1:
            self.note = (links[0].position,)
            return (links[0],)
        first = self._draw(len(links))
        second = (first + 1 + self._draw(len(links) - 1)) % len(links)
        self.note = (links[first].position, links[second].position)
        return links[first], links[second]

    def _draw(self, below: int) -> int:
        """A number from 0 to `below` - 1."""
        state = self._state
        state ^= (state << 13) & _MASK
        state ^= state >> 7
        state ^= (state << 17) & _MASK
        self._state = state
        return state % below
