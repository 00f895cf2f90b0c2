"""The table of states: complete, one-way, and what it says of the counters."""

import pytest

from nfqlb.core.spec import Config, Gateway
from nfqlb.core.states import BY_CODE, TRANSITIONS, Event, State, Timeout, counting
from nfqlb.core.verdict import Drop, Pass, Tally
from tests.core.recount import COUNTED
from tests.core.scenario import real


def test_every_state_has_its_row() -> None:
    """R128, R129 (A17): of transitions, and a code of its own for the journal."""
    assert set(TRANSITIONS) == set(State)
    assert len(BY_CODE) == len(State)
    assert {code: state.shown for code, state in BY_CODE.items()} == {
        0: "gone", 1: "syn-sent", 2: "syn-received", 3: "established",
        4: "fin-client", 5: "fin-server", 6: "closed", 7: "udp-new", 8: "closed", 9: "udp",
    }  # fmt: skip


def test_states_never_go_back() -> None:
    """R129 (A17): so no counter can rise twice; a connection passes each time-out once."""
    order = [
        State.SYN_SENT, State.SYN_RECEIVED, State.ESTABLISHED,
        State.FIN_CLIENT, State.FIN_SERVER, State.CLOSED, State.ABORTED, State.UDP_NEW, State.UDP_FLOW,
    ]  # fmt: skip
    stages = [Timeout.HALF_OPEN, Timeout.IDLE, Timeout.CLOSING, Timeout.UDP_NEW, Timeout.UDP]
    for state, events in TRANSITIONS.items():
        for following in events.values():
            assert order.index(following) > order.index(state)
            assert following.timeout is not None
            assert state.timeout is not None
            assert stages.index(following.timeout) >= stages.index(state.timeout)
            assert following.udp is state.udp
            assert following.unanswered <= state.unanswered


@pytest.mark.parametrize("count_on", ["syn", "syn-ack"])
@pytest.mark.parametrize("close_on", ["fin", "both", "time-out"])
def test_a_connection_counts_from_one_event_to_another(count_on: str, close_on: str) -> None:
    """R125-R129 (A17): whatever was chosen, it rises once and falls once, and a reset ends it."""
    counted = counting(count_on, close_on)
    assert {state for state in State if counted[state]} == COUNTED[count_on] & COUNTED[close_on]
    for state, events in TRANSITIONS.items():
        for following in events.values():
            rises = (state, following) == (State.SYN_SENT, State.SYN_RECEIVED) and count_on == "syn-ack"
            assert rises or counted[following] <= counted[state]
    assert not counted[State.ABORTED]
    assert not counted[State.GONE]


def test_every_state_can_be_reset() -> None:
    """R129 (A17): in the middle of a close, too, and after it, as it may still count; UDP has no reset."""
    for state in State:
        tcp = not (state is State.ABORTED or state.udp or state is State.GONE)
        assert (TRANSITIONS[state].get(Event.RESET) is State.ABORTED) is tcp


def test_states_of_a_protocol() -> None:
    """R012: only TCP has a handshake to wait for, and UDP states of its own."""
    assert {state for state in State if state.udp} == {State.UDP_NEW, State.UDP_FLOW}
    assert {state for state in State if state.half_open} == {State.SYN_SENT, State.SYN_RECEIVED}


def test_only_what_is_half_open_is_kept_off_the_short_path() -> None:
    """R078: until the client has proved that it sees the server's answers."""
    assert {state for state in State if state.quick} == {
        State.ESTABLISHED, State.FIN_CLIENT, State.FIN_SERVER, State.CLOSED, State.ABORTED, State.UDP_FLOW,
    }  # fmt: skip
    assert {state for state in State if state.unanswered} == {State.SYN_SENT}


def test_refusals_are_counted_by_reason() -> None:
    """R113, R114 (A20): packets let through are no drops."""
    tally = Tally()
    for reason in (Drop.NO_CONNECTION, Drop.CUT, Drop.NO_CONNECTION, Pass.NOT_OURS):
        tally.add(reason)
    assert tally.drops() == {"no-connection": 2, "cut": 1}
    assert (tally.count(Pass.NOT_OURS), tally.count(Drop.MALFORMED)) == (1, 0)


def test_a_real_server_is_found_by_name() -> None:
    """R031: in the configuration, which is kept as it was read."""
    config = Config(Gateway(("eth0",), ("eth1",)), (real("a"), real("b")), ())
    assert config.real("b") is config.reals[1]
    with pytest.raises(KeyError):
        config.real("c")
