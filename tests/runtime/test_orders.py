"""Commands that change something: what they do, what is said of it, and what is refused in which words."""

import logging
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from nfqlb.core.admission import ServerState
from nfqlb.core.chronicle import Change, Kind
from nfqlb.core.health import Ditch, Evidence
from nfqlb.runtime import news, orders
from nfqlb.runtime.protocol import ControlError, JSONObject
from tests.core.scenario import Scenario, real, virtual


def shop() -> Scenario:
    web = replace(virtual("shop", "ab", sticky=60.0), sticky_group="")
    reals = [replace(real(name), failure_threshold=1, failure_clients=1, max_connections=3) for name in "ab"]
    return Scenario([web, virtual("tls", "ab", port=443)], reals)


def said(lab: Scenario, cmd: str, **args: Any) -> list[str]:
    """What is said of an order."""
    result = orders.answer(lab.director, cmd, args, lab.now)
    assert isinstance(result, dict)
    lines = result["said"]
    assert isinstance(lines, list)
    return [str(line) for line in lines]


def test_a_real_server_s_state() -> None:
    """R039, R186: from what it was to what it is, and how many connections go on."""
    lab = shop()
    lab.connect()
    assert said(lab, "set-real", name="a", state="sticky-only") == [
        "a: in-service -> sticky-only (1 connection)"
    ]
    assert said(lab, "set-real", name="a", state="sticky-only") == ["a: sticky-only already (1 connection)"]
    assert said(lab, "set-real", name="b", state="out-of-service")[:1] == [
        "b: in-service -> out-of-service (0 connections)"
    ]
    assert said(lab, "set-real", name="a", state="out-of-service")[:1] == [
        "a: sticky-only -> out-of-service (1 connection)"
    ]
    assert said(lab, "set-real", name="a", state="in-service") == [
        "a: out-of-service -> in-service (1 connection); 1 sticky entry cleared"
    ]


def test_to_drain_is_to_set_sticky_only() -> None:
    """R039: the word for it is as good as the state's name, also in a batch."""
    lab = shop()
    assert said(lab, "set-real", name="a", state="drain") == ["a: in-service -> sticky-only (0 connections)"]
    drain = {"cmd": "set-real", "args": {"name": "a", "state": "drain"}}
    assert said(lab, "batch", commands=[drain]) == ["a: sticky-only already (0 connections)"]


NOBODY = "has no server left that takes new clients: they are refused"


@pytest.mark.parametrize("order", [{"state": "drain"}, {"state": "maintenance"}, {"weight": 0}])
def test_taking_the_last_server_out_is_done_and_warned_of(order: JSONObject) -> None:
    """R039, R144: of each virtual server that nobody is left for, and of no other."""
    lab = Scenario([virtual("shop", "ab"), virtual("tls", "bc", port=443)], [real(name) for name in "abc"])
    assert len(said(lab, "set-real", name="a", **order)) == 1
    assert said(lab, "set-real", name="b", **order)[1:] == [f"warning: shop {NOBODY}"]
    assert said(lab, "set-real", name="c", **order)[1:] == [f"warning: tls {NOBODY}"]
    assert not any(real.admits_new for real in lab.director.real_servers.values())
    assert len(said(lab, "set-real", name="b", state="in-service", weight=1)) == 2


def test_who_has_failed_is_nobody_left() -> None:
    lab = shop()
    lab.dial("tls").refusal()
    assert said(lab, "set-real", name="b", state="drain")[1:] == [
        f"warning: shop {NOBODY}",
        f"warning: tls {NOBODY}",
    ]


def test_somebody_is_left_where_a_backup_is_or_one_that_is_only_full() -> None:
    web = replace(virtual("shop", "a"), backup="b")
    full = virtual("tls", "ac", port=443)
    lab = Scenario([web, full], [real("a"), real("b"), real("c", max_connections=1)])
    lab.connect("tls")
    lab.connect("tls")
    assert lab.director.real_servers["c"].full
    assert len(said(lab, "set-real", name="a", state="drain")) == 1
    assert said(lab, "set-real", name="b", state="drain")[1:] == [f"warning: shop {NOBODY}"]


def test_a_virtual_server_that_takes_nothing_anyway_is_not_warned_of() -> None:
    lab = Scenario([virtual("shop", "a")], [real("a")])
    said(lab, "set-virtual", name="shop", state="out-of-service")
    assert len(said(lab, "set-real", name="a", state="drain")) == 1
    assert said(lab, "set-virtual", name="shop", state="in-service")[1:] == [f"warning: shop {NOBODY}"]


