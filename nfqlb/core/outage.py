"""What becomes of the connections of a real server that has failed (A34).

Owns the way through them: a virtual server says by `on_failure` whether they go on, are forgotten,
or are reset towards their clients. There may be a million, so a server's failure only sets them
aside, and they are gone through in bounded steps. Connections made after that are not concerned.
"""

from collections import deque
from collections.abc import Iterable

from nfqlb.core.connection import Connection
from nfqlb.core.keys import TCP, flipped
from nfqlb.core.segment import Probe, Reset
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.spec import REWRITE
from nfqlb.core.states import State
from nfqlb.core.table import ConnectionTable
from nfqlb.core.verdict import Reply, Tally

_WRAP = 0xFFFF_FFFF


class Outage:
    """Ends connections of failed servers, for one director.

    `resets` are what clients are to get, for whoever drives the director to take and send.
    """

    def __init__(self, virtuals: Iterable[VirtualServer], table: ConnectionTable, tally: Tally) -> None:
        self.resets: list[Reset | Probe] = []
        self._table = table
        self._tally = tally
        self._doomed: deque[tuple[Link, set[Connection]]] = deque()
        self._links: dict[RealServer, list[Link]] = {}
        self.follow(virtuals)

    def follow(self, virtuals: Iterable[VirtualServer]) -> set[VirtualServer]:
        """These are the virtual servers from now on.

        Returns those whose links' `members` were not kept before, and must be entered.
        """
        self._links = {}
        blank = set()
        for virtual in virtuals:
            for link in (*virtual.everybody, *virtual.leaving):
                if virtual.spec.on_failure == "keep":
                    link.members = None
                    continue
                if link.members is None:
                    link.members = set()
                    if link.held:  # else there is nobody to enter
                        blank.add(virtual)
                self._links.setdefault(link.real, []).append(link)
        return blank

    def failed(self, real: RealServer) -> None:
        """A server has failed just now: set its connections aside."""
        for link in self._links.get(real, ()):
            if link.members:
                self._doomed.append((link, link.members))
                link.members = set()

    def step(self, now: float, budget: int) -> bool:
        """End some of the connections that were set aside, at most `budget`; True if there are more."""
        while self._doomed and budget > 0:
            link, members = self._doomed[0]
            while members and budget > 0:
                budget -= 1
                self._end(members.pop(), link, now)
            if not members:
                self._doomed.popleft()
        return bool(self._doomed)

    def _end(self, connection: Connection, link: Link, now: float) -> None:
        state = connection.state
        if state is State.GONE or state.ended or connection.link is not link:
            return  # it has ended, or another server has it by now
        if link.members is not None and connection in link.members:
            return  # it went to another one in between, and has come back to test this one, or as it is well
        if link.virtual.spec.on_failure == "keep":
            return  # by a configuration that is younger than the failure
        order = reset_of(connection) if link.virtual.spec.on_failure == "reset" else None
        self._table.cut(connection, now)
        if order is not None:
            self.resets.append(order)
            self._tally.reply(Reply.FAILURE)


def reset_of(connection: Connection) -> Reset | Probe | None:
    """The reset that makes a connection's client give it up; None where there is none.

    Its number is the one that the client expects next, or it would not be believed (RFC 5961 section 3):
    what it last acknowledged. Where that is not known, as after a restart, or where not every segment is
    seen here, it is asked first: its answer gets a reset as one without a connection. A client whose SYN
    was not answered repeats it, and is sent to another server.
    """
    if connection.link.virtual.protocol != TCP:
        return None
    if not connection.state.quick:
        return _reset_of_half_open(connection)
    if not connection.client_numbers or connection.link.virtual.spec.datapath != REWRITE:
        return Probe(flipped(connection.inbound))
    return Reset(flipped(connection.inbound), _number(connection.client_numbers[4:8]), None)


def _reset_of_half_open(connection: Connection) -> Reset | None:
    """The same where the client may, or may not, have got the server's answer: it acknowledges its SYN."""
    answer = connection.server_numbers
    if connection.state is not State.SYN_RECEIVED or not answer:
        return None
    return Reset(flipped(connection.inbound), (_number(answer[:4]) + 1) & _WRAP, _number(answer[4:8]))


def _number(field: bytes) -> int:
    return int.from_bytes(field, "big")
