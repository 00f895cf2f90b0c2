"""Fastest response: the lowest prediction wins, and whoever is not measured is tried (figs 7B and 9)."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.response import Ageing, Linear, ResponseTime
from nfqlb.core.schedulers.fastest_response import FastestResponse
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.spec import Real
from tests.core.preset import name_of
from tests.core.properties import TRIES
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, address_of, reals, virtual
from tests.core.test_startup import back, out

Known = Mapping[str, tuple[int, float, float]]


def site(servers: str = "abc", **keys: Any) -> Scenario:
    """One virtual server under fastest-response."""
    web = replace(virtual("web", servers, scheduler="fastest-response"), **keys)
    return Scenario(web, reals(servers), max_connections=100_000)


def situation(
    known: Known, *, ageing: Ageing | None = None, unanswered: Mapping[str, int] | None = None, **keys: Any
) -> FastestResponse:
    """The scheduler of servers with so many connections, an R, and the time it was taken."""
    made = {name: RealServer(Real(name, address_of(name)), 0.0) for name in known}
    web = VirtualServer(replace(virtual("web", known, scheduler="fastest-response"), **keys), made)
    for name, (connections, ratio, at) in known.items():
        server = made[name]
        server.connections, server.unanswered = connections, (unanswered or {}).get(name, 0)
        server.response = ResponseTime(ratio, ratio, at)
        server.changed(0.0)
    assert isinstance(web.scheduler, FastestResponse)
    return web.scheduler if ageing is None else FastestResponse(web.links, ageing)


def choice(scheduler: FastestResponse, now: float, last: int = -1, among: str = "") -> str:
    """Who is chosen at a time."""
    scheduler.now = now
    allowed: Callable[[Link], bool] | None = (lambda link: name_of(link) in among) if among else None
    return name_of(scheduler.choose(b"", last, allowed))


def ask(lab: Scenario, seconds: float, *, close: bool = True) -> str:
    """A client's one request, answered after so long; who answered."""
    call = lab.connect().says()
    server = call.server
    lab.wait(seconds)
    call.hears()
    if close:
        call.close()
    return server


