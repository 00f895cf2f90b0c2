"""Who waits: what can be waited for, in which words, and how it ends."""

from typing import Any

import pytest

from nfqlb.runtime.protocol import ControlError, JSONObject, Outcome, Request
from nfqlb.runtime.waiting import Condition, Waiting, parse


def snapshot(state: str = "in-service", connections: int = 3, total: int = 5) -> JSONObject:
    return {
        "state": "running",
        "connections": {"now": total},
        "virtuals": [{"name": "shop", "state": "in-service", "connections": connections}],
        "reals": [
            {"name": "web1", "state": state, "connections": connections},
            {"name": "web2", "state": "in-service", "connections": 0},
        ],
    }


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Room:
    """Somebody who waits."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.waiting = Waiting(self.clock)

    def wait(self, condition: Any, **args: Any) -> list[Outcome]:
        """What it is answered, once it is."""
        found: list[Outcome] = []
        given = {"condition": condition, **args}
        request = Request(1, "wait", given, None, lambda _request, outcome: found.append(outcome))
        self.waiting.add(request, snapshot())
        return found

    def look(self, seconds: float = 1.0, **state: Any) -> None:
        self.clock.now += seconds
        self.waiting.look(snapshot(**state))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("real web1 empty", [Condition("real", "web1")]),
        ("  real   web1  empty ", [Condition("real", "web1")]),
        ("real web1 connections 10", [Condition("real", "web1", connections=10)]),
        ("real web1 in-service", [Condition("real", "web1", "in-service")]),
        ("real web1 not failed", [Condition("real", "web1", "failed", negated=True)]),
        ("virtual shop failed", [Condition("virtual", "shop", "failed")]),
        ("connections 0", [Condition("gateway", "")]),
        ("real web1 empty and real web2 empty", [Condition("real", "web1"), Condition("real", "web2")]),
    ],
)
def test_what_can_be_waited_for(text: str, found: list[Condition]) -> None:
    assert parse(text, snapshot()) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is no condition; conditions: real|virtual NAME"),
        ("real web1", "'real web1' is no condition"),
        ("reel web1 empty", "is no condition"),
        ("real web3 empty", "there is no real server 'web3'; did you mean 'web"),
        ("virtual web1 empty", "there is no virtual server 'web1'; there is shop"),
        ("real web1 emty", "'emty' is no state of a real server; did you mean 'empty'?"),
        ("real web1 gone", "states: in-service, "),
        ("virtual shop maintenance", "no state of a virtual server"),
        ("real web1 connections few", "'few' is not a number of connections"),
        ("connections -1", "'-1' is not a number"),
        ("real web1 empty and", "'' is no condition"),
        ("real web1 not not failed", "is nothing that a server can be waited for"),
    ],
)
def test_what_cannot_is_said(text: str, says: str) -> None:
    with pytest.raises(ControlError) as caught:
        parse(text, snapshot())
    assert says in str(caught.value)
    assert caught.value.code == "bad-argument"


def test_a_server_that_empties() -> None:
    room = Room()
    found = room.wait("real web1 empty")
    room.look()
    room.look(connections=1)
    assert found == []
    room.look(connections=0)
    assert found == [{"waited_s": 3.0, "said": ["web1 has no connections"]}]
    assert len(room.waiting) == 0
    room.look(connections=0)
    assert len(found) == 1


def test_what_holds_already_is_answered_with_the_next_snapshot() -> None:
    room = Room()
    found = room.wait("real web1 in-service")
    assert found == [], "not from one that may be older than the question"
    room.look(0.01)
    assert found == [{"waited_s": 0.01, "said": ["web1 is in-service"]}]


def test_all_of_several_have_to_hold_at_a_time() -> None:
    room = Room()
    found = room.wait("real web1 failed and connections 4")
    room.look(state="failed", total=5)
    room.look(state="in-service", total=4)
    assert found == []
    room.look(state="failed", total=4)
    assert found == [{"waited_s": 3.0, "said": ["web1 is failed", "the gateway has 4 connections"]}]


def test_not_a_state() -> None:
    room = Room()
    found = room.wait("real web1 not failed")
    room.look(state="failed")
    assert found == []
    room.look(state="testing")
    assert found == [{"waited_s": 2.0, "said": ["web1 is testing"]}]


def test_the_time_is_over() -> None:
    room = Room()
    found = room.wait("real web1 empty and real web2 empty", timeout=3)
    room.look()
    room.look()
    assert found == []
    room.look(connections=1)
    (error,) = found
    assert isinstance(error, ControlError)
    assert (error.code, str(error)) == ("timeout", "after 3 s: web1 has 1 connection still")


def test_the_time_is_over_while_no_worker_answers() -> None:
    room = Room()
    found = room.wait("real web1 empty", timeout=3)
    for _ in range(3):
        room.clock.now += 1
        room.waiting.tick()
    assert found == []
    room.clock.now += 1
    room.waiting.tick()
    assert str(found[0]) == "after 3 s: the worker does not answer"


def test_when_somebody_s_time_is_over() -> None:
    """Once, and to the moment: a snapshot is wanted then."""
    room = Room()
    assert room.waiting.left() == float("inf")
    room.wait("real web1 empty")
    room.wait("real web1 empty", timeout=2.5)
    room.wait("real web1 empty", timeout=4)
    assert (room.waiting.left(), room.waiting.over()) == (2.5, False)
    room.clock.now += 2.5
    assert room.waiting.over()
    assert (room.waiting.left(), room.waiting.over()) == (1.5, False)
    room.clock.now += 9
    assert room.waiting.left() == 0
    assert room.waiting.over()
    assert (room.waiting.left(), room.waiting.over()) == (float("inf"), False)


def test_a_server_that_is_taken_away_meanwhile() -> None:
    """It has no connections; but in no state will it ever be."""
    room = Room()
    empty, state = room.wait("real web1 empty"), room.wait("real web1 failed")
    room.waiting.look({**snapshot(), "reals": []})
    assert empty == [{"waited_s": 0.0, "said": ["web1 is gone"]}]
    (error,) = state
    assert isinstance(error, ControlError)
    assert (error.code, str(error)) == ("gone", "there is no real server 'web1' any more")


def test_who_has_hung_up_is_forgotten() -> None:
    room = Room()
    request = Request(1, "wait", {"condition": "real web1 empty"}, None, lambda _request, _outcome: None)
    room.waiting.add(request, snapshot())
    request.answered = True
    room.look()
    assert len(room.waiting) == 0


@pytest.mark.parametrize("timeout", [0, -1, "5", True, 1e9])
def test_a_timeout_that_is_none(timeout: Any) -> None:
    with pytest.raises(ControlError, match="number of seconds"):
        Room().wait("real web1 empty", timeout=timeout)


@pytest.mark.parametrize("condition", [None, 5, ["real web1 empty"]])
def test_a_condition_that_is_none(condition: Any) -> None:
    with pytest.raises(ControlError, match="condition is missing"):
        Room().wait(condition)
