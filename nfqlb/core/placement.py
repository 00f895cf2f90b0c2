"""Puts connections on servers: new ones, and those that a server has not answered (figs 6, 7A and 8).

Owns what follows from a choice: the connection is entered, the next turn and the client's sticky entry
follow from it. And what becomes of a connection that cannot be made: tried again at the same server,
counted as ditched, sent to another, and remembered by its client (`doubts`).
"""

from collections.abc import Callable, Mapping

from nfqlb.core.admission import ServerState
from nfqlb.core.connection import Connection
from nfqlb.core.destinations import Destinations
from nfqlb.core.doubts import Doubts
from nfqlb.core.failure import FailureWatch
from nfqlb.core.fpa import FpaTable
from nfqlb.core.health import Ditch
from nfqlb.core.keys import client_of
from nfqlb.core.response import Interval
from nfqlb.core.segment import Stamp
from nfqlb.core.selection import BACKUP, NOTHING_FOUND, STICKY, TEST, Choice, Selection
from nfqlb.core.server import RealServer, VirtualServer
from nfqlb.core.states import State
from nfqlb.core.synguard import SynGuard
from nfqlb.core.table import ConnectionTable
from nfqlb.core.verdict import Drop, Outcome, Tally

#: Half-open connections that a new one looks at, at most, to find one that may go.
_ASKED = 8


