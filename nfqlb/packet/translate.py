"""Changes addresses, ports and checksums of a packet in place (RFC 1631, RFC 1624).

Owns every write into a packet but those of the short paths. Offsets are bytes from the buffer's start.
Nothing else in a packet is touched: options, sequence numbers, TTL and payload stay as they came.
"""

from struct import Struct

from nfqlb.core.rewriting import MODULUS, Rewriting, words
from nfqlb.packet.facts import IcmpError, Layout, TcpPacket, UdpPacket

#: What the kernel says of a packet in NFQA_SKB_INFO (linux/netfilter/nfnetlink_queue.h).
CHECKSUM_NOT_READY = 1
SUPER_PACKET = 2

_get16 = Struct("!H").unpack_from
_put16 = Struct("!H").pack_into

# TCP header (RFC 9293), UDP header (RFC 768), ICMP header (RFC 792, RFC 4443): where the sums are
TCP_SUM_AT = 16
UDP_SUM_AT = 6
_ICMP_SUM_AT = 2
#: What a UDP sum of zero is written as: a zero in its field means that there is none (RFC 768).
NO_ZERO = 0xFFFF


def translate_inbound(
    buffer: bytearray, start: int, end: int, packet: TcpPacket | UdpPacket, change: Rewriting, info: int
) -> None:
    """Give a client's packet its server's address and port (fig 10, R165-R167).

    A super-packet's checksum too: the kernel will sum its segments itself, but conntrack looks at
    the whole before that.
    """
    transport = start + packet.transport_at
    _put(buffer, start + packet.layout.destination, change.address)
    _put(buffer, transport + 2, change.port)
    _adjust_header(buffer, start, packet.layout, change)
    if isinstance(packet, UdpPacket):
        adjust_udp_sum(buffer, transport, transport + packet.length, change, info)
    else:
        _fix_tcp_sum(buffer, end, transport, change, info & CHECKSUM_NOT_READY)


def translate_outbound(
    buffer: bytearray, start: int, end: int, packet: TcpPacket | UdpPacket, change: Rewriting, info: int
) -> None:
    """Give a server's packet the virtual server's address and port (fig 11, R174-R177)."""
    transport = start + packet.transport_at
    _put(buffer, start + packet.layout.source, change.address)
    _put(buffer, transport, change.port)
    _adjust_header(buffer, start, packet.layout, change)
    if isinstance(packet, UdpPacket):
        adjust_udp_sum(buffer, transport, transport + packet.length, change, info)
    else:
        _fix_tcp_sum(buffer, end, transport, change, info)


def _put(buffer: bytearray, at: int, value: bytes) -> None:
    """Write over as many bytes; none where there is nothing to change."""
    buffer[at : at + len(value)] = value


def _adjust_header(buffer: bytearray, start: int, layout: Layout, change: Rewriting) -> None:
    if layout.header_sum is not None:
        _adjust(buffer, start + layout.header_sum, change.network)


def _adjust(buffer: bytearray, at: int, difference: int) -> None:
    _put16(buffer, at, (_get16(buffer, at)[0] - difference) % MODULUS)


def _fix_tcp_sum(buffer: bytearray, end: int, transport: int, change: Rewriting, info: int) -> None:
    if info & SUPER_PACKET:
        return  # on its way out: the kernel cuts it into segments and sums each of them itself
    if info & CHECKSUM_NOT_READY:
        finish_transport_sum(buffer, end, transport, change.network)
    else:
        _adjust(buffer, transport + TCP_SUM_AT, change.transport)


def finish_transport_sum(buffer: bytearray, end: int, transport: int, network: int) -> None:
    """Complete a TCP checksum whose field holds the sum of the old pseudo header (CHECKSUM_PARTIAL).

    `network` is what the change of address adds to that; the new port is in its place already.
    """
    _put16(buffer, transport + TCP_SUM_AT, (-_sum(buffer, transport, end) - network) % MODULUS)


