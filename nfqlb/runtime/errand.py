"""An errand: work that may take long, or hang, done by a short-lived child so that its parent never waits.

Owns the child from its fork to its burial, and `Errands`, the children of one owner. What it finds comes back
over a pipe that the parent's selector watches. iptables waits for its lock and sysfs for nobody knows what;
the supervisor has a worker to look after meanwhile.
"""

import contextlib
import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from selectors import EVENT_READ, BaseSelector

from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime.protocol import JSON

_CHUNK = 1 << 16
_GRACE = 2.0  # seconds that `close` waits before it kills


class Errand:
    """`work` in a child of its own; `done` gets what it returned, or the error that it raised.

    `patience` is in seconds; a child that takes longer is killed, with the programs that it has started.
    Raises OSError where there can be no child.
    """

    def __init__(
        self,
        selector: BaseSelector,
        work: Callable[[], JSON],
        done: Callable[[JSON | KernelError], None],
        patience: float,
    ) -> None:
        self._selector = selector
        self._done = done
        self._said = bytearray()
        self._late = False
        self.deadline = time.monotonic() + patience
        self._pipe, theirs = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self._pipe)
            os.close(theirs)
            raise
        if self.pid == 0:
            _be_child(work, theirs, patience)
        with contextlib.suppress(OSError):  # it has done so itself, or is gone already
            os.setpgid(self.pid, self.pid)
        os.close(theirs)
        os.set_blocking(self._pipe, False)
        selector.register(self._pipe, EVENT_READ, self._readable)

    def tick(self) -> None:
        """To be called now and then: kill the child that takes too long."""
        if time.monotonic() > self.deadline:
            self._late = True
            self._kill()

    def close(self) -> None:
        """Wait a little for its end, then make it end; nothing is reported any more."""
        if self._pipe < 0:
            return
        deadline = time.monotonic() + _GRACE
        self._selector.unregister(self._pipe)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                if time.monotonic() > deadline:
                    self._kill()
                time.sleep(0.002)
        os.close(self._pipe)
        self._pipe = -1

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _readable(self, _mask: int) -> None:
        if self._pipe < 0:
            return  # closed since this event was reported
        data = os.read(self._pipe, _CHUNK)
        if data:
            self._said += data
            return
        self._selector.unregister(self._pipe)
        os.close(self._pipe)
        self._pipe = -1
        os.waitpid(self.pid, 0)
        self._done(self._outcome())

    def _outcome(self) -> JSON | KernelError:
        if self._late:
            return KernelError("it did not come to an end in time and was given up")
        try:
            said = json.loads(self._said)
        except ValueError:
            return KernelError("it ended without saying anything")
        return KernelError(said["error"]) if "error" in said else said["result"]


class Errands:
    """The errands of one owner, who goes on meanwhile. `patience` is each one's, in seconds."""

    def __init__(self, selector: BaseSelector, patience: float) -> None:
        self._selector = selector
        self._patience = patience
        self._under_way: list[Errand] = []

    @property
    def pids(self) -> set[int]:
        """The children that are at work; none: no errand is under way."""
        return {errand.pid for errand in self._under_way}

    def begin(self, work: Callable[[], JSON], done: Callable[[JSON | KernelError], None]) -> None:
        """Have `work` done, as `Errand` does; `done` is called at once where there can be no child."""

        def finished(outcome: JSON | KernelError) -> None:
            self._under_way.remove(errand)
            done(outcome)

        try:
            errand = Errand(self._selector, work, finished, self._patience)
        except OSError as error:
            done(KernelError(f"no process can be started: {error.strerror}"))
            return
        self._under_way.append(errand)

    def tick(self) -> None:
        """To be called about once a second."""
        for errand in self._under_way:
            errand.tick()

    def close(self) -> None:
        """Wait a little for what is under way, then make it end; nothing is reported any more."""
        under_way, self._under_way = self._under_way, []
        for errand in under_way:
            errand.close()


def _be_child(work: Callable[[], JSON], pipe: int, patience: float) -> None:
    """In the child: work, say what came of it, and end. Nothing of the parent's is cleaned up here."""
    try:
        os.setpgid(0, 0)  # Ctrl-C is the parent's; and what is started here can be killed together
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(int(patience) + 5)  # should the parent die meanwhile
        try:
            said: JSON = {"result": work()}
        except KernelError as error:
            said = {"error": str(error)}
        except Exception as error:  # noqa: BLE001  a defect here is told like any other failure
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = {"error": f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"}
        view = memoryview(json.dumps(said).encode("ascii"))
        while view:
            view = view[os.write(pipe, view) :]
    finally:
        os._exit(0)
