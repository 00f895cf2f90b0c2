"""The messages of one NFQUEUE, without its socket: finds the packet, has it judged, writes the answer.

Owns what is known of the kernel's message formats (linux/netlink.h, linux/netfilter/nfnetlink_queue.h).
A packet is judged where it lies in the receive buffer, and the verdict is written into the bytes
just before it, so nothing is copied.

Where the payload lies depends on the attributes in front of it, and those on mark, priority, time
stamp, interface and checksum. So the headers of all attributes seen in front of a payload make a
layout; a message with exactly these has its payload at the same place. Comparing less would let a
sender place what looks like a payload's header inside his packet.
"""

from collections.abc import Callable
from struct import Struct
from sys import byteorder

from nfqlb.packet.path import CHANGED, DROP

#: Judges the packet in buffer[start:end]:
#: (buffer, start, end, hook, checksum information, where the time stamp is or 0) -> verdict.
Judge = Callable[[bytearray, int, int, int, int, int], int]
#: Where a message's payload attribute begins, and where its time stamp stands (0: it has none).
Place = tuple[int, int]

_SUBSYSTEM = 3 << 8  # NFNL_SUBSYS_QUEUE
MSG_PACKET = _SUBSYSTEM
MSG_VERDICT = _SUBSYSTEM | 1
MSG_CONFIG = _SUBSYSTEM | 2
MSG_VERDICT_BATCH = _SUBSYSTEM | 3
_MSG_ERROR = 2  # NLMSG_ERROR
_REQUEST = 1

_ATTRIBUTE_PACKET_HEADER = 1
_ATTRIBUTE_MARK = 3
_ATTRIBUTE_TIMESTAMP = 4
_ATTRIBUTES_BEFORE_MARK = range(5, 9)  # interfaces (nfqnl_build_packet_message writes them in this order)
_ATTRIBUTE_PAYLOAD = 10
_ATTRIBUTE_SKB_INFO = 14
_ATTRIBUTE_VERDICT_HEADER = 2
_NF_ACCEPT = b"\0\0\0\1"
_NF_DROP = b"\0\0\0\0"
_NF_REPEAT = b"\0\0\0\4"

_KIND_AT = 4
_FIRST_ATTRIBUTE = 20  # after the netlink header and nfgenmsg
_PACKET_HEADER_SIZE = 11
_STAMP_SIZE = 20
_ID_AT, _HOOK_AT = 24, 30  # NFQA_PACKET_HDR always comes first
#: So many bytes of a message tell a packet's id.
ID_END = _ID_AT + 4
VERDICT_SIZE = 32  # a verdict without payload; the payload's attribute header adds 4
_MARKED_SIZE = VERDICT_SIZE + 8
_MAX_LAYOUTS = 32

_kind = Struct("=H").unpack_from
_attribute = Struct("=HH").unpack_from
# what may stand just before the payload (NFQA_SKB_INFO, big-endian: its last byte), then the payload's size
_tail = Struct("=HH3xBH").unpack_from
_write_verdict = Struct("=IHHIIBBHHH4s4sHH").pack_into
_write_marked = Struct("=IHHIIBBHHH4s4sHH4s").pack_into
_header = Struct("=IHHIIBBH").pack
_verdict_header = Struct("=HH4s4s").pack


#: Reads all attribute headers of a layout, what it reads where the layout fits, the payload's place,
#: and that with the time stamp's. Plain tuples of small numbers: they are compared for every packet.
_Layout = tuple[Callable[[bytearray, int], tuple[int, ...]], tuple[int, ...], int, Place]