def adjust_udp_sum(buffer: bytearray, transport: int, end: int, change: Rewriting, info: int) -> None:
    """The same for a UDP checksum, whatever the kernel says of it; none stays none (A22).

    The new port is in its place already; the datagram ends at `end`. A super-packet is on its way out: the
    kernel cuts it into datagrams and sums each of them from the pseudo header's sum in the field. Unlike
    TCP's, that must be right.
    """
    at = transport + UDP_SUM_AT
    (old,) = _get16(buffer, at)
    if info & CHECKSUM_NOT_READY and info & SUPER_PACKET:
        new = old + change.network
    elif info & CHECKSUM_NOT_READY:
        new = -_sum(buffer, transport, end) - change.network
    elif old:
        new = old - change.transport
    else:
        return
    _put16(buffer, at, new % MODULUS or NO_ZERO)


def _sum(buffer: bytearray, start: int, end: int) -> int:
    """The one's-complement sum of a stretch, padded with a zero byte if its length is odd (RFC 1071)."""
    total = int.from_bytes(memoryview(buffer)[start:end], "big")
    return (total << 8 if (end - start) & 1 else total) % MODULUS


def translate_error_inbound(
    buffer: bytearray, start: int, end: int, error: IcmpError, change: Rewriting
) -> None:
    """Turn a client-side ICMP error about a virtual server's packet into one about the real server's."""
    quoted, transport = start + error.quoted_at, start + error.quoted_transport_at
    own = _readdress(buffer, start, error.layout.destination, error.layout, change.address)
    _put(buffer, quoted + error.layout.source, change.address)
    _put(buffer, transport, change.port)
    _fix_quoted(buffer, start, end, error, change, own)


def translate_error_outbound(
    buffer: bytearray, start: int, end: int, error: IcmpError, change: Rewriting, *, own: bool
) -> None:
    """Turn an ICMP error about a client's translated packet back into one about what the client sent.

    It then comes from the virtual address, whoever noticed, as a router's address inside is
    nobody's business; one of the gateway's `own` keeps the gateway's address.
    """
    quoted, transport = start + error.quoted_at, start + error.quoted_transport_at
    difference = 0
    if not own:
        difference = _readdress(buffer, start, error.layout.source, error.layout, change.address)
    _put(buffer, quoted + error.layout.destination, change.address)
    _put(buffer, transport + 2, change.port)
    _fix_quoted(buffer, start, end, error, change, difference)


def _readdress(buffer: bytearray, start: int, field: int, layout: Layout, address: bytes) -> int:
    """Change an error's own address, whatever it was; returns what that adds to a sum that covers it."""
    at = start + field
    difference = words(address) - words(buffer[at : at + layout.size])
    _put(buffer, at, address)
    if layout.header_sum is not None:
        _adjust(buffer, start + layout.header_sum, difference)
    return difference


def _fix_quoted(
    buffer: bytearray, start: int, end: int, error: IcmpError, change: Rewriting, own: int
) -> None:
    """Adjust the quoted sums, and the error's own, which covers them: a damaged error stays damaged.

    `own` is what the change of the error's own address adds: ICMPv6's sum covers that, too.
    """
    quoted, transport = start + error.quoted_at, start + error.quoted_transport_at
    difference = change.transport  # of the quoted address and port
    if error.layout.header_sum is None:
        difference += own
    else:
        difference -= change.network  # the quoted header's own sum makes up for its address
        _adjust(buffer, quoted + error.layout.header_sum, change.network)
    at = transport + (UDP_SUM_AT if error.udp else TCP_SUM_AT)
    if at + 2 <= end:
        difference += _adjust_quoted_sum(buffer, at, change.transport, udp=error.udp)
    _adjust(buffer, start + error.icmp_at + _ICMP_SUM_AT, difference)


def _adjust_quoted_sum(buffer: bytearray, at: int, difference: int, *, udp: bool) -> int:
    """Adjust the transport sum in a quotation; returns what that adds to a sum that covers it."""
    (old,) = _get16(buffer, at)
    if udp and not old:
        return 0
    new = (old - difference) % MODULUS
    _put16(buffer, at, new or NO_ZERO if udp else new)
    return -difference
