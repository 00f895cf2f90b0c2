"""A capture in the worker: one virtual server's packets as they come, and what becomes of them.

Owns `Recording`, which stands between a queue and whoever judges its packets while a capture is under way,
and is not there otherwise; and `Recorder`, which begins and ends one at the supervisor's word. What is
recorded waits in a bounded buffer until it is taken away; where that is full, packets are counted only.
Datapath `offload`: a recording sees what the worker does, which is each connection's first packet and the
tap's copies of headers.
"""

import logging
import os
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nfqlb.core.connection import Connection
from nfqlb.core.decision import Decision
from nfqlb.core.director import Director
from nfqlb.core.explanation import explain
from nfqlb.core.keys import client_port_of, flipped
from nfqlb.core.segment import Stamp
from nfqlb.core.server import VirtualServer
from nfqlb.core.verdict import Drop
from nfqlb.packet.sight import key_of
from nfqlb.packet.stamps import read_stamp
from nfqlb.packet.verdicts import CHANGED, DROP, FORWARD, PREROUTING
from nfqlb.runtime.decision_view import decision as decision_row
from nfqlb.runtime.protocol import ControlError, JSONObject, Result
from nfqlb.runtime.views import bad, suggest

logger = logging.getLogger(__name__)

#: What waits to be taken may have so many bytes.
ROOM = 4 << 20
#: And each packet so many beside its own.
_FRAME = 400
#: A recording that nobody has taken from for so long (seconds) ends: its client is gone.
PATIENCE = 5.0
_AT_ONCE = 256  # packets taken at a time
#: The most that a capture may be asked for, and what it is if nothing is said.
MOST = {"packets": 10_000_000, "seconds": 86_400.0, "bytes": 1 << 34, "snaplen": 65_535}
USUAL = {"packets": 10_000, "seconds": 60.0, "bytes": 64 << 20, "snaplen": 256}

Judge = Callable[[bytearray, int, int, int, int, int], int]
Tapped = Callable[[bytearray, int, int, int, Stamp], None]


class Limits(NamedTuple):
    """Where a capture ends: packets, seconds, bytes kept of them; `snaplen` bytes are kept of each."""

    packets: int
    seconds: float
    size: int
    snaplen: int


class Record(NamedTuple):
    """A packet: when it came (wall clock, microseconds), at which hook, its first bytes, and its size.

    `became` is "translated", "marked", "passed", "dropped" or "copy"; "told" is no packet that came, but one
    that the gateway itself sends. `sent` begins what was sent, `judged` is when that was. `real`,
    `port` and `state` are its connection's, "" and 0 where there is none. `reason` is why it was dropped,
    `decision` the one that was made on it.
    """

    at: int
    hook: int
    data: bytes
    size: int
    became: str
    sent: bytes
    judged: int
    real: str
    port: int
    state: str
    reason: str
    decision: Decision | None


class _Glimpse(NamedTuple):
    """A packet before it is judged, and what will tell afterwards what became of it."""

    key: bytes
    hook: int
    data: bytes
    start: int
    end: int
    at: int
    mark: object
    drops: dict[Drop, int]


