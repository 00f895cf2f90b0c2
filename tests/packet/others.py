"""What `packets` is for TCP over IPv4, for UDP and IPv6: packets by scapy, and a gateway to judge them."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.packet import Raw
from scapy.utils import checksum

from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.packet.path import CHANGED, FORWARD, PacketPath
from tests.packet.packets import ACK, SYN, Bench, Place, addresses, fresh_ip_sum, ports, with_ip_options

HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
#: Extension headers by themselves: the first byte, the next header, is filled in later.
PADDING = b"\0\0\1\4\0\0\0\0"
LONG_PADDING = b"\0\1\1\x0c" + bytes(12)
LAST_SEGMENT = b"\0\2\0\0" + bytes(20)  # a routing header whose way is done
ATOMIC = bytes(4) + b"\0\0\0\7"
Extensions = tuple[tuple[int, bytes], ...]
CHAIN: Extensions = ((HOP_BY_HOP, PADDING), (DESTINATION_OPTIONS, LONG_PADDING), (ROUTING, LAST_SEGMENT),
                     (FRAGMENT, ATOMIC), (DESTINATION_OPTIONS, PADDING))  # fmt: skip

PLACE4 = Place()
PLACE6 = Place("2001:db8:7::7", 40_001, "2001:db8::100", 80, "fd00::11", 8080)


@dataclass(frozen=True)
class Kind:
    """IP version and transport protocol."""

    version: int
    protocol: str

    def __str__(self) -> str:
        return f"{self.protocol}{self.version}"

    @property
    def place(self) -> Place:
        """Who talks to whom where nothing else is said."""
        return PLACE4 if self.version == 4 else PLACE6

    @property
    def udp(self) -> bool:
        return self.protocol == "udp"

    @property
    def number(self) -> int:
        """The IP protocol's."""
        return 17 if self.udp else 6

    @property
    def header(self) -> int:
        """Bytes of an IP header without options."""
        return 20 if self.version == 4 else 40

    @property
    def sum_at(self) -> int:
        """Where the transport's sum is, in a packet without options."""
        return self.header + (6 if self.udp else 16)


TCP6, UDP4, UDP6 = Kind(6, "tcp"), Kind(4, "udp"), Kind(6, "udp")
KINDS = (TCP6, UDP4, UDP6)


@dataclass(frozen=True)
class Body:
    """All of a packet but its addresses and ports.

    `more` are IP options (raw, IPv4) or extension headers (IPv6), `flags` and what follows TCP's alone,
    `surplus` bytes after what UDP's length covers.
    """

    payload: bytes = b"payload"
    hops: int = 64
    traffic_class: int = 0
    label: int = 0
    more: Any = ()
    flags: int = ACK
    seq: int = 1000
    ack: int = 2000
    window: int = 64_000
    urgent: int = 0
    surplus: bytes = b""

    def between(self, kind: Kind, source: str, sport: int, target: str, dport: int, **fixed: int) -> bytes:
        """The packet between two places, by scapy; `fixed` presets fields of the transport header."""
        if kind.version == 4:
            number = self.label & 0xFFFF
            ip: Any = IP(src=source, dst=target, ttl=self.hops, tos=self.traffic_class, id=number)
        else:
            ip = IPv6(src=source, dst=target, hlim=self.hops, tc=self.traffic_class, fl=self.label)
        if kind.udp:
            transport: Any = UDP(sport=sport, dport=dport, **fixed)
        else:
            transport = TCP(
                sport=sport, dport=dport, flags=self.flags, seq=self.seq, ack=self.ack, window=self.window,
                urgptr=self.urgent, **fixed,
            )  # fmt: skip
        made = with_surplus(bytes(ip / transport / Raw(self.payload)), self.surplus)
        if not self.more:
            return made
        return with_ip_options(made, self.more) if kind.version == 4 else with_extensions(made, self.more)

    def sent(self, kind: Kind, place: Place, **fixed: int) -> bytes:
        """As the client sends it."""
        return self.between(
            kind, place.client, place.client_port, place.virtual, place.virtual_port, **fixed
        )

    def delivered(self, kind: Kind, place: Place, **fixed: int) -> bytes:
        """As the real server must get it."""
        return self.between(kind, place.client, place.client_port, place.real, place.real_port, **fixed)

    def answered(self, kind: Kind, place: Place, **fixed: int) -> bytes:
        """As the real server answers it."""
        return self.between(kind, place.real, place.real_port, place.client, place.client_port, **fixed)

    def received(self, kind: Kind, place: Place, **fixed: int) -> bytes:
        """As the client must get it."""
        return self.between(
            kind, place.virtual, place.virtual_port, place.client, place.client_port, **fixed
        )


def with_extensions(packet: bytes, extensions: Extensions) -> bytes:
    """The IPv6 packet with extension headers put in. The transport's sum does not cover them."""
    following, chain = packet[6], b""
    for number, data in reversed(extensions):
        chain = bytes([following]) + data[1:] + chain
        following = number
    length = len(packet) - 40 + len(chain)
    return packet[:4] + length.to_bytes(2, "big") + bytes([following]) + packet[7:40] + chain + packet[40:]


