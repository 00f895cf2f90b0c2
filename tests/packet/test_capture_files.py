"""Capture files: what is written can be read, by others too, and no file does harm."""

import io
from collections.abc import Iterator
from contextlib import suppress
from struct import Struct, pack

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.packet import pcapng
from nfqlb.packet.frame import DamagedError, Frame
from nfqlb.packet.pcap import CaptureFile
from nfqlb.packet.sight import Seen, ip_at, key_of, see
from tests.core.properties import TRIES

#: A SYN from 192.0.2.7:40000 to 192.0.2.10:80, its sequence number 1,000.
SYN4 = bytes.fromhex("45000028000100004006000000000000000000009c400050000003e8000000005002faf000000000")
SYN4 = SYN4[:12] + bytes((192, 0, 2, 7, 192, 0, 2, 10)) + SYN4[20:]
KEY = bytes((192, 0, 2, 7, 192, 0, 2, 10)) + b"\x9c\x40\x00\x50"
NOW = 1_764_072_187_654_321


def frames(data: bytes) -> list[Frame]:
    """All frames of a file."""
    return list(CaptureFile(io.BytesIO(data)).frames())


def written(*packets: bytes) -> bytes:
    """A file of one interface."""
    head = pcapng.section("what it is", "nfqlb") + pcapng.interface("outside", "to clients", 256, 4)
    return head + b"".join(pcapng.packet(0, NOW, each, len(each), comment="why") for each in packets)


def classic(order: str, magic: int, link: int, records: list[tuple[int, int, bytes, int]]) -> bytes:
    """A file of the classic format."""
    head = pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    return head + b"".join(pack(order + "IIII", at, part, len(d), size) + d for at, part, d, size in records)


# --- pcapng


@TRIES
@given(
    packets=st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(0, 2**53), st.binary(max_size=70), st.integers(0, 99), st.text(),
            st.booleans(),
        )
    )
)  # fmt: skip
def test_what_is_written_is_read_again(packets: list[tuple[int, int, bytes, int, str, bool]]) -> None:
    data = pcapng.section("", "nfqlb")
    data += b"".join(pcapng.interface(name, "", 100, 6) for name in ("outside", "inside", "sent"))
    for number, at, body, more, comment, inbound in packets:
        data += pcapng.packet(number, at, body, len(body) + more, comment=comment, inbound=inbound)
    data += pcapng.statistics(1, NOW, 4, 1)
    said = [
        Frame(divmod(at, 1_000_000), 229, body, len(body) + more, number, comment)
        for number, at, body, more, comment, _ in packets
    ]
    assert frames(data) == [each._replace(comment=_utf8(each.comment)) for each in said]


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def test_others_read_it() -> None:
    """dpkt as the oracle: the same packet, the same time."""
    ((stamp, data),) = dpkt.pcapng.Reader(io.BytesIO(written(SYN4)))
    assert data == SYN4
    assert round(stamp * 1_000_000) == NOW


def test_a_long_comment_is_cut_between_characters() -> None:
    (frame,) = frames(
        pcapng.section("", "")
        + pcapng.interface("a", "", 1, 4)
        + pcapng.packet(0, 0, b"", 0, comment="€" * 30_000)
    )
    assert frame.comment == "€" * (65_532 // 3)


def test_what_others_write_is_read() -> None:
    """dpkt's writer, in both byte orders by hand."""
    file = io.BytesIO()
    dpkt.pcapng.Writer(file, linktype=101).writepkt(SYN4, 1_700_000_000.25)
    (frame,) = frames(file.getvalue())
    assert (frame.stamp, frame.data, frame.link) == ((1_700_000_000, 250_000), SYN4, 101)


def _big(kind: int, body: bytes) -> bytes:
    size = (len(body) + 12).to_bytes(4, "big")
    return kind.to_bytes(4, "big") + size + body + size


@pytest.mark.parametrize(
    ("resolution", "ticks", "stamp"),
    [(b"\6", 5_000_007, (5, 7)), (b"\x09", 5_000_007_999, (5, 7)), (b"\x83", 41, (5, 125_000)),
     (b"\0", 5, (5, 0)), (b"\x03", 5_007, (5, 7_000))],
)  # fmt: skip
def test_every_clock_is_read(resolution: bytes, ticks: int, stamp: tuple[int, int]) -> None:
    option = b"\0\x09\0\1" + resolution + bytes(3) + b"\0\x0e\0\x08" + (100).to_bytes(8, "big") + bytes(4)
    data = _big(0x0A0D0D0A, pack(">IHHq", 0x1A2B3C4D, 1, 0, -1)) + _big(1, pack(">HHI", 101, 0, 0) + option)
    data += _big(77, bytes(8))  # of a kind that nobody knows
    data += _big(6, pack(">IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, 0, 0))
    data += _big(2, pack(">HHIIII", 0, 0, ticks >> 32, ticks & 0xFFFFFFFF, 0, 0))
    assert [each.stamp for each in frames(data)] == [(stamp[0] + 100, stamp[1])] * 2


@pytest.mark.parametrize("at", [-1, 1 << 37, 1 << 50])
def test_a_time_that_is_none_is_damage(at: int) -> None:
    data = pcapng.section("", "") + pcapng.interface("a", "", 1, 4)
    with pytest.raises(DamagedError, match="a packet of no time that can be"):
        frames(data + pcapng.packet(0, at * 1_000_000, b"", 0))


def test_sections_have_interfaces_of_their_own() -> None:
    one = written(SYN4)
    assert [each.interface for each in frames(one + one)] == [0, 1]


# --- the classic format


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1), (0xA1B23C4D, 1000)])
def test_the_classic_format_is_read(order: str, magic: int, unit: int) -> None:
    data = classic(order, magic, 101, [(7, 8 * unit, SYN4, 40), (8, 9 * unit, SYN4[:30], 40)])
    assert frames(data) == [Frame((7, 8), 101, SYN4, 40), Frame((8, 9), 101, SYN4[:30], 40)]


