"""UDP virtual servers in the rules, IPv4 and IPv6: which datagrams meet the worker, and which never do."""

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from pyroute2 import Conntrack

from nfqlb.core.spec import Config, Real, Server, Virtual
from tests.netns.site import (
    CLIENT,
    CLIENT6,
    CONFIG,
    DIRECT,
    JUDGED,
    REAL,
    REAL6,
    VIP,
    VIP6,
    Site,
    built,
    entered,
    family_of,
    wait_until,
)

SERVICE, MAPPED = 53, 5353


@dataclass(frozen=True, slots=True)
class Family:
    """The addresses of one IP version, and what iptables is called there."""

    client: str
    vip: str
    real: str
    program: str

    def config(self, *, secure: bool = False) -> Config:
        dns = Virtual("dns", ip_address(self.vip), (Server("web1", MAPPED),), protocol="udp", port=SERVICE)
        gateway = replace(CONFIG.gateway, secure=secure)
        return replace(CONFIG, gateway=gateway, reals=(Real("web1", ip_address(self.real)),), virtuals=(dns,))


@pytest.fixture(params=[4, 6])
def family(request: pytest.FixtureRequest) -> Family:
    if request.param == 4:
        return Family(CLIENT, VIP, REAL, "iptables")
    return Family(CLIENT6, VIP6, REAL6, "ip6tables")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    for site in built(tmp_path):
        site.number_ipv6()
        yield site


def bound(namespace: str, address: str, port: int = 0) -> socket.socket:
    """A UDP socket in a namespace."""
    with entered(namespace):
        opened = socket.socket(family_of(address), socket.SOCK_DGRAM)
        opened.bind((address, port))
    opened.settimeout(5)
    return opened


def sender(found: tuple[bytes, tuple[str, int]]) -> tuple[bytes, str, int]:
    """A received datagram, and who sent it (IPv6 sockets tell more)."""
    return found[0], found[1][0], found[1][1]


def listed(site: Site, family: Family) -> int:
    """How many packets had to be looked up in the list of servers."""
    return site.counted("mangle", "NFQLB-SERVERS", "/* web1 */", family.program)


def test_both_ways_go_by_the_long_queue_and_answers_are_known_by_the_mark(site: Site, family: Family) -> None:
    """R001, A20: the server sees the client, the client the virtual address."""
    with (
        site.balancing(family.config()),
        closing(bound(site.server, family.real, MAPPED)) as server,
        closing(bound(site.client, family.client)) as client,
    ):
        for turn in range(3):
            client.sendto(b"question%d" % turn, (family.vip, SERVICE))
            text, peer, port = sender(server.recvfrom(100))
            assert (text, peer, port) == (b"question%d" % turn, family.client, client.getsockname()[1])
            server.sendto(b"answer%d" % turn, (peer, port))
            assert sender(client.recvfrom(100)) == (b"answer%d" % turn, family.vip, SERVICE)
        wait_until(lambda: len(site.packets(queue=11)) == 6)
        assert site.packets(queue=10) == []
        assert site.marks()[family.client, family.real] == JUDGED
        assert listed(site, family) == 0


def test_a_burst_of_one_new_flow_is_answered_whole(site: Site, family: Family) -> None:
    """Several datagrams are new to conntrack at once; every one of them brings the mark along."""
    with (
        site.balancing(family.config()),
        closing(bound(site.server, family.real, MAPPED)) as server,
        closing(bound(site.client, family.client)) as client,
    ):
        for number in range(50):
            client.sendto(b"%d" % number, (family.vip, SERVICE))
        for _ in range(50):
            text, peer, port = sender(server.recvfrom(100))
            server.sendto(text, (peer, port))
        answers = [sender(client.recvfrom(100)) for _ in range(50)]
        assert {text for text, _, _ in answers} == {b"%d" % number for number in range(50)}
        assert {(peer, port) for _, peer, port in answers} == {(family.vip, SERVICE)}
        assert listed(site, family) == 0


