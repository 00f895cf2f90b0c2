"""A snapshot's document as rows: what is null, what follows from two of them, what cannot be read."""

import copy
from typing import Any

import pytest

from nfqlb.operator.dashboard.model import snapshot
from nfqlb.runtime.protocol import ControlError
from tests.operator.dashboard.gateway import recorded
from tests.runtime import sample


def later(document: dict[str, Any], seconds: float) -> dict[str, Any]:
    at, uptime = document["at"] + seconds, document["uptime_s"] + seconds
    return {**copy.deepcopy(document), "at": at, "uptime_s": uptime}


def test_everything_that_can_be_in_a_snapshot_is_read() -> None:
    found = snapshot(sample.snapshot())
    (shop,) = found.virtuals
    assert (shop.desired, shop.actual, shop.dropped) == ("fastest-response", "round-robin", 4)
    assert shop.traffic["bytes_out"] == 20000
    assert shop.shadow == "least-connections would have differed in 18.0% of 50 cases"
    web1, web2 = found.reals
    assert (web1.no_answer, web1.reset, web1.limit, web1.response) == (2, 5, 100, 0.0042)
    assert (web2.response, web2.mac, web2.limit) == (None, "", 0)
    (queue,) = found.queues
    assert (queue.role, queue.dropped_full, queue.dropped_socket) == ("new", 12, 13)
    assert (queue.rate, queue.cost) == (None, None)  # it takes two snapshots


def test_what_a_gateway_does_not_know_is_none() -> None:
    document = recorded()
    parts = ("verdict", "problems", "queues", "drops", "rules", "reload", "sticky", "uptime_s", "journal")
    document.update(dict.fromkeys(parts))
    document["worker"]["pid"] = document["connections"]["rate"] = None
    for row in document["reals"]:
        row.update(dict.fromkeys(("rate", "weight", "unanswered", "ditched", "since_s", "virtuals", "mac")))
    for row in document["virtuals"]:
        row.update(dict.fromkeys(("rate", "traffic", "drops", "scheduler", "shadow")))
    found = snapshot(document)
    assert (found.worker, found.rate, found.sticky, found.flow("bytes_in")) == (None, None, None, None)
    assert (found.reals[0].rate, found.reals[0].no_answer, found.reals[0].since) == (None, None, None)
    assert found.problems == ()
    assert found.queues == ()


def test_speeds_are_between_two_snapshots() -> None:
    first = sample.snapshot()
    second = later(first, 2.0)
    second["virtuals"][0]["traffic"]["bytes_out"] += 5000
    second["queues"][0].update(packets=1700 + 4000, busy_s=1.8 + 0.1)
    second["drops"] = {"no-connection": 27, "not-syn": 2}
    found = snapshot(second, snapshot(first))
    assert found.virtuals[0].flow["bytes_out"] == found.flow("bytes_out") == 2500
    assert found.virtuals[0].flow["packets_in"] == 0
    assert found.queues[0].rate == 2000
    assert found.queues[0].cost == pytest.approx(25e-6)
    assert found.dropping == {"no-connection": 3, "not-syn": 1}


@pytest.mark.parametrize("step", [-3600, 3600])
def test_f29_speeds_are_the_same_whatever_the_time_of_day_is_set_to(step: float) -> None:
    first = sample.snapshot()
    second = later(first, 2.0)
    second["at"] += step
    second["virtuals"][0]["traffic"]["bytes_out"] += 5000
    assert snapshot(second, snapshot(first)).virtuals[0].flow["bytes_out"] == 2500


def test_a_counter_that_fell_and_a_moment_seen_twice_have_no_speed_below_nothing() -> None:
    first = sample.snapshot()
    second = later(first, 1.0)
    second["queues"][0]["packets"] = 0
    assert snapshot(second, snapshot(first)).queues[0].rate == 0
    assert snapshot(first, snapshot(first)).queues[0].rate is None


def test_a_server_behind_two_virtual_servers_is_entitled_to_a_part_of_each() -> None:
    """R097: each counts by its connections: half of 10 and a quarter of 30 is 12.5 of 40."""
    document = recorded()
    for row, connections, own, fair in zip(document["virtuals"], (10, 30), (8, 4), (0.5, 0.25), strict=True):
        row["connections"] = connections
        for link in row["servers"]:
            link.update(connections=own, fair_share=fair)
    web1 = snapshot(document).reals[0]
    assert (web1.share, web1.fair) == (12 / 40, 12.5 / 40)


def test_how_long_most_responses_took() -> None:
    document = sample.snapshot()
    document["response"]["web1"]["counts"] = {"0.005": 35, "0.001": 60, "+Inf": 1, "0.01": 4}
    web1, web2 = snapshot(document).reals
    assert [web1.within(part) for part in (0.5, 0.6, 0.9, 0.99)] == [0.001, 0.001, 0.005, 0.01]
    assert web1.within(1.0) == float("inf")
    document["response"]["web2"]["counts"] = dict.fromkeys(("0.001", "+Inf"), 0)
    assert snapshot(document).reals[1].within(0.5) is None
    del document["response"]
    assert snapshot(document).reals[0].within(0.5) is None
    assert web2.within(0.5) is not None


def test_no_share_of_nothing() -> None:
    document = recorded()
    for row in document["virtuals"]:
        row["connections"] = 0
        for link in row["servers"]:
            link.update(connections=0, share=None, fair_share=None)
    assert {(real.share, real.fair) for real in snapshot(document).reals} == {(None, None)}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.pop("at"),
        lambda document: document.update(virtuals="none"),
        lambda document: document["reals"].append(7),
        lambda document: document["reals"][0].update(connections="many"),
        lambda document: document["virtuals"][0].update(name=None),
    ],
)
def test_what_cannot_be_read_is_refused(spoil: Any) -> None:
    document = recorded()
    spoil(document)
    with pytest.raises(ControlError) as refused:
        snapshot(document)
    assert refused.value.code == "bad-reply"


def test_no_object_at_all() -> None:
    with pytest.raises(ControlError):
        snapshot([1, 2])
