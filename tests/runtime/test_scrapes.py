"""The server of metrics: real sockets, and clients that behave in every way they can."""

import http.client
import os
import resource
import socket
from collections.abc import Iterator
from email.message import Message
from io import BytesIO
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime.exposition import OPENMETRICS, TEXT, Format, pieces
from nfqlb.runtime.scrapes import MAX_CLIENTS, MAX_VISITS, Scrapes
from nfqlb.runtime.visit import FAREWELL, REPLY_TIME, REQUEST_TIME
from tests.runtime.sample import snapshot

if TYPE_CHECKING:
    from tests.runtime.conftest import Loop

LOOPBACK = ip_address("127.0.0.1")
ASK = b"GET /metrics HTTP/1.1\r\nHost: gw\r\n\r\n"


class Reply(NamedTuple):
    """A reply, read as a client reads it."""

    status: int
    headers: Message
    body: bytes


class Place:
    """A server that a test turns by hand, and what it tells of."""

    def __init__(self, loop: "Loop") -> None:
        self.loop = loop
        self.latest: dict[str, Any] | None = snapshot()
        self.socks: list[socket.socket] = []
        self.server = Scrapes(LOOPBACK, 0, loop.selector, lambda: self.latest, clock=loop.clock)

    def connect(self, *, buffer: int | None = None) -> socket.socket:
        sock = socket.socket()
        self.socks.append(sock)
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", self.server.port))
        sock.setblocking(False)
        return sock

    def all_of(self, sock: socket.socket) -> bytes:
        """Everything that comes, until the server hangs up."""
        data = b""
        while True:
            self.loop.turn(wait=0.01)
            try:
                portion = sock.recv(1 << 20)
            except BlockingIOError:
                continue
            if not portion:
                return data
            data += portion

    def ask(self, data: bytes = ASK) -> Reply:
        with self.connect() as sock:
            sock.sendall(data)
            reply = read(self.all_of(sock))
        self.loop.settle()
        return reply

    def pass_time(self, seconds: float) -> None:
        self.loop.now += seconds
        self.server.tick()
        self.loop.settle()


def read(data: bytes) -> Reply:
    """A whole reply; its length must be as its head says."""
    first, _, rest = data.partition(b"\r\n")
    version, status, _phrase = first.decode().split(" ", 2)
    assert version == "HTTP/1.1"
    stream = BytesIO(rest)
    headers = http.client.parse_headers(stream)
    body = stream.read()
    assert headers["Connection"] == "close"
    if body:
        assert int(headers["Content-Length"]) == len(body)
    return Reply(int(status), headers, body)


def gone(sock: socket.socket) -> bool:
    """Whether the server has hung up."""
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.fixture
def place(loop: "Loop") -> Iterator[Place]:
    made = Place(loop)
    yield made
    made.server.close()
    for sock in made.socks:
        sock.close()
    assert not loop.selector.get_map()


# --- answers ---------------------------------------------------------------------------------------------


def test_a_scrape(place: Place) -> None:
    reply = place.ask()
    assert (reply.status, reply.headers["Content-Type"]) == (200, TEXT.content_type)
    assert reply.body == b"".join(pieces(snapshot(), TEXT))


def test_a_scrape_in_openmetrics(place: Place) -> None:
    accept = b"Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.3"
    reply = place.ask(b"GET /metrics HTTP/1.1\r\n" + accept + b"\r\n\r\n")
    assert (reply.status, reply.headers["Content-Type"]) == (200, OPENMETRICS.content_type)
    assert reply.body == b"".join(pieces(snapshot(), OPENMETRICS))
    assert reply.body.endswith(b"# EOF\n")


def test_only_the_head(place: Place) -> None:
    reply = place.ask(ASK.replace(b"GET", b"HEAD"))
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["Content-Length"]) == len(b"".join(pieces(snapshot(), TEXT)))


