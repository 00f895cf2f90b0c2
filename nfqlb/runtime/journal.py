"""The journal: what a worker must know to carry on where another died.

Owns a file of fixed records in memory-backed storage, mapped into the worker. A connection has
one record while it lives: written before its first packet is answered, its state's byte changed
as the connection moves on, and zeroed at its end, so the file never has to be compacted. The
supervisor opens the file before it forks; the kernel keeps what a killed worker wrote. It is
valid for one boot and one network namespace only. What was set and what failed, by name, has a section
of its own (see `ledger`), and so have sticky entries (see `bindings`).

`layout` says where in the file is what. A file with room for other numbers of records, or without one of the
sections, as another version has left it, is copied into a new one, which takes its place.
"""

import logging
import mmap
import os
from collections.abc import Container, Iterator
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from nfqlb.core.chronicle import Kept, Kind
from nfqlb.core.connection import Connection
from nfqlb.core.keys import is_ipv4, key_end, server_of
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.procfs import Namespace, namespace
from nfqlb.netfilter.state import DIRECTORY
from nfqlb.runtime import bindings, layout, ledger
from nfqlb.runtime.bindings import Binding, Bindings
from nfqlb.runtime.layout import RESERVED, Section, Wanted
from nfqlb.runtime.ledger import Ledger

logger = logging.getLogger(__name__)

#: By kind: connections over IPv4, over IPv6. State, protocol, opened (seconds), inbound key without what
#: the protocol adds at its end, and the real server's address and port. The state comes first: 0 is a free
#: record.
_KINDS = {1: Struct("=BBxxI12s6s6x"), 2: Struct("=BBxxI36s18s2x")}
_NAMES, _STICKY = 3, 4  # the kinds of the sections of the ledger and of sticky entries
_CHUNK = 1 << 20  # bytes reserved at a time
_NAMES_CHUNK = 1 << 16
_RETRY = 1024  # asking in vain takes 0.1 ms: once storage is used up, not for every connection

_FALLBACK = Path("/dev/shm/nfqlb")  # noqa: S108  memory-backed wherever Linux runs; ownership is checked


class Record(NamedTuple):
    """One connection as the journal has it.

    `place` is where, `code` its state's, `opened` in seconds; `server` is the real server's
    address and port (network order).
    """

    place: int
    code: int
    opened: float
    inbound: bytes
    server: bytes


