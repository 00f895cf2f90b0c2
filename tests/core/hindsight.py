"""What is told of a decision afterwards, against a full copy of everything taken while it was made.

Owns `Watched`, a selection that copies all there is before each choice, and `agree`, which compares. What a
server was judged by is reckoned here once more, from its connections, weight and response time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isclose
from typing import Any, Self

from nfqlb.core.director import Director
from nfqlb.core.health import Ditch
from nfqlb.core.keys import client_of, client_port_of, port_of, reverse_key
from nfqlb.core.selection import Choice, Selection
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.snapshot import CandidateSnapshot, DecisionSnapshot
from nfqlb.core.verdict import Drop


@dataclass(frozen=True)
class Then:
    """One link as it was; `taken` is by a connection with the same replies, `predicted` what PR was.

    `doubted` says why the client would rather have another.
    """

    real: str
    port: int | None
    stands_for: str | None
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
    predicted: float
    doubted: str | None

    @property
    def able(self) -> bool:
        """Whether it stood to choice at all."""
        return self.new and self.weight > 0 and self.active and not self.avoided

    @property
    def place(self) -> tuple[str, int | None, str | None]:
        """What tells the links of one virtual server apart."""
        return self.real, self.port, self.stands_for


@dataclass(frozen=True)
class Copy:
    """The whole situation, and what was decided; `bound` is whom the client's sticky entry named."""

    virtual: str
    key: bytes
    last: int
    bound: str | None
    links: list[Then]
    outcome: Choice | Drop


class Watched(Selection):
    """A selection that copies all there is before each choice."""

    copies: list[Copy]

    @classmethod
    def watch(cls, director: Director) -> Self:
        """Let it choose for a director from now on."""
        placement: Any = director.placement
        watched = cls(director.fpas, director.watch, director.table.outbound, director.doubts)
        watched.copies = []
        placement._selection = watched
        return watched

    def choose(
        self, virtual: VirtualServer, key: bytes, now: float, *, avoid: RealServer | None = None
    ) -> Choice | Drop:
        doubted = self._doubts.of(virtual, client_of(key), now)
        links = [self._then(link, key, now, avoid, doubted) for link in _everybody(virtual)]
        last, bound = virtual.last, self._bound_to(virtual, key, now)
        outcome = super().choose(virtual, key, now, avoid=avoid)
        if isinstance(outcome, Drop) and avoid is not None and virtual.spec.protocol == "udp":
            return outcome  # a flow that stays where it is: nothing is told of it
        self.copies.append(Copy(virtual.spec.name, key, last, bound, links, outcome))
        return outcome

    def _then(
        self, link: Link, key: bytes, now: float, avoid: RealServer | None,
        doubted: Mapping[RealServer, Ditch],
    ) -> Then:  # fmt: skip
        real = link.real
        holder = self._outbound.get(reverse_key(key, link))
        return Then(
            real.spec.name, link.port, link.stands_for.real.spec.name if link.stands_for else None,
            link.position, real.state.shown, now - real.since, real.weight, real.connections, real.unanswered,
            real.state.new, link.active, real.overloaded, real is avoid, holder is not None,
            link is link.virtual.backup, _predicted(link, now),
            doubted[real].value if real in doubted else None,
        )  # fmt: skip

    def _bound_to(self, virtual: VirtualServer, key: bytes, now: float) -> str | None:
        scope = virtual.scope
        for found, _, entry in self._fpas.entries_of(client_of(key)):
            if scope is not None and found == scope and now - entry.used() < scope.interval:
                return entry.real.spec.name
        return None


def _everybody(web: VirtualServer) -> list[Link]:
    return [*web.links, web.backup] if web.backup else web.links


def _predicted(link: Link, now: float) -> float:
    """PR (fig 9), or what stands in its place where nothing was measured."""
    virtual, load, response = link.virtual.spec, link.real.connections, link.real.response
    if response.last is None:
        return load + 1 - (now - response.tried) / virtual.ageing if response.tried > -inf else -inf
    return (load + (virtual.predict == "next")) * response.ratio - (now - response.at) / virtual.ageing


MEASURES: Mapping[str, Callable[[Then], float]] = {
    "round-robin": lambda each: 0,
    "least-connections": lambda each: each.connections,
    "weighted-least-connections": lambda each: each.connections / each.weight,
    "power-of-two": lambda each: each.connections / each.weight,
    "fastest-response": lambda each: each.predicted,
}


