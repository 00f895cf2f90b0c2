"""UDP virtual servers: a client's datagrams are a flow, which one server serves while it lives (R012)."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from nfqlb.core import spec
from nfqlb.core.admission import ServerState
from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Call, Flow, Scenario, real, reals, virtual

OTHER_VIP = "203.0.113.2"
VIP6 = "2001:db8::1"


def dns(servers: str = "ab", **keys: Any) -> spec.Virtual:
    """A DNS server's UDP side."""
    return virtual("dns", servers, port=53, protocol="udp", **keys)


@pytest.fixture
def lab() -> Scenario:
    return Scenario(dns(), reals("ab"))


def test_a_datagram_opens_a_flow(lab: Scenario) -> None:
    """R012, R112, R169: it needs no handshake; what follows, both ways, belongs to it."""
    flow = lab.flow().asks()
    assert (flow.server, flow.state) == ("a", "udp-new")
    opened = flow.connection
    assert flow.asks().connection is opened
    assert flow.answers().connection is opened
    assert flow.state == "udp"
    assert flow.asks().connection is opened
    audit(lab.director)


def test_flows_are_shared_out_as_connections_are(lab: Scenario) -> None:
    """R012, R099: by the virtual server's scheduler."""
    assert [lab.flow().asks().server for _ in range(4)] == ["a", "b", "a", "b"]


def test_a_flow_counts_while_it_lives(lab: Scenario) -> None:
    """R043, R125, R129: from its first datagram to its time-out, and no longer."""
    flows = [lab.flow().asks() for _ in range(3)]
    flows[0].answers()
    assert lab.loads() == {"a": 2, "b": 1}
    assert lab.virtual().connections == lab.director.totals().connections == 3
    assert {lab.real(name).unanswered for name in "ab"} == {0}
    audit(lab.director)
    lab.wait(60)
    assert lab.loads() == {"a": 0, "b": 0}
    assert (lab.virtual().connections, lab.virtual().total, lab.real("a").total) == (0, 3, 2)
    assert lab.connections() == []
    audit(lab.director)


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("udp", [2.0, 30.0, 3600.0])
def test_the_udp_time_out_ends_a_flow(answered: bool, udp: float) -> None:
    """R046, A24: after that long without a datagram of either side, and a quarter of it more at most."""
    lab = Scenario(dns(), reals("ab"), udp=udp)
    flow = lab.flow().asks()
    if answered:
        flow.answers()
    for speak in (flow.asks, flow.answers if answered else flow.asks):
        lab.wait(udp * 0.9)
        speak()
    lab.wait(udp * 0.99)
    assert len(lab.connections()) == 1
    lab.wait(udp * 0.26 + 0.5)
    assert lab.connections() == []
    if answered:
        assert flow.answers().refused is Drop.SERVER_UNKNOWN
    audit(lab.director)


def test_other_time_outs_are_not_its_own() -> None:
    """A24: a server's idle time-out and the half-open one are TCP's."""
    lab = Scenario(dns("a"), [real("a", idle_timeout=5)], half_open=3, closing=1, udp=60)
    flow = lab.flow().asks()
    lab.wait(50)
    assert flow.answers().state == "udp"
    lab.wait(50)
    assert flow.answers().state == "udp"


def test_tcp_and_udp_on_one_address_and_port_are_two() -> None:
    """R019, A4: a key knows its protocol, so that a client may use one port of its own for both."""
    lab = Scenario([virtual("tcp", "a", port=53), dns("a")], reals("a"))
    call, flow = lab.connect("tcp", port=40_000), lab.flow("dns", port=40_000).asks()
    assert call.connection is not flow.connection
    assert call.says().hears().connection.link.virtual.spec.name == "tcp"
    assert flow.answers().connection.link.virtual.spec.name == "dns"
    assert lab.loads() == {"a": 2}
    seen = {(each.protocol, each.client_port, each.state) for each in lab.connections()}
    assert seen == {("tcp", 40_000, "established"), ("udp", 40_000, "udp")}
    call.close()
    lab.wait(40)
    audit(lab.director)


def test_a_datagram_to_a_port_that_only_tcp_has() -> None:
    """R108, R117: it is for no virtual server; and the other way round."""
    lab = Scenario([virtual("web", "a")], reals("a"))
    flow = lab.flow()
    assert flow.asks().refused is Drop.NO_VIRTUAL
    assert lab.drops() == {"no-virtual-server": 1}
    lab = Scenario(dns(), reals("ab"))
    assert Call(lab, "192.0.2.1", 40_000, lab.config.virtuals[0], 1).syn().refused is Drop.NO_VIRTUAL


