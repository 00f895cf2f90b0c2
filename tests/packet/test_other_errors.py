"""ICMP errors about UDP, and ICMPv6: translated as the packet they quote, against errors from scratch."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.verdict import Drop, Pass
from nfqlb.packet.path import ACCEPT, CHANGED, DROP, FORWARD, OUTPUT, PREROUTING
from tests.packet.others import (
    CHAIN,
    DESTINATION_OPTIONS,
    FRAGMENT,
    HOP_BY_HOP,
    KINDS,
    PADDING,
    PLACE6,
    TCP6,
    UDP4,
    Body,
    Kind,
    World,
    cases,
    error6,
    sums_fit6,
    with_extensions,
)
from tests.packet.packets import ACK, STEADY, SYN, Place, error, sums_fit

Case = tuple[Kind, Place, Body]
#: Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443); and RFC 792's.
CODES = {
    6: [(1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0), (4, 2)],
    4: [(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (12, 0)],
}
ROUTER = {4: "10.0.0.254", 6: "fd00::254"}
GATEWAY = {4: "192.0.2.1", 6: "2001:db8::1"}
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)

#: Of the quoted transport header and payload, even where that cuts TCP's sum off.
_amounts = st.sampled_from([8, 10, 12, 14, 16, 1200]) | st.integers(18, 60)


def made(kind: Kind, source: str, target: str, quoted: bytes, code: tuple[int, int], mtu: int = 0) -> bytes:
    """An error of the packet's IP version."""
    make = error if kind.version == 4 else error6
    return make(source, target, quoted, kind=code[0], code=code[1], mtu=mtu)


def fits(packet: bytes) -> bool:
    return sums_fit(packet) if packet[0] >> 4 == 4 else sums_fit6(packet)


def cut(kind: Kind, body: Body, packet: bytes, amount: int) -> bytes:
    """The IP header with all that belongs to it, and so many bytes after it."""
    return packet[: len(packet) - len(body.payload) - (8 if kind.udp else 20) + amount]


@st.composite
def complaints(draw: st.DrawFn) -> tuple[Kind, Place, Body, tuple[int, int], int, int]:
    """A case, an error's type and code, how much it quotes, and the fourth word's value."""
    kind, place, body = draw(cases())
    code = draw(st.sampled_from(CODES[kind.version]))
    return kind, place, body, code, draw(_amounts), draw(st.integers(0, 65535))


Complaint = tuple[Kind, Place, Body, tuple[int, int], int, int]


@STEADY
@given(complaints())
def test_error_from_outside(complaint: Complaint) -> None:
    """F09, R012, R014: an error about what the client got reaches the server as one about what it sent."""
    kind, place, body, code, amount, mtu = complaint
    world = World(kind, place)
    world.establish()
    router = ROUTER[kind.version]
    came = made(kind, router, place.virtual, cut(kind, body, body.received(kind, place), amount), code, mtu)
    wanted = made(kind, router, place.real, cut(kind, body, body.answered(kind, place), amount), code, mtu)
    assert world.judge(came) == (CHANGED, wanted)
    assert fits(wanted)


@STEADY
@given(complaints(), st.booleans())
def test_error_from_inside(complaint: Complaint, by_server: bool) -> None:
    """F09, R007, R014: whoever inside sent it, it comes from the VIP, about what the client sent."""
    kind, place, body, code, amount, mtu = complaint
    world = World(kind, place)
    world.establish()
    source = place.real if by_server else ROUTER[kind.version]
    before = cut(kind, body, body.delivered(kind, place), amount)
    after = cut(kind, body, body.sent(kind, place), amount)
    came = made(kind, source, place.client, before, code, mtu)
    wanted = made(kind, place.virtual, place.client, after, code, mtu)
    assert world.judge(came, FORWARD) == (CHANGED, wanted)


@STEADY
@given(complaints())
def test_error_of_the_gateway(complaint: Complaint) -> None:
    """R007, R014: the gateway's own keeps its address; what it quotes is what the client sent."""
    kind, place, body, code, amount, mtu = complaint
    world = World(kind, place)
    world.establish()
    own = GATEWAY[kind.version]
    came = made(kind, own, place.client, cut(kind, body, body.delivered(kind, place), amount), code, mtu)
    wanted = made(kind, own, place.client, cut(kind, body, body.sent(kind, place), amount), code, mtu)
    assert world.judge(came, OUTPUT) == (CHANGED, wanted)


