"""The director: what becomes of a packet that opens, changes or ends a connection.

Owns the decision of the patent's figure 5: find the connection, else have one made (see `placement`). It
answers with the connection to translate for, or why not. Plain segments do not come here (see `table`).
"""

from collections.abc import Callable, Iterator

from nfqlb.core import observe, spec
from nfqlb.core.audit import Audit
from nfqlb.core.carrier import Carrier
from nfqlb.core.chronicle import Chronicle, Keeper
from nfqlb.core.connection import Connection
from nfqlb.core.decision import KEPT, start_recording
from nfqlb.core.destinations import Destinations
from nfqlb.core.doubts import Doubts
from nfqlb.core.explanation import Wanted
from nfqlb.core.failure import FailureWatch
from nfqlb.core.fpa import FpaTable, StickyRecorder
from nfqlb.core.keys import client_of, flipped, inbound_key, protocol_of, server_of
from nfqlb.core.meaning import believable, client_event, server_event
from nfqlb.core.operation import Operation
from nfqlb.core.outage import Outage
from nfqlb.core.placement import Placement
from nfqlb.core.reconfigure import reconfigure, remaining
from nfqlb.core.recorder import Recorder
from nfqlb.core.reject import Action, Rejection
from nfqlb.core.scope import Scope
from nfqlb.core.segment import NO_STAMP, Probe, Reset, Segment, Stamp
from nfqlb.core.server import RealServer, VirtualServer
from nfqlb.core.snapshot import (
    ConnectionSnapshot,
    DecisionSnapshot,
    FailureSnapshot,
    RealSnapshot,
    StickySnapshot,
    Totals,
    VirtualSnapshot,
)
from nfqlb.core.states import TRANSITIONS, Event, State
from nfqlb.core.succession import Stickies, restore
from nfqlb.core.table import ConnectionTable
from nfqlb.core.verdict import Drop, Outcome, Refusal, Tally

#: Ending a connection and telling its client takes so many times what a look at one takes.
_ENDING_COSTS = 16


