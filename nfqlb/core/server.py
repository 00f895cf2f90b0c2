"""Virtual servers, real servers, and the links between them.

Owns the running counterparts of the specifications: `VirtualServer` (the patent's virtual
machine object, fig 3A), `RealServer` (physical machine object, fig 3B) and `Link` (link
object 3E with its port object 3F). A real server's counters are moved by the connection
table alone; every change is passed on to the schedulers that rank it.
"""

from dataclasses import dataclass

from nfqlb.core import spec
from nfqlb.core.rewriting import rewritings
from nfqlb.core.schedulers import Scheduler, make_scheduler

#: IP protocol numbers (IANA).
PROTOCOLS = {"tcp": 6, "udp": 17}

IN_SERVICE = "in-service"
MAX_CAPACITY = "max-capacity"


class RealServer:
    """A real server (physical machine object, fig 3B: R030-R049).

    `connections` is NC (371), `unanswered` the SYNs not yet answered (364), `total` all
    connections ever made to it. `links` are its places in virtual servers (R010, R033).
    """

    __slots__ = ("address", "connections", "links", "since", "spec", "state", "total", "unanswered", "weight")

    def __init__(self, real: spec.Real, now: float) -> None:
        self.spec = real
        self.address = real.address.packed
        self.weight = real.weight
        self.connections = 0
        self.unanswered = 0
        self.total = 0
        self.state = IN_SERVICE
        self.since = now
        self.links: list[Link] = []

    @property
    def full(self) -> bool:
        """Whether it is at its maximum number of connections (R184, A28)."""
        limit = self.spec.max_connections
        return limit > 0 and self.connections >= limit

    @property
    def admits_new(self) -> bool:
        """Whether a client without a sticky entry may be sent here (R144, R184; weight 0 quiesces, A14)."""
        return self.weight > 0 and not self.full

    @property
    def admits_sticky(self) -> bool:
        """Whether a client with a sticky entry may be sent here: weight 0 does not turn it away (A7, A14)."""
        return not self.full

    def changed(self, now: float) -> None:
        """Follow a change of the counters: the state, and every scheduler that ranks this server."""
        state = MAX_CAPACITY if self.full else IN_SERVICE
        if state != self.state:
            self.state = state
            self.since = now
        for link in self.links:
            link.virtual.scheduler.update(link)


class Link:
    """A real server's place in a virtual server, with its port there (R068-R073).

    `position` is its place in the search order. `port` is the real server's port (A21).
    `inbound` and `outbound` are the changes of headers that all of its connections share.
    """

    __slots__ = ("connections", "inbound", "outbound", "port", "position", "real", "total", "virtual")

    def __init__(self, virtual: "VirtualServer", real: RealServer, port: int, position: int) -> None:
        self.virtual = virtual
        self.real = real
        self.port = port
        self.position = position
        self.connections = 0
        self.total = 0
        self.inbound, self.outbound = rewritings(
            virtual.spec.address.packed, virtual.port, real.address, port
        )


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose clients share sticky entries: one virtual server's, or a sticky group's (A8)."""

    name: str
    grouped: bool
    interval: float
    prefix: int


class VirtualServer:
    """A virtual server (virtual machine object, fig 3A: R021-R029).

    `last` is the position of the last used link (308): ties are broken by the order after
    it (A29). `link_at` finds a link by real address and port (network order). `scope` is
    None where stickiness is off (A10).
    """

    __slots__ = ("last", "link_at", "links", "port", "protocol", "scheduler", "scope", "spec", "total")

    def __init__(self, virtual: spec.Virtual, reals: dict[str, RealServer]) -> None:
        if virtual.port is None:
            raise ValueError(f"virtual server {virtual.name}: every-port virtual servers are not supported")
        self.spec = virtual
        self.port = virtual.port
        self.protocol = PROTOCOLS[virtual.protocol]
        self.last = -1
        self.total = 0
        self.scope = _scope(virtual)
        self.links = [
            Link(self, reals[server.real], server.port or virtual.port, position)
            for position, server in enumerate(virtual.servers)
        ]
        for link in self.links:
            link.real.links.append(link)
        self.link_at = {link.real.address + link.inbound.port: link for link in self.links}
        self.scheduler: Scheduler = make_scheduler(virtual.scheduler, self.links)

    def links_to(self, real: RealServer) -> list[Link]:
        """This virtual server's links to a real server: usually one, none if it has no place here."""
        return [link for link in real.links if link.virtual is self]


def _scope(virtual: spec.Virtual) -> Scope | None:
    if virtual.sticky <= 0:
        return None
    grouped = bool(virtual.sticky_group)
    return Scope(virtual.sticky_group or virtual.name, grouped, virtual.sticky, virtual.sticky_mask)
