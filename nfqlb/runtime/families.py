"""The metrics: which there are, what each means, and where in a snapshot it is found.

Owns the table of them. Names follow Prometheus's rules: base units, counters end in `_total`, one meaning
a name. Labels are names of the configuration, queue numbers and words of fixed lists: nothing that clients
choose, of which there may be a million. What the snapshot does not know has no sample. A snapshot is a
document of the control protocol; in it counters never fall, whatever becomes of the worker. Pure.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from platform import python_version
from typing import Any

from nfqlb.core.admission import ServerState
from nfqlb.core.histogram import CLASSES
from nfqlb.core.verdict import Drop, Reply
from nfqlb.runtime.picture import RUNNING
from nfqlb.runtime.problems import LEVELS

Snapshot = Mapping[str, Any]
Labels = tuple[str, ...]
#: Upper bound (`le`, as it is written) and how many were no longer; then the sum of all.
Buckets = tuple[list[tuple[str, float]], float]
Row = tuple[Labels, float | Buckets]
Rows = Callable[[Snapshot], Iterable[Row]]

_VIRTUAL_STATES = tuple(
    state.shown
    for state in (
        ServerState.IN_SERVICE, ServerState.OUT_OF_SERVICE, ServerState.FAILED, ServerState.DRAINING,
    )
)  # fmt: skip
_REAL_STATES = tuple(state.shown for state in ServerState)


class Kind(Enum):
    """What sort of metric it is."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: `rows` finds its samples in a snapshot, each with the values of its labels."""

    name: str
    kind: Kind
    help: str
    labels: Labels
    rows: Rows


def _value(document: Any, path: tuple[str, ...]) -> Any:
    """What stands at a path of a document; None where the path ends before, or nothing is known."""
    for name in path:
        if not isinstance(document, Mapping):
            return None
        document = document.get(name)
    return document


def _one(*path: str) -> Rows:
    """A number of the gateway."""

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        value = _value(snapshot, path)
        if value is not None:
            yield (), float(value)

    return rows


def _each(table: str, *path: str, key: Callable[[Snapshot], Labels] | None = None) -> Rows:
    """A number of each row of a list."""
    labels = key or _name

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        for row in snapshot.get(table) or ():
            value = _value(row, path)
            if value is not None:
                yield labels(row), float(value)

    return rows


def _kinds(path: tuple[str, ...], known: Iterable[str] = ()) -> Rows:
    """The gateway's counts by kind; those that are `known` are there from the beginning, with 0."""

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        counts = _value(snapshot, path)
        if counts is not None:
            for kind, count in {**dict.fromkeys(known, 0), **counts}.items():
                yield (kind,), float(count)

    return rows


def _kinds_of_each(table: str, *path: str, names: Mapping[str, str] | None = None) -> Rows:
    """The counts by kind of each row of a list; `names` are those to show, else all."""

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        for row in snapshot.get(table) or ():
            counts = _value(row, path) or {}
            shown = names or {kind: kind for kind in counts}
            for kind, said in shown.items():
                if counts.get(kind) is not None:
                    yield (*_name(row), said), float(counts[kind])

    return rows


def _states(table: str, states: Iterable[str]) -> Rows:
    """For each row of a list and each state 1, or 0 where it is in another."""

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        for row in snapshot.get(table) or ():
            for state in states:
                yield (*_name(row), state), float(row["state"] == state)

    return rows


def _facts(table: str, facts: Callable[[Snapshot], Labels | None]) -> Rows:
    """For each row of a list 1, with what is to be known of it as labels; nothing where that is None."""

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        for row in snapshot.get(table) or ():
            labels = facts(row)
            if labels is not None:
                yield labels, 1.0

    return rows


def _name(row: Snapshot) -> Labels:
    return (row["name"],)


def _queue(row: Snapshot) -> Labels:
    return str(row["number"]), str(row.get("role") or "")


def _port(port: int | None) -> str:
    """A label's value for a port; every port is none."""
    return "" if port is None else str(port)


def _queue_drops(snapshot: Snapshot) -> Iterator[Row]:
    for queue in snapshot.get("queues") or ():
        for field, cause in (("dropped_full", "queue-full"), ("dropped_socket", "socket-full")):
            if queue.get(field) is not None:
                yield (*_queue(queue), cause), float(queue[field])


