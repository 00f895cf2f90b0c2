"""Where the time of a connection goes under datapath `offload`, inside the worker.

Owns `OffloadBench`: a worker's own objects (queue, path, tap, endings, director, journal), which get from
memory what the kernel would say of some connections, in its own formats. The figures are seconds a
connection and of the worker alone: system calls, and what the kernel does for queue and tap, are not in them.

syn        the SYN: message read, judged, verdict written
core       the director's part of that
syn_ack    the copy of the SYN-ACK, read with others as the tap hands them over
fin, fin2  the copies of the server's FIN and the client's
end        conntrack's word that it has forgotten the connection, which was closed
"""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from struct import Struct
from typing import Any, cast

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as Rows

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.segment import ACK, FIN, SYN, Segment
from nfqlb.core.spec import Config
from nfqlb.core.states import State
from nfqlb.netfilter import conntrack, netlink
from nfqlb.netfilter.endings import Endings
from nfqlb.netfilter.queue import MarkQueue
from nfqlb.netfilter.render_offload import COPIED, THRESHOLD
from nfqlb.netfilter.tap import TapMessages
from nfqlb.packet.path import FORWARD, PREROUTING
from nfqlb.runtime.journal import Journal
from nfqlb.runtime.offload import OffloadPath
from tests.bench import flows
from tests.bench.stats import spread

STAGES = ("syn", "core", "syn_ack", "fin", "fin2", "end")
_PER_CONNECTION = ("syn", "syn_ack", "fin", "fin2", "end")
_MASK = 0x7F0000
_LIVE = 1000  # connections of one measurement

_log_header = Struct("!HBB").pack
_log_stamp = Struct("!QQ").pack


def config(servers: int, scheduler: str) -> Config:
    """As the other tables', but offloaded."""
    made = flows.config(servers, scheduler, _LIVE)
    return replace(made, virtuals=tuple(replace(each, datapath=OFFLOAD) for each in made.virtuals))


class OffloadBench:
    """A worker of datapath offload, with a figure for each of STAGES: `measure`."""

    def __init__(
        self, servers: int, scheduler: str, directory: Path, queue: MarkQueue, feed: flows.Feed
    ) -> None:
        where = directory / f"offload-{scheduler}-{servers}"
        self.director = Director(
            config(servers, scheduler), now=0.0, recorder=Journal(2 * _LIVE, directory=where)
        )
        self._path = OffloadPath(self.director, cast(Any, Unasked()), 0.0)
        self._queue, self._feed = queue, feed
        self._tap = TapMessages(self._path.tapped, self._path.lost)
        self._endings = Endings(self._path.ended, self._path.lost)
        self._endings._socket.close()
        self._endings._socket = cast(Any, feed)  # the kernel's part is left out on purpose
        self._flow = 0

    def measure(self) -> dict[str, float]:
        """Seconds a connection of each stage, over connections that all live from beginning to end."""
        keys = [flows.client_key(self._flow + at) for at in range(_LIVE)]
        syns = [flows.syn(self._flow + at) for at in range(_LIVE)]
        self._flow += _LIVE
        now, table = self._path.now, self.director.table
        took = {"core": self._decide(keys), "syn": self._open(syns)}
        live = [table.inbound[key] for key in keys]
        took["syn_ack"] = self._tell([from_server(each, SYN | ACK) for each in live])
        self._all(live, State.ESTABLISHED)
        took["fin"] = self._tell([from_server(each, FIN | ACK) for each in live])
        self._all(live, State.FIN_SERVER)
        took["fin2"] = self._tell([from_client(each, FIN | ACK) for each in live])
        self._all(live, State.CLOSED)
        took["end"] = self._end(keys)
        for connection in live:
            table.remove(connection, now)
        self._path.now += 1.0
        self.director.tick(self._path.now, 1 << 20)
        return took

    def _all(self, live: list[Connection], state: State) -> None:
        if {each.state for each in live} != {state} or self._path.forgotten:
            raise AssertionError(f"not all are {state.shown}")

    def _decide(self, keys: list[bytes]) -> float:
        segments = [Segment(key, SYN, bytes(8)) for key in keys]
        decide, now, table = self.director.client_syn, self._path.now, self.director.table
        begin = time.perf_counter()
        for segment in segments:
            decide(segment, now)
        took = time.perf_counter() - begin
        for key in keys:
            table.remove(table.inbound[key], now)
        return took / len(keys)

    def _open(self, syns: list[bytes]) -> float:
        feeding = self._feed.cost(syns)
        before, failed = self._queue.packets, self._queue.failed
        self._queue.judge = self._path.judge
        self._feed.load(syns)
        begin = time.perf_counter()
        self._queue.run(len(syns))
        took = time.perf_counter() - begin
        if self._queue.packets - before != len(syns) or self._queue.failed != failed:
            raise AssertionError("the queue did not judge every SYN")
        return (took - feeding) / len(syns)

    def _tell(self, copies: list[bytes]) -> float:
        batches = [
            bytearray(b"".join(copies[at : at + THRESHOLD])) for at in range(0, len(copies), THRESHOLD)
        ]
        begin = time.perf_counter()
        count = sum([self._tap.read(batch, len(batch)) for batch in batches])
        took = time.perf_counter() - begin
        if count != len(copies) or self._tap.failed or self._tap.lost:
            raise AssertionError("the tap did not read every copy")
        return took / count

    def _end(self, keys: list[bytes]) -> float:
        events = [ending(key) for key in keys]
        feeding = self._feed.cost(events)
        self._feed.load(events)
        begin = time.perf_counter()
        count = self._endings.run(len(events))
        took = time.perf_counter() - begin
        if count != len(events) or self._endings.failed:
            raise AssertionError("not every ending was read")
        return (took - feeding) / count


