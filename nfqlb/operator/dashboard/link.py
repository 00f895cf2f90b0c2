"""The dashboard's way to the gateway: questions on the control socket, without ever waiting for an answer.

`Link` asks one question after the other and hands each outcome to whoever asked. Where the gateway goes away,
whatever was under way fails, and the link connects again with the next question, at most once in RETRY
seconds. `Feed` is where snapshots come from. Both are callbacks `f(mask)` in a selector, like the gateway's
own sockets.
"""

import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from selectors import EVENT_READ, BaseSelector
from typing import NamedTuple

from nfqlb.runtime.client import CHUNK, TIMEOUT, unreachable
from nfqlb.runtime.protocol import (
    JSON,
    MAX_REPLY,
    PROTOCOL,
    ControlError,
    JSONObject,
    LineReader,
    LineTooLongError,
    decode,
    encode_request,
    ident_of,
    outcome_of,
)

RETRY = 1.0  # seconds between two attempts to connect

Outcome = JSON | ControlError
Then = Callable[[Outcome], None]


class _Asked(NamedTuple):
    """A question under way; one that `stays` is answered again and again, each within `patience` (s)."""

    ident: int
    then: Then
    stays: bool
    patience: float


class Link:
    """A conversation with the gateway at `path`. `clock` gives monotonic seconds."""

    def __init__(self, path: Path, selector: BaseSelector, clock: Callable[[], float]) -> None:
        self._path = path
        self._selector = selector
        self._clock = clock
        self._sock: socket.socket | None = None
        self._reader = LineReader(MAX_REPLY)
        self._greeted = False
        self._ident = 0
        self._waiting: deque[_Asked] = deque()
        self._since = 0.0  # when the oldest question was asked, or the last answer came
        self._failed: tuple[float, ControlError] | None = None

    @property
    def busy(self) -> int:
        """Questions that are not answered yet."""
        return len(self._waiting)

    def ask(
        self, cmd: str, args: JSONObject, then: Then, *, stays: bool = False, patience: float = 0.0
    ) -> None:
        """Ask; `then` is called with the result or the error, now or later.

        What `stays` is answered until the link is closed; `patience` is how many seconds more than usual an
        answer may take.
        """
        try:
            sock = self._connected()
            self._ident += 1
            sock.send(encode_request(self._ident, cmd, args))
        except OSError as error:
            self._lose(unreachable(self._path, error))
            then(self._error())
            return
        except ControlError as error:
            then(error)
            return
        if not self._waiting:
            self._since = self._clock()
        self._waiting.append(_Asked(self._ident, then, stays, TIMEOUT + patience))

    def tick(self) -> None:
        """Give up what takes too long. To be called now and then."""
        if self._waiting and self._clock() - self._since > self._waiting[0].patience:
            self._lose(unreachable(self._path, TimeoutError()))

    def close(self) -> None:
        """Hang up; nobody is told."""
        self._waiting.clear()
        if self._sock is not None:
            self._selector.unregister(self._sock)
            self._sock.close()
            self._sock = None

    def _error(self) -> ControlError:
        return (
            self._failed[1] if self._failed else ControlError("closed", "the gateway is not asked any more")
        )

    def _connected(self) -> socket.socket:
        """The socket. Raises OSError, or ControlError where it failed just now."""
        if self._sock is not None:
            return self._sock
        now = self._clock()
        if self._failed is not None and now - self._failed[0] < RETRY:
            raise self._failed[1]
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(str(self._path))
        except OSError:
            sock.close()
            raise
        self._sock, self._reader, self._greeted = sock, LineReader(MAX_REPLY), False
        self._selector.register(sock, EVENT_READ, self._ready)
        return sock

    def _ready(self, _mask: int) -> None:
        sock = self._sock
        if sock is None:
            return  # closed since this event was reported
        try:
            data = sock.recv(CHUNK)
            if not data:
                raise ControlError("closed", "the gateway closed the connection", "it may just be stopping")
            self._reader.feed(data)
            while self._sock is sock and (line := self._reader.take()) is not None:
                self._answered(line)
        except BlockingIOError:
            return
        except LineTooLongError:
            self._lose(ControlError("bad-reply", "the gateway's reply is longer than any may be"))
        except OSError as error:
            self._lose(unreachable(self._path, error))
        except ControlError as error:
            self._lose(error)

    def _answered(self, line: bytes) -> None:
        reply = decode(line)
        if not self._greeted and reply.get("protocol") != PROTOCOL:
            raise ControlError(
                "version-mismatch",
                f"the gateway speaks another control protocol ({reply.get('protocol')}, not {PROTOCOL})",
                "use the nfqlb that the gateway was started with",
            )
        self._greeted = True
        answered, outcome = ident_of(reply), outcome_of(reply)
        if not self._waiting or answered not in (self._waiting[0].ident, None):
            raise ControlError("bad-reply", "the gateway answered another question than the one asked")
        if answered is None and isinstance(outcome, ControlError):
            raise outcome  # it turned us away
        asked = self._waiting[0]
        if not asked.stays or isinstance(outcome, ControlError):
            self._waiting.popleft()
        self._since = self._clock()
        asked.then(outcome)

    def _lose(self, error: ControlError) -> None:
        """The conversation is over: whoever waits is told why."""
        waiting = list(self._waiting)
        self.close()
        self._failed = (self._clock(), error)
        for asked in waiting:
            asked.then(error)


class Feed:
    """Where snapshots come from: one every `pace` seconds is handed to `then`, or why there is none.

    The gateway sends them by itself, once it was asked to.
    """

    def __init__(
        self, path: Path, selector: BaseSelector, then: Then, clock: Callable[[], float], pace: float
    ) -> None:
        self._link = Link(path, selector, clock)
        self._then = then
        self._clock = clock
        self._pace = pace
        self._due = clock()

    @property
    def due(self) -> float:
        """When `tick` has something to do next, by the clock."""
        return self._clock() + RETRY if self._link.busy else self._due

    def every(self, pace: float) -> None:
        """From now on one every `pace` seconds, the next at once."""
        self._pace = pace
        self._link.close()
        self._due = self._clock()

    def tick(self) -> None:
        """Have the gateway send them, unless it does; and give it up where it has stopped to."""
        self._link.tick()
        now = self._clock()
        if not self._link.busy and now >= self._due:
            self._due = now + RETRY
            self._link.ask("watch", {"every": self._pace}, self._then, stays=True, patience=self._pace)

    def close(self) -> None:
        """Hang up."""
        self._link.close()
