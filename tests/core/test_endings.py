"""A connection ends: FIN by either side, resets and their windows (R125-R129, A17, RFC 5961)."""

import pytest

from nfqlb.core.connection import RESET_WINDOW
from nfqlb.core.segment import ACK, FIN, RST, SYN
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, reals, virtual


@pytest.fixture
def lab() -> Scenario:
    return Scenario(virtual("web", "ab"), reals("ab"))


def test_the_count_rises_with_the_syn(lab: Scenario) -> None:
    """R043, R125: NC counts a connection from its SYN on."""
    lab.dial()
    assert lab.loads() == {"a": 1, "b": 0}
    assert lab.virtual().connections == 1
    assert lab.director.totals().connections == 1


def test_the_handshake_moves_the_state(lab: Scenario) -> None:
    """R075, R077, R078: SYN, SYN-ACK, ACK."""
    call = lab.dial()
    assert call.state == "syn-sent"
    assert call.syn_ack().state == "syn-received"
    assert call.ack().state == "established"
    assert lab.loads() == {"a": 1, "b": 0}


def test_an_answer_ends_the_unanswered_syn(lab: Scenario) -> None:
    """R038, R183: the count rises when the SYN goes to the server and falls at its SYN-ACK, once."""
    call = lab.dial()
    assert lab.real("a").unanswered == 1
    call.syn()
    assert lab.real("a").unanswered == 1, "connections are counted, not SYNs (A1)"
    call.syn_ack()
    assert lab.real("a").unanswered == 0
    call.syn_ack().ack().says().hears()
    assert lab.real("a").unanswered == 0


@pytest.mark.parametrize("acknowledged", [1000, 999, 1000 - 2**31, 1001 + 2 * RESET_WINDOW])
def test_an_answer_to_an_earlier_attempt_is_none_to_this_one(lab: Scenario, acknowledged: int) -> None:
    """R183 (RFC 9293 3.10.7.3): a SYN-ACK must acknowledge the SYN."""
    call = lab.dial(isn=1000)
    call.server_sends(SYN | ACK, sequence=5, acknowledges=acknowledged)
    assert call.state == "syn-sent"
    assert lab.real("a").unanswered == 1
    assert call.syn_ack().ack().state == "established"


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_connection_ends_when_both_sides_have_closed(lab: Scenario, first: str) -> None:
    """R128, R129 (A17): one FIN leaves it counted, the second ends it; late segments change no count."""
    call = lab.connect().says().hears()
    both = (call.fin, call.server_fin) if first == "client" else (call.server_fin, call.fin)
    both[0]()
    assert call.state == f"fin-{first}"
    assert lab.loads() == {"a": 1, "b": 0}
    both[0]()
    assert call.state == f"fin-{first}", "the same FIN once more"
    both[1]()
    assert call.state == "closed"
    assert lab.loads() == {"a": 0, "b": 0}
    call.ack().server_ack().fin().server_fin().reset().server_reset()
    assert call.state == "closed"
    assert lab.loads() == {"a": 0, "b": 0}
    audit(lab.director)


def test_one_side_may_go_on_talking_after_the_other_has_closed(lab: Scenario) -> None:
    """R128: a half-closed connection is alive, translated and counted."""
    call = lab.connect().fin()
    for _ in range(5):
        lab.wait(300)
        call.hears()
    assert call.server_fin().state == "closed"


def test_a_closed_connection_is_still_translated_for_a_while(lab: Scenario) -> None:
    """R129 (A24): late packets of both sides, for the closing time-out."""
    call = lab.connect().close()
    lab.wait(9)
    assert call.ack().server == "a"
    assert call.server_ack().server == "a"
    assert [each.state for each in lab.connections()] == ["closed"]
    lab.wait(21)
    assert lab.connections() == []


@pytest.mark.parametrize("by", ["client", "server"])
def test_a_reset_closes(lab: Scenario, by: str) -> None:
    """R129 (A17): by either side, and the count falls once."""
    call = lab.connect().says(300).hears(5000)
    call.reset() if by == "client" else call.server_reset()
    assert call.state == "closed"
    assert lab.loads() == {"a": 0, "b": 0}
    call.reset().server_reset()
    assert lab.loads() == {"a": 0, "b": 0}
    assert call.ack().server == "a", "it stays translatable"
    audit(lab.director)


@pytest.mark.parametrize("by", ["client", "server"])
@pytest.mark.parametrize("past", [-1_000_000, -200_000, RESET_WINDOW + 70_000, 2**31, 2**31 + 1])
def test_a_reset_outside_the_window_closes_nothing(lab: Scenario, by: str, past: int) -> None:
    """R129 (A17 as overridden; RFC 5961): who guesses at random mostly misses."""
    call = lab.connect().says(300).hears(5000).ack()
    call.server_ack()
    call.reset(past) if by == "client" else call.server_reset(past)
    assert call.state == "established"
    assert lab.loads() == {"a": 1, "b": 0}


@pytest.mark.parametrize("by", ["client", "server"])
@pytest.mark.parametrize("isn", [0, 2**32 - 200, 2**31 - 100])
def test_windows_wrap_around(by: str, isn: int) -> None:
    """R129 (RFC 9293 3.4): sequence numbers are modulo 2**32."""
    lab = Scenario(virtual("web", "a"), reals("a"))
    call = lab.dial(isn=isn).syn_ack(isn).ack().says(300).hears(300).ack()
    call.reset() if by == "client" else call.server_reset()
    assert call.state == "closed"


