"""What is cut, malformed, a fragment or not for us: each has a verdict and a counted reason (A20, A37)."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import GRE, ICMP, IP, UDP
from scapy.packet import Raw

from nfqlb.core.verdict import Drop, Pass, Refusal
from nfqlb.packet.decode import decode
from nfqlb.packet.path import ACCEPT, CHANGED, DROP, FORWARD, OUTPUT, PREROUTING
from tests.packet.packets import (
    ACK,
    FIN,
    NOP_OPTIONS,
    PSH,
    RST,
    STEADY,
    SYN,
    Place,
    Shape,
    World,
    check_refusals,
    error,
    fresh_ip_sum,
)

PLACE = Place()
SHAPE = Shape(PSH | ACK, payload=b"hello")
SENT = SHAPE.sent(PLACE)
WITH_OPTIONS = Shape(PSH | ACK, payload=b"hello", ip_options=NOP_OPTIONS).sent(PLACE)
SYN_SENT = Shape(SYN, ack=0).sent(PLACE)


def _at(packet: bytes, place: int, new: bytes) -> bytes:
    return packet[:place] + new + packet[place + len(new) :]


def _length(packet: bytes, difference: int) -> bytes:
    return fresh_ip_sum(_at(packet, 2, (len(packet) + difference).to_bytes(2, "big")))


def _offset(packet: bytes, words: int) -> bytes:
    at = (packet[0] & 15) * 4 + 12
    return _at(packet, at, bytes([words << 4 | packet[at] & 15]))


def _quoted_header(change: Callable[[bytes], bytes]) -> bytes:
    return error("10.0.0.254", PLACE.client, change(SHAPE.delivered(PLACE)))


def _nested(levels: int, inner: bytes) -> bytes:
    """IP in IP, so many times."""
    outer = bytes(IP(src="10.9.9.9", dst="10.9.9.8", proto=4))
    layers = [
        fresh_ip_sum(_at(outer, 2, (level * len(outer) + len(inner)).to_bytes(2, "big")))
        for level in range(levels, 0, -1)
    ]
    return b"".join(layers) + inner


MALFORMED: dict[str, tuple[bytes, Refusal]] = {
    "empty": (b"", Drop.MALFORMED),
    "one byte": (SENT[:1], Drop.MALFORMED),
    "19 bytes": (SENT[:19], Drop.MALFORMED),
    "no IP": (b"\0" * 60, Drop.MALFORMED),
    "version 0": (_at(SENT, 0, b"\x05"), Drop.MALFORMED),
    "version 5": (_at(SENT, 0, b"\x55"), Drop.MALFORMED),
    "version 6": (_at(SENT, 0, b"\x65"), Drop.MALFORMED),
    "header of 16 bytes": (_at(SENT, 0, b"\x44"), Drop.MALFORMED),
    "header of no bytes": (_at(SENT, 0, b"\x40"), Drop.MALFORMED),
    "header past the end": (_at(_length(SENT[:40], 0), 0, b"\x4f"), Drop.MALFORMED),
    "only a header": (_length(SENT[:20], 0), Drop.MALFORMED),
    "header and ports": (_length(SENT[:24], 0), Drop.MALFORMED),
    "TCP header one byte short": (_length(SENT[:39], 0), Drop.MALFORMED),
    "cut by one": (SENT[:-1], Drop.CUT),
    "cut in the TCP header": (SENT[:30], Drop.CUT),
    "cut after the IP header": (SENT[:20], Drop.CUT),
    "says one more": (_length(SENT, 1), Drop.CUT),
    "says one less": (_length(SENT, -1), Drop.MALFORMED),
    "one byte after the end": (SENT + b"\0", Drop.MALFORMED),
    "length of zero": (_at(SENT, 2, b"\0\0"), Drop.MALFORMED),
    "longer than any packet": (SENT + bytes(66_000), Drop.MALFORMED),
    "TCP offset 0": (_offset(SENT, 0), Drop.MALFORMED),
    "TCP offset 4": (_offset(SENT, 4), Drop.MALFORMED),
    "TCP offset past the end": (_offset(SENT, 7), Drop.MALFORMED),
    "TCP offset 15": (_offset(SENT, 15), Drop.MALFORMED),
    "first fragment": (fresh_ip_sum(_at(SENT, 6, b"\x20\0")), Drop.FRAGMENT),
    "middle fragment": (fresh_ip_sum(_at(SENT, 6, b"\x20\x10")), Drop.FRAGMENT),
    "last fragment": (fresh_ip_sum(_at(SENT, 6, b"\0\x01")), Drop.FRAGMENT),
    "fragment that may not be one": (fresh_ip_sum(_at(SENT, 6, b"\x5f\xff")), Drop.FRAGMENT),
    "fragment of UDP": (bytes(IP(dst=PLACE.virtual, flags="MF") / UDP() / b"12345678"), Drop.FRAGMENT),
    "fragment of an error": (
        fresh_ip_sum(_at(error(PLACE.client, PLACE.virtual, SENT), 6, b"\x20\0")), Drop.FRAGMENT
    ),
    "from port 0": (Shape(SYN).sent(Place(client_port=0)), Drop.MALFORMED),
    "to port 0": (Shape(SYN).sent(Place(virtual_port=0)), Drop.MALFORMED),
    "to itself": (Shape(SYN).sent(Place(client=PLACE.virtual)), Drop.MALFORMED),
    "error without a header": (_length(error(PLACE.client, PLACE.virtual, SENT)[:27], 0), Drop.MALFORMED),
    "error without a quote": (error(PLACE.client, PLACE.virtual, b""), Drop.MALFORMED),
    "quoted header cut": (error(PLACE.client, PLACE.virtual, SENT[:19]), Drop.MALFORMED),
    "quoted header too short": (_quoted_header(lambda quoted: _at(quoted, 0, b"\x44")), Drop.MALFORMED),
    "quoted header past the end": (
        _quoted_header(lambda quoted: _at(quoted, 0, b"\x4f")[:60]), Drop.MALFORMED
    ),
    "quoted version 6": (_quoted_header(lambda quoted: _at(quoted, 0, b"\x65")), Drop.MALFORMED),
}  # fmt: skip
NOT_OURS: dict[str, bytes] = {
    "GRE": bytes(IP(src=PLACE.client, dst=PLACE.virtual) / GRE() / b"x"),
    "protocol 255": bytes(IP(src=PLACE.client, dst=PLACE.virtual, proto=255) / Raw(b"x")),
    "IP without payload": bytes(IP(src=PLACE.client, dst=PLACE.virtual, proto=47)),
    "echo": bytes(IP(src=PLACE.client, dst=PLACE.virtual) / ICMP() / b"x"),
    "IP in IP": _nested(1, SENT),
    "deep IP in IP": _nested(3000, SENT),
    "quote of somebody's UDP": error(PLACE.client, PLACE.virtual, bytes(IP() / UDP() / b"x")),
    "quote of IP in IP": error(PLACE.client, PLACE.virtual, _nested(1, SENT)),
    "quote of deep IP in IP": error(PLACE.client, PLACE.virtual, _nested(3000, SENT)),
    "quote of a quote": error(PLACE.client, PLACE.virtual, error(PLACE.virtual, PLACE.client, SENT)),
    "quote of a later fragment": _quoted_header(lambda quoted: _at(quoted, 6, b"\0\x10")),
}


@pytest.mark.parametrize("hook", [PREROUTING, FORWARD, OUTPUT])
@pytest.mark.parametrize("name", MALFORMED)
def test_dropped(name: str, hook: int) -> None:
    """F02, F03, R107, R113, R114: dropped, each counted under its own reason, and once."""
    packet, reason = MALFORMED[name]
    world = World()
    world.establish()
    assert world.judge(packet, hook)[0] == DROP
    assert world.refused() == {reason: 1}
    assert world.director.totals().drops == {reason.value: 1}


@pytest.mark.parametrize("hook", [PREROUTING, FORWARD, OUTPUT])
@pytest.mark.parametrize("name", NOT_OURS)
def test_passed(name: str, hook: int) -> None:
    """R012, R114: what is none of ours passes unchanged, counted; nothing is unwrapped to find out."""
    world = World()
    world.establish()
    packet = NOT_OURS[name]
    assert world.judge(packet, hook) == (ACCEPT, packet)
    assert world.refused() == {Pass.NOT_OURS: 1}
    assert world.director.totals().drops == {}


@pytest.mark.parametrize("hook", [PREROUTING, FORWARD])
@pytest.mark.parametrize(
    "flags", [SYN | FIN, SYN | RST, SYN | FIN | RST, SYN | FIN | ACK, SYN | RST | ACK, 0xFF]
)
@pytest.mark.parametrize("options", [b"", NOP_OPTIONS])
@pytest.mark.parametrize("known", [False, True])
def test_flags_that_exclude_each_other(hook: int, flags: int, options: bytes, known: bool) -> None:
    """F03, R107, R114: a segment that both opens and ends a connection is malformed, on any path and line."""
    world = World()
    if known:
        world.establish()
    shape = Shape(flags, ip_options=options)
    packet = shape.sent(PLACE) if hook == PREROUTING else shape.answered(PLACE)
    assert world.judge(packet, hook)[0] == DROP
    assert world.refused() == {Drop.MALFORMED: 1}
    assert len(world.director.table) == known


def test_reserved_fragment_bit_is_no_fragment() -> None:
    """R114: the bit of RFC 3514 does not make a fragment."""
    world = World()
    world.establish()
    packet = fresh_ip_sum(_at(SENT, 6, b"\xc0\0"))
    assert world.judge(packet)[0] == CHANGED


@pytest.mark.parametrize("packet", [SENT, WITH_OPTIONS, SYN_SENT, error(PLACE.client, PLACE.virtual, SENT)])
def test_every_truncation(packet: bytes) -> None:
    """R114: cut anywhere by the kernel, a packet is dropped; translated, it would leave shortened."""
    for size in range(len(packet)):
        world = World()
        assert world.judge(packet[:size])[0] == DROP
        assert world.refused() == {Drop.CUT if size >= 20 else Drop.MALFORMED: 1}


@pytest.mark.parametrize("packet", [SENT, WITH_OPTIONS, error(PLACE.client, PLACE.virtual, SENT)])
def test_every_beginning_of_a_packet(packet: bytes) -> None:
    """R114: a copy may hold less than the headers, whatever the length says; then there are no facts."""
    enough = 28 + 28 if packet[9] == 1 else (packet[0] & 15) * 4 + 20
    for kept in range(len(packet)):
        found = decode(packet[:kept], len(packet))
        assert isinstance(found, Drop) == (kept < enough), kept


SEEDS = [
    SENT, WITH_OPTIONS, SYN_SENT,
    SHAPE.answered(PLACE),
    Shape(SYN | ACK, seq=1999, ack=1000).answered(PLACE),
    Shape(FIN | ACK, seq=1000, ack=2000, ip_options=NOP_OPTIONS).sent(PLACE),
    Shape(RST, seq=2000).answered(PLACE),
    error(PLACE.client, PLACE.virtual, SHAPE.received(PLACE)),
    error("10.0.0.254", PLACE.client, SHAPE.delivered(PLACE)[:28], kind=11),
    error("10.0.0.254", PLACE.client, SHAPE.delivered(PLACE), kind=12),
    error(PLACE.client, PLACE.virtual, Shape(ip_options=NOP_OPTIONS).received(PLACE), code=4),
]  # fmt: skip
_edits = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 90), st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("cut"), st.integers(0, 90), st.just(b"")),
        st.tuples(st.just("insert"), st.integers(0, 90), st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("length"), st.just(0), st.just(b"")),
    ),
    max_size=5,
)


@st.composite
def _mutants(draw: st.DrawFn) -> bytes:
    packet = draw(st.sampled_from(SEEDS))
    for kind, at, data in draw(_edits):
        if kind == "put":
            packet = (
                _at(packet, at, data)[: max(len(packet), at + len(data))] if at <= len(packet) else packet
            )
        elif kind == "cut":
            packet = packet[: max(at, 1)]
        elif kind == "insert":
            packet = packet[:at] + data + packet[at:]
        elif len(packet) >= 20:
            packet = _at(packet, 2, len(packet).to_bytes(2, "big"))  # so that what follows is looked at
    return packet


_anything = st.one_of(
    _mutants(),
    st.binary(max_size=200),
    st.binary(min_size=20, max_size=120).map(
        lambda data: b"\x45\0" + len(data).to_bytes(2, "big") + data[4:6] + b"\0\0\x40\x06" + data[10:]
    ),
    st.binary(min_size=30, max_size=120).map(
        lambda data: b"\x46\0" + len(data).to_bytes(2, "big") + data[4:6] + b"\0\0\x40\x01" + data[10:]
    ),
)  # fmt: skip


@settings(STEADY, max_examples=2000)
@given(_anything, st.integers(0, 4), st.integers(0, 7), st.booleans())
def test_whatever_comes(packet: bytes, hook: int, info: int, known: bool) -> None:
    """F01, R106, R107, R114: any bytes get a verdict, no error."""
    _check(packet, hook, info, known=known)


def test_thousands_of_damaged_packets() -> None:
    """R106, R107, R114: bits flipped, bytes cut out and put in, lengths made to fit again: as above."""
    random = Random(1998)
    for _ in range(5000):
        packet = bytearray(random.choice(SEEDS))
        for _ in range(random.randrange(4)):
            at = random.randrange(len(packet))
            packet[at] ^= 1 << random.randrange(8)
        at = random.randrange(len(packet))
        packet[at : at + random.choice([0, 0, 1, 4, 20])] = random.randbytes(random.choice([0, 0, 1, 4, 20]))
        if random.random() < 0.8 and len(packet) >= 4:
            packet[2:4] = len(packet).to_bytes(2, "big")
        _check(bytes(packet), random.randrange(5), random.randrange(8), known=random.random() < 0.7)


def _check(packet: bytes, hook: int, info: int, *, known: bool) -> None:
    worlds = [World(filler=filler) for filler in (0x00, 0xFF)]
    if known:
        for world in worlds:
            world.establish()
    check_refusals(worlds, packet, hook, info)
