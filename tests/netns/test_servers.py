"""Servers that misbehave, each in its own way, and one that is drained: their state, and who is served."""

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nfqlb.demo.appliance import Appliance, command, nfqlb_command, python_path, socket_path, virtual
from nfqlb.demo.lab import VIP, Host, Lab
from nfqlb.demo.programs import Program
from tests.netns.asking import ask, holding, rows, spread, summary, wait_until
from tests.netns.both import REWRITE, Datapath, only, serving
from tests.netns.test_failure import ALL, ask_at_once, gateway, real, silent, turns


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=2, servers=3) as lab:
        yield lab


@contextmanager
def rejecting(server: Host, answer: str) -> Iterator[None]:
    """The server answers whatever comes in with a reset ("tcp-reset"), or with an ICMP error."""
    rule = ("INPUT", "-p", "tcp", "--dport", "80", "-j", "REJECT", "--reject-with", answer)
    server.run("iptables", "-w", "-I", *rule)
    try:
        yield
    finally:
        server.run("iptables", "-w", "-D", *rule)


def changes(appliance: Appliance, name: str) -> list[str]:
    """What became of a server, the oldest first."""
    told = rows(appliance, "events", limit=1000)
    return [str(row["text"]) for row in reversed(told) if row["kind"] == "state" and row["name"] == name]


def asked(lab: Lab) -> tuple[str, str]:
    """What a command needs to ask this gateway."""
    return "--socket", str(socket_path(lab))


def state(appliance: Appliance, name: str = "web1") -> str:
    return str(real(appliance, name)["state"])


def test_a_server_that_says_it_is_unreachable(lab: Lab) -> None:
    """F21: clients are not told, but served by others; it has failed, with its reason."""
    with gateway(lab, turns()) as appliance, rejecting(lab.servers[0], "icmp-host-unreachable"):
        begun = time.monotonic()
        assert set(spread(ask_at_once(lab, 6))) == {"web2", "web3"}
        took = time.monotonic() - begun
        shown = real(appliance, "web1")
        assert (shown["state"], shown["ditched"]["reset"]) == ("failed", 0), shown
        assert re.fullmatch(r"[3-6] connections in a row could not be made", shown["reason"]), shown
        assert summary(appliance)["drops"]["unreachable-eaten"] >= 3
        assert spread([ask(lab.client) for _ in range(10)]) == {"web2": 5, "web3": 5}
        print(f"unreachable: 12 clients served after {took:.1f} s, web1 {shown['state']}: {shown['reason']}")


def test_a_sticky_client_that_its_server_refuses(lab: Lab) -> None:
    """R041, R064, F21: served by another with its next connection, while another client is about."""
    client, other = lab.clients
    sticky = virtual("shop", ALL, scheduler="round-robin", sticky=600)
    with gateway(lab, sticky, failure_threshold=8) as appliance:
        assert (ask(client).server, ask(other).server) == ("web1", "web2")
        with rejecting(lab.servers[0], "tcp-reset"):
            refused = client.run("curl", "-sS", f"http://{VIP}/", check=False)
            begun = time.monotonic()
            assert (refused.returncode, ask(other).server) == (7, "web2")
            mine = ask(client).server
            took = time.monotonic() - begun
            assert mine in ("web2", "web3")
            assert spread([ask(client) for _ in range(5)]) == {mine: 5}
            assert state(appliance) == "in-service"
        assert ask(client).server == mine, "from now on that is its server"
        bound = {row["client"]: row["real"] for row in rows(appliance, "sticky")}
        assert bound[client.address] == mine
        wait_until(lambda: bool(changes(appliance, "web1")), "news of it")
        assert changes(appliance, "web1") == [
            f"web1 refused {client.address}, bound to it in shop: it goes to {mine} now"
        ]
        told = nfqlb_command(lab, "explain", "--client", client.address, "--last", "9", *asked(lab)).stdout
        assert " to shop went to web1:80, which refused it." in told
        assert "Its sticky entry said web1, which had refused this client." in " ".join(told.split())
        print(f"refused while bound: served by another {took:.2f} s later")


@only(REWRITE, "what is said of a server is the core's in both")
def test_a_server_that_refuses_one_client_alone_is_told_of(lab: Lab) -> None:
    """R132, R179: with `keep` its client comes back to be refused; before it fails the operator sees it."""
    client, other = lab.clients
    sticky = virtual("shop", ALL, scheduler="round-robin", sticky=600, sticky_ditched="keep")
    with gateway(lab, sticky, failure_threshold=4) as appliance:
        assert (ask(client).server, ask(other).server) == ("web1", "web2")
        with rejecting(lab.servers[0], "tcp-reset"):
            for _ in range(5):
                assert client.run("curl", "-sS", f"http://{VIP}/", check=False).returncode == 7
                assert ask(other).server == "web2"
        said = "web1 has refused 5 connections in a row"
        wait_until(lambda: said in nfqlb_command(lab, "show", "summary", *asked(lab)).stdout, "the verdict")
        assert f"\n{said.replace(' ', '  ', 1)}\n" in nfqlb_command(lab, "show", "reals", *asked(lab)).stdout
        assert ask(client).server == "web1"
        wait_until(lambda: said not in nfqlb_command(lab, "show", "summary", *asked(lab)).stdout, "its end")
        assert state(appliance) == "in-service"


