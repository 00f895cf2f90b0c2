"""Stickiness: which real server a client was last sent to.

Owns `FpaTable` (the patent's foreign physical allocations, fig 3D and fig 8): entries by
scope and masked client address, least recently used first (R066). An entry holds while less
than the scope's interval has passed since its last assignment (R154-R156, A10). All entries
of a scope have the same interval, so the least recently used one also runs out first.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from nfqlb.core.server import RealServer, Scope


@dataclass(slots=True)
class Fpa:
    """A sticky entry (fig 3D, R062-R064): the real server, and when the client was last assigned to it."""

    real: RealServer
    assigned: float


class FpaTable:
    """All sticky entries, at most `limit`; a full table gives up the least recently used one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._scopes: dict[Scope, OrderedDict[bytes, Fpa]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def find(self, scope: Scope, client: bytes, now: float) -> RealServer | None:
        """The real server this client (packed address) is bound to, None if none or no longer (R151-R157)."""
        entries = self._scopes.get(scope)
        entry = entries.get(masked(client, scope.prefix)) if entries else None
        if entry is None or now - entry.assigned >= scope.interval:
            return None
        return entry.real

    def assign(self, scope: Scope, client: bytes, real: RealServer, now: float) -> None:
        """Bind the client to `real` from now on: once it is known (A9), and anew each time (A6)."""
        entries = self._scopes.setdefault(scope, OrderedDict())
        key = masked(client, scope.prefix)
        entry = entries.get(key)
        if entry is not None:
            entry.real = real
            entry.assigned = now
            entries.move_to_end(key)
            return
        if self._count >= self.limit:
            self._evict()
        entries[key] = Fpa(real, now)
        self._count += 1

    def restore(self, scope: Scope, client: bytes, real: RealServer, assigned: float) -> None:
        """Bind the client as of an earlier moment, unless it is known to have been assigned later.

        Entries that are restored in another order than that of their moments may be forgotten
        late, up to an interval; they hold no longer for that.
        """
        entries = self._scopes.get(scope)
        entry = entries.get(masked(client, scope.prefix)) if entries else None
        if entry is None or entry.assigned <= assigned:
            self.assign(scope, client, real, assigned)

    def expire(self, now: float, budget: int) -> int:
        """Drop entries whose interval has passed, at most `budget`; returns how many were dropped."""
        dropped = 0
        for scope, entries in self._scopes.items():
            while entries and dropped < budget:
                key, entry = next(iter(entries.items()))
                if now - entry.assigned < scope.interval:
                    break
                del entries[key]
                dropped += 1
        self._count -= dropped
        return dropped

    def entries(self) -> Iterator[tuple[Scope, bytes, Fpa]]:
        """Every entry with its scope and masked client address, least recently used first in each scope."""
        for scope, entries in self._scopes.items():
            for client, entry in entries.items():
                yield scope, client, entry

    def entries_of(self, client: bytes) -> Iterator[tuple[Scope, bytes, Fpa]]:
        """Every entry that a client (packed address) has, as `entries` gives them."""
        for scope, entries in self._scopes.items():
            key = masked(client, scope.prefix)
            if key in entries:
                yield scope, key, entries[key]

    def _evict(self) -> None:
        """Give up the entry that was used longest ago, whichever scope it is in."""
        oldest = min(
            (entries for entries in self._scopes.values() if entries),
            key=lambda entries: next(iter(entries.values())).assigned,
        )
        oldest.popitem(last=False)
        self._count -= 1


def masked(address: bytes, prefix: int) -> bytes:
    """A packed address with all but its first `prefix` bits cleared (A8)."""
    bits = len(address) * 8
    if prefix >= bits:
        return address
    value = int.from_bytes(address, "big") >> (bits - prefix) << (bits - prefix)
    return value.to_bytes(len(address), "big")
