"""The way between supervisor and worker: both ends in one process, or with a real worker that is killed."""

import itertools
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

import pytest

from nfqlb.runtime.channel import (
    MAX_ASKED,
    MAX_WAITING,
    PATIENCE,
    PORTION,
    SupervisorChannel,
    WorkerChannel,
    pair,
)
from nfqlb.runtime.protocol import JSON, MAX_REPLY, ControlError, Encoded, JSONObject, Request, Result

if TYPE_CHECKING:
    from tests.runtime.conftest import Loop


class Ends:
    """Both ends, and what came of each call."""

    def __init__(self, loop: "Loop") -> None:
        ours, theirs = pair()
        self.loop = loop
        self.supervisor = SupervisorChannel(ours, loop.selector, clock=loop.clock)
        self.worker = WorkerChannel(theirs)
        self.outcomes: dict[str, JSON | ControlError] = {}

    def call(self, cmd: str, args: JSONObject | None = None) -> None:
        def done(result: JSON) -> None:
            assert cmd not in self.outcomes
            self.outcomes[cmd] = result

        def failed(error: ControlError) -> None:
            assert cmd not in self.outcomes
            self.outcomes[cmd] = error

        self.supervisor.call(cmd, args or {}, done, failed)

    def poll(self) -> list[Request]:
        """What the worker is asked, once everything on the way has arrived."""
        requests: list[Request] = []
        for _ in range(10):
            self.loop.settle()
            requests += self.worker.poll()
        return requests

    def code(self, cmd: str) -> str:
        error = self.outcomes[cmd]
        assert isinstance(error, ControlError)
        return error.code


@pytest.fixture
def ends(loop: "Loop") -> Iterator[Ends]:
    made = Ends(loop)
    yield made
    made.supervisor.close()
    made.worker.close()
    assert not loop.selector.get_map()


def test_a_question_reaches_the_worker_and_its_answer_the_supervisor(ends: Ends) -> None:
    ends.call("reals", {"a": 1})
    (request,) = ends.poll()
    assert (request.cmd, request.args, request.peer) == ("reals", {"a": 1}, None)
    request.reply([{"name": "web1"}])
    ends.poll()
    assert ends.outcomes == {"reals": [{"name": "web1"}]}


def test_the_workers_error_arrives_as_such(ends: Ends) -> None:
    ends.call("x")
    ends.poll()[0].fail("unknown-command", "there is no command 'x'", "try y")
    ends.poll()
    assert ends.code("x") == "unknown-command"
    assert str(ends.outcomes["x"]) == "there is no command 'x'; try y"


def test_a_clients_request_is_forwarded_and_answered(ends: Ends) -> None:
    answers: list[object] = []
    ends.supervisor.forward(Request("q", "reals", {"b": 2}, None, lambda _request, out: answers.append(out)))
    ends.poll()[0].reply("fine")
    ends.poll()
    assert answers == ["fine"]


def test_a_list_for_a_client_is_not_taken_apart(ends: Ends) -> None:
    """F31: it takes the supervisor no time, however long it is."""
    answers: list[object] = []
    for ident in "ab":
        request = Request(ident, "connections", {}, None, lambda _request, out: answers.append(out))
        ends.supervisor.forward(request)
    rows: list[JSONObject] = [{"name": "web1]}"}, {"name": "\u202e"}]
    ends.poll()[0].reply(iter(rows))
    ends.poll()[0].reply([])
    ends.poll()
    assert answers == [Encoded(b'[{"name":"web1]}"},{"name":"\\u202e"}]'), Encoded(b"[]")]


def test_a_list_for_a_client_that_cannot_be_written_is_a_bad_reply(ends: Ends) -> None:
    answers: list[object] = []
    ends.supervisor.forward(Request(1, "sticky", {}, None, lambda _request, out: answers.append(out)))
    rows: list[JSONObject] = [{"reals": ["a"]}, {"reals": float("nan")}]
    ends.poll()[0].reply(iter(rows))
    ends.poll()
    (error,) = answers
    assert isinstance(error, ControlError)
    assert error.code == "bad-reply"


def test_long_lists_let_others_go_first(ends: Ends) -> None:
    """F31: somebody who asks for many lists holds up neither the gateway's own questions nor orders."""
    for cmd in ("connections", "sticky", "decisions", "failures", "pulse", "set-real"):
        ends.call(cmd)
    seen = []
    for _ in range(6):
        (request,) = ends.poll()
        seen.append(request.cmd)
        request.reply([])
    assert seen == ["connections", "pulse", "set-real", "sticky", "decisions", "failures"]