class TestTheChoice:
    """R087, R098, R104, R160: by figure 9, at the time of the choice."""

    def test_the_lowest_prediction_wins(self) -> None:
        """R098 (A30): connections times R, less the age over four."""
        scheduler = situation({"a": (4, 0.1, 10.0), "b": (1, 0.3, 10.0), "c": (100, 0.01, 10.0)})
        assert choice(scheduler, 10.0) == "b"
        assert [round(scheduler.indicium(link), 6) for link in scheduler._links] == [0.4, 0.3, 1.0]
        scheduler.now = 11.0
        assert [round(scheduler.indicium(link), 6) for link in scheduler._links] == [0.15, 0.05, 0.75]

    def test_below_0_wins_over_any_that_is_not(self) -> None:
        """R092, R093, T5 (A15): and the stalest wins among those below it."""
        scheduler = situation({"a": (0, 0.1, 99.0), "b": (4, 0.1, 98.0), "c": (1, 0.001, 100.0)})
        assert choice(scheduler, 100.0) == "a"
        scheduler = situation({"a": (0, 0.1, 99.0), "b": (4, 0.1, 90.0), "c": (1, 0.001, 100.0)})
        assert choice(scheduler, 100.0) == "b"

    def test_exclusively_until_it_worsens(self) -> None:
        """R098: by its own load, as each connection adds R to what is predicted for the next."""
        lab = site("ab", ageing=1e6)
        assert {ask(lab, 0.1), ask(lab, 0.1)} == {"a", "b"}
        for name, ratio in (("a", 0.1), ("b", 0.5)):
            lab.director.real_servers[name].responded(ratio, lab.now, clamp=0, raw=True)
        assert "".join(lab.connect().server for _ in range(8)) == "abaaaaba"

    def test_idle_servers_are_equal_but_for_age(self) -> None:
        """R098 (A15b): with no connection R does not matter, unless the next one is counted."""
        known = {"a": (0, 9.0, 10.0), "b": (0, 0.1, 10.5)}
        assert choice(situation(known), 11.0) == "a"
        assert choice(situation(known, predict="next"), 11.0) == "b"

    def test_equals_are_taken_in_turn(self) -> None:
        """R098 (A29): in the order after the last used."""
        scheduler = situation({"a": (1, 0.5, 3.0), "b": (2, 0.25, 3.0), "c": (4, 0.125, 3.0)})
        assert [choice(scheduler, 5.0, last) for last in (-1, 0, 1, 2)] == ["a", "b", "c", "a"]

    def test_bad_machines_come_last(self) -> None:
        """R147, R150: whoever has its limit of unanswered SYNs, however fast it is said to be."""
        known = {"a": (1, 0.001, 5.0), "b": (1, 0.5, 5.0), "c": (1, 0.4, 5.0)}
        assert choice(situation(known, unanswered={"a": 5}), 5.0) == "c"
        assert choice(situation(known, unanswered={"a": 5, "b": 5, "c": 5}), 5.0) == "a"

    def test_a_choice_can_be_narrowed(self) -> None:
        """R144 (A5)."""
        scheduler = situation({"a": (1, 0.1, 5.0), "b": (1, 0.2, 5.0), "c": (1, 0.3, 5.0)})
        chosen = [choice(scheduler, 5.0, among=among) for among in ("abc", "bc", "c", "x")]
        assert chosen == ["a", "b", "c", ""]

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 1000), st.integers(0, 4096), st.integers(0, 1 << 20), st.integers(0, 8),
                st.booleans(),
            ), min_size=1, max_size=12,
        ),
        st.sampled_from([1.0, 4.0, 0.5, 16.0]),
        st.sampled_from(["now", "next"]),
        st.integers(-1, 11),
        st.sets(st.integers(0, 11)),
    )  # fmt: skip
    @TRIES
    def test_figure_9_to_the_letter(
        self,
        servers: list[tuple[int, int, int, int, bool]],
        number: float,
        predict: str,
        last: int,
        barred: set[int],
    ) -> None:
        """R087, R098, R104, R144, R147, R150, R158-R160 (A29): the least of exact fractions, by search."""
        names = "abcdefghijkl"[: len(servers)]
        now = Fraction(1 << 21, 1024)
        known = {
            name: (connections, ratio / 1024, at / 1024)
            for name, (connections, ratio, at, _, _) in zip(names, servers, strict=True)
        }
        unanswered = {name: each[3] for name, each in zip(names, servers, strict=True)}
        linear = situation(known, unanswered=unanswered, ageing=Linear(number), predict=predict)
        searched = situation(
            known, unanswered=unanswered, ageing=lambda _ratio, age: age / number, predict=predict
        )
        for scheduler in (linear, searched):
            for link, (*_, out_of_service) in zip(scheduler._links, servers, strict=True):
                link.real.weight = 0 if out_of_service else 1
                link.real.changed(0.0)
                scheduler.update(link)

        def rank(at: int) -> tuple[bool, Fraction, bool, int]:
            connections, ratio, taken, waiting, _ = servers[at]
            load = (connections + (predict == "next")) * Fraction(ratio, 1024)
            predicted = load - (now - Fraction(taken, 1024)) / Fraction(number)
            return waiting >= 5, predicted, at <= last, at

        def best(positions: list[int]) -> str:
            return names[min(positions, key=rank)] if positions else ""

        usable = [at for at, each in enumerate(servers) if not each[4]]
        allowed = "".join(names[at] for at in range(len(names)) if at not in barred) or "-"
        narrowed = [at for at in usable if names[at] in allowed]
        for scheduler in (linear, searched):
            assert choice(scheduler, float(now), last) == best(usable)
            assert choice(scheduler, float(now), last, among=allowed) == best(narrowed)


