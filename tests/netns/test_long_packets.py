"""Packets longer than a queue carries: how they are kept from being sent, on links that would allow them."""

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dpkt
import pytest

from nfqlb.demo.appliance import balancing, nfqlb_command
from nfqlb.demo.appliance import configuration as written
from nfqlb.demo.lab import VIP as LAB_VIP
from nfqlb.demo.lab import Lab
from nfqlb.demo.web import document, home
from nfqlb.demo.web import serve as serve_web
from nfqlb.netfilter.render import IPV4, IPV6, MAX_PACKET
from tests.netns.asking import PREFIX, queued, wait_until
from tests.netns.site import ACK, REAL, REAL6, SIX, SYN, VIP, VIP6, Site, built, client, entered, serve


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from built(tmp_path)


class Ear:
    """What arrives at a host's only link."""

    def __init__(self, namespace: str) -> None:
        with entered(namespace):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            self.socket.bind(("eth", 0x0003))
        self.socket.settimeout(5)

    def announced(self, flags: int) -> int:
        """The maximum segment size in the first TCP packet to arrive with these of SYN and ACK."""
        while True:
            frame, address = self.socket.recvfrom(70_000)
            tcp = getattr(dpkt.ethernet.Ethernet(frame).data, "data", None)
            arrives = address[2] != socket.PACKET_OUTGOING
            if arrives and isinstance(tcp, dpkt.tcp.TCP) and tcp.flags & (SYN | ACK) == flags:
                options = dict(dpkt.tcp.parse_opts(tcp.opts))
                return int.from_bytes(options[dpkt.tcp.TCP_OPT_MSS], "big")


@contextmanager
def ears(site: Site) -> Iterator[tuple[Ear, Ear]]:
    at_server, at_client = Ear(site.server), Ear(site.client)
    with closing(at_server.socket), closing(at_client.socket):
        yield at_server, at_client


@pytest.mark.parametrize(
    ("mtu", "destination", "announced"),
    [
        (65535, (VIP, 80), 65411),
        (65451, (VIP, 80), 65411),
        (65450, (VIP, 80), 65410),
        (9000, (VIP, 80), 8960),
        (1500, (VIP, 80), 1460),
        (65535, (REAL, 8080), 65495),
        (65535, (VIP6, 80), 65431),
        (9000, (VIP6, 80), 8940),
    ],
)
def test_nobody_is_asked_for_segments_that_no_queue_carries(
    site: Site, mtu: int, destination: tuple[str, int], announced: int
) -> None:
    """SYN and SYN-ACK of balanced connections alone, and only where they ask for too much."""
    site.mtu(mtu)
    site.number_ipv6()
    listening = serve(site, REAL6, 80) if destination[0] == VIP6 else serve(site)
    with site.balancing(SIX), closing(listening), ears(site) as (at_server, at_client):
        client(site, destination).close()
        assert at_server.announced(SYN) == announced
        assert at_client.announced(SYN | ACK) == announced


def test_the_largest_segment_leaves_room_for_every_header() -> None:
    """RFC 791, RFC 9293: up to 60 bytes each; RFC 8200: 40."""
    assert IPV4.largest_segment + 60 + 60 == MAX_PACKET
    assert IPV6.largest_segment + 40 + 60 == MAX_PACKET


def test_a_hundred_megabytes_pass_both_ways_over_links_of_the_largest_mtu() -> None:
    """F07: nothing is cut, nothing stays in a queue, and what arrives is what was sent."""
    with Lab(servers=1, mtu_outside=65535, mtu_inside=65535, prefix=PREFIX) as lab:
        serve_web(lab, lab.servers[0])
        digest = document(lab, "film", 100)
        with balancing(lab, written(lab)):
            url = f"http://{LAB_VIP}/files/film"
            down = lab.client.run("sh", "-c", f"curl -sS --max-time 40 {url} | sha256sum", timeout=60)
            assert down.stdout.split()[0] == digest
            source = str(lab.directory / "files" / "film")
            upload = ("curl", "-sS", "--max-time", "40", "-T", source, f"http://{LAB_VIP}/upload/film")
            lab.client.run(*upload, timeout=60)
            copy = (home(lab, lab.servers[0]) / "upload" / "film").read_bytes()
            assert hashlib.sha256(copy).hexdigest() == digest
            wait_until(lambda: queued(lab) == 0, "empty queues")
            assert drops(lab) == {}


def drops(lab: Lab) -> dict[str, int]:
    """What `nfqlb show summary --json` says was dropped, by reason."""
    argv = ("show", "summary", "--json", "--socket", str(lab.directory / "control.sock"))
    found = json.loads(nfqlb_command(lab, *argv).stdout)["drops"]
    return {reason: count for reason, count in found.items() if count}
