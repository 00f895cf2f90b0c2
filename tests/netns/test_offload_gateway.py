"""A gateway of datapath offload where the kernel and the worker might come to know different things."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from signal import SIGSTOP

import pytest

from nfqlb.demo import appliance as plain
from nfqlb.demo.appliance import Appliance, balancing, nfqlb_command, python_path, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.runtime.protocol import ControlError
from tests.netns.asking import (
    ask,
    files_of,
    holding,
    rows,
    servers_of,
    spread,
    summary,
    wait_until,
)
from tests.netns.both import OFFLOAD, configuration, serving
from tests.netns.site import entered

ALL = ("web1", "web2")
HARD_OF_HEARING = str(Path(__file__).with_name("hard_of_hearing.py"))
SILENT = 81


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serving(OFFLOAD, clients=1, servers=2) as lab:
        for server in lab.servers:
            server.run("iptables", "-w", "-A", "INPUT", "-p", "tcp", "--dport", str(SILENT), "-j", "DROP")
        yield lab


def now(appliance: Appliance) -> int:
    """Live connections."""
    count = summary(appliance)["connections"]["now"]
    assert isinstance(count, int)
    return count


class HardOfHearing(Appliance):
    """A gateway whose tap loses most of what is told at once."""

    def __init__(self, lab: Lab, config: str) -> None:
        self.lab = lab
        self.config = lab.directory / "nfqlb.toml"
        self.config.write_text(config)
        words = (sys.executable, HARD_OF_HEARING, "run", "-c", str(self.config))
        self.program = lab.gateway.start(*words, environment=python_path())


@contextmanager
def hard_of_hearing(lab: Lab) -> Iterator[HardOfHearing]:
    """It runs; connections that have ended keep their entries in the kernel until the test is over."""
    appliance = HardOfHearing(
        lab, configuration(lab, virtual("web", ALL, scheduler="round-robin")) + "[timeouts]\nclosing = 60\n"
    )
    try:
        appliance.wait_ready()
        yield appliance
    finally:
        appliance.stop()


def healed(appliance: Appliance, *, restarts: int = 0) -> None:
    """Something was lost and counted, all has been mended, and nobody is held to have failed for it."""
    wait_until(lambda: now(appliance) == 0, "the end of all connections")
    followed = summary(appliance)["followed"]
    assert followed["overruns"] > 0, followed
    assert followed["forgotten"] > 0, followed
    for row in rows(appliance, "reals"):
        assert (row["connections"], row["unanswered"], row["state"]) == (0, 0, "in-service")
        assert row["ditched"] == {"no_answer": 0, "reset": 0}
    assert summary(appliance)["worker"]["restarts"] == restarts
    assert summary(appliance)["drops"].get("internal-error", 0) == 0


def test_what_the_tap_loses_is_counted_and_mended(lab: Lab) -> None:
    """R061, R127: connections that come and go faster than the worker can hear of it."""
    closing = ("-H", "Connection: close")
    with hard_of_hearing(lab) as appliance:
        url = f"http://{VIP}/"
        load = lab.client.start("wrk", "-t1", "-c50", "-d3", "--timeout", "10s", *closing, url)
        with holding(lab.client, 5) as held:
            assert load.wait(20) == 0
            assert "Socket errors" not in load.stdout, load.stdout
            # established ones are found to be that before their half-open time is over
            wait_until(lambda: known(appliance) == ["established"] * 5, "all that is left")
            assert summary(appliance)["connections"]["total"] > 100
            assert len(held.again()) == 5
        healed(appliance)


def known(appliance: Appliance) -> list[str]:
    """The states of all connections that have not ended."""
    states = [row["state"] for row in rows(appliance, "connections", limit=10_000)]
    return [state for state in states if state != "closed"]


def test_a_worker_that_stands_still(lab: Lab) -> None:
    """R187: what exists goes on without it, new clients wait for its successor, which finds out what has
    ended meanwhile."""
    with hard_of_hearing(lab) as appliance:
        worker = appliance.worker
        with holding(lab.client, 50) as held:
            wait_until(lambda: known(appliance) == ["established"] * 50, "all connections")
            os.kill(worker, SIGSTOP)
            assert len(held.again()) == 50, "nobody waits for the worker"
            held.program.stop()
            new = lab.client.start("curl", "-sS", "--max-time", "20", f"http://{VIP}/")
            wait_until(lambda: replaced(appliance, worker), "a worker that moves")
        assert new.wait(20) == 0
        healed(appliance, restarts=1)


def test_connections_outlive_the_gateway_and_its_journal(lab: Lab) -> None:
    """R186, R187: the kernel goes on alone; the next start learns from it who is where, and who is bound."""
    config = configuration(lab, virtual("web", ALL, scheduler="round-robin", sticky=600))
    first = Appliance(lab, config)
    first.wait_ready()
    with holding(lab.client, 10) as held:
        answers = held.rounds()[0]
        bound = answers[0].server
        known = servers_of(first)
        assert len(known) == 10
        worker = first.worker
        os.kill(first.program.pid, 9)
        first.program.wait(5)
        os.kill(worker, 9)  # it would go on alone
        wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the worker's end")
        assert held.again() == answers, "nobody is there, and nobody is needed"
        journals = [path for path in files_of(lab.gateway.namespace) if "journal" in path]
        assert journals
        for path in journals:
            Path(path).unlink()
        with balancing(lab, config) as second:
            wait_until(lambda: servers_of(second) == known, "what the kernel knows")
            assert summary(second)["followed"]["adopted"] == 10
            counts = {row["name"]: row["connections"] for row in rows(second, "reals")}
            assert counts == {name: 10 if name == bound else 0 for name in ALL}
            assert [row["real"] for row in rows(second, "sticky")] == [bound]
            assert spread([ask(lab.client) for _ in range(3)]) == {bound: 3}
            assert held.again() == answers
            held.program.stop()
            wait_until(lambda: now(second) == 0, "the end of ten connections")


def test_what_another_gateway_had_is_adopted_when_told(lab: Lab) -> None:
    """F36: conntrackd gives such entries to the kernel; here conntrack does. What ended gets no more time."""
    config = configuration(lab, virtual("web", ALL, scheduler="round-robin", sticky=600))
    told = ("-I", "-p", "tcp", "-s", lab.client.address, "-d", VIP, "--dport", "80", "-u", "SEEN_REPLY",
            "-g", "10.0.0.12", "-m", "0x20000", "-t", "5000")  # fmt: skip
    lab.gateway.run("conntrack", "-F")
    with balancing(lab, config) as appliance:
        for port, state in ((5001, "ESTABLISHED"), (5002, "ESTABLISHED"), (5003, "TIME_WAIT")):
            lab.gateway.run("conntrack", *told, "--sport", str(port), "--state", state)
        assert now(appliance) == 0
        done = nfqlb_command(lab, "adopt", "-c", str(appliance.config))
        assert done.returncode == 0, done.stderr
        wait_until(lambda: now(appliance) == 2, "the two that are under way")
        assert appliance.ask("adoption") == {"served": True, "over": True, "adopted": 2}
        assert set(servers_of(appliance).values()) == {"web2"}
        assert [row["real"] for row in rows(appliance, "sticky")] == ["web2"]
        texts = [row["text"] for row in rows(appliance, "events")]
        assert "2 connections of the kernel's taken over" in texts
        left = lab.gateway.run("conntrack", "-L", "-p", "tcp", "-d", VIP).stdout.splitlines()
        times = {line.split()[3]: int(line.split()[2]) for line in left}
        assert 3000 < times["ESTABLISHED"] <= 3600
        assert times["TIME_WAIT"] <= 10
        lab.gateway.run("conntrack", "-F")
        wait_until(lambda: now(appliance) == 0, "their end")


def test_datapath_rewrite_adopts_what_another_gateway_had(lab: Lab) -> None:
    """F36: its entries go from client to real server, and have the worker's mark. Others are left alone."""
    told = ("-I", "-p", "tcp", "-s", lab.client.address, "-d", "10.0.0.12", "--dport", "80", "-t", "5000",
            "-u", "SEEN_REPLY", "--state", "ESTABLISHED")  # fmt: skip
    lab.gateway.run("conntrack", "-F")
    with balancing(lab, plain.configuration(lab)) as appliance:
        lab.gateway.run("conntrack", *told, "--sport", "5001", "-m", "0xff0000")
        lab.gateway.run("conntrack", *told, "--sport", "5002", "-m", "0x10000")
        appliance.ask("adopt")
        wait_until(lambda: servers_of(appliance) == {(lab.client.address, 5001): "web2"}, "the one")
        lab.gateway.run("conntrack", "-F")


