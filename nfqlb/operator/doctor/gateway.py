"""What the doctor says of the running gateway itself, from its snapshot. Pure."""

from collections.abc import Iterator, Sequence

from nfqlb.core.plural import several
from nfqlb.operator.text import age
from nfqlb.runtime.problems import deserted, taken_out, unmade
from nfqlb.runtime.protocol import JSON, JSONObject, objects, part

_NEARLY = 0.9  # part of a table from which on it is nearly full
_MANY = 5  # unanswered connections: fewer there are at any moment, and it is the default `syn_limit`
_BAD = {"failed": "failed", "testing": "failed, and is being tested"}


def findings(
    snapshot: JSONObject, version: str, host: Sequence[JSONObject] | None = None
) -> list[JSONObject]:
    """The findings, by area: gateway, changes, queues, tables, failures; each area has one at least.

    `version` is that of this program, which may not be the one that runs. `host` is what was found on the
    gateway's machine, where that could be looked at.
    """
    areas = {
        "gateway": _gateway(snapshot, version),
        "changes": _changes(snapshot),
        "queues": _queues(snapshot),
        "tables": _tables(snapshot),
        "failures": [*_virtuals(snapshot), *_failures(snapshot, host)],
    }
    fine = {
        "gateway": _described(snapshot),
        "changes": "nobody has touched its rules, addresses and settings",
        "queues": "nothing dropped",
        "tables": _room(snapshot),
        "failures": "no server has failed",
    }
    found: list[JSONObject] = []
    for area, rows in areas.items():
        here = list(rows)
        if not any(level == "error" or level == "warning" for level, *_ in here):
            here.append(("ok", fine[area], ""))
        found += [row(level, area, what, advice) for level, what, advice in here]
    return found


def row(level: str, area: str, what: str, advice: str) -> JSONObject:
    """A finding as in `nfqlb doctor --json`."""
    return {"level": level, "area": area, "what": what, "advice": advice}


Said = Iterator[tuple[str, str, str]]


def _gateway(snapshot: JSONObject, version: str) -> Said:
    if snapshot["state"] != "running":
        advice = "wait a second and ask again; if it stays so, its log says why workers die"
        why = str(snapshot.get("why") or "and is being replaced")
        yield "error", f"its worker does not answer: {why}", advice
    worker, reload = part(snapshot, "worker"), part(snapshot, "reload")
    restarts = _number(worker, "restarts")
    if restarts:
        times = "once" if restarts == 1 else f"{restarts:,} times"
        advice = "nfqlb show events says when; its log says why"
        yield "warning", f"its worker has died and was replaced {times}", advice
    if reload.get("as_before"):
        advice = "repair the file; nfqlb check FILE says all that is wrong with it, nfqlb reload brings it in"
        yield "warning", f"it runs on the configuration of before: {reload.get('error')}", advice
    elif reload.get("ok") is False:
        advice = "the one before is in force; nfqlb check FILE says what is wrong with the new one"
        yield "warning", f"the last reload failed: {reload.get('error')}", advice
    if snapshot["version"] != version:
        what = f"it is nfqlb {snapshot['version']}, this is {version}"
        yield "warning", what, "restart it; connections are taken over"
    if error := part(snapshot, "fallback").get("error"):
        what = f"should it die, the kernel would not know to which servers new connections go: {error}"
        yield "warning", what, "is xt_statistic there? fallback = false says that it is not wanted"
    if defects := sum(_number(part(snapshot, "defects"), who) for who in ("worker", "supervisor")):
        what = f"it has gone on from {several(defects, 'defect')}"
        yield "warning", what, "its log has more; please report it"
    if _number(part(snapshot, "drops"), "internal-error"):
        yield "error", "packets were dropped for a defect of nfqlb", "its log has more; please report it"


def _changes(snapshot: JSONObject) -> Said:
    rules = part(snapshot, "rules")
    if rules.get("contested"):
        advice = "stop that program, or have it leave the chains NFQLB-* and the jumps to them alone"
        yield "error", str(rules["contested"]), advice
    elif repairs := _number(rules, "repairs"):
        times = "once" if repairs == 1 else f"{repairs:,} times"
        what = f"rules, addresses or settings were changed {times}, lastly {rules.get('why')}"
        advice = "they were put back; have that program leave them alone. nfqlb show events has all"
        yield "warning", what, advice
    if rules.get("present") is False and not rules.get("contested"):
        advice = "what stands there is what the gateway could not repair by itself"
        yield "error", f"rules are missing: {rules.get('why')}", advice


