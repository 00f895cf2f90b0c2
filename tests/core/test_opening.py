"""A connection is opened: what a SYN does, and what only a SYN may do (figs 5, 6 and 7A)."""

from dataclasses import replace

import pytest

from nfqlb.core.connection import Connection
from nfqlb.core.segment import ACK, FIN, RST, SYN
from nfqlb.core.verdict import Drop
from tests.core.scenario import VIP, Scenario, address_of, real, reals, virtual


def test_a_syn_opens_a_connection() -> None:
    """R075, R107-R110, R118-R124, R130, R141, R142: SYN, no connection yet: one is made, and routed by."""
    lab = Scenario(virtual("web", ["a:8080"]), reals("a"))
    call = lab.dial(client="192.0.2.7", port=40123)
    assert call.server == "a"
    (seen,) = lab.connections()
    assert (str(seen.client), seen.client_port) == ("192.0.2.7", 40123)
    assert (seen.virtual, seen.real, seen.real_port) == ("web", "a", 8080)
    assert (seen.state, seen.age, seen.idle) == ("syn-sent", 0.0, 0.0)


def test_the_connection_holds_its_four_addresses_and_ports() -> None:
    """R019, R051-R056, R058, R119, R122: foreign and virtual address and port, server and mapped port."""
    lab = Scenario(virtual("web", ["a:8080"], port=81), reals("a"))
    connection = lab.dial(client="192.0.2.7", port=0x1234).connection
    assert connection.inbound == bytes((192, 0, 2, 7, 203, 0, 113, 1, 0x12, 0x34, 0, 81))
    assert connection.outbound == bytes((10, 0, 0, 1, 192, 0, 2, 7, 0x1F, 0x90, 0x12, 0x34))
    assert connection.link.real.address == address_of("a").packed
    assert connection.link.port == 8080


def test_parallel_connections_of_one_client_are_told_apart_by_port() -> None:
    """R059, R108, R112 (A4): the whole quad is matched, not the pair of addresses."""
    lab = Scenario(virtual("web", "ab"), reals("ab"))
    first, second = lab.connect(port=40001), lab.connect(port=40002)
    assert (first.server, second.server) == ("a", "b")
    first.fin()
    assert lab.connections()[0].state == "established"
    assert first.says().server == "a"
    assert second.says().server == "b"


def test_two_ports_of_one_virtual_address_are_told_apart() -> None:
    """R009, R112 (A4): the same client address and port, once to port 80 and once to port 443."""
    lab = Scenario([virtual("web", "a"), virtual("tls", "b", port=443)], reals("ab"))
    web, tls = lab.dial("web", port=40001), lab.dial("tls", port=40001)
    assert (web.server, tls.server) == ("a", "b")
    assert web.syn().server == "a"


@pytest.mark.parametrize("flags", [ACK, FIN | ACK, RST, SYN | ACK, 0])
def test_only_a_syn_may_lack_a_connection(flags: int) -> None:
    """R113, R114, R117 (A20): whatever else a client sends without a connection is dropped and counted."""
    lab = Scenario(virtual("web", "a"), reals("a"))
    assert lab.call().client_sends(flags).refused is Drop.NO_CONNECTION
    assert lab.drops() == {"no-connection": 1}
    assert lab.connections() == []
    assert lab.loads() == {"a": 0}


def test_a_server_s_packet_without_a_connection_is_dropped() -> None:
    """R007, R114, R169: let through, it would show the client a real address."""
    lab = Scenario(virtual("web", "a"), reals("a"))
    call = lab.connect()
    call.close()
    lab.wait(60)
    assert call.hears().refused is Drop.SERVER_UNKNOWN
    assert lab.drops() == {"server-no-connection": 1}


def test_a_syn_for_nobody_is_refused() -> None:
    """R108, R114 (A19): a SYN for an address or a port that no virtual server has."""
    lab = Scenario(virtual("web", "a"), reals("a"))
    stranger = virtual("web", "a", port=81)
    other = Scenario(stranger, reals("a")).call()
    other._scenario = lab
    assert other.syn().refused is Drop.NO_VIRTUAL
    assert lab.drops() == {"no-virtual-server": 1}
    assert lab.connections() == []


