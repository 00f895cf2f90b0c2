"""A second scheme that is asked and never obeyed, against a plain search of everything."""

from collections.abc import Iterator
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.core import spec
from nfqlb.core.keys import client_of
from nfqlb.core.schedulers import SCHEDULERS
from nfqlb.core.selection import Choice, Selection
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.snapshot import ShadowSnapshot
from nfqlb.core.states import State
from nfqlb.core.verdict import Drop
from tests.core.properties import TRIES
from tests.core.scenario import Call, Scenario, real, virtual

SERVERS = "abcd"
EVERY = sorted(SCHEDULERS)
SOME = settings(TRIES, max_examples=40)  # of stories that are long


def shadowed(scheduler: str, shadow: str, **keys: Any) -> spec.Virtual:
    """A virtual server of four, whose scheduler has a shadow."""
    return replace(virtual("web", SERVERS, scheduler=scheduler), shadow=shadow, **keys)


def site(scheduler: str, shadow: str, **keys: Any) -> Scenario:
    """Its servers are of unlike weights."""
    weights = zip(SERVERS, (1, 2, 3, 1), strict=True)
    return Scenario(shadowed(scheduler, shadow, **keys), [real(name, weight=each) for name, each in weights])


def seen(lab: Scenario) -> ShadowSnapshot:
    """What the shadow has counted."""
    found = lab.virtual("web").shadow
    assert found is not None
    return found


def would(lab: Scenario) -> str | None:
    """Whom the shadow would have taken for the last decision."""
    told = lab.why().shadow
    return told.real if told else None


def test_it_is_counted_where_another_would_have_been_taken() -> None:
    lab = site("round-robin", "least-connections")
    lab.connect()  # a, for both: all are equal
    busy = lab.connect()  # b, for both
    assert (busy.server, would(lab)) == ("b", "b")
    assert seen(lab) == ShadowSnapshot("least-connections", 2, 0)
    lab.director.table.remove(busy.connection, lab.now)
    third = lab.connect()  # c in turn; b, c and d have none, and c comes next
    assert (third.server, would(lab)) == ("c", "c")
    fourth = lab.connect()
    assert (fourth.server, would(lab)) == ("d", "d")
    fifth = lab.connect()  # a has its turn, b none
    assert (fifth.server, would(lab)) == ("a", "b")
    assert seen(lab) == ShadowSnapshot("least-connections", 5, 1)


def test_where_there_is_none_nothing_is_told() -> None:
    lab = Scenario(virtual("web", SERVERS), [real(name) for name in SERVERS])
    lab.connect()
    assert lab.virtual("web").shadow is None
    assert lab.why().shadow is None


def test_its_turns_are_its_own() -> None:
    """A shadow that takes turns goes on from its own last choice, wherever the connections went."""
    lab = site("source-hash", "round-robin")
    chosen = [(lab.connect(client="192.0.2.9").server, would(lab)) for _ in range(5)]
    assert len({server for server, _ in chosen}) == 1
    assert [shadow for _, shadow in chosen] == ["a", "b", "c", "d", "a"]


def test_weighted_turns_are_its_own() -> None:
    lab = site("source-hash", "weighted-round-robin")
    chosen = []
    for _ in range(14):
        lab.connect(client="192.0.2.9")
        chosen.append(would(lab))
    assert {name: chosen.count(name) for name in SERVERS} == {"a": 2, "b": 4, "c": 6, "d": 2}


@pytest.mark.parametrize("scheduler", EVERY)
def test_a_sticky_clients_connection_is_no_decision_of_the_scheduler(scheduler: str) -> None:
    lab = site("round-robin", scheduler, sticky=60.0)
    for _ in range(3):
        lab.connect(client="192.0.2.1")
    assert seen(lab).evaluated == 1
    assert would(lab) is None
    lab.connect(client="192.0.2.2")
    assert seen(lab).evaluated == 2
    assert would(lab) is not None


def test_a_test_and_a_backup_are_none_either() -> None:
    one = replace(real("a"), failure_threshold=1, failure_clients=1, retry=5.0, attempts=2)
    lab = Scenario(replace(virtual("web", "a"), backup="b", shadow="least-connections"), [one, real("b")])
    assert lab.dial(port=1).syn().server == "b"  # not answered: the backup takes it
    assert lab.why().by == "backup"
    assert (seen(lab).evaluated, would(lab)) == (1, None)
    lab.wait(6)
    assert lab.dial(port=2).server == "a"
    assert lab.why().by == "test"
    assert (seen(lab).evaluated, would(lab)) == (1, None)


def test_nor_is_what_the_startup_scheduler_places() -> None:
    keys = {"startup": "round-robin", "startup_test": "before"}
    lab = site("least-connections", "source-hash", **keys)
    lab.connect()  # nobody has less than a share of nothing
    lab.connect()
    assert lab.why().by == "startup"
    assert (seen(lab).evaluated, would(lab)) == (1, None)
    lab.wait(61)
    lab.connect()
    assert seen(lab).evaluated == 2


