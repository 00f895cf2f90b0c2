"""Queues that fill, and drop: said by log, metrics and verdict before the first packet is lost, and counted.

By a worker that is slow: with so much to do for each packet that a known stream of them is too much for it.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nfqlb.demo.appliance import virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.programs import Program
from tests.netns.asking import rows, wait_until
from tests.netns.both import Datapath, answer_nobody, configuration, offloads, serving
from tests.netns.test_metrics import METRICS, Samples, scraped, value
from tests.netns.test_stall import Watched

FLOOD = str(Path(__file__).with_name("flood.py"))
SOURCES = "198.18.0.0/15"
ALARM = 5.0  # seconds

#: Datagrams of `sys.argv[1]` bytes, each from a port of its own, so many a second for so many seconds.
DATAGRAMS = f"""
import socket, sys, time
size, rate, seconds = map(float, sys.argv[1:])
begun, sent = time.monotonic(), 0
while (passed := time.monotonic() - begun) < seconds:
    if sent > passed * rate:
        time.sleep(0.001)
        continue
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.sendto(bytes(int(size)), ({VIP!r}, 53))
    sent += 1
"""


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=2, servers=2) as lab:
        answer_nobody(lab, SOURCES)
        yield lab


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Watched]:
    names = [server.name for server in lab.servers]
    virtuals = virtual("web", names), virtual("dns", names, port=53, protocol="udp")
    appliance = Watched(lab, configuration(lab, *virtuals, gateway=METRICS))
    try:
        appliance.wait_ready()
        yield appliance
    finally:
        appliance.distraction.unlink(missing_ok=True)
        appliance.stop()
        appliance.manager.socket.close()


@dataclass
class Seen:
    """When each thing was first seen, in seconds from the beginning."""

    begun: float = field(default_factory=time.monotonic)
    first: dict[str, float] = field(default_factory=dict)

    def note(self, what: str, so: object) -> None:
        if so:
            self.first.setdefault(what, time.monotonic() - self.begun)

    def __str__(self) -> str:
        return ", ".join(f"{what} after {at:.1f} s" for what, at in self.first.items())


def dropped(lab: Lab) -> tuple[int, int]:
    """What the kernel says that it has dropped: for a full queue, and for a full socket."""
    lines = lab.gateway.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout.splitlines()
    return sum(int(line.split()[5]) for line in lines), sum(int(line.split()[6]) for line in lines)


def look(lab: Lab, gateway: Watched, seen: Seen, cause: str) -> None:
    """One look at all that should say something: at the kernel first, so that no word counts too soon."""
    full, sock = dropped(lab)
    lost = full or sock
    seen.note("a packet was lost", lost)
    log, samples, verdict = gateway.program.stderr, scraped(lab), snapshot(gateway)["verdict"]
    if not lost:
        seen.note("fills: log", " fills: " in log)
        seen.note("fills: metrics", fullest(samples) >= 0.5)
        seen.note("fills: verdict", "queue filling" in verdict)
        return
    seen.note("drops: log", " drops packets: " in log)
    seen.note("drops: metrics", counted(samples)[cause])
    seen.note("drops: verdict", "queue dropping" in verdict)


def fullest(samples: Samples) -> float:
    """Which part of its room the fullest queue has used up, in packets or in bytes."""
    parts = (("waiting_packets_peak", "waiting_packets_limit"), ("socket_bytes", "socket_bytes_limit"))
    return max(
        each / samples[f"nfqlb_queue_{limit}", labels]
        for taken, limit in parts
        for (name, labels), each in samples.items()
        if name == f"nfqlb_queue_{taken}"
    )


def counted(samples: Samples) -> dict[str, float]:
    """Lost packets by cause, as the metrics have them."""
    found: dict[str, float] = {}
    for (name, labels), each in samples.items():
        if name == "nfqlb_queue_dropped_packets_total":
            cause = dict(labels)["cause"]
            found[cause] = found.get(cause, 0) + each
    return found


def snapshot(gateway: Watched) -> dict[str, Any]:
    found = gateway.ask("snapshot")
    assert isinstance(found, dict)
    return found


def overload(lab: Lab, gateway: Watched, program: Program, cause: str) -> Seen:
    """Watch a gateway whose worker is slow, under a stream of packets, until everything has been said."""
    seen = Seen()
    while len(seen.first) < 7 and program.running:
        look(lab, gateway, seen, cause)
    gateway.distraction.unlink()
    program.stop()
    print(f"{lab.datapath}, {cause}: {seen}")  # type: ignore[attr-defined]  # a Bench
    return seen


@pytest.mark.parametrize("cause", ["queue-full", "socket-full"])
def test_a_queue_says_that_it_fills_before_it_drops(lab: Lab, gateway: Watched, cause: str) -> None:
    """F14: log, metrics and verdict, which top shows; then each lost packet is in the right counter."""
    gateway.distract("slow")
    if cause == "queue-full":
        words: tuple[str, ...] = (FLOOD, VIP, "80", "20", "600")
    else:
        words = ("-c", DATAGRAMS, "8000", "250" if offloads(lab) else "700", "20")
    program = lab.clients[cause == "queue-full"].start(sys.executable, *words)
    seen = overload(lab, gateway, program, cause)
    assert {f"fills: {where}" for where in ("log", "metrics", "verdict")} <= seen.first.keys(), str(seen)
    late = {what: at - seen.first["a packet was lost"] for what, at in seen.first.items() if "drops" in what}
    assert len(late) == 3, str(seen)
    assert max(late.values()) < ALARM, str(seen)
    full, sock = dropped(lab)
    assert (full > 0, sock > 0) == (cause == "queue-full", cause == "socket-full")

    def agree() -> bool:  # what is on its way is lost a moment later, so the kernel is asked each time
        return counted(scraped(lab)) == dict(zip(("queue-full", "socket-full"), dropped(lab), strict=True))

    wait_until(agree, "the kernel's own numbers")
    assert value(scraped(lab), "nfqlb_dropped_packets_total", reason="internal-error") == 0
    texts = [str(event["text"]) for event in rows(gateway, "events", limit=50)]
    assert len([text for text in texts if " fills: " in text]) == 1, texts
    assert len([text for text in texts if " drops packets: " in text]) == 1, texts
