"""What is counted of each virtual server, compared with what its client has sent and got."""

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address
from typing import Any, NamedTuple

import dpkt
import pytest

from nfqlb.demo.appliance import Appliance, balancing, nfqlb_command, virtual
from nfqlb.demo.lab import SECOND_VIP, VIP, VIP6, Host, Lab
from nfqlb.demo.web import document, serve
from tests.netns.asking import ask, rows, summary, wait_until
from tests.netns.both import Bench, Datapath, configuration
from tests.netns.site import entered, family_of, send_raw

MEBI = 1 << 20
FILM = 8  # MB
PORT, UDP_PORT = 80, 5300
#: Whose address each virtual server has, and the port.
PLACES = {
    "web": (VIP, PORT), "web6": (VIP6, PORT), "all": (SECOND_VIP, PORT), "udp": (VIP, UDP_PORT),
    "udp6": (VIP6, UDP_PORT),
}  # fmt: skip
TCP, UDP = ("web", "web6", "all"), ("udp", "udp6")


class Passed(NamedTuple):
    """Packets and bytes in both directions."""

    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int

    def since(self, before: "Passed") -> "Passed":
        return Passed(*(now - then for now, then in zip(self, before, strict=True)))


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, servers=1, ipv6=True) as lab:
        serve(lab, lab.servers[0])
        document(lab, "film", FILM)
        yield lab


def config(lab: Lab) -> str:
    return configuration(
        lab,
        virtual("web", ["web1"]),
        virtual("web6", ["web1-6"], address=VIP6),
        virtual("all", ["web1"], address=SECOND_VIP, port=None),
        virtual("udp", ["web1"], port=UDP_PORT, protocol="udp"),
        virtual("udp6", ["web1-6"], address=VIP6, port=UDP_PORT, protocol="udp"),
    )


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Appliance]:
    with balancing(lab, config(lab)) as appliance:
        for name in TCP:
            ask(lab.client, address=PLACES[name][0])  # neighbours know each other from here on
        yield appliance


def counted(appliance: Appliance, name: str) -> Passed:
    """What the gateway says."""
    (row,) = [row for row in rows(appliance, "virtuals") if row["name"] == name]
    return Passed(**row["traffic"])


@contextmanager
def watched(client: Host, name: str) -> Iterator[Any]:
    """What the client sends to a virtual server and gets from it, counted on its own machine."""
    address, port = PLACES[name]
    program = "ip6tables" if ":" in address else "iptables"
    protocol = "udp" if name in UDP else "tcp"
    into = ("OUTPUT", "-d", address, "-p", protocol, "--dport", str(port))
    out = ("INPUT", "-s", address, "-p", protocol, "--sport", str(port))
    for rule in (into, out):
        client.run(program, "-w", "-t", "mangle", "-A", *rule)

    def seen() -> Passed:
        numbers: list[int] = []
        for chain in ("OUTPUT", "INPUT"):
            listing = client.run(program, "-w", "-t", "mangle", "-vnxL", chain).stdout.splitlines()
            numbers += map(int, listing[-1].split()[:2])
        return Passed(*numbers)

    try:
        yield seen
    finally:
        for rule in (into, out):
            client.run(program, "-w", "-t", "mangle", "-D", *rule)


def get(client: Host, name: str, path: str) -> int:
    """Download a document through a virtual server; the bytes of the response."""
    address, port = PLACES[name]
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{port}/{path}"
    wanted = "%{size_header} %{size_download}"
    done = client.run("curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", wanted, url)
    return sum(map(int, done.stdout.split()))


@pytest.mark.parametrize("name", TCP)
def test_each_packet_of_a_small_exchange_is_counted_once(
    lab: Lab, gateway: Appliance, name: str
) -> None:
    """SYNs come round again from the queue of datapath offload, and are no two packets."""
    before = counted(gateway, name)
    with watched(lab.client, name) as seen:
        for _ in range(5):
            get(lab.client, name, "")
        wait_until(lambda: counted(gateway, name).since(before) == seen(), "the same on both sides")
        assert seen().packets_in >= 5 * 4


