"""Virtual servers without a port: they answer on every one, and keep the one that the client uses."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from nfqlb.core import spec
from nfqlb.core.director import Director
from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import VIP, Call, Flow, Scenario, reals, virtual

OTHER_VIP = "203.0.113.2"


def everything(servers: str = "ab", **keys: Any) -> spec.Virtual:
    """A virtual server on every port."""
    return virtual("all", servers, port=None, **keys)


@pytest.fixture
def lab() -> Scenario:
    return Scenario(everything(), reals("ab"))


@pytest.mark.parametrize("port", [1, 80, 8080, 65535])
def test_the_port_stays(lab: Scenario, port: int) -> None:
    """R072, R073, R122, R166, R176 (A21): on the server it is the one that the client used."""
    call = lab.connect(at=port)
    assert call.says().hears().state == "established"
    link = call.connection.link
    assert (link.port, link.inbound.port, link.outbound.port) == (None, b"", b"")
    assert link.inbound.transport == link.inbound.network
    assert lab.connections()[0].real_port == port
    assert lab.virtual().port is None
    assert {server.port for server in lab.virtual().servers} == {None}
    audit(lab.director)


def test_a_decision_names_the_port(lab: Scenario) -> None:
    """R122: the one that the client asked for, and with it the server's."""
    lab.connect(at=8443)
    assert (lab.why().port, lab.why().chosen_port) == (8443, 8443)
    assert {each.port for each in lab.why().candidates} == {None}


def test_ports_share_one_virtual_server(lab: Scenario) -> None:
    """R009, R099: its turns go on from port to port, and one client port may call several."""
    calls = [lab.connect(port=40_000, at=port) for port in (21, 22, 23, 24)]
    assert [call.server for call in calls] == ["a", "b", "a", "b"]
    assert len({id(call.says().hears().connection) for call in calls}) == 4
    assert lab.virtual().connections == 4
    audit(lab.director)


def test_a_client_stays_with_its_server_on_every_port() -> None:
    """R026, R132: which FTP-like services of several connections live on."""
    lab = Scenario(everything(sticky=60), reals("ab"))
    lab.connect(client="192.0.2.9", at=1)
    assert {lab.connect(at=port).server for port in (21, 5000, 60_000)} == {"b"}


def test_a_port_of_its_own_comes_first() -> None:
    """R108: the configuration forbids both side by side; the order is kept all the same."""
    both = [everything("a"), virtual("web", "b", port=80)]
    for virtuals in (both, both[::-1]):
        lab = Scenario(virtuals, reals("ab"))
        web = next(each for each in lab.config.virtuals if each.name == "web")
        assert Call(lab, "192.0.2.1", 40_000, web, 1).syn().server == "b"
        assert lab.dial("all", at=81).server == "a"


def test_every_port_is_of_one_protocol_and_address() -> None:
    """R108: another protocol or address is somebody else's or nobody's."""
    udp = replace(everything("b", protocol="udp"), name="udp")
    lab = Scenario([everything("a"), udp, virtual("other", "a", address=OTHER_VIP)], reals("ab"))
    assert lab.dial("all", at=53).server == "a"
    flow = lab.flow("udp", at=53).asks()
    assert (flow.server, flow.answers().state) == ("b", "udp")
    alone = Scenario([everything("a"), virtual("other", "a", address=OTHER_VIP)], reals("a"))
    assert Flow(alone, "192.0.2.1", 40_000, alone.config.virtuals[0], 53).asks().refused is Drop.NO_VIRTUAL
    audit(lab.director)


def test_replies_that_could_not_be_told_apart() -> None:
    """R169 (A5): another address's mapped port and the same port here lead to one."""
    lab = Scenario([everything("a"), virtual("web", ["a:8080"], address=OTHER_VIP)], reals("a"))
    lab.connect("web", port=40_000)
    assert lab.dial("all", port=40_000, at=8080).refused is Drop.COLLISION
    assert lab.dial("all", port=40_000, at=80).server == "a"
    audit(lab.director)


def test_looking_for_open_ports_fails_no_server(lab: Scenario) -> None:
    """R179 (A42): a client that calls closed ports learns that they are closed, and nothing else happens."""
    for port in range(1, 200):
        lab.dial(at=port).refusal()
    for name in "ab":
        assert (lab.real(name).state, lab.real(name).ditched_reset) == ("in-service", 0)
    assert lab.loads() == {"a": 0, "b": 0}
    audit(lab.director)


def test_servers_that_do_not_answer_fail(lab: Scenario) -> None:
    """R179: silence counts as anywhere; a repeated SYN goes to another server, on the same port."""
    call = lab.dial(at=8080)
    assert call.syn().syn().server == "b"
    assert call.syn_ack().ack().state == "established"
    assert lab.connections()[0].real_port == 8080
    for number in range(8):
        lab.dial(client=f"192.0.2.{number}", at=number + 1)
        lab.wait(31)
        lab.connect(client=f"192.0.2.{number}", at=number + 1)
    assert lab.real("a").state == "failed"
    audit(lab.director)


def test_backups_are_on_the_same_port() -> None:
    """R027, R047, R185: the client's."""
    servers = [replace(reals("a")[0], backup="c"), *reals("cd")]
    lab = Scenario(replace(everything("a"), backup="d"), servers)
    for number in range(8):
        lab.dial(client=f"192.0.2.{number}", at=25)
        lab.wait(31)
    assert lab.real("a").state == "failed"
    call = lab.connect(at=25)
    assert (call.server, lab.connections()[0].real_port) == ("c", 25)
    audit(lab.director)


def test_errors_find_their_connection(lab: Scenario) -> None:
    """R112, R114: and one about a server that a connection has left is eaten."""
    call = lab.dial(at=8080)
    reply = call.reply_key
    quoted = reply[4:8] + reply[:4] + reply[10:12] + reply[8:10]
    assert lab.director.error_from_inside(quoted, unreachable=False) is call.connection
    call.syn().syn()
    assert lab.director.error_from_inside(quoted, unreachable=False) is Drop.UNREACHABLE
    other = quoted[:-2] + (8081).to_bytes(2, "big")
    assert lab.director.error_from_inside(other, unreachable=False) is None


def test_a_successor_takes_over(lab: Scenario) -> None:
    """R187: the port is in the key; a record that the configuration has left behind is not taken."""
    call = lab.connect(at=8080)
    server = call.connection.link.real.address
    successor = Director(lab.config, now=lab.now)
    for port, taken in ((81, False), (8080, True), (8080, False)):
        there = server + port.to_bytes(2, "big")
        assert successor.restore(call.key, there, 3, 0, opened=lab.now, now=lab.now) is taken
    assert not successor.restore(call.key[:-2] + b"\0\1", server + b"\0\1", 9, 1, opened=0, now=lab.now)
    successor.restored(lab.now)
    audit(successor)
    lab.director = successor
    assert call.says().hears().state == "established"


def test_why_it_went_there_is_told_of_each_port(lab: Scenario) -> None:
    """R104, R187 (A21): by the port that the client asked for, which is the server's, too."""
    for port in (21, 5000):
        lab.connect(port=50_000, at=port)
    lab.connect(port=50_001, at=21)
    told = [(each.port, each.chosen, each.chosen_port) for each in lab.decisions(client_port=50_000)]
    assert told == [(5000, "b", 5000), (21, "a", 21)]
    assert [each.client_port for each in lab.decisions(address=ip_address(VIP), port=21)] == [50_001, 50_000]
