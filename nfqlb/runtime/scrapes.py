"""Where Prometheus asks: an HTTP server inside the supervisor's selector loop.

It never blocks and has no thread; like the control socket's it registers callbacks `f(mask)` as the data of
the selector, which calls them. What may take long, the text of a thousand servers, is written a
millisecond at a time, with everything else of the loop in between, and once for all clients that ask at
the same time. A client has one request, a limited time for it, and a limited time to read the answer.
"""

import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from selectors import EVENT_READ, BaseSelector

from nfqlb import __version__
from nfqlb.config.summary import endpoint
from nfqlb.core.spec import Address
from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime.exposition import OPENMETRICS, TEXT, Format, pieces
from nfqlb.runtime.families import Snapshot
from nfqlb.runtime.http import PLAIN, Answer, Asked, accepts
from nfqlb.runtime.visit import Visit

logger = logging.getLogger(__name__)

MAX_CLIENTS = 16
MAX_VISITS = 32  # with those who have their reply, and have not hung up
BACKLOG = 16
PIECE = 0.001  # seconds of writing in one turn of the loop

_PATH = "/metrics"
_FRONT = f"""nfqlb {__version__}, a load-balancing gateway.

{_PATH}   what it counts and measures, for Prometheus (text, or OpenMetrics where that is asked for)

In Prometheus:

  scrape_configs:
    - job_name: nfqlb
      static_configs:
        - targets: ["ADDRESS:PORT"]   # of this page
"""
_NOTHING_YET = Answer(HTTPStatus.SERVICE_UNAVAILABLE, "Nothing has been read yet.\n", "Retry-After: 1")
_NOT_HERE = Answer(HTTPStatus.NOT_FOUND, f"There is nothing here; {_PATH} has the metrics.\n")
_FULL = Answer(HTTPStatus.SERVICE_UNAVAILABLE, "Too many clients ask at once.\n", "Retry-After: 5")
_BROKEN = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, "The metrics could not be written; the log says more.\n")


