"""Packets from choices: valid ones of every kind that a gateway meets, and then damaged ones.

Owns the generator. Packets are put together by hand, as scapy would take most of the time; `oracle` has
scapy and dpkt. Few addresses, ports and numbers are used, and those of connections that exist (`Known`), so
that packets meet: a random one would never get past the first look.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from struct import pack
from typing import NamedTuple

from tests.fuzz.choices import Choices
from tests.fuzz.oracle import summed

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
NOT_READY, SUPER = 1, 2


def _packed(*addresses: str) -> tuple[bytes, ...]:
    return tuple(ip_address(address).packed for address in addresses)


#: By IP version. Sources: ordinary clients first and often; the virtual servers themselves, servers, and
#: addresses that are nobody's.
VIRTUALS = {4: _packed("192.0.2.100", "192.0.2.101"), 6: _packed("2001:db8::100", "2001:db8::101")}
REALS = {
    4: _packed("10.0.0.11", "10.0.0.12", "10.0.0.13"),
    6: _packed("fd00::11", "fd00::12", "fd00::13"),
}
CLIENTS = {
    4: _packed("198.51.100.7", "198.51.100.8", "198.51.100.9") * 4
    + VIRTUALS[4] + REALS[4][:1] + _packed("127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0"),
    6: _packed("2001:db8:7::7", "2001:db8:7::8", "2001:db8:7::9") * 4
    + VIRTUALS[6] + REALS[6][:1] + _packed("::1", "ff02::1", "fe80::1", "::", "::ffff:198.51.100.7"),
}  # fmt: skip
STRANGERS = {4: _packed("203.0.113.1"), 6: _packed("2001:db8:f::1")}
CLIENT_PORTS = (40_001, 40_002, 40_003, 40_004) * 4 + (80, 65_535, 0)
VIRTUAL_PORTS = (80, 80, 53, 8080) * 4 + (443, 0)
REAL_PORTS = (8080, 5353, 8080, 5353) * 4 + (80, 53, 443, 0)
_FLAGS = (
    SYN, SYN, SYN, ACK, ACK, ACK, PSH | ACK, PSH | ACK, SYN | ACK, SYN | ACK, SYN | ACK, FIN | ACK, FIN | ACK,
    RST, RST | ACK, FIN, 0, SYN | FIN, SYN | RST, 0xFF, SYN | PSH, 0x1FF, SYN | 0xC0, 0x20,
)  # fmt: skip
_NUMBERS = (1000, 1001, 2000, 2001, 0, 0xFFFF_FFFF, 0x8000_0000)
_TCP_OPTIONS = (
    b"", b"", b"\2\4\5\xb4", b"\1\1\x08\x0a" + bytes(8), b"\2\4\5\xb4\4\2\x08\x0a" + bytes(8) + b"\1\3\3\7",
    b"\1" * 40, b"\2\0\0\0", b"\x08\xff\0\0", b"\0" * 8, b"\xfd\4\0\0",
)  # fmt: skip
_IP_OPTIONS = (
    b"", b"", b"", b"", b"\1\1\1\0", b"\x94\4\0\0", b"\7\x27\4" + bytes(37), b"\x83\7\4\x0a\0\0\x0b\0",
    b"\x44\0\0\0", b"\x07\xff\4\0", b"\1" * 40,
)  # fmt: skip
#: Extension headers of IPv6: kind, and all of it but its first byte.
_EXTENSIONS = (
    (60, b"\0\1\4\0\0\0\0"), (0, b"\0\1\4\0\0\0\0"), (43, b"\0\2\0" + bytes(4)), (43, b"\0\2\1" + bytes(4)),
    (44, b"\0\0\0\0\0\0\7"), (44, b"\0\0\1\0\0\0\7"), (44, b"\0\0\x11\0\0\0\7"), (44, b"\0\0\x10\0\0\0\7"),
    (60, b"\1\1\x0c" + bytes(12)), (60, b"\xff\1\4" + bytes(4)), (51, b"\4\0\0" + bytes(20)), (135, bytes(7)),
)  # fmt: skip
_FRAGMENTS = (0, 0x4000, 0x2000, 0x2010, 0x0010, 0x1FFF, 0x8000)
_OTHERS = (47, 50, 51, 132, 4, 41, 0, 255, 2)
_ERRORS = {
    ICMP: ((3, 1), (3, 3), (3, 4), (11, 0), (11, 1), (12, 0), (8, 0), (0, 0), (5, 1), (3, 255)),
    ICMP6: ((1, 0), (1, 4), (2, 0), (3, 0), (4, 1), (128, 0), (135, 0), (137, 0), (0, 0), (255, 255)),
}


class Way(NamedTuple):
    """Who sends to whom, and a TCP segment's numbers; addresses packed, all else in host order."""

    version: int
    protocol: int
    source: bytes
    destination: bytes
    ports: tuple[int, int]
    numbers: tuple[int, int]

    @property
    def back(self) -> "Way":
        """The opposite direction."""
        return Way(
            self.version, self.protocol, self.destination, self.source, self.ports[::-1], self.numbers[::-1]
        )


