"""The journal: what a worker must know to carry on where another died.

Owns a file of fixed records in memory-backed storage, mapped into the worker. A connection has
one record of 64 bytes while it lives: written before its first packet is answered, its state's
byte changed as the connection moves on, and zeroed at its end, so the file never has to be
compacted. The supervisor opens the file before it forks; the kernel keeps what a killed worker
wrote. It is valid for one boot and one network namespace only.

Layout: a header of one page (magic, boot id, namespace cookie, a table of sections), then the
sections. A section has a kind, its records' size, and how many of them are reserved so far; kinds
yet unknown are left alone. Numbers are in the machine's own byte order.
"""

import errno
import logging
import mmap
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Literal

from nfqlb.core.connection import Connection
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.procfs import Namespace, namespace
from nfqlb.netfilter.state import DIRECTORY

logger = logging.getLogger(__name__)

_MAGIC = b"nfqlb journal 1\n"
_PAGE = 4096
_CONNECTIONS = 1
_HEADER = Struct("=16s36s4xQ")
_SECTION = Struct("=IIQQQ")  # kind, record size, offset, capacity, records reserved
_SECTION_AT = 64
_RESERVED_AT = _SECTION_AT + 24

# state, address bytes, protocol, then: opened (seconds), inbound key, real address and port
_RECORD = Struct("=BBBxI36s18s2x")
_CHUNK = 16_384  # records reserved at a time: a megabyte

_TMPFS = "tmpfs"
_FALLBACK = Path("/dev/shm/nfqlb")  # noqa: S108  memory-backed wherever Linux runs; our own directory, mode 0700


@dataclass(frozen=True, slots=True)
class Record:
    """One connection as the journal has it; `server` is the real server's address and port (network order)."""

    place: int
    code: int
    opened: float
    inbound: bytes
    server: bytes


class Journal:
    """The open journal, and the recorder of the connection table.

    Raises KernelError where the file cannot be made or mapped.
    """

    def __init__(
        self, capacity: int, *, directory: Path | None = None, where: Namespace | None = None
    ) -> None:
        where = where or namespace()
        directory = directory or storage()
        self.path = directory / f"journal-{where.inode}"
        self.lost = 0  # connections that found no room; they do not survive the worker
        self._free: list[int] = []
        self._next = 0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _own(directory.stat(follow_symlinks=False), directory)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            _own(os.fstat(self._file), self.path)
            os.fchmod(self._file, 0o600)
            self._open(capacity, where)
        except OSError as error:
            raise KernelError(f"{self.path}: the journal cannot be opened: {error.strerror}") from None

    def _open(self, capacity: int, where: Namespace) -> None:
        header = _HEADER.pack(_MAGIC, where.boot.encode(), where.cookie)
        page = os.pread(self._file, _PAGE, 0)
        wanted = (_CONNECTIONS, _RECORD.size, _PAGE, capacity)
        known = len(page) == _PAGE and page.startswith(header)
        if not known or _SECTION.unpack_from(page, _SECTION_AT)[:4] != wanted:
            os.ftruncate(self._file, 0)
            os.ftruncate(self._file, _PAGE + capacity * _RECORD.size)
            os.pwrite(self._file, header, 0)
            os.pwrite(self._file, _SECTION.pack(*wanted, 0), _SECTION_AT)
        self._capacity = capacity
        self._map = mmap.mmap(self._file, _PAGE + capacity * _RECORD.size)
        self._reserved: int = _SECTION.unpack_from(self._map, _SECTION_AT)[4]

    def clear(self) -> None:
        """Forget everything."""
        for start in range(0, self._reserved, _CHUNK):
            end = min(start + _CHUNK, self._reserved)
            self._map[_PAGE + start * 64 : _PAGE + end * 64] = bytes((end - start) * _RECORD.size)
        self._free.clear()
        self._next = 0

    def close(self, *, remove: bool = False) -> None:
        """Close the file; `remove` it after a clean stop, when nobody will want it."""
        self._map.close()
        os.close(self._file)
        if remove:
            self.path.unlink(missing_ok=True)

    # --- what a successor reads

    def records(self) -> Iterator[Record]:
        """Every record of a live connection; the others' places become free."""
        self._reserved = _SECTION.unpack_from(self._map, _SECTION_AT)[4]
        self._next = 0
        self._free.clear()
        with memoryview(self._map) as whole, whole[_PAGE : _PAGE + self._reserved * _RECORD.size] as used:
            fields = _RECORD.iter_unpack(used)
            for place, (code, size, _, opened, inbound, server) in enumerate(fields):
                if code:
                    self._next = self._skip_to(place)
                    yield Record(place, code, opened, inbound[: 2 * size + 4], server[: size + 2])

    def _skip_to(self, place: int) -> int:
        self._free.extend(range(self._next, place))
        return place + 1

    def forget(self, place: int) -> None:
        """Free a record that nobody wants."""
        self._map[_PAGE + place * _RECORD.size] = 0
        self._free.append(place)

    # --- the recorder of the connection table

    def opened(self, connection: Connection) -> int:
        """Write a connection's record; -1 where there is no room for it."""
        if self._free:
            place = self._free.pop()
        elif self._next < self._reserved or self._reserve():
            place = self._next
            self._next += 1
        else:
            self.lost += 1
            return -1
        link = connection.link
        at = _PAGE + place * _RECORD.size
        address = link.real.address
        # the state's byte last: a record half written does not exist
        _RECORD.pack_into(
            self._map, at, 0, len(address), 6, int(connection.opened),
            connection.inbound, address + link.inbound.port,
        )  # fmt: skip
        self._map[at] = connection.state.code
        return place

    def moved(self, connection: Connection) -> None:
        """Change the state's byte."""
        if connection.place >= 0:
            self._map[_PAGE + connection.place * _RECORD.size] = connection.state.code

    def ended(self, connection: Connection) -> None:
        """Zero the state's byte."""
        if connection.place >= 0:
            self.forget(connection.place)

    def _reserve(self) -> bool:
        """Have the storage set aside for more records: writing to a mapping without room would be fatal."""
        more = min(_CHUNK, self._capacity - self._reserved)
        if more <= 0:
            return False
        try:
            os.posix_fallocate(self._file, _PAGE + self._reserved * _RECORD.size, more * _RECORD.size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            if not self.lost:
                logger.warning("%s: no space left; new connections would not survive the worker", self.path)
            return False
        self._reserved += more
        self._map[_RESERVED_AT : _RESERVED_AT + 8] = self._reserved.to_bytes(8, _BYTE_ORDER)
        return True


_BYTE_ORDER: Literal["little", "big"] = sys.byteorder


def storage(preferred: Path = DIRECTORY) -> Path:
    """Where the journal goes: under /run if that is memory-backed, else under /dev/shm.

    On a disk every page written would sooner or later be written out.
    """
    mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    run = [fields[2] for fields in mounts if fields[1] == "/run"]
    return preferred if run and run[-1] == _TMPFS else _FALLBACK


def _own(status: os.stat_result, path: Path) -> None:
    """Refuse what somebody else put there: in /dev/shm anybody can make a directory of our name."""
    if status.st_uid != os.geteuid():
        raise KernelError(f"{path}: belongs to user {status.st_uid}; look at it and remove it")
