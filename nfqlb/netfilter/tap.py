"""The tap: copies of packets that the kernel translates by itself, for whoever must know of them.

Owns `Tap`, which reads an NFLOG group over a netlink socket (linux/netfilter/nfnetlink_log.h). The kernel
collects copies and hands over many at a time; each is put to `on_packet` where it lies in the receive
buffer, without an object of its own. Nothing waits for the tap: what it cannot take is lost, counted,
and reported to `on_loss`, for then the reader's idea of the connections must be mended (`conntrack`).
"""

import errno
import socket
from collections.abc import Callable
from struct import Struct

from nfqlb.core.segment import NO_STAMP, Stamp
from nfqlb.netfilter import netlink
from nfqlb.netfilter.netlink import FIRST_ATTRIBUTE, NetlinkError, attribute
from nfqlb.netfilter.procfs import may_administer
from nfqlb.netfilter.render_offload import COPIED, THRESHOLD

#: What is done with a copy, buffer[start:end], which may be cut short: (buffer, start, end, hook, stamp).
#: `stamp` is the kernel's wall clock at the packet's arrival (seconds, microseconds), () where it says none.
OnPacket = Callable[[bytearray, int, int, int, Stamp], None]

_FLUSH = 1  # hundredths of a second that the kernel collects copies for, unless there are enough before
_NETLINK_BUFFER = 32_768  # of the kernel, for one batch
_BUFFER_SIZE = 1 << 17
_RECEIVE_BUFFER = 8 << 20

_SUBSYSTEM = 4 << 8  # NFNL_SUBSYS_ULOG
_MSG_PACKET, _MSG_CONFIG = _SUBSYSTEM, _SUBSYSTEM | 1
_CONFIG_COMMAND, _CONFIG_MODE, _CONFIG_BUFFER, _CONFIG_TIMEOUT, _CONFIG_THRESHOLD, _CONFIG_FLAGS = range(1, 7)
_BIND, _UNBIND = b"\1", b"\2"
_COPY_PACKET = 2
_FLAG_SEQUENCE = 1
_ATTRIBUTE_HEADER, _ATTRIBUTE_STAMP, _ATTRIBUTE_PAYLOAD, _ATTRIBUTE_SEQUENCE = 1, 3, 9, 12
_HOOK_AT = FIRST_ATTRIBUTE + 6  # NFULA_PACKET_HDR always comes first
_MAX_LAYOUTS = 32

_head = Struct("=IH").unpack_from
_size = Struct("=H").unpack_from
_stamp = Struct("!QQ").unpack_from
_sequence = Struct("!I").unpack_from

#: How to read all attribute headers in front of a payload, what they are where this layout fits, and how
#: far from the message's beginning payload, time stamp and sequence number are (0: there is none).
_Layout = tuple[Callable[[bytearray, int], tuple[int, ...]], tuple[int, ...], tuple[int, int, int]]


class TapMessages:
    """The message layer of a tap, without its socket."""

    def __init__(self, on_packet: OnPacket, on_loss: Callable[[int], None]) -> None:
        self.on_packet = on_packet
        self.on_loss = on_loss
        self.packets = 0
        self.lost = 0  # copies that the kernel made and we never saw
        self.unreadable = 0
        self.failed = 0  # copies that `on_packet` raised at
        self.on_error: Callable[[Exception], None] = _ignore
        self._next = -1  # the sequence number that comes next, -1 before the first
        self._layouts: list[_Layout] = []

    def read(self, buffer: bytearray, got: int) -> int:
        """Put every packet in the first `got` bytes to `on_packet`; how many there were.

        A batch has consecutive numbers, so a gap can only be in front of its first packet.
        """
        at = count = 0
        on_packet = self.on_packet
        while at + FIRST_ATTRIBUTE <= got:
            size, kind = _head(buffer, at)
            if size < 16 or at + size > got:
                break
            if kind == _MSG_PACKET:
                payload, stamp, sequence = self._places(buffer, at, at + size)
                if payload:
                    if not count and sequence:
                        self._expect(_sequence(buffer, at + sequence)[0])
                    count += 1
                    start = at + payload
                    try:
                        on_packet(
                            buffer, start, start + _size(buffer, start - 4)[0] - 4,
                            buffer[at + _HOOK_AT], _stamp(buffer, at + stamp) if stamp else NO_STAMP,
                        )  # fmt: skip
                    except Exception as error:  # noqa: BLE001  one copy must not cost those behind it
                        self.failed += 1
                        self.on_error(error)
                else:
                    self.unreadable += 1
            at += (size + 3) & ~3
        if self._next >= 0:
            self._next = (self._next + count) & 0xFFFFFFFF
        self.packets += count
        return count

    def _expect(self, number: int) -> None:
        """Compare a batch's first number with the one that should have come."""
        gap = (number - self._next) & 0xFFFFFFFF if self._next >= 0 else 0
        self._next = number
        if 0 < gap < 1 << 31:
            self.lost += gap
            self.on_loss(gap)

    def _places(self, buffer: bytearray, begin: int, end: int) -> tuple[int, int, int]:
        """How far payload, time stamp and sequence number are from a message's beginning; 0 for none."""
        for read, fixed, places in self._layouts:
            if read(buffer, begin + FIRST_ATTRIBUTE) == fixed and places[0] < end - begin:
                return places
        return self._learn(buffer, begin, end)

    def _learn(self, buffer: bytearray, begin: int, end: int) -> tuple[int, int, int]:
        """The same for a message of a layout not seen before, which is remembered."""
        shape = "="
        places = {_ATTRIBUTE_PAYLOAD: 0, _ATTRIBUTE_STAMP: 0, _ATTRIBUTE_SEQUENCE: 0}
        first = begin + FIRST_ATTRIBUTE
        for kind, value, stop in netlink.attributes(buffer, first, end):
            if value - 4 == first and kind != _ATTRIBUTE_HEADER:
                break
            if kind in places:
                places[kind] = value - begin
            if kind == _ATTRIBUTE_PAYLOAD:
                read = Struct(shape + "2xH").unpack_from
                found = (places[_ATTRIBUTE_PAYLOAD], places[_ATTRIBUTE_STAMP], places[_ATTRIBUTE_SEQUENCE])
                if len(self._layouts) < _MAX_LAYOUTS:
                    self._layouts.append((read, read(buffer, first), found))
                return found
            shape += f"HH{((stop - value) + 3) & ~3}x"
        return 0, 0, 0


