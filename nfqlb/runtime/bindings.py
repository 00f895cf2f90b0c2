"""The journal's section of sticky entries: one record for each, which a successor takes over.

Owns the layout of these records and how they are written. A record is written when an entry is, its time
alone when the entry is renewed, and its first byte zeroed at the entry's end; packets of a connection write
nothing. An entry's scope is known by a checksum of its name, its kind and its mask, its server by the
address: what a successor's configuration has no more is freed.

Numbers are in the machine's own byte order, times in whole seconds of the monotonic clock, which is the
same for all processes of one boot.
"""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from mmap import mmap
from struct import Struct
from typing import NamedTuple

from nfqlb.core.fpa import Fpa
from nfqlb.core.scope import Scope

#: Bytes of an address (4 or 16; 0: a free record) and whether it is loose, when it was assigned (seconds),
#: scope, masked client, server's address.
RECORD = Struct("=BxxxI8s16s16s")
_SIZES, _LOOSE = (4, 16), 0x80
_ASSIGNED = Struct("=I")
_ASSIGNED_AT = 4
_SCOPE_AT = 8
_SERVER_AT = 32
_SCOPES = 8192  # identities remembered; there are as many scopes as virtual servers


class Binding(NamedTuple):
    """A sticky entry as the journal has it: `scope` by its identity, addresses packed."""

    place: int
    assigned: float
    loose: bool
    scope: bytes
    client: bytes
    server: bytes


class Bindings:
    """The records of one section; see `core.fpa.StickyRecorder`. `lost` counts those without room.

    `take` gives a place for a record, or -1; `give` takes it back.
    """

    def __init__(self, whole: mmap, take: Callable[[], int], give: Callable[[int], None]) -> None:
        self.lost = 0
        self._whole = whole
        self._take = take
        self._give = give
        self._identities: dict[Scope, bytes] = {}

    def bound(self, scope: Scope, client: bytes, entry: Fpa) -> int:
        """Write a new entry's record; -1 where there is no room for it."""
        place = self._take()
        if place < 0:
            self.lost += 1
            return -1
        code, server = len(client) | _LOOSE if entry.loose else len(client), entry.real.address
        RECORD.pack_into(self._whole, place, 0, int(entry.assigned), self._identity(scope), client, server)
        self._whole[place] = code  # last: a record half written does not exist
        return place

    def renewed(self, entry: Fpa) -> None:
        """Change its time."""
        if entry.place >= 0:
            _ASSIGNED.pack_into(self._whole, entry.place + _ASSIGNED_AT, int(entry.assigned))

    def changed(self, entry: Fpa) -> None:
        """Change its server, its time, and whether it is loose."""
        if entry.place < 0:
            return
        place, server = entry.place, entry.real.address
        self._whole[place] = 0
        _ASSIGNED.pack_into(self._whole, place + _ASSIGNED_AT, int(entry.assigned))
        self._whole[place + _SERVER_AT : place + _SERVER_AT + len(server)] = server
        self._whole[place] = len(server) | _LOOSE if entry.loose else len(server)

    def rescoped(self, scope: Scope, entry: Fpa) -> None:
        """Change its scope."""
        if entry.place >= 0:
            at = entry.place + _SCOPE_AT
            identity = self._identity(scope)
            self._whole[at : at + len(identity)] = identity

    def unbound(self, entry: Fpa) -> None:
        """Free its record."""
        if entry.place >= 0:
            self.free(entry.place)

    def free(self, place: int) -> None:
        """Free a record."""
        self._whole[place] = 0
        self._give(place)

    def _identity(self, scope: Scope) -> bytes:
        found = self._identities.get(scope)
        if found is None:
            if len(self._identities) >= _SCOPES:
                self._identities.clear()
            found = self._identities[scope] = identity_of(scope)
        return found


def identity_of(scope: Scope) -> bytes:
    """What tells a scope from others, 8 bytes: its name and kind, and what its clients are masked with."""
    return blake2b(f"{scope.name} {scope.grouped} {scope.prefix}".encode(), digest_size=8).digest()


def read(data: memoryview, start: int) -> Iterator[Binding]:
    """Every record in `data`, which begins at `start` of the file."""
    place = start
    for code, assigned, scope, client, server in RECORD.iter_unpack(data):
        size = code & ~_LOOSE
        if size in _SIZES:
            yield Binding(place, float(assigned), code > size, scope, client[:size], server[:size])
        place += RECORD.size
