"""What changed its state, and what of it must outlive the worker.

Owns the bounded list of state changes, drained by whoever writes the log, the state of a virtual
server (R025, A26), and `Kept`: what is known of a server beside its connections. Servers that fill up
and empty again are not listed: they may do so with every connection.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import NamedTuple, Protocol

from nfqlb.core.admission import ServerState
from nfqlb.core.health import Condition, Ditch, Evidence
from nfqlb.core.plural import several
from nfqlb.core.server import RealServer, VirtualServer
from nfqlb.core.synguard import SynGuard

#: Changes kept between two drains; of more, the newest.
CHANGES = 256
#: Seconds between two notices of clients that have left one server.
_LEAVERS = 60.0


class Kind(Enum):
    """Whose state it is."""

    REAL = "real server"
    VIRTUAL = "virtual server"


@dataclass(frozen=True, slots=True)
class Change:
    """A server's state changed from `before` to `after` at `at` (seconds), for `reason`.

    `by_operator` says who did it. `evidence` are the connections that failed a real server, the
    latest last. `lasted` is for how long (seconds) a server that returns had failed, else 0.
    """

    kind: Kind
    name: str
    before: ServerState
    after: ServerState
    reason: str
    at: float
    by_operator: bool = False
    evidence: tuple[Evidence, ...] = ()
    lasted: float = 0.0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened at `at` (seconds), in words, and to whom; `level` as in the log."""

    name: str
    text: str
    at: float
    level: str = "warning"


class Kept(NamedTuple):
    """What a successor has to know of one server. Times are seconds of the monotonic clock.

    `weight` is None where it is the configuration's. Sticky assignments before `bound_from` do not
    count any more. What follows it is of real servers only.
    """

    kind: Kind
    name: str
    setting: ServerState = ServerState.IN_SERVICE
    weight: float | None = None
    bound_from: float = 0.0
    condition: Condition = Condition.WELL
    failed_at: float = 0.0
    retry_at: float = 0.0
    no_answer: int = 0
    reset: int = 0
    reason: str = ""


class Keeper(Protocol):
    """Who is told what has to be kept, whenever it changes: the journal."""

    def keep(self, kept: Kept) -> None:
        """In place of what was kept of that server."""