def test_a_batch_is_warned_of_for_what_it_leaves_behind() -> None:
    """One server for another: nobody is without in the end. Else it is said once, with the last cause."""
    lab = Scenario([virtual("shop", "ab")], [real("a"), real("b")])

    def order(name: str, state: str) -> JSONObject:
        return {"cmd": "set-real", "args": {"name": name, "state": state}}

    said(lab, "set-real", name="b", state="drain")
    assert len(said(lab, "batch", commands=[order("a", "drain"), order("b", "in-service")])) == 2
    result = orders.answer(lab.director, "batch", {"commands": [order(name, "drain") for name in "ab"]}, 0.0)
    assert isinstance(result, dict)
    warning = f"warning: shop {NOBODY}"
    assert result["said"] == [
        "a: sticky-only already (0 connections)", "b: in-service -> sticky-only (0 connections)", warning,
    ]  # fmt: skip
    assert [warning in each["result"]["said"] for each in result["results"]] == [False, True]  # type: ignore


def test_what_is_set_is_not_always_what_is() -> None:
    """R179, R184: it may have failed, or be full."""
    lab = shop()
    lab.dial("tls").refusal()
    assert said(lab, "set-real", name="a", state="sticky-only") == [
        "a: sticky-only is set (0 connections); it is failed: 1 connection could not be made"
    ]
    said(lab, "set-real", name="a", state="maintenance")
    assert said(lab, "set-real", name="a", state="in-service") == [
        "a: maintenance -> in-service (0 connections)"
    ]
    for _ in range(6):
        lab.connect("tls")
    said(lab, "set-real", name="b", state="maintenance")
    assert said(lab, "set-real", name="b", state="in-service") == [
        "b: maintenance -> max-capacity (3 connections); it is max-capacity: at its maximum of 3 connections"
    ]


def test_a_weight_alone_and_with_a_state() -> None:
    """R048 (A14)."""
    lab = shop()
    assert said(lab, "set-real", name="a", weight=2.5) == ["a: weight 1 -> 2.5"]
    assert said(lab, "set-real", name="a", weight=2.5) == ["a: weight 2.5 already"]
    assert said(lab, "set-real", name="a", state="maintenance", weight=0) == [
        "a: in-service -> maintenance (0 connections)",
        "a: weight 2.5 -> 0",
    ]
    result = orders.answer(lab.director, "set-real", {"name": "a", "weight": 1}, lab.now)
    assert isinstance(result, dict)
    assert {name: result[name] for name in ("name", "state", "set", "connections")} == {
        "name": "a", "state": "maintenance", "set": "maintenance", "connections": 0,
    }  # fmt: skip


def test_a_virtual_server_s_state() -> None:
    """R025 (A26)."""
    lab = shop()
    lab.connect()
    assert said(lab, "set-virtual", name="shop", state="out-of-service") == [
        "shop: in-service -> out-of-service (1 connection)"
    ]
    for name in "ab":
        lab.director.operation.set_real(name, setting=ServerState.MAINTENANCE, now=lab.now)
    assert said(lab, "set-virtual", name="shop", state="in-service") == [
        "shop: out-of-service -> in-service (1 connection)",
        f"warning: shop {NOBODY}",
    ]


def test_sticky_entries() -> None:
    """R066: how many."""
    lab = shop()
    for number in range(3):
        lab.connect(client=f"198.51.100.{number}")
    assert said(lab, "clear-sticky", client="198.51.100.1") == ["1 sticky entry of 198.51.100.1 cleared"]
    assert said(lab, "clear-sticky", virtual="shop") == ["2 sticky entries for shop cleared"]
    assert said(lab, "clear-sticky", virtual=None, client=None) == ["0 sticky entries cleared"]


STATES = (
    "states that can be set of a real server: "
    "in-service, sticky-only (or drain), maintenance, out-of-service"
)


