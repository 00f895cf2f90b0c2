"""What is told of a decision afterwards, against a full copy of everything taken while it was made."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.admission import ServerState
from nfqlb.core.keys import reverse_key
from nfqlb.core.selection import Choice, Selection
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.snapshot import CandidateSnapshot, DecisionSnapshot
from nfqlb.core.states import State
from nfqlb.core.verdict import Drop
from tests.core.preset import set_weight
from tests.core.properties import TRIES
from tests.core.scenario import Call, Scenario, real, virtual

SERVERS = "abcdz"


@dataclass(frozen=True)
class Then:
    """One link as it was; `taken` is by a live connection with the same replies."""

    real: str
    port: int | None
    position: int
    state: str
    age: float
    weight: float
    connections: int
    unanswered: int
    new: bool
    active: bool
    bad: bool
    avoided: bool
    taken: bool
    own_backup: bool

    @property
    def able(self) -> bool:
        """Whether it stood to choice at all."""
        return self.new and self.weight > 0 and self.active and not self.avoided


@dataclass(frozen=True)
class Copy:
    """The whole situation, and what was decided."""

    virtual: str
    key: bytes
    last: int
    links: list[Then]
    outcome: Choice | Drop


class Watched(Selection):
    """A selection that copies all there is before each choice."""

    copies: list[Copy]

    def choose(
        self, virtual: VirtualServer, key: bytes, now: float, *, avoid: RealServer | None = None
    ) -> Choice | Drop:
        links = [self._then(link, key, now, avoid) for link in _everybody(virtual)]
        last = virtual.last
        outcome = super().choose(virtual, key, now, avoid=avoid)
        self.copies.append(Copy(virtual.spec.name, key, last, links, outcome))
        return outcome

    def _then(self, link: Link, key: bytes, now: float, avoid: RealServer | None) -> Then:
        real = link.real
        holder = self._outbound.get(reverse_key(key, link))
        return Then(
            real.spec.name, link.port, link.position, real.state.shown, now - real.since,
            real.weight, real.connections, real.unanswered, real.state.new, link.active, real.overloaded,
            real is avoid, holder is not None, link is link.virtual.backup,
        )  # fmt: skip


def _everybody(web: VirtualServer) -> list[Link]:
    return [*web.links, web.backup] if web.backup else web.links


_MEASURES: dict[str, Callable[[Then], float]] = {
    "round-robin": lambda each: 0,
    "least-connections": lambda each: each.connections,
    "weighted-least-connections": lambda each: each.connections / each.weight,
    "power-of-two": lambda each: each.connections / each.weight,
}


@st.composite
def _sites(draw: st.DrawFn) -> Scenario:
    """Two virtual servers on two addresses with the same servers, which are soon full, bad or failed."""
    made = []
    for name in SERVERS:
        server = real(
            name, weight=draw(st.sampled_from([1, 2, 3])), max_connections=draw(st.sampled_from([0, 0, 5]))
        )
        limit = draw(st.integers(0, 3))
        made.append(replace(server, syn_limit=limit, failure_threshold=2, failure_clients=1, retry=20.0))
    if draw(st.booleans()):
        made[0] = replace(made[0], backup="d")
    virtuals = []
    for name, address in (("one", "203.0.113.1"), ("two", "203.0.113.2")):
        scheduler = draw(st.sampled_from([*_MEASURES, "weighted-round-robin", "source-hash"]))
        sticky = draw(st.sampled_from([0.0, 15.0]))
        one = virtual(name, "abc", address=address, scheduler=scheduler, sticky=sticky)
        startup = draw(st.sampled_from(["none", "round-robin"]))
        backup = draw(st.sampled_from(["", "z"]))
        virtuals.append(replace(one, startup=startup, startup_time=30.0, backup=backup))
    return Scenario(virtuals, made, max_connections=draw(st.sampled_from([6, 100])))


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("dial"), st.sampled_from(["one", "two"]), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.just("dial"), st.sampled_from(["one", "two"]), st.integers(4, 7), st.integers(0, 99)),
        st.tuples(
            st.sampled_from(["syn", "syn", "answer", "answer", "refuse", "close"]), st.just(""),
            st.integers(0, 99), st.just(0),
        ),
        st.tuples(
            st.sampled_from(["syn", "syn", "answer", "answer", "refuse", "close"]), st.just(""),
            st.integers(0, 9), st.just(0),
        ),
        st.tuples(st.sampled_from(["wait", "set", "weigh"]), st.sampled_from(list(SERVERS)),
            st.integers(0, 9), st.just(0)),
    ),
    min_size=30,
    max_size=80,
)  # fmt: skip
_STATES = [*7 * [ServerState.IN_SERVICE], ServerState.STICKY_ONLY, ServerState.OUT_OF_SERVICE]
_STATES.append(ServerState.MAINTENANCE)


def _play(lab: Scenario, calls: list[Call], step: tuple[str, str, int, int]) -> None:
    what, name, number, port = step
    if what == "dial":
        calls.append(lab.dial(name, client=f"192.0.2.{number}", port=40000 + port))
    elif what == "wait":
        lab.wait(number)
    elif what == "set":
        lab.director.real_servers[name].setting = _STATES[number]
        lab.director.real_servers[name].changed(lab.now)
    elif what == "weigh":
        set_weight_of(lab, name, number % 4)
    elif calls:
        call = calls[-1 - number % len(calls)]
        if call.refused is None and call.connection.state is not State.GONE:
            _go_on(call, what)


def _go_on(call: Call, what: str) -> None:
    if what == "syn":
        call.syn()
    elif what == "answer":
        call.syn_ack().ack()
    elif what == "refuse":
        call.refusal()
    else:
        call.fin().server_fin()


def set_weight_of(lab: Scenario, name: str, weight: float) -> None:
    """Another weight, wherever the server stands."""
    if name == "z":  # no link of a virtual server's own
        lab.director.real_servers[name].weight = weight
        lab.director.real_servers[name].changed(lab.now)
    else:
        web = lab.director.virtual_servers[0]
        if any(link.real.spec.name == name for link in web.links):
            set_weight(web, name, weight)


@TRIES
@given(lab=_sites(), steps=_steps)
def test_what_is_told_is_what_was(lab: Scenario, steps: list[tuple[str, str, int, int]]) -> None:
    """R104, R144-R150: facts, reasons and the best, for every decision of a random story."""
    placement: Any = lab.director._placement
    old = placement._selection
    watched = Watched(lab.director.fpas, lab.director.watch, old._outbound)
    watched.copies = []
    placement._selection = watched
    calls: list[Call] = []
    for step in steps:
        _play(lab, calls, step)
    for name in ("one", "two"):
        told = reversed(lab.decisions(virtual=name))
        copies = [each for each in watched.copies if each.virtual == name]
        for decision, copy in zip(told, copies, strict=True):
            _agree(decision, copy)


def _agree(decision: DecisionSnapshot, copy: Copy) -> None:
    assert decision.virtual == copy.virtual
    by_place = {(each.real, each.port, each.stands_for): each for each in decision.candidates}
    found = {each.real: each for each in by_place.values()}
    assert len(decision.candidates) == len(copy.links)
    pairs = [(then, found[then.real]) for then in copy.links]
    for then, shown in pairs:
        assert (shown.state, shown.weight) == (then.state, then.weight)
        assert (shown.connections, shown.unanswered) == (then.connections, then.unanswered)
        assert abs(shown.state_age - then.age) < 1e-9
    if isinstance(copy.outcome, Drop):
        assert decision.chosen is None
        assert decision.refused == copy.outcome.value
        able = [then for then, _ in pairs if then.able]
        assert bool(able) <= (copy.outcome is Drop.COLLISION)
        assert all(found[then.real].reason == "collision" for then in able)
        return
    chosen = copy.links[copy.outcome.link.position]
    full = decision.refused == "table-full"
    assert found[chosen.real].reason == ("table-full" if full else "chosen")
    assert decision.chosen == (None if full else chosen.real)
    others = [(then, shown) for then, shown in pairs if then is not chosen]
    for then, shown in others:
        _passed_over_rightly(then, shown)
    if decision.by in ("scheduler", "startup"):
        _best(decision, chosen, copy, others)
    elif decision.by == "backup":
        assert chosen.own_backup
        assert not [then for then, shown in others if then.able and shown.reason != "collision"]
    else:
        assert {shown.reason for then, shown in others if then.able and not then.own_backup} <= {"not-asked"}


def _passed_over_rightly(then: Then, shown: CandidateSnapshot) -> None:
    """A reason that says it could not be chosen is given just where that is so."""
    if not then.new:
        assert shown.reason == then.state
    elif then.weight == 0:
        assert shown.reason == "weight-0"
    elif not then.active:
        assert shown.reason == "standby"
    elif then.avoided:
        assert shown.reason == "no-answer"
    elif shown.reason == "collision":
        assert then.taken
    elif then.own_backup:
        assert shown.reason == "standby"
    else:
        assert shown.reason in (
            "worse", "later-in-order", "over-syn-limit", "not-drawn", "not-its-turn", "not-asked",
            "address-points-elsewhere",
        )  # fmt: skip


def _best(
    decision: DecisionSnapshot, chosen: Then, copy: Copy, others: list[tuple[Then, CandidateSnapshot]]
) -> None:
    """The chosen one is the best of those that are said to have stood to choice, and they are as is said."""
    rivals = [
        (then, shown)
        for then, shown in others
        if then.able and not then.own_backup and shown.reason != "collision"
    ]
    if not chosen.bad:
        assert all((shown.reason == "over-syn-limit") is then.bad for then, shown in rivals)
    else:
        assert all(then.bad and shown.reason != "over-syn-limit" for then, shown in rivals)
    measure = _MEASURES.get(decision.scheduler or "")
    if measure is None:
        expected = {"weighted-round-robin": "not-its-turn", "source-hash": "address-points-elsewhere"}
        reason = expected[decision.scheduler or ""]
        assert all(shown.reason == reason for then, shown in rivals if then.bad is chosen.bad)
        return
    for then, shown in rivals:
        if then.bad is not chosen.bad or shown.reason == "not-drawn":
            continue
        assert (shown.reason == "worse") is (measure(then) > measure(chosen))
        assert (shown.reason == "later-in-order") is (measure(then) == measure(chosen))
        if shown.reason == "later-in-order" and decision.scheduler != "power-of-two":
            assert _in_turn(chosen, copy.last) < _in_turn(then, copy.last)


def _in_turn(then: Then, last: int) -> tuple[bool, int]:
    return then.position <= last, then.position