def test_the_front_page_says_where_the_metrics_are(place: Place) -> None:
    reply = place.ask(b"GET / HTTP/1.1\r\n\r\n")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert b"/metrics" in reply.body


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /favicon.ico HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + b"x" * 5000, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
    ],
)
def test_refusals_are_read_by_whoever_is_refused(place: Place, data: bytes, status: int) -> None:
    """Also where more was sent than was read: a reset would take the reply away."""
    reply = place.ask(data)
    assert reply.status == status
    assert reply.body.endswith(b"\n")
    assert place.ask().status == 200


def test_before_the_first_snapshot_there_is_nothing_to_tell(place: Place) -> None:
    place.latest = None
    reply = place.ask()
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")


def test_the_newest_snapshot_is_told(place: Place) -> None:
    place.ask()
    place.latest = {**snapshot(), "uptime_s": 7777.0}
    assert b"nfqlb_uptime_seconds 7777.0\n" in place.ask().body


def test_a_defect_in_the_metrics_is_told_and_no_more(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.latest = {**snapshot(), "reals": [{"name": "half a row"}]}
    assert place.ask().status == 500
    assert "could not be written" in caplog.text
    place.latest = snapshot()
    assert place.ask().status == 200


# --- many servers ----------------------------------------------------------------------------------------


def test_a_text_that_takes_long_is_written_in_turns(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every look at the clock a millisecond has passed: so each turn writes one piece at the most."""
    looks = count()
    monkeypatch.setattr("nfqlb.runtime.scrapes.time.perf_counter", lambda: next(looks) * 0.0006)
    place.latest = snapshot(reals=300)
    with place.connect() as sock:
        sock.sendall(ASK)
        turns = 0
        while not (data := tried(sock)):
            turns += place.loop.turn(wait=0.01)
        assert turns > 300
        assert read(data + place.all_of(sock)).body == b"".join(pieces(place.latest, TEXT))


def tried(sock: socket.socket) -> bytes:
    """What is there to be read, if anything."""
    try:
        return sock.recv(1 << 20)
    except BlockingIOError:
        return b""


def test_who_asks_at_the_same_time_gets_the_same_text(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written once, and once for each format."""
    begun: list[Any] = []

    def noted(document: dict[str, Any], wanted: Format) -> Iterator[bytes]:
        begun.append(wanted)
        return pieces(document, wanted)

    monkeypatch.setattr("nfqlb.runtime.scrapes.pieces", noted)
    place.latest = snapshot(reals=100)
    socks = [place.connect() for _ in range(4)]
    for sock in socks:
        sock.sendall(ASK)
    bodies = {read(place.all_of(sock)).body for sock in socks}
    assert bodies == {b"".join(pieces(place.latest, TEXT))}
    assert len(begun) == 1
    for sock in socks:
        sock.close()
    place.ask(ASK.replace(b"\r\n\r\n", b"\r\nAccept: application/openmetrics-text\r\n\r\n"))
    assert len(begun) == 2


def test_nobody_writes_for_who_has_gone(place: Place) -> None:
    place.latest = snapshot(reals=1000)
    with place.connect() as sock:
        sock.sendall(ASK)
        for _ in range(5):
            place.loop.turn(wait=0.01)
    place.pass_time(REPLY_TIME + 1)
    for _ in range(3):
        place.loop.turn()
    assert not place.loop.turn()  # it is not at work any more
    assert place.ask().status == 200


# --- clients that misbehave ------------------------------------------------------------------------------


def test_who_connects_and_says_nothing_is_let_go(place: Place) -> None:
    with place.connect() as sock:
        place.loop.settle()
        place.pass_time(REQUEST_TIME - 1)
        assert not gone(sock)
        place.pass_time(2)
        assert read(place.all_of(sock)).status == 408


def test_a_letter_at_a_time_is_no_way_to_stay(place: Place) -> None:
    """The time for a request runs from its beginning, whatever still comes."""
    with place.connect() as sock:
        for letter in ASK[:10].decode():
            sock.sendall(letter.encode())
            place.loop.settle()
            place.pass_time(0.6)
        assert read(place.all_of(sock)).status == 408


def test_who_does_not_read_is_let_go(place: Place) -> None:
    place.latest = snapshot(reals=1000)
    with place.connect(buffer=4096) as sock:
        sock.sendall(ASK)
        place.loop.settle()  # as much as there is room for has been sent
        place.pass_time(REPLY_TIME - 1)
        assert place.ask().status == 200  # others do not wait
        place.pass_time(2)
        sock.settimeout(10)
        head = b"".join(iter(lambda: sock.recv(1 << 16), b""))
        assert len(head) < 1 << 20


def test_who_stays_after_the_reply_is_let_go(place: Place) -> None:
    with place.connect() as sock:
        sock.sendall(ASK)
        assert read(place.all_of(sock)).status == 200
        sock.sendall(b"x" * 100)
        place.loop.settle()
        place.pass_time(FAREWELL + 0.1)
        assert len(place.loop.selector.get_map()) == 1  # the listener


def test_silence_keeps_nobody_out(place: Place) -> None:
    """With all places taken by clients that have not asked, the one that asks is served."""
    socks = [place.connect() for _ in range(MAX_CLIENTS)]
    place.loop.settle()
    assert place.ask().status == 200
    assert sum(gone(sock) for sock in socks) == 1  # the oldest made room
    for sock in socks:
        sock.close()
    place.loop.settle()
    assert place.ask().status == 200


def test_too_many_who_wait_for_their_reply(place: Place) -> None:
    """Who comes then is told so, and there are never more of them than there may be."""
    place.latest = snapshot(reals=1000)
    busy = [place.connect(buffer=4096) for _ in range(MAX_CLIENTS)]
    for sock in busy:
        sock.sendall(ASK)
    place.loop.settle()
    late = []
    for _ in range(MAX_VISITS):
        late.append(place.connect())
        late[-1].sendall(ASK)
        place.loop.settle()
    said = [tried(sock) for sock in late]
    assert {read(data).status for data in said} == {503}
    assert len(place.loop.selector.get_map()) == MAX_VISITS + 1
    place.pass_time(REPLY_TIME + 1)
    assert place.ask().status == 200


def test_a_client_that_resets_harms_nobody(place: Place) -> None:
    for data in (b"", b"GET", ASK):
        sock = place.connect()
        sock.sendall(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        place.loop.turn(wait=0.01)
        sock.close()
        place.loop.settle()
    assert place.ask().status == 200


# --- the socket ------------------------------------------------------------------------------------------


def test_a_place_that_is_taken_is_refused(place: Place, loop: "Loop") -> None:
    with pytest.raises(KernelError, match=r"127\.0\.0\.1:\d+: Address already in use; another program"):
        Scrapes(LOOPBACK, place.server.port, loop.selector, lambda: None)


def test_an_address_that_is_not_ours_is_refused(loop: "Loop") -> None:
    with pytest.raises(KernelError, match=r"192\.0\.2\.1:9617: .*; it is no address of this machine"):
        Scrapes(ip_address("192.0.2.1"), 9617, loop.selector, lambda: None)


@pytest.mark.parametrize(("address", "asked_at"), [("::1", "::1"), ("::", "::1"), ("::", "127.0.0.1")])
def test_ipv6(loop: "Loop", address: str, asked_at: str) -> None:
    server = Scrapes(ip_address(address), 0, loop.selector, snapshot)
    with socket.create_connection((asked_at, server.port), timeout=10) as sock:
        sock.sendall(ASK)
        loop.settle()
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    server.close()


def test_a_forked_child_lets_go(place: Place) -> None:
    """Its descriptors are closed, so that nothing of it holds the port; the parent goes on as before."""
    with place.connect() as sock:
        sock.sendall(ASK[:10])
        place.loop.settle()
        child = os.fork()
        if child == 0:
            before = open_descriptors()
            try:
                place.server.abandon()
            finally:
                os._exit(before - open_descriptors())
        # the listener, the client, and what paces the writing
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        sock.sendall(ASK[10:])
        assert read(place.all_of(sock)).status == 200


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_out_of_descriptors(place: Place) -> None:
    """It waits for better times instead of spinning."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with place.connect() as sock:
        sock.sendall(ASK)
        resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno() + 1, limits[1]))
        try:
            place.loop.settle(rounds=100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert tried(sock) == b""
        place.pass_time(1)
        assert read(place.all_of(sock)).status == 200
