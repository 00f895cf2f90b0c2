"""Which servers did not take a client: what its own connections have met lately.

Owns `Doubts`. A server that refused a client, or left it without an answer, is doubted by that client alone,
in the virtual server where it was: its sticky entry is not followed there, and others are chosen before it
(R064: an entry is of a connection that was *made*; R041). This is for what one client meets while others are
well served: of a server that has failed, failure says who comes to it.

A refusal is doubt enough (A42). Silence is where the client's SYNs to that server, over its connections,
come to `attempts` with the next one, having been one at least (A39), and the server has answered nobody's SYN
since they began: of a server that answers others a SYN was lost, and the client repeats that.

Doubt ends when the server answers a newer connection of that client, when it has come back into service, or
after the interval of stickiness; doubt for silence when it answers anybody. What is noted later begins anew.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

from nfqlb.core.connection import Connection
from nfqlb.core.fpa import masked
from nfqlb.core.health import Ditch
from nfqlb.core.keys import client_of
from nfqlb.core.server import RealServer, VirtualServer

#: Clients that doubt a server, at most: of more the latest. A server that many doubt has failed soon.
LIMIT = 16_384
#: SYNs that make a doubt where `attempts` sends none to another server.
_ATTEMPTS = 3

NOBODY: Mapping[RealServer, Ditch] = MappingProxyType({})


@dataclass(slots=True)
class _Doubt:
    """Why, after so many SYNs without an answer, noted when, and when the newest connection had begun."""

    why: Ditch
    tried: int
    opened: float
    at: float

    def ended(self, real: RealServer, now: float, interval: float) -> bool:
        """Whether it says nothing of its server any more."""
        back = self.at < real.serving_since
        heard = self.why is Ditch.NO_ANSWER and real.answered_at > self.opened
        return back or heard or now - self.at >= interval


#: Of one virtual server, by client as stickiness tells them apart. What was noted last comes last, of clients
#: and of each one's doubts.
_Clients = dict[bytes, dict[RealServer, _Doubt]]


class Doubts:
    """The doubts of all clients of one director; its length is how many those are.

    `about` has the virtual servers where there are any: it is empty nearly always, which is quickly seen.
    Times are in seconds.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.about: dict[VirtualServer, _Clients] = {}

    def __len__(self) -> int:
        return sum(map(len, self.about.values()))

    def of(self, virtual: VirtualServer, client: bytes, now: float) -> Mapping[RealServer, Ditch]:
        """Whom a client (packed address) doubts, and why; the server doubted longest ago comes first."""
        scope, clients = virtual.scope, self.about.get(virtual)
        found = clients.get(masked(client, scope.prefix)) if clients and scope is not None else None
        if not found or scope is None:
            return NOBODY
        return {
            real: doubt.why
            for real, doubt in found.items()
            if not real.down and _enough(real, doubt) and not doubt.ended(real, now, scope.interval)
        }

    def refused(self, connection: Connection, now: float) -> None:
        """Its server refused a connection."""
        self._note(connection, Ditch.RESET, 0, now)

    def waited(self, connection: Connection, now: float) -> None:
        """The client has repeated its SYN, as its server has not answered yet: its first one counts too."""
        if connection.link.real.spec.attempts:
            self._unanswered(connection, 2 if connection.attempts == 2 else 1, now)

    def silent(self, connection: Connection, now: float) -> None:
        """A connection timed out without an answer: what of it was not counted is now."""
        if connection.attempts == 1 or not connection.link.real.spec.attempts:
            self._unanswered(connection, connection.attempts, now)

    def answered(self, connection: Connection) -> None:
        """A server answered a SYN: whoever asked does not doubt it, unless that was about a newer one."""
        virtual, real = connection.link.virtual, connection.link.real
        clients = self.about.get(virtual)
        if clients is None:
            return
        client = _client(connection)
        doubt = clients.get(client, {}).get(real)
        if doubt is None or connection.opened < doubt.opened:
            return
        del clients[client][real]
        if not clients[client]:
            self._forget(virtual, [client])

    def clear(self, virtual: VirtualServer, client: bytes | None = None) -> None:
        """Forget the doubts of a virtual server's clients, or of one (packed address)."""
        if client is None or virtual.scope is None:
            self.about.pop(virtual, None)
        elif virtual in self.about:
            self._forget(virtual, [masked(client, virtual.scope.prefix)])

    def follow(self, virtuals: Iterable[VirtualServer]) -> None:
        """There are no virtual servers but these any more, with the servers that they have now."""
        places = {each: {link.real for link in each.everybody} for each in virtuals if each.doubting}
        before, self.about = self.about, {}
        for virtual, clients in before.items():
            here = places.get(virtual, ())
            for client, found in clients.items():
                if left := {real: doubt for real, doubt in found.items() if real in here}:
                    self.about.setdefault(virtual, {})[client] = left

    def expire(self, now: float, budget: int) -> None:
        """Forget doubts whose time is over, looking at `budget` clients' at most."""
        for virtual in list(islice(self.about, budget)):
            clients = self.about[virtual] = self.about.pop(virtual)  # to the end: others come first next time
            interval = virtual.scope.interval if virtual.scope is not None else 0.0
            over = []
            for client, found in islice(clients.items(), budget):
                if any(now - doubt.at < interval for doubt in found.values()):
                    break  # those behind it are newer
                over.append(client)
            budget -= len(over)
            if over:
                self._forget(virtual, over)

    def _unanswered(self, connection: Connection, syns: int, now: float) -> None:
        if connection.link.real.answered_at <= connection.opened:
            self._note(connection, Ditch.NO_ANSWER, syns, now)

    def _note(self, connection: Connection, why: Ditch, syns: int, now: float) -> None:
        virtual, real, opened = connection.link.virtual, connection.link.real, connection.opened
        if not virtual.doubting or connection.link.leaving:
            return
        assert virtual.scope is not None
        clients = self.about.setdefault(virtual, {})
        client = _client(connection)
        found = clients[client] = clients.pop(client, {})  # to the end
        doubt = found.pop(real, None)
        if doubt is None or doubt.ended(real, now, virtual.scope.interval):
            doubt = _Doubt(why, 0, opened, now)
        found[real] = doubt
        doubt.why = why if why is Ditch.RESET else doubt.why
        doubt.tried += syns
        doubt.opened, doubt.at = max(opened, doubt.opened), now
        if len(self) > self.limit:
            most = max(self.about, key=lambda each: len(self.about[each]))
            self._forget(most, [next(iter(self.about[most]))])

    def _forget(self, virtual: VirtualServer, clients: Iterable[bytes]) -> None:
        about = self.about[virtual]
        for client in clients:
            about.pop(client, None)
        if not about:
            del self.about[virtual]


def _client(connection: Connection) -> bytes:
    """Whose doubt a connection may be; its virtual server must have stickiness."""
    scope = connection.link.virtual.scope
    assert scope is not None
    return masked(client_of(connection.inbound), scope.prefix)


def _enough(real: RealServer, doubt: _Doubt) -> bool:
    return doubt.why is Ditch.RESET or doubt.tried >= max(1, (real.spec.attempts or _ATTEMPTS) - 1)