class Director:
    """Local Director 110: the façade of the decision core.

    Every method that takes a packet's facts returns the connection it belongs to, or the
    refusal, already counted. `now` is in seconds of a monotonic clock. Of every virtual server's last
    decisions it records `decisions` at most, none with 0.
    """

    def __init__(
        self, config: spec.Config, *, now: float, recorder: Recorder | None = None,
        keeper: Keeper | None = None, carrier: Carrier | None = None, stickies: StickyRecorder | None = None,
        decisions: int = KEPT,
    ) -> None:  # fmt: skip
        self.config = config
        self.tally = Tally()
        strict = config.strict
        self._recorded = decisions
        leaving = config.leaving
        self.real_servers = {
            real.name: RealServer(
                real, now, strict_syn_limit=strict.syn_limit, draining=real.name in leaving.reals
            )
            for real in config.reals
        }
        self.virtual_servers = [
            VirtualServer(
                virtual, self.real_servers, strict=strict, leaving=config.leaving_places(virtual),
                draining=virtual.name in leaving.virtuals,
            )
            for virtual in config.virtuals
        ]  # fmt: skip
        start_recording(self.virtual_servers, decisions)
        self.fpas = FpaTable(config.gateway.max_sticky, stickies)
        self.chronicle = Chronicle(self.virtual_servers, keeper)
        self.watch = FailureWatch(
            on_change=self.chronicle.real_changed, on_failure=lambda real: self._outage.failed(real)
        )
        self.doubts = Doubts()
        self.operation = Operation(
            self.real_servers, self.virtual_servers, self.fpas, self.doubts, self.watch, self.chronicle
        )
        self.table = ConnectionTable(
            config.gateway.max_connections,
            half_open=config.timeouts.half_open,
            closing=config.timeouts.closing,
            udp=config.timeouts.udp,
            count_on=config.gateway.count_on,
            close_on=config.gateway.close_on,
            recorder=recorder,
            on_silence=lambda connection, now: self.placement.silent(connection, now),
            on_eviction=self.watch.ended,
            on_gone=self._gone(),
            carrier=carrier,
            on_progress=self.progressed,
        )
        self.audit = Audit(self.table)
        self.destinations = Destinations(self.virtual_servers)
        self._outage = Outage(self.virtual_servers, self.table, self.tally)
        self._rejection = Rejection(self.destinations, self.virtual_servers, self.tally)
        self.placement = Placement(
            self.table, self.fpas, self.watch, self.tally, self.destinations, self.doubts,
            self.chronicle.unbound,
        )  # fmt: skip
        for real in self.real_servers.values():
            if real.draining:
                real.changed(now)

    def _gone(self) -> Callable[[Connection], None] | None:
        """Who is told of connections that are forgotten; None where nobody needs to know."""
        scopes = (virtual.scope for virtual in self.virtual_servers)
        active = any(scope is not None and scope.active for scope in scopes)
        return (lambda connection: self.placement.gone(connection)) if active else None

    # --- another configuration

    def reconfigure(self, config: spec.Config, now: float) -> None:
        """Follow another configuration from the next packet on.

        It must hold, as `leaving`, whatever of the present one has connections (`config.transition.merged`);
        interfaces, queues and datapaths are others' business.
        """
        reconfigure(self, config, now)

    def remaining(self) -> list[tuple[str, spec.Server]]:
        """The places that are leaving and still have connections, by their virtual server's name."""
        return remaining(self.virtual_servers)

    def follow_settings(self) -> set[VirtualServer]:
        """Have every part follow the servers and settings that are there now; returns as `Outage.follow`."""
        config, virtuals = self.config, self.virtual_servers
        start_recording(virtuals, self._recorded)
        self.table.follow(
            config.gateway.max_connections,
            half_open=config.timeouts.half_open,
            closing=config.timeouts.closing,
            udp=config.timeouts.udp,
            count_on=config.gateway.count_on,
            close_on=config.gateway.close_on,
            on_gone=self._gone(),
        )
        self.watch.follow(set(self.real_servers.values()), set(virtuals))
        self.doubts.follow(virtuals)
        for part in (self.destinations, self._rejection, self.operation):
            part.follow(virtuals)
        return self._outage.follow(virtuals)

    def refuse(self, reason: Refusal, *, inbound: bytes = b"", outbound: bytes = b"") -> Refusal:
        """Count a refusal and return it, for the virtual server as well whose packet had this key."""
        find = self.destinations.find if inbound else self.destinations.behind
        return self.tally.refuse(reason, find(inbound or outbound) if inbound or outbound else None)

    def reply_to(self, reason: Refusal, key: bytes, flags: int | None, now: float) -> Action:
        """What a client is told of its packet, refused for `reason` (R114, A20): see `reject`."""
        return self._rejection.reply_to(reason, key, flags, now)

    def take_resets(self) -> list[Reset | Probe]:
        """What clients of failed servers are to get, since it was last asked (A34)."""
        resets, self._outage.resets = self._outage.resets, []
        return resets

    # --- what a client sends (fig 5, client line 202)

    def client_syn(self, segment: Segment, now: float) -> Outcome:
        """A SYN without ACK from the client line (R108-R112)."""
        known = self.table.inbound.get(segment.key)
        if known is not None and known.state.ended:
            self.table.remove(known, now)  # the port is used again (A18)
        elif known is not None and known.state.quick:
            return known  # the server's challenge ACK settles it (RFC 5961 section 4)
        elif known is not None and known.same_syn(segment.numbers):
            measuring = known.link.virtual.measuring
            if known.interval is not None and measuring is not None:
                measuring.repeated(known.interval, segment.stamp, now)
            self.placement.repeated(known, now)
            return known
        elif known is not None:
            self.placement.abandon(known, now)  # half-open, and a new attempt
        return self.placement.open(segment.key, segment.numbers, segment.stamp, now)

    def client_segment(self, segment: Segment, now: float) -> Outcome:
        """Any other segment from the client line (R112, R113)."""
        connection = self.table.inbound.get(segment.key)
        if connection is None:
            return self.refuse(Drop.NO_CONNECTION, inbound=segment.key)
        self.client_sent(connection, segment.flags, segment.numbers, now, segment.size, segment.stamp)
        return connection

    def client_sent(
        self,
        connection: Connection,
        flags: int,
        numbers: bytes,
        now: float,
        size: int = 0,
        stamp: Stamp = NO_STAMP,
    ) -> None:
        """A client's segment, not a SYN, changes its connection; `size` and `stamp` as in `Segment`."""
        event = client_event(connection, flags, numbers)
        if event is Event.RESET and connection.state is State.SYN_SENT:
            self.watch.ended(connection, now)
        if believable(connection, flags, event):
            connection.client_numbers = numbers
            if size and connection.interval is not None:
                measuring = connection.link.virtual.measuring
                assert measuring is not None
                measuring.requested(connection, connection.interval, size, stamp, now)
        self._happened(connection, event, now)

    def client_datagram(self, key: bytes, now: float) -> Outcome:
        """A UDP datagram from the client line, by its key (R012): the first one opens a flow."""
        flow = self.table.inbound.get(key)
        if flow is None:
            return self.placement.open(key, b"", NO_STAMP, now)
        flow.seen = now
        if flow.state is State.UDP_NEW:
            self.placement.stranded(flow, now)
        return flow

    # --- what a server sends (server line 204)

    def server_segment(self, segment: Segment, now: float) -> Outcome:
        """A segment in reply direction from the server line (R169)."""
        connection = self.table.outbound.get(segment.key)
        if connection is None:
            return self.refuse(Drop.SERVER_UNKNOWN, outbound=segment.key)
        self.server_sent(connection, segment.flags, segment.numbers, now, segment.size, segment.stamp)
        return connection

    def server_sent(
        self,
        connection: Connection,
        flags: int,
        numbers: bytes,
        now: float,
        size: int = 0,
        stamp: Stamp = NO_STAMP,
    ) -> None:
        """A server's segment changes its connection; `size` and `stamp` as in `Segment`."""
        event = server_event(connection, flags, numbers)
        if event is Event.RESET and connection.state is State.SYN_SENT:
            self.placement.refused(connection, now)
        if believable(connection, flags, event):
            connection.server_numbers = numbers
            interval = connection.interval
            if interval is not None and (size or event is Event.SYN_ACK):
                measuring = connection.link.virtual.measuring
                assert measuring is not None
                if event is Event.SYN_ACK:
                    measuring.accepted(interval, stamp, now)
                if size and interval.armed:  # before the connection may end, and count no more
                    measuring.responded(connection, interval, stamp, now)
        self._happened(connection, event, now)

    def handshake_seen(
        self, connection: Connection, flags: int, numbers: bytes, now: float, stamp: Stamp
    ) -> None:
        """A server's SYN-ACK, where nobody tells of the client's ACK: that is taken for granted (R077, R078).

        Arguments as in `server_sent`.
        """
        state = connection.state
        if server_event(connection, flags, numbers) is not Event.SYN_ACK or not state.half_open:
            self.server_sent(connection, flags, numbers, now, 0, stamp)
            return
        connection.server_numbers = numbers
        following = (int.from_bytes(numbers[:4], "big") + 1 & 0xFFFF_FFFF).to_bytes(4, "big")
        connection.client_numbers = numbers[4:] + following
        interval, measuring = connection.interval, connection.link.virtual.measuring
        if interval is not None and measuring is not None:
            measuring.accepted(interval, stamp, now)
        connection.seen = now
        self.table.move(connection, State.ESTABLISHED, now)
        if state is State.SYN_SENT:
            self.placement.answered(connection, now)

    def server_datagram(self, key: bytes, now: float) -> Outcome:
        """A UDP datagram in reply direction from the server line, by its key (R012, R169)."""
        flow = self.table.outbound.get(key)
        if flow is None:
            return self.refuse(Drop.SERVER_UNKNOWN, outbound=key)
        self._happened(flow, Event.ANSWER, now)
        return flow

    def progressed(self, connection: Connection, state: State, now: float) -> None:
        """Whoever carries this connection says how far it has come, which nobody had told (R077, R078).

        Which side has closed it he does not know; the other's FIN, or its end, will be told.
        """
        if not state.quick:
            return
        seen = connection.seen
        for event in (Event.ANSWER,) if state.udp else (Event.SYN_ACK, Event.ACK):
            self._happened(connection, event, now)
        connection.seen = seen

    def forget(self, connection: Connection, now: float) -> None:
        """Whoever carries this connection says that it has ended."""
        self.watch.ended(connection, now)
        self.table.remove(connection, now)

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
        eaten, so that the client repeats its SYN. About a UDP flow it is all that the client
        ever hears.
        """
        connection = self.table.outbound.get(flipped(quoted))
        if connection is None and (virtual := self._reassigned(quoted)) is not None:
            return self.tally.refuse(Drop.UNREACHABLE, virtual)
        if connection is not None and unreachable and connection.state.half_open:
            return self.tally.refuse(Drop.UNREACHABLE, connection.link.virtual)
        return connection

    def _reassigned(self, quoted: bytes) -> VirtualServer | None:
        """Whose connection this packet (client to real server) is of, if that has another server by now."""
        client, server = client_of(quoted), server_of(flipped(quoted))
        client_port, protocol = server_of(quoted)[-2:], protocol_of(quoted)
        for virtual in self.virtual_servers:
            if virtual.protocol == protocol and virtual.find_link(server):
                port = server[-2:] if virtual.port is None else virtual.port.to_bytes(2, "big")
                address = virtual.spec.address.packed
                key = inbound_key(client, address, client_port, port, protocol)
                if key in self.table.inbound:
                    return virtual
        return None

    # --- time

    def tick(self, now: float, budget: int = 1000) -> bool:
        """End what has timed out, in bounded steps; True if there may be more to do at once."""
        share = (budget + 1) // 2
        dropped = self.fpas.expire(now, share)
        looked = self.table.expire(now, budget - dropped)
        more = self._outage.step(now, (budget + _ENDING_COSTS - 1) // _ENDING_COSTS)
        self.doubts.expire(now, share)
        self.chronicle.look(now)
        return more or dropped >= share or looked >= budget - dropped

    def recount(self, now: float, budget: int = 250) -> None:
        """Count up to `budget` connections again, and tell of counters that were wrong (`core.audit`)."""
        for wrong in self.audit.step(self.real_servers.values(), self.virtual_servers, now, budget):
            self.chronicle.drifted(wrong, now)

    def _happened(self, connection: Connection, event: Event | None, now: float) -> None:
        connection.seen = now
        if event is None:
            return
        before = connection.state
        state = TRANSITIONS[before].get(event)
        if state is not None:
            self.table.move(connection, state, now)
            if state is State.SYN_RECEIVED:
                self.placement.answered(connection, now)
            elif state is State.ESTABLISHED or state is State.UDP_FLOW:
                self.placement.made(connection, now)

    # --- a successor takes over

    def restore(
        self, inbound: bytes, server: bytes, code: int, place: int, *, opened: float, now: float,
        bind: bool = True,
    ) -> bool:  # fmt: skip
        """Enter a connection that a journal remembers; False if there is no place for it any more.

        `inbound` is its key, `server` the real server's address and port (network order),
        `code` its state's and `place` its record. With `bind` its client is bound to its server again where
        stickiness is on. What was kept of servers comes first (`operation.restore`), then sticky entries
        (`stickies`), and `restored` must follow the last one.
        """
        return restore(self, inbound, server, code, place, opened=opened, now=now, bind=bind)

    def stickies(self, identity: Callable[[Scope], bytes]) -> Stickies:
        """Where sticky entries that a journal remembers are entered; `identity` is how it knows scopes."""
        return Stickies(self.virtual_servers, self.fpas, identity)

    def restored(self, now: float) -> None:
        """All that a journal remembers is entered: let the schedulers see it.

        A failed server's connections are those that its failure was still to end.
        """
        for real in self.real_servers.values():
            real.changed(now)
            if real.down:
                self._outage.failed(real)
        self.chronicle.settle()

    # --- what can be seen

    def totals(self) -> Totals:
        """The director as a whole."""
        return observe.totals(self)

    def virtual_names(self) -> list[str]:
        """Every virtual server's name, in the configuration's order."""
        return [virtual.spec.name for virtual in self.virtual_servers]

    def real_names(self) -> list[str]:
        """Every real server's name, in the configuration's order."""
        return list(self.real_servers)

    def virtuals(self, now: float) -> list[VirtualSnapshot]:
        """Every virtual server, in the configuration's order."""
        return list(observe.virtuals(self, now))

    def reals(self, now: float) -> list[RealSnapshot]:
        """Every real server, in the configuration's order."""
        return list(observe.reals(self, now))

    def connections(
        self, now: float, *, limit: int, client: spec.Address | None = None, virtual: str | None = None,
        real: str | None = None,
    ) -> list[ConnectionSnapshot]:  # fmt: skip
        """At most `limit` connections, of one client, virtual or real server where that is given."""
        return observe.connections(self, now, limit=limit, client=client, virtual=virtual, real=real)

    def failures(self, now: float, *, limit: int, real: str | None = None) -> list[FailureSnapshot]:
        """At most `limit` connections that could not be made, of one real server where that is given."""
        return observe.failures(self, now, limit=limit, real=real)

    def sticky(self, now: float, client: spec.Address | None = None) -> Iterator[StickySnapshot]:
        """Every sticky entry that still holds, or a client's; to be read before anything else happens."""
        return observe.sticky(self, now, client)

    def decisions(self, now: float, *, limit: int, wanted: Wanted) -> Iterator[DecisionSnapshot]:
        """At most `limit` recorded decisions, the newest first; each explained when it is read."""
        return observe.decisions(self, now, limit=limit, wanted=wanted)