class QueueMessages:
    """The message layer of one queue number. `judge` must be set before `answer`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.judge: Judge | None = None
        self.on_error: Callable[[Exception], None] = _ignore
        self.packets = 0  # judged, and answered
        self.failed = 0  # judgements that raised, and answers that could not be sent
        self._layouts: list[_Layout] = []
        self._id = int.from_bytes(number.to_bytes(2, "big"), byteorder)

    def find(self, buffer: bytearray, got: int) -> Place | None:
        """Where payload and time stamp are in a message of `got` bytes; None if it holds no packet."""
        for read, fixed, at, place in self._layouts:
            # past `got` an older message's payload may still stand
            if read(buffer, _FIRST_ATTRIBUTE) == fixed and at < got:
                return place
        return self._learn(buffer, got)

    def _learn(self, buffer: bytearray, got: int) -> Place | None:
        """The same for a message of a layout not seen before, which is remembered."""
        if got < ID_END + 8 or _kind(buffer, _KIND_AT)[0] != MSG_PACKET:
            return None
        if _attribute(buffer, _FIRST_ATTRIBUTE) != (_PACKET_HEADER_SIZE, _ATTRIBUTE_PACKET_HEADER):
            return None
        shape = "="
        at = _FIRST_ATTRIBUTE
        stamp_at = 0
        while at + 4 <= got:
            size, kind = _attribute(buffer, at)
            if size < 4 or at + size > got:
                return None
            if kind == _ATTRIBUTE_PAYLOAD:
                read = Struct(shape + "2xH").unpack_from
                place = (at, stamp_at)
                if len(self._layouts) < _MAX_LAYOUTS:
                    self._layouts.append((read, read(buffer, _FIRST_ATTRIBUTE), at, place))
                return place
            if kind == _ATTRIBUTE_TIMESTAMP and size == _STAMP_SIZE:
                stamp_at = at + 4
            padded = (size + 3) & ~3
            shape += f"HH{padded - 4}x"
            at += padded
        return None

    def answer(self, buffer: bytearray, view: memoryview, place: Place) -> memoryview:
        """Judge the packet at a place that was found; the verdict message, written just before the packet.

        `view` is of the same buffer. A judgement that raises is counted and drops the packet.
        """
        at, stamp_at = place
        info_size, info_kind, flags, size = _tail(buffer, at - 8)
        info = flags if info_kind == _ATTRIBUTE_SKB_INFO and info_size == 8 else 0
        packet_id = buffer[_ID_AT:ID_END]
        start = at + 4
        end = at + size
        verdict = DROP
        self.packets += 1
        try:
            # judge is set by the worker
            verdict = self.judge(buffer, start, end, buffer[_HOOK_AT], info, stamp_at)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001  whatever went wrong, the packet needs its verdict
            self.failed += 1
            self.on_error(error)
        begin = start - VERDICT_SIZE - 4
        stop = end if verdict == CHANGED else begin + VERDICT_SIZE
        _write_verdict(
            buffer, begin, stop - begin, MSG_VERDICT, _REQUEST, 0, 0, 0, 0, self._id,
            12, _ATTRIBUTE_VERDICT_HEADER, _NF_ACCEPT if verdict else _NF_DROP, packet_id,
            size, _ATTRIBUTE_PAYLOAD,
        )  # fmt: skip
        return view[begin : (stop + 3) & ~3]

    def answer_mark(self, buffer: bytearray, view: memoryview, place: Place, mask: int) -> memoryview:
        """Judge the packet at a place that was found; the verdict message that marks it.

        Here `judge` returns a mark, of which the bits of `mask` count and the packet's others stay as
        they are; the packet begins its way through this hook again (NF_REPEAT), so that rules behind
        the queue see the mark. 0 drops it. The packet itself is not sent back. `view` is of the same
        buffer, whose beginning the message takes. A judgement that raises is counted and drops the packet.
        """
        at, stamp_at = place
        size, info_kind, flags, payload = _tail(buffer, at - 8)
        info = flags if info_kind == _ATTRIBUTE_SKB_INFO and size == 8 else 0
        packet_id = buffer[_ID_AT:ID_END]
        before = _mark_in(buffer, at)
        mark = 0
        self.packets += 1
        try:
            # judge is set by the worker
            mark = self.judge(buffer, at + 4, at + payload, buffer[_HOOK_AT], info, stamp_at) & mask  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001  whatever went wrong, the packet needs its verdict
            self.failed += 1
            self.on_error(error)
        _write_marked(
            buffer, 0, _MARKED_SIZE, MSG_VERDICT, _REQUEST, 0, 0, 0, 0, self._id,
            12, _ATTRIBUTE_VERDICT_HEADER, _NF_REPEAT if mark else _NF_DROP, packet_id,
            8, _ATTRIBUTE_MARK, (before & ~mask | mark).to_bytes(4, "big"),
        )  # fmt: skip
        return view[:_MARKED_SIZE]

    def message(self, kind: int, attributes: bytes) -> bytes:
        """A message to the kernel about this queue."""
        return _header(_FIRST_ATTRIBUTE + len(attributes), kind, _REQUEST, 0, 0, 0, 0, self._id) + attributes

    def drop(self, packet_id: bytes, kind: int = MSG_VERDICT) -> bytes:
        """The message that drops a packet; as MSG_VERDICT_BATCH, it and every earlier one."""
        return self.message(kind, _verdict_header(12, _ATTRIBUTE_VERDICT_HEADER, _NF_DROP, packet_id))


def _mark_in(buffer: bytearray, end: int) -> int:
    """The mark that a packet carries already; 0 if its message has none before `end`."""
    at = _FIRST_ATTRIBUTE + ((_PACKET_HEADER_SIZE + 3) & ~3)
    while at < end:
        size, kind = _attribute(buffer, at)
        if kind == _ATTRIBUTE_MARK:
            return int.from_bytes(buffer[at + 4 : at + 8], "big")
        if kind not in _ATTRIBUTES_BEFORE_MARK:
            break
        at += (size + 3) & ~3
    return 0


def is_error(buffer: bytes | bytearray, got: int) -> bool:
    """Whether a message of `got` bytes is the kernel's report that it refused one of ours."""
    return got >= _FIRST_ATTRIBUTE and bool(_kind(buffer, _KIND_AT)[0] == _MSG_ERROR)


def id_in(buffer: bytes | bytearray, got: int) -> int:
    """The id of the packet in a message; 0 if it holds none. The first ID_END bytes will do."""
    if got < ID_END or _kind(buffer, _KIND_AT)[0] != MSG_PACKET:
        return 0
    return int.from_bytes(buffer[_ID_AT:ID_END], "big")


def id_of(verdict: bytes | bytearray | memoryview) -> bytes:
    """The packet's id in a verdict message that `answer` wrote (network order)."""
    return bytes(verdict[VERDICT_SIZE - 4 : VERDICT_SIZE])


def _ignore(_error: Exception) -> None:
    pass
