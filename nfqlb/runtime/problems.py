"""What is wrong with a gateway, as its snapshot shows it: one line each, the worst first, and a verdict.

Pure: a snapshot in, lines out. What the doctor looks for on the host is not looked for here; what it has
found is in the snapshot.
"""

from collections.abc import Iterator
from typing import NamedTuple

from nfqlb.core.plural import several
from nfqlb.netfilter.conntrack import NEARLY_FULL
from nfqlb.runtime.protocol import JSON, JSONObject, objects, part

LEVELS = ("error", "warning", "info")
#: A table, or a server, is said to be nearly full from this part of its limit on.
_NEARLY = 0.9
#: In these states a server need not be reachable, or that it is not has been found out already.
_SILENT = ("failed", "testing", "maintenance", "out-of-service", "draining")

#: In these states an operator has put it.
_ASIDE = ("maintenance", "sticky-only", "out-of-service")
_NAMED = 3  # servers that are called by their names, where there are no more
_MIXED = "refused or not answered"


class Problem(NamedTuple):
    """One thing that is wrong: one of LEVELS, and what it is in a line."""

    level: str
    what: str


def problems(snapshot: JSONObject) -> list[Problem]:
    """All that is wrong, the worst first."""
    looks = (_gateway, _virtuals, _floods, _reals, _queues, _table, _tracking)
    found = [problem for look in looks for problem in look(snapshot)]
    return sorted(found, key=lambda problem: LEVELS.index(problem.level))


def verdict(found: list[Problem]) -> str:
    """In one line: everything above mere information, the worst first; "all well" where nothing is wrong."""
    return "; ".join(problem.what for problem in found if problem.level != "info") or "all well"


def _gateway(snapshot: JSONObject) -> Iterator[Problem]:
    if snapshot["state"] != "running":
        yield Problem("error", str(snapshot.get("why") or "worker does not answer"))
    rules, reload = part(snapshot, "rules"), part(snapshot, "reload")
    if rules.get("present") is False:
        yield Problem("error", f"rules missing{_because(rules.get('why'))}")
    elif rules.get("present") is None and rules.get("why"):
        yield Problem("warning", f"rules{_because(rules['why'])}")
    if rules.get("contested"):
        yield Problem("error", str(rules["contested"]))
    yield from _links(part(snapshot, "links").get("wrong"))
    if reload.get("as_before"):
        yield Problem("warning", f"runs on the configuration of before{_because(reload.get('error'))}")
    elif reload.get("ok") is False:
        yield Problem("warning", f"last reload failed{_because(reload.get('error'))}")
    defects = [*part(snapshot, "defects").values(), part(snapshot, "drops").get("internal-error")]
    if many := sum(each for each in defects if isinstance(each, int)):
        yield Problem("warning", f"{several(many, 'internal error')}; please report it, with the log")


def _links(wrong: JSON) -> Iterator[Problem]:
    for what in wrong if isinstance(wrong, list) else ():
        text = str(what)
        yield Problem("warning" if " is called " in text else "error", text)


def _because(why: JSON) -> str:
    return f": {why}" if isinstance(why, str) and why else ""


def _virtuals(snapshot: JSONObject) -> Iterator[Problem]:
    rows = objects(snapshot.get("virtuals"))
    failed = [row for row in rows if row["state"] == "failed"]
    if failed:
        aside = sorted({name for row in failed for name in taken_out(row)})
        many = f"{len(aside)} servers" if len(aside) > _NAMED else " and ".join(aside)
        beside = f", with {many} taken out by the operator" if aside else ""
        yield Problem("error", f"{_some(failed, len(rows), 'virtual server')} failed{beside}")
    alone = [row for row in rows if deserted(row)]
    if alone:
        many = _some(alone, len(rows), "virtual server")
        yield Problem("warning", f"{many} without a server for new clients")
    out = [row for row in rows if row["state"] == "out-of-service"]
    if out:
        yield Problem("info", f"{_some(out, len(rows), 'virtual server')} out of service")


def deserted(virtual: JSONObject) -> bool:
    """Whether no server takes new clients, not because all have failed. `virtual` is a snapshot's row."""
    places = objects(virtual.get("servers"))
    return virtual["state"] == "in-service" and bool(places) and not any(map(_fair_share, places))


def _fair_share(place: JSONObject) -> JSON:
    return place.get("fair_share", 1.0)


def taken_out(virtual: JSONObject) -> list[str]:
    """Which of a virtual server's servers an operator has taken out. `virtual` is a snapshot's row."""
    return [str(place["real"]) for place in objects(virtual.get("servers")) if place["state"] in _ASIDE]


