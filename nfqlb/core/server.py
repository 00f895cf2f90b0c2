"""Virtual servers, real servers, and the links between them.

Owns the running counterparts of the specifications: `VirtualServer` (the patent's virtual
machine object, fig 3A), `RealServer` (physical machine object, fig 3B) and `Link` (link
object 3E with its port object 3F). A real server's counters are moved by the connection
table alone; every change is passed on to the schedulers that rank it.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING

from nfqlb.core import spec
from nfqlb.core.admission import ServerState
from nfqlb.core.former import FormerLinks
from nfqlb.core.health import Condition, Health
from nfqlb.core.histogram import Histogram
from nfqlb.core.keys import TCP, UDP
from nfqlb.core.response import Measuring, ResponseTime
from nfqlb.core.rewriting import rewritings
from nfqlb.core.schedulers import RoundRobin, Scheduler, make_scheduler
from nfqlb.core.scope import scope_of
from nfqlb.core.shadow import Shadow
from nfqlb.core.startup import Startup
from nfqlb.core.states import State
from nfqlb.core.synguard import SynGuard, guard_of

if TYPE_CHECKING:
    from nfqlb.core.connection import Connection
    from nfqlb.core.decision import Decisions
    from nfqlb.core.verdict import Drop

#: By the name that the configuration uses: IP protocol number, and the state that a connection begins in.
PROTOCOLS = {"tcp": (TCP, State.SYN_SENT), "udp": (UDP, State.UDP_NEW)}


class RealServer:
    """A real server (physical machine object, fig 3B: R030-R049).

    `connections` is NC (371), `unanswered` the SYNs not yet answered (364), `total` all
    connections ever made to it. `links` are its places in virtual servers (R010, R033),
    `standing_by` the links that take over where it has failed. `setting` is the state that the
    operator gave it; `state` what it really is, since `since`. `serving` is whether
    clients are sent to it, or would be if it had room, `serving_since` when that last began, by
    whatever way (R101). `tester` is the connection that tests it. Sticky assignments before `bound_from`
    have been cleared: a successor must not restore them. `response` is its response time, taken
    from all of its connections, whatever virtual server they came through (R094), `responses` counts
    all that were measured; `timed` are the links whose virtual server goes by it. `answered_at` is when it
    last answered a SYN, if that is known. `draining` says that it is not in the configuration any more.
    """

    __slots__ = (
        "address", "answered_at", "bad_from", "bound_from", "connections", "draining", "health", "links",
        "response", "responses", "serving", "serving_since", "setting", "since", "spec", "standing_by",
        "state", "tester", "timed", "total", "unanswered", "weight",
    )  # fmt: skip

    def __init__(
        self, real: spec.Real, now: float, *, strict_syn_limit: bool = False, draining: bool = False
    ) -> None:
        self.spec = real
        self.draining = draining
        self.address = real.address.packed
        self.weight = real.weight
        self.connections = 0
        self.unanswered = 0
        self.total = 0
        self.bad_from = _bad_from(real, strict_syn_limit)
        self.setting = ServerState.IN_SERVICE
        self.state = ServerState.IN_SERVICE
        self.since = now
        self.serving = self.weight > 0
        self.serving_since = now
        self.health = Health(real)
        self.tester: Connection | None = None
        self.bound_from = 0.0
        self.answered_at = -inf
        self.links: list[Link] = []
        self.standing_by: list[Link] = []
        self.response = ResponseTime()
        self.responses = Histogram()
        self.timed: list[Link] = []

    def follow(self, real: spec.Real, *, strict_syn_limit: bool, draining: bool) -> None:
        """Be what `real` says from now on; `changed` must follow.

        What an operator has set stays, but for a weight where the configuration has another one now.
        """
        if real.weight != self.spec.weight:
            self.weight = real.weight
        self.spec = self.health.spec = real
        self.bad_from = _bad_from(real, strict_syn_limit)
        self.draining = draining

    @property
    def full(self) -> bool:
        """Whether it is at its maximum number of connections (R184, A28)."""
        limit = self.spec.max_connections
        return limit > 0 and self.connections >= limit

    @property
    def overloaded(self) -> bool:
        """Whether too many of its SYNs are unanswered, which makes it a bad machine (R146, A1)."""
        return self.unanswered >= self.bad_from

    @property
    def down(self) -> bool:
        """Whether it has failed and not yet proved otherwise (R181)."""
        return self.health.condition is not Condition.WELL

    @property
    def wants_backup(self) -> bool:
        """Whether its backup stands in: it has failed, or is full where that is to count too (R185, A27)."""
        return self.down or (self.full and self.spec.backup_when == "full")

    @property
    def admits_new(self) -> bool:
        """Whether a client without a sticky entry may be sent here (R144, R184; weight 0 quiesces, A14)."""
        return self.state.new and self.weight > 0

    @property
    def admits_sticky(self) -> bool:
        """Whether a client with a sticky entry may be sent here: weight 0 does not turn it away (A7, A14)."""
        return self.state.sticky and not self.full

    def changed(self, now: float) -> None:
        """Follow a change of counters, setting or health: the state, and every scheduler that ranks this."""
        state = self._present_state()
        serving = self.weight > 0 and (state.new or state is ServerState.MAX_CAPACITY)
        if serving and not self.serving:
            self.serving_since = now
        self.serving = serving
        if state is not self.state:
            self.state = state
            self.since = now
        for link in self.links:
            link.virtual.updated(link)
        for link in self.standing_by:
            link.virtual.updated(link)

    def responded(self, took: float, now: float, *, clamp: float, raw: bool) -> None:
        """A response took so many seconds; see `ResponseTime.sample`."""
        self.response = self.response.sampled(took, self.connections, now, clamp=clamp, raw=raw)
        self.responses.add(took)
        for link in self.timed:
            link.virtual.updated(link)
        self.stirred()

    def tried(self, now: float) -> None:
        """A connection goes to this server, which has not been measured yet, to see how it responds."""
        self.response = self.response._replace(tried=now)
        for link in self.timed:
            link.virtual.updated(link)

    def stirred(self) -> None:
        """Follow a change that moves no scheduler's rank: the records of decisions are to know it."""
        for link in self.links:
            if link.virtual.decisions is not None:
                link.virtual.decisions.stale.add(link.position)

    def _present_state(self) -> ServerState:
        if self.draining:
            return ServerState.DRAINING
        condition = self.health.condition
        if not self.setting.sticky:
            return self.setting
        if condition is not Condition.WELL:
            return ServerState.FAILED if condition is Condition.FAILED else ServerState.TESTING
        if self.setting is not ServerState.IN_SERVICE:
            return self.setting
        return ServerState.MAX_CAPACITY if self.full else ServerState.IN_SERVICE


