"""Who watches: streams of snapshots on real sockets, and clients that do not read them."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfqlb.runtime.control import UNREAD, Request, Server
from nfqlb.runtime.protocol import ControlError, Encoded, JSONObject, Outcome
from nfqlb.runtime.watching import Watching

if TYPE_CHECKING:
    from tests.runtime.conftest import Loop

SNAPSHOT: JSONObject = {"at": 1.0, "state": "running"}


class Gallery:
    """A control socket where everybody who asks anything watches."""

    def __init__(self, loop: "Loop", path: Path) -> None:
        self.loop = loop
        self.path = path
        self.watching = Watching(loop.clock)
        self.requests: list[Request] = []
        self.server = Server(path, loop.selector, self._answer, clock=loop.clock)

    def _answer(self, request: Request) -> None:
        self.requests.append(request)
        self.watching.add(request, SNAPSHOT)

    def watch(self, **args: Any) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.path))
        sock.setblocking(False)
        sock.sendall(json.dumps({"id": 7, "cmd": "watch", "args": args}).encode() + b"\n")
        self.loop.settle()
        return sock

    def pulse(self, seconds: float = 1.0, **more: Any) -> None:
        self.loop.now += seconds
        self.watching.look({**SNAPSHOT, "at": self.loop.now, **more})
        self.server.tick()
        self.loop.settle()

    def read(self, sock: socket.socket) -> list[Any]:
        """Every reply there is."""
        data = b""
        while True:
            self.loop.settle()
            try:
                portion = sock.recv(1 << 20)
            except BlockingIOError:
                return [json.loads(line) for line in data.splitlines()]
            assert portion, "it was let go"
            data += portion


@pytest.fixture
def gallery(loop: "Loop", tmp_path: Path) -> Iterator[Gallery]:
    made = Gallery(loop, tmp_path / "control.sock")
    yield made
    made.server.close()
    assert not loop.selector.get_map()


def times(replies: list[Any]) -> list[float]:
    return [reply["result"]["at"] for reply in replies]


def test_a_watcher_gets_the_last_snapshot_at_once_and_then_every_one(gallery: Gallery) -> None:
    with gallery.watch() as sock:
        assert gallery.read(sock) == [{"id": 7, "ok": True, "protocol": 1, "result": SNAPSHOT}]
        for _ in range(3):
            gallery.pulse()
        replies = gallery.read(sock)
        assert times(replies) == [1001.0, 1002.0, 1003.0]
        assert {reply["id"] for reply in replies} == {7}


def test_a_watcher_chooses_how_often(gallery: Gallery) -> None:
    with gallery.watch(every=3) as sock:
        for _ in range(9):
            gallery.pulse()
        assert times(gallery.read(sock)) == [1.0, 1003.0, 1006.0, 1009.0]


@pytest.mark.parametrize("every", [0, 0.5, 61, True, "1", None, [], float("1e400")])
def test_how_often_is_bounded(loop: "Loop", every: Any) -> None:
    request = Request(1, "watch", {"every": every}, None, lambda _request, _outcome: None)
    with pytest.raises(ControlError, match="number of seconds from 1 to 60"):
        Watching(loop.clock).add(request, SNAPSHOT)


def test_who_hangs_up_is_forgotten(gallery: Gallery) -> None:
    gallery.watch().close()
    gallery.pulse()
    gallery.pulse()
    assert gallery.requests[0].answered
    gallery.pulse()
    assert len(gallery.watching) == 0


def test_who_hangs_up_between_two_snapshots_is_noticed_within_a_second(gallery: Gallery) -> None:
    sock = gallery.watch(every=60)
    gallery.read(sock)
    sock.close()
    gallery.loop.now += 1
    gallery.server.tick()
    assert gallery.requests[0].answered


def test_who_ends_only_what_he_says_still_gets_the_stream(gallery: Gallery) -> None:
    """As `socat` does, where its standard input ends."""
    with gallery.watch() as sock:
        sock.shutdown(socket.SHUT_WR)
        gallery.pulse()
        assert times(gallery.read(sock)) == [1.0, 1001.0]


def test_who_does_not_read_gets_fewer_and_is_let_go(gallery: Gallery) -> None:
    big = "x" * 300_000
    with gallery.watch() as slow, gallery.watch() as quick:
        waiting = 0
        for second in range(int(UNREAD) - 2):
            gallery.pulse(big=big)
            assert times(gallery.read(quick))[-1] == 1001.0 + second
            waiting = max(waiting, max(client.unsent for client in gallery.server._clients))
        assert waiting < 2 * len(big), "no more than one snapshot waits"
        replies = gallery.read(slow)
        assert 2 <= len(replies) <= 4
        gallery.pulse()
        assert len(gallery.read(slow)) == 1, "who reads again gets the next one"
        for _ in range(int(UNREAD) + 3):
            gallery.pulse(big=big)
            gallery.read(quick)
        assert gallery.requests[0].answered
        assert not gallery.requests[1].answered
        gallery.pulse()
        assert len(gallery.watching) == 1


def test_a_watcher_is_not_idle(gallery: Gallery) -> None:
    with gallery.watch(every=60) as sock:
        for _ in range(12):
            gallery.pulse(60)
        assert len(gallery.read(sock)) == 13


def test_a_snapshot_is_written_once_for_all(loop: "Loop") -> None:
    sent: list[Outcome] = []

    def send(_request: Request, outcome: Outcome) -> bool:
        sent.append(outcome)
        return True

    watching = Watching(loop.clock)
    for ident in range(3):
        watching.add(Request(ident, "watch", {}, None, lambda *_: None, send=send), None)
    watching.look(SNAPSHOT)
    assert sent == [Encoded(b'{"at":1.0,"state":"running"}')] * 3
    assert sent[0] is sent[1] is sent[2]
