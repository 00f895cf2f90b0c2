"""Why a connection went where it went: reasons, derived from a recorded decision.

Owns the list of reasons and the way back from raw facts (`decision`) to what each server was judged by and
why it was passed over (R104, R133-R150). Nothing is kept here and nothing decided: the scheduler at
work is asked for its indicium of what each server was at that moment.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from math import isinf
from typing import cast

from nfqlb.core.admission import ServerState
from nfqlb.core.decision import Decision, Facts
from nfqlb.core.health import Condition, Ditch
from nfqlb.core.keys import client_of, client_port_of, port_of
from nfqlb.core.response import Linear
from nfqlb.core.schedulers import Scheduler
from nfqlb.core.schedulers.base import Way
from nfqlb.core.selection import BACKUP, STICKY
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.snapshot import CandidateSnapshot, DecisionSnapshot, ShadowChoice, StickyAnswer
from nfqlb.core.spec import Address

#: So many servers are told of one by one; of more, the best few.
ALL = 16
BEST = 8


class Reason(Enum):
    """What became of a server in a decision; the value is what programs read."""

    CHOSEN = "chosen"
    # it could not be chosen
    FAILED = "failed"
    TESTING = "testing"
    OUT_OF_SERVICE = "out-of-service"
    MAINTENANCE = "maintenance"
    STICKY_ONLY = "sticky-only"
    FULL = "max-capacity"
    WEIGHT_0 = "weight-0"
    STANDBY = "standby"  # a backup while who it stands for is well
    GONE = "gone"  # of a sticky entry: its server has no place in the virtual server
    AVOIDED = "no-answer"  # it had not answered this very connection
    REFUSED = "refused-before"  # it had refused this client lately
    SILENT = "no-answer-before"  # it had not answered this client lately
    COLLISION = "collision"  # its replies could not have been told apart from another connection's
    # it could have been chosen
    OVERLOADED = "over-syn-limit"  # and others were not
    WORSE = "worse"
    LATER = "later-in-order"  # as good as the chosen one
    NOT_DRAWN = "not-drawn"
    NOT_ITS_TURN = "not-its-turn"
    ELSEWHERE = "address-points-elsewhere"
    NOT_ASKED = "not-asked"  # the choice was not a scheduler's
    NO_ROOM = "table-full"  # it was the choice, but nothing came of it


_BY_STATE = {
    ServerState.FAILED: Reason.FAILED,
    ServerState.TESTING: Reason.TESTING,
    ServerState.OUT_OF_SERVICE: Reason.OUT_OF_SERVICE,
    ServerState.MAINTENANCE: Reason.MAINTENANCE,
    ServerState.STICKY_ONLY: Reason.STICKY_ONLY,
    ServerState.MAX_CAPACITY: Reason.FULL,
}
_BY_DOUBT = {Ditch.RESET: Reason.REFUSED, Ditch.NO_ANSWER: Reason.SILENT}
_BY_WAY = {
    Way.DRAWS: Reason.NOT_DRAWN,
    Way.TAKES_TURNS: Reason.NOT_ITS_TURN,
    Way.HASHES: Reason.ELSEWHERE,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which decisions are asked for: those of this client, this port of it, this virtual server."""

    client: Address | None = None
    client_port: int | None = None
    virtual: str | None = None
    address: Address | None = None
    port: int | None = None

    def fits(self, virtual: VirtualServer) -> bool:
        """Whether it may be one of this virtual server's."""
        return (
            self.virtual in (None, virtual.spec.name)
            and self.address in (None, virtual.spec.address)
            and (virtual.port is None or self.port in (None, virtual.port))
        )

    def fits_key(self, key: bytes) -> bool:
        """Whether it is of this connection."""
        if self.client is not None and client_of(key) != self.client.packed:
            return False
        return self.client_port in (None, client_port_of(key)) and self.port in (None, port_of(key))


class Candidate:
    """A link as it was when a decision was made. Schedulers read it as they would read the link."""

    __slots__ = ("able", "facts", "link", "position", "reason", "value")

    def __init__(self, link: Link, facts: Facts) -> None:
        self.link = link
        self.position = link.position
        self.facts = facts
        self.able = False
        self.reason = Reason.NOT_ASKED
        self.value: float | None = None

    @property
    def real(self) -> Facts:
        """The real server, as far as a scheduler looks at it."""
        return self.facts

    @property
    def overloaded(self) -> bool:
        """Whether too many of its SYNs were unanswered (A1)."""
        return self.facts.unanswered >= self.link.real.bad_from

    def indicium(self, scheduler: Scheduler) -> float | None:
        """What the scheduler judged it by (R145)."""
        return scheduler.indicium(cast(Link, self))


