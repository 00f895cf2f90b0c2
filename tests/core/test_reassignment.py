"""A repeated SYN and its server: first the same, then another (R111, A39, US 6,104,717)."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from nfqlb.core.keys import flipped
from nfqlb.core.segment import ACK, SYN, Segment
from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, real, reals, virtual

SECOND = "203.0.113.2"


@pytest.fixture
def lab() -> Scenario:
    return Scenario(virtual("web", "ab"), reals("ab"))


def test_the_third_syn_goes_to_another_server(lab: Scenario) -> None:
    """R041, R111, R180 (A39): two to the same server; then the client's own SYN makes it elsewhere."""
    call = lab.dial()
    assert call.server == "a"
    assert call.syn().server == "a"
    assert lab.real("a").ditched_no_answer == 0
    assert call.syn().server == "b"
    assert (lab.real("a").ditched_no_answer, lab.real("b").ditched_no_answer) == (1, 0)
    assert call.syn_ack().ack().says().hears().state == "established"
    assert call.server == "b"
    audit(lab.director)


def test_counters_and_indexes_follow(lab: Scenario) -> None:
    """R043, R055, R183: the old server has one less, the new one one more, of connections and SYNs."""
    call = lab.dial().syn()
    assert lab.loads() == {"a": 1, "b": 0}
    call.syn()
    assert lab.loads() == {"a": 0, "b": 1}
    assert (lab.real("a").unanswered, lab.real("b").unanswered) == (0, 1)
    assert (lab.virtual().connections, lab.virtual().total) == (1, 1)
    assert [each.connections for each in lab.virtual().servers] == [0, 1]
    assert lab.director.totals().connections_total == 1
    audit(lab.director)
    call.syn_ack().ack().close()
    assert lab.loads() == {"a": 0, "b": 0}
    audit(lab.director)


def test_the_new_server_has_its_attempts_too() -> None:
    """R041: three SYNs each, round and round."""
    lab = Scenario(virtual("web", "abc"), reals("abc"))
    call = lab.dial()
    seen = [call.server] + [call.syn().server for _ in range(7)]
    assert seen == ["a", "a", "b", "b", "c", "c", "a", "a"]
    assert [lab.real(name).ditched_no_answer for name in "abc"] == [1, 1, 1]
    audit(lab.director)


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_the_number_of_attempts_can_be_set(attempts: int) -> None:
    """R041 (A39): 1 is like 2, as the first SYN opens the connection."""
    lab = Scenario(virtual("web", "ab"), [replace(real(name), attempts=attempts) for name in "ab"])
    call = lab.dial()
    for _ in range(max(attempts, 2) - 2):
        assert call.syn().server == "a"
    assert call.syn().server == "b"


def test_zero_attempts_never_reassign() -> None:
    """R041."""
    lab = Scenario(virtual("web", "ab"), [replace(real(name), attempts=0) for name in "ab"])
    call = lab.dial()
    assert {call.syn().server for _ in range(10)} == {"a"}


def test_a_late_answer_of_the_old_server_is_dropped(lab: Scenario) -> None:
    """R055, R169: the client must not see two answers, nor a real address."""
    call = lab.dial()
    old = call.reply_key
    call.syn().syn()
    late = Segment(old, SYN | ACK, (9).to_bytes(4, "big") + call.client_next.to_bytes(4, "big"))
    assert lab.director.server_segment(late, lab.now) is Drop.SERVER_UNKNOWN
    assert lab.drops() == {"server-no-connection": 1}
    assert call.syn_ack().ack().state == "established"


def test_an_unreachable_is_eaten_and_the_next_syn_does_better(lab: Scenario) -> None:
    """R007, R041: a client that is told gives up; and a late one quotes an address it never used."""
    call = lab.dial()
    quoted = flipped(call.reply_key)
    assert lab.director.error_from_inside(quoted, unreachable=True) is Drop.UNREACHABLE
    assert call.state == "syn-sent"
    assert call.syn().syn().server == "b"
    assert lab.director.error_from_inside(quoted, unreachable=True) is Drop.UNREACHABLE
    assert lab.director.error_from_inside(quoted, unreachable=False) is Drop.UNREACHABLE
    assert call.syn_ack().ack().state == "established"
    assert lab.director.error_from_inside(quoted, unreachable=True) is Drop.UNREACHABLE
    assert lab.drops() == {"unreachable-eaten": 4}
    straight = quoted[:-4] + (50_000).to_bytes(2, "big") + quoted[-2:]
    assert lab.director.error_from_inside(straight, unreachable=True) is None


def test_without_another_server_it_stays(lab: Scenario) -> None:
    """R111: the only server gets every SYN, and may still answer."""
    alone = Scenario(virtual("web", "a"), reals("a"))
    call = alone.dial()
    assert {call.syn().server for _ in range(6)} == {"a"}
    assert call.syn_ack().ack().state == "established"
    audit(alone.director)