class Unasked:
    """The kernel's table, where nothing needs to be asked."""

    def find(self, inbound: bytes, protocol: int) -> None:
        raise AssertionError("asked for an entry")

    def delete(self, inbound: bytes, protocol: int) -> bool:
        raise AssertionError("asked to delete an entry")

    def shorten(self, inbound: bytes, protocol: int, seconds: int) -> bool:
        raise AssertionError("asked to shorten an entry's time")


def from_server(connection: Connection, flags: int) -> bytes:
    key = connection.outbound
    number = int.from_bytes(connection.client_numbers[:4], "big") + (1 if flags & SYN else 2)
    return _copy(key, flags, number - 1, number, FORWARD)


def from_client(connection: Connection, flags: int) -> bytes:
    number = int.from_bytes(connection.client_numbers[:4], "big")
    return _copy(connection.inbound, flags, number + 1, number + 1, PREROUTING)


def _copy(key: bytes, flags: int, number: int, acknowledged: int, hook: int) -> bytes:
    """What nfnetlink_log sends for a packet (__build_packet_message), in its order of attributes."""
    source, target = int.from_bytes(key[:4], "big"), int.from_bytes(key[4:8], "big")
    ports = int.from_bytes(key[8:10], "big"), int.from_bytes(key[10:12], "big")
    payload = flows.segment(source, ports[0], target, ports[1], flags, number, acknowledged)[:COPIED]
    body = (
        netlink.attribute(1, _log_header(0x0800, hook, 0))
        + netlink.attribute(10, b"\0")
        + netlink.attribute(4, bytes(4))
        + netlink.attribute(5, bytes(4))
        + netlink.attribute(2, bytes(4))
        + netlink.attribute(8, bytes(12))
        + netlink.attribute(3, _log_stamp(1, 0))
        + netlink.attribute(9, payload)
    )
    return netlink.message(4 << 8, 0, body)


def ending(key: bytes) -> bytes:
    """What conntrack tells when it forgets an entry (ctnetlink_conntrack_event), as far as it is read."""
    both = conntrack._original(key, 6) + netlink.nested(conntrack._TUPLE_REPLY, conntrack.tuple_of(key, 6))
    return netlink.message(conntrack.DELETE, 0, both)


def show(console: Console, samples: dict[str, dict[str, list[float]]]) -> None:
    """The figures by scheduler; a connection is all but `core`, which is part of `syn`."""
    table = Rows("offload, microseconds", *STAGES, "connection", "spread", box=SIMPLE)
    for title, stages in samples.items():
        whole = [sum(values) for values in zip(*(stages[each] for each in _PER_CONNECTION), strict=True)]
        table.add_row(
            title,
            *(f"{1e6 * median(stages[each]):.2f}" for each in STAGES),
            f"{1e6 * median(whole):.2f}",
            f"{100 * spread(whole):.0f} %",
        )
    console.print(table)


def measure(
    rounds: int, directory: Path, feed: flows.Feed, shapes: Iterable[tuple[int, str]]
) -> dict[str, dict[str, list[float]]]:
    """Samples of every stage, by the table's title; the tables are measured in turn."""
    queue = MarkQueue(1, length=16, receive_buffer=1 << 16, mask=_MASK)
    queue._socket.close()
    queue._socket = cast(Any, feed)
    benches = {
        f"{scheduler}, {servers:,} servers": OffloadBench(servers, scheduler, directory, queue, feed)
        for servers, scheduler in shapes
    }
    samples = {title: {stage: list[float]() for stage in STAGES} for title in benches}
    for _ in range(rounds):
        for title, bench in benches.items():
            for stage, value in bench.measure().items():
                samples[title][stage].append(value)
    return samples
