"""Journals that remember just what they were told: of connections, and of servers."""

from nfqlb.core.chronicle import Kept, Kind
from nfqlb.core.connection import Connection


class Memory:
    """A recorder: key, server, state and time of opening of every live connection, by place."""

    def __init__(self) -> None:
        self.records: dict[int, tuple[bytes, bytes, int, float]] = {}
        self.moves: list[tuple[int, int]] = []
        self._next = 0

    def opened(self, connection: Connection) -> int:
        self._next += 1
        server = server_of(connection)
        self.records[self._next] = (connection.inbound, server, connection.state.code, connection.opened)
        return self._next

    def moved(self, connection: Connection) -> None:
        inbound, server, _, opened = self.records[connection.place]
        self.records[connection.place] = inbound, server, connection.state.code, opened
        self.moves.append((connection.place, connection.state.code))

    def reassigned(self, connection: Connection) -> None:
        _, _, code, opened = self.records[connection.place]
        self.records[connection.place] = connection.inbound, server_of(connection), code, opened

    def ended(self, connection: Connection) -> None:
        del self.records[connection.place]


class Notes:
    """A keeper: the last it was told of each server."""

    def __init__(self) -> None:
        self.kept: dict[tuple[Kind, str], Kept] = {}

    def keep(self, kept: Kept) -> None:
        self.kept[kept.kind, kept.name] = kept


def server_of(connection: Connection) -> bytes:
    """Real address and port: where the server's answers come from."""
    size = len(connection.link.real.spec.address.packed)
    return connection.outbound[:size] + connection.outbound[2 * size :][:2]
