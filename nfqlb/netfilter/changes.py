"""What the kernel tells of changes by others: to rules, to addresses, to the settings of interfaces.

Owns the two sockets that hear of them: nftables tells of each transaction, and who made it
(linux/netfilter/nf_tables.h, NFT_MSG_NEWGEN), rtnetlink of addresses and of what `net.ipv4.conf` says
(linux/rtnetlink.h, netconf.h). The legacy tables of iptables tell nobody: they must be looked at.
"""

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct

from nfqlb.netfilter import netlink
from nfqlb.netfilter.netlink import ADD_MEMBERSHIP, FIRST_ATTRIBUTE, SO_RCVBUFFORCE, SOL_NETLINK
from nfqlb.netfilter.procfs import Process, process

RULES: dict[int, str] = {socket.AF_INET: "IPv4 rules", socket.AF_INET6: "IPv6 rules"}
"""By address family."""

_PROGRAMS: dict[int, str] = {socket.AF_INET: "iptables", socket.AF_INET6: "ip6tables"}

ADDRESSES, SETTINGS = "addresses", "settings"
EVERYTHING = frozenset({*RULES.values(), ADDRESSES, SETTINGS})

_TABLES = {b"raw\0", b"mangle\0", b"nat\0", b"filter\0", b"security\0"}  # what iptables calls its tables
_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
_NEW_GENERATION = 15  # NFT_MSG_NEWGEN: a transaction is over
_GENERATION_PROCESS, _GENERATION_NAME = 2, 3
_TABLE_NAME = 1  # of tables, chains, rules and sets alike
_NFTABLES_GROUP = 7
_ROUTE_GROUPS = (5, 9, 24, 25)  # addresses of IPv4 and IPv6, settings of both
_NEW_ADDRESS, _DELETED_ADDRESS, _SETTING = 20, 21, 80
_BUFFER = 1 << 16
_RECEIVE_BUFFER = 4 << 20  # somebody's 5,000 rules put in at once take half of it
_ROUNDS = 64  # datagrams read in one go; what is left makes the socket readable again

_header = Struct("=IHHII").unpack_from
_number = Struct("!I").unpack_from


@dataclass(frozen=True, slots=True)
class Author:
    """Who changed something, as far as the kernel says, and what: "iptables raw", say, or "address"."""

    process: Process
    touched: frozenset[str]


@dataclass(slots=True)
class Notice:
    """What may have changed (of `EVERYTHING`), and who did it."""

    subjects: set[str] = field(default_factory=set)
    authors: list[Author] = field(default_factory=list)


class Changes:
    """The sockets. Raises KernelError where the kernel has no nftables, or none of the rights is there."""

    def __init__(self) -> None:
        self._families: set[int] = set()  # of the transaction that is being told
        self._touched: set[str] = set()
        self._buffer = bytearray(_BUFFER)
        with contextlib.ExitStack() as undo:
            self.rules = undo.enter_context(listener(netlink.NETLINK_NETFILTER, _NFTABLES_GROUP))
            self.route = undo.enter_context(listener(socket.NETLINK_ROUTE, *_ROUTE_GROUPS))
            undo.pop_all()

    def close(self) -> None:
        """Hear no more."""
        self.rules.close()
        self.route.close()

    def read(self) -> Notice:
        """What has been told since; empty where nothing was. A lost notice: all may have changed."""
        notice = Notice()
        for sock, understand in ((self.rules, self._of_rules), (self.route, _of_route)):
            for got in self._datagrams(sock):
                if got < 0:
                    notice.subjects |= set(RULES.values()) if sock is self.rules else {ADDRESSES, SETTINGS}
                    continue
                for kind, _, at, end in netlink.messages(self._buffer, got):
                    understand(notice, self._buffer, kind, at, end)
        return notice

    def _datagrams(self, sock: socket.socket) -> Iterator[int]:
        """The length of each datagram that waits, put into the buffer; -1 where some were lost."""
        for _ in range(_ROUNDS):
            try:
                yield sock.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield -1

    def _of_rules(self, notice: Notice, buffer: bytearray, kind: int, at: int, end: int) -> None:
        """One message of nftables. What a transaction changed comes before the word of who made it."""
        if kind >> 8 != _NFTABLES or end < at + FIRST_ATTRIBUTE:
            return
        found = dict(_values(buffer, at + FIRST_ATTRIBUTE, end))
        if kind & 0xFF != _NEW_GENERATION:
            family, table = buffer[at + 16], found.get(_TABLE_NAME, b"")
            if table in _TABLES and family in RULES:
                self._families.add(family)
                self._touched.add(f"{_PROGRAMS[family]} {table[:-1].decode()}")
            return
        if self._families:
            notice.subjects |= {RULES[family] for family in self._families}
            touched = frozenset(self._touched)
            self._families.clear()
            self._touched.clear()
            number = found.get(_GENERATION_PROCESS, bytes(4))
            name = found.get(_GENERATION_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
            notice.authors.append(Author(process(_number(number)[0], name), touched))


def _of_route(notice: Notice, buffer: bytearray, kind: int, at: int, _end: int) -> None:
    """One message of rtnetlink. Its port is by habit the process id of who asked for the change."""
    if kind in (_NEW_ADDRESS, _DELETED_ADDRESS):
        notice.subjects.add(ADDRESSES)
        if port := _header(buffer, at)[4]:
            notice.authors.append(Author(process(port), frozenset({"address"})))
    elif kind == _SETTING:
        notice.subjects.add(SETTINGS)


def _values(buffer: bytearray, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    for kind, start, stop in netlink.attributes(buffer, at, end):
        yield kind, bytes(buffer[start:stop])


def listener(protocol: int, *groups: int) -> socket.socket:
    """A socket that hears of what these groups are told, and never waits. Raises KernelError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        sock.bind((0, 0))
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        for group in groups:
            sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise netlink.refused("netlink notices", error.errno or 0) from None
    return sock