@pytest.mark.parametrize("size", [10_000, 60_000, 65_480])
def test_a_large_datagram_passes_whole_both_ways(site: Site, family: Family, size: int) -> None:
    """A37: in fragments on every link, in one piece in the queue."""
    blob = bytes(range(256)) * (size // 256)
    with (
        site.balancing(family.config()),
        closing(bound(site.server, family.real, MAPPED)) as server,
        closing(bound(site.client, family.client)) as client,
    ):
        client.sendto(blob, (family.vip, SERVICE))
        text, peer, port = sender(server.recvfrom(70_000))
        assert text == blob
        server.sendto(blob[::-1], (peer, port))
        assert sender(client.recvfrom(70_000)) == (blob[::-1], family.vip, SERVICE)
        headers = 28 if family.vip == VIP else 48
        wait_until(lambda: [p["length"] for p in site.packets(queue=11)] == [len(blob) + headers] * 2)


def test_what_a_server_sends_of_its_own_accord_passes_untouched(site: Site, family: Family) -> None:
    """A19: even from the port that stands behind the virtual server, and so do the answers to it."""
    with (
        site.balancing(family.config()),
        closing(bound(site.server, family.real, MAPPED)) as server,
        closing(bound(site.client, family.client, 7000)) as client,
    ):
        for _ in range(2):
            server.sendto(b"hello", (family.client, 7000))
            assert sender(client.recvfrom(100)) == (b"hello", family.real, MAPPED)
            client.sendto(b"back", (family.real, MAPPED))
            assert sender(server.recvfrom(100)) == (b"back", family.client, 7000)
        assert site.packets() == []


def test_a_datagram_straight_to_a_real_server_passes_unless_secure_is_set(site: Site, family: Family) -> None:
    """R015"""
    with (
        closing(bound(site.server, family.real, MAPPED)) as server,
        closing(bound(site.client, family.client)) as client,
    ):
        with site.balancing(family.config()):
            client.sendto(b"hello", (family.real, MAPPED))
            _, peer, port = sender(server.recvfrom(100))
            server.sendto(b"back", (peer, port))
            assert sender(client.recvfrom(100)) == (b"back", family.real, MAPPED)
            assert site.marks()[family.client, family.real] == DIRECT
            assert site.packets() == []
        forget(site)
        with site.balancing(family.config(secure=True)):
            client.sendto(b"hello", (family.real, MAPPED))
            wait_until(lambda: site.counted("mangle", "NFQLB-DIRECT", "/* web1 */", family.program) == 1)
            server.settimeout(0.3)
            with pytest.raises(TimeoutError):
                server.recvfrom(100)


def forget(site: Site) -> None:
    """Empties conntrack's table."""
    with entered(site.gateway), Conntrack() as table:
        table.flush()


def test_a_flow_outlives_a_flush_of_conntrack_whoever_speaks_first(site: Site, family: Family) -> None:
    """A server's datagram that comes first makes the entry the wrong way round; the mark sets it right."""
    with (
        site.balancing(family.config()),
        closing(bound(site.server, family.real, MAPPED)) as server,
        closing(bound(site.client, family.client)) as client,
    ):
        client.connect((family.vip, SERVICE))
        client.send(b"question")
        _, peer, port = sender(server.recvfrom(100))
        for first in (client, server):
            forget(site)
            if first is server:
                server.sendto(b"lost", (peer, port))
                wait_until(lambda: (family.real, family.client) in site.marks())
            client.send(b"again")
            assert sender(server.recvfrom(100)) == (b"again", peer, port)
            server.sendto(b"answer", (peer, port))
            assert client.recv(100) == b"answer"


def test_a_closed_port_is_reported_by_way_of_the_worker(site: Site, family: Family) -> None:
    """The unreachable quotes the translated datagram; the worker alone can tell the client of it."""
    with site.balancing(family.config()), closing(bound(site.client, family.client)) as client:
        client.sendto(b"question", (family.vip, SERVICE))
        kind = 3 if family.vip == VIP else 1
        wait_until(lambda: len(site.packets(queue=11, type=kind, source=family.real)) == 1)
