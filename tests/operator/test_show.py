"""`nfqlb show`: each table by its exact text."""

import copy
import json
import time
from ipaddress import ip_address

import pytest

from nfqlb.operator.show import SUBJECTS, as_json, render
from nfqlb.runtime.decision_view import decision
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject
from tests.runtime.told import a_decision

QUIET: JSONObject = {"overruns": 0, "refused": 0, "unreadable": 0}
SUMMARY: JSONObject = {
    "version": "1.2.3",
    "datapath": "rewrite",
    "state": "running",
    "uptime_s": 11520.0,
    "worker": {"pid": 4711, "restarts": 1},
    "connections": {"now": 1234, "total": 45678, "limit": 1000000},
    "sticky": {"now": 3, "limit": 1000000},
    "queues": [
        {"number": 0, "depth": 0, "dropped_full": 0, "dropped_socket": 0, **QUIET},
        {"number": 1, "depth": 1, "dropped_full": 1200, "dropped_socket": 3, **QUIET},
    ],
    "journal": {"lost": 0},
    "followed": {},
    "drops": {"cut": 0, "malformed": 3, "no-connection": 1200},
    "replies": {"over-limit": 20, "reset": 1180},
}
SHOP: JSONObject = {
    "name": "shop",
    "address": "192.0.2.10",
    "protocol": "tcp",
    "port": 80,
    "state": "in-service",
    "scheduler": {"desired": "weighted-least-connections", "actual": "weighted-least-connections"},
    "connections": 1234,
    "total": 45678,
    "servers": [
        {
            "real": "web1",
            "port": 8080,
            "connections": 1000,
            "total": 40000,
            "state": "in-service",
            "share": 0.8104,
            "fair_share": 0.5,
        },
        {
            "real": "web2",
            "port": 80,
            "connections": 234,
            "total": 5678,
            "state": "sticky-only",
            "share": 0.1896,
            "fair_share": None,
        },
    ],
}
ANY: JSONObject = {
    "name": "any",
    "address": "2001:db8::10",
    "protocol": "tcp",
    "port": None,
    "state": "in-service",
    "scheduler": {"desired": "maglev", "actual": "round-robin"},
    "connections": 0,
    "total": 0,
    "servers": [
        {
            "real": "web1",
            "port": None,
            "connections": 0,
            "total": 0,
            "state": "in-service",
            "share": None,
            "fair_share": 1.0,
        },
        {
            "real": "web3",
            "port": 8080,
            "connections": 0,
            "total": 0,
            "state": "failed",
            "share": None,
            "fair_share": 0.0,
            "backup": True,
        },
    ],
}
WEB1: JSONObject = {
    "name": "web1",
    "address": "10.0.0.1",
    "state": "in-service",
    "reason": "",
    "since_s": 192.0,
    "weight": 1,
    "connections": 1000,
    "total": 40000,
    "max_connections": 0,
    "unanswered": 0,
    "ditched": {"no_answer": 0, "reset": 0},
    "response_s": None,
    "predicted_s": None,
    "virtuals": ["shop"],
    "failed_s": None,
    "test_in_s": None,
    "in_a_row": {"connections": 0, "why": []},
    "suspect": False,
    "mac": "02:00:00:00:00:01",
    "neighbour": "reachable",
}
WEB2: JSONObject = {
    "name": "web2",
    "address": "10.0.0.2",
    "state": "max-capacity",
    "reason": "at its maximum of 300 connections",
    "since_s": 5.0,
    "weight": 0.5,
    "connections": 300,
    "total": 5678,
    "max_connections": 300,
    "unanswered": 2,
    "ditched": {"no_answer": 1, "reset": 4},
    "response_s": 0.0123,
    "predicted_s": 0.02,
    "virtuals": ["shop"],
    "failed_s": None,
    "test_in_s": None,
    "in_a_row": {"connections": 0, "why": []},
    "suspect": False,
    "mac": None,
    "neighbour": "failed",
}
FAILURES: JSON = [
    {
        "real": "web1", "state": "failed", "ago_s": 75.0, "client": "198.51.100.7", "client_port": 40000,
        "virtual": "shop", "why": "no-answer", "waited_s": 3.02,
    },
    {
        "real": "web2", "state": "in-service", "ago_s": 4021.0, "client": "2001:db8::7", "client_port": 443,
        "virtual": "shop", "why": "reset", "waited_s": 0.001,
    },
]  # fmt: skip
CONNECTIONS: JSON = [
    {
        "virtual": "shop",
        "protocol": "tcp",
        "client": "198.51.100.7",
        "client_port": 40000,
        "real": "web1",
        "real_port": 8080,
        "state": "established",
        "age_s": 192.2,
        "idle_s": 0.05,
    },
    {
        "virtual": "any",
        "protocol": "tcp",
        "client": "2001:db8::7",
        "client_port": 443,
        "real": "web2",
        "real_port": 80,
        "state": "syn-received",
        "age_s": 1.3,
        "idle_s": 1.3,
    },
]
STICKY: JSON = [
    {"virtual": "shop", "client": "198.51.100.7", "real": "web1", "age_s": 12.1, "expires_s": 288.0},
    {"group": "office", "client": "203.0.113.0", "real": "web2", "age_s": 7300.0, "expires_s": 90000.0},
]
DECISIONS: JSON = [
    decision(a_decision(), 1000.0),
    decision(a_decision(client=ip_address("2001:db8::7"), by="sticky", scheduler=None), 1000.0),
    decision(
        a_decision(chosen=None, chosen_port=None, refused="no-server", scheduler=None, by="none"), 1000.0
    ),
]
EVENTS: list[JSON] = [
    {
        "at": 1772692801.5, "kind": "order", "name": "web1", "text": "web1: weight 1 -> 2",
        "who": "user root (uid 0)", "level": "info",
    },
    {
        "at": 1772692800.0, "kind": "state", "name": "web2", "text": "web2 failed: 3 in a row", "who": "",
        "level": "warning",
    },
]  # fmt: skip
DOCUMENTS: dict[str, JSON] = {
    "summary": SUMMARY,
    "virtuals": [SHOP, ANY],
    "reals": [WEB1, WEB2],
    "connections": CONNECTIONS,
    "sticky": STICKY,
    "failures": FAILURES,
    "decisions": DECISIONS,
    "events": EVENTS,
}


