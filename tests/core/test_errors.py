"""ICMP errors find the connection they are about; some are eaten (common to both datapaths)."""

import pytest

from nfqlb.core.connection import Connection
from nfqlb.core.keys import flipped
from nfqlb.core.verdict import Drop
from tests.core.scenario import Call, Scenario, reals, virtual


@pytest.fixture
def lab() -> Scenario:
    return Scenario(virtual("web", ["a:8080"]), reals("a"))


def to_client(call: Call) -> bytes:
    """The key of a packet as the client gets it: from the virtual server."""
    return call.key[4:8] + call.key[:4] + call.key[10:12] + call.key[8:10]


def to_server(call: Call) -> bytes:
    """The key of a packet as the server gets it: from the client, to the real address and port."""
    reply = call.reply_key
    return reply[4:8] + reply[:4] + reply[10:12] + reply[8:10]


def test_an_error_from_outside_finds_its_connection(lab: Scenario) -> None:
    """R112, R114 (A20): it quotes what the virtual server is believed to have sent."""
    call = lab.connect()
    assert lab.director.error_from_outside(to_client(call)) is call.connection
    assert lab.director.error_from_outside(to_server(call)) is None
    assert lab.director.error_from_outside(call.key) is None


def test_an_error_from_inside_finds_its_connection(lab: Scenario) -> None:
    """R112, R114 (A20): it quotes the translated packet, whoever noticed."""
    call = lab.connect()
    for unreachable in (True, False):
        found = lab.director.error_from_inside(to_server(call), unreachable=unreachable)
        assert found is call.connection
    assert lab.director.error_from_inside(to_client(call), unreachable=True) is None
    assert lab.drops() == {}


@pytest.mark.parametrize("answered", [False, True])
def test_an_unreachable_about_a_half_open_connection_is_eaten(lab: Scenario, answered: bool) -> None:
    """R114: passed on, it would make the client give up; counted as eaten."""
    call = lab.dial()
    if answered:
        call.syn_ack()
    found = lab.director.error_from_inside(to_server(call), unreachable=True)
    assert found is Drop.UNREACHABLE
    assert lab.drops() == {"unreachable-eaten": 1}
    assert call.syn().server == "a", "its next SYN may do better"


def test_other_errors_about_a_half_open_connection_pass(lab: Scenario) -> None:
    """R114: path-MTU discovery lives on "fragmentation needed"."""
    call = lab.dial()
    assert lab.director.error_from_inside(to_server(call), unreachable=False) is call.connection


def test_an_error_about_an_ended_connection_passes(lab: Scenario) -> None:
    """R114: while it lingers for late packets; and then it is nobody's."""
    call = lab.connect().close()
    assert isinstance(lab.director.error_from_inside(to_server(call), unreachable=True), Connection)
    lab.wait(60)
    assert lab.director.error_from_inside(to_server(call), unreachable=True) is None


def test_errors_keep_nothing_alive(lab: Scenario) -> None:
    """R046: they are no activity; anybody can make one up."""
    call = lab.dial()
    for _ in range(6):
        lab.wait(9)
        lab.director.error_from_outside(to_client(call))
        lab.director.error_from_inside(to_server(call), unreachable=False)
    assert lab.connections() == []


def test_an_error_about_another_protocol_is_no_error_about_a_connection() -> None:
    """R112, R114 (A4): a forgotten UDP flow's is let through, whatever TCP does between the same ports."""
    both = [virtual("tcp", "ab", port=53), virtual("udp", "ab", port=53, protocol="udp")]
    lab = Scenario(both, reals("ab"))
    call, flow = lab.connect("tcp", port=50_000), lab.flow("udp", port=50_000).asks()
    assert (call.server, flow.server) == ("a", "a")
    quoted = flipped(flow.answering)
    lab.wait(100)
    assert call.says().state == "established"
    assert lab.director.error_from_inside(quoted, unreachable=True) is None
    assert lab.drops() == {}
