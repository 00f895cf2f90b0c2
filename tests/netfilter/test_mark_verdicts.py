"""The answer that marks a packet, by hand: what the kernel is told, and what of an earlier mark stays."""

from struct import unpack_from

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.netfilter.messages import MSG_VERDICT, QueueMessages, id_of
from tests.netfilter.test_queue_messages import BUFFER, NUMBER, OPTIONAL, packet_message

STEADY = settings(derandomize=True, database=None, deadline=None, max_examples=200)
MASK = 0x00FF0000
OWN = int.from_bytes(OPTIONAL["mark"][1], "big")
DROP, REPEAT = 0, 4


class Desk:
    """A queue's message layer with a judge that marks."""

    def __init__(self, mark: int | None) -> None:
        self.messages = QueueMessages(NUMBER)
        self.messages.judge = self._judge
        self.mark = mark
        self.seen: list[bytes] = []
        self.errors: list[Exception] = []
        self.messages.on_error = self.errors.append
        self.buffer = bytearray(BUFFER)

    def _judge(
        self, buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int
    ) -> int:
        self.seen.append(bytes(buffer[start:end]))
        if self.mark is None:
            raise RuntimeError("no")
        return self.mark

    def answer(self, message: bytes) -> bytes:
        self.buffer[: len(message)] = message
        place = self.messages.find(self.buffer, len(message))
        assert place is not None
        return bytes(self.messages.answer_mark(self.buffer, memoryview(self.buffer), place, MASK))


@STEADY
@given(
    st.binary(min_size=1, max_size=200),
    st.sets(st.sampled_from(sorted(OPTIONAL))),
    st.integers(1, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
def test_the_verdict_carries_the_mark_and_the_packets_other_bits(
    payload: bytes, names: set[str], packet_id: int, mark: int
) -> None:
    """Forty bytes whatever the packet is; those that the judge may not touch stay as they came."""
    desk = Desk(mark)
    verdict = desk.answer(packet_message(payload, packet_id=packet_id, with_=tuple(names)))
    assert desk.seen == [payload]
    assert len(verdict) == 40
    length, kind, flags = unpack_from("=IHH", verdict)
    assert (length, kind, flags) == (40, MSG_VERDICT, 1)
    assert unpack_from("!H", verdict, 18) == (NUMBER,)
    assert unpack_from("=HH", verdict, 20) == (12, 2)
    assert unpack_from("!II", verdict, 24) == (REPEAT if mark & MASK else DROP, packet_id)
    assert unpack_from("=HH", verdict, 32) == (8, 3)
    before = OWN if "mark" in names else 0
    assert unpack_from("!I", verdict, 36) == (before & ~MASK | mark & MASK,)
    assert id_of(verdict) == packet_id.to_bytes(4, "big")


@pytest.mark.parametrize("mark", [0, 0xFF, None])
def test_without_a_mark_the_packet_is_dropped(mark: int | None) -> None:
    """Also where the judge has nothing within the mask to say, or fails."""
    desk = Desk(mark)
    assert unpack_from("!I", desk.answer(packet_message(b"x")), 24) == (DROP,)
    assert desk.messages.failed == len(desk.errors) == (mark is None)
    assert desk.messages.packets == 1
