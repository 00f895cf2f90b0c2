"""What one packet may cost, counted in calls and in depth, and not by a clock: no packet can ask for more.

What grows is known: extension headers up to eight. Nothing is unwrapped, so nothing recurses.
"""

import sys
from collections.abc import Callable
from random import Random
from types import FrameType
from typing import Any

import pytest

from nfqlb.packet.path import FORWARD, OUTPUT, PREROUTING
from tests.fuzz import mutants
from tests.fuzz.choices import Choices
from tests.fuzz.mutants import ACK, SYN, TCP, UDP, Made, Way
from tests.fuzz.worlds import OffloadGateway, RewritingGateway

#: Python functions entered for one packet, dpkt's among them, and how deep they are in each other.
_CALLS, _DEPTH = 200, 24
WAY4 = Way(4, TCP, mutants.CLIENTS[4][0], mutants.VIRTUALS[4][0], (40_001, 80), (1, 1))
WAY6 = WAY4._replace(version=6, source=mutants.CLIENTS[6][0], destination=mutants.VIRTUALS[6][0])


class Meter:
    """Counts the functions entered while something is done."""

    def __init__(self) -> None:
        self.calls = self.deepest = self._depth = 0

    def _event(self, _frame: FrameType, event: str, _what: Any) -> None:
        if event == "call":
            self.calls += 1
            self._depth += 1
            self.deepest = max(self.deepest, self._depth)
        elif event == "return":
            self._depth -= 1

    def measure(self, work: Callable[[], object]) -> None:
        before = sys.getprofile()
        sys.setprofile(self._event)
        try:
            work()
        finally:
            sys.setprofile(before)


def extended(kinds: list[tuple[int, bytes]], last: int = TCP) -> bytes:
    """An IPv6 packet with these extension headers in front of a TCP header."""
    whole, following = bytes(mutants.plain(WAY6, SYN).data[40:]), last
    for kind, rest in reversed(kinds):
        whole, following = bytes((following,)) + rest + whole, kind
    head = b"\x60\0\0\0" + len(whole).to_bytes(2, "big") + bytes((following, 64))
    return head + WAY6.source + WAY6.destination + whole


def nested(levels: int) -> bytes:
    """IP in IP, or ICMP errors that quote ICMP errors, so many times."""
    inner = mutants.plain(WAY4, ACK).data
    for _ in range(levels):
        head = b"\x45\0" + min(20 + len(inner), 65_535).to_bytes(2, "big") + bytes(5) + b"\4\0\0"
        inner = head + WAY4.source + WAY4.destination + inner
    return inner


def quoting(levels: int) -> bytes:
    inner = mutants.plain(WAY4.back, ACK).data
    for _ in range(levels):
        inner = b"\3\1\0\0\0\0\0\0" + inner
        head = b"\x45\0" + min(20 + len(inner), 65_535).to_bytes(2, "big") + bytes(5) + b"\1\0\0"
        inner = head + WAY4.source + WAY4.destination + inner
    return inner


OPTIONS = (60, b"\0\1\4\0\0\0\0")
WORST = {
    "SYN": mutants.plain(WAY4, SYN).data,
    "SYN of IPv6": mutants.plain(WAY6, SYN).data,
    "datagram": mutants.plain(WAY4._replace(protocol=UDP, ports=(40_001, 53)), 0).data,
    "eight extension headers": extended([OPTIONS] * 8),
    "nine": extended([OPTIONS] * 9),
    "sixty-four": extended([OPTIONS] * 64),
    "a thousand": extended([OPTIONS] * 1000),
    "eight thousand": extended([OPTIONS] * 8000),
    "every kind of them": extended([(0, OPTIONS[1]), OPTIONS, (43, b"\0\2\0" + bytes(4)), OPTIONS]),
    "an atomic fragment with options": extended([(44, bytes(7)), OPTIONS]),
    "a later fragment with options": extended([(44, b"\0\0\x10\0\0\0\7"), OPTIONS]),
    "ESP": extended([OPTIONS], last=50),
    "AH": extended([(51, b"\4\0\0" + bytes(20))]),
    "3,000 times IP in IP": nested(3000),
    "1,000 quotes of quotes": quoting(1000),
    "65,535 bytes of nothing": bytes(65_000),
}


@pytest.mark.parametrize("hook", [PREROUTING, FORWARD, OUTPUT])
@pytest.mark.parametrize("name", WORST)
def test_no_packet_asks_for_more(name: str, hook: int) -> None:
    """F01, F04: whatever is nested, chained or long: so many calls, and no deeper than this."""
    gateway, meter, packet = RewritingGateway(), Meter(), WORST[name][:65_000]
    start, end = gateway.receive(packet, hook, 0)
    meter.measure(lambda: gateway.path.judge(gateway.buffer, start, end, hook, 0, 0))
    assert meter.calls <= _CALLS
    assert meter.deepest <= _DEPTH


@pytest.mark.parametrize("count", range(13))
def test_eight_extension_headers_are_walked_and_no_more(count: int) -> None:
    """F04: a SYN behind eight opens a connection, behind nine it is malformed."""
    gateway = RewritingGateway()
    gateway.put(Made(extended([OPTIONS] * count)), PREROUTING, 0)
    assert len(gateway.director.table) == (count <= 8)
    assert gateway.director.totals().drops == ({} if count <= 8 else {"malformed": 1})


def test_no_damaged_packet_asks_for_more() -> None:
    """F01: thousands of them, on both datapaths, each no deeper and no longer than this."""
    dice, meters = Random(12), []
    for gateway in (RewritingGateway(), OffloadGateway()):
        for _ in range(1500):
            choices = Choices(dice.randbytes(300))
            packet = mutants.packet(choices, gateway.known, inbound=True).data
            start, end = gateway.receive(packet, PREROUTING, 0)
            meter, judge = Meter(), gateway.path.judge

            def work(judge: Any = judge, start: int = start, end: int = end, of: Any = gateway) -> None:
                judge(of.buffer, start, end, PREROUTING, 0, 0)

            meter.measure(work)
            meters.append(meter)
    calls = max(meter.calls for meter in meters)
    assert calls <= 2 * _CALLS, "making room in a full table is part of it"
    assert max(meter.deepest for meter in meters) <= _DEPTH
