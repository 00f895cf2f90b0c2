"""The doctor's words: what it makes of a snapshot, and how its findings are shown."""

from typing import Any

import pytest

from nfqlb.operator.doctor import report
from nfqlb.operator.doctor.gateway import findings
from nfqlb.runtime.protocol import JSONObject


def snapshot(**changes: Any) -> JSONObject:
    """A gateway that is well, with changes to it."""
    well: dict[str, Any] = {
        "version": "1.0", "state": "running", "uptime_s": 192.0, "worker": {"pid": 42, "restarts": 0},
        "connections": {"now": 5, "total": 9, "limit": 1000}, "queues": [], "drops": {},
        "journal": {"lost": 0},
        "rules": {"present": True, "repairs": 0, "repaired_at": None, "why": "", "contested": ""},
        "reload": {"at": None, "ok": None, "error": ""},
        "virtuals": [{"name": "shop", "state": "in-service"}],
        "reals": [{"name": "web1", "state": "in-service", "unanswered": 0, "reason": "", "since_s": 1.0}],
    }  # fmt: skip
    return well | changes


def wrong(document: JSONObject) -> list[JSONObject]:
    return [row for row in findings(document, "1.0") if row["level"] != "ok"]


def real(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "web1", "state": "in-service", "unanswered": 0, "reason": "", "since_s": 12.0} | changes]


def queue(**changes: Any) -> list[dict[str, Any]]:
    well = {"number": 3, "role": "established", "dropped_full": 0, "dropped_socket": 0, "refused": 0}
    return [well | changes]


def test_a_gateway_that_is_well_is_said_to_be_in_every_area() -> None:
    rows = findings(snapshot(), "1.0")
    assert [row["area"] for row in rows] == ["gateway", "changes", "queues", "tables", "failures"]
    assert {row["level"] for row in rows} == {"ok"}
    assert rows[0]["what"] == "nfqlb 1.0 runs for 3m12s, its worker is process 42"


