"""The parts of a connection's key: source address, destination address, source port, destination port.

All in network order, as in a packet: 12 bytes for IPv4, 36 for IPv6. A UDP flow's key has its protocol's
number at the end, one byte more, so that TCP and UDP between the same ports (DNS) are two (A4). An address
is 4 bytes or 16; nobody else takes a key apart.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfqlb.core.server import Link

#: IP protocol numbers (IANA).
TCP = 6
UDP = 17
#: What ends a UDP flow's key.
UDP_END = bytes((UDP,))
_IPV4_KEYS = 12, 13


def key_end(protocol: int) -> bytes:
    """What stands at the end of every key of an IP protocol: nothing for TCP."""
    return b"" if protocol == TCP else bytes((protocol,))


def protocol_of(key: bytes) -> int:
    """The IP protocol of a key: whether there is something at its end."""
    return UDP if len(key) & 1 else TCP


def is_ipv4(key: bytes) -> bool:
    """Whether a key is of IPv4 addresses."""
    return len(key) in _IPV4_KEYS


def client_of(key: bytes) -> bytes:
    """The source address of an inbound key: the client's."""
    return key[: (len(key) - 4) // 2]


def client_port_of(key: bytes) -> int:
    """The source port of an inbound key, host order."""
    at = (len(key) - 4) // 2 * 2
    return int.from_bytes(key[at : at + 2], "big")


def port_of(key: bytes) -> int:
    """The destination port of an inbound key, host order: the virtual server's."""
    at = (len(key) - 4) // 2 * 2 + 2
    return int.from_bytes(key[at : at + 2], "big")


def destination_of(key: bytes) -> bytes:
    """The destination of an inbound key, as `service` has it: the virtual server's."""
    size = (len(key) - 4) // 2
    at = 2 * size
    return key[size:at] + key[at + 2 :]


def service(address: bytes, port: bytes, protocol: int) -> bytes:
    """What a virtual server answers on: its address, port (b"": every port) and protocol."""
    return address + port + key_end(protocol)


def every_port_of(key: bytes) -> bytes:
    """The destination of an inbound key without its port: every port of it."""
    size = (len(key) - 4) // 2
    return key[size : 2 * size] + key[2 * size + 4 :]


def server_of(outbound: bytes) -> bytes:
    """The real server's address and port in an outbound key."""
    size = (len(outbound) - 4) // 2
    return outbound[:size] + outbound[2 * size : 2 * size + 2]


def reverse_key(inbound: bytes, link: "Link") -> bytes:
    """The key of a server's replies: real address, client, real port, client port (A5).

    Where the virtual server answers on every port, the real port is the one that the client used (A21).
    """
    address = link.real.address
    at = 2 * len(address)
    port = link.inbound.port or inbound[at + 2 : at + 4]
    return address + inbound[: len(address)] + port + inbound[at : at + 2] + inbound[at + 4 :]


def inbound_key(client: bytes, virtual: bytes, client_port: bytes, port: bytes, protocol: int) -> bytes:
    """The key of what a client sends; addresses and ports in network order."""
    return client + virtual + client_port + port + key_end(protocol)


def is_to_itself(key: bytes) -> bool:
    """Whether a packet's source address is its destination address ("land")."""
    size = (len(key) - 4) // 2
    return key[:size] == key[size : 2 * size]


def flipped(key: bytes) -> bytes:
    """The key of the opposite direction: source and destination exchanged."""
    size = (len(key) - 4) // 2
    ports = key[2 * size :]
    return key[size : 2 * size] + key[:size] + ports[2:4] + ports[:2] + ports[4:]