def test_a_reset_far_ahead_of_the_last_acknowledgement_fits_its_own_side_s_newest(lab: Scenario) -> None:
    """R129: a client that aborts an upload with megabytes on their way."""
    call = lab.connect()
    call.server_ack()
    for _ in range(60):
        call.says(60_000)
    assert call.reset().state == "closed"


def test_a_server_s_reset_may_follow_its_newest_data(lab: Scenario) -> None:
    """R129: a server that is killed in the middle of a download, megabytes ahead of the client."""
    call = lab.connect().says(100)
    for _ in range(60):
        call.hears(60_000)
    assert call.server_reset().state == "closed"


def test_a_forger_cannot_make_its_own_reset_fit(lab: Scenario) -> None:
    """R129 (A17 as overridden): a made-up segment, then a reset next to it, close nothing."""
    call = lab.connect().says(300).hears(5000).ack()
    call.server_ack()
    for sequence in range(0x2000_0000, 0xF000_0000, 0x1000_0000):
        call.client_sends(ACK, sequence=sequence, acknowledges=0)
        call.client_sends(RST, sequence=sequence)
    assert call.state == "established"
    call.says()
    assert call.reset().state == "closed", "the client's own still does"


def test_a_forger_cannot_keep_a_server_s_reset_from_counting(lab: Scenario) -> None:
    """R129: what comes on the server line comes from the server."""
    call = lab.connect().hears(5000)
    call.client_sends(ACK, sequence=0x7000_0000, acknowledges=0x6000_0000)
    assert call.server_reset().state == "closed"


def test_a_refusal_closes_at_once(lab: Scenario) -> None:
    """R183 (A42): a reset in answer to the SYN; neither a connection nor an unanswered SYN is left."""
    call = lab.dial().refusal()
    assert call.state == "closed"
    assert lab.loads() == {"a": 0, "b": 0}
    assert lab.real("a").unanswered == 0
    assert call.syn().server == "b", "the next attempt is a new connection"


@pytest.mark.parametrize("acknowledged", [1000, 999, 0, 2**31])
def test_a_refusal_must_acknowledge_the_syn(lab: Scenario, acknowledged: int) -> None:
    """R183 (RFC 9293 3.10.7.3): a late reset of an earlier connection is none."""
    call = lab.dial(isn=1000).server_sends(RST | ACK, sequence=0, acknowledges=acknowledged)
    assert call.state == "syn-sent"
    assert lab.real("a").unanswered == 1


def test_a_syn_may_carry_data(lab: Scenario) -> None:
    """R183 (RFC 7413): what answers or refuses it acknowledges the data too."""
    call = lab.dial(isn=1000).server_sends(SYN | ACK, sequence=5, acknowledges=1001 + 1400)
    assert call.state == "syn-received"
    assert lab.dial(isn=1000).server_sends(RST | ACK, sequence=0, acknowledges=2401).state == "closed"


def test_a_client_may_abort_its_attempt(lab: Scenario) -> None:
    """R129 (A17): a reset before and after the server's answer."""
    assert lab.dial().reset().state == "closed"
    assert lab.dial().syn_ack().reset().state == "closed"
    assert lab.loads() == {"a": 0, "b": 0}
    assert lab.real("a").unanswered == lab.real("b").unanswered == 0


def test_a_server_may_give_up_a_half_open_connection(lab: Scenario) -> None:
    """R129 (A17): reset by the server after its SYN-ACK, inside its window only."""
    call = lab.dial().syn_ack()
    assert call.server_reset(past=1_000_000).state == "syn-received"
    assert call.server_reset().state == "closed"


def forged_ack(call: Call) -> Call:
    """An ACK by somebody who never saw the server's SYN-ACK."""
    return call.client_sends(ACK, acknowledges=0x1234_5678)


def test_a_forged_ack_does_not_establish(lab: Scenario) -> None:
    """R078: a flood of forged SYNs and ACKs leaves half-open connections, which go first."""
    call = lab.dial().syn_ack()
    assert forged_ack(call).state == "syn-received"
    assert call.client_sends(FIN | ACK, acknowledges=0x1234_5678).state == "syn-received"
    assert call.ack().state == "established"


def test_a_server_may_answer_with_another_number(lab: Scenario) -> None:
    """R077, R078: it had forgotten its first answer when the SYN came again; the newest counts."""
    call = lab.dial().syn_ack(isn=5).syn().syn_ack(isn=3_000_000_000)
    assert call.client_sends(ACK, acknowledges=6).state == "syn-received"
    assert call.ack().state == "established"


def test_data_with_the_first_ack_establishes(lab: Scenario) -> None:
    """R078: the bare ACK was lost, the request carries it."""
    assert lab.dial().syn_ack().says().state == "established"


def test_a_fin_right_after_the_handshake(lab: Scenario) -> None:
    """R128: the ACK of the handshake was lost, and the next segment carries the FIN."""
    assert lab.dial().syn_ack().fin().server_fin().state == "closed"
    assert lab.dial().syn_ack().server_fin().fin().state == "closed"
    assert lab.loads() == {"a": 0, "b": 0}


def test_a_fin_before_the_answer_changes_nothing(lab: Scenario) -> None:
    """R128: nobody can close what was never answered."""
    call = lab.dial()
    assert call.fin().state == "syn-sent"
    assert call.server_sends(FIN | ACK).state == "syn-sent"
    assert lab.loads() == {"a": 1, "b": 0}


def test_a_reset_on_a_fin_state_closes(lab: Scenario) -> None:
    """R129 (A17): an impatient side resets after the other's FIN."""
    for ending in ("fin", "server_fin"):
        call = lab.connect()
        getattr(call, ending)()
        assert call.reset().state == "closed"
    assert lab.loads() == {"a": 0, "b": 0}
