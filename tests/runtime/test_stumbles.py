"""Defects that a process goes on from: counted, told now and then, and not for ever."""

import logging

import pytest

from nfqlb.runtime.stumbles import Stumbles


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_each_is_counted_and_the_log_hears_of_them_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """F13."""
    clock = Clock()
    stumbles = Stumbles(clock=clock)
    for _ in range(21):
        stumbles.note("doing this", ValueError("odd"))
        clock.now += 1
    assert stumbles.count == 21
    assert [record.getMessage() for record in caplog.records] == [
        "a defect while doing this; going on",
        "a defect while doing this (9 more before it); going on",
        "a defect while doing this (9 more before it); going on",
    ]
    assert all(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)


def test_who_does_nothing_but_stumble_gives_up() -> None:
    """F13: then the process ends with that error, and another may do better."""
    stumbles = Stumbles(hopeless=True, clock=Clock())
    for _ in range(199):
        stumbles.note("doing this", ValueError("odd"))
    with pytest.raises(ValueError, match="odd"):
        stumbles.note("doing this", ValueError("odd"))


def test_to_stumble_now_and_then_is_no_reason_to_give_up() -> None:
    """F13."""
    clock = Clock()
    stumbles = Stumbles(hopeless=True, clock=clock)
    for _ in range(1000):
        stumbles.note("doing this", ValueError("odd"))
        clock.now += 0.02
    assert stumbles.count == 1000


def test_the_supervisor_never_gives_up() -> None:
    """F13: it is the one that holds everything."""
    stumbles = Stumbles(clock=Clock())
    for _ in range(1000):
        stumbles.note("doing this", ValueError("odd"))
    assert stumbles.count == 1000
