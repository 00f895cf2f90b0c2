"""What can be seen from outside: immutable pictures of the director's state at one moment.

Everything that shows state (command line, dashboard, metrics, tests) reads these and
nothing else. Ages are in seconds before the moment of the snapshot; addresses are values
of `ipaddress`, ports in host order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from nfqlb.core.histogram import NEVER, Spread
from nfqlb.core.spec import Address


class LinkSnapshot(NamedTuple):
    """A real server's place in one virtual server: its port there, its live connections, all ever made.

    `share` is its part of the virtual server's connections, `fair` the part that its weight entitles it
    to among the servers that take new ones at present (A35, R097); None where there is nothing to share.
    `backup` says that it has its place as another server's backup, or the virtual server's.
    """

    real: str
    port: int | None
    connections: int
    total: int = 0
    state: str = "in-service"
    share: float | None = None
    fair: float | None = None
    backup: bool = False


@dataclass(frozen=True, slots=True)
class ShadowSnapshot:
    """A second scheme: asked about `evaluated` decisions, it would have `differed` in so many of them."""

    scheduler: str
    evaluated: int
    differed: int


class VirtualSnapshot(NamedTuple):
    """One virtual server; `desired` and `actual` are the scheduler asked for and at work (R028, R029).

    `drops` are its packets that were dropped, by reason, as far as they could be told to be its own.
    `half_open` are its connections in TCP's handshake, `given_up` those that `synguard` took to make room,
    `flooded` says that it, or `synguard_rate`, is at work.
    """

    name: str
    address: Address
    protocol: str
    port: int | None
    state: str
    desired: str
    actual: str
    connections: int
    total: int
    servers: tuple[LinkSnapshot, ...]
    drops: Mapping[str, int] = MappingProxyType({})
    shadow: ShadowSnapshot | None = None
    half_open: int = 0
    given_up: int = 0
    flooded: bool = False


class RealSnapshot(NamedTuple):
    """One real server. `response` and `predicted` are seconds, None where nothing was measured.

    `since` is the age of the present state in seconds; `reason` says why it is in that state. Of a server
    that has failed `failed` is how many seconds ago it did, tests in between or not, and `test` in how
    many one connection may test it, 0 where that only wants a client; else both are None. `responses` are
    all response times that were measured. `setting` and `weight` are what holds, which an operator may have
    set; `weight_configured` is the configuration's. `run` is how many connections in a row it could not make,
    `whys` why not (values of `health.Ditch`), and `suspect` says that they are as many as fail a server,
    which these have not, as they were of too few clients.
    """

    name: str
    address: Address
    state: str
    reason: str
    since: float
    setting: str
    weight: float
    weight_configured: float
    connections: int
    total: int
    max_connections: int
    unanswered: int
    ditched_no_answer: int
    ditched_reset: int
    response: float | None
    predicted: float | None
    virtuals: tuple[str, ...]
    failed: float | None = None
    test: float | None = None
    responses: Spread = NEVER
    run: int = 0
    whys: tuple[str, ...] = ()
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class FailureSnapshot:
    """A connection that a real server could not make: whose, how many seconds `ago`, and `why`.

    `state` is what the server is now. `waited` is how long (seconds) the client had asked by then.
    """

    real: str
    state: str
    ago: float
    client: Address
    client_port: int
    virtual: str
    why: str
    waited: float


@dataclass(frozen=True, slots=True)
class ConnectionSnapshot:
    """One live connection: who, through which virtual server, to which real server."""

    virtual: str
    protocol: str
    client: Address
    client_port: int
    real: str
    real_port: int
    state: str
    age: float
    idle: float


@dataclass(frozen=True, slots=True)
class StickySnapshot:
    """One sticky entry (FPA). `scope` is the virtual server's name or the sticky group's.

    `grouped` says which of the two `scope` is. `expires` is in seconds from now.
    """

    scope: str
    grouped: bool
    client: Address
    real: str
    age: float
    expires: float


@dataclass(frozen=True, slots=True)
class Totals:
    """The director as a whole: live connections, all ever made, limits, packets dropped by reason.

    `replies` says what clients were told of packets that were refused, by kind. `evicted` and
    `sticky_evicted` made room in a full table, `drift` counts counters that the audit found wrong.
    """

    connections: int
    connections_total: int
    connections_limit: int
    sticky: int
    sticky_limit: int
    drops: dict[str, int]
    replies: dict[str, int] = field(default_factory=dict)
    evicted: int = 0
    sticky_evicted: int = 0
    drift: int = 0


@dataclass(frozen=True, slots=True)
class CandidateSnapshot:
    """A server as it was when a decision was made, and what that decision made of it.

    `state_age` is how long it had been in its state (seconds). `syn_limit` is the number of unanswered SYNs
    from which it was to be avoided, `stands_for` the server that it is the backup of. `response` is its last
    response time, `ratio` the patent's R, `response_age` how old that was, and `predicted` what followed
    from it for the next connection (seconds); None where nothing was measured. `indicium` is what
    the scheduler at work compared, None where that compares nothing or could not choose this server.
    `reason` is the value of an `explanation.Reason`.
    """

    real: str
    port: int | None
    stands_for: str | None
    state: str
    state_age: float
    weight: float
    connections: int
    max_connections: int
    unanswered: int
    syn_limit: int | None
    response: float | None
    ratio: float | None
    response_age: float | None
    predicted: float | None
    indicium: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class StickyAnswer:
    """What the client's sticky entry did to a decision.

    `said` is "off", "none", "used" or "overridden", `real` the server that the entry named, `reason` why
    that was overridden (the value of an `explanation.Reason`), `written` the server in it afterwards,
    None where nothing was written.
    """

    said: str
    real: str | None
    reason: str | None
    written: str | None


@dataclass(frozen=True, slots=True)
class ShadowChoice:
    """The server that the shadow's scheduler would have taken, and its port for this connection."""

    scheduler: str
    real: str
    port: int


