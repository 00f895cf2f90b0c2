"""Real connections through the gateway: who serves them, what each side sees, that all of it arrives."""

import json
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import dpkt
import pytest

from nfqlb.demo.appliance import Appliance, balancing, nfqlb_command, virtual
from nfqlb.demo.capture import capture
from nfqlb.demo.lab import ROUTED_VIP, SECOND_VIP, VIP, Lab
from nfqlb.demo.web import document, home, serve
from tests.netns.asking import (
    HOLDER,
    ask,
    holding,
    queued,
    rows,
    servers_of,
    spread,
    summary,
    wait_until,
    wrk,
)
from tests.netns.both import REWRITE, Bench, Datapath, configuration, offloads, only

INSIDE = ip_network("10.0.0.0/8")
ALL = ("web1", "web2", "web3")


def on(port: int) -> list[str]:
    """All servers, each on this port."""
    return [f"{name}:{port}" for name in ALL]


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, clients=2, servers=3) as lab:
        for server in lab.servers:
            serve(lab, server, ports=(80, 8080, 8081))
        for client in lab.clients:
            client.add_address(f"192.0.2.{50 + int(client.name[-1])}/24")
        yield lab


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Appliance]:
    config = configuration(
        lab,
        virtual("turns", ALL, scheduler="round-robin"),
        virtual("least", on(80), port=81, scheduler="least-connections"),
        virtual("weighted", on(80), port=82),
        virtual("mapped", ["web1:8080", "web2:8081", "web3:80"], port=83, scheduler="round-robin"),
        virtual("pair", ["web1:80", "web2:80"], address=SECOND_VIP, scheduler="round-robin"),
        virtual("alone", ["web1:80"], port=91),
        virtual("other", ["web1:80"], address=SECOND_VIP, port=91),
        virtual("routed", ALL, address=ROUTED_VIP, scheduler="round-robin"),
        virtual("sticky", on(80), port=84, sticky=600),
        virtual("group1", on(80), port=85, sticky=600, sticky_group="shop"),
        virtual("group2", on(8080), port=86, sticky=600, sticky_group="shop"),
        virtual("net", on(80), port=87, sticky=600, sticky_mask=24),
        virtual("closed", ["web1:9000"], port=90),
        virtual("iperf", ALL, port=5201, sticky=600),
        reals={"web1": "weight = 3", "web2": "weight = 2", "web3": "weight = 1"},
    )
    with balancing(lab, config) as appliance:
        yield appliance


def test_round_robin_takes_turns(lab: Lab, gateway: Appliance) -> None:
    """R099: one server after the other, so that thirty connections are ten for each."""
    assert spread([ask(lab.client) for _ in range(30)]) == {"web1": 10, "web2": 10, "web3": 10}


def test_least_connections_spreads_evenly(lab: Lab, gateway: Appliance) -> None:
    """R095, R125: thirty connections held open at once are ten on each server, whatever its weight."""
    wait_until(lambda: not any(live(gateway).values()), "the end of earlier connections")
    with holding(lab.client, 30, port=81) as held:
        assert spread(held.rounds()[0]) == {"web1": 10, "web2": 10, "web3": 10}


def test_weighted_least_connections_follows_the_weights(lab: Lab, gateway: Appliance) -> None:
    """R048, R096, R097, A31: of thirty held open, weights 3, 2, 1 make 15, 10 and 5; so the counts say."""
    wait_until(lambda: not any(live(gateway).values()), "the end of earlier connections")
    with holding(lab.client, 30, port=82) as held:
        assert spread(held.rounds()[0]) == {"web1": 15, "web2": 10, "web3": 5}
        shown = {row["name"]: row for row in rows(gateway, "virtuals")}["weighted"]
        assert {server["real"]: server["connections"] for server in shown["servers"]} == {
            "web1": 15,
            "web2": 10,
            "web3": 5,
        }
        assert shown["connections"] == 30
    wait_until(lambda: live(gateway)["weighted"] == 0, "the end of thirty connections")


def live(gateway: Appliance) -> dict[str, int]:
    """The connections of each virtual server."""
    return {row["name"]: row["connections"] for row in rows(gateway, "virtuals")}


def test_server_sees_the_client(lab: Lab, gateway: Appliance) -> None:
    """R006, R014: the servers get the client's own address and port; only the destination is rewritten."""
    for client in lab.clients:
        for source in (client.address, f"192.0.2.{50 + int(client.name[-1])}"):
            assert ask(client, source=source).client == source
    with holding(lab.client, 3) as held:
        seen = {(answer.client, answer.client_port): answer.server for answer in held.rounds()[0]}
        known = servers_of(gateway)
        assert {key: known.get(key) for key in seen} == seen


