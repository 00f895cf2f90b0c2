"""What happens to a packet, top to bottom: look up, else decide, then translate (fig 5).

Owns `PacketPath`. A segment of a known flow takes the short path: its 12 bytes of addresses
and ports find the connection, whose link has the change precomputed; six bytes of addresses
and ports and two checksums are written, and no object is made. Flags that open, change or end
the connection are put to the director on the way: what they need stands in the same fixed
fields, and decoding them in full took as long as deciding. Everything else (IP options, ICMP,
fragments, what belongs to no flow or is malformed) is decoded by dpkt first.

Nothing here knows a socket or a clock: `now` is set by whoever drives it.
"""

from struct import Struct

from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.reject import Action
from nfqlb.core.rewriting import MODULUS
from nfqlb.core.segment import ACK, FIN, NO_STAMP, RST, SYN, Segment, Stamp
from nfqlb.core.verdict import Drop, Outcome, Pass, Refusal
from nfqlb.packet.decode import IcmpError, TcpPacket, decode
from nfqlb.packet.reply import intact, reset, reset_for, unreachable_for
from nfqlb.packet.translate import (
    CHECKSUM_NOT_READY,
    SUPER_PACKET,
    finish_transport_sum,
    translate_error_inbound,
    translate_error_outbound,
    translate_inbound,
    translate_outbound,
)

# verdicts
DROP = 0
ACCEPT = 1
CHANGED = 2  # accept, with the bytes as they stand in the buffer now

# where a packet was queued (linux/netfilter.h): the rules send us the client line in PREROUTING,
# the server line in FORWARD, and the gateway's own ICMP errors in OUTPUT
PREROUTING = 0
FORWARD = 2
OUTPUT = 3

#: A buffer must go on for so many bytes after a packet's start: headers are read before they are measured.
LOOKAHEAD = 64
#: Headers and quotations lie in these many bytes; the payload of a super-packet need not be copied.
_HEADERS_SIZE = 1500

_TCP, _UDP = 6, 17
_KERNEL_SUMS = CHECKSUM_NOT_READY | SUPER_PACKET
_NEVER = 1 << 30
_NO_PORT = bytes(2)

# version and header length, total length, fragment bits, protocol, header sum, the key, sequence and
# acknowledgement number, TCP offset and flags, TCP sum: an IPv4 header without options, then TCP
_read = Struct("!BxHxxHxBH12s8sHxxH").unpack_from
_put_sum_address = Struct("!H4s").pack_into
_put_sum = Struct("!H").pack_into
_put_address = Struct("4s").pack_into
_put_port = Struct("2s").pack_into
_read_stamp = Struct("!QQ").unpack_from  # seconds and microseconds


def _least_lengths() -> list[int]:
    """By the word of TCP offset and flags: the least IP length that holds such a header.

    No length does for a header too short, or for flags that no segment has together.
    """
    return [_NEVER if word >> 12 < 5 or _absurd(word) else 20 + (word >> 12) * 4 for word in range(0x10000)]


def _absurd(flags: int) -> bool:
    return bool(flags & SYN and flags & (FIN | RST))


_LEAST_LENGTH = _least_lengths()
_OPENS_CHANGES_ENDS = SYN | FIN | RST | ACK