def test_a_server_s_datagram_without_a_flow(lab: Scenario) -> None:
    """R113, R169: it would show the client a real address."""
    flow = lab.flow().asks()
    lab.wait(60)
    assert flow.answers().refused is Drop.SERVER_UNKNOWN
    assert lab.drops() == {"server-no-connection": 1}


def test_sticky_clients_stay() -> None:
    """R026, R131, R132: and meet the same server by TCP where a group says so."""
    lab = Scenario(
        [
            dns("ab", sticky=60, sticky_group="names"),
            virtual("tcp", "ab", port=53, sticky=60, sticky_group="names"),
        ],
        reals("ab"),
    )
    assert lab.flow("dns", client="192.0.2.1").asks().server == "a"
    assert lab.flow("dns", client="192.0.2.2").asks().server == "b"
    assert [lab.flow("dns", client="192.0.2.1").asks().server for _ in range(3)] == ["a"] * 3
    assert [lab.dial("tcp", client="192.0.2.2").server for _ in range(2)] == ["b"] * 2
    audit(lab.director)


def test_clients_are_hashed_alike() -> None:
    """R012: source-hash sends a client's flows to one server, and its connections to the same."""
    lab = Scenario(
        [dns("abcd", scheduler="source-hash"), virtual("tcp", "abcd", port=53, scheduler="source-hash")],
        reals("abcd"),
    )
    for number in range(20):
        client = f"192.0.2.{number}"
        met = {lab.flow("dns", client=client).asks().server for _ in range(3)}
        assert met == {lab.dial("tcp", client=client).server}


def test_a_full_server_takes_no_flow() -> None:
    """R045, R184: its maximum is of connections and flows together; a flow that it has goes on."""
    lab = Scenario([dns("a"), virtual("tcp", "a", port=53)], [real("a", max_connections=2)])
    lab.connect("tcp")
    flow = lab.flow("dns").asks()
    assert lab.real("a").state == "max-capacity"
    assert lab.flow("dns").asks().refused is Drop.NO_SERVER
    assert flow.asks().server == "a"
    audit(lab.director)


def test_an_unanswered_flow_stays_where_it_took_the_last_place() -> None:
    """R045, R184: its server is full because of it, which is no reason to leave."""
    lab = Scenario(dns("ab"), [real("a", max_connections=1), real("b")])
    flow = lab.flow().asks()
    assert lab.real("a").state == "max-capacity"
    assert flow.asks().server == "a"


def test_collisions_choose_another_server() -> None:
    """R169 (A5): one client port towards two virtual addresses and one server could not be told apart."""
    other = replace(dns("a"), name="other", address=IPv4Address(OTHER_VIP))
    lab = Scenario([dns("ab"), other], reals("ab"))
    first = lab.flow("dns", port=40_000).asks()
    assert first.server == "a"
    assert lab.flow("other", port=40_000).asks().refused is Drop.COLLISION
    assert lab.flow("other", port=40_001).asks().server == "a"
    audit(lab.director)


def test_a_full_table_gives_up_what_was_never_answered() -> None:
    """R060 (A23): the oldest such flow, before a half-open connection; an answered flow is kept."""
    lab = Scenario([dns("a"), virtual("tcp", "a", port=53)], reals("a"), max_connections=4)
    answered = lab.flow("dns").asks().answers()
    half_open, old, young = lab.dial("tcp"), lab.flow("dns").asks(), lab.flow("dns").asks()
    new = lab.flow("dns").asks()
    assert old.answers().refused is Drop.SERVER_UNKNOWN
    assert [flow.answers().state for flow in (answered, young, new)] == ["udp"] * 3
    assert lab.dial("tcp").state == "syn-sent"
    assert half_open.ack().refused is Drop.NO_CONNECTION
    assert lab.connect("tcp").server == "a", "in place of the other one"
    assert lab.flow("dns").asks().refused is Drop.TABLE_FULL
    audit(lab.director)


# --- failure


def fail(lab: Scenario, name: str, *, to: str = "tcp") -> None:
    """Let a server not answer until it has failed."""
    number = 0
    while lab.real(name).state != "failed":
        number += 1
        assert number < 50
        lab.dial(to, client=f"198.51.100.{number}")
        lab.wait(31)


def pair(servers: str = "ab") -> Scenario:
    """UDP and TCP of the same servers, where TCP only asks the first one."""
    return Scenario([dns(servers), virtual("tcp", servers[0], port=53)], reals(servers), udp=3600)


