"""The kernel's connection table, as far as it is ours: read, listened to, and cut.

Owns the ctnetlink messages (linux/netfilter/nfnetlink_conntrack.h), written and read by hand: pyroute2
takes 0.65 ms an entry, this a hundredth of that. A direction's tuple comes as the key that the core uses:
source address, destination address, source port, destination port in network order, 12 or 36 bytes.
"""

import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from nfqlb.netfilter import netlink
from nfqlb.netfilter.netlink import FIRST_ATTRIBUTE, NetlinkError, attribute, attribute_header, nested

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE = _SUBSYSTEM, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_DESTROY_GROUP = 3  # NFNLGRP_CONNTRACK_DESTROY

_TUPLE_ORIGINAL, _TUPLE_REPLY, _STATUS, _PROTOCOL_INFO, _TIMEOUT, _MARK = 1, 2, 3, 4, 7, 8
_MARK_MASK, _STATUS_MASK = 21, 26
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_PROTOCOL_NUMBER, _PORT_SOURCE, _PORT_DESTINATION = 1, 2, 3
_TCP_INFO, _TCP_STATE = 1, 1

#: Bits of an entry's status (linux/netfilter/nf_conntrack_common.h).
SEEN_REPLY, ASSURED, DESTINATION_NAT = 0x2, 0x4, 0x20
#: States of an entry for TCP (linux/netfilter/nf_conntrack_tcp.h).
SYN_SENT, SYN_RECEIVED, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT, CLOSE = range(1, 9)

_RECEIVE_BUFFER = 4 << 20
_BUFFER_SIZE = 1 << 16
_DUMP_ATTEMPTS = 5
_SETTINGS = Path("/proc/sys/net/netfilter")
_STATISTICS = Path("/proc/net/stat/nf_conntrack")
#: New connections that found no room, others that were given up for them, those that could not be entered.
_LOSSES = ("drop", "early_drop", "insert_failed")
NEARLY_FULL = 0.8
"""The part of its limit from which on the table is said to be nearly full: others use it too."""

# A tuple with ports: its own header, then those of addresses and protocol with the values between them.
_read_ipv4 = Struct("=HHHHHH4sHH4sHHHHB3xHH2s2xHH2s2x").unpack_from
_read_ipv6 = Struct("=HHHHHH16sHH16sHHHHB3xHH2s2xHH2s2x").unpack_from
_IPV4_SIZE, _IPV6_SIZE = 52, 76
_u32 = Struct("!I").unpack_from


class Entry(NamedTuple):
    """A connection as conntrack has it.

    `inbound` is what the client sent (to the virtual server), `outbound` what it expects in return (from
    the real server). `timeout` is in seconds; `tcp_state` is 0 for other protocols, and what the message
    does not tell is 0 as well.
    """

    inbound: bytes
    outbound: bytes
    protocol: int
    mark: int
    status: int
    tcp_state: int
    timeout: int


def entry_in(buffer: bytes | bytearray, at: int, end: int) -> Entry | None:
    """The entry in the message `buffer[at:end]`; None where its protocol has no ports."""
    inbound = outbound = b""
    protocol = mark = status = tcp_state = timeout = 0
    at += FIRST_ATTRIBUTE
    while at + 4 <= end:
        size, kind = attribute_header(buffer, at)
        if size < 4 or at + size > end:
            break
        kind &= netlink.TYPE
        if kind == _TUPLE_ORIGINAL:
            inbound, protocol = _tuple_in(buffer, at, size)
        elif kind == _TUPLE_REPLY:
            outbound, _ = _tuple_in(buffer, at, size)
        elif kind == _MARK and size == 8:
            mark = _u32(buffer, at + 4)[0]
        elif kind == _STATUS and size == 8:
            status = _u32(buffer, at + 4)[0]
        elif kind == _TIMEOUT and size == 8:
            timeout = _u32(buffer, at + 4)[0]
        elif kind == _PROTOCOL_INFO and size >= 13:
            # its first attribute is TCP's (16 bytes or more), whose first is the state
            tcp_state = buffer[at + 12] if protocol == socket.IPPROTO_TCP else 0
        at += (size + 3) & ~3
    if not inbound or not outbound:
        return None
    return Entry(inbound, outbound, protocol, mark, status, tcp_state, timeout)


