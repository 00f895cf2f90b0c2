"""Changes addresses, ports and checksums of a packet in place (RFC 1631, RFC 1624).

Owns every write into a packet. Offsets are bytes from the buffer's start. Nothing else in
a packet is touched: options, sequence numbers, TTL and payload stay as they came.
"""

from struct import Struct

from nfqlb.core.rewriting import MODULUS, Rewriting, words

#: What the kernel says of a packet in NFQA_SKB_INFO (linux/netfilter/nfnetlink_queue.h).
CHECKSUM_NOT_READY = 1
SUPER_PACKET = 2

_get16 = Struct("!H").unpack_from
_put16 = Struct("!H").pack_into
_put32 = Struct("4s").pack_into
_put_port = Struct("2s").pack_into

# IPv4 header (RFC 791) and TCP header (RFC 9293): where the fields are
_SUM_AT = 10
_SOURCE_AT = 12
_DESTINATION_AT = 16
_TCP_SUM_AT = 16
_ICMP_SUM_AT = 2


def translate_inbound(
    buffer: bytearray, start: int, end: int, transport: int, change: Rewriting, info: int
) -> None:
    """Give a client's segment its server's address and port (fig 10, R165-R167).

    A super-packet's checksum too: the kernel will sum its segments itself, but conntrack looks at
    the whole before that.
    """
    _put32(buffer, start + _DESTINATION_AT, change.address)
    _put_port(buffer, transport + 2, change.port)
    _adjust(buffer, start + _SUM_AT, change.network)
    _fix_transport_sum(buffer, end, transport, change, info & CHECKSUM_NOT_READY)


def translate_outbound(
    buffer: bytearray, start: int, end: int, transport: int, change: Rewriting, info: int
) -> None:
    """Give a server's segment the virtual server's address and port (fig 11, R174-R177)."""
    _put32(buffer, start + _SOURCE_AT, change.address)
    _put_port(buffer, transport, change.port)
    _adjust(buffer, start + _SUM_AT, change.network)
    _fix_transport_sum(buffer, end, transport, change, info)


def _adjust(buffer: bytearray, at: int, difference: int) -> None:
    _put16(buffer, at, (_get16(buffer, at)[0] - difference) % MODULUS)


def _fix_transport_sum(buffer: bytearray, end: int, transport: int, change: Rewriting, info: int) -> None:
    if info & SUPER_PACKET:
        return  # on its way out: the kernel cuts it into segments and sums each of them itself
    if info & CHECKSUM_NOT_READY:
        finish_transport_sum(buffer, end, transport, change.network)
    else:
        _adjust(buffer, transport + _TCP_SUM_AT, change.transport)


def finish_transport_sum(buffer: bytearray, end: int, transport: int, network: int) -> None:
    """Complete a TCP checksum whose field holds the sum of the old pseudo header (CHECKSUM_PARTIAL).

    `network` is what the change of address adds to that; the new port is in its place already.
    """
    _put16(buffer, transport + _TCP_SUM_AT, (-_sum(buffer, transport, end) - network) % MODULUS)


def _sum(buffer: bytearray, start: int, end: int) -> int:
    """The one's-complement sum of a stretch, padded with a zero byte if its length is odd (RFC 1071)."""
    total = int.from_bytes(memoryview(buffer)[start:end], "big")
    return (total << 8 if (end - start) & 1 else total) % MODULUS


def translate_error_inbound(
    buffer: bytearray, start: int, end: int, icmp: int, quoted: int, transport: int, change: Rewriting
) -> None:
    """Turn a client-side ICMP error about a virtual server's packet into one about the real server's.

    `icmp`, `quoted` and `transport` are where the ICMP header, the quoted IP header and the
    quoted TCP header begin.
    """
    _readdress(buffer, start, _DESTINATION_AT, change.address)
    _put32(buffer, quoted + _SOURCE_AT, change.address)
    _put_port(buffer, transport, change.port)
    _fix_quoted(buffer, end, icmp, quoted, transport, change)


def translate_error_outbound(
    buffer: bytearray, start: int, end: int, icmp: int, quoted: int, transport: int, change: Rewriting,
    *, own: bool,
) -> None:  # fmt: skip
    """Turn an ICMP error about a client's translated packet back into one about what the client sent.

    It then comes from the virtual address, whoever noticed, as a router's address inside is
    nobody's business; one of the gateway's `own` keeps the gateway's address.
    """
    if not own:
        _readdress(buffer, start, _SOURCE_AT, change.address)
    _put32(buffer, quoted + _DESTINATION_AT, change.address)
    _put_port(buffer, transport + 2, change.port)
    _fix_quoted(buffer, end, icmp, quoted, transport, change)


def _readdress(buffer: bytearray, start: int, field: int, address: bytes) -> None:
    """Change an error's own address, whatever it was."""
    at = start + field
    before = words(buffer[at : at + 4])
    _put32(buffer, at, address)
    _adjust(buffer, start + _SUM_AT, words(address) - before)


def _fix_quoted(
    buffer: bytearray, end: int, icmp: int, quoted: int, transport: int, change: Rewriting
) -> None:
    """Adjust the quoted sums, and the error's own, which covers them: a damaged error stays damaged."""
    _adjust(buffer, quoted + _SUM_AT, change.network)  # address and sum cancel out in the error's own sum
    difference = change.transport - change.network  # the port's
    if transport + _TCP_SUM_AT + 2 <= end:
        _adjust(buffer, transport + _TCP_SUM_AT, change.transport)
        difference -= change.transport
    _adjust(buffer, icmp + _ICMP_SUM_AT, difference)
