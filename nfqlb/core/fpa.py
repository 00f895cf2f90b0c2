"""Stickiness: which real server a client was last sent to.

Owns `FpaTable` (the patent's foreign physical allocations, fig 3D and fig 8): entries by
scope and masked client address, least recently used first (R066). An entry holds while less
than the scope's interval has passed since its last assignment (R154-R156, A10), or in a scope
that is `active` since the client's last packet (A6). All entries of a scope have the same
interval, so the least recently used one also runs out first.

Packets pay nothing for `active`: such an entry holds on to its live connections, and when it would
run out looks when each was last seen. That is at most once an interval. A connection that ends leaves
the entry the time of its last packet.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nfqlb.core.connection import Connection
from nfqlb.core.scope import Scope
from nfqlb.core.server import RealServer

#: Entries that the search for the least recently used one passes over because their clients turn out to be
#: active. They go to the end, so the next search finds others.
_CHANCES = 8


@dataclass(slots=True)
class Fpa:
    """A sticky entry (fig 3D, R062-R064): the real server, and when the client was last assigned to it.

    `live` are, in an active scope, the client's connections to it; `assigned` is then its last use, as far
    as that has been looked up.
    """

    real: RealServer
    assigned: float
    live: dict[Connection, None] | None = None

    def used(self) -> float:
        """When it was last used: the last assignment, or the last packet of its live connections."""
        if not self.live:
            return self.assigned
        return max(self.assigned, max(connection.seen for connection in self.live))


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
        entry = self._entry(scope, client)
        if entry is None:
            return None
        if now - entry.assigned >= scope.interval:
            entry.assigned = entry.used()
            if now - entry.assigned >= scope.interval:
                return None
        return entry.real

    def assign(self, scope: Scope, client: bytes, real: RealServer, now: float) -> None:
        """Bind the client to `real` from now on: once it is known (A9), and anew each time (A6)."""
        entries = self._scopes.setdefault(scope, OrderedDict())
        key = masked(client, scope.prefix)
        entry = entries.get(key)
        if entry is not None:
            if entry.real is not real:
                entry.real = real
                entry.live = None
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
        entry = self._entry(scope, client)
        if entry is None or entry.assigned <= assigned:
            self.assign(scope, client, real, assigned)

    def follow(self, scope: Scope, client: bytes, connection: Connection) -> None:
        """In an active scope: the client's connection, whose packets count from now on."""
        entry = self._entry(scope, client)
        if entry is not None and entry.real is connection.link.real:
            if entry.live is None:
                entry.live = {}
            entry.live[connection] = None

    def left(self, scope: Scope, client: bytes, connection: Connection) -> None:
        """In an active scope: the connection is gone; its last packet is not forgotten."""
        entry = self._entry(scope, client)
        if entry is None or entry.live is None or connection not in entry.live:
            return
        del entry.live[connection]
        if not entry.live:
            entry.live = None
        if connection.seen > entry.assigned:
            entry.assigned = connection.seen
            self._scopes[scope].move_to_end(masked(client, scope.prefix))

    def forget(self, real: RealServer) -> int:
        """Drop every entry that binds to this server; returns how many (A7). Looks at all entries."""
        before = self._count
        for entries in self._scopes.values():
            bound = [client for client, entry in entries.items() if entry.real is real]
            for client in bound:
                del entries[client]
            self._count -= len(bound)
        return before - self._count

    def rescope(self, limit: int, sources: Mapping[Scope, Scope]) -> None:
        """Another limit, and these scopes, each with the entries of the one that it was before.

        Where several come of one, each has its entries. Entries of another prefix are let go; those that
        are too many go with time.
        """
        before, self._scopes, self.limit = self._scopes, {}, limit
        wanted = Counter(sources.values())
        for scope, source in sources.items():
            if source not in before or scope.prefix != source.prefix:
                continue
            entries = before[source]
            if wanted[source] > 1 or source.active:
                entries = OrderedDict((key, _moved(entry, scope)) for key, entry in entries.items())
            self._scopes[scope] = entries
        self._count = sum(map(len, self._scopes.values()))

    def unbind(self, scope: Scope, real: RealServer) -> None:
        """Drop a scope's entries that bind to this server, as it has no place there any more."""
        entries = self._scopes.get(scope, OrderedDict())
        bound = [client for client, entry in entries.items() if entry.real is real]
        for client in bound:
            del entries[client]
        self._count -= len(bound)

    def clear(self, scope: Scope, client: bytes | None = None) -> int:
        """Drop a scope's entries, or the one of a client (packed address); returns how many there were."""
        entries = self._scopes.get(scope)
        if entries is None:
            return 0
        if client is None:
            dropped = len(entries)
            entries.clear()
        else:
            dropped = int(entries.pop(masked(client, scope.prefix), None) is not None)
        self._count -= dropped
        return dropped

    def expire(self, now: float, budget: int) -> int:
        """Drop entries whose interval has passed, looking at `budget` at most; returns how many it looked at.

        Those whose clients turn out to be active go to the end.
        """
        looked = 0
        while self._count > self.limit and looked < budget:
            self._evict()
            looked += 1
        for scope, entries in self._scopes.items():
            while entries and looked < budget:
                key, entry = next(iter(entries.items()))
                if now - entry.assigned < scope.interval:
                    break
                looked += 1
                entry.assigned = entry.used()
                if now - entry.assigned < scope.interval:
                    entries.move_to_end(key)
                else:
                    del entries[key]
                    self._count -= 1
        return looked

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

    def _entry(self, scope: Scope, client: bytes) -> Fpa | None:
        entries = self._scopes.get(scope)
        return entries.get(masked(client, scope.prefix)) if entries else None

    def _evict(self) -> None:
        """Give up the entry that was used longest ago, whichever scope it is in."""
        oldest = self._oldest()
        for _ in range(_CHANCES):
            key, entry = next(iter(oldest.items()))
            used = entry.used()
            if used <= entry.assigned:
                break
            entry.assigned = used
            oldest.move_to_end(key)
            oldest = self._oldest()
        oldest.popitem(last=False)
        self._count -= 1

    def _oldest(self) -> OrderedDict[bytes, Fpa]:
        """The scope whose first entry was used longest ago, as far as is known."""
        return min(
            (entries for entries in self._scopes.values() if entries),
            key=lambda entries: next(iter(entries.values())).assigned,
        )


def _moved(entry: Fpa, scope: Scope) -> Fpa:
    """An entry as its new scope has it."""
    mine = (one for one in entry.live or () if one.link.virtual.scope == scope)
    live = dict.fromkeys(mine) if scope.active else {}
    return Fpa(entry.real, entry.used(), live or None)


def masked(address: bytes, prefix: int) -> bytes:
    """A packed address with all but its first `prefix` bits cleared (A8)."""
    bits = len(address) * 8
    if prefix >= bits:
        return address
    value = int.from_bytes(address, "big") >> (bits - prefix) << (bits - prefix)
    return value.to_bytes(len(address), "big")
