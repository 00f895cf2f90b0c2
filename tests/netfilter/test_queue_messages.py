"""The messages of a queue, by hand: where the packet is, what the judge gets, what the kernel is told."""

from collections.abc import Callable
from struct import pack, unpack, unpack_from

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.netfilter.messages import (
    ID_END,
    MSG_CONFIG,
    MSG_VERDICT,
    MSG_VERDICT_BATCH,
    Place,
    QueueMessages,
    id_in,
    id_of,
    is_error,
)
from nfqlb.packet.path import ACCEPT, CHANGED, DROP, FORWARD, OUTPUT, PREROUTING

NUMBER = 0x0102
BUFFER = 131_072
LARGEST = 65_531
STAMP = (1_700_000_000, 10)  # seconds and microseconds
#: What the kernel may put between packet header and payload, in its order (nfqnl_build_packet_message).
OPTIONAL: dict[str, tuple[int, bytes]] = {
    "indev": (5, b"\0\0\0\2"),
    "physindev": (7, b"\0\0\0\3"),
    "outdev": (6, b"\0\0\0\4"),
    "physoutdev": (8, b"\0\0\0\5"),
    "mark": (3, b"\0\x0a\0\1"),
    "priority": (20, b"\0\0\0\6"),
    "hardware address": (9, b"\0\6\0\0" + bytes.fromhex("08000e000003") + b"\0\0"),
    "vlan": (0x8000 | 18, pack("=HHHH", 6, 2, 0x81, 0) + pack("=HHHH", 6, 1, 10, 0)),
    "time stamp": (4, pack("!QQ", *STAMP)),
    "user": (16, b"\0\0\0\0"),
    "group": (17, b"\0\0\0\0"),
}

