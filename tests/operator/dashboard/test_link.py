"""The dashboard's conversation with the gateway: never waits, loses nothing, comes back."""

import socket
from collections.abc import Iterator
from pathlib import Path
from selectors import DefaultSelector

import pytest

from nfqlb.operator.dashboard.link import RETRY, Feed, Link, Outcome
from nfqlb.runtime.client import TIMEOUT
from nfqlb.runtime.protocol import ControlError
from tests.operator.dashboard.gateway import Gateway


class Desk:
    """A link with a clock of its own, and what it was answered."""

    def __init__(self, path: Path) -> None:
        self.now = 100.0
        self.selector = DefaultSelector()
        self.link = Link(path, self.selector, lambda: self.now)
        self.feed = Feed(path, self.selector, self.outcomes_append, lambda: self.now, 1.0)
        self.outcomes: list[Outcome] = []

    def outcomes_append(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def ask(self, cmd: str) -> None:
        self.link.ask(cmd, {}, self.outcomes.append)

    def step(self) -> None:
        for key, mask in self.selector.select(0):
            key.data(mask)

    def last(self) -> ControlError:
        error = self.outcomes[-1]
        assert isinstance(error, ControlError)
        return error


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "s")
    yield made
    made.link.close()
    made.feed.close()
    made.selector.close()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path / "s")
    yield made
    made.close()


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[socket.socket]:
    """Somebody who listens at the path and says nothing by himself."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        yield listener


def settle(desk: Desk, gateway: Gateway) -> None:
    for _ in range(20):
        gateway.step()
        desk.step()


def test_questions_are_answered_in_their_order(desk: Desk, gateway: Gateway) -> None:
    for cmd in ("connections", "nonsense", "summary"):
        desk.ask(cmd)
    assert desk.link.busy == 3
    settle(desk, gateway)
    assert desk.link.busy == 0
    first, second, third = desk.outcomes
    assert isinstance(first, list)
    assert isinstance(second, ControlError)
    assert second.code == "unknown-command"
    assert third == {}


def test_no_gateway_is_said_at_once_and_tried_again_later(desk: Desk, tmp_path: Path) -> None:
    desk.ask("summary")
    assert desk.last().code == "not-running"
    gateway = Gateway(tmp_path / "s")
    desk.ask("summary")  # too soon
    assert desk.last().code == "not-running"
    desk.now += RETRY
    desk.ask("summary")
    settle(desk, gateway)
    assert desk.outcomes[-1] == {}
    gateway.close()


def test_who_waits_is_told_when_the_gateway_goes(desk: Desk, gateway: Gateway) -> None:
    desk.ask("summary")
    settle(desk, gateway)
    gateway.stop()
    desk.ask("summary")
    desk.ask("connections")
    settle(desk, gateway)
    assert len(desk.outcomes) == 3
    assert all(isinstance(outcome, ControlError) for outcome in desk.outcomes[1:])
    assert desk.link.busy == 0


def test_hung_up_on_while_it_asked_nothing(desk: Desk, gateway: Gateway) -> None:
    """As a gateway does with whoever is idle too long: the next question connects again."""
    desk.ask("summary")
    settle(desk, gateway)
    gateway.stop()
    gateway.again()
    settle(desk, gateway)
    desk.now += RETRY
    desk.ask("summary")
    settle(desk, gateway)
    assert desk.outcomes == [{}, {}]


def test_silence_is_given_up(desk: Desk, mute: socket.socket) -> None:
    desk.ask("summary")
    desk.now += TIMEOUT + 0.1
    desk.link.tick()
    assert desk.last().code == "timeout"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense\n", "bad-request"),
        (b'{"id": 1, "ok": true, "result": 1}\n', "version-mismatch"),
        (b'{"id": 9, "ok": true, "result": 1, "protocol": 1}\n', "bad-reply"),
        (b'{"id": 1, "ok": true, "protocol": 1}\n', "bad-reply"),
        (b'{"id": null, "ok": false, "protocol": 1, "error": {"code": "too-many", "message": "32"}}\n',
         "too-many"),
        (b"x" * (17 << 20), "bad-reply"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood_ends_the_conversation(
    desk: Desk, mute: socket.socket, line: bytes, code: str
) -> None:
    desk.ask("summary")
    peer, _ = mute.accept()
    with peer:
        peer.setblocking(False)
        view = memoryview(line)
        for _ in range(100_000):
            if desk.outcomes:
                break
            if view:
                view = view[peer.send(view[:65536]) :] if _writable(peer) else view
            desk.step()
    assert desk.last().code == code
    assert desk.link.busy == 0


def _writable(sock: socket.socket) -> bool:
    with DefaultSelector() as selector:
        selector.register(sock, 2)
        return bool(selector.select(0))


def test_snapshots_come_by_themselves(desk: Desk, gateway: Gateway) -> None:
    desk.feed.tick()
    settle(desk, gateway)
    assert len(desk.outcomes) == 1
    assert gateway.asked.count("watch") == 1
    desk.now += 3.0
    desk.feed.tick()
    assert gateway.asked.count("watch") == 1
    desk.feed.every(5.0)
    desk.feed.tick()
    settle(desk, gateway)
    assert gateway.asked.count("watch") == 2
    assert len(desk.outcomes) == 2


def test_snapshots_that_stop_coming_are_given_up_and_asked_for_anew(desk: Desk, gateway: Gateway) -> None:
    desk.feed.tick()
    settle(desk, gateway)
    desk.now += TIMEOUT + 1.1
    desk.feed.tick()
    assert desk.last().code == "timeout"
    desk.now += RETRY
    desk.feed.tick()
    settle(desk, gateway)
    assert isinstance(desk.outcomes[-1], dict)