def _problems(snapshot: Snapshot) -> Iterator[Row]:
    problems = snapshot.get("problems")
    if problems is not None:
        levels = [problem["level"] for problem in problems]
        for level in dict.fromkeys((*LEVELS, *levels)):
            yield (level,), float(levels.count(level))


def _links(field: str) -> Rows:
    """A number of each place in each virtual server.

    A server may stand on one port more than once, for itself and as a backup of others: that is one place
    to whoever looks from outside.
    """

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        for virtual in snapshot.get("virtuals") or ():
            sums: dict[Labels, float] = {}
            for link in virtual["servers"]:
                labels = (virtual["name"], link["real"], _port(link["port"]))
                if link.get(field) is not None:
                    sums[labels] = sums.get(labels, 0.0) + link[field]
            yield from sums.items()

    return rows


def _limits(snapshot: Snapshot) -> Iterator[Row]:
    for real in snapshot.get("reals") or ():
        if real["max_connections"]:
            yield _name(real), float(real["max_connections"])


def _conntrack_limit(snapshot: Snapshot) -> Iterator[Row]:
    limit = _value(snapshot, ("conntrack", "limit"))
    if limit:
        yield (), float(limit)


def _shadow(field: str) -> Rows:
    def rows(snapshot: Snapshot) -> Iterator[Row]:
        for virtual in snapshot.get("virtuals") or ():
            shadow = virtual.get("shadow")
            if shadow:
                yield (virtual["name"], shadow["scheduler"]), float(shadow[field])

    return rows


def _responses(snapshot: Snapshot) -> Iterator[Row]:
    for name, spread in (snapshot.get("response") or {}).items():
        counts = spread["counts"]
        if counts:
            sums = accumulate(float(counts.get(bound, 0)) for bound in CLASSES)
            yield (name,), (list(zip(CLASSES, sums, strict=True)), float(spread["sum_s"]))


def _neighbour(real: Snapshot) -> Labels | None:
    state = real.get("neighbour")
    return None if state is None else (real["name"], state, real.get("mac") or "")


def _virtual(virtual: Snapshot) -> Labels:
    return (
        virtual["name"],
        virtual["address"],
        virtual["protocol"],
        _port(virtual["port"]),
        virtual["scheduler"]["desired"],
        virtual["scheduler"]["actual"],
    )


def _gauge(name: str, rows: Rows, text: str, *labels: str) -> Family:
    return Family(f"nfqlb_{name}", Kind.GAUGE, text, labels, rows)


def _counter(name: str, rows: Rows, text: str, *labels: str) -> Family:
    return Family(f"nfqlb_{name}_total", Kind.COUNTER, text, labels, rows)


