"""An NFQUEUE: packets in, verdicts out.

Owns `PacketQueue`: a NetfilterQueue whose socket is read here, and to which only a message of
a shape not understood is handed, through `run_socket()` with the queue itself in a socket's
place. That is what lifts NetfilterQueue's limits without patching it:

- it would read 4 KB and ask the kernel for no more, so that long packets arrive cut: one
  raw configuration message asks for 65,531 bytes and for whole super-packets (GSO), and the
  receive buffers are 128 KB;
- a packet is judged where it lies in the receive buffer (`messages`), and verdicts are sent
  several at a time, which saves a system call a packet;
- `run()` would not return under load: a budget ends each round;
- lost messages (ENOBUFS) are counted, and a judgement that fails leaves no packet without a
  verdict.
"""

import errno
import fcntl
import os
import socket
import time
from struct import Struct

from netfilterqueue import NetfilterQueue, Packet

from nfqlb.netfilter.messages import (
    ID_END,
    MSG_CONFIG,
    MSG_VERDICT_BATCH,
    Place,
    QueueMessages,
    id_in,
    id_of,
    is_error,
)
from nfqlb.netfilter.queue_status import Room, read_queues

COPY_RANGE = 65531  # the most that fits a netlink attribute (nfnetlink_queue.c: NFQNL_MAX_COPY_RANGE)
_BUFFER_SIZE = 131_072
#: Packets judged before their verdicts go out together: fewer cost system calls, more delay the first.
_BATCH = 16
#: A round of verdicts ends at this many bytes, so that two super-packets do not wait for a third.
_BATCH_BYTES = 130_000
_SEND_BUFFER = 1 << 20

_SO_TIMESTAMP = 29
_SO_SNDBUFFORCE = 32
_SO_MEMINFO = 55
_memory = Struct("=II").unpack_from  # SK_MEMINFO_RMEM_ALLOC, SK_MEMINFO_RCVBUF (linux/sock_diag.h)
_CONFIG_COMMAND, _CONFIG_PARAMS, _CONFIG_LENGTH, _CONFIG_MASK, _CONFIG_FLAGS = 1, 2, 3, 4, 5
_BIND, _UNBIND = b"\1\0\0\0", b"\2\0\0\0"
_FLAG_GSO = 4
_COPY_PACKET = 2


def ask_for_stamps() -> socket.socket:
    """A socket that makes the kernel stamp what it receives, on the whole machine, until it is closed.

    Without any that asks (SO_TIMESTAMP, socket(7)), packets are queued without NFQA_TIMESTAMP.
    """
    asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asking.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMP, 1)
    return asking


