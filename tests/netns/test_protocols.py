"""UDP, IPv6 and every port through a running gateway, with real programs at both ends."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from typing import Any

import dpkt
import pytest

from nfqlb.demo.appliance import Appliance, balancing, virtual
from nfqlb.demo.capture import capture
from nfqlb.demo.lab import SECOND_VIP, VIP, VIP6, Host, Lab
from nfqlb.demo.programs import require
from nfqlb.demo.web import document, home, serve
from nfqlb.runtime.protocol import ControlError
from tests.netns.asking import (
    ask,
    holding,
    queued,
    rows,
    servers_of,
    spread,
    summary,
    wait_until,
)
from tests.netns.both import REWRITE, Bench, Datapath, configuration, only
from tests.netns.site import entered, family_of

ALL = ("web1", "web2", "web3")
SIX = tuple(f"{name}-6" for name in ALL)
ECHO = 7777
UDP_SEGMENT = 103  # linux/udp.h
VIPS = pytest.mark.parametrize("vip", [VIP, VIP6])


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, clients=1, servers=3, ipv6=True) as lab:
        for server in lab.servers:
            serve(lab, server, ports=(80, 8080))
            name_server(server)
        yield lab


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Appliance]:
    virtuals = []
    for end, address, names in (("", VIP, ALL), ("6", VIP6, SIX)):
        turns: dict[str, Any] = {"address": address, "scheduler": "round-robin"}
        virtuals += [
            virtual(f"dns{end}", names, port=53, protocol="udp", **turns),
            virtual(f"dnstcp{end}", names, port=53, **turns),
            virtual(f"web{end}", names, **turns),
            virtual(f"mapped{end}", [f"{name}:8080" for name in names], port=81, **turns),
            virtual(f"echo{end}", [f"{names[0]}:{ECHO}"], port=7, protocol="udp", address=address),
            virtual(f"nobody{end}", [f"{names[0]}:9"], port=9, protocol="udp", address=address),
        ]
    virtuals.append(virtual("closed6", ["web1-6:9000"], port=90, address=VIP6))
    virtuals.append(virtual("every", ALL[:2], address=SECOND_VIP, port=None, scheduler="round-robin"))
    virtuals.append(virtual("all", ALL[:1], address=SECOND_VIP, port=None, protocol="udp"))
    with balancing(lab, configuration(lab, *virtuals)) as appliance:
        yield appliance


def name_server(host: Host) -> None:
    """dnsmasq, that knows one name, whose text is the host's own."""
    require("dnsmasq", "dig")
    options = ("--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file=")
    program = host.start(
        "dnsmasq", "--keep-in-foreground", "--log-facility=-", *options, f"--txt-record=who.test,{host.name}"
    )
    program.wait_for(program.err, "started")


def dig(host: Host, address: str, *options: str) -> str:
    """Who answered a query."""
    done = host.run("dig", f"@{address}", "who.test", "TXT", "+short", "+tries=1", "+time=5", *options)
    return done.stdout.strip().strip('"')


def datagrams(namespace: str, address: str, port: int = 0) -> socket.socket:
    """A UDP socket on a host."""
    with entered(namespace):
        opened = socket.socket(family_of(address), socket.SOCK_DGRAM)
        opened.bind((address, port))
    opened.settimeout(5)
    return opened


def own(host: Host, vip: str) -> str:
    """A host's address of the IP version of a virtual one."""
    return host.address6 if ":" in vip else host.address


@VIPS
def test_a_name_server_behind_udp_and_tcp_on_one_port(lab: Lab, gateway: Appliance, vip: str) -> None:
    """R012, R099, A4: dig and dnsmasq, by datagram and by connection; each protocol takes its own turns."""
    assert Counter(dig(lab.client, vip) for _ in range(6)) == dict.fromkeys(ALL, 2)
    assert Counter(dig(lab.client, vip, "+tcp") for _ in range(6)) == dict.fromkeys(ALL, 2)
    shown = [row for row in rows(gateway, "connections") if row["virtual"] in ("dns", "dns6")]
    assert {(row["protocol"], row["state"], row["real_port"]) for row in shown} == {("udp", "udp", 53)}
    assert drops(gateway) == {}


def drops(gateway: Appliance) -> dict[str, int]:
    """What was dropped, by reason."""
    found = summary(gateway)["drops"]
    return {reason: count for reason, count in found.items() if count}


