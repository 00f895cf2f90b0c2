"""What the worker does where the kernel translates: decides SYNs by marks, and follows what it is told.

Owns `OffloadPath`, the counterpart of `packet.path.PacketPath`. The queue asks it (`judge`), the tap and
conntrack tell it (`tapped`, `ended`), and `sweep` compares with the kernel's table: for what was lost, for
what a predecessor's journal does not say, and for when an established connection was last heard of.

Of a connection it sees SYNs, SYN-ACK, FINs and resets, no more. So a SYN-ACK counts as the client's ACK
that would follow (R078), and that a reset lies inside the window is conntrack's word, which has seen all.
"""

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Protocol

from nfqlb.config.marks import OFFLOAD, LinkMarks
from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.segment import ACK, RST, SYN, Segment
from nfqlb.core.server import Link
from nfqlb.core.states import State
from nfqlb.core.table import NoRecorder, Recorder
from nfqlb.core.verdict import Drop
from nfqlb.netfilter import conntrack
from nfqlb.netfilter.conntrack import Entry

PREROUTING = 0  # linux/netfilter.h: what comes from clients is queued and tapped there
_TCP, _ICMP, _ICMP6 = 6, 1, 58

# version and header length, protocol, addresses and ports, both numbers, offset and flags
_read_ipv4 = Struct("!B8xBxx12s8sH").unpack_from
_read_ipv6 = Struct("!B5xBx32s4s8sH").unpack_from

#: Drops that a client may be told of, where it is to be told at all: it asked for what there is no place for.
_REFUSALS = (Drop.NO_SERVER, Drop.TABLE_FULL, Drop.COLLISION)