@pytest.mark.parametrize("name", TCP)
def test_a_download_is_counted_with_its_headers(lab: Lab, gateway: Appliance, name: str) -> None:
    """A super-packet has one header instead of forty: so many bytes fewer than on a wire, and no more."""
    before = counted(gateway, name)
    with watched(lab.client, name) as seen:
        size = get(lab.client, name, "files/film")
        assert size > FILM * MEBI * 0.9
        passed, own = counted(gateway, name).since(before), seen()
    assert size < passed.bytes_out < size + 40 * size / 1000 + 100_000
    assert passed.bytes_out == pytest.approx(own.bytes_out, rel=0.06)
    assert passed.bytes_in == pytest.approx(own.bytes_in, rel=0.06, abs=2000)
    assert size / 65_535 < passed.packets_out < size / 500


@pytest.mark.parametrize("name", ["web", "web6"])
def test_an_upload_is_counted_on_its_way_in(lab: Lab, gateway: Appliance, name: str) -> None:
    before = counted(gateway, name)
    address, port = PLACES[name]
    host = f"[{address}]" if ":" in address else address
    source = str(lab.directory / "files" / "film")
    lab.client.run("curl", "-sS", "--max-time", "20", "-T", source, f"http://{host}:{port}/upload/{name}")
    passed = counted(gateway, name).since(before)
    size = (lab.directory / "files" / "film").stat().st_size
    assert size < passed.bytes_in < size + 40 * size / 1000 + 100_000
    assert passed.bytes_out < passed.bytes_in / 5


