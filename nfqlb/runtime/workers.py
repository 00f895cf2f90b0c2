"""The worker's process life: forked, replaced where it dies, ended at the end.

Owns the process and the channel to it. There is one worker at a time. Its successor is started at once,
unless they die as fast as they come: one that dies of a defect will do so again, and to restart it for ever
helps nobody (see `rest`). One that does not move any more (see `stall`) is killed, and replaced like any
other. Whoever has to know is told: see `born` and `died`.
"""

import logging
import mmap
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from selectors import BaseSelector

from nfqlb.netfilter.procfs import doing
from nfqlb.runtime.channel import SupervisorChannel, pair, restarting
from nfqlb.runtime.journal import Journal
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject, Request
from nfqlb.runtime.stall import LOOK, MOST, STOPPED_BY_OTHERS, YOUNG, Heart, Vitals

logger = logging.getLogger(__name__)

#: After so many workers in a row that died before they served, the journal is not trusted any more, and
#: the next ones come at this distance (seconds).
_STILLBORN, _BIRTH_INTERVAL = 3, 1.0
#: After so many restarts within so many seconds, each for a defect, the next one waits until the first of
#: them was so long ago.
DEFECTS, WITHIN = 5, 60.0
#: Who kills a worker by these does so from outside: the next one need not die of it.
_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)
_FAREWELL = 3.0  # seconds a worker gets to end by itself


class Workers:
    """The worker and its successors. `work(channel, say_serving)` is what each does, in its own process.

    `restarts` counts the successors, `heart` is to be beaten by each. `born` and `died` are called with the
    worker's process id, the latter also with the cause and, where the next one has to wait, what is to be
    said of that. `rest` is called with True before there is none for a while, and with False after that; what
    it returns is said as well. All are to be set before `start`.
    """

    def __init__(
        self,
        selector: BaseSelector,
        journal: Journal,
        work: Callable[[socket.socket, Callable[[], None]], None],
    ) -> None:
        self.restarts = 0
        self.pid: int | None = None
        self.heart = Heart()
        self.born: Callable[[int], None] = lambda _pid: None
        self.died: Callable[[int, str, str], None] = lambda _pid, _cause, _wait: None
        self.rest: Callable[[bool], str] = lambda _rests: ""
        self.resting = False
        self._selector = selector
        self._journal = journal
        self._work = work
        self._channel: SupervisorChannel | None = None
        self._stillborn = 0
        self._serving = mmap.mmap(-1, 1)  # shared with the worker, which sets it when it has taken over
        self._next_birth = 0.0
        self._for_defects: deque[float] = deque(maxlen=DEFECTS)  # when workers were restarted for them
        self._meanwhile = ""  # what happens while there is none
        self._vitals = Vitals(self.heart, 0.0, doing)
        self._next_look = 0.0
        self._stuck = ""  # why the worker was killed
        self._born_at = 0.0
        self._patience = 1  # times what a worker is usually given

    def call(
        self, cmd: str, args: JSONObject, done: Callable[[JSON], None], failed: Callable[[ControlError], None]
    ) -> None:
        """Ask the worker; see `SupervisorChannel.call`."""
        if self._channel is None:
            failed(self._absent())
        else:
            self._channel.call(cmd, args, done, failed)

    def forward(self, request: Request) -> None:
        """Let the worker answer a client's request; see `SupervisorChannel.forward`."""
        if self._channel is None:
            request.refuse(self._absent())
        else:
            self._channel.forward(request)

    def start(self) -> None:
        """Fork a worker. Raises OSError."""
        ours, theirs = pair()
        self._serving[0] = 0
        self._born_at = time.monotonic()
        self._vitals = Vitals(self.heart, self._born_at, doing, patience=self._patience)
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            status = 1
            try:
                ours.close()
                self._work(theirs, self._say_serving)
                status = 0
            except Exception:
                logger.exception("the worker failed")
            finally:
                logging.shutdown()
                os._exit(status)
        theirs.close()
        self.pid = pid
        self._channel = SupervisorChannel(ours, self._selector)
        self.born(pid)

    def look_after(self) -> None:
        """Replace a worker that has died: at once, unless they die as fast as they come.

        To be called every `stall.LOOK` seconds, or the one that does not move is noticed late.
        """
        now = time.monotonic()
        if self.pid is not None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                self._examine(self.pid, now)
                return
            stuck, self._stuck = self._stuck, ""
            young = now - self._born_at < YOUNG
            self._patience = min(MOST, self._patience * 2) if stuck and young else 1
            self._stillborn = 0 if self._serving[0] else self._stillborn + 1
            if self._stillborn >= _STILLBORN:
                self._next_birth = now + _BIRTH_INTERVAL
            if not stuck.startswith(STOPPED_BY_OTHERS) if stuck else not _from_outside(status):
                self._wait_for_better(now)
            self._bury(pid, f"killed: {stuck}" if stuck else _cause(status))
            if self._stillborn >= _STILLBORN:
                logger.error("workers die as they start; forgetting connections, settings and failures")
                self._journal.clear()
        if now >= self._next_birth:
            if self.resting:
                self.resting = False
                self.rest(False)
            self.start()
            self.restarts += 1

    def tick(self) -> None:
        """Give up questions that have waited too long. To be called about once a second."""
        if self._channel is not None:
            self._channel.tick()

    def end(self) -> None:
        """End the worker, and wait until it has."""
        if self.pid is None or self._channel is None:
            return
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + _FAREWELL
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                break
            time.sleep(0.01)
        self._channel.close()  # not before: a worker without a supervisor would go on
        self.pid = self._channel = None

    def condemn(self, why: str) -> None:
        """Kill the worker, so that another takes over; `why` is for the log, "" leaves it alive."""
        if why and self.pid is not None:
            self._stuck = why
            os.kill(self.pid, signal.SIGKILL)  # which ends one that is stopped, too

    def _examine(self, pid: int, now: float) -> None:
        """Kill a worker that does not move."""
        if now < self._next_look:
            return
        self._next_look = now + LOOK
        self.condemn(self._vitals.look(now, pid))

    def _bury(self, pid: int, cause: str) -> None:
        channel, self._channel, self.pid = self._channel, None, None
        if channel is not None:
            channel.close()
        self.died(pid, cause, self._said() if self.resting else "")

    def _wait_for_better(self, now: float) -> None:
        """A worker died of a defect: its successor waits where that has happened too often."""
        often = self._for_defects
        if len(often) == DEFECTS and now < often[0] + WITHIN:
            self._next_birth = max(self._next_birth, often[0] + WITHIN)
            self.resting = True
            self._meanwhile = self.rest(True)
        often.append(max(now, self._next_birth))

    def _said(self) -> str:
        left = max(0.0, self._next_birth - time.monotonic())
        return (
            f"workers had to be restarted {DEFECTS} times within {WITHIN:.0f} s; the next one starts in "
            f"{left:.0f} s{self._meanwhile}"
        )

    def _absent(self) -> ControlError:
        """Why there is no worker to ask."""
        if not self.resting:
            return restarting()
        return ControlError("worker-restarting", self._said(), "the log says why they died")

    def _say_serving(self) -> None:
        self._serving[0] = 1


def _cause(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"by signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _from_outside(status: int) -> bool:
    """Whether somebody else has ended it."""
    return -os.waitstatus_to_exitcode(status) in _OUTSIDE