def agree(decision: DecisionSnapshot, copy: Copy) -> None:
    """Fail where what is told is not what was: facts, reasons, the best, the sticky entry."""
    assert decision.virtual == copy.virtual
    assert (decision.client.packed, decision.client_port) == (client_of(copy.key), client_port_of(copy.key))
    assert decision.port == port_of(copy.key)
    found = {(each.real, each.port, each.stands_for): each for each in decision.candidates}
    assert len(found) == len(decision.candidates) == len(copy.links)
    pairs = [(then, found[then.place]) for then in copy.links]
    for then, shown in pairs:
        assert (shown.state, shown.weight) == (then.state, then.weight)
        assert (shown.connections, shown.unanswered) == (then.connections, then.unanswered)
        assert abs(shown.state_age - then.age) < 1e-9
    assert decision.doubted == {then.real: then.doubted for then in copy.links if then.doubted}
    _sticky(decision, copy)
    if isinstance(copy.outcome, Drop):
        assert decision.chosen is None
        assert decision.refused == copy.outcome.value
        able = [then for then, _ in pairs if then.able]
        assert bool(able) <= (copy.outcome is Drop.COLLISION)
        assert all(found[then.place].reason == "collision" for then in able)
        return
    chosen = copy.links[copy.outcome.link.position]
    if chosen.doubted is not None:
        assert all(then.doubted or then.taken or then.own_backup for then in copy.links if then.able)
    full = decision.refused == "table-full"
    assert found[chosen.place].reason == ("table-full" if full else "chosen")
    assert decision.chosen == (None if full else chosen.real)
    assert decision.chosen_port == (None if full else chosen.port or decision.port)
    others = [(then, shown) for then, shown in pairs if then is not chosen]
    for then, shown in others:
        _passed_over_rightly(then, shown)
    others = [(then, shown) for then, shown in others if not then.doubted]
    if decision.by in ("scheduler", "startup"):
        _best(decision, chosen, copy, others)
    elif decision.by == "backup":
        assert chosen.own_backup
        assert not [then for then, shown in others if then.able and shown.reason != "collision"]
    else:
        assert {shown.reason for then, shown in others if then.able and not then.own_backup} <= {"not-asked"}


def _sticky(decision: DecisionSnapshot, copy: Copy) -> None:
    """What is told of the client's sticky entry."""
    told = decision.sticky
    if told.said == "off":
        assert copy.bound is None
        return
    assert told.real == copy.bound
    assert (told.said == "none") is (copy.bound is None)
    assert (told.said == "used") is (decision.by == "sticky")
    if told.said == "used":
        assert decision.chosen in (copy.bound, None)
    if decision.chosen is None:
        assert told.written is None
    elif told.said != "used":
        assert told.written == decision.chosen


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
    elif then.doubted:
        assert shown.reason == {"reset": "refused-before", "no-answer": "no-answer-before"}[then.doubted]
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
    measure = MEASURES.get(decision.scheduler or "")
    if measure is None:
        expected = {
            "weighted-round-robin": "not-its-turn",
            "source-hash": "address-points-elsewhere",
            "maglev": "address-points-elsewhere",
        }
        reason = expected[decision.scheduler or ""]
        assert all(shown.reason == reason for then, shown in rivals if then.bad is chosen.bad)
        return
    for then, shown in rivals:
        if then.bad is not chosen.bad or shown.reason == "not-drawn":
            continue
        assert shown.indicium is not None
        assert _same(shown.indicium, measure(then))
        if not _same(measure(then), measure(chosen)):
            assert measure(then) > measure(chosen)
            assert shown.reason == "worse"
            continue
        assert shown.reason in ("worse", "later-in-order")
        if decision.scheduler == "fastest-response":
            continue  # the last bit of a sum says which of two equals is better
        assert shown.reason == "later-in-order"
        if decision.scheduler != "power-of-two":
            assert _in_turn(chosen, copy.last) < _in_turn(then, copy.last)


def _same(one: float, other: float) -> bool:
    return one == other or isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


def _in_turn(then: Then, last: int) -> tuple[bool, int]:
    return then.position <= last, then.position
