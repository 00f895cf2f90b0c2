"""Connections that somebody else carries: what he knows counts, where it was not told in time."""

from dataclasses import replace
from typing import Any

import pytest

from nfqlb.core.admission import ServerState
from nfqlb.core.connection import Connection
from nfqlb.core.states import State
from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Scenario, reals, virtual


class Kernel:
    """Carries connections: how far each has come, by its key, and when a packet of it last passed."""

    def __init__(self) -> None:
        self.knows: dict[bytes, tuple[State, float]] = {}
        self.cuts: list[bytes] = []
        self.meanwhile: dict[bytes, State] = {}  # comes to be known after it was asked for
        self.asked = 0

    def carries(self, connection: Connection, now: float) -> State | None:
        self.asked += 1
        state, heard = self.knows.get(connection.inbound, (None, 0.0))
        if state is not None:
            connection.seen = max(connection.seen, heard)
        return state

    def cut(self, connection: Connection) -> None:
        self.cuts.append(connection.inbound)
        self.knows.pop(connection.inbound, None)

    def release(self, connection: Connection) -> State | None:
        state = self.meanwhile.pop(connection.inbound, None)
        if state is None:
            self.cut(connection)
        return state


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def site(kernel: Kernel, protocol: str = "tcp", **keys: Any) -> Scenario:
    return Scenario(virtual("web", "ab", protocol=protocol), reals("ab"), carrier=kernel, **keys)


def test_an_idle_connection_ends_when_its_carrier_has_none_any_more(kernel: Kernel) -> None:
    """R046, R129 (A24): what was not seen may have been there all the same."""
    lab = site(kernel)
    call = lab.connect()
    for _ in range(3):
        kernel.knows[call.key] = State.ESTABLISHED, lab.now + 1800
        lab.wait(3700)
        assert lab.loads() == {"a": 1, "b": 0}
    (row,) = lab.connections()
    assert row.idle == 1900
    del kernel.knows[call.key]
    lab.wait(3700)
    assert lab.connections() == []
    assert kernel.cuts == []
    audit(lab.director)


def test_an_answer_that_was_not_told_is_found_before_silence_is_held_against_the_server(
    kernel: Kernel,
) -> None:
    """R041, R077, R078: neither is the connection cut, nor has the server ditched it."""
    lab = site(kernel)
    call, silent = lab.dial(), lab.dial()
    kernel.knows[call.key] = State.ESTABLISHED, lab.now
    kernel.knows[silent.key] = State.SYN_SENT, lab.now
    lab.wait(31)
    assert [row.state for row in lab.connections()] == ["established"]
    assert kernel.cuts == [silent.key]
    assert [lab.real(name).ditched_no_answer for name in "ab"] == [0, 1]
    assert [lab.real(name).unanswered for name in "ab"] == [0, 0]
    audit(lab.director)


def test_a_tested_servers_answer_brings_it_back_even_if_told_late(kernel: Kernel) -> None:
    """R182."""
    quick = [
        replace(each, failure_threshold=1, failure_clients=1, retry=10.0, attempts=2) for each in reals("ab")
    ]
    lab = Scenario(virtual("web", "ab"), quick, carrier=kernel)
    lab.dial().syn()
    assert lab.real("a").state == "failed"
    lab.wait(11)
    test = lab.dial(client="192.0.2.2")
    assert (test.server, lab.real("a").state) == ("a", "testing")
    lab.director.progressed(test.connection, State.ESTABLISHED, lab.now)
    assert lab.real("a").state == "in-service"


@pytest.mark.parametrize(
    ("known", "state"),
    [
        (State.SYN_SENT, "syn-sent"),
        (State.SYN_RECEIVED, "syn-sent"),  # its handshake is not over
        (State.ESTABLISHED, "established"),
        (State.FIN_CLIENT, "established"),  # which side has closed, its FIN will tell
    ],
)
def test_how_far_it_has_come(kernel: Kernel, known: State, state: str) -> None:
    """R077, R078."""
    lab = site(kernel)
    call = lab.dial()
    for _ in range(2):
        lab.director.progressed(call.connection, known, lab.now + 5)
        assert call.state == state
    assert call.connection.seen == lab.now, "nothing was heard of it"


def test_nothing_takes_a_step_back(kernel: Kernel) -> None:
    """What was read of the kernel may be older than what was told."""
    lab = site(kernel)
    call, ended = lab.connect().fin(), lab.connect().close()
    for known in (State.SYN_SENT, State.SYN_RECEIVED, State.ESTABLISHED):
        lab.director.progressed(call.connection, known, lab.now)
        lab.director.progressed(ended.connection, known, lab.now)
    assert (call.state, ended.state) == ("fin-client", "closed")


def test_a_full_table_gives_up_no_connection_that_was_answered_meanwhile(kernel: Kernel) -> None:
    """A23: the oldest that looks half-open is asked about first."""
    lab = site(kernel, max_connections=3)
    calls = [lab.dial() for _ in range(3)]
    for call in calls[:2]:
        kernel.knows[call.key] = State.ESTABLISHED, lab.now
    new = lab.dial()
    assert new.refused is None
    assert kernel.cuts == [calls[2].key]
    assert [call.state for call in calls[:2]] == ["established"] * 2
    kernel.knows[new.key] = State.ESTABLISHED, lab.now
    assert lab.dial().refused is Drop.TABLE_FULL
    audit(lab.director)


