"""A successor takes over: connections that a journal remembers find their places in a new director.

Owns which of them do: whose virtual server is still there, with a link to their server.
"""

from typing import TYPE_CHECKING

from nfqlb.core.connection import Connection
from nfqlb.core.keys import reverse_key
from nfqlb.core.states import BY_CODE, State

if TYPE_CHECKING:
    from nfqlb.core.director import Director


def restore(
    director: "Director", inbound: bytes, server: bytes, code: int, place: int, *, opened: float, now: float
) -> bool:
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
    director.placement.rebind(connection, now)
    return True
