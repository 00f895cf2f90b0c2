"""The pcapng format, written and read (draft-ietf-opsawg-pcapng).

Owns its blocks. Writing: functions that return a block's bytes, for a file of one section with interfaces of
raw IP. Reading: any file, of either byte order, several sections, interfaces of unlike clocks. dpkt knows the
format too, but reads one interface and no comment.
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from nfqlb.packet.frame import LONGEST, CutShortError, DamagedError, Frame, Source

SECTION = b"\x0a\x0d\x0d\x0a"  # the type of the first block, in either byte order
#: LINKTYPE_IPV4 and LINKTYPE_IPV6: a packet begins with its header of that IP version. LINKTYPE_RAW knows
#: both, but with it libpcap (1.10) refuses a file of more than one interface.
LINKS = {4: 228, 6: 229}

_INTERFACE, _OLD_PACKET, _SIMPLE, _STATISTICS, _PACKET = 1, 2, 3, 5, 6
_BYTE_ORDER = 0x1A2B_3C4D
_COMMENT = 1
_APPLICATION = 4  # of a section
_NAME, _DESCRIPTION, _RESOLUTION, _OFFSET = 2, 3, 9, 14  # of an interface
_FLAGS = 2  # of a packet
_RECEIVED, _DROPPED = 4, 5  # of statistics
_TEXT_MOST = 65_532  # what an option can say
_BLOCK_MOST = 16 << 20
_LATEST = 1 << 37  # seconds since 1970: the year 6325, and still a date

_head = Struct("<II").pack
_option = Struct("<HH").pack


# --- writing


def section(comment: str, application: str) -> bytes:
    """The first block of a file: what it is, and by whom."""
    body = Struct("<IHHq").pack(_BYTE_ORDER, 1, 0, -1)
    return _block(
        int.from_bytes(SECTION, "little"), body, _text(_COMMENT, comment), _text(_APPLICATION, application)
    )


def interface(name: str, description: str, snaplen: int, version: int) -> bytes:
    """The next interface, for packets of one IP version: the first one written is number 0."""
    body = Struct("<HHI").pack(LINKS[version], 0, snaplen)
    return _block(
        _INTERFACE, body, _text(_NAME, name), _text(_DESCRIPTION, description), _value(_RESOLUTION, b"\6")
    )


def packet(number: int, at: int, data: bytes, size: int, *, comment: str = "", inbound: bool = True) -> bytes:
    """A packet on interface `number`, `at` microseconds of the wall clock.

    `data` are the first of `size` bytes. `inbound` says whether it was received, or sent.
    """
    body = Struct("<IIIII").pack(number, at >> 32 & 0xFFFF_FFFF, at & 0xFFFF_FFFF, len(data), size)
    flags = _value(_FLAGS, (1 if inbound else 2).to_bytes(4, "little"))
    return _block(_PACKET, body + _padded(data), flags, _text(_COMMENT, comment))


def statistics(number: int, at: int, received: int, dropped: int) -> bytes:
    """What passed interface `number` until `at`: packets received, and how many are missing here."""
    body = Struct("<III").pack(number, at >> 32 & 0xFFFF_FFFF, at & 0xFFFF_FFFF)
    counts = (
        _value(kind, count.to_bytes(8, "little"))
        for kind, count in ((_RECEIVED, received), (_DROPPED, dropped))
    )
    return _block(_STATISTICS, body, *counts)


def _block(kind: int, body: bytes, *options: bytes) -> bytes:
    told = b"".join(options)
    whole = body + told + bytes(4) if told else body
    size = len(whole) + 12
    return _head(kind, size) + whole + size.to_bytes(4, "little")


def _text(kind: int, text: str) -> bytes:
    """An option that is a text; none where there is nothing to say."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > _TEXT_MOST:
        data = data[:_TEXT_MOST].decode("utf-8", "ignore").encode()
    return _value(kind, data) if data else b""


def _value(kind: int, data: bytes) -> bytes:
    return _option(kind, len(data)) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# --- reading


class _Clock(NamedTuple):
    """An interface: its link type, and what its times count: parts of a second, from so many seconds on."""

    link: int
    parts: int = 1_000_000
    offset: int = 0