def test_a_flow_that_was_answered_is_not_given_up_either(kernel: Kernel) -> None:
    """R012, A23."""
    lab = site(kernel, protocol="udp", max_connections=2)
    flows = [lab.flow().asks() for _ in range(2)]
    kernel.knows[flows[0].key] = State.UDP_FLOW, lab.now
    lab.flow().asks()
    assert kernel.cuts == [flows[1].key]
    assert sorted(row.state for row in lab.connections()) == ["udp", "udp-new"]
    audit(lab.director)


def test_a_flow_without_an_answer_lasts_as_long_as_its_client_speaks(kernel: Kernel) -> None:
    """R046: which its carrier hears."""
    lab = site(kernel, protocol="udp")
    flow = lab.flow().asks()
    for _ in range(4):
        kernel.knows[flow.key] = State.UDP_NEW, lab.now + 25
        lab.wait(30)
        assert [row.state for row in lab.connections()] == ["udp-new"]
    del kernel.knows[flow.key]
    lab.wait(60)
    assert lab.connections() == []


def test_ended_connections_are_nobodys_to_carry(kernel: Kernel) -> None:
    """R129."""
    lab = site(kernel)
    lab.connect().close()
    lab.wait(11)
    assert lab.connections() == []
    assert (kernel.asked, kernel.cuts) == (0, [])


def test_a_repeated_syn_does_not_move_what_was_answered_meanwhile(kernel: Kernel) -> None:
    """R041, A39: the answer passed a moment ago, and the client believes it."""
    lab = site(kernel)
    call = lab.dial().syn()
    kernel.knows[call.key] = State.ESTABLISHED, lab.now
    call.syn()
    assert (call.server, call.state) == ("a", "established")
    assert lab.real("a").ditched_no_answer == 0
    other = lab.dial().syn()
    kernel.knows[other.key] = State.SYN_SENT, lab.now
    assert other.server == "b"
    assert other.syn().server == "a"
    assert lab.real("b").ditched_no_answer == 1
    audit(lab.director)


def answered_in_the_moment(kernel: Kernel, key: bytes, now: float) -> None:
    """The server answers after the carrier was asked, and before it has let go."""
    kernel.knows[key] = State.SYN_SENT, now
    kernel.meanwhile[key] = State.ESTABLISHED


def test_a_repeated_syn_does_not_move_what_is_answered_in_this_very_moment(kernel: Kernel) -> None:
    """R041, A39: a server that repeats its answer does so about when the client repeats its SYN."""
    lab = site(kernel)
    call = lab.dial().syn()
    answered_in_the_moment(kernel, call.key, lab.now)
    call.syn()
    assert (call.server, call.state) == ("a", "established")
    assert kernel.cuts == []
    assert [lab.real(name).connections for name in "ab"] == [1, 0]
    audit(lab.director)


def test_what_is_answered_in_this_very_moment_fails_no_server(kernel: Kernel) -> None:
    """R041, R042 (A34): or its clients would be reset, this one too."""
    quick = [replace(each, failure_threshold=1, failure_clients=1) for each in reals("ab")]
    lab = Scenario(replace(virtual("web", "ab"), on_failure="reset"), quick, carrier=kernel)
    call = lab.dial().syn()
    answered_in_the_moment(kernel, call.key, lab.now)
    call.syn()
    lab.wait(1)
    assert (lab.real("a").state, lab.real("a").ditched_no_answer) == ("in-service", 0)
    assert call.state == "established"
    assert lab.director.take_resets() == []


def test_where_there_is_no_other_server_a_connection_is_let_go_of_once(kernel: Kernel) -> None:
    """R041: when it is held to be ditched; a repeated SYN after that changes nothing."""
    lab = Scenario(virtual("web", "a"), reals("a"), carrier=kernel)
    call = lab.dial()
    for _ in range(4):
        kernel.knows[call.key] = State.SYN_SENT, lab.now
        call.syn()
    assert (lab.real("a").ditched_no_answer, kernel.cuts) == (1, [call.key])


def test_what_is_answered_in_this_very_moment_does_not_time_out(kernel: Kernel) -> None:
    """R041."""
    lab = site(kernel)
    call = lab.dial()
    answered_in_the_moment(kernel, call.key, lab.now)
    lab.wait(31)
    assert [row.state for row in lab.connections()] == ["established"]
    assert lab.real("a").ditched_no_answer == 0
    assert kernel.cuts == []
    audit(lab.director)


def test_what_is_answered_in_this_very_moment_makes_no_room(kernel: Kernel) -> None:
    """A23: the next oldest goes instead."""
    lab = site(kernel, max_connections=2)
    calls = [lab.dial() for _ in range(2)]
    answered_in_the_moment(kernel, calls[0].key, lab.now)
    assert lab.dial().refused is None
    assert (calls[0].state, kernel.cuts) == ("established", [calls[1].key])
    audit(lab.director)


def test_a_flow_that_is_answered_in_this_very_moment_stays_with_its_server(kernel: Kernel) -> None:
    """R012: though that is out of service by now."""
    lab = site(kernel, protocol="udp")
    flow = lab.flow().asks()
    kernel.knows[flow.key] = State.UDP_NEW, lab.now
    kernel.meanwhile[flow.key] = State.UDP_FLOW
    lab.director.operation.set_real("a", setting=ServerState.OUT_OF_SERVICE, now=lab.now)
    flow.asks()
    assert [(row.real, row.state) for row in lab.connections()] == [("a", "udp")]
    assert kernel.cuts == []
    audit(lab.director)
