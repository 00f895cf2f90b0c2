"""Bytes of an IPv4 packet to the facts of it, by dpkt.

Owns the judgement of what a well-formed packet is. dpkt reads the headers; what it lets
through in silence (options or a TCP header past the end, a length of zero) is refused here,
and what could make it recurse (IP in IP, also inside an ICMP quotation) never reaches it.
"""

from dataclasses import dataclass

from dpkt.ip import IP
from dpkt.tcp import TCP

from nfqlb.core.segment import Segment
from nfqlb.core.verdict import Drop, Pass

_ICMP = 1
_TCP = 6
_UNREACHABLE = 3
_FRAGMENTATION_NEEDED = 4
#: Unreachable, time exceeded, parameter problem (RFC 792): they quote the packet they are about.
_ERRORS = frozenset((_UNREACHABLE, 11, 12))
_ICMP_HEADER = 8
_QUOTED_TRANSPORT = 8  # RFC 792: at least these many bytes of it are quoted
_MORE_FRAGMENTS_OR_OFFSET = 0x3FFF


@dataclass(frozen=True, slots=True)
class TcpPacket:
    """A TCP segment, and where its TCP header begins (bytes from the packet's start)."""

    segment: Segment
    transport_at: int


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An ICMP error about a TCP segment.

    `quoted` is the key of the packet it quotes, as it stands there. `icmp_at`, `quoted_at`
    and `quoted_transport_at` are where the ICMP header, the quoted IP header and the quoted
    TCP header begin (bytes from the packet's start). `unreachable` is false for
    "fragmentation needed", which path-MTU discovery lives on.
    """

    quoted: bytes
    unreachable: bool
    icmp_at: int
    quoted_at: int
    quoted_transport_at: int


Decoded = TcpPacket | IcmpError | Drop | Pass


def decode(packet: bytes, size: int) -> Decoded:
    """The facts of an IPv4 packet, or why there are none (A20, A37).

    `packet` holds the first bytes of it, headers and any ICMP quotation at least; `size` is
    how many bytes the kernel handed over in all.
    """
    if size < 20 or packet[0] >> 4 != 4:
        return Drop.MALFORMED
    total = int.from_bytes(packet[2:4], "big")
    header = (packet[0] & 0x0F) * 4
    if total > size:
        return Drop.CUT
    if total < size or header < 20 or header > total:
        return Drop.MALFORMED
    if int.from_bytes(packet[6:8], "big") & _MORE_FRAGMENTS_OR_OFFSET:
        return Drop.FRAGMENT
    if packet[9] == _TCP:
        return _decode_tcp(packet, header, total)
    if packet[9] == _ICMP:
        return _decode_icmp(packet, header, total)
    return Pass.NOT_OURS


def _parse(packet: bytes) -> IP | None:
    try:
        return IP(packet)
    except Exception:  # noqa: BLE001  dpkt also raises AttributeError, IndexError and others
        return None


def _decode_tcp(packet: bytes, header: int, total: int) -> Decoded:
    ip = _parse(packet)
    if ip is None or not isinstance(ip.data, TCP):
        return Drop.MALFORMED
    tcp = ip.data
    if tcp.off * 4 > total - header:
        return Drop.MALFORMED
    if ip.src == ip.dst or not tcp.sport or not tcp.dport:
        return Drop.MALFORMED  # "land" packets, and a port that nobody can have (RFC 6335 section 6)
    at = header
    key = ip.src + ip.dst + packet[at : at + 4]
    return TcpPacket(Segment(key, tcp.flags, packet[at + 4 : at + 12]), at)


def _decode_icmp(packet: bytes, header: int, total: int) -> Decoded:
    if total < header + _ICMP_HEADER:
        return Drop.MALFORMED
    if packet[header] not in _ERRORS:
        return Pass.NOT_OURS
    quoted_at = header + _ICMP_HEADER
    if total < quoted_at + 20 + _QUOTED_TRANSPORT:
        return Drop.MALFORMED
    if packet[quoted_at + 9] != _TCP:
        return Pass.NOT_OURS
    quoted = _parse(packet[quoted_at:])
    if quoted is None or quoted.v != 4:
        return Drop.MALFORMED
    transport_at = quoted_at + quoted.hl * 4
    if total < transport_at + _QUOTED_TRANSPORT:
        return Drop.MALFORMED
    if quoted.offset:
        return Pass.NOT_OURS  # a later fragment has no ports; the kernel never sends ours in pieces
    return IcmpError(
        quoted=quoted.src + quoted.dst + packet[transport_at : transport_at + 4],
        unreachable=packet[header] == _UNREACHABLE and packet[header + 1] != _FRAGMENTATION_NEEDED,
        icmp_at=header,
        quoted_at=quoted_at,
        quoted_transport_at=transport_at,
    )
