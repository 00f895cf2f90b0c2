"""What the worker does where the kernel translates: decides by marks, and follows what it is told.

Owns `OffloadPath`, the counterpart of `packet.path.PacketPath`. The queue asks it (`judge`), the tap and
conntrack tell it (`tapped`, `ended`), and `sweep` compares with the kernel's table: for what was lost, and
for what a predecessor's journal does not say.

Of a connection it sees SYNs, SYN-ACK, FINs and resets, and where response times count the first data of
each request and answer; no more. So a SYN-ACK counts as the client's ACK that would follow (R078), and
that a reset lies inside the window is conntrack's word, which has seen all (but of an entry put back).
"""

from collections.abc import Iterable, Iterator
from struct import Struct

from nfqlb.config.marks import OFFLOAD, LinkMarks
from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.keys import TCP, UDP, UDP_END, flipped, key_end, server_of, without_end
from nfqlb.core.recorder import NoRecorder, Recorder
from nfqlb.core.segment import NO_STAMP, RST, SYN, Segment, Stamp
from nfqlb.core.server import Link
from nfqlb.core.spec import Config, Server
from nfqlb.core.states import State
from nfqlb.core.verdict import Drop
from nfqlb.netfilter import conntrack
from nfqlb.netfilter.conntrack import Entry
from nfqlb.packet.decode import decode
from nfqlb.packet.decode6 import decode6
from nfqlb.packet.facts import IcmpError
from nfqlb.packet.replies import Replies
from nfqlb.packet.stamps import read_stamp
from nfqlb.runtime.carrier import Table, heard_of, state_of, time_of

PREROUTING = 0  # linux/netfilter.h: what comes from clients is queued and tapped there
_ICMP, _ICMP6 = 1, 58

# version and header length, total length, protocol, addresses and ports, both numbers, offset and flags
_read_ipv4 = Struct("!BxH5xBxx12s8sH").unpack_from
# version, payload length, next header, addresses, ports, both numbers, offset and flags
_read_ipv6 = Struct("!BxxxHBx32s4s8sH").unpack_from

_DONE = object()
_ANSWERED = (conntrack.LAST_ACK, conntrack.TIME_WAIT)
"""Ended, but for sure not for want of an answer."""


