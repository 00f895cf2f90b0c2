"""The control socket under clients that mean no good, while packets pass and an operator asks (F31)."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfqlb.demo.appliance import Appliance, balancing, python_path, socket_path, virtual
from nfqlb.demo.lab import Lab
from nfqlb.runtime.client import Client
from tests.netns import rude
from tests.netns.asking import holding, wait_until
from tests.netns.beside import Steady, asking_steadily, quantile
from tests.netns.both import REWRITE, Datapath, configuration, only, serving

SECONDS = 1.5
#: Seconds in which 99 of 100 answers must be there, however busy the machine is with other tests. The target
#: is 0.05 on a quiet one.
PATIENCE = 0.5
MEMORY = 48 << 20
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=2) as lab:
        yield lab


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Appliance]:
    web = virtual("web", ("web1", "web2"), scheduler="round-robin")
    with balancing(lab, configuration(lab, web)) as appliance, holding(lab.client, 100):
        path = socket_path(lab)
        path.parent.chmod(0o755)
        path.chmod(0o666)  # so that even those whom nobody knows get as far as to be asked who they are
        yield appliance


@pytest.fixture(scope="module")
def steady(lab: Lab, gateway: Appliance) -> Iterator[Steady]:
    with asking_steadily(lab, interval=0.005) as steady:
        yield steady


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def ask_meanwhile(operator: Client) -> list[float]:
    """How long the answers to an operator took, who stays connected, in seconds."""
    took = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        begun = time.monotonic()
        operator.call("summary")
        took.append(time.monotonic() - begun)
        time.sleep(0.005)
    return took


@only(REWRITE, "who asks, and how, has nothing to do with packets")
@pytest.mark.parametrize("kind", sorted(rude.KINDS))
def test_who_is_rude_holds_up_nobody(lab: Lab, gateway: Appliance, steady: Steady, kind: str) -> None:
    """F31: answers come, packets pass, and nothing of it is left behind."""
    path, supervisor = socket_path(lab), gateway.program.pid
    memory, files = resident(supervisor), descriptors(supervisor)
    words = (sys.executable, "-m", "tests.netns.rude", kind, str(path))
    begun = time.monotonic()
    with Client(path) as operator:
        operator.call("summary")
        who = NOBODY if kind == "stranger" else ()
        program = lab.gateway.start(*who, *words, environment=python_path())
        try:
            program.wait_for(program.out, "begun\n", timeout=20.0)
            took = ask_meanwhile(operator)
            assert program.running, program.stderr
        finally:
            program.stop()
    passed = steady.during(begun, time.monotonic())
    for what, times in (("answers", took), ("requests", passed.kept)):
        half, most = (1000 * quantile(times, part) for part in (0.5, 0.99))
        print(f"{kind}: {len(times)} {what}: p50 {half:.1f} ms, p99 {most:.1f} ms")
    assert quantile(took, 0.99) < PATIENCE
    assert passed.failed == 0
    assert passed.kept
    wait_until(lambda: descriptors(supervisor) <= files, "the end of all their connections")
    assert resident(supervisor) - memory < MEMORY
    assert "Traceback" not in gateway.program.stderr
