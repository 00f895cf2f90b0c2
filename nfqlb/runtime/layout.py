"""How the journal's file is laid out: a header of one page, then a section for each kind of record.

Owns the header and the sections' entries in it, and how a file with another layout is copied into a new one.
The header has a magic number, the boot's id and the namespace's cookie; then, for each section, its kind, its
records' size, where it begins, how many there may be and how many are reserved so far. Numbers are in the
machine's own byte order.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from nfqlb.netfilter.procfs import Namespace

PAGE = 4096
RESERVED = Struct("=Q")
_MAGIC = b"nfqlb journal 1\n"
_HEADER = Struct("=16s36s4xQ")
_ENTRY = Struct("=IIQQQ")  # kind, record size, offset, capacity, records reserved
_ENTRIES_AT = 64
_MOST = 16  # sections
_PIECE = 1 << 20


class Wanted(NamedTuple):
    """A section that there is to be: its kind, its records, how many, bytes reserved at a time."""

    kind: int
    record: Struct
    capacity: int
    chunk: int


class Found(NamedTuple):
    """A section that a file has: its records' size in bytes, its place, how many may be and are reserved."""

    size: int
    start: int
    capacity: int
    reserved: int


class Section:
    """The records of one kind. A record's place is its offset in the file.

    `free` are places below `next` that hold no record; nothing at or above `reserved_to` may be written.
    """

    def __init__(self, wanted: Wanted, start: int, capacity: int, number: int) -> None:
        self.kind, self.record, _, self.chunk = wanted
        self.start = start
        self.capacity = capacity
        self.entry_at = _ENTRIES_AT + number * _ENTRY.size
        self.reserved_at = self.entry_at + _ENTRY.size - RESERVED.size
        self.end = start + capacity * self.record.size
        self.reserved_to = start
        self.next = start
        self.free: list[int] = []

    def entry(self, reserved: int) -> bytes:
        """This section's entry in the header."""
        return _ENTRY.pack(self.kind, self.record.size, self.start, self.capacity, reserved)

    def is_as(self, found: Found | None) -> bool:
        """Whether a file has just this section."""
        return found is not None and found[:3] == (self.record.size, self.start, self.capacity)


def header(where: Namespace) -> bytes:
    """How a file of this boot and network namespace begins."""
    return _HEADER.pack(_MAGIC, where.boot.encode(), where.cookie)


def found_in(file: int, beginning: bytes) -> dict[int, Found]:
    """The sections of an open file, by kind; none where it is of another boot or namespace, or not ours."""
    page = os.pread(file, PAGE, 0)
    size = os.fstat(file).st_size
    found: dict[int, Found] = {}
    if len(page) < PAGE or not page.startswith(beginning):
        return found
    for number in range(_MOST):
        kind, record, start, capacity, reserved = _ENTRY.unpack_from(page, _ENTRIES_AT + number * _ENTRY.size)
        if not (kind and record) or start + capacity * record > size:
            break
        found[kind] = Found(record, start, capacity, min(reserved, capacity))
    return found


def laid_out(wanted: list[Wanted], found: Mapping[int, Found]) -> list[Section]:
    """The sections, with room for what is wanted, and for what is there."""
    sections = []
    start = PAGE
    for number, each in enumerate(wanted):
        there = found.get(each.kind)
        kept = there.reserved if there is not None and there.size == each.record.size else 0
        sections.append(Section(each, start, max(each.capacity, kept), number))
        start = aligned(sections[-1].end)
    return sections


def aligned(end: int) -> int:
    """The next page's beginning."""
    return -(-end // PAGE) * PAGE


def made_anew(
    path: Path, old: int, beginning: bytes, sections: list[Section], found: Mapping[int, Found]
) -> int:
    """A file with these sections in place of the open file `old`, whose records it has; returns it, open.

    It takes the other's place when it is complete, so whoever is interrupted loses nothing. Raises OSError.
    """
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(file, aligned(sections[-1].end))
        for section in sections:
            there = found.get(section.kind)
            kept = there.reserved if there is not None and there.size == section.record.size else 0
            if there is not None and kept:
                _copy(old, there.start, file, section.start, kept * section.record.size)
            os.pwrite(file, section.entry(kept), section.entry_at)
        os.pwrite(file, beginning, 0)
        fresh.replace(path)
    except BaseException:
        os.close(file)
        fresh.unlink(missing_ok=True)
        raise
    os.close(old)
    return file


def _copy(old: int, source: int, new: int, target: int, size: int) -> None:
    os.posix_fallocate(new, target, size)
    for done in range(0, size, _PIECE):
        data = os.pread(old, min(_PIECE, size - done), source + done)
        os.pwrite(new, data, target + done)