def test_a_full_table_gives_up_what_nobody_answers(lab: Lab) -> None:
    """A23: half-open connections make room, established ones never, though nothing of them was heard."""
    config = configuration(
        lab,
        virtual("web", ALL, scheduler="round-robin"),
        virtual("silent", ALL, port=SILENT, scheduler="round-robin"),
        gateway="max_connections = 20",
        reals=dict.fromkeys(ALL, "failure_threshold = 0\nsyn_limit = 0"),
    )
    lab.gateway.run("conntrack", "-F")  # or the connections of other tests are taken over, and count
    with balancing(lab, config) as appliance, holding(lab.client, 10) as held, ExitStack() as stack:
        for _ in range(40):
            with entered(lab.client.namespace):
                caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            with suppress(BlockingIOError):
                caller.connect((VIP, SILENT))
        wait_until(lambda: summary(appliance)["connections"]["total"] >= 50, "all callers")
        assert now(appliance) == 20
        assert ask(lab.client).server in ALL
        assert len(held.again()) == 10
        assert {(answer.client, answer.client_port) for answer in held.rounds()[0]} <= set(
            servers_of(appliance)
        )


def test_idle_is_who_sends_nothing_not_who_is_not_seen(lab: Lab) -> None:
    """R046: of two connections the one is used, which the worker does not see, and the other is forgotten."""
    config = configuration(lab, virtual("web", ALL, scheduler="round-robin")) + "[timeouts]\nidle = 3\n"
    with balancing(lab, config) as appliance, holding(lab.client, 1) as used:
        with holding(lab.client, 1):
            assert now(appliance) == 2
            end = time.monotonic() + 5
            while time.monotonic() < end:
                used.again()
                time.sleep(0.3)
            (row,) = rows(appliance, "connections")
            assert row["client_port"] == used.rounds()[0][0].client_port
        assert now(appliance) == 1