@pytest.mark.parametrize(
    ("cmd", "args", "says"),
    [
        (
            "set-real",
            {"name": "aa", "state": "maintenance"},
            "no real server 'aa'; did you mean 'a'?",
        ),
        ("set-real", {"state": "maintenance"}, "there is no real server None; there is a, b"),
        ("set-real", {"name": ["a"], "state": "maintenance"}, "there is no real server ['a']"),
        (
            "set-real",
            {"name": "a", "state": "maintenence"},
            f"did you mean 'maintenance'? {STATES}",
        ),
        ("set-real", {"name": "a", "state": "drained"}, f"no state; did you mean 'drain'? {STATES}"),
        ("set-real", {"name": "a", "state": "draining"}, "found out, not set; did you mean 'drain'?"),
        ("set-virtual", {"name": "shop", "state": "drain"}, "'drain' is no state of a virtual server"),
        ("set-real", {"name": "a", "state": "failed"}, f"failed is found out, not set; {STATES}"),
        ("set-real", {"name": "a", "state": "max-capacity"}, "max-capacity is found out, not set"),
        ("set-real", {"name": "a", "state": 7}, "7 is no state"),
        ("set-real", {"name": "a"}, "nothing to set; a state (in-service, sticky-only, "),
        (
            "set-real",
            {"name": "a", "weight": -1},
            "weight: -1 is not a weight (allowed: 0, or",
        ),
        ("set-real", {"name": "a", "weight": 0.0001}, "is not a weight"),
        ("set-real", {"name": "a", "weight": 2_000_000}, "is not a weight"),
        ("set-real", {"name": "a", "weight": -1, "state": "maintenance"}, "is not a weight"),
        ("set-real", {"name": "a", "weight": 9, "state": "dead"}, "'dead' is no state"),
        ("set-real", {"name": "a", "weight": True}, "weight: true is "),
        ("set-real", {"name": "a", "weight": "3"}, "without the quotes: 3"),
        ("set-real", {"name": "a", "wieght": 3}, "no argument 'wieght'; did you mean 'weight'?"),
        (
            "set-virtual",
            {"name": "shop"},
            "None is no state; states that can be set of",
        ),
        (
            "set-virtual",
            {"name": "shop", "state": "maintenance"},
            "can be set of a virtual server: in-service, out",
        ),
        (
            "set-virtual",
            {"name": "shp", "state": "in-service"},
            "server 'shp'; did you mean 'shop'?",
        ),
        ("clear-sticky", {"virtual": "tls"}, "tls has no stickiness"),
        ("clear-sticky", {"virtual": "shp"}, "there is no virtual server 'shp'; did you mean 'shop'?"),
        ("clear-sticky", {"client": "10.0.0.300"}, "client: '10.0.0.300' is not an IP address"),
        ("clear-sticky", {"client": 7}, "client: 7 is not an IP address"),
    ],
)
def test_refused_in_the_operator_s_words(cmd: str, args: JSONObject, says: str) -> None:
    """R039, R025: and nothing was changed, not even by the half of it that was right."""
    lab = shop()
    before = lab.director.reals(lab.now), lab.director.virtuals(lab.now)
    with pytest.raises(ControlError) as refused:
        orders.answer(
            lab.director, cmd, {"weight": 9, **args} if cmd == "set-real" and "state" in args else args, 0
        )
    assert refused.value.code == "bad-argument"
    assert says in str(refused.value)
    assert (lab.director.reals(lab.now), lab.director.virtuals(lab.now)) == before


def test_reading_commands_are_answered_as_well() -> None:
    lab = shop()
    assert isinstance(orders.answer(lab.director, "summary", {}, 0.0), dict)
    with pytest.raises(ControlError, match="there is no command 'set-rael'"):
        orders.answer(lab.director, "set-rael", {}, 0.0)


# --- what the log is told

CLIENTS = [ip_address(f"192.0.2.{number}").packed for number in (7, 8, 9, 7)]
EVIDENCE = tuple(Evidence(client, 40000, "shop", 100.0, 103.04, Ditch.NO_ANSWER) for client in CLIENTS)
IN, OUT, FAILED, TESTING = (
    ServerState.IN_SERVICE, ServerState.OUT_OF_SERVICE, ServerState.FAILED, ServerState.TESTING,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            Change(Kind.REAL, "web1", IN, FAILED, "4 in a row could not be made", 1.0, evidence=EVIDENCE),
            (
                logging.WARNING,
                "web1 failed: 4 in a row could not be made, from 3 clients; last: 192.0.2.7 to "
                "shop, no answer after 3.0 s",
            ),
        ),
        (
            Change(
                Kind.REAL, "web1", IN, FAILED, "1 in a row could not be made", 1.0,
                evidence=(replace(EVIDENCE[1], why=Ditch.RESET, at=100.01),),
            ),
            (
                logging.WARNING,
                "web1 failed: 1 in a row could not be made, from 1 client; last: 192.0.2.8 to shop, "
                "refused after 0.0 s",
            ),
        ),
        (
            Change(Kind.REAL, "web1", TESTING, IN, "", 1.0, lasted=62.4),
            (logging.INFO, "web1 is back after 62 s: it answered a connection"),
        ),
        (
            Change(Kind.REAL, "web1", IN, FAILED, "40 could not be made", 1.0, evidence=EVIDENCE * 8),
            (
                logging.WARNING,
                "web1 failed: 40 could not be made, from at least 3 clients; last: 192.0.2.7 to shop, no "
                "answer after 3.0 s",
            ),
        ),
        (Change(Kind.REAL, "web1", FAILED, TESTING, "", 1.0), None),
        (Change(Kind.REAL, "web1", TESTING, FAILED, "the test connection failed: reset", 1.0), None),
        (Change(Kind.REAL, "web1", FAILED, IN, "", 1.0, by_operator=True), None),
        (Change(Kind.REAL, "web1", IN, OUT, "", 1.0, by_operator=True), None),
        (
            Change(Kind.VIRTUAL, "shop", IN, FAILED, "no server can be chosen", 1.0),
            (logging.WARNING, "shop has failed: no server can be chosen"),
        ),
        (
            Change(Kind.VIRTUAL, "shop", FAILED, IN, "", 1.0),
            (logging.INFO, "shop is back: new connections are taken again"),
        ),
    ],
)  # fmt: skip
def test_news(change: Change, line: tuple[int, str] | None) -> None:
    """R181: each failure and each return, and nothing else."""
    assert news.told(change) == line