def shown(subject: str, document: JSON, limit: int | None = None) -> str:
    return "\n".join(render(subject, document, limit)) + "\n"


def test_a_weight_that_was_set_by_hand_is_marked() -> None:
    other: JSONObject = {**WEB1, "name": "web4", "weight_configured": 2}
    lines = render("reals", [{**WEB1, "weight_configured": 1}, other])
    assert [line.split()[4] for line in lines[1:3]] == ["1", "1*"]
    assert lines[3:] == ["", "web4  weight 1 set by hand, 2 in the configuration"]


def test_summary() -> None:
    assert shown("summary", SUMMARY) == (
        "nfqlb        1.2.3, rewrite datapath\n"
        "state        running, up for 3h12m\n"
        "worker       process 4711, restarted 1 time\n"
        "connections  1,234 of at most 1,000,000, 45,678 since the start\n"
        "sticky       3 of at most 1,000,000 entries\n"
        "queue 0      0 packets waiting, none dropped\n"
        "queue 1      1 packet waiting, dropped 1,200 (queue full) and 3 (socket full)\n"
        "dropped          3 malformed\n"
        "             1,200 no-connection\n"
        "replies         20 over-limit\n"
        "             1,180 reset\n"
    )


def test_summary_of_a_gateway_to_which_nothing_has_happened() -> None:
    nothing: JSONObject = {"queues": [], "drops": {"cut": 0}, "replies": {}}
    quiet: JSONObject = {**SUMMARY, "worker": {"pid": None, "restarts": 0}, **nothing}
    assert shown("summary", quiet) == (
        "nfqlb        1.2.3, rewrite datapath\n"
        "state        running, up for 3h12m\n"
        "worker       none, restarted never\n"
        "connections  1,234 of at most 1,000,000, 45,678 since the start\n"
        "sticky       3 of at most 1,000,000 entries\n"
        "dropped      no packets\n"
    )


