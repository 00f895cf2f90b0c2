"""The table of states: complete, one-way, and what it says of the counters."""

import pytest

from nfqlb.core.spec import Config, Gateway
from nfqlb.core.states import BY_CODE, TRANSITIONS, Event, State, Timeout
from nfqlb.core.verdict import Drop, Pass, Tally
from tests.core.scenario import real


def test_every_state_has_its_row() -> None:
    """R128, R129 (A17): of transitions, and a code of its own for the journal."""
    assert set(TRANSITIONS) == set(State)
    assert len(BY_CODE) == len(State)
    assert {code: state.shown for code, state in BY_CODE.items()} == {
        0: "gone", 1: "syn-sent", 2: "syn-received", 3: "established",
        4: "fin-client", 5: "fin-server", 6: "closed", 7: "udp-new", 8: "udp",
    }  # fmt: skip


def test_states_never_go_back() -> None:
    """R129 (A17): so no counter can rise twice; a connection passes each time-out once."""
    order = [
        State.SYN_SENT, State.SYN_RECEIVED, State.ESTABLISHED,
        State.FIN_CLIENT, State.FIN_SERVER, State.CLOSED, State.UDP_NEW, State.UDP_FLOW,
    ]  # fmt: skip
    stages = [Timeout.HALF_OPEN, Timeout.IDLE, Timeout.CLOSING, Timeout.UDP_NEW, Timeout.UDP]
    for state, events in TRANSITIONS.items():
        for following in events.values():
            assert order.index(following) > order.index(state)
            assert following.timeout is not None
            assert state.timeout is not None
            assert stages.index(following.timeout) >= stages.index(state.timeout)
            assert following.udp is state.udp
            assert (following.counted, following.unanswered) <= (state.counted, state.unanswered)


def test_every_live_state_can_be_reset_and_counts() -> None:
    """R125, R129 (A17): from the SYN to the end, and only then. A UDP flow has no reset."""
    for state in State:
        live = state not in (State.CLOSED, State.GONE)
        assert state.counted is live
        assert (TRANSITIONS[state].get(Event.RESET) is State.CLOSED) is (live and not state.udp)


def test_states_of_a_protocol() -> None:
    """R012: only TCP has a handshake to wait for, and UDP states of its own."""
    assert {state for state in State if state.udp} == {State.UDP_NEW, State.UDP_FLOW}
    assert {state for state in State if state.half_open} == {State.SYN_SENT, State.SYN_RECEIVED}


def test_only_what_is_half_open_is_kept_off_the_short_path() -> None:
    """R078: until the client has proved that it sees the server's answers."""
    assert {state for state in State if state.quick} == {
        State.ESTABLISHED, State.FIN_CLIENT, State.FIN_SERVER, State.CLOSED, State.UDP_FLOW,
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
