"""Who may ask what: the levels, and processes of other users and groups on a real socket."""

import grp
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfqlb.runtime import access, orders
from nfqlb.runtime.access import Groups, check, level, level_of, stranger, user, who
from nfqlb.runtime.client import Client
from nfqlb.runtime.control import MAX_CLIENTS, RESERVED, Server
from nfqlb.runtime.protocol import ControlError, Level, Peer, Request

if TYPE_CHECKING:
    from tests.runtime.conftest import Loop

ROOT = pytest.mark.skipif(os.getuid() != 0, reason="root has to become somebody else")
#: Groups and a user that nobody is in, for operators and readers; they need not exist to be joined.
OPERATORS, READERS, OTHERS, USER = 23_001, 23_002, 23_003, 23_999


def asked(cmd: str, allowed: Level) -> Request:
    return Request(1, cmd, {}, Peer(123, USER, OTHERS), lambda _request, _outcome: None, level=allowed)


@pytest.mark.parametrize(
    ("uid", "groups", "own", "numbers", "found"),
    [
        (0, (), 0, (None, None), Level.ADMIN),
        (7, (), 7, (None, None), Level.ADMIN),
        (0, (), 7, (None, None), Level.ADMIN),
        (8, (5,), 0, (5, 6), Level.OPERATE),
        (8, (5, 6), 0, (5, 6), Level.OPERATE),
        (8, (6, 9), 0, (5, 6), Level.READ),
        (8, (9,), 0, (5, 6), Level.NONE),
        (8, (0,), 0, (5, 6), Level.NONE),
        (8, (5,), 0, (None, 6), Level.NONE),
        (8, (6,), 0, (None, 6), Level.READ),
        (8, (), 0, (None, None), Level.NONE),
    ],
)
def test_levels(
    uid: int, groups: tuple[int, ...], own: int, numbers: tuple[int | None, int | None], found: Level
) -> None:
    assert level(uid, groups, own=own, numbers=numbers) is found


@pytest.mark.parametrize(
    ("cmd", "needed"),
    [
        ("summary", Level.READ),
        ("snapshot", Level.READ),
        ("watch", Level.READ),
        ("set-real", Level.OPERATE),
        ("set-virtual", Level.OPERATE),
        ("clear-sticky", Level.OPERATE),
        ("batch", Level.OPERATE),
        ("adopt", Level.OPERATE),
        ("reload", Level.ADMIN),
        ("capture", Level.ADMIN),
    ],
)
def test_what_a_command_needs(cmd: str, needed: Level) -> None:
    for allowed in (Level.READ, Level.OPERATE, Level.ADMIN):
        request = asked(cmd, allowed)
        if allowed >= needed:
            check(request)
        else:
            with pytest.raises(ControlError, match=f"{cmd} needs the level {needed.shown}") as caught:
                check(request)
            assert caught.value.code == "forbidden"


def test_every_order_needs_more_than_to_read() -> None:
    assert set(orders.ORDERS) <= access.NEEDED.keys()


def test_a_refusal_says_what_is_needed_what_one_has_and_who_has_it() -> None:
    with pytest.raises(ControlError) as caught:
        check(asked("set-real", Level.READ))
    assert str(caught.value) == (
        "set-real needs the level operate; you have read; root and the group nfqlb may"
    )
    refused = stranger(Peer(1, USER, OTHERS), access.GROUPS)
    assert str(refused) == (
        f"user {USER} may not ask this gateway; root and the groups nfqlb and nfqlb-read may"
    )


def test_who_asks_is_named() -> None:
    assert who(Request(1, "a", {}, Peer(123, 0, 0), lambda *_: None)) == "user root (uid 0), process 123"
    assert who(asked("a", Level.READ)) == f"user {USER}, process 123"
    assert who(Request(1, "a", {}, None, lambda *_: None)) == "the supervisor"
    assert user(0) == "user root (uid 0)"


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    """Two groups of this test alone."""
    numbers = {"operators": OPERATORS, "readers": READERS}
    known = grp.getgrnam

    def named(name: str) -> Any:
        return grp.struct_group((name, "x", numbers[name], [])) if name in numbers else known(name)

    monkeypatch.setattr(grp, "getgrnam", named)
    return Groups("operators", "readers")