def with_surplus(packet: bytes, surplus: bytes) -> bytes:
    """The packet with bytes after its end, which only the IP length counts."""
    if not surplus:
        return packet
    at = 2 if packet[0] >> 4 == 4 else 4
    length = int.from_bytes(packet[at : at + 2], "big") + len(surplus)
    packet = packet[:at] + length.to_bytes(2, "big") + packet[at + 2 :] + surplus
    return fresh_ip_sum(packet) if at == 2 else packet


def pseudo_sum(kind: Kind, source: str, target: str, size: int) -> int:
    """The folded sum of a pseudo header, not inverted: what CHECKSUM_PARTIAL leaves in the field."""
    addresses = ip_address(source).packed + ip_address(target).packed
    return 0xFFFF - int(checksum(addresses + size.to_bytes(4, "big") + kind.number.to_bytes(4, "big")))


def error6(
    source: str, target: str, quoted: bytes, *, kind: int = 1, code: int = 0, mtu: int = 0, hops: int = 60
) -> bytes:
    """An ICMPv6 error from scratch; `mtu` is its fourth word."""
    message = bytes([kind, code, 0, 0]) + mtu.to_bytes(4, "big") + quoted
    ip = IPv6(src=source, dst=target, hlim=hops, nh=58)
    total = int(in6_chksum(58, ip, message))
    return bytes(ip / Raw(message[:2] + total.to_bytes(2, "big") + message[4:]))


def sums_fit6(packet: bytes) -> bool:
    """Whether scapy finds the sum right in an ICMPv6 error without extension headers."""
    ip = IPv6(packet[:40])
    return int(in6_chksum(58, ip, packet[40:])) == 0


@lru_cache(maxsize=16)
def handshake(kind: Kind, place: Place) -> tuple[bytes, bytes, bytes]:
    """SYN, SYN-ACK and ACK, or datagrams in their place, as client, server and client send them."""
    return (
        Body(b"", flags=SYN, seq=999, ack=0).sent(kind, place),
        Body(b"", flags=SYN | ACK, seq=1999, ack=1000).answered(kind, place),
        Body(b"").sent(kind, place),
    )


@dataclass
class World(Bench):
    """A gateway whose only virtual server has one real server; knows the connection or flow of `place`."""

    kind: Kind
    place: Place = field(default_factory=Place)
    filler: int = 0xA5
    every_port: bool = False
    reject: str = "drop"
    weight: float = 1
    on_failure: str = "keep"

    def __post_init__(self) -> None:
        place = self.place
        virtual, real = (None, None) if self.every_port else (place.virtual_port, place.real_port)
        site = Virtual(
            "it", ip_address(place.virtual), (Server("one", real),), protocol=self.kind.protocol,
            port=virtual, reject=self.reject, on_failure=self.on_failure,
        )  # fmt: skip
        one = Real("one", ip_address(place.real), weight=self.weight)
        config = Config(Gateway(("out",), ("in",)), (one,), (site,))
        self.director = Director(config, now=0.0)
        self.path = PacketPath(self.director, 1.0)

    def open(self) -> Connection:
        """Let the client begin."""
        assert self.judge(handshake(self.kind, self.place)[0])[0] == CHANGED
        return next(iter(self.director.table.inbound.values()))

    def establish(self) -> Connection:
        """Let both sides speak."""
        connection = self.open()
        _, answer, last = handshake(self.kind, self.place)
        assert self.judge(answer, FORWARD)[0] == CHANGED
        assert self.judge(last)[0] == CHANGED
        assert connection.state.shown == ("udp" if self.kind.udp else "established")
        return connection


_addresses6 = st.integers(1 << 125, (1 << 125) * 7 - 1).map(lambda number: str(ip_address(number)))


@st.composite
def situations(draw: st.DrawFn, among: tuple[Kind, ...] = KINDS) -> tuple[Kind, Place]:
    """A kind of packet, and any three machines and their ports."""
    kind = draw(st.sampled_from(among))
    some = addresses if kind.version == 4 else _addresses6
    client, virtual, real = draw(st.lists(some, min_size=3, max_size=3, unique=True))
    return kind, Place(client, draw(ports), virtual, draw(ports), real, draw(ports))


_payloads = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([1439, 1440, 1473]).flatmap(
        lambda size: st.binary(min_size=1, max_size=8).map(lambda seed: (seed * size)[:size])
    ),
)
_numbers = st.integers(0, 2**32 - 1)
_extensions = st.sampled_from([(HOP_BY_HOP, PADDING), *CHAIN]).map(lambda one: (one,)) | st.just(CHAIN)

bodies = st.builds(
    Body,
    payload=_payloads,
    hops=st.integers(1, 255),
    traffic_class=st.integers(0, 255),
    label=st.integers(0, 0xFFFFF),
    flags=st.integers(0, 0xFF).filter(lambda flags: not flags & 0x07),
    seq=_numbers,
    ack=_numbers,
    window=st.integers(0, 65535),
    urgent=st.integers(0, 65535),
)


@st.composite
def cases(draw: st.DrawFn, among: tuple[Kind, ...] = KINDS) -> tuple[Kind, Place, Body]:
    """A situation, and a packet of it, now and then with options or extension headers."""
    kind, place = draw(situations(among))
    body = draw(bodies)
    more: Any = b"\x01\x01\x01\x00" if kind.version == 4 else draw(_extensions)
    return kind, place, replace(body, more=draw(st.sampled_from([(), (), more])))
