"""Maglev hashing: like source hash, but a changed set of servers moves hardly any other client.

Owns the look-up table of Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
Balancer" (NSDI 2016), section 3.4: each server has its own order of all slots and they take turns
at claiming the next one free, each as often as its weight says. The table is made of all servers
with a weight; one that is only unavailable at present is passed over by its clients.
"""

from collections.abc import Sequence
from heapq import heapreplace
from typing import TYPE_CHECKING

from nfqlb.core.schedulers.hashing import Hashing, hashed

if TYPE_CHECKING:
    from nfqlb.core.server import Link

#: Slots: a prime, so that every order visits them all, and a hundred a server (section 3.4 there), as far
#: as that goes. A list of servers that grows past 40 or 164 changes the size, which moves most clients.
_SIZES = (4_099, 16_411, 65_537)
_FINE = 100


class Maglev(Hashing):
    """A server is known by name and port, so the order in the configuration does not matter."""

    name = "maglev"

    def _filled(self) -> Sequence["Link"]:
        size = next((size for size in _SIZES if size >= _FINE * len(self._links)), _SIZES[-1])
        claimants = sorted((link for link in self._links if self._weights[link.position] > 0), key=_name)
        if not claimants:
            return []
        strides = [1 / self._weights[link.position] for link in claimants]
        places = [hashed(_name(link), b"offset") % size for link in claimants]
        skips = [hashed(_name(link), b"skip") % (size - 1) + 1 for link in claimants]
        turns = [(0.0, number) for number in range(len(claimants))]  # a heap: whose turn comes when
        table: list[Link | None] = [None] * size
        for _ in range(size):
            turn, number = turns[0]
            place, skip = places[number], skips[number]
            while table[place] is not None:
                place = (place + skip) % size
            table[place] = claimants[number]
            places[number] = place
            heapreplace(turns, (turn + strides[number], number))
        return [link for link in table if link is not None]


def _name(link: "Link") -> bytes:
    return f"{link.real.spec.name}:{link.port}".encode()
