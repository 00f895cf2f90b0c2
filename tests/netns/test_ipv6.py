"""IPv6 at the kernel's edge: the virtual address, who hears of it, forwarding, and the rules at work."""

import re
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfqlb.core.spec import Server
from nfqlb.netfilter import address, facts, host, rules
from nfqlb.netfilter.facts import ELSEWHERE, Route
from tests.netns.site import (
    ACK,
    CLIENT6,
    JUDGED,
    REAL6,
    SIX,
    SYN,
    VIP6,
    Site,
    built,
    client,
    craft,
    entered,
    ip,
    ping,
    serve,
    wait_until,
)

ALONE = replace(SIX, reals=SIX.reals[1:], virtuals=SIX.virtuals[1:])
"""The IPv6 half of the configuration."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    for site in built(tmp_path):
        site.number_ipv6()
        yield site


def setting(site: Site, name: str, value: int) -> None:
    site.run("sysctl", "-qw", f"net.ipv6.conf.{name}={value}")


def addresses(site: Site) -> str:
    """The outside interface's global IPv6 addresses."""
    return site.run("ip", "-6", "address", "show", "dev", "outside", "scope", "global")


# ---- The address


def test_the_address_is_usable_at_once_and_never_the_gateways_own_source(site: Site) -> None:
    before = addresses(site)
    with entered(site.gateway):
        assert address.bring_up(ALONE) == [f"address {VIP6}/128 on outside added"]
        assert re.search(rf"inet6 {VIP6}/128 scope global nodad deprecated", addresses(site))
        assert "tentative" not in addresses(site)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as own:
            own.connect((CLIENT6, 9))
            assert own.getsockname()[0] == "2001:db8::1"
        assert address.bring_up(ALONE) == []
        assert address.take_down() == [f"address {VIP6}/128 on outside removed"]
        assert addresses(site) == before


def test_an_address_that_was_there_before_stays(site: Site) -> None:
    ip("-n", site.gateway, "address", "add", f"{VIP6}/64", "dev", "outside", "nodad")
    before = addresses(site)
    with entered(site.gateway):
        assert address.bring_up(ALONE) == []
        assert address.take_down() == []
    assert addresses(site) == before


def test_a_neighbour_that_had_it_elsewhere_is_told(site: Site) -> None:
    """As after a move from another gateway: nobody waits for the old entry to grow stale."""
    wrong = "02:00:00:00:00:99"
    neighbour = ["ip", "-n", site.client, "-6", "neighbour"]
    site.run(*neighbour, "add", VIP6, "lladdr", wrong, "dev", "eth", "nud", "reachable")
    (right,) = re.findall(r"link/ether (\S+)", site.run("ip", "link", "show", "outside"))
    assert wrong in site.run(*neighbour, "show", VIP6)
    with entered(site.gateway):
        address.bring_up(ALONE)
    wait_until(lambda: right in site.run(*neighbour, "show", VIP6))


def test_rules_and_address_of_both_families_are_removed_without_a_configuration(site: Site) -> None:
    before = site.rules_of(site.saved()), addresses(site)
    with entered(site.gateway):
        rules.apply(SIX, force=True)
        address.bring_up(SIX)
        assert len(rules.remove(site.directory)) == 10
    assert (site.rules_of(site.saved()), addresses(site)) == before


# ---- What is asked for


def found(site: Site) -> list[str]:
    """What is said about the machine, without what other tests are about."""
    with entered(site.gateway):
        return [str(finding) for finding in host.check(SIX, site.directory)]


def test_forwarding_is_asked_for_and_never_done(site: Site) -> None:
    assert found(site) == []
    setting(site, "all.forwarding", 0)
    (finding,) = found(site)
    assert finding.startswith("error: IPv6 is not forwarded from outside and inside and inside2; sysctl ")
    with site.balancing(SIX):
        assert site.run("sysctl", "-n", "net.ipv6.conf.all.forwarding").strip() == "0"
    site.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    assert found(site) == []