@pytest.fixture
def path(loop: "Loop", groups: Groups) -> Iterator[Path]:
    """A control socket whose directory everybody can pass, and which answers what may be asked."""
    directory = Path(f"/tmp/nfqlb-access-{os.getpid()}")

    def answer(request: Request) -> None:
        check(request)
        request.reply(request.level.shown)

    server = Server(directory / "control.sock", loop.selector, answer, groups=groups)
    yield directory / "control.sock"
    server.close()
    directory.rmdir()


def as_user(loop: "Loop", gid: int, more: tuple[int, ...], act: Callable[[], object]) -> Any:
    """What `act` returns, or the error's code, in a process of a user in a group and in some more."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        result: object = None
        try:
            os.setgroups(more)
            os.setgid(gid)
            os.setuid(USER)
            result = act()
        except ControlError as error:
            result = [error.code, str(error)]
        except OSError as error:
            result = repr(error)
        finally:
            theirs.sendall(json.dumps(result).encode())
            os._exit(0)
    theirs.close()
    ended: list[int] = []

    def over() -> bool:
        ended[:] = [os.waitpid(child, os.WNOHANG)[0]]
        return bool(ended[0])

    loop.run_until(over)
    with ours:
        return json.loads(ours.recv(65536))


@ROOT
@pytest.mark.parametrize(
    ("gid", "more", "cmd", "says"),
    [
        (OPERATORS, (), "summary", "operate"),
        (OPERATORS, (), "set-real", "operate"),
        (OTHERS, (OTHERS, OPERATORS), "set-real", "operate"),
        (READERS, (), "summary", "read"),
        (OTHERS, (READERS, OTHERS), "summary", "read"),
    ],
)
def test_members_of_the_groups(
    loop: "Loop", path: Path, gid: int, more: tuple[int, ...], cmd: str, says: str
) -> None:
    assert as_user(loop, gid, more, lambda: Client(path).call(cmd)) == says


@ROOT
@pytest.mark.parametrize(("gid", "cmd"), [(READERS, "set-real"), (READERS, "reload"), (OPERATORS, "reload")])
def test_members_get_no_further_than_their_level(loop: "Loop", path: Path, gid: int, cmd: str) -> None:
    code, message = as_user(loop, gid, (), lambda: Client(path).call(cmd))
    assert code == "forbidden"
    assert f"{cmd} needs the level {access.NEEDED[cmd].shown}; you have" in message


@ROOT
def test_others_do_not_even_get_in(loop: "Loop", path: Path) -> None:
    code, message = as_user(loop, OTHERS, (), lambda: Client(path).call("summary"))
    assert code == "permission-denied"
    assert "be root or a member of the group nfqlb, or nfqlb-read to look" in message


@ROOT
def test_others_are_turned_away_where_the_file_lets_them_in(loop: "Loop", path: Path) -> None:
    path.chmod(0o666)
    code, message = as_user(loop, OTHERS, (), lambda: Client(path).call("summary"))
    assert code == "forbidden"
    assert message.startswith(f"user {USER} may not ask this gateway")


@ROOT
def test_members_leave_room_for_root(loop: "Loop", path: Path) -> None:
    def many() -> list[str]:
        clients = [Client(path) for _ in range(MAX_CLIENTS)]
        answers = []
        for client in clients:
            try:
                answers.append(str(client.call("summary")))
            except ControlError as error:
                answers.append(error.code)
        return answers

    answers = as_user(loop, READERS, (), many)
    assert answers == ["read"] * (MAX_CLIENTS - RESERVED) + ["too-many-clients"] * RESERVED


@ROOT
def test_a_member_of_very_many_groups_is_judged_by_the_first(loop: "Loop", path: Path) -> None:
    """More groups than can be had: the least is believed, and nothing breaks."""
    many = tuple(range(40_000, 40_400))
    assert as_user(loop, READERS, many, lambda: Client(path).call("summary")) == "read"


@ROOT
def test_the_file_is_for_the_operators_and_by_its_list_for_the_readers(path: Path) -> None:
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == OPERATORS
    assert READERS.to_bytes(4, "little") in os.getxattr(path, "system.posix_acl_access")


def test_the_other_end_of_a_pair_is_oneself() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert level_of(ours, Groups("no-such-group", "no-such-group-either").numbers()) is Level.ADMIN