def _bad_from(real: spec.Real, strict_syn_limit: bool) -> float:
    """A1: who has as many as the limit is bad; step 756, read literally, says more than the limit."""
    return real.syn_limit + strict_syn_limit if real.syn_limit else inf


class Link:
    """A real server's place in a virtual server, with its port there (R068-R073).

    `position` is its place in the search order. `port` is the real server's port (A21), None where
    it is the one that the client uses. `inbound` and `outbound` are the changes of headers that all
    of its connections share. `stands_for` is the link that this one is the backup of, None for a server
    of its own right. `members` are its connections where they must be found when the server fails, else None.
    `held` counts those that the table holds in any state. `leaving` says that it is no place any more, and
    has connections that go on.
    """

    __slots__ = (
        "connections", "held", "inbound", "leaving", "members", "outbound", "port", "position", "real",
        "stands_for", "total", "virtual",
    )  # fmt: skip

    def __init__(
        self,
        virtual: "VirtualServer",
        real: RealServer,
        port: int | None,
        position: int,
        stands_for: "Link | None" = None,
    ) -> None:
        self.virtual = virtual
        self.real = real
        self.port = port
        self.position = position
        self.stands_for = stands_for
        self.connections = 0
        self.total = 0
        self.held = 0
        self.leaving = False
        self.members: set[Connection] | None = None
        self.inbound, self.outbound = rewritings(
            virtual.spec.address.packed, virtual.port, real.address, port
        )

    @property
    def active(self) -> bool:
        """Whether this place counts at present: a backup's does where who it stands for wants one (A27)."""
        return self.stands_for is None or (self.stands_for.real.wants_backup and self.stands_for.active)

    @property
    def available(self) -> bool:
        """Whether a scheduler may choose it (R144)."""
        real = self.real  # `admits_new` and `active`, whose calls would be felt here
        return real.state.new and real.weight > 0 and (self.stands_for is None or self.active)


