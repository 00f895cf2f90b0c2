"""The kernel as the one who carries connections, and what its table's entries mean for the core.

Owns `KernelCarrier`, which knows of a connection what only the kernel can.
"""

from collections.abc import Iterator
from typing import Protocol

from nfqlb.config.marks import OFFLOAD
from nfqlb.config.numbers import whole_seconds
from nfqlb.core.connection import Connection
from nfqlb.core.keys import TCP, UDP, without_end
from nfqlb.core.spec import Timeouts
from nfqlb.core.states import State
from nfqlb.netfilter import conntrack
from nfqlb.netfilter.conntrack import Entry
from nfqlb.netfilter.errors import KernelError

_STATES = {
    conntrack.SYN_SENT: State.SYN_SENT,
    conntrack.SYN_RECEIVED: State.ESTABLISHED,  # as with the SYN-ACK that the tap tells of
    conntrack.ESTABLISHED: State.ESTABLISHED,
    # one side has closed, conntrack does not say which; the other's FIN, or the entry's end, will tell
    conntrack.FIN_WAIT: State.FIN_CLIENT,
    conntrack.CLOSE_WAIT: State.FIN_CLIENT,
}
"""What an entry's state means for the core; whatever is not here has ended."""


class Table(Protocol):
    """The kernel's connection table (`netfilter.conntrack.Conntrack`)."""

    def entries(self, mask: int) -> Iterator[Entry]:
        """Every entry with a mark within `mask`."""

    def find(self, inbound: bytes, protocol: int) -> Entry | None:
        """The entry of what a client sends."""

    def delete(self, inbound: bytes, protocol: int) -> bool:
        """Forget an entry."""

    def take(self, inbound: bytes, protocol: int) -> Entry | None:
        """Forget an entry, and say what it was."""

    def put_back(self, entry: Entry) -> bool:
        """Enter again what was taken."""

    def shorten(self, inbound: bytes, protocol: int, seconds: int) -> bool:
        """Let an entry have that much time left."""


class KernelCarrier:
    """The kernel as the one who carries connections (`core.carrier.Carrier`).

    `failed` counts what it did not answer to: then a connection goes on for another while, and one that
    should have been cut is found by the next comparison.
    """

    def __init__(self, table: Table, udp: float) -> None:
        self.failed = 0
        self.udp = udp
        self._table = table

    def carries(self, connection: Connection, now: float) -> State | None:
        """What conntrack has it as; since when it is quiet follows from what is left of its time."""
        if connection.link.virtual.spec.datapath != OFFLOAD:
            return None
        inbound, protocol = without_end(connection.inbound)
        try:
            entry = self._table.find(inbound, protocol)
            state = state_of(entry) if entry is not None else None
            if entry is not None and state is not None and not state.half_open:
                connection.seen = max(connection.seen, heard_of(connection, entry, now, self.udp))
                limit = whole_seconds(limit_of(connection, self.udp))
                if entry.timeout > limit:  # it was put back, and has the kernel's own time-outs
                    self._table.shorten(inbound, protocol, limit)
        except KernelError:
            self.failed += 1
            return connection.state
        return state

    def cut(self, connection: Connection) -> None:
        """Have conntrack forget it: its packets belong to nothing from now on."""
        if connection.link.virtual.spec.datapath != OFFLOAD:
            return
        try:
            self._table.delete(*without_end(connection.inbound))
        except KernelError:
            self.failed += 1

    def release(self, connection: Connection) -> State | None:
        """Have conntrack forget it, unless it was answered before conntrack could."""
        if connection.link.virtual.spec.datapath != OFFLOAD:
            return None
        try:
            entry = self._table.take(*without_end(connection.inbound))
            state = state_of(entry) if entry is not None else None
            if entry is None or state is None or not state.quick:
                return None
            self._table.put_back(entry)
        except KernelError:
            self.failed += 1
            return None
        return state


def state_of(entry: Entry) -> State | None:
    """What an entry means for the core; None for one whose connection has ended."""
    if entry.protocol == UDP:
        return State.UDP_FLOW if entry.status & conntrack.SEEN_REPLY else State.UDP_NEW
    return _STATES.get(entry.tcp_state) if entry.protocol == TCP else None


def time_of(entry: Entry, connection: Connection | None, timeouts: Timeouts) -> int:
    """For how long (seconds) an entry without a packet is kept, as its connection would be."""
    if entry.protocol == UDP:
        return whole_seconds(timeouts.udp)
    if entry.tcp_state in (conntrack.SYN_SENT, conntrack.SYN_RECEIVED):
        return whole_seconds(timeouts.half_open)
    if entry.tcp_state not in _STATES:
        return whole_seconds(timeouts.closing)
    return whole_seconds(timeouts.idle if connection is None else connection.link.real.spec.idle_timeout)


def heard_of(connection: Connection, entry: Entry, now: float, udp: float) -> float:
    """When a packet of the connection last passed, from what is left of its entry's time-out (seconds)."""
    return now - max(0.0, limit_of(connection, udp) - entry.timeout)


def limit_of(connection: Connection, udp: float) -> float:
    """How long a connection that was answered lasts without a packet (seconds)."""
    return udp if connection.state.udp else connection.link.real.spec.idle_timeout
