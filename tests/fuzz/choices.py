"""Bytes to decisions: what hypothesis, a coverage-guided fuzzer or a seed supply, and a generator asks for.

Owns `Choices`. All three drivers speak bytes, so that one generator serves them, and what one of them finds
can be tried again by any other.
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Decisions taken from `data`, byte by byte; once that is used up, each is the first possible one."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been used."""
        return max(len(self._data) - self._at, 0)

    def take(self, size: int) -> bytes:
        """So many bytes, with zeros at the end where they do not suffice."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken + bytes(size - len(taken))

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1."""
        if limit <= 1 << 8:  # nearly always
            at = self._at
            self._at = at + 1
            return self._data[at] % limit if at < len(self._data) else 0
        size = 2 if limit <= 1 << 16 else 4
        return int.from_bytes(self.take(size), "little") % limit

    def one_in(self, number: int) -> bool:
        """Yes, once in so many times; no where nothing is left."""
        return self.below(number) == number - 1

    def pick(self, among: Sequence[T]) -> T:
        """One of several; whatever stands there more than once is taken more often."""
        return among[self.below(len(among))]

    def some(self, most: int) -> bytes:
        """Up to `most` bytes."""
        return self.take(self.below(most + 1))