def _tuple_in(buffer: bytes | bytearray, at: int, size: int) -> tuple[bytes, int]:
    """A tuple's key and protocol, (b"", 0) for one without ports."""
    if size == _IPV4_SIZE:
        fields = _read_ipv4(buffer, at)
    elif size == _IPV6_SIZE:
        fields = _read_ipv6(buffer, at)
    else:
        return b"", 0
    source, destination, source_port, destination_port = fields[6], fields[9], fields[17], fields[20]
    if fields[16] & netlink.TYPE != _PORT_SOURCE or fields[19] & netlink.TYPE != _PORT_DESTINATION:
        return b"", 0  # ICMP's identifier, type and code
    return source + destination + source_port + destination_port, fields[14]


def tuple_of(key: bytes, protocol: int) -> bytes:
    """A key as the inside of a tuple attribute."""
    size = (len(key) - 4) // 2
    source, destination = (1, 2) if size == 4 else (3, 4)
    addresses = attribute(source, key[:size]) + attribute(destination, key[size : 2 * size])
    ports = attribute(_PORT_SOURCE, key[-4:-2]) + attribute(_PORT_DESTINATION, key[-2:])
    number = attribute(_PROTOCOL_NUMBER, bytes((protocol,)))
    return nested(_TUPLE_IP, addresses) + nested(_TUPLE_PROTOCOL, number, ports)


def _original(inbound: bytes, protocol: int) -> bytes:
    return nested(_TUPLE_ORIGINAL, tuple_of(inbound, protocol))


def _with_mark(mark: int, mask: int) -> bytes:
    return attribute(_MARK, mark.to_bytes(4, "big")) + attribute(_MARK_MASK, mask.to_bytes(4, "big"))


def _family(inbound: bytes) -> int:
    return socket.AF_INET if len(inbound) == 12 else socket.AF_INET6


class Conntrack:
    """Requests to the table. Raises KernelError where the kernel refuses."""

    def __init__(self) -> None:
        self._socket = netlink.connect()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def entries(self, mask: int, family: int = socket.AF_UNSPEC) -> Iterator[Entry]:
        """Every entry that is translated towards a server and has a mark within `mask`, of TCP and UDP.

        The kernel passes over entries without such a translation. An entry can come twice.
        """
        body = attribute(_STATUS, DESTINATION_NAT.to_bytes(4, "big"))
        body += attribute(_STATUS_MASK, DESTINATION_NAT.to_bytes(4, "big"))
        for entry in self._dumped(body, family):
            if entry.mark & mask:
                yield entry

    def marked(self, mark: int, mask: int) -> Iterator[Entry]:
        """Every entry of TCP and UDP whose mark is `mark` in the bits of `mask`. An entry can come twice."""
        return self._dumped(_with_mark(mark, mask), socket.AF_UNSPEC)

    def _dumped(self, body: bytes, family: int) -> Iterator[Entry]:
        """The entries that the kernel finds to be so.

        A table that changes meanwhile may hide one, so a dump that the kernel calls interrupted is made
        again, a few times.
        """
        request = netlink.message(_GET, netlink.DUMP, body, family=family)
        for attempt in range(_DUMP_ATTEMPTS):
            try:
                yield from self._dump(request)
            except NetlinkError as error:
                if error.errno != errno.EINTR or attempt == _DUMP_ATTEMPTS - 1:
                    raise
            else:
                return

    def _dump(self, request: bytes) -> Iterator[Entry]:
        with netlink.connect() as sock:  # its own: who reads may stop in the middle
            for buffer, at, end in netlink.answers(sock, request, "conntrack"):
                entry = entry_in(buffer, at, end)
                if entry is not None:
                    yield entry

    def find(self, inbound: bytes, protocol: int = socket.IPPROTO_TCP) -> Entry | None:
        """The entry of what a client sends, whoever's it is; None where there is none.

        An ending that was told may be of an earlier connection with the same addresses and ports: then
        this one is there.
        """
        request = netlink.message(_GET, netlink.ACK, _original(inbound, protocol), family=_family(inbound))
        found: Entry | None = None
        try:
            for buffer, at, end in netlink.answers(self._socket, request, "conntrack"):
                found = entry_in(buffer, at, end)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
        # the kernel looks in both directions
        return found if found is not None and found.inbound == inbound else None

    def delete(self, inbound: bytes, protocol: int = socket.IPPROTO_TCP) -> bool:
        """Forget one entry, by what its client sends; False where there is none."""
        request = netlink.message(_DELETE, netlink.ACK, _original(inbound, protocol), family=_family(inbound))
        return self._done(request)

    def _done(self, request: bytes) -> bool:
        """Carry out what is asked of one entry; False where there is none."""
        try:
            netlink.ask(self._socket, request, "conntrack")
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def shorten(self, inbound: bytes, protocol: int, seconds: int) -> bool:
        """Forget one entry that much later, unless packets come; False where there is none."""
        body = _original(inbound, protocol) + attribute(_TIMEOUT, seconds.to_bytes(4, "big"))
        request = netlink.message(_NEW, netlink.ACK, body, family=_family(inbound))
        return self._done(request)

    def delete_marked(self, mark: int, mask: int) -> None:
        """Forget every entry whose mark is `mark` in the bits of `mask`, in both address families.

        Raises ValueError for a mask of 0, which would mean the whole table.
        """
        if not mask:
            raise ValueError("a mask of 0 fits every connection of this machine")
        request = netlink.message(_DELETE, netlink.ACK, _with_mark(mark, mask))
        netlink.ask(self._socket, request, "conntrack")