class OffloadPath:
    """Decides and follows the offloaded connections of one director.

    `now` is the time everything happens at (seconds); whoever drives it sets it. `recorder` is told of
    connections that are found in the kernel's table alone. `behind` says that something was lost, so that
    a sweep is due. `replies` are for clients that are refused.
    """

    def __init__(
        self, director: Director, table: Table, now: float, recorder: Recorder | None = None
    ) -> None:
        self.director = director
        self.now = now
        self.behind = False
        self.adopted = 0  # connections that only the kernel knew
        self.forgotten = 0  # connections whose end nobody had told
        self.replies = Replies(director)
        self._table = table
        self._recorder = recorder or NoRecorder()
        config = director.config
        self._mask = config.gateway.mark_mask
        self._marks: dict[Link, int] = {}
        self.follow(config)
        self._inbound = director.table.inbound
        self._outbound = director.table.outbound
        self._steps: Iterator[None] | None = None

    def follow(self, config: Config) -> None:
        """The director follows another configuration, in which marks that both have are the same."""
        marks = LinkMarks(config)
        self._timeouts = config.timeouts
        # by a link's own identity: nothing is found faster
        self._marks = {
            link: marks.of(virtual.spec, Server(link.real.spec.name, link.port))
            for virtual in self.director.virtual_servers
            if virtual.spec.datapath == OFFLOAD
            for link in (*virtual.everybody, *virtual.leaving)
        }

    # --- the queue

    def judge(
        self, buffer: bytearray, start: int, end: int, _hook: int, info: int, stamp_at: int
    ) -> int:
        """The mark for a SYN or datagram in `buffer[start:end]`; 0 drops it. Arguments as in `PacketPath`."""
        segment = _segment_in(buffer, start, end)
        key = segment[0] if segment is not None else _datagram_in(buffer, start, end)
        if key is None or (segment is not None and not segment[1] & SYN):
            self.director.refuse(Drop.MALFORMED)
            return 0
        before = self._inbound.get(key)
        link = before.link if before is not None else None
        if segment is not None:
            stamp = read_stamp(buffer, stamp_at) if stamp_at else NO_STAMP
            # what data a SYN carries makes no difference to a decision
            outcome = self.director.client_syn(Segment(key, segment[1], segment[2], 0, stamp), self.now)
        else:
            outcome = self.director.client_datagram(key, self.now)
        if not isinstance(outcome, Connection):
            transport = start + (40 if buffer[start] >> 4 == 6 else (buffer[start] & 0xF) * 4)
            flags = segment[1] if segment is not None else None
            self.replies.tell(outcome, key, flags, buffer, start, end, transport, info, self.now)
            return 0
        if before is not None and (outcome is not before or outcome.link is not link):
            # a new connection, or another server, whose carrier may have failed to let go of it: by its old
            # entry conntrack would send it where that went
            self._table.delete(*without_end(key))
        return self._marks[outcome.link]

    # --- the tap

    def tapped(self, buffer: bytearray, start: int, end: int, hook: int, stamp: Stamp) -> None:
        """A copy of a packet that the kernel translates, as far as it was copied."""
        segment = _segment_in(buffer, start, end)
        if segment is None:
            self._tapped_other(buffer, start, end)
            return
        key, flags, numbers, size = segment
        connection = (self._inbound if hook == PREROUTING else self._outbound).get(key)
        if connection is None:
            return
        if flags & RST and connection.state is not State.SYN_SENT:
            # what was last seen of either side is no measure here; conntrack has compared it
            connection.client_numbers = connection.server_numbers = b""
        if hook == PREROUTING:
            if size and connection.interval is not None:
                # told once a request and no repetition; how much was not told in between, nobody knows
                connection.interval.end = -1
            self.director.client_sent(connection, flags, numbers, self.now, size, stamp)
            if not flags & RST:  # conntrack has seen a whole handshake, so nobody made this client up
                self.director.placement.made(connection, self.now)
            return
        if flags & SYN:
            self.director.handshake_seen(connection, flags, numbers, self.now, stamp)
        else:
            self.director.server_sent(connection, flags, numbers, self.now, size, stamp)

    def _tapped_other(self, buffer: bytearray, start: int, end: int) -> None:
        """A copy of a flow's first answer, or of an error that the rules have eaten."""
        if _protocol_in(buffer, start, end) in (_ICMP, _ICMP6):
            self._eaten(bytes(buffer[start:end]))
            return
        flow = self._outbound.get(_datagram_in(buffer, start, end) or b"")
        if flow is not None:
            self.director.server_datagram(flow.outbound, self.now)

    def _eaten(self, packet: bytes) -> None:
        """Count an error about a connection that its server has not answered."""
        six = packet[0] >> 4 == 6
        size = int.from_bytes(packet[4:6], "big") + 40 if six else int.from_bytes(packet[2:4], "big")
        error = (decode6 if six else decode)(packet, size)
        connection = self._outbound.get(flipped(error.quoted)) if isinstance(error, IcmpError) else None
        virtual = connection.link.virtual if connection is not None else None
        self.director.tally.refuse(Drop.UNREACHABLE, virtual)

    def lost(self, _count: int) -> None:
        """The tap or conntrack has lost something."""
        self.behind = True

    # --- conntrack

    def ended(self, inbound: bytes, protocol: int) -> None:
        """conntrack has forgotten an entry: one of ours, of an earlier connection, or anybody's.

        A connection whose SYN nobody answered is left to the core's own time-out, which counts it.
        """
        connection = self._inbound.get(inbound + key_end(protocol))
        if connection is None or connection.state is State.SYN_SENT or connection.state.ended:
            return
        if connection.link.virtual.spec.datapath == OFFLOAD and self._table.find(inbound, protocol) is None:
            self.director.forget(connection, self.now)
            self.forgotten += 1

    # --- comparing with the kernel's table

    @property
    def sweeping(self) -> bool:
        """Whether a comparison is under way."""
        return self._steps is not None

    def sweep(self, budget: int) -> bool:
        """Compare some more, about `budget` connections; True once the whole table has been seen."""
        if self._steps is None:
            self.behind = False
            self._steps = self._compare()
        steps, self._steps = self._steps, None  # should it fail, the next one begins anew
        for _ in range(budget):
            if next(steps, _DONE) is _DONE:
                return True
        self._steps = steps
        return False

    def _compare(self) -> Iterator[None]:
        begun = self.now
        found: set[bytes] = set()
        for entry in self._table.entries(self._mask):
            found.add(entry.inbound + key_end(entry.protocol))
            self._meet(entry, begun)
            yield
        self.director.restored(self.now)  # whatever was adopted counts in the next choice
        for connection in list(self._inbound.values()):
            if self._is_gone(connection, found, begun):
                self.director.forget(connection, self.now)
                self.forgotten += 1
            yield

    def _meet(self, read: Entry, begun: float) -> None:
        """One entry: its connection is alive, has come further, has ended, or becomes known.

        What was read is some moments old. Where that may matter, the entry is looked up again.
        """
        connection = self._inbound.get(read.inbound + key_end(read.protocol))
        entry: Entry | None = read
        if connection is None or connection.opened >= begun or _is_elsewhere(connection, read):
            entry = self._table.find(read.inbound, read.protocol)
        if entry is None:
            return
        if connection is not None and connection.opened < begun and _is_elsewhere(connection, entry):
            # its SYN was lost with a dead worker's verdict, and the next one the kernel has sent there alone
            self.director.forget(connection, self.now)
            self.forgotten += 1
            connection = None
        if connection is not None and connection.state.ended:
            return
        state = state_of(entry)
        if connection is None:
            if state is not None:
                self._adopt(entry, state)
            self._shorten(entry)
        elif state is not None:
            self.director.progressed(connection, state, self.now)
            if connection.state.quick:
                heard = heard_of(connection, entry, self.now, self._timeouts.udp)
                connection.seen = max(connection.seen, heard)
        else:
            if entry.tcp_state in _ANSWERED:
                self.director.progressed(connection, State.ESTABLISHED, self.now)
            self.director.forget(connection, self.now)
            self.forgotten += 1

    def _shorten(self, entry: Entry) -> None:
        """The entry of a stranger, which no rule of ours has made, gets no more time than one of ours has."""
        limit = time_of(entry, self._inbound.get(entry.inbound + key_end(entry.protocol)), self._timeouts)
        if entry.timeout > limit:
            self._table.shorten(entry.inbound, entry.protocol, limit)

    def _adopt(self, entry: Entry, state: State) -> None:
        key = entry.inbound + key_end(entry.protocol)
        server = server_of(entry.outbound)
        if self.director.restore(key, server, state.code, -1, opened=self.now, now=self.now):
            connection = self._inbound[key]
            connection.place = self._recorder.opened(connection)
            self.adopted += 1

    def _is_gone(self, connection: Connection, found: Iterable[bytes], begun: float) -> bool:
        """Whether a connection that was there before the comparison began has no entry any more."""
        if connection.opened >= begun or connection.inbound in found:
            return False
        if connection.state in (State.SYN_SENT, State.GONE) or connection.state.ended:
            return False
        if connection.link.virtual.spec.datapath != OFFLOAD:
            return False
        return self._table.find(*without_end(connection.inbound)) is None