def test_a_file_that_ends_in_a_record_is_read_so_far() -> None:
    for data in (classic("<", 0xA1B2C3D4, 101, [(7, 8, SYN4, 40), (8, 9, SYN4, 40)]), written(SYN4, SYN4)):
        whole = len(frames(data))
        file = CaptureFile(io.BytesIO(data[:-3]))
        assert (len(list(file.frames())), whole) == (1, 2)
        assert file.cut_at == len(data) - 3


START = pcapng.section("", "")
OLD = classic("<", 0xA1B2C3D4, 101, [])
#: What is wrong with a file, by what is said of it.
DAMAGED = {
    "the file is empty": b"",
    "compressed with gzip: unpack it first": b"\x1f\x8b\x08\0\0",
    "neither pcap nor pcapng": b"GIF89a",
    "pcap of version 9: only version 2 is known": OLD[:4] + b"\x09" + OLD[5:],
    "damaged at byte 24: no packet has such a header": OLD + pack("<IIII", 1, 1_000_000, 40, 40),
    "damaged at byte 0: no section begins like this": pcapng.SECTION + bytes(24),
    "damaged at byte 0: a section header of 8 bytes": pcapng.SECTION + pack("<II", 8, 0x1A2B3C4D),
    "damaged at byte 28: a block of 13 bytes": START + pack("<II", 6, 13),
    "damaged at byte 28: a block's two lengths differ": START + pack("<III", 6, 12, 16),
    "damaged at byte 28: a packet of interface 0, which there is not": START + pcapng.packet(0, 0, b"", 0),
    "damaged at byte 28: a block that is too short": START + pack("<III", 6, 12, 12),
    "damaged at byte 28: a packet without a time": START + pack("<IIII", 3, 16, 0, 16),
}


@pytest.mark.parametrize("says", DAMAGED)
def test_what_is_no_capture_is_refused_in_a_line(says: str) -> None:
    with pytest.raises(DamagedError) as caught:
        frames(DAMAGED[says])
    assert str(caught.value) == says


def test_a_packet_longer_than_any_is_not_waited_for() -> None:
    with pytest.raises(DamagedError, match="damaged at byte 24"):
        frames(OLD + pack("<IIII", 1, 1, 1 << 30, 1 << 30))


def test_a_record_that_says_it_kept_more_than_there_was_had_that_much() -> None:
    """Old writers have mixed the two numbers up; a frame is never shorter than what is there of it."""
    (frame,) = frames(OLD + pack("<IIII", 1, 1, len(SYN4), 20) + SYN4)
    assert (frame.data, frame.size) == (SYN4, len(SYN4))


def _sources() -> list[bytes]:
    return [
        written(SYN4, SYN4[:20]),
        classic(">", 0xA1B23C4D, 1, [(7, 8, b"\0" * 12 + b"\x08\0" + SYN4, 54)]),
    ]


