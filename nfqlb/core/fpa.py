"""Stickiness: which real server a client was last sent to.

Owns `FpaTable` (the patent's foreign physical allocations, fig 3D and fig 8): entries by
scope and masked client address, least recently used first (R066). An entry holds while less
than the scope's interval has passed since its last assignment (R154-R156, A10), or in a scope
that is `active` since the client's last packet (A6). All entries of a scope have the same
interval, so the least recently used one also runs out first.

Anybody can send SYNs in anybody's name. So an entry is loose until a connection of its client has been
made, and a table that is full gives up loose ones first: a flood pushes out its own entries.

Packets pay nothing for `active`: such an entry holds on to its live connections, and when it would
run out looks when each was last seen. That is at most once an interval. A connection that ends leaves
the entry the time of its last packet.

Whoever keeps entries for a successor (`StickyRecorder`) is told of each that is written, and of no packet.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from nfqlb.core.connection import Connection
from nfqlb.core.scope import Scope
from nfqlb.core.server import RealServer

#: Entries that the search for the least recently used one passes over because their clients turn out to be
#: active. They go to the end, so the next search finds others.
_CHANCES = 8


@dataclass(slots=True, eq=False)
class Fpa:
    """A sticky entry (fig 3D, R062-R064): the real server, and when the client was last assigned to it.

    `loose` says that no connection of the client's has been made yet. `live` are, in an active scope, the
    client's connections to it; `assigned` is then its last use, as far as that has been looked up. `place` is
    where it is recorded, -1 where it is not.
    """

    real: RealServer
    assigned: float
    live: dict[Connection, None] | None = None
    loose: bool = False
    place: int = -1

    def used(self) -> float:
        """When it was last used: the last assignment, or the last packet of its live connections."""
        if not self.live:
            return self.assigned
        return max(self.assigned, max(connection.seen for connection in self.live))


class StickyRecorder(Protocol):
    """Who is told of entries, so that a successor can have them: the journal.

    What is told of an entry at place -1 is not kept.
    """

    def bound(self, scope: Scope, client: bytes, entry: Fpa) -> int:
        """A new entry, of a masked client address; returns its place."""

    def renewed(self, entry: Fpa) -> None:
        """It was assigned anew, to the same server."""

    def changed(self, entry: Fpa) -> None:
        """It was assigned to another server, or is loose no longer."""

    def rescoped(self, scope: Scope, entry: Fpa) -> None:
        """It belongs to another scope."""

    def unbound(self, entry: Fpa) -> None:
        """It is no more."""


class NoStickyRecorder:
    """Keeps nothing."""

    def bound(self, scope: Scope, client: bytes, entry: Fpa) -> int:
        """Nowhere."""
        return -1

    def renewed(self, entry: Fpa) -> None:
        """Nothing."""

    def changed(self, entry: Fpa) -> None:
        """Nothing."""

    def rescoped(self, scope: Scope, entry: Fpa) -> None:
        """Nothing."""

    def unbound(self, entry: Fpa) -> None:
        """Nothing."""


class FpaTable:
    """All sticky entries, at most `limit`.

    A full table gives up the loose entry that was assigned longest ago, and where there is none the least
    recently used one; `evicted` counts both.
    """

    def __init__(self, limit: int, recorder: StickyRecorder | None = None) -> None:
        self.limit = limit
        self._recorder = recorder or NoStickyRecorder()
        self.evicted = 0
        self._scopes: dict[Scope, OrderedDict[bytes, Fpa]] = {}
        self._count = 0
        # loose entries, the one assigned longest ago first, and where each is
        self._loose: OrderedDict[Fpa, tuple[OrderedDict[bytes, Fpa], bytes]] = OrderedDict()

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

    def assign(
        self, scope: Scope, client: bytes, real: RealServer, now: float, *, loose: bool = False
    ) -> None:
        """Bind the client to `real` from now on: once it is known (A9), and anew each time (A6).

        `loose`: no connection has been made yet; an entry that is there already stays what it is.
        """
        entries = self._scopes.setdefault(scope, OrderedDict())
        key = masked(client, scope.prefix)
        entry = entries.get(key)
        if entry is not None:
            entry.assigned = now
            if entry.real is not real:
                entry.real = real
                entry.live = None
                self._recorder.changed(entry)
            else:
                self._recorder.renewed(entry)
            entries.move_to_end(key)
            if entry.loose and loose:
                self._loose.move_to_end(entry)
            elif entry.loose:
                self._firm(entry)
            return
        if self._count >= self.limit:
            self._evict()
        entry = entries[key] = Fpa(real, now, None, loose)
        entry.place = self._recorder.bound(scope, key, entry)
        self._count += 1
        if loose:
            self._loose[entry] = entries, key

    def recorded(
        self, scope: Scope, client: bytes, real: RealServer, assigned: float, *, loose: bool, place: int
    ) -> bool:
        """Enter what a predecessor has recorded, the least recently used first; False if it is there.

        `client` is the masked address.
        """
        entries = self._scopes.setdefault(scope, OrderedDict())
        if client in entries:
            return False
        if self._count >= self.limit:
            self._evict()
        entry = entries[client] = Fpa(real, assigned, None, loose, place)
        self._count += 1
        if loose:
            self._loose[entry] = entries, client
        return True

    def confirm(self, scope: Scope, client: bytes) -> bool:
        """A connection of the client's has been made: its entry is loose no longer. False if it has none."""
        entry = self._entry(scope, client)
        if entry is not None and entry.loose:
            self._firm(entry)
        return entry is not None

    def restore(
        self, scope: Scope, client: bytes, real: RealServer, assigned: float, *, loose: bool = False
    ) -> None:
        """Bind the client as of an earlier moment, unless it is known to have been assigned later.

        Entries that are restored in another order than that of their moments may be forgotten
        late, up to an interval; they hold no longer for that.
        """
        entry = self._entry(scope, client)
        if entry is None or entry.assigned <= assigned:
            self.assign(scope, client, real, assigned, loose=loose)

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
            self._recorder.renewed(entry)
            self._scopes[scope].move_to_end(masked(client, scope.prefix))

    def forget(self, real: RealServer) -> int:
        """Drop every entry that binds to this server; returns how many (A7). Looks at all entries."""
        before = self._count
        for entries in self._scopes.values():
            self._unbind(entries, real)
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
            wanted[source] -= 1
            if wanted[source]:
                entries = self._copied(entries, scope)
            else:
                del before[source]
                self._move(entries, source, scope)
            self._scopes[scope] = entries
        for entries in before.values():
            for entry in entries.values():
                self._recorder.unbound(entry)
        self._count = sum(map(len, self._scopes.values()))
        kept = {id(entries) for entries in self._scopes.values()}
        loose, self._loose = self._loose, OrderedDict()  # what had to be made anew is not looked for
        self._loose.update((entry, place) for entry, place in loose.items() if id(place[0]) in kept)

    def _copied(self, entries: Mapping[bytes, Fpa], scope: Scope) -> OrderedDict[bytes, Fpa]:
        """Entries as one more scope has them."""
        copies: OrderedDict[bytes, Fpa] = OrderedDict()
        for key, entry in entries.items():
            copy = copies[key] = Fpa(entry.real, entry.used(), _live_in(entry, scope), entry.loose)
            copy.place = self._recorder.bound(scope, key, copy)
            if copy.loose:
                self._loose[copy] = copies, key
        return copies

    def _move(self, entries: Mapping[bytes, Fpa], source: Scope, scope: Scope) -> None:
        """Entries become those of another scope."""
        if source.active:
            for entry in entries.values():
                entry.assigned, entry.live = entry.used(), _live_in(entry, scope)
        if (source.name, source.grouped) != (scope.name, scope.grouped):
            for entry in entries.values():
                self._recorder.rescoped(scope, entry)

    def unbind(self, scope: Scope, real: RealServer) -> None:
        """Drop a scope's entries that bind to this server, as it has no place there any more."""
        self._unbind(self._scopes.get(scope, OrderedDict()), real)

    def _unbind(self, entries: OrderedDict[bytes, Fpa], real: RealServer) -> None:
        for client in [client for client, entry in entries.items() if entry.real is real]:
            self._drop(entries, client)

    def clear(self, scope: Scope, client: bytes | None = None) -> int:
        """Drop a scope's entries, or the one of a client (packed address); returns how many there were."""
        entries = self._scopes.get(scope)
        if entries is None:
            return 0
        keys = list(entries) if client is None else [masked(client, scope.prefix)]
        found = [key for key in keys if key in entries]
        for key in found:
            self._drop(entries, key)
        return len(found)

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
                    self._recorder.renewed(entry)
                    entries.move_to_end(key)
                else:
                    self._drop(entries, key)
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

    def _firm(self, entry: Fpa) -> None:
        entry.loose = False
        del self._loose[entry]
        self._recorder.changed(entry)

    def _drop(self, entries: OrderedDict[bytes, Fpa], key: bytes) -> None:
        entry = entries.pop(key)
        self._count -= 1
        self._recorder.unbound(entry)
        if entry.loose:
            del self._loose[entry]

    def _evict(self) -> None:
        """Give up a loose entry, else the one that was used longest ago, whichever scope it is in."""
        self.evicted += 1
        if self._loose:
            self._drop(*next(iter(self._loose.values())))
            return
        oldest = self._oldest()
        for _ in range(_CHANCES):
            key, entry = next(iter(oldest.items()))
            used = entry.used()
            if used <= entry.assigned:
                break
            entry.assigned = used
            oldest.move_to_end(key)
            oldest = self._oldest()
        self._drop(oldest, next(iter(oldest)))

    def _oldest(self) -> OrderedDict[bytes, Fpa]:
        """The scope whose first entry was used longest ago, as far as is known."""
        return min(
            (entries for entries in self._scopes.values() if entries),
            key=lambda entries: next(iter(entries.values())).assigned,
        )


def _live_in(entry: Fpa, scope: Scope) -> dict[Connection, None] | None:
    """The live connections that an entry has in its new scope."""
    mine = (one for one in entry.live or () if one.link.virtual.scope == scope)
    return (dict.fromkeys(mine) or None) if scope.active else None


def masked(address: bytes, prefix: int) -> bytes:
    """A packed address with all but its first `prefix` bits cleared (A8)."""
    bits = len(address) * 8
    if prefix >= bits:
        return address
    value = int.from_bytes(address, "big") >> (bits - prefix) << (bits - prefix)
    return value.to_bytes(len(address), "big")
