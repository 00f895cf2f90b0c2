"""Packets timed beside faults: a client that asks all the time, and how long its answers took meanwhile."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nfqlb.demo.appliance import python_path
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.programs import Program

INTERVAL = 0.01
"""Seconds between two of the client's rounds."""


@dataclass(frozen=True, slots=True)
class Took:
    """How long the answers took that were asked for in some time, in seconds, and how many never came."""

    kept: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    failed: int = 0

    def __add__(self, other: "Took") -> "Took":
        return Took(self.kept + other.kept, self.new + other.new, self.failed + other.failed)

    @property
    def worst(self) -> float:
        """The slowest of all."""
        return max([*self.kept, *self.new])


def quantile(values: list[float], part: float) -> float:
    """The value that so large a part of all is below."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


class Steady:
    """The client."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def during(self, begin: float, end: float) -> Took:
        """What was asked for between two moments of the monotonic clock."""
        took = Took([], [])
        failed = 0
        for line in self.program.stdout.splitlines():
            kind, begun, lasted = line.split()
            if not begin <= float(begun) < end:
                continue
            if lasted == "failed":
                failed += 1
            else:
                (took.kept if kind == "kept" else took.new).append(float(lasted))
        return Took(took.kept, took.new, failed)

    def watch(self, seconds: float) -> Took:
        """What is asked for from now on, for so long."""
        begun = time.monotonic()
        time.sleep(seconds)
        return self.during(begun, time.monotonic())


@contextmanager
def asking_steadily(lab: Lab, *, address: str = VIP, interval: float = INTERVAL) -> Iterator[Steady]:
    """A client that asks for the time of the context."""
    words = (sys.executable, "-m", "tests.netns.steady", address, "80", str(interval))
    program = lab.client.start(*words, environment=python_path())
    try:
        program.wait_for(program.out, "new ", timeout=20.0)
        yield Steady(program)
    finally:
        program.stop()