@VIPS
@pytest.mark.parametrize("size", [0, 1, 1500, 60_000, 65_480])
def test_datagrams_are_echoed_intact(lab: Lab, gateway: Appliance, vip: str, size: int) -> None:
    """F07, R167, R177, A37: of any size; large ones are fragments on the wire and whole in the queue."""
    blob = bytes(number * 7 & 0xFF for number in range(size))
    server, client = lab.servers[0], lab.client
    with (
        closing(datagrams(server.namespace, own(server, vip), ECHO)) as echo,
        closing(datagrams(client.namespace, own(client, vip))) as asking,
    ):
        asking.connect((vip, 7))
        with capture(lab, client, "outside", "ip or ip6") as recorded:
            for _ in range(2):
                asking.send(blob)
                text, sender = echo.recvfrom(70_000)
                assert text == blob
                assert sender[:2] == asking.getsockname()[:2]
                echo.sendto(blob[::-1], sender)
                assert asking.recv(70_000) == blob[::-1]
    wires = [len(frame) for frame in recorded.frames()]
    assert max(wires) <= 1514
    assert drops(gateway) == {}


@only(REWRITE, "the kernel forwards sums as it got them, unfinished between namespaces")
@VIPS
def test_sums_of_datagrams_are_right(lab: Lab, gateway: Appliance, vip: str) -> None:
    """R167, R177: as the client receives them, by a full computation."""
    with capture(lab, lab.client, "outside", f"src host {vip} and udp") as recorded:
        dig(lab.client, vip)
    (packet,) = [frame.data for frame in recorded.frames()]
    datagram = bytes(packet.data)
    pseudo = packet.src + packet.dst + bytes((0, 17)) + len(datagram).to_bytes(2, "big")
    assert dpkt.in_cksum(pseudo + datagram) == 0
    assert int.from_bytes(datagram[6:8], "big")


@VIPS
def test_a_closed_port_is_told_by_the_virtual_address(lab: Lab, gateway: Appliance, vip: str) -> None:
    """R007, R012: the server's "port unreachable" reaches the client at once, about what it had sent."""
    with closing(datagrams(lab.client.namespace, own(lab.client, vip))) as asking:
        asking.connect((vip, 9))
        asking.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            asking.recv(100)


@VIPS
def test_several_datagrams_sent_as_one(lab: Lab, gateway: Appliance, vip: str) -> None:
    """R177: a server's super-packet is parted by the kernel, each part with its right sum."""
    server = lab.servers[0]
    with (
        closing(datagrams(server.namespace, own(server, vip), ECHO)) as echo,
        closing(datagrams(lab.client.namespace, own(lab.client, vip))) as asking,
    ):
        asking.connect((vip, 7))
        asking.send(b"begin")
        _, sender = echo.recvfrom(100)
        echo.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        text = b"".join(bytes([number]) * 1000 for number in range(12))
        echo.sendto(text, sender)
        assert b"".join(asking.recv(2000) for _ in range(12)) == text


def test_flows_survive_the_worker(lab: Lab, gateway: Appliance) -> None:
    """R187: UDP of both IP versions, connections over IPv6; what the old worker let in gets its answer."""
    server, open_sockets, waiting = lab.servers[0], [], []
    for vip in (VIP, VIP6):
        echo = datagrams(server.namespace, own(server, vip), ECHO)
        asking = datagrams(lab.client.namespace, own(lab.client, vip))
        open_sockets += [echo, asking]
        asking.connect((vip, 7))
        asking.send(b"question")
        _, sender = echo.recvfrom(100)
        waiting.append((echo, asking, sender))
    with holding(lab.client, 3, address=VIP6) as held:
        before = servers_of(gateway)
        killed = gateway.kill_worker()
        wait_until(lambda: replaced(gateway, killed), "a new worker")
        for echo, asking, sender in waiting:
            echo.sendto(b"answer", sender)
            assert asking.recv(100) == b"answer"
        assert held.again() == held.rounds()[0]
        after = servers_of(gateway)
        ports = {asking.getsockname()[1] for _, asking, _ in waiting}
        assert {key for key in after if key[1] in ports} == {key for key in before if key[1] in ports}
        assert all(before[key] == server for key, server in after.items() if key in before)
    for each in open_sockets:
        each.close()


def replaced(gateway: Appliance, killed: int) -> bool:
    try:
        return gateway.worker != killed
    except ControlError:
        return False