def test_silence_fails_no_server(lab: Scenario) -> None:
    """R040, R179: a datagram that is not answered proves nothing."""
    for number in range(100):
        lab.flow(client=f"192.0.2.{number}").asks().asks().asks().asks()
        lab.wait(10)
    lab.wait(100)
    for name in "ab":
        shown = lab.real(name)
        assert (shown.state, shown.ditched_no_answer, shown.unanswered) == ("in-service", 0, 0)


def test_answers_do_not_end_a_run_of_failures() -> None:
    """R041, R179, A25: that TCP is not answered is told by TCP alone."""
    lab = pair()
    flow = lab.flow("dns").asks()
    assert flow.server == "a"
    for number in range(8):
        flow.answers()
        lab.dial("tcp", client=f"198.51.100.{number}")
        lab.wait(31)
    assert lab.real("a").state == "failed"


def test_a_failed_server_gets_no_new_flow_and_keeps_what_it_answered() -> None:
    """R144, R180, R181: the machine has failed, whatever told it."""
    lab = pair()
    flow = lab.flow("dns").asks().answers()
    fail(lab, "a")
    assert {lab.flow("dns").asks().server for _ in range(4)} == {"b"}
    assert flow.asks().server == "a"


def test_an_unanswered_flow_leaves_a_failed_server() -> None:
    """R111, R180 (A39): with the client's next datagram; all counters follow, its old server is forgotten."""
    lab = pair()
    flow = lab.flow("dns").asks()
    old = flow.answering
    fail(lab, "a")
    assert lab.loads() == {"a": 1, "b": 0}
    assert flow.asks().server == "b"
    assert lab.loads() == {"a": 0, "b": 1}
    assert flow.answers().state == "udp"
    assert lab.director.server_datagram(old, lab.now) is Drop.SERVER_UNKNOWN
    audit(lab.director)


@pytest.mark.parametrize(
    ("setting", "server"),
    [("OUT_OF_SERVICE", "b"), ("MAINTENANCE", "b"), ("STICKY_ONLY", "a"), ("IN_SERVICE", "a")],
)
def test_an_unanswered_flow_leaves_a_server_that_is_taken_out(setting: str, server: str) -> None:
    """R039 (A7, A41): not one that is only being drained."""
    lab = pair()
    flow = lab.flow("dns").asks()
    running = lab.director.real_servers["a"]
    running.setting = ServerState[setting]
    running.changed(lab.now)
    assert flow.asks().server == server


def test_an_unanswered_flow_stays_where_nobody_else_is() -> None:
    """R180: its server may yet answer."""
    lab = pair("a")
    flow = lab.flow("dns").asks()
    fail(lab, "a")
    assert flow.asks().server == "a"
    assert lab.flow("dns").asks().refused is Drop.NO_SERVER
    audit(lab.director)


def test_a_flow_that_stays_is_told_of_once() -> None:
    """R104, R187: or one client's datagrams would leave nothing else in the record of decisions."""
    lab = pair("a")
    flow = lab.flow("dns").asks()
    fail(lab, "a")
    for _ in range(10):
        flow.asks()
    assert [(each.chosen, each.refused) for each in lab.decisions(virtual="dns")] == [("a", None)]


def test_no_flow_tests_a_failed_server() -> None:
    """R182: a connection does; what it proves holds for UDP too."""
    lab = pair("a")
    fail(lab, "a")
    lab.wait(100)
    assert lab.flow("dns").asks().refused is Drop.NO_SERVER
    assert lab.real("a").state == "failed"
    lab.connect("tcp")
    assert lab.real("a").state == "in-service"
    assert lab.flow("dns").asks().server == "a"


def test_no_flow_tests_a_failed_server_that_is_being_drained() -> None:
    """R182 (A7): not even one of a client that is bound to it."""
    lab = Scenario([dns("ab", sticky=3600), virtual("tcp", "a", port=53)], reals("ab"), udp=3600)
    client = "192.0.2.9"
    assert lab.flow("dns", client=client).asks().answers().server == "a"
    lab.director.operation.set_real("a", setting=ServerState.STICKY_ONLY, now=lab.now)
    assert lab.flow("dns", client=client).asks().server == "a"
    lab.director.operation.set_real("a", setting=ServerState.IN_SERVICE, now=lab.now)
    fail(lab, "a")
    lab.director.operation.set_real("a", setting=ServerState.STICKY_ONLY, now=lab.now)
    lab.wait(100)
    assert lab.flow("dns", client=client).asks().server == "b"
    assert lab.real("a").state == "failed"
    audit(lab.director)


def test_the_backup_stands_in() -> None:
    """R027, R185: with flows as with connections."""
    lab = Scenario([replace(dns("a"), backup="c"), virtual("tcp", "a", port=53)], reals("ac"), udp=3600)
    fail(lab, "a")
    lab.wait(100)
    assert lab.flow("dns").asks().server == "c"