@pytest.mark.parametrize(
    ("changes", "level", "area", "words"),
    [
        ({"state": "degraded"}, "error", "gateway", "does not answer"),
        ({"worker": {"pid": 42, "restarts": 2}}, "warning", "gateway", "replaced 2 times"),
        ({"version": "0.9"}, "warning", "gateway", "it is nfqlb 0.9, this is 1.0"),
        ({"reload": {"ok": False, "error": "line 3"}}, "warning", "gateway", "last reload failed: line 3"),
        ({"fallback": {"error": "no dice"}}, "warning", "gateway", "go: no dice"),
        ({"drops": {"internal-error": 1}}, "error", "gateway", "defect"),
        ({"rules": {"repairs": 1, "why": "raw; by x"}}, "warning", "changes", "once, lastly raw; by x"),
        ({"rules": {"present": False, "why": "raw"}}, "error", "changes", "rules are missing: raw"),
        ({"rules": {"present": False, "repairs": 9, "contested": "again"}}, "error", "changes", "again"),
        ({"queues": queue(dropped_full=1200)}, "warning", "queues", "queue 3 (established) has dropped 1"),
        ({"queues": queue(dropped_socket=1, dropping=True)}, "error", "queues", "is dropping now"),
        ({"queues": queue(refused=4)}, "warning", "queues", "refused 4 verdicts"),
        ({"connections": {"now": 950, "limit": 1000}}, "warning", "tables", "nearly full: 950 of 1,000"),
        ({"connections": {"now": 1000, "limit": 1000}}, "error", "tables", "full: 1,000 of 1,000"),
        ({"journal": {"lost": 3}}, "warning", "tables", "no room for 3 records"),
        ({"virtuals": [{"name": "shop", "state": "failed"}]}, "error", "failures", "server shop failed"),
        ({"reals": real(state="failed", reason="8 lost")}, "error", "failures", "web1 failed 12s ago: 8"),
        ({"reals": real(state="max-capacity", connections=7)}, "warning", "failures", "web1 is full: 7"),
        ({"reals": real(unanswered=6)}, "warning", "failures", "web1 has not answered 6"),
        ({"reals": real(suspect=True, in_a_row={"connections": 9, "why": ["reset"]}, unanswered=6)},
         "warning", "failures", "web1 has refused 9 connections in a row"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_finding(changes: dict[str, Any], level: str, area: str, words: str) -> None:
    (row,) = wrong(snapshot(**changes))
    assert (row["level"], row["area"]) == (level, area)
    assert words in str(row["what"])
    assert row["advice"]


def place(name: str, state: str) -> dict[str, Any]:
    return {"real": name, "state": state, "fair_share": None, "port": 80}


def shop(state: str, *places: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "shop", "state": state, "protocol": "tcp", "port": 80, "servers": list(places)}]


@pytest.mark.parametrize(
    ("state", "other", "level", "says"),
    [
        ("failed", "failed", "error", "shop failed: none of its servers can be chosen, with web1 taken out"),
        ("in-service", "in-service", "warning", "shop has no server for new clients, with web1 taken out"),
    ],
)
def test_a_drained_server_is_the_fastest_cure(state: str, other: str, level: str, says: str) -> None:
    virtuals = shop(state, place("web1", "sticky-only"), place("web2", other))
    (row,) = wrong(snapshot(virtuals=virtuals))
    assert row["level"] == level
    assert says in str(row["what"])
    assert str(row["advice"]).startswith("nfqlb set real web1 in-service lets new clients in at once")


def test_who_takes_connections_again_is_said_to_be_tested_soon() -> None:
    """Its service runs: to ask whether it does would be to send somebody looking for nothing."""
    serving = shop("in-service", place("web1", "failed"), place("web2", "in-service") | {"fair_share": 1.0})
    failed = snapshot(reals=real(state="failed", test_in_s=29.2), virtuals=serving)
    shut = row("error", "servers", "web1 (10.0.0.1) takes no connection on port 80: Connection refused")
    dead = row("error", "neighbours", "web1 (10.0.0.1) does not answer on eth1: no reply to ARP")
    other = row("error", "servers", "web11 (10.0.0.11) takes no connection on port 80: Connection refused")
    blind = row("unseen", "servers", "could not be looked at")

    def advice(*host: JSONObject) -> str:
        (found,) = [each for each in findings(failed, "1.0", host) if each["level"] == "error"]
        return str(found["advice"])

    assert advice() == advice(other) == (
        "it takes connections again: the next client tests it in 29s, or nfqlb set real web1 in-service"
    )
    for each in (shut, dead, blind):
        assert "is its service running?" in advice(each)
    (unasked,) = wrong(failed)
    assert "is its service running?" in str(unasked["advice"])


@pytest.mark.parametrize("state", ["maintenance", "out-of-service", "sticky-only"])
def test_what_an_operator_has_taken_out_is_not_missed(state: str) -> None:
    assert wrong(snapshot(reals=real(state=state, unanswered=3))) == []


def row(level: str, area: str, what: str, advice: str = "") -> JSONObject:
    return {"level": level, "area": area, "what": what, "advice": advice}


ROWS = [
    row("ok", "gateway", "runs"),
    row("warning", "clock", "is off", "chrony"),
    row("unseen", "firewall", "not permitted"),
    row("error", "servers", "web1 is off", "switch it on"),
]


def test_the_worst_comes_first_and_each_with_its_advice() -> None:
    assert list(report.lines(ROWS, colour=False, width=80)) == [
        "ERROR   servers      web1 is off",
        "                     -> switch it on",
        "warning clock        is off",
        "                     -> chrony",
        "?       firewall     not permitted",
        "ok      gateway      runs",
        "",
        "1 error, 1 warning; 1 could not be looked at",
    ]


def test_colours_are_only_there_where_they_are_wanted_and_do_not_move_anything() -> None:
    plain = list(report.lines(ROWS, colour=False, width=80))
    coloured = list(report.lines(ROWS, colour=True, width=80))
    assert "\x1b" not in "".join(plain)
    assert coloured[0] == "\x1b[31;1mERROR\x1b[0m   servers      web1 is off"
    for code in ("31;1", "33", "36", "32", "0"):
        coloured = [line.replace(f"\x1b[{code}m", "") for line in coloured]
    assert coloured == plain


@pytest.mark.parametrize("width", [10, 60, 200])
def test_long_findings_are_wrapped_to_the_terminal(width: int) -> None:
    long = "iptables -I FORWARD -i eth0 -o eth1 -j ACCEPT " * 5
    lines = list(report.lines([row("error", "firewall", long, long)], colour=False, width=width))
    assert max(map(len, lines)) <= max(width, 40)
    words = [word for line in lines[:-2] for word in line.split()]
    assert words[2:] == [*long.split(), "->", *long.split()]


def test_nothing_that_a_terminal_obeys_comes_out() -> None:
    lines = report.lines([row("error", "changes", "by \x1b[2Jsh (process 1)")], colour=False, width=80)
    assert "\x1b" not in "".join(lines)


def test_a_few_connections_that_are_being_answered_are_nothing() -> None:
    assert wrong(snapshot(reals=real(unanswered=4))) == []


def test_the_verdict() -> None:
    assert report.verdict([ROWS[0]]) == "all well"
    assert report.verdict([ROWS[1], ROWS[1]]) == "2 warnings"
