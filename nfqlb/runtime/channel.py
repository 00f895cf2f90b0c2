"""The way between supervisor and worker: the control protocol's lines over a socket pair.

The supervisor's end asks, the worker's end answers. Neither blocks: what cannot be sent yet is kept. The
supervisor sends one request at a time and keeps the others, so a worker in the middle of its packets
never has more than one to look at, and at most one reply under way; a long reply is encoded and sent in
portions, one a poll. Long lists are asked for when nothing else is: whoever asks for many of them holds up
neither orders nor the gateway itself. Requests that the worker takes to its grave, or does not answer in
time, fail with a reason; they are never left hanging.
"""

import itertools
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from typing import NamedTuple

from nfqlb.runtime.protocol import (
    DEFAULT_LIMITS,
    JSON,
    MAX_REPLY,
    ControlError,
    Encoded,
    Ident,
    JSONObject,
    LineReader,
    LineTooLongError,
    Outcome,
    Request,
    command_of,
    decode,
    encode_reply,
    encode_request,
    ident_of,
    outcome_of,
)

logger = logging.getLogger(__name__)

CHUNK = 1 << 16
PORTION = 1 << 14  # bytes of a reply that the worker encodes in one poll: under a millisecond's work
MAX_ASKED = 1 << 16  # bytes of one request to the worker, which has packets waiting while it reads it
MAX_WAITING = 64  # requests kept for the worker; the control socket's clients can have 32 under way
PATIENCE = 4.0  # seconds for the worker's answer: less than an operator's own patience of 5


def pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair of sockets, for the supervisor and the worker. Neither survives an exec."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


class _Waiting(NamedTuple):
    line: bytes
    deadline: float
    done: Callable[[JSON], None]
    failed: Callable[[ControlError], None]
    patient: bool  # what comes later may go first
    verbatim: Callable[[Encoded], None] | None  # gets a list as it was sent, in place of `done`