def test_the_worker_has_one_question_at_a_time(ends: Ends) -> None:
    for cmd in "abc":
        ends.call(cmd)
    seen = []
    for _ in range(3):
        (request,) = ends.poll()
        seen.append(request.cmd)
        request.reply(request.cmd.upper())
    ends.poll()
    assert seen == ["a", "b", "c"]
    assert ends.outcomes == {"a": "A", "b": "B", "c": "C"}


def test_an_idle_poll_returns_nothing_and_waits_for_reading_alone(ends: Ends) -> None:
    assert ends.worker.poll() == []
    assert ends.worker.events == EVENT_READ
    assert not ends.worker.lost


def rows(number: int, made: list[int]) -> Iterator[JSONObject]:
    for n in range(number):
        made.append(n)
        yield {"n": n, "text": "x" * 100}


def test_a_long_list_is_made_and_sent_in_portions(ends: Ends) -> None:
    made: list[int] = []
    ends.call("connections")
    (request,) = ends.poll()
    request.reply(rows(10_000, made))
    assert len(made) * 110 < 2 * PORTION  # no more than a portion is made when the answer is given
    steps = [len(made)]
    while "connections" not in ends.outcomes:
        assert ends.worker.events == EVENT_READ | EVENT_WRITE
        ends.worker.poll()
        steps.append(len(made))
        ends.loop.settle()
    assert max(b - a for a, b in itertools.pairwise(steps)) * 110 < 2 * PORTION
    result = ends.outcomes["connections"]
    assert isinstance(result, list)
    assert [row["n"] for row in result if isinstance(row, dict)] == list(range(10_000))
    assert ends.worker.events == EVENT_READ


def test_a_supervisor_that_does_not_read_does_not_block_the_worker(ends: Ends) -> None:
    made: list[int] = []
    ends.call("connections")
    ends.loop.settle()
    (request,) = ends.worker.poll()
    request.reply(rows(100_000, made))
    for _ in range(1000):
        ends.worker.poll()
    assert len(made) < 20_000  # it stops making what cannot be sent


