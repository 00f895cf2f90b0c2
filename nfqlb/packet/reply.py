"""Packets of our own, in answer to clients whose packets are refused: bytes in, bytes out.

Owns their making: TCP resets (RFC 9293 section 3.10.7.1) and ICMP "port unreachable" (RFC 1122
section 3.2.2.1, RFC 4443 section 3.1), for IPv4 and IPv6. Whether there is a reply at all is
the core's to say. None of these packets is one that is ever answered, but for `probe`.
"""

from struct import Struct

from nfqlb.core.keys import TCP, flipped, is_ipv4
from nfqlb.core.rewriting import words
from nfqlb.core.segment import ACK, FIN, RST, SYN, Probe, Reset

_ICMP, _ICMP6 = 1, 58
_TTL = 64
_DONT_FRAGMENT = 0x4000
_WRAP = 0xFFFF_FFFF
#: An ICMP error's own headers in front of the quotation, and how long it may become in all (RFC 1812
#: section 4.3.2.3, RFC 4443 section 2.4).
_HEADERS4, _LONGEST4 = 28, 576
_HEADERS6, _LONGEST6 = 48, 1280

_ip4 = Struct("!BBHHHBBH4s4s").pack
_ip6 = Struct("!IHBB16s16s").pack
_tcp = Struct("!4sIIHHHH").pack
_icmp = Struct("!BBHI").pack
_numbers = Struct("!II").unpack_from


def reset(order: Reset) -> bytes:
    """The TCP reset that a client is to get: an IP packet."""
    key, sequence, acknowledges = order
    return _segment(key, sequence, acknowledges or 0, RST if acknowledges is None else RST | ACK)


def probe(order: Probe) -> bytes:
    """The SYN-ACK that makes a client say which number it expects: an IP packet."""
    return _segment(order.key, 0, 0, SYN | ACK)


def _segment(key: bytes, sequence: int, acknowledges: int, flags: int) -> bytes:
    size = (len(key) - 4) // 2
    source, destination = key[:size], key[size : 2 * size]
    segment = _tcp(key[-4:], sequence, acknowledges, 5 << 12 | flags, 0, 0, 0)
    segment = segment[:16] + _sum(source, destination, TCP, segment) + segment[18:]
    return _packet(source, destination, TCP, segment)


def reset_for(key: bytes, packet: bytes, transport: int, size: int) -> bytes:
    """The TCP reset that a segment gets which belongs to no connection (RFC 9293 section 3.10.7.1).

    `packet` begins the segment's IP packet, which has `size` bytes in all; `transport` is where its TCP
    header begins, `key` its addresses and ports.
    """
    sequence, acknowledgement = _numbers(packet, transport + 4)
    flags = packet[transport + 13]
    if flags & ACK:
        return reset(Reset(flipped(key), acknowledgement, None))
    length = size - transport - (packet[transport + 12] >> 4) * 4
    length += bool(flags & SYN) + bool(flags & FIN)
    return reset(Reset(flipped(key), 0, (sequence + length) & _WRAP))


def unreachable_for(key: bytes, packet: bytes) -> bytes:
    """The ICMP "port unreachable" for a datagram: `packet` begins it, 1,232 bytes at least or all of it.

    It comes from the address that the datagram went to. `key` is the datagram's.
    """
    size = (len(key) - 4) // 2
    source, destination = key[size : 2 * size], key[:size]
    if size == 4:
        message = _icmp(3, 3, 0, 0) + packet[: _LONGEST4 - _HEADERS4]
        total = _inverted(_summed(message))
        protocol = _ICMP
    else:
        message = _icmp(1, 4, 0, 0) + packet[: _LONGEST6 - _HEADERS6]
        total = _sum(source, destination, _ICMP6, message)
        protocol = _ICMP6
    return _packet(source, destination, protocol, message[:2] + total + message[4:])


def intact(buffer: bytearray, end: int, transport: int, key: bytes, protocol: int) -> bool:
    """Whether the checksum of the TCP or UDP in `buffer[transport:end]` holds: what is damaged gets no reply.

    A UDP checksum of 0 is none over IPv4 (RFC 768).
    """
    data = buffer[transport:end]
    if protocol != TCP and is_ipv4(key) and data[6:8] == b"\0\0":
        return True
    size = (len(key) - 4) // 2
    pseudo = key[: 2 * size] + bytes((0, protocol)) + len(data).to_bytes(4, "big")
    return (words(pseudo) + _summed(data)) % 0xFFFF == 0


def _packet(source: bytes, destination: bytes, protocol: int, payload: bytes) -> bytes:
    if len(source) == 16:
        return _ip6(6 << 28, len(payload), protocol, _TTL, source, destination) + payload
    total = 20 + len(payload)
    header = _ip4(0x45, 0, total, 0, _DONT_FRAGMENT, _TTL, protocol, 0, source, destination)
    return header[:10] + _inverted(words(header)) + header[12:] + payload


def _sum(source: bytes, destination: bytes, protocol: int, payload: bytes) -> bytes:
    """The checksum over pseudo header and payload, as it stands in the packet."""
    pseudo = source + destination + bytes((0, protocol)) + len(payload).to_bytes(4, "big")
    return _inverted(words(pseudo) + _summed(payload))


def _summed(data: bytes | bytearray) -> int:
    """The one's-complement sum, padded with a zero byte where the length is odd (RFC 1071)."""
    return words(data + b"\0") if len(data) & 1 else words(data)


def _inverted(total: int) -> bytes:
    return ((-total) % 0xFFFF).to_bytes(2, "big")
