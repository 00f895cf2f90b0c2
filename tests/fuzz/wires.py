"""Netlink's messages, whole and damaged: the queue's, the tap's, conntrack's."""

from struct import pack

from nfqlb.netfilter.conntrack import Entry, entry_in, tuple_of
from nfqlb.netfilter.endings import EndingMessages
from nfqlb.netfilter.messages import QueueMessages, id_in, is_error
from nfqlb.netfilter.netlink import attribute, messages, nested
from nfqlb.netfilter.tap import TapMessages
from tests.fuzz.choices import Choices
from tests.fuzz.mutants import TCP, damage, nobody, packet
from tests.fuzz.worlds import BUFFER

_MOST = 40  # messages in one story


def _message(kind: int, body: bytes) -> bytes:
    return pack("=IHHIIBBH", 20 + len(body), kind, 0, 0, 0, 2, 0, 0x0700) + body


def copied(choices: Choices, copy: bytes, hook: int, number: int) -> bytes:
    """A message of the tap."""
    parts = attribute(1, pack("!HBx", 0x0800, hook))
    if choices.below(2):
        parts += attribute(3, pack("!QQ", 1_700_000_000, number))
    if choices.below(4):
        parts += attribute(12, (number * choices.pick((1, 1, 1, 3))).to_bytes(4, "big"))
    return _message(4 << 8, parts + attribute(9, copy))


def ending(key: bytes) -> bytes:
    """conntrack's word that the entry of a client's key is no more."""
    protocol = key[-1] if len(key) & 1 else TCP
    return _message(1 << 8 | 2, nested(1, tuple_of(key[: len(key) & ~1], protocol)))


def queue(data: bytes) -> int:
    """The queue's message parser: whole messages, damaged ones, and any bytes at all, into one buffer."""
    choices, buffer = Choices(data), bytearray(BUFFER)
    view, errors, judged = memoryview(buffer), list[Exception](), list[bytes]()
    reader = QueueMessages(7)
    reader.on_error = errors.append

    def judge(buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int) -> int:
        assert start >= 36
        assert 0 <= stamp_at <= start - 16 or not stamp_at
        judged.append(bytes(buffer[start:end]))
        return choices.below(4)

    reader.judge = judge
    count = 0
    while count < _MOST and (choices.left or not count):
        count += 1
        payload: bytes | None = packet(choices, nobody, inbound=True).data[:2000]
        whole = _queued(choices, payload or b"")
        if not choices.below(8):
            whole, payload = choices.some(200), None
        if choices.below(2):
            whole, payload = damage(choices, whole), None
        buffer[: len(whole)] = whole
        got = len(whole)
        is_error(buffer, got)
        packet_id = id_in(buffer, got)
        place = reader.find(buffer, got)
        if place is None:
            assert payload is None, "it is whole"
            continue
        number = bytes(buffer[24:28])
        mask = choices.pick((0, 0x00FF_0000))
        answered = (
            reader.answer_mark(buffer, view, place, mask) if mask else reader.answer(buffer, view, place)
        )
        assert payload is None or judged[-1] == payload
        assert bytes(answered[28:32]) == number
        assert packet_id in (0, int.from_bytes(number, "big"))
        assert len(answered) >= 32
        assert len(answered) % 4 == 0
    assert len(reader._layouts) <= 32
    if errors:
        raise errors[0]
    return count


def _queued(choices: Choices, payload: bytes) -> bytes:
    parts = attribute(1, pack("!IHB", choices.below(1000), 0x0800, choices.below(5)))
    for kind, value in ((5, 4), (6, 4), (3, 4), (20, 4), (9, 12), (4, 16), (16, 4), (14, 4)):
        if choices.below(2):
            parts += attribute(kind, choices.take(value))
    return _message(3 << 8, parts + attribute(10, payload))


def tap(data: bytes) -> int:
    """The tap's message parser, several messages in one read."""
    choices, buffer = Choices(data), bytearray(BUFFER)
    errors, gaps, seen = list[Exception](), list[int](), list[tuple[bytes, int]]()

    def on_packet(buffer: bytearray, start: int, end: int, hook: int, stamp: tuple[int, ...]) -> None:
        assert len(stamp) in (0, 2)
        seen.append((bytes(buffer[start:end]), hook))

    reader = TapMessages(on_packet, gaps.append)
    reader.on_error = errors.append
    count = 0
    while count < _MOST and (choices.left or not count):
        batch, put = b"", list[tuple[bytes, int]]()
        for _ in range(1 + choices.below(4)):
            count += 1
            made = packet(choices, nobody, inbound=True).data[: choices.below(97)]
            put.append((made, choices.below(5)))
            batch += copied(choices, *put[-1], count)
        damaged = choices.below(2)
        if damaged:
            batch = damage(choices, batch)
        buffer[: len(batch)] = batch
        seen.clear()
        reader.read(buffer, len(batch))
        assert damaged or seen == put
    assert len(reader._layouts) <= 32
    if errors:
        raise errors[0]
    return count


def conntrack(data: bytes) -> int:
    """conntrack's messages: entries and endings, at the end of a buffer that nothing may be read behind."""
    choices = Choices(data)
    errors, ended = list[Exception](), list[bytes]()

    def on_end(key: bytes, protocol: int) -> None:
        assert len(key) in (12, 36)
        ended.append(key)

    endings = EndingMessages(on_end, lambda _: None)
    endings.on_error = errors.append
    count = 0
    while count < _MOST and (choices.left or not count):
        count += 1
        whole = _entry(choices) + (ending(choices.take(12)) if choices.below(2) else b"")
        if choices.below(4):
            whole = damage(choices, whole)
        buffer = bytearray(whole)
        for _, _, at, end in messages(buffer, len(buffer)):
            entry = entry_in(buffer, at, end)
            assert entry is None or isinstance(entry, Entry)
        endings.read(buffer, len(buffer))
    if errors:
        raise errors[0]
    return count


def _entry(choices: Choices) -> bytes:
    size = choices.pick((12, 36))
    protocol = choices.pick((6, 17, 1))
    body = nested(1, tuple_of(choices.take(size), protocol))
    body += nested(2, tuple_of(choices.take(size), protocol))
    body += attribute(3, choices.take(4)) + attribute(8, choices.take(4)) + attribute(7, choices.take(4))
    body += nested(4, nested(1, attribute(1, choices.take(1)), attribute(2, b"\7")))
    return _message(1 << 8 | choices.pick((0, 2)), body)
