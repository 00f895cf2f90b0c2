"""The time of day is set by an hour, for the gateway's processes alone: nobody notices.

Every timer goes by the monotonic clock, which stays as it is; and so does the journal, from which the next
worker and the next gateway take over.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from struct import pack

import pytest

from nfqlb.demo.appliance import Appliance, balancing, virtual
from nfqlb.demo.lab import Lab
from nfqlb.runtime.protocol import ControlError
from tests.netns.asking import holding, rows, servers_of, summary, wait_until
from tests.netns.beside import asking_steadily
from tests.netns.both import REWRITE, Datapath, configuration, only, serving

HOUR = 3600
#: None of those that last could end in the time of a test; one that ends a connection is short.
TIMEOUTS = '[timeouts]\nidle = "15m"\nhalf_open = "10m"\nclosing = "1s"\n'


class Clock:
    """The gateway's time of day: so many seconds beside the machine's (see `time_of_day.c`)."""

    def __init__(self, directory: Path) -> None:
        self._file, library = directory / "offset", directory / "time_of_day.so"
        source = Path(__file__).with_name("time_of_day.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
        self.set(0)
        self.within = ("env", f"LD_PRELOAD={library}", f"TIME_OF_DAY_OFFSET={self._file}")

    def set(self, offset: int) -> None:
        """Set it, for all processes at once: they share the file."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(pack("l", offset))


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=2, servers=3) as lab:
        yield lab


def says(gateway: Appliance) -> float:
    """What the gateway takes for the time of day, in seconds since 1970."""
    snapshot = gateway.ask("snapshot")
    assert isinstance(snapshot, dict)
    at = snapshot["at"]
    assert isinstance(at, float)
    return at


def test_f29_an_hour_forward_and_back_changes_nothing(lab: Lab) -> None:
    """F29: no timer fires early and none late; who takes over after a step, worker or gateway, knows all."""
    clock = Clock(lab.directory)
    web = virtual("web", [server.name for server in lab.servers], sticky="20m", scheduler="round-robin")
    config = configuration(lab, web) + TIMEOUTS
    with balancing(lab, config, within=clock.within) as gateway, holding(lab.client, 12) as held:
        first = [answer.server for answer in held.rounds()[0]]
        known, bound = servers_of(gateway), rows(gateway, "sticky")[0]
        assert len(known) == 12
        with asking_steadily(lab, interval=0.02) as steady:
            for offset in (HOUR, -HOUR):
                step(clock, gateway, offset)
                took = steady.watch(0.5)
                assert took.failed == 0
                assert took.worst < 5.0
        step(clock, gateway, -HOUR)
        unchanged(gateway, known, bound)
        wait_until(lambda: servers_of(gateway).keys() == known.keys(), "the end of those that are over")
        gateway.kill_worker()
        wait_until(lambda: restarts(gateway) == 1, "another worker")
        unchanged(gateway, known, bound)
        assert [answer.server for answer in held.again()] == first
        step(clock, gateway, HOUR)
        os.kill(gateway.program.pid, signal.SIGKILL)
        gateway.program.wait()
        clock.set(-HOUR)
        with balancing(lab, config, within=clock.within) as successor:
            assert abs(says(successor) - time.time() + HOUR) < 60
            unchanged(successor, known, bound)
            assert [answer.server for answer in held.again()] == first
            assert "Traceback" not in successor.program.stderr


def step(clock: Clock, gateway: Appliance, offset: int) -> None:
    """Set the time of day, and see that the gateway has it."""
    clock.set(offset)
    wait_until(lambda: abs(says(gateway) - time.time() - offset) < 60, "the gateway's new time")


def restarts(gateway: Appliance) -> int:
    """How many workers have followed the first one; -1 where it cannot be asked just now."""
    with suppress(ControlError):
        return int(summary(gateway)["worker"]["restarts"])
    return -1


def unchanged(
    gateway: Appliance, known: dict[tuple[str, int], str], bound: dict[str, object]
) -> None:
    """All connections are there, with their servers, and the sticky entry with all of its time."""
    assert known.items() <= servers_of(gateway).items()
    (entry,) = rows(gateway, "sticky")
    assert (entry["client"], entry["real"]) == (bound["client"], bound["real"])
    assert 1000 < entry["expires_s"] <= 1200


@only(REWRITE, "timers and journal are the same")
def test_f29_the_monotonic_clock_passes_2_to_the_31_seconds(lab: Lab) -> None:
    """F29: in a time namespace of its own, where the machine has been up for 68 years; nothing wraps."""
    if not Path("/proc/self/ns/time").exists():
        pytest.skip("this kernel has no time namespaces")
    assert any(passes_2_to_the_31_seconds(lab, before) for before in (4, 20, 60))


def passes_2_to_the_31_seconds(lab: Lab, before: int) -> bool:
    """Try it with a gateway that is started so many seconds before; False where its start took longer."""
    ahead = int(2**31 - time.monotonic()) - before
    within = ("unshare", "--time", "--monotonic", str(ahead))
    config = configuration(lab, virtual("web", ["web1", "web2"], sticky="20m")) + TIMEOUTS
    with balancing(lab, config, within=within) as gateway, holding(lab.client, 3) as held:
        known, bound = servers_of(gateway), rows(gateway, "sticky")[0]
        if time.monotonic() + ahead >= 2**31:
            return False
        wait_until(lambda: time.monotonic() + ahead > 2**31 + 1, "the second in question", timeout=before + 5)
        unchanged(gateway, known, bound)
        assert all(row["age_s"] < 2 * before + 60 for row in rows(gateway, "connections"))
        gateway.kill_worker()
        wait_until(lambda: restarts(gateway) == 1, "another worker")
        unchanged(gateway, known, bound)
        held.again()
    return True
