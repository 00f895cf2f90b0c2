"""ICMP errors: translated as the packet they quote, against errors from scratch; others' pass."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nfqlb.core.verdict import Drop, Pass
from nfqlb.packet.path import ACCEPT, CHANGED, DROP, FORWARD, OUTPUT, PREROUTING
from tests.packet.packets import (
    ACK,
    NOP_OPTIONS,
    PSH,
    STEADY,
    SYN,
    Place,
    Shape,
    World,
    addresses,
    error,
    places,
    shapes,
    sums_fit,
    with_ip_options,
)

PLACE = Place()
ROUTER, GATEWAY = "10.0.0.254", "192.0.2.1"
#: Destination unreachable, time exceeded, parameter problem.
KINDS = [(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0), (12, 2)]

_kinds = st.sampled_from(KINDS)
#: Of the quoted TCP header and payload; not 17, which leaves half a checksum.
_amounts = st.one_of(st.integers(8, 16), st.integers(18, 60), st.sampled_from([548, 2000]))


def _cut(packet: bytes, amount: int) -> bytes:
    """The IP header and so many bytes after it."""
    return packet[: (packet[0] & 15) * 4 + amount]


@STEADY
@given(places(), shapes, _kinds, _amounts, addresses, st.integers(0, 65535))
def test_error_from_outside(
    place: Place, shape: Shape, kind: tuple[int, int], amount: int, source: str, mtu: int
) -> None:
    """F09, R014, R006: an error about what the client got reaches the server as one about what it sent."""
    world = World(place)
    world.establish()
    more = {"kind": kind[0], "code": kind[1], "mtu": mtu}
    came = error(source, place.virtual, _cut(shape.received(place), amount), **more)
    wanted = error(source, place.real, _cut(shape.answered(place), amount), **more)
    verdict, packet = world.judge(came, PREROUTING)
    assert verdict == CHANGED
    assert packet == wanted
    assert sums_fit(packet)


@STEADY
@given(places(), shapes, _kinds, _amounts, addresses, st.integers(0, 65535), st.booleans())
def test_error_from_inside(
    place: Place, shape: Shape, kind: tuple[int, int], amount: int, router: str, mtu: int, by_server: bool
) -> None:
    """F09, R014, R007: whoever inside sent it, it comes from the VIP, about what the client sent."""
    world = World(place)
    world.establish()
    source = place.real if by_server else router
    more = {"kind": kind[0], "code": kind[1], "mtu": mtu}
    came = error(source, place.client, _cut(shape.delivered(place), amount), **more)
    wanted = error(place.virtual, place.client, _cut(shape.sent(place), amount), **more)
    verdict, packet = world.judge(came, FORWARD)
    assert verdict == CHANGED
    assert packet == wanted
    assert sums_fit(packet)


@STEADY
@given(places(), shapes, _kinds, _amounts)
def test_error_of_the_gateway(place: Place, shape: Shape, kind: tuple[int, int], amount: int) -> None:
    """R014, R007: the gateway's own keeps its address; what it quotes is what the client sent."""
    world = World(place)
    world.establish()
    more = {"kind": kind[0], "code": kind[1], "mtu": 1400}
    came = error(GATEWAY, place.client, _cut(shape.delivered(place), amount), **more)
    wanted = error(GATEWAY, place.client, _cut(shape.sent(place), amount), **more)
    assert world.judge(came, OUTPUT) == (CHANGED, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("amount", [8, 12, 18, 20, 160])
@pytest.mark.parametrize(("source", "hook"), [(PLACE.real, FORWARD), (ROUTER, FORWARD), (GATEWAY, OUTPUT)])
def test_real_address_is_nowhere_in_it(kind: tuple[int, int], amount: int, source: str, hook: int) -> None:
    """R007: the client finds no trace of an inside address or of the real port in an error."""
    world = World()
    world.establish()
    quoted = _cut(Shape(PSH | ACK, payload=b"q" * 140).delivered(PLACE), amount)
    _, packet = world.judge(error(source, PLACE.client, quoted, kind=kind[0], code=kind[1]), hook)
    assert b"\x0a\x00\x00" not in packet[12:20] + packet[28 + 12 :]
    assert (8080).to_bytes(2, "big") not in packet[28 + 20 :]


@pytest.mark.parametrize("options", [NOP_OPTIONS, b"\x94\x04\0\0", b"\x07\x27\x04" + bytes(36) + b"\0"])
@pytest.mark.parametrize("hook", [PREROUTING, FORWARD, OUTPUT])
def test_options_before_and_inside(options: bytes, hook: int) -> None:
    """R014: IP options of the error itself and of the packet it quotes move what follows, and stay."""
    world = World()
    world.establish()
    shape = Shape(PSH | ACK, payload=b"abc", ip_options=options)
    if hook == PREROUTING:
        came = error(PLACE.client, PLACE.virtual, shape.received(PLACE))
        wanted = error(PLACE.client, PLACE.real, shape.answered(PLACE))
    else:
        source = GATEWAY if hook == OUTPUT else ROUTER
        came = error(source, PLACE.client, shape.delivered(PLACE))
        wanted = error(GATEWAY if hook == OUTPUT else PLACE.virtual, PLACE.client, shape.sent(PLACE))
    verdict, packet = world.judge(with_ip_options(came, options), hook)
    assert (verdict, packet) == (CHANGED, with_ip_options(wanted, options))


@pytest.mark.parametrize("hook", [PREROUTING, FORWARD])
@STEADY
@given(shape=shapes, amount=_amounts, error_in_sum=st.integers(1, 65534))
def test_damaged_error_stays_damaged(hook: int, shape: Shape, amount: int, error_in_sum: int) -> None:
    """R014, A22: nobody has looked at an error's sum before us; a wrong one is not made right."""
    world = World()
    world.establish()
    if hook == PREROUTING:
        came = error(PLACE.client, PLACE.virtual, _cut(shape.received(PLACE), amount))
    else:
        came = error(ROUTER, PLACE.client, _cut(shape.delivered(PLACE), amount))
    wrong = (int.from_bytes(came[22:24], "big") + error_in_sum) % 65535
    verdict, packet = world.judge(came[:22] + wrong.to_bytes(2, "big") + came[24:], hook)
    assert verdict == CHANGED
    assert not sums_fit(packet)


@pytest.mark.parametrize("hook", [PREROUTING, FORWARD, OUTPUT])
def test_quote_that_ends_inside_the_transport_sum(hook: int) -> None:
    """R014: half a sum cannot be adjusted and stays as it is; the error's own sum is right all the same."""
    world = World()
    world.establish()
    shape = Shape(PSH | ACK, payload=b"abc")
    if hook == PREROUTING:
        came = error(PLACE.client, PLACE.virtual, shape.received(PLACE)[:37])
        wanted = shape.answered(PLACE)[:36]
    else:
        came = error(ROUTER, PLACE.client, shape.delivered(PLACE)[:37])
        wanted = shape.sent(PLACE)[:36]
    verdict, packet = world.judge(came, hook)
    assert verdict == CHANGED
    assert packet[28:] == wanted + came[-1:]
    assert sums_fit(packet)


def test_error_to_another_virtual_address() -> None:
    """R014: whatever address an error was sent to, its header's sum is right afterwards."""
    world = World()
    world.establish()
    came = error(PLACE.client, "192.0.2.101", Shape().received(PLACE))
    assert world.judge(came) == (CHANGED, error(PLACE.client, PLACE.real, Shape().answered(PLACE)))


@pytest.mark.parametrize("code", [0, 1, 2, 3, 5, 9, 10, 13])
@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(("source", "hook"), [(PLACE.real, FORWARD), (ROUTER, FORWARD), (GATEWAY, OUTPUT)])
def test_unreachable_about_a_half_open_connection_is_eaten(
    code: int, answered: bool, source: str, hook: int
) -> None:
    """R114: it would make the client give up; dropped and counted, the client repeats its SYN."""
    world = World()
    connection = world.open()
    if answered:
        world.judge(Shape(SYN | ACK, seq=1999, ack=1000).answered(PLACE), FORWARD)
    quoted = Shape(SYN, seq=999, ack=0).delivered(PLACE)
    assert world.judge(error(source, PLACE.client, quoted, code=code), hook)[0] == DROP
    assert world.refused() == {Drop.UNREACHABLE: 1}
    assert world.director.table.inbound[connection.inbound] is connection


@pytest.mark.parametrize(("source", "hook"), [(ROUTER, FORWARD), (GATEWAY, OUTPUT)])
def test_too_big_about_a_half_open_connection_passes(source: str, hook: int) -> None:
    """R114: path-MTU discovery lives on "fragmentation needed"; it is translated in every state."""
    world = World()
    world.open()
    shape = Shape(SYN, seq=999, ack=0)
    came = error(source, PLACE.client, shape.delivered(PLACE), code=4, mtu=1280)
    wanted_source = GATEWAY if hook == OUTPUT else PLACE.virtual
    wanted = error(wanted_source, PLACE.client, shape.sent(PLACE), code=4, mtu=1280)
    assert world.judge(came, hook) == (CHANGED, wanted)
    assert world.refused() == {}


@pytest.mark.parametrize("code", [0, 1, 3, 13])
def test_unreachable_from_outside_about_a_half_open_connection(code: int) -> None:
    """R114: an error about the SYN-ACK is for the server to judge; only the way to the client is guarded."""
    world = World()
    world.open()
    shape = Shape(SYN | ACK)
    came = error("203.0.113.9", PLACE.virtual, shape.received(PLACE), code=code)
    assert world.judge(came) == (CHANGED, error("203.0.113.9", PLACE.real, shape.answered(PLACE), code=code))


@pytest.mark.parametrize("hook", [PREROUTING, FORWARD, OUTPUT])
@pytest.mark.parametrize("kind", KINDS)
def test_error_about_nobodys_connection_passes(hook: int, kind: tuple[int, int]) -> None:
    """R114: the gateway is a router too; what is none of ours passes unchanged, and is counted."""
    world = World()
    world.establish()
    other = replace(PLACE, client_port=1)
    quoted = Shape().received(other) if hook == PREROUTING else Shape().delivered(other)
    packet = error(ROUTER, PLACE.client, quoted, kind=kind[0], code=kind[1])
    assert world.judge(packet, hook) == (ACCEPT, packet)
    assert world.refused() == {Pass.NOT_OURS: 1}


@pytest.mark.parametrize("kind", [0, 4, 5, 8, 9, 13, 17, 40])
@pytest.mark.parametrize("hook", [PREROUTING, FORWARD, OUTPUT])
def test_other_messages_pass(kind: int, hook: int) -> None:
    """R114: echo, redirect and the like are none of ours, even where they quote a connection of ours."""
    world = World()
    world.establish()
    packet = error(PLACE.client, PLACE.virtual, Shape().received(PLACE), kind=kind, code=0)
    assert world.judge(packet, hook) == (ACCEPT, packet)
    assert world.refused() == {Pass.NOT_OURS: 1}


@STEADY
@given(shapes, _kinds, st.integers(0, 7))
def test_quote_of_less_than_eight_bytes(shape: Shape, kind: tuple[int, int], amount: int) -> None:
    """R114: RFC 792 promises eight bytes; with less there are no ports to be sure of."""
    assume(not shape.ip_options)
    world = World()
    world.establish()
    packet = error(ROUTER, PLACE.client, _cut(shape.delivered(PLACE), amount), kind=kind[0], code=kind[1])
    assert world.judge(packet, FORWARD)[0] == DROP
    assert world.refused() == {Drop.MALFORMED: 1}