#: Gives a way that a connection's client (True) or server (False) would use now; None where there is none.
Known = Callable[[Choices, bool], Way | None]


def nobody(_choices: Choices, _inbound: bool) -> None:
    """No connection is known."""


@dataclass(slots=True)
class Made:
    """A packet, and whether it is as a well-behaved system could send it: not `damaged` afterwards."""

    data: bytes
    damaged: bool = field(default=False)


def packet(choices: Choices, known: Known, *, inbound: bool, info: int = 0) -> Made:
    """A packet from the client line (`inbound`) or the server line; `info` as NFQA_SKB_INFO has it."""
    way = known(choices, inbound) if choices.below(8) else None
    way = way or _way(choices, inbound=inbound)
    kind = choices.below(16)
    if kind < 11:
        data = _whole(choices, way, info)
    elif kind < 14:
        data = _error(choices, way)
    elif kind < 15:
        data = _ip(choices, way, choices.pick(_OTHERS), choices.some(64))
    else:
        data = choices.some(120)
    if choices.below(4):
        return Made(data)
    return Made(damage(choices, data), damaged=True)


def opening(choices: Choices) -> Made:
    """What opens a connection or a flow with one of the virtual servers, from an ordinary client."""
    version, (number, protocol, port) = choices.pick((4, 6)), choices.pick(_SITES)
    client, number_of_client = choices.pick(CLIENTS[version][:3]), choices.pick(CLIENT_PORTS[:4])
    virtual = VIRTUALS[version][number]
    way = Way(version, protocol, client, virtual, (number_of_client, port), (choices.pick(_NUMBERS), 0))
    return plain(way, SYN)


def plain(way: Way, flags: int) -> Made:
    """A segment with these flags, or a datagram, without options and data."""
    body = pack("!HHIIHHHH", *way.ports, *way.numbers, 5 << 12 | flags, 64_000, 0, 0)
    if way.protocol == UDP:
        body = pack("!HHHH", *way.ports, 8, 0)
    return Made(_ip(Choices(b""), way, way.protocol, _with_sum(way, way.protocol, body)))


_SITES = ((0, TCP, 80), (0, TCP, 8080), (0, UDP, 53), (1, TCP, 443), (1, UDP, 123))


def _with_sum(way: Way, protocol: int, body: bytes) -> bytes:
    at = 16 if protocol == TCP else 6
    total = 0xFFFF - summed(_pseudo(way, protocol, len(body)) + body)
    if protocol == UDP:
        total = total or 0xFFFF
    return body[:at] + total.to_bytes(2, "big") + body[at + 2 :]


def _way(choices: Choices, *, inbound: bool) -> Way:
    version, protocol = choices.pick((4, 6)), choices.pick((TCP, TCP, UDP))
    client = choices.pick(CLIENTS[version]), choices.pick(CLIENT_PORTS)
    servers = (VIRTUALS if inbound else REALS)[version]
    server = choices.pick(servers * 4 + STRANGERS[version])
    port = choices.pick(VIRTUAL_PORTS if inbound else REAL_PORTS)
    numbers = choices.pick(_NUMBERS), choices.pick(_NUMBERS)
    way = Way(version, protocol, client[0], server, (client[1], port), numbers)
    if inbound and choices.one_in(24):
        way = way._replace(source=way.destination)  # "land"
    return way if inbound else way.back._replace(numbers=numbers)


def _whole(choices: Choices, way: Way, info: int) -> bytes:
    payload = _payload(choices)
    protocol = way.protocol if choices.below(32) else TCP + UDP - way.protocol
    body = _tcp(choices, way, payload) if protocol == TCP else _udp(way, payload)
    if info & NOT_READY:
        at, total = (16 if protocol == TCP else 6), summed(_pseudo(way, protocol, len(body)))
        body = body[:at] + total.to_bytes(2, "big") + body[at + 2 :]
    elif protocol == TCP or not choices.one_in(6):
        body = _with_sum(way, protocol, body)
    if protocol == UDP and choices.one_in(12):
        body += choices.some(8)  # bytes behind it, which no UDP length counts
    return _ip(choices, way, protocol, body)


