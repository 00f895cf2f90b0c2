"""Failed servers: who is one, who is to be tested, and with which connection.

Owns what follows from connections that could or could not be made (R179-R182): it feeds each
server's `Health`, keeps the failed ones at hand, and knows whether other clients were about.
"""

from collections.abc import Callable, Container
from heapq import heappop, heappush
from itertools import count, islice
from math import inf

from nfqlb.core.admission import ServerState
from nfqlb.core.connection import Connection
from nfqlb.core.health import Condition, Ditch, Evidence
from nfqlb.core.keys import client_of, client_port_of
from nfqlb.core.server import Link, RealServer, VirtualServer

#: Failed servers that a new connection looks at, at most, to see whether it may test one. Those of other
#: virtual servers, or that the operator has taken out, may be due for long, and many.
_LOOKS = 16

_Visitors = tuple[bytes, float, bytes, float]
_NOBODY: _Visitors = (b"", -inf, b"", -inf)


class FailureWatch:
    """Watches all real servers of one director.

    `on_change` is told of each whose health changed: the server, its state before, and when;
    `on_failure` of each that fails, after that. `lost_at` is when packets were last known to be lost on their
    way to servers, whichever that is: connections that were opened until then say nothing by their silence.
    """

    def __init__(
        self,
        on_change: Callable[[RealServer, ServerState, float], None] | None = None,
        on_failure: Callable[[RealServer], None] | None = None,
    ) -> None:
        self._on_change = on_change
        self._on_failure = on_failure
        self.lost_at = -inf
        self._failed: dict[RealServer, None] = {}
        # a heap: when each may be tested, and in which order equals came; some no longer wait
        self._waiting: list[tuple[float, int, RealServer]] = []
        self._arrivals = count()
        # those that may be tested; who was looked at in vain goes last
        self._due: dict[RealServer, None] = {}
        # by virtual server, its two newest clients and when each was last seen, the newest first: enough to
        # tell whether anybody but a given client was about
        self._visitors: dict[VirtualServer, _Visitors] = {}

    def visited(self, virtual: VirtualServer, client: bytes, now: float) -> None:
        """A client (packed address) asks a virtual server for a connection."""
        newest, at, other, other_at = self._visitors.get(virtual, _NOBODY)
        if client == newest:
            self._visitors[virtual] = client, now, other, other_at
        else:
            self._visitors[virtual] = client, now, newest, at

    def ditched(self, connection: Connection, why: Ditch, now: float) -> None:
        """A connection to its present server could not be made (R041)."""
        if why is Ditch.NO_ANSWER and connection.opened <= self.lost_at:
            self.ended(connection, now)
            return
        link = connection.link
        real = link.real
        client = client_of(connection.inbound)
        port, virtual = client_port_of(connection.inbound), link.virtual.spec.name
        evidence = Evidence(client, port, virtual, connection.opened, now, why)
        test = real.tester is connection
        self._end_test(connection)
        if real.health.ditched(evidence, alone=self._alone(link.virtual, evidence, real), test=test):
            self._add(real)
            self._changed(real, now)
            if self._on_failure is not None:
                self._on_failure(real)

    def answered(self, connection: Connection, now: float) -> None:
        """A server answered a SYN: it is alive (A25). One that was tested comes back (R182)."""
        real = connection.link.real
        real.answered_at = now
        if real.health.condition is Condition.TESTING and real.tester is not connection:
            return  # an older connection's answer says nothing of now
        self._end_test(connection)
        if real.health.answered():
            self._changed(real, now)

    def ended(self, connection: Connection, now: float) -> None:
        """An unanswered connection ended for reasons of its own: if it was a test, another will be one."""
        real = connection.link.real
        if real.tester is connection:
            real.tester = None
            real.health.give_up_test(now)
            self._add(real)
            self._changed(real, now)

    def test_due(self, virtual: VirtualServer, now: float) -> Link | None:
        """A link of a failed server that it is time to test with the next connection (R182).

        With UDP there is none: a datagram that is not answered proves nothing.
        """
        if not self._failed or virtual.opening.udp:
            return None
        waiting, due = self._waiting, self._due
        while waiting and waiting[0][0] <= now:
            _, _, real = heappop(waiting)
            if real in self._failed and real.health.due(now):
                due[real] = None
        for real in list(islice(due, _LOOKS)):
            if _testable(real, now) and (links := virtual.links_to(real)):
                return links[0]
            due[real] = due.pop(real)
        return None

    def backup_due(self, virtual: VirtualServer, now: float) -> Link | None:
        """The link of a virtual server's backup, if that has failed and it is time to test it."""
        link = virtual.backup
        if link is None or virtual.opening.udp:
            return None
        return link if _testable(link.real, now) else None

    def testing(self, connection: Connection, now: float) -> None:
        """This connection tests its server; no other goes there until it is answered or ditched."""
        real = connection.link.real
        self._remove(real)
        real.tester = connection
        real.health.test()
        self._changed(real, now)

    def restored(self, real: RealServer) -> None:
        """A predecessor found out that the server had failed; or it may be tested at another time now."""
        self._add(real)

    def follow(self, reals: Container[RealServer], virtuals: Container[VirtualServer]) -> None:
        """There are no servers but these any more."""
        for real in [real for real in self._failed if real not in reals]:
            self._remove(real)
        for virtual in [virtual for virtual in self._visitors if virtual not in virtuals]:
            del self._visitors[virtual]

    def cleared(self, real: RealServer, now: float) -> None:
        """The operator says the server is well."""
        self._remove(real)
        real.tester = None
        real.health.clear()
        real.changed(now)

    def _add(self, real: RealServer) -> None:
        self._failed[real] = None
        heappush(self._waiting, (real.health.retry_at, next(self._arrivals), real))

    def _remove(self, real: RealServer) -> None:
        self._failed.pop(real, None)
        self._due.pop(real, None)

    def _changed(self, real: RealServer, now: float) -> None:
        before = real.state
        real.changed(now)
        if self._on_change is not None:
            self._on_change(real, before, now)

    def _end_test(self, connection: Connection) -> None:
        if connection.link.real.tester is connection:
            connection.link.real.tester = None

    def _alone(self, virtual: VirtualServer, evidence: Evidence, real: RealServer) -> bool:
        """Whether no client but this one was seen since the run of failures began."""
        newest, at, other, other_at = self._visitors.get(virtual, _NOBODY)
        began = real.health.run_began if real.health.run else evidence.opened
        visitors = (newest, at), (other, other_at)
        return all(visitor == evidence.client or seen < began for visitor, seen in visitors)


def testable_by_bound(virtual: VirtualServer, real: RealServer, now: float) -> bool:
    """Whether a client that is bound to it may test it: nobody else comes to a server that is drained."""
    drained = real.setting.sticky and not (real.setting.new and real.weight > 0)
    return drained and not virtual.opening.udp and real.health.due(now) and not real.full


def _testable(real: RealServer, now: float) -> bool:
    """Whether a live connection may test it now: the operator has not taken it out, and it has room."""
    return real.health.due(now) and real.setting.new and real.weight > 0 and not real.full
