"""Signals as something to read: what a selector waits for, so that none comes in the middle of anything.

Owns the process's wake-up descriptor, of which there is one.
"""

import selectors
import signal
import socket
from collections.abc import Callable, Iterable

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1)
"""Those that the supervisor listens to."""


def listen(
    numbers: Iterable[signal.Signals], selector: selectors.BaseSelector, noticed: Callable[[bytes], None]
) -> Callable[[], None]:
    """Have `noticed` told which signals came, a byte for each; returns what makes all as it was before."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    before = {number: signal.signal(number, _wake) for number in numbers}
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    selector.register(ours, selectors.EVENT_READ, lambda _mask: noticed(ours.recv(64)))

    def restore() -> None:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        selector.unregister(ours)
        ours.close()
        theirs.close()

    return restore


def forget(numbers: Iterable[signal.Signals]) -> None:
    """In a forked child: signals do to it what they do to any process."""
    signal.set_wakeup_fd(-1)
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)


def _wake(_number: int, _frame: object) -> None:
    """The wake-up descriptor carries the signal; a handler must stand for it to be written."""
