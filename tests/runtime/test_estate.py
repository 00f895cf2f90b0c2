"""What a gateway leaves to the next one: the deed, both ends of the conversation, what goes wrong."""

import json
import os
import select
import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nfqlb.core.spec import Config
from nfqlb.netfilter import state
from nfqlb.netfilter.alone import worker
from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime import estate, orphan, takeover
from nfqlb.runtime.estate import Heir, Holder
from nfqlb.runtime.orphan import ALONE, Orphan
from nfqlb.runtime.protocol import Peer
from nfqlb.runtime.takeover import Bequest
from tests.runtime.test_bindings import CONFIG


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "net.sock"
    monkeypatch.setattr(estate, "place", lambda: path)
    return path


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Something that is bound: who has the one end can be heard at the other."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


class Old:
    """A supervisor that can be taken over from, driven by hand."""

    def __init__(self, bound: dict[str, int]) -> None:
        self.config: Config | None = CONFIG
        self.resting = False
        self.ended = 0
        self.selector = selectors.DefaultSelector()
        self.bequest = Bequest(self.selector, lambda: self.config)
        self.bequest.offer(lambda: bound, self._rest, self._end)

    @contextmanager
    def _rest(self) -> Iterator[None]:
        self.resting = True
        yield
        self.resting = False

    def _end(self) -> None:
        self.ended += 1

    def turn(self) -> None:
        """Serve what has come in."""
        for key, mask in self.selector.select(0.5):
            key.data(mask)


@pytest.fixture
def old(place: Path, pipe: tuple[int, int]) -> Iterator[Old]:
    made = Old({"queue 0": pipe[1]})
    yield made
    made.bequest.close(remove=True)
    if made.bequest._heir is not None:
        made.bequest._heir.close()  # which else the end of the process does
    made.selector.close()


def connected(path: Path) -> socket.socket:
    heir = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heir.connect(str(path))
    return heir


def test_the_deed(old: Old, place: Path, pipe: tuple[int, int]) -> None:
    """F40: configuration and descriptors arrive as they were; nothing else is left open."""
    assert place.stat().st_mode & 0o777 == 0o600
    connection = connected(place)
    old.turn()
    with Heir(connection) as heir:
        assert heir.config == CONFIG
        assert (heir.pid, heir.orphan) == (os.getpid(), False)
        assert list(heir.bound) == ["queue 0"]
        assert not os.get_inheritable(heir.bound["queue 0"])
        os.write(heir.bound["queue 0"], b"heard")
        assert os.read(pipe[0], 10) == b"heard"
        assert old.resting
        open_before = descriptors()
        heir.close()
        assert len(open_before - descriptors()) == 2, "the connection, and what nobody has taken out"


def test_it_goes_on_where_the_heir_hangs_up(old: Old, place: Path) -> None:
    """F40: and the next one may come; one at a time."""
    for _ in range(2):
        connection = connected(place)
        old.turn()
        heir = Heir(connection)
        assert old.resting
        second = connected(place)
        old.turn()
        with pytest.raises(KernelError, match="it hung up"):
            Heir(second)
        heir.close()
        old.turn()
        assert not old.resting
    assert not old.ended


def test_it_ends_where_the_heir_says_so(old: Old, place: Path) -> None:
    """F40: and the heir sees that only when the connection is closed, which the end of a process does."""
    connection = connected(place)
    old.turn()
    heir = Heir(connection)
    heir._connection.send(b"end\n")
    old.turn()
    assert old.ended == 1
    assert old.resting, "the rules are the other one's by now"
    connection.setblocking(False)
    with pytest.raises(BlockingIOError):
        connection.recv(1)
    heir.close()


def test_what_has_changed_meanwhile_is_not_given_away(old: Old, place: Path) -> None:
    """F40: a reload in between: the deed is not true any more."""
    connection = connected(place)
    old.turn()
    heir = Heir(connection)
    old.config = replace(CONFIG)
    connection.send(b"end\n")
    old.turn()
    assert not old.ended
    assert not old.resting
    assert connection.recv(1) == b"", "it hangs up"
    heir.close()


