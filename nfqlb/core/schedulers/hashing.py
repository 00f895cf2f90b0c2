"""What the hashing schedulers share: a hash that never changes, slots, and the way past a missing server.

Owns the base class `Hashing`: a client's address points at one of many slots, each of which belongs
to a link. How the slots are filled is the scheduler's own affair.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from nfqlb.core.schedulers.base import Scheduler, Way

if TYPE_CHECKING:
    from nfqlb.core.server import Link

_PROBES = 16  # slots that a client's address points at, one after the other


def hashed(data: bytes, salt: bytes = b"") -> int:
    """A number of 64 bits, the same on every machine and in every version."""
    return int.from_bytes(blake2b(data, digest_size=8, salt=salt).digest(), "big")


class Hashing(Scheduler):
    """A client keeps its server as long as that is available and no weight changes.

    Where its server is not available the address is hashed anew, so that the clients of a missing
    server spread over all others by weight, and come back with it. Weight 0 is no change of slots
    but unavailability: who quiesces a server moves nobody else's clients. Its `note` is the server that
    the client's address points at first, by position.
    """

    way = Way.HASHES

    def __init__(self, links: Sequence["Link"]) -> None:
        self._links = links
        self._weights = [link.real.weight for link in links]
        self._slots = self._filled()
        self._outdated = False

    @abstractmethod
    def _filled(self) -> Sequence["Link"]:
        """The slots, made anew from `_links` and `_weights`; empty where nobody has a weight."""

    def update(self, link: "Link") -> None:
        """Availability is looked at when a client comes; only another weight makes new slots.

        That takes long, and weights may change by the hundred (a script, a restart).
        """
        weight = link.real.weight
        if weight > 0 and weight != self._weights[link.position]:
            self._weights[link.position] = weight
            self._outdated = True

    def choose(
        self, client: bytes, last: int, allowed: Callable[["Link"], bool] | None = None
    ) -> "Link | None":
        """The link of the first of the client's slots that may take a new connection.

        Servers over their SYN limit are taken only where there is no other (R147, R150).
        """
        if self._outdated:
            self._slots, self._outdated = self._filled(), False
        slots = self._slots
        bad: Link | None = None
        for probe in range(_PROBES if slots else 0):
            link = slots[hashed(client, b"%d" % probe) % len(slots)]
            if not probe:
                self.note = (link.position,)
            if link.available and (allowed is None or allowed(link)):
                if not link.real.overloaded:
                    return link
                bad = bad or link
        return self._search(hashed(client), bad, allowed)

    def _search(
        self, start: int, bad: "Link | None", allowed: Callable[["Link"], bool] | None
    ) -> "Link | None":
        """The first in order from the client's own place, once around; `bad` is the best bad one so far."""
        links = self._links
        for step in range(len(links)):
            link = links[(start + step) % len(links)]
            if link.available and (allowed is None or allowed(link)):
                if not link.real.overloaded:
                    return link
                bad = bad or link
        return bad