class Placement:
    """Places the connections of one director."""

    def __init__(
        self, table: ConnectionTable, fpas: FpaTable, watch: FailureWatch, tally: Tally,
        destinations: Destinations, doubts: Doubts,
        on_unbound: Callable[[VirtualServer, bytes, tuple[RealServer, RealServer], Ditch, float], None],
    ) -> None:  # fmt: skip
        self._table = table
        self._fpas = fpas
        self._watch = watch
        self._tally = tally
        self._destinations = destinations
        self._doubts = doubts
        self._on_unbound = on_unbound
        self._selection = Selection(fpas, watch, table.outbound, doubts)

    def open(self, key: bytes, numbers: bytes, stamp: Stamp, now: float) -> Outcome:
        """A connection for a SYN or a datagram that belongs to none (R109, R118-R124), or why there is none.

        `key` is its inbound key, `numbers` are the SYN's (8 bytes), a datagram's are empty; `stamp` is as in
        `Segment`.
        """
        virtual = self._destinations.find(key)
        if virtual is None:
            return self._tally.refuse(Drop.NO_VIRTUAL)
        if virtual.draining or not virtual.setting.new:
            if virtual.decisions is not None:
                virtual.decisions.note(now, key, Drop.OUT_OF_SERVICE, None, NOTHING_FOUND)
            return self._tally.refuse(Drop.OUT_OF_SERVICE, virtual)
        guard = virtual.guard
        if guard is not None and not guard.admits(client_of(key), now):
            return self._tally.refuse(Drop.SYN_RATE, virtual)
        self._watch.visited(virtual, client_of(key), now)
        choice = self._selection.choose(virtual, key, now)
        if virtual.decisions is not None:
            virtual.decisions.note(now, key, choice, None, self._selection.found)
        if isinstance(choice, Drop):
            return self._tally.refuse(choice, virtual)
        outbound = self._claim(now)
        if not self._table.make_room(now):
            if virtual.decisions is not None:
                virtual.decisions.came_to_nothing(Drop.TABLE_FULL)
            return self._tally.refuse(Drop.TABLE_FULL, virtual)
        if guard is not None:
            self._guard(guard, now)
        connection = Connection(key, outbound, choice.link, now)
        connection.client_numbers = numbers
        if virtual.measuring is not None:
            connection.interval = Interval(virtual.measuring.arms_at_syn, stamp, now)
        self._table.add(connection, now)
        if doubted := self._selection.found[4]:
            self._unbound(connection, doubted, now)
        self._assigned(connection, choice, now)
        return connection

    def _unbound(self, connection: Connection, doubted: Mapping[RealServer, Ditch], now: float) -> None:
        """Tell of a client that has been sent elsewhere, as it doubts the server that it was bound to."""
        bound, link = self._selection.found[0], connection.link
        if bound is not None and bound in doubted and link.real is not bound:
            client = client_of(connection.inbound)
            self._on_unbound(link.virtual, client, (bound, link.real), doubted[bound], now)

    def _guard(self, guard: SynGuard, now: float) -> None:
        """Where a virtual server has as many half-open connections as it may, one goes for the new one.

        Whoever carries them may know that some have long been answered: so many at most are asked about.
        """
        for _ in range(_ASKED):
            oldest = guard.too_many()
            if oldest is None:
                return
            if self._table.give_up(oldest, now):
                guard.gave_up(now)

    def _claim(self, now: float) -> bytes:
        """The reverse key of the connection just chosen for; an ended one that still holds it makes way."""
        outbound = self._selection.outbound
        ended = self._table.outbound.get(outbound)
        if ended is not None:
            self._table.remove(ended, now)
        return outbound

    def _assigned(self, connection: Connection, choice: Choice, now: float) -> None:
        """A connection has its server; the next turn and the client's binding follow from it (A9, A12)."""
        link, virtual = choice.link, choice.link.virtual
        if choice.by == TEST:
            self._watch.testing(connection, now)
        if link is not virtual.backup:
            virtual.last = link.position
            if virtual.shadow is not None:
                virtual.shadow.used(link, self._selection.found[3])
        if choice.by == virtual.scheduler.name:
            virtual.scheduler.chosen(link)
        if choice.by not in (STICKY, TEST, BACKUP):
            virtual.actual = choice.by
        if virtual.scope is not None and (choice.by != STICKY or virtual.scope.refreshed):
            self._fpas.assign(virtual.scope, client_of(connection.inbound), link.real, now, loose=True)
            if virtual.scope.active:
                self._fpas.follow(virtual.scope, client_of(connection.inbound), connection)

    def rebind(self, connection: Connection, now: float, *, bind: bool = True) -> None:
        """Bind the client of a restored connection to its server again, where that still holds (A7).

        Without `bind` it is bound already, or is not to be.
        When its last packet was nobody knows, so with `activity` the interval runs from now.
        """
        link, opened = connection.link, connection.opened
        scope = link.virtual.scope
        if scope is None or link.leaving or opened < max(link.real.bound_from, link.virtual.bound_from):
            return
        live = scope.active and not connection.state.ended
        if live or now - opened < scope.interval:
            client, state = client_of(connection.inbound), connection.state
            loose = state.half_open or state is State.UDP_NEW
            if bind:
                self._fpas.restore(scope, client, link.real, opened, loose=loose)
            if live:
                self._fpas.follow(scope, client, connection)

    def made(self, connection: Connection, now: float) -> None:
        """Client and server have both been heard: this is no forgery, and the client's binding holds.

        One that a flood has pushed out meanwhile is made again.
        """
        scope = connection.link.virtual.scope
        if scope is not None and not self._fpas.confirm(scope, client_of(connection.inbound)):
            self.rebind(connection, now)

    def gone(self, connection: Connection) -> None:
        """A connection is forgotten; its client's binding remembers its last packet (A6)."""
        scope = connection.link.virtual.scope
        if scope is not None and scope.active:
            self._fpas.left(scope, client_of(connection.inbound), connection)

    # --- connections that cannot be made

    def repeated(self, connection: Connection, now: float) -> None:
        """A repeated SYN goes to the same server (R111), until that has had its attempts (R041, A39)."""
        connection.seen = now
        if connection.state is not State.SYN_SENT:
            return
        if connection.attempts:
            connection.attempts += 1
            real = connection.link.real
            if connection.opened > self._watch.lost_at:
                self._doubts.waited(connection, now)
            attempts = 2 if real.tester is connection else real.spec.attempts
            if not attempts or connection.attempts < attempts:
                return
        if self._table.answered(connection, now):
            return  # just now, and not told yet: its client would be cut off from who it talks to
        released = bool(connection.attempts)
        if released:
            # not before: where the answer comes in this very moment its server has ditched nothing
            if not self._table.released(connection, now):
                return
            connection.attempts = 0
            self._watch.ditched(connection, Ditch.NO_ANSWER, now)
        self._reassign(connection, now, released=released)

    def _reassign(self, connection: Connection, now: float, *, released: bool = False) -> None:
        """Send a connection to another server, where there is one; the client's own SYN makes it there.

        `released`: its carrier has let go of it.
        """
        virtual, key = connection.link.virtual, connection.inbound
        before = connection.link.real
        choice = self._selection.choose(virtual, key, now, avoid=before)
        refused = isinstance(choice, Drop)
        if not refused and not released and not self._table.released(connection, now):
            return  # answered in this very moment
        # a flow asks with every datagram, and where it stays would soon be all that is remembered
        if virtual.decisions is not None and not (refused and connection.state.udp):
            virtual.decisions.note(now, key, choice, before, self._selection.found)
        if isinstance(choice, Drop):
            return
        outbound = self._claim(now)
        self._table.reassign(connection, choice.link, outbound, now)
        connection.attempts = 1
        self._assigned(connection, choice, now)

    def stranded(self, flow: Connection, now: float) -> None:
        """The client speaks again on a UDP flow that nothing came back on.

        It goes to another server if its own takes nobody any more, having failed or been taken out.
        """
        state = flow.link.real.state
        if not state.sticky and state is not ServerState.MAX_CAPACITY:
            self._reassign(flow, now)

    def refused(self, connection: Connection, now: float) -> None:
        """A server answered a SYN with a reset (A42): a failed connection, unless that is not to count.

        It never is where the virtual server answers on every port: who looks for open ports would
        fail every server.
        """
        link = connection.link
        if link.real.spec.reset_counts and link.virtual.port is not None:
            self._watch.ditched(connection, Ditch.RESET, now)
            self._doubts.refused(connection, now)
        else:
            self._watch.ended(connection, now)

    def silent(self, connection: Connection, now: float) -> None:
        """A connection timed out without an answer: ditched, unless it has been counted already."""
        if connection.attempts:
            self._watch.ditched(connection, Ditch.NO_ANSWER, now)
            if connection.opened > self._watch.lost_at:
                self._doubts.silent(connection, now)

    def answered(self, connection: Connection, now: float) -> None:
        """A server answered a SYN: it is alive, and its client finds so."""
        self._watch.answered(connection, now)
        if self._doubts.about:
            self._doubts.answered(connection)

    def abandon(self, connection: Connection, now: float) -> None:
        """Forget a half-open connection that nobody waits for any more."""
        self._watch.ended(connection, now)
        self._table.remove(connection, now)
