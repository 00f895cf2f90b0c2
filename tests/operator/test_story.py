"""`nfqlb explain`: a decision in words, by its exact text."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from nfqlb.core.explanation import Reason
from nfqlb.core.snapshot import CandidateSnapshot, ShadowChoice, StickyAnswer
from nfqlb.core.verdict import Drop
from nfqlb.operator import story
from nfqlb.operator.story import moment
from nfqlb.runtime.decision_view import decision
from nfqlb.runtime.protocol import JSON, ControlError
from tests.runtime.told import WEB1, WEB2, WEB3, a_decision

NOW = 1_764_072_187.0  # 2025-11-25 12:03:07 UTC


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def told(*, now: float = NOW, **changes: Any) -> str:
    """What is said of a decision made at NOW."""
    row = decision(a_decision(**{"age": 0.0, **changes}), NOW)
    return "\n".join(story.story([row], now=now)) + "\n"


def said(**changes: Any) -> str:
    """What is between the first line and the servers: sticky entry and scheme."""
    lines = told(**changes).splitlines()[1:]
    return " ".join(line.strip() for line in lines if not line.startswith("   "))


def line(candidate: CandidateSnapshot, **changes: Any) -> str:
    """The line of one candidate."""
    return " ".join(told(candidates=(WEB2, candidate), **changes).splitlines()[-1].split())


def test_a_shadow_is_told_of() -> None:
    """Where it would have taken another server, which; else that it agrees."""
    assert said(shadow=ShadowChoice("maglev", "web1", 80)).endswith(
        "In shadow, maglev would have taken web1:80."
    )
    assert said(shadow=ShadowChoice("maglev", "web2", 8080)).endswith(
        "In shadow, maglev would have taken the same."
    )
    assert "shadow" not in said()


def test_a_comparison() -> None:
    assert told() == (
        "12:03:07  198.51.100.7:40000 to shop went to web2:8080.\n"
        "  No sticky entry. From now on its entry says web2. weighted-least-connections\n"
        "  compared 2 servers.\n"
        "    web2   5 connections / weight 2 = 2.5   chosen\n"
        "    web1   3 connections / weight 1 = 3     worse\n"
        "    web3   had failed 2m00s before          passed over\n"
    )


@pytest.mark.parametrize(
    ("ditched", "how"),
    [("reset", ", which refused it."), ("no-answer", ", which did not answer."), (None, ".")],
)
def test_a_server_that_did_not_take_the_connection(ditched: str | None, how: str) -> None:
    """As far as that is known by now."""
    assert told(ditched=ditched).splitlines()[0] == (
        f"12:03:07  198.51.100.7:40000 to shop went to web2:8080{how}"
    )


def test_a_client_that_its_server_had_refused() -> None:
    """Its entry was not followed; the server is passed over for that client."""
    sticky = StickyAnswer("overridden", "web1", "refused-before", "web2")
    text = said(sticky=sticky, doubted={"web1": "reset"})
    assert text.startswith(
        "Its sticky entry said web1, which had refused this client. From now on it says web2."
    )
    refusing = replace(WEB1, reason="refused-before")
    assert line(refusing, doubted={"web1": "reset"}) == "web1 had refused this client passed over"
    silent = replace(WEB1, reason="no-answer-before")
    assert line(silent, doubted={"web1": "no-answer"}) == "web1 had not answered this client passed over"


@pytest.mark.parametrize(("why", "how"), [("reset", "refused"), ("no-answer", "not answered")])
def test_a_chosen_server_that_had_refused_the_client_before(why: str, how: str) -> None:
    """Others may be there: doubted since, failed, or with replies that could not be told apart."""
    last = f"web2 had {how} this client, but no better server could be chosen."
    assert last in said(doubted={"web2": why})


def test_the_date_is_told_where_it_is_not_todays() -> None:
    assert told(now=NOW + 86400).startswith("2025-11-25 12:03:07  198.51.100.7:40000 to shop")
    assert moment(NOW, NOW + 3600) == "12:03:07"


def test_ipv6_addresses_have_brackets() -> None:
    assert "  [2001:db8::7]:40000 to shop went" in told(client=ip_address("2001:db8::7"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"unanswered_by": "web1"}, "was sent on to web2:8080, as web1 had not answered."),
        ({"refused": "no-server"}, "was refused: no server could take it."),
        (
            {"refused": "reverse-collision"},
            "was refused: no server's replies could have been told apart from another connection's.",
        ),
        ({"refused": "table-full"}, "was refused: the connection table was full of live connections."),
        (
            {"refused": "no-server", "unanswered_by": "web1"},
            "stayed with web1, which had not answered: no server could take it.",
        ),
    ],
)
def test_where_it_went(changes: dict[str, Any], says: str) -> None:
    if "refused" in changes:
        changes = {**changes, "chosen": None, "chosen_port": None}
    assert told(**changes).splitlines()[0].endswith(f"to shop {says}")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (StickyAnswer("off", None, None, None), "Clients are not sticky here."),
        (StickyAnswer("none", None, None, None), "No sticky entry."),
        (StickyAnswer("used", "web1", None, "web1"), "Its sticky entry says web1, and holds anew."),
        (StickyAnswer("used", "web1", None, None), "Its sticky entry says web1."),
        (
            StickyAnswer("overridden", "web1", "failed", "web2"),
            "Its sticky entry said web1, which had failed. From now on it says web2.",
        ),
        (
            StickyAnswer("overridden", "web1", "gone", None),
            "Its sticky entry said web1, which has no place here.",
        ),
    ],
)
def test_the_sticky_entry(answer: StickyAnswer, says: str) -> None:
    assert said(sticky=answer).startswith(says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"by": "sticky", "scheduler": None}, "So no scheduler was asked."),
        ({"by": "test", "scheduler": None}, "One connection tests whether a failed server is back."),
        (
            {"by": "backup", "scheduler": None},
            "No server could be chosen, so the virtual server's backup was.",
        ),
        ({"by": "none", "scheduler": None}, "No scheduler had a server to choose."),
        ({"scheduler": "round-robin"}, "round-robin took the next in order after web1."),
        ({"scheduler": "round-robin", "last": None}, "round-robin took the next in order from the first."),
        (
            {"scheduler": "round-robin", "by": "startup", "set_aside": "web3"},
            "The scheduler would have taken web3; while servers start up, round-robin took the next in order"
            " after web1.",
        ),
        (
            {"scheduler": "round-robin", "by": "startup"},
            "While servers start up, round-robin took the next in order after web1.",
        ),
        ({"scheduler": "weighted-round-robin"}, "weighted-round-robin gave web2 its turn."),
        ({"scheduler": "power-of-two", "note": ("web2", "web1")}, "power-of-two drew web2 and web1."),
        ({"scheduler": "maglev", "note": ("web2",)}, "maglev: the client's address points at web2."),
        (
            {"scheduler": "source-hash", "note": ("web1",)},
            "source-hash: the client's address points at web1, which could not be chosen.",
        ),
        (
            {"scheduler": "least-connections", "equal": True},
            "least-connections compared 2 servers. Of equals it took the next in order after web1.",
        ),
    ],
)
def test_the_scheme(changes: dict[str, Any], says: str) -> None:
    assert said(sticky=StickyAnswer("off", None, None, None), **changes) == (
        f"Clients are not sticky here. {says}"
    )


def test_what_a_server_was_judged_by() -> None:
    assert line(WEB1, scheduler="least-connections") == "web1 3 connections worse"
    assert line(WEB1, scheduler="round-robin") == "web1 3 connections, weight 1 worse"
    assert line(replace(WEB1, connections=1)) == "web1 1 connection / weight 1 = 3 worse"
    bad = replace(WEB1, unanswered=7, reason="over-syn-limit")
    assert line(bad).endswith("= 3 over its SYN limit (7 unanswered SYNs)")
    full = replace(WEB3, reason="max-capacity", max_connections=300)
    assert line(full) == "web3 at its maximum of 300 connections passed over"


def test_a_prediction_is_shown_as_it_is_reckoned() -> None:
    """R087, R158-R160 (A15b): in milliseconds; with `predict = "next"` the connection to be placed counts."""
    assert line(WEB1, scheduler="fastest-response") == "web1 3 x 10 - 2000 / 4 = -450 ms worse"
    following = line(replace(WEB1, predicted=0.039, response_age=0.01), scheduler="fastest-response",
                     predict="next", ageing=10.0)  # fmt: skip
    assert following == "web1 (3 + 1) x 10 - 10 / 10 = 39 ms worse"
    fresh = replace(WEB1, response=None, ratio=None, response_age=None, predicted=None)
    assert line(fresh, scheduler="fastest-response") == (
        "web1 3 connections, response time not known yet worse"
    )


def test_what_has_just_happened_is_told_so() -> None:
    assert line(replace(WEB3, state_age=0.01)) == "web3 had failed just before passed over"


def test_of_a_virtual_server_that_is_out_of_service_nothing_else_is_told() -> None:
    """Nobody looked at the sticky entry, nor at a server."""
    text = told(chosen=None, chosen_port=None, refused="out-of-service", by="none", scheduler=None)
    assert text == (
        "12:03:07  198.51.100.7:40000 to shop was refused: the virtual server is out of service.\n"
    )


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.GONE])
def test_there_are_words_for_every_reason(reason: Reason) -> None:
    """No reason is shown as programs read it, but where that is a word already."""
    words = line(replace(WEB1, reason=reason.value))
    assert not words.endswith(f" {reason.value}") or reason.value in ("chosen", "worse")


@pytest.mark.parametrize("refused", [Drop.NO_SERVER, Drop.COLLISION, Drop.TABLE_FULL])
def test_there_are_words_for_every_refusal(refused: Drop) -> None:
    assert refused.value not in told(chosen=None, chosen_port=None, refused=refused.value)


def test_others_are_counted() -> None:
    text = told(others={"worse": 900, "failed": 84})
    assert text.splitlines()[-1] == "    and 984 more servers: 84 failed, 900 worse"


def test_several_decisions_are_told_apart() -> None:
    rows: JSON = [decision(a_decision(), NOW), decision(a_decision(), NOW)]
    lines = story.story(rows, now=NOW)
    assert lines.count("") == 1
    assert len(lines) == 13


def test_of_a_client_of_whom_nothing_is_known() -> None:
    assert story.nothing_kept("192.0.2.7", [], []) == [
        "No decision about 192.0.2.7 is kept any more, or there was none.",
        "  There is no live connection and no sticky entry either.",
    ]


def test_nothing_from_the_gateway_reaches_the_terminal_unescaped() -> None:
    text = json.dumps(decision(a_decision(), NOW)).replace("web2", "web2\\u001b[2J")
    lines = story.story([json.loads(text)], now=NOW)
    assert all(each.isprintable() for each in lines)


@pytest.mark.parametrize(
    "name", ["at", "virtual", "client", "chosen", "sticky", "candidates", "others", "by"]
)
@pytest.mark.parametrize("value", [None, "", {}])
def test_a_document_with_a_hole_is_an_error_and_no_traceback(name: str, value: JSON) -> None:
    row = decision(a_decision(), NOW)
    if isinstance(value, type(row[name])):
        value = 7
    with pytest.raises(ControlError, match="cannot be shown"):
        story.story([{**row, name: value}], now=NOW)
