"""The director: what becomes of a packet that opens, changes or ends a connection.

Owns the decision of the patent's figures 5 to 8: find the connection, else make one; for a
new one, the sticky entry decides, else the scheduler. It answers with the connection to
translate for, or with the reason why not. Plain segments of established flows do not come
here (see `table`).
"""

from collections.abc import Iterator

from nfqlb.core import observe, spec
from nfqlb.core.connection import Connection
from nfqlb.core.fpa import FpaTable
from nfqlb.core.segment import ACK, FIN, RST, SYN, Segment, flipped
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.snapshot import (
    ConnectionSnapshot,
    RealSnapshot,
    StickySnapshot,
    Totals,
    VirtualSnapshot,
)
from nfqlb.core.states import BY_CODE, TRANSITIONS, Event, State
from nfqlb.core.table import IDLE_CHECK, ConnectionTable, Recorder
from nfqlb.core.verdict import Drop, Refusal, Tally

Outcome = Connection | Refusal


class Director:
    """Local Director 110: the façade of the decision core.

    Every method that takes a packet's facts returns the connection it belongs to, or the
    refusal, already counted. `now` is in seconds of a monotonic clock.
    """

    def __init__(self, config: spec.Config, *, now: float, recorder: Recorder | None = None) -> None:
        self.config = config
        self.tally = Tally()
        self.real_servers = {real.name: RealServer(real, now) for real in config.reals}
        self.virtual_servers = [VirtualServer(virtual, self.real_servers) for virtual in config.virtuals]
        self.fpas = FpaTable(config.gateway.max_sticky)
        shortest = min((real.idle_timeout for real in config.reals), default=config.timeouts.idle)
        self.table = ConnectionTable(
            config.gateway.max_connections,
            half_open=config.timeouts.half_open,
            closing=config.timeouts.closing,
            idle_check=min(IDLE_CHECK, shortest / 4),
            recorder=recorder,
        )
        self._by_destination = {
            virtual.spec.address.packed + virtual.port.to_bytes(2, "big"): virtual
            for virtual in self.virtual_servers
        }

    def refuse(self, reason: Refusal) -> Refusal:
        """Count a refusal and return it."""
        self.tally.add(reason)
        return reason

    # --- what a client sends (fig 5, client line 202)

    def client_syn(self, segment: Segment, now: float) -> Outcome:
        """A SYN without ACK from the client line (R108-R112)."""
        known = self.table.inbound.get(segment.key)
        if known is not None and known.state is State.CLOSED:
            self.table.remove(known, now)  # the port is used again (A18)
        elif known is not None and known.state.quick:
            return known  # the server's challenge ACK settles it (RFC 5961 section 4)
        elif known is not None and known.same_syn(segment.numbers):
            known.attempts += 1  # a repeated SYN goes to the same server (R111)
            known.seen = now
            return known
        elif known is not None:
            self.table.remove(known, now)  # half-open, and a new attempt
        return self._open(segment, now)

    def client_segment(self, segment: Segment, now: float) -> Outcome:
        """Any other segment from the client line (R112, R113)."""
        connection = self.table.inbound.get(segment.key)
        if connection is None:
            return self.refuse(Drop.NO_CONNECTION)
        self.client_sent(connection, segment.flags, segment.numbers, now)
        return connection

    def client_sent(self, connection: Connection, flags: int, numbers: bytes, now: float) -> None:
        """A client's segment, not a SYN, changes its connection."""
        event = _client_event(connection, flags, numbers)
        if _believable(connection, flags, event):
            connection.client_numbers = numbers
        self._happened(connection, event, now)

    # --- what a server sends (server line 204)

    def server_segment(self, segment: Segment, now: float) -> Outcome:
        """A segment in reply direction from the server line (R169)."""
        connection = self.table.outbound.get(segment.key)
        if connection is None:
            return self.refuse(Drop.SERVER_UNKNOWN)
        self.server_sent(connection, segment.flags, segment.numbers, now)
        return connection

    def server_sent(self, connection: Connection, flags: int, numbers: bytes, now: float) -> None:
        """A server's segment changes its connection."""
        event = _server_event(connection, flags, numbers)
        if _believable(connection, flags, event):
            connection.server_numbers = numbers
        self._happened(connection, event, now)

    # --- errors about packets that were sent earlier

    def error_from_outside(self, quoted: bytes) -> Connection | None:
        """The connection that an ICMP error from outside is about.

        `quoted` is the quoted packet's key (virtual server to client).
        """
        return self.table.inbound.get(flipped(quoted))

    def error_from_inside(self, quoted: bytes, *, unreachable: bool) -> Outcome | None:
        """The connection an ICMP error from inside, or of the gateway's own, is about.

        `quoted` is the quoted packet's key (client to real server). `unreachable` says that
        the error would make the client's TCP give up: about a half-open connection it is
        eaten, so that the client repeats its SYN.
        """
        connection = self.table.outbound.get(flipped(quoted))
        if connection is not None and unreachable and not connection.state.quick:
            return self.refuse(Drop.UNREACHABLE)
        return connection

    # --- time

    def tick(self, now: float, budget: int = 1000) -> bool:
        """End what has timed out, in bounded steps; True if there may be more to do at once."""
        share = (budget + 1) // 2
        dropped = self.fpas.expire(now, share)
        looked = self.table.expire(now, budget - dropped)
        return dropped >= share or looked >= budget - dropped

    # --- a new connection (figs 6, 7A, 8)

    def _open(self, segment: Segment, now: float) -> Outcome:
        virtual = self._by_destination.get(_destination(segment.key))
        if virtual is None:
            return self.refuse(Drop.NO_VIRTUAL)
        link = self._select(virtual, segment.key, now)
        if link is None:
            return self.refuse(Drop.NO_SERVER)
        outbound = reverse_key(segment.key, link)
        if outbound in self.table.outbound:
            link = self._select_apart(virtual, segment.key, now)
            if link is None:
                return self.refuse(Drop.COLLISION)
            outbound = reverse_key(segment.key, link)
        if not self.table.make_room(now):
            return self.refuse(Drop.TABLE_FULL)
        connection = Connection(segment.key, outbound, link, now)
        connection.client_numbers = segment.numbers
        self.table.add(connection, now)
        virtual.last = link.position
        if virtual.scope is not None:
            self.fpas.assign(virtual.scope, _client(segment.key), link.real, now)
        return connection

    def _select(self, virtual: VirtualServer, key: bytes, now: float) -> Link | None:
        """The sticky entry's server, else the scheduler's (fig 7A, R131-R133, R138)."""
        if virtual.scope is not None:
            real = self.fpas.find(virtual.scope, _client(key), now)
            if real is not None and real.admits_sticky:
                links = virtual.links_to(real)
                if links:
                    return links[0]
        return virtual.scheduler.choose(virtual.last)

    def _select_apart(self, virtual: VirtualServer, key: bytes, now: float) -> Link | None:
        """A link whose replies can be told apart from another connection's (A5); overrides stickiness.

        Where none is free, an ended connection makes way.
        """

        def free(link: Link) -> bool:
            return reverse_key(key, link) not in self.table.outbound

        def ended(link: Link) -> bool:
            other = self.table.outbound.get(reverse_key(key, link))
            return other is not None and other.state is State.CLOSED

        link = virtual.scheduler.choose(virtual.last, free)
        if link is None:
            link = virtual.scheduler.choose(virtual.last, ended)
            if link is not None:
                self.table.remove(self.table.outbound[reverse_key(key, link)], now)
        return link

    def _happened(self, connection: Connection, event: Event | None, now: float) -> None:
        connection.seen = now
        if event is None:
            return
        state = TRANSITIONS[connection.state].get(event)
        if state is not None:
            self.table.move(connection, state, now)

    # --- a successor takes over

    def restore(
        self, inbound: bytes, server: bytes, code: int, place: int, *, opened: float, now: float
    ) -> bool:
        """Enter a connection that a journal remembers; False if there is no place for it any more.

        `inbound` is its key, `server` the real server's address and port (network order),
        `code` its state's and `place` its record. Its client is bound to its server again where
        stickiness is on. `restored` must follow the last one.
        """
        virtual = self._by_destination.get(_destination(inbound))
        state = BY_CODE.get(code, State.GONE)
        if virtual is None or state is State.GONE or inbound in self.table.inbound:
            return False
        link = virtual.link_at.get(server)
        if link is None:
            return False
        connection = Connection(inbound, reverse_key(inbound, link), link, now)
        if connection.outbound in self.table.outbound:
            return False
        connection.opened = opened
        connection.place = place
        self.table.restore(connection, state, now)
        if virtual.scope is not None and now - opened < virtual.scope.interval:
            self.fpas.restore(virtual.scope, _client(inbound), link.real, opened)
        return True

    def restored(self, now: float) -> None:
        """All that a journal remembers is entered: let the schedulers see it."""
        for real in self.real_servers.values():
            real.changed(now)

    # --- what can be seen

    def totals(self) -> Totals:
        """The director as a whole."""
        return observe.totals(self)

    def virtuals(self, now: float) -> list[VirtualSnapshot]:
        """Every virtual server, in the configuration's order."""
        return observe.virtuals(self, now)

    def reals(self, now: float) -> list[RealSnapshot]:
        """Every real server, in the configuration's order."""
        return observe.reals(self, now)

    def connections(
        self, now: float, *, limit: int, client: spec.Address | None = None, virtual: str | None = None
    ) -> list[ConnectionSnapshot]:
        """At most `limit` connections, of one client or one virtual server where that is given."""
        return observe.connections(self, now, limit=limit, client=client, virtual=virtual)

    def sticky(self, now: float) -> Iterator[StickySnapshot]:
        """Every sticky entry that still holds; to be read before anything else happens."""
        return observe.sticky(self, now)


