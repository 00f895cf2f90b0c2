"""Bytes of an IPv4 packet to the facts of it, by dpkt.

Owns the judgement of what a well-formed IPv4 packet is (`decode6` has IPv6's), and what both have to say
of TCP and UDP headers. dpkt reads the headers; what it lets through in silence (options or a TCP header
past the end, a length of zero) is refused here, and what could make it recurse (IP in IP, also inside an
ICMP quotation) never reaches it.
"""

from dpkt.ip import IP
from dpkt.tcp import TCP
from dpkt.udp import UDP

from nfqlb.core import keys
from nfqlb.core.segment import Segment
from nfqlb.core.verdict import Drop, Pass
from nfqlb.packet.facts import IPV4, Decoded, IcmpError, Layout, TcpPacket, UdpPacket

_ICMP = 1
_UNREACHABLE = 3
_FRAGMENTATION_NEEDED = 4
#: Unreachable, time exceeded, parameter problem (RFC 792): they quote the packet they are about.
_ERRORS = frozenset((_UNREACHABLE, 11, 12))
ICMP_HEADER = 8
QUOTED_TRANSPORT = 8  # RFC 792: at least these many bytes of it are quoted
UDP_HEADER = 8
_MORE_FRAGMENTS_OR_OFFSET = 0x3FFF


def decode(packet: bytes, size: int) -> Decoded:
    """The facts of an IPv4 packet, or why there are none (A20, A37).

    `packet` holds the first bytes of it, headers and any ICMP quotation at least, or it is malformed; `size`
    is how many bytes the kernel handed over in all.
    """
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return Drop.MALFORMED
    total = int.from_bytes(packet[2:4], "big")
    header = (packet[0] & 0x0F) * 4
    if total > size:
        return Drop.CUT
    if total < size or header < 20 or header > total:
        return Drop.MALFORMED
    if int.from_bytes(packet[6:8], "big") & _MORE_FRAGMENTS_OR_OFFSET:
        return Drop.FRAGMENT
    if packet[9] == _ICMP:
        return _decode_icmp(packet, header, min(total, len(packet)))
    if packet[9] not in (keys.TCP, keys.UDP):
        return Pass.NOT_OURS
    ip = _parse(packet)
    if ip is None:
        return Drop.MALFORMED
    return decode_transport(packet, ip.data, ip.src + ip.dst, header, total, IPV4)


def _parse(packet: bytes) -> IP | None:
    try:
        return IP(packet)
    except Exception:  # noqa: BLE001  dpkt also raises AttributeError, IndexError and others
        return None


def decode_transport(
    packet: bytes, header: object, addresses: bytes, at: int, total: int, layout: Layout
) -> Decoded:
    """The facts of a packet of `total` bytes whose TCP or UDP header, as dpkt reads it, begins at `at`."""
    if not isinstance(header, TCP | UDP):
        return Drop.MALFORMED
    if addresses[: layout.size] == addresses[layout.size :] or not header.dport:
        return Drop.MALFORMED  # "land" packets, and a port that nobody can have (RFC 6335 section 6)
    key = addresses + packet[at : at + 4]
    if isinstance(header, TCP):
        if header.off * 4 > total - at or not header.sport:
            return Drop.MALFORMED
        return TcpPacket(Segment(key, header.flags, packet[at + 4 : at + 12]), at, layout)
    if not UDP_HEADER <= header.ulen <= total - at:
        return Drop.MALFORMED
    if not header.sum and layout.header_sum is None:
        return Drop.MALFORMED  # no sum at all would protect the addresses (RFC 8200 section 8.1)
    return UdpPacket(key + keys.UDP_END, at, header.ulen, layout)


def _decode_icmp(packet: bytes, header: int, total: int) -> Decoded:
    if total < header + ICMP_HEADER:
        return Drop.MALFORMED
    if packet[header] not in _ERRORS:
        return Pass.NOT_OURS
    quoted_at = header + ICMP_HEADER
    if total < quoted_at + 20 + QUOTED_TRANSPORT:
        return Drop.MALFORMED
    protocol = packet[quoted_at + 9]
    if protocol not in (keys.TCP, keys.UDP):
        return Pass.NOT_OURS
    quoted = _parse(packet[quoted_at:])
    if quoted is None or quoted.v != 4:
        return Drop.MALFORMED
    transport_at = quoted_at + quoted.hl * 4
    if total < transport_at + QUOTED_TRANSPORT:
        return Drop.MALFORMED
    if quoted.offset:
        return Pass.NOT_OURS  # a later fragment has no ports, and nobody complains of one (RFC 1122 3.2.2)
    return IcmpError(
        quoted=quoted.src + quoted.dst + packet[transport_at : transport_at + 4] + keys.key_end(protocol),
        unreachable=packet[header] == _UNREACHABLE and packet[header + 1] != _FRAGMENTATION_NEEDED,
        icmp_at=header,
        quoted_at=quoted_at,
        quoted_transport_at=transport_at,
        udp=protocol == keys.UDP,
    )
