"""The control socket: real unix sockets, and clients that behave in every way they can."""

import contextlib
import grp
import json
import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfqlb.runtime.access import Groups
from nfqlb.runtime.control import IDLE, MAX_CLIENTS, Client, ControlError, Request, Server
from nfqlb.runtime.protocol import JSON, MAX_LINE, MAX_REPLY, JSONObject

if TYPE_CHECKING:
    from tests.runtime.conftest import Loop


class Gateway:
    """A server whose commands a test can hold back: `echo` answers at once, `wait` when told to."""

    def __init__(self, loop: "Loop", path: Path) -> None:
        self.path = path
        self.loop = loop
        self.held: list[Request] = []
        self.asked: list[Request] = []
        self.server = Server(path, loop.selector, self.answer, clock=loop.clock)

    def answer(self, request: Request) -> None:
        self.asked.append(request)
        if request.cmd == "echo":
            request.reply(request.args)
        elif request.cmd == "big":
            size = request.args["size"]
            assert isinstance(size, int)
            request.reply("x" * size)
        elif request.cmd == "refuse":
            raise ControlError("refused", "no", "never")
        elif request.cmd == "nan":
            request.reply(float("nan"))
        elif request.cmd == "defect":
            raise ZeroDivisionError
        else:
            self.held.append(request)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.path))
        sock.setblocking(False)
        return sock

    def read(self, sock: socket.socket) -> bytes:
        """Everything that has arrived, with the loop turning."""
        data = b""
        while True:
            self.loop.settle()
            try:
                portion = sock.recv(1 << 20)
            except (BlockingIOError, ConnectionResetError):
                return data
            if not portion:
                return data
            data += portion

    def replies(self, sock: socket.socket) -> list[dict[str, JSON]]:
        return [json.loads(line) for line in self.read(sock).splitlines()]

    def ask(self, sock: socket.socket, cmd: str, ident: int = 1, **args: JSON) -> dict[str, JSON]:
        sock.sendall(json.dumps({"id": ident, "cmd": cmd, "args": args}).encode() + b"\n")
        (reply,) = self.replies(sock)
        return reply