def test_client_never_sees_a_real_server(lab: Lab, gateway: Appliance) -> None:
    """R005, R007, R175: whatever reaches the client comes from the virtual IP, from the port it asked."""
    with capture(lab, lab.client, "outside") as recorded:
        for port in (80, 81, 82, 83, 84, 90):
            lab.client.run("curl", "-s", "--max-time", "5", f"http://{VIP}:{port}/", check=port != 90)
        ask(lab.client, address=SECOND_VIP)
        ask(lab.client, address=ROUTED_VIP)
    assert {VIP, SECOND_VIP, ROUTED_VIP} <= recorded.addresses()
    assert not [text for text in recorded.addresses() if ip_address(text) in INSIDE]
    asked = {80, 81, 82, 83, 84, 90}
    for packet in recorded.packets():
        if isinstance(packet.data, dpkt.tcp.TCP) and ip_address(packet.src) == ip_address(VIP):
            assert packet.data.sport in asked


@only(REWRITE, "the kernel forwards sums as it got them, unfinished between namespaces")
def test_checksums_are_right(lab: Lab, gateway: Appliance) -> None:
    """R167, R177: what the client receives has the checksums that a full computation gives."""
    with capture(lab, lab.client, "outside", "src host " + VIP) as recorded:
        for port in (80, 83):
            ask(lab.client, port=port)
    packets = recorded.packets()
    assert {packet.data.sport for packet in packets if packet.data.flags & dpkt.tcp.TH_SYN} == {80, 83}
    assert {packet.data.sport for packet in packets if packet.data.data} == {80, 83}
    for packet in packets:
        header = bytes(packet)[: packet.hl * 4]
        assert dpkt.in_cksum(header) == 0
        segment = bytes(packet.data)
        pseudo = packet.src + packet.dst + bytes((0, packet.p)) + len(segment).to_bytes(2, "big")
        assert dpkt.in_cksum(pseudo + segment) == 0


def test_download_arrives_intact(lab: Lab, gateway: Appliance) -> None:
    """R167, R177: 100 MB come through bit by bit, and no packet is left behind in the queues."""
    digest = document(lab, "large", 100)
    url = f"http://{VIP}/files/large"
    got = lab.client.run("sh", "-c", f"curl -sS --max-time 60 {url} | sha256sum", timeout=70).stdout
    assert got.split()[0] == digest
    wait_until(lambda: queued(lab) == 0, "empty queues")


def test_upload_arrives_intact(lab: Lab, gateway: Appliance) -> None:
    """R167: the same from client to server."""
    document(lab, "upload", 20)
    source = lab.directory / "files/upload"
    lab.client.run("curl", "-sS", "--max-time", "60", "-T", str(source), f"http://{VIP}/upload/a", timeout=70)
    copies = [home(lab, server) / "upload/a" for server in lab.servers]
    (copy,) = [path for path in copies if path.exists()]
    assert copy.read_bytes() == source.read_bytes()


def test_fifty_parallel_connections(lab: Lab, gateway: Appliance) -> None:
    """R011, R020: 50 parallel connections for 10 s without one socket error; every server gets its part."""
    before = {row["name"]: row["total"] for row in rows(gateway, "reals")}
    wrk(lab.client, f"http://{VIP}/", connections=50, seconds=3 if offloads(lab) else 10)
    after = {row["name"]: row["total"] for row in rows(gateway, "reals")}
    assert all(after[name] - before[name] >= 16 for name in ALL)
    wait_until(lambda: queued(lab) == 0, "empty queues")


def test_iperf_both_ways(lab: Lab, gateway: Appliance) -> None:
    """R011, R132: iperf3's control and data connections, both directions at once, meet the same server."""
    for server in lab.servers:
        program = server.start("iperf3", "-s", "--forceflush")
        program.wait_for(program.out, "Server listening")
    report = json.loads(lab.client.run("iperf3", "-c", VIP, "-t", "1", "--bidir", "-J", "-P", "2").stdout)
    assert report["end"]["sum_received"]["bytes"] > 0
    assert report["end"]["sum_received_bidir_reverse"]["bytes"] > 0


