"""A worker that does not move is noticed, one that works or waits for good reason is let be."""

import os
import signal
import subprocess
import time

import pytest

from nfqlb.netfilter.procfs import Doing, doing
from nfqlb.runtime import stall
from nfqlb.runtime.protocol import JSONObject
from nfqlb.runtime.stall import Heart, Movement, Vitals, Watchdog

WORKER = 4711


class Watched:
    """A worker of which the test says what it does, looked at every `LOOK` seconds."""

    def __init__(self, *, state: str = "S", serving: bool = True) -> None:
        self.heart = Heart()
        self.now = time.monotonic()
        self.state = state
        self.used = 0.0
        self.vitals = Vitals(self.heart, self.now, lambda _: Doing(self.state, self.used))
        if serving:
            self.heart.beat()
            assert self.look() == ""

    def look(self, after: float = stall.LOOK) -> str:
        self.now += after
        return self.vitals.look(self.now, WORKER)

    def killed(self, *, load: float = 0.0, within: float = 60.0) -> tuple[float, str]:
        """After how many seconds without a beat it is to be killed, and why; (inf, "") if not `within`."""
        begun = self.now
        while self.now - begun < within:
            self.used += load * stall.LOOK
            if why := self.look():
                return self.now - begun, why
        return float("inf"), ""


def test_a_worker_that_beats_is_well() -> None:
    watched = Watched()
    for _ in range(1000):
        watched.heart.beat()
        assert watched.look() == ""


def test_a_stopped_worker_is_noticed_within_a_second() -> None:
    after, why = Watched(state="T").killed()
    assert after <= 0.8
    assert "stopped" in why


def test_a_worker_that_loops_is_noticed_by_the_processor_time_it_takes() -> None:
    after, why = Watched(state="R").killed(load=1.0)
    assert stall.LOOPING <= after <= stall.LOOPING + 1
    assert "without reading a packet" in why


def test_a_worker_that_does_not_get_the_processor_is_given_more_time() -> None:
    """On a machine that is busy with something else nothing is gained by killing it early."""
    after, why = Watched(state="R").killed(load=0.1)
    assert after == pytest.approx(stall.HANGING, abs=2 * stall.LOOK)
    assert "not moved" in why


@pytest.mark.parametrize("state", ["S", "D"])
def test_a_worker_that_waits_for_something_is_noticed(state: str) -> None:
    after, _ = Watched(state=state).killed()
    assert after == pytest.approx(stall.HANGING, abs=2 * stall.LOOK)


def test_a_worker_that_says_it_is_busy_is_not_thought_dead() -> None:
    watched = Watched(state="R")
    with watched.heart.busy(8.0):
        assert watched.killed(load=1.0, within=7.5) == (float("inf"), "")
    assert watched.look() == ""
    assert watched.killed(load=1.0)[0] <= stall.LOOPING + 1


def test_the_successor_of_one_that_was_killed_is_given_more_time() -> None:
    watched = Watched(state="R")
    watched.vitals = Vitals(watched.heart, watched.now, lambda _: Doing("R", watched.used), patience=4)
    watched.heart.beat()
    watched.look()
    assert watched.killed(load=1.0)[0] == pytest.approx(4 * stall.LOOPING, abs=1)


def test_being_busy_ends() -> None:
    watched = Watched(state="R")
    watched.heart.ask(8.0)
    assert 7.8 <= watched.killed(load=1.0)[0] <= 8.0 + stall.LOOPING


def test_a_busy_worker_that_is_stopped_is_noticed_all_the_same() -> None:
    watched = Watched(state="T")
    watched.heart.ask(8.0)
    assert watched.killed()[0] <= 0.8


def test_a_worker_may_take_long_to_begin() -> None:
    watched = Watched(state="R", serving=False)
    watched.heart.ask(30.0)
    assert watched.killed(load=1.0, within=30.0 + stall.BIRTH - 1)[1] == ""
    assert "not begun" in watched.killed(load=1.0, within=2.0)[1]


def test_what_the_predecessor_asked_for_does_not_count() -> None:
    watched = Watched(state="R")
    watched.heart.ask(600.0)
    watched.vitals = Vitals(watched.heart, watched.now, lambda _: Doing("R", 0.0))
    assert watched.heart.patience == 0


def test_a_supervisor_that_was_away_takes_the_beats_anew() -> None:
    """Both were stopped for an hour, and the supervisor wakes first."""
    watched = Watched(state="T")
    assert watched.look(after=3600.0) == ""
    watched.state = "R"
    assert watched.look() == ""


def test_a_process_that_is_gone_is_not_to_be_killed() -> None:
    watched = Watched()
    watched.vitals = Vitals(watched.heart, watched.now, lambda _: None)
    assert watched.killed()[1] == ""


def test_the_heart_is_shared_with_a_forked_process() -> None:
    heart = Heart()
    pid = os.fork()
    if not pid:
        heart.beat()
        heart.ask(100.0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert heart.beats == 1
    assert heart.patience > time.monotonic() + 90


def test_the_kernel_tells_what_a_process_does() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert doing(process.pid) == Doing("T", 0.0)
        process.kill()
    assert doing(process.pid) is None


def snapshot(depth: int, packets: int | None, *, state: str = "running") -> JSONObject:
    return {"state": state, "queues": [{"number": 7, "depth": depth, "packets": packets}]}


def test_a_worker_that_reads_is_let_be() -> None:
    moves = Movement()
    assert not any(moves.look(snapshot(500, number)) for number in range(100))
    assert not any(moves.look(snapshot(0, 100)) for number in range(100)), "nothing waits"
    assert not any(moves.look(snapshot(number % 4, 100)) for number in range(100)), "and now and then one"


def test_packets_that_nobody_reads_are_noticed() -> None:
    moves = Movement()
    said = [moves.look(snapshot(3, 100)) for _ in range(stall.IDLE + 2)]
    assert [bool(each) for each in said] == [*[False] * stall.IDLE, True, False]
    assert "3 packets in queue 7" in said[stall.IDLE]


def test_packets_that_wait_while_a_worker_is_replaced_are_nobodys_fault() -> None:
    moves = Movement()
    for _ in range(10):
        assert not any(moves.look(snapshot(3, 100)) for _ in range(stall.IDLE))
        assert not moves.look(snapshot(3, 100, state="degraded"))


def test_the_watchdog_hears_at_half_of_its_time() -> None:
    heart = Heart()
    watchdog = Watchdog(heart, 10.0, 100.0)
    told = []
    for tenth in range(300):
        heart.beat()
        if watchdog.due(100 + tenth / 10):
            told.append(tenth / 10)
    assert told == [0, 5, 10, 15, 20, 25]


def test_the_watchdog_hears_of_a_gateway_that_is_without_a_worker_on_purpose() -> None:
    """F13: to be started anew would only go round that."""
    watchdog = Watchdog(Heart(), 10.0, 100.0)
    assert watchdog.due(100.0)
    assert not watchdog.due(105.0)
    assert watchdog.due(105.0, idle=True)
    assert not watchdog.due(106.0, idle=True)


def test_the_watchdog_hears_nothing_without_a_beat_and_at_once_with_the_next() -> None:
    heart = Heart()
    watchdog = Watchdog(heart, 10.0, 100.0)
    heart.beat()
    assert watchdog.due(100.0)
    assert not any(watchdog.due(100 + tenth / 10) for tenth in range(1, 300))
    heart.beat()
    assert watchdog.due(130.0)


def test_who_does_not_watch_hears_nothing() -> None:
    heart = Heart()
    heart.beat()
    assert not Watchdog(heart, 0.0, 100.0).due(200.0)
