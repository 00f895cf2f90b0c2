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
