"""`run.sh micro`: what a packet and a decision cost inside the worker, and the memory of a connection.

The worker's own objects (queue, packet path, director, journal) get messages from memory instead of from
the kernel, so no system call is in the figures; handing out the messages is measured by itself and
subtracted. All tables are alive at once and measured in turn, over random flows, each time different ones.

packet     a data segment of an established flow, half of them replies: message read, judged, verdict written;
           under fastest-response each is new data, so that requests are timed and responses give samples
opening    a SYN that opens a connection: read, decoded, decided, entered, recorded in the journal
decision   the director's part of that alone: choose a server, record why, enter the connection, count;
           "no record" is the same without the record, "in shadow" with a second scheme asked as well
choice     the scheduler's part of that alone: choose, and rank the chosen server anew

Packets and openings are timed one by one, too, for what one in a hundred takes: in processor time, with the
reading of the clock in it. "Mixed" is one opening to nine packets.

Of datapath offload: what is told of a connection, one by one (see `micro_offload`).
"""

import argparse
import gc
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nfqlb.core.decision import KEPT
from nfqlb.core.segment import SYN, Segment
from nfqlb.netfilter.queue import PacketQueue
from nfqlb.packet.path import PacketPath
from nfqlb.runtime.journal import Journal
from tests.bench import micro_offload
from tests.bench.flows import Feed, Filled, client_key, syn
from tests.bench.report import processor, today
from tests.bench.stats import Ratio, paired_ratio, percentiles, spread

_PACKETS = 20_000  # of one measurement
_OPENINGS = 1_000
_KINDS = ("packet", "opening", "decision", "choice")
_WLC = "weighted-least-connections"
_FASTEST = "fastest-response"
_SHORT = {_WLC: "wlc", "round-robin": "rr", "least-connections": "lc"}  # as in IPVS
_FEW, _MANY = 10, 1000
_RECORDED = (3, _FEW, 16, _MANY)  # servers, where a decision is compared with one that is not recorded
_SMALL = 1000
_SHADOWS = ("round-robin", _FASTEST)
_OFFLOADED = ((3, "round-robin"), (_FEW, _WLC))
_MEBI = 1e6
#: What single packets of each kind took: the median and the 99th percentile, in seconds.
Singles = dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Shape:
    """A table to measure."""

    servers: int
    connections: int
    scheduler: str = _WLC
    recorded: bool = True
    shadow: str = ""

    def __str__(self) -> str:
        scheduler = _SHORT.get(self.scheduler, self.scheduler)
        scheduler += f" in shadow {_SHORT.get(self.shadow, self.shadow)}" if self.shadow else ""
        table = f"{scheduler}, {self.servers:,} servers, {self.connections:,} connections"
        return table if self.recorded else f"{table}, no record"


