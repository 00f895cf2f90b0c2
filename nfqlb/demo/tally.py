"""What the demo knows: the visitors' reports, counted, and the gateway's own read-outs at one moment."""

import json
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypedDict, cast

from nfqlb.demo.appliance import Appliance
from nfqlb.demo.traffic import Event
from nfqlb.runtime.protocol import ControlError

HISTORY = 60
"""Seconds of which the answers a second are kept."""

RECENT = 60
"""Answers of a server of which the median time is taken."""

LIMIT = 3000
"""Connections asked for at a time; most of them have ended, and are kept for late packets only."""

ENDED = ("closed", "gone")
"""States of connections that have ended."""

UNCLEAR = 0.5
"""Seconds before and after a worker was killed in which it is not known which worker placed a connection."""


class RealRow(TypedDict):
    """Of `nfqlb show reals --json`, what the demo shows."""

    name: str
    address: str
    state: str
    weight: float
    connections: int
    total: int


class SchedulerRow(TypedDict):
    """The scheduler asked for and the one at work."""

    desired: str
    actual: str


class ServerRow(TypedDict):
    """A real server's part in one virtual server."""

    real: str
    port: int | None
    connections: int


class VirtualRow(TypedDict):
    """Of `nfqlb show virtuals --json`, what the demo shows."""

    name: str
    address: str
    port: int | None
    scheduler: SchedulerRow
    connections: int
    total: int
    servers: list[ServerRow]


class ConnectionRow(TypedDict):
    """Of `nfqlb show connections --json`, what the demo shows; ages in seconds."""

    virtual: str
    client: str
    client_port: int
    real: str
    real_port: int
    state: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Picture:
    """The gateway at one moment; `stale` where it could not be asked and this is an older answer."""

    worker: int = 0
    restarts: int = 0
    reals: list[RealRow] = field(default_factory=list)
    virtuals: list[VirtualRow] = field(default_factory=list)
    connections: list[ConnectionRow] = field(default_factory=list)
    stale: bool = True

    @property
    def weights(self) -> float:
        """The sum of the servers' weights: the whole capacity (R097)."""
        return sum(real["weight"] for real in self.reals)


class SummaryRow(TypedDict):
    """Of `nfqlb show summary --json`, what the demo shows."""

    worker: dict[str, int]


def look(appliance: Appliance, before: Picture) -> Picture:
    """The gateway's state, live connections youngest first; `before`, as stale, where it does not answer."""
    try:
        connections = cast(list[ConnectionRow], appliance.ask("connections", {"limit": LIMIT}))
        summary = cast(SummaryRow, appliance.ask("summary"))
        return Picture(
            summary["worker"]["pid"],
            summary["worker"]["restarts"],
            cast(list[RealRow], appliance.ask("reals")),
            cast(list[VirtualRow], appliance.ask("virtuals")),
            sorted(
                (connection for connection in connections if connection["state"] not in ENDED),
                key=lambda connection: connection["age_s"],
            ),
            stale=False,
        )
    except ControlError:
        return Picture(before.worker, before.restarts, before.reals, before.virtuals, before.connections)


class Reports:
    """The events that visitors write to a file, read as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> list[Event]:
        """The events since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [Event(**json.loads(line)) for line in lines]


class Tally:
    """The visitors' reports, counted."""

    def __init__(self) -> None:
        self.answered = 0
        self.errors: list[str] = []
        self.given: Counter[str] = Counter()
        self.homes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.moved: set[str] = set()
        self._former: dict[str, str] = {}
        self._killed = float("-inf")
        self.under_way: dict[tuple[str, int], str] = {}
        self.arrived = 0
        self.broken = 0
        self._seconds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._answers: defaultdict[str, deque[int]] = defaultdict(lambda: deque([0], maxlen=HISTORY))

    def add(self, event: Event) -> None:
        """Count one event."""
        key = (event.client, event.port)
        match event.kind:
            case "answer":
                self._answer(event)
            case "started":
                self.under_way[key] = event.server
                self.given[event.server] += 1
            case "arrived" | "broken":
                self.under_way.pop(key, None)
                self.arrived += event.kind == "arrived"
                self.broken += event.kind == "broken"
            case _:
                self.errors.append(f"{event.client} to {event.place}: {event.text}")

    def _answer(self, event: Event) -> None:
        self.answered += 1
        self._seconds[event.server].append(event.seconds)
        self._answers[event.server][-1] += 1
        if not event.fresh:
            return
        self.given[event.server] += 1
        if event.place == "shop" and event.begun > self._killed + UNCLEAR:
            self.homes[event.client][event.server] += 1
            if self._former.pop(event.client, event.server) != event.server:
                self.moved.add(event.client)

    def worker_killed(self, at: float) -> None:
        """The worker was killed at a time of the monotonic clock: clients may move now, and stay again."""
        self._former |= {client: servers.most_common(1)[0][0] for client, servers in self.homes.items()}
        self._killed = at
        self.homes.clear()

    def second(self) -> None:
        """A second has passed: begin the next one of the history."""
        for answers in self._answers.values():
            answers.append(0)

    def rate(self, server: str) -> int:
        """Answers of a server in the last whole second."""
        answers = self._answers[server]
        return answers[-2] if len(answers) > 1 else answers[-1]

    def history(self, server: str) -> list[int]:
        """Answers of a server in each whole second, the latest last."""
        return list(self._answers[server])[:-1]

    def typical(self, server: str) -> float | None:
        """The median time in seconds of a server's latest answers."""
        seconds = self._seconds[server]
        return median(seconds) if seconds else None

    @property
    def total(self) -> int:
        """Connections that visitors have had answers over."""
        return self.given.total()

    @property
    def faithful(self) -> int:
        """How many sticky clients have always met the same server since the last worker was killed."""
        return sum(len(servers) == 1 for servers in self.homes.values())
