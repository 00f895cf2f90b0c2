"""Datapath rewrite finds in the kernel's table what another gateway had; no kernel needed."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from nfqlb.core.director import Director
from nfqlb.core.recorder import NoRecorder
from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.conntrack import ESTABLISHED, SEEN_REPLY, TIME_WAIT, Entry
from nfqlb.runtime.adopting import Adoption

VIP, CLIENT, WEB1, WEB2 = "192.0.2.100", "192.0.2.7", "10.0.0.11", "10.0.0.12"
TCP, UDP = 6, 17
MASK = 0x00FF0000
WEB = Virtual("web", ip_address(VIP), (Server("web1", 8080), Server("web2", 80)), port=80, sticky=60)
CONFIG = Config(
    Gateway(("eth0",), ("eth1",)),
    (Real("web1", ip_address(WEB1)), Real("web2", ip_address(WEB2))),
    (
        WEB,
        Virtual("dns", ip_address(VIP), (Server("web1", 53),), protocol="udp", port=53),
        Virtual("any", ip_address("192.0.2.101"), (Server("web2", None),)),
    ),
)


def key(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    addresses = ip_address(source[0]).packed + ip_address(destination[0]).packed
    return addresses + source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")


class Table:
    """The kernel's table, played by a list."""

    def __init__(self) -> None:
        self.rows: list[Entry] = []
        self.shortened: list[tuple[bytes, int]] = []

    def put(
        self, server: tuple[str, int], port: int = 5000, state: int = ESTABLISHED, protocol: int = TCP,
        timeout: int = 100,
    ) -> bytes:  # fmt: skip
        inbound = key((CLIENT, port), server)
        status = SEEN_REPLY
        self.rows.append(
            Entry(inbound, key(server, (CLIENT, port)), protocol, MASK, status, state, timeout)
        )
        return inbound

    def marked(self, mark: int, mask: int) -> Iterator[Entry]:
        assert mark == mask == MASK
        yield from self.rows

    def shorten(self, inbound: bytes, protocol: int, seconds: int) -> bool:
        self.shortened.append((inbound, seconds))
        return True


class Gateway2:
    """The gateway that takes over."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.director = Director(config, now=0.0)
        self.table = Table()

    def adopt(self, now: float = 1.0) -> int:
        adoption = Adoption(self.director, self.table, NoRecorder(), now)
        while not adoption.step(1, now):
            pass
        return adoption.adopted

    def rows(self) -> list[tuple[str, str, str]]:
        found = self.director.connections(2.0, limit=100)
        return sorted((row.virtual, row.real, row.state) for row in found)


@pytest.fixture
def gateway() -> Gateway2:
    return Gateway2()


def test_what_a_client_had_asked_for_follows_from_the_servers_port(gateway: Gateway2) -> None:
    """F36: an established connection, a UDP flow; and its client is bound again."""
    gateway.table.put((WEB1, 8080))
    gateway.table.put((WEB1, 53), state=0, protocol=UDP, timeout=20)
    assert gateway.adopt() == 2
    assert gateway.rows() == [("dns", "web1", "udp"), ("web", "web1", "established")]
    assert [row.real for row in gateway.director.sticky(2.0, None)] == ["web1"]
    assert key((CLIENT, 5000), (VIP, 80)) in gateway.director.table.inbound
    assert gateway.table.shortened == []
    assert gateway.adopt() == 0, "once"


def test_a_virtual_server_of_every_port(gateway: Gateway2) -> None:
    gateway.table.put((WEB2, 2222))
    assert gateway.adopt() == 1
    assert key((CLIENT, 5000), ("192.0.2.101", 2222)) in gateway.director.table.inbound


def test_what_could_be_of_two_virtual_servers_is_left_alone(gateway: Gateway2) -> None:
    """Port 80 of the second server is behind one that has its port, and one that has every port."""
    gateway.table.put((WEB2, 80))
    gateway.table.put(("10.0.0.99", 80))
    assert gateway.adopt() == 0
    assert gateway.rows() == []


def test_what_has_ended_stays_so_and_gets_no_more_time(gateway: Gateway2) -> None:
    gateway.table.put((WEB1, 8080), port=5001)
    assert gateway.adopt(now=0.5) == 1
    gateway.table.rows.clear()
    ended = gateway.table.put((WEB1, 8080), port=5001, state=TIME_WAIT, timeout=3600)
    alive = gateway.table.put((WEB1, 8080), port=5002, timeout=432_000)
    assert gateway.adopt() == 1
    assert gateway.table.shortened == [(ended, 10), (alive, 3600)]
    assert len(gateway.rows()) == 1


def test_what_it_knew_and_the_kernel_does_not_have_is_over(gateway: Gateway2) -> None:
    """F36: it served before, and the other one has carried its connections to their ends meanwhile."""
    for port in (5000, 5001):
        gateway.table.put((WEB1, 8080), port=port)
    assert gateway.adopt() == 2
    del gateway.table.rows[0]
    assert gateway.adopt(now=10.0) == 0
    assert list(gateway.director.table.inbound) == [key((CLIENT, 5001), (VIP, 80))]
    assert gateway.director.real_servers["web1"].connections == 1


def test_clients_may_come_at_once_where_nothing_is_known_from_before(gateway: Gateway2) -> None:
    """F36: else a client's packet might go where an earlier connection by the same port went."""
    gateway.table.put((WEB1, 8080))
    assert not Adoption(gateway.director, gateway.table, NoRecorder(), 1.0).mistakable
    assert gateway.adopt() == 1
    assert Adoption(gateway.director, gateway.table, NoRecorder(), 10.0).mistakable
    (connection,) = gateway.director.table.inbound.values()
    connection.seen = 10.0
    assert not Adoption(gateway.director, gateway.table, NoRecorder(), 10.0).mistakable


def test_what_is_seen_while_it_looks_is_not_over(gateway: Gateway2) -> None:
    gateway.table.put((WEB1, 8080))
    assert gateway.adopt() == 1
    gateway.table.rows.clear()
    (connection,) = gateway.director.table.inbound.values()
    adoption = Adoption(gateway.director, gateway.table, NoRecorder(), 10.0)
    connection.seen = 10.5
    assert adoption.step(100, 11.0)
    assert len(gateway.rows()) == 1


def test_a_client_that_has_come_again_by_the_same_port_is_at_its_new_server(gateway: Gateway2) -> None:
    config = replace(CONFIG, virtuals=(WEB,))  # port 80 of the second server is its own there
    gateway = Gateway2(config)
    gateway.table.put((WEB1, 8080))
    assert gateway.adopt() == 1
    gateway.table.rows.clear()
    gateway.table.put((WEB2, 80))
    assert gateway.adopt(now=10.0) == 1
    assert gateway.rows() == [("web", "web2", "established")]
    assert [real.connections for real in gateway.director.real_servers.values()] == [0, 1]


def test_connections_that_the_kernel_translates_are_not_taken_for_others() -> None:
    """Their mark is another; one that says otherwise is somebody else's doing."""
    gateway = Gateway2(replace(CONFIG, virtuals=(replace(WEB, datapath="offload"),)))
    gateway.table.put((WEB1, 8080))
    assert gateway.adopt() == 0