class Bench:
    """A filled worker: queue, packet path, director and journal; figures in seconds a packet."""

    def __init__(self, shape: Shape, directory: Path, queue: PacketQueue, feed: Feed) -> None:
        place = directory / str(shape).replace(", ", "-").replace(" ", "-")
        self.journal = Journal(shape.connections + _PACKETS, directory=place)
        self.filled = Filled(
            shape.servers, shape.scheduler, shape.connections, self.journal, KEPT if shape.recorded else 0,
            shape.shadow,
        )  # fmt: skip
        self.filled.fill()
        self._path = PacketPath(self.filled.director, self.filled.now)
        self._queue = queue
        self._feed = feed
        self._random = random.Random(shape.connections)
        self._fresh = range(shape.connections, shape.connections + _OPENINGS)

    def prove(self) -> None:
        """Every packet of a sample is accepted with a change. Raises AssertionError."""
        changed = 0

        def check(verdict: memoryview) -> None:
            nonlocal changed
            changed += len(verdict) > 36 and bytes(verdict[24:28]) == b"\0\0\0\1"

        self._feed.check = check
        try:
            self.packet()
            self.opening()
        finally:
            self._feed.check = None
        if changed != _PACKETS + _OPENINGS or self.filled.director.totals().drops:
            raise AssertionError(f"only {changed} packets passed: {self.filled.director.totals().drops}")

    def packet(self) -> float:
        """A packet of an established flow."""
        return self._drive(self._packets())

    def opening(self) -> float:
        """A SYN."""
        try:
            return self._drive(self._openings())
        finally:
            self._forget()

    def one_by_one(self, kind: str) -> list[float]:
        """Seconds of each packet of a kind, "packet" or "opening"; of the last of all it is not known."""
        self._queue.judge = self._path.judge
        self._feed.load(self._packets() if kind == "packet" else self._openings())
        self._feed.moments = moments = list[float]()
        try:
            self._queue.run(_PACKETS)
        finally:
            self._feed.moments = None
            if kind == "opening":
                self._forget()
        return [after - before for before, after in zip(moments[1::2], moments[2::2], strict=False)]

    def decision(self) -> float:
        """The director's part of a SYN."""
        segments = [Segment(client_key(flow), SYN, flow.to_bytes(8, "big")) for flow in self._fresh]
        decide, now = self.filled.director.client_syn, self.filled.now
        begin = time.perf_counter()
        for segment in segments:
            decide(segment, now)
        took = time.perf_counter() - begin
        self._forget()
        return took / len(segments)

    def choice(self) -> float:
        """The scheduler's part of a decision."""
        virtual = self.filled.director.virtual_servers[0]
        scheduler, last = virtual.scheduler, virtual.last
        chosen = []
        begin = time.perf_counter()
        for _ in range(_OPENINGS):
            link = scheduler.choose(b"", last)
            assert link is not None
            link.real.connections += 1
            scheduler.update(link)
            last = link.position
            chosen.append(link)
        took = time.perf_counter() - begin
        for link in chosen:
            link.real.connections -= 1
            scheduler.update(link)
        return took / _OPENINGS

    def _packets(self) -> list[bytes]:
        flows = self._random.choices(range(self.filled.connections), k=_PACKETS)
        return [self.filled.data(flow, reply=bool(n & 1)) for n, flow in enumerate(flows)]

    def _openings(self) -> list[bytes]:
        return [syn(flow) for flow in self._fresh]

    def _drive(self, messages: list[bytes]) -> float:
        """Seconds a message through the queue, less what handing it out costs."""
        before = self._queue.packets
        buffer = bytearray(131_072)
        self._feed.load(messages)
        begin = time.perf_counter()
        for _ in messages:
            self._feed.recv_into(buffer, 0, 0)
        feeding = time.perf_counter() - begin
        self._queue.judge = self._path.judge
        self._feed.load(messages)
        begin = time.perf_counter()
        self._queue.run(len(messages))
        took = time.perf_counter() - begin
        if self._queue.packets - before != len(messages) or self._queue.failed:
            raise AssertionError("the queue did not judge every message")
        return (took - feeding) / len(messages)

    def _forget(self) -> None:
        table = self.filled.director.table
        for flow in self._fresh:
            table.remove(table.inbound[client_key(flow)], self.filled.now)


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: its own, and those of shared mappings (the journal's file)."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssShmem"):
            found[name] = int(value.split()[0]) * 1024
    return found["RssAnon"], found["RssShmem"]


def measure_memory(connections: int, directory: Path) -> dict[str, float]:
    """Bytes a connection, in this process, which must be a fresh one: table and journal (in `directory`)."""
    gc.disable()
    journal = Journal(connections, directory=directory)
    filled = Filled(_FEW, _WLC, connections, journal)
    table, shared = resident()
    filled.fill()
    now_table, now_shared = resident()
    journal.close(remove=True)
    return {
        "table": (now_table - table) / connections,
        "journal": (now_shared - shared) / connections,
    }


def _memory_in_fresh_process(connections: int, directory: Path) -> dict[str, float]:
    argv = [sys.executable, "-m", "tests.bench.micro", "--connections", str(connections)]
    argv += ["--memory", str(directory / "memory")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _shapes(connections: int) -> list[Shape]:
    tables = [Shape(servers, count) for servers in (_FEW, _MANY) for count in (_SMALL, connections)]
    others = ("round-robin", "least-connections", _FASTEST)
    tables += [Shape(servers, _SMALL, name) for name in others for servers in (_FEW, _MANY)]
    recorded = [Shape(servers, _SMALL) for servers in _RECORDED]
    tables += [_shadowed(shadow) for shadow in _SHADOWS]
    return list(dict.fromkeys([*tables, *(each for one in recorded for each in (one, _unrecorded(one)))]))


def _shadowed(shadow: str) -> Shape:
    return Shape(_FEW, _SMALL, shadow=shadow)


def _unrecorded(shape: Shape) -> Shape:
    return replace(shape, recorded=False)


def _measure(
    shapes: Sequence[Shape], rounds: int, directory: Path, say: Callable[[str], None]
) -> tuple[dict[Shape, dict[str, list[float]]], dict[Shape, Singles]]:
    """The rounds' means, and what single packets took."""
    queue = PacketQueue(0, length=16, receive_buffer=1 << 16)
    feed = Feed()
    queue._socket.close()
    queue._socket = feed  # type: ignore[assignment]  # the kernel's part is left out on purpose
    benches: dict[Shape, Bench] = {}
    for shape in shapes:
        say(f"filling: {shape}")
        benches[shape] = Bench(shape, directory, queue, feed)
        benches[shape].prove()
    gc.freeze()
    samples = {shape: {kind: list[float]() for kind in _KINDS} for shape in shapes}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for kind in _KINDS:
            first = number % len(shapes)
            for shape in (*shapes[first:], *shapes[:first]):
                samples[shape][kind].append(getattr(benches[shape], kind)())
    say("one by one")
    plain = (shape for shape in shapes if shape.recorded and not shape.shadow)
    return samples, {shape: _singles(benches[shape]) for shape in plain}


def _singles(bench: Bench) -> Singles:
    packets, openings = bench.one_by_one("packet"), bench.one_by_one("opening")
    kinds = {"packet": packets, "opening": openings, "mixed": packets[: 9 * len(openings)] + openings}
    return {kind: percentiles(values) for kind, values in kinds.items()}


@dataclass(frozen=True, slots=True)
class Target:
    """A cost that may be at most `most` times another's."""

    kind: str
    shape: Shape
    base: Shape
    most: float


def _targets(connections: int) -> list[Target]:
    return [
        *(
            Target("packet", Shape(servers, connections), Shape(servers, _SMALL), 1.5)
            for servers in (_FEW, _MANY)
        ),
        *(Target("choice", Shape(_MANY, count), Shape(_FEW, count), 3.0) for count in (_SMALL, connections)),
        *(
            Target("choice", Shape(_MANY, _SMALL, name), Shape(_FEW, _SMALL, name), 3.0)
            for name in ("round-robin", "least-connections", _FASTEST)
        ),
        *(
            Target("decision", shape, _unrecorded(shape), 1.2)
            for shape in (Shape(servers, _SMALL) for servers in _RECORDED)
        ),
        *(Target("decision", _shadowed(shadow), Shape(_FEW, _SMALL), 1.5) for shadow in _SHADOWS),
    ]


def _show(
    console: Console,
    samples: dict[Shape, dict[str, list[float]]],
    targets: list[tuple[Target, Ratio]],
    memory: dict[str, float],
    connections: int,
) -> None:
    table = Table("microseconds", *_KINDS, "spread", box=SIMPLE)
    for shape, kinds in samples.items():
        noise = max(spread(values) for values in kinds.values())
        table.add_row(
            str(shape), *(f"{1e6 * median(kinds[kind]):.2f}" for kind in _KINDS), f"{100 * noise:.0f} %"
        )
    console.print(table)
    for target, found in targets:
        verdict = "reached" if found.low <= target.most else "NOT reached"
        console.print(
            f"{target.kind}: {target.shape} / {target.base}: {found.median:.2f}"
            f" ({found.low:.2f}-{found.high:.2f}), wanted at most {target.most:g}: {verdict}"
        )
    whole = (memory["table"] + memory["journal"]) * connections / _MEBI
    console.print(
        f"memory of {connections:,} connections: {whole:.0f} MB more than an empty table;"
        f" a connection: {memory['table']:.0f} bytes, and {memory['journal']:.0f} in the journal"
    )


def _show_single(console: Console, single: dict[Shape, Singles]) -> None:
    titles = [title for kind in ("packet", "opening", "mixed") for title in (f"{kind} p50", "p99")]
    table = Table("microseconds, one by one", *titles, box=SIMPLE)
    for shape, kinds in single.items():
        figures = (f"{1e6 * each:.1f}" for pair in kinds.values() for each in pair)
        table.add_row(str(shape), *figures)
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/bench/run.sh micro", description="The worker without the kernel."
    )
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="rounds over all tables (15)")
    parser.add_argument(
        "--connections", type=int, default=1_000_000, metavar="N", help="in a large table (1000000)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to a file")
    parser.add_argument("--memory", type=Path, metavar="DIRECTORY", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure and report. Needs root: the queue object binds a queue, in a network namespace of its own."""
    words = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(words)
    if options.memory:
        print(json.dumps(measure_memory(options.connections, options.memory)))
        return 0
    if os.environ.get(_APART) is None:
        os.environ[_APART] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", "tests.bench.micro", *words])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is in /dev/shm must go
    try:
        _compare(options)
    except KeyboardInterrupt:
        print("micro: stopped, nothing is reported", file=sys.stderr)
        return 130
    return 0


def _compare(options: argparse.Namespace) -> None:
    gc.disable()  # as in the worker
    shapes = _shapes(options.connections)
    with TemporaryDirectory(prefix="nfqlb-bench-", dir="/dev/shm") as text:
        memory = _memory_in_fresh_process(options.connections, Path(text))
        offload = micro_offload.measure(options.rounds, Path(text), Feed(), _OFFLOADED)
        samples, single = _measure(
            shapes, options.rounds, Path(text), lambda line: print(line, file=sys.stderr)
        )
    targets = [
        (target, found)
        for target in _targets(options.connections)
        if (found := paired_ratio(samples[target.shape][target.kind], samples[target.base][target.kind]))
    ]
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    console.print(
        f"{today()}; Linux {platform.release()}, {os.cpu_count()} x {processor()};"
        f" Python {platform.python_version()}; {options.rounds} rounds"
    )
    _show(console, samples, targets, memory, options.connections)
    _show_single(console, single)
    micro_offload.show(console, offload)
    if options.json:
        rows = [
            {**asdict(shape), "seconds": kinds, "single": single.get(shape)}
            for shape, kinds in samples.items()
        ]
        whole = {"memory": memory, "offload": offload, "samples": rows}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")


_APART = "NFQLB_BENCH_APART"

if __name__ == "__main__":
    sys.exit(main())
