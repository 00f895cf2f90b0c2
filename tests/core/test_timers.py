"""`DueQueue`: what entered first falls due first."""

from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.timers import DueQueue
from tests.core.properties import TRIES


def test_members_fall_due_after_the_delay() -> None:
    """R129: not before it, and no more than one grain after it."""
    queue = DueQueue[str](10.0, grain=0.25)
    queue.push("early", 100.0)
    queue.push("late", 103.0)
    assert queue.pop_due(109.99) is None
    assert queue.pop_due(110.25) == "early"
    assert queue.pop_due(110.25) is None
    assert queue.pop_due(113.25) == "late"


def test_an_empty_queue_has_nothing() -> None:
    """R129: and says so."""
    queue = DueQueue[str](1.0)
    assert queue.pop_due(1e9) is None
    assert queue.pop_first() is None
    assert len(queue) == 0


def test_a_drained_queue_starts_anew() -> None:
    """R129: also within the grain of the members that are gone."""
    queue = DueQueue[str](10.0, grain=0.25)
    queue.push("one", 100.0)
    assert queue.pop_first() == "one"
    queue.push("two", 100.1)
    assert queue.pop_due(110.1) is None
    assert queue.pop_due(110.35) == "two"


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.floats(0, 3)),
        st.tuples(st.just("due"), st.floats(0, 3)),
        st.tuples(st.just("first"), st.just(0.0)),
    ),
    max_size=60,
)


@TRIES
@given(_steps, st.sampled_from([0.0, 0.1, 1.0, 5.0]))
def test_any_order_of_steps(steps: list[tuple[str, float]], delay: float) -> None:
    """R129: first in, first out; nobody early, nobody more than a grain late; nobody lost."""
    queue = DueQueue[int](delay, grain=0.25)
    waiting: list[tuple[int, float]] = []
    now, entered = 1000.0, 0
    for step, wait in steps:
        now += wait
        if step == "push":
            entered += 1
            queue.push(entered, now)
            waiting.append((entered, now))
        elif step == "first":
            assert queue.pop_first() == (waiting.pop(0)[0] if waiting else None)
        else:
            while (member := queue.pop_due(now)) is not None:
                expected, since = waiting.pop(0)
                assert member == expected
                assert now >= since + delay
            assert not waiting or now < waiting[0][1] + delay + 0.25 + 1e-9
        assert len(queue) == len(waiting)


def _pop(queue: DueQueue[int], step: str, now: float) -> int | None:
    return queue.pop_first() if step == "first" else queue.pop_due(now)


@TRIES
@given(_steps, st.sets(st.integers(1, 60)), st.sampled_from([1.0, 5.0, 30.0]))
def test_what_is_of_no_interest_may_go_early(
    steps: list[tuple[str, float]], boring: set[int], delay: float
) -> None:
    """R061: whatever else is dropped, the wanted come up in order, in time and all of them."""
    queue = DueQueue[int](
        delay, grain=0.25, wanted=lambda members: [each for each in members if each not in boring]
    )
    waiting: list[tuple[int, float]] = []
    now, entered = 1000.0, 0
    for step, wait in steps:
        now += wait
        if step == "push":
            entered += 1
            queue.push(entered, now)
            if entered not in boring:
                waiting.append((entered, now))
            continue
        member = _pop(queue, step, now)
        while member in boring:
            member = _pop(queue, step, now)
        if member is not None:
            expected, since = waiting.pop(0)
            assert member == expected
            assert step == "first" or now >= since + delay
        elif step == "first":
            assert not waiting
        else:
            assert not waiting or now < waiting[0][1] + delay + 0.25 + 1e-9
    while (member := queue.pop_first()) is not None:
        assert member in boring or waiting.pop(0)[0] == member
    assert not waiting
    assert len(queue) == 0


def test_what_is_of_no_interest_is_not_kept_for_long() -> None:
    """R061: members lose their interest as time passes; few of those are held."""
    fresh: set[int] = set()
    queue = DueQueue[int](60.0, wanted=lambda members: [each for each in members if each in fresh])
    most = 0
    for number in range(20_000):
        fresh.add(number)
        fresh.discard(number - 100)
        queue.push(number, number / 100)
        while queue.pop_due(number / 100) is not None:
            pass
        most = max(most, len(queue))
    assert len(fresh) == 100
    assert 100 <= most <= 900
