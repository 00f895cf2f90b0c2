"""The short path of UDP: a datagram without IP options or extension headers, over IPv4 or IPv6.

Owns `Datagrams`. A datagram's key finds its flow, or the director opens one; the change is the link's, as
with TCP.
"""

from struct import Struct

from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.keys import UDP_END, is_to_itself
from nfqlb.core.rewriting import MODULUS
from nfqlb.core.states import State
from nfqlb.packet.replies import Replies
from nfqlb.packet.translate import CHECKSUM_NOT_READY, NO_ZERO, SUPER_PACKET, adjust_udp_sum
from nfqlb.packet.verdicts import CHANGED, DROP, FORWARD, PREROUTING

_KERNEL_SUMS = CHECKSUM_NOT_READY | SUPER_PACKET
_NO_PORT = bytes(2)
_HEADER = 8

# IPv4: version and header length, total length, fragment bits, header sum, the key, UDP length and sum
_read4 = Struct("!BxHxxHxxH12sHH").unpack_from
# IPv6: payload length, the key, UDP length and sum
_read6 = Struct("!4xH2x36sHH").unpack_from
_put_sum = Struct("!H").pack_into
_put4 = Struct("4s").pack_into
_put6 = Struct("16s").pack_into
_put_port = Struct("2s").pack_into


class Datagrams:
    """Judges UDP datagrams for one director.

    Its methods return the verdict, None where the packet needs a closer look. Arguments are as in
    `PacketPath.judge`; `now` is in seconds.
    """

    def __init__(self, director: Director, replies: Replies) -> None:
        self._director = director
        self._replies = replies
        self._inbound = director.table.inbound.get
        self._outbound = director.table.outbound.get

    def judge4(self, buffer: bytearray, start: int, end: int, hook: int, info: int, now: float) -> int | None:
        """An IPv4 packet of protocol UDP."""
        version, total, fragment, ip_sum, key, length, udp_sum = _read4(buffer, start)
        fits = _HEADER <= length <= total - 20 and total == end - start
        if version != 0x45 or fragment & 0x3FFF or not fits:
            return None
        flow = self._flow(key + UDP_END, buffer, start, start + 20, start + 20 + length, hook, info, now)
        if not isinstance(flow, Connection):
            return flow
        if hook == PREROUTING:
            address, port, network, transport = change = flow.link.inbound
            _put4(buffer, start + 16, address)
            if port:
                _put_port(buffer, start + 22, port)
        else:
            address, port, network, transport = change = flow.link.outbound
            _put4(buffer, start + 12, address)
            if port:
                _put_port(buffer, start + 20, port)
        _put_sum(buffer, start + 10, (ip_sum - network) % MODULUS)
        if info & _KERNEL_SUMS:
            adjust_udp_sum(buffer, start + 20, start + 20 + length, change, info)
        elif udp_sum:
            _put_sum(buffer, start + 26, (udp_sum - transport) % MODULUS or NO_ZERO)
        return CHANGED

    def judge6(self, buffer: bytearray, start: int, end: int, hook: int, info: int, now: float) -> int | None:
        """An IPv6 packet whose first header is UDP's."""
        payload, key, length, udp_sum = _read6(buffer, start)
        if payload != end - start - 40 or not _HEADER <= length <= payload or not udp_sum:
            return None
        flow = self._flow(key + UDP_END, buffer, start, start + 40, start + 40 + length, hook, info, now)
        if not isinstance(flow, Connection):
            return flow
        if hook == PREROUTING:
            address, port, _, transport = change = flow.link.inbound
            _put6(buffer, start + 24, address)
            if port:
                _put_port(buffer, start + 42, port)
        else:
            address, port, _, transport = change = flow.link.outbound
            _put6(buffer, start + 8, address)
            if port:
                _put_port(buffer, start + 40, port)
        if info & _KERNEL_SUMS:
            adjust_udp_sum(buffer, start + 40, start + 40 + length, change, info)
        else:
            _put_sum(buffer, start + 46, (udp_sum - transport) % MODULUS or NO_ZERO)
        return CHANGED

    def _flow(
        self, key: bytes, buffer: bytearray, start: int, transport: int, end: int, hook: int, info: int,
        now: float,
    ) -> Connection | int | None:  # fmt: skip
        """The flow of a datagram, made if need be; a verdict or None where there is none.

        `transport` is where its UDP header begins, `end` where the datagram ends.
        """
        if hook == PREROUTING:
            if info & SUPER_PACKET:
                return None
            flow = self._inbound(key)
            if flow is not None and flow.state is State.UDP_FLOW:
                flow.seen = now
                return flow
            if is_to_itself(key) or key[-3:-1] == _NO_PORT:
                return None
            outcome = self._director.client_datagram(key, now)
            if isinstance(outcome, Connection):
                return outcome
            self._replies.tell(outcome, key, None, buffer, start, end, transport, info, now)
            return DROP
        flow = self._outbound(key) if hook == FORWARD else None
        if flow is None:
            return None
        if flow.state is State.UDP_FLOW:
            flow.seen = now
        else:
            self._director.server_datagram(key, now)
        return flow
