"""The parts of a connection's key: source address, destination address, source port, destination port.

All in network order, as in a packet: 12 bytes for IPv4, 36 for IPv6.
"""

from nfqlb.core.server import Link


def client_of(key: bytes) -> bytes:
    """The source address of an inbound key: the client's."""
    return key[: (len(key) - 4) // 2]


def client_port_of(key: bytes) -> int:
    """The source port of an inbound key, host order."""
    return int.from_bytes(key[-4:-2], "big")


def destination_of(key: bytes) -> bytes:
    """The destination address and port of an inbound key: the virtual server's."""
    size = (len(key) - 4) // 2
    return key[size : 2 * size] + key[-2:]


def reverse_key(inbound: bytes, link: Link) -> bytes:
    """The key of a server's replies: real address, client, real port, client port (A5)."""
    size = len(link.real.address)
    return link.real.address + inbound[:size] + link.inbound.port + inbound[-4:-2]


def flipped(key: bytes) -> bytes:
    """The key of the opposite direction: source and destination exchanged."""
    size = (len(key) - 4) // 2
    return key[size : 2 * size] + key[:size] + key[-2:] + key[-4:-2]
