"""The short path of TCP over IPv6: a segment of a known connection, without extension headers.

Owns `Segments6`. It does what `path` does for IPv4, with one sum less: an IPv6 header has none.
"""

from struct import Struct

from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.rewriting import MODULUS
from nfqlb.core.segment import ACK, FIN, NO_STAMP, RST, SYN, Segment, Stamp
from nfqlb.core.verdict import Drop, Pass
from nfqlb.packet.replies import Replies
from nfqlb.packet.stamps import client_sent, read_stamp, server_sent
from nfqlb.packet.translate import CHECKSUM_NOT_READY, SUPER_PACKET, finish_transport_sum
from nfqlb.packet.verdicts import CHANGED, DROP, FORWARD, PREROUTING, least_lengths

_KERNEL_SUMS = CHECKSUM_NOT_READY | SUPER_PACKET
_NO_PORT = bytes(2)

# payload length, the key, sequence and acknowledgement number, TCP offset and flags, TCP sum
_read = Struct("!4xH2x36s8sHxxH").unpack_from
_put_sum = Struct("!H").pack_into
_put_address = Struct("16s").pack_into
_put_port = Struct("2s").pack_into

_LEAST_LENGTH = least_lengths(0)
_OPENS_CHANGES_ENDS = SYN | FIN | RST | ACK


class Segments6:
    """Judges TCP segments over IPv6 for one director."""

    def __init__(self, director: Director, replies: Replies) -> None:
        self._director = director
        self._replies = replies
        self._inbound = director.table.inbound.get
        self._outbound = director.table.outbound.get

    def judge(  # noqa: C901  as in `PacketPath.judge`: in one place, and calls would cost it
        self, buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int,
        now: float,
    ) -> int | None:  # fmt: skip
        """The verdict on an IPv6 packet whose first header is TCP's; None where it needs a closer look.

        Arguments are as in `PacketPath.judge`; `now` is in seconds.
        """
        length, key, numbers, flags, tcp_sum = _read(buffer, start)
        if not length == end - start - 40 >= _LEAST_LENGTH[flags]:
            return None
        if hook == PREROUTING:
            if flags & SYN:
                stamp = read_stamp(buffer, stamp_at) if stamp_at else NO_STAMP
                connection = self._syn(key, flags, numbers, stamp, now)
                if isinstance(connection, Drop):
                    self._replies.tell(connection, key, flags, buffer, start, end, start + 40, info, now)
                    return DROP
            else:
                connection = self._inbound(key)
            if connection is None:
                return None
            if flags & _OPENS_CHANGES_ENDS == ACK and connection.quick and connection.interval is None:
                connection.client_numbers = numbers
                connection.seen = now
            elif not flags & SYN:
                size = length - _LEAST_LENGTH[flags]
                client_sent(self._director, connection, flags, numbers, size, buffer, stamp_at, now)
            address, port, network, transport = connection.link.inbound
            _put_address(buffer, start + 24, address)
            if port:
                _put_port(buffer, start + 42, port)
            if not info & CHECKSUM_NOT_READY:
                _put_sum(buffer, start + 56, (tcp_sum - transport) % MODULUS)
            else:  # a super-packet's too: conntrack comes after this hook, and looks at it
                finish_transport_sum(buffer, end, start + 40, network)
            return CHANGED
        connection = self._outbound(key) if hook == FORWARD else None
        if connection is None:
            return None
        if flags & _OPENS_CHANGES_ENDS == ACK and connection.quick:
            connection.server_numbers = numbers
            connection.seen = now
        else:
            size = length - _LEAST_LENGTH[flags]
            server_sent(self._director, connection, flags, numbers, size, buffer, stamp_at, now)
        address, port, network, transport = connection.link.outbound
        _put_address(buffer, start + 8, address)
        if port:
            _put_port(buffer, start + 40, port)
        if not info & _KERNEL_SUMS:
            _put_sum(buffer, start + 56, (tcp_sum - transport) % MODULUS)
        elif not info & SUPER_PACKET:
            finish_transport_sum(buffer, end, start + 40, network)
        return CHANGED

    def _syn(
        self, key: bytes, flags: int, numbers: bytes, stamp: Stamp, now: float
    ) -> Connection | Drop | None:
        """A well-formed segment with SYN from the client line; None if it is one for a closer look."""
        if flags & ACK or key[:16] == key[16:32] or _NO_PORT in (key[32:34], key[34:36]):
            return None
        outcome = self._director.client_syn(Segment(key, flags & 0xFFF, numbers, 0, stamp), now)
        assert not isinstance(outcome, Pass)  # a SYN to us is ours
        return outcome