@dataclass(frozen=True, slots=True)
class DecisionSnapshot:
    """One decision, explained. `age` is in seconds, `port` the one that the client asked for.

    `chosen` and `chosen_port` are the server, None where there was none, for the reason `refused`.
    `unanswered_by` is the server that had not answered this connection, None for a new one. `by` is what
    chose: "scheduler", "startup", "sticky", "test", "backup" or "none"; `scheduler` the scheduler at
    work, None where none was asked, `set_aside` the choice of the desired one that the startup scheduler
    took the place of. `last` is the server used last, after which equals are taken in order; `equal` says
    whether that settled it. `note` are the servers that the scheduler's note names. `candidates` are at
    most 16, the best first; `others` counts the rest by reason. `port` and `chosen_port` are this
    connection's, also where the virtual server has every port. `ageing` and `predict` are what a prediction
    was reckoned with: see `spec.Virtual`. `shadow` is None where no shadow was asked. `doubted` are the
    servers that had not taken this client lately, and why; `ditched` is why the chosen one could not make
    this connection either, None where it did, or nobody knows any more. Both are values of `health.Ditch`.
    """

    age: float
    virtual: str
    address: Address
    port: int
    protocol: str
    client: Address
    client_port: int
    chosen: str | None
    chosen_port: int | None
    refused: str | None
    unanswered_by: str | None
    by: str
    scheduler: str | None
    set_aside: str | None
    last: str | None
    equal: bool
    note: tuple[str, ...]
    sticky: StickyAnswer
    candidates: tuple[CandidateSnapshot, ...]
    others: dict[str, int]
    ageing: float = 4.0
    predict: str = "now"
    shadow: ShadowChoice | None = None
    doubted: dict[str, str] = field(default_factory=dict)
    ditched: str | None = None
