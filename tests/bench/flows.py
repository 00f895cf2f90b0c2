"""Many live connections without a network, and the messages in which the kernel would queue their packets.

Flow number i always has the same client address and port, so its packets are made by arithmetic: making
them touches nothing that the table holds, and a packet of a random flow finds caches as cold as on a gateway.
"""

import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from struct import Struct

from nfqlb.core.connection import Connection
from nfqlb.core.decision import KEPT
from nfqlb.core.director import Director
from nfqlb.core.recorder import Recorder
from nfqlb.core.rewriting import words
from nfqlb.core.segment import ACK, SYN, Segment
from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.packet.path import FORWARD, PREROUTING

VIP = int(IPv4Address("192.0.2.100"))
PORT = 80
_SERVERS = int(IPv4Address("10.128.0.1"))
_CLIENTS = int(IPv4Address("10.0.0.1"))
_PORTS = 16  # connections that one client has
_PAYLOAD = bytes(100)
_OPENING_RATE = 1000.0  # connections a second while a table is filled
_GRAIN = 0.05  # connections of so many seconds share a time stamp, as in the worker
_SPARE = 10_000  # places left for the decisions that are measured
_ACK_PSH = ACK | 0x08
_MICRO = 1_000_000

_key = Struct("!IIHH").pack
_ip = Struct("!BBHHHBBHII").pack
_tcp = Struct("!HHIIHHHH").pack
_message = Struct("=IHHIIBBH").pack
_packet_header = Struct("!IHB").pack
_attribute = Struct("=HH").pack
_time_stamp = Struct("!QQ").pack


def config(servers: int, scheduler: str, connections: int, shadow: str = "") -> Config:
    """One virtual server with so many real servers of unlike weights, and room for the connections."""
    reals = tuple(Real(f"s{i}", IPv4Address(_SERVERS + i), weight=1 + i % 3) for i in range(servers))
    members = tuple(Server(real.name, PORT) for real in reals)
    virtual = Virtual("web", IPv4Address(VIP), members, port=PORT, scheduler=scheduler, shadow=shadow)
    gateway = Gateway(("outside",), ("inside",), max_connections=connections + _SPARE)
    return Config(gateway, reals, (virtual,))


