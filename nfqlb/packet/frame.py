"""What a capture file holds, whatever its format: frames, each with its time.

Owns `Frame`, the error of a file that cannot be read, and `Source`, which takes bytes of a file and knows
where it is. Nothing here trusts what a file says of itself.
"""

from typing import BinaryIO, NamedTuple

from nfqlb.core.segment import Stamp

#: No packet is longer: super-packets have 64 KB, and tcpdump keeps 256 KB at most.
LONGEST = 1 << 20


class Frame(NamedTuple):
    """One frame. `stamp` is when it was seen (wall clock, seconds and microseconds), `link` its link type.

    `size` is how many bytes it had, of which `data` are the first. `interface` is the number of the one
    that it was seen on, -1 where the file does not say. `comment` is what somebody has written to it.
    """

    stamp: Stamp
    link: int
    data: bytes
    size: int
    interface: int = -1
    comment: str = ""


class DamagedError(Exception):
    """A file that is no capture, or not one that can be read; the text says where and why."""


class CutShortError(Exception):
    """The file ends inside a record."""


class Source:
    """The bytes of a file, from its beginning. `at` is how many have been taken."""

    def __init__(self, file: BinaryIO) -> None:
        self.at = 0
        self._file = file

    def take(self, size: int) -> bytes:
        """So many bytes. Raises CutShortError where there are fewer."""
        data = self.rest(size)
        if len(data) < size:
            raise CutShortError
        return data

    def rest(self, size: int) -> bytes:
        """So many bytes, or as many as there are."""
        parts: list[bytes] = []
        missing = size
        while missing and (data := self._file.read(missing)):
            parts.append(data)
            missing -= len(data)
        self.at += size - missing
        return parts[0] if len(parts) == 1 else b"".join(parts)