#: What is done with an entry that is no more: (the client's key, protocol).
OnEnd = Callable[[bytes, int], None]


class EndingMessages:
    """The message layer of `Endings`, without its socket."""

    def __init__(self, on_end: OnEnd, on_loss: Callable[[int], None]) -> None:
        self.on_end = on_end
        self.on_loss = on_loss
        self.on_error: Callable[[Exception], None] = _ignore
        self.events = 0
        self.failed = 0  # endings that `on_end` raised at

    def read(self, buffer: bytearray, got: int) -> int:
        """Put every ending in the first `got` bytes to `on_end`; how many there were."""
        count = 0
        for kind, _, at, end in netlink.messages(buffer, got):
            if kind == _DELETE:
                count += 1
                self._ended(buffer, at, end)
        self.events += count
        return count

    def _ended(self, buffer: bytearray, at: int, end: int) -> None:
        first = at + FIRST_ATTRIBUTE
        if first + 4 > end:
            return
        size, kind = attribute_header(buffer, first)  # the kernel puts the original tuple first
        if kind & netlink.TYPE == _TUPLE_ORIGINAL and first + size <= end:
            key, protocol = _tuple_in(buffer, first, size)
            if not key:
                return
            try:
                self.on_end(key, protocol)
            except Exception as error:  # noqa: BLE001  one ending must not cost those behind it
                self.failed += 1
                self.on_error(error)


class Endings(EndingMessages):
    """Listens to the table: which connections it has forgotten.

    A connection makes such an event only if it was told to when it began, as our rules do (`CT --ctevents
    destroy`), and, as the kernel is set by default (net.netfilter.nf_conntrack_events=2), only if somebody
    listened then. So whoever holds the queue holds this as well. Those of others come too: the key tells.
    `on_loss` is called where the kernel lost events for lack of room. `inherited` is the descriptor of a
    socket that listens already, which this takes over.
    """

    def __init__(
        self, on_end: OnEnd, on_loss: Callable[[int], None], *, inherited: int | None = None
    ) -> None:
        super().__init__(on_end, on_loss)
        self.overruns = 0
        self._buffer = bytearray(0)
        if inherited is not None:
            self._socket = socket.socket(fileno=inherited)
            self._socket.setblocking(False)
            return
        self._socket = netlink.connect(receive_buffer=_RECEIVE_BUFFER)
        try:
            self._socket.setsockopt(netlink.SOL_NETLINK, netlink.ADD_MEMBERSHIP, _DESTROY_GROUP)
        except OSError as error:
            self._socket.close()
            raise netlink.refused("conntrack events", error.errno or 0) from None
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor that is readable when events wait."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def run(self, budget: int) -> int:
        """Read what waits, at most `budget` events or so; returns how many there were."""
        if not self._buffer:
            self._buffer = bytearray(_BUFFER_SIZE)
        buffer = self._buffer
        count = 0
        while count < budget:
            try:
                got = self._socket.recv_into(buffer)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                self.on_loss(0)
                continue
            count += self.read(buffer, got)
        return count


def _ignore(_error: Exception) -> None:
    pass


def room(settings: Path = _SETTINGS) -> tuple[int, int]:
    """How many entries the table has, and how many it may have (0: no limit). Raises KernelError."""
    try:
        count, limit = (
            int((settings / name).read_text()) for name in ("nf_conntrack_count", "nf_conntrack_max")
        )
    except OSError as error:
        raise netlink.refused(f"{settings}/nf_conntrack_count", error.errno or 0) from None
    return count, limit


def losses(path: Path = _STATISTICS) -> dict[str, int]:
    """What the table has lost since this network namespace began, by cause. Raises OSError."""
    head, *rows = path.read_text(encoding="ascii").splitlines()
    counted = [(name, index) for index, name in enumerate(head.split()) if name in _LOSSES]
    return {name: sum(int(row.split()[index], 16) for row in rows) for name, index in counted}