Seen = list[tuple[bytes, int, int]]
STEADY = settings(derandomize=True, database=None, deadline=None, max_examples=300)


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded."""
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def packet_message(
    payload: bytes | None, *, packet_id: int = 7, hook: int = FORWARD, info: int | None = None,
    with_: tuple[str, ...] = ("indev", "hardware address"),
) -> bytes:  # fmt: skip
    """What the kernel sends for a packet; `info` None: no NFQA_SKB_INFO."""
    parts = [attribute(1, pack("!IHB", packet_id, 0x0800, hook))]
    parts += [attribute(*OPTIONAL[name]) for name in OPTIONAL if name in with_]
    if info is not None:
        parts.append(attribute(14, info.to_bytes(4, "big")))
    if payload is not None:
        parts.append(attribute(10, payload))
    body = b"".join(parts)
    return pack("=IHHIIBB", 20 + len(body), 3 << 8, 0, 0, 4711, 2, 0) + NUMBER.to_bytes(2, "big") + body


class Desk:
    """The message layer with a buffer, and a judge that says what it was told to say."""

    def __init__(self, verdict: int = ACCEPT) -> None:
        self.messages = QueueMessages(NUMBER)
        self.messages.judge = self._judge
        self.buffer = bytearray(BUFFER)
        self.view = memoryview(self.buffer)
        self.verdict = verdict
        self.seen: Seen = []
        self.stamps: list[tuple[int, ...] | None] = []
        self.change: Callable[[bytearray, int, int], None] = lambda buffer, start, end: None

    def _judge(self, buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int) -> int:
        self.seen.append((bytes(buffer[start:end]), hook, info))
        self.stamps.append(unpack_from("!QQ", buffer, stamp_at) if stamp_at else None)
        self.change(buffer, start, end)
        return self.verdict

    def read(self, message: bytes) -> Place | None:
        """Receive a message; where its payload is."""
        self.buffer[: len(message)] = message
        return self.messages.find(self.buffer, len(message))

    def take(self, message: bytes) -> bytes:
        """Receive a message with a packet; the answer, copied."""
        place = self.read(message)
        assert place
        return bytes(self.messages.answer(self.buffer, self.view, place))


def parsed(answer: bytes) -> tuple[int, int, bytes | None]:
    """A verdict message taken apart: packet id, verdict (1 accept, 0 drop), and the new payload, if any."""
    length, kind, flags, sequence, port, family, version = unpack_from("=IHHIIBB", answer)
    assert (kind, flags, sequence, port, family, version) == (MSG_VERDICT, 1, 0, 0, 0, 0)
    assert answer[18:20] == NUMBER.to_bytes(2, "big")
    assert len(answer) == length + -length % 4, "messages sent together must each be padded"
    attributes = {}
    at = 20
    while at < length:
        size, name = unpack_from("=HH", answer, at)
        assert at + size <= length
        attributes[name] = answer[at + 4 : at + size]
        at += size + -size % 4
    verdict, packet_id = unpack("!II", attributes.pop(2))
    payload = attributes.pop(10, None)
    assert not attributes
    return packet_id, verdict, payload


@pytest.mark.parametrize(("verdict", "told"), [(DROP, 0), (ACCEPT, 1), (CHANGED, 1)])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 20, 39, 40, 41, 42, 43, 1500, LARGEST])
def test_verdict(verdict: int, told: int, size: int) -> None:
    """R106, R168, R178: the verdict names the packet; only a changed one carries bytes, all of them."""
    payload = (bytes(range(256)) * 256)[:size]
    desk = Desk(verdict)
    answer = desk.take(packet_message(payload, packet_id=0xFFFF_FFFE))
    assert desk.seen == [(payload, FORWARD, 0)]
    assert parsed(answer) == (0xFFFF_FFFE, told, payload if verdict == CHANGED else None)
    assert id_of(answer) == b"\xff\xff\xff\xfe"


def test_changed_bytes_go_out_uncopied() -> None:
    """R165, R175: what the judge writes into the buffer is what is sent, from where it stands."""
    desk = Desk(CHANGED)

    def change(buffer: bytearray, start: int, end: int) -> None:
        buffer[start:end] = b"CHANGED"

    desk.change = change
    place = desk.read(packet_message(b"packet!"))
    assert place
    answer = desk.messages.answer(desk.buffer, desk.view, place)
    assert answer.obj is desk.buffer
    assert parsed(bytes(answer)) == (7, 1, b"CHANGED")


@STEADY
@given(
    st.lists(st.tuples(
        st.lists(st.sampled_from(list(OPTIONAL)), unique=True).map(tuple),
        st.sampled_from([None, *range(8)]),
        st.binary(min_size=20, max_size=60),
        st.sampled_from([PREROUTING, FORWARD, OUTPUT]),
        st.integers(1, 2**32 - 1),
    ), min_size=1, max_size=20)
)  # fmt: skip
def test_attributes_come_and_go(packets: list[tuple[tuple[str, ...], int | None, bytes, int, int]]) -> None:
    """R106, R188: mark, priority and the like move payload and time stamp; both are found."""
    desk = Desk(CHANGED)
    for with_, info, payload, hook, packet_id in packets:
        message = packet_message(payload, packet_id=packet_id, hook=hook, info=info, with_=with_)
        assert parsed(desk.take(message)) == (packet_id, 1, payload)
        assert desk.seen[-1] == (payload, hook, info or 0)
        assert desk.stamps[-1] == (STAMP if "time stamp" in with_ else None)


@pytest.mark.parametrize("known_first", [False, True])
@pytest.mark.parametrize("info", [None, 1])
def test_payload_that_imitates_a_payload_header(known_first: bool, info: int | None) -> None:
    """R106: a sender cannot hide a packet in his packet, even where a longer row of attributes is usual."""
    desk = Desk()
    layouts = [("indev",), ("indev", "outdev"), ("indev", "mark"), ("indev", "hardware address")]
    layouts += [("indev", "mark", "time stamp"), tuple(OPTIONAL), ("indev", "time stamp")]
    if known_first:
        desk.take(packet_message(b"usual", with_=("indev",), info=info))
    for with_ in layouts[1:]:
        desk.take(packet_message(b"usual", with_=with_, info=info))
    for size in range(197, 201):  # at each place of it, what begins there ends where the message does
        payload = b"".join(pack("=HH", size - at, 10) for at in range(0, size, 4))[:size]
        desk.take(packet_message(payload, with_=("indev",), info=info))
        assert desk.seen[-1][0] == payload


def test_more_layouts_than_are_remembered() -> None:
    """R106: however many kinds of messages there are, each is read right, the second time too."""
    desk = Desk()
    names = list(OPTIONAL)
    for _ in range(2):
        for bits in range(80):
            with_ = tuple(name for place, name in enumerate(names) if bits >> place & 1)
            payload = bits.to_bytes(1, "big") * 30
            desk.take(packet_message(payload, with_=with_))
            assert desk.seen[-1] == (payload, FORWARD, 0)


def test_address_that_imitates_checksum_information() -> None:
    """R167: the last bytes of another attribute are not taken for NFQA_SKB_INFO."""
    for name in OPTIONAL:
        desk = Desk()
        desk.take(packet_message(b"packet", with_=(name,)))
        assert desk.seen == [(b"packet", FORWARD, 0)]


@pytest.mark.parametrize("size", [0, 8, 12, 15, 17, 24])
def test_time_stamp_of_another_size(size: int) -> None:
    """R188: a time stamp that is none is not read; the packet is found all the same."""
    message = packet_message(b"packet", with_=("indev",))
    desk = Desk()
    odd = message[:32] + attribute(4, bytes(range(1, size + 1))) + message[32:]
    desk.take(odd)
    assert (desk.seen, desk.stamps) == ([(b"packet", FORWARD, 0)], [None])


def test_time_stamp_is_read_before_the_verdict_is_written() -> None:
    """R188: the verdict stands where the last attributes stood, also those of the packet's time."""
    desk = Desk(CHANGED)
    for packet_id in range(1, 4):
        answer = desk.take(packet_message(b"packet", packet_id=packet_id, with_=("time stamp",)))
        assert parsed(answer) == (packet_id, 1, b"packet")
    assert desk.stamps == [STAMP] * 3


