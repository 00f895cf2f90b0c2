"""A snapshot of the gateway as rows to draw: the document's values, and what follows from two of them.

Owns the reading of `snapshot`: what may be null there is None here, and is shown as a dash. Pure: documents
in, frozen rows out. Times are in seconds, rates per second. A document that does not hold what it should
raises ControlError "bad-reply".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nfqlb.operator import document as read
from nfqlb.runtime.problems import unmade
from nfqlb.runtime.protocol import JSON, JSONObject

#: What a virtual server's traffic is counted in, in the order it is shown.
TRAFFIC = ("packets_in", "packets_out", "bytes_in", "bytes_out")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong: `level` is "error" or "warning"."""

    level: str
    what: str


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One packet queue. `rate` is packets a second, `cost` seconds a packet, lately; None where unknown."""

    number: int
    role: str
    depth: float | None
    dropped_full: float | None
    dropped_socket: float | None
    overruns: float | None
    refused: float | None
    unreadable: float | None
    packets: float | None
    busy: float | None
    rate: float | None = None
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A real server's part in one virtual server; `share` and `fair` are of 1, None where there are none."""

    real: str
    port: int | None
    connections: float
    total: float
    state: str
    share: float | None
    fair: float | None
    backup: bool


@dataclass(frozen=True, slots=True)
class VirtualRow:
    """One virtual server. `traffic` is counted since the start, `flow` is the same a second."""

    name: str
    address: str
    protocol: str
    port: int | None
    state: str
    desired: str
    actual: str
    connections: float
    total: float
    rate: float | None
    traffic: Mapping[str, float | None]
    flow: Mapping[str, float | None]
    drops: Mapping[str, float]
    places: tuple[Place, ...]
    shadow: str = ""

    @property
    def dropped(self) -> float:
        """Packets dropped, for whatever reason."""
        return sum(self.drops.values())


