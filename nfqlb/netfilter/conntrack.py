"""The kernel's connection table, as far as it is ours: read and changed. `endings` listens to it.

Owns the ctnetlink messages (linux/netfilter/nfnetlink_conntrack.h), written and read by hand: pyroute2
takes 0.65 ms an entry, this a hundredth of that. A direction's tuple comes as the key that the core uses:
source address, destination address, source port, destination port in network order, 12 or 36 bytes.
"""

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from nfqlb.core.keys import flipped
from nfqlb.netfilter import netlink
from nfqlb.netfilter.netlink import FIRST_ATTRIBUTE, NetlinkError, attribute, attribute_header, nested

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, DELETE = _SUBSYSTEM, _SUBSYSTEM | 1, _SUBSYSTEM | 2

TUPLE_ORIGINAL, _TUPLE_REPLY, _STATUS, _PROTOCOL_INFO, _TIMEOUT, _MARK = 1, 2, 3, 4, 7, 8
_NAT_DESTINATION, _MARK_MASK, _STATUS_MASK = 13, 21, 26
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_PROTOCOL_NUMBER, _PORT_SOURCE, _PORT_DESTINATION = 1, 2, 3
_TCP_INFO, _TCP_STATE, _TCP_FLAGS_ORIGINAL, _TCP_FLAGS_REPLY = 1, 1, 4, 5
_NAT_PORTS, _PORT_LEAST, _PORT_MOST = 3, 1, 2
_NAT_ADDRESSES = {4: (1, 2), 16: (4, 5)}  # the least and the most, by an address's size
_LIBERAL = bytes((8, 8))  # IP_CT_TCP_FLAG_BE_LIBERAL, and that no other flag is meant

#: Bits of an entry's status (linux/netfilter/nf_conntrack_common.h).
SEEN_REPLY, ASSURED, CONFIRMED, DESTINATION_NAT = 0x2, 0x4, 0x8, 0x20
#: States of an entry for TCP (linux/netfilter/nf_conntrack_tcp.h).
SYN_SENT, SYN_RECEIVED, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT, CLOSE = range(1, 9)

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
        if kind == TUPLE_ORIGINAL:
            inbound, protocol = tuple_in(buffer, at, size)
        elif kind == _TUPLE_REPLY:
            outbound, _ = tuple_in(buffer, at, size)
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


def tuple_in(buffer: bytes | bytearray, at: int, size: int) -> tuple[bytes, int]:
    """The key and the protocol of the tuple at `at`, `size` bytes long; (b"", 0) for one without ports."""
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
    return nested(TUPLE_ORIGINAL, tuple_of(inbound, protocol))


def _whole(entry: Entry) -> bytes:
    """All that makes an entry anew, translated towards its server."""
    size = (len(entry.outbound) - 4) // 2
    server, port = entry.outbound[:size], entry.outbound[-4:-2]
    least, most = _NAT_ADDRESSES[size]
    ports = attribute(_PORT_LEAST, port) + attribute(_PORT_MOST, port)
    body = _original(entry.inbound, entry.protocol)
    body += nested(_TUPLE_REPLY, tuple_of(flipped(entry.inbound), entry.protocol))
    body += nested(
        _NAT_DESTINATION, attribute(least, server), attribute(most, server), nested(_NAT_PORTS, ports)
    )
    status = entry.status & (SEEN_REPLY | ASSURED | CONFIRMED)
    for kind, number in ((_TIMEOUT, entry.timeout), (_MARK, entry.mark), (_STATUS, status)):
        body += attribute(kind, number.to_bytes(4, "big"))
    if entry.protocol == socket.IPPROTO_TCP:
        flags = attribute(_TCP_FLAGS_ORIGINAL, _LIBERAL) + attribute(_TCP_FLAGS_REPLY, _LIBERAL)
        state = attribute(_TCP_STATE, bytes((entry.tcp_state,)))
        body += nested(_PROTOCOL_INFO, nested(_TCP_INFO, state, flags))
    return body


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
        return self._told(_GET, inbound, protocol)

    def delete(self, inbound: bytes, protocol: int = socket.IPPROTO_TCP) -> bool:
        """Forget one entry, by what its client sends; False where there is none."""
        request = netlink.message(DELETE, netlink.ACK, _original(inbound, protocol), family=_family(inbound))
        return self._done(request)

    def take(self, inbound: bytes, protocol: int = socket.IPPROTO_TCP) -> Entry | None:
        """Forget one entry, and say what it was at that very moment; None where there is none.

        None as well where nobody has listened to endings when it began: then the kernel does not tell.
        """
        return self._told(DELETE, inbound, protocol, echo=True)

    def _told(self, kind: int, inbound: bytes, protocol: int, *, echo: bool = False) -> Entry | None:
        """What the kernel says of one entry when it is asked this; None where there is none."""
        flags = netlink.ACK | (netlink.ECHO if echo else 0)
        request = netlink.message(kind, flags, _original(inbound, protocol), family=_family(inbound))
        found: Entry | None = None
        try:
            for buffer, at, end in netlink.answers(self._socket, request, "conntrack", echo=echo):
                found = entry_in(buffer, at, end)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
        # the kernel looks in both directions
        return found if found is not None and found.inbound == inbound else None

    def put_back(self, entry: Entry) -> bool:
        """Enter again what was taken; False where there is an entry by now.

        Two things are lost. TCP's window: no segment is compared with it from now on. And the time-outs that
        a rule has given it: with its next packet the kernel's own hold.
        """
        flags = netlink.ACK | netlink.CREATE | netlink.EXCLUSIVE
        request = netlink.message(_NEW, flags, _whole(entry), family=_family(entry.inbound))
        return self._done(request, unless=errno.EEXIST)

    def _done(self, request: bytes, *, unless: int = errno.ENOENT) -> bool:
        """Carry out what is asked of one entry; False where the kernel answers with this error."""
        try:
            netlink.ask(self._socket, request, "conntrack")
        except NetlinkError as error:
            if error.errno == unless:
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
        request = netlink.message(DELETE, netlink.ACK, _with_mark(mark, mask))
        netlink.ask(self._socket, request, "conntrack")


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
