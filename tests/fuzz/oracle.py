"""What a packet must be after it was judged, found without the code that judges.

Owns the independent view: its own walk along the headers, its own sums (a plain loop over words; scapy, which
is slow, for those who ask), and the claims that hold for every packet, damaged ones too. A translation
changes one address, one port, and sums; and no sum's error: what was right is right, and what was wrong stays
exactly as wrong.
"""

from struct import unpack
from typing import NamedTuple

from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.utils import checksum

_TCP, _UDP = 6, 17
_PREROUTING, _OUTPUT = 0, 3
_NOT_READY, _SUPER = 1, 2
_SKIPPED = (0, 43, 44, 60)


class Ends(NamedTuple):
    """A connection's two servers: packed address and port; `port` None where the packet's own stays."""

    virtual: bytes
    real: bytes
    virtual_port: int | None
    real_port: int | None


class Spot(NamedTuple):
    """Where an IP packet has its transport, and its addresses; `header` is 0 where no sum covers it.

    `later` says that it is a fragment without the transport's header, `fragment` that it is any;
    `extensions` are IPv6's headers in between.
    """

    protocol: int
    at: int
    source: int
    size: int
    header: int
    fragment: bool
    later: bool
    extensions: int = 0


def summed(data: bytes) -> int:
    """The folded one's-complement sum of 16-bit words, a zero byte added where the length is odd."""
    if len(data) & 1:
        data += b"\0"
    total: int = sum(unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def spot(packet: bytes) -> Spot | None:
    """Where the transport is; None where the headers lead nowhere."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        header = (packet[0] & 15) * 4
        word = _word(packet, 6)
        return Spot(packet[9], header, 12, 4, header, bool(word & 0x3FFF), bool(word & 0x1FFF))
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return None
    kind, at, word, count = packet[6], 40, 0, 0
    while kind in _SKIPPED and at + 8 <= len(packet):
        size = 8 if kind == 44 else 8 + 8 * packet[at + 1]
        word |= _word(packet, at + 2) if kind == 44 else 0
        kind, at, count = packet[at], at + size, count + 1
    return Spot(kind, at, 8, 16, 0, bool(word & 0xFFF9), bool(word & 0xFFF8), count)


def vanishing(packet: bytes, hook: int, ends: Ends) -> bytes:
    """The packet with the very sum that a translation makes 0: UDP's own, or that of what is quoted.

    Other packets come back as they are.
    """
    found, begin = spot(packet), 0
    if found is not None and found.protocol in (1, 58):
        begin = found.at + 8
        found = spot(packet[begin:])
    if found is None or found.protocol != _UDP or begin + found.at + 8 > len(packet):
        return packet
    difference = summed(ends.real) - summed(ends.virtual)
    if ends.real_port is not None and ends.virtual_port is not None:
        difference += ends.real_port - ends.virtual_port
    if hook != _PREROUTING:
        difference = -difference
    at = begin + found.at + 6
    return packet[:at] + (difference % 0xFFFF or 0xFFFF).to_bytes(2, "big") + packet[at + 2 :]


def check(before: bytes, after: bytes, hook: int, info: int, ends: Ends) -> None:
    """Fail unless `after` is `before`, translated for a connection between these ends, and nothing else."""
    assert len(before) == len(after)
    found = spot(before)
    assert found is not None
    _check_form(before, found, hook)
    expected = bytearray(before)
    if found.protocol in (_TCP, _UDP):
        _check_transport(before, after, expected, found, hook, info, ends)
    else:
        _check_error(before, after, expected, found, hook, ends)
    assert bytes(expected) == after


def _check_form(packet: bytes, found: Spot, hook: int) -> None:
    """Fail if a packet that was translated is one that nobody should touch."""
    size, at, inbound = len(packet), found.at, hook == _PREROUTING
    assert not found.fragment
    assert found.extensions <= 8
    assert size == (_word(packet, 2) if found.header else _word(packet, 4) + 40)
    assert not found.header or found.header >= 20
    if found.protocol == _TCP:
        word = _word(packet, at + 12)
        assert 20 <= (word >> 12) * 4 <= size - at
        assert not (word & 2 and word & 5), "SYN with FIN or RST"
        assert _word(packet, at)
    elif found.protocol == _UDP:
        assert 8 <= _word(packet, at + 4) <= size - at
    else:
        assert (found.protocol, packet[at]) in _ERRORS
        return
    # a datagram may come from port 0, which asks for no answer (RFC 768); whoever answers all the same
    assert _word(packet, at + 2) or (found.protocol == _UDP and not inbound)
    middle = found.source + found.size
    source, target = packet[found.source : middle], packet[middle : middle + found.size]
    assert source != target or not inbound, "to itself"


_ERRORS = {(1, 3), (1, 11), (1, 12), (58, 1), (58, 2), (58, 3), (58, 4)}


def _take(expected: bytearray, after: bytes, at: int) -> int:
    """The sum that is in the packet now, which is looked at by itself."""
    expected[at : at + 2] = after[at : at + 2]
    return int.from_bytes(after[at : at + 2], "big")


def _same(one: int, other: int) -> None:
    assert one % 0xFFFF == other % 0xFFFF


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _put(expected: bytearray, at: int, value: bytes) -> None:
    expected[at : at + len(value)] = value


def _check_transport(
    before: bytes, after: bytes, expected: bytearray, found: Spot, hook: int, info: int, ends: Ends
) -> None:
    inbound = hook == _PREROUTING
    at, addresses = found.at, slice(found.source, found.source + 2 * found.size)
    address, port = (ends.real, ends.real_port) if inbound else (ends.virtual, ends.virtual_port)
    _put(expected, found.source + (found.size if inbound else 0), address)
    if ends.virtual_port is not None and port is not None:
        _put(expected, at + (2 if inbound else 0), port.to_bytes(2, "big"))
    if found.header:
        _take(expected, after, 10)
        _same(summed(after[: found.header]), summed(before[: found.header]))
    udp = found.protocol == _UDP
    sum_at = at + (6 if udp else 16)
    old, new = _word(before, sum_at), _take(expected, after, sum_at)
    last = at + _word(before, at + 4) if udp else len(before)
    whole = [summed(each[addresses]) + summed(each[at:last]) for each in (before, after)]
    if udp and (not old and not info & _NOT_READY):
        assert not new
    elif not udp and info & _SUPER and not inbound:
        assert new == old
    elif udp and info & _NOT_READY and info & _SUPER:
        _same(new - summed(after[addresses]), old - summed(before[addresses]))
    elif info & _NOT_READY:
        # complete now, had the field held the sum of the pseudo header's addresses and the rest of it
        _same(whole[1], summed(before[addresses]) - old)
    else:
        _same(whole[1], whole[0])
    if udp and (old or info & _NOT_READY):
        assert new, "a sum of 0 says that there is none"


def _check_error(
    before: bytes, after: bytes, expected: bytearray, found: Spot, hook: int, ends: Ends
) -> None:
    inbound, quoted = hook == _PREROUTING, found.at + 8
    inside = spot(before[quoted:])
    assert inside is not None
    assert not inside.later, "it has no ports"
    address, port = (ends.real, ends.real_port) if inbound else (ends.virtual, ends.virtual_port)
    if hook != _OUTPUT:
        _put(expected, found.source + (found.size if inbound else 0), address)
    _put(expected, quoted + inside.source + (0 if inbound else inside.size), address)
    port_at = quoted + inside.at + (0 if inbound else 2)
    if ends.virtual_port is not None and port is not None:
        _put(expected, port_at, port.to_bytes(2, "big"))
    for header, begin in ((found.header, 0), (inside.header, quoted)):
        if header:
            _take(expected, after, begin + 10)
            _same(summed(after[begin : begin + header]), summed(before[begin : begin + header]))
    udp = inside.protocol == _UDP
    sum_at = quoted + inside.at + (6 if udp else 16)
    if sum_at + 2 <= len(before):
        old, new = _word(before, sum_at), _take(expected, after, sum_at)
        first = quoted + inside.source
        last = first + 2 * inside.size
        moved = [summed(each[first:last]) + _word(each, port_at) for each in (before, after)]
        if udp and not old:
            assert not new
        else:
            _same(new + moved[1], old + moved[0])
            assert new or not udp
    _take(expected, after, found.at + 2)
    covered = slice(found.source, found.source + (0 if found.header else 2 * found.size))
    _same(
        summed(after[covered]) + summed(after[found.at :]),
        summed(before[covered]) + summed(before[found.at :]),
    )


# --- by others


def check_by_scapy(packet: bytes) -> None:
    """Fail unless scapy finds every sum of the packet right; a UDP sum of 0 over IPv4 is none."""
    found = spot(packet)
    assert found is not None
    body = packet[found.at :]
    if found.header:
        assert checksum(packet[: found.header]) == 0
        if found.protocol == 1:
            assert checksum(body) == 0
            return
        if found.protocol == _UDP:
            body = body[: _word(body, 4)]
            if body[6:8] == b"\0\0":
                return
        pseudo = packet[12:20] + bytes((0, found.protocol)) + len(body).to_bytes(2, "big")
        assert checksum(pseudo + body) == 0
        return
    if found.protocol == _UDP:
        body = body[: _word(body, 4)]
    assert in6_chksum(found.protocol, IPv6(packet[:40]), body) == 0