@dataclass(frozen=True, slots=True)
class RealRow:
    """One real server. `share` and `fair` are over all its virtual servers, weighed by their connections."""

    name: str
    address: str
    state: str
    reason: str
    since: float | None
    weight: float | None
    configured: float | None
    connections: float
    limit: float
    total: float
    rate: float | None
    unanswered: float | None
    no_answer: float | None
    reset: float | None
    response: float | None
    predicted: float | None
    failed: float | None
    test: float | None
    mac: str
    neighbour: str
    virtuals: tuple[str, ...]
    share: float | None = None
    fair: float | None = None
    classes: Mapping[str, float] = field(default_factory=dict)
    """How many response times were how long: by the classes' upper bounds in seconds, as text."""

    def within(self, part: float) -> float | None:
        """The bound in seconds that this part of all response times kept; infinite where there is none."""
        wanted, counted = part * sum(self.classes.values()), 0.0
        for bound in sorted(self.classes, key=float):
            counted += self.classes[bound]
            if counted >= wanted:
                return float(bound)
        return None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The gateway at the wall time `at`."""

    at: float
    version: str
    datapath: str
    state: str
    verdict: str
    problems: tuple[Problem, ...]
    uptime: float | None
    worker: float | None
    restarts: float | None
    connections: float | None
    total: float | None
    limit: float | None
    rate: float | None
    sticky: float | None
    sticky_limit: float | None
    unkept: float | None
    queues: tuple[QueueRow, ...]
    drops: Mapping[str, float]
    replies: Mapping[str, float]
    untold: Mapping[str, float]
    rules: JSONObject
    reload: JSONObject
    virtuals: tuple[VirtualRow, ...]
    reals: tuple[RealRow, ...]
    dropping: Mapping[str, float] = field(default_factory=dict)
    """Of `drops`, how many a second."""

    def flow(self, name: str) -> float | None:
        """The traffic of all virtual servers a second, `name` being one of TRAFFIC; None if unknown."""
        known = [flow for virtual in self.virtuals if (flow := virtual.flow[name]) is not None]
        return sum(known) if known else None


def snapshot(document: JSON, before: Snapshot | None = None) -> Snapshot:
    """The rows of a document; `before` is an older one, for what has to be reckoned from two."""
    whole = read.whole(document)
    at = read.number(whole, "at")
    uptime = read.optional(whole, "uptime_s")
    passed = uptime - before.uptime if before is not None and uptime and before.uptime else 0.0
    connections, sticky, worker = (_part(whole, name) for name in ("connections", "sticky", "worker"))
    drops = _counts(whole, "drops")
    virtuals = _virtuals(whole, before, passed)
    return Snapshot(
        at=at,
        version=_text(whole, "version"),
        datapath=_text(whole, "datapath"),
        state=_text(whole, "state"),
        verdict=_text(whole, "verdict"),
        problems=tuple(Problem(_text(row, "level"), _text(row, "what")) for row in _rows(whole, "problems")),
        uptime=uptime,
        worker=read.optional(worker, "pid"),
        restarts=read.optional(worker, "restarts"),
        connections=read.optional(connections, "now"),
        total=read.optional(connections, "total"),
        limit=read.optional(connections, "limit"),
        rate=read.optional(connections, "rate"),
        sticky=read.optional(sticky, "now"),
        sticky_limit=read.optional(sticky, "limit"),
        unkept=read.optional(_part(whole, "journal"), "lost"),
        queues=_queues(whole, before, passed),
        drops=drops,
        replies=_counts(whole, "replies"),
        untold=_counts(whole, "followed"),
        rules=_part(whole, "rules"),
        reload=_part(whole, "reload"),
        virtuals=virtuals,
        reals=_reals(whole, virtuals),
        dropping=_growth(drops, before.drops if before is not None else {}, passed),
    )


def _queues(whole: JSONObject, before: Snapshot | None, passed: float) -> tuple[QueueRow, ...]:
    known = {queue.number: queue for queue in before.queues} if before is not None else {}
    return tuple(_queue(row, known, passed) for row in _rows(whole, "queues"))


def _queue(row: JSONObject, known: Mapping[int, QueueRow], passed: float) -> QueueRow:
    number = int(read.number(row, "number"))
    packets, busy = read.optional(row, "packets"), read.optional(row, "busy_s")
    rate = cost = None
    old = known.get(number)
    if old is not None:
        rate = _a_second(packets, old.packets, passed)
        spent = _a_second(busy, old.busy, passed)
        cost = spent / rate if rate and spent is not None else None
    return QueueRow(
        number=number,
        role=_text(row, "role"),
        depth=read.optional(row, "depth"),
        dropped_full=read.optional(row, "dropped_full"),
        dropped_socket=read.optional(row, "dropped_socket"),
        overruns=read.optional(row, "overruns"),
        refused=read.optional(row, "refused"),
        unreadable=read.optional(row, "unreadable"),
        packets=packets,
        busy=busy,
        rate=rate,
        cost=cost,
    )


def _virtuals(whole: JSONObject, before: Snapshot | None, passed: float) -> tuple[VirtualRow, ...]:
    known = {virtual.name: virtual for virtual in before.virtuals} if before is not None else {}
    return tuple(_virtual(row, known.get(read.text(row, "name")), passed) for row in _rows(whole, "virtuals"))


def _virtual(row: JSONObject, old: VirtualRow | None, passed: float) -> VirtualRow:
    scheduler, counted = _part(row, "scheduler"), _part(row, "traffic")
    traffic = {name: read.optional(counted, name) for name in TRAFFIC}
    return VirtualRow(
        name=read.text(row, "name"),
        address=_text(row, "address"),
        protocol=_text(row, "protocol"),
        port=read.port(row, "port"),
        state=_text(row, "state"),
        desired=_text(scheduler, "desired"),
        actual=_text(scheduler, "actual"),
        connections=read.number(row, "connections"),
        total=read.number(row, "total"),
        rate=read.optional(row, "rate"),
        traffic=traffic,
        flow={name: _a_second(traffic[name], old.traffic[name] if old else None, passed) for name in TRAFFIC},
        drops=_counts(row, "drops"),
        places=tuple(map(_place, _rows(row, "servers"))),
        shadow=_shadow(_part(row, "shadow")),
    )


def _shadow(row: JSONObject) -> str:
    """What a second scheduler would have done, in words; empty where none is asked."""
    if not row:
        return ""
    asked, other = read.optional(row, "evaluated") or 0, read.optional(row, "differed") or 0
    said = f"would have differed in {other / asked:.1%} of {asked:,.0f} cases" if asked else "not asked yet"
    return f"{_text(row, 'scheduler')} {said}"


def _place(row: JSONObject) -> Place:
    return Place(
        real=read.text(row, "real"),
        port=read.port(row, "port"),
        connections=read.number(row, "connections"),
        total=read.number(row, "total"),
        state=_text(row, "state"),
        share=read.optional(row, "share"),
        fair=read.optional(row, "fair_share"),
        backup=row.get("backup") is True,
    )


def _reals(whole: JSONObject, virtuals: Sequence[VirtualRow]) -> tuple[RealRow, ...]:
    shares, fairs = _shares(virtuals)
    spreads = _part(whole, "response")
    return tuple(_real(row, shares, fairs, spreads) for row in _rows(whole, "reals"))


def _real(
    row: JSONObject, shares: Mapping[str, float], fairs: Mapping[str, float], spreads: JSONObject
) -> RealRow:
    name, ditched = read.text(row, "name"), _part(row, "ditched")
    virtuals = row.get("virtuals")
    return RealRow(
        name=name,
        address=_text(row, "address"),
        state=_text(row, "state"),
        reason=", ".join(filter(None, (_text(row, "reason"), unmade(row)))),
        since=read.optional(row, "since_s"),
        weight=read.optional(row, "weight"),
        configured=read.optional(row, "weight_configured"),
        connections=read.number(row, "connections"),
        limit=read.optional(row, "max_connections") or 0.0,
        total=read.number(row, "total"),
        rate=read.optional(row, "rate"),
        unanswered=read.optional(row, "unanswered"),
        no_answer=read.optional(ditched, "no_answer"),
        reset=read.optional(ditched, "reset"),
        response=read.optional(row, "response_s"),
        predicted=read.optional(row, "predicted_s"),
        failed=read.optional(row, "failed_s"),
        test=read.optional(row, "test_in_s"),
        mac=_text(row, "mac"),
        neighbour=_text(row, "neighbour"),
        virtuals=tuple(map(str, virtuals)) if isinstance(virtuals, list) else (),
        share=shares.get(name),
        fair=fairs.get(name),
        classes=_counts(_part(spreads, name), "counts"),
    )


def _shares(virtuals: Sequence[VirtualRow]) -> tuple[dict[str, float], dict[str, float]]:
    """Each real server's part of the connections of its virtual servers, and the part it is entitled to.

    A server behind several virtual servers is entitled to a part of each, so each counts by its connections.
    """
    live: dict[str, float] = {}
    own: dict[str, float] = {}
    due: dict[str, float] = {}
    for virtual in virtuals:
        for place in virtual.places:
            live[place.real] = live.get(place.real, 0.0) + virtual.connections
            own[place.real] = own.get(place.real, 0.0) + place.connections
            if place.fair is not None:
                due[place.real] = due.get(place.real, 0.0) + place.fair * virtual.connections
    shares = {name: own[name] / total for name, total in live.items() if total}
    return shares, {name: part / live[name] for name, part in due.items() if live[name]}


def _a_second(now: float | None, then: float | None, passed: float) -> float | None:
    """How fast a counter grows; None where that is not known."""
    if now is None or then is None or passed <= 0:
        return None
    return max(0.0, now - then) / passed


def _growth(now: Mapping[str, float], then: Mapping[str, float], passed: float) -> dict[str, float]:
    """Which of several counters grow, and how fast."""
    if passed <= 0:
        return {}
    grown = {name: (count - then.get(name, 0.0)) / passed for name, count in now.items()}
    return {name: speed for name, speed in grown.items() if speed > 0}


def _text(row: JSONObject, name: str) -> str:
    return read.optional_text(row, name) or ""


def _part(row: JSONObject, name: str) -> JSONObject:
    return {} if row.get(name) is None else read.part(row, name)


def _rows(row: JSONObject, name: str) -> list[JSONObject]:
    return [] if row.get(name) is None else read.items(row, name)


def _counts(row: JSONObject, name: str) -> dict[str, float]:
    """Counters by name, those that counted nothing left out."""
    part = _part(row, name)
    return {key: number for key in part if (number := read.optional(part, key))}
