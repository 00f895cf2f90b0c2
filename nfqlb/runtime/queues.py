"""Whether the packet queues drop packets at present, and events of when that begins and ends.

Owns what each queue had dropped when it was last looked at. A queue counts as dropping for some seconds after
the last packet it lost, so that an operator can see it.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from nfqlb.netfilter.queue_status import QueueStatus
from nfqlb.runtime.events import Events
from nfqlb.runtime.protocol import JSONObject, objects
from nfqlb.runtime.rising import Rising

#: Seconds for which a queue is said to be dropping after it has dropped.
HELD = 10.0
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
    """Looks at the queues of snapshots, and adds to each of them `dropping`: true or false."""

    def __init__(self, events: Events, clock: Callable[[], float]) -> None:
        self._events = events
        self._clock = clock
        self._known: dict[int, float] = {}  # what each queue had dropped
        self._since: dict[int, tuple[float, float]] = {}  # when one began to, and what it had dropped before
        self._latest: dict[int, float] = {}

    def look(self, snapshot: JSONObject) -> None:
        """Look at one snapshot."""
        now = self._clock()
        for queue in objects(snapshot["queues"]):
            number, dropped = queue["number"], _dropped(queue)
            assert isinstance(number, int)
            before = self._known.get(number, dropped)
            self._known[number] = dropped
            name = f"queue {number} ({queue['role']})" if queue.get("role") else f"queue {number}"
            if dropped > before:
                self._latest[number] = now
                self._begin(number, name, now, before, dropped)
            elif number in self._since and now - self._latest[number] >= HELD:
                self._end(number, name, dropped)
            queue["dropping"] = number in self._since

    def _begin(self, number: int, name: str, now: float, before: float, dropped: float) -> None:
        if number not in self._since:
            self._since[number] = (now, before)
            text = f"{name} drops packets: {dropped - before:,.0f} so far"
            self._events.add("queue", str(number), text, level="warning")

    def _end(self, number: int, name: str, dropped: float) -> None:
        since, before = self._since.pop(number)
        took = self._latest[number] - since
        text = f"{name} drops no more packets: {dropped - before:,.0f} lost in {took:.0f} s"
        self._events.add("queue", str(number), text)


def _dropped(queue: JSONObject) -> float:
    """What a queue has dropped, for whatever reason."""
    counts = (queue.get(name) for name in _DROPS)
    return sum(count for count in counts if isinstance(count, int | float))
