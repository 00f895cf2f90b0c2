"""The journal's section of what was set and what failed: one record for each server's name.

Owns the layout of these records and how they are written: every record has two places, and the older
one is overwritten. Each carries its number and a checksum of all that follows, so a record that was
half written when its writer was killed does not fit its checksum, and the one before it counts.
Records are written when a state changes, never per packet.

A successor's configuration may have other names: their records are freed. Numbers are in the machine's
own byte order, times in seconds of the monotonic clock, which is the same for all processes of one boot.
"""

import math
from collections.abc import Callable, Container, Iterator
from mmap import mmap
from struct import Struct
from zlib import crc32

from nfqlb.core.admission import ServerState
from nfqlb.core.chronicle import Kept, Kind
from nfqlb.core.health import Condition

#: Checksum; number, kind, setting, condition, weight (NaN: the configuration's), bound from, failed at, retry
#: at, ditched without an answer, with a reset, name, reason.
_RECORD = Struct("=IIBBBxddddII64s88s")
_CHECKSUM = Struct("=I")
_NUMBERS = 0xFFFF_FFFF
PAIR = 2 * _RECORD.size
#: Names that there is room for: real and virtual servers together.
CAPACITY = 8192

# these bytes never change meaning
_KINDS = {1: Kind.REAL, 2: Kind.VIRTUAL}
_SETTINGS = {
    1: ServerState.IN_SERVICE,
    2: ServerState.STICKY_ONLY,
    3: ServerState.MAINTENANCE,
    4: ServerState.OUT_OF_SERVICE,
}
_CONDITIONS = {1: Condition.WELL, 2: Condition.FAILED, 3: Condition.TESTING}
_KIND_BYTES = {kind: code for code, kind in _KINDS.items()}
_SETTING_BYTES = {setting: code for code, setting in _SETTINGS.items()}
_CONDITION_BYTES = {condition: code for code, condition in _CONDITIONS.items()}


class Ledger:
    """The records in `whole[start:]`, `CAPACITY` pairs of them.

    `reserve` is asked for storage before a byte past `reserved_to()` is written; where it answers no, the
    record is lost and counted.
    """

    def __init__(
        self, whole: mmap, start: int, *, reserved_to: Callable[[], int], reserve: Callable[[], bool]
    ) -> None:
        self.lost = 0
        self._whole = whole
        self._start = start
        self._end = start + CAPACITY * PAIR
        self._reserved_to = reserved_to
        self._reserve = reserve
        self._places: dict[tuple[Kind, str], int] = {}
        self._numbers: dict[int, int] = {}
        self._free: list[int] = []
        self._next = start

    def records(self) -> Iterator[Kept]:
        """What was kept of each server. Places without a record that can be believed become free."""
        self._places.clear()
        self._numbers.clear()
        self._free.clear()
        self._next = self._start
        for place in range(self._start, min(self._reserved_to(), self._end) - PAIR + 1, PAIR):
            self._next = place + PAIR
            newest = self._newest(place)
            if newest is None:
                self._free.append(place)
                continue
            number, kept = newest
            self._places[kept.kind, kept.name] = place
            self._numbers[place] = number
            yield kept
        self._free.reverse()  # the first is taken first

    def keep(self, kept: Kept) -> None:
        """Write what is to be kept of a server in place of what was."""
        name = kept.kind, kept.name
        place = self._places.get(name)
        if place is None:
            place = self._place()
            if place < 0:
                self.lost += 1
                return
            self._places[name] = place
            self._numbers[place] = 0
        number = self._numbers[place] = (self._numbers[place] + 1) & _NUMBERS
        at = place + (number & 1) * _RECORD.size
        self._whole[at : at + _RECORD.size] = packed(kept, number)

    def forget(self, kept: Kept) -> None:
        """There is no such server any more."""
        place = self._places.pop((kept.kind, kept.name))
        self._whole[place : place + PAIR] = bytes(PAIR)
        self._free.append(place)

    def retain(self, names: Container[tuple[Kind, str]]) -> None:
        """There are no servers but these any more."""
        for kind, name in [each for each in self._places if each not in names]:
            self.forget(Kept(kind, name))

    def _newest(self, place: int) -> tuple[int, Kept] | None:
        size = _RECORD.size
        both = [unpacked(self._whole[at : at + size]) for at in (place, place + size)]
        found = [each for each in both if each is not None]
        return max(found, key=lambda each: each[0], default=None)

    def _place(self) -> int:
        """A free place, cleared of what it held; -1 if there is none."""
        if self._free:
            place = self._free.pop()
        elif self._next + PAIR <= self._end and (self._next + PAIR <= self._reserved_to() or self._reserve()):
            place = self._next
            self._next += PAIR
        else:
            return -1
        self._whole[place : place + PAIR] = bytes(PAIR)
        return place


def packed(kept: Kept, number: int) -> bytes:
    """A record's bytes. A reason that is too long is cut."""
    rest = _RECORD.pack(
        0,
        number,
        _KIND_BYTES[kept.kind],
        _SETTING_BYTES[kept.setting],
        _CONDITION_BYTES[kept.condition],
        math.nan if kept.weight is None else kept.weight,
        kept.bound_from,
        kept.failed_at,
        kept.retry_at,
        kept.no_answer & _NUMBERS,
        kept.reset & _NUMBERS,
        kept.name.encode(),
        kept.reason.encode(),
    )[_CHECKSUM.size :]
    return _CHECKSUM.pack(crc32(rest)) + rest


def unpacked(record: bytes) -> tuple[int, Kept] | None:
    """A record's number and what it says; None if it was never written, or not to its end."""
    (
        checksum, number, kind, setting, condition, weight, bound_from, failed_at, retry_at, no_answer, reset,
        name, reason,
    ) = _RECORD.unpack(record)  # fmt: skip
    if not number or checksum != crc32(record[_CHECKSUM.size :]):
        return None
    if kind not in _KINDS or setting not in _SETTINGS or condition not in _CONDITIONS:
        return None  # another version's
    return number, Kept(
        kind=_KINDS[kind],
        name=name.rstrip(b"\0").decode(),
        setting=_SETTINGS[setting],
        weight=None if math.isnan(weight) else weight,
        bound_from=bound_from,
        condition=_CONDITIONS[condition],
        failed_at=failed_at,
        retry_at=retry_at,
        no_answer=no_answer,
        reset=reset,
        reason=reason.rstrip(b"\0").decode(errors="ignore"),
    )