def test_nothing_is_given_away_in_the_middle_of_a_reload(old: Old, place: Path) -> None:
    """F40: the heir is told by the end of the connection."""
    old.config = None
    connection = connected(place)
    old.turn()
    with pytest.raises(KernelError, match="it hung up"):
        Heir(connection)


def test_strangers_get_nothing(old: Old, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F31: another user's, at either end."""
    monkeypatch.setattr(estate, "peer", lambda _sock: Peer(1, 12345, 12345))
    connection = connected(place)
    old.turn()
    assert connection.recv(100) == b""
    connection.close()
    with pytest.raises(KernelError, match="belongs to user 12345"):
        estate.find(place)


@pytest.mark.parametrize(
    "said",
    [b"", b"{", b"[]", b"null", b"{}", b'{"version": "1"}', json.dumps({"bound": []}).encode()],
)
def test_a_deed_that_is_none(tmp_path: Path, said: bytes) -> None:
    """F31: an error, and no descriptor is left."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = descriptors()
    with (tmp_path / "any").open("w") as file:
        if said:
            socket.send_fds(theirs, [said], [file.fileno()])
        theirs.close()
        with pytest.raises(KernelError, match="does not answer as it should"):
            Heir(ours)
    assert descriptors() < before


def test_nobody_answers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F12: one that is stopped: it is said, and nothing is done."""
    monkeypatch.setattr(estate, "ANSWER", 0.05)
    holder = Holder(place)
    with pytest.raises(KernelError, match="does not answer in time"):
        estate.find(place)
    holder.close(remove=True)
    assert not place.exists()


def test_one_that_does_not_let_go(old: Old, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F12: an error that names the process."""
    monkeypatch.setattr(estate, "LEAVE", 0.05)
    connection = connected(place)
    old.turn()
    wrong = f"process {os.getpid()}, does not let go"
    with Heir(connection) as heir, pytest.raises(KernelError, match=wrong):
        heir.end()


def test_nobody_is_there(place: Path) -> None:
    """F19: no place, or one that a dead process has left."""
    assert estate.find(place) is None
    holder = Holder(place)
    holder.close()
    assert place.exists()
    assert estate.find(place) is None
    Holder(place).close(remove=True)


def test_another_version_s_configuration(old: Old, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F40: what another version means by it is not guessed; ours is run alone."""
    connection = connected(place)
    old.turn()
    monkeypatch.setattr(estate, "shape", lambda: "another")
    with Heir(connection) as heir:
        assert heir.config is None
        assert takeover.continued(heir, CONFIG) is CONFIG


def found(config: Config | None, *, is_orphan: bool) -> Callable[[Path], Heir]:
    """A gateway that is found there, and gone when it is told to end."""

    def find(_path: Path) -> Heir:
        heir = Heir.__new__(Heir)
        heir._connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.close()
        heir.bound, heir.config, heir.orphan, heir.pid, heir.version = {}, config, is_orphan, 1, "0"
        return heir

    return find


def accepted(config: Config, *, take_over: bool) -> Heir | None:
    heir = takeover.find(take_over=take_over)
    return None if heir is None else takeover.accepted(heir, config)


def test_who_is_taken_over_from(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F19, F40: one with a supervisor only on purpose; a worker that is alone by any start."""
    for is_orphan, owner, take_over, expected in (
        (False, 7, False, False), (False, 7, True, True), (True, None, False, True), (True, None, True, True),
    ):  # fmt: skip
        monkeypatch.setattr(state, "owner", lambda owner=owner: owner)
        monkeypatch.setattr(estate, "find", found(CONFIG, is_orphan=is_orphan))
        heir = accepted(CONFIG, take_over=take_over)
        assert (heir is not None) is expected
        if heir is not None:
            heir.close()


def test_what_cannot_be_taken_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F40: with other queues: refused where somebody serves; a worker that is alone makes way."""
    monkeypatch.setattr(state, "owner", lambda: None)
    other = replace(CONFIG, gateway=replace(CONFIG.gateway, queue=9))
    monkeypatch.setattr(estate, "find", found(CONFIG, is_orphan=False))
    with pytest.raises(KernelError, match=r"cannot be taken over from:\n\[gateway\] queue: needs a restart"):
        accepted(other, take_over=True)
    monkeypatch.setattr(estate, "find", found(CONFIG, is_orphan=True))
    assert accepted(other, take_over=False) is None


def test_what_is_gone_from_the_configuration_drains(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F40: it is begun with what of the other one's may still have connections."""
    monkeypatch.setattr(state, "owner", lambda: None)
    monkeypatch.setattr(estate, "find", found(CONFIG, is_orphan=True))
    virtual = replace(CONFIG.virtuals[0], servers=CONFIG.virtuals[0].servers[:1])
    ours = replace(CONFIG, reals=CONFIG.reals[:1], virtuals=(virtual,))
    heir = accepted(ours, take_over=False)
    assert heir is not None
    config = takeover.continued(heir, ours)
    assert config.leaving.reals == {"web2", "web3"}
    assert config.leaving.virtuals == {"shop"}
    heir.close()


# --- a worker that is alone


@pytest.fixture
def alone(place: Path, pipe: tuple[int, int]) -> Iterator[tuple[Orphan, Callable[[], None]]]:
    holder, poll = Holder(place), select.poll()
    made = Orphan(holder, poll, 100.0, config=lambda: CONFIG, bound=lambda: {"queue 0": pipe[1]})

    def turn() -> None:
        for descriptor, _ in poll.poll(500):
            made.ready(descriptor)

    yield made, turn
    holder.close(remove=True)
    if made._heir is not None:
        made._heir.close()


Alone = tuple[Orphan, Callable[[], None]]


def test_alone_for_a_while(alone: Alone, caplog: pytest.LogCaptureFixture) -> None:
    """F11: it is not for ever, and it is said."""
    made, _ = alone
    made.tick(100.0 + ALONE - 0.1)
    assert not made.over
    made.tick(100.0 + ALONE)
    assert made.over
    assert "no supervisor has come" in caplog.text


def test_alone_and_seen_from_outside(alone: Alone, place: Path) -> None:
    """F11: as long as it is there; one that has a supervisor is not alone."""
    left = worker(place)
    assert left is not None
    assert 0 < left <= ALONE
    Holder(place).close()
    assert worker(place) is None, "the place of another one"
    place.unlink()
    assert worker(place) is None


def test_one_with_a_supervisor_is_not_alone(old: Old, place: Path) -> None:
    assert worker(place) is None


def test_alone_until_the_next_one(alone: Alone, place: Path) -> None:
    """F11: whoever hangs up is as if he had not come; who says the word is the next one."""
    made, turn = alone
    for word in (False, True):
        connection = connected(place)
        turn()
        heir = Heir(connection)
        assert heir.orphan
        assert heir.config == CONFIG
        second = connected(place)
        turn()
        assert second.recv(100) == b"", "one at a time"
        second.close()
        if word:
            connection.send(b"end\n")
        else:
            heir.close()
        turn()
        assert made.over is word
    heir.close()


def test_alone_and_asked_nonsense(alone: Alone, place: Path) -> None:
    """F31: any other word hangs up."""
    made, turn = alone
    connection = connected(place)
    turn()
    heir = Heir(connection)
    connection.send(b"endless")
    turn()
    assert not made.over
    assert connection.recv(1) == b""
    heir.close()


def test_the_time_alone_is_what_the_readme_says() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"for {orphan.ALONE:.0f} seconds" in readme