class _Section:
    """The section that is being read."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.endian = "big" if order == ">" else "little"
        self.interfaces: list[_Clock] = []


def read_frames(source: Source) -> Iterator[Frame]:
    """Every packet with a time, after the type of the first block has been taken from `source`.

    Raises DamagedError, and CutShortError where the file ends inside a block.
    """
    part = _begin(source)
    earlier = 0  # interfaces of the sections before
    while True:
        begin = source.at
        head = source.rest(4)
        if not head:
            return
        if len(head) < 4:
            raise CutShortError
        if head == SECTION:
            earlier += len(part.interfaces)
            part = _begin(source)
            continue
        kind = int.from_bytes(head, part.endian)  # type: ignore[arg-type]  # "big" or "little"
        body = _body(source, part, begin)
        try:
            frame = _read(kind, body, part, earlier)
        except (ValueError, OverflowError) as error:
            raise DamagedError(f"damaged at byte {begin}: {error}") from None
        if frame is not None:
            yield frame


def _begin(source: Source) -> _Section:
    """A section's header, after its type: the byte order is told by its third field."""
    begin = source.at - 4
    size, order = source.take(4), source.take(4)
    if order == _BYTE_ORDER.to_bytes(4, "big"):
        part = _Section(">")
    elif order == _BYTE_ORDER.to_bytes(4, "little"):
        part = _Section("<")
    else:
        raise DamagedError(f"damaged at byte {begin}: no section begins like this")
    length = Struct(part.order + "I").unpack(size)[0]
    if length % 4 or not 28 <= length <= _BLOCK_MOST:
        raise DamagedError(f"damaged at byte {begin}: a section header of {length} bytes")
    (major,) = Struct(part.order + "H").unpack(source.take(2))
    if major != 1:
        raise DamagedError(f"pcapng of version {major}: only version 1 is known")
    rest = source.take(length - 14)
    if rest[-4:] != size:
        raise DamagedError(f"damaged at byte {begin}: a block's two lengths differ")
    return part


def _body(source: Source, part: _Section, begin: int) -> bytes:
    size = source.take(4)
    length = Struct(part.order + "I").unpack(size)[0]
    if length % 4 or not 12 <= length <= _BLOCK_MOST:
        raise DamagedError(f"damaged at byte {begin}: a block of {length} bytes")
    body = source.take(length - 12)
    if source.take(4) != size:
        raise DamagedError(f"damaged at byte {begin}: a block's two lengths differ")
    return body


def _read(kind: int, body: bytes, part: _Section, earlier: int) -> Frame | None:
    """A block's frame, if it has one. Raises ValueError."""
    if kind == _INTERFACE:
        part.interfaces.append(_interface(body, part))
        return None
    if kind == _PACKET:
        number, high, low, kept, size = _fields(part, "IIIII", body)
    elif kind == _OLD_PACKET:
        number, _, high, low, kept, size = _fields(part, "HHIIII", body)
    elif kind == _SIMPLE:
        raise ValueError("a packet without a time")
    else:
        return None
    if number >= len(part.interfaces):
        raise ValueError(f"a packet of interface {number}, which there is not")
    if kept > LONGEST or kept > len(body) - 20 or kept > size:
        raise ValueError(f"a packet of {kept} bytes")
    clock = part.interfaces[number]
    comment = dict(_options(body[20 + kept + -kept % 4 :], part)).get(_COMMENT, b"")
    stamp = _stamp(high << 32 | low, clock)
    text = comment.decode("utf-8", "replace")
    return Frame(stamp, clock.link, body[20 : 20 + kept], size, earlier + number, text)


def _fields(part: _Section, layout: str, body: bytes) -> tuple[int, ...]:
    read = Struct(part.order + layout)
    if len(body) < read.size:
        raise ValueError("a block that is too short")
    return read.unpack_from(body)


def _interface(body: bytes, part: _Section) -> _Clock:
    link, _, _ = _fields(part, "HHI", body)
    told = dict(_options(body[8:], part))
    resolution, offset = told.get(_RESOLUTION, b"\6"), told.get(_OFFSET, bytes(8))
    if len(resolution) != 1 or len(offset) != 8:
        raise ValueError("an interface whose clock cannot be read")
    power = resolution[0] & 0x7F
    if power > 63:
        raise ValueError("an interface whose clock cannot be read")
    parts = 2**power if resolution[0] & 0x80 else 10**power
    seconds = int.from_bytes(offset, part.endian, signed=True)  # type: ignore[arg-type]  # "big" or "little"
    return _Clock(link, parts, seconds)


def _options(data: bytes, part: _Section) -> Iterator[tuple[int, bytes]]:
    """Options by their number; the list ends with number 0, or with the block."""
    read = Struct(part.order + "HH").unpack_from
    at = 0
    while at + 4 <= len(data):
        kind, size = read(data, at)
        if not kind:
            return
        at += 4
        if at + size > len(data):
            raise ValueError("an option that is longer than its block")
        yield kind, data[at : at + size]
        at += size + -size % 4


def _stamp(ticks: int, clock: _Clock) -> tuple[int, int]:
    whole, part = divmod(ticks, clock.parts)
    seconds = whole + clock.offset
    if not 0 <= seconds < _LATEST:
        raise ValueError("a packet of no time that can be")
    return seconds, part * 1_000_000 // clock.parts
