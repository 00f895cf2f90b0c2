"""F37: the rules by which the kernel is alone, without any process of ours: both protocols and families."""

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfqlb.config.marks import LinkMarks
from nfqlb.core.spec import Config, Real, Server, Virtual
from nfqlb.netfilter import address, fallback, rules, sysctl
from nfqlb.netfilter.alone import alone
from nfqlb.netfilter.conntrack import Conntrack
from nfqlb.netfilter.fallback import Share
from nfqlb.netfilter.state import Record
from tests.netns.site import (
    CLIENT,
    CLIENT6,
    CONFIG,
    REAL,
    REAL6,
    VIP,
    VIP6,
    Site,
    built,
    client,
    entered,
    family_of,
    serve,
)

TCP_PORT, UDP_PORT, MAPPED = 80, 53, 8080


@dataclass(frozen=True, slots=True)
class Family:
    """The addresses of one IP version."""

    client: str
    vip: str
    real: str

    def config(self) -> Config:
        virtuals = [
            Virtual(name, ip_address(self.vip), (Server("web1", MAPPED),), protocol, port, datapath="offload")
            for name, protocol, port in (("web", "tcp", TCP_PORT), ("dns", "udp", UDP_PORT))
        ]
        return replace(CONFIG, reals=(Real("web1", ip_address(self.real)),), virtuals=tuple(virtuals))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    for site in built(tmp_path):
        site.number_ipv6()
        yield site


def answers(site: Site, family: Family, marks: LinkMarks) -> None:
    """Both services answer under the virtual address, and the connections carry their marks."""
    with (
        closing(serve(site, family.real, MAPPED)) as listener,
        closing(client(site, (family.vip, TCP_PORT))) as caller,
    ):
        server, (source, *_) = listener.accept()
        with server:
            assert source == family.client
            server.sendall(b"tcp")
            assert caller.recv(9) == b"tcp"
    with entered(site.server):
        server = socket.socket(family_of(family.real), socket.SOCK_DGRAM)
        server.bind((family.real, MAPPED))
    with entered(site.client):
        asker = socket.socket(family_of(family.client), socket.SOCK_DGRAM)
    with server, asker:
        server.settimeout(5)
        asker.settimeout(5)
        for turn in (b"one", b"two"):
            asker.sendto(turn, (family.vip, UDP_PORT))
            data, sender = server.recvfrom(9)
            assert data == turn
            server.sendto(data, sender)
            said, who = asker.recvfrom(9)
            assert (said, who[0]) == (turn, family.vip)
    with closing(Conntrack()) as table:
        found = {entry.protocol for entry in table.entries(marks.number_mask)}
    assert found == {socket.IPPROTO_TCP, socket.IPPROTO_UDP}


@pytest.mark.parametrize(
    "family", [Family(CLIENT, VIP, REAL), Family(CLIENT6, VIP6, REAL6)], ids=["IPv4", "IPv6"]
)
def test_the_kernel_alone_serves_both_protocols(site: Site, family: Family) -> None:
    config = family.config()
    marks = LinkMarks(config)
    shares = [Share(each.name, ((marks.of(each, each.servers[0]), 1.0),)) for each in config.virtuals]
    with entered(site.gateway):
        assert not alone()
        sysctl.switch(sysctl.forwarding(config), Record(site.directory))
        rules.apply(config, force=True)
        address.bring_up(config)
        assert alone()
        with pytest.raises(TimeoutError):  # nobody is known to be well: dropped behind
            client(site, (family.vip, TCP_PORT), timeout=1)
        assert fallback.spread() == 0
        fallback.put(config, shares)
        assert rules.verify(config) == []
        answers(site, family, marks)
        assert fallback.spread() == 2
        rules.remove(site.directory)
        assert not alone()
