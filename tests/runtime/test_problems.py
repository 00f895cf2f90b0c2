"""The verdict: what is wrong in one line, the worst first."""

from typing import Any

import pytest

from nfqlb.runtime.problems import Problem, problems, verdict
from nfqlb.runtime.protocol import JSON, JSONObject


def rows(*states: str, prefix: str = "web", **more: JSON) -> list[JSON]:
    return [{"name": f"{prefix}{number}", "state": state, **more} for number, state in enumerate(states, 1)]


def suspects(count: int, *whys: str) -> list[JSON]:
    """Servers that have made none of their last 12 connections, and not failed for that."""
    return rows(*["in-service"] * count, suspect=True, in_a_row={"connections": 12, "why": list(whys)})


def behind(state: str, *servers: tuple[str, float | None]) -> list[JSON]:
    """A virtual server in a state, with servers in theirs, each with its fair share."""
    places: list[JSON] = [
        {"real": f"web{number}", "state": each, "fair_share": fair}
        for number, (each, fair) in enumerate(servers, 1)
    ]
    return rows(state, prefix="shop", servers=places)


def snapshot(**parts: Any) -> JSONObject:
    return {
        "state": "running",
        "why": "",
        "rules": {"present": True, "why": ""},
        "reload": {"ok": None, "error": ""},
        "virtuals": rows("in-service", prefix="shop"),
        "reals": rows("in-service", "in-service"),
        "queues": [{"number": 0, "dropping": False}],
        "connections": {"now": 5, "limit": 1000},
        "journal": {"lost": 0},
        **parts,
    }


def said(**parts: Any) -> str:
    whole = snapshot(**parts)
    return verdict(problems(whole))


def test_all_well() -> None:
    assert problems(snapshot()) == []
    assert said() == "all well"


def test_a_run_that_has_failed_its_server_or_is_short_is_nothing_more() -> None:
    run: JSON = {"connections": 3, "why": ["reset"]}
    assert said(reals=rows("in-service", "in-service", suspect=False, in_a_row=run)) == "all well"
    assert said(reals=rows("failed", suspect=True, in_a_row=run)) == "1 of 1 server (web1) failed"
    assert said(reals=suspects(2, "reset")) == (
        "web1 has refused 12 connections in a row; web2 has refused 12 connections in a row"
    )


def test_the_worst_comes_first() -> None:
    states = ["in-service"] * 12 + ["failed", "testing"]
    assert said(reals=rows(*states), queues=[{"number": 0, "dropping": True}]) == (
        "queue dropping; 2 of 14 servers failed"
    )


