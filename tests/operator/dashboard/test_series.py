"""Sparklines: the gateway's history once, a value more from each snapshot, nothing across a gap."""

from nfqlb.operator.dashboard.model import Snapshot, snapshot
from nfqlb.operator.dashboard.series import GATEWAY, LENGTH, Series
from tests.operator.dashboard.gateway import recorded

WEB1 = ("real", "web1")


def at(seconds: float, rate: float | None) -> Snapshot:
    document = recorded()
    document["at"] = 1000.0 + seconds
    document["reals"][0]["rate"] = rate
    return snapshot(document)


def opened() -> Series:
    """The lines after the first snapshot, with the history of web1."""
    series = Series()
    series.add(at(0, 1.0))
    series.fill(WEB1, {"rate": [None, 4.0, 5.0], "connections": [1, 2, 3]})
    return series


def test_full_from_the_history_and_longer_with_each_snapshot() -> None:
    series = opened()
    assert series.values(WEB1, "rate") == [None, 4.0, 5.0]
    series.add(at(1, 7.0))
    series.add(at(2, None))
    assert series.values(WEB1, "rate") == [None, 4.0, 5.0, 7.0, None]
    assert series.values(WEB1, "connections") == [1, 2, 3, 4, 4]
    assert series.values(WEB1, "response_s") == [0.01226, 0.01226]


def test_only_what_is_not_known_is_asked_for() -> None:
    series = opened()
    assert series.missing([WEB1, GATEWAY]) == [GATEWAY]


def test_two_seconds_are_two_values_and_the_same_moment_none() -> None:
    series = opened()
    series.add(at(0, 6.0))
    assert series.values(WEB1, "rate") == [None, 4.0, 5.0]
    series.add(at(2, 7.0))
    assert series.values(WEB1, "rate") == [None, 4.0, 5.0, 7.0, 7.0]


def test_after_a_gap_or_a_step_back_it_is_asked_for_anew() -> None:
    for later in (30, -5):
        series = opened()
        series.add(at(later, 7.0))
        assert series.missing([WEB1]) == [WEB1]
        assert series.values(WEB1, "rate") == [None, 4.0, 5.0]  # until the answer comes
        series.fill(WEB1, {"rate": [8.0]})
        assert series.missing([WEB1]) == []
        assert series.values(WEB1, "rate") == [8.0]


def test_nothing_is_known_of_a_gateway_that_was_away() -> None:
    series = opened()
    series.forget()
    assert series.missing([WEB1]) == [WEB1]
    assert series.values(WEB1, "rate") == []


def test_it_keeps_as_much_as_the_gateway() -> None:
    series = opened()
    for second in range(1, LENGTH + 50):
        series.add(at(second, float(second)))
    assert len(series.values(WEB1, "rate")) == LENGTH
    assert series.values(WEB1, "rate")[-1] == LENGTH + 49


def test_who_is_gone_is_forgotten() -> None:
    series = opened()
    series.fill(("real", "gone"), {"rate": [1.0]})
    series.add(at(1, 1.0))
    assert series.missing([("real", "gone"), WEB1]) == [("real", "gone")]


def test_nonsense_is_no_value() -> None:
    series = opened()
    series.fill(WEB1, {"rate": ["x", None, 3], "connections": "none"})
    assert series.values(WEB1, "rate") == [None, None, 3]
    assert series.values(WEB1, "connections") == []
