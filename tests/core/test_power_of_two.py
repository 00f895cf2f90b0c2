"""Power of two choices: the better of two drawn at random."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.schedulers.power_of_two import Pool, PowerOfTwo
from nfqlb.core.server import Link
from tests.core.preset import name_of, preset, set_weight
from tests.core.properties import TRIES
from tests.core.scenario import Scenario, real, reals, virtual

NAMES = "abcdefgh"
SERVER = preset("power-of-two", dict.fromkeys(NAMES, 0))


def scheduler_of(loads: dict[str, int], weights: dict[str, float] | None = None) -> PowerOfTwo:
    """A scheduler for real servers with so many connections."""
    scheduler = preset("power-of-two", loads, weights).scheduler
    assert isinstance(scheduler, PowerOfTwo)
    return scheduler


def drawn(scheduler: PowerOfTwo, times: int) -> list[str]:
    """The next choices, in order."""
    return [name_of(scheduler.choose(b"", -1)) for _ in range(times)]


def test_a_replay_draws_the_same() -> None:
    """R099: the seed is fixed; another one draws otherwise."""
    first = drawn(scheduler_of(dict.fromkeys(NAMES, 0)), 50)
    assert first == drawn(scheduler_of(dict.fromkeys(NAMES, 0)), 50)
    assert first != drawn(PowerOfTwo(SERVER.links, seed=7), 50)


def test_the_two_are_never_the_same() -> None:
    """R099: so the worst of all never wins, with two servers as with eight."""
    for names in ("ab", NAMES):
        loads = {name: 10 * place for place, name in enumerate(names)}
        assert names[-1] not in drawn(scheduler_of(loads), 500)
    assert set(drawn(scheduler_of({"a": 0, "b": 1}), 100)) == {"a"}


def test_the_better_of_two_wins() -> None:
    """R096: with eight of different loads, each wins as often as it is the better of two: 7, 6, ... of 28."""
    loads = {name: 10 * place for place, name in enumerate(NAMES)}
    wins = Counter(drawn(scheduler_of(loads), 28_000))
    for place, name in enumerate(NAMES):
        assert abs(wins[name] - 1000 * (7 - place)) < 400, wins


def test_equals_share() -> None:
    """R099: nobody is left out."""
    wins = Counter(drawn(scheduler_of(dict.fromkeys(NAMES, 3)), 8000))
    assert all(800 < wins[name] < 1200 for name in NAMES), wins


def test_better_is_by_weight() -> None:
    """R048, R096: 6 connections at a weight of 3 are fewer than 3 at a weight of 1."""
    assert set(drawn(scheduler_of({"a": 6, "b": 3}, {"a": 3, "b": 1}), 50)) == {"a"}


def test_loads_stay_close_together() -> None:
    """R096: the point of it: drawing one at random would spread 2,000 connections over 20 much wider."""
    names = [f"s{number}" for number in range(20)]
    lab = Scenario(virtual("web", names, scheduler="power-of-two"), reals(names), max_connections=3000)
    for _ in range(2000):
        lab.connect()
    loads = lab.loads().values()
    assert sum(loads) == 2000
    assert max(loads) - min(loads) <= 6, loads


def test_who_is_not_available_is_not_drawn() -> None:
    """R144, R184: weight 0, and who is full."""
    server = preset("power-of-two", dict.fromkeys("abc", 0))
    set_weight(server, "b", 0)
    assert {name_of(server.scheduler.choose(b"", -1)) for _ in range(50)} == {"a", "c"}
    set_weight(server, "b", 1)
    assert {name_of(server.scheduler.choose(b"", -1)) for _ in range(50)} == {"a", "b", "c"}
    lab = Scenario(virtual("web", "ab", scheduler="power-of-two"), [real("a", max_connections=2), real("b")])
    assert Counter(lab.connect().server for _ in range(10)) == {"a": 2, "b": 8}


def test_a_server_over_its_syn_limit_is_not_drawn_while_another_is_good() -> None:
    """R147, R150: not even where both that were drawn among all would be bad."""
    bad = dict.fromkeys("abcdefg", 5)
    server = preset("power-of-two", dict.fromkeys(NAMES, 0) | {"h": 1000}, unanswered=bad)
    assert {name_of(server.scheduler.choose(b"", -1)) for _ in range(100)} == {"h"}
    everybody = preset("power-of-two", {"a": 3, "b": 2}, unanswered={"a": 5, "b": 9})
    assert {name_of(everybody.scheduler.choose(b"", -1)) for _ in range(50)} == {"b"}


@TRIES
@given(st.lists(st.tuples(st.integers(0, len(NAMES) - 1), st.booleans()), max_size=60))
def test_the_books_of_who_can_be_drawn(moves: list[tuple[int, bool]]) -> None:
    """R104, R144: against a plain set, after every entering and leaving, whatever the order."""
    pool, expected = Pool(), set[int]()
    for position, inside in moves:
        pool.put(SERVER.links[position], inside)
        (expected.add if inside else expected.discard)(position)
        assert sorted(link.position for link in pool.links) == sorted(expected)


def test_leaving_costs_the_same_among_a_thousand() -> None:
    """R104: no list is searched or moved up: but one other link changes its place."""
    names = [f"s{number}" for number in range(1000)]
    links: list[Link] = preset("round-robin", dict.fromkeys(names, 0)).links
    pool = Pool()
    for link in links:
        pool.put(link, True)
    before = list(pool.links)
    pool.put(links[10], False)
    assert [at for at, link in enumerate(pool.links) if link is not before[at]] == [10]
    assert len(pool.links) == 999
    assert all(one is not other for one, other in pairwise(pool.links))