def test_ports_are_mapped_for_each_server(lab: Lab, gateway: Appliance) -> None:
    """R044, R072, R073, R122, R166, R176: one virtual port is another port on each server, both ways."""
    ports = {(answer.server, answer.port) for answer in (ask(lab.client, port=83) for _ in range(6))}
    assert ports == {("web1", 8080), ("web2", 8081), ("web3", 80)}


def test_virtual_servers_share_real_servers(lab: Lab, gateway: Appliance) -> None:
    """R008, R009, R010: two virtual IPs, and several ports of one, over the same real servers."""
    before = {row["name"]: row["total"] for row in rows(gateway, "reals")}
    assert spread([ask(lab.client, address=SECOND_VIP) for _ in range(4)]) == {"web1": 2, "web2": 2}
    assert spread([ask(lab.client, address=ROUTED_VIP) for _ in range(6)]) == dict.fromkeys(ALL, 2)
    after = {row["name"]: row for row in rows(gateway, "reals")}
    assert {name: after[name]["total"] - before[name] for name in ALL} == {"web1": 4, "web2": 4, "web3": 2}
    assert {"pair", "routed", "turns"} <= set(after["web1"]["virtuals"])
    assert "pair" not in after["web3"]["virtuals"]


def test_sticky_clients_stay(lab: Lab, gateway: Appliance) -> None:
    """R026, R067, R131, R132, R151-R156: each client meets one server, though the clients are spread."""
    sources = [(client, source) for client in lab.clients for source in (client.address, second(client.name))]
    met = {
        source: spread([ask(client, port=84, source=source) for _ in range(5)]) for client, source in sources
    }
    assert all(len(servers) == 1 for servers in met.values())
    assert len({next(iter(servers)) for servers in met.values()}) > 1
    shown = {row["client"]: row for row in rows(gateway, "sticky") if row.get("virtual") == "sticky"}
    assert {source: shown[source]["real"] for source in met} == {
        source: next(iter(servers)) for source, servers in met.items()
    }
    assert all(0 < row["expires_s"] <= 600 for row in shown.values())


def second(client: str) -> str:
    """A client's second address."""
    return f"192.0.2.{50 + int(client[-1])}"


def test_sticky_group_is_shared(lab: Lab, gateway: Appliance) -> None:
    """A8: in a group, a client meets the server of one virtual server on the other one too."""
    for client in lab.clients:
        first = {ask(client, port=85).server for _ in range(3)}
        assert len(first) == 1
        assert {ask(client, port=86).server for _ in range(3)} == first


def test_sticky_mask_takes_a_network_together(lab: Lab, gateway: Appliance) -> None:
    """A8: with a mask of 24, all clients of one /24 meet the same server."""
    met = {ask(client, port=87).server for client in lab.clients for _ in range(3)}
    assert len(met) == 1


def test_closed_port_is_told_by_the_virtual_ip(lab: Lab, gateway: Appliance) -> None:
    """R007, R176: a server that refuses does so in the virtual IP's name, from the virtual port, at once."""
    with capture(lab, lab.client, "outside", "tcp") as recorded:
        done = lab.client.run("curl", "-sS", "--max-time", "5", f"http://{VIP}:90/", check=False)
    assert done.returncode == 7, done.stderr
    (reset,) = [packet for packet in recorded.packets() if packet.data.flags & dpkt.tcp.TH_RST]
    assert (str(ip_address(reset.src)), reset.data.sport) == (VIP, 90)


def test_servers_own_connections_pass_untouched(lab: Lab, gateway: Appliance) -> None:
    """A19, A20: what a real server opens itself is not ours, not even from a port of a virtual server."""
    serve_on_client(lab)
    total = summary(gateway)["connections"]["total"]
    web1 = lab.servers[0]
    answer = web1.run(
        "curl", "-sS", "--max-time", "5", "--local-port", "9000", f"http://{lab.client.address}:8000/"
    )
    assert answer.stdout.split()[:3] == ["client1", web1.address, "9000"]
    assert summary(gateway)["connections"]["total"] == total


def serve_on_client(lab: Lab) -> None:
    serve(lab, lab.client, ports=(8000,))