@pytest.fixture
def gateway(loop: "Loop", tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(loop, tmp_path / "control.sock")
    yield made
    made.server.close()
    assert not made.path.exists()
    assert not loop.selector.get_map()


@pytest.fixture
def client(gateway: Gateway) -> Iterator[socket.socket]:
    with gateway.connect() as sock:
        yield sock


def code(reply: dict[str, JSON]) -> JSON:
    assert reply["ok"] is False
    error = reply["error"]
    assert isinstance(error, dict)
    assert isinstance(error["message"], str)
    assert error["message"]
    return error["code"]


def ended(sock: socket.socket) -> bool:
    """Whether the server has hung up."""
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


# --- questions and answers -------------------------------------------------------------------------------


def test_a_question_gets_its_answer_and_the_first_reply_names_the_protocol(
    gateway: Gateway, client: socket.socket
) -> None:
    assert gateway.ask(client, "echo", a=1) == {"id": 1, "ok": True, "protocol": 1, "result": {"a": 1}}
    assert gateway.ask(client, "echo", 2, a=2) == {"id": 2, "ok": True, "result": {"a": 2}}


def test_the_request_carries_the_clients_credentials(gateway: Gateway, client: socket.socket) -> None:
    gateway.ask(client, "echo")
    assert gateway.asked[0].peer == (os.getpid(), os.getuid(), os.getgid())


def test_an_answer_may_come_later(gateway: Gateway, client: socket.socket) -> None:
    client.sendall(b'{"id": 5, "cmd": "wait"}\n')
    assert gateway.replies(client) == []
    gateway.held[0].reply([1, 2])
    assert gateway.replies(client) == [{"id": 5, "ok": True, "protocol": 1, "result": [1, 2]}]


def test_clients_do_not_wait_for_each_other(gateway: Gateway, client: socket.socket) -> None:
    client.sendall(b'{"cmd": "wait"}\n')
    with gateway.connect() as other:
        assert gateway.ask(other, "echo")["ok"] is True


def test_one_request_of_a_client_is_under_way_at_a_time(gateway: Gateway, client: socket.socket) -> None:
    client.sendall(b'{"id": 1, "cmd": "wait"}\n{"id": 2, "cmd": "wait"}\n')
    gateway.loop.settle()
    assert [request.ident for request in gateway.held] == [1]
    gateway.held[0].reply("a")
    assert [reply["id"] for reply in gateway.replies(client)] == [1]
    assert [request.ident for request in gateway.held] == [1, 2]


def test_many_requests_in_one_go_are_all_answered_in_order(gateway: Gateway, client: socket.socket) -> None:
    asked = b"".join(b'{"id": %d, "cmd": "echo"}\n' % n for n in range(500))
    client.sendall(asked)
    assert [reply["id"] for reply in gateway.replies(client)] == list(range(500))


def test_a_request_cut_into_single_bytes_is_one_request(gateway: Gateway, client: socket.socket) -> None:
    for byte in b'{"id": 1, "cmd": "echo"}\n':
        client.sendall(bytes([byte]))
        gateway.loop.settle()
    assert [reply["id"] for reply in gateway.replies(client)] == [1]


def test_a_client_that_has_finished_sending_still_gets_its_answers(
    gateway: Gateway, client: socket.socket
) -> None:
    client.sendall(
        b'{"id": 1, "cmd": "wait"}\n{"id": 2, "cmd": "echo"}'
    )  # no newline at the end, as from printf
    client.shutdown(socket.SHUT_WR)
    gateway.loop.settle()
    gateway.held[0].reply("late")
    assert [reply["id"] for reply in gateway.replies(client)] == [1, 2]
    assert ended(client)


def test_empty_lines_are_nothing(gateway: Gateway, client: socket.socket) -> None:
    client.sendall(b"\n  \n\r\n")
    assert gateway.replies(client) == []
    assert gateway.ask(client, "echo")["ok"] is True


def test_a_refusal_is_an_error_reply(gateway: Gateway, client: socket.socket) -> None:
    reply = gateway.ask(client, "refuse")
    assert reply["error"] == {"code": "refused", "message": "no", "hint": "never"}


def test_a_defect_in_a_command_is_an_error_reply_and_is_logged(
    gateway: Gateway, client: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert code(gateway.ask(client, "defect")) == "internal-error"
    assert "'defect' failed" in caplog.text
    assert gateway.ask(client, "echo")["ok"] is True


def test_an_answer_that_is_no_json_is_an_error_reply(gateway: Gateway, client: socket.socket) -> None:
    assert code(gateway.ask(client, "nan")) == "internal-error"


def test_an_answer_that_is_too_long_is_an_error_reply(gateway: Gateway, client: socket.socket) -> None:
    assert code(gateway.ask(client, "big", size=MAX_REPLY)) == "too-large"


# --- bad clients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [b"hello", b"\xff\xfe\x00", b"[]", b"{}", b'{"cmd": 1}', b"[" * 100_000, b'{"id": [], "cmd": "echo"}'],
)
def test_garbage_gets_a_clear_error_and_the_conversation_goes_on(
    gateway: Gateway, client: socket.socket, line: bytes
) -> None:
    client.sendall(line + b"\n")
    (reply,) = gateway.replies(client)
    assert code(reply) == "bad-request"
    assert gateway.ask(client, "echo")["ok"] is True


def test_an_error_carries_the_id_where_that_could_be_read(gateway: Gateway, client: socket.socket) -> None:
    client.sendall(b'{"id": 9}\n')
    assert gateway.replies(client)[0]["id"] == 9


def test_a_line_that_never_ends_is_answered_and_cut_off(gateway: Gateway, client: socket.socket) -> None:
    sent = 0
    while sent <= MAX_LINE + 200_000:
        try:
            sent += client.send(b"x" * 65536)
        except BlockingIOError:
            gateway.loop.settle()
        except BrokenPipeError:
            break
    received = gateway.read(client)
    assert sent > MAX_LINE
    assert code(json.loads(received)) == "too-long"
    assert ended(client)


def test_the_33rd_client_is_told_why_it_is_turned_away(gateway: Gateway) -> None:
    clients = []
    for _ in range(MAX_CLIENTS):
        clients.append(gateway.connect())
        gateway.loop.settle()
    with gateway.connect() as late:
        (reply,) = gateway.replies(late)
        assert code(reply) == "too-many-clients"
        assert ended(late)
    assert gateway.ask(clients[-1], "echo")["ok"] is True
    clients.pop(0).close()
    gateway.loop.settle()
    with gateway.connect() as next_one:
        assert gateway.ask(next_one, "echo")["ok"] is True
    for sock in clients:
        sock.close()


def test_a_slow_reader_holds_up_nobody_and_loses_nothing(gateway: Gateway, client: socket.socket) -> None:
    size = 4 << 20
    client.sendall(b'{"id": 1, "cmd": "big", "args": {"size": %d}}\n{"id": 2, "cmd": "echo"}\n' % size)
    gateway.loop.settle()  # comes to rest: the socket's buffer is full, the rest waits
    assert len(gateway.asked) == 1  # and the second request waits with it
    with gateway.connect() as other:
        assert gateway.ask(other, "echo")["ok"] is True
    data = gateway.read(client)
    first, second = data.splitlines()
    assert len(json.loads(first)["result"]) == size
    assert json.loads(second)["id"] == 2


def test_slow_readers_together_cannot_take_all_memory(gateway: Gateway) -> None:
    clients = [gateway.connect() for _ in range(6)]
    for sock in clients:
        sock.sendall(b'{"cmd": "big", "args": {"size": %d}}\n' % (15 << 20))
        gateway.loop.settle()
    replies = [json.loads(gateway.read(sock)) for sock in clients]
    assert [reply["ok"] for reply in replies] == [True] * 4 + [False] * 2
    assert code(replies[5]) == "busy"
    for sock in clients:
        sock.close()


def test_a_client_gone_before_its_answer_is_forgotten(gateway: Gateway, client: socket.socket) -> None:
    client.sendall(b'{"cmd": "wait"}\n')
    gateway.loop.settle()
    client.close()
    gateway.loop.settle()
    gateway.held[0].reply("x")
    gateway.loop.settle()
    assert len(gateway.loop.selector.get_map()) == 1  # the listener alone


def test_a_client_gone_in_the_middle_of_its_answer_is_forgotten(
    gateway: Gateway, client: socket.socket
) -> None:
    client.sendall(b'{"cmd": "big", "args": {"size": %d}}\n' % (4 << 20))
    gateway.loop.settle()
    client.recv(1000)
    client.close()
    gateway.loop.settle()
    assert len(gateway.loop.selector.get_map()) == 1


def test_idle_clients_are_let_go_and_busy_ones_are_not(gateway: Gateway, client: socket.socket) -> None:
    with gateway.connect() as waiting:
        waiting.sendall(b'{"cmd": "wait"}\n')
        gateway.loop.settle()
        gateway.loop.now += IDLE
        gateway.server.tick()
        assert not ended(client)
        gateway.loop.now += 1
        gateway.server.tick()
        assert ended(client)
        assert not ended(waiting)
        gateway.held[0].reply("at last")
        assert gateway.replies(waiting)[0]["result"] == "at last"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    st.lists(
        st.binary(max_size=200)
        | st.sampled_from(
            [b"\n", b'{"id":1,"cmd":"echo"}\n', b'{"cmd":"wait"}\n', b'{"cmd":"defect"}\n', b"[[[["]
        )
        | st.sampled_from(["shut", "read", "answer", "tick", "fail"]),
        max_size=12,
    )
)
def test_nothing_a_client_does_raises_out_of_the_loop(gateway: Gateway, steps: list[bytes | str]) -> None:
    gateway.held.clear()
    sock = gateway.connect()
    for step in steps:
        if step == "shut":
            sock.shutdown(socket.SHUT_WR)
        elif step == "read":
            gateway.read(sock)
        elif step == "tick":
            gateway.loop.now += IDLE + 1
            gateway.server.tick()
        elif step in ("answer", "fail") and gateway.held:
            request = gateway.held.pop()
            request.reply({}) if step == "answer" else request.fail("no", "no")
        elif isinstance(step, bytes):
            with contextlib.suppress(OSError):
                sock.sendall(step)
        gateway.loop.turn()
    for line in gateway.read(sock).splitlines():
        assert json.loads(line)["ok"] in (True, False)
    sock.close()
    gateway.loop.settle()
    for request in gateway.held:
        request.reply(None)
    gateway.loop.settle()
    assert len(gateway.loop.selector.get_map()) == 1
    with gateway.connect() as other:
        assert gateway.ask(other, "echo")["ok"] is True
    gateway.loop.settle()


