"""One run of the soak: storms of faults, calm between them, and rests at which everything is compared.

A run has parts. In each, storms and calms take turns until its time is over, and every fault of the part
comes once before any comes again. At a rest the visitors have ended all but the connections that they hold,
and nothing is on its way: that is the state of the table at which memory and descriptors are read.
"""

import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nfqlb.demo.lab import LabError
from nfqlb.runtime.protocol import JSON, ControlError
from tests.netns.asking import queued, traces, wait_until
from tests.soak import books
from tests.soak.books import Counts, Ledger
from tests.soak.faults import FAULTS, Fault, Kills, in_service
from tests.soak.gauge import Gauge, gauge
from tests.soak.site import VISITED, Site
from tests.soak.visitors import Loss

KEPT_EVENTS = 1000
ALARMING = re.compile(r"Traceback|internal.error|drift|assert", re.IGNORECASE)
#: Seconds for whatever is half-open, closing or a flow to be over. Servers give up who is silent for 75.
_SETTLED = 40.0


@dataclass(frozen=True, slots=True)
class Part:
    """`seconds` of the run, with those faults that spare the processes not in `kills`.

    Of its first `warming` seconds the memory is not judged. With `only`, it has the faults of these names,
    and each of them at least once in every storm.
    """

    name: str
    seconds: float
    kills: tuple[Kills, ...]
    warming: float = 0.0
    only: tuple[str, ...] = ()

    @property
    def faults(self) -> list[Fault]:
        """Those that belong to it."""
        some = [fault for fault in FAULTS if fault.kills in self.kills]
        return [fault for fault in some if not self.only or fault.name in self.only]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a storm and a calm last, and the most between two faults (s); damaged packets a second."""

    storm: float = 50.0
    calm: float = 8.0
    pause: float = 3.0
    trickle: float = 20.0


@dataclass(frozen=True, slots=True)
class Rest:
    """What was read at a rest. `at` is in seconds since the beginning; `warm`: its memory counts."""

    at: float
    part: str
    warm: bool
    worker: Gauge
    supervisor: Gauge
    sticky: int


@dataclass(slots=True)
class Story:
    """A run, and what has come of it.

    `wrong` is what is not as it should be; `done` has for every fault the seconds until all was well again.
    """

    site: Site
    chance: random.Random
    pace: Pace
    say: Callable[[str], None]
    wrong: list[str] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)
    done: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    lost: list[Loss] = field(default_factory=list)
    excused: int = 0
    crowded: int = 0
    counts: Counts = field(default_factory=Counts)
    connections: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    lasted: float = 0.0
    packets: int = 0
    _begun: float = field(default_factory=time.monotonic)
    _ledger: Ledger | None = None
    _served: dict[str, int] = field(default_factory=dict)
    _unseen: bool = False
    _summary: dict[str, Any] = field(default_factory=dict)

    def tell(self, parts: tuple[Part, ...]) -> None:
        """All of it."""
        carried = _carried(self.site)
        self.site.invite(self.chance)
        self.rest("the beginning", parts[0], warm=False)
        for part in parts:
            self.say(f"part: {part.name}, {part.seconds:.0f} s")
            begun, deck = time.monotonic(), _dealt(part.faults, self.chance)
            if part.warming:
                self.fill_events()
            while (passed := time.monotonic() - begun) < part.seconds:
                warm = bool(part.warming) and passed > part.warming
                self.storm(deck, min(self.pace.storm, part.seconds - passed), len(part.only))
                self.rest("a storm", part, warm=warm)
                self.calm()
                self.rest("a calm", part, warm=warm)
        self.lasted = time.monotonic() - self._begun
        self.packets = _carried(self.site) - carried

    def fill_events(self) -> None:
        """Have as many events as are kept, so that their number does not grow while memory is judged."""
        orders: list[JSON] = [
            {"cmd": "set-real", "args": {"name": "web1", "weight": 1 + number % 2}}
            for number in range(KEPT_EVENTS)
        ]
        self.site.ask("batch", {"commands": orders})
        self.site.ask("set-real", {"name": "web1", "weight": 1})

    # ---- Storm and calm

    def storm(self, deck: Iterator[Fault], seconds: float, least: int) -> None:
        """Traffic, damaged packets, and one fault after the other, at `least` so many."""
        end = time.monotonic() + seconds
        self._unseen = False
        self.site.go_on()
        self.site.molest(self.chance.getrandbits(32), self.pace.trickle)
        while time.monotonic() < end or least > 0:
            time.sleep(self.chance.uniform(0.2, self.pace.pause))
            self.suffer(next(deck))
            least -= 1
        self.site.leave_alone()
        try:
            in_service(self.site)
        except AssertionError as error:
            self.blame(str(error))

    def suffer(self, fault: Fault) -> None:
        """One fault, from its beginning until all is well."""
        self._unseen |= fault.kills != "nobody" or fault.unseen
        try:
            took = fault.act(self.site, self.chance)
        except (AssertionError, LabError, ControlError) as error:
            self.blame(f"{fault.name}: {error}")
            return
        self.done[fault.name].append(took)
        self.say(f"{fault.name}: well again after {took:.2f} s")

    def calm(self) -> None:
        """Traffic, and nothing else."""
        self.site.go_on()
        time.sleep(self.pace.calm)

    # ---- Rest

    def rest(self, after: str, part: Part, *, warm: bool) -> None:
        """Have everybody rest, and compare."""
        counts, losses = self.site.rest()
        held = sum(counts.held.values())
        try:
            wait_until(lambda: self._now() == held, "the end of what is not held", timeout=_SETTLED)
            wait_until(lambda: queued(self.site.lab) == 0, "empty queues")
        except AssertionError as error:
            self.blame(f"{error}; {held} are held, the gateway has {self._now()}")
            for kind, count in sorted(self.site.kinds().items()):
                self.say(f"  {count} {kind}")
        told = [row for row in self.site.ask("virtuals") if row["name"] in VISITED]
        ledger, served = Ledger.of(told), self.site.served()
        self.compare(after, counts, ledger, served)
        self.judge(losses)
        self.look_at(self.site.ask("summary"))
        self.read(part, warm)
        self.counts, self._ledger, self._served = counts, ledger, served
        self.say(
            f"rest after {after}: {held} held, {sum(counts.opened.values()):,} opened, "
            f"{sum(counts.pages.values()):,} pages; {self.rests[-1]}; wrong so far: {len(self.wrong)}"
        )

    def _now(self) -> int:
        now: int = self.site.ask("summary")["connections"]["now"]
        return now

    def compare(self, after: str, counts: Counts, ledger: Ledger, served: dict[str, int]) -> None:
        """What visitors, servers and gateway have counted since the last rest."""
        for text in books.at_rest(counts.held, ledger):
            self.blame(text)
        if self._ledger is None:
            return
        opened, pages = counts.opened - self.counts.opened, counts.pages - self.counts.pages
        sent = {name: count - self._served[name] for name, count in served.items()}
        said = books.by_servers(pages, sent, exact=after == "a calm")
        if after == "a calm":
            said += books.after_calm(opened, self._ledger, ledger)
        elif not self._unseen:
            said += books.after_storm(opened, self._ledger, ledger)
        for text in said:
            self.blame(f"after {after}: {text}")

    def judge(self, losses: list[Loss]) -> None:
        """Which losses nothing explains."""
        crowded = books.given_up(losses, self.site.bursts)
        self.crowded += len(crowded)
        losses = [loss for loss in losses if loss not in crowded]
        bad = books.unexcused(losses, self.site.taken)
        self.lost += bad
        self.excused += len(losses) - len(bad)
        for loss in bad:
            self.blame(f"lost: {loss}")

    def look_at(self, summary: dict[str, Any]) -> None:
        """What the gateway itself says is wrong, and its totals, which begin anew with a supervisor."""
        if summary["audit"]["drift"] or summary["drops"].get("internal-error"):
            self.blame(f"audit {summary['audit']}, drops {summary['drops']}")
        for queue in summary["queues"]:
            if queue["unreadable"]:  # that queues become empty was waited for
                self.blame(f"queue: {queue}")
        before = self._summary
        if before and summary["uptime_s"] < before["uptime_s"]:
            self.connections += before["connections"]["total"]
            self.drops.update(before["drops"])
            self.restarts += before["worker"]["restarts"]
        self._summary = summary

    def finish(self) -> None:
        """Stop the gateway: what its last supervisor has counted, what was logged, what is left behind."""
        if not self._summary:
            return
        if self.site.gateway.stop() != 0:
            self.blame("the gateway did not end well")
        for name, what in traces(self.site.lab).items():
            if what != self.site.before[name]:
                self.blame(f"left behind: {name}: {what}")
        self.connections += self._summary["connections"]["total"]
        self.drops.update(self._summary["drops"])
        self.restarts += self._summary["worker"]["restarts"]
        for line in self.site.said.splitlines():
            if ALARMING.search(line):
                self.blame(f"logged: {line}")

    def read(self, part: Part, warm: bool) -> None:
        """Memory and descriptors."""
        summary = self._summary
        worker, supervisor = gauge(summary["worker"]["pid"]), gauge(self.site.gateway.program.pid)
        now = time.monotonic() - self._begun
        self.rests.append(Rest(now, part.name, warm, worker, supervisor, summary["sticky"]["now"]))

    def blame(self, text: str) -> None:
        """Keep and say what is wrong."""
        self.wrong.append(f"{time.monotonic() - self._begun:.0f} s: {text}")
        self.say(f"WRONG: {text}")


def _dealt(faults: list[Fault], chance: random.Random) -> Iterator[Fault]:
    """Every fault once, in any order, and again."""
    while True:
        yield from chance.sample(faults, len(faults))


def _carried(site: Site) -> int:
    """Packets that have come to the gateway so far."""
    names = [f"/sys/class/net/{name}/statistics/rx_packets" for name in ("outside", "inside")]
    return sum(map(int, site.lab.gateway.run("cat", *names).stdout.split()))


def to_terminal(text: str) -> None:
    """A line with the time of day, for who runs the soak by hand."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()
