"""Which link address (MAC, R037) a server has, and whether it answers there, as the kernel knows it (A36).

Owns `Neighbours`: one dump of the kernel's neighbour table and one look at the route to each address, kept
for some seconds. For display alone; the kernel routes. Two netlink messages are made and read here by
hand (linux/neighbour.h, linux/rtnetlink.h), because importing pyroute2 takes 32 MB.
"""

import errno
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from struct import Struct, unpack_from
from typing import NamedTuple

from nfqlb.core.spec import Address

KEPT = 3.0  # seconds that an answer is good for
_PATIENCE = 0.5  # seconds for the kernel's answer: it has it at hand
_BUFFER = 1 << 16

_HEADER = Struct("=IHHII")  # length, type, flags, sequence, port
_NEIGHBOUR = Struct("=B3xiHBB")  # family, interface, state, flags, type
_ROUTE = Struct("=BBBBBBBBI")  # family, destination's and source's length, 4 of no interest, type, flags
_ATTRIBUTE = Struct("=HH")
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_NEW_ROUTE, _GET_ROUTE, _NEW_NEIGHBOUR, _GET_NEIGHBOUR = 24, 26, 28, 30
_NEIGHBOUR_ADDRESS, _NEIGHBOUR_LINK = 1, 2
_ROUTE_DESTINATION, _ROUTE_INTERFACE, _ROUTE_GATEWAY = 1, 4, 5
_LOCAL = 2
_NOWHERE = (6, 7, 8)  # blackhole, unreachable, prohibit

_STATES = {
    0x01: "incomplete", 0x02: "reachable", 0x04: "stale", 0x08: "delay", 0x10: "probe", 0x20: "failed",
    0x40: "noarp", 0x80: "permanent",
}  # fmt: skip


class Neighbour(NamedTuple):
    """What the kernel knows of one address.

    `mac` is None where none is known. `state` is the kernel's own word (reachable, stale, delay, probe,
    incomplete, failed, noarp, permanent), "none" where nobody has asked for it lately, "routed via ..."
    where a router stands between, "no route", or "local" for an address of this machine.
    """

    mac: str | None
    state: str


UNKNOWN = Neighbour(None, "unknown")


class Neighbours:
    """The neighbours of this network namespace. It never raises: what cannot be found out is `UNKNOWN`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: tuple[Address, ...] = ()
        self._until = 0.0
        self._known: dict[str, Neighbour] = {}

    def of(self, addresses: Sequence[Address]) -> dict[str, Neighbour]:
        """What is known of each address, by its text; no older than `KEPT` seconds."""
        now, asked = self._clock(), tuple(addresses)
        if asked != self._asked or now >= self._until:
            self._known = dict.fromkeys(map(str, asked), UNKNOWN)
            with suppress(OSError):
                self._look(asked)
            self._asked, self._until = asked, now + KEPT
        return self._known

    def _look(self, addresses: Sequence[Address]) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.settimeout(_PATIENCE)
            sock.bind((0, 0))
            table = _table(sock)
            for address in addresses:
                self._known[str(address)] = _of(sock, address, table)


def _of(sock: socket.socket, address: Address, table: dict[tuple[int, bytes], Neighbour]) -> Neighbour:
    try:
        kind, attributes = _route(sock, address)
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES):
            return Neighbour(None, "no route")
        raise
    if kind in _NOWHERE:
        return Neighbour(None, "no route")
    if kind == _LOCAL:
        return Neighbour(None, "local")
    gateway = attributes.get(_ROUTE_GATEWAY)
    if gateway is not None:
        return Neighbour(None, f"routed via {ip_address(gateway)}")
    interface = int(unpack_from("=i", attributes.get(_ROUTE_INTERFACE, bytes(4)))[0])
    return table.get((interface, address.packed), Neighbour(None, "none"))


def _table(sock: socket.socket) -> dict[tuple[int, bytes], Neighbour]:
    """The neighbour table, by interface and packed address."""
    found: dict[tuple[int, bytes], Neighbour] = {}
    _send(sock, _GET_NEIGHBOUR, _REQUEST | _DUMP, _NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    for kind, body in _messages(sock):
        if kind == _DONE:
            return found
        if kind == _NEW_NEIGHBOUR:
            _, interface, state, _, _ = _NEIGHBOUR.unpack_from(body)
            attributes = _attributes(body[_NEIGHBOUR.size :])
            link = attributes.get(_NEIGHBOUR_LINK, b"")
            mac = link.hex(":") if any(link) else None
            words = [word for bit, word in _STATES.items() if state & bit]
            key = interface, attributes.get(_NEIGHBOUR_ADDRESS, b"")
            found[key] = Neighbour(mac, words[0] if words else "none")
    return found


def _route(sock: socket.socket, address: Address) -> tuple[int, dict[int, bytes]]:
    """The type and the attributes of the route to an address. Raises OSError where there is none."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = address.packed
    head = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _ROUTE_DESTINATION) + packed
    _send(sock, _GET_ROUTE, _REQUEST, head + attribute)
    for kind, body in _messages(sock):
        if kind == _NEW_ROUTE:
            return _ROUTE.unpack_from(body)[7], _attributes(body[_ROUTE.size :])
    raise OSError(errno.EPROTO, "no route in the answer")


def _send(sock: socket.socket, kind: int, flags: int, body: bytes) -> None:
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)


def _messages(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The answer's messages, to its end: a dump has many and one that says so. Raises OSError."""
    while True:
        data = sock.recv(_BUFFER)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                raise OSError(errno.EPROTO, "a message shorter than its header")
            body = data[at + _HEADER.size : at + length]
            if kind == _ERROR:
                code = -unpack_from("=i", body)[0]
                raise OSError(code, "the kernel refused")
            yield kind, body
            if kind == _DONE:
                return
            at += length + -length % 4


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4
    return found
