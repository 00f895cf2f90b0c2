"""Weighted round robin: in turn, as often as the weight says, and smoothly."""

from collections import Counter
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.server import VirtualServer
from tests.core.preset import name_of, preset, set_weight
from tests.core.properties import TRIES
from tests.core.scenario import Scenario, real, reals, virtual


def made(weights: dict[str, float]) -> VirtualServer:
    """A virtual server whose real servers have these weights."""
    return preset("weighted-round-robin", dict.fromkeys(weights, 0), weights)


def turns(server: VirtualServer, times: int, refused: str = "") -> list[str]:
    """Who gets the next connections, each one being assigned."""
    result = []
    for _ in range(times):
        allowed = (lambda link: name_of(link) not in refused) if refused else None
        link = server.scheduler.choose(b"", server.last, allowed)
        assert link is not None
        server.last = link.position
        server.scheduler.chosen(link)
        result.append(name_of(link))
    return result


def test_no_bursts() -> None:
    """R048, R099: 3, 1 and 1 is a b a c a, and again."""
    assert "".join(turns(made({"a": 3, "b": 1, "c": 1}), 15)) == "abaca" * 3


def test_equal_weights_are_round_robin() -> None:
    """R099: whatever the weight is."""
    for weight in (1, 7, 0.3):
        assert "".join(turns(made(dict.fromkeys("abc", weight)), 9)) == "abcabcabc"


def test_shares_are_exact() -> None:
    """R048, R097: over every full cycle, a thousand times over."""
    server = made({"a": 7, "b": 2, "c": 1, "d": 3})
    for _ in range(1000):
        assert Counter(turns(server, 13)) == {"a": 7, "b": 2, "c": 1, "d": 3}


def test_weights_need_not_be_whole() -> None:
    """R048 (A14): 0.5, 1.5 and 2 are 1, 3 and 4 of eight."""
    server = made({"a": 0.5, "b": 1.5, "c": 2})
    for _ in range(50):
        assert Counter(turns(server, 8)) == {"a": 1, "b": 3, "c": 4}


@TRIES
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.sampled_from([1, 1000, 0.001, 1 / 3]))
def test_nobody_is_ever_a_whole_turn_behind_or_ahead(whole: list[int], scale: float) -> None:
    """R048, R097: after every choice each has its share to within one, after a cycle exactly."""
    server = made({"abcdefgh"[place]: weight * scale for place, weight in enumerate(whole)})
    served = Counter[str]()
    for number in range(1, 2 * sum(whole) + 1):
        served.update(turns(server, 1))
        for place, weight in enumerate(whole):
            assert abs(served["abcdefgh"[place]] - Fraction(number * weight, sum(whole))) <= 1
    assert [served["abcdefgh"[place]] for place in range(len(whole))] == [2 * weight for weight in whole]


def test_who_returns_does_not_catch_up() -> None:
    """R048, R099, R144: the turns it missed are gone."""
    server = made({"a": 1, "b": 1, "c": 1})
    turns(server, 3)
    set_weight(server, "c", 0)
    assert "".join(turns(server, 20)) == "ab" * 10
    set_weight(server, "c", 1)
    back = turns(server, 9)
    assert Counter(back) == {"a": 3, "b": 3, "c": 3}
    assert "cc" not in "".join(back)


def test_who_leaves_and_returns_at_once_gains_nothing() -> None:
    """R048: a server that was just served is not served again for having been away."""
    server = made({"a": 1, "b": 1})
    for _ in range(20):
        (first,) = turns(server, 1)
        set_weight(server, first, 0)
        set_weight(server, first, 1)
        (second,) = turns(server, 1)
        assert {first, second} == {"a", "b"}


def test_another_weight_counts_from_now_on() -> None:
    """R048: from the next cycle on at the latest."""
    server = made({"a": 1, "b": 1})
    turns(server, 10)
    set_weight(server, "a", 3)
    turns(server, 4)
    assert Counter(turns(server, 40)) == {"a": 30, "b": 10}