def test_a_reply_over_the_limit_fails_and_the_next_is_well(ends: Ends) -> None:
    ends.call("huge")
    ends.call("next")
    (request,) = ends.poll()
    huge: list[JSONObject] = [{"x": "y" * 100_000}] * (MAX_REPLY // 100_000 + 10)
    request.reply(iter(huge))
    following: list[Request] = []
    while not following:
        following = ends.poll()
    assert ends.code("huge") == "too-large"
    following[0].reply("well")
    ends.poll()
    assert ends.outcomes["next"] == "well"


def defective() -> Iterator[JSONObject]:
    yield {"fine": 1}
    raise ZeroDivisionError


@pytest.mark.parametrize("result", [float("nan"), {"a": float("inf")}])
def test_an_answer_that_is_no_json_spoils_that_answer_alone(
    ends: Ends, caplog: pytest.LogCaptureFixture, result: Result
) -> None:
    check_spoilt(ends, caplog, result)


def test_a_defect_in_making_rows_spoils_that_answer_alone(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    check_spoilt(ends, caplog, defective())


def check_spoilt(ends: Ends, caplog: pytest.LogCaptureFixture, result: Result) -> None:
    ends.call("spoilt")
    ends.call("next")
    with caplog.at_level(logging.ERROR):
        ends.poll()[0].reply(result)
    assert "could not be written" in caplog.text
    ends.poll()[0].reply("well")
    ends.poll()
    assert ends.code("spoilt") == "bad-reply"
    assert ends.outcomes["next"] == "well"


# --- limits ----------------------------------------------------------------------------------------------


def test_a_worker_that_does_not_answer_in_time_is_busy_and_its_late_answer_is_ignored(ends: Ends) -> None:
    ends.call("slow")
    ends.call("behind")
    (request,) = ends.poll()
    ends.loop.now += PATIENCE - 0.1
    ends.supervisor.tick()
    assert not ends.outcomes
    ends.call("young")
    ends.loop.now += 0.1
    ends.supervisor.tick()
    assert ends.code("slow") == ends.code("behind") == "worker-busy"
    request.reply("too late")
    (young,) = ends.poll()
    assert young.cmd == "young"
    young.reply("in time")
    ends.poll()
    assert ends.outcomes["young"] == "in time"


def test_what_is_too_large_to_ask_or_no_json_is_not_asked(ends: Ends) -> None:
    ends.call("large", {"a": "x" * MAX_ASKED})
    ends.call("nan", {"a": float("nan")})
    assert ends.code("large") == "too-large"
    assert ends.code("nan") == "bad-request"
    assert ends.poll() == []


def test_requests_do_not_pile_up(ends: Ends) -> None:
    for n in range(MAX_WAITING):
        ends.call(f"c{n}")
    assert not ends.outcomes
    ends.call("one more")
    assert ends.code("one more") == "worker-busy"


def test_the_worker_answers_garbage_and_long_lines_itself(loop: "Loop") -> None:
    ours, theirs = pair()
    worker = WorkerChannel(theirs)
    ours.sendall(b"garbage\n" + b"x" * (MAX_ASKED + 1) + b'\n{"id": 3}\n{"id": 4, "cmd": "reals"}\n')
    requests: list[Request] = []
    for _ in range(4):
        requests += worker.poll()
    assert [request.ident for request in requests] == [4]
    replies = [json.loads(line) for line in ours.recv(1 << 16).splitlines()]
    assert [(reply["id"], reply["error"]["code"]) for reply in replies] == [
        (None, "bad-request"),
        (None, "too-long"),
        (3, "bad-request"),
    ]
    ours.close()
    worker.close()


def test_the_supervisor_survives_a_worker_that_writes_garbage(loop: "Loop") -> None:
    ours, theirs = pair()
    supervisor = SupervisorChannel(ours, loop.selector, clock=loop.clock)
    errors: list[ControlError] = []
    supervisor.call("a", {}, lambda _result: None, errors.append)
    theirs.sendall(b"\xff garbage\n")
    loop.settle()
    assert [error.code for error in errors] == ["bad-reply"]
    supervisor.close()
    theirs.close()


# --- death -----------------------------------------------------------------------------------------------


def test_the_workers_death_fails_all_that_wait_with_a_hint(ends: Ends) -> None:
    ends.call("asked")
    ends.call("waiting")
    ends.poll()
    ends.worker.close()
    ends.loop.settle()
    assert ends.code("asked") == ends.code("waiting") == "worker-restarting"
    assert str(ends.outcomes["asked"]).endswith("try again in a moment")
    assert ends.supervisor.closed
    ends.call("afterwards")
    assert ends.code("afterwards") == "worker-restarting"


def test_a_death_in_the_middle_of_a_reply_fails_it(ends: Ends) -> None:
    ends.call("connections")
    (request,) = ends.poll()
    request.reply(rows(10_000, []))
    ends.loop.settle()
    assert not ends.outcomes
    ends.worker.close()
    ends.loop.settle()
    assert ends.code("connections") == "worker-restarting"


def test_a_worker_that_is_killed_is_noticed(loop: "Loop") -> None:
    ours, theirs = pair()
    supervisor = SupervisorChannel(ours, loop.selector, clock=loop.clock)
    child = os.fork()
    if child == 0:
        try:
            supervisor.abandon()
            signal.pause()
        finally:
            os._exit(1)
    theirs.close()
    errors: list[ControlError] = []
    supervisor.call("a", {}, lambda _result: None, errors.append)
    loop.settle()
    assert not errors
    os.kill(child, signal.SIGKILL)
    loop.run_until(lambda: bool(errors))
    assert errors[0].code == "worker-restarting"
    os.waitpid(child, 0)
    supervisor.close()


def test_a_worker_with_a_full_socket_that_dies_is_no_exception(loop: "Loop") -> None:
    ours, theirs = pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    supervisor = SupervisorChannel(ours, loop.selector, clock=loop.clock)
    errors: list[ControlError] = []
    supervisor.call("a", {"x": "y" * 60_000}, lambda _result: None, errors.append)
    loop.settle()
    assert not errors
    theirs.close()
    loop.settle()
    assert [error.code for error in errors] == ["worker-restarting"]


def test_the_worker_notices_that_the_supervisor_is_gone(ends: Ends) -> None:
    ends.call("a")
    (request,) = ends.poll()
    ends.supervisor.close()
    request.reply(rows(10_000, []))
    assert ends.worker.poll() == []
    assert ends.worker.lost
    assert ends.worker.poll() == []


def test_callbacks_may_ask_again(ends: Ends) -> None:
    results: list[JSON] = []

    def again(result: JSON) -> None:
        results.append(result)
        ends.supervisor.call("second", {}, results.append, lambda _error: None)

    ends.supervisor.call("first", {}, again, lambda _error: None)
    ends.poll()[0].reply(1)
    (request,) = ends.poll()
    assert request.cmd == "second"
    request.reply(2)
    ends.poll()
    assert results == [1, 2]


def test_a_reply_that_cannot_be_used_is_an_error_and_the_loop_goes_on(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(_result: JSON) -> None:
        raise ZeroDivisionError

    errors: list[ControlError] = []
    ends.supervisor.call("first", {}, stumble, errors.append)
    ends.call("second")
    with caplog.at_level(logging.ERROR):
        ends.poll()[0].reply(1)
        (request,) = ends.poll()
    assert [error.code for error in errors] == ["internal-error"]
    request.reply(2)
    ends.poll()
    assert ends.outcomes == {"second": 2}