def client_key(flow: int) -> bytes:
    """The key of what the client of a flow sends."""
    return _key(_CLIENTS + flow // _PORTS, VIP, 1024 + flow % _PORTS, PORT)


class Filled:
    """A director with `connections` established ones, flows 0 to connections - 1; `now` is its time."""

    def __init__(
        self, servers: int, scheduler: str, connections: int, recorder: Recorder | None = None,
        decisions: int = KEPT, shadow: str = "",
    ) -> None:  # fmt: skip
        self.connections = connections
        self.now = 0.0
        self.director = Director(
            config(servers, scheduler, connections, shadow), now=0.0, recorder=recorder, decisions=decisions
        )
        self._positions = array("H", bytes(2 * connections))
        self._said = 0  # bytes by which sequence numbers have moved on, for all flows alike

    def fill(self) -> None:
        """Open the connections as traffic would: handshake and a segment each way, time passing by."""
        ticked = 0.0
        for flow in range(self.connections):
            if flow / _OPENING_RATE >= self.now + _GRAIN:
                self.now = flow / _OPENING_RATE
            if self.now >= ticked + 1.0:
                ticked = self.now
                self.director.tick(self.now, 1 << 30)
            self._positions[flow] = self._establish(flow).link.position
        self.director.tick(self.now + 31.0, 1 << 30)  # what the half-open time-out still remembers
        if self.director.totals().connections != self.connections:
            raise AssertionError("not every connection could be opened")

    def _establish(self, flow: int) -> Connection:
        # every field is its own object, as when it is cut out of a packet
        number = flow + 1
        connection = self.director.client_syn(Segment(client_key(flow), SYN, _numbers(number, 0)), self.now)
        assert isinstance(connection, Connection)
        answer = Segment(bytes(bytearray(connection.outbound)), SYN | ACK, _numbers(~number, number + 1))
        self.director.server_segment(answer, self.now)
        self.director.client_segment(
            Segment(client_key(flow), ACK, _numbers(number + 1, ~number + 1)), self.now
        )
        size, second = len(_PAYLOAD), int(self.now)
        asked, answered = _numbers(number + 1, ~number + 1), _numbers(~number + 1, number + 1 + size)
        self.director.client_segment(Segment(client_key(flow), _ACK_PSH, asked, size, (second, 1)), self.now)
        self.director.server_segment(
            Segment(connection.outbound, _ACK_PSH, answered, size, (second, 1000)), self.now
        )
        return connection

    def data(self, flow: int, *, reply: bool) -> bytes:
        """The message with a data segment of an established flow, from its client or its server; new data."""
        client, port = _CLIENTS + flow // _PORTS, 1024 + flow % _PORTS
        self._said += len(_PAYLOAD)
        number, stamp = flow + self._said & 0xFFFF_FFFF, round(self.now * _MICRO) + self._said
        if reply:
            server = _SERVERS + self._positions[flow]
            return message(packet(server, PORT, client, port, _ACK_PSH, number), FORWARD, flow, stamp)
        return message(packet(client, port, VIP, PORT, _ACK_PSH, number), PREROUTING, flow, stamp)


def syn(flow: int) -> bytes:
    """The message with the SYN of a flow."""
    client, port = _CLIENTS + flow // _PORTS, 1024 + flow % _PORTS
    return message(packet(client, port, VIP, PORT, SYN, flow), PREROUTING, flow, flow + 1)


def packet(source: int, source_port: int, target: int, target_port: int, flags: int, number: int) -> bytes:
    """An IPv4 TCP segment with right checksums; a SYN is empty, all else carries 100 bytes."""
    payload = b"" if flags & SYN else _PAYLOAD
    return segment(source, source_port, target, target_port, flags, number, number, payload)


def segment(
    source: int, source_port: int, target: int, target_port: int, flags: int, number: int, acknowledged: int,
    payload: bytes = b"",
) -> bytes:  # fmt: skip
    """The same, with what is given."""
    number, acknowledged = number & 0xFFFF_FFFF, acknowledged & 0xFFFF_FFFF
    size = 20 + len(payload)
    pseudo = Struct("!IIHH").pack(source, target, 6, size)
    head = _tcp(source_port, target_port, number, acknowledged, 5 << 12 | flags, 64000, 0, 0)
    checksum = _sum(pseudo + head + payload)
    head = _tcp(source_port, target_port, number, acknowledged, 5 << 12 | flags, 64000, checksum, 0)
    bare = _ip(0x45, 0, 20 + size, number & 0xFFFF, 0x4000, 64, 6, 0, source, target)
    return (
        _ip(0x45, 0, 20 + size, number & 0xFFFF, 0x4000, 64, 6, _sum(bare), source, target) + head + payload
    )


def message(payload: bytes, hook: int, number: int, stamp: int) -> bytes:
    """What nfnetlink_queue sends for a packet (nfqnl_build_packet_message), in its order of attributes.

    `stamp` is when it was received, in microseconds.
    """
    parts = (
        _attribute(11, 1) + _packet_header(number & 0x7FFF_FFFF, 0x0800, hook) + b"\0",
        _attribute(8, 5) + bytes(4),  # incoming interface
        _attribute(16, 9) + bytes(12),  # hardware address
        _attribute(20, 4) + _time_stamp(*divmod(stamp, _MICRO)),
        _attribute(4 + len(payload), 10) + payload + bytes(-len(payload) % 4),
    )
    body = b"".join(parts)
    return _message(20 + len(body), 3 << 8, 0, 0, 0, 2, 0, 0) + body


class Feed:
    """In place of the queue's socket: hands out messages as the kernel would and takes the verdicts.

    `moments` gets when it was asked for a message and when it gave one, in turn, in seconds of the processor
    time that this thread has had.
    """

    def __init__(self) -> None:
        self._next: Callable[[], bytes] = iter(()).__next__
        self.check: Callable[[memoryview], None] | None = None
        self.moments: list[float] | None = None

    def load(self, messages: Iterable[bytes]) -> None:
        """The messages to hand out next."""
        self._next = iter(messages).__next__

    def cost(self, messages: Sequence[bytes]) -> float:
        """Seconds that handing them out takes; the least of three, as nothing may cost less than it."""
        return min(self._hand_out(messages) for _ in range(3))

    def _hand_out(self, messages: Sequence[bytes]) -> float:
        buffer = bytearray(131_072)
        self.load(messages)
        begin = time.perf_counter()
        with suppress(BlockingIOError):
            while True:
                self.recv_into(buffer)
        return time.perf_counter() - begin

    def recv_into(self, buffer: bytearray, _size: int = 0, _flags: int = 0) -> int:
        """The next message; BlockingIOError when there is none."""
        if self.moments is not None:
            self.moments.append(time.thread_time())
        try:
            data = self._next()
        except StopIteration:
            raise BlockingIOError from None
        size = len(data)
        buffer[:size] = data
        if self.moments is not None:
            self.moments.append(time.thread_time())
        return size

    def sendmsg(self, verdicts: list[memoryview]) -> int:
        """Take verdicts."""
        if self.check is not None:
            for verdict in verdicts:
                self.check(verdict)
        return 0


def _numbers(sequence: int, acknowledged: int) -> bytes:
    return Struct("!II").pack(sequence & 0xFFFF_FFFF, acknowledged & 0xFFFF_FFFF)


def _sum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    return 0xFFFF - words(data)