def test_unknown_checksum_information() -> None:
    """R167: bits that a later kernel may add do not hide those that we know."""
    desk = Desk()
    desk.take(packet_message(b"packet", info=0x100 | 1))
    assert desk.seen[0][2] & 3 == 1


@pytest.mark.parametrize("known", [False, True])
def test_message_without_packet(known: bool) -> None:
    """R106: no payload in it: none is found, also where an older message's still stands in the buffer."""
    desk = Desk()
    if known:
        desk.take(packet_message(b"an older packet"))
    assert desk.read(packet_message(None)) is None


@pytest.mark.parametrize("known", [False, True])
def test_report_of_an_error(known: bool) -> None:
    """R106: an error report, which repeats our own message, is no packet; it is told from one."""
    desk = Desk(CHANGED)
    answer = desk.take(packet_message(bytes(range(200)))) if known else bytes(232)
    report = pack("=IHHII", 20 + len(answer), 2, 0, 0, 0) + pack("=i", -2) + answer
    assert desk.read(report) is None
    assert is_error(desk.buffer, len(report))
    assert not is_error(packet_message(b"packet"), 100)
    assert not is_error(report, 19)
    assert id_in(report, len(report)) == 0


@pytest.mark.parametrize("value", [0, 1, 3])
def test_attribute_too_small_to_be_one(value: int) -> None:
    """R106: an attribute of less than its header would stop the search for ever; it ends it instead."""
    message = bytearray(packet_message(b"packet"))
    message[32:34] = pack("=H", value)
    assert Desk().read(bytes(message)) is None


def test_attribute_past_the_end() -> None:
    """R106: a length that leads past the message is not followed."""
    whole = packet_message(b"packet" * 10)
    for size in range(len(whole) - 1):
        assert Desk().read(whole[:size]) is None


def test_other_kinds_of_messages() -> None:
    """R106: neither another subsystem's message nor one whose first attribute is another one."""
    message = packet_message(b"packet")
    assert Desk().read(message[:4] + pack("=H", 0x0203) + message[6:]) is None
    assert Desk().read(message[:20] + pack("=HH", 11, 9) + message[24:]) is None


def test_judgement_that_raises() -> None:
    """R106: no packet stays without a verdict: it is dropped, counted, and somebody is told."""
    desk = Desk()
    told: list[Exception] = []
    desk.messages.on_error = told.append
    fault = ValueError("no verdict")

    def fail(buffer: bytearray, start: int, end: int) -> None:
        buffer[start:end] = b"half-done"
        raise fault

    desk.change = fail
    assert parsed(desk.take(packet_message(b"unchanged", packet_id=9))) == (9, 0, None)
    assert told == [fault]
    assert (desk.messages.packets, desk.messages.failed) == (1, 1)


def test_id_of_a_message_that_was_only_looked_at() -> None:
    """R106: the first bytes tell a packet's id; fewer, or another kind of message, tell none."""
    message = packet_message(b"packet", packet_id=0x01020304)
    assert id_in(message[:ID_END], ID_END) == 0x01020304
    assert id_in(message, len(message)) == 0x01020304
    assert id_in(message, ID_END - 1) == 0
    assert id_in(QueueMessages(NUMBER).drop(b"\0\0\0\1"), 32) == 0


def test_messages_of_our_own() -> None:
    """R106: dropping one packet, and all up to one; a message about the queue names it in network order."""
    messages = QueueMessages(NUMBER)
    assert parsed(messages.drop(b"\0\0\1\0")) == (256, 0, None)
    batch = messages.drop(b"\0\0\1\0", MSG_VERDICT_BATCH)
    assert unpack_from("=IHH", batch) == (32, MSG_VERDICT_BATCH, 1)
    assert batch[20:] == messages.drop(b"\0\0\1\0")[20:]
    message = messages.message(MSG_CONFIG, b"12345678")
    assert unpack_from("=IHH", message) == (28, MSG_CONFIG, 1)
    assert message[18:] == NUMBER.to_bytes(2, "big") + b"12345678"