def _payload(choices: Choices) -> bytes:
    size = choices.pick((0, 1, 2, 7, 40) * 4 + (536, 1460, 1500, 9000))
    return (choices.take(3) * (size // 3 + 1))[:size]


def _tcp(choices: Choices, way: Way, payload: bytes) -> bytes:
    options = choices.pick(_TCP_OPTIONS)
    flags = choices.pick(_FLAGS)
    word = (5 + len(options) // 4) << 12 | flags
    head = pack("!HHIIHHHH", *way.ports, *way.numbers, word, 64_000, 0, choices.pick((0, 0, 9)))
    return head + options + payload


def _udp(way: Way, payload: bytes) -> bytes:
    return pack("!HHHH", *way.ports, 8 + len(payload), 0) + payload


def _pseudo(way: Way, protocol: int, size: int) -> bytes:
    return way.source + way.destination + pack("!IBBH", size, 0, 0, protocol)


def _ip(choices: Choices, way: Way, protocol: int, body: bytes) -> bytes:
    if way.version == 4:
        return _ip4(choices, way, protocol, body)
    chain: list[tuple[int, bytes]] = []
    if choices.one_in(5):
        count = choices.pick((1, 1, 2, 3, 5, 8, 9, 64))
        chain = [choices.pick(_EXTENSIONS) for _ in range(count)]
    following, more = protocol, b""
    for kind, rest in reversed(chain):
        more = bytes((following,)) + rest + more
        following = kind
    whole = more + body
    head = pack("!IHBB", 0x6000_0000 | choices.pick((0, 0xABCDE)), len(whole) & 0xFFFF, following, 64)
    return head + way.source + way.destination + whole


def _ip4(choices: Choices, way: Way, protocol: int, body: bytes) -> bytes:
    options = choices.pick(_IP_OPTIONS)
    fragment = choices.pick(_FRAGMENTS) if choices.one_in(8) else 0x4000
    size = 20 + len(options)
    head = pack(
        "!BBHHHBBH", 0x40 | size // 4, 0, (size + len(body)) & 0xFFFF, 7, fragment, 64, protocol, 0
    )
    head += way.source + way.destination + options
    return head[:10] + (0xFFFF - summed(head)).to_bytes(2, "big") + head[12:] + body


def _error(choices: Choices, way: Way) -> bytes:
    """An ICMP error about what its receiver has sent, or another message of ICMP."""
    inner = _whole(choices, way.back, 0) if choices.below(12) else _ip(choices, way.back, ICMP, bytes(40))
    header = (inner[0] & 15) * 4 if way.version == 4 else 40
    amount = choices.pick((header + 8, header + 8, len(inner), header + 17, 548, header + 7, header, 0))
    protocol = ICMP if way.version == 4 else ICMP6
    kind, code = choices.pick(_ERRORS[protocol])
    body = pack("!BBHI", kind, code, 0, choices.pick((0, 1400))) + inner[:amount]
    if choices.one_in(4):  # a router in between has noticed
        way = way._replace(source=choices.pick(STRANGERS[way.version]))
    covered = body if way.version == 4 else _pseudo(way, ICMP6, len(body)) + body
    total = 0xFFFF - summed(covered)
    return _ip(choices, way, protocol, body[:2] + total.to_bytes(2, "big") + body[4:])


# --- damage


def damage(choices: Choices, data: bytes, most: int = 4) -> bytes:
    """The data with a few of its bits flipped, bytes cut, inserted or repeated, lengths that lie or fit."""
    changed = bytearray(data)
    for _ in range(1 + choices.below(most)):
        _DAMAGES[choices.below(len(_DAMAGES))](choices, changed)
    return bytes(changed[:65_000])


def _place(choices: Choices, data: bytearray) -> int:
    """Anywhere, more often near the beginning."""
    near = min(len(data), 64)
    return choices.below(near if near and choices.below(4) else len(data) or 1)


def _flip(choices: Choices, data: bytearray) -> None:
    at, bit = _place(choices, data), choices.below(8)
    if data:
        data[at] ^= 1 << bit


def _put(choices: Choices, data: bytearray) -> None:
    new = choices.take(choices.pick((1, 2, 4)))
    at = _place(choices, data)
    if at + len(new) <= len(data):
        data[at : at + len(new)] = new


def _extreme(choices: Choices, data: bytearray) -> None:
    at = _place(choices, data) & ~1
    if at + 2 <= len(data):
        data[at : at + 2] = choices.pick((b"\0\0", b"\xff\xff", b"\x7f\xff", b"\x80\0", b"\0\1"))


def _cut(choices: Choices, data: bytearray) -> None:
    del data[_place(choices, data) :]


def _insert(choices: Choices, data: bytearray) -> None:
    at = _place(choices, data)
    data[at:at] = choices.some(40)


def _repeat(choices: Choices, data: bytearray) -> None:
    at, size = _place(choices, data), choices.below(48)
    data[at:at] = data[at : at + size]


def _lie(choices: Choices, data: bytearray) -> None:
    """A length that is not so: by one, by a little, or any."""
    at = choices.pick((2, 4, 24, 44, 0))
    if at + 2 <= len(data):
        said = int.from_bytes(data[at : at + 2], "big") + choices.pick((1, -1, 4, -4, 20, -20, 0x4000))
        data[at : at + 2] = (said & 0xFFFF).to_bytes(2, "big")


def _fit(_choices: Choices, data: bytearray) -> None:
    """Lengths that fit again, so that what is behind them is looked at, and an IPv4 header's sum."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        data[2:4] = (len(data) & 0xFFFF).to_bytes(2, "big")
        size = min(max((data[0] & 15) * 4, 20), len(data))
        data[10:12] = bytes(2)
        data[10:12] = (0xFFFF - summed(bytes(data[:size]))).to_bytes(2, "big")
    elif len(data) >= 40 and data[0] >> 4 == 6:
        data[4:6] = (len(data) - 40 & 0xFFFF).to_bytes(2, "big")


_DAMAGES = (_flip, _flip, _put, _extreme, _cut, _insert, _repeat, _lie, _fit, _fit)
