"""The change of headers that every connection of a link shares.

Owns the arithmetic of RFC 1624: a one's-complement sum is arithmetic modulo 65535, so what
a change of address and port does to a checksum is one number, computed once per link. With
it, `new = (old - difference) % 65535` for every packet (RFC 1624 equation 3; the result is
never 0xffff, which a header with an address in it cannot have).
"""

from typing import NamedTuple

MODULUS = 65535


def words(data: bytes | bytearray) -> int:
    """The one's-complement sum of the 16-bit words of `data` (even length), modulo 65535."""
    return int.from_bytes(data, "big") % MODULUS


class Rewriting(NamedTuple):
    """One direction's change: the new address and port (network order) and two differences.

    `port` is empty where the packet's own stays. `network` is what the change adds to the sum of the
    IPv4 header, `transport` to that of TCP or UDP, which covers the addresses through the pseudo
    header (A22).
    """

    address: bytes
    port: bytes
    network: int
    transport: int


def rewritings(
    virtual: bytes, virtual_port: int | None, real: bytes, real_port: int | None
) -> tuple[Rewriting, Rewriting]:
    """The inbound change (of the destination, R165-R167) and the outbound one (of the source, R175-R177).

    Addresses are packed, ports in host order; with None for one of them no port is changed.
    """
    network = words(real) - words(virtual)
    if virtual_port is None or real_port is None:
        return Rewriting(real, b"", network, network), Rewriting(virtual, b"", -network, -network)
    transport = network + real_port - virtual_port
    return (
        Rewriting(real, real_port.to_bytes(2, "big"), network, transport),
        Rewriting(virtual, virtual_port.to_bytes(2, "big"), -network, -transport),
    )
