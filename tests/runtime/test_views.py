"""The documents of the control protocol: exact names, units and values (README, control socket)."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from math import inf

import pytest

from nfqlb.core.explanation import Wanted
from nfqlb.core.snapshot import (
    ConnectionSnapshot,
    DecisionSnapshot,
    FailureSnapshot,
    LinkSnapshot,
    RealSnapshot,
    ShadowChoice,
    ShadowSnapshot,
    StickySnapshot,
    Totals,
    VirtualSnapshot,
)
from nfqlb.core.spec import Address
from nfqlb.netfilter.neighbours import Neighbour
from nfqlb.netfilter.queue_status import QueueStatus, Room
from nfqlb.runtime import summary as overview
from nfqlb.runtime import views
from nfqlb.runtime.decision_view import decision
from nfqlb.runtime.protocol import MAX_LIMIT, ControlError, JSONObject, Outcome, Request, encode
from tests.runtime.told import WEB2, a_decision

V4, V6 = ip_address("192.0.2.7"), ip_address("2001:db8::7")
TOTALS = Totals(
    connections=12,
    connections_total=345,
    connections_limit=1_000_000,
    sticky=3,
    sticky_limit=500,
    drops={"no-connection": 7, "malformed": 1},
    replies={"reset": 5},
)
VIRTUAL = VirtualSnapshot(
    name="shop",
    address=ip_address("192.0.2.10"),
    protocol="tcp",
    port=80,
    state="in-service",
    desired="least-connections",
    actual="round-robin",
    connections=5,
    total=40,
    servers=(
        LinkSnapshot("web1", 8080, 3, total=30, share=0.6, fair=1 / 3),
        LinkSnapshot("web2", None, 2, total=10, state="failed", share=0.4, backup=True),
    ),
    drops={"no-server": 2, "malformed": 1},
    shadow=ShadowSnapshot("maglev", 40, 10),
)
REAL = RealSnapshot(
    name="web1",
    address=ip_address("10.0.0.1"),
    state="in-service",
    reason="",
    since=3.00049,
    setting="in-service",
    weight=1.5,
    weight_configured=2,
    connections=3,
    total=20,
    max_connections=0,
    unanswered=1,
    ditched_no_answer=4,
    ditched_reset=2,
    response=0.0123456789,
    predicted=None,
    virtuals=("shop",),
    failed=9.0,
    test=0.0,
    run=9,
    whys=("reset",),
    suspect=True,
)


def a_connection(client: str = "198.51.100.7", port: int = 40000) -> ConnectionSnapshot:
    return ConnectionSnapshot(
        virtual="shop",
        protocol="tcp",
        client=ip_address(client),
        client_port=port,
        real="web1",
        real_port=8080,
        state="established",
        age=12.3456,
        idle=-0.0001,
    )


def an_entry(grouped: bool = False) -> StickySnapshot:
    return StickySnapshot("shop", grouped, ip_address("198.51.100.0"), "web1", 1.0, 59.0)


class Seen:
    """A director as the views see it, that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: dict[str, object] = {}
        self.made = 0

    def totals(self) -> Totals:
        return TOTALS

    def virtual_names(self) -> list[str]:
        return [VIRTUAL.name]

    def real_names(self) -> list[str]:
        return [REAL.name]

    def virtuals(self, now: float) -> Sequence[VirtualSnapshot]:
        return [VIRTUAL]

    def reals(self, now: float) -> Sequence[RealSnapshot]:
        return [REAL]

    def connections(
        self, now: float, *, limit: int, client: Address | None, virtual: str | None, real: str | None
    ) -> Sequence[ConnectionSnapshot]:
        self.asked = {"now": now, "limit": limit, "client": client, "virtual": virtual}
        return [a_connection()]

    def failures(self, now: float, *, limit: int, real: str | None) -> Sequence[FailureSnapshot]:
        self.asked = {"now": now, "limit": limit, "real": real}
        client = ip_address("198.51.100.7")
        return [FailureSnapshot("web1", "failed", 75.0, client, 40000, "shop", "no-answer", 3.0204)]

    def decisions(self, now: float, *, limit: int, wanted: Wanted) -> Sequence[DecisionSnapshot]:
        self.asked = {"now": now, "limit": limit, "wanted": wanted}
        return [a_decision()]

    def sticky(self, now: float, client: Address | None) -> Iterator[StickySnapshot]:
        self.asked = {"client": client}
        while True:
            self.made += 1
            yield an_entry()


def answer(cmd: str, **args: object) -> list[JSONObject]:
    """The rows that the worker answers with."""
    result = views.answer(Seen(), cmd, json.loads(json.dumps(args)), 9.0)
    assert isinstance(result, Iterator)
    return list(result)


