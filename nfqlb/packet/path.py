"""What happens to a packet, top to bottom: look up, else decide, then translate (fig 5).

Owns `PacketPath`. A segment of a known flow takes the short path: its 12 bytes of addresses
and ports find the connection, whose link has the change precomputed; six bytes of addresses
and ports and two checksums are written, and no object is made. Flags that open, change or end
the connection are put to the director on the way: what they need stands in the same fixed
fields, and decoding them in full took as long as deciding. TCP over IPv6 and UDP have short paths of
their own (`segments6`, `datagrams`). Everything else (IP options, extension headers, ICMP, fragments,
what belongs to no flow or is malformed) is decoded in full first.

Nothing here knows a socket or a clock: `now` is set by whoever drives it.
"""

from struct import Struct

from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.keys import TCP, UDP
from nfqlb.core.rewriting import MODULUS
from nfqlb.core.segment import ACK, FIN, NO_STAMP, RST, SYN, Segment, Stamp
from nfqlb.core.verdict import Drop, Outcome, Pass
from nfqlb.packet.datagrams import Datagrams
from nfqlb.packet.decode import decode
from nfqlb.packet.decode6 import decode6
from nfqlb.packet.facts import IcmpError, TcpPacket, UdpPacket
from nfqlb.packet.replies import Replies
from nfqlb.packet.segments6 import Segments6
from nfqlb.packet.stamps import client_sent, read_stamp, server_sent
from nfqlb.packet.translate import (
    CHECKSUM_NOT_READY,
    SUPER_PACKET,
    finish_transport_sum,
    translate_error_inbound,
    translate_error_outbound,
    translate_inbound,
    translate_outbound,
)
from nfqlb.packet.verdicts import (
    ACCEPT,
    CHANGED,
    DROP,
    FORWARD,
    LOOKAHEAD,
    OUTPUT,
    PREROUTING,
    absurd,
    least_lengths,
)

__all__ = ["ACCEPT", "CHANGED", "DROP", "FORWARD", "LOOKAHEAD", "OUTPUT", "PREROUTING", "PacketPath"]

#: Headers and quotations lie in these many bytes; the payload of a super-packet need not be copied.
_HEADERS_SIZE = 1500

_KERNEL_SUMS = CHECKSUM_NOT_READY | SUPER_PACKET
_NO_PORT = bytes(2)

# version and header length, total length, fragment bits, protocol, header sum, the key, sequence and
# acknowledgement number, TCP offset and flags, TCP sum: an IPv4 header without options, then TCP
_read = Struct("!BxHxxHxBH12s8sHxxH").unpack_from
_put_sum_address = Struct("!H4s").pack_into
_put_sum = Struct("!H").pack_into
_put_address = Struct("4s").pack_into
_put_port = Struct("2s").pack_into


_LEAST_LENGTH = least_lengths(20)
_OPENS_CHANGES_ENDS = SYN | FIN | RST | ACK