@STEADY
@given(cases((UDP4,)), st.sampled_from([8, 30]), st.sampled_from([PREROUTING, FORWARD, OUTPUT]))
def test_quote_of_a_datagram_without_a_sum(case: Case, amount: int, hook: int) -> None:
    """R014, A22: it quotes none, and the error's own sum is right."""
    kind, place, body = case
    world = World(kind, place)
    world.establish()
    none = {"chksum": 0}
    if hook == PREROUTING:
        came, wanted = body.received(kind, place, **none), body.answered(kind, place, **none)
        ends = (ROUTER[4], place.virtual), (ROUTER[4], place.real)
    else:
        came, wanted = body.delivered(kind, place, **none), body.sent(kind, place, **none)
        source = GATEWAY[4] if hook == OUTPUT else place.virtual
        ends = (GATEWAY[4] if hook == OUTPUT else ROUTER[4], place.client), (source, place.client)
    before = error(*ends[0], cut(kind, body, came, amount), kind=11)
    after = error(*ends[1], cut(kind, body, wanted, amount), kind=11)
    assert world.judge(before, hook) == (CHANGED, after)


@pytest.mark.parametrize("kind", [each for each in KINDS if each.udp], ids=str)
def test_quoted_sum_that_comes_out_as_zero(kind: Kind) -> None:
    """R014, A22: a quoted datagram has a sum, before and after (RFC 768)."""
    world, place = World(kind, kind.place), kind.place
    world.establish()
    first = Body(b"\0\0").sent(kind, place)
    found = int.from_bytes(first[kind.sum_at : kind.sum_at + 2], "big")
    body = Body(found.to_bytes(2, "big"))
    quoted = body.sent(kind, place)
    assert quoted[kind.sum_at : kind.sum_at + 2] == b"\xff\xff"
    code = CODES[kind.version][0]
    came = made(kind, place.real, place.client, body.delivered(kind, place), code)
    assert world.judge(came, FORWARD) == (CHANGED, made(kind, place.virtual, place.client, quoted, code))


@STEADY
@given(complaints(), st.integers(1, 65534), st.booleans())
def test_damaged_error_stays_damaged(complaint: Complaint, wrong: int, reply: bool) -> None:
    """R014, A22: nobody has looked at an error's sum before us; a wrong one is not made right."""
    kind, place, body, code, amount, mtu = complaint
    world = World(kind, place)
    world.establish()
    if reply:
        quoted = cut(kind, body, body.delivered(kind, place), amount)
        came = made(kind, ROUTER[kind.version], place.client, quoted, code, mtu)
    else:
        quoted = cut(kind, body, body.received(kind, place), amount)
        came = made(kind, ROUTER[kind.version], place.virtual, quoted, code, mtu)
    at = kind.header + 2
    total = (int.from_bytes(came[at : at + 2], "big") + wrong) % 65535
    came = came[:at] + total.to_bytes(2, "big") + came[at + 2 :]
    verdict, packet = world.judge(came, FORWARD if reply else PREROUTING)
    assert verdict == CHANGED
    assert not fits(packet)


@pytest.mark.parametrize("kind", [each for each in KINDS if each.version == 6], ids=str)
@pytest.mark.parametrize("hook", [PREROUTING, FORWARD, OUTPUT])
def test_extensions_before_and_inside(kind: Kind, hook: int) -> None:
    """R014: extension headers of the error itself and of what it quotes move what follows, and stay."""
    place, body = kind.place, Body(more=CHAIN)
    world = World(kind, place)
    world.establish()
    if hook == PREROUTING:
        came, wanted = body.received(kind, place), body.answered(kind, place)
        ends = (ROUTER[6], place.virtual), (ROUTER[6], place.real)
    else:
        came, wanted = body.delivered(kind, place), body.sent(kind, place)
        source = GATEWAY[6] if hook == OUTPUT else place.virtual
        ends = (GATEWAY[6] if hook == OUTPUT else ROUTER[6], place.client), (source, place.client)
    front = ((HOP_BY_HOP, PADDING), (DESTINATION_OPTIONS, PADDING))
    before = with_extensions(error6(*ends[0], came, kind=2, mtu=1280), front)
    after = with_extensions(error6(*ends[1], wanted, kind=2, mtu=1280), front)
    assert world.judge(before, hook) == (CHANGED, after)


@pytest.mark.parametrize("code", range(8))
@pytest.mark.parametrize(("hook", "source"), [(FORWARD, ROUTER[6]), (OUTPUT, GATEWAY[6])])
@pytest.mark.parametrize("answered", [False, True])
def test_unreachable_about_a_half_open_connection_is_eaten(
    code: int, hook: int, source: str, answered: bool
) -> None:
    """R114: it would make the client give up; dropped and counted, the client repeats its SYN."""
    world = World(TCP6, PLACE6)
    connection = world.open()
    if answered:
        world.judge(Body(b"", flags=SYN | ACK, seq=1999, ack=1000).answered(TCP6, PLACE6), FORWARD)
    quoted = Body(b"", flags=SYN, seq=999, ack=0).delivered(TCP6, PLACE6)
    assert world.judge(error6(source, PLACE6.client, quoted, code=code), hook)[0] == DROP
    assert world.refused() == {Drop.UNREACHABLE: 1}
    assert world.director.table.inbound[connection.inbound] is connection


