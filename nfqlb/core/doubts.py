"""Which servers did not take a client: what its own connections have met lately.

Owns `Doubts`. A server that refused a client, or left it without an answer, is doubted by that client alone,
in the virtual server where it was: its sticky entry is not followed there, and others are chosen before it
(R064: an entry is of a connection that was *made*; R041). This is for what one client meets while others are
well served: of a server that has failed, failure says who comes to it.

A refusal is doubt enough (A42). Silence is where the client's SYNs to that server, over its connections, have
come to `attempts` with the next one (A39). Doubt ends when the server answers a newer connection of that
client, has come into another state since, or after the interval of stickiness.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


class Doubts:
    """The doubts of all clients of one director. `about` is empty nearly always, which is quickly seen.

    Times are in seconds; clients are told apart as stickiness does.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.about: dict[tuple[VirtualServer, bytes], dict[RealServer, _Doubt]] = {}

    def of(self, virtual: VirtualServer, client: bytes, now: float) -> Mapping[RealServer, Ditch]:
        """Whom a client (packed address) doubts, and why."""
        scope = virtual.scope
        found = self.about.get((virtual, masked(client, scope.prefix))) if scope is not None else None
        if not found or scope is None:
            return NOBODY
        return {
            real: doubt.why
            for real, doubt in found.items()
            if _enough(real, doubt) and doubt.at >= real.since and not real.down
            and now - doubt.at < scope.interval
        }

    def refused(self, connection: Connection, now: float) -> None:
        """Its server refused a connection."""
        self._note(connection, Ditch.RESET, 0, now)

    def waited(self, connection: Connection, now: float) -> None:
        """The client has repeated its SYN, as its server has not answered yet."""
        if connection.link.real.spec.attempts:
            self._note(connection, Ditch.NO_ANSWER, connection.attempts, now)

    def silent(self, connection: Connection, now: float) -> None:
        """A connection timed out without an answer. One says little: its client may have left at once."""
        doubt = self._find(connection)
        self._note(connection, Ditch.NO_ANSWER, 1 + (doubt.tried if doubt is not None else 0), now)

    def answered(self, connection: Connection) -> None:
        """A server answered a SYN: whoever asked does not doubt it, unless that was about a newer one."""
        doubt = self._find(connection)
        if doubt is None or connection.opened < doubt.opened:
            return
        key = _key(connection)
        del self.about[key][connection.link.real]
        if not self.about[key]:
            del self.about[key]

    def clear(self, virtual: VirtualServer, client: bytes | None = None) -> None:
        """Forget the doubts of a virtual server's clients, or of one (packed address)."""
        if virtual.scope is None:
            return
        wanted = masked(client, virtual.scope.prefix) if client is not None else None
        for key in [key for key in self.about if key[0] is virtual and wanted in (None, key[1])]:
            del self.about[key]

    def follow(self, virtuals: Iterable[VirtualServer]) -> None:
        """There are no virtual servers but these any more, with the servers that they have now."""
        places = {each: {link.real for link in each.everybody} for each in virtuals if each.doubting}
        kept = {}
        for key, found in self.about.items():
            here = places.get(key[0], ())
            if left := {real: doubt for real, doubt in found.items() if real in here}:
                kept[key] = left
        self.about = kept

    def expire(self, now: float, budget: int) -> None:
        """Forget doubts whose time is over, `budget` clients' at most; those noted longest ago come first."""
        for _ in range(budget):
            key, found = next(iter(self.about.items()), (None, {}))
            if key is None or _holds(key[0], found, now):
                return
            del self.about[key]

    def _note(self, connection: Connection, why: Ditch, tried: int, now: float) -> None:
        virtual, real = connection.link.virtual, connection.link.real
        if not virtual.doubting or connection.link.leaving:
            return
        key = _key(connection)
        found = self.about.pop(key, None) or {}  # to the end
        self.about[key] = found
        doubt = found.get(real)
        if doubt is None:
            found[real] = _Doubt(why, tried, connection.opened, now)
        else:
            doubt.why = why if why is Ditch.RESET else doubt.why
            doubt.tried = max(tried, doubt.tried)
            doubt.opened, doubt.at = max(connection.opened, doubt.opened), now
        if len(self.about) > self.limit:
            del self.about[next(iter(self.about))]

    def _find(self, connection: Connection) -> _Doubt | None:
        virtual = connection.link.virtual
        found = self.about.get(_key(connection)) if virtual.doubting else None
        return found.get(connection.link.real) if found else None


def _key(connection: Connection) -> tuple[VirtualServer, bytes]:
    """Whose doubt a connection may be; its virtual server must have stickiness."""
    virtual = connection.link.virtual
    assert virtual.scope is not None
    return virtual, masked(client_of(connection.inbound), virtual.scope.prefix)


def _enough(real: RealServer, doubt: _Doubt) -> bool:
    return doubt.why is Ditch.RESET or doubt.tried + 1 >= (real.spec.attempts or _ATTEMPTS)


def _holds(virtual: VirtualServer, found: Mapping[RealServer, _Doubt], now: float) -> bool:
    interval = virtual.scope.interval if virtual.scope is not None else 0.0
    return any(now - doubt.at < interval for doubt in found.values())