def test_a_connection_that_is_sent_on_is_one_more_decision() -> None:
    """And what had not answered is no choice for the shadow either (R111, R141)."""
    lab = Scenario(
        replace(virtual("web", "ab"), shadow="least-connections"),
        [replace(each, attempts=2, failure_threshold=0) for each in (real("a"), real("b"))],
    )
    call = lab.dial()
    assert (call.server, would(lab)) == ("a", "a")
    call.syn()
    assert (call.server, would(lab)) == ("b", "b")
    assert seen(lab) == ShadowSnapshot("least-connections", 2, 0)


def test_what_came_to_nothing_is_not_counted() -> None:
    lab = Scenario(
        replace(virtual("web", "ab"), shadow="least-connections"), [real("a"), real("b")], max_connections=1
    )
    lab.connect()
    assert lab.dial().refused is Drop.TABLE_FULL
    assert seen(lab).evaluated == 1


def test_a_server_that_it_would_have_tried_was_not_tried() -> None:
    """R094: a server that was never measured stays so for every scheduler that is obeyed."""
    virtuals = [
        shadowed("source-hash", "fastest-response"),
        virtual("fast", SERVERS, port=81, scheduler="fastest-response"),
    ]
    lab = Scenario(virtuals, [real(name) for name in SERVERS])
    tried = set()
    for _ in range(4):
        lab.dial("web", client="192.0.2.9")
        tried.add(would(lab))
        lab.wait(0.1)
    assert tried == set(SERVERS)  # each once, by the shadow's own account
    assert all(each.response.tried == -inf for each in lab.director.real_servers.values())
    assert {lab.dial("fast").server for _ in range(4)} == set(SERVERS)


@pytest.mark.parametrize("after", ["", "least-connections"])
def test_another_shadow_is_nothing_to_the_scheduler(after: str) -> None:
    """R099: a reload that changes the shadow alone leaves everybody's turn as it is."""
    lab = site("weighted-round-robin", "round-robin")
    plain = site("weighted-round-robin", "")
    before = [(lab.connect().server, plain.connect().server) for _ in range(3)]
    web = replace(lab.config.virtuals[0], shadow=after)
    lab.director.reconfigure(replace(lab.config, virtuals=(web,)), lab.now)
    later = [(lab.connect().server, plain.connect().server) for _ in range(5)]
    assert all(one == other for one, other in before + later)
    found = lab.virtual("web").shadow
    assert (found.scheduler if found else "") == after
    assert (would(lab) is not None) is bool(after)


# --- properties

_steps = st.lists(
    st.one_of(
        st.tuples(st.just("dial"), st.integers(0, 7)),
        st.tuples(st.just("dial"), st.integers(0, 7)),
        st.tuples(st.sampled_from(["syn", "answer", "answer", "refuse", "close"]), st.integers(0, 9)),
        st.tuples(st.sampled_from(["wait", "weigh"]), st.integers(0, 15)),
    ),
    min_size=20,
    max_size=80,
)