def reverse_key(inbound: bytes, link: Link) -> bytes:
    """The key of a server's replies: real address, client, real port, client port (A5)."""
    size = len(link.real.address)
    return link.real.address + inbound[:size] + link.inbound.port + inbound[-4:-2]


def _client(key: bytes) -> bytes:
    return key[: (len(key) - 4) // 2]


def _destination(key: bytes) -> bytes:
    size = (len(key) - 4) // 2
    return key[size : 2 * size] + key[-2:]


def _client_event(connection: Connection, flags: int, numbers: bytes) -> Event | None:
    if flags & RST:
        return Event.RESET if connection.client_reset_fits(numbers) else None
    if connection.state is State.SYN_RECEIVED and not connection.acknowledges_server(numbers):
        return None
    if flags & FIN:
        return Event.CLIENT_FIN
    return Event.ACK if flags & ACK else None


def _server_event(connection: Connection, flags: int, numbers: bytes) -> Event | None:
    if flags & RST:
        return Event.RESET if connection.server_reset_fits(numbers) else None
    if flags & (SYN | ACK) == SYN | ACK:
        return Event.SYN_ACK if connection.acknowledges_client(numbers) else None
    return Event.SERVER_FIN if flags & FIN else None


def _believable(connection: Connection, flags: int, event: Event | None) -> bool:
    """Whether a segment may be its side's newest: no reset, and nothing that the handshake did not expect."""
    if flags & RST:
        return False
    return connection.state.quick or event is Event.SYN_ACK or event in TRANSITIONS[connection.state]