def test_the_web_over_ipv6(lab: Lab, gateway: Appliance) -> None:
    """R006, R007, R012, R099: nginx and curl; servers see the client, the client sees the virtual address."""
    with capture(lab, lab.client, "outside", "tcp") as recorded:
        answers = [ask(lab.client, address=VIP6) for _ in range(6)]
        mapped = [ask(lab.client, address=VIP6, port=81) for _ in range(3)]
    assert spread(answers) == dict.fromkeys(ALL, 2)
    assert {answer.client for answer in answers} == {lab.client.address6}
    assert {answer.port for answer in mapped} == {8080}
    seen = {str(ip_address(end)) for frame in recorded.frames() for end in (frame.data.src, frame.data.dst)}
    assert seen == {VIP6, lab.client.address6}


def test_documents_over_ipv6(lab: Lab, gateway: Appliance) -> None:
    """R167, R177: 50 MB down and 20 MB up, as super-packets, bit by bit; nothing stays in a queue."""
    digest = document(lab, "large6", 50)
    url = f"http://[{VIP6}]/files/large6"
    got = lab.client.run("sh", "-c", f"curl -gsS --max-time 60 '{url}' | sha256sum", timeout=70).stdout
    assert got.split()[0] == digest
    document(lab, "upload6", 20)
    source = lab.directory / "files/upload6"
    target = f"http://[{VIP6}]/upload/six"
    lab.client.run("curl", "-gsS", "--max-time", "60", "-T", str(source), target, timeout=70)
    (copy,) = [path for host in lab.servers if (path := home(lab, host) / "upload/six").exists()]
    assert copy.read_bytes() == source.read_bytes()
    wait_until(lambda: queued(lab) == 0, "empty queues")


def test_the_ipv6_address_is_still_a_neighbour(lab: Lab, gateway: Appliance) -> None:
    """R114: neighbour discovery finds it, ping reaches it; other ports are silent."""
    lab.client.run("ip", "neighbour", "flush", "dev", "outside")
    assert lab.client.run("ping", "-c", "1", "-W", "3", VIP6).returncode == 0
    found = lab.client.run("ip", "neighbour", "show", VIP6).stdout
    assert "lladdr" in found
    done = lab.client.run("curl", "-gsS", "--max-time", "1", f"http://[{VIP6}]:8443/", check=False)
    assert done.returncode == 28


def test_a_closed_port_over_ipv6(lab: Lab, gateway: Appliance) -> None:
    """R007, R176: where nothing listens on the mapped port, the reset comes from the virtual address."""
    with capture(lab, lab.client, "outside", "ip6") as recorded:
        done = lab.client.run("curl", "-gsS", "--max-time", "5", f"http://[{VIP6}]:90/", check=False)
    assert done.returncode == 7, done.stderr
    segments = [frame.data for frame in recorded.frames() if isinstance(frame.data.data, dpkt.tcp.TCP)]
    (reset,) = [packet for packet in segments if packet.data.flags & dpkt.tcp.TH_RST]
    assert (str(ip_address(reset.src)), reset.data.sport) == (VIP6, 90)


# --- every port


def test_two_services_behind_every_port(lab: Lab, gateway: Appliance) -> None:
    """R009, R072, R166, R176 (A21): each on the port that the client asked for, TCP and UDP."""
    answers = [ask(lab.client, address=SECOND_VIP, port=port) for port in (80, 8080, 80, 8080)]
    assert [answer.port for answer in answers] == [80, 8080, 80, 8080]
    assert {answer.server for answer in answers} == {"web1", "web2"}
    assert dig(lab.client, SECOND_VIP) == "web1"
    done = lab.client.run("curl", "-sS", "--max-time", "5", f"http://{SECOND_VIP}:81/", check=False)
    assert done.returncode == 7, done.stderr
    shown = {row["virtual"]: row for row in rows(gateway, "connections", virtual="all")}
    assert (shown["all"]["real_port"], shown["all"]["protocol"]) == (53, "udp")
    by_name = {row["name"]: row for row in rows(gateway, "virtuals")}
    assert by_name["every"]["port"] is None


def test_asking_for_closed_ports_fails_nobody(lab: Lab, gateway: Appliance) -> None:
    """R179 (A42): a client goes through a hundred closed ports of an every-port virtual server."""
    script = f"for p in $(seq 1000 1100); do curl -s --max-time 2 http://{SECOND_VIP}:$p/; done; true"
    lab.client.run("sh", "-c", script, timeout=60)
    states = {row["name"]: (row["state"], row["ditched"]["reset"]) for row in rows(gateway, "reals")}
    assert states["web1"] == states["web2"] == ("in-service", 0)


