"""The guard of a whole gateway, under both datapaths and with traffic."""

import socket
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from struct import pack

import pytest

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.demo.appliance import Appliance, balancing, virtual
from nfqlb.demo.lab import VIP, VIP6, Lab
from nfqlb.demo.web import document
from nfqlb.netfilter.messages import MSG_CONFIG
from nfqlb.runtime.datapaths import Datapaths
from tests.netns.asking import HOLDER, Held, ask, rows, servers_of, summary, wait_until
from tests.netns.both import OFFLOAD, Datapath, configuration, serving
from tests.netns.site import Site, built, entered

IN_TIME = 5.0
#: Its deletions may fail where the guard comes in between.
FLUSH = "for t in filter nat mangle raw; do iptables -t $t -F; iptables -t $t -X; done; true"


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, servers=2, ipv6=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Appliance]:
    names = [server.name for server in lab.servers]
    config = configuration(
        lab, virtual("web", names), virtual("six", [f"{name}-6" for name in names], address=VIP6)
    )
    with balancing(lab, config) as appliance:
        yield appliance


def snapshot_rules(gateway: Appliance) -> dict[str, object]:
    snapshot = gateway.ask("snapshot")
    assert isinstance(snapshot, dict)
    rules = snapshot["rules"]
    assert isinstance(rules, dict)
    return dict(rules)


def answers(lab: Lab, address: str) -> bool:
    url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    return lab.client.run("curl", "-sS", "--max-time", "1", url, check=False).returncode == 0


def test_who_did_it_is_in_the_log_the_events_and_the_snapshot(lab: Lab, gateway: Appliance) -> None:
    before = snapshot_rules(gateway)["repairs"]
    lab.gateway.run("iptables", "-t", "mangle", "-F")
    wait_until(lambda: snapshot_rules(gateway)["repairs"] != before, "a repair", timeout=IN_TIME)
    why = str(snapshot_rules(gateway)["why"])
    assert "iptables mangle: " in why
    assert "rules or chains missing or changed; for " in why
    assert "by iptables" in why
    event = next(row for row in rows(gateway, "events") if row["kind"] == "rules")
    assert event["level"] == "warning"
    assert event["text"] == f"repaired: {why}"
    assert gateway.program.stderr.count(f"repaired: {why}") == 1


@pytest.mark.parametrize(
    ("commands", "address"),
    [
        ("iptables -F", VIP),
        ("iptables -t raw -F; iptables -t raw -X; true", VIP),
        (FLUSH, VIP),
        (FLUSH.replace("iptables", "ip6tables"), VIP6),
        ("ip address flush dev outside; ip address add 192.0.2.1/24 dev outside", VIP),
    ],
    ids=["iptables -F", "raw", "everything", "everything of IPv6", "addresses"],
)
def test_service_is_back_in_time(lab: Lab, gateway: Appliance, commands: str, address: str) -> None:
    """F17: clients are served again within five seconds, whatever was flushed."""
    assert answers(lab, address)
    lab.gateway.run("sh", "-c", commands)
    begun = time.monotonic()
    wait_until(lambda: answers(lab, address), "an answer", timeout=IN_TIME)
    assert time.monotonic() - begun < IN_TIME
    wait_until(lambda: snapshot_rules(gateway)["present"] is True, "the rules", timeout=IN_TIME)
    for server in lab.servers:  # the one that is asked next, and the other
        assert ask(lab.client, address=address).server.startswith("web"), server


@pytest.mark.parametrize("table", ["filter", "raw", "mangle"])
def test_a_download_goes_on_whatever_is_flushed(lab: Lab, gateway: Appliance, table: str) -> None:
    """What would reset it is dropped behind all tables, until the rules are back and TCP repeats it."""
    digest = document(lab, "film", 60)
    fetch = f"curl -sS --limit-rate 20M --max-time 20 http://{VIP}/files/film | sha256sum"
    program = lab.client.start("sh", "-c", fetch)
    wait_until(lambda: any(row["virtual"] == "web" for row in rows(gateway, "connections")), "the download")
    for _ in range(3):
        lab.gateway.run("iptables", "-t", table, "-F")
        time.sleep(0.5)
    assert program.wait(25) == 0
    assert program.stdout.split()[0] == digest


