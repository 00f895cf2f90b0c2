"""Sends packets of our own making to clients: raw sockets, header and all.

The source is a virtual address, whether that is an address of this machine or not: with its own
header in front, the kernel looks up the way to the destination and nothing else. conntrack takes up no
connection for a reset, and the gateway's ICMP rules let pass what quotes none of the worker's connections.
"""

import contextlib
import socket
from collections.abc import Iterable

from nfqlb.core.spec import Config
from nfqlb.netfilter.errors import KernelError

_IPV6_HDRINCL = 36  # include/uapi/linux/in6.h
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def replies_to_clients(config: Config) -> bool:
    """Whether a configuration has clients told of what is refused (R114, A34)."""
    return any(virtual.reject == "reset" or virtual.on_failure == "reset" for virtual in config.virtuals)


def open_replies(config: Config) -> "ReplySockets":
    """The sockets for a configuration's IP versions. Raises KernelError."""
    try:
        return ReplySockets({virtual.address.version for virtual in config.virtuals})
    except OSError as error:
        raise KernelError(
            f'no raw socket, which "reset" needs: {error.strerror}; run as root, or with CAP_NET_RAW'
        ) from None


class ReplySockets:
    """One raw socket for each IP version in `versions` (4, 6).

    Raises OSError without the right to open them (CAP_NET_RAW).
    """

    def __init__(self, versions: Iterable[int]) -> None:
        self._sockets: dict[int, socket.socket] = {}
        try:
            for version in versions:
                self._sockets[version] = _open(version)
        except OSError:
            self.close()
            raise

    def send(self, packet: bytes) -> bool:
        """Send an IP packet to its destination; False if the kernel does not take it now. Never waits."""
        version = packet[0] >> 4
        where = packet[16:20] if version == 4 else packet[24:40]
        address = (socket.inet_ntop(_FAMILIES[version], where), 0)
        with contextlib.suppress(OSError):
            self._sockets[version].sendto(packet, socket.MSG_DONTWAIT, address)
            return True
        return False

    def close(self) -> None:
        """Close them."""
        for raw in self._sockets.values():
            raw.close()


def _open(version: int) -> socket.socket:
    raw = socket.socket(_FAMILIES[version], socket.SOCK_RAW, socket.IPPROTO_RAW)
    if version == 4:
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
    else:
        raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
    return raw
