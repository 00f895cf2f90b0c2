"""Whether the worker still moves packets: its heart beat, and what the supervisor makes of it.

A `Heart` is a page of memory that supervisor and worker share. The worker counts every round of its loop in
it, in which it has read whatever waited; a round without packets takes a quarter of a second. So a
worker that is stopped, that loops inside a judgement, or that waits for something which does not come
shows no beat, although its process lives. `Vitals` looks at it and decides.

| no beat, and the process | is given |
|---|---|
| is stopped (SIGSTOP, a debugger) | `STOPPED` seconds |
| uses the processor | `LOOPING` seconds of it, or as long as it asked for with `Heart.busy` |
| waits, or does not get the processor | `HANGING` seconds, or as long as it asked for |
| has not begun to serve yet | `BIRTH` seconds since it last said that it gets on |

All but the first are doubled for the successor of one that was killed young, and so on up to `MOST` times:
what took it so long may have been work, which the next one has to do as well. A supervisor that has not
looked for a while (a stopped machine, a debugger) takes the beats anew: it was away itself.

A worker that goes round while the packets in its queues stay where they are is found by `Movement`, from what
the kernel and the worker say of them once a second.
"""

import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import Struct

from nfqlb.core.plural import several
from nfqlb.netfilter.procfs import Doing
from nfqlb.runtime.protocol import JSON, JSONObject

LOOK = 0.2
"""Seconds between two looks of the supervisor."""
STOPPED_BY_OTHERS = "it has been stopped"
"""How the reason begins that is no fault of the worker's."""
STOPPED, LOOPING, HANGING, BIRTH = 0.6, 3.0, 6.0, 20.0
MOST = 4  # times as long, at the end
YOUNG = 60.0  # seconds that a worker has lived at most
IDLE = 4  # snapshots, of which there is one a second
_AWAY = 1.0  # seconds without a look, after which the supervisor was away itself

_BEATS = 0  # of the counters, 8 bytes each
_PATIENCE = Struct("=d")
_PATIENCE_AT = 8


class Heart:
    """Shared with a worker that is forked after this was made; one for all workers that follow each other."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._counters = memoryview(self._page).cast("Q")

    def beat(self) -> None:
        """In the worker: one round is done."""
        self._counters[_BEATS] += 1

    @contextmanager
    def busy(self, seconds: float) -> Iterator[None]:
        """In the worker: what follows may take so long without a beat."""
        self.ask(seconds)
        try:
            yield
        finally:
            self.beat()
            self.ask(0.0)

    def ask(self, seconds: float) -> None:
        """In the worker: no beat need come for so long from now on."""
        _PATIENCE.pack_into(self._page, _PATIENCE_AT, time.monotonic() + seconds if seconds else 0.0)

    @property
    def beats(self) -> int:
        """How many rounds there were, of all workers."""
        return self._counters[_BEATS]

    @property
    def patience(self) -> float:
        """Until when (monotonic, in seconds) the worker has asked not to be missed; 0: it has not."""
        (until,) = _PATIENCE.unpack_from(self._page, _PATIENCE_AT)
        return float(until)


class Vitals:
    """One worker's life as its heart tells it; to be made before the worker is forked.

    `doing` says what a process does, None where it is gone. `now` is monotonic, in seconds. `patience` is how
    many times the usual time this worker is given.
    """

    def __init__(
        self, heart: Heart, now: float, doing: Callable[[int], Doing | None], *, patience: int = 1
    ) -> None:
        self._heart = heart
        self._doing = doing
        self._patience = patience
        heart.ask(0.0)
        self._beats = heart.beats
        self._since = now  # when the last beat was seen
        self._looked = now
        self._used: float | None = None  # processor time, when it was first missed
        self._born = False

    def look(self, now: float, process: int) -> str:
        """Why the worker, this process, is to be killed, for the log; "" where it may well be alive."""
        away = now - self._looked > _AWAY
        self._looked = now
        beats = self._heart.beats
        if beats != self._beats or away:
            self._born = self._born or beats != self._beats
            self._beats, self._since, self._used = beats, now, None
            return ""
        quiet = now - self._since
        if quiet < 2 * LOOK:
            return ""
        doing = self._doing(process)
        return self._judged(doing, quiet, now) if doing is not None else ""

    def _judged(self, doing: Doing, quiet: float, now: float) -> str:
        if self._used is None:
            self._used = doing.used
        if doing.state in ("T", "t"):
            return f"{STOPPED_BY_OTHERS} for {quiet:.1f} s" if quiet >= STOPPED else ""
        asked = self._heart.patience
        if now < asked:
            return ""
        times = self._patience
        if not self._born:
            late = now - max(self._since, asked)
            return f"it has not begun to serve within {late:.0f} s" if late >= BIRTH * times else ""
        if doing.used - self._used >= LOOPING * times:
            return f"it has worked for {quiet:.1f} s without reading a packet"
        return f"it has not moved for {quiet:.1f} s" if quiet >= HANGING * times else ""


class Movement:
    """Whether a worker that goes round moves the packets that wait for it; looks at every snapshot."""

    def __init__(self) -> None:
        self._still: dict[JSON, tuple[JSON, int]] = {}  # queue -> packets read from it, for so many snapshots

    def look(self, snapshot: JSONObject) -> str:
        """Why the worker is to be killed: a queue holds packets, and none was read since `IDLE` snapshots."""
        queues = snapshot["queues"] if snapshot["state"] == "running" else ()
        before, self._still = self._still, {}
        assert isinstance(queues, list | tuple)
        for queue in queues:
            assert isinstance(queue, dict)
            number, read = queue["number"], queue["packets"]
            if not queue["depth"] or read is None:
                continue
            known, times = before.get(number, (None, 0))
            self._still[number] = read, times + 1 if known == read else 0
            if self._still[number][1] >= IDLE:
                self._still = {}
                waiting = several(int(str(queue["depth"])), "packet")
                return f"it has read none of {waiting} in queue {number} for {IDLE} s"
        return ""


class Watchdog:
    """When the service manager is to be told that packets move: at half of what it wants, if they do."""

    def __init__(self, heart: Heart, within: float, now: float) -> None:
        self._heart = heart
        self._every = within / 2
        self._due = now
        self._beats = -1

    def due(self, now: float, *, idle: bool = False) -> bool:
        """Whether to tell it now. A worker without a beat since the last time leaves it untold.

        `idle`: there is none for a while, on purpose.
        """
        if not self._every or now < self._due or (self._heart.beats == self._beats and not idle):
            return False
        self._beats = self._heart.beats
        self._due = now + self._every
        return True
