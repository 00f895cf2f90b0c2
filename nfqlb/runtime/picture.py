"""The snapshot: the one document in which the whole gateway can be seen at a moment.

Made of the worker's account and of what the supervisor knows: queues, neighbours, rules, the last reload.
The README lists its fields. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nfqlb.netfilter.neighbours import Neighbour
from nfqlb.runtime import views
from nfqlb.runtime.problems import problems, verdict
from nfqlb.runtime.protocol import JSON, JSONObject, objects, part
from nfqlb.runtime.pulse import Account
from nfqlb.runtime.summary import GatewayStatus, summary

RUNNING, DEGRADED = "running", "degraded"
#: Of an account: what is in the snapshot in another form.
_PARTS = frozenset({"now", "losses", "virtuals", "reals"})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the supervisor adds to an account; `others` is anything more."""

    rules: JSONObject
    reload: JSONObject
    others: JSONObject = field(default_factory=dict)


def snapshot(
    account: Account,
    status: GatewayStatus,
    neighbours: Mapping[str, Neighbour],
    around: Surroundings,
    at: float,
) -> JSONObject:
    """The snapshot; `neighbours` are by address, `at` is its time of day in seconds."""
    document, rates = account
    whole = summary(document, status)
    connections = whole["connections"]
    assert isinstance(connections, dict)
    return {
        "at": round(at, 3),
        **whole,
        "why": "",
        "connections": {**connections, "rate": _rate(rates.get(("gateway", "")))},
        "rules": dict(around.rules),
        "reload": dict(around.reload),
        "virtuals": [
            {"traffic": None, **row, "rate": _rate(rates.get(_key("virtual", row)))}
            for row in objects(document["virtuals"])
        ],
        "reals": [
            {**row, "rate": _rate(rates.get(_key("real", row)))}
            for row in objects(views.with_neighbours(document["reals"], neighbours))
        ],
        **{name: value for name, value in document.items() if name not in _PARTS and name not in whole},
        **around.others,
    }


def degraded(
    snapshot: JSONObject, status: GatewayStatus, around: Surroundings, at: float, why: str
) -> JSONObject:
    """The last snapshot, where there is no new account, with the reason: no rate is known."""
    connections = snapshot["connections"]
    assert isinstance(connections, dict)
    return {
        **refreshed(snapshot, status, around),
        "at": round(at, 3),
        "state": DEGRADED,
        "why": why,
        "uptime_s": round(status.uptime, 3),
        "worker": {"pid": status.worker_pid, "restarts": status.worker_restarts},
        "connections": {**connections, "rate": None},
        "virtuals": [{**row, "rate": None} for row in objects(snapshot["virtuals"])],
        "reals": [{**row, "rate": None} for row in objects(snapshot["reals"])],
    }


def refreshed(snapshot: JSONObject, status: GatewayStatus, around: Surroundings) -> JSONObject:
    """A snapshot with what can be known without the worker as it is now: queues, rules, reload, `others`."""
    known = status.kernel_rows()
    rows: list[JSON] = [{**row, **known.get(row["number"], {})} for row in objects(snapshot["queues"])]
    ours: JSONObject = {"rules": dict(around.rules), "reload": dict(around.reload), **around.others}
    defects = {**part(snapshot, "defects"), "supervisor": status.stumbles}
    return {**snapshot, "queues": rows, "defects": defects, **ours}


def judged(snapshot: JSONObject) -> JSONObject:
    """With what is wrong, the worst first, and that in one line."""
    found = problems(snapshot)
    listed: list[JSON] = [{"level": each.level, "what": each.what} for each in found]
    return {**snapshot, "verdict": verdict(found), "problems": listed}


def _key(kind: str, row: JSONObject) -> tuple[str, str]:
    return kind, str(row["name"])


def _rate(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