def _play(lab: Scenario, steps: list[tuple[str, int]]) -> Iterator[Call | None]:
    """Clients call, servers answer or do not, time passes, weights change: yields each new call."""
    calls: list[Call] = []
    for what, number in steps:
        if what == "dial":
            calls.append(lab.dial(client=f"192.0.2.{number}"))
            yield calls[-1]
        elif what == "wait":
            lab.wait(number / 4)
        elif what == "weigh":
            name = SERVERS[number % 4]
            lab.director.operation.set_real(name, weight=number // 4, now=lab.now)
        elif calls:
            call = calls[-1 - number % len(calls)]
            if call.refused is None and call.connection.state is not State.GONE:
                _go_on(lab, call, what)
        yield None


def _go_on(lab: Scenario, call: Call, what: str) -> None:
    if what == "syn":
        call.syn()
    elif what == "answer":
        call.syn_ack().ack().says()
        lab.wait(0.1)
        call.hears()
    elif what == "refuse":
        call.refusal()
    else:
        call.fin().server_fin()


def _sites(scheduler: str, shadow: str, *, sticky: float = 0.0) -> Scenario:
    """Servers of unlike weights that are soon full, overloaded or failed; one has a backup."""
    made = [
        replace(real("a"), syn_limit=2, failure_threshold=2, failure_clients=1, retry=5.0, backup="d"),
        replace(real("b", weight=2, max_connections=6), syn_limit=1, failure_threshold=0),
        replace(real("c", weight=3), syn_limit=0, failure_threshold=3, failure_clients=1, retry=5.0),
        real("d"),
    ]
    one = replace(virtual("web", "abc", scheduler=scheduler, sticky=sticky), shadow=shadow)
    return Scenario(one, made)


class Oracle(Selection):
    """Says by a plain search what a shadow must choose, before each choice that the scheduler makes."""

    expected: list[str]

    @classmethod
    def watch(cls, lab: Scenario, shadow: str) -> "Oracle":
        placement: Any = lab.director.placement
        oracle = cls(lab.director.fpas, lab.director.watch, lab.director.table.outbound, lab.director.doubts)
        oracle.expected, oracle.last, oracle.tried = [], -1, dict[int, float]()
        oracle.shadow = shadow
        placement._selection = oracle
        return oracle

    shadow: str
    last: int
    tried: dict[int, float]

    def choose(
        self, web: VirtualServer, key: bytes, now: float, *, avoid: RealServer | None = None
    ) -> Choice | Drop:
        able = [link for link in web.links if link.available and link.real is not avoid]
        doubted = self._doubts.of(web, client_of(key), now)
        in_turn = ([link for link in able if link.real is real] for real in doubted)
        able = [link for link in able if link.real not in doubted] or next(filter(None, in_turn), [])
        best = min(able, key=lambda link: self._rank(link, now), default=None)
        outcome = super().choose(web, key, now, avoid=avoid)
        if isinstance(outcome, Choice) and outcome.by == web.scheduler.name:
            assert best is not None
            self.expected.append(best.real.spec.name)
            self.last = best.position
            self.tried[best.position] = now
        elif isinstance(outcome, Choice):
            self.last = outcome.link.position
        return outcome

    def _rank(self, link: Link, now: float) -> tuple[bool, float, bool, int]:
        return (link.real.overloaded, self._judged(link, now), link.position <= self.last, link.position)

    def _judged(self, link: Link, now: float) -> float:
        real = link.real
        if self.shadow == "round-robin":
            return 0.0
        if self.shadow == "least-connections":
            return real.connections
        if self.shadow == "weighted-least-connections":
            return real.connections / real.weight
        if real.response.last is not None:
            return round(real.connections * real.response.ratio - (now - real.response.at) / 4, 9)
        tried = self.tried.get(link.position, -inf)
        return real.connections + 1 - (now - tried) / 4


@pytest.mark.parametrize(
    "shadow", ["round-robin", "least-connections", "weighted-least-connections", "fastest-response"]
)
@SOME
@given(steps=_steps, scheduler=st.sampled_from(["round-robin", "source-hash", "least-connections"]))
def test_it_says_what_a_plain_search_says(shadow: str, steps: list[tuple[str, int]], scheduler: str) -> None:
    """R095-R099: among the servers of that moment, with the shadow's own order of equals."""
    lab = _sites(scheduler, shadow, sticky=3.0)
    oracle = Oracle.watch(lab, shadow)
    for _ in _play(lab, steps):
        pass
    told = [each.shadow.real for each in reversed(lab.decisions()) if each.shadow]
    assert told == oracle.expected
    went = [each.chosen for each in reversed(lab.decisions()) if each.shadow]
    wrong = sum(one != other for one, other in zip(told, went, strict=True))
    assert seen(lab) == ShadowSnapshot(shadow, len(told), wrong)


@pytest.mark.parametrize("shadow", ["source-hash", "maglev"])
def test_it_says_what_a_scheduler_made_anew_says(shadow: str) -> None:
    """The hashing ones keep nothing of the past, so one that is made for this moment says the same."""
    compared = 0

    @SOME
    @given(steps=_steps)
    def play(steps: list[tuple[str, int]]) -> None:
        nonlocal compared
        lab = _sites("round-robin", shadow)
        web = lab.director.virtual_servers[0]
        for call in _play(lab, [step for step in steps if step[0] != "weigh"]):
            told = lab.why().shadow if call is not None and call.refused is None else None
            if call is None or told is None:
                continue
            if all(link.available and not link.real.overloaded for link in web.links[:3]):  # and were before
                fresh = SCHEDULERS[shadow](web.links).choose(call.key[:4], -1)
                assert fresh is not None
                assert told.real == fresh.real.spec.name
                compared += 1

    play()
    assert compared > 10


@pytest.mark.parametrize("scheduler", EVERY)
@SOME
@given(steps=_steps)
def test_the_same_scheme_never_differs(scheduler: str, steps: list[tuple[str, int]]) -> None:
    """With everything that moves a scheduler's own state: stickiness, tests, failures, weights."""
    lab = _sites(scheduler, scheduler, sticky=2.0)
    for _ in _play(lab, steps):
        pass
    asked = sum(each.by == "scheduler" for each in lab.decisions())
    assert seen(lab) == ShadowSnapshot(scheduler, asked, 0)


@pytest.mark.parametrize("scheduler", ["weighted-round-robin", "power-of-two", "fastest-response"])
@SOME
@given(steps=_steps, shadow=st.sampled_from(EVERY))
def test_it_is_never_obeyed(scheduler: str, steps: list[tuple[str, int]], shadow: str) -> None:
    """Whatever the shadow, every server has what it would have without one."""
    with_it, without = (_sites(scheduler, each, sticky=2.0) for each in (shadow, ""))
    for _ in zip(_play(with_it, steps), _play(without, steps), strict=True):
        assert with_it.loads() == without.loads()
    told, others = ([replace(each, shadow=None) for each in lab.decisions()] for lab in (with_it, without))
    if scheduler == "fastest-response":
        assert told == others
    else:  # of others, only a connection's first request is measured, unless a shadow goes by that
        assert [each.chosen for each in told] == [each.chosen for each in others]
