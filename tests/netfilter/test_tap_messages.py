"""The tap's messages, by hand and as the kernel sent them: which packet is where, and which are missing."""

from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.core.segment import NO_STAMP, Stamp
from nfqlb.netfilter.tap import TapMessages
from tests.netfilter.captured import ANSWERED, TAPPED_IPV4, TAPPED_IPV6

STEADY = settings(derandomize=True, database=None, deadline=None, max_examples=200)
BUFFER = 131_072
#: What the kernel may put in front of a payload, in its order (nfnetlink_log.c, __build_packet_message).
OPTIONAL: dict[str, tuple[int, bytes]] = {
    "prefix": (10, b"spoken\0"),
    "indev": (4, b"\0\0\0\2"),
    "outdev": (5, b"\0\0\0\3"),
    "mark": (2, b"\0\1\0\0"),
    "hardware address": (8, bytes(12)),
    "hardware header": (16, bytes(14)),
    "stamp": (3, pack("!QQ", 1_700_000_000, 250_000)),
    "user": (11, b"\0\0\0\0"),
}
Seen = list[tuple[bytes, int, Stamp]]


def attribute(kind: int, value: bytes) -> bytes:
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(
    payload: bytes | None, *, hook: int = 2, number: int | None = None, with_: tuple[str, ...] = ("indev",)
) -> bytes:
    """What the kernel sends for a copy; `number` is its sequence number."""
    parts = [attribute(1, pack("!HBx", 0x0800, hook))]
    parts += [attribute(*OPTIONAL[name]) for name in OPTIONAL if name in with_]
    if number is not None:
        parts.append(attribute(12, number.to_bytes(4, "big")))
    if payload is not None:
        parts.append(attribute(9, payload))
    body = b"".join(parts)
    return pack("=IHHIIBBH", 20 + len(body), 4 << 8, 0, 0, 0, 2, 0, 0x0B00) + body


DONE = pack("=IHHIII", 20, 3, 0, 0, 0, 0)


class Desk:
    """The message layer, its buffer, and what it told."""

    def __init__(self) -> None:
        self.seen: Seen = []
        self.gaps: list[int] = []
        self.messages = TapMessages(self._note, self.gaps.append)
        self.buffer = bytearray(BUFFER)

    def _note(self, buffer: bytearray, start: int, end: int, hook: int, stamp: Stamp) -> None:
        self.seen.append((bytes(buffer[start:end]), hook, stamp))

    def get(self, *parts: bytes) -> int:
        whole = b"".join(parts)
        self.buffer[: len(whole)] = whole
        return self.messages.read(self.buffer, len(whole))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_batch_of_the_kernels_own_is_read_packet_by_packet(desk: Desk) -> None:
    """SYN-ACK, request, answer and both FINs of a real connection, with the kernel's stamps."""
    assert desk.get(TAPPED_IPV4) == 5
    assert [hook for _, hook, _ in desk.seen] == [2, 0, 2, 0, 2]
    assert [packet[33] for packet, _, _ in desk.seen] == [0x12, 0x18, 0x18, 0x11, 0x11]
    assert desk.seen[1][0].endswith(b"question")
    stamps = [stamp for _, _, stamp in desk.seen]
    assert stamps == sorted(stamps)
    assert 1 < stamps[0][0] < 1e10
    assert desk.gaps == []


def test_another_layout_is_learnt_beside_the_first(desk: Desk) -> None:
    desk.get(TAPPED_IPV4)
    assert desk.get(TAPPED_IPV6) == 3
    assert [packet[0] >> 4 for packet, _, _ in desk.seen[5:]] == [6, 6, 6]
    assert desk.messages.unreadable == 0


@STEADY
@given(
    st.lists(st.tuples(st.binary(max_size=96), st.sets(st.sampled_from(sorted(OPTIONAL)))), max_size=20),
    st.integers(0, 2**32 - 1),
)
def test_every_packet_comes_out_as_it_went_in(packets: list[tuple[bytes, set[str]]], first: int) -> None:
    """Whatever stands in front of it, several to a message of the socket or one."""
    desk = Desk()
    texts = [
        message(payload, hook=index % 5, number=(first + index) % 2**32, with_=tuple(names))
        for index, (payload, names) in enumerate(packets)
    ]
    assert desk.get(*texts, DONE) == len(packets)
    assert desk.seen == [
        (payload, index % 5, (1_700_000_000, 250_000) if "stamp" in names else NO_STAMP)
        for index, (payload, names) in enumerate(packets)
    ]
    assert desk.gaps == []


@STEADY
@given(st.binary(max_size=300), st.integers(0, 60))
def test_nonsense_is_survived_and_nothing_beyond_the_message_is_read(noise: bytes, cut: int) -> None:
    desk = Desk()
    desk.get(noise)
    whole = message(b"packet", number=1)
    desk.seen.clear()
    desk.buffer[:BUFFER] = bytes(BUFFER)
    desk.get(whole[: len(whole) - cut - 1])
    assert desk.seen == []


def test_a_payload_that_looks_like_attributes_moves_nothing(desk: Desk) -> None:
    """Whoever sends the packet cannot say where it is read from."""
    inner = attribute(3, pack("!QQ", 1, 1)) + attribute(12, bytes(4)) + attribute(9, b"inner")
    for _ in range(2):
        desk.get(message(inner, number=None))
    assert desk.seen == [(inner, 2, NO_STAMP)] * 2


def test_missing_numbers_are_missing_packets(desk: Desk) -> None:
    desk.get(message(b"a", number=7), message(b"b", number=8), DONE)
    desk.get(message(b"c", number=9))
    assert desk.gaps == []
    desk.get(message(b"d", number=13), message(b"e", number=14), DONE)
    assert desk.gaps == [3]
    desk.get(message(b"f", number=15))
    assert (desk.messages.lost, desk.messages.packets) == (3, 6)


def test_numbers_begin_anew_after_the_last(desk: Desk) -> None:
    desk.get(message(b"a", number=2**32 - 1))
    desk.get(message(b"b", number=0))
    desk.get(message(b"c", number=1))
    assert desk.gaps == []


def test_a_copy_that_nobody_can_stand_does_not_cost_those_behind_it(desk: Desk) -> None:
    errors: list[Exception] = []
    desk.messages.on_error = errors.append

    def refuse(buffer: bytearray, start: int, end: int, hook: int, stamp: Stamp) -> None:
        if buffer[start:end] == b"bad":
            raise RuntimeError("no")
        desk._note(buffer, start, end, hook, stamp)

    desk.messages.on_packet = refuse
    assert desk.get(message(b"a", number=1), message(b"bad", number=2), message(b"c", number=3)) == 3
    assert [packet for packet, _, _ in desk.seen] == [b"a", b"c"]
    assert desk.messages.failed == len(errors) == 1
    desk.get(message(b"d", number=4))
    assert desk.gaps == []


def test_a_message_without_a_packet_is_counted(desk: Desk) -> None:
    assert desk.get(message(None), message(b"packet")) == 1
    assert desk.messages.unreadable == 1
    assert [packet for packet, _, _ in desk.seen] == [b"packet"]


def test_what_is_no_message_of_the_tap_is_passed_over(desk: Desk) -> None:
    assert desk.get(ANSWERED, message(b"packet")) == 1
    assert desk.messages.unreadable == 0