@pytest.mark.parametrize("kind", [2, 3, 4])
def test_other_errors_about_a_half_open_connection_pass(kind: int) -> None:
    """R114: "packet too big" (RFC 8201) is no unreachable, nor are time exceeded and parameter problem."""
    world = World(TCP6, PLACE6)
    world.open()
    body = Body(b"", flags=SYN, seq=999, ack=0)
    came = error6(ROUTER[6], PLACE6.client, body.delivered(TCP6, PLACE6), kind=kind, mtu=1280)
    wanted = error6(PLACE6.virtual, PLACE6.client, body.sent(TCP6, PLACE6), kind=kind, mtu=1280)
    assert world.judge(came, FORWARD) == (CHANGED, wanted)


@pytest.mark.parametrize("kind", [each for each in KINDS if each.udp], ids=str)
@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("hook", [FORWARD, OUTPUT])
def test_unreachable_about_a_flow_passes(kind: Kind, answered: bool, hook: int) -> None:
    """R012, R114: nothing would be repeated; the client learns at once that nobody listens."""
    world, place = World(kind, kind.place), kind.place
    world.establish() if answered else world.open()
    source = GATEWAY[kind.version] if hook == OUTPUT else place.real
    code = (1, 4) if kind.version == 6 else (3, 3)
    came = made(kind, source, place.client, Body().delivered(kind, place), code)
    after = GATEWAY[kind.version] if hook == OUTPUT else place.virtual
    wanted = made(kind, after, place.client, Body().sent(kind, place), code)
    assert world.judge(came, hook) == (CHANGED, wanted)
    assert world.refused() == {}


@each_kind
@pytest.mark.parametrize("hook", [PREROUTING, FORWARD, OUTPUT])
def test_error_about_nobodys_packet_passes(kind: Kind, hook: int) -> None:
    """R114: the gateway is a router too; what is none of ours passes unchanged, and is counted."""
    world = World(kind, kind.place)
    world.establish()
    other = replace(kind.place, client_port=1)
    for code in CODES[kind.version]:
        quoted = Body().received(kind, other) if hook == PREROUTING else Body().delivered(kind, other)
        packet = made(kind, ROUTER[kind.version], other.client, quoted, code)
        assert world.judge(packet, hook) == (ACCEPT, packet)
    assert world.refused() == {Pass.NOT_OURS: len(CODES[kind.version])}


@pytest.mark.parametrize("kind", [0, 5, 100, 127, 128, 129, 130, 133, 134, 135, 136, 137, 143, 255])
@pytest.mark.parametrize("hook", [PREROUTING, FORWARD, OUTPUT])
def test_other_messages_pass(kind: int, hook: int) -> None:
    """R114: echo and neighbour discovery are none of ours, whatever they seem to quote."""
    world = World(TCP6, PLACE6)
    world.establish()
    packet = error6(PLACE6.client, PLACE6.virtual, Body().received(TCP6, PLACE6), kind=kind)
    assert world.judge(packet, hook) == (ACCEPT, packet)
    assert world.refused() == {Pass.NOT_OURS: 1}


@each_kind
@pytest.mark.parametrize("amount", range(8))
def test_quote_of_less_than_eight_bytes(kind: Kind, amount: int) -> None:
    """R114: with less there are no ports to be sure of."""
    world = World(kind, kind.place)
    world.establish()
    body = Body()
    quoted = cut(kind, body, body.delivered(kind, kind.place), amount)
    packet = made(kind, ROUTER[kind.version], kind.place.client, quoted, (3, 0))
    assert world.judge(packet, FORWARD)[0] == DROP
    assert world.refused() == {Drop.MALFORMED: 1}


@pytest.mark.parametrize("kind", [each for each in KINDS if each.version == 6], ids=str)
def test_quote_of_a_fragment(kind: Kind) -> None:
    """R014, A37: the first one has the ports; a later one could only show a real address."""
    world, place = World(kind, kind.place), kind.place
    world.establish()
    first = Body(more=((FRAGMENT, b"\0\0\0\x01\0\0\0\7"),))
    came = error6(ROUTER[6], place.client, first.delivered(kind, place), kind=2, mtu=1280)
    wanted = error6(place.virtual, place.client, first.sent(kind, place), kind=2, mtu=1280)
    assert world.judge(came, FORWARD) == (CHANGED, wanted)
    later = Body(more=((FRAGMENT, b"\0\0\0\x11\0\0\0\7"),))
    came = error6(ROUTER[6], place.client, later.delivered(kind, place), kind=2, mtu=1280)
    assert world.judge(came, FORWARD)[0] == DROP
    assert world.refused() == {Drop.FRAGMENT: 1}
