"""The kernel's own connection table: nearly full and full, told once, and shown while it is so."""

import pytest

from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime.events import Events
from nfqlb.runtime.protocol import JSONObject, part
from nfqlb.runtime.tracking import HELD, Fullness, Tracking


class Lab:
    """A kernel with room for 1,000 connections."""

    def __init__(self) -> None:
        self.at = 50.0
        self.now, self.limit = 0, 1000
        self.lost = {"drop": 30, "early_drop": 5, "insert_failed": 1}  # before anybody looked
        self.events = Events(lambda: 0.0)
        self.others: JSONObject = {}
        self.tracking = Tracking(
            self.events, self.others, room=self.room, losses=lambda: dict(self.lost), clock=lambda: self.at
        )

    def room(self) -> tuple[int, int]:
        if self.now < 0:
            raise KernelError("no such table")
        return self.now, self.limit

    def look(self, seconds: float, now: int, *, drop: int = 0, early: int = 0, failed: int = 0) -> JSONObject:
        """What is shown after so many seconds, with so many connections and so many more lost."""
        self.at += seconds
        self.now = now
        self.lost["drop"] += drop
        self.lost["early_drop"] += early
        self.lost["insert_failed"] += failed
        self.tracking.tick()
        return part(self.others, "conntrack")

    def told(self) -> list[str]:
        return [str(row["text"]) for row in reversed(self.events.newest(10))]


def test_the_worker_sees_a_full_table_and_what_it_loses_in_between() -> None:
    """F25: what was lost before it looked is not its affair."""
    lab = Lab()
    fullness = Fullness(lab.room, lambda: dict(lab.lost))
    seen = []
    for now, drop, failed in ((10, 0, 0), (1000, 0, 0), (999, 0, 0), (999, 3, 0), (999, 0, 0), (999, 0, 3)):
        lab.now = now
        lab.lost["drop"] += drop
        lab.lost["insert_failed"] += failed
        seen.append(fullness.look())
    assert seen == [False, True, False, True, False, False]
    lab.now = -1
    assert not fullness.look()
    lab.now, lab.limit = 10**6, 0
    assert not fullness.look()


def test_what_was_lost_before_is_no_news() -> None:
    """F25."""
    lab = Lab()
    assert lab.look(0, 10) == {
        "now": 10, "limit": 1000, "lost": {"drop": 0, "early_drop": 0, "insert_failed": 0}, "losing": False,
    }  # fmt: skip
    assert lab.told() == []


def test_nearly_full_is_told_once() -> None:
    """F25: from four fifths on, until it has been less for a while."""
    lab = Lab()
    lab.look(0, 799)
    lab.look(1, 800)
    lab.look(1, 900)
    lab.look(HELD - 1, 700)
    assert lab.told() == [
        "the kernel's connection table is nearly full: 800 of 1,000 (nf_conntrack_max); beyond that it drops"
    ]
    lab.look(1, 700)
    assert lab.told()[1:] == [
        "the kernel's connection table has room again: 700 of 1,000 (nf_conntrack_max); 0 lost "
        "meanwhile"
    ]
    assert [row["level"] for row in lab.events.newest(2)] == ["info", "warning"]


@pytest.mark.parametrize("what", ["drop", "early"])
def test_full_is_what_loses_connections(what: str) -> None:
    """F25: those that find no room, and those that are given up for others; told once, as an error."""
    lab = Lab()
    lab.look(0, 900)
    shown = lab.look(1, 900, **{what: 12})
    assert shown["losing"]
    assert sum(part(shown, "lost").values()) == 12  # type: ignore[arg-type]
    lab.look(1, 900, **{what: 12})
    assert lab.told()[1:] == [
        "the kernel's connection table is full: 900 of 1,000 (nf_conntrack_max); new connections are lost, "
        "12 so far"
    ]
    assert lab.events.newest(1)[0]["level"] == "error"
    assert lab.look(HELD - 1, 10)["losing"]
    assert not lab.look(1, 10)["losing"]
    assert lab.told()[2:] == [
        "the kernel's connection table has room again: 10 of 1,000 (nf_conntrack_max); 24 lost "
        "meanwhile"
    ]


def test_a_full_table_that_is_only_nearly_full_again_says_nothing_new() -> None:
    """F25: the end comes when it has room."""
    lab = Lab()
    assert lab.look(0, 1000)["losing"]
    lab.look(1, 1000, drop=1)
    lab.look(HELD, 900)
    assert len(lab.told()) == 1
    lab.look(HELD, 100)
    assert len(lab.told()) == 2


def test_what_could_not_be_entered_is_counted_and_no_sign_of_a_full_table() -> None:
    lab = Lab()
    lab.look(0, 10)
    shown = lab.look(1, 10, failed=3)
    assert part(shown, "lost")["insert_failed"] == 3
    assert not shown["losing"]


def test_no_limit_is_never_reached() -> None:
    lab = Lab()
    lab.limit = 0
    lab.look(0, 10**6)
    assert lab.told() == []


def test_a_kernel_that_does_not_tell() -> None:
    lab = Lab()
    lab.look(0, 10)
    lab.look(1, -1)
    assert lab.others["conntrack"] is None
    assert lab.told() == []