def test_virtuals() -> None:
    assert shown("virtuals", [SHOP, ANY]) == (
        "VIRTUAL               STATE         CONN   TOTAL  SHARE  FAIR\n"
        "shop                  in-service   1,234  45,678\n"
        "  192.0.2.10:80/tcp, weighted-least-connections\n"
        "  web1:8080           in-service   1,000  40,000    81%   50%\n"
        "  web2:80             sticky-only    234   5,678    19%\n"
        "any                   in-service       0       0\n"
        "  [2001:db8::10]:*/tcp, round-robin for now, then maglev\n"
        "  web1                in-service       0       0\n"
        "  web3:8080 (backup)  failed           0       0\n"
    )


def test_virtuals_tell_what_has_passed_and_what_was_dropped() -> None:
    """What nobody has counted is not told of, and is no 0."""
    traffic: JSONObject = {"packets_in": 1, "bytes_in": 60, "packets_out": 12345, "bytes_out": 34_567_890}
    busy: JSONObject = {**SHOP, "traffic": traffic, "drops": {"malformed": 0, "no-server": 1200, "cut": 1}}
    assert shown("virtuals", [busy]).splitlines()[2:4] == [
        "  192.0.2.10:80/tcp, weighted-least-connections",
        "  in 60 B (1 packet), out 35 MB (12,345 packets)",
    ]
    assert "\n  dropped 1,200 no-server, 1 cut\n  web1:8080 " in shown("virtuals", [busy])
    quiet: JSONObject = {**SHOP, "traffic": None, "drops": {}}
    assert shown("virtuals", [quiet]) == shown("virtuals", [SHOP])


@pytest.mark.parametrize(
    ("evaluated", "differed", "says"),
    [(0, 0, "not asked yet"), (1, 0, "another server in 0.0% of 1 decision"),
     (3412, 421, "another server in 12.3% of 3,412 decisions")],
)  # fmt: skip
def test_virtuals_tell_what_a_shadow_would_have_done(evaluated: int, differed: int, says: str) -> None:
    shadow: JSONObject = {"scheduler": "fastest-response", "evaluated": evaluated, "differed": differed}
    lines = shown("virtuals", [{**SHOP, "shadow": shadow}, ANY]).splitlines()
    assert lines[2:4] == [
        "  192.0.2.10:80/tcp, weighted-least-connections",
        f"  shadow fastest-response: {says}",
    ]


def test_reals_where_all_is_well_show_no_column_that_says_nothing() -> None:
    assert shown("reals", [WEB1]) == (
        "REAL  ADDRESS   STATE       SINCE  WEIGHT   CONN   TOTAL\n"
        "web1  10.0.0.1  in-service  3m12s       1  1,000  40,000\n"
    )


def test_reals_show_what_there_is_to_say() -> None:
    assert shown("reals", [WEB1, WEB2]) == (
        "REAL  ADDRESS   STATE         SINCE  WEIGHT   CONN  LIMIT   TOTAL  UNANS  NOANSW  RESET    RESP\n"
        "web1  10.0.0.1  in-service    3m12s       1  1,000      -  40,000      0       0      0       -\n"
        "web2  10.0.0.2  max-capacity   5.0s     0.5    300    300   5,678      2       1      4  12.3ms\n"
        "\n"
        "web2  at its maximum of 300 connections\n"
        "web2  10.0.0.2 does not answer for its link address (neighbour failed)\n"
    )


def test_reals_without_a_route_say_so() -> None:
    """R037 (A36)."""
    assert shown("reals", [{**WEB1, "mac": None, "neighbour": "no route"}]).endswith(
        "\n\nweb1  no route to 10.0.0.1\n"
    )
    switched_off: JSONObject = {**WEB1, "state": "maintenance", "mac": None, "neighbour": "failed"}
    assert "does not answer" not in shown("reals", [switched_off])