def test_a_sticky_client_that_its_server_does_not_answer(lab: Lab) -> None:
    """R041, R064, F21: one that gives up before its third SYN is served with its next connection."""
    client, other = lab.clients
    sticky = virtual("shop", ALL, scheduler="round-robin", sticky=600)
    with gateway(lab, sticky, "[timeouts]\nhalf_open = 4\n", failure_threshold=8) as appliance:
        assert (ask(client).server, ask(other).server) == ("web1", "web2")
        with silent(lab.servers[0]):
            gave_up = client.run("curl", "-sS", "--connect-timeout", "2", f"http://{VIP}/", check=False)
            assert (gave_up.returncode, ask(other).server) == (28, "web2")
            mine = ask(client).server
            assert mine in ("web2", "web3")
            assert spread([ask(client) for _ in range(5)]) == {mine: 5}
        assert state(appliance) == "in-service"
        # or the next gateway would find it
        wait_until(lambda: real(appliance, "web1")["connections"] == 0, "the end of what was not answered")


def test_a_server_that_has_forgotten_its_connections(lab: Lab) -> None:
    """F21: half-open ones: its reset reaches the client at once, and the gateway forgets them as well."""
    web1 = lab.servers[0]
    with gateway(lab, turns("web1")) as appliance, holding(lab.client, 3) as held:
        with silent(web1):
            web1.run("ss", "-K", "sport", "=", "80")  # without a word: what it sends meets the rule below
            begun = time.monotonic()
        assert state(appliance) == "in-service"
        held.program.send(signal.SIGUSR1)
        wait_until(lambda: not held.program.running, "the client to hear of it")
        took = time.monotonic() - begun
        wait_until(lambda: real(appliance, "web1")["connections"] == 0, "no connection of it")
        assert ask(lab.client).server == "web1"
        assert state(appliance) == "in-service"
        print(f"forgotten connections: told after {took:.1f} s")


@only(REWRITE, "what fails a server and brings it back is the core's in both")
def test_a_server_that_flaps_is_no_faster_than_its_hysteresis(lab: Lab) -> None:
    """F21: at 1 Hz: it fails at most once a `retry`, and no client goes without an answer."""
    retry, seconds = 2, 6
    web1 = lab.servers[0]
    with gateway(lab, turns(), retry=retry) as appliance:
        clients: list[Program] = []
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            with silent(web1):
                clients += started(lab, 0.5)
            clients += started(lab, 0.5)
        assert all(client.wait(30) == 0 for client in clients)
        told = changes(appliance, "web1")
        failed = [text for text in told if " failed: " in text]
        assert 1 <= len(failed) <= seconds / retry + 1, told
        assert len(told) <= 2 * len(failed), told
        print(f"{len(clients)} clients served; web1 failed {len(failed)} times in {seconds} s: {told}")
        wait_until(lambda: bool(ask(lab.client)) and state(appliance) == "in-service", "web1", timeout=20)


def started(lab: Lab, seconds: float) -> list[Program]:
    """A client every twentieth of a second."""
    found: list[Program] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        host = lab.clients[len(found) % 2]
        found.append(host.start("curl", "-sS", "--max-time", "25", f"http://{VIP}/"))
        time.sleep(0.05)
    return found


@only(REWRITE, "the way to a server's link address is the kernel's in both")
def test_a_server_that_comes_back_with_another_link_address(lab: Lab) -> None:
    """F21: with the first word that it says, as any machine does that starts; shown, and no failure."""
    web1 = lab.servers[0]
    with gateway(lab, turns()) as appliance:
        ask_at_once(lab, 3)
        before = real(appliance, "web1")["mac"]
        name = next(iter(web1.interfaces.values())).name
        fresh = "02:00:00:00:00:77"
        for words in (("down",), ("address", fresh), ("up",)):
            web1.run("ip", "link", "set", name, *words)
        web1.run("ip", "route", "replace", "default", "via", "10.0.0.1")
        web1.run("ping", "-c1", "-W5", "10.0.0.1")
        begun = time.monotonic()
        assert spread([ask(lab.client) for _ in range(6)]) == dict.fromkeys(ALL, 2)
        took = time.monotonic() - begun
        assert took < 2
        wait_until(lambda: real(appliance, "web1")["mac"] == fresh, "the new address")
        assert before not in (None, fresh)
        assert changes(appliance, "web1") == []
        print(f"another link address: 6 requests in {took:.2f} s, 2 by web1")


def test_a_server_is_drained_in_mid_traffic(lab: Lab) -> None:
    """F23: not one new connection; those that exist go on and end; the wait ends with the last of them."""
    with gateway(lab, turns()) as appliance, holding(lab.client, 9) as held:
        first = held.rounds()[0]
        load = lab.clients[1].start(
            "wrk", "-t1", "-c8", "-d2", "-H", "Connection: close", f"http://{VIP}/"
        )  # fmt: skip
        wait_until(lambda: real(appliance, "web1")["total"] > 100, "the load")
        order(lab, "set", "real", "web1", "maintenance")
        drained = real(appliance, "web1")["total"]
        words = command("wait", "real", "web1", "empty", "--timeout", "30", "--socket", str(socket_path(lab)))
        waiting = lab.gateway.start(*words, environment=python_path())
        others = real(appliance, "web2")["total"]
        assert load.wait(30) == 0
        made = real(appliance, "web2")["total"] + real(appliance, "web3")["total"] - 2 * others
        assert real(appliance, "web1")["total"] == drained
        assert held.again() == first
        assert any(answer.server == "web1" for answer in first)  # a repeated SYN may have moved the turns
        assert waiting.running
        held.program.stop()
        begun = time.monotonic()
        assert waiting.wait(20) == 0, waiting.stderr
        print(f"0 new of {made:,}; the wait ended {time.monotonic() - begun:.1f} s after the last connection")
        assert waiting.stdout == "web1 has no connections\n"
        assert made > 100


def order(lab: Lab, *words: str) -> None:
    done = nfqlb_command(lab, *words, "--socket", str(socket_path(lab)))
    assert done.returncode == 0, done.stderr