_BUILD = (
    _gauge("build_info", lambda snapshot: [((snapshot["version"], python_version()), 1.0)],
           "Always 1; which version of nfqlb runs, on which Python.", "version", "python"),
)  # fmt: skip
_GATEWAY = (
    _gauge("snapshot_timestamp_seconds", _one("at"),
           "When all that is here was read from the gateway, in seconds since 1970."),
    _gauge("uptime_seconds", _one("uptime_s"), "How long the gateway has been up."),
    _gauge("problems", _problems, "How many things are wrong at present, as nfqlb top says.", "level"),
    _gauge("worker_up", lambda snapshot: [((), float(snapshot["state"] == RUNNING))],
           "1 where the worker answers that judges packets, 0 while it is replaced."),
    _counter("worker_restarts", _one("worker", "restarts"), "Workers that died and were replaced."),
    _gauge("connections_active", _one("connections", "now"), "Connections and UDP flows at present."),
    _gauge("connections_limit", _one("connections", "limit"), "How many there may be: max_connections."),
    _counter("connections", _one("connections", "total"), "Connections and UDP flows opened."),
    _counter("evicted_connections", _one("evicted", "connections"),
             "Connections that made room in a full table: ended or half-open ones."),
    _counter("evicted_sticky_entries", _one("evicted", "sticky"),
             "Sticky entries that made room in a full table."),
    _counter("audit_drift", _one("audit", "drift"),
             "Counters of servers that were not what their connections add up to. Has to stay 0."),
    _gauge("sticky_entries", _one("sticky", "now"), "Clients that are bound to a server at present."),
    _gauge("sticky_entries_limit", _one("sticky", "limit"), "How many there may be: max_sticky."),
    _counter("dropped_packets", _kinds(("drops",), [reason.value for reason in Drop]),
             "Packets dropped, by reason.", "reason"),
    _counter("client_replies", _kinds(("replies",), [kind.value for kind in Reply]),
             "What clients were told of packets that were refused; over-limit and not-sent were not told.",
             "kind"),
    _counter("internal_errors", _kinds(("defects",)),
             "Defects that a process of the gateway went on from; the log has them. Has to stay 0.",
             "process"),
    _counter("offload_missed", _kinds(("followed",)),
             "What the kernel did not tell in time of connections that it carries, by what it was.", "what"),
    _counter("journal_lost_records", _one("journal", "lost"),
             "Records that found no room in the journal, and that the next worker will not know."),
)  # fmt: skip
_QUEUES = (
    _gauge("queue_waiting_packets", _each("queues", "depth", key=_queue),
           "Packets that wait in the queue.", "queue", "role"),
    _gauge("queue_waiting_packets_peak", _each("queues", "peak", key=_queue),
           "The most packets that were seen to wait in the queue within ten seconds.", "queue", "role"),
    _gauge("queue_waiting_packets_limit", _each("queues", "limit", key=_queue),
           "How many may wait; the kernel drops what comes beyond that.", "queue", "role"),
    _gauge("queue_socket_bytes", _each("queues", "socket_bytes", key=_queue),
           "Memory of the kernel that is taken by packets for the queue's reader.", "queue", "role"),
    _gauge("queue_socket_bytes_limit", _each("queues", "socket_limit", key=_queue),
           "How much of it there may be; the kernel drops what comes beyond that.", "queue", "role"),
    _counter("queue_packets", _each("queues", "packets", key=_queue),
             "Packets that the worker has read from the queue.", "queue", "role"),
    _counter("queue_busy_seconds", _each("queues", "busy_s", key=_queue),
             "How long the worker has been at work on the queue's packets.", "queue", "role"),
    _counter("queue_dropped_packets", _queue_drops,
             "Packets that the kernel dropped before the worker saw them: the queue or its socket was full.",
             "queue", "role", "cause"),
    _counter("queue_overruns", _each("queues", "overruns", key=_queue),
             "Reports that the kernel had no room to hand a packet over.", "queue", "role"),
    _counter("queue_refused_verdicts", _each("queues", "refused", key=_queue),
             "Verdicts that the kernel did not take.", "queue", "role"),
    _counter("queue_unreadable_packets", _each("queues", "unreadable", key=_queue),
             "Packets in a message of a shape not understood.", "queue", "role"),
)  # fmt: skip
_CONNTRACK = (
    _gauge("conntrack_entries", _one("conntrack", "now"), "Connections in the kernel's own table."),
    _gauge("conntrack_entries_limit", _conntrack_limit,
           "How many it has room for, nf_conntrack_max. Absent where there is no limit."),
    _counter("conntrack_losses", _kinds(("conntrack", "lost")),
             "Connections that the kernel's table had no room for, or gave up, by what became of them.",
             "cause"),
)  # fmt: skip
_RULES_AND_RELOAD = (
    _gauge("rules_present", _one("rules", "present"), "1 where the iptables rules are as they should be."),
    _counter("rules_repairs", _one("rules", "repairs"),
             "How often rules that somebody else had changed were put right."),
    _gauge("rules_last_repair_timestamp_seconds", _one("rules", "repaired_at"),
           "When the rules were last put right, in seconds since 1970."),
    _gauge("config_last_reload_successful", _one("reload", "ok"), "1 where the last reload succeeded."),
    _gauge("config_last_reload_timestamp_seconds", _one("reload", "at"),
           "When the configuration was last reloaded, or was to be, in seconds since 1970."),
)  # fmt: skip
_VIRTUALS = (
    _gauge("virtual_info", _facts("virtuals", _virtual),
           "Always 1; a virtual server's address, its scheduler, and the one that acts at present.",
           "virtual", "address", "protocol", "port", "scheduler", "acting"),
    _gauge("virtual_state", _states("virtuals", _VIRTUAL_STATES),
           "1 for the state that the virtual server is in, 0 for the others.", "virtual", "state"),
    _gauge("virtual_connections_active", _each("virtuals", "connections"),
           "A virtual server's connections at present.", "virtual"),
    _counter("virtual_connections", _each("virtuals", "total"),
             "Connections opened through a virtual server.", "virtual"),
    _gauge("virtual_half_open_connections", _each("virtuals", "half_open"),
           "Connections of a virtual server that wait for the end of TCP's handshake.", "virtual"),
    _counter("virtual_evicted_half_open_connections", _each("virtuals", "evicted", "half_open"),
             "Half-open connections given up because there were more than synguard allows.", "virtual"),
    _counter("virtual_packets", _kinds_of_each(
        "virtuals", "traffic", names={"packets_in": "in", "packets_out": "out"}),
        "Packets from clients (in) and to them (out).", "virtual", "direction"),
    _counter("virtual_bytes", _kinds_of_each(
        "virtuals", "traffic", names={"bytes_in": "in", "bytes_out": "out"}),
        "Bytes from clients (in) and to them (out).", "virtual", "direction"),
    _counter("virtual_dropped_packets", _kinds_of_each("virtuals", "drops"),
             "Packets for a virtual server that were dropped, by reason.", "virtual", "reason"),
    _counter("virtual_shadow_decisions", _shadow("evaluated"),
             "Choices of a server that the shadow scheduler was asked for too.", "virtual", "scheduler"),
    _counter("virtual_shadow_differing_decisions", _shadow("differed"),
             "Those of them in which it would have chosen another server.", "virtual", "scheduler"),
)  # fmt: skip
_LINKS = (
    _gauge("link_connections_active", _links("connections"),
           "Connections at present of a real server through one virtual server.", "virtual", "real", "port"),
    _counter("link_connections", _links("total"),
             "Connections opened to a real server through one virtual server.", "virtual", "real", "port"),
    _gauge("link_fair_share_ratio", _links("fair_share"),
           "The part of the virtual server's connections that the real server's weight entitles it to.",
           "virtual", "real", "port"),
)  # fmt: skip
_REALS = (
    _gauge("real_info", _facts("reals", lambda real: (real["name"], real["address"])),
           "Always 1; a real server's address.", "real", "address"),
    _gauge("real_state", _states("reals", _REAL_STATES),
           "1 for the state that the real server is in, 0 for the others.", "real", "state"),
    _gauge("real_state_age_seconds", _each("reals", "since_s"),
           "How long the real server has been in its state.", "real"),
    _gauge("real_neighbour_info", _facts("reals", _neighbour),
           "Always 1; what the kernel knows of the real server's link address.", "real", "state", "mac"),
    _gauge("real_weight", _each("reals", "weight"), "The real server's share; 0 takes no new clients.",
           "real"),
    _gauge("real_connections_active", _each("reals", "connections"),
           "A real server's connections at present.", "real"),
    _gauge("real_connections_limit", _limits,
           "How many it may have: max_connections. Absent where there is no limit.", "real"),
    _counter("real_connections", _each("reals", "total"), "Connections opened to a real server.", "real"),
    _gauge("real_unanswered_connections", _each("reals", "unanswered"),
           "Connections whose SYN the real server has not answered yet.", "real"),
    _counter("real_ditched_connections", _kinds_of_each(
        "reals", "ditched", names={"no_answer": "no-answer", "reset": "reset"}),
        "Connections that the real server could not make, by what it did.", "real", "cause"),
    Family("nfqlb_real_response_seconds", Kind.HISTOGRAM,
           "Response times of the real server, as they were measured.", ("real",), _responses),
    _gauge("real_last_response_seconds", _each("reals", "response_s"),
           "The last response time of the real server.", "real"),
    _gauge("real_predicted_response_seconds", _each("reals", "predicted_s"),
           "The response time that is expected of the real server for its next connection.", "real"),
)  # fmt: skip
#: Every metric there is, in the order of exposition.
FAMILIES = (*_BUILD, *_GATEWAY, *_QUEUES, *_CONNTRACK, *_RULES_AND_RELOAD, *_VIRTUALS, *_LINKS, *_REALS)
