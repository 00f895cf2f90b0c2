"""UDP and IPv6 that is cut, malformed or a fragment: each has a verdict and a counted reason (A20, A37)."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.core.verdict import Drop, Pass
from nfqlb.packet.decode6 import decode6
from nfqlb.packet.path import ACCEPT, CHANGED, DROP, FORWARD, OUTPUT, PREROUTING
from tests.packet.others import (
    ATOMIC,
    CHAIN,
    DESTINATION_OPTIONS,
    FRAGMENT,
    HOP_BY_HOP,
    KINDS,
    LAST_SEGMENT,
    PADDING,
    PLACE4,
    PLACE6,
    ROUTING,
    TCP6,
    UDP4,
    UDP6,
    Body,
    Kind,
    World,
    error6,
    with_extensions,
)
from tests.packet.packets import (
    ACK,
    FIN,
    NOP_OPTIONS,
    RST,
    STEADY,
    SYN,
    Place,
    check_refusals,
    error,
    fresh_ip_sum,
)

BODY = Body(b"hello")
SENT6, DATAGRAM4, DATAGRAM6 = (BODY.sent(kind, kind.place) for kind in KINDS)
ERROR6 = error6(PLACE6.client, PLACE6.virtual, SENT6)
CHAINED = Body(b"hello", more=CHAIN).sent(TCP6, PLACE6)
FRAGMENT_AT = {"first": b"\0\0\0\x01", "middle": b"\0\0\0\x11", "last": b"\0\0\0\x10"}


def _at(packet: bytes, place: int, new: bytes) -> bytes:
    return packet[:place] + new + packet[place + len(new) :]


def _length(packet: bytes, difference: int = 0) -> bytes:
    """The packet with its length field set to what it is, or to so much more."""
    if packet[0] >> 4 == 4:
        return fresh_ip_sum(_at(packet, 2, (len(packet) + difference).to_bytes(2, "big")))
    return _at(packet, 4, (len(packet) - 40 + difference).to_bytes(2, "big"))


def _udp_length(packet: bytes, length: int) -> bytes:
    return _at(packet, 24 if packet[0] >> 4 == 4 else 44, length.to_bytes(2, "big"))


def _fragment(packet: bytes, which: str) -> bytes:
    return with_extensions(packet, ((FRAGMENT, FRAGMENT_AT[which] + b"\0\0\0\7"),))


def _place(kind: Kind, **changes: Any) -> Place:
    return replace(kind.place, **changes)


MALFORMED: dict[str, tuple[bytes, Drop]] = {
    "39 bytes": (SENT6[:39], Drop.MALFORMED),
    "only a header": (_length(SENT6[:40]), Drop.MALFORMED),
    "header and ports": (_length(SENT6[:44]), Drop.MALFORMED),
    "TCP header one byte short": (_length(SENT6[:59]), Drop.MALFORMED),
    "cut by one": (SENT6[:-1], Drop.CUT),
    "cut after the header": (SENT6[:40], Drop.CUT),
    "says one more": (_length(SENT6, 1), Drop.CUT),
    "says one less": (_length(SENT6, -1), Drop.MALFORMED),
    "jumbogram": (_at(SENT6, 4, b"\0\0"), Drop.MALFORMED),
    "TCP offset 4": (_at(SENT6, 52, b"\x40"), Drop.MALFORMED),
    "TCP offset past the end": (_at(SENT6, 52, b"\x70"), Drop.MALFORMED),
    "chain, TCP offset 4": (_at(CHAINED, len(CHAINED) - 5 - 8, b"\x40"), Drop.MALFORMED),
    "from port 0": (Body(flags=SYN).sent(TCP6, _place(TCP6, client_port=0)), Drop.MALFORMED),
    "to port 0": (Body(flags=SYN).sent(TCP6, _place(TCP6, virtual_port=0)), Drop.MALFORMED),
    "to itself": (Body(flags=SYN).sent(TCP6, _place(TCP6, client=PLACE6.virtual)), Drop.MALFORMED),
    "first fragment": (_fragment(SENT6, "first"), Drop.FRAGMENT),
    "middle fragment": (_fragment(SENT6, "middle"), Drop.FRAGMENT),
    "last fragment": (_fragment(DATAGRAM6, "last"), Drop.FRAGMENT),
    "fragment of an error": (_fragment(ERROR6, "last"), Drop.FRAGMENT),
    "first fragment of an atomic one": (
        with_extensions(SENT6, ((FRAGMENT, FRAGMENT_AT["first"] + b"\0\0\0\7"), (FRAGMENT, ATOMIC))),
        Drop.FRAGMENT,
    ),
    "source route": (with_extensions(SENT6, ((ROUTING, b"\0\2\0\1" + bytes(20)),)), Drop.MALFORMED),
    "hop-by-hop options second": (
        with_extensions(SENT6, ((DESTINATION_OPTIONS, PADDING), (HOP_BY_HOP, PADDING))), Drop.MALFORMED
    ),
    "nine extension headers": (with_extensions(SENT6, ((DESTINATION_OPTIONS, PADDING),) * 9), Drop.MALFORMED),
    "a thousand of them": (with_extensions(SENT6, ((DESTINATION_OPTIONS, PADDING),) * 1000), Drop.MALFORMED),
    "extension header past the end": (
        with_extensions(SENT6, ((DESTINATION_OPTIONS, b"\0\xff" + bytes(6)),)), Drop.MALFORMED
    ),
    "extension header cut short": (_length(with_extensions(SENT6, ((60, PADDING),))[:44]), Drop.MALFORMED),
    "nothing after an extension header": (
        _length(with_extensions(SENT6, ((60, PADDING),))[:48]), Drop.MALFORMED
    ),
    "headers longer than anybody's": (
        with_extensions(SENT6, ((60, b"\0\xff" + bytes(2046)),)), Drop.MALFORMED
    ),
    "error without a header": (_length(error6(PLACE6.client, PLACE6.virtual, b"")[:47]), Drop.MALFORMED),
    "error without a quote": (error6(PLACE6.client, PLACE6.virtual, b""), Drop.MALFORMED),
    "quoted header cut": (error6(PLACE6.client, PLACE6.virtual, SENT6[:39]), Drop.MALFORMED),
    "quoted version 4": (error6(PLACE6.client, PLACE6.virtual, _at(SENT6, 0, b"\x45")), Drop.MALFORMED),
    "quoted headers without end": (
        error6(PLACE6.client, PLACE6.virtual, with_extensions(SENT6, ((60, PADDING),) * 9)), Drop.MALFORMED
    ),
    "quoted extension header cut": (
        error6(PLACE6.client, PLACE6.virtual, with_extensions(SENT6, ((60, PADDING),))[:44]), Drop.MALFORMED
    ),
    "datagram without a sum": (_at(DATAGRAM6, 46, b"\0\0"), Drop.MALFORMED),
    "the same after an extension header": (
        with_extensions(_at(DATAGRAM6, 46, b"\0\0"), ((60, PADDING),)), Drop.MALFORMED
    ),
}  # fmt: skip
for _name, _kind, _whole in (("4", UDP4, DATAGRAM4), ("6", UDP6, DATAGRAM6)):
    MALFORMED |= {
        f"UDP header one byte short, {_name}": (_length(_whole[: _kind.header + 7]), Drop.MALFORMED),
        f"UDP length of 7, {_name}": (_udp_length(_whole, 7), Drop.MALFORMED),
        f"UDP length of 0, {_name}": (_udp_length(_whole, 0), Drop.MALFORMED),
        f"UDP length past the end, {_name}": (_udp_length(_whole, 8 + 6), Drop.MALFORMED),
        f"UDP to port 0, {_name}": (Body().sent(_kind, _place(_kind, virtual_port=0)), Drop.MALFORMED),
        f"UDP to itself, {_name}": (
            Body().sent(_kind, _place(_kind, client=_kind.place.virtual)), Drop.MALFORMED
        ),
        f"UDP cut, {_name}": (_whole[:-1], Drop.CUT),
    }  # fmt: skip
MALFORMED["UDP over IPv4, a fragment"] = (fresh_ip_sum(_at(DATAGRAM4, 6, b"\x20\0")), Drop.FRAGMENT)


@pytest.mark.parametrize("hook", [PREROUTING, FORWARD, OUTPUT])
@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_dropped(kind: Kind, name: str, hook: int) -> None:
    """F03, F04, R107, R113, R114: dropped, each counted under its own reason, and once."""
    packet, reason = MALFORMED[name]
    world = World(kind, kind.place)
    world.establish()
    assert world.judge(packet, hook)[0] == DROP
    assert world.refused() == {reason: 1}
    assert len(world.director.table) == 1


@pytest.mark.parametrize(
    "more",
    [((kind, data),) for kind, data in CHAIN] + [CHAIN, ((60, PADDING),) * 8, ((ROUTING, LAST_SEGMENT),) * 2],
)
@pytest.mark.parametrize("kind", [TCP6, UDP6], ids=str)
def test_extension_headers_that_are_walked(kind: Kind, more: tuple[tuple[int, bytes], ...]) -> None:
    """F04, R012, R114: up to eight; a fragment that is the whole (RFC 6946), a route that is done: none."""
    world = World(kind, kind.place)
    world.establish()
    body = Body(more=more)
    assert world.judge(body.sent(kind, kind.place)) == (CHANGED, body.delivered(kind, kind.place))


@pytest.mark.parametrize("quoted", [ERROR6, b"\x60" + bytes(39) + SENT6])
def test_quotes_are_not_unwrapped(quoted: bytes) -> None:
    """R114: a quote of a quote, and of what hides its transport, are not ours."""
    quoted = _at(quoted, 6, b"\x29") if quoted[6] == 0 else quoted
    world = World(TCP6, PLACE6)
    world.establish()
    packet = error6(PLACE6.client, PLACE6.virtual, quoted)
    assert world.judge(packet) == (ACCEPT, packet)
    assert world.refused() == {Pass.NOT_OURS: 1}


@pytest.mark.parametrize("packet", [SENT6, CHAINED, ERROR6])
def test_every_beginning_of_a_packet(packet: bytes) -> None:
    """R114: a copy may hold less than the headers, whatever the length says; then there are no facts."""
    enough = {id(SENT6): 60, id(CHAINED): len(CHAINED) - 5, id(ERROR6): 48 + 48}[id(packet)]
    for kept in range(len(packet)):
        assert isinstance(decode6(packet[:kept], len(packet)), Drop) == (kept < enough), kept


@pytest.mark.parametrize(
    ("kind", "packet"),
    [
        (TCP6, SENT6),
        (UDP4, DATAGRAM4),
        (UDP6, DATAGRAM6),
        (TCP6, CHAINED),
        (TCP6, ERROR6),
        (UDP4, error(PLACE4.client, PLACE4.virtual, DATAGRAM4)),
    ],
)
def test_every_truncation(kind: Kind, packet: bytes) -> None:
    """R114: cut anywhere by the kernel, a packet is dropped; translated, it would leave shortened."""
    for size in range(len(packet)):
        world = World(kind, kind.place)
        assert world.judge(packet[:size])[0] == DROP
        assert world.refused() == {Drop.CUT if size >= kind.header else Drop.MALFORMED: 1}


def _seeds(kind: Kind, body: Body) -> list[bytes]:
    """A body both ways, and in errors both ways."""
    place, make = kind.place, error if kind.version == 4 else error6
    return [
        body.sent(kind, place),
        body.answered(kind, place),
        make(place.client, place.virtual, body.received(kind, place)),
        make(place.real, place.client, body.delivered(kind, place), kind=3),
    ]


SEEDS = [
    Body(flags=RST, seq=2000).answered(TCP6, PLACE6),
    _fragment(SENT6, "first"),
    with_extensions(DATAGRAM6, ((FRAGMENT, ATOMIC),)),
]
for _kind in KINDS:
    for _more in ((), NOP_OPTIONS if _kind.version == 4 else CHAIN):
        SEEDS += _seeds(_kind, Body(b"hello", more=_more))
        SEEDS += _seeds(_kind, Body(b"", flags=SYN, ack=0, more=_more))
        SEEDS += _seeds(_kind, Body(flags=FIN | ACK, more=_more))


def _damaged(random: Random) -> bytes:
    packet = bytearray(random.choice(SEEDS))
    for _ in range(random.randrange(4)):
        at = random.randrange(len(packet))
        packet[at] ^= 1 << random.randrange(8)
    at = random.randrange(len(packet))
    packet[at : at + random.choice([0, 0, 1, 4, 20])] = random.randbytes(random.choice([0, 0, 1, 4, 20]))
    if random.random() < 0.8 and len(packet) >= 40:
        return _length(bytes(packet))
    return bytes(packet)


def test_thousands_of_damaged_packets() -> None:
    """R106, R107, R114: bits flipped, bytes cut out and put in, lengths made to fit again: no error."""
    random = Random(2460)
    for _ in range(4000):
        packet = _damaged(random)
        _check(random.choice(KINDS), packet, random.randrange(5), random.randrange(8), random.random() < 0.7)


_headers = st.binary(min_size=40, max_size=200).flatmap(
    lambda data: st.sampled_from([6, 17, 58, 0, 43, 44, 60]).map(
        lambda following: _length(b"\x60" + data[1:6] + bytes([following]) + data[7:])
    )
)


@settings(STEADY, max_examples=700)
@given(_headers | st.binary(max_size=200), st.integers(0, 4), st.integers(0, 7), st.booleans())
def test_whatever_comes(packet: bytes, hook: int, info: int, known: bool) -> None:
    """F01, R106, R107, R114: any bytes get a verdict, no error."""
    for kind in KINDS:
        _check(kind, packet, hook, info, known)


def _check(kind: Kind, packet: bytes, hook: int, info: int, known: bool) -> None:
    worlds = [World(kind, kind.place, filler=filler) for filler in (0x00, 0xFF)]
    if known:
        for world in worlds:
            world.establish()
    check_refusals(worlds, packet, hook, info)
