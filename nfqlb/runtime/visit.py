"""One client of the server of metrics: a request, its reply, and the time that it has for both.

It never blocks: its callback `f(mask)` is the data of the selector, which calls it. Whatever a client does,
nothing raises out of there.
"""

import contextlib
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector

from nfqlb.runtime.http import MAX_HEAD, PLAIN, Answer, Asked, head, request

REQUEST_TIME = 5.0  # seconds from the connection to the end of the request
REPLY_TIME = 30.0  # seconds for reading the reply, with the time it takes to write it
FAREWELL = 1.0  # seconds in which what a client still sends is thrown away, so that it gets its reply
CHUNK = 1 << 17  # bytes handed to the kernel in one go

_TOO_SLOW = Answer(HTTPStatus.REQUEST_TIMEOUT, f"A request must be there within {REQUEST_TIME:g} s.\n")


class Visit:
    """One client: its request is read, its reply sent, and that is all.

    `asked(visit, request)` is called with its request, and replies now or later; `over(visit)` when it is
    gone. It is `silent` until its request is whole, and has `parted` once its reply is sent.
    """

    def __init__(
        self,
        sock: socket.socket,
        selector: BaseSelector,
        clock: Callable[[], float],
        asked: Callable[["Visit", Asked], None],
        over: Callable[["Visit"], None],
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)  # who does not read costs no more
        self.silent = True
        self.parted = False
        self._sock = sock
        self._selector = selector
        self._clock = clock
        self._asked = asked
        self._over = over
        self._received = bytearray()
        self._out: list[memoryview] = []
        self._replied = False
        self._deadline = clock() + REQUEST_TIME
        self._interest = 0

    @property
    def is_open(self) -> bool:
        """Whether there is still somebody to reply to."""
        return self._sock.fileno() >= 0

    def start(self) -> None:
        """Wait for the request."""
        self._watch(EVENT_READ)

    def expire(self, now: float) -> None:
        """Close where the time is over; who has not asked yet is told why."""
        if now >= self._deadline:
            if self.silent:
                self.tell(_TOO_SLOW)
            self.close()

    def tell(self, answer: Answer, *, head_only: bool = False) -> None:
        """Reply with a line of text."""
        self.reply(answer.status, PLAIN, answer.text.encode(), answer.header, head_only=head_only)

    def reply(
        self,
        status: HTTPStatus,
        content_type: str,
        body: bytes | bytearray,
        header: str = "",
        *,
        head_only: bool = False,
    ) -> None:
        """Send a reply; `head_only` is what HEAD asks for."""
        if not self.is_open:
            return
        self.silent = False
        self._replied = True
        self._deadline = self._clock() + REPLY_TIME
        self._out = [memoryview(head(status, content_type, len(body), time.time(), header))]
        if not head_only:
            self._out.append(memoryview(body))
        self._send()

    def abandon(self) -> None:
        """In a forked child: give up the descriptor, and leave the selector to the parent."""
        self._sock.close()

    def close(self) -> None:
        """Hang up."""
        if self.is_open:
            self._watch(0)
            self._sock.close()
            self._out.clear()
            self._over(self)

    def _ready(self, mask: int) -> None:
        if self.is_open and mask & EVENT_READ:
            self._receive()
        if self.is_open and mask & EVENT_WRITE:
            self._send()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(MAX_HEAD)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        elif not self._replied:
            self._received += data
            self._understand()

    def _understand(self) -> None:
        found = request(bytes(self._received))
        if found is None:
            return
        self._received.clear()
        self.silent = False
        self._deadline = self._clock() + REPLY_TIME
        self._watch(0)  # until there is something to send: what else the client may say is of no interest
        if isinstance(found, Answer):
            self.tell(found)
        else:
            self._asked(self, found)

    def _send(self) -> None:
        try:
            while self._out:
                sent = self._sock.send(self._out[0][:CHUNK])
                self._out[0] = self._out[0][sent:]
                if self._out[0]:
                    break
                del self._out[0]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._out:
            self._watch(EVENT_WRITE)
        else:
            self._part()

    def _part(self) -> None:
        """All is sent; the client is to hang up.

        To close with something of the client's unread would reset the connection, and the reply with it.
        """
        self.parted = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._deadline = self._clock() + FAREWELL
        self._watch(EVENT_READ)

    def _watch(self, wanted: int) -> None:
        if wanted == self._interest:
            return
        if not self._interest:
            self._selector.register(self._sock, wanted, self._ready)
        elif wanted:
            self._selector.modify(self._sock, wanted, self._ready)
        else:
            self._selector.unregister(self._sock)
        self._interest = wanted
