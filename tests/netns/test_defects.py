"""Defects of nfqlb itself: each packet has its verdict, the rest goes on, all are told, nothing loops."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nfqlb.demo.appliance import Appliance, nfqlb_command, python_path, socket_path, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.runtime.protocol import ControlError
from tests.netns.asking import ask, holding, queued, rows, summary, wait_until
from tests.netns.both import REWRITE, Datapath, configuration, offloads, only, serving
from tests.netns.test_metrics import METRICS, Samples, scraped, value

BROKEN = str(Path(__file__).with_name("broken.py"))
WITHIN = 6.0  # seconds, in place of a minute
LIMIT = "workers had to be restarted 5 times within 6 s; the next one starts in "


class Breakable(Appliance):
    """A gateway of which a part can be broken."""

    def __init__(self, lab: Lab, config: str) -> None:
        self.lab = lab
        self.config = lab.directory / "nfqlb.toml"
        self.config.write_text(config)
        self.defect = lab.directory / "defect"
        environment = {**python_path(), "BROKEN": str(self.defect), "WITHIN": str(WITHIN)}
        words = (sys.executable, "-P", BROKEN, "run", "-c", str(self.config))
        self.program = lab.gateway.start(*words, environment=environment)

    def break_(self, part: str) -> None:
        """Let a part have its defect from now on; "" for none."""
        fresh = self.defect.with_suffix(".new")
        fresh.write_text(part)
        fresh.replace(self.defect)

    @contextmanager
    def broken(self, part: str) -> Iterator[None]:
        self.break_(part)
        try:
            yield
        finally:
            self.break_("")


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=2) as lab:
        yield lab


@contextmanager
def running(lab: Lab) -> Iterator[Breakable]:
    servers = [server.name for server in lab.servers]
    config = configuration(lab, virtual("web", servers, scheduler="round-robin"), gateway=METRICS)
    appliance = Breakable(lab, config)
    try:
        appliance.wait_ready()
        yield appliance
    finally:
        appliance.break_("")
        appliance.stop()


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Breakable]:
    with running(lab) as appliance:
        yield appliance


def snapshot(gateway: Appliance) -> dict[str, Any]:
    found = gateway.ask("snapshot")
    assert isinstance(found, dict)
    return found


def stumbles(samples: Samples) -> float:
    found = [each for (name, _), each in samples.items() if name == "nfqlb_internal_errors_total"]
    assert len(found) == 2
    return sum(found)


@pytest.mark.parametrize("part", ["scheduler", "queue", "complaint"])
def test_a_defect_over_a_packet_costs_that_packet(lab: Lab, gateway: Breakable, part: str) -> None:
    """F13: it is dropped, counted and answered; established connections go on; nothing restarts."""
    with holding(lab.client, 4) as held:
        first = held.rounds()[0]
        with gateway.broken(part):
            done = lab.client.run("curl", "-sS", "--max-time", "1.5", f"http://{VIP}/", check=False)
            assert done.returncode == 28, done.stderr
            wait_until(lambda: queued(lab) == 0, "a verdict for each", timeout=1)
            if part != "queue" or offloads(lab):
                assert held.again() == first
        ask(lab.client)
        assert held.again() == first
    wait_until(lambda: "internal error" in snapshot(gateway)["verdict"], "the verdict")
    lost = value(scraped(lab), "nfqlb_dropped_packets_total", reason="internal-error")
    assert (lost if part != "complaint" else stumbles(scraped(lab))) >= 1
    assert summary(gateway)["worker"]["restarts"] == 0
    assert f"RuntimeError: a defect in {part}" in gateway.program.stderr


@only(REWRITE, "what is broken is beside the packets")
def test_a_defect_beside_the_packets_costs_what_it_is_in(lab: Lab, gateway: Breakable) -> None:
    """F13: no packet, no process; it is counted, except that of a log entry, which says so itself."""
    processes = gateway.program.pid, gateway.worker
    with holding(lab.client, 2) as held:
        first = held.rounds()[0]
        for part in ("news", "logging", "metrics", "control", "snapshot", "timers"):
            before = stumbles(scraped(lab))
            with gateway.broken(part):
                until = time.monotonic() + 1.2
                while time.monotonic() < until:
                    order(lab, "maintenance")
                    ask(lab.client)
                    order(lab, "in-service")
                    fetch(lab)
                assert held.again() == first
            if part == "logging":
                assert "RuntimeError in nfqlb." in gateway.program.stderr
            elif part != "news":  # there are none: no server has failed
                wait_until(lambda: stumbles(scraped(lab)) > before, "the counter")  # noqa: B023
    assert gateway.program.running
    assert (gateway.program.pid, gateway.worker) == processes
    whole = summary(gateway)
    assert (whole["worker"]["restarts"], whole["drops"].get("internal-error", 0)) == (0, 0)
    wait_until(lambda: "internal errors" in snapshot(gateway)["verdict"], "the verdict")
    assert "a defect while " in gateway.program.stderr
    assert gateway.program.stderr.count("a defect while ") <= 6  # of each process one in ten seconds


def order(lab: Lab, state: str) -> None:
    """An order, which may be refused: control is what is broken, perhaps."""
    nfqlb_command(lab, "set", "real", "web1", state, "--socket", str(socket_path(lab)))


def fetch(lab: Lab) -> None:
    """Metrics, which may be broken as well."""
    lab.gateway.run("curl", "-s", "--max-time", "2", "http://127.0.0.1:9617/metrics", check=False)


def test_workers_that_die_of_a_defect_are_not_restarted_for_ever(lab: Lab, gateway: Breakable) -> None:
    """F13: five times within a minute (less here); then everything says that none is there, and none is."""
    with holding(lab.client, 2) as held:
        first = held.rounds()[0]
        begun = time.monotonic()
        gateway.break_("death")
        wait_until(lambda: poked(lab, gateway), "the last worker's death")
        print(f"{lab.datapath}: 5 restarts in {time.monotonic() - begun:.1f} s")  # type: ignore[attr-defined]
        assert value(scraped(lab), "nfqlb_worker_restarts_total") == 5
        degraded = snapshot(gateway)
        assert degraded["state"] == "degraded"
        assert value(scraped(lab), "nfqlb_problems", level="error") >= 1
        with pytest.raises(ControlError, match=f"^{LIMIT}"):
            gateway.ask("connections")
        assert any(f"; {LIMIT}" in str(row["text"]) for row in rows(gateway, "events", limit=20))
        assert gateway.program.stderr.count(LIMIT) == 1
        if offloads(lab):
            assert "the kernel spreads new connections alone" in degraded["verdict"]
            assert {ask(lab.client).server for _ in range(30)} == {"web1", "web2"}
            assert held.again() == first
        gateway.break_("")
        wait_until(lambda: snapshot(gateway)["state"] == "running", "a worker", timeout=WITHIN + 10)
        ask(lab.client)
        assert held.again() == first
        assert value(scraped(lab), "nfqlb_worker_restarts_total") == 6


def poked(lab: Lab, gateway: Breakable) -> bool:
    """Send something that a worker dies of; whether there is to be none for a while."""
    lab.client.run("curl", "-s", "--max-time", "0.3", f"http://{VIP}/", check=False)
    return str(snapshot(gateway)["verdict"]).startswith(LIMIT)


@only(REWRITE, "it is over before a packet comes")
def test_workers_that_die_as_they_start_are_not_restarted_for_ever(lab: Lab, gateway: Breakable) -> None:
    """F13: nor those that never serve."""
    gateway.break_("birth")
    gateway.kill_worker()
    wait_until(lambda: str(snapshot(gateway)["verdict"]).startswith(LIMIT), "the last worker's death")
    assert value(scraped(lab), "nfqlb_worker_restarts_total") == 6  # one was killed
    gateway.break_("")
    wait_until(lambda: snapshot(gateway)["state"] == "running", "a worker", timeout=WITHIN + 10)
    ask(lab.client)