def test_a_repeated_syn_goes_to_the_same_server() -> None:
    """R110, R111, F26: a retransmission finds its connection, makes no second one and moves no counter."""
    lab = Scenario(virtual("web", "abc"), [replace(real(name), attempts=0) for name in "abc"])
    call = lab.dial()
    first = call.connection
    for wait in (1, 2, 4, 8):
        lab.wait(wait)
        assert call.syn().connection is first
    assert first.attempts == 5
    assert lab.loads() == {"a": 1, "b": 0, "c": 0}
    assert lab.real("a").unanswered == 1
    assert lab.virtual().total == 1


def test_a_repeated_syn_is_known_after_the_server_has_answered() -> None:
    """R111 (A18): the SYN-ACK was lost on its way to the client."""
    lab = Scenario(virtual("web", "abc"), reals("abc"))
    call = lab.dial().syn_ack()
    first = call.connection
    assert call.syn().connection is first
    assert call.syn_ack().ack().state == "established"


@pytest.mark.parametrize("flags", [ACK, FIN | ACK, FIN, 0, SYN | ACK, ACK | 0x08])
def test_a_stray_segment_does_not_make_a_repeated_syn_look_new(flags: int) -> None:
    """R111 (A18): a segment left over from earlier, or forged, before the server has answered."""
    lab = Scenario(virtual("web", "abc"), reals("abc"))
    call = lab.dial()
    first = call.connection
    call.client_sends(flags, sequence=4_000_000_000, acknowledges=17)
    assert call.state == "syn-sent"
    assert call.syn().connection is first


@pytest.mark.parametrize("answered", [False, True])
def test_another_syn_on_a_half_open_connection_is_a_new_one(answered: bool) -> None:
    """R111 (A18): a SYN with another sequence number while half-open: the server is chosen afresh."""
    lab = Scenario(virtual("web", "abc"), reals("abc"))
    call = lab.dial(isn=1000)
    if answered:
        call.syn_ack()
    first = call.connection
    assert call.syn(isn=9_000_000).connection is not first
    assert call.server == "b"
    assert lab.loads() == {"a": 0, "b": 1, "c": 0}
    assert [lab.real(name).unanswered for name in "abc"] == [0, 1, 0]
    assert len(lab.connections()) == 1


def test_the_old_server_s_late_answer_finds_nothing_after_a_new_attempt() -> None:
    """R169 (A18): it must not be mistaken for the new server's."""
    lab = Scenario(virtual("web", "ab"), reals("ab"))
    call = lab.dial(isn=1000)
    late = call.reply_key
    call.syn(isn=9_000_000)
    call._answering = late
    assert call.syn_ack().refused is Drop.SERVER_UNKNOWN


def test_a_closed_connection_s_port_can_be_used_again_at_once() -> None:
    """R111 (A18), F26: a SYN on a connection that has ended opens a new one, chosen afresh."""
    lab = Scenario(virtual("web", "ab"), reals("ab"))
    call = lab.connect().close()
    old = call.connection
    assert old.state.shown == "closed"
    assert call.syn(isn=5_000_000).connection is not old
    assert call.server == "b"
    assert call.syn_ack().ack().state == "established"
    assert (lab.virtual().total, lab.virtual().connections) == (2, 1)


@pytest.mark.parametrize("ending", ["", "client", "server"])
def test_a_new_syn_on_an_established_connection_goes_to_the_same_server(ending: str) -> None:
    """R110 (A18 as overridden; RFC 5961): the server's challenge ACK settles whether it is real."""
    lab = Scenario(virtual("web", "abc"), reals("abc"))
    call = lab.connect()
    if ending:
        call.fin() if ending == "client" else call.server_fin()
    first, state = call.connection, call.state
    assert call.syn(isn=5_000_000).connection is first
    assert call.state == state
    assert lab.loads() == {"a": 1, "b": 0, "c": 0}