class Tap(TapMessages):
    """One bound NFLOG group.

    Raises KernelError where the group is taken or the kernel has no nfnetlink_log. `on_loss` gets the
    number of copies lost, 0 where the kernel cannot tell. `inherited` is the descriptor of a socket that is
    bound to the group already, which this takes over.
    """

    def __init__(
        self,
        group: int,
        on_packet: OnPacket,
        on_loss: Callable[[int], None],
        *,
        receive_buffer: int = _RECEIVE_BUFFER,
        threshold: int = THRESHOLD,
        inherited: int | None = None,
    ) -> None:
        super().__init__(on_packet, on_loss)
        self.group = group
        self.overruns = 0  # times that the socket was full
        self._buffer = bytearray(0)
        self._wanted = (
            attribute(_CONFIG_COMMAND, _BIND),
            attribute(_CONFIG_MODE, Struct("!IBx").pack(COPIED, _COPY_PACKET))
            + attribute(_CONFIG_BUFFER, _NETLINK_BUFFER.to_bytes(4, "big"))
            + attribute(_CONFIG_TIMEOUT, _FLUSH.to_bytes(4, "big"))
            + attribute(_CONFIG_THRESHOLD, threshold.to_bytes(4, "big"))
            + attribute(_CONFIG_FLAGS, _FLAG_SEQUENCE.to_bytes(2, "big")),
        )
        if inherited is not None:
            self._socket = socket.socket(fileno=inherited)
            self._socket.setblocking(False)
            return
        self._socket = netlink.connect(receive_buffer=receive_buffer)
        try:
            for body in self._wanted:
                self._ask(body)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def _ask(self, body: bytes) -> None:
        request = netlink.message(_MSG_CONFIG, netlink.ACK, body, resource=self.group)
        try:
            netlink.ask(self._socket, request, f"NFLOG group {self.group}")
        except NetlinkError as error:
            if error.errno == errno.EPERM and may_administer():  # the kernel's word for a group that is taken
                raise netlink.refused(f"NFLOG group {self.group}", errno.EBUSY) from None
            raise

    def rebind(self) -> None:
        """Bind again, with the socket that every worker shares: the kernel has let go of the group."""
        for body in self._wanted:
            self._socket.send(netlink.message(_MSG_CONFIG, 0, body, resource=self.group))

    def fileno(self) -> int:
        """The descriptor that is readable when copies wait."""
        return self._socket.fileno()

    def close(self) -> None:
        """Unbind; what still waits is lost."""
        self._socket.close()

    def run(self, budget: int) -> int:
        """Read what waits, about `budget` packets at most; returns how many there were."""
        if not self._buffer:  # not before: a supervisor that only binds needs none
            self._buffer = bytearray(_BUFFER_SIZE)
        return netlink.drain(self._socket, self._buffer, self.read, self._overrun, budget)

    def _overrun(self) -> None:
        self.overruns += 1
        self.on_loss(0)


def _ignore(_error: Exception) -> None:
    pass