def test_a_download_goes_on_when_everything_is_flushed(lab: Lab, gateway: Appliance) -> None:
    digest = document(lab, "film", 60)
    fetch = f"curl -sS --limit-rate 20M --max-time 20 http://{VIP}/files/film | sha256sum"
    program = lab.client.start("sh", "-c", fetch)
    wait_until(lambda: any(row["virtual"] == "web" for row in rows(gateway, "connections")), "the download")
    lab.gateway.run("sh", "-c", FLUSH)
    assert program.wait(25) == 0
    assert program.stdout.split()[0] == digest


def test_nobody_is_refused_while_rules_are_missing(lab: Lab, gateway: Appliance) -> None:
    """A SYN that comes just then is lost, and repeated by its client: no "connection refused"."""
    for _ in range(3):
        lab.gateway.run("iptables", "-t", "raw", "-F")
        assert lab.client.run("curl", "-sS", "--max-time", "8", f"http://{VIP}/").returncode == 0


def test_what_began_while_rules_were_away_is_known_when_they_are_back(lab: Lab, gateway: Appliance) -> None:
    """F17, F37: under offload the kernel has spread it alone."""
    known = len(servers_of(gateway))
    program = lab.client.start(sys.executable, str(HOLDER), VIP, "80", "300")
    try:
        wait_until(lambda: len(servers_of(gateway)) >= known + 20, "some connections")
        lab.gateway.run("iptables", "-t", "raw", "-F")
        program.wait_for(program.out, "\n\n", timeout=20.0)
        (there,) = Held(program).rounds()
        held = {(answer.client, answer.client_port): answer.server for answer in there}
        wait_until(lambda: held.items() <= servers_of(gateway).items(), "all that are held")
        if lab.datapath == OFFLOAD:  # type: ignore[attr-defined]  # a Bench
            assert summary(gateway)["followed"]["adopted"] > 0
            assert any("taken over" in row["text"] for row in rows(gateway, "events"))
    finally:
        program.stop()


@pytest.fixture
def site(tmp_path: object) -> Iterator[Site]:
    yield from built(tmp_path)  # type: ignore[arg-type]  # a Path


@pytest.mark.parametrize("datapath", ["rewrite"], indirect=True, scope="module")
def test_what_the_kernel_lets_go_of_is_bound_again(site: Site, datapath: Datapath) -> None:
    """As when somebody unloads the module: told to the kernel here with the queue's own socket."""
    reals = (Real("web1", ip_address("10.0.0.11")),)
    virtuals = tuple(
        Virtual(kind, ip_address("192.0.2.100"), (Server("web1", port),), port=port, datapath=kind)
        for kind, port in (("rewrite", 80), ("offload", 81))
    )
    config = Config(Gateway(("outside",), ("inside",), queue=20), reals, virtuals)
    with entered(site.gateway):
        datapaths = Datapaths(config)
        try:
            assert datapaths.rebind() == []
            bound = site.run("cat", "/proc/net/netfilter/nfnetlink_queue")
            for queue in datapaths.queues:
                with socket.socket(fileno=socket.dup(queue.fileno())) as sock:
                    sock.send(queue.message(MSG_CONFIG, pack("=HH", 8, 1) + b"\2\0\0\0"))
            assert site.run("cat", "/proc/net/netfilter/nfnetlink_queue") == ""
            assert datapaths.rebind() == ["NFQUEUE 20", "NFQUEUE 21", "NFQUEUE 22"]
            assert site.run("cat", "/proc/net/netfilter/nfnetlink_queue") == bound
            assert datapaths.rebind() == []
        finally:
            datapaths.close()