def _floods(snapshot: JSONObject) -> Iterator[Problem]:
    for row in objects(snapshot.get("virtuals")):
        half_open = row.get("half_open")
        if row.get("flood") and isinstance(half_open, int):
            many = several(half_open, "half-open connection")
            yield Problem("warning", f"SYN flood at {row['name']}: {many}")


def _reals(snapshot: JSONObject) -> Iterator[Problem]:
    rows = objects(snapshot.get("reals"))
    failed = [row for row in rows if row["state"] in ("failed", "testing")]
    if failed:
        level = "error" if len(failed) == len(rows) else "warning"
        yield Problem(level, f"{_some(failed, len(rows), 'server')} failed")
    serving = [row for row in rows if row["state"] not in _SILENT]
    lost = [row for row in serving if row.get("neighbour") in ("failed", "incomplete", "no route")]
    if lost:
        yield Problem("error", f"{_some(lost, len(rows), 'server')} cannot be reached on the link")
    suspect = [row for row in serving if unmade(row)]
    if len(suspect) > _NAMED:
        many = _some(suspect, len(rows), "server")
        yield Problem("warning", f"{many} have {_MIXED} their last connections")
    else:
        yield from (Problem("warning", f"{row['name']} {unmade(row)}") for row in suspect)
    full = [row for row in rows if row["state"] == "max-capacity"]
    if full:
        yield Problem("warning", f"{_some(full, len(rows), 'server')} full")
    aside = [row for row in rows if row["state"] in _ASIDE]
    if aside:
        yield Problem("info", f"{_some(aside, len(rows), 'server')} taken out by the operator")
    leaving = [row for row in rows if row["state"] == "draining"]
    if leaving:
        yield Problem("info", f"{_some(leaving, len(rows), 'server')} draining since a reload")


def unmade(real: JSONObject) -> str:
    """What became of a server's last connections, which it did not make, though it has not failed.

    `real` is a snapshot's row; "" where they are too few to speak of.
    """
    if not real.get("suspect"):
        return ""
    run = part(real, "in_a_row")
    many, whys = run.get("connections"), run.get("why")
    how = "refused" if whys == ["reset"] else "not answered" if whys == ["no-answer"] else _MIXED
    return f"has {how} {many:,} connections in a row" if isinstance(many, int) else ""


def _some(rows: list[JSONObject], all_: int, what: str) -> str:
    """How many of how many; of one its name."""
    named = f" ({rows[0]['name']})" if len(rows) == 1 else ""
    return f"{len(rows)} of {several(all_, what)}{named}"


def _queues(snapshot: JSONObject) -> Iterator[Problem]:
    queues = objects(snapshot.get("queues"))
    dropping = [queue for queue in queues if queue.get("dropping")]
    if dropping:
        yield Problem("error", "queue dropping" if len(dropping) == 1 else f"{len(dropping)} queues dropping")
    filling = [queue for queue in queues if queue.get("filling") and not queue.get("dropping")]
    if filling:
        yield Problem("warning", "queue filling" if len(filling) == 1 else f"{len(filling)} queues filling")


def _table(snapshot: JSONObject) -> Iterator[Problem]:
    connections = part(snapshot, "connections")
    now, limit = connections.get("now"), connections.get("limit")
    if isinstance(now, int) and isinstance(limit, int) and now >= limit * _NEARLY:
        level, how = ("error", "full") if now >= limit else ("warning", "nearly full")
        yield Problem(level, f"connection table {how}: {now:,} of {limit:,}")
    drift = part(snapshot, "audit").get("drift")
    if isinstance(drift, int) and drift:
        yield Problem("error", f"{several(drift, 'counter')} had gone wrong; please report it, with the log")
    lost = part(snapshot, "journal").get("lost")
    if isinstance(lost, int) and lost:
        yield Problem("warning", f"journal full: a new worker would not know {several(lost, 'record')}")


def _tracking(snapshot: JSONObject) -> Iterator[Problem]:
    table = part(snapshot, "conntrack")
    now, limit = table.get("now"), table.get("limit")
    if not isinstance(now, int) or not isinstance(limit, int):
        return
    if table.get("losing"):
        yield Problem("error", f"kernel's connection table full: {now:,} of {limit:,}")
    elif limit and now >= limit * NEARLY_FULL:
        yield Problem("warning", f"kernel's connection table nearly full: {now:,} of {limit:,}")
