"""`Ranking` against a plain search."""

from math import inf
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.schedulers.ranking import Ranking
from tests.core.properties import TRIES

_numbers = st.one_of(st.just(inf), st.integers(0, 3).map(float), st.floats(-1e9, 1e9))


def slowly(values: list[float], last: int) -> int | None:
    """The position of the lowest: the first after `last` that holds it, else the first of all."""
    lowest = min(values, default=inf)
    if lowest == inf:
        return None
    holders = [position for position, value in enumerate(values) if value == lowest]
    return next((position for position in holders if position > last), holders[0])


@TRIES
@given(st.lists(_numbers, max_size=40), st.lists(st.tuples(st.integers(0, 39), _numbers), max_size=40))
def test_the_lowest_is_at_hand(values: list[float], changes: list[tuple[int, float]]) -> None:
    """R145, R148, R149 (A29, A30): after every change, for every last used position."""
    ranking = Ranking(values)
    for last in range(-1, len(values)):
        assert ranking.lowest_after(last) == slowly(values, last)
    for position, value in changes:
        if position < len(values):
            values[position] = value
            ranking.set(position, value)
            for last in range(-1, len(values)):
                assert ranking.lowest_after(last) == slowly(values, last)


def test_a_position_past_the_end_is_as_good_as_none() -> None:
    """R099: the order begins again."""
    ranking = Ranking([1.0, 1.0, 1.0])
    assert ranking.lowest_after(-1) == 0
    assert ranking.lowest_after(2) == 0
    assert ranking.lowest_after(3) == 0
    assert ranking.lowest_after(1000) == 0


def test_nothing_to_rank() -> None:
    """R150: none is said to be none."""
    assert Ranking([]).lowest_after(-1) is None
    assert Ranking([inf, inf]).lowest_after(0) is None


def test_a_change_costs_a_few_steps_among_a_thousand() -> None:
    """R104: decisions stay cheap; a change looks at one path from leaf to root."""

    class Watched(list[float]):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            Watched.reads += 1
            return super().__getitem__(index)

    ranking = Ranking([float(position) for position in range(1000)])
    ranking._nodes = Watched(ranking._nodes)
    ranking.set(700, -1.0)
    assert ranking.lowest_after(3) == 700
    assert 0 < Watched.reads < 80
