"""What the dashboard takes of a core: `python -m tests.operator.dashboard.cost [SECONDS]`.

Runs `nfqlb top` on a terminal of 120 x 40 with 200 real servers whose numbers all change every second, and
prints for each of its pages the processor time that it took, as the kernel counts it.
"""

import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.operator.dashboard.gateway import Gateway, many
from tests.operator.dashboard.screen import Screen, top

PAGES = {"1": "summary", "2": "virtual servers", "3": "real servers", "4": "connections", "5": "events"}
SETTLE = 3.0  # seconds until histories have come


def spent(pid: int) -> float:
    """Seconds of processor time that a process has taken (proc(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def change(gateway: Gateway) -> None:
    """Other numbers for every real server."""
    for row in gateway.snapshot["reals"]:
        row.update(connections=random.randrange(1000), rate=100 * random.random(), response_s=random.random())


def watch(screen: Screen, gateway: Gateway, seconds: float) -> float:
    """Let a page be drawn for so long; returns the processor time it took."""
    assert screen.process is not None
    before, end, next_change = spent(screen.process.pid), time.monotonic() + seconds, 0.0
    while (now := time.monotonic()) < end:
        if now >= next_change:
            change(gateway)
            next_change = now + 1.0
        screen.look(0.05)
    return spent(screen.process.pid) - before


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        gateway = Gateway(Path(directory) / "s", many(200))
        with top(gateway.path, idle=gateway.step) as screen:
            for key, name in PAGES.items():
                screen.press(key)
                watch(screen, gateway, SETTLE)
                took = watch(screen, gateway, seconds)
                print(f"{name:<16} {took:5.2f} s in {seconds:g} s: {took / seconds:.1%} of a core")
        gateway.close()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