def test_summary_is_made_of_what_worker_and_supervisor_know() -> None:
    losses = overview.Losses(
        packets={0: 1000, 1: 7}, busy_s={0: 0.0123456789, 1: 0.5}, overruns={0: 7, 1: 9}, unreadable={0: 1},
        unkept=4, stumbles=6,
    )  # fmt: skip
    worker = overview.counts(TOTALS, losses)
    gateway = overview.GatewayStatus(
        version="1.2.3",
        datapath="rewrite",
        state="running",
        uptime=61.23456,
        worker_pid=4711,
        worker_restarts=2,
        queues=[QueueStatus(0, 99, 5, 1, 2, 1000)],
        roles={0: "new", 1: "established"},
        rooms={0: Room(1024, 2_000_000, 4608)},
        stumbles=1,
    )
    document = overview.summary(json.loads(encode(worker)), gateway)
    assert document == {
        "version": "1.2.3",
        "datapath": "rewrite",
        "state": "running",
        "uptime_s": 61.235,
        "worker": {"pid": 4711, "restarts": 2},
        "connections": {"now": 12, "total": 345, "limit": 1_000_000},
        "sticky": {"now": 3, "limit": 500},
        "queues": [
            {
                "number": 0,
                "role": "new",
                "depth": 5,
                "limit": 1024,
                "socket_bytes": 4608,
                "socket_limit": 2_000_000,
                "dropped_full": 1,
                "dropped_socket": 2,
                "packets": 1000,
                "busy_s": 0.012346,
                "overruns": 7,
                "refused": 0,
                "unreadable": 1,
            }
        ],
        "journal": {"lost": 4},
        "defects": {"worker": 6, "supervisor": 1},
        "followed": {},
        "evicted": {"connections": 0, "sticky": 0},
        "audit": {"drift": 0},
        "drops": {"malformed": 1, "no-connection": 7},
        "replies": {"reset": 5},
    }


def test_reals() -> None:
    assert answer("reals") == [
        {
            "name": "web1",
            "address": "10.0.0.1",
            "state": "in-service",
            "reason": "",
            "since_s": 3.0,
            "set": "in-service",
            "weight": 1.5,
            "weight_configured": 2,
            "connections": 3,
            "total": 20,
            "max_connections": 0,
            "unanswered": 1,
            "ditched": {"no_answer": 4, "reset": 2},
            "response_s": 0.012346,
            "predicted_s": None,
            "virtuals": ["shop"],
            "failed_s": 9.0,
            "test_in_s": 0.0,
            "in_a_row": {"connections": 9, "why": ["reset"]},
            "suspect": True,
        }
    ]


def test_virtuals() -> None:
    assert answer("virtuals") == [
        {
            "name": "shop",
            "address": "192.0.2.10",
            "protocol": "tcp",
            "port": 80,
            "state": "in-service",
            "scheduler": {"desired": "least-connections", "actual": "round-robin"},
            "connections": 5,
            "total": 40,
            "drops": {"malformed": 1, "no-server": 2},
            "servers": [
                {
                    "real": "web1",
                    "port": 8080,
                    "connections": 3,
                    "total": 30,
                    "state": "in-service",
                    "share": 0.6,
                    "fair_share": 0.3333,
                    "backup": False,
                },
                {
                    "real": "web2",
                    "port": None,
                    "connections": 2,
                    "total": 10,
                    "state": "failed",
                    "share": 0.4,
                    "fair_share": None,
                    "backup": True,
                },
            ],
            "shadow": {"scheduler": "maglev", "evaluated": 40, "differed": 10},
            "half_open": 0,
            "flood": False,
            "evicted": {"half_open": 0},
        }
    ]
    assert views.virtual(VIRTUAL._replace(shadow=None))["shadow"] is None


def test_failures() -> None:
    """R181: each server's evidence, a row a connection."""
    assert answer("failures") == [
        {
            "real": "web1",
            "state": "failed",
            "ago_s": 75.0,
            "client": "198.51.100.7",
            "client_port": 40000,
            "virtual": "shop",
            "why": "no-answer",
            "waited_s": 3.02,
        }
    ]


def test_reals_get_what_the_kernel_knows_of_their_links() -> None:
    """R037 (A36): a MAC and a state; what is not known is said to be unknown."""
    (row,) = answer("reals")
    known = {"10.0.0.1": Neighbour("02:00:00:00:00:01", "reachable")}
    assert views.with_neighbours([row], known) == [
        {**row, "mac": "02:00:00:00:00:01", "neighbour": "reachable"}
    ]
    assert views.with_neighbours([row], {}) == [{**row, "mac": None, "neighbour": "unknown"}]


