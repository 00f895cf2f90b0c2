"""Packets from scratch, made by scapy, and a gateway of one virtual server to judge them.

scapy is the oracle: what a translated packet must look like is built anew from addresses, ports and the
rest, with every checksum computed in full.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Raw
from scapy.utils import checksum

from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.core.verdict import Drop, Refusal
from nfqlb.packet.path import ACCEPT, CHANGED, DROP, FORWARD, LOOKAHEAD, PREROUTING, PacketPath

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOP_OPTIONS = b"\x01\x01\x01\x00"
#: Where a packet lies in the receive buffer; odd, for nothing may depend on it.
START = 69

#: The same examples in every run; slow machines are no failure.
STEADY = settings(derandomize=True, database=None, deadline=None, max_examples=100)


@dataclass(frozen=True)
class Place:
    """Who talks to whom: a client, a virtual server, a real server; ports in host order."""

    client: str = "198.51.100.7"
    client_port: int = 40_001
    virtual: str = "192.0.2.100"
    virtual_port: int = 80
    real: str = "10.0.0.11"
    real_port: int = 8080


@dataclass(frozen=True)
class Shape:
    """All of a TCP segment but its addresses and ports. `ip_options` are raw, a multiple of 4 bytes."""

    flags: int = ACK
    seq: int = 1000
    ack: int = 2000
    window: int = 64_000
    urgent: int = 0
    options: tuple[Any, ...] = ()
    payload: bytes = b""
    tos: int = 0
    ttl: int = 64
    id: int = 1
    df: bool = True
    ip_options: bytes = b""
    reserved: int = 0

    def between(self, source: str, sport: int, target: str, dport: int, **fixed: int) -> bytes:
        """The segment between two places, by scapy; `fixed` presets fields of the TCP header."""
        ip = IP(src=source, dst=target, tos=self.tos, ttl=self.ttl, id=self.id, flags="DF" if self.df else 0)
        tcp = TCP(
            sport=sport, dport=dport, flags=self.flags, seq=self.seq, ack=self.ack, window=self.window,
            urgptr=self.urgent, options=list(self.options), reserved=self.reserved, **fixed,
        )  # fmt: skip
        made = bytes(ip / tcp / Raw(self.payload))
        return with_ip_options(made, self.ip_options) if self.ip_options else made

    def sent(self, place: Place, **fixed: int) -> bytes:
        """As the client sends it."""
        return self.between(place.client, place.client_port, place.virtual, place.virtual_port, **fixed)

    def delivered(self, place: Place, **fixed: int) -> bytes:
        """As the real server must get it."""
        return self.between(place.client, place.client_port, place.real, place.real_port, **fixed)

    def answered(self, place: Place, **fixed: int) -> bytes:
        """As the real server answers it."""
        return self.between(place.real, place.real_port, place.client, place.client_port, **fixed)

    def received(self, place: Place, **fixed: int) -> bytes:
        """As the client must get it."""
        return self.between(place.virtual, place.virtual_port, place.client, place.client_port, **fixed)


def with_ip_options(packet: bytes, options: bytes) -> bytes:
    """The packet with raw IP options put in, length and header sum anew. TCP's sum does not cover them."""
    header = bytearray(packet[:20] + options)
    header[0] = 0x40 | len(header) // 4
    header[2:4] = (len(packet) + len(options)).to_bytes(2, "big")
    return fresh_ip_sum(bytes(header) + packet[20:])


def fresh_ip_sum(packet: bytes) -> bytes:
    """The packet with its header's sum computed by scapy."""
    size = (packet[0] & 15) * 4
    cleared = packet[:10] + b"\0\0" + packet[12:size]
    return cleared[:10] + int(checksum(cleared)).to_bytes(2, "big") + cleared[12:] + packet[size:]


def pseudo_sum(source: str, target: str, size: int) -> int:
    """The folded sum of TCP's pseudo header, not inverted: what CHECKSUM_PARTIAL leaves in the field."""
    pseudo = IPv4Address(source).packed + IPv4Address(target).packed + bytes([0, 6]) + size.to_bytes(2, "big")
    return 0xFFFF - int(checksum(pseudo))


def error(
    source: str, target: str, quoted: bytes, *, kind: int = 3, code: int = 1, mtu: int = 0, ttl: int = 60
) -> bytes:
    """An ICMP error from scratch; `mtu` is the fourth word's lower half."""
    unused = mtu.to_bytes(4, "big")
    message = bytes([kind, code, 0, 0]) + unused + quoted
    message = message[:2] + int(checksum(message)).to_bytes(2, "big") + message[4:]
    return bytes(IP(src=source, dst=target, ttl=ttl, proto=1) / Raw(message))


def sums_fit(packet: bytes) -> bool:
    """Whether scapy, computing them anew, finds the same sums in the packet: IP's, and TCP's or ICMP's."""
    again = IP(packet)
    found = [again.chksum]
    transport = TCP if TCP in again else ICMP
    found.append(again[transport].chksum)
    if found[0] != int.from_bytes(fresh_ip_sum(packet)[10:12], "big"):
        return False
    header = (packet[0] & 15) * 4
    body = packet[header:]
    if transport is ICMP:
        return int(checksum(body)) == 0
    pseudo = packet[12:20] + bytes([0, 6]) + len(body).to_bytes(2, "big")
    return int(checksum(pseudo + body)) == 0


@lru_cache(maxsize=16)
def handshake(place: Place) -> tuple[bytes, bytes, bytes]:
    """SYN, SYN-ACK and ACK, as client, server and client send them."""
    return (
        Shape(SYN, seq=999, ack=0).sent(place),
        Shape(SYN | ACK, seq=1999, ack=1000).answered(place),
        Shape(ACK, seq=1000, ack=2000).sent(place),
    )


