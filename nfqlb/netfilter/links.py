"""The interfaces of this network namespace as they are at one moment, and word of their changes.

Cheap enough to be looked at once a second: names and numbers in one request, flags one by one.
"""

import contextlib
import errno
import fcntl
import socket
from struct import Struct
from typing import NamedTuple

from nfqlb.netfilter.changes import listener

_LINKS_GROUP = 1  # RTNLGRP_LINK
_GET_FLAGS = 0x8913  # SIOCGIFFLAGS
_UP, _RUNNING = 0x1, 0x40  # IFF_UP, IFF_RUNNING
_REQUEST = Struct("=16sh22x")  # ifreq (netdevice(7)): name, flags
_BUFFER = 1 << 16


class Link(NamedTuple):
    """An interface: its number, which stays whatever it is called, whether it is on, and has a carrier."""

    number: int
    up: bool
    carrier: bool


def look() -> dict[str, Link]:
    """Every interface by name; one that goes or is renamed just then is left out."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for index, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(sock, _GET_FLAGS, _REQUEST.pack(name.encode(), 0))
                flags = _REQUEST.unpack(answer)[1]
                found[name] = Link(index, bool(flags & _UP), bool(flags & _RUNNING))
    return found


def notices() -> socket.socket:
    """A socket that is readable when an interface has changed. Raises KernelError."""
    return listener(socket.NETLINK_ROUTE, _LINKS_GROUP)


def forget(sock: socket.socket) -> None:
    """Read what has been told, which says no more than that it is time to look."""
    while True:
        try:
            sock.recv(_BUFFER)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # more than there was room for: some are lost
                raise