class PacketQueue(QueueMessages):
    """One bound NFQUEUE number. `judge` must be set before `run`.

    `packets` is what its reader has judged, `busy_s` the seconds that took, reading and answering included:
    the clock is read once a round, as to read it for each packet would be felt. `inherited` is the descriptor
    of a socket that is bound to the number already, which this takes over. Raises OSError if the number is
    taken or the right to bind is missing.
    """

    def __init__(
        self, number: int, *, length: int, receive_buffer: int, inherited: int | None = None
    ) -> None:
        super().__init__(number)
        self._length = length
        self.overruns = 0  # ENOBUFS: the kernel could not hand over a packet and dropped it
        self.unreadable = 0
        self.refused = 0  # messages the kernel answered with an error
        self.busy_s = 0.0
        self._unread_message = b""
        self._buffers: list[tuple[bytearray, memoryview]] = []
        self._queue: NetfilterQueue | None = None
        if inherited is None:
            self._queue = NetfilterQueue()
            self._queue.bind(number, self._unread, max_len=length, sock_len=receive_buffer)
            descriptor = self._queue.get_fd()
            fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)  # no child program may keep it alive
            inherited = os.dup(descriptor)
        self._socket = socket.socket(fileno=inherited)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        self._configure()

    def _configure(self) -> None:
        attributes = (
            Struct("=HH").pack(9, _CONFIG_PARAMS) + Struct("!IB3x").pack(COPY_RANGE, _COPY_PACKET)
            + Struct("=HH").pack(8, _CONFIG_MASK) + _FLAG_GSO.to_bytes(4, "big")
            + Struct("=HH").pack(8, _CONFIG_FLAGS) + _FLAG_GSO.to_bytes(4, "big")
        )  # fmt: skip
        self._socket.send(self.message(MSG_CONFIG, attributes))

    def rebind(self) -> None:
        """Bind again, with the socket that every worker shares: the kernel has let go of the queue."""
        header = Struct("=HH").pack
        self._socket.send(self.message(MSG_CONFIG, header(8, _CONFIG_COMMAND) + _BIND))
        length = header(8, _CONFIG_LENGTH) + self._length.to_bytes(4, "big")
        self._socket.send(self.message(MSG_CONFIG, length))
        self._configure()

    def let_go(self) -> None:
        """Unbind, with the socket left as it is for `rebind`; the kernel drops what still waits."""
        self._socket.send(self.message(MSG_CONFIG, Struct("=HH").pack(8, _CONFIG_COMMAND) + _UNBIND))

    def fileno(self) -> int:
        """The descriptor that is readable when packets wait."""
        return self._socket.fileno()

    @property
    def room(self) -> Room:
        """What it has room for, and what is taken of it now. Raises OSError."""
        used, limit = _memory(self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 8))
        return Room(self._length, limit, used)

    def close(self) -> None:
        """Unbind; the kernel drops what still waits."""
        self._socket.close()
        if self._queue is not None:
            self._queue.unbind()

    def run(self, budget: int) -> int:
        """Judge what waits, at most about `budget` packets; returns how many there were."""
        if not self._buffers:  # not before: a supervisor that only binds needs none
            buffers = [bytearray(_BUFFER_SIZE) for _ in range(_BATCH)]
            self._buffers = [(buffer, memoryview(buffer)) for buffer in buffers]
        before = self.packets
        begin = time.monotonic()
        drained = False
        while not drained and self.packets - before < budget:
            verdicts: list[memoryview] = []
            try:
                drained = self._judge_batch(verdicts)
            finally:
                if verdicts:
                    self._send(verdicts)
            if self._unread_message:
                self._give_up()
        self.busy_s += time.monotonic() - begin
        return self.packets - before

    def _give_up(self) -> None:
        """Answer a message that was not understood, as NetfilterQueue reads it where that bound the queue."""
        if self._queue is not None:
            self._queue.run_socket(self)  # type: ignore[arg-type]  # of a socket it only uses recv
            return
        message, self._unread_message = self._unread_message, b""
        if packet_id := id_in(message, len(message)):
            self.unreadable += 1
            self._socket.send(self.drop(packet_id.to_bytes(4, "big")))

    def recv(self, _size: int) -> bytes:
        """What run_socket() asks a socket for: a message that was not understood, then nothing more."""
        message, self._unread_message = self._unread_message, b""
        if not message:
            raise BlockingIOError(errno.EAGAIN, "nothing waits")
        return message

    def _judge_batch(self, verdicts: list[memoryview]) -> bool:
        """Read and judge up to a batch, adding to `verdicts`; whether no packet waits any more."""
        receive = self._socket.recv_into
        size = 0
        for buffer, view in self._buffers:
            try:
                got = receive(buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                continue
            try:
                place = self.find(buffer, got)
                if place is None:
                    self._set_aside(buffer, got)
                    return False
                verdicts.append(self.answer(buffer, view, place))
            except Exception as error:  # noqa: BLE001  whatever went wrong, the packet needs its verdict
                self._fail(buffer, got, verdicts, error)
            size += got
            if size > _BATCH_BYTES:
                break
        return False

    def _fail(self, buffer: bytearray, got: int, verdicts: list[memoryview], error: Exception) -> None:
        """Drop a packet that was read, and that nobody came to judge."""
        if packet_id := id_in(buffer, got):
            verdicts.append(memoryview(self.drop(packet_id.to_bytes(4, "big"))))
        self.failed += 1
        self.on_error(error)

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
                self._socket.send(self.drop(id_of(verdict)))

    # --- messages that are no packets, or packets of another shape

    def _set_aside(self, buffer: bytearray, got: int) -> None:
        """Count an error report; keep what else was not understood for NetfilterQueue's parser."""
        if is_error(buffer, got):
            self.refused += 1
        else:
            self._unread_message = bytes(buffer[:got])

    def _unread(self, packet: Packet) -> None:
        """NetfilterQueue understood what we did not: without its payload in place, it is dropped."""
        self.unreadable += 1
        packet.drop()

    # --- after another worker's death

    def free_abandoned(self) -> int:
        """Drop what a worker that died had read but not answered; returns the last such id, 0 if none.

        Ids rise by one, and a worker answers in order. So whatever precedes the first packet
        still in the socket was read by the dead one; where none is there, all that the kernel
        had queued before we looked.
        """
        status = next((each for each in read_queues() if each.number == self.number), None)
        if status is None or not status.depth:
            return 0
        first = self._first_waiting()
        last = first - 1 if first else status.last_id
        if last > 0:
            self._socket.send(self.drop(last.to_bytes(4, "big"), MSG_VERDICT_BATCH))
        return last

    def _first_waiting(self) -> int:
        """The id of the first packet in the socket, 0 if there is none; what stands before it is taken out.

        That is a report that messages were lost, which says nothing of those that were not, and
        the answers to the dead worker's last verdicts.
        """
        peeked = bytearray(ID_END)
        while True:
            try:
                got = self._socket.recv_into(peeked, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                if packet_id := id_in(peeked, got):
                    return packet_id
                self._socket.recv_into(peeked, 0, socket.MSG_DONTWAIT)
                self.refused += is_error(peeked, got)
            except BlockingIOError:
                return 0
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1


class MarkQueue(PacketQueue):
    """A queue whose packets are marked, not changed: `judge` returns a mark within `mask`, 0 to drop.

    The kernel translates what is marked (datapath offload). See `QueueMessages.answer_mark`. `mask` must be
    the bits by which the rules tell a marked packet, or it would come here again and again.
    """

    def __init__(
        self, number: int, *, length: int, receive_buffer: int, mask: int, inherited: int | None = None
    ) -> None:
        super().__init__(number, length=length, receive_buffer=receive_buffer, inherited=inherited)
        self.mask = mask

    def answer(self, buffer: bytearray, view: memoryview, place: Place) -> memoryview:
        """Judge one packet; the verdict message, with its mark."""
        return self.answer_mark(buffer, view, place, self.mask)