def test_reals_that_have_failed_say_since_when_and_when_they_are_tested() -> None:
    """R182: `since_s` begins anew with every test, `failed_s` does not."""
    down: JSONObject = {
        **WEB1, "state": "failed", "reason": "the test connection was not answered",
        "since_s": 9.0, "failed_s": 616.0,
    }  # fmt: skip
    ways: list[tuple[JSON, str]] = [
        (4.2, ", to be tested in 4.2s\n"),
        (0.0, ", waits for a client to test it\n"),
        (None, "\n"),
    ]
    for test, says in ways:
        assert shown("reals", [{**down, "test_in_s": test}]).endswith(
            f"\nweb1  the test connection was not answered, down for 10m16s{says}"
        )


def test_reals_that_make_no_connection_and_have_not_failed_say_so() -> None:
    """R179: too few clients for that, or a single one beside others."""
    suspect: JSONObject = {**WEB1, "suspect": True, "in_a_row": {"connections": 12, "why": ["reset"]}}
    assert shown("reals", [suspect]).endswith("\n\nweb1  has refused 12 connections in a row\n")
    weighed: JSONObject = {**suspect, "reason": "weight 0: no new clients"}
    assert shown("reals", [weighed]).endswith(
        "\n\nweb1  weight 0: no new clients, has refused 12 connections in a row\n"
    )


def test_failures() -> None:
    """R181: the very connections that real servers could not make."""
    assert shown("failures", FAILURES) == (
        "REAL  STATE         AGO  CLIENT              VIRTUAL  WHY        WAITED\n"
        "web1  failed      1m15s  198.51.100.7:40000  shop     no-answer    3.0s\n"
        "web2  in-service  1h07m  [2001:db8::7]:443   shop     reset        0.0s\n"
    )


def test_summary_tells_what_the_worker_lost() -> None:
    queue: JSONObject = {"number": 0, "depth": 0, "dropped_full": 0, "dropped_socket": 0, "overruns": 3}
    work: JSONObject = {"packets": 2000, "busy_s": 0.0095}
    lossy: JSONObject = {
        **SUMMARY, "queues": [{**queue, "refused": 1, "unreadable": 1200, **work}], "journal": {"lost": 17},
        "followed": {"lost": 7, "overruns": 0, "forgotten": 2},
    }  # fmt: skip
    text = shown("summary", lossy)
    assert "queue 0      0 packets waiting, none dropped, 3 overruns, 1 refused, 1,200 unreadable, " in text
    assert ", 2,000 judged in 4.8us each\n" in text
    assert "journal      no room for 17 records: a new worker would not know them\n" in text
    assert "kernel       untold: 7 lost, 2 forgotten\n" in text


def test_connections() -> None:
    assert shown("connections", CONNECTIONS) == (
        "VIRTUAL  PROTO  CLIENT              REAL       STATE           AGE  IDLE\n"
        "shop     tcp    198.51.100.7:40000  web1:8080  established   3m12s  0.1s\n"
        "any      tcp    [2001:db8::7]:443   web2:80    syn-received   1.3s  1.3s\n"
    )


def test_decisions() -> None:
    assert shown("decisions", DECISIONS) == (
        "    WHEN  VIRTUAL  CLIENT               TO             BY         STICKY\n"
        "1.5s ago  shop     198.51.100.7:40000   web2:8080      scheduler  none\n"
        "1.5s ago  shop     [2001:db8::7]:40000  web2:8080      sticky     none\n"
        "1.5s ago  shop     198.51.100.7:40000   - (no-server)  none       none\n"
    )


def test_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert shown("events", EVENTS) == (
            "WHEN            LEVEL    KIND   WHAT\n"
            "03-05 06:40:01  info     order  web1: weight 1 -> 2 (ordered by user root (uid 0))\n"
            "03-05 06:40:00  warning  state  web2 failed: 3 in a row\n"
        )
    finally:
        monkeypatch.undo()
        time.tzset()


