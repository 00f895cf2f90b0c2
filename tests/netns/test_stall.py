"""A worker that lives and does not move: noticed, killed and replaced, and no connection is lost.

And what the service manager hears meanwhile, over a notify socket as systemd has it.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfqlb.demo.appliance import Appliance, nfqlb_command, python_path, socket_path, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.runtime.protocol import ControlError
from tests.netns.asking import ask, holding, servers_of, summary, wait_until
from tests.netns.both import Datapath, configuration, serving

ABSENT_MINDED = str(Path(__file__).with_name("absent_minded.py"))
WATCHDOG = 2.0


class Manager:
    """The service manager: its socket, and what it has heard."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.path.unlink(missing_ok=True)
        self.socket.bind(str(self.path))
        self.heard: list[str] = []

    def has_heard(self, line: str) -> bool:
        """Whether this has been said so far, or anything that begins so."""
        try:
            while True:
                self.heard += self.socket.recv(1 << 16).decode().split("\n")
        except BlockingIOError:
            return any(each.startswith(line) for each in self.heard)


class Watched(Appliance):
    """A gateway that a manager watches, and whose worker can be made to lose itself."""

    def __init__(self, lab: Lab, config: str) -> None:
        self.lab = lab
        self.config = lab.directory / "nfqlb.toml"
        self.config.write_text(config)
        self.distraction = lab.directory / "distraction"
        self.manager = Manager(lab.directory)
        environment = {
            **python_path(),
            "ABSENT_MINDED": str(self.distraction),
            "NOTIFY_SOCKET": str(self.manager.path),
            "WATCHDOG_USEC": str(int(WATCHDOG * 1e6)),
        }
        words = (sys.executable, ABSENT_MINDED, "run", "-c", str(self.config), "--log", "json")
        self.program = lab.gateway.start(*words, environment=environment)

    def distract(self, how: str) -> None:
        """Let the worker get lost with its next packet; see `absent_minded`."""
        fresh = self.distraction.with_suffix(".new")
        fresh.write_text(how)
        fresh.replace(self.distraction)

    def replaced(self, before: int) -> bool:
        """Whether another worker answers."""
        try:
            return self.worker != before
        except ControlError:
            return False


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=3) as lab:
        yield lab


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Watched]:
    servers = [f"{server.name}:80" for server in lab.servers]
    appliance = Watched(lab, configuration(lab, virtual("web", servers, scheduler="round-robin")))
    try:
        appliance.wait_ready()
        yield appliance
    finally:
        appliance.stop()
        appliance.manager.socket.close()


def test_a_stopped_worker_is_replaced(lab: Lab, gateway: Watched) -> None:
    """F12: SIGSTOP under load: in about a second there is another; connections go on where they were."""
    with holding(lab.client, 20) as held:
        first = held.rounds()[0]
        known = servers_of(gateway)
        load = lab.client.start("wrk", "-t1", "-c20", "-d5", "--timeout", "10s", f"http://{VIP}/")
        wait_until(lambda: summary(gateway)["connections"]["now"] >= 40, "all connections")
        worker = gateway.worker
        begun = time.monotonic()
        os.kill(worker, signal.SIGSTOP)
        wait_until(lambda: gateway.replaced(worker), "a new worker")
        print(f"answers again {time.monotonic() - begun:.2f} s after it was stopped")
        assert held.again() == first
        assert known.items() <= servers_of(gateway).items()
        assert load.wait(30) == 0
        assert "Socket errors" not in load.stdout, load.stdout
    assert summary(gateway)["worker"]["restarts"] == 1
    assert f"worker {worker} died (killed: it has been stopped for " in gateway.program.stderr


def test_a_worker_that_loses_itself_over_a_packet_is_replaced(lab: Lab, gateway: Watched) -> None:
    """It lives and works, and judges nothing: the open connections go on with the next worker."""
    with holding(lab.client, 5) as held:
        first = held.rounds()[0]
        worker = gateway.worker
        gateway.distract("loop")
        ask(lab.client)
        assert gateway.replaced(worker)
        assert held.again() == first
    assert f"worker {worker} died (killed: it has " in gateway.program.stderr


def test_a_worker_that_reads_no_packets_is_replaced(lab: Lab, gateway: Watched) -> None:
    """It goes round and answers questions: what waits in its queues tells, and the next one takes it."""
    with holding(lab.client, 5) as held:
        first = held.rounds()[0]
        worker = gateway.worker
        gateway.distract("deaf")
        ask(lab.client)
        assert gateway.replaced(worker)
        assert held.again() == first
    assert "it has read none of " in gateway.program.stderr


def test_a_worker_under_load_is_not_thought_dead(lab: Lab, gateway: Watched) -> None:
    """What it is there for: a full load for some seconds, with long answers in between."""
    load = lab.client.start("wrk", "-t2", "-c50", "-d4", "--timeout", "10s", f"http://{VIP}/")
    while load.running:
        gateway.ask("connections", {"limit": 10_000})
        ask(lab.client)
    assert load.wait(30) == 0
    assert summary(gateway)["worker"]["restarts"] == 0


def test_the_service_manager_hears_of_it(gateway: Watched) -> None:
    """READY when packets flow, a status, the watchdog's word while they do, and of the end."""
    manager = gateway.manager
    wait_until(lambda: manager.has_heard("READY=1"), "READY")
    wait_until(lambda: manager.has_heard("STATUS="), "a status")
    for _ in range(3):
        manager.heard.clear()
        wait_until(lambda: manager.has_heard("WATCHDOG=1"), "the watchdog's word", timeout=WATCHDOG)
    assert not manager.has_heard("STOPPING=1")
    gateway.stop()
    assert manager.has_heard("STOPPING=1")


def test_the_log_for_machines_has_nothing_else_in_it(lab: Lab, gateway: Watched) -> None:
    """From the start to the end, of supervisor and workers, a failure among it: an object a line."""
    (server, *_) = lab.servers
    order = nfqlb_command(lab, "set", "real", server.name, "maintenance", "--socket", str(socket_path(lab)))
    assert order.returncode == 0, order.stderr
    killed = gateway.kill_worker()
    wait_until(lambda: gateway.replaced(killed), "a new worker")
    gateway.stop()
    rows = [json.loads(line) for line in gateway.program.stderr.splitlines()]
    assert all({"time", "level", "message", "logger", "pid"} <= row.keys() for row in rows)
    (ordered,) = (row for row in rows if row.get("kind") == "order")
    assert (ordered["name"], ordered["who"][:4]) == (server.name, "user")
    assert [row["name"] for row in rows if row.get("kind") == "worker"] == [str(killed)]
    assert rows[-1]["message"] == "stopped"


def test_a_stopped_supervisor_says_nothing(gateway: Watched) -> None:
    """Then the service manager's watchdog is the one that notices."""
    manager = gateway.manager
    wait_until(lambda: manager.has_heard("WATCHDOG=1"), "the watchdog's word")
    os.kill(gateway.program.pid, signal.SIGSTOP)
    try:
        manager.has_heard("")
        manager.heard.clear()
        time.sleep(WATCHDOG)
        assert not manager.has_heard("WATCHDOG=1")
    finally:
        os.kill(gateway.program.pid, signal.SIGCONT)
    wait_until(lambda: manager.has_heard("WATCHDOG=1"), "the watchdog's word")
    assert summary(gateway)["worker"]["restarts"] == 0, "the worker is not to blame"