# --- the socket file -------------------------------------------------------------------------------------


def test_the_socket_is_for_its_group_alone_and_its_directory_is_made(loop: "Loop", tmp_path: Path) -> None:
    path = tmp_path / "run" / "nfqlb" / "control.sock"
    group = grp.getgrgid(os.getgid()).gr_name
    before = os.umask(0o077)
    try:
        server = Server(path, loop.selector, lambda _request: None, groups=Groups(group))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert path.stat().st_gid == os.getgid()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o755
    server.close()
    assert not path.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a file to another group")
def test_the_socket_goes_to_the_group_where_that_exists(loop: "Loop", tmp_path: Path) -> None:
    other = next(group for group in grp.getgrall() if group.gr_gid != os.getgid())
    server = Server(tmp_path / "s", loop.selector, lambda _request: None, groups=Groups(other.gr_name))
    assert (tmp_path / "s").stat().st_gid == other.gr_gid
    server.close()


def test_a_socket_without_its_group_stays_with_the_process(loop: "Loop", tmp_path: Path) -> None:
    server = Server(tmp_path / "s", loop.selector, lambda _request: None, groups=Groups("no-such-group-here"))
    assert (tmp_path / "s").stat().st_gid == os.getgid()
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
    server.close()


def test_a_dead_processs_socket_is_replaced(loop: "Loop", tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        stale.listen()
    assert path.exists()
    gateway = Gateway(loop, path)
    with gateway.connect() as sock:
        assert gateway.ask(sock, "echo")["ok"] is True
    gateway.server.close()


def test_a_live_gateways_socket_is_refused_with_its_process_id(gateway: Gateway) -> None:
    with pytest.raises(ControlError, match=f"process {os.getpid()} answers there already") as refused:
        Server(gateway.path, gateway.loop.selector, lambda _request: None)
    assert refused.value.code == "already-running"
    gateway.loop.settle()
    with gateway.connect() as sock:
        assert gateway.ask(sock, "echo")["ok"] is True


def test_a_gateway_with_a_full_backlog_counts_as_alive(loop: "Loop", tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        with pytest.raises(ControlError, match="answers there already"):
            Server(path, loop.selector, lambda _request: None)
        assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_whatever_is_not_a_socket_is_left_alone(loop: "Loop", tmp_path: Path, kind: str) -> None:
    path = tmp_path / "control.sock"
    if kind == "file":
        path.write_text("precious", encoding="ascii")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ControlError, match="not a socket"):
        Server(path, loop.selector, lambda _request: None)
    assert path.is_symlink() or path.exists()


def test_a_path_too_long_or_impossible_is_one_clear_line(loop: "Loop", tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="107 bytes at most"):
        Server(tmp_path / ("x" * 120), loop.selector, lambda _request: None)
    (tmp_path / "file").touch()
    with pytest.raises(ControlError, match="cannot be made: Not a directory"):
        Server(tmp_path / "file" / "s", loop.selector, lambda _request: None)
    assert not loop.selector.get_map()


def test_closing_leaves_somebody_elses_socket(loop: "Loop", tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    first = Gateway(loop, path)
    path.unlink()
    second = Gateway(loop, path)
    first.server.close()
    with second.connect() as sock:
        assert second.ask(sock, "echo")["ok"] is True
    second.server.close()


def test_closing_tells_those_who_wait(loop: "Loop", tmp_path: Path) -> None:
    gateway = Gateway(loop, tmp_path / "s")
    with gateway.connect() as sock:
        sock.sendall(b'{"id": 4, "cmd": "wait"}\n')
        loop.settle()
        gateway.server.close()
        reply = json.loads(sock.recv(1000))
        assert (reply["id"], code(reply)) == (4, "stopping")
        gateway.held[0].reply("too late")  # nobody is there; nothing happens
    gateway.server.close()  # twice is once


def test_a_forked_child_gives_up_the_socket_and_the_parent_keeps_it(
    gateway: Gateway, client: socket.socket
) -> None:
    gateway.loop.settle()
    child = os.fork()
    if child == 0:
        try:
            gateway.server.abandon()
        finally:
            os._exit(0 if gateway.path.exists() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert gateway.ask(client, "echo")["ok"] is True
    with gateway.connect() as other:
        assert gateway.ask(other, "echo")["ok"] is True


# --- the operator's end ----------------------------------------------------------------------------------


def call(
    loop: "Loop", path: Path, cmd: str = "echo", args: JSONObject | None = None, timeout: float = 5.0
) -> JSON:
    """A client's call, with the loop turning in this thread. Raises what the call raises."""
    outcome: list[JSON | ControlError] = []

    def work() -> None:
        try:
            with Client(path, timeout=timeout) as client:
                outcome.append(client.call(cmd, args))
        except ControlError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    loop.run_until(lambda: not thread.is_alive())
    thread.join()
    (result,) = outcome
    if isinstance(result, ControlError):
        raise result
    return result


def fake(loop: "Loop", path: Path, reply: bytes) -> socket.socket:
    """A listener that answers whatever comes with the same bytes and hangs up."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def accept(_mask: int) -> None:
        sock, _ = listener.accept()
        sock.recv(1000)
        sock.sendall(reply)
        sock.close()

    loop.selector.register(listener, 1, accept)
    return listener


def test_a_client_asks_and_is_answered(gateway: Gateway) -> None:
    assert call(gateway.loop, gateway.path, "echo", {"a": [1, "ü"]}) == {"a": [1, "ü"]}


def test_a_client_gets_a_reply_of_many_megabytes(gateway: Gateway) -> None:
    result = call(gateway.loop, gateway.path, "big", {"size": 12 << 20})
    assert isinstance(result, str)
    assert len(result) == 12 << 20


def test_a_client_raises_the_gateways_own_error(gateway: Gateway) -> None:
    with pytest.raises(ControlError) as refused:
        call(gateway.loop, gateway.path, "refuse")
    assert (refused.value.code, str(refused.value)) == ("refused", "no; never")


def test_a_client_is_told_that_there_are_too_many(gateway: Gateway) -> None:
    clients = [gateway.connect() for _ in range(MAX_CLIENTS)]
    gateway.loop.settle()
    with pytest.raises(ControlError, match="32 clients are connected already"):
        call(gateway.loop, gateway.path)
    for sock in clients:
        sock.close()


def test_no_socket_means_no_gateway(tmp_path: Path) -> None:
    with pytest.raises(
        ControlError, match=r"no gateway is running: .*does not exist; start it with"
    ) as refused:
        Client(tmp_path / "s").call("summary")
    assert refused.value.code == "not-running"


def test_a_socket_that_nobody_answers_means_no_gateway(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    with pytest.raises(ControlError, match="no gateway is running: nobody answers at"):
        Client(tmp_path / "s").call("summary")


def test_a_gateway_that_does_not_answer_is_a_time_out(gateway: Gateway) -> None:
    with pytest.raises(ControlError, match="does not answer in time") as refused:
        call(gateway.loop, gateway.path, "wait", timeout=0.1)
    assert refused.value.code == "timeout"


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"", "closed the connection"),
        (b'{"id":1,"ok":tr', "closed the connection"),
        (b"garbage\n", "cannot be read"),
        (b'{"id":1,"ok":true,"result":1}\n', "another control protocol"),
        (b'{"id":1,"ok":true,"protocol":2,"result":1}\n', "another control protocol"),
        (b'{"id":7,"ok":true,"protocol":1,"result":1}\n', "another question"),
        (b'{"id":1,"protocol":1}\n', "neither a result nor an error"),
    ],
)
def test_whatever_else_answers_is_seen_through(loop: "Loop", tmp_path: Path, reply: bytes, says: str) -> None:
    with fake(loop, tmp_path / "s", reply), pytest.raises(ControlError, match=says):
        call(loop, tmp_path / "s")


@pytest.mark.skipif(os.getuid() != 0, reason="root has to become somebody else")
def test_who_may_not_ask_is_told_so(gateway: Gateway) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            Client(gateway.path).call("summary")
        except ControlError as error:
            status = 0 if error.code == "permission-denied" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