class Journal:
    """The open journal: the recorder of the connection table, the keeper of settings and failures.

    See `core.table.Recorder` and `core.chronicle.Keeper`. `capacity` is how many connections of each kind it
    has room for, `sticky` how many sticky entries, whose recorder is `stickies`. What a file has already
    stays, whatever room is asked for. `whole` says that every sticky entry of its connections is there, too.
    Raises KernelError where the file cannot be made or mapped.
    """

    def __init__(
        self, capacity: int, *, sticky: int | None = None, directory: Path | None = None,
        where: Namespace | None = None,
    ) -> None:  # fmt: skip
        where = where or namespace()
        self.path = journal_file(where, directory)
        directory = self.path.parent
        self.lost = 0  # connections that found no room; they do not survive the worker
        wanted = [Wanted(kind, record, capacity, _CHUNK) for kind, record in _KINDS.items()]
        wanted.append(Wanted(_NAMES, Struct(f"={ledger.PAIR}x"), ledger.CAPACITY, _NAMES_CHUNK))
        wanted.append(Wanted(_STICKY, bindings.RECORD, capacity if sticky is None else sticky, _CHUNK))
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            _own(directory.stat(follow_symlinks=False), directory)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            _own(os.fstat(self._file), self.path)
            os.fchmod(self._file, 0o600)
            self._open(wanted, layout.header(where))
        except OSError as error:
            raise KernelError(f"{self.path}: the journal cannot be opened: {error.strerror}") from None

    def _open(self, wanted: list[Wanted], beginning: bytes) -> None:
        """Map the file; whatever is of another boot or namespace counts as empty."""
        found = layout.found_in(self._file, beginning)
        self.whole = not found or _STICKY in found
        *self._sections, self._names, self._sticky = sections = layout.laid_out(wanted, found)
        size = layout.aligned(sections[-1].end)
        same = all(section.is_as(found.get(section.kind)) for section in sections)
        if not same or os.fstat(self._file).st_size != size:
            self._file = layout.made_anew(self.path, self._file, beginning, sections, found)
        self._map = mmap.mmap(self._file, size)
        self._read_reserved()
        names = self._names
        self._ledger = Ledger(
            self._map,
            names.start,
            reserved_to=lambda: names.reserved_to,
            reserve=lambda: self._reserve(names),
        )
        sticky = self._sticky
        self.stickies = Bindings(self._map, lambda: self._take(sticky), sticky.free.append)
        if names.reserved_to == names.start:
            self._reserve(names)  # an operator's word has its place, whatever connections use up by then

    @property
    def _all(self) -> tuple[Section, ...]:
        return *self._sections, self._names, self._sticky

    def _read_reserved(self) -> None:
        for section in self._all:
            (reserved,) = RESERVED.unpack_from(self._map, section.reserved_at)
            section.reserved_to = section.start + min(reserved, section.capacity) * section.record.size

    def clear(self) -> None:
        """Forget everything."""
        self._read_reserved()
        for section in self._all:
            for start in range(section.start, section.reserved_to, _CHUNK):
                end = min(start + _CHUNK, section.reserved_to)
                self._map[start:end] = bytes(end - start)
            section.free.clear()
            section.next = section.start

    def close(self, *, remove: bool = False) -> None:
        """Close the file; `remove` it after a clean stop, when nobody will want it."""
        self._map.close()
        os.close(self._file)
        if remove:
            self.path.unlink(missing_ok=True)

    # --- what a successor reads

    def records(self) -> Iterator[Record]:
        """Every record of a live connection; the others' places become free."""
        self._read_reserved()
        for section in self._sections:
            yield from self._records(section)

    def _records(self, section: Section) -> Iterator[Record]:
        size = section.record.size
        section.free.clear()
        section.next = place = section.start
        with memoryview(self._map) as whole, whole[section.start : section.reserved_to] as used:
            for code, protocol, opened, inbound, server in section.record.iter_unpack(used):
                if code:
                    section.free.extend(range(section.next, place, size))
                    section.next = place + size
                    yield Record(place, code, opened, inbound + key_end(protocol), server)
                place += size

    def forget(self, place: int) -> None:
        """Free a record that nobody wants."""
        self._map[place] = 0
        self._sections[place >= self._sections[1].start].free.append(place)

    def bound(self) -> list[Binding]:
        """The sticky entries, the one used longest ago first; the others' places become free."""
        self._read_reserved()
        section = self._sticky
        section.free.clear()
        section.next = section.start
        found = []
        with memoryview(self._map) as file, file[section.start : section.reserved_to] as used:
            for binding in bindings.read(used, section.start):
                section.free.extend(range(section.next, binding.place, section.record.size))
                section.next = binding.place + section.record.size
                found.append(binding)
        found.sort(key=lambda binding: binding.assigned)
        return found

    def kept(self) -> Iterator[Kept]:
        """What was kept of each server. To be read to its end before anything is kept."""
        self._read_reserved()
        yield from self._ledger.records()

    @property
    def unkept(self) -> int:
        """Records that found no room, of connections, servers and sticky entries."""
        return self.lost + self._ledger.lost + self.stickies.lost

    def forget_name(self, kept: Kept) -> None:
        """Free the record of a server that is gone."""
        self._ledger.forget(kept)

    def retain(self, names: Container[tuple[Kind, str]]) -> None:
        """Free the records of all servers but these: the configuration has no others any more."""
        self._ledger.retain(names)

    # --- the keeper of settings and failures

    def keep(self, kept: Kept) -> None:
        """Write what is to be kept of a server; where there is no room, it does not survive the worker."""
        self._ledger.keep(kept)

    # --- the recorder of the connection table

    def opened(self, connection: Connection) -> int:
        """Write a connection's record; -1 where there is no room for it."""
        section = self._section_of(connection)
        place = self._take(section)
        if place < 0:
            self.lost += 1
            return -1
        self._write(connection, section, place)
        return place

    def _take(self, section: Section) -> int:
        """A place for one more record; -1 where there is none."""
        if section.free:
            return section.free.pop()
        if section.next < section.reserved_to or self._reserve(section):
            place = section.next
            section.next += section.record.size
            return place
        return -1

    def _write(self, connection: Connection, section: Section, place: int) -> None:
        protocol, server = connection.link.virtual.protocol, server_of(connection.outbound)
        section.record.pack_into(
            self._map, place, 0, protocol, int(connection.opened), connection.inbound, server
        )
        self._map[place] = connection.state.code  # last: a record half written does not exist

    def moved(self, connection: Connection) -> None:
        """Change the state's byte."""
        if connection.place >= 0:
            self._map[connection.place] = connection.state.code

    def reassigned(self, connection: Connection) -> None:
        """Write the record anew, at its place: the server is another."""
        if connection.place >= 0:
            self._map[connection.place] = 0
            self._write(connection, self._section_of(connection), connection.place)

    def ended(self, connection: Connection) -> None:
        """Zero the state's byte."""
        if connection.place >= 0:
            self.forget(connection.place)

    def _section_of(self, connection: Connection) -> Section:
        return self._sections[not is_ipv4(connection.inbound)]

    def _reserve(self, section: Section) -> bool:
        """Have the storage set aside for more records: writing to a mapping without room would be fatal."""
        size = section.record.size
        end = min(section.reserved_to + section.chunk // size * size, section.end)
        lost = self.stickies.lost if section is self._sticky else self.lost
        if end == section.reserved_to or (section is not self._names and lost % _RETRY):
            return False
        try:
            os.posix_fallocate(self._file, section.reserved_to, end - section.reserved_to)
        except OSError as error:  # no space, or a quota or limit reached: connections are served all the same
            if not self.unkept:
                logger.warning("%s: %s; what is new would not survive the worker", self.path, error.strerror)
            return False
        section.reserved_to = end
        RESERVED.pack_into(self._map, section.reserved_at, (end - section.start) // size)
        return True


def journal_file(where: Namespace, directory: Path | None = None) -> Path:
    """Which file the journal of a network namespace is."""
    return (directory or storage()) / f"journal-{where.inode}"


def storage(preferred: Path = DIRECTORY) -> Path:
    """Where the journal goes: under /run if that is memory-backed, else under /dev/shm.

    On a disk every page written would sooner or later be written out.
    """
    mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    run = [fields[2] for fields in mounts if fields[1] == "/run"]
    return preferred if run and run[-1] == "tmpfs" else _FALLBACK


def _own(status: os.stat_result, path: Path) -> None:
    """Refuse what somebody else put there: in /dev/shm anybody can make a directory of our name."""
    if status.st_uid != os.geteuid():
        raise KernelError(f"{path}: belongs to user {status.st_uid}; look at it and remove it")