#: What of a virtual server a scheduler or the startup scheme is made from.
_SCHEDULING = (
    "scheduler", "ageing", "predict", "startup", "startup_share", "startup_time", "startup_test",
)  # fmt: skip


class VirtualServer:
    """A virtual server (virtual machine object, fig 3A: R021-R029).

    `last` is the position of the last used link (308): ties are broken by the order after
    it (A29). `port` is None where it answers on every port; `opening` is the state that its
    connections begin in. `link_at` finds a link by real address and port (network order; every
    port: by address alone). `scope` is None where stickiness is off (A10). `scheduler` is the
    desired one (318); `startup`, where there is one, acts in its stead while servers start up, and
    `actual` names the one that acted last (320). `backup` is the link for when no other may be
    chosen (316). `setting` is the state that the operator gave it; for `bound_from` see `RealServer`.
    `measuring` says how response times are measured, None where they are not (UDP does not tell what
    is a response; of connections that the kernel carries nobody tells but where a scheduler needs it).
    `decisions` is the record of the last ones, None where none is kept. `shadow` is a second scheme that is
    asked and not obeyed, None where there is none. `drops` counts its packets that were dropped. `half_open`
    are its connections that wait for the end of TCP's handshake, `guard` limits them, None where nobody
    does. `leaving` are links that are no places of it any more and have connections; `draining` says that it
    is not in the configuration any more. `doubting` says that clients need not come back to a server that
    did not take them (see `doubts`).
    """

    __slots__ = (
        "_signature", "actual", "backup", "bound_from", "connections", "decisions", "doubting", "draining",
        "drops", "guard", "half_open", "last", "leaving", "link_at", "links", "measuring", "opening", "port",
        "protocol", "scheduler", "scope", "setting", "shadow", "spec", "startup", "total",
    )  # fmt: skip

    def __init__(
        self, virtual: spec.Virtual, reals: Mapping[str, RealServer], *, strict: spec.Strict | None = None,
        leaving: Sequence[spec.Server] = (), draining: bool = False,
    ) -> None:  # fmt: skip
        self.spec = virtual
        self.port = virtual.port
        self.protocol, self.opening = PROTOCOLS[virtual.protocol]
        self.last = -1
        self.connections = 0
        self.total = 0
        self.setting = ServerState.IN_SERVICE
        self.bound_from = 0.0
        self.links: list[Link] = []
        self.backup: Link | None = None
        self.leaving: list[Link] = []
        self.startup: Startup | None = None
        self.shadow: Shadow | None = None
        self.drops: dict[Drop, int] = {}
        self.half_open = 0
        self.guard: SynGuard | None = None
        self.decisions: Decisions | None = None
        self._signature: tuple[object, ...] | None = None
        self.follow(virtual, reals, strict=strict or spec.Strict(), leaving=leaving, draining=draining)

    def follow(
        self, virtual: spec.Virtual, reals: Mapping[str, RealServer], *, strict: spec.Strict,
        leaving: Sequence[spec.Server], draining: bool,
    ) -> None:  # fmt: skip
        """Be what `virtual` says from now on; `leaving` are places that take no new connections any more.

        Links that stay are the same objects. The real servers must follow the configuration already, and list
        no links. Where the schedulers cannot go on they begin anew, and so does the record of decisions.
        """
        former = FormerLinks([*self.everybody, *self.leaving])
        used = [*reversed(self.links[: self.last + 1])]
        self.spec = virtual
        self.draining = draining
        self.scope = scope_of(virtual, strict_refresh=strict.refresh)
        ditched = virtual.sticky_ditched == "break" and virtual.protocol == "tcp"
        self.doubting = self.scope is not None and ditched
        self.measuring = _measuring(virtual, strict)
        self.guard = guard_of(virtual, self.guard)
        self._place(virtual, reals, former)
        at = (link.position for link in used if self.links[link.position : link.position + 1] == [link])
        self.last = next(at, -1)
        self.leaving = [self._link(former, reals[each.real], each.port, None) for each in leaving]
        self.leaving += former.held()
        for link in self.leaving:
            link.leaving, link.position, link.stands_for = True, -1, None
        everybody = [*self.everybody, *self.leaving]
        self.link_at = {link.real.address + link.inbound.port: link for link in reversed(everybody)}
        self._schedule(virtual)

    def _place(self, virtual: spec.Virtual, reals: Mapping[str, RealServer], former: FormerLinks) -> None:
        """The links, in their search order."""
        self.links = []
        for server in virtual.servers:
            self._add(self._link(former, reals[server.real], server.port or virtual.port, None))
        for link in list(self.links):
            self._add_backups(link, reals, former)
        self.backup = None
        if virtual.backup:
            self.backup = self._link(former, reals[virtual.backup], virtual.port, None)
            self.backup.position = len(self.links)

    def _schedule(self, virtual: spec.Virtual) -> None:
        """Begin anew to schedule, unless everything that schedulers know of is as before."""
        keys = [getattr(virtual, key) for key in _SCHEDULING]
        links = [(id(link), link.real.spec.name, link.stands_for) for link in self.everybody]
        signature = (*keys, *links, len(self.links))
        same = signature == self._signature
        if same and virtual.shadow == (self.shadow.scheduler.name if self.shadow is not None else ""):
            return
        self.shadow = Shadow(self) if virtual.shadow else None
        self.decisions = None
        if same:  # another shadow, or none any more, is nothing to the scheduler
            return
        self._signature = signature
        self.scheduler: Scheduler = make_scheduler(virtual, self.links)
        self.startup = Startup(self) if virtual.startup == RoundRobin.name else None
        self.actual = self.scheduler.name

    @property
    def everybody(self) -> list[Link]:
        """All links that may ever serve it, backups last."""
        return [*self.links, self.backup] if self.backup else self.links

    def _link(
        self, former: FormerLinks, real: RealServer, port: int | None, stands_for: Link | None
    ) -> Link:
        """A link to a real server: one that was, or a new one."""
        link = former.take(real, port, backup=stands_for is not None)
        if link is None:
            return Link(self, real, port, -1, stands_for)
        link.stands_for, link.leaving = stands_for, False
        return link

    def _add(self, link: Link) -> Link:
        real = link.real
        link.position = len(self.links)
        self.links.append(link)
        real.links.append(link)
        if self.measuring is not None and self.measuring.used:
            real.timed.append(link)
        return link

    def _add_backups(self, link: Link, reals: Mapping[str, RealServer], former: FormerLinks) -> None:
        """A link for each backup in a server's chain, on the same port (A27); no chain runs in a circle."""
        above = []
        while link.real.spec.backup:
            above.append(link.real)
            link = self._add(self._link(former, reals[link.real.spec.backup], link.port, link))
            for real in above:
                real.standing_by.append(link)

    def find_link(self, server: bytes) -> Link | None:
        """The link to a real server's address and port (network order), if there is one."""
        return self.link_at.get(server if self.port is not None else server[:-2])

    def updated(self, link: Link) -> None:
        """A link's server changed."""
        self.scheduler.update(link)
        if self.decisions is not None:
            self.decisions.stale.add(link.position)
        if self.startup is not None:
            self.startup.update(link)
        if self.shadow is not None:
            self.shadow.scheduler.update(link)

    def links_to(self, real: RealServer) -> list[Link]:
        """This virtual server's links to a real server: usually one, none if it has no place here."""
        return [link for link in real.links if link.virtual is self and link.active]


def _measuring(virtual: spec.Virtual, strict: spec.Strict) -> Measuring | None:
    if virtual.protocol != "tcp":
        return None
    measuring = Measuring(virtual, strict)
    return measuring if measuring.used or virtual.datapath != "offload" else None