class Recording:
    """One capture. `ended` says why nothing is recorded any more, "" while something may be."""

    def __init__(self, director: Director, virtual: VirtualServer, limits: Limits, now: float) -> None:
        self.virtual = virtual
        self.limits = limits
        self.ended = ""
        self.seen = 0  # packets of this virtual server
        self.lost = 0  # of those, what there was no room for
        self.taken_at = now
        self._until = now + limits.seconds
        self._left = limits.size
        self._held = 0
        self._records: deque[Record] = deque()
        self._inbound = director.table.inbound
        self._outbound = director.table.outbound
        self._destinations = director.destinations

    # --- between a queue and its judge

    def judging(self, judge: Judge, accepted: str) -> Judge:
        """The same judge, looked over its shoulder.

        `accepted` is what a packet became that is accepted and not changed. Whatever goes wrong in looking
        ends the recording; the packet gets its verdict.
        """

        def judged(buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int) -> int:
            glimpse = self._glimpse(buffer, start, end, hook, stamp_at)
            verdict = judge(buffer, start, end, hook, info, stamp_at)
            if glimpse is not None:
                self._judged(glimpse, buffer, verdict, accepted)
            return verdict

        return judged

    def _glimpse(
        self, buffer: bytearray, start: int, end: int, hook: int, stamp_at: int
    ) -> "_Glimpse | None":
        """A packet before it is judged, if it is one to be recorded."""
        if self.ended:
            return None
        try:
            data = bytes(memoryview(buffer)[start : min(end, start + max(self.limits.snaplen, 256))])
            key = key_of(data, end - start)
            if key is None or not self._concerns(key, hook):
                return None
            at = _micro(read_stamp(buffer, stamp_at)) if stamp_at else _wall()
            decisions = self.virtual.decisions
            mark = decisions.mark if decisions is not None else None
            return _Glimpse(key, hook, data, start, end, at, mark, dict(self.virtual.drops))
        except Exception:  # noqa: BLE001  see `_failed`
            self._failed()
            return None

    def _judged(self, glimpse: "_Glimpse", buffer: bytearray, verdict: int, accepted: str) -> None:
        """What became of it."""
        try:
            start, end, decisions = glimpse.start, glimpse.end, self.virtual.decisions
            changed = verdict == CHANGED and accepted == "passed"
            made = decisions is not None and decisions.mark is not glimpse.mark
            kept = min(end, start + self.limits.snaplen)
            self._keep(
                glimpse.key, glimpse.hook, glimpse.data, end - start, glimpse.at,
                "dropped" if verdict == DROP else "translated" if changed else accepted,
                sent=bytes(memoryview(buffer)[start:kept]) if changed else b"",
                reason=_reason(glimpse.drops, self.virtual) if verdict == DROP else "",
                decision=decisions.newest() if made and decisions is not None else None,
            )  # fmt: skip
        except Exception:  # noqa: BLE001  see `_failed`
            self._failed()

    def _failed(self) -> None:
        """A defect: it shall cost this recording, and nothing else."""
        logger.exception("a packet could not be recorded; the capture ends")
        self.ended = "internal error"

    def tapping(self, tapped: Tapped) -> Tapped:
        """The same, for whoever is told of copies."""

        def told(buffer: bytearray, start: int, end: int, hook: int, stamp: Stamp) -> None:
            try:
                self._copied(bytes(memoryview(buffer)[start:end]), hook, stamp)
            except Exception:  # noqa: BLE001  see `_failed`
                self._failed()
            tapped(buffer, start, end, hook, stamp)

        return told

    def _copied(self, data: bytes, hook: int, stamp: Stamp) -> None:
        size = _length(data)
        key = key_of(data, size)
        if not self.ended and key is not None and self._concerns(key, hook):
            self._keep(key, hook, data, size, _micro(stamp) if stamp else _wall(), "copy")

    def told(self, packet: bytes) -> None:
        """The gateway tells a client something: a reset, an ICMP error."""
        key = key_of(packet, len(packet))
        if not self.ended and key is not None and self._destinations.find(flipped(key)) is self.virtual:
            sent = packet[: self.limits.snaplen]
            self._keep(key, FORWARD, b"", len(packet), _wall(), "told", sent=sent)

    def _concerns(self, key: bytes, hook: int) -> bool:
        """Whether a packet is of this virtual server, or can be of no other."""
        if hook == PREROUTING:
            return self._destinations.find(key) is self.virtual
        connection = self._outbound.get(key)
        if connection is None:
            return self._destinations.behind(key) is self.virtual
        return connection.link.virtual is self.virtual

    def _keep(
        self, key: bytes, hook: int, data: bytes, size: int, at: int, became: str, *, sent: bytes = b"",
        reason: str = "", decision: Decision | None = None,
    ) -> None:  # fmt: skip
        self.seen += 1
        data = data[: self.limits.snaplen]
        weight = len(data) + len(sent) + _FRAME
        if self._held + weight > ROOM:
            self.lost += 1
        else:
            self._held += weight
            connection = (self._inbound if hook == PREROUTING else self._outbound).get(key)
            served = _served(connection) if connection is not None else ("", 0, "")
            self._records.append(
                Record(at, hook, data, size, became, sent, _wall() if sent else at, *served, reason, decision)
            )
        self._left -= len(data) + len(sent)
        if self.seen >= self.limits.packets:
            self.ended = "packets"
        elif self._left <= 0:
            self.ended = "bytes"

    # --- taking away

    def look(self, now: float) -> bool:
        """End what has lasted long enough; False where nobody takes it away any more."""
        if not self.ended and now >= self._until:
            self.ended = "seconds"
        return now - self.taken_at <= PATIENCE

    def take(self, now: float) -> Iterator[JSONObject]:
        """How it stands, then what was recorded since the last time, or the oldest part of it."""
        self.taken_at = now
        records = [self._records.popleft() for _ in range(min(_AT_ONCE, len(self._records)))]
        self._held -= sum(len(each.data) + len(each.sent) + _FRAME for each in records)
        waiting = len(self._records)
        head: JSONObject = {"seen": self.seen, "lost": self.lost, "waiting": waiting, "ended": self.ended}
        return self._rows(head, records, now, time.time())

    def _rows(
        self, head: JSONObject, records: list[Record], now: float, wall: float
    ) -> Iterator[JSONObject]:
        yield head
        for record in records:
            row: JSONObject = {
                "at": record.at,
                "inbound": record.hook == PREROUTING,
                "data": b64encode(record.data).decode(),
                "size": record.size,
                "became": record.became,
            }
            if record.sent:
                row |= {"sent": b64encode(record.sent).decode(), "judged": record.judged}
            if record.real:
                row |= {"real": record.real, "port": record.port, "state": record.state}
            if record.reason:
                row["reason"] = record.reason
            if record.decision is not None:
                row["decision"] = decision_row(explain(self.virtual, record.decision, now), wall)
            yield row


