"""Response times from the packets themselves: their stamps, and which of them carry data."""

from typing import cast

import pytest
from hypothesis import given

from nfqlb.core.director import Director
from nfqlb.packet.path import CHANGED, FORWARD, PREROUTING
from nfqlb.packet.translate import CHECKSUM_NOT_READY, SUPER_PACKET
from tests.packet.packets import ACK, FIN, NOP_OPTIONS, PSH, STEADY, SYN, Place, Shape, World, shapes

PLACE = Place()
#: What the kernel's clock says when a conversation begins.
BEGUN = 1_764_000_000.75
TIMESTAMPS = (("NOP", None), ("NOP", None), ("Timestamp", (1, 2)))


def fastest() -> World:
    """A gateway that goes by response time."""
    return World(PLACE, scheduler="fastest-response")


def sent(world: World, at: float, shape: Shape, info: int = 0) -> None:
    """The client sends a segment so many seconds after the beginning."""
    assert world.judge(shape.sent(PLACE), PREROUTING, info, stamp=BEGUN + at)[0] == CHANGED


def answered(world: World, at: float, shape: Shape, info: int = 0) -> None:
    """The server answers with a segment."""
    assert world.judge(shape.answered(PLACE), FORWARD, info, stamp=BEGUN + at)[0] == CHANGED


def shake_hands(world: World, options: bytes = b"") -> None:
    """The handshake: SYN at 0, SYN-ACK at 10 ms, ACK at 11 ms."""
    sent(world, 0, Shape(SYN, seq=999, ack=0, options=(("MSS", 1460), *TIMESTAMPS), ip_options=options))
    answered(world, 0.010, Shape(SYN | ACK, seq=1999, ack=1000, options=TIMESTAMPS, ip_options=options))
    sent(world, 0.011, Shape(ACK, options=TIMESTAMPS, ip_options=options))


def response(world: World) -> float | None:
    """The last interval that was measured."""
    return world.director.real_servers["web1"].response.last


@pytest.mark.parametrize("options", [b"", NOP_OPTIONS])
def test_from_the_syn(options: bytes) -> None:
    """R081, R170, R171, T11: in real bytes; IP options make the packets ones for a closer look."""
    world = fastest()
    shake_hands(world, options)
    answered(world, 0.300, Shape(PSH | ACK, seq=2000, ack=1000, payload=b"220", ip_options=options))
    assert response(world) == 0.300


@pytest.mark.parametrize("options", [b"", NOP_OPTIONS])
def test_from_the_request(options: bytes) -> None:
    """R082, R170, R171, T12: one sample, of the first packet of three."""
    world = fastest()
    shake_hands(world, options)
    sent(world, 0.100, Shape(PSH | ACK, payload=b"GET /", ip_options=options))
    for at, seq in ((0.150, 2000), (0.160, 2003), (0.170, 2006)):
        answered(world, at, Shape(ACK, seq=seq, ack=1005, payload=b"200", ip_options=options))
        assert response(world) == 0.050


def test_microseconds() -> None:
    """R171: the stamps' own grain, over the second's end."""
    world = fastest()
    shake_hands(world)
    sent(world, 0.249_999, Shape(PSH | ACK, payload=b"GET /"))
    answered(world, 0.250_001, Shape(ACK, ack=1005, seq=2000, payload=b"200"))
    assert response(world) == 0.000_002


@STEADY
@given(asked=shapes, answer=shapes)
def test_data_is_what_follows_the_headers(asked: Shape, answer: Shape) -> None:
    """R162, R170: by the lengths of both headers, whatever their options; flags do not matter."""
    world = fastest()
    shake_hands(world)
    asked = Shape(ACK, options=asked.options, ip_options=asked.ip_options, payload=asked.payload)
    answer = Shape(
        ACK, seq=2000, ack=1000, options=answer.options, ip_options=answer.ip_options, payload=answer.payload
    )
    sent(world, 0.5, asked)
    answered(world, 0.75, answer)
    wanted = None if not answer.payload else 0.25 if asked.payload else 0.75
    assert response(world) == wanted


@pytest.mark.parametrize("info", [CHECKSUM_NOT_READY, SUPER_PACKET | CHECKSUM_NOT_READY])
def test_super_packets(info: int) -> None:
    """R170: one of them is data as well, and its first byte came when it came."""
    world = fastest()
    shake_hands(world)
    sent(world, 0.5, Shape(PSH | ACK, payload=b"a" * 3000), info)
    answered(world, 0.75, Shape(PSH | ACK, seq=2000, ack=4000, payload=b"b" * 40_000), info)
    assert response(world) == 0.25


def test_a_response_that_ends_the_connection() -> None:
    """R086, R128, R170: data and FIN in one segment, after the client's own FIN."""
    world = fastest()
    shake_hands(world)
    sent(world, 0.5, Shape(PSH | ACK | FIN, payload=b"GET /"))
    answered(world, 0.625, Shape(PSH | ACK | FIN, seq=2000, ack=1006, payload=b"200"))
    assert response(world) == 0.125
    assert world.director.real_servers["web1"].response.ratio == 0.125


@pytest.mark.parametrize("options", [b"", NOP_OPTIONS])
def test_without_stamps(options: bytes) -> None:
    """R171, R188: nobody asked the kernel for them: everything passes, nothing is measured."""
    world = fastest()
    world.establish()
    assert world.judge(Shape(PSH | ACK, payload=b"GET /", ip_options=options).sent(PLACE))[0] == CHANGED
    reply = Shape(ACK, seq=2000, ack=1005, payload=b"200", ip_options=options)
    assert world.judge(reply.answered(PLACE), FORWARD)[0] == CHANGED
    assert response(world) is None


@pytest.mark.parametrize("options", [b"", NOP_OPTIONS])
def test_a_repeated_syn(options: bytes) -> None:
    """R111, R162 (A3b): the last one counts."""
    world = fastest()
    for at in (0.0, 1.0, 3.0):
        sent(world, at, Shape(SYN, seq=999, ack=0, ip_options=options))
    answered(world, 3.1, Shape(SYN | ACK, seq=1999, ack=1000))
    sent(world, 3.2, Shape(ACK))
    answered(world, 3.5, Shape(ACK, seq=2000, ack=1000, payload=b"220"))
    assert response(world) == 0.5


class Deaf:
    """In a director's place: it is not to be asked."""


@pytest.mark.parametrize("scheduler", ["round-robin", "fastest-response"])
def test_what_the_short_path_is_for(scheduler: str) -> None:
    """R115, R173: once the first request has been measured no plain segment is put to the director.

    Under fastest-response a client's are, and a server's only where a response is waited for.
    """
    world = World(PLACE, scheduler=scheduler)
    shake_hands(world)
    sent(world, 0.5, Shape(PSH | ACK, payload=b"GET /"))
    answered(world, 0.75, Shape(ACK, seq=2000, ack=1005, payload=b"200"))
    world.path.director = cast(Director, Deaf())
    for at in range(1, 4):
        answered(world, at, Shape(PSH | ACK, seq=2000 + at, ack=1005, payload=b"more"))
        answered(world, at, Shape(ACK, seq=2000 + at, ack=1005))
        if scheduler == "round-robin":
            sent(world, at, Shape(PSH | ACK, seq=1005 + at, payload=b"and again"))
    if scheduler == "fastest-response":
        with pytest.raises(AttributeError):
            sent(world, 5, Shape(PSH | ACK, seq=1005, payload=b"and again"))
    assert response(world) == 0.25
