"""Of one thing nobody says "1 connections": everything that is shown, of a gateway where each number is 1."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfqlb.config.load import parse
from nfqlb.config.summary import summary
from nfqlb.core.plural import several
from nfqlb.core.segment import ACK, SYN
from nfqlb.operator import rerun, show, story
from nfqlb.operator.dashboard import model
from nfqlb.operator.dashboard.state import Page, State
from nfqlb.operator.dashboard.views.frame import frame
from nfqlb.operator.doctor import gateway
from nfqlb.replay.outcome import replay as replayed
from nfqlb.runtime.problems import problems
from tests.core.scenario import Scenario, real, virtual
from tests.core.test_failure import ditch
from tests.operator.test_show import DECISIONS, DOCUMENTS, SUMMARY
from tests.replay.test_other_packets import CLIENT, VIP
from tests.replay.test_other_packets import frame as packet
from tests.runtime import sample

#: After "1 thing" these say something of it; or they end in s, and are one.
_SINGULAR = {"is", "was", "has", "as", "its", "process", "address"}
_FALSE = re.compile(r"(?<![\w.,:/-])1 (?:[\w-]+ )?([\w-]+s)\b")


def wrong(text: str) -> list[str]:
    """Where a text has a plural of one thing."""
    return [found[0] for found in _FALSE.finditer(text) if found[1] not in _SINGULAR]


def ones(value: Any) -> Any:
    """A document with every number 1; times of day stay, which no list is of."""
    if isinstance(value, dict):
        return {name: each if name == "at" else ones(each) for name, each in value.items()}
    if isinstance(value, list):
        return [ones(each) for each in value[:1]]
    return 1 if isinstance(value, int | float) and not isinstance(value, bool) else value


def test_a_false_plural_is_found() -> None:
    assert wrong("1 connections, 11 servers, 1 half-open entries") == ["1 connections", "1 half-open entries"]
    assert wrong("1 connection is there, of 10.1 servers; 0.1 seconds") == []


def test_numbers_in_words() -> None:
    said = [several(number, "entry", "entries") for number in (0, 1, 2, 12_345)]
    assert said == ["0 entries", "1 entry", "2 entries", "12,345 entries"]


@pytest.mark.parametrize("subject", sorted(DOCUMENTS))
def test_what_show_shows(subject: str) -> None:
    assert wrong("\n".join(show.render(subject, ones(DOCUMENTS[subject])))) == []


def test_what_show_shows_of_everything_that_can_be_wrong() -> None:
    whole = ones(sample.snapshot())
    for subject, document in (("virtuals", whole["virtuals"]), ("reals", whole["reals"])):
        assert wrong("\n".join(show.render(subject, document))) == []
    assert wrong("\n".join(show.summary({**ones(SUMMARY), "queues": whole["queues"]}))) == []


def test_what_explain_tells() -> None:
    assert wrong("\n".join(story.story(ones(DECISIONS), now=1000.0))) == []


def _states() -> Iterator[dict[str, Any]]:
    for state in ("in-service", "failed", "testing", "max-capacity", "maintenance", "draining"):
        whole = ones(sample.snapshot(reals=1))
        for row in (*whole["reals"], *whole["virtuals"]):
            row["state"] = state
        whole["virtuals"][0]["flood"] = True
        yield whole
    whole["queues"][0]["filling"] = True
    whole["queues"][0] |= {"dropped_full": 0, "dropped_socket": 0}
    yield whole


def test_what_the_doctor_and_the_verdict_say() -> None:
    for whole in _states():
        found = [str(row["what"]) for row in gateway.findings(whole, "1.2.3")]
        found += [problem.what for problem in problems(whole)]
        assert [each for text in found for each in wrong(text)] == []


@pytest.mark.parametrize(
    "page",
    [Page(kind) for kind in ("summary", "virtuals", "reals", "connections", "events")]
    + [Page("virtual", "shop"), Page("real", "web1")],
)
def test_what_top_draws(page: Page) -> None:
    for whole in _states():
        state = State(page=page)
        state.snapshot = model.snapshot(whole)
        lines = ["".join(segment.text for segment in line) for line in frame(state, 120, 40)]
        assert [each for line in lines for each in wrong(line)] == []


def test_what_check_and_replay_say(tmp_path: Path) -> None:
    text = """
[gateway]
outside = "eth0"
inside = "eth1"
max_connections = 1
max_sticky = 1
[[real]]
name = "a"
address = "10.0.0.1"
max_connections = 1
[[virtual]]
name = "web"
address = "203.0.113.1"
port = 80
servers = ["a"]
shadow = "rr"
"""
    config = parse(text, "web.toml")
    assert wrong(summary(config)) == []
    frames = [
        packet(1, CLIENT, 4000, VIP, 80, ACK),
        packet(2, CLIENT, 5000, VIP, 80, SYN),
        packet(2, CLIENT, 5000, "10.0.0.1", 80, SYN),
    ]
    document = {"file": "web.pcap", "cut_at": None, **replayed(config, lambda: frames)}
    assert document["earlier"] == document["virtuals"][0]["decisions"] == 1
    assert wrong("\n".join(rerun.render(document, everything=True))) == []
    elsewhere = parse(text.replace("113.1", "113.9"), "web.toml")
    other = {"file": "web.pcap", **replayed(elsewhere, lambda: frames)}
    assert wrong(rerun.nothing(other, tmp_path)) == []


def test_why_a_server_is_in_its_state() -> None:
    servers = [replace(real("a"), failure_threshold=1, failure_clients=1), real("b", max_connections=1)]
    scenario = Scenario(virtual("web", "ab"), servers)
    ditch(scenario)
    scenario.connect()
    reasons = [scenario.real(name).reason for name in "ab"]
    assert reasons == ["1 connection could not be made", "at its maximum of 1 connection"]