@pytest.mark.parametrize(
    ("parts", "level", "what"),
    [
        ({"state": "degraded", "why": "no worker"}, "error", "no worker"),
        ({"state": "degraded", "why": ""}, "error", "worker does not answer"),
        ({"rules": {"present": False, "why": "iptables -F"}}, "error", "rules missing: iptables -F"),
        ({"rules": {"present": False, "why": ""}}, "error", "rules missing"),
        ({"rules": {"present": None, "why": "cannot be looked at"}}, "warning", "rules: cannot be looked at"),
        ({"links": {"wrong": ["outside interface eth0 is down"]}}, "error", "outside interface eth0 is down"),
        (
            {"links": {"wrong": ["outside interface eth0 is called wan0 now"]}},
            "warning",
            "outside interface eth0 is called wan0 now",
        ),
        ({"reload": {"ok": False, "error": "line 3"}}, "warning", "last reload failed: line 3"),
        ({"virtuals": rows("failed", prefix="shop")}, "error", "1 of 1 virtual server (shop1) failed"),
        ({"reals": rows("failed", "in-service")}, "warning", "1 of 2 servers (web1) failed"),
        ({"reals": rows("failed", "failed")}, "error", "2 of 2 servers failed"),
        ({"reals": rows("failed")}, "error", "1 of 1 server (web1) failed"),
        ({"reals": rows("max-capacity", "in-service")}, "warning", "1 of 2 servers (web1) full"),
        ({"reals": suspects(1, "reset")}, "warning", "web1 has refused 12 connections in a row"),
        ({"reals": suspects(1, "no-answer")}, "warning", "web1 has not answered 12 connections in a row"),
        (
            {"reals": suspects(1, "no-answer", "reset")},
            "warning",
            "web1 has refused or not answered 12 connections in a row",
        ),
        (
            {"reals": suspects(4, "reset")},
            "warning",
            "4 of 4 servers have refused or not answered their last connections",
        ),
        (
            {"virtuals": behind("failed", ("sticky-only", None), ("failed", None))},
            "error",
            "1 of 1 virtual server (shop1) failed, with web1 taken out by the operator",
        ),
        (
            {"virtuals": behind("in-service", ("sticky-only", None), ("in-service", None))},
            "warning",
            "1 of 1 virtual server (shop1) without a server for new clients",
        ),
        (
            {"reals": rows("in-service", neighbour="failed")},
            "error",
            "1 of 1 server (web1) cannot be reached on the link",
        ),
        ({"queues": [{"dropping": True}, {"dropping": True}]}, "error", "2 queues dropping"),
        ({"defects": {"worker": 1}}, "warning", "1 internal error; please report it, with the log"),
        (
            {"defects": {"worker": 0, "supervisor": 3}, "drops": {"internal-error": 1200, "no-server": 5}},
            "warning",
            "1,203 internal errors; please report it, with the log",
        ),
        ({"queues": [{"filling": True}, {"filling": False}]}, "warning", "queue filling"),
        ({"queues": [{"filling": True}, {"filling": True}]}, "warning", "2 queues filling"),
        ({"queues": [{"filling": True, "dropping": True}]}, "error", "queue dropping"),
        (
            {"conntrack": {"now": 800, "limit": 1000, "losing": False}},
            "warning",
            "kernel's connection table nearly full: 800 of 1,000",
        ),
        (
            {"conntrack": {"now": 1000, "limit": 1000, "losing": True}},
            "error",
            "kernel's connection table full: 1,000 of 1,000",
        ),
        ({"connections": {"now": 90, "limit": 100}}, "warning", "connection table nearly full: 90 of 100"),
        ({"connections": {"now": 1000, "limit": 1000}}, "error", "connection table full: 1,000 of 1,000"),
        ({"journal": {"lost": 1200}}, "warning", "journal full: a new worker would not know 1,200 records"),
    ],
)
def test_what_is_wrong(parts: JSONObject, level: str, what: str) -> None:
    assert problems(snapshot(**parts)) == [Problem(level, what)]
    assert said(**parts) == what


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"virtuals": rows("out-of-service", prefix="shop")}, "1 of 1 virtual server (shop1) out of service"),
        ({"reals": rows("maintenance", "in-service")}, "1 of 2 servers (web1) taken out by the operator"),
        ({"reals": rows("sticky-only", "maintenance")}, "2 of 2 servers taken out by the operator"),
    ],
)
def test_what_an_operator_wanted_is_no_fault(parts: JSONObject, what: str) -> None:
    assert problems(snapshot(**parts)) == [Problem("info", what)]
    assert said(**parts) == "all well"


@pytest.mark.parametrize(
    ("state", "servers"),
    [
        ("in-service", [("sticky-only", 0.0), ("in-service", 1.0)]),
        ("out-of-service", [("sticky-only", None)]),
        ("draining", [("draining", None)]),
    ],
)
def test_where_somebody_is_left_or_nobody_is_wanted(
    state: str, servers: list[tuple[str, float | None]]
) -> None:
    assert said(virtuals=behind(state, *servers)) == "all well"


def test_a_server_out_of_use_need_not_answer_on_the_link() -> None:
    assert said(reals=rows("maintenance", neighbour="failed")) == "all well"
    assert said(reals=rows("failed", neighbour="failed")) == "1 of 1 server (web1) failed"
