"""Whether the packet queues fill or drop packets at present, and events of when that begins and ends.

Owns what each queue had dropped when it was last looked at. A queue counts as filling, or as dropping, for
some seconds after the last time that it did, so that an operator can see it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from nfqlb.netfilter.queue_status import QueueStatus
from nfqlb.runtime.events import Events
from nfqlb.runtime.protocol import JSON, JSONObject, objects
from nfqlb.runtime.rising import Rising

#: Seconds for which a queue is said to be dropping after it has dropped, and to be filling.
HELD = 10.0
#: A queue is said to fill from this part of its room on: early, for it may be full a moment later.
FILLING = 0.5
_DROPS = ("dropped_full", "dropped_socket", "overruns")
#: The kernel's counters have so many values.
_WIDTH = 1 << 32


class QueueSums:
    """The kernel's counters of lost packets as they would be if they never began anew.

    They do with each bind, and when 32 bits are full.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], Rising] = {}

    def of(self, queues: Iterable[QueueStatus]) -> list[QueueStatus]:
        """What the kernel says of queues, with sums in the place of its counters."""
        return [
            replace(
                queue,
                dropped_full=self._sum(queue.number, "full", queue.dropped_full),
                dropped_socket=self._sum(queue.number, "socket", queue.dropped_socket),
            )
            for queue in queues
        ]

    def _sum(self, number: int, which: str, now: int) -> int:
        return self._sums.setdefault((number, which), Rising(_WIDTH)).at(now)


class QueueWatch:
    """Looks at the queues of snapshots.

    Adds to each queue `dropping` and `filling`, true or false, and `peak`: the most packets that were seen to
    wait in it within the last `HELD` seconds.
    """

    def __init__(self, events: Events, clock: Callable[[], float]) -> None:
        self._events = events
        self._clock = clock
        self._watched: dict[JSON, _Watched] = {}

    def look(self, snapshot: JSONObject) -> bool:
        """Look at one snapshot; whether something has begun or ended since the last one."""
        now = self._clock()
        news = False
        for queue in objects(snapshot["queues"]):
            watched = self._watched.get(queue["number"])
            if watched is None:
                watched = self._watched[queue["number"]] = _Watched(queue)
            for level, text in watched.look(queue, now):
                self._events.add("queue", str(queue["number"]), text, level=level)
                news = True
        return news


class _Watched:
    """One queue, and what is to be said of it."""

    def __init__(self, queue: JSONObject) -> None:
        number, role = queue["number"], queue.get("role")
        self._name = f"queue {number} ({role})" if role else f"queue {number}"
        self._dropped = self._before = _dropped(queue)
        self._dropping = _Spell()
        self._filling = _Spell()
        self._most = ""  # what was in it when it was fullest, since it began to fill
        self._part = 0.0
        self._peak, self._peak_at = 0.0, 0.0

    def look(self, queue: JSONObject, now: float) -> Iterator[tuple[str, str]]:
        """Levels and lines of what there is to say; adds to the row what it now is."""
        yield from self._fill(queue, now)
        yield from self._drop(_dropped(queue), now)
        depth = _number(queue, "depth")
        if depth >= self._peak or now - self._peak_at >= HELD:
            self._peak, self._peak_at = depth, now
        queue["dropping"], queue["filling"] = self._dropping.on, self._filling.on
        queue["peak"] = int(self._peak)

    def _fill(self, queue: JSONObject, now: float) -> Iterator[tuple[str, str]]:
        part, what = _fullness(queue)
        if part >= FILLING:
            if not self._filling.on:
                self._part = 0.0
                yield "warning", f"{self._name} fills: {what} wait"
            if part > self._part:
                self._part, self._most = part, what
            self._filling.go_on(now)
        elif self._filling.is_over(now):
            spell = f"after {self._filling.end():.0f} s in which up to {self._most} waited"
            yield "info", f"{self._name} has room again: {spell}"

    def _drop(self, dropped: float, now: float) -> Iterator[tuple[str, str]]:
        before, self._dropped = self._dropped, dropped
        if dropped > before:
            if not self._dropping.on:
                self._before = before
                yield "warning", f"{self._name} drops packets: {dropped - before:,.0f} so far"
            self._dropping.go_on(now)
        elif self._dropping.is_over(now):
            lost, took = dropped - self._before, self._dropping.end()
            yield "info", f"{self._name} drops no more packets: {lost:,.0f} lost in {took:.0f} s"


class _Spell:
    """Something that goes on for a while."""

    def __init__(self) -> None:
        self.on = False
        self._since = self._latest = 0.0

    def go_on(self, now: float) -> None:
        """It is so now."""
        if not self.on:
            self.on, self._since = True, now
        self._latest = now

    def is_over(self, now: float) -> bool:
        """Whether it was so, and has not been for long."""
        return self.on and now - self._latest >= HELD

    def end(self) -> float:
        """How long it went on, in seconds."""
        self.on = False
        return self._latest - self._since


def _fullness(queue: JSONObject) -> tuple[float, str]:
    """Which part of its room a queue has used up, and of what."""
    depth, limit = _number(queue, "depth"), _number(queue, "limit")
    used, room = _number(queue, "socket_bytes"), _number(queue, "socket_limit")
    packets, octets = (depth / limit if limit else 0.0), (used / room if room else 0.0)
    if octets > packets:
        return octets, f"{used / 1e6:.1f} of {room / 1e6:.1f} MB"
    return packets, f"{depth:,.0f} of {limit:,.0f} packets"


def _dropped(queue: JSONObject) -> float:
    """What a queue has dropped, for whatever reason."""
    return sum(_number(queue, name) for name in _DROPS)


def _number(queue: JSONObject, name: str) -> float:
    value = queue.get(name)
    return value if isinstance(value, int | float) else 0.0
