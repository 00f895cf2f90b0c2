"""Networks as they are: firewalls, large and small MTUs, routers, cables that are pulled."""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network

import dpkt
import pytest

from nfqlb.demo.appliance import balancing, virtual
from nfqlb.demo.capture import Capture, capture
from nfqlb.demo.lab import ROUTED_VIP, VIP, Lab
from nfqlb.demo.programs import Program
from nfqlb.demo.web import document, home, serve
from tests.netns.asking import ask, queued, rows, spread, summary, wait_until, wrk
from tests.netns.both import Bench, Datapath, configuration

INSIDE = ip_network("10.0.0.0/8")
ALL = ("web1", "web2", "web3")

FIREWALL = """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i outside -o inside -p tcp --dport 80 -m conntrack --ctstate NEW -j ACCEPT
COMMIT
"""


@contextmanager
def serving(lab: Lab) -> Iterator[Lab]:
    """The laboratory, with a web server on every server."""
    with lab:
        for server in lab.servers:
            serve(lab, server)
        yield lab


def turns(lab: Lab) -> str:
    """A configuration: every server of the laboratory in turn, on an announced and on a routed VIP."""
    names = [server.name for server in lab.servers]
    return configuration(
        lab,
        virtual("web", names, scheduler="round-robin"),
        virtual("routed", names, address=ROUTED_VIP, scheduler="round-robin"),
    )


def download(lab: Lab, name: str, *, address: str = VIP) -> str:
    """Fetch a document as the first client; its sha256."""
    fetch = f"curl -sS --max-time 15 http://{address}/files/{name} | sha256sum"
    return lab.client.run("sh", "-c", fetch, timeout=25).stdout.split()[0]


def upload(lab: Lab, name: str) -> None:
    """Send a document as the first client and see that it arrived as it is."""
    source = lab.directory / "files" / name
    url = f"http://{VIP}/upload/{name}"
    lab.client.run("curl", "-sS", "--max-time", "15", "-T", str(source), url, timeout=25)
    (copy,) = [path for server in lab.servers if (path := home(lab, server) / "upload" / name).exists()]
    assert copy.read_bytes() == source.read_bytes()
    copy.unlink()


def no_real_server_in(recorded: Capture) -> bool:
    """Whether no server's address can be read from what was recorded."""
    return not [text for text in recorded.addresses() if ip_address(text) in INSIDE]


def test_stateful_firewall_and_reverse_path_filter(datapath: Datapath) -> None:
    """R001: a firewall that drops INVALID and whatever is not NEW to port 80 or ESTABLISHED, with
    `rp_filter=1` and the virtual IP in the outside interface's subnet, drops nothing."""
    with serving(Bench(datapath, servers=3)) as lab:
        lab.gateway.run("iptables-restore", given=FIREWALL)
        for interface in ("all", "default", "outside", "inside"):
            lab.gateway.sysctl(f"net.ipv4.conf.{interface}.rp_filter", "1")
        digest = document(lab, "film", 20)
        with balancing(lab, turns(lab)):
            assert spread([ask(lab.client) for _ in range(6)]) == dict.fromkeys(ALL, 2)
            assert spread([ask(lab.client, address=ROUTED_VIP) for _ in range(6)]) == dict.fromkeys(ALL, 2)
            assert download(lab, "film") == digest
            upload(lab, "film")
            wrk(lab.client, f"http://{VIP}/", connections=20, seconds=2)
        counted = lab.gateway.run("iptables", "-vnxL", "FORWARD").stdout.splitlines()
        policy, invalid = counted[0], next(line for line in counted if "INVALID" in line)
        assert "policy DROP 0 packets" in policy
        assert invalid.split()[0] == "0"


@pytest.mark.parametrize("octets", [9000, 65535])
def test_large_mtu(octets: int, datapath: Datapath) -> None:
    """Packets of 9,000 and 65,535 bytes pass: nothing is cut, nothing stays in a queue."""
    with serving(Bench(datapath, servers=2, mtu_outside=octets, mtu_inside=octets)) as lab:
        digest = document(lab, "film", 30)
        with balancing(lab, turns(lab)) as gateway:
            with capture(lab, lab.client, "outside", "tcp") as recorded:
                assert download(lab, "film") == digest
            upload(lab, "film")
            assert max(packet.len for packet in recorded.packets()) > 4096
            assert not summary(gateway)["drops"] or not any(summary(gateway)["drops"].values())
            wait_until(lambda: queued(lab) == 0, "empty queues")