def _queues(snapshot: JSONObject) -> Said:
    for queue in objects(snapshot.get("queues")):
        full, sock = _number(queue, "dropped_full"), _number(queue, "dropped_socket")
        number, role = queue["number"], queue.get("role")
        if full or sock:
            now = " and is dropping now" if queue.get("dropping") else ""
            what = f"queue {number} ({role}) has dropped {several(full, 'packet')} when full, "
            what += f"{sock:,} for its reader"
            advice = "the worker cannot keep up: see nfqlb top; datapath offload takes most of it away"
            if role == "new":
                advice = "more connections came at a time than could be placed: a flood of SYNs, perhaps"
            yield "error" if now else "warning", what + now, advice
        elif queue.get("filling"):
            what = f"queue {number} ({role}) fills: {several(_number(queue, 'peak'), 'packet')} waited in it"
            yield "warning", what, "the worker does not keep up; beyond its room packets are dropped"
        if refused := _number(queue, "refused"):
            what = f"the kernel refused {several(refused, 'verdict')} of queue {number}"
            yield "warning", what, "the gateway's log may say more"


def _tables(snapshot: JSONObject) -> Said:
    connections = part(snapshot, "connections")
    now, limit = _number(connections, "now"), _number(connections, "limit")
    if limit and now >= limit * _NEARLY:
        level, how = ("error", "full") if now >= limit else ("warning", "nearly full")
        advice = "raise max_connections in [gateway]; half-open ones and UDP flows make room first"
        yield level, f"the connection table is {how}: {now:,} of {limit:,}", advice
    if lost := _number(part(snapshot, "journal"), "lost"):
        advice = "make room in /run or /dev/shm; a new worker would not know them"
        yield "warning", f"the journal has no room for {several(lost, 'record')}", advice


def _virtuals(snapshot: JSONObject) -> Said:
    for row in objects(snapshot.get("virtuals")):
        level, how = "error", "failed: none of its servers can be chosen"
        if deserted(row):
            level, how = "warning", "has no server for new clients"
        elif row["state"] != "failed":
            continue
        aside = taken_out(row)
        advice = f"its servers are below; nfqlb explain --virtual {row['name']} tells of the last connection"
        if aside:
            how += f", with {', '.join(aside)} taken out by the operator"
            advice = f"nfqlb set real {aside[0]} in-service lets new clients in at once"
        elif level == "warning":
            advice = "nfqlb show reals says why: weights of 0, or what an operator has set"
        yield level, f"virtual server {row['name']} {how}", advice


def _failures(snapshot: JSONObject, host: Sequence[JSONObject] | None) -> Said:
    for row in objects(snapshot.get("reals")):
        name, state = str(row["name"]), str(row["state"])
        if state in _BAD:
            since = _number(row, "since_s")
            why = f" {age(since)} ago: {row['reason']}" if row.get("reason") else ""
            advice = f"nfqlb show failures --real {name} has the connections; is its service running?"
            if host is not None and _takes_connections(name, snapshot, host):
                advice = f"it takes connections again: {_test(row)}, or nfqlb set real {name} in-service"
            yield "error", f"server {name} {_BAD[state]}{why}", advice
        elif state == "max-capacity":
            what = f"server {name} is full: {several(_number(row, 'connections'), 'connection')}"
            yield "warning", what, "raise its max_connections, or add a server"
        elif state == "in-service" and (what := unmade(row)):
            advice = f"nfqlb show failures --real {name} has them; of more clients they would have failed it"
            yield "warning", f"server {name} {what}", advice
        elif state == "in-service" and _number(row, "unanswered") >= _MANY:
            what = f"server {name} has not answered {row['unanswered']} of its newest connections yet"
            yield "warning", what, f"nfqlb show reals; if that stays so, {name} is too slow or unreachable"


def _takes_connections(name: str, snapshot: JSONObject, host: Sequence[JSONObject]) -> bool:
    """Whether a server was asked on the gateway's machine for a connection, and nothing was wrong."""
    asked = any(
        place["real"] == name and place.get("port") is not None and virtual["protocol"] == "tcp"
        for virtual in objects(snapshot.get("virtuals"))
        for place in objects(virtual.get("servers"))
    )
    told = [row for row in host if row["area"] in ("servers", "neighbours")]
    wrong = (row["level"] == "unseen" or str(row["what"]).startswith(f"{name} (") for row in told)
    return asked and not any(wrong)


def _test(real: JSONObject) -> str:
    """When a failed server is tested, in words."""
    if real["state"] == "testing":
        return "a client's connection tests it"
    left = _number(real, "test_in_s")
    return f"the next client tests it{f' in {age(left)}' if left else ''}"


def _described(snapshot: JSONObject) -> str:
    worker, uptime = part(snapshot, "worker"), snapshot["uptime_s"]
    up = age(uptime) if isinstance(uptime, int | float) else "?"
    return f"nfqlb {snapshot['version']} runs for {up}, its worker is process {worker.get('pid')}"


def _room(snapshot: JSONObject) -> str:
    connections = part(snapshot, "connections")
    return f"{several(_number(connections, 'now'), 'connection')} of {_number(connections, 'limit'):,}"


def _number(row: JSONObject, name: str) -> int:
    value: JSON = row.get(name)
    return int(value) if isinstance(value, int | float) else 0
