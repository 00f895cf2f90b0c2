"""Floods of SYNs: how many half-open connections a virtual server may have, and how fast new ones may come.

Owns `SynGuard`, one for each virtual server that has a limit (`synguard`, `synguard_rate`). At the limit
the oldest half-open connection is given up for the new one: who is real answers within a round trip, and
is soon half-open no more. Above the rate a SYN is refused; its sender repeats it.

So that nobody starves the others, clients are counted by network (/24, IPv6: /56) as well. Where there is
not enough for all, who has `synguard_share` of it or more is the first to go without. While there is
enough, anybody may have all of it: many clients may come from behind one address.
"""

from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING

from nfqlb.core.keys import client_of
from nfqlb.core.spec import Virtual

if TYPE_CHECKING:
    from nfqlb.core.connection import Connection

#: Bytes of an address that tell networks apart, by its length.
_NETWORK = {4: 3, 16: 7}
#: Networks whose use of the rate is remembered: of more, those that were heard last.
NETWORKS = 4096
#: A flood is over when nothing was refused or given up for so long (seconds).
CALM = 5.0


class SynGuard:
    """One virtual server's guard.

    `given_up` counts half-open connections that made room for others, `refused` SYNs above the rate.
    `flooded` says that either has happened within `CALM` seconds, as far as `look` has been called.
    """

    __slots__ = (
        "_at", "_greedy", "_members", "_most", "_networks", "_noted", "_tokens", "_use", "flooded",
        "given_up", "limit", "rate", "refused", "share",
    )  # fmt: skip

    def __init__(self, virtual: Virtual) -> None:
        self.given_up = 0
        self.refused = 0
        self.flooded = False
        self._noted = -inf  # when something was last given up or refused
        self._members: OrderedDict[Connection, None] = OrderedDict()  # the oldest first
        self._networks: dict[bytes, OrderedDict[Connection, None]] = {}
        self._greedy: dict[bytes, None] = {}  # networks that have their share
        self._at = 0.0
        self._use: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # what is left to each, and when
        self.follow(virtual)

    def follow(self, virtual: Virtual) -> None:
        """The limits are what `virtual` says from now on."""
        self.limit = virtual.synguard
        self.rate = virtual.synguard_rate
        self.share = virtual.synguard_share / 100
        self._most = max(1, int(self.limit * self.share)) if self.share else inf
        self._tokens = max(1.0, self.rate)
        self._use.clear()
        having = (network for network, members in self._networks.items() if len(members) >= self._most)
        self._greedy = dict.fromkeys(having)

    # --- the rate

    def admits(self, client: bytes, now: float) -> bool:
        """Whether a client (packed address) may open a connection now; if so it is counted."""
        if not self.rate:
            return True
        burst = max(1.0, self.rate)
        self._tokens = min(burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens >= 1 and (self._in_its_share(client, now) or self._tokens > burst / 2):
            self._tokens -= 1
            return True
        self.refused += 1
        self._noted = now
        return False

    def _in_its_share(self, client: bytes, now: float) -> bool:
        """Whether the client's network has not used up its part of the rate; one connection more is noted."""
        if not self.share:
            return True
        network = _network(client)
        burst = max(1.0, self.rate * self.share)
        left, at = self._use.pop(network, (burst, now))
        left = min(burst, left + (now - at) * self.rate * self.share)
        self._use[network] = max(0.0, left - 1), now
        if len(self._use) > NETWORKS:
            self._use.popitem(last=False)
        return left >= 1

    # --- half-open connections

    def begun(self, connection: "Connection") -> None:
        """A connection is half-open now."""
        self._members[connection] = None
        network = _network(client_of(connection.inbound))
        members = self._networks.setdefault(network, OrderedDict())
        members[connection] = None
        if len(members) >= self._most:
            self._greedy[network] = None

    def over(self, connection: "Connection") -> None:
        """A connection is half-open no longer. One from before there was a guard is not known."""
        if connection not in self._members:
            return
        del self._members[connection]
        network = _network(client_of(connection.inbound))
        members = self._networks[network]
        del members[connection]
        if len(members) < self._most:
            self._greedy.pop(network, None)
        if not members:
            del self._networks[network]

    def too_many(self) -> "Connection | None":
        """Which connection has to go before there may be another; None where there is room."""
        if not self.limit or len(self._members) < self.limit:
            return None
        members = self._networks[next(iter(self._greedy))] if self._greedy else self._members
        return next(iter(members))

    def gave_up(self, now: float) -> None:
        """The one that had to go has gone."""
        self.given_up += 1
        self._noted = now

    # --- what is told of it

    def look(self, now: float) -> bool:
        """Whether a flood has begun or is over since the last look; `flooded` says which."""
        flooded = now - self._noted < CALM
        changed, self.flooded = flooded is not self.flooded, flooded
        return changed


def guard_of(virtual: Virtual, before: SynGuard | None) -> SynGuard | None:
    """The guard of a virtual server that had `before`; None where it has no limit."""
    if not (virtual.synguard or virtual.synguard_rate):
        return None
    if before is None:
        return SynGuard(virtual)
    before.follow(virtual)
    return before


def _network(client: bytes) -> bytes:
    return client[: _NETWORK[len(client)]]