def explain(virtual: VirtualServer, decision: Decision, now: float) -> DecisionSnapshot:
    """What is told of a decision of this virtual server; `now` in seconds."""
    placed = None if decision.refused else decision.link
    scheduler = _at_work(virtual, decision)
    port = port_of(decision.key)
    found = judge(virtual, decision)
    found.sort(key=lambda each: _order(each, decision.last))
    told = found if len(found) <= ALL else found[:BEST]
    return DecisionSnapshot(
        age=max(0.0, now - decision.now),
        virtual=virtual.spec.name,
        address=virtual.spec.address,
        port=port,
        protocol=virtual.spec.protocol,
        client=ip_address(client_of(decision.key)),
        client_port=client_port_of(decision.key),
        chosen=placed.real.spec.name if placed else None,
        chosen_port=(placed.port or port) if placed else None,
        refused=decision.refused.value if decision.refused else None,
        unanswered_by=decision.avoid.spec.name if decision.avoid else None,
        by=_by(virtual, decision, scheduler),
        scheduler=scheduler.name if scheduler else None,
        set_aside=decision.set_aside.real.spec.name if decision.set_aside else None,
        last=_name_at(virtual, decision.last),
        equal=any(each.reason is Reason.LATER for each in found),
        note=_note(virtual, decision, scheduler),
        sticky=_sticky(virtual, decision),
        candidates=tuple(_shown(each, decision.now) for each in told),
        others=dict(Counter(each.reason.value for each in found[len(told) :])),
        ageing=virtual.spec.ageing,
        predict=virtual.spec.predict,
        shadow=_shadow(virtual, decision, port),
        doubted={real.spec.name: why.value for real, why in decision.doubted.items()},
        ditched=_ditched(decision),
    )


def judge(virtual: VirtualServer, decision: Decision) -> list[Candidate]:
    """Every server with the reason why it was chosen or not, in the order of their positions."""
    links = virtual.everybody
    facts = decision.facts()
    found = list(map(Candidate, links, facts))
    for each in found:
        barrier = _barrier(each, decision, facts)
        each.able = barrier is None
        each.reason = barrier or Reason.NOT_ASKED
    if decision.link is None:
        return found
    best = found[decision.link.position]
    scheduler = _at_work(virtual, decision)
    if scheduler is not None:
        _compare([each for each in found if each.able], best, decision, scheduler)
    best.reason = Reason.NO_ROOM if decision.refused else Reason.CHOSEN
    return found


def _at_work(virtual: VirtualServer, decision: Decision) -> Scheduler | None:
    """The scheduler whose choice it was."""
    if decision.by == virtual.scheduler.name and decision.set_aside is None:
        return virtual.scheduler
    startup = virtual.startup.scheduler if virtual.startup is not None else None
    return startup if startup is not None and decision.by == startup.name else None


def _by(virtual: VirtualServer, decision: Decision, scheduler: Scheduler | None) -> str:
    if scheduler is not None and scheduler is not virtual.scheduler:
        return "startup"
    return "scheduler" if scheduler is not None else decision.by or "none"


def _barrier(candidate: Candidate, decision: Decision, all_facts: Sequence[Facts]) -> Reason | None:
    """Why no scheduler could choose it, None if one could."""
    facts, link = candidate.facts, candidate.link
    if not facts.state.new:
        return _BY_STATE[facts.state]
    if facts.weight <= 0:
        return Reason.WEIGHT_0
    if not _active(link, all_facts):
        return Reason.STANDBY
    if link.real is decision.avoid:
        return Reason.AVOIDED
    if link.real in decision.doubted and decision.link not in (link, None):
        return _BY_DOUBT[decision.doubted[link.real]]
    if link is link.virtual.backup and decision.by not in (BACKUP, ""):
        return Reason.STANDBY
    return Reason.COLLISION if link.position in decision.crossed else None


def _active(link: Link, facts: Sequence[Facts]) -> bool:
    """`Link.active`, as it was."""
    above = link.stands_for
    if above is None:
        return True
    then, spec = facts[above.position], above.real.spec
    full = spec.backup_when == "full" and 0 < spec.max_connections <= then.connections
    return (full or then.condition is not Condition.WELL) and _active(above, facts)


def _compare(able: Sequence[Candidate], best: Candidate, decision: Decision, scheduler: Scheduler) -> None:
    """Give those that could be chosen their indicium, and the reason why they were not."""
    way = scheduler.way
    scheduler.now = decision.now
    for each in able:
        if way in (Way.RANKS, Way.DRAWS):
            each.value = each.indicium(scheduler)
        drawn = decision.note is not None and each.position in decision.note
        if each.overloaded and not best.overloaded:
            each.reason = Reason.OVERLOADED
        elif way is Way.RANKS or (way is Way.DRAWS and drawn):
            each.reason = Reason.LATER if each.value == best.indicium(scheduler) else Reason.WORSE
        else:
            each.reason = _BY_WAY[way]