@pytest.mark.parametrize("name", UDP)
def test_each_datagram_is_counted_once(lab: Lab, gateway: Appliance, name: str) -> None:
    address, port = PLACES[name]
    server = lab.servers[0]
    six = ":" in address
    header = 48 if six else 28
    before = counted(gateway, name)
    with (
        closing(bound(server, server.address6 if six else server.address, port)) as serving,
        closing(bound(lab.client, lab.client.address6 if six else lab.client.address)) as asking,
    ):
        for size in (0, 100, 1000):
            asking.sendto(bytes(size), (address, port))
            got, sender = serving.recvfrom(2000)
            assert len(got) == size
            serving.sendto(bytes(2 * size // 3), sender[:2])
            assert len(asking.recv(2000)) == 2 * size // 3
    assert counted(gateway, name).since(before) == (3, 1100 + 3 * header, 3, 66 + 666 + 3 * header)


def bound(host: Host, address: str, port: int = 0) -> socket.socket:
    with entered(host.namespace):
        opened = socket.socket(family_of(address), socket.SOCK_DGRAM)
        opened.bind((address, port))
    opened.settimeout(10)
    return opened


def test_nothing_is_counted_twice_or_for_another(lab: Lab, gateway: Appliance) -> None:
    """Neighbours on the same address, ports of nobody, and the server's own address."""
    before = {name: counted(gateway, name) for name in PLACES}
    get(lab.client, "web", "")
    for url in (f"http://{VIP}:81/", f"http://{lab.servers[0].address}/"):
        lab.client.run("curl", "-sS", "--max-time", "1", url, check=False)
    for name, then in before.items():
        assert (counted(gateway, name) == then) == (name != "web")


def test_drops_are_its_own(lab: Lab, gateway: Appliance) -> None:
    """R113, R117: the worker counts them, or the rules do (datapath offload), read every few seconds."""
    before = {name: lost(gateway, name) for name in TCP}
    for number in range(3):
        ip = dpkt.ip.IP(src=ip_address(lab.client.address).packed, dst=ip_address(VIP).packed, p=6)
        ip.data = dpkt.tcp.TCP(sport=4000 + number, dport=PORT, seq=1, ack=1, flags=dpkt.tcp.TH_ACK)
        ip.len = len(ip)
        send_raw(lab.client.namespace, bytes(ip), VIP)
    wait_until(lambda: lost(gateway, "web") == before["web"] + 3, "the drops to be counted")
    assert {name: lost(gateway, name) for name in TCP[1:]} == {name: before[name] for name in TCP[1:]}
    assert summary(gateway)["drops"]["no-connection"] >= lost(gateway, "web")


def lost(appliance: Appliance, name: str) -> int:
    """Segments without a connection, of one virtual server."""
    (row,) = [row for row in rows(appliance, "virtuals") if row["name"] == name]
    found: int = row["drops"].get("no-connection", 0)
    return found


def test_numbers_do_not_fall_when_a_worker_dies(lab: Lab, gateway: Appliance) -> None:
    get(lab.client, "web", "")
    before = counted(gateway, "web")
    gateway.kill_worker()
    get(lab.client, "web", "files/film")
    wait_until(lambda: counted(gateway, "web").bytes_out > before.bytes_out + FILM * MEBI // 2, "new counts")


def test_numbers_go_on_after_somebody_has_cleared_them(lab: Lab, gateway: Appliance) -> None:
    """`nft flush ruleset` takes the counters as well as the rules; here they go alone."""
    get(lab.client, "web", "files/film")
    before = counted(gateway, "web")
    assert before.bytes_out > FILM * MEBI // 2
    lab.gateway.run("nft", "delete", "table", "inet", "nfqlb")
    assert traffic(gateway, "web") is None
    wait_until(lambda: traffic(gateway, "web") is not None, "counters that are there again")
    assert counted(gateway, "web") == before
    get(lab.client, "web", "")
    assert counted(gateway, "web").packets_out > before.packets_out


def traffic(appliance: Appliance, name: str) -> dict[str, int] | None:
    found: list[dict[str, int] | None] = [
        row["traffic"] for row in rows(appliance, "virtuals") if row["name"] == name
    ]
    return found[0] if found else None


def test_numbers_go_on_through_a_reload(lab: Lab, gateway: Appliance) -> None:
    """By another name too; a virtual server that is new begins with nothing."""
    get(lab.client, "web", "files/film")
    before = counted(gateway, "web")
    there = config(lab)
    renamed = there.replace('name = "web"\n', 'name = "store"\n')
    gateway.config.write_text(renamed + virtual("new", ["web1"], port=90))
    try:
        gateway.ask("reload")
        wait_until(lambda: traffic(gateway, "store") is not None, "the new configuration")
        assert counted(gateway, "store") == before
        assert counted(gateway, "new") == (0, 0, 0, 0)
        get(lab.client, "web", "")
        assert counted(gateway, "store").packets_in > before.packets_in
    finally:
        gateway.config.write_text(there)
        gateway.ask("reload")
    wait_until(lambda: traffic(gateway, "web") is not None, "the configuration of before")
    assert counted(gateway, "web").bytes_out > before.bytes_out


def test_people_are_told(lab: Lab, gateway: Appliance) -> None:
    get(lab.client, "web", "files/film")
    text = nfqlb_command(lab, "show", "virtuals", "--socket", str(lab.directory / "control.sock")).stdout
    assert text.splitlines()[1].startswith("web "), text
    about = text.splitlines()[3]
    assert re.fullmatch(r"  in \S+ [kM]B \([\d,]+ packets\), out \S+ MB \([\d,]+ packets\)", about), text


def test_the_snapshot_and_the_history_have_it(lab: Lab, gateway: Appliance) -> None:
    def known() -> set[str]:
        snapshot: Any = gateway.ask("snapshot")
        return {row["name"] for row in snapshot["virtuals"] if row["traffic"] is not None}

    def rates() -> list[float | None]:
        history: Any = gateway.ask("history", {"of": "virtual", "name": "web"})
        found: list[float | None] = history["bytes_out"]
        return found

    wait_until(lambda: known() == set(PLACES), "a snapshot with traffic")
    wait_until(lambda: rates()[-1] == 0.0, "a second without any")
    get(lab.client, "web", "files/film")
    wait_until(lambda: sum(rate or 0.0 for rate in rates()) > FILM * MEBI * 0.8, "the download")


def test_no_counters_are_left_behind(lab: Lab, gateway: Appliance) -> None:
    """A clean stop takes the counters out, `rules remove` those of a gateway that was killed."""
    gateway.stop()
    assert lab.gateway.run("nft", "list", "tables").stdout.count("nfqlb") == 0
    killed = Appliance(lab, config(lab))
    killed.wait_ready()
    killed.stop(signal.SIGKILL)
    assert "table inet nfqlb" in lab.gateway.run("nft", "list", "tables").stdout
    done = nfqlb_command(lab, "rules", "remove")
    assert "nft table inet nfqlb" in done.stdout + done.stderr
    assert lab.gateway.run("nft", "list", "tables").stdout.count("nfqlb") == 0
