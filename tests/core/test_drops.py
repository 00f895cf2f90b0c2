"""Whose packets were dropped: the gateway counts them all, a virtual server its own."""

from collections.abc import Mapping
from typing import Any

import pytest

from nfqlb.core.admission import ServerState
from nfqlb.core.keys import flipped
from nfqlb.core.segment import ACK, Segment
from nfqlb.core.verdict import Drop
from tests.core.scenario import Scenario, address_of, real, reals, virtual

CLIENT = bytes((198, 51, 100, 99))


def of(lab: Scenario, name: str) -> Mapping[str, int]:
    """What a virtual server has lost, by reason."""
    return lab.virtual(name).drops


def reply(server: str, port: int, end: bytes = b"") -> bytes:
    """The key of a packet that a server sends to a client whom nobody knows."""
    ports = port.to_bytes(2, "big") + bytes((0x9C, 0x40))
    return address_of(server).packed + CLIENT + ports + end


@pytest.fixture
def lab() -> Scenario:
    return Scenario([virtual("web", "a"), virtual("tls", "ab", port=443)], reals("ab"))


def test_a_segment_without_a_connection(lab: Scenario) -> None:
    """R113, R117: by the address and port that it was sent to."""
    lab.call("tls").ack()
    lab.call("tls").fin()
    lab.call("web").ack()
    assert (of(lab, "web"), of(lab, "tls")) == ({"no-connection": 1}, {"no-connection": 2})
    assert lab.drops() == {"no-connection": 3}


def test_a_connection_that_could_not_be_opened() -> None:
    """R025, A23, A28: no server, a full table, the virtual server out of service."""
    services = [virtual("web", "a"), virtual("tls", "b", port=443)]
    lab = Scenario(services, [real("a", max_connections=1), real("b")], max_connections=2)
    lab.connect("web")
    assert lab.dial("web").refused is Drop.NO_SERVER
    lab.connect("tls")
    assert lab.dial("tls").refused is Drop.TABLE_FULL
    lab.director.operation.set_virtual("tls", ServerState.OUT_OF_SERVICE)
    assert lab.dial("tls").refused is Drop.OUT_OF_SERVICE
    assert of(lab, "web") == {"no-server": 1}
    assert of(lab, "tls") == {"table-full": 1, "out-of-service": 1}


def test_what_is_for_nobody_is_counted_for_nobody(lab: Scenario) -> None:
    """R108: another port of the address."""
    key = CLIENT + bytes((203, 0, 113, 1)) + bytes((0x9C, 0x40)) + (81).to_bytes(2, "big")
    assert lab.director.client_segment(Segment(key, ACK, bytes(8)), lab.now) is Drop.NO_CONNECTION
    assert lab.drops() == {"no-connection": 1}
    assert (of(lab, "web"), of(lab, "tls")) == ({}, {})


@pytest.mark.parametrize(
    ("server", "port", "web", "tls"),
    [
        ("a", 80, 1, 0),
        ("b", 443, 0, 1),
        ("b", 80, 0, 0),  # stands behind neither
        ("c", 80, 0, 0),
    ],
)
def test_what_a_server_sends_without_a_connection(
    lab: Scenario, server: str, port: int, web: int, tls: int
) -> None:
    """R169: by the server's address and port, where one virtual server alone has them."""
    lab.director.server_segment(Segment(reply(server, port), ACK, bytes(8)), lab.now)
    assert lab.drops() == {"server-no-connection": 1}
    assert sum(of(lab, "web").values()) == web
    assert sum(of(lab, "tls").values()) == tls


def test_what_could_be_of_two_virtual_servers_is_counted_for_neither() -> None:
    """Nobody can tell: both send their clients to this server and port."""
    both = [virtual("web", ["a:8080"]), virtual("shop", ["a:8080"], port=81)]
    lab = Scenario([*both, virtual("dns", "a", protocol="udp")], reals("a"))
    lab.director.server_segment(Segment(reply("a", 8080), ACK, bytes(8)), lab.now)
    assert (of(lab, "web"), of(lab, "shop"), of(lab, "dns")) == ({}, {}, {})
    lab.director.server_datagram(reply("a", 80, b"\x11"), lab.now)
    assert of(lab, "dns") == {"server-no-connection": 1}


def test_every_port_of_a_server() -> None:
    """A21: behind a virtual server without a port any port of the server is its own."""
    lab = Scenario([virtual("all", "a", port=None), virtual("dns", "a", protocol="udp")], reals("a"))
    lab.director.server_segment(Segment(reply("a", 8443), ACK, bytes(8)), lab.now)
    assert of(lab, "all") == {"server-no-connection": 1}


@pytest.mark.parametrize("moved", [False, True])
def test_an_error_that_is_eaten(lab: Scenario, moved: bool) -> None:
    """R114: counted for the virtual server of the connection, one that has another server by now as well."""
    call = lab.dial("tls")
    quoted = flipped(call.reply_key)
    if moved:
        call.syn().syn()
        assert call.reply_key != flipped(quoted)
    assert lab.director.error_from_inside(quoted, unreachable=True) is Drop.UNREACHABLE
    assert (of(lab, "web"), of(lab, "tls")) == ({}, {"unreachable-eaten": 1})


def test_a_refused_datagram() -> None:
    """R012, A28."""
    lab = Scenario(virtual("dns", "a", port=53, protocol="udp"), [real("a", weight=0)])
    lab.flow("dns").asks().asks()
    assert of(lab, "dns") == {"no-server": 2}


@pytest.mark.parametrize("key", [{"inbound": CLIENT + bytes((203, 0, 113, 1)) + bytes((1, 1, 0, 80))}, {}])
def test_a_refusal_of_somebody_elses(lab: Scenario, key: dict[str, Any]) -> None:
    """What cannot be translated is refused outside of the core: for the virtual server, if a key is known."""
    assert lab.director.refuse(Drop.MALFORMED, **key) is Drop.MALFORMED
    assert of(lab, "web") == ({"malformed": 1} if key else {})
    assert lab.drops() == {"malformed": 1}