_COMPARED = (Reason.WORSE, Reason.LATER)


def _order(candidate: Candidate, last: int) -> tuple[bool, bool, bool, bool, float, bool, int]:
    """The chosen one first, then those compared with it, others that could have been chosen, and the rest."""
    position = candidate.position
    return (
        candidate.reason not in (Reason.CHOSEN, Reason.NO_ROOM),
        candidate.reason not in _COMPARED,
        not candidate.able,
        candidate.overloaded,
        candidate.value or 0.0,
        position <= last,
        position,
    )


def _ditched(decision: Decision) -> str | None:
    """Why the chosen server could not make the connection, if that is still known."""
    if decision.link is None:
        return None
    client, port = client_of(decision.key), client_port_of(decision.key)
    name = decision.link.virtual.spec.name
    for each in decision.link.real.health.evidence:
        mine = (each.client, each.port, each.virtual) == (client, port, name)
        opened = each.opened == decision.now or (decision.avoid is not None and each.opened < decision.now)
        if mine and opened and each.at >= decision.now:
            return each.why.value
    return None


def _note(virtual: VirtualServer, decision: Decision, scheduler: Scheduler | None) -> tuple[str, ...]:
    if scheduler is not virtual.scheduler or decision.note is None:
        return ()
    return tuple(virtual.links[position].real.spec.name for position in decision.note)


def _shadow(virtual: VirtualServer, decision: Decision, port: int) -> ShadowChoice | None:
    link = decision.shadowed
    return ShadowChoice(virtual.spec.shadow, link.real.spec.name, link.port or port) if link else None


def _name_at(virtual: VirtualServer, position: int) -> str | None:
    return virtual.links[position].real.spec.name if 0 <= position < len(virtual.links) else None


def _sticky(virtual: VirtualServer, decision: Decision) -> StickyAnswer:
    """What the sticky entry said, and whether it was followed (R131, R132, A7)."""
    scope, bound, link = virtual.scope, decision.bound, decision.link
    if scope is None:
        return StickyAnswer("off", None, None, None)
    used = decision.by == STICKY
    written = None
    if link is not None and not decision.refused and (not used or scope.refreshed):
        written = link.real.spec.name
    if bound is None:
        return StickyAnswer("none", None, None, written)
    if used:
        return StickyAnswer("used", bound.spec.name, None, written)
    reason = _override(virtual, decision, bound)
    return StickyAnswer("overridden", bound.spec.name, reason.value, written)


def _override(virtual: VirtualServer, decision: Decision, bound: RealServer) -> Reason:
    """Why a sticky entry's server did not get its client."""
    places = [link for link in virtual.links if link.real is bound]
    if not places:
        backup = virtual.backup is not None and virtual.backup.real is bound
        return Reason.STANDBY if backup else Reason.GONE
    all_facts = decision.facts()
    facts = all_facts[places[0].position]
    limit = bound.spec.max_connections
    if not facts.state.sticky:
        return _BY_STATE[facts.state]
    if limit and facts.connections >= limit:
        return Reason.FULL
    if not any(_active(link, all_facts) for link in places):
        return Reason.STANDBY
    if bound is decision.avoid:
        return Reason.AVOIDED
    doubted = decision.doubted.get(bound)
    crossed = doubted is None or decision.link is None or places[0].position in decision.crossed
    return Reason.COLLISION if doubted is None or crossed else _BY_DOUBT[doubted]


def _shown(candidate: Candidate, now: float) -> CandidateSnapshot:
    link, facts = candidate.link, candidate.facts
    real = link.real
    response = facts.response
    measured = response.last is not None
    virtual = link.virtual.spec
    connections = facts.connections + (virtual.predict == "next")
    return CandidateSnapshot(
        real=real.spec.name,
        port=link.port,
        stands_for=link.stands_for.real.spec.name if link.stands_for else None,
        state=facts.state.shown,
        state_age=max(0.0, now - facts.since),
        weight=facts.weight,
        connections=facts.connections,
        max_connections=real.spec.max_connections,
        unanswered=facts.unanswered,
        syn_limit=None if isinf(real.bad_from) else int(real.bad_from),
        response=response.last,
        ratio=response.ratio if measured else None,
        response_age=max(0.0, now - response.at) if measured else None,
        predicted=response.predicted(connections, Linear(virtual.ageing), now) if measured else None,
        indicium=candidate.value,
        reason=candidate.reason.value,
    )
