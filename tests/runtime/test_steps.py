"""F39: what a packet costs the worker in steps of the interpreter: a tenth more than is written here fails.

A clock says too little here: on a machine with others a packet takes a tenth more or less from one run to the
next. How many instructions of its byte code Python executes for one is the same each time. They differ from
one version of Python to the next, and what a call into C takes is not in them: the benchmark has both.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.segment import ACK, FIN, SYN
from nfqlb.core.states import State
from nfqlb.netfilter.endings import EndingMessages
from nfqlb.netfilter.messages import QueueMessages
from nfqlb.netfilter.tap import TapMessages
from nfqlb.packet.path import PacketPath
from nfqlb.runtime.journal import Journal
from nfqlb.runtime.offload import OffloadPath
from tests.bench import flows
from tests.bench.micro_offload import Unasked, ending, from_client, from_server

WRITTEN_FOR = (3, 11)
#: Steps a packet, by what it is.
STEPS = {
    "rewrite: data, from client and server in turn": 296,
    "rewrite: SYN, to one of 10 servers": 1892,
    "rewrite: SYN, to one of 1,000 servers": 1806,
    "offload: SYN, to one of 10 servers": 1861,
    "offload: copy of a SYN-ACK": 853,
    "offload: copy of the server's FIN": 504,
    "offload: copy of the client's FIN": 897,
    "offload: end of an entry": 252,
}
MOST, LEAST = 1.1, 0.9
"""Where it got cheaper the figure is to be written anew, or it would hide the next tenth."""
_SCHEDULER = "weighted-least-connections"
_LIVE = 64
_MASK = 0x7F0000


def steps_of(work: Callable[[], object]) -> int:
    """How many instructions are executed for some work."""
    count = 0

    def step(frame: FrameType, event: str, _what: Any) -> Any:
        nonlocal count
        if event == "opcode":
            count += 1
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


class Queue:
    """A queue's messages, put into one buffer and answered one after the other, as the worker does."""

    def __init__(self) -> None:
        self.messages = QueueMessages(0)
        self._buffer = bytearray(131_072)
        self._view = memoryview(self._buffer)

    def rewritten(self, data: bytes) -> int:
        """The steps for a packet that comes back changed."""
        return self._steps(data, lambda place: self.messages.answer(self._buffer, self._view, place))

    def marked(self, data: bytes) -> int:
        """The steps for a packet that is marked."""
        return self._steps(
            data, lambda place: self.messages.answer_mark(self._buffer, self._view, place, _MASK)
        )

    def _steps(self, data: bytes, answer: Callable[[Any], memoryview]) -> int:
        self._buffer[: len(data)] = data
        found = self.messages.find
        took = steps_of(lambda: answer(found(self._buffer, len(data))))
        assert self.messages.failed == 0
        return took


def rewriting(servers: int, journal: Journal) -> Iterator[tuple[str, float]]:
    """The steps under datapath rewrite."""
    filled = flows.Filled(servers, _SCHEDULER, _LIVE, journal)
    filled.fill()
    queue = Queue()
    queue.messages.judge = PacketPath(filled.director, filled.now).judge
    data = [filled.data(flow, reply=bool(flow & 1)) for flow in range(_LIVE)]
    queue.rewritten(data[0])  # from then on it knows the layout
    if servers == 10:
        yield "rewrite: data, from client and server in turn", _mean(queue.rewritten, data)
    fresh = [flows.syn(_LIVE + at) for at in range(_LIVE)]
    yield f"rewrite: SYN, to one of {servers:,} servers", _mean(queue.rewritten, fresh)
    assert filled.director.totals().connections == 2 * _LIVE
    assert not filled.director.totals().drops


def offloading(servers: int, journal: Journal) -> Iterator[tuple[str, float]]:
    """The steps under datapath offload."""
    made = flows.config(servers, _SCHEDULER, _LIVE)
    config = replace(made, virtuals=tuple(replace(each, datapath=OFFLOAD) for each in made.virtuals))
    director = Director(config, now=0.0, recorder=journal)
    path = OffloadPath(director, cast(Any, Unasked()), 0.0)
    queue = Queue()
    queue.messages.judge = path.judge
    queue.marked(flows.syn(_LIVE))
    yield f"offload: SYN, to one of {servers:,} servers", _mean(queue.marked, map(flows.syn, range(_LIVE)))
    live = [director.table.inbound[flows.client_key(flow)] for flow in range(_LIVE)]
    tap, endings = TapMessages(path.tapped, path.lost), EndingMessages(path.ended, path.lost)

    def told(made: Callable[[Connection, int], bytes], flags: int, state: State) -> float:
        mean = _mean(lambda one: _read(tap.read, made(one, flags)), live)
        assert {each.state for each in live} == {state}
        assert tap.failed == 0
        return mean

    yield "offload: copy of a SYN-ACK", told(from_server, SYN | ACK, State.ESTABLISHED)
    yield "offload: copy of the server's FIN", told(from_server, FIN | ACK, State.FIN_SERVER)
    yield "offload: copy of the client's FIN", told(from_client, FIN | ACK, State.CLOSED)
    yield "offload: end of an entry", _mean(lambda one: _read(endings.read, ending(one.inbound)), live)
    assert endings.events == _LIVE
    assert endings.failed == 0


def _read(read: Callable[[bytearray, int], int], data: bytes) -> int:
    buffer = bytearray(data)
    return steps_of(lambda: read(buffer, len(buffer)))


def _mean(steps: Callable[[Any], int], of: Iterable[Any]) -> float:
    counts = [steps(each) for each in of]
    return sum(counts) / len(counts)


@pytest.mark.skipif(sys.version_info[:2] != WRITTEN_FOR, reason="written for another version of Python")
def test_f39_no_packet_takes_a_tenth_more_steps_than_is_written_here(tmp_path: Path) -> None:
    """F39."""
    few, many, kernel = (Journal(4 * _LIVE, directory=tmp_path / name) for name in ("few", "many", "kernel"))
    found = dict([*rewriting(10, few), *rewriting(1000, many), *offloading(10, kernel)])
    assert found.keys() == STEPS.keys()
    wrong = {
        name: f"{count:.0f}, written: {STEPS[name]}"
        for name, count in found.items()
        if not STEPS[name] * LEAST <= count <= STEPS[name] * MOST
    }
    assert wrong == {}