class SupervisorChannel:
    """The asking end, driven by the supervisor's selector. Every new worker gets a new one."""

    def __init__(
        self, sock: socket.socket, selector: BaseSelector, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sock = sock
        self._selector = selector
        self._clock = clock
        self._reader = LineReader(MAX_REPLY)
        self._out = bytearray()
        self._waiting: dict[int, _Waiting] = {}  # by id, oldest first
        self._asked: int | None = None  # the one that the worker has, even where nobody waits for it any more
        self._idents = itertools.count(1)
        self._interest = EVENT_READ
        selector.register(sock, EVENT_READ, self._ready)

    @property
    def closed(self) -> bool:
        """The worker is gone, or the channel was closed."""
        return self._sock.fileno() < 0

    def call(
        self, cmd: str, args: JSONObject, done: Callable[[JSON], None], failed: Callable[[ControlError], None]
    ) -> None:
        """Ask the worker. `done` or `failed` is called, perhaps before this returns.

        Only one of them is, except that `failed` follows where `done` raises. Errors: "worker-restarting"
        (it is gone), "worker-busy" (no answer in 4 seconds, or too many requests wait), "too-large" (the
        request, or its reply), or the worker's own.
        """
        self._call(cmd, args, done, failed, None)

    def forward(self, request: Request) -> None:
        """Let the worker answer a client's request; a list goes to the client as it came."""
        self._call(request.cmd, request.args, request.reply, request.refuse, request.reply)

    def _call(
        self,
        cmd: str,
        args: JSONObject,
        done: Callable[[JSON], None],
        failed: Callable[[ControlError], None],
        verbatim: Callable[[Encoded], None] | None,
    ) -> None:
        if self.closed:
            failed(restarting())
            return
        ident = next(self._idents)
        try:
            line = encode_request(ident, cmd, args)
        except (ValueError, TypeError, RecursionError):
            failed(ControlError("bad-request", "the request cannot be written as JSON"))
            return
        if len(line) > MAX_ASKED:
            failed(ControlError("too-large", f"the request has more than {MAX_ASKED} bytes"))
            return
        if len(self._waiting) >= MAX_WAITING:
            failed(_busy())
            return
        deadline, patient = self._clock() + PATIENCE, cmd in DEFAULT_LIMITS
        self._waiting[ident] = _Waiting(line, deadline, done, failed, patient, verbatim)
        self._ask()

    def tick(self) -> None:
        """Give up requests that have waited too long. To be called about once a second."""
        now = self._clock()
        for ident in [ident for ident, waiting in self._waiting.items() if now >= waiting.deadline]:
            waiting = self._waiting.pop(ident, None)
            if waiting is not None:
                waiting.failed(_busy())

    def close(self) -> None:
        """The worker is gone, or will be: whatever still waits fails. May be called more than once."""
        if self.closed:
            return
        self._selector.unregister(self._sock)
        self._sock.close()
        self._out.clear()
        self._fail_all(restarting())

    def abandon(self) -> None:
        """In a forked child: give up the descriptor, and leave the selector to the parent."""
        self._sock.close()

    def _fail_all(self, error: ControlError) -> None:
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            one.failed(error)

    def _ready(self, mask: int) -> None:
        if self.closed:
            return  # closed since this event was reported
        if mask & EVENT_WRITE:
            self._flush()
        if mask & EVENT_READ and not self.closed:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(4 * CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._reader.feed(data)
        while not self.closed and self._take():
            pass

    def _take(self) -> bool:
        """Take one reply, if there is one, and ask the next question."""
        try:
            line = self._reader.take()
            if line is None:
                return False
            ident, outcome = self._understood(line)
        except LineTooLongError:
            # The worker answers one question at a time, so it is this one's reply.
            ident, outcome = self._asked, ControlError("too-large", "the reply is too long", "ask for less")
        except ControlError as error:
            ident, outcome = self._asked, ControlError("bad-reply", f"the worker's reply: {error.message}")
        self._asked = None
        waiting = self._waiting.pop(ident, None) if isinstance(ident, int) else None
        if waiting is None:
            pass  # given up already
        elif isinstance(outcome, ControlError):
            waiting.failed(outcome)
        else:
            _finish(waiting, outcome)
        self._ask()
        return True

    def _understood(self, line: bytes) -> tuple[Ident, JSON | Encoded | ControlError]:
        """Whose reply a line is, and what it says. Raises ControlError.

        A list for a client is not taken apart: with 10,000 rows that takes longer than to make it.
        """
        waiting = self._waiting.get(self._asked) if self._asked is not None else None
        head = b'{"id":%d,"ok":true,"result":' % (self._asked or 0)
        if waiting and waiting.verbatim and line.startswith(head + b"[") and line.endswith(b"]}"):
            return self._asked, Encoded(line[len(head) : -1])
        reply = decode(line)
        return ident_of(reply), outcome_of(reply)

    def _ask(self) -> None:
        if self.closed or self._asked is not None or not self._waiting:
            return
        urgent = (ident for ident, waiting in self._waiting.items() if not waiting.patient)
        self._asked = next(urgent, None) or next(iter(self._waiting))
        self._out += self._waiting[self._asked].line
        self._flush()

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._out) if self._out else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._out[:sent]
        wanted = EVENT_READ | EVENT_WRITE if self._out else EVENT_READ
        if wanted != self._interest:
            self._interest = wanted
            self._selector.modify(self._sock, wanted, self._ready)


class WorkerChannel:
    """The answering end. The worker calls `poll` between its packets, or when `events` come true."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = LineReader(MAX_ASKED)
        self._replies: deque[Iterator[bytes]] = deque()
        self._out = bytearray()
        self.lost = False  # the supervisor is gone: nobody will ask again

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._sock.fileno()

    @property
    def events(self) -> int:
        """What to wait for: something to read, and room to write where a reply is under way."""
        return EVENT_READ | EVENT_WRITE if self._out or self._replies else EVENT_READ

    def poll(self) -> list[Request]:
        """Send a portion of what is due and return the requests that have come in. Never blocks or raises.

        The supervisor asks one thing at a time, so that is one request at most. It is answered by its
        `reply`, `fail` or `refuse`, now or later; an iterator given to `reply` is asked for its rows as
        they are sent.
        """
        self._flush()
        requests: list[Request] = []
        if not self.lost and self._receive():
            while (request := self._take()) is not None:
                requests.append(request)
        return requests

    def close(self) -> None:
        """Hang up."""
        self._sock.close()
        self.lost = True

    def _receive(self) -> bool:
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.lost = True
            return False
        self._reader.feed(data)
        return True

    def _take(self) -> Request | None:
        """The next good request; what is not one is answered here."""
        while True:
            ident = None
            try:
                line = self._reader.take()
                if line is None:
                    return None
                document = decode(line)
                ident = ident_of(document)
                cmd, args = command_of(document)
            except LineTooLongError:
                self._answer(None, ControlError("too-long", f"a request may have {MAX_ASKED} bytes at most"))
            except ControlError as error:
                self._answer(ident, error)
            else:
                return Request(ident, cmd, args, None, self._settle)

    def _settle(self, request: Request, outcome: Outcome) -> None:
        self._answer(request.ident, outcome)

    def _answer(self, ident: int | str | None, outcome: Outcome) -> None:
        if not self.lost:
            self._replies.append(encode_reply(ident, outcome))
            self._flush()

    def _flush(self) -> None:
        """Encode and send one portion."""
        if self.lost:
            return
        while self._replies and len(self._out) < PORTION:
            self._out += self._piece()
        if not self._out:
            return
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            return
        except OSError:
            self.lost = True
            return
        del self._out[:sent]

    def _piece(self) -> bytes:
        """The next piece of the oldest reply. A defect in it spoils that reply, not the worker."""
        try:
            piece = next(self._replies[0], None)
        except Exception:
            logger.exception("a reply could not be written")
            piece = b"!\n"  # that is no JSON: the supervisor reports a bad reply
            self._replies.popleft()
        if piece is None:
            self._replies.popleft()
        return piece or b""


def _finish(waiting: _Waiting, result: JSON | Encoded) -> None:
    try:
        if not isinstance(result, Encoded):
            waiting.done(result)
        elif waiting.verbatim is not None:
            waiting.verbatim(result)
    except Exception:
        logger.exception("a reply of the worker could not be used")
        waiting.failed(ControlError("internal-error", "the gateway failed to answer", "its log says more"))


def restarting() -> ControlError:
    """The refusal where there is no worker to ask."""
    return ControlError("worker-restarting", "the worker is being restarted", "try again in a moment")


def _busy() -> ControlError:
    return ControlError("worker-busy", "the worker does not answer in time", "try again in a moment")