def _is_elsewhere(connection: Connection, entry: Entry) -> bool:
    """Whether the kernel sends what this client sends to another server."""
    return connection.outbound != entry.outbound + key_end(entry.protocol)


def _segment_in(buffer: bytearray, start: int, end: int) -> tuple[bytes, int, bytes, int] | None:
    """The TCP segment whose headers are in `buffer[start:end]`; None where it is none.

    Key, flags, numbers and size as in `Segment`, which takes longer to make.
    """
    version = buffer[start] >> 4
    size = end - start
    if version == 4:
        header = (buffer[start] & 0xF) * 4
        if header < 20 or size < header + 14 or buffer[start + 9] != TCP:
            return None
        _, total, _, key, numbers, flags = _read_ipv4(buffer, start)
        if header > 20:
            at = start + header
            key = bytes(buffer[start + 12 : start + 20]) + bytes(buffer[at : at + 4])
            numbers, flags = bytes(buffer[at + 4 : at + 12]), int.from_bytes(buffer[at + 12 : at + 14], "big")
        size = total - header - (flags >> 12) * 4
        return key, flags & 0xFFF, numbers, size if size > 0 else 0
    if version == 6 and size >= 54 and buffer[start + 6] == TCP:
        _, length, _, addresses, ports, numbers, flags = _read_ipv6(buffer, start)
        size = length - (flags >> 12) * 4
        return addresses + ports, flags & 0xFFF, numbers, size if size > 0 else 0
    return None


def _datagram_in(buffer: bytearray, start: int, end: int) -> bytes | None:
    """The key of the UDP datagram whose headers are in `buffer[start:end]`; None where it is none."""
    version, size = buffer[start] >> 4, end - start
    if version == 4 and size >= 28 and buffer[start + 9] == UDP:
        at = start + (buffer[start] & 0xF) * 4
        if at + 8 <= end:
            return bytes(buffer[start + 12 : start + 20]) + bytes(buffer[at : at + 4]) + UDP_END
    if version == 6 and size >= 48 and buffer[start + 6] == UDP:
        return bytes(buffer[start + 8 : start + 44]) + UDP_END
    return None


def _protocol_in(buffer: bytearray, start: int, end: int) -> int:
    """The protocol of the packet in `buffer[start:end]`; -1 where that is less than its header has."""
    at = start + (6 if buffer[start] >> 4 == 6 else 9)
    return buffer[at] if at < end else -1