def test_connections() -> None:
    assert answer("connections") == [
        {
            "virtual": "shop",
            "protocol": "tcp",
            "client": "198.51.100.7",
            "client_port": 40000,
            "real": "web1",
            "real_port": 8080,
            "state": "established",
            "age_s": 12.346,
            "idle_s": 0.0,
        }
    ]


def test_sticky_entries_name_a_virtual_server_or_a_group() -> None:
    row: JSONObject = {"client": "198.51.100.0", "real": "web1", "age_s": 1.0, "expires_s": 59.0}
    assert views.sticky_entry(an_entry()) == {"virtual": "shop", **row}
    assert views.sticky_entry(an_entry(grouped=True)) == {"group": "shop", **row}


def test_only_so_many_sticky_entries_are_made_as_are_asked_for() -> None:
    director = Seen()
    result = views.answer(director, "sticky", {"limit": 3}, 0.0)
    assert isinstance(result, Iterator)
    assert len(list(result)) == 3
    assert director.made == 3
    assert len(answer("sticky")) == MAX_LIMIT


@pytest.mark.parametrize(
    ("args", "asked"),
    [
        ({}, {"limit": 100, "client": None, "virtual": None}),
        ({"limit": None, "client": None, "virtual": None}, {"limit": 100, "client": None, "virtual": None}),
        ({"limit": 1}, {"limit": 1, "client": None, "virtual": None}),
        ({"limit": MAX_LIMIT}, {"limit": MAX_LIMIT, "client": None, "virtual": None}),
        ({"client": "2001:db8::7"}, {"limit": 100, "client": ip_address("2001:db8::7"), "virtual": None}),
        ({"virtual": "shop"}, {"limit": 100, "client": None, "virtual": "shop"}),
    ],
)
def test_the_director_is_asked_for_no_more_than_the_operator_wants(
    args: JSONObject, asked: dict[str, object]
) -> None:
    director = Seen()
    views.answer(director, "connections", args, 9.0)
    assert director.asked == {"now": 9.0, **asked}