def test_collisions_of_the_way_back_are_avoided(lab: Lab, gateway: Appliance) -> None:
    """A5: one client port towards two virtual IPs and one real server would be one connection to that
    server: another server is chosen; where there is none, the SYN is dropped and counted."""
    with holding(lab.client, 1, port=91, own_port=40001) as held:
        assert held.rounds()[0][0].server == "web1"
        for _ in range(2):
            with holding(lab.client, 1, address=SECOND_VIP, own_port=40001) as second:
                assert second.rounds()[0][0].server == "web2"
        before = sum(summary(gateway)["drops"].values())
        program = lab.client.start(sys.executable, str(HOLDER), SECOND_VIP, "91", "1", "40001")
        wait_until(lambda: sum(summary(gateway)["drops"].values()) > before, "the drop to be counted")
        assert program.stdout == ""
        program.stop()
        assert held.again() == held.rounds()[0]


def test_other_ports_of_the_virtual_ip_are_silent(lab: Lab, gateway: Appliance) -> None:
    """R113, R114: a port without a virtual server is dropped; echo is answered by the gateway."""
    done = lab.client.run("curl", "-sS", "--max-time", "1", f"http://{VIP}:8443/", check=False)
    assert done.returncode == 28
    assert lab.client.run("ping", "-c", "1", "-W", "3", VIP).returncode == 0


@only(REWRITE, "the rules drop them there, see test_reject")
def test_packets_without_a_connection_are_dropped(lab: Lab, gateway: Appliance) -> None:
    """R113, R117: only a SYN may come without a connection; the drop is counted."""
    before = sum(summary(gateway)["drops"].values())
    with capture(lab, lab.client, "outside", f"src host {VIP}") as recorded:
        stray = (
            "import socket\n"
            "raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)\n"
            f"raw.connect(({VIP!r}, 0))\n"
            f"raw.send(bytes.fromhex({stray_ack()!r}))\n"
        )
        lab.client.run(sys.executable, "-c", stray)
        wait_until(lambda: sum(summary(gateway)["drops"].values()) > before, "the drop to be counted")
    assert recorded.packets() == []


def stray_ack() -> str:
    """A TCP segment with ACK, of no connection, from the first client to the virtual server, in hex."""
    segment = dpkt.tcp.TCP(sport=44444, dport=80, seq=1, ack=1, flags=dpkt.tcp.TH_ACK, win=1000)
    packet = dpkt.ip.IP(
        src=ip_address("192.0.2.11").packed, dst=ip_address(VIP).packed, p=dpkt.ip.IP_PROTO_TCP, data=segment
    )
    return bytes(packet)[20:].hex()


def test_show_documents_have_their_fields(lab: Lab, gateway: Appliance) -> None:
    """R025, R033, R039, R187: `nfqlb show ... --json` prints one document with the documented fields."""
    ask(lab.client, port=84)
    with holding(lab.client, 2):
        documents = {name: shown(lab, name) for name in FIELDS}
    assert documents["summary"]["worker"].keys() >= {"pid", "restarts"}
    assert documents["summary"]["connections"].keys() >= {"now", "total", "limit"}
    assert documents["summary"]["sticky"].keys() >= {"now", "limit"}
    assert {queue["number"] for queue in documents["summary"]["queues"]} == ({0} if offloads(lab) else {0, 1})
    for queue in documents["summary"]["queues"]:
        assert queue.keys() >= {"number", "depth", "dropped_full", "dropped_socket", "overruns", "refused"}
    assert documents["summary"].keys() >= set(FIELDS["summary"].split())
    for name in ("reals", "virtuals", "connections", "sticky"):
        assert documents[name], f"{name} shows nothing"
        for row in documents[name]:
            assert row.keys() >= set(FIELDS[name].split())
    assert all(row["ditched"].keys() >= {"no_answer", "reset"} for row in documents["reals"])
    assert all(row["scheduler"].keys() >= {"desired", "actual"} for row in documents["virtuals"])
    assert {server["real"] for row in documents["virtuals"] for server in row["servers"]} == set(ALL)
    assert all("virtual" in row or "group" in row for row in documents["sticky"])


FIELDS = {
    "summary": "version datapath state uptime_s worker connections sticky queues journal drops",
    "reals": "name address state reason since_s weight connections total max_connections unanswered ditched"
    " response_s predicted_s virtuals mac neighbour",
    "virtuals": "name address protocol port state scheduler connections total servers",
    "connections": "virtual protocol client client_port real real_port state age_s idle_s",
    "sticky": "client real age_s expires_s",
}


def shown(lab: Lab, subject: str) -> Any:
    """What the command prints, read as JSON."""
    every = ("--limit", "10000") if subject == "connections" else ()
    socket = str(lab.directory / "control.sock")
    done = nfqlb_command(lab, "show", subject, "--json", *every, "--socket", socket)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)