def test_forwarding_of_single_interfaces_will_do(site: Site) -> None:
    """Kernels from 6.17 on have it."""
    if "force_forwarding" not in site.run("ls", "/proc/sys/net/ipv6/conf/all"):
        pytest.skip("this kernel forwards IPv6 everywhere or nowhere")
    setting(site, "all.forwarding", 0)
    for name in ("outside", "inside"):
        setting(site, f"{name}.force_forwarding", 1)
    assert ["inside2" in line for line in found(site)] == [True]
    with site.balancing(SIX), closing(serve(site, REAL6, 80)) as listener:
        client(site, (VIP6, 80)).close()
        listener.accept()[0].close()


def test_an_interface_without_ipv6_is_found(site: Site) -> None:
    setting(site, "inside2.disable_ipv6", 1)
    assert found(site) == [
        "error: there is no IPv6 on interface inside2; sysctl net.ipv6.conf.inside2.disable_ipv6=0"
    ]


def test_larger_super_packets_are_found(site: Site) -> None:
    ip("-n", site.gateway, "link", "set", "dev", "inside", "gro_max_size", "150000")
    (finding,) = found(site)
    assert finding.startswith("warning: interface inside joins received segments to up to 150000 bytes")


def test_the_facts_of_ipv6_are_what_was_built(site: Site) -> None:
    with entered(site.gateway):
        seen = facts.read(SIX, site.directory)
    assert seen.routes[ip_address(REAL6)] == Route("inside")
    assert seen.routes[ELSEWHERE[6]] is None
    assert seen.ipv6 >= {"outside", "inside", "inside2"}
    assert seen.ipv6_forwarded >= {"outside", "inside", "inside2"}
    assert seen.interfaces["outside"].joined == 65536


# ---- The rules at work


def test_a_connection_is_translated_both_ways(site: Site) -> None:
    """R001, R005-R007: the server sees the client, the client the virtual address."""
    with site.balancing(SIX), closing(serve(site, REAL6, 80)) as listener:
        with closing(client(site, (VIP6, 80))) as connection:
            accepted, peer = listener.accept()
            with accepted:
                assert (peer[0], connection.getpeername()[0]) == (CLIENT6, VIP6)
                connection.sendall(b"question")
                assert accepted.recv(100) == b"question"
                accepted.sendall(b"answer")
                assert connection.recv(100) == b"answer"
                assert site.marks()[CLIENT6, REAL6] == JUDGED
        (syn,) = site.packets(queue=10)
        assert (syn["source"], syn["destination"], syn["flags"]) == (CLIENT6, VIP6, SYN)
        assert site.packets(queue=11)[0]["flags"] == SYN | ACK
        assert site.counted("mangle", "NFQLB-SERVERS", "/* six */", "ip6tables") == 0


def test_other_ports_are_dark_but_the_address_is_found_and_answers_ping(site: Site) -> None:
    """Neighbour discovery must pass, or nobody reaches the address at all."""
    with site.balancing(SIX):
        with pytest.raises(TimeoutError):
            client(site, (VIP6, 22), timeout=0.5)
        ip("-n", site.client, "neighbour", "flush", "dev", "eth")
        assert ping(site, VIP6) == 0
        assert site.packets() == []


def test_real_servers_are_guarded_where_secure_is_set(site: Site) -> None:
    """R015"""
    config = replace(SIX, gateway=replace(SIX.gateway, secure=True))
    with site.balancing(config), closing(serve(site, REAL6, 80)):
        with pytest.raises(TimeoutError):
            client(site, (REAL6, 80), timeout=0.5)
        assert site.counted("mangle", "NFQLB-DIRECT", "/* six */", "ip6tables") >= 1
        assert ping(site, REAL6) != 0
        with closing(client(site, (VIP6, 80))):
            pass


def send(namespace: str, packet: bytes, destination: str) -> None:
    """Sends one IPv6 packet, header included."""
    with entered(namespace), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (destination, 0))