def test_smaller_mtu_inside(datapath: Datapath) -> None:
    """The gateway cannot pass on what is too large for its inside link and says so to the client, quoting
    the packet as the client had sent it; the upload arrives."""
    with serving(Bench(datapath, servers=2)) as lab:
        lab.gateway.mtu("inside", 1300)
        document(lab, "film", 5)
        with balancing(lab, turns(lab)):
            with capture(lab, lab.client, "outside") as recorded:
                upload(lab, "film")
            assert_too_big(recorded, lab.client.address, mtu=1300)


def assert_too_big(recorded: Capture, client: str, *, mtu: int) -> None:
    """Path-MTU discovery has told the client of `mtu`, about the virtual server, and of no real one."""
    errors = [
        (outer, inner) for outer, inner in recorded.errors() if (outer.data.type, outer.data.code) == (3, 4)
    ]
    assert errors
    for outer, inner in errors:
        assert outer.data.data.mtu == mtu
        assert (str(ip_address(inner.src)), str(ip_address(inner.dst))) == (client, VIP)
        assert int.from_bytes(bytes(inner.data)[2:4], "big") == 80
        whole = bytes(outer.data)
        assert dpkt.in_cksum(whole) == 0
        assert dpkt.in_cksum(bytes(inner)[: inner.hl * 4]) == 0
    assert no_real_server_in(recorded)


def test_router_inside_with_smaller_mtu(datapath: Datapath) -> None:
    """The same where a router between gateway and servers sends the error."""
    with serving(Bench(datapath, servers=2, router="inside")) as lab:
        assert lab.router is not None
        lab.router.mtu("far", 1300)
        document(lab, "film", 5)
        with balancing(lab, turns(lab)):
            with capture(lab, lab.client, "outside") as recorded:
                upload(lab, "film")
            assert_too_big_from_inside(recorded, lab)


def assert_too_big_from_inside(recorded: Capture, lab: Lab) -> None:
    """As `assert_too_big`, of an error that came from inside: no server's address in it."""
    servers = {server.address for server in lab.servers}
    errors = [inner for outer, inner in recorded.errors() if (outer.data.type, outer.data.code) == (3, 4)]
    assert errors
    assert {(str(ip_address(inner.src)), str(ip_address(inner.dst))) for inner in errors} == {
        (lab.client.address, VIP)
    }
    assert not recorded.addresses() & servers


def test_router_outside_with_smaller_mtu(datapath: Datapath) -> None:
    """A router on the clients' side reports to the virtual IP; the right server hears of it."""
    with serving(Bench(datapath, servers=2, router="outside")) as lab:
        assert lab.router is not None
        lab.router.mtu("far", 1300)
        digest = document(lab, "film", 5)
        with balancing(lab, turns(lab)):
            for address in (VIP, ROUTED_VIP):
                assert download(lab, "film", address=address) == digest
        told = [server.run("ip", "route", "get", lab.client.address).stdout for server in lab.servers]
        assert any("mtu 1300" in text for text in told)


def test_small_mtu_outside(datapath: Datapath) -> None:
    """The gateway's own outside link is the small one: the servers hear of it from the gateway."""
    with serving(Bench(datapath, servers=2)) as lab:
        lab.gateway.mtu("outside", 1300)
        digest = document(lab, "film", 5)
        with balancing(lab, turns(lab)):
            assert download(lab, "film") == digest


def test_server_without_a_link(datapath: Datapath) -> None:
    """R005, R020: a server's cable is pulled; its clients wait, and are not told "unreachable"; all the
    others are served; with the cable back, so is everybody."""
    with serving(Bench(datapath, servers=3)) as lab, balancing(lab, turns(lab)) as gateway:
        assert spread([ask(lab.client) for _ in range(3)]) == dict.fromkeys(ALL, 1)
        with lab.servers[0].unplugged(), capture(lab, lab.client, "outside", "icmp") as recorded:
            lab.gateway.run("ip", "neighbour", "flush", "dev", "inside")
            programs = [start_curl(lab) for _ in range(6)]
            ends = [program.wait(20) for program in programs]
        assert set(ends) <= {0, 28}
        assert ends.count(0) >= 4
        assert {program.stdout.split()[0] for program in programs if program.stdout} >= {"web2", "web3"}
        assert recorded.errors() == []
        assert sum(row["unanswered"] for row in rows(gateway, "reals")) <= 2
        assert spread([ask(lab.client) for _ in range(3)]) == dict.fromkeys(ALL, 1)


def start_curl(lab: Lab) -> Program:
    """A request that may take as long as a neighbour's look-up fails."""
    return lab.client.start("curl", "-sS", "--max-time", "7", f"http://{VIP}/")
