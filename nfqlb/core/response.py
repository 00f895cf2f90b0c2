"""Response time: measured on connections, kept for each real server, predicted for the next one.

Owns `Interval` (what a connection under measurement holds), `Measuring` (what starts and ends an
interval, and for how long), `ResponseTime` (what a real server is known by, fields 354-360) and the
ageing of predictions. It is measured passively, from the packets that pass anyway (R094).

Stamps are the kernel's receive times by the wall clock. Only differences within one connection are used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from nfqlb.core import spec
from nfqlb.core.segment import NO_STAMP, Stamp

if TYPE_CHECKING:
    from nfqlb.core.connection import Connection

#: What is taken off a prediction: (ratio R in seconds a connection, age of the sample in seconds) -> seconds.
#: Any function that grows with the age will do (R090).
Ageing = Callable[[float, float], float]

#: The name of the scheduler that goes by response time.
FASTEST_RESPONSE = "fastest-response"
#: A stamp difference so far (seconds) from what our own clock saw pass is the wall clock's jump, no response.
#: Packets may wait in the queue for as long as a worker takes to come back.
_JUMP = 10.0
#: Where only the first request is measured, one longer than this (bytes) is an upload, and not measured:
#: its segments shall take the short path.
LONGEST_REQUEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Linear:
    """The patent's ageing: the age divided by a number (R088, R089)."""

    divisor: float = 4.0

    def __call__(self, ratio: float, age: float) -> float:
        """Seconds by which a prediction is shortened."""
        return age / self.divisor


class ResponseTime(NamedTuple):
    """What is known of a real server's response (fields 354, 358, 360); each sample makes another.

    `last` is the last interval I in seconds, None where nothing was measured; `ratio` is R, seconds a
    connection, and `at` when it was measured. `tried` is when a connection was last sent to a server that
    has not been measured yet.
    """

    last: float | None = None
    ratio: float = 0.0
    at: float = 0.0
    tried: float = -inf

    def sampled(
        self, interval: float, connections: int, now: float, *, clamp: float, raw: bool
    ) -> "ResponseTime":
        """With an interval (seconds) measured while the server had so many connections (R086, R172, A2).

        `raw` takes it for R as it is, without dividing. R changes by no more than `clamp` per cent up or
        down, 0: by as much as it likes; the first sample, and any after an R of 0, is taken whole (R091,
        A16). R is the server's own, so `clamp` is that of the virtual server the sample came through.
        """
        ratio = interval if raw else interval / (connections or 1)
        if clamp and self.ratio:
            most = self.ratio * clamp / 100
            ratio = min(max(ratio, self.ratio - most), self.ratio + most)
        # what NamedTuple's own constructor does, at half its price: every request may end here
        return tuple.__new__(ResponseTime, (interval, ratio, now, -inf))

    def predicted(self, connections: int, ageing: Ageing, now: float) -> float:
        """PR, the predicted response in seconds with so many connections; below 0 for an old one (fig 9)."""
        return connections * self.ratio - ageing(self.ratio, now - self.at)


class Interval:
    """An interval of response time under measurement (timer 333, R057, R188).

    `start` is the stamp of the event that began it, `begun` the same moment by our own clock. It is
    `armed` until the server's first data ends it (A3). `end` is the sequence number after the client's
    newest data, -1 where none was seen. `left` is how many bytes of request are still waited for.
    """

    __slots__ = ("armed", "begun", "end", "left", "start")

    def __init__(self, armed: bool, start: Stamp, begun: float) -> None:
        self.armed = armed
        self.start = start
        self.begun = begun
        self.end = -1
        self.left = LONGEST_REQUEST

    def begin(self, stamp: Stamp, now: float) -> None:
        """Begin, or begin anew."""
        self.armed = True
        self.start = stamp
        self.begun = now

    def seconds(self, stamp: Stamp, now: float) -> float | None:
        """How long it took until `stamp`; None where either stamp is missing or the two cannot be true."""
        if not stamp or not self.start:
            return None
        took = ((stamp[0] - self.start[0]) * 1_000_000 + stamp[1] - self.start[1]) / 1_000_000
        return took if took >= 0 and abs(took - (now - self.begun)) <= _JUMP else None


class Measuring:
    """How the connections of one virtual server are measured.

    The interval begins with the client's SYN and anew with the client's data, so that it is 460 where
    the client speaks and 452 where it does not (R083); `response_start` makes it begin with the SYN
    alone (452), or with the server's SYN-ACK (R084). The server's first data ends it (R085). Every
    request is measured where a scheduler of the virtual server goes by response time (`used`), elsewhere
    a connection's first one: that shows operators what they want to know, and costs nothing afterwards
    (R173). `arms_at_syn` says whether a new connection's interval begins armed.
    """

    __slots__ = ("_every_packet", "_follows_requests", "_keeps", "_raw", "arms_at_syn", "clamp", "used")

    def __init__(self, virtual: spec.Virtual, strict: spec.Strict) -> None:
        self.clamp = virtual.clamp
        self.used = FASTEST_RESPONSE in (virtual.scheduler, virtual.shadow)
        self._raw = strict.ratio
        self._every_packet = strict.every_packet and self.used
        self.arms_at_syn = virtual.response_start != "syn-ack"
        self._follows_requests = virtual.response_start == "request"
        self._keeps = self.used and (self._follows_requests or self._every_packet)

    def restored(self) -> Interval | None:
        """The interval of a connection that a predecessor opened: its next request will be measured."""
        return Interval(False, NO_STAMP, 0.0) if self._keeps and self._follows_requests else None

    def repeated(self, interval: Interval, stamp: Stamp, now: float) -> None:
        """A repeated SYN begins the interval anew (R162, A3b)."""
        if self.arms_at_syn:
            interval.begin(stamp, now)

    def accepted(self, interval: Interval, stamp: Stamp, now: float) -> None:
        """The server's SYN-ACK (R084)."""
        if not self.arms_at_syn:
            interval.begin(stamp, now)

    def requested(
        self, connection: "Connection", interval: Interval, size: int, stamp: Stamp, now: float
    ) -> None:
        """The client's newest segment holds so many bytes of data: new ones begin it anew (R082, R162)."""
        interval.left -= size
        if interval.left < 0 and not self.used:
            connection.interval = None
            connection.settle()
            return
        end = connection.new_data_end(size, interval.end) if self._follows_requests else None
        if end is not None:
            interval.end = end
            interval.begin(stamp, now)
            connection.quick = False

    def responded(self, connection: "Connection", interval: Interval, stamp: Stamp, now: float) -> None:
        """The server's data ends an armed interval, which gives one sample (R085, R171, R172, A3)."""
        took = interval.seconds(stamp, now)
        if took is not None:
            connection.link.real.responded(took, now, clamp=self.clamp, raw=self._raw)
        if self._every_packet:
            return
        if self._keeps:
            interval.armed = False
            interval.start = NO_STAMP
        else:
            connection.interval = None
        connection.quick = connection.state.quick