def test_errors_from_outside_and_inside_reach_the_worker_and_nothing_else_of_icmp(site: Site) -> None:
    """Types 1 to 4 of RFC 4443: unreachable, too big, time exceeded, parameter problem."""
    from scapy.layers.inet import TCP
    from scapy.layers.inet6 import (
        ICMPv6DestUnreach,
        ICMPv6EchoRequest,
        ICMPv6PacketTooBig,
        ICMPv6ParamProblem,
        ICMPv6TimeExceeded,
        IPv6,
    )

    errors = (ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded, ICMPv6ParamProblem)
    router = "fd00::77"  # somebody on the way: the source of an error says nothing
    with site.balancing(SIX):
        answer = IPv6(src=VIP6, dst=CLIENT6) / TCP(sport=80, dport=5000)
        request = IPv6(src=CLIENT6, dst=REAL6) / TCP(sport=5000, dport=80)
        for error in errors:
            send(site.client, craft(IPv6(src=CLIENT6, dst=VIP6), error(), answer), VIP6)
            send(site.server, craft(IPv6(src=router, dst=CLIENT6), error(), request), CLIENT6)
        send(site.server, craft(IPv6(src=REAL6, dst=CLIENT6), ICMPv6EchoRequest()), CLIENT6)
        wait_until(lambda: len(site.packets(queue=11)) >= 8)
        assert ping(site, VIP6) == 0
        assert {(p["source"], p["destination"], p["type"]) for p in site.packets()} == {
            *((CLIENT6, VIP6, kind) for kind in (1, 2, 3, 4)),
            *((router, CLIENT6, kind) for kind in (1, 2, 3, 4)),
        }
        assert len(site.packets()) == 8


def test_the_gateways_own_errors_reach_the_worker(site: Site) -> None:
    with (
        site.balancing(SIX),
        closing(serve(site, REAL6, 80)) as listener,
        closing(client(site, (VIP6, 80))) as connection,
        listener.accept()[0],
    ):
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)  # ends at the gateway
        connection.sendall(b"x")
        wait_until(lambda: site.packets(type=3) != [])
        (error, *_) = site.packets(type=3)
        assert (error["queue"], error["source"], error["destination"]) == (11, "2001:db8::1", CLIENT6)


def test_fragments_are_whole_again_before_the_queue(site: Site) -> None:
    """F06, A37"""
    from scapy.layers.inet import TCP
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6

    with site.balancing(SIX):
        whole = IPv6(src=CLIENT6, dst=VIP6) / IPv6ExtHdrFragment() / TCP(sport=5002, dport=80, flags="PA")
        for piece in reversed(fragment6(whole / (b"y" * 3000), 1280)):
            send(site.client, bytes(piece), VIP6)
        wait_until(lambda: len(site.packets(source=CLIENT6)) == 1)
        (packet,) = site.packets(source=CLIENT6)
        assert (packet["length"], packet["ports"]) == (3060, [5002, 80])


# ---- Virtual servers on every port


def test_behind_every_port_a_real_servers_own_connections_pass_untouched(site: Site) -> None:
    """A19, A20: any port of the virtual address is the server's same one; what it opens is its own."""
    every = tuple(
        replace(one, port=None, servers=tuple(Server(server.real, None) for server in one.servers))
        for one in SIX.virtuals
    )
    config = replace(SIX, virtuals=every)
    with site.balancing(config), closing(serve(site, REAL6, 8081)) as listener:
        with closing(client(site, (VIP6, 8081))) as connection, listener.accept()[0] as accepted:
            accepted.sendall(b"hello")
            assert connection.recv(10) == b"hello"
        wait_until(lambda: len(site.packets(source=CLIENT6)) >= 4)
        before = len(site.packets())
        with entered(site.client):
            other = socket.create_server((CLIENT6, 7000), family=socket.AF_INET6)
        with entered(site.server):
            own = socket.create_connection((CLIENT6, 7000), timeout=5)
        with closing(other), closing(own), other.accept()[0] as there:
            assert there.getpeername()[0] == REAL6
            there.sendall(b"hello")
            assert own.recv(10) == b"hello"
        assert len([p for p in site.packets()[before:] if 7000 in p["ports"]]) == 0  # type: ignore[operator]