def test_what_is_left_of_a_long_wait_shrinks_with_a_greater_weight() -> None:
    """R048: nobody waits for a turn that only the former weight put off so far."""
    server = made({"a": 0.001, "b": 1})
    while turns(server, 1) != ["a"]:
        pass
    set_weight(server, "a", 1)
    turns(server, 2)
    assert Counter(turns(server, 20)) == {"a": 10, "b": 10}


def test_a_full_server_takes_no_turn() -> None:
    """R144, R184: until it has room again."""
    servers = [real("a", weight=2, max_connections=1), real("b"), real("c")]
    lab = Scenario(virtual("web", "abc", scheduler="weighted-round-robin"), servers)
    calls = [lab.connect() for _ in range(7)]
    assert "".join(call.server for call in calls) == "abcbcbc"
    calls[0].close()
    assert Counter(lab.connect().server for _ in range(5)) == {"a": 1, "b": 2, "c": 2}


def test_sticky_clients_take_no_turn() -> None:
    """R132, R133: the scheduler was not asked."""
    lab = Scenario(virtual("web", "abc", scheduler="weighted-round-robin", sticky=60), reals("abc"))
    lab.connect(client="198.51.100.1")
    for _ in range(5):
        assert lab.connect(client="198.51.100.1").server == "a"
    assert [lab.connect(client=f"198.51.100.{number}").server for number in (2, 3)] == ["b", "c"]


def test_a_refused_link_keeps_its_turn() -> None:
    """R144 (A5): it was only this one connection that it could not take."""
    server = made({"a": 1, "b": 1, "c": 1})
    assert turns(server, 1, refused="a") == ["b"]
    assert Counter(turns(server, 5)) == {"a": 2, "b": 1, "c": 2}


def test_servers_over_their_syn_limit_wait() -> None:
    """R147, R150: no turn while another is good; in turn among themselves where none is; no catching up."""
    server = preset("weighted-round-robin", dict.fromkeys("abc", 0), unanswered={"b": 5})
    assert "".join(turns(server, 6)) == "acacac"
    for link in server.links:
        link.real.unanswered = 5
        link.real.changed(0.0)
    assert Counter(turns(server, 30)) == {"a": 10, "b": 10, "c": 10}
    for link, good in zip(server.links, ("a", "ab", "abc"), strict=True):
        link.real.unanswered = 0
        link.real.changed(0.0)
        served = Counter(turns(server, 6))
        assert set(served) == set(good)
        for number in served.values():
            assert abs(number - 6 / len(good)) <= 1, "a turn at most, not all those of before"


def test_the_turns_of_a_thousand() -> None:
    """R048, R104: weights 1 to 10, a hundred servers each: one cycle of 5,500."""
    weights: dict[str, float] = {f"s{number}": number % 10 + 1 for number in range(1000)}
    served = Counter(turns(made(weights), 5500))
    assert served == weights


def test_turns_taken_while_all_were_bad_are_forgotten() -> None:
    """R147, R150: else a server that was away meanwhile would have to make up for them all."""
    server = preset("weighted-round-robin", dict.fromkeys("abc", 0), {"c": 0}, unanswered={"a": 5, "b": 5})
    assert Counter(turns(server, 60)) == {"a": 30, "b": 30}
    set_weight(server, "c", 1)
    assert turns(server, 1) == ["c"]
    for link in server.links:
        link.real.unanswered = 0
        link.real.changed(0.0)
    assert max(Counter(turns(server, 12)).values()) <= 5


def test_weights_that_no_binary_number_holds() -> None:
    """R048, R099 (A14): 2.1, 0.7 and 0.7 are 3, 1 and 1 for all that anybody can see."""
    assert "".join(turns(made({"a": 2.1, "b": 0.7, "c": 0.7}), 15)) == "abaca" * 3