def test_a_servers_own_connection_behind_every_port(lab: Lab, gateway: Appliance) -> None:
    """A19, A20: every port of the server is a virtual server's, yet what it opens itself passes untouched."""
    serve(lab, lab.client, ports=(8000,))
    total = summary(gateway)["connections"]["total"]
    web1 = lab.servers[0]
    for port in ("20080", "33333"):
        options = ("-sS", "--max-time", "5", "--local-port", port)
        answer = web1.run("curl", *options, f"http://{lab.client.address}:8000/")
        assert answer.stdout.split()[:3] == ["client1", web1.address, port]
    with (
        closing(datagrams(web1.namespace, web1.address, 4444)) as own_socket,
        closing(datagrams(lab.client.namespace, lab.client.address, 4445)) as there,
    ):
        own_socket.sendto(b"hello", (lab.client.address, 4445))
        text, sender = there.recvfrom(100)
        assert (text, sender) == (b"hello", (web1.address, 4444))
        there.sendto(b"back", sender)
        assert own_socket.recv(100) == b"back"
    assert summary(gateway)["connections"]["total"] == total


# --- path-MTU discovery over IPv6; of IPv4, see test_surroundings


def over_ipv6(lab: Lab) -> str:
    """A configuration whose only virtual server is of IPv6."""
    return configuration(lab, virtual("web", ["web1-6"], address=VIP6))


def test_router_outside_with_smaller_mtu_ipv6(datapath: Datapath) -> None:
    """F09, R014: its "packet too big" (RFC 8201) goes to the virtual address; the server hears of it."""
    with Bench(datapath, servers=1, router="outside", ipv6=True) as lab:
        assert lab.router is not None
        serve(lab, lab.servers[0])
        lab.router.mtu("far", 1300)
        digest = document(lab, "film", 5)
        with balancing(lab, over_ipv6(lab)):
            got = lab.client.run(
                "sh", "-c", f"curl -gsS --max-time 20 'http://[{VIP6}]/files/film' | sha256sum"
            )
            assert got.stdout.split()[0] == digest
        told = lab.servers[0].run("ip", "-6", "route", "get", lab.client.address6).stdout
        assert "mtu 1300" in told


def test_router_inside_with_smaller_mtu_ipv6(datapath: Datapath) -> None:
    """F09, R007, R014: the client hears of it from the virtual address, and of no server."""
    with Bench(datapath, servers=1, router="inside", ipv6=True) as lab:
        assert lab.router is not None
        serve(lab, lab.servers[0])
        lab.router.mtu("far", 1300)
        document(lab, "film", 5)
        source = lab.directory / "files" / "film"
        with balancing(lab, over_ipv6(lab)), capture(lab, lab.client, "outside", "icmp6") as recorded:
            target = f"http://[{VIP6}]/upload/film"
            lab.client.run("curl", "-gsS", "--max-time", "20", "-T", str(source), target, timeout=30)
        assert (home(lab, lab.servers[0]) / "upload/film").read_bytes() == source.read_bytes()
        told = lab.client.run("ip", "-6", "route", "get", VIP6).stdout
        assert "mtu 1300" in told
        errors = [frame.data for frame in recorded.frames() if frame.data.data.type == 2]
        assert errors
        for packet in errors:
            assert str(ip_address(packet.src)) == VIP6
            quoted = bytes(packet.data)[8:]
            assert {str(ip_address(quoted[8:24])), str(ip_address(quoted[24:40]))} == {
                lab.client.address6, VIP6
            }  # fmt: skip


def test_small_mtu_outside_ipv6(datapath: Datapath) -> None:
    """R014: the gateway's own outside link is the small one: the server hears of it from the gateway."""
    with Bench(datapath, servers=1, ipv6=True) as lab:
        serve(lab, lab.servers[0])
        lab.gateway.mtu("outside", 1300)
        digest = document(lab, "film", 5)
        with balancing(lab, over_ipv6(lab)):
            got = lab.client.run(
                "sh", "-c", f"curl -gsS --max-time 20 'http://[{VIP6}]/files/film' | sha256sum"
            )
            assert got.stdout.split()[0] == digest


def test_a_configuration_of_all_kinds_is_shown(lab: Lab, gateway: Appliance) -> None:
    """R025, R033: protocol and port of each virtual server; every port is null."""
    shown = {row["name"]: (row["protocol"], row["port"]) for row in rows(gateway, "virtuals")}
    assert shown["dns"] == ("udp", 53)
    assert shown["dnstcp6"] == ("tcp", 53)
    assert shown["all"] == ("udp", None)
