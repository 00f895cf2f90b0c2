"""Queues that drop packets: said while it goes on, and told when it begins and ends."""

from itertools import pairwise

import pytest

from nfqlb.netfilter.queue_status import QueueStatus
from nfqlb.runtime.events import Events
from nfqlb.runtime.protocol import JSONObject
from nfqlb.runtime.queues import HELD, QueueSums, QueueWatch


class Lab:
    def __init__(self) -> None:
        self.now = 100.0
        self.events = Events(lambda: 0.0)
        self.watch = QueueWatch(self.events, lambda: self.now)

    def look(self, seconds: float, full: int, sock: int = 0, overruns: int = 0) -> bool:
        """Whether the queue drops, after so many seconds and so many losses in all."""
        self.now += seconds
        queue: JSONObject = {
            "number": 1, "role": "new", "dropped_full": full, "dropped_socket": sock, "overruns": overruns,
        }  # fmt: skip
        self.watch.look({"queues": [queue]})
        dropping = queue["dropping"]
        assert isinstance(dropping, bool)
        return dropping

    def told(self) -> list[str]:
        return [str(row["text"]) for row in reversed(self.events.newest(10))]


def test_what_was_dropped_before_is_no_news() -> None:
    lab = Lab()
    assert not lab.look(0, 7)
    assert not lab.look(1, 7)
    assert lab.told() == []


def test_dropping_is_told_once_and_held_for_a_while() -> None:
    lab = Lab()
    lab.look(0, 0)
    assert lab.look(1, 3)
    assert lab.look(1, 5, sock=2)
    assert lab.look(HELD - 1, 5, sock=2)
    assert lab.told() == ["queue 1 (new) drops packets: 3 so far"]
    assert not lab.look(1, 5, sock=2)
    assert lab.told()[1:] == ["queue 1 (new) drops no more packets: 7 lost in 1 s"]
    assert [row["level"] for row in lab.events.newest(2)] == ["info", "warning"]


def test_what_the_worker_could_not_read_counts_too() -> None:
    lab = Lab()
    lab.look(0, 0)
    assert lab.look(1, 0, overruns=1)


def test_it_may_begin_again() -> None:
    lab = Lab()
    lab.look(0, 0)
    lab.look(1, 1)
    lab.look(HELD, 1)
    assert lab.look(1, 2)
    assert len(lab.told()) == 3


@pytest.mark.parametrize(
    ("read", "sums"),
    [
        ([0, 5, 5, 9], [0, 5, 5, 9]),
        ([7, 9, 0, 3], [7, 9, 9, 12]),  # bound anew
        ([2**32 - 2, 3, 4], [2**32 - 2, 2**32 + 3, 2**32 + 4]),  # full
        ([2**31 - 1, 3], [2**31 - 1, 2**31 + 2]),  # not full: bound anew
    ],
)
def test_sums_do_not_fall_where_the_kernels_counters_do(read: list[int], sums: list[int]) -> None:
    """F34: they are 32 bits wide, and begin anew with each bind; no rate is negative or absurd."""
    made = QueueSums()
    found = [made.of([QueueStatus(3, 99, 1, number, 2 * number % 2**32, 7)])[0] for number in read]
    assert [queue.dropped_full for queue in found] == sums
    assert [queue.depth for queue in found] == [1] * len(read)
    assert all(later.dropped_socket >= earlier.dropped_socket for earlier, later in pairwise(found))


def test_each_queue_has_its_own_sums() -> None:
    """F34: one that is bound anew moves no other's."""
    made = QueueSums()
    made.of([QueueStatus(0, 99, 0, 5, 0, 0), QueueStatus(1, 99, 0, 8, 0, 0)])
    found = made.of([QueueStatus(0, 99, 0, 1, 0, 0), QueueStatus(1, 99, 0, 8, 0, 0)])
    assert [queue.dropped_full for queue in found] == [6, 8]


def filled(lab: Lab, seconds: float, depth: int, used: int = 0, **more: int) -> JSONObject:
    """The row of a queue with room for 1,000 packets and 2 MB, after so many seconds."""
    lab.now += seconds
    queue: JSONObject = {
        "number": 0, "role": "new", "depth": depth, "limit": 1000, "socket_bytes": used,
        "socket_limit": 2_000_000, "dropped_full": 0, "dropped_socket": 0, "overruns": 0, **more,
    }  # fmt: skip
    lab.watch.look({"queues": [queue]})
    return queue


def test_a_queue_that_fills_is_told_of_before_it_drops() -> None:
    """F14: at half of its room; at its end, how full it has been."""
    lab = Lab()
    assert not filled(lab, 0, 499)["filling"]
    assert filled(lab, 0.2, 500)["filling"]
    assert filled(lab, 0.2, 900)["filling"]
    assert lab.told() == ["queue 0 (new) fills: 500 of 1,000 packets wait"]
    assert filled(lab, HELD - 0.1, 0)["filling"]
    assert not filled(lab, 0.1, 0)["filling"]
    assert lab.told()[1:] == [
        "queue 0 (new) has room again: after 0 s in which up to 900 of 1,000 packets waited"
    ]
    assert [row["level"] for row in lab.events.newest(2)] == ["info", "warning"]


def test_the_socket_of_its_reader_may_fill_first() -> None:
    """F14: long packets."""
    lab = Lab()
    assert filled(lab, 0, 90, used=1_500_000)["filling"]
    assert lab.told() == ["queue 0 (new) fills: 1.5 of 2.0 MB wait"]


def test_a_queue_that_fills_and_drops_says_both() -> None:
    """F14: and what it says stays apart."""
    lab = Lab()
    filled(lab, 0, 600)
    row = filled(lab, 1, 1000, dropped_full=7)
    assert (row["filling"], row["dropping"]) == (True, True)
    assert lab.told()[1:] == ["queue 0 (new) drops packets: 7 so far"]


def test_the_peak_is_kept_for_a_while() -> None:
    """F14: what nobody looked at in time is still to be seen."""
    lab = Lab()
    assert [filled(lab, 1, depth)["peak"] for depth in (3, 80, 5)] == [3, 80, 80]
    assert filled(lab, HELD - 1, 4)["peak"] == 4


def test_a_queue_whose_room_is_not_known_does_not_fill() -> None:
    lab = Lab()
    queue: JSONObject = {"number": 0, "depth": 5000, "limit": None, "socket_limit": None}
    lab.watch.look({"queues": [queue]})
    assert (queue["filling"], queue["peak"]) == (False, 5000)
