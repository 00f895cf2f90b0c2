"""The schedulers, one by one, and what a choice is (fig 7B)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.schedulers import SCHEDULERS, make_scheduler
from nfqlb.core.server import VirtualServer
from nfqlb.core.verdict import Drop
from tests.core.preset import name_of, preset, set_weight
from tests.core.properties import TRIES
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, real, reals, virtual

EVERY = sorted(SCHEDULERS)
RANKED = ("least-connections", "round-robin", "weighted-least-connections")


def chosen(lab: Scenario, times: int) -> str:
    """Who serves the next connections, in order."""
    return "".join(lab.connect().server for _ in range(times))


def choice(virtual_server: VirtualServer, last: int = -1) -> str | None:
    return name_of(virtual_server.scheduler.choose(b"", last)) or None


def test_round_robin_takes_turns() -> None:
    """R023, R099, R068: the next after the last used link, and round again."""
    assert chosen(Scenario(virtual("web", "abc"), reals("abc")), 7) == "abcabca"


def test_round_robin_passes_over_who_is_not_available() -> None:
    """R099, R144: weight 0 and full servers are not in the order."""
    servers = [real("a"), real("b", weight=0), real("c", max_connections=1), real("d")]
    assert chosen(Scenario(virtual("web", "abcd"), servers), 6) == "acdada"


def test_round_robin_heeds_neither_load_nor_weight() -> None:
    """R099: the order alone decides."""
    assert choice(preset("round-robin", {"a": 9, "b": 0}, {"a": 1, "b": 9})) == "a"


def test_round_robin_remembers_its_place_in_the_search_order() -> None:
    """R022, R023, R143, R144: the search starts at the first link, later after the last used one."""
    first = preset("round-robin", {"a": 0, "b": 0, "c": 0})
    assert [choice(first, last) for last in (-1, 0, 1, 2)] == ["a", "b", "c", "a"]


def test_least_connections_takes_the_lowest() -> None:
    """R095, R145, R148 (A30): the fewest connections get the next one."""
    assert choice(preset("least-connections", {"a": 3, "b": 1, "c": 2})) == "b"


def test_least_connections_heeds_no_weight() -> None:
    """R095: that is what the weighted one is for."""
    assert choice(preset("least-connections", {"a": 3, "b": 2}, {"a": 100, "b": 1})) == "b"


def test_ties_are_broken_after_the_last_used() -> None:
    """R095, T2 (A29): 4, 3, 3 connections, the second was used last: the third."""
    assert choice(preset("least-connections", {"a": 4, "b": 3, "c": 3}), last=1) == "c"
    assert choice(preset("weighted-least-connections", {"a": 4, "b": 3, "c": 3}), last=1) == "c"
    assert choice(preset("least-connections", {"a": 4, "b": 3, "c": 3}), last=2) == "b"


def test_least_connections_evens_out_what_lasts_unequally_long() -> None:
    """R020, R095: a server whose connections have ended is filled up first."""
    lab = Scenario(virtual("web", "abc", scheduler="least-connections"), reals("abc"))
    calls = [lab.connect() for _ in range(9)]
    for call in calls:
        if call.server == "b":
            call.close()
    assert lab.loads() == {"a": 3, "b": 0, "c": 3}
    assert chosen(lab, 3) == "bbb"
    assert lab.loads() == {"a": 3, "b": 3, "c": 3}


def test_the_patent_s_own_example() -> None:
    """R096, T1 (A31): weights 1, 2, 3 with 6 connections each: 6, 3, 2, and the lowest wins."""
    loads, weights = {"a": 6, "b": 6, "c": 6}, {"a": 1.0, "b": 2.0, "c": 3.0}
    assert choice(preset("weighted-least-connections", loads, weights)) == "c"


def test_weights_share_out_the_connections() -> None:
    """R048, R096: six times the weights' sum is shared exactly by weight."""
    servers = [real("a", weight=1), real("b", weight=2), real("c", weight=3)]
    lab = Scenario(virtual("web", "abc", scheduler="weighted-least-connections"), servers)
    chosen(lab, 36)
    assert lab.loads() == {"a": 6, "b": 12, "c": 18}


def test_weights_need_not_be_whole() -> None:
    """R048 (A14): a weight is a positive number."""
    servers = [real("a", weight=0.5), real("b", weight=1.5)]
    lab = Scenario(virtual("web", "ab", scheduler="weighted-least-connections"), servers)
    chosen(lab, 40)
    assert lab.loads() == {"a": 10, "b": 30}


def test_equal_weights_are_least_connections() -> None:
    """R096: with equal weights, whatever they are, the two choose alike."""
    labs = [
        Scenario(virtual("web", "abc", scheduler=scheduler), [real(name, weight=7) for name in "abc"])
        for scheduler in ("least-connections", "weighted-least-connections")
    ]
    for lab in labs:
        calls = [lab.connect() for _ in range(10)]
        calls[3].close()
        calls[4].reset()
    assert chosen(labs[0], 12) == chosen(labs[1], 12)


def test_equal_shares_are_seen_as_ties() -> None:
    """R096 (A29): 1 of 3 and 2 of 6 are the same share, so the order after the last one decides."""
    loads, weights = {"a": 1, "b": 2, "c": 3}, {"a": 3.0, "b": 6.0, "c": 9.0}
    server = preset("weighted-least-connections", loads, weights)
    assert [choice(server, last) for last in (-1, 0, 1, 2)] == ["a", "b", "c", "a"]


def test_extreme_weights_stay_in_the_running() -> None:
    """R048, R096: the smallest weight a config may have, with very many connections."""
    server = preset("weighted-least-connections", {"a": 1_000_000}, {"a": 0.001})
    assert choice(server) == "a"