def batch(*commands: Any) -> JSONObject:
    return {"commands": [{"cmd": cmd, "args": args} for cmd, args in commands]}


def test_a_batch_is_carried_out_in_its_order() -> None:
    """R039, R048, R186: what the single orders say, and each result."""
    lab = shop()
    result: Any = orders.answer(
        lab.director,
        "batch",
        batch(
            ("set-real", {"name": "a", "state": "maintenance"}),
            ("set-real", {"name": "b", "weight": 3}),
            ("set-virtual", {"name": "tls", "state": "out-of-service"}),
            ("clear-sticky", {}),
            ("set-real", {"name": "a", "state": "in-service"}),
        ),
        lab.now,
    )
    assert result["said"] == [
        "a: in-service -> maintenance (0 connections)",
        "b: weight 1 -> 3",
        "tls: in-service -> out-of-service (0 connections)",
        "0 sticky entries cleared",
        "a: maintenance -> in-service (0 connections)",
    ]
    assert [each["cmd"] for each in result["results"]] == [
        "set-real", "set-real", "set-virtual", "clear-sticky", "set-real",
    ]  # fmt: skip
    assert result["results"][1]["result"]["said"] == ["b: weight 1 -> 3"]


@pytest.mark.parametrize(
    ("cmd", "args", "says"),
    [
        ("set-real", {"name": "c", "state": "maintenance"}, "there is no real server 'c'"),
        ("set-real", {"name": "b", "state": "failed"}, "failed is found out, not set"),
        ("set-real", {"name": "b", "weight": -1}, "weight:"),
        ("set-real", {"name": "b"}, "nothing to set"),
        ("set-real", {"name": "b", "colour": "red"}, "set-real has no argument 'colour'"),
        ("set-real", None, "args must be an object"),
        ("set-virtual", {"name": "tls", "state": "maintenance"}, "no state of a virtual server|of a virtual"),
        ("clear-sticky", {"virtual": "tls"}, "tls has no stickiness"),
        ("clear-sticky", {"client": "here"}, "is not an IP address"),
        ("reals", {}, "'reals' is no order"),
        ("batch", {}, "'batch' is no order"),
        (None, {}, "None is no order"),
    ],
)
def test_a_batch_with_one_that_is_wrong_changes_nothing(cmd: Any, args: Any, says: str) -> None:
    lab = shop()
    good = ("set-real", {"name": "a", "state": "maintenance"})
    with pytest.raises(ControlError, match=says) as caught:
        orders.answer(lab.director, "batch", batch(good, good, (cmd, args), good), lab.now)
    assert caught.value.message.startswith("command 3: ")
    assert caught.value.message.endswith("; nothing was changed")
    assert {real.state.shown for real in lab.director.real_servers.values()} == {"in-service"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({}, "a list of at least one"),
        ({"commands": []}, "a list of at least one"),
        ({"commands": "set-real"}, "a list of at least one"),
        ({"commands": [1]}, "command 1: None is no order"),
        ({"commands": [{}] * 1001}, "1001 are more than 1000"),
        ({"command": []}, "batch has no argument 'command'"),
    ],
)
def test_what_is_no_batch(args: JSONObject, says: str) -> None:
    with pytest.raises(ControlError, match=says):
        orders.answer(shop().director, "batch", args, 0.0)
