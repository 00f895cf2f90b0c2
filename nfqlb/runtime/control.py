"""The control socket: a unix socket on which operators ask the running gateway, one JSON line at a time.

`Server` is the supervisor's end. It never blocks and has no thread: it registers callbacks `f(mask)` as the
data of the supervisor's selector, which calls them. Each client has one request under way at a time, and
the next is not even read until the reply has left; so neither a slow reader nor a flood of requests
can pile up memory. A request may be answered by a stream of replies, until the client hangs up; who does
not read them gets fewer, and is let go after a while. A client can do nothing that raises out of a
callback. Who may connect, and ask what, is said in `access`. `Client`, the operator's end, has a module
of its own to be light.
"""

import contextlib
import logging
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector

from nfqlb.runtime import access
from nfqlb.runtime.client import Client
from nfqlb.runtime.listener import inode, listen, peer
from nfqlb.runtime.protocol import (
    MAX_LINE,
    MAX_REPLY,
    ControlError,
    Ident,
    Level,
    LineReader,
    LineTooLongError,
    Outcome,
    Request,
    command_of,
    decode,
    encode_reply,
    ident_of,
)

__all__ = ["Client", "ControlError", "Request", "Server"]

logger = logging.getLogger(__name__)

MAX_CLIENTS = 32
RESERVED = 4  # of them, for root: nobody else can take them all
MAX_BUFFERED = 64 << 20  # bytes of replies not yet read, all clients together
IDLE = 300.0  # seconds without a byte either way, after which a client is let go
UNREAD = 30.0  # seconds after which one is let go that does not read what it asked for
CHUNK = 1 << 16
BURST = 32  # requests of one client served before the others get their turn