@pytest.mark.parametrize("scheduler", EVERY)
def test_nobody_available_is_nobody(scheduler: str) -> None:
    """R144, R150: no server is a possible answer."""
    server = preset(scheduler, {"a": 0, "b": 0}, {"a": 0, "b": 0})
    assert choice(server) is None
    assert server.scheduler.choose(b"", 0, lambda link: True) is None


@pytest.mark.parametrize("scheduler", RANKED)
def test_a_choice_can_be_narrowed(scheduler: str) -> None:
    """R144 (A5): links may be refused for one choice; the same scheme decides among the others."""
    server = preset(scheduler, {"a": 0, "b": 2, "c": 2, "d": 3})

    def among(allowed: str, last: int = -1) -> str:
        return name_of(server.scheduler.choose(b"", last, lambda each: name_of(each) in allowed))

    assert among("abcd") == "a"
    assert among("bcd") == "b"
    assert among("bcd", last=1) == "c"
    assert among("bcd", last=2) == ("d" if scheduler == "round-robin" else "b")
    assert among("d") == "d"
    assert among("") == ""


@pytest.mark.parametrize("scheduler", EVERY)
def test_a_refused_link_is_never_chosen(scheduler: str) -> None:
    """R144 (A5): whatever the scheme."""
    server = preset(scheduler, dict.fromkeys("abcd", 0), {"a": 5, "b": 1, "c": 2, "d": 0})

    def among(allowed: str, client: int) -> str:
        link = server.scheduler.choose(b"%d" % client, -1, lambda each: name_of(each) in allowed)
        return name_of(link)

    assert {among("bc", client) for client in range(40)} <= {"b", "c"}
    assert {among("cd", client) for client in range(40)} == {"c"}
    assert {among("d", client) for client in range(40)} == {""}


@pytest.mark.parametrize("scheduler", [name for name in EVERY if name != "power-of-two"])
def test_choosing_counts_nothing(scheduler: str) -> None:
    """R104, R133: only an assigned connection moves anything."""
    server = preset(scheduler, {"a": 0, "b": 0})
    assert len({choice(server) for _ in range(5)}) == 1


@pytest.mark.parametrize("scheduler", EVERY)
def test_one_server_is_always_the_one(scheduler: str) -> None:
    """R010: a virtual server may have just one."""
    assert chosen(Scenario(virtual("web", "a", scheduler=scheduler), reals("a")), 3) == "aaa"


@pytest.mark.parametrize("scheduler", EVERY)
def test_every_scheduler_goes_by_its_name(scheduler: str) -> None:
    """R016, R028, R029, R134, R138: one per virtual server; with no startup scheme it acts."""
    lab = Scenario([virtual("web", "ab", scheduler=scheduler), virtual("x", "a", port=1)], reals("ab"))
    assert lab.virtual("web").desired == lab.virtual("web").actual == scheduler
    assert lab.virtual("x").desired == "round-robin"


def test_an_unknown_scheduler_is_refused() -> None:
    """R028: by name."""
    with pytest.raises(KeyError, match="fair"):
        make_scheduler(replace(virtual("web", ""), scheduler="fair"), [])


def test_the_default_scheduler() -> None:
    """R096 (A33): weighted least connections."""
    from nfqlb.core.spec import Virtual

    assert Virtual("web", virtual("w", "a").address, ()).scheduler == "weighted-least-connections"


def test_counts_are_read_when_a_server_is_chosen() -> None:
    """R104: a connection that ends between two SYNs is seen by the second."""
    lab = Scenario(virtual("web", "ab", scheduler="least-connections"), reals("ab"))
    first = lab.connect()
    lab.connect()
    first.reset()
    assert lab.connect().server == "a"


def test_the_last_used_link_moves_only_when_a_connection_is_assigned() -> None:
    """R023, R099 (A12): neither a repeated SYN nor a refused one takes a turn."""
    lab = Scenario(virtual("web", "abc"), reals("abc"), max_connections=2)
    first = lab.connect()
    first.syn()
    lab.dial().syn_ack().ack()
    assert lab.dial().refused is not None
    first.close()
    assert lab.connect().server == "c"


_events = st.lists(st.tuples(st.sampled_from("dddaarcww"), st.integers(0, 11)), max_size=60)


@pytest.mark.parametrize("scheduler", EVERY)
@TRIES
@given(events=_events, startup=st.sampled_from(["none", "round-robin"]))
def test_whoever_is_chosen_may_be_chosen(scheduler: str, startup: str, events: list[tuple[str, int]]) -> None:
    """R104, R144, R147, R150, R184: after any order of events an available server, a good one if any is."""
    shop = replace(virtual("web", "abcd", scheduler=scheduler), startup=startup)
    servers = [
        replace(each, max_connections=6, syn_limit=2, attempts=0, failure_threshold=0)
        for each in reals("abcd")
    ]
    lab = Scenario(shop, servers)
    links, calls = lab.director.virtual_servers[0].links, list[Call]()
    for event, number in events:
        if event == "d":
            available = {name_of(link) for link in links if link.available}
            good = {name_of(link) for link in links if link.available and link.real.unanswered < 2}
            call = lab.dial(client=f"192.0.2.{number}")
            assert (call.server in (good or available)) if available else call.refused is Drop.NO_SERVER
            calls += [call] if available else []
        elif event == "w":
            set_weight(lab.director.virtual_servers[0], "abcd"[number % 4], number // 4)
        elif calls:
            call = calls.pop(number % len(calls))
            call.syn_ack().ack() if event == "a" else call.reset() if event == "r" else call.refusal()
        audit(lab.director)
