"""Who writes down what becomes of every connection: the journal, or nobody."""

from typing import Protocol

from nfqlb.core.connection import Connection


class Recorder(Protocol):
    """Who is told of every connection that comes, changes and goes: the journal."""

    def opened(self, connection: Connection) -> int:
        """A new connection, before its first packet is answered. Returns its place."""

    def moved(self, connection: Connection) -> None:
        """The connection has changed its state."""

    def reassigned(self, connection: Connection) -> None:
        """The connection has gone to another server."""

    def ended(self, connection: Connection) -> None:
        """The connection is forgotten; its place is free."""


class NoRecorder:
    """Records nothing."""

    def opened(self, connection: Connection) -> int:
        """No place."""
        return -1

    def moved(self, connection: Connection) -> None:
        """Nothing."""

    def reassigned(self, connection: Connection) -> None:
        """Nothing."""

    def ended(self, connection: Connection) -> None:
        """Nothing."""
