"""How response times are spread: which class a time counts in, and what is counted of a server."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.histogram import BOUNDS, NEVER, Histogram, Spread
from tests.core.scenario import Scenario, reals, virtual

LAST = len(BOUNDS)


def spread_of(*times: float) -> Spread:
    histogram = Histogram()
    for seconds in times:
        histogram.add(seconds)
    return histogram.spread()


def class_of(seconds: float) -> int:
    """The one class in which a time counts."""
    counts = spread_of(seconds).counts
    assert sum(counts) == 1
    return counts.index(1)


def test_the_classes_grow_by_no_more_than_two_and_a_half() -> None:
    """A percentile read from them is off by less than that factor, and they span what servers do."""
    assert all(1.9 < above / below < 2.6 for below, above in pairwise(BOUNDS))
    assert (BOUNDS[0], BOUNDS[-1]) == (0.0001, 10.0)


def test_a_bound_belongs_to_its_own_class() -> None:
    """As Prometheus has it: `le` is less or equal."""
    assert [class_of(bound) for bound in BOUNDS] == list(range(LAST))
    assert [class_of(bound * 1.000001) for bound in BOUNDS] == list(range(1, LAST + 1))


def test_what_is_out_of_the_ordinary_counts_at_the_ends() -> None:
    assert class_of(0.0) == 0
    assert class_of(1e-9) == 0
    assert class_of(3600.0) == LAST


def test_nothing_measured_is_nothing_to_show() -> None:
    assert Histogram().spread() == NEVER
    assert sum(NEVER.counts) == NEVER.seconds == 0


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=50))
def test_everything_counts_once_where_it_belongs(times: list[float]) -> None:
    found = spread_of(*times)
    for at, bound in enumerate(BOUNDS):
        assert sum(found.counts[: at + 1]) == sum(seconds <= bound for seconds in times)
    assert sum(found.counts) == len(times)
    assert abs(found.seconds - sum(times)) <= 1e-9 * max(1.0, sum(times))


def test_a_picture_stays_as_it_was() -> None:
    histogram = Histogram()
    histogram.add(0.02)
    before = histogram.spread()
    histogram.add(0.02)
    assert before == spread_of(0.02)


def test_a_server_s_responses_are_counted_whatever_virtual_server_they_came_through() -> None:
    """R085, R094: as they are measured, and in no other server's name."""
    lab = Scenario(
        [virtual("web", "a"), virtual("api", "a", port=81), virtual("alone", "b", port=82)], reals("ab")
    )
    for name, took in (("web", 0.02), ("api", 0.02), ("web", 3.0)):
        call = lab.connect(name).says()
        lab.wait(took)
        call.hears()
    seen = lab.real("a").responses
    assert [BOUNDS[at] for at, count in enumerate(seen.counts) if count] == [0.025, 5.0]
    assert sum(seen.counts) == 3
    assert round(seen.seconds, 6) == 3.04
    assert lab.real("b").responses == NEVER