def test_it_leaves_as_soon_as_there_is_another_server() -> None:
    """R041, R184: the other one was full at its third SYN."""
    lab = Scenario(virtual("web", "ab"), [real("a"), real("b", max_connections=1)])
    call = lab.dial()
    other = lab.connect()
    assert other.server == "b"
    assert call.syn().syn().server == "a"
    other.close()
    assert call.syn().server == "b"
    assert lab.real("a").ditched_no_answer == 1
    audit(lab.director)


def test_the_sticky_entry_follows() -> None:
    """R152 (A9): the client is bound to the server that it was reassigned to."""
    lab = Scenario(virtual("web", "ab", sticky=600), reals("ab"))
    call = lab.dial()
    assert call.syn().syn().server == "b"
    assert {lab.dial(client="192.0.2.1").server for _ in range(4)} == {"b"}
    lab.wait(300)
    assert [each.real for each in lab.director.sticky(lab.now)] == ["b"]


def test_where_replies_could_not_be_told_apart_it_stays() -> None:
    """A5: R169; another connection of the same client and port has that place at the other server."""
    lab = Scenario([virtual("one", "ab"), virtual("two", "b", address=SECOND)], reals("ab"))
    other = lab.connect("two", port=40_001)
    call = lab.dial("one", port=40_001)
    assert call.server == "a"
    assert call.syn().syn().server == "a"
    assert other.says().hears().state == "established"
    audit(lab.director)
    other.close()
    assert call.syn().server == "b", "the ended one makes way"
    assert len(lab.connections()) == 1
    audit(lab.director)


def test_a_third_server_is_taken_where_the_next_ones_replies_could_not_be_told_apart() -> None:
    """A5: R169."""
    lab = Scenario([virtual("one", "abc"), virtual("two", "b", address=SECOND)], reals("abc"))
    lab.connect("two", port=40_001)
    assert lab.dial("one", port=40_001).syn().syn().server == "c"
    audit(lab.director)


def test_its_time_out_starts_anew_with_each_syn() -> None:
    """R120, R129: a connection that is still being tried is not forgotten."""
    lab = Scenario(virtual("web", "ab"), reals("ab"), half_open=10.0)
    call = lab.dial()
    for _ in range(6):
        lab.wait(9)
        call.syn()
    assert len(lab.connections()) == 1
    lab.wait(30)
    assert lab.connections() == []


class Lifelong:
    """A recorder that remembers which server each connection was last known with."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def opened(self, connection: object) -> int:
        """A place."""
        self.told.append("opened")
        return 1

    def moved(self, connection: object) -> None:
        """Another state."""
        self.told.append("moved")

    def reassigned(self, connection: object) -> None:
        """Another server."""
        self.told.append("reassigned")

    def ended(self, connection: object) -> None:
        """Gone."""
        self.told.append("ended")


def test_the_journal_is_told() -> None:
    """R187: of the new server, once, before the SYN goes there."""
    recorder = Lifelong()
    lab = Scenario(virtual("web", "ab"), reals("ab"), recorder=recorder)
    lab.dial().syn().syn().syn_ack()
    assert recorder.told == ["opened", "reassigned", "moved"]


@pytest.mark.parametrize("seed", range(25))
def test_the_books_balance_whatever_happens(seed: int) -> None:
    """R043, R183, R187: random conversations with servers that fail, are tested and return."""
    chance = Random(seed)
    keys: dict[str, Any] = {"failure_threshold": 3, "failure_clients": 1, "retry": 20.0, "max_connections": 9}
    names = "abcd"
    several = [
        virtual("one", "abc", scheduler="least-connections", sticky=chance.choice([0.0, 40.0])),
        virtual("two", "bd", address=SECOND),
    ]
    lab = Scenario(several, [replace(real(name), **keys) for name in names], max_connections=25)
    calls: list[Call] = []
    states = set()
    for _ in range(300):
        calls = [call for call in calls if call.refused is None][-12:]
        if not calls or chance.random() < 0.35:
            to, client = chance.choice(["one", "two"]), f"192.0.2.{chance.randrange(1, 9)}"
            calls.append(lab.dial(to, client=client, port=40_000 + chance.randrange(4)))
        else:
            _one_step(chance.choice(calls), chance)
        if chance.random() < 0.1:
            lab.wait(chance.choice([0.5, 5, 40]))
        audit(lab.director)
        states |= {lab.real(name).state for name in names}
    assert {"in-service", "failed", "testing"} <= states
    lab.wait(4000)
    lab.wait(4000)
    assert lab.connections() == []
    assert lab.loads() == dict.fromkeys(names, 0)
    audit(lab.director)


def _one_step(call: Call, chance: Random) -> None:
    """Something that the client or its server may do next; SYNs more than anything."""
    steps = [call.syn, call.syn, call.syn, call.syn_ack, call.ack, call.refusal, call.reset, call.close]
    chance.choice(steps)()