def test_a_forged_syn_changes_nothing_of_an_established_connection() -> None:
    """R110 (A18 as overridden): neither its server nor how long it has been idle nor its window."""
    lab = Scenario(virtual("web", "ab"), [real("a", idle_timeout=100), real("b", idle_timeout=100)])
    call = lab.connect()
    for _ in range(3):
        lab.wait(30)
        assert call.syn(isn=3_000_000_000).state == "established"
    assert call.reset(past=1).state == "established", "a reset next to the forged SYN"
    lab = Scenario(virtual("web", "ab"), [real("a", idle_timeout=100), real("b", idle_timeout=100)])
    call = lab.connect()
    for _ in range(3):
        lab.wait(30)
        call.syn(isn=3_000_000_000)
    lab.wait(30)
    assert lab.connections() == [], "forged SYNs alone do not keep it"


def test_a_challenge_settles_a_port_that_is_used_again() -> None:
    """R111 (A18 as overridden), F26: challenge ACK, reset, the SYN repeated: a new connection."""
    lab = Scenario(virtual("web", "ab"), reals("ab"))
    call = lab.connect()
    expected = call.client_next
    call.says(500)
    expected += 500
    call.server_sends(ACK, acknowledges=expected)
    old = call.connection
    lab.wait(100)
    call.syn(isn=2_500_000_000)
    call.server_sends(ACK, acknowledges=expected)  # challenge
    call.client_sends(RST, sequence=expected)
    assert old.state.shown == "closed"
    assert call.syn().connection is not old
    assert call.server == "b"


def test_every_connection_is_tracked_to_its_end() -> None:
    """R187, R053, R055: who is connected through what to whom, for each of them."""
    lab = Scenario([virtual("web", "ab"), virtual("tls", "ab", port=443)], reals("ab"))
    for client in ("192.0.2.1", "192.0.2.2"):
        for to in ("web", "tls"):
            lab.connect(to, client=client)
    seen = lab.connections()
    assert [(str(each.client), each.virtual, each.real) for each in seen] == [
        ("192.0.2.2", "tls", "b"),
        ("192.0.2.2", "web", "b"),
        ("192.0.2.1", "tls", "a"),
        ("192.0.2.1", "web", "a"),
    ]
    assert [str(each.client) for each in lab.connections(client="192.0.2.2")] == ["192.0.2.2"] * 2
    assert [each.virtual for each in lab.connections(to="tls")] == ["tls"] * 2
    assert len(lab.director.connections(lab.now, limit=3, client=None, virtual=None)) == 3


def test_other_services_work_alike() -> None:
    """R011: any TCP service; here ones where the server speaks first, and an odd port."""
    services = [virtual(f"p{port}", ["a"], port=port) for port in (21, 23, 25, 119, 1433, 65535)]
    lab = Scenario(services, reals("a"))
    for service in services:
        call = lab.connect(service.name)
        assert call.hears().says().close().state == "closed"
    assert lab.real("a").total == 6


def test_the_client_line_and_the_server_line_are_told_apart() -> None:
    """R002-R004, R107: the same bytes of a key mean nothing on the other line."""
    lab = Scenario(virtual("web", "a"), reals("a"))
    call = lab.connect()
    call._answering, reply = call.key, call.reply_key
    assert call.server_ack().refused is Drop.SERVER_UNKNOWN
    call.key = reply
    assert call.ack().refused is Drop.NO_CONNECTION


def test_the_virtual_address_is_all_a_client_ever_uses() -> None:
    """R005, R021: a connection is known by the virtual server's address, never by the real one."""
    lab = Scenario(virtual("web", "a"), reals("a"))
    assert str(lab.virtual().address) == VIP
    direct = lab.call()
    direct.key = direct.key[:4] + address_of("a").packed + direct.key[8:]
    assert direct.syn().refused is Drop.NO_VIRTUAL
    assert not any(isinstance(each, Connection) for each in lab.connections())
