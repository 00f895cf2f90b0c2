"""Bytes of an IPv6 packet to the facts of it.

Owns the judgement of what a well-formed IPv6 packet is, and the walk along its extension headers (RFC 8200
section 4). That is done by hand: dpkt loses headers that come twice, and fails on some combinations. It
reads the TCP or UDP header at the walk's end.
"""

from typing import NamedTuple

from dpkt.tcp import TCP
from dpkt.udp import UDP

from nfqlb.core import keys
from nfqlb.core.verdict import Drop, Pass
from nfqlb.packet.decode import ICMP_HEADER, QUOTED_TRANSPORT, decode_transport
from nfqlb.packet.facts import IPV6, Decoded, IcmpError

_HEADER = 40
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION_OPTIONS = 0, 43, 44, 60
_SKIPPED = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION_OPTIONS))
#: More extension headers than any sender has reason for; each kind once, Destination Options twice.
_MOST_EXTENSIONS = 8
_FRAGMENT_OFFSET, _MORE_FRAGMENTS = 0xFFF8, 0x0001
_ICMPV6 = 58
_UNREACHABLE = 1
#: Unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
_ERRORS = frozenset((_UNREACHABLE, 2, 3, 4))


class Payload(NamedTuple):
    """What the extension headers lead to: its protocol and where it begins; of which fragment."""

    protocol: int
    at: int
    fragment: int  # the fragment headers' offsets and flags together, 0 if this is no fragment


def decode6(packet: bytes, size: int) -> Decoded:
    """The facts of an IPv6 packet, or why there are none (A20, A37).

    `packet` holds the first bytes of it, headers and any ICMP quotation at least, or it is malformed; `size`
    is how many bytes the kernel handed over in all. A jumbogram (RFC 2675) is malformed: no queue carries it.
    """
    if len(packet) < _HEADER or packet[0] >> 4 != 6:
        return Drop.MALFORMED
    total = _HEADER + int.from_bytes(packet[4:6], "big")
    if total != size:
        return Drop.CUT if total > size else Drop.MALFORMED
    payload = walk(packet, 0)
    if payload is None:
        return Drop.MALFORMED
    if payload.fragment:
        return Drop.FRAGMENT
    if payload.protocol == _ICMPV6:
        return _decode_icmp(packet, payload.at, total)
    kind = {keys.TCP: TCP, keys.UDP: UDP}.get(payload.protocol)
    if kind is None:
        return Pass.NOT_OURS
    try:
        header = kind(packet[payload.at :])
    except Exception:  # noqa: BLE001  dpkt also raises AttributeError, IndexError and others
        return Drop.MALFORMED
    return decode_transport(packet, header, packet[8:40], payload.at, total, IPV6)


def walk(packet: bytes, start: int) -> Payload | None:
    """Along the extension headers of the IPv6 header at `start`; None if they are malformed or cut short."""
    kind, at, fragment = packet[start + 6], start + _HEADER, 0
    for _ in range(_MOST_EXTENSIONS + 1):
        if kind not in _SKIPPED or fragment & _FRAGMENT_OFFSET:  # a later fragment's bytes are no headers
            return Payload(kind, at, fragment)
        header = packet[at : at + 8]
        if len(header) < 8 or (kind == _HOP_BY_HOP and at != start + _HEADER):
            return None
        if kind == _ROUTING and header[3]:
            return None  # it is on its way to somewhere else, and the sums say so already
        if kind == _FRAGMENT:
            fragment |= int.from_bytes(header[2:4], "big") & (_FRAGMENT_OFFSET | _MORE_FRAGMENTS)
        at += 8 if kind == _FRAGMENT else 8 + 8 * header[1]
        kind = header[0]
    return None


def _decode_icmp(packet: bytes, icmp_at: int, total: int) -> Decoded:
    quoted_at = icmp_at + ICMP_HEADER
    if min(total, len(packet)) < quoted_at:
        return Drop.MALFORMED
    if packet[icmp_at] not in _ERRORS:
        return Pass.NOT_OURS
    if min(total, len(packet)) < quoted_at + _HEADER or packet[quoted_at] >> 4 != 6:
        return Drop.MALFORMED
    payload = walk(packet, quoted_at)
    if payload is None:
        return Drop.MALFORMED
    if payload.protocol not in (keys.TCP, keys.UDP):
        return Pass.NOT_OURS
    if payload.fragment & _FRAGMENT_OFFSET:
        return Drop.FRAGMENT  # it has no ports; the first fragment, no shorter, brings an error as well
    end = payload.at + QUOTED_TRANSPORT
    if end > min(total, len(packet)):
        return Drop.MALFORMED
    addresses, ports = packet[quoted_at + 8 : quoted_at + 40], packet[payload.at : payload.at + 4]
    return IcmpError(
        quoted=addresses + ports + keys.key_end(payload.protocol),
        unreachable=packet[icmp_at] == _UNREACHABLE,
        icmp_at=icmp_at,
        quoted_at=quoted_at,
        quoted_transport_at=payload.at,
        udp=payload.protocol == keys.UDP,
        layout=IPV6,
    )