class Bench:
    """Puts packets to a path; what is around them in the buffer is `filler`."""

    filler: int
    director: Director
    path: PacketPath

    def judge(
        self, packet: bytes, hook: int = PREROUTING, info: int = 0, stamp: float | None = None
    ) -> tuple[int, bytes]:
        """The verdict and the packet after it; nothing around the packet, and nothing refused, may change.

        `stamp` is when the kernel received it, in seconds; as in a message it stands before the packet.
        """
        around = bytes([self.filler])
        after = around * (LOOKAHEAD + 7)
        before = around * START
        if stamp is not None:
            seconds, part = divmod(round(stamp * 1_000_000), 1_000_000)
            before = around + seconds.to_bytes(8, "big") + part.to_bytes(8, "big") + around * (START - 17)
        buffer = bytearray(before + packet + after)
        end = START + len(packet)
        verdict = self.path.judge(buffer, START, end, hook, info, 0 if stamp is None else 1)
        assert buffer[:START] == before
        assert buffer[end:] == after
        result = bytes(buffer[START:end])
        assert verdict == CHANGED or result == packet
        return verdict, result

    def refused(self) -> dict[Refusal, int]:
        """What was refused, by reason, passes included."""
        return dict(self.director.tally._counts)


@dataclass
class World(Bench):
    """A gateway whose only virtual server has one real server; knows the connection of `place`.

    With `weight` 0 that server takes no new client.
    """

    place: Place = field(default_factory=Place)
    filler: int = 0xA5
    scheduler: str = "weighted-least-connections"
    reject: str = "drop"
    weight: float = 1

    def __post_init__(self) -> None:
        place = self.place
        virtual = Virtual(
            "web", IPv4Address(place.virtual), (Server("web1", place.real_port),), port=place.virtual_port,
            scheduler=self.scheduler, reject=self.reject,
        )  # fmt: skip
        reals = (Real("web1", IPv4Address(place.real), weight=self.weight),)
        self.director = Director(Config(Gateway(("out",), ("in",)), reals, (virtual,)), now=0.0)
        self.path = PacketPath(self.director, 1.0)

    def open(self) -> Connection:
        """Let the client send its SYN."""
        assert self.judge(handshake(self.place)[0])[0] == CHANGED
        return next(iter(self.director.table.inbound.values()))

    def establish(self) -> Connection:
        """Let client and server shake hands."""
        connection = self.open()
        _, answer, last = handshake(self.place)
        assert self.judge(answer, FORWARD)[0] == CHANGED
        assert self.judge(last)[0] == CHANGED
        assert connection.state.shown == "established"
        return connection


def check_refusals(worlds: Iterable[Bench], packet: bytes, hook: int, info: int) -> None:
    """A refusal is counted once; what follows a packet in the buffer never matters.

    The two `worlds` differ in nothing else.
    """
    outcomes = []
    for world in worlds:
        verdict, result = world.judge(packet, hook, info)
        refused = world.refused()
        assert verdict in {DROP, ACCEPT, CHANGED}
        assert sum(refused.values()) == (verdict != CHANGED)
        assert all(isinstance(reason, Drop) == (verdict == DROP) for reason in refused)
        outcomes.append((verdict, result, refused, len(world.director.table)))
    assert len(outcomes) == 2
    assert outcomes[0] == outcomes[1]


addresses = st.integers(0x01000001, 0xDFFFFFFE).map(lambda number: str(IPv4Address(number)))
ports = st.integers(1, 65535)


@st.composite
def places(draw: st.DrawFn) -> Place:
    """Any three machines and their ports."""
    client, virtual, real = draw(st.lists(addresses, min_size=3, max_size=3, unique=True))
    return Place(client, draw(ports), virtual, draw(ports), real, draw(ports))


_tcp_options = st.lists(
    st.one_of(
        st.just(("NOP", None)),
        st.tuples(st.just("MSS"), st.integers(0, 65535)),
        st.tuples(st.just("WScale"), st.integers(0, 14)),
        st.just(("SAckOK", b"")),
        st.tuples(st.just("Timestamp"), st.tuples(*[st.integers(0, 2**32 - 1)] * 2)),
    ),
    max_size=3,
).map(tuple)
_ip_options = st.one_of(
    st.just(b""),
    st.just(NOP_OPTIONS),
    st.binary(min_size=2, max_size=2).map(lambda data: b"\x94\x04" + data),  # router alert
    st.just(b"\x07\x27\x04" + bytes(36) + b"\0"),  # record route: the longest there is
)
#: Long payloads cost the oracle time, not us; both ends and odd lengths count.
_payloads = st.one_of(st.binary(max_size=40), st.sampled_from([1, 1459, 1460, 1500]).flatmap(
    lambda size: st.binary(min_size=1, max_size=8).map(lambda seed: (seed * size)[:size])
))  # fmt: skip
_numbers = st.integers(0, 2**32 - 1)

shapes = st.builds(
    Shape,
    flags=st.integers(0, 0x1FF),
    seq=_numbers,
    ack=_numbers,
    window=st.integers(0, 65535),
    urgent=st.integers(0, 65535),
    options=_tcp_options,
    payload=_payloads,
    tos=st.integers(0, 255),
    ttl=st.integers(1, 255),
    id=st.integers(0, 65535),
    df=st.booleans(),
    ip_options=_ip_options,
    reserved=st.integers(0, 7),
)


def absurd(flags: int) -> bool:
    """Flags that no segment has together."""
    return bool(flags & SYN) and bool(flags & (FIN | RST))
