"""How often a worker is started anew: real processes that die at once, of a defect or by somebody's hand."""

import faulthandler
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfqlb.runtime import workers
from nfqlb.runtime.journal import Journal
from nfqlb.runtime.protocol import ControlError
from nfqlb.runtime.workers import DEFECTS, Workers
from tests.runtime.conftest import Loop

Way = Callable[[], object]
PATIENCE = 20.0  # seconds for some ten forks


class Plant:
    """Workers that serve, and then end in this way."""

    def __init__(self, loop: Loop, journal: Journal, way: Way) -> None:
        def work(_channel: socket.socket, say_serving: Callable[[], None]) -> None:
            say_serving()
            way()

        self.workers = Workers(loop.selector, journal, work)
        self.rests: list[bool] = []
        self.deaths: list[tuple[str, str]] = []
        self.workers.rest = self.rest
        self.workers.died = lambda _pid, cause, wait: self.deaths.append((cause, wait))
        self.workers.start()

    def rest(self, rests: bool) -> str:
        self.rests.append(rests)
        return "; somebody else serves"

    def run(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < until
            self.workers.look_after()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(8, sticky=8, directory=tmp_path)
    yield made
    made.close(remove=True)


def end_by(number: signal.Signals) -> Way:
    def end() -> None:
        faulthandler.disable()  # pytest's, which would say a word
        os.kill(os.getpid(), number)

    return end


def fail() -> None:
    raise RuntimeError("a defect")


@pytest.mark.parametrize("way", [fail, end_by(signal.SIGSEGV)], ids=["exception", "signal"])
def test_who_dies_of_a_defect_is_restarted_five_times_at_once(
    loop: Loop, journal: Journal, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F13: then there is none until the time is over, and whoever asks is told; after that there is."""
    monkeypatch.setattr(workers, "WITHIN", 2.0)
    plant = Plant(loop, journal, way)
    begun = time.monotonic()
    plant.run(lambda: plant.workers.resting)
    assert (plant.workers.restarts, plant.rests, len(plant.deaths)) == (DEFECTS, [True], DEFECTS + 1)
    said = "workers had to be restarted 5 times within 2 s; the next one starts in "
    assert [wait.startswith(said) for _, wait in plant.deaths] == [False] * DEFECTS + [True]
    refused: list[ControlError] = []
    plant.workers.call("summary", {}, lambda _: None, refused.append)
    assert refused[0].message.startswith(said)
    assert refused[0].message.endswith("; somebody else serves")
    plant.run(lambda: plant.workers.restarts > DEFECTS)
    assert time.monotonic() - begun >= 2.0
    assert plant.rests[:2] == [True, False]
    plant.workers.end()


def test_who_is_killed_by_others_is_replaced_each_time(loop: Loop, journal: Journal) -> None:
    """F10, F13: somebody's `kill -9`, and the kernel's for want of memory, say nothing of the next one."""
    plant = Plant(loop, journal, end_by(signal.SIGKILL))
    plant.run(lambda: plant.workers.restarts >= 3 * DEFECTS)
    assert plant.rests == []
    assert {cause for cause, _ in plant.deaths} == {"by signal SIGKILL"}
    plant.workers.end()