class Chronicle:
    """The changes of state in one director.

    `touched` says that there may be some to drain; `missed` counts those that nobody drained in time.
    """

    def __init__(self, virtuals: Sequence[VirtualServer], keeper: Keeper | None = None) -> None:
        self.missed = 0
        self._changes: deque[Change] = deque()
        self._notices: deque[Notice] = deque(maxlen=CHANGES)
        self._virtuals = virtuals
        self._keeper = keeper
        self.touched = False
        self._known = {virtual: state_of(virtual) for virtual in virtuals}
        # by server: when clients that left it were told of, and how many connections went elsewhere since
        self._left: dict[RealServer, tuple[float, int]] = {}

    def follow(self, renamed: Iterable[RealServer | VirtualServer]) -> None:
        """The virtual servers are others; these servers have another name or weight than they had.

        That some are draining is no change of state that has to be told of.
        """
        for server in renamed:
            if isinstance(server, RealServer):
                self._keep(_kept_real(server))
            else:
                self._keep_virtual(server)
        for virtual in self._virtuals:
            after = state_of(virtual)
            if ServerState.DRAINING in (self._known.setdefault(virtual, after), after):
                self._known[virtual] = after
        self._known = {virtual: self._known[virtual] for virtual in self._virtuals}
        self.touched = True

    def real_changed(
        self, real: RealServer, before: ServerState, now: float, *, by_operator: bool = False
    ) -> None:
        """A real server's health or setting changed; its state was `before`."""
        self._keep(_kept_real(real))
        self.touched = True
        if real.state is before:
            return
        health = real.health
        failed = real.state is ServerState.FAILED
        came_back = health.condition is Condition.WELL and before in (ServerState.FAILED, ServerState.TESTING)
        reason = health.reason or ("set by the operator" if by_operator else "")
        evidence = health.fatal if failed else ()
        lasted = now - health.failed_at if came_back else 0.0
        name = real.spec.name
        self._add(Change(Kind.REAL, name, before, real.state, reason, now, by_operator, evidence, lasted))

    def virtual_set(self, virtual: VirtualServer) -> None:
        """An operator set a virtual server's state, or cleared its sticky entries."""
        self._keep_virtual(virtual)
        self.touched = True

    def settle(self) -> None:
        """Take the present state for the known one: nothing changed, it was taken over."""
        self._known = {virtual: state_of(virtual) for virtual in self._virtuals}
        self.touched = False

    def adopted(self, count: int, now: float) -> None:
        """So many connections are known now that the kernel alone had."""
        were = "connection" if count == 1 else "connections"
        self._notices.append(Notice("", f"{count:,} {were} of the kernel's taken over", now, "info"))
        self.touched = True

    def drifted(self, wrong: str, now: float) -> None:
        """The audit found a counter wrong, and has put it right."""
        self._notices.append(Notice("", f"a counter had gone wrong and was put right: {wrong}", now, "error"))
        self.touched = True

    def unbound(
        self, virtual: VirtualServer, client: bytes, servers: tuple[RealServer, RealServer], why: Ditch,
        now: float,
    ) -> None:  # fmt: skip
        """A client (packed address) was bound to the first server, which did not take it: it has the second.

        Of each server's the first is told of at once, how many more connections went elsewhere once a minute.
        """
        before, after = servers
        if before in self._left:
            told, more = self._left[before]
            self._left[before] = told, more + 1
            return
        self._left[before] = now, 0
        did = "refused" if why is Ditch.RESET else "did not answer"
        name, who = before.spec.name, f"{ip_address(client)}, bound to it in {virtual.spec.name}"
        self._notice(name, f"{name} {did} {who}: it goes to {after.spec.name} now", now)

    def _tell_of_leavers(self, now: float) -> None:
        for real, (told, more) in list(self._left.items()):
            if now - told < _LEAVERS:
                continue
            del self._left[real]
            if more:
                self._left[real] = now, 0
                name, went = real.spec.name, several(more, "more connection")
                self._notice(name, f"{name}: {went} of clients that it did not take went elsewhere", now)

    def _notice(self, name: str, text: str, now: float) -> None:
        self._notices.append(Notice(name, text, now))
        self.touched = True

    def look(self, now: float) -> None:
        """Tell of floods of SYNs that have begun, or are over, and of clients that have left a server."""
        if self._left:
            self._tell_of_leavers(now)
        for virtual in self._virtuals:
            guard = virtual.guard
            if guard is not None and guard.look(now):
                level = "warning" if guard.flooded else "info"
                self._notices.append(Notice(virtual.spec.name, _flood(virtual, guard), now, level))
                self.touched = True

    def take_notices(self) -> list[Notice]:
        """What else has happened since the last time, oldest first."""
        found, self._notices = list(self._notices), deque(maxlen=CHANGES)
        return found

    def drain(self, now: float) -> list[Change]:
        """The changes since the last time, oldest first; virtual servers' last."""
        if self.touched:
            self.touched = False
            self._look_at_virtuals(now)
        changes, self._changes = list(self._changes), deque()
        return changes

    def _look_at_virtuals(self, now: float) -> None:
        for virtual in self._virtuals:
            before, after = self._known[virtual], state_of(virtual)
            if after is before:
                continue
            self._known[virtual] = after
            by_operator = ServerState.OUT_OF_SERVICE in (before, after)
            reason = "no server can be chosen" if after is ServerState.FAILED else ""
            self._add(Change(Kind.VIRTUAL, virtual.spec.name, before, after, reason, now, by_operator))

    def _add(self, change: Change) -> None:
        if len(self._changes) == CHANGES:
            self._changes.popleft()
            self.missed += 1
        self._changes.append(change)

    def _keep_virtual(self, virtual: VirtualServer) -> None:
        self._keep(Kept(Kind.VIRTUAL, virtual.spec.name, virtual.setting, bound_from=virtual.bound_from))

    def _keep(self, kept: Kept) -> None:
        if self._keeper is not None:
            self._keeper.keep(kept)


def state_of(virtual: VirtualServer) -> ServerState:
    """A virtual server's state (R025, A26).

    Out of service is only ever set by an operator. Failed is where no server may be chosen
    because of failures, and no backup either; one that is only full is not failed.
    """
    if virtual.draining:
        return ServerState.DRAINING
    if virtual.setting is not ServerState.IN_SERVICE:
        return virtual.setting
    links = virtual.everybody
    full = ServerState.MAX_CAPACITY
    if any(link.available or (link.real.state is full and link.active) for link in links):
        return ServerState.IN_SERVICE
    failed = any(link.real.down and link.real.setting.sticky and link.active for link in links)
    return ServerState.FAILED if failed else ServerState.IN_SERVICE


def _flood(virtual: VirtualServer, guard: SynGuard) -> str:
    """What is told of a flood that has begun, or is over; both numbers are of all floods so far."""
    name = virtual.spec.name
    if guard.flooded:
        much = several(virtual.half_open, "half-open connection")
        return f"{name}: SYN flood, {much}; {_measure(guard.given_up > 0, guard.refused > 0)}"
    gone, refused = several(guard.given_up, "half-open connection"), several(guard.refused, "SYN")
    return f"{name}: no SYN flood any more; {gone} given up, {refused} refused so far"


def _measure(oldest: bool, rate: bool) -> str:
    """What is done about a flood, in words."""
    if oldest and rate:
        return "giving up the oldest, refusing what is above the rate"
    return "giving up the oldest" if oldest else "refusing what is above the rate"


def _kept_real(real: RealServer) -> Kept:
    health = real.health
    return Kept(
        kind=Kind.REAL,
        name=real.spec.name,
        setting=real.setting,
        weight=None if real.weight == real.spec.weight else real.weight,
        bound_from=real.bound_from,
        condition=health.condition,
        failed_at=health.failed_at,
        retry_at=health.retry_at,
        no_answer=health.no_answer,
        reset=health.reset,
        reason=health.reason,
    )