def test_no_flow_tests_a_failed_backup() -> None:
    """R182, R185: as with any other server."""
    lab = Scenario(
        [replace(dns("a"), backup="c"), virtual("tcp", "a", port=53), virtual("other", "c", port=54)],
        reals("ac"),
    )
    fail(lab, "a")
    fail(lab, "c", to="other")
    lab.wait(100)
    assert lab.flow("dns").asks().refused is Drop.NO_SERVER
    assert lab.real("c").state == "failed"


# --- errors


def to_server(flow: Flow) -> bytes:
    """The key of a datagram as the server gets it."""
    reply = flow.answering
    return reply[4:8] + reply[:4] + reply[10:12] + reply[8:10] + reply[12:]


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("unreachable", [False, True])
def test_errors_about_a_flow_pass(lab: Scenario, answered: bool, unreachable: bool) -> None:
    """R114 (A20): nothing would be repeated for the better; it is all that the client ever hears."""
    flow = lab.flow().asks()
    if answered:
        flow.answers()
    found = lab.director.error_from_inside(to_server(flow), unreachable=unreachable)
    assert found is flow.connection
    key = flow.key
    quoted = key[4:8] + key[:4] + key[10:12] + key[8:10] + key[12:]
    assert lab.director.error_from_outside(quoted) is flow.connection
    assert lab.director.error_from_outside(quoted[:-1]) is None, "TCP's is another"


def test_an_error_about_a_flow_that_has_moved_is_eaten() -> None:
    """R114: it tells of a server that the flow has left, and would show its address."""
    lab = pair()
    flow = lab.flow("dns").asks()
    quoted = to_server(flow)
    fail(lab, "a")
    flow.asks()
    assert lab.director.error_from_inside(quoted, unreachable=True) is Drop.UNREACHABLE
    assert lab.director.error_from_inside(quoted[:-1], unreachable=True) is None, "TCP's is nobody's"


def test_an_error_about_nobody_s_datagram_is_not_taken_for_a_connection_s() -> None:
    """R019, R114: a connection with the same ports has moved; the datagram straight to its server has not."""
    lab = Scenario([virtual("tcp", "ab", port=53), dns("ab")], reals("ab"))
    call = lab.dial("tcp", port=40_000)
    reply = call.reply_key
    quoted = reply[4:8] + reply[:4] + reply[10:12] + reply[8:10]
    call.syn().syn()
    assert lab.director.error_from_inside(quoted, unreachable=True) is Drop.UNREACHABLE
    assert lab.director.error_from_inside(quoted + b"\x11", unreachable=True) is None


def test_an_error_about_nobody_s_connection_is_not_taken_for_a_flow_s() -> None:
    """R019, R114: not even where its port's last byte is UDP's number."""
    virtuals = [virtual("dns", "ab", port=17, protocol="udp"), virtual("tcp", "a", port=1)]
    lab = Scenario(virtuals, reals("ab"), udp=3600)
    flow = lab.flow("dns").asks()
    quoted = to_server(flow)
    fail(lab, "a")
    flow.asks()
    assert lab.director.error_from_inside(quoted, unreachable=True) is Drop.UNREACHABLE
    assert quoted[:-1].endswith(b"\x11")
    assert lab.director.error_from_inside(quoted[:-1], unreachable=True) is None


# --- IPv6


def test_ipv6_flows_and_connections() -> None:
    """R012, R019, R169: keys of 36 and 37 bytes, one core."""
    servers = [spec.Real("a", IPv6Address("fd00::a")), spec.Real("b", IPv6Address("fd00::b"))]
    lab = Scenario(
        [
            virtual("tcp", "ab", address=VIP6, port=53, sticky=60, sticky_mask=64),
            virtual("dns", "ab", address=VIP6, port=53, protocol="udp"),
        ],
        servers,
    )
    call = lab.connect("tcp", client="2001:db8:1::1", port=40_000)
    flow = lab.flow("dns", client="2001:db8:1::1", port=40_000).asks().answers()
    assert (len(call.key), len(flow.key)) == (36, 37)
    assert (call.says().hears().server, flow.asks().server) == ("a", "a")
    assert lab.dial("tcp", client="2001:db8:1::ffff").server == "a", "of the same /64"
    assert lab.dial("tcp", client="2001:db8:2::1").server == "b"
    shown = lab.connections(client="2001:db8:1::1")
    assert {(each.protocol, each.client_port, each.real_port) for each in shown} == {
        ("tcp", 40_000, 53),
        ("udp", 40_000, 53),
    }
    audit(lab.director)