def test_sticky() -> None:
    assert shown("sticky", STICKY) == (
        "VIRTUAL       CLIENT        REAL    AGE  EXPIRES\n"
        "shop          198.51.100.7  web1    12s    4m48s\n"
        "group office  203.0.113.0   web2  2h01m    1d01h\n"
    )


@pytest.mark.parametrize(
    ("subject", "says"),
    [
        ("virtuals", "no virtual servers\n"),
        ("reals", "no real servers\n"),
        ("connections", "no connections\n"),
        ("sticky", "no sticky entries\n"),
        ("failures", "no failures\n"),
        ("decisions", "no decisions\n"),
        ("events", "no events\n"),
    ],
)
def test_an_empty_list_says_so_in_words(subject: str, says: str) -> None:
    assert shown(subject, [], 100) == says


def test_a_list_that_was_cut_says_so() -> None:
    assert shown("connections", CONNECTIONS, 2).endswith("\n(the first 2; --limit N shows more)\n")
    assert "first" not in shown("connections", CONNECTIONS, 3)


@pytest.mark.parametrize("subject", [subject for subject in DOCUMENTS if subject not in ("reals", "events")])
def test_the_usual_tables_fit_80_columns(subject: str) -> None:
    assert max(map(len, render(subject, DOCUMENTS[subject]))) <= 80


@pytest.mark.parametrize("subject", list(SUBJECTS))
def test_nothing_from_the_gateway_reaches_the_terminal_unescaped(subject: str) -> None:
    text = json.dumps(DOCUMENTS[subject])
    for word in ("web1", "web2", "shop", "established", "rewrite", "malformed", "round-robin", "maximum"):
        text = text.replace(word, word + "\\u001b[2J\\n\\u202e")
    lines = render(subject, json.loads(text))
    assert all(line.isprintable() for line in lines)
    assert "\\x1b[2J\\n\\u202e" in "".join(lines)


@pytest.mark.parametrize("subject", list(SUBJECTS))
def test_a_document_with_a_hole_is_an_error_and_no_traceback(subject: str) -> None:
    document = copy.deepcopy(DOCUMENTS[subject])
    whole = document[0] if isinstance(document, list) else document
    assert isinstance(whole, dict)
    needless = {
        "predicted_s",
        "virtuals",
        "response_s",
        "failed_s",
        "test_in_s",
        "in_a_row",
        "suspect",
        "port",
        "client_port",
        "real_port",
        "mac",
    }
    if subject == "events":
        needless |= {"name"}
    if subject == "decisions":  # most of one is for `explain`
        needless |= whole.keys() - {"age_s", "virtual", "client", "chosen", "by", "sticky"}
    for name in whole.keys() - needless:
        others: list[JSON] = [None, [], 7 if isinstance(whole[name], str) else "x"]
        for value in others:
            spoilt: JSONObject = {**whole, name: value}
            if value == whole[name] or (name, value) == ("queues", []) or (name, value) == ("servers", []):
                continue
            with pytest.raises(ControlError, match="cannot be shown"):
                render(subject, [spoilt] if isinstance(document, list) else spoilt)


@pytest.mark.parametrize("subject", list(SUBJECTS))
@pytest.mark.parametrize("document", [None, 7, "text", [7], [[]]])
def test_another_kind_of_document_is_an_error(subject: str, document: JSON) -> None:
    with pytest.raises(ControlError, match="cannot be shown"):
        render(subject, document)


@pytest.mark.parametrize("document", [*DOCUMENTS.values(), [], {}, None])
def test_json_is_the_document_itself(document: JSON) -> None:
    assert json.loads("\n".join(as_json(document))) == document


def test_json_lists_have_a_row_a_line_and_no_control_characters() -> None:
    lines = as_json([{"a": "\x1b"}, {"a": "\u202e"}])
    assert lines == ["[", '{"a": "\\u001b"},', '{"a": "\\u202e"}', "]"]
