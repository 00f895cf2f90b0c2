"""A gateway whose packets are made here, byte by byte, and captured as `nfqlb capture` does.

Owns `Town`: clients, servers and a clock, with a director, a packet path and a recording between them. What
is captured can be had as the file that the command writes, or as tcpdump on one side would have it.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from struct import Struct, pack

from nfqlb.core import spec
from nfqlb.core.director import Director
from nfqlb.core.segment import ACK, FIN, SYN
from nfqlb.operator.capturing import _INTERFACES, _blocks
from nfqlb.packet import pcapng
from nfqlb.packet.frame import Frame
from nfqlb.packet.path import CHANGED, FORWARD, PREROUTING, PacketPath
from nfqlb.packet.pcap import CaptureFile
from nfqlb.replay.outcome import Document, replay
from nfqlb.runtime.recording import Judge, Limits, Recording
from tests.bench.flows import segment

_PUSH = 0x08
_WALL = 1_700_000_000.0
_stamp = Struct("!QQ").pack_into
LIMITS = Limits(packets=1 << 30, seconds=1e9, size=1 << 40, snaplen=256)


@dataclass
class Conversation:
    """A client's connection; `real` and `real_port` are what its packets were last sent to."""

    client: int
    port: int
    virtual: int
    virtual_port: int
    isn: int
    real: int = 0
    real_port: int = 0
    sent: int = 0
    got: int = 0


class Town:
    """A gateway and its traffic. `now` is its clock (seconds), which `wait` moves."""

    def __init__(self, config: spec.Config, *, grain: float = 0.05) -> None:
        self.config = config
        self.now = 1000.0
        self.director = Director(config, now=self.now)
        self.path = PacketPath(self.director, self.now)
        self.blocks: list[bytes] = []
        self.decided: list[tuple[str, int, str | None]] = []  # who, from which port, and what they got
        self._recordings = [
            Recording(self.director, each, LIMITS, self.now) for each in self.director.virtual_servers
        ]
        self._judge: Judge = self.path.judge
        for recording in self._recordings:
            self._judge = recording.judging(self._judge, "passed")
        self._ticked = self.now
        self._grain = grain
        self._isn = 0

    # --- time

    def wait(self, seconds: float) -> None:
        """Let time pass, with the worker's looks at time-outs."""
        self.now += seconds
        while self._ticked + 0.25 <= self.now:
            self._ticked += 0.25
            while self.director.tick(self._ticked):
                pass

    # --- packets

    def put(self, packet: bytes, hook: int) -> bytes | None:
        """Let the gateway have a packet; what becomes of it, None where it is dropped."""
        if self.now - self.path.now >= self._grain:
            self.path.now = self.now
        buffer = bytearray(packet) + bytearray(96)
        at = len(packet) + 64
        whole, part = divmod(round((self.now + _WALL) * 1_000_000), 1_000_000)
        _stamp(buffer, at, whole, part)
        verdict = self._judge(buffer, 0, len(packet), hook, 0, at)
        for recording in self._recordings:
            for row in list(recording.take(self.now))[1:]:
                row["judged"] = row["at"]  # by this clock; it takes no time
                self.blocks.append(_blocks(row))
        return bytes(buffer[: len(packet)]) if verdict == CHANGED else None

    def syn(self, client: str, port: int, virtual: spec.Virtual | None = None) -> Conversation:
        """A client's first SYN."""
        wanted = virtual or self.config.virtuals[0]
        self._isn += 100_000
        assert wanted.port is not None
        talk = Conversation(_number(client), port, int(wanted.address), wanted.port, self._isn)
        self.repeat(talk)
        return talk

    def repeat(self, talk: Conversation) -> None:
        """The SYN, once more."""
        packet = segment(talk.client, talk.port, talk.virtual, talk.virtual_port, SYN, talk.isn, 0)
        sent = self.put(packet, PREROUTING)
        if sent is not None:
            talk.real, talk.real_port = int.from_bytes(sent[16:20], "big"), int.from_bytes(sent[22:24], "big")

    def renew(self, talk: Conversation) -> None:
        """The port's next connection will have a sequence number of its own."""
        self._isn += 100_000
        talk.isn, talk.sent, talk.got = self._isn, 0, 0

    def client(self, talk: Conversation, flags: int, payload: bytes = b"") -> None:
        """A client's segment."""
        packet = segment(
            talk.client, talk.port, talk.virtual, talk.virtual_port, flags, talk.isn + 1 + talk.sent,
            talk.isn + 50_001 + talk.got, payload,
        )  # fmt: skip
        talk.sent += len(payload) + (flags & FIN)
        self.put(packet, PREROUTING)

    def server(self, talk: Conversation, flags: int, payload: bytes = b"") -> None:
        """A server's segment; none where the connection has no server."""
        if not talk.real:
            return
        sequence = talk.isn + 50_000 + (0 if flags & SYN else 1 + talk.got)
        packet = segment(
            talk.real, talk.real_port, talk.client, talk.port, flags, sequence, talk.isn + 1 + talk.sent,
            payload,
        )  # fmt: skip
        talk.got += len(payload) + (flags & FIN)
        self.put(packet, FORWARD)

    def answer(self, talk: Conversation) -> None:
        """The handshake's rest."""
        self.server(talk, SYN | ACK)
        self.client(talk, ACK)

    def request(self, talk: Conversation, took: float) -> None:
        """A request, and its answer so many seconds later."""
        self.client(talk, ACK | _PUSH, b"GET /")
        self.wait(took)
        self.server(talk, ACK | _PUSH, b"200 OK")

    def close(self, talk: Conversation) -> None:
        """Both sides have no more to say."""
        self.client(talk, ACK | FIN)
        self.server(talk, ACK | FIN)

    def fetch(self, client: str, port: int, took: float = 0.01) -> Conversation:
        """A connection with one request, which stays open."""
        talk = self.syn(client, port)
        self.answer(talk)
        self.request(talk, took)
        return talk

    # --- what was captured

    def file(self) -> bytes:
        """The file that `nfqlb capture` writes."""
        head = pcapng.section("", "nfqlb") + b"".join(pcapng.interface(*each, 256, 4) for each in _INTERFACES)
        return head + b"".join(self.blocks)

    def dump(self, keep: Callable[[Frame], bool]) -> bytes:
        """What tcpdump would write of the frames that it is to keep: a classic file."""
        data = pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 228)
        for frame in CaptureFile(io.BytesIO(self.file())).frames():
            if keep(frame):
                data += pack("<IIII", *frame.stamp, len(frame.data), frame.size) + frame.data
        return data


def rerun(data: bytes, config: spec.Config) -> Document:
    """A file replayed with a configuration."""
    return replay(config, lambda: CaptureFile(io.BytesIO(data)).frames())


def spread(document: Document, which: str, at: int = 0) -> dict[str, int]:
    """How many connections each server got, by name or address."""
    servers = document["virtuals"][at]["servers"]
    return {each["real"] or each["address"]: each[which] for each in servers}


def other(config: spec.Config, **keys: object) -> spec.Config:
    """The configuration with other keys in every virtual server."""
    return replace(config, virtuals=tuple(replace(each, **keys) for each in config.virtuals))  # type: ignore[arg-type]


def _number(address: str) -> int:
    return int.from_bytes(bytes(map(int, address.split("."))), "big")
