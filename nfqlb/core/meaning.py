"""What a segment means for its connection.

Owns the way from flags and numbers to an `Event` of the table of states, and which segments are believed.
"""

from nfqlb.core.connection import Connection
from nfqlb.core.segment import ACK, FIN, RST, SYN
from nfqlb.core.states import TRANSITIONS, Event, State


def client_event(connection: Connection, flags: int, numbers: bytes) -> Event | None:
    """What a client's segment means; None: nothing."""
    if flags & RST:
        return Event.RESET if connection.client_reset_fits(numbers) else None
    if connection.state is State.SYN_RECEIVED and not connection.acknowledges_server(numbers):
        return None
    if flags & FIN:
        return Event.CLIENT_FIN
    return Event.ACK if flags & ACK else None


def server_event(connection: Connection, flags: int, numbers: bytes) -> Event | None:
    """What a server's segment means; None: nothing."""
    if flags & RST:
        return Event.RESET if connection.server_reset_fits(numbers) else None
    if flags & (SYN | ACK) == SYN | ACK:
        return Event.SYN_ACK if connection.acknowledges_client(numbers) else None
    return Event.SERVER_FIN if flags & FIN else None


def believable(connection: Connection, flags: int, event: Event | None) -> bool:
    """Whether a segment may be its side's newest: no reset, and nothing that the handshake did not expect."""
    if flags & RST:
        return False
    return connection.state.quick or event is Event.SYN_ACK or event in TRANSITIONS[connection.state]
