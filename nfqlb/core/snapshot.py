"""What can be seen from outside: immutable pictures of the director's state at one moment.

Everything that shows state (command line, dashboard, metrics, tests) reads these and
nothing else. Ages are in seconds before the moment of the snapshot; addresses are values
of `ipaddress`, ports in host order.
"""

from dataclasses import dataclass, field

from nfqlb.core.spec import Address


@dataclass(frozen=True, slots=True)
class LinkSnapshot:
    """A real server's place in one virtual server: its port there, its live connections, all ever made.

    `share` is its part of the virtual server's connections, `fair` the part that its weight entitles it
    to among the servers that take new ones at present (A35, R097); None where there is nothing to share.
    """

    real: str
    port: int | None
    connections: int
    total: int = 0
    state: str = "in-service"
    share: float | None = None
    fair: float | None = None


@dataclass(frozen=True, slots=True)
class VirtualSnapshot:
    """One virtual server; `desired` and `actual` are the scheduler asked for and at work (R028, R029)."""

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


@dataclass(frozen=True, slots=True)
class RealSnapshot:
    """One real server. `response` and `predicted` are seconds, None where nothing was measured.

    `since` is the age of the present state in seconds; `reason` says why it is in that state.
    """

    name: str
    address: Address
    state: str
    reason: str
    since: float
    weight: float
    connections: int
    total: int
    max_connections: int
    unanswered: int
    ditched_no_answer: int
    ditched_reset: int
    response: float | None
    predicted: float | None
    virtuals: tuple[str, ...]


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

    `replies` says what clients were told of packets that were refused, by kind.
    """

    connections: int
    connections_total: int
    connections_limit: int
    sticky: int
    sticky_limit: int
    drops: dict[str, int]
    replies: dict[str, int] = field(default_factory=dict)