@TRIES
@given(
    source=st.sampled_from(_sources()),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
    length=st.integers(0, 250),
)
def test_a_damaged_file_gives_frames_or_one_line(
    source: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(source[:length])
    for at, value in changes:
        if at < len(data):
            data[at] = value
    with suppress(DamagedError):
        for frame in frames(bytes(data)):
            see(frame)


@TRIES
@given(data=st.binary(max_size=200), link=st.sampled_from([0, 1, 101, 108, 113, 228, 229, 276, 12]))
def test_any_frame_is_looked_at_without_harm(data: bytes, link: int) -> None:
    for start in (b"", SYN4[:14], b"\x60" + bytes(5) + b"\0"):
        see(Frame((0, 0), link, start + data, len(data) + len(start)))


# --- frames


def _wrapped() -> Iterator[tuple[int, bytes]]:
    yield 101, b""
    yield 228, b""
    yield 12, b""
    yield 1, bytes(12) + b"\x08\x00"
    yield 1, bytes(12) + b"\x81\x00\0\1\x88\xa8\0\2\x08\x00"
    yield 0, b"\x02\0\0\0"
    yield 108, b"\0\0\0\x02"
    yield 113, bytes(14) + b"\x08\x00"
    yield 276, b"\x08\x00\0\0" + (9).to_bytes(4, "big") + bytes(12)


@pytest.mark.parametrize(("link", "head"), list(_wrapped()))
def test_every_link_type_leads_to_the_packet(link: int, head: bytes) -> None:
    seen = see(Frame((1, 2), link, head + SYN4, len(head) + 40, 5))
    assert seen is not None
    place = 5 << 32 | 9 if link == 276 else 5
    assert seen == Seen(KEY, 2, (1000).to_bytes(4, "big") + bytes(4), 0, (1, 2), place)
    assert seen.opens


@pytest.mark.parametrize("kind", [b"\x08\x06", b"\x88\xcc", b"\x81\x00"])
def test_what_is_no_ip_is_none(kind: bytes) -> None:
    assert ip_at(Frame((1, 2), 1, bytes(12) + kind + SYN4, 60)) is None
    assert see(Frame((1, 2), 1, bytes(12) + kind + SYN4, 60)) is None
    assert see(Frame((1, 2), 147, SYN4, 40)) is None


def test_data_is_counted_though_it_was_not_kept() -> None:
    """By the packet's own length, not beyond that of the frame (Ethernet pads)."""
    long = SYN4[:2] + (1040).to_bytes(2, "big") + SYN4[4:]
    assert [each.size if (each := see(Frame((0, 0), 101, long, size))) else None for size in (1040, 540)] == [
        1000, 500
    ]  # fmt: skip
    huge = SYN4[:2] + bytes(2) + SYN4[4:]  # longer than the field can say
    assert (seen := see(Frame((0, 0), 101, huge, 65_600))) is not None
    assert seen.size == 65_560
    padded = see(Frame((0, 0), 1, bytes(12) + b"\x08\0" + SYN4 + bytes(6), 60))
    assert padded is not None
    assert padded.size == 0


def test_ipv6_and_udp_are_seen() -> None:
    addresses = bytes(range(32))
    udp = Struct("!HHHH").pack(5353, 53, 12, 0)
    packet = b"\x60\0\0\0" + (20).to_bytes(2, "big") + b"\x3c\x40" + addresses  # destination options first
    packet += b"\x11\0" + bytes(6) + udp + b"data"
    seen = see(Frame((0, 0), 229, packet, len(packet)))
    assert seen == Seen(addresses + udp[:4] + b"\x11", None, b"", 4, (0, 0), -1)
    assert not seen.opens


def test_fragments_have_no_ports() -> None:
    later = SYN4[:6] + b"\x20\x01" + SYN4[8:]
    assert see(Frame((0, 0), 101, later, 40)) is None


def test_flags_that_no_segment_has_are_none() -> None:
    assert see(Frame((0, 0), 101, SYN4[:33] + b"\x03" + SYN4[34:], 40)) is None


@TRIES
@given(data=st.binary(min_size=1, max_size=80), start=st.sampled_from([b"", SYN4[:10], SYN4[:24], SYN4]))
def test_a_key_is_that_of_what_is_seen(data: bytes, start: bytes) -> None:
    """By whichever way it is found; a packet whose ports cannot be told has none."""
    packet = start + data
    seen = see(Frame((0, 0), 101, packet, len(packet)))
    key = key_of(packet, len(packet))
    if seen is not None:
        assert key == seen.key
    if len(packet) < 20:
        assert key is None


def test_the_key_of_an_error_is_that_of_the_answer_to_what_it_quotes() -> None:
    error = bytes.fromhex("4500003800010000400100000a000001c0000207") + b"\3\1\0\0\0\0\0\0" + SYN4[:28]
    assert key_of(error, 56) == bytes((192, 0, 2, 10, 192, 0, 2, 7)) + b"\x00\x50\x9c\x40"
    echo = error[:20] + b"\x08" + error[21:]
    assert key_of(echo, 56) is None