_STATES = {
    conntrack.SYN_SENT: State.SYN_SENT,
    conntrack.SYN_RECEIVED: State.SYN_RECEIVED,
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

    def find(self, inbound: bytes) -> Entry | None:
        """The entry of what a client sends."""

    def delete(self, inbound: bytes) -> bool:
        """Forget an entry."""


class OffloadPath:
    """Decides and follows the offloaded connections of one director.

    `now` is the time everything happens at (seconds); whoever drives it sets it. `recorder` is told of
    connections that are found in the kernel's table alone. `behind` says that something was lost, so that
    a sweep is due.
    """

    def __init__(
        self, director: Director, table: Table, now: float, recorder: Recorder | None = None
    ) -> None:
        self.director = director
        self.now = now
        self.behind = False
        self.adopted = 0  # connections that only the kernel knew
        self.forgotten = 0  # connections whose end nobody had told
        self._table = table
        self._recorder = recorder or NoRecorder()
        config = director.config
        marks = LinkMarks(config)
        self._mask = marks.mask
        self._refused = marks.refused if config.gateway.reject == "reset" else 0
        self._marks = {
            (virtual.name, server.real, server.port): marks.of(virtual, server)
            for virtual in config.virtuals
            if virtual.datapath == OFFLOAD
            for server in config.places(virtual)
        }
        self._inbound = director.table.inbound
        self._outbound = director.table.outbound
        self._steps: Iterator[None] | None = None

    # --- the queue

    def judge(self, buffer: bytearray, start: int, end: int, _hook: int, _info: int) -> int:
        """The mark for a SYN in `buffer[start:end]`; 0 to drop it."""
        segment = _segment_in(buffer, start, end)
        if segment is None or not segment.flags & SYN:
            self.director.refuse(Drop.MALFORMED)
            return 0
        before = self._inbound.get(segment.key)
        link = before.link if before is not None else None
        outcome = self.director.client_syn(segment, self.now)
        if not isinstance(outcome, Connection):
            return self._refused if outcome in _REFUSALS else 0
        if before is not None and (outcome is not before or outcome.link is not link):
            # a new connection, or another server: by its old entry conntrack would send it where that went
            self._table.delete(segment.key)
        return self._mark(outcome.link)

    def _mark(self, link: Link) -> int:
        return self._marks[link.virtual.spec.name, link.real.spec.name, link.port]

    # --- the tap

    def tapped(self, buffer: bytearray, start: int, end: int, hook: int, _stamp: float) -> None:
        """A copy of a packet that the kernel translates, as far as it was copied."""
        if end - start >= 40 and buffer[start] == 0x45 and buffer[start + 9] == _TCP:
            _, _, key, numbers, flags = _read_ipv4(buffer, start)  # nearly all of them
            flags &= 0xFFF
        elif (segment := _segment_in(buffer, start, end)) is not None:
            key, flags, numbers = segment
        else:
            if _protocol_in(buffer, start) in (_ICMP, _ICMP6):
                self.director.refuse(Drop.UNREACHABLE)  # eaten by the rules
            return
        connection = (self._inbound if hook == PREROUTING else self._outbound).get(key)
        if connection is None:
            return
        if flags & RST and connection.state is not State.SYN_SENT:
            # what was last seen of either side is no measure here; conntrack has compared it
            connection.client_numbers = connection.server_numbers = b""
        if hook == PREROUTING:
            self.director.client_sent(connection, flags, numbers, self.now)
            return
        self.director.server_sent(connection, flags, numbers, self.now)
        if connection.state is State.SYN_RECEIVED:
            following = (int.from_bytes(numbers[:4], "big") + 1 & 0xFFFFFFFF).to_bytes(4, "big")
            self.director.client_sent(connection, ACK, numbers[4:] + following, self.now)

    def lost(self, _count: int) -> None:
        """The tap or conntrack has lost something."""
        self.behind = True

    # --- conntrack

    def ended(self, inbound: bytes, protocol: int) -> None:
        """conntrack has forgotten an entry: one of ours, of an earlier connection, or anybody's.

        A connection whose SYN nobody answered is left to the core's own time-out, which counts it.
        """
        connection = self._inbound.get(inbound)
        if protocol != _TCP or connection is None or connection.state in (State.SYN_SENT, State.CLOSED):
            return
        if self._table.find(inbound) is None:
            self.director.table.remove(connection, self.now)
            self.forgotten += 1

    # --- comparing with the kernel's table

    def sweep(self, budget: int) -> bool:
        """Compare some more, about `budget` connections; True once the whole table has been seen."""
        if self._steps is None:
            self.behind = False
            self._steps = self._compare()
        for _ in range(budget):
            try:
                next(self._steps)
            except StopIteration:
                self._steps = None
                return True
        return False

    def _compare(self) -> Iterator[None]:
        begun = self.now
        found: set[bytes] = set()
        for entry in self._table.entries(self._mask):
            found.add(entry.inbound)
            self._meet(entry)
            yield
        self.director.restored(self.now)  # whatever was adopted counts in the next choice
        for connection in list(self._inbound.values()):
            if self._is_gone(connection, found, begun):
                self.director.table.remove(connection, self.now)
                self.forgotten += 1
            yield

    def _meet(self, entry: Entry) -> None:
        """One entry: its connection is alive, or becomes known."""
        connection = self._inbound.get(entry.inbound)
        state = _STATES.get(entry.tcp_state)
        if entry.protocol != _TCP or state is None:
            return
        if connection is None:
            self._adopt(entry, state)
        elif connection.state.quick and connection.state is not State.CLOSED:
            quiet = connection.link.real.spec.idle_timeout - entry.timeout
            connection.seen = max(connection.seen, self.now - max(0.0, quiet))

    def _adopt(self, entry: Entry, state: State) -> None:
        size = (len(entry.outbound) - 4) // 2
        server = entry.outbound[:size] + entry.outbound[-4:-2]
        known = self.director.restore(entry.inbound, server, state.code, -1, opened=self.now, now=self.now)
        if known:
            connection = self._inbound[entry.inbound]
            connection.place = self._recorder.opened(connection)
            self.adopted += 1

    def _is_gone(self, connection: Connection, found: Iterable[bytes], begun: float) -> bool:
        """Whether a connection that was there before the comparison began has no entry any more."""
        if connection.opened >= begun or connection.inbound in found:
            return False
        if connection.state in (State.SYN_SENT, State.CLOSED, State.GONE):
            return False
        if connection.link.virtual.spec.datapath != OFFLOAD:
            return False
        return self._table.find(connection.inbound) is None


def _segment_in(buffer: bytearray, start: int, end: int) -> Segment | None:
    """The TCP segment whose headers are in `buffer[start:end]`; None where it is none."""
    version = buffer[start] >> 4
    size = end - start
    if version == 4:
        header = (buffer[start] & 0xF) * 4
        if header < 20 or size < header + 14 or buffer[start + 9] != _TCP:
            return None
        if header == 20:
            _, _, key, numbers, flags = _read_ipv4(buffer, start)
            return Segment(key, flags & 0xFFF, numbers)
        return _segment_at(buffer, bytes(buffer[start + 12 : start + 20]), start + header)
    if version == 6 and size >= 54 and buffer[start + 6] == _TCP:
        _, _, addresses, ports, numbers, flags = _read_ipv6(buffer, start)
        return Segment(addresses + ports, flags & 0xFFF, numbers)
    return None


def _segment_at(buffer: bytearray, addresses: bytes, at: int) -> Segment:
    flags = int.from_bytes(buffer[at + 12 : at + 14], "big")
    return Segment(addresses + bytes(buffer[at : at + 4]), flags & 0xFFF, bytes(buffer[at + 4 : at + 12]))


def _protocol_in(buffer: bytearray, start: int) -> int:
    return buffer[start + (6 if buffer[start] >> 4 == 6 else 9)]