class Recorder:
    """Begins and ends captures in one worker, one at a time. `attach` lets one see packets, None: no more."""

    def __init__(self, director: Director, attach: Callable[[Recording | None], None]) -> None:
        self.recording: Recording | None = None
        self._director = director
        self._attach = attach
        self._number = os.getpid() << 16  # so that no other worker has the same

    def look(self, now: float) -> None:
        """To be called now and then."""
        recording = self.recording
        if recording is None:
            return
        wanted = recording.look(now)
        if recording.ended or not wanted:
            self._attach(None)
        if not wanted:
            self.recording = None

    def saw(self, replies: list[bytes]) -> list[bytes]:
        """The same packets, which the gateway is about to send to clients."""
        if self.recording is not None:
            for packet in replies:
                self.recording.told(packet)
        return replies

    def answer(self, args: JSONObject, now: float) -> Result:
        """The answer to `capture`: `start` begins one, `take` takes away its packets, `stop` ends it."""
        if "start" in args:
            return self._start(args, now)
        recording = self.recording
        number = args.get("take", args.get("stop"))
        if recording is None or number != self._number:
            raise ControlError("capture-over", "this capture is over", "the worker may have been replaced")
        if "stop" in args:
            recording.ended = recording.ended or "stopped"
            self._attach(None)
        return recording.take(now)

    def _start(self, args: JSONObject, now: float) -> JSONObject:
        if self.recording is not None and not self.recording.ended:
            raise ControlError("busy", "another capture is under way", "one at a time")
        virtual, limits = self._virtual(args["start"]), _limits(args)
        self.recording = Recording(self._director, virtual, limits, now)
        self._number += 1
        self._attach(self.recording)
        spec = virtual.spec
        document: JSONObject = {
            "capture": self._number,
            "virtual": spec.name,
            "address": str(spec.address),
            "protocol": spec.protocol,
            "port": spec.port,
            "datapath": spec.datapath,
            "scheduler": spec.scheduler,
            "connections": virtual.connections,
            "snaplen": limits.snaplen,
        }
        return document

    def _virtual(self, name: object) -> VirtualServer:
        names = {virtual.spec.name: virtual for virtual in self._director.virtual_servers}
        if isinstance(name, str) and name in names:
            return names[name]
        raise bad(f"there is no virtual server {name!r}", suggest(str(name), names))


def _limits(args: JSONObject) -> Limits:
    found: list[float] = []
    for name, usual in USUAL.items():
        value = args.get(name, usual)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST[name]:
            raise bad(f"{name}: {value!r} is not a number above 0, and at most {MOST[name]:.0f}")
        found.append(value)
    packets, seconds, size, snaplen = found
    return Limits(int(packets) or 1, seconds, int(size) or 1, int(snaplen) or 1)


def _served(connection: Connection) -> tuple[str, int, str]:
    real = connection.link.real.spec.name
    return real, client_port_of(connection.outbound), connection.state.shown


def _reason(before: dict[Drop, int], virtual: VirtualServer) -> str:
    """Why a packet was dropped: what has been counted since."""
    for reason, count in virtual.drops.items():
        if count != before.get(reason, 0):
            return reason.value
    return ""


def _length(packet: bytes) -> int:
    """How long a packet was of which these are the first bytes, by its own header."""
    if len(packet) >= 6 and packet[0] >> 4 == 6:
        return 40 + int.from_bytes(packet[4:6], "big")
    return int.from_bytes(packet[2:4], "big")


def _micro(stamp: Stamp) -> int:
    return stamp[0] * 1_000_000 + stamp[1]


def _wall() -> int:
    return time.time_ns() // 1000
