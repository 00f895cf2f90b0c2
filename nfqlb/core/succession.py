"""A successor takes over: connections and sticky entries that a journal remembers, in a new director.

Owns which of them find their places: whose virtual server is still there, with a link to their server.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from nfqlb.core.connection import Connection
from nfqlb.core.fpa import FpaTable
from nfqlb.core.keys import reverse_key
from nfqlb.core.scope import Scope
from nfqlb.core.server import RealServer, VirtualServer
from nfqlb.core.states import BY_CODE, State

if TYPE_CHECKING:
    from nfqlb.core.director import Director


def restore(
    director: "Director", inbound: bytes, server: bytes, code: int, place: int, *, opened: float, now: float,
    bind: bool,
) -> bool:  # fmt: skip
    """Enter one connection; see `Director.restore`."""
    state = BY_CODE.get(code, State.GONE)
    if state is State.GONE or inbound in director.table.inbound:
        return False
    link = director.destinations.link_of(inbound, server)
    if link is None or state.udp is not link.virtual.opening.udp:
        return False
    connection = Connection(inbound, reverse_key(inbound, link), link, now)
    if connection.outbound in director.table.outbound:
        return False
    connection.opened = opened
    connection.place = place
    if link.virtual.measuring is not None:
        connection.interval = link.virtual.measuring.restored()
    director.table.restore(connection, state, now)
    director.placement.rebind(connection, now, bind=bind)
    return True


class Stickies:
    """Enters sticky entries of a predecessor, those used longest ago first."""

    def __init__(
        self, virtuals: Iterable[VirtualServer], fpas: FpaTable, identity: Callable[[Scope], bytes]
    ) -> None:
        self._fpas = fpas
        self._scopes: dict[bytes, Scope] = {}
        #: By scope and a server's address: the server, and the moment from which on what bound to it counts.
        self._servers: dict[tuple[Scope, bytes], tuple[RealServer, float]] = {}
        for virtual in virtuals:
            scope = virtual.scope
            if scope is None:
                continue
            self._scopes[identity(scope)] = scope
            for link in virtual.everybody:
                since = max(link.real.bound_from, virtual.bound_from)
                self._servers.setdefault((scope, link.real.address), (link.real, since))

    def restore(
        self, identity: bytes, client: bytes, server: bytes, assigned: float, now: float, *, loose: bool,
        place: int,
    ) -> bool:  # fmt: skip
        """Enter one entry, of a masked client and a server's address; False if it does not hold any more.

        Times are in seconds; of `assigned` a fraction may be missing. One whose interval has passed is
        entered where the client's connections may still be under way, which comes to light with them.
        """
        scope = self._scopes.get(identity)
        found = self._servers.get((scope, server)) if scope is not None else None
        if scope is None or found is None:
            return False
        real, since = found
        if assigned < int(since) or (now - assigned >= scope.interval and not scope.active):
            return False
        return self._fpas.recorded(scope, client, real, assigned, loose=loose, place=place)