class Server:
    """The listening socket and its clients. `answer` gets each request and answers it now or later.

    `path` is made for those who may connect (see `listener`); a missing directory is made with mode 0755.
    A socket file left by a dead process is replaced. `groups` may come in beside root. Raises ControlError
    where the path cannot be had: another gateway answers there, it is no socket, or the right is missing.
    """

    def __init__(
        self,
        path: Path,
        selector: BaseSelector,
        answer: Callable[[Request], None],
        *,
        groups: access.Groups = access.GROUPS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.selector = selector
        self.clock = clock
        self.groups = groups
        self.numbers = groups.numbers()
        self._answer = answer
        self._path = path
        self._clients: set[_Conversation] = set()
        self._listener, self._inode = listen(path, groups), inode(path)
        self._accepting = False
        self._resume()

    def tick(self) -> None:
        """Let go of clients that are gone, idle or do not read. To be called about once a second."""
        now = self.clock()
        for client in list(self._clients):
            client.expire(now)
        self._resume()

    def close(self) -> None:
        """End every conversation and remove the socket file, unless somebody else's is there by now."""
        if self._listener.fileno() < 0:
            return
        for client in list(self._clients):
            client.dismiss(ControlError("stopping", "the gateway is stopping"))
        self._pause()
        self._listener.close()
        with contextlib.suppress(OSError):  # removed already, with its directory perhaps
            if inode(self._path) == self._inode:
                self._path.unlink()

    def abandon(self) -> None:
        """In a forked child: give up the descriptors, but leave the file and the selector to the parent.

        The selector's kernel object is shared with the parent, so nothing may be unregistered from here.
        """
        self._listener.close()
        for client in self._clients:
            client.sock.close()
        self._clients.clear()

    def dispatch(self, request: Request) -> None:
        """Hand a request to whoever answers; whatever goes wrong there becomes an error reply."""
        try:
            self._answer(request)
        except ControlError as error:
            request.refuse(error)
        except Exception:  # a defect in a command must not stop the gateway
            logger.exception("command %r failed", request.cmd)
            request.fail("internal-error", f"{request.cmd} failed inside the gateway", "its log says more")

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes more may wait for slow readers."""
        return size + sum(client.unsent for client in self._clients) <= MAX_BUFFERED

    def forget(self, client: "_Conversation") -> None:
        """A conversation is over."""
        self._clients.discard(client)

    def _accept(self, _mask: int) -> None:
        if self._listener.fileno() < 0:
            return  # closed since this event was reported
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            self._pause()  # out of descriptors: asking again at once would spin; tick() resumes
            return
        sock.setblocking(False)
        client = _Conversation(self, sock)
        if client.level is Level.NONE:
            client.dismiss(access.stranger(client.peer, self.groups))
            return
        limit = MAX_CLIENTS if client.level is Level.ADMIN else MAX_CLIENTS - RESERVED
        if len(self._clients) >= limit:
            client.dismiss(ControlError("too-many-clients", f"{limit} clients are connected already"))
            return
        self._clients.add(client)
        client.start()

    def _resume(self) -> None:
        if not self._accepting:
            self._accepting = True
            self.selector.register(self._listener, EVENT_READ, self._accept)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self.selector.unregister(self._listener)


class _Conversation:
    """One client of the server: takes a request, sends its reply, takes the next."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.sock = sock
        self.peer = peer(sock)
        self.level = access.level_of(sock, server.numbers)
        self._server = server
        self._reader = LineReader(MAX_LINE)
        self._out = bytearray()
        self._request: Request | None = None
        self._greeted = False  # the first reply has carried the protocol's version
        self._ended = False  # nothing more will come from the client
        self._backlog = False  # whole lines are left from a burst
        self._busy = False
        self._interest = 0
        self._active = server.clock()

    @property
    def unsent(self) -> int:
        """Bytes of replies that the client has not read yet."""
        return len(self._out)

    @property
    def _closed(self) -> bool:
        return self.sock.fileno() < 0

    def start(self) -> None:
        """Listen to the client."""
        self._watch()

    def expire(self, now: float) -> None:
        """Close where nothing has moved for too long and nothing is being worked on, or nobody is there."""
        still = now - self._active
        if (self._out and still > UNREAD) or (self._request is None and still > IDLE) or self._gone():
            self._close()

    def _gone(self) -> bool:
        """Whether the client has hung up while its request is under way, when nothing is read from it."""
        if self._request is None:
            return False
        look = select.poll()
        look.register(self.sock, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in look.poll(0))

    def dismiss(self, error: ControlError) -> None:
        """Tell the client why, as far as that goes without waiting, and close."""
        self._put(self._request.ident if self._request else None, error)
        self._flush()
        self._close()

    def _ready(self, mask: int) -> None:
        if self._closed:
            return  # closed since this event was reported
        if mask & EVENT_READ:
            self._receive()
        self._proceed()

    def _receive(self) -> None:
        try:
            data = self.sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        self._active = self._server.clock()
        if data:
            self._reader.feed(data)
        else:
            self._ended = True
            self._reader.finish()

    def _proceed(self) -> None:
        """Send what is due and take requests until something has to be waited for."""
        self._busy = True  # an answer given at once comes back in here; it must not nest
        self._backlog = True
        for _ in range(BURST):
            self._flush()
            if self._closed or self._request is not None or self._out or not self._take():
                self._backlog = False
                break
        self._busy = False
        if self._ended and not (self._request or self._out or self._backlog):
            self._close()
        self._watch()

    def _take(self) -> bool:
        """Take the next line, if there is one, and see that it gets its reply."""
        try:
            line = self._reader.take()
        except LineTooLongError:
            self._put(None, ControlError("too-long", f"a request may have {MAX_LINE} bytes at most"))
            self._reader = LineReader(MAX_LINE)
            self._ended = True
            return True
        if line is None:
            return False
        if not line.strip():
            return True
        ident: Ident = None
        try:
            document = decode(line)
            ident = ident_of(document)
            cmd, args = command_of(document)
        except ControlError as error:
            self._put(ident, error)
            return True
        self._request = Request(
            ident, cmd, args, self.peer, self._answered, level=self.level, send=self._send
        )
        self._server.dispatch(self._request)
        return True

    def _answered(self, request: Request, outcome: Outcome) -> None:
        if self._closed or self._request is not request:
            return
        self._request = None
        self._put(request.ident, outcome)
        if not self._busy:
            self._proceed()

    def _send(self, request: Request, outcome: Outcome) -> bool:
        """One of many replies to the request under way; left out while the one before waits to be read."""
        if self._closed or self._request is not request or self._out:
            return False
        self._active = self._server.clock()
        self._put(request.ident, outcome)
        if not self._busy:
            self._proceed()
        return True

    def _put(self, ident: Ident, outcome: Outcome) -> None:
        first, self._greeted = not self._greeted, True
        try:
            data = _bounded(ident, outcome, first)
        except (ValueError, TypeError, RecursionError):
            error = ControlError("internal-error", "the gateway's answer cannot be written as JSON")
            data = _bounded(ident, error, first)
        if not self._server.has_room(len(data)):
            busy = ControlError("busy", "too many replies wait for slow readers", "try again in a moment")
            data = _bounded(ident, busy, first)
        self._out += data

    def _flush(self) -> None:
        if not self._out or self._closed:
            return
        try:
            sent = self.sock.send(self._out[: 4 * CHUNK])
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        self._active = self._server.clock()
        del self._out[:sent]

    def _watch(self) -> None:
        """Ask the selector for what is waited for; for nothing while a request is being answered."""
        if self._closed:
            return
        if self._out or self._backlog:
            wanted = EVENT_WRITE
        else:
            wanted = 0 if self._request or self._ended else EVENT_READ
        if wanted == self._interest:
            return
        if not self._interest:
            self._server.selector.register(self.sock, wanted, self._ready)
        elif wanted:
            self._server.selector.modify(self.sock, wanted, self._ready)
        else:
            self._server.selector.unregister(self.sock)
        self._interest = wanted

    def _close(self) -> None:
        if self._closed:
            return
        if self._interest:
            self._server.selector.unregister(self.sock)
            self._interest = 0
        self.sock.close()
        self._out.clear()
        if self._request is not None:
            self._request.answered = True  # nobody waits for it any more
            self._request = None
        self._server.forget(self)


def _bounded(ident: Ident, outcome: Outcome, first: bool) -> bytes:
    """A reply's line, or that of an error where it would be too long."""
    line = bytearray()
    for piece in encode_reply(ident, outcome, first=first):
        line += piece
        if len(line) > MAX_REPLY:
            error = ControlError("too-large", f"the reply has more than {MAX_REPLY} bytes", "ask for less")
            return b"".join(encode_reply(ident, error, first=first))
    return bytes(line)
