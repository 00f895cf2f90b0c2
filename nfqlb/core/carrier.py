"""Who carries connections that are only decided here: what the core asks of it."""

from typing import Protocol

from nfqlb.core.connection import Connection
from nfqlb.core.states import State


class Carrier(Protocol):
    """Who carries connections of which not every packet is seen here: it knows what the table cannot."""

    def carries(self, connection: Connection, now: float) -> State | None:
        """How far a connection has come that was not heard of here; None where it does not go on.

        Sets its `seen`, and nothing else.
        """

    def cut(self, connection: Connection) -> None:
        """The connection is given up, though it might go on: stop carrying it."""

    def release(self, connection: Connection) -> State | None:
        """Stop carrying a connection that looks unanswered, and return None.

        If it has been answered, in this very moment even, it goes on: how far it has come.
        """