class PacketPath:
    """Judges packets for one director. `now` is the time all judgements are made at (seconds)."""

    def __init__(self, director: Director, now: float) -> None:
        self.director = director
        self.now = now
        self._inbound = director.table.inbound.get
        self._outbound = director.table.outbound.get
        self._replies: list[bytes] = []

    def take_replies(self) -> list[bytes]:
        """The packets that are to go to clients, since it was last asked: IP packets, whole."""
        replies, self._replies = self._replies, []
        return replies + [reset(order) for order in self.director.take_resets()]

    def judge(  # noqa: C901  the path of every packet reads in one place, and calls would cost it
        self, buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int
    ) -> int:
        """The verdict on the IPv4 packet in `buffer[start:end]`, which is changed in place.

        `hook` is where it was queued, `info` what the kernel says of its checksum
        (NFQA_SKB_INFO), `stamp_at` where the time stands at which it was received (NFQA_TIMESTAMP),
        0 if nowhere. The buffer must go on for `LOOKAHEAD` bytes after `start`.
        """
        version, total, fragment, protocol, ip_sum, key, numbers, flags, tcp_sum = _read(buffer, start)
        if (
            total == end - start >= _LEAST_LENGTH[flags]
            and version == 0x45
            and protocol == 6
            and not fragment & 0x3FFF
        ):
            if hook == PREROUTING:
                if flags & SYN:
                    stamp = _read_stamp(buffer, stamp_at) if stamp_at else NO_STAMP
                    connection = self._syn(key, flags, numbers, stamp)
                    if isinstance(connection, Drop):
                        self._reply(connection, key, flags, buffer, start, end, start + 20, info)
                        return DROP
                else:
                    connection = self._inbound(key)
                if connection is not None:
                    if (
                        flags & _OPENS_CHANGES_ENDS == ACK
                        and connection.quick
                        and connection.interval is None
                    ):
                        connection.client_numbers = numbers
                        connection.seen = self.now
                    elif not flags & SYN:
                        size = total - _LEAST_LENGTH[flags]
                        self._client_sent(connection, flags, numbers, size, buffer, stamp_at)
                    address, port, network, transport = connection.link.inbound
                    _put_sum(buffer, start + 10, (ip_sum - network) % MODULUS)
                    _put_address(buffer, start + 16, address)
                    _put_port(buffer, start + 22, port)
                    if not info & CHECKSUM_NOT_READY:
                        _put_sum(buffer, start + 36, (tcp_sum - transport) % MODULUS)
                    else:  # a super-packet's too: conntrack comes after this hook, and looks at it
                        finish_transport_sum(buffer, end, start + 20, network)
                    return CHANGED
            elif hook == FORWARD:
                connection = self._outbound(key)
                if connection is not None:
                    if flags & _OPENS_CHANGES_ENDS == ACK and connection.quick:
                        connection.server_numbers = numbers
                        connection.seen = self.now
                    else:
                        size = total - _LEAST_LENGTH[flags]
                        self._server_sent(connection, flags, numbers, size, buffer, stamp_at)
                    address, port, network, transport = connection.link.outbound
                    _put_sum_address(buffer, start + 10, (ip_sum - network) % MODULUS, address)
                    _put_port(buffer, start + 20, port)
                    if not info & _KERNEL_SUMS:
                        _put_sum(buffer, start + 36, (tcp_sum - transport) % MODULUS)
                    elif not info & SUPER_PACKET:
                        finish_transport_sum(buffer, end, start + 20, network)
                    return CHANGED
        return self._judge_unusual(buffer, start, end, hook, info, stamp_at)

    def _syn(self, key: bytes, flags: int, numbers: bytes, stamp: Stamp) -> Connection | Drop | None:
        """A well-formed segment with SYN from the client line; None if it is one for a closer look."""
        if flags & ACK or key[:4] == key[4:8] or _NO_PORT in (key[8:10], key[10:12]):
            return None
        outcome = self.director.client_syn(Segment(key, flags & 0xFFF, numbers, 0, stamp), self.now)
        assert not isinstance(outcome, Pass)  # a SYN to us is ours
        return outcome

    def _client_sent(
        self, connection: Connection, flags: int, numbers: bytes, size: int, buffer: bytearray, stamp_at: int
    ) -> None:
        """A client's segment, with `size` bytes of data, that changes its connection or what is measured."""
        measured = size and stamp_at and connection.interval is not None
        stamp = _read_stamp(buffer, stamp_at) if measured else NO_STAMP
        self.director.client_sent(connection, flags, numbers, self.now, size, stamp)

    def _server_sent(
        self, connection: Connection, flags: int, numbers: bytes, size: int, buffer: bytearray, stamp_at: int
    ) -> None:
        """The same for a server's segment."""
        measured = (size or flags & SYN) and stamp_at and connection.interval is not None
        stamp = _read_stamp(buffer, stamp_at) if measured else NO_STAMP
        self.director.server_sent(connection, flags, numbers, self.now, size, stamp)

    def _judge_unusual(
        self, buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int
    ) -> int:
        """Everything but a SYN and a segment of a known flow."""
        packet = bytes(memoryview(buffer)[start : min(end, start + _HEADERS_SIZE)])
        decoded = decode(packet, end - start)
        if isinstance(decoded, TcpPacket):
            transport = start + decoded.transport_at
            size = end - transport - (buffer[transport + 12] >> 4) * 4
            stamp = _read_stamp(buffer, stamp_at) if stamp_at else NO_STAMP
            segment = decoded.segment._replace(size=size, stamp=stamp)
            outcome = self._decide(segment, hook)
            if not isinstance(outcome, Connection):
                if hook == PREROUTING:
                    key, flags = segment.key, segment.flags
                    self._reply(outcome, key, flags, buffer, start, end, transport, info)
                return _verdict(outcome)
            if hook == PREROUTING:
                translate_inbound(buffer, start, end, transport, outcome.link.inbound, info)
            else:
                translate_outbound(buffer, start, end, transport, outcome.link.outbound, info)
            return CHANGED
        if isinstance(decoded, IcmpError):
            return self._judge_error(decoded, buffer, start, end, hook)
        return _verdict(self.director.refuse(decoded))

    def _reply(
        self, reason: Refusal, key: bytes, flags: int | None, buffer: bytearray, start: int, end: int,
        transport: int, info: int,
    ) -> None:  # fmt: skip
        """Let a client know that its packet was refused, where the policy says so.

        `transport` is where its TCP or UDP header begins; `flags` are TCP's, None for a datagram.
        """
        action = self.director.reply_to(reason, key, flags, self.now)
        if action is Action.DROP:
            return
        protocol = _UDP if flags is None else _TCP
        if not info & _KERNEL_SUMS and not intact(buffer, end, transport, key, protocol):
            return
        packet = bytes(memoryview(buffer)[start : min(end, start + _HEADERS_SIZE)])
        if action is Action.RESET:
            self._replies.append(reset_for(key, packet, transport - start, end - start))
        elif action is Action.UNREACHABLE:
            self._replies.append(unreachable_for(key, packet))

    def _decide(self, segment: Segment, hook: int) -> Outcome:
        """What the director says of a segment: a SYN may open a connection, all else must have one (R117)."""
        flags = segment.flags
        if _absurd(flags):
            return self.director.refuse(Drop.MALFORMED)
        if hook != PREROUTING:
            return self.director.server_segment(segment, self.now)
        if flags & (SYN | ACK) == SYN:
            return self.director.client_syn(segment, self.now)
        return self.director.client_segment(segment, self.now)

    def _judge_error(self, error: IcmpError, buffer: bytearray, start: int, end: int, hook: int) -> int:
        """An ICMP error follows the connection of the packet it quotes; others' pass (A20)."""
        icmp, quoted, transport = (
            start + at for at in (error.icmp_at, error.quoted_at, error.quoted_transport_at)
        )
        if hook == PREROUTING:
            connection = self.director.error_from_outside(error.quoted)
            if connection is None:
                return _verdict(self.director.refuse(Pass.NOT_OURS))
            change = connection.link.inbound
            translate_error_inbound(buffer, start, end, icmp, quoted, transport, change)
            return CHANGED
        outcome = self.director.error_from_inside(error.quoted, unreachable=error.unreachable)
        if outcome is None:
            return _verdict(self.director.refuse(Pass.NOT_OURS))
        if not isinstance(outcome, Connection):
            return _verdict(outcome)
        change = outcome.link.outbound
        own = hook == OUTPUT
        translate_error_outbound(buffer, start, end, icmp, quoted, transport, change, own=own)
        return CHANGED


def _verdict(outcome: Outcome) -> int:
    return DROP if isinstance(outcome, Drop) else ACCEPT