@pytest.mark.parametrize(
    ("cmd", "args", "says"),
    [
        ("connections", {"limit": 0}, "limit: 0 is not between 1 and 10000"),
        (
            "connections",
            {"limit": MAX_LIMIT + 1},
            "limit: 10001 is not between 1 and 10000; client, virtual and real",
        ),
        ("connections", {"limit": True}, "limit: True is not a whole number"),
        ("connections", {"limit": "5"}, "limit: '5' is not a whole number"),
        ("connections", {"limit": 1.5}, "limit: 1.5 is not a whole number"),
        ("connections", {"client": "10.0.0.300"}, "client: '10.0.0.300' is not an IP address; one such as"),
        ("connections", {"client": 7}, "client: 7 is not an IP address"),
        ("connections", {"virtual": "shp"}, "there is no virtual server 'shp'; did you mean 'shop'?"),
        ("connections", {"virtual": "mail"}, "there is no virtual server 'mail'; there is shop"),
        ("connections", {"virtual": [1]}, "there is no virtual server [1]"),
        ("connections", {"clint": "10.0.0.1"}, "connections has no argument 'clint'; did you mean 'client'?"),
        ("reals", {"limit": 1}, "reals has no argument 'limit'"),
        ("sticky", {"limit": -1}, "limit: -1 is not between"),
        ("failures", {"real": "web"}, "there is no real server 'web'; did you mean 'web1'?"),
        ("failures", {"real": [1]}, "there is no real server [1]"),
        ("decisions", {"limit": 1001}, "limit: 1001 is not between 1 and 1000"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_by_name(cmd: str, args: JSONObject, says: str) -> None:
    with pytest.raises(ControlError) as refused:
        views.answer(Seen(), cmd, args, 0.0)
    assert refused.value.code == "bad-argument"
    assert says in str(refused.value)


def test_an_unknown_command_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ControlError, match="there is no command 'sumary'; did you mean 'summary'") as refused:
        views.answer(Seen(), "sumary", {}, 0.0)
    assert refused.value.code == "unknown-command"
    with pytest.raises(
        ControlError, match="there is summary, virtuals, reals, connections, sticky, failures, decisions"
    ):
        views.answer(Seen(), "frobnicate", {}, 0.0)


def test_decisions() -> None:
    (row,) = answer("decisions")
    at = row.pop("at")
    assert isinstance(at, float)
    assert abs(at + 1.5 - time.time()) < 60
    candidates = row.pop("candidates")
    assert row == {
        "age_s": 1.5,
        "virtual": "shop",
        "protocol": "tcp",
        "address": "192.0.2.10",
        "port": 80,
        "client": "198.51.100.7",
        "client_port": 40000,
        "chosen": "web2",
        "chosen_port": 8080,
        "refused": None,
        "unanswered_by": None,
        "by": "scheduler",
        "scheduler": "weighted-least-connections",
        "scheduler_note": [],
        "ageing": 4.0,
        "predict": "now",
        "set_aside": None,
        "last_used": "web1",
        "tie_break": False,
        "sticky": {"said": "none", "real": None, "reason": None, "written": "web2"},
        "shadow": None,
        "others": {},
        "doubted": {},
        "ditched": None,
    }
    assert isinstance(candidates, list)
    assert candidates[0] == {
        "real": "web2",
        "port": 8080,
        "backup_for": None,
        "state": "in-service",
        "state_age_s": 60.0,
        "weight": 2,
        "connections": 5,
        "max_connections": 0,
        "unanswered": 1,
        "syn_limit": 5,
        "response_s": 0.03,
        "ratio_s": 0.01,
        "response_age_s": 2.0,
        "predicted_s": -0.45,
        "indicium": 2.5,
        "reason": "chosen",
    }


def test_a_decision_with_a_shadow() -> None:
    """What it would have taken stands in the record."""
    shadowed = a_decision(shadow=ShadowChoice("maglev", "web1", 80))
    assert decision(shadowed, 0.0)["shadow"] == {"scheduler": "maglev", "real": "web1", "port": 80}


def test_an_indicium_that_is_no_number_in_json_is_null() -> None:
    endless = a_decision(candidates=(replace(WEB2, indicium=-inf),))
    candidates = decision(endless, 0.0)["candidates"]
    assert isinstance(candidates, list)
    assert isinstance(candidates[0], dict)
    assert candidates[0]["indicium"] is None


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ({}, Wanted()),
        ({"client": "2001:db8::7", "virtual": "shop"}, Wanted(client=V6, virtual="shop")),
        ({"connection": "192.0.2.7:40000"}, Wanted(client=V4, client_port=40000)),
        ({"connection": "192.0.2.7:40000", "client": "192.0.2.7"}, Wanted(client=V4, client_port=40000)),
        (
            {"connection": "[2001:db8::7]:443-[2001:db8::7]:80"},
            Wanted(client=V6, client_port=443, address=V6, port=80),
        ),
    ],
)
def test_decisions_are_asked_for_by_whatever_names_them(args: JSONObject, wanted: Wanted) -> None:
    director = Seen()
    views.answer(director, "decisions", args, 9.0)
    assert director.asked == {"now": 9.0, "limit": 100, "wanted": wanted}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("web:80", "'web:80' is not an address and a port"),
        ("192.0.2.7", "'192.0.2.7' is not an address and a port"),
        ("192.0.2.7:x", "'192.0.2.7:x' is not an address and a port"),
        ("2001:db8::7:443", "'2001:db8::7:443' is not an address and a port"),
        ("[192.0.2.7]:80", "'[192.0.2.7]:80' is not an address and a port"),
        ("192.0.2.7:80-shop", "'shop' is not an address and a port"),
        ("192.0.2.8:80", "'192.0.2.8:80' is not one of the client 192.0.2.7"),
    ],
)
def test_what_is_no_connection_is_refused(text: str, says: str) -> None:
    with pytest.raises(ControlError, match="CLIENT:PORT") as refused:
        views.answer(Seen(), "decisions", {"connection": text, "client": "192.0.2.7"}, 0.0)
    assert refused.value.code == "bad-argument"
    assert says in refused.value.message


def test_a_clients_sticky_entries_are_asked_for_by_its_address() -> None:
    director = Seen()
    views.answer(director, "sticky", {"client": "192.0.2.7", "limit": 1}, 0.0)
    assert director.asked == {"client": V4}


class Defective(Seen):
    def totals(self) -> Totals:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("director", "cmd", "check"),
    [
        (Seen, "summary", lambda outcome: isinstance(outcome, dict)),
        (Seen, "nonsense", lambda outcome: outcome.code == "unknown-command"),
        (Defective, "summary", lambda outcome: outcome.code == "internal-error"),
    ],
)
def test_every_request_is_answered_come_what_may(
    director: Callable[[], Seen],
    cmd: str,
    check: Callable[[Outcome], bool],
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes: list[Outcome] = []
    request = Request(1, cmd, {}, None, lambda _request, outcome: outcomes.append(outcome))
    with caplog.at_level(logging.ERROR):
        views.respond(request, lambda cmd, args: views.answer(director(), cmd, args, 0.0))
    assert len(outcomes) == 1
    assert check(outcomes[0])
    assert bool(caplog.records) == (director is Defective)