class TestAgeing:
    """R088-R090, R092, R093 (A32): a prediction sinks by itself, and so everybody's turn comes."""

    def test_a_slow_server_is_tried_again(self) -> None:
        """R092, R093: when its age has made up for its slowness, with one connection, and again."""
        lab = site("ab")
        held: list[Call] = []
        for _ in range(2):  # one connection stays with each
            call = lab.connect().says()
            lab.wait({"a": 0.01, "b": 2.0}[call.server])
            held.append(call.hears())
        tried = []
        for step in range(300):
            call = lab.connect().says()
            if call.server == "b":
                tried.append(step)
            lab.wait(0.1)
            call.hears().close()
            if call.server == "b":
                lab.director.real_servers["b"].responded(4.0, lab.now, clamp=0, raw=False)
        assert 2 <= len(tried) <= 6, tried
        assert all(later - earlier > 30 for earlier, later in pairwise(tried))

    @pytest.mark.parametrize(("ageing", "after"), [(4.0, 8.0), (1.0, 2.0), (40.0, 80.0)])
    def test_the_number_can_be_set(self, ageing: float, after: float) -> None:
        """R089: how fast a prediction improves: here by 2 s over that of one just measured."""
        known = {"a": (1, 0.0, 1000.0), "b": (1, 2.0, 1000.0 - after)}
        assert choice(situation(known, ageing=Linear(ageing)), 1000.0) == "a"
        sooner = {"a": (1, 0.0, 1000.0), "b": (1, 2.0, 999.9 - after)}
        assert choice(situation(sooner, ageing=Linear(ageing)), 1000.0) == "b"

    def test_any_function_will_do(self) -> None:
        """R090: one that halves R every ten seconds, one by the square of the age: found by a search."""

        def halving(ratio: float, age: float) -> float:
            return ratio * (1 - float(0.5 ** (age / 10)))

        known = {"a": (1, 0.8, 0.0), "b": (1, 1.0, 0.0), "c": (1, 0.3, 30.0)}
        assert choice(situation(known), 30.0) == "a"
        assert choice(situation(known, ageing=halving), 30.0) == "a"
        known["a"] = (1, 0.8, 20.0)
        assert choice(situation(known), 30.0) == "b"
        assert choice(situation(known, ageing=halving), 30.0) == "b"
        known["b"] = (9, 1.0, 0.0)
        assert choice(situation(known, ageing=halving), 30.0) == "c"
        squared = situation({"a": (1, 9.0, 0.0), "b": (1, 5.0, 1.0)}, ageing=lambda _ratio, age: age * age)
        assert [choice(squared, now) for now in (1.0, 2.0, 4.0)] == ["b", "b", "a"]


class TestNotMeasured:
    """R093, R102: what takes the place of a prediction that nobody can make yet."""

    def test_each_is_tried_first(self) -> None:
        """R102: once, before any that has been measured."""
        lab = site("abcd")
        assert "".join(lab.connect().server for _ in range(4)) == "abcd"

    def test_one_that_comes_into_service_is_tried_at_once(self) -> None:
        """R101: with one connection; its response decides on more."""
        lab = site("abc")
        out(lab, "c")
        for _ in range(20):
            ask(lab, 0.01, close=False)
        back(lab, "c")
        assert lab.connect().server == "c"
        assert "c" not in {lab.connect().server for _ in range(10)}

    def test_one_that_never_answers_gets_few(self) -> None:
        """R093: it accepts, and says nothing: held to need a second a connection from its last try on."""
        lab = site("ab")
        served = Counter[str]()
        calls = []
        for _ in range(1000):
            call = lab.connect().says()
            served[call.server] += 1
            lab.wait(0.05)
            calls.append(call)
            if call.server == "a":
                call.hears()
            if len(calls) > 20:
                calls.pop(0).close()
        assert lab.real("b").response is None
        assert 1 <= served["b"] <= 150, served
        audit(lab.director)

    def test_one_that_closes_what_it_accepts_gets_few(self) -> None:
        """R093: it has no connection whenever anybody looks."""
        lab = site("ab")
        served = Counter[str]()
        held: list[Call] = []
        for _ in range(400):
            call = lab.connect().says()
            served[call.server] += 1
            lab.wait(0.05)
            held.append(call.hears() if call.server == "a" else call.server_reset())
            if len(held) > 20:
                held.pop(0).close()
        assert lab.real("b").response is None
        assert 1 <= served["b"] <= 20, served

    def test_none_has_ever_answered(self) -> None:
        """R102: then they share, by their connections."""
        lab = site("abc")
        served = Counter(lab.connect().server for _ in range(30))
        assert served == {"a": 10, "b": 10, "c": 10}

    def test_after_a_restart_connections_do_not_count_against_them(self) -> None:
        """R102: a successor knows connections and no responses; it tries each server all the same."""
        lab = site("ab")
        first = site("ab")
        for _ in range(20):
            call = first.connect()
            server = call.reply_key[:4] + call.reply_key[8:10]
            assert lab.director.restore(call.key, server, 3, -1, opened=0.0, now=lab.now)
        lab.director.restored(lab.now)
        assert {ask(lab, 0.01, close=False), ask(lab, 0.01, close=False)} == {"a", "b"}


