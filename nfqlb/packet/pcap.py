"""Capture files, read: the classic pcap format here, and which of the two a file is in.

Owns `CaptureFile`. The classic format is that of libpcap (pcap-savefile(5)): a header of 24 bytes, then
records of 16 and their packets, in the byte order of whoever wrote it. `pcapng` has the other one.
"""

from collections.abc import Iterator
from struct import Struct
from typing import BinaryIO

from nfqlb.packet.frame import LONGEST, CutShortError, DamagedError, Frame, Source
from nfqlb.packet.pcapng import SECTION, read_frames

#: By the first four bytes: byte order, and parts of a second that the second number of a time counts.
_MAGIC = {
    b"\xa1\xb2\xc3\xd4": (">", 1_000_000),
    b"\xd4\xc3\xb2\xa1": ("<", 1_000_000),
    b"\xa1\xb2\x3c\x4d": (">", 1_000_000_000),
    b"\x4d\x3c\xb2\xa1": ("<", 1_000_000_000),
}
_MAJOR = 2
_LINK = 0x03FF_FFFF  # above it stand the length of frame check sequences, and flags
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd", b"BZ": "bzip2", b"\xfd7": "xz"}


class CaptureFile:
    """A capture file in either format. `cut_at` is where it ends inside a record, None where it does not."""

    def __init__(self, file: BinaryIO) -> None:
        self.cut_at: int | None = None
        self._source = Source(file)

    def frames(self) -> Iterator[Frame]:
        """Every frame, once. Raises DamagedError, which says in a line what is wrong, and where."""
        source = self._source
        magic = source.rest(4)
        if magic in _MAGIC:
            found = _records(source, *_MAGIC[magic])
        elif magic == SECTION:
            found = read_frames(source)
        else:
            raise DamagedError(_unknown(magic))
        try:
            yield from found
        except CutShortError:
            self.cut_at = source.at


def _unknown(magic: bytes) -> str:
    if not magic:
        return "the file is empty"
    packed = _COMPRESSED.get(magic[:2])
    return f"compressed with {packed}: unpack it first" if packed else "neither pcap nor pcapng"


def _records(source: Source, order: str, parts: int) -> Iterator[Frame]:
    """The records of a classic file, after its magic number."""
    major, _, snaplen, link = Struct(order + "HH8xII").unpack(source.take(20))
    if major != _MAJOR:
        raise DamagedError(f"pcap of version {major}: only version {_MAJOR} is known")
    read = Struct(order + "IIII").unpack
    while head := source.rest(16):
        if len(head) < 16:
            raise CutShortError
        seconds, fraction, kept, size = read(head)
        if kept > LONGEST or kept > max(size, snaplen) or fraction >= parts:
            raise DamagedError(f"damaged at byte {source.at - 16}: no packet has such a header")
        data = source.take(kept)
        yield Frame((seconds, fraction * 1_000_000 // parts), link & _LINK, data, max(kept, size))