class Scrapes:
    """The listening socket and its clients. `latest` is the snapshot to tell of, None where there is none.

    A snapshot must not change any more once it was given. Raises KernelError where nobody can
    listen at that address and port.
    """

    def __init__(
        self,
        address: Address,
        port: int,
        selector: BaseSelector,
        latest: Callable[[], Snapshot | None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._selector = selector
        self._clock = clock
        self._latest = latest
        self._visits: list[Visit] = []  # in the order of their coming
        self._written: list[_Text] = []
        self._listener = _listen(address, port)
        self._pace = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # always readable: a turn each round
        self._pacing = False
        self._accepting = False
        self._resume()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._listener.getsockname()[1])

    def tick(self) -> None:
        """Let go of clients whose time is over. To be called about once a second."""
        now = self._clock()
        for visit in list(self._visits):
            visit.expire(now)
        latest = self._latest()
        self._written = [each for each in self._written if each.snapshot is latest or not each.done]
        self._resume()

    def close(self) -> None:
        """End every conversation, and listen no more."""
        if self._listener.fileno() < 0:
            return
        for visit in list(self._visits):
            visit.close()
        self._pause()
        self._listener.close()
        self._rest()
        os.close(self._pace)

    def abandon(self) -> None:
        """In a forked child: give up the descriptors, and leave the selector to the parent."""
        self._listener.close()
        for visit in self._visits:
            visit.abandon()
        self._visits.clear()
        os.close(self._pace)

    def _answer(self, visit: Visit, asked: Asked) -> None:
        """See that a request gets its reply, now or once it is written."""
        latest = self._latest()
        if asked.path == "/":
            visit.reply(HTTPStatus.OK, PLAIN, _FRONT.encode(), head_only=asked.head_only)
        elif asked.path != _PATH:
            visit.tell(_NOT_HERE, head_only=asked.head_only)
        elif latest is None:
            visit.tell(_NOTHING_YET, head_only=asked.head_only)
        else:
            wanted = OPENMETRICS if accepts(asked.accept, "application/openmetrics-text") else TEXT
            self._text(latest, wanted).wanted_by(visit, head_only=asked.head_only)

    def _text(self, snapshot: Snapshot, wanted: Format) -> "_Text":
        """The text of a snapshot, which may be there already or be under way."""
        for each in self._written:
            if each.snapshot is snapshot and each.format is wanted:
                return each
        made = _Text(snapshot, wanted)
        self._written.append(made)
        if not self._pacing:
            self._pacing = True
            self._selector.register(self._pace, EVENT_READ, self._write)
        return made

    def _write(self, _mask: int) -> None:
        """One turn at the oldest text that somebody still waits for."""
        self._written = [each for each in self._written if each.done or each.is_wanted]
        text = next((each for each in self._written if not each.done), None)
        if text is None:
            self._rest()
            return
        try:
            text.go_on()
        except Exception:  # a defect in the metrics must not stop the gateway
            logger.exception("the metrics could not be written")
            self._written.remove(text)
            text.fail()

    def _rest(self) -> None:
        if self._pacing:
            self._pacing = False
            self._selector.unregister(self._pace)

    def _accept(self, _mask: int) -> None:
        if self._listener.fileno() < 0:
            return  # closed since this event was reported
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            self._pause()  # out of descriptors: asking again at once would spin; tick() resumes
            return
        visit = Visit(sock, self._selector, self._clock, self._answer, self._visits.remove)
        crowded = not self._make_room()
        self._visits.append(visit)
        if crowded:
            visit.tell(_FULL)
        else:
            visit.start()

    def _make_room(self) -> bool:
        """Whether there is room for one more that will be served.

        Who has connected and not asked yet makes room: silence cannot keep a scrape out. So does who has
        its reply and has not hung up, where there are many of them.
        """
        parted = [visit for visit in self._visits if visit.parted]
        if len(self._visits) >= MAX_VISITS and parted:
            parted[0].close()
        if sum(not visit.parted for visit in self._visits) < MAX_CLIENTS:
            return True
        silent = next((visit for visit in self._visits if visit.silent), None)
        if silent is not None:
            silent.close()
        return silent is not None

    def _resume(self) -> None:
        if not self._accepting:
            self._accepting = True
            self._selector.register(self._listener, EVENT_READ, self._accept)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self._selector.unregister(self._listener)


class _Text:
    """The text of one snapshot in one format, and who waits for it."""

    def __init__(self, snapshot: Snapshot, wanted: Format) -> None:
        self.snapshot = snapshot
        self.format = wanted
        self.done = False
        self._pieces = pieces(snapshot, wanted)
        self._body = bytearray()
        self._readers: list[tuple[Visit, bool]] = []

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits."""
        return any(visit.is_open for visit, _ in self._readers)

    def wanted_by(self, visit: Visit, *, head_only: bool) -> None:
        """Reply to this client, as soon as that can be."""
        self._readers.append((visit, head_only))
        if self.done:
            self._hand_out()

    def go_on(self) -> None:
        """Write for about a millisecond."""
        until = time.perf_counter() + PIECE
        while time.perf_counter() < until:
            piece = next(self._pieces, None)
            if piece is None:
                self.done = True
                self._hand_out()
                return
            self._body += piece

    def fail(self) -> None:
        """It cannot be written."""
        for visit, head_only in self._readers:
            visit.tell(_BROKEN, head_only=head_only)

    def _hand_out(self) -> None:
        readers, self._readers = self._readers, []
        for visit, head_only in readers:
            visit.reply(HTTPStatus.OK, self.format.content_type, self._body, head_only=head_only)


def _listen(address: Address, port: int) -> socket.socket:
    """A listening socket, non-blocking. Raises KernelError."""
    try:
        ((family, kind, proto, _, place),) = socket.getaddrinfo(
            str(address), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
        listener = socket.socket(family, kind | socket.SOCK_NONBLOCK, proto)
    except OSError as error:
        raise _not_to_be_had(address, port, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" is IPv4 too
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _not_to_be_had(address, port, error) from None
    return listener


def _not_to_be_had(address: Address, port: int, error: OSError) -> KernelError:
    hints = {
        errno.EADDRINUSE: "another program has this port",
        errno.EADDRNOTAVAIL: "it is no address of this machine",
    }
    hint = hints.get(error.errno or 0, "")
    return KernelError(
        f"metrics: nobody can listen at {endpoint(address, port)}: {error.strerror}{hint and f'; {hint}'}"
    )