class PacketPath:
    """Judges packets for one director. `now` is the time all judgements are made at (seconds)."""

    def __init__(self, director: Director, now: float) -> None:
        self.director = director
        self.now = now
        self._inbound = director.table.inbound.get
        self._outbound = director.table.outbound.get
        self.replies = Replies(director)
        self._datagrams = Datagrams(director, self.replies)
        self._segments6 = Segments6(director, self.replies)

    def judge(  # noqa: C901  the path of every packet reads in one place, and calls would cost it
        self, buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int
    ) -> int:
        """The verdict on the packet in `buffer[start:end]`, which is changed in place.

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
            now = self.now
            if hook == PREROUTING:
                if flags & SYN:
                    stamp = read_stamp(buffer, stamp_at) if stamp_at else NO_STAMP
                    connection = self._syn(key, flags, numbers, stamp)
                    if isinstance(connection, Drop):
                        self.replies.tell(connection, key, flags, buffer, start, end, start + 20, info, now)
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
                        connection.seen = now
                    elif not flags & SYN:
                        size = total - _LEAST_LENGTH[flags]
                        client_sent(self.director, connection, flags, numbers, size, buffer, stamp_at, now)
                    address, port, network, transport = connection.link.inbound
                    _put_sum(buffer, start + 10, (ip_sum - network) % MODULUS)
                    _put_address(buffer, start + 16, address)
                    if port:
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
                        connection.seen = now
                    else:
                        size = total - _LEAST_LENGTH[flags]
                        server_sent(self.director, connection, flags, numbers, size, buffer, stamp_at, now)
                    address, port, network, transport = connection.link.outbound
                    _put_sum_address(buffer, start + 10, (ip_sum - network) % MODULUS, address)
                    if port:
                        _put_port(buffer, start + 20, port)
                    if not info & _KERNEL_SUMS:
                        _put_sum(buffer, start + 36, (tcp_sum - transport) % MODULUS)
                    elif not info & SUPER_PACKET:
                        finish_transport_sum(buffer, end, start + 20, network)
                    return CHANGED
        elif version >> 4 == 6:
            return self._judge6(buffer, start, end, hook, info, stamp_at)
        elif protocol == UDP:
            verdict = self._datagrams.judge4(buffer, start, end, hook, info, self.now)
            if verdict is not None:
                return verdict
        return self._judge_unusual(buffer, start, end, hook, info, stamp_at)

    def _syn(self, key: bytes, flags: int, numbers: bytes, stamp: Stamp) -> Connection | Drop | None:
        """A well-formed segment with SYN from the client line; None if it is one for a closer look."""
        if flags & ACK or key[:4] == key[4:8] or _NO_PORT in (key[8:10], key[10:12]):
            return None
        outcome = self.director.client_syn(Segment(key, flags & 0xFFF, numbers, 0, stamp), self.now)
        assert not isinstance(outcome, Pass)  # a SYN to us is ours
        return outcome

    def _judge6(self, buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int) -> int:
        """An IPv6 packet."""
        verdict = None
        if buffer[start + 6] == TCP:
            verdict = self._segments6.judge(buffer, start, end, hook, info, stamp_at, self.now)
        elif buffer[start + 6] == UDP:
            verdict = self._datagrams.judge6(buffer, start, end, hook, info, self.now)
        return self._judge_unusual(buffer, start, end, hook, info, stamp_at) if verdict is None else verdict

    def _judge_unusual(
        self, buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int
    ) -> int:
        """Everything that took no short path to its end."""
        packet = bytes(memoryview(buffer)[start : min(end, start + _HEADERS_SIZE)])
        decoded = (decode6 if buffer[start] >> 4 == 6 else decode)(packet, end - start)
        if isinstance(decoded, TcpPacket | UdpPacket):
            outcome = self._decide(decoded, buffer, start, end, hook, info, stamp_at)
            if not isinstance(outcome, Connection):
                if hook == PREROUTING:
                    key, flags, transport = decoded.key, decoded.flags, start + decoded.transport_at
                    last = transport + decoded.length if isinstance(decoded, UdpPacket) else end
                    self.replies.tell(outcome, key, flags, buffer, start, last, transport, info, self.now)
                return _verdict(outcome)
            if hook == PREROUTING:
                translate_inbound(buffer, start, end, decoded, outcome.link.inbound, info)
            else:
                translate_outbound(buffer, start, end, decoded, outcome.link.outbound, info)
            return CHANGED
        if isinstance(decoded, IcmpError):
            return self._judge_error(decoded, buffer, start, end, hook)
        return _verdict(self.director.refuse(decoded))

    def _decide(
        self, packet: TcpPacket | UdpPacket, buffer: bytearray, start: int, end: int, hook: int, info: int,
        stamp_at: int,
    ) -> Outcome:  # fmt: skip
        """What the director says: a SYN or a datagram may open something, all else must have it (R117)."""
        if isinstance(packet, UdpPacket):
            if hook != PREROUTING:
                return self.director.server_datagram(packet.key, self.now)
            if info & SUPER_PACKET:
                # conntrack would look at its sum, and in doing so forget what the kernel needs to cut it up
                return self.director.refuse(Drop.SUPER_DATAGRAM, inbound=packet.key)
            return self.director.client_datagram(packet.key, self.now)
        transport = start + packet.transport_at
        size = end - transport - (buffer[transport + 12] >> 4) * 4
        stamp = read_stamp(buffer, stamp_at) if stamp_at else NO_STAMP
        segment = packet.segment._replace(size=size, stamp=stamp)
        flags = segment.flags
        if absurd(flags):
            if hook == PREROUTING:
                return self.director.refuse(Drop.MALFORMED, inbound=packet.key)
            return self.director.refuse(Drop.MALFORMED, outbound=packet.key)
        if hook != PREROUTING:
            return self.director.server_segment(segment, self.now)
        if flags & (SYN | ACK) == SYN:
            return self.director.client_syn(segment, self.now)
        return self.director.client_segment(segment, self.now)

    def _judge_error(self, error: IcmpError, buffer: bytearray, start: int, end: int, hook: int) -> int:
        """An ICMP error follows the connection of the packet it quotes; others' pass (A20)."""
        if hook == PREROUTING:
            connection = self.director.error_from_outside(error.quoted)
            if connection is None:
                return _verdict(self.director.refuse(Pass.NOT_OURS))
            translate_error_inbound(buffer, start, end, error, connection.link.inbound)
            return CHANGED
        outcome = self.director.error_from_inside(error.quoted, unreachable=error.unreachable)
        if outcome is None:
            return _verdict(self.director.refuse(Pass.NOT_OURS))
        if not isinstance(outcome, Connection):
            return _verdict(outcome)
        translate_error_outbound(buffer, start, end, error, outcome.link.outbound, own=hook == OUTPUT)
        return CHANGED


def _verdict(outcome: Outcome) -> int:
    return DROP if isinstance(outcome, Drop) else ACCEPT