def test_both_datapaths_in_one_gateway(lab: Lab) -> None:
    """R186, R187: their connections count for the same servers, and both outlive the worker."""
    config = plain.configuration(
        lab,
        virtual("fast", ALL, scheduler="round-robin", datapath="offload"),
        virtual("slow", ["web1:80", "web2:80"], port=8080, scheduler="round-robin"),
        # whose marks, once armed, begin like that of a connection which the worker judges
        virtual("timed", ALL, port=8081, scheduler="fastest-response", datapath="offload"),
        gateway="max_connections = 1000",
    )
    with balancing(lab, config) as appliance:
        with holding(lab.client, 6) as fast, holding(lab.client, 4, port=8080) as slow:
            assert {row["name"]: row["connections"] for row in rows(appliance, "reals")} == {
                "web1": 5, "web2": 5
            }  # fmt: skip
            known = servers_of(appliance)
            killed = appliance.kill_worker()
            wait_until(lambda: replaced(appliance, killed), "a new worker")
            assert (fast.again(), slow.again()) == (fast.rounds()[0], slow.rounds()[0])
            assert servers_of(appliance) == known
        wait_until(lambda: now(appliance) == 0, "the end of all connections")
        assert len(summary(appliance)["queues"]) == 3


def replaced(appliance: Appliance, killed: int) -> bool:
    """Whether another worker answers."""
    with suppress(ControlError):
        return appliance.worker != killed
    return False


def first_in_nat(lab: Lab) -> str:
    """The rule that comes first in nat PREROUTING."""
    saved = lab.gateway.run("iptables-save", "-t", "nat").stdout.splitlines()
    return next(line for line in saved if line.startswith("-A PREROUTING"))


def test_a_translation_of_somebody_elses_does_not_come_first(lab: Lab) -> None:
    """A rule of the machine's own for the virtual address would take it away. Behind ours it is void, as
    `check --host` says."""
    config = configuration(lab, virtual("web", ALL))
    path = lab.directory / "nfqlb.toml"
    rule = ("-d", VIP, "-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination", "10.0.0.99")
    with balancing(lab, config):
        assert nfqlb_command(lab, "rules", "verify", "-c", str(path)).returncode == 0
        lab.gateway.run("iptables", "-w", "-t", "nat", "-I", "PREROUTING", *rule)
        try:
            wait_until(lambda: first_in_nat(lab).endswith("NFQLB-O-PREROUTING"), "the right order")
            assert "10.0.0.99" in lab.gateway.run("iptables-save", "-t", "nat").stdout, "behind ours"
        finally:
            lab.gateway.run("iptables", "-w", "-t", "nat", "-D", "PREROUTING", *rule)
    lab.gateway.run("iptables", "-w", "-t", "nat", "-A", "PREROUTING", *rule)
    try:
        done = nfqlb_command(lab, "check", "--host", str(path))
        assert done.returncode == 1
        assert "10.0.0.99" in done.stdout + done.stderr
    finally:
        lab.gateway.run("iptables", "-w", "-t", "nat", "-D", "PREROUTING", *rule)
