"""Puts connections on servers: new ones, and those that a server has not answered (figs 6, 7A and 8).

Owns what follows from a choice: the connection is entered, the next turn and the client's sticky entry
follow from it. And what becomes of a connection that cannot be made: tried again at the same server,
counted as ditched, sent to another.
"""

from collections.abc import Mapping

from nfqlb.core.connection import Connection
from nfqlb.core.failure import FailureWatch
from nfqlb.core.fpa import FpaTable
from nfqlb.core.health import Ditch
from nfqlb.core.keys import client_of, destination_of, reverse_key
from nfqlb.core.segment import Segment
from nfqlb.core.selection import BACKUP, STICKY, TEST, Choice, Selection
from nfqlb.core.server import Link, VirtualServer
from nfqlb.core.states import State
from nfqlb.core.table import ConnectionTable
from nfqlb.core.verdict import Drop, Outcome, Tally


class Placement:
    """Places the connections of one director; `virtuals` are its virtual servers by address and port."""

    def __init__(
        self, table: ConnectionTable, fpas: FpaTable, watch: FailureWatch, tally: Tally,
        virtuals: Mapping[bytes, VirtualServer],
    ) -> None:  # fmt: skip
        self._table = table
        self._fpas = fpas
        self._watch = watch
        self._tally = tally
        self._virtuals = virtuals
        self._selection = Selection(fpas, watch, table.outbound)

    def open(self, segment: Segment, now: float) -> Outcome:
        """A connection for a SYN that belongs to none (R109, R118-R124), or why there is none."""
        virtual = self._virtuals.get(destination_of(segment.key))
        if virtual is None:
            return self._tally.refuse(Drop.NO_VIRTUAL)
        client = client_of(segment.key)
        self._watch.visited(virtual, client, now)
        choice = self._selection.choose(virtual, segment.key, now)
        if virtual.decisions is not None:
            virtual.decisions.note(now, segment.key, choice, None, self._selection.found)
        if isinstance(choice, Drop):
            return self._tally.refuse(choice)
        outbound = self._claim(segment.key, choice.link, now)
        if not self._table.make_room(now):
            if virtual.decisions is not None:
                virtual.decisions.came_to_nothing(Drop.TABLE_FULL)
            return self._tally.refuse(Drop.TABLE_FULL)
        connection = Connection(segment.key, outbound, choice.link, now)
        connection.client_numbers = segment.numbers
        self._table.add(connection, now)
        self._assigned(connection, choice, now)
        return connection

    def _claim(self, key: bytes, link: Link, now: float) -> bytes:
        """The reverse key of a new connection; an ended one that still holds it makes way."""
        outbound = reverse_key(key, link)
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
        if choice.by == virtual.scheduler.name:
            virtual.scheduler.chosen(link)
        if choice.by not in (STICKY, TEST, BACKUP):
            virtual.actual = choice.by
        if virtual.scope is not None and (choice.by != STICKY or virtual.scope.refreshed):
            self._fpas.assign(virtual.scope, client_of(connection.inbound), link.real, now)

    # --- connections that cannot be made

    def repeated(self, connection: Connection, now: float) -> None:
        """A repeated SYN goes to the same server (R111), until that has had its attempts (R041, A39)."""
        connection.seen = now
        if connection.state is not State.SYN_SENT:
            return
        if connection.attempts:
            connection.attempts += 1
            real = connection.link.real
            attempts = 2 if real.tester is connection else real.spec.attempts
            if not attempts or connection.attempts < attempts:
                return
            connection.attempts = 0
            self._watch.ditched(connection, Ditch.NO_ANSWER, now)
        self._reassign(connection, now)

    def _reassign(self, connection: Connection, now: float) -> None:
        """Send a connection to another server, where there is one; the client's own SYN makes it there."""
        virtual, key = connection.link.virtual, connection.inbound
        before = connection.link.real
        choice = self._selection.choose(virtual, key, now, avoid=before)
        if virtual.decisions is not None:
            virtual.decisions.note(now, key, choice, before, self._selection.found)
        if isinstance(choice, Drop):
            return
        outbound = self._claim(key, choice.link, now)
        self._table.reassign(connection, choice.link, outbound, now)
        connection.attempts = 1
        self._assigned(connection, choice, now)

    def refused(self, connection: Connection, now: float) -> None:
        """A server answered a SYN with a reset (A42): a failed connection, unless that is not to count."""
        if connection.link.real.spec.reset_counts:
            self._watch.ditched(connection, Ditch.RESET, now)
        else:
            self._watch.ended(connection, now)

    def silent(self, connection: Connection, now: float) -> None:
        """A connection timed out without an answer: ditched, unless it has been counted already."""
        if connection.attempts:
            self._watch.ditched(connection, Ditch.NO_ANSWER, now)

    def abandon(self, connection: Connection, now: float) -> None:
        """Forget a half-open connection that nobody waits for any more."""
        self._watch.ended(connection, now)
        self._table.remove(connection, now)
