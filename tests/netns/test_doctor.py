"""The doctor on the real kernel: each test breaks one thing, sees it found, and does what is advised."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nfqlb.demo.appliance import Appliance, balancing, nfqlb_command
from nfqlb.demo.lab import VIP, Lab
from nfqlb.netfilter.basechains import foreign
from tests.netns.asking import ask, wait_until
from tests.netns.both import REWRITE, Datapath, configuration, only, serving
from tests.netns.site import entered

ONCE = "the kernel's rules are read alike, whoever rewrites"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, servers=2, ipv6=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Appliance]:
    with balancing(lab, configuration(lab)) as appliance:
        ask(lab.client)
        yield appliance


def doctor(lab: Lab, *arguments: str) -> tuple[int, list[Row]]:
    """The exit status and the findings of `nfqlb doctor --json`."""
    done = nfqlb_command(lab, "doctor", "--json", "-c", str(lab.directory / "nfqlb.toml"), *arguments)
    assert done.stderr == ""
    rows: list[Row] = json.loads(done.stdout)
    assert done.returncode == any(row["level"] == "error" for row in rows)
    return done.returncode, rows


def wrong(lab: Lab, *passing: str) -> list[Row]:
    """The findings but those of areas that have another reason: nobody sets the clock of a container."""
    passing = passing or ("clock", "changes")
    return [row for row in doctor(lab)[1] if row["level"] != "ok" and row["area"] not in passing]


def only_one(lab: Lab) -> Row:
    found = wrong(lab)
    assert len(found) == 1, found
    assert found[0]["advice"]
    return found[0]


@contextmanager
def broken(lab: Lab, how: str, back: str) -> Iterator[None]:
    """The gateway with a shell command done, and undone afterwards."""
    lab.gateway.run("sh", "-c", how)
    try:
        yield
    finally:
        lab.gateway.run("sh", "-c", back)


def test_a_gateway_that_is_well(lab: Lab, gateway: Appliance) -> None:
    status, rows = doctor(lab)
    assert status == 0
    assert [row for row in rows if row["level"] != "ok" and row["area"] != "clock"] == []
    said = {row["area"]: row["what"] for row in rows}
    assert said["rules"] == "as put in, and first in every chain"
    assert said["neighbours"] == "4 servers on the link, answering"
    assert said["servers"] == "2 ports taking connections"
    assert "its worker is process" in said["gateway"]


def test_a_firewall_that_drops_is_found_and_the_advice_helps(lab: Lab, gateway: Appliance) -> None:
    with broken(lab, "iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT; iptables -F FORWARD"):
        fetch = ("curl", "-sS", "--max-time", "1", f"http://{VIP}/")
        assert lab.client.run(*fetch, check=False).returncode != 0
        for _ in range(3):  # one server after the other, and then the answers
            errors = [row for row in doctor(lab)[1] if row["area"] == "firewall" and row["level"] == "error"]
            if not errors:
                break
            assert "policy DROP of FORWARD" in errors[0]["what"]
            for row in errors:
                lab.gateway.run(*row["advice"].split())
        assert errors == []
        wait_until(lambda: lab.client.run(*fetch, check=False).returncode == 0, "an answer")


@only(REWRITE, ONCE)
def test_a_server_without_a_link(lab: Lab, gateway: Appliance) -> None:
    with lab.servers[0].unplugged():
        lab.gateway.run("ip", "neighbour", "flush", "dev", "inside")
        found = [row for row in wrong(lab) if row["area"] == "neighbours"]
        web1 = lab.servers[0]
        assert [row["what"].split(")")[0] for row in found] == [
            f"web1 ({web1.address}", f"web1-6 ({web1.address6}"
        ]  # fmt: skip
        assert "nfqlb set real web1 maintenance" in found[0]["advice"]
        gateway.ask("set-real", {"name": "web1", "state": "maintenance"})
        try:
            wait_until(lambda: not [r for r in wrong(lab) if "web1 (" in r["what"]], "nothing to be missed")
        finally:
            gateway.ask("set-real", {"name": "web1", "state": "in-service"})


@only(REWRITE, ONCE)
def test_a_service_that_is_not_there(lab: Lab, gateway: Appliance) -> None:
    server = lab.servers[1]
    server.run("sh", "-c", "iptables -A INPUT -p tcp --dport 80 -j REJECT --reject-with tcp-reset")
    try:
        finding = only_one(lab)
        said = f"web2 ({server.address}) takes no connection on port 80: Connection refused"
        assert finding["what"] == said
        assert server.address in finding["advice"]
    finally:
        server.run("iptables", "-F", "INPUT")


@only(REWRITE, ONCE)
def test_a_virtual_address_that_another_machine_has(lab: Lab, gateway: Appliance) -> None:
    lab.client.run("ip", "address", "add", f"{VIP}/32", "dev", "outside")
    try:
        mac = lab.client.run("cat", "/sys/class/net/outside/address").stdout.strip()
        finding = only_one(lab)
        assert finding["level"] == "error"
        assert finding["what"] == f"another machine, {mac}, answers for the virtual address {VIP} too"
    finally:
        lab.client.run("ip", "address", "del", f"{VIP}/32", "dev", "outside")


@only(REWRITE, ONCE)
def test_links_of_different_mtu(lab: Lab, gateway: Appliance) -> None:
    with broken(lab, "ip link set inside mtu 1400", "ip link set inside mtu 1500"):
        finding = only_one(lab)
        assert (finding["level"], finding["area"]) == ("warning", "mtu")
        advice = finding["advice"].partition("or: ")[2]
        with broken(lab, advice, advice.replace(" -A ", " -D ")):
            assert wrong(lab) == []


@only(REWRITE, ONCE)
@pytest.mark.parametrize(
    ("how", "back", "area", "words"),
    [
        (
            "iptables -t mangle -A PREROUTING -j MARK --set-mark 1",
            "iptables -t mangle -D PREROUTING -j MARK --set-mark 1",
            "firewall", "changes the bits 0xff0000 of marks",
        ),
        (
            "iptables -t nat -A POSTROUTING -j MASQUERADE",
            "iptables -t nat -D POSTROUTING -j MASQUERADE",
            "firewall", "hides the clients' addresses from web1",
        ),
        (
            "iptables -t raw -A PREROUTING -p udp --dport 53 -j CT --notrack",
            "iptables -t raw -D PREROUTING -p udp --dport 53 -j CT --notrack",
            "firewall", "keeps packets from conntrack",
        ),
    ],
)  # fmt: skip
def test_rules_of_others(lab: Lab, gateway: Appliance, how: str, back: str, area: str, words: str) -> None:
    with broken(lab, how, back):
        finding = only_one(lab)
        assert (finding["level"], finding["area"]) == ("warning", area)
        assert words in finding["what"]
    assert wrong(lab) == []


@only(REWRITE, ONCE)
def test_chains_of_nftables(lab: Lab, gateway: Appliance) -> None:
    hook = "{ type filter hook forward priority 10; policy drop; }"
    with broken(
        lab, f"nft 'add table inet mine; add chain inet mine pass {hook}'", "nft delete table inet mine"
    ):
        finding = only_one(lab)
        assert finding["what"] == "the nftables chain inet mine pass drops what it does not accept"
        with entered(lab.gateway.namespace):
            (chain_found,) = foreign()
        assert (chain_found.hook, chain_found.priority, chain_found.drops) == ("forward", 10, True)


@only(REWRITE, ONCE)
def test_another_program_on_the_virtual_address(lab: Lab, gateway: Appliance) -> None:
    # the gateway may not look into one that may do more than it may itself
    less = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    program = lab.gateway.start(*less, sys.executable, "-m", "http.server", "--bind", VIP, "8088")
    try:
        wait_until(lambda: ":1F98 00000000" in lab.gateway.run("cat", "/proc/net/tcp").stdout, "port 8088")
        finding = only_one(lab)
        assert (finding["level"], finding["area"]) == ("warning", "balancers")
        assert f"{VIP} port 8088" in finding["what"]
        assert f"process {program.pid}" in finding["what"]
    finally:
        program.stop()


def test_for_people_it_is_text_with_a_verdict(lab: Lab, gateway: Appliance) -> None:
    done = nfqlb_command(lab, "doctor", "-c", str(gateway.config))
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok      rules ") for line in lines)
    assert lines[-1] in ("all well", "1 warning", "2 warnings")
