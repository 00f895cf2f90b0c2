"""An NFQUEUE: packets in, verdicts out.

Owns `PacketQueue`: a NetfilterQueue that is driven through `run_socket()` with a receiving
object of our own (the queue itself). That is what lifts NetfilterQueue's limits without
patching it:

- it would read 4 KB and ask the kernel for no more, so that long packets arrive cut: one
  raw configuration message asks for 65,531 bytes and for whole super-packets (GSO), and the
  receive buffers are 128 KB;
- a packet is judged where it lies in the receive buffer, and the verdict message is written
  into the bytes just before it, so nothing is copied; verdicts are sent several at a time,
  which saves a system call a packet;
- `run()` would not return under load: a budget ends each round;
- lost messages (ENOBUFS) are counted, and a judgement that fails leaves no packet without a
  verdict.

Only a message whose shape is not understood goes on to NetfilterQueue's own parser.
Message formats: linux/netlink.h, linux/netfilter/nfnetlink_queue.h.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from struct import Struct

from netfilterqueue import NetfilterQueue, Packet

from nfqlb.netfilter.queue_status import read_queues
from nfqlb.packet.path import CHANGED, DROP

#: Judges the packet in buffer[start:end]: (buffer, start, end, hook, checksum information) -> verdict.
Judge = Callable[[bytearray, int, int, int, int], int]

COPY_RANGE = 65531  # the most that fits a netlink attribute (nfnetlink_queue.c: NFQNL_MAX_COPY_RANGE)
_BUFFER_SIZE = 131_072
#: Packets judged before their verdicts go out together: fewer cost system calls, more delay the first.
_BATCH = 16
#: A round of verdicts ends at this many bytes, so that two super-packets do not wait for a third.
_BATCH_BYTES = 130_000
_SEND_BUFFER = 1 << 20

_SUBSYSTEM = 3 << 8  # NFNL_SUBSYS_QUEUE
_MSG_VERDICT = _SUBSYSTEM | 1
_MSG_CONFIG = _SUBSYSTEM | 2
_MSG_VERDICT_BATCH = _SUBSYSTEM | 3
_REQUEST = 1
_ERROR = 2  # NLMSG_ERROR
_SO_SNDBUFFORCE = 32
_ATTRIBUTE_PAYLOAD = 10
_ATTRIBUTE_SKB_INFO = 14
_ATTRIBUTE_VERDICT_HEADER = 2
_CONFIG_PARAMS, _CONFIG_MASK, _CONFIG_FLAGS = 2, 4, 5
_FLAG_GSO = 4
_COPY_PACKET = 2
_NF_ACCEPT = b"\0\0\0\1"
_NF_DROP = b"\0\0\0\0"

_FIRST_ATTRIBUTE = 20  # after the netlink header and nfgenmsg
_ID_AT, _HOOK_AT = 24, 30  # NFQA_PACKET_HDR always comes first
_VERDICT_SIZE = 32  # a verdict without payload; the payload's attribute header adds 4

_attribute = Struct("=HH").unpack_from
# what may stand just before the payload (NFQA_SKB_INFO), then the payload's own attribute header
_tail = Struct("=HH4sHH").unpack_from
_write_verdict = Struct("=IHHIIBBHHH4s4sHH").pack_into
_header = Struct("=IHHIIBBH")
_SUPER_OR_NOT_READY = {info.to_bytes(4, "big"): info for info in range(8)}


class PacketQueue:
    """One bound NFQUEUE number. `judge` must be set before `run`.

    Raises OSError if the number is taken or the right to bind is missing.
    """

    def __init__(self, number: int, *, length: int, receive_buffer: int) -> None:
        self.number = number
        self.judge: Judge | None = None
        self.on_error: Callable[[Exception], None] = _ignore
        self.handled = 0
        self.overruns = 0  # ENOBUFS: the kernel could not hand over a packet and dropped it
        self.unreadable = 0
        self.failed = 0
        self.refused = 0  # messages the kernel answered with an error
        self._budget = 0
        self._layouts: list[int] = []
        self._buffers: list[tuple[bytearray, memoryview]] = []
        self._id = socket.htons(number)
        self._queue = NetfilterQueue()
        self._queue.bind(number, self._unread, max_len=length, sock_len=receive_buffer)
        descriptor = self._queue.get_fd()
        fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)  # no child program may keep the queue alive
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        self._configure()

    def _configure(self) -> None:
        attributes = (
            Struct("=HH").pack(9, _CONFIG_PARAMS) + Struct("!IB3x").pack(COPY_RANGE, _COPY_PACKET)
            + Struct("=HH").pack(8, _CONFIG_MASK) + _FLAG_GSO.to_bytes(4, "big")
            + Struct("=HH").pack(8, _CONFIG_FLAGS) + _FLAG_GSO.to_bytes(4, "big")
        )  # fmt: skip
        self._socket.send(self._message(_MSG_CONFIG, attributes))

    def _message(self, kind: int, attributes: bytes) -> bytes:
        return _header.pack(20 + len(attributes), kind, _REQUEST, 0, 0, 0, 0, self._id) + attributes

    def fileno(self) -> int:
        """The descriptor that is readable when packets wait."""
        return self._socket.fileno()

    def close(self) -> None:
        """Unbind; the kernel drops what still waits."""
        self._socket.close()
        self._queue.unbind()

    def run(self, budget: int) -> int:
        """Judge what waits, at most about `budget` packets; returns how many there were."""
        if not self._buffers:  # not before: a supervisor that only binds needs none
            buffers = [bytearray(_BUFFER_SIZE) for _ in range(_BATCH)]
            self._buffers = [(buffer, memoryview(buffer)) for buffer in buffers]
        before = self.handled
        self._budget = before + budget
        self._queue.run_socket(self)  # type: ignore[arg-type]  # of a socket it only uses recv
        return self.handled - before

    # --- what run_socket() takes for a socket

    def recv(self, _size: int) -> bytes:
        """Judge packets until none waits or the budget is spent, then raise BlockingIOError.

        Returns only a message that it could not read, for NetfilterQueue to parse.
        """
        while self.handled < self._budget:
            verdicts: list[memoryview] = []
            try:
                unread, drained = self._judge_batch(verdicts)
            finally:
                if verdicts:
                    self._send(verdicts)
            if unread:
                return unread
            if drained:
                break
        raise BlockingIOError(errno.EAGAIN, "nothing waits")

    def _judge_batch(self, verdicts: list[memoryview]) -> tuple[bytes, bool]:
        """Read and judge up to a batch, adding to `verdicts`; an unread message, and whether none is left."""
        receive = self._socket.recv_into
        size = 0
        for buffer, view in self._buffers:
            try:
                got = receive(buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return b"", True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                continue
            at = self._payload_at(buffer, got)
            if not at:
                return self._set_aside(buffer, got), False
            verdicts.append(self._answer(buffer, view, at))
            size += got
            if size > _BATCH_BYTES:
                break
        return b"", False

    def _payload_at(self, buffer: bytearray, got: int) -> int:
        """Where the payload's attribute begins; 0 if this is no message with a packet.

        Its place is the same from packet to packet of one kind, so the places seen are tried first.
        """
        for at in self._layouts:
            _, _, _, size, kind = _tail(buffer, at - 8)
            if kind == _ATTRIBUTE_PAYLOAD and 0 <= got - at - size < 4:
                return at
        if got < _FIRST_ATTRIBUTE or _attribute(buffer, 4)[0] == _ERROR:
            return 0
        at = _FIRST_ATTRIBUTE
        while at + 4 <= got:
            size, kind = _attribute(buffer, at)
            if kind == _ATTRIBUTE_PAYLOAD:
                if len(self._layouts) < 16:
                    self._layouts.append(at)
                return at
            if size < 4:
                return 0
            at += (size + 3) & ~3
        return 0

    def _answer(self, buffer: bytearray, view: memoryview, at: int) -> memoryview:
        """Judge one packet; the verdict message, written just before the packet."""
        info_size, info_kind, flags, size, _ = _tail(buffer, at - 8)
        info = _SUPER_OR_NOT_READY.get(flags, 0) if info_kind == _ATTRIBUTE_SKB_INFO and info_size == 8 else 0
        packet_id = buffer[_ID_AT : _ID_AT + 4]
        start = at + 4
        end = at + size
        verdict = DROP
        self.handled += 1
        try:
            verdict = self.judge(buffer, start, end, buffer[_HOOK_AT], info)  # type: ignore[misc]  # set by the worker
        except Exception as error:  # noqa: BLE001  whatever went wrong, the packet needs its verdict
            self.failed += 1
            self.on_error(error)
        begin = start - _VERDICT_SIZE - 4
        stop = end if verdict == CHANGED else begin + _VERDICT_SIZE
        _write_verdict(
            buffer, begin, stop - begin, _MSG_VERDICT, _REQUEST, 0, 0, 0, 0, self._id,
            12, _ATTRIBUTE_VERDICT_HEADER, _NF_ACCEPT if verdict else _NF_DROP, packet_id,
            size, _ATTRIBUTE_PAYLOAD,
        )  # fmt: skip
        return view[begin : (stop + 3) & ~3]

    def _send(self, verdicts: list[memoryview]) -> None:
        """Send verdicts together; where the kernel has no room for them all, one by one."""
        try:
            self._socket.sendmsg(verdicts)
            return
        except OSError:
            pass
        for verdict in verdicts:
            try:
                self._socket.send(verdict)
            except OSError:
                # Too big for the memory at hand: give the packet up rather than leave it waiting.
                self.failed += 1
                self._socket.send(self._drop(bytes(verdict[_VERDICT_SIZE - 4 : _VERDICT_SIZE])))

    def _drop(self, packet_id: bytes, kind: int = _MSG_VERDICT) -> bytes:
        return self._message(kind, Struct("=HH4s4s").pack(12, _ATTRIBUTE_VERDICT_HEADER, _NF_DROP, packet_id))

    # --- messages that are no packets, or packets of another shape

    def _set_aside(self, buffer: bytearray, got: int) -> bytes:
        """Count an error report; what else was not understood goes on to NetfilterQueue's parser."""
        if got >= _FIRST_ATTRIBUTE and _attribute(buffer, 4)[0] == _ERROR:
            self.refused += 1
            return b""
        return bytes(buffer[:got])

    def _unread(self, packet: Packet) -> None:
        """NetfilterQueue understood what we did not: without its payload in place, it is dropped."""
        self.unreadable += 1
        packet.drop()

    # --- after another worker's death

    def free_abandoned(self) -> int:
        """Drop what a worker that died had read but not answered; returns the last such id, 0 if none.

        Ids rise by one, and a worker answers in order. So whatever precedes the first message
        still in the socket was read by the dead one; where none is there, all that the kernel
        had queued before we looked.
        """
        status = next((each for each in read_queues() if each.number == self.number), None)
        if status is None or not status.depth:
            return 0
        last = status.last_id
        peeked = bytearray(_ID_AT + 4)
        try:
            got = self._socket.recv_into(peeked, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            if got > _ID_AT and _attribute(peeked, 4)[0] != _ERROR:
                last = int.from_bytes(peeked[_ID_AT:], "big") - 1
        except OSError:  # nothing waits, or messages were lost: `last` stands
            pass
        if last > 0:
            self._socket.send(self._drop(last.to_bytes(4, "big"), _MSG_VERDICT_BATCH))
        return max(last, 0)


def _ignore(_error: Exception) -> None:
    pass