class TestStartup:
    """R102, R135, R139, R140 (A11): with `startup = "round-robin"`, in turn until all have been measured."""

    def test_a_director_that_has_just_been_turned_on(self) -> None:
        """R100, R102, R103."""
        lab = site("abc", startup="round-robin", startup_time=0)
        assert "".join(lab.connect().server for _ in range(7)) == "abcabca"
        assert lab.virtual().actual == "round-robin"
        for _ in range(3):
            assert lab.virtual().actual == "round-robin"
            ask(lab, 0.01)
        lab.connect()
        assert (lab.virtual().desired, lab.virtual().actual) == ("fastest-response", "fastest-response")

    def test_only_who_may_be_chosen_is_waited_for(self) -> None:
        """R102, R144: in service, that is; and it is waited for when it comes back."""
        lab = site("abc", startup="round-robin", startup_time=0)
        out(lab, "c")
        ask(lab, 0.01)
        ask(lab, 0.01)
        lab.connect()
        assert lab.virtual().actual == "fastest-response"
        back(lab, "c")
        assert {lab.connect().server for _ in range(3)} == set("abc")
        assert lab.virtual().actual == "round-robin"

    def test_other_schemes_wait_for_nobody(self) -> None:
        """R102, R138: response times are nothing to them."""
        lab = Scenario(
            replace(
                virtual("web", "ab", scheduler="least-connections"), startup="round-robin", startup_time=0
            ),
            reals("ab"),
        )
        lab.connect()
        assert lab.virtual().actual == "least-connections"


def test_samples_of_another_virtual_server_count() -> None:
    """R094: one response time a server, whoever's traffic it is taken from."""
    web = [virtual("fast", "ab", scheduler="fastest-response"), virtual("plain", "ba", port=81)]
    lab = Scenario(web, reals("ab"))
    call = lab.connect("plain").says()
    lab.wait(1)
    assert call.hears().server == "b"
    assert lab.connect("fast").server == "a"
    call = lab.connect("plain").says()
    lab.wait(0.001)
    assert call.hears().server == "a"
    assert [lab.connect("fast").server for _ in range(3)] == ["a", "a", "a"]


@TRIES
@given(st.lists(st.tuples(st.sampled_from("daahhhrcw"), st.integers(0, 9)), max_size=60))
def test_after_any_traffic_the_lowest_prediction_wins(events: list[tuple[str, int]]) -> None:
    """R098, R104 (A35): the ranking kept up to date, against predictions made anew from what is seen."""
    lab = site("abcd", ageing=4)
    scheduler = lab.director.virtual_servers[0].scheduler
    assert isinstance(scheduler, FastestResponse)
    calls = list[Call]()
    for event, number in events:
        if event == "d":
            calls.append(lab.connect(client=f"192.0.2.{number}"))
        elif event == "w":
            lab.wait(number / 8)
        elif calls:
            call = calls[number % len(calls)]
            if event in "rc":
                calls.remove(call)
            {"a": call.says, "h": call.hears, "r": call.reset, "c": call.close}[event]()
        scheduler.now = lab.now
        chosen = scheduler.choose(b"", lab.director.virtual_servers[0].last)
        assert chosen is not None
        least = min(scheduler.indicium(link) for link in lab.director.virtual_servers[0].links)
        assert scheduler.indicium(chosen) == pytest.approx(least, abs=1e-9)
        kept = chosen.real.response
        if kept.last is not None:
            load = lab.loads()[name_of(chosen)]
            assert scheduler.indicium(chosen) == pytest.approx(load * kept.ratio - (lab.now - kept.at) / 4)
        audit(lab.director)
