"""What clients are told over UDP and IPv6: all the way, from a packet that is refused to the one they get."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.packet import Raw

from nfqlb.core.verdict import Drop
from nfqlb.packet.path import CHANGED, DROP, FORWARD
from nfqlb.packet.translate import CHECKSUM_NOT_READY, SUPER_PACKET
from tests.packet.others import KINDS, PLACE4, PLACE6, TCP6, UDP4, UDP6, Body, Kind, World, cases, pseudo_sum
from tests.packet.packets import ACK, FIN, RST, STEADY, SYN, Place

WRAP = 2**32
UDP = (UDP4, UDP6)


def refusing(kind: Kind, place: Place, *, every_port: bool = False) -> World:
    """A gateway whose only server takes nobody, and that says so."""
    return World(kind, place, reject="reset", weight=0, every_port=every_port)


def unreachable(kind: Kind, place: Place, quoted: bytes) -> bytes:
    """ "Port unreachable" from the virtual server, by scapy; as much is quoted as fits."""
    if kind.version == 6:
        around = IPv6(src=place.virtual, dst=place.client, hlim=64)
        return bytes(around / ICMPv6DestUnreach(code=4) / Raw(quoted[: 1280 - 48]))
    around = IP(src=place.virtual, dst=place.client, flags="DF", id=0, ttl=64)
    return bytes(around / ICMP(type=3, code=3) / Raw(quoted[: 576 - 28]))


def told(kind: Kind, place: Place, body: Body, packet: bytes) -> bytes:
    """What the sender of a packet must get."""
    if kind.udp:
        return unreachable(kind, place, packet[: len(packet) - len(body.surplus)])
    length = len(body.payload) + bool(body.flags & SYN) + bool(body.flags & FIN)
    numbers = (RST, body.ack, 0) if body.flags & ACK else (RST | ACK, 0, (body.seq + length) % WRAP)
    back = TCP(
        sport=place.virtual_port, dport=place.client_port, flags=numbers[0], seq=numbers[1], ack=numbers[2],
        window=0,
    )  # fmt: skip
    return bytes(IPv6(src=place.virtual, dst=place.client, hlim=64) / back)


@STEADY
@given(cases(), st.booleans(), st.binary(max_size=5), st.booleans())
def test_whoever_is_refused_is_told(
    case: tuple[Kind, Place, Body], opening: bool, surplus: bytes, every_port: bool
) -> None:
    """R012, R113, R114, R117 (A20): by a reset or an unreachable, whatever surrounds the transport header."""
    kind, place, body = case
    if kind.udp:
        body = replace(body, surplus=surplus)
    elif opening:
        body = replace(body, flags=SYN, ack=0)
    packet = body.sent(kind, place)
    world = refusing(kind, place, every_port=every_port)
    assume(world.director._rejection._can_be_told(packet[8:24] if kind.version == 6 else packet[12:16]))
    assert world.judge(packet) == (DROP, packet)
    assert world.path.replies.take() == [told(kind, place, body, packet)]
    assert world.path.replies.take() == []
    silent = World(kind, place, weight=0, every_port=every_port)
    assert silent.judge(packet) == (DROP, packet)
    assert silent.path.replies.take() == []


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("more", [False, True])
def test_what_is_damaged_gets_no_reply(kind: Kind, more: bool) -> None:
    """R114: a wrong checksum, unless the kernel says that it is not the sender's yet."""
    place = PLACE4 if kind.version == 4 else PLACE6
    options: bytes | tuple[tuple[int, bytes], ...] = ()
    if more:
        options = b"\x01\x01\x01\x00" if kind.version == 4 else ((60, b"\0\0\1\4\0\0\0\0"),)
    body = Body(payload=b"odd length here", more=options)
    size = len(body.payload) + (8 if kind.udp else 20)
    packet = body.sent(kind, place, chksum=pseudo_sum(kind, place.client, place.virtual, size))
    for info, answered in ((0, False), (CHECKSUM_NOT_READY, True)):
        world = refusing(kind, place)
        assert world.judge(packet, info=info)[0] == DROP
        assert len(world.path.replies.take()) == answered


@pytest.mark.parametrize("kind", UDP, ids=str)
def test_several_datagrams_in_one_are_not_told_of(kind: Kind) -> None:
    """R012, R114: their port is not unreachable."""
    place = PLACE4 if kind.version == 4 else PLACE6
    packet = Body().sent(kind, place)
    for world in (refusing(kind, place), World(kind, place, reject="reset")):
        assert world.judge(packet, info=SUPER_PACKET | CHECKSUM_NOT_READY)[0] == DROP
        assert world.refused() == {Drop.SUPER_DATAGRAM: 1}
        assert world.path.replies.take() == []


@pytest.mark.parametrize("kind", UDP, ids=str)
def test_what_a_server_says_is_never_answered(kind: Kind) -> None:
    """R114 (A20): a datagram from a server without a flow is dropped in silence; one with a flow goes on."""
    place = PLACE4 if kind.version == 4 else PLACE6
    world = World(kind, place, reject="reset")
    answer = Body().answered(kind, place)
    assert world.judge(answer, FORWARD)[0] == DROP
    assert world.path.replies.take() == []
    world.open()
    assert world.judge(answer, FORWARD)[0] == CHANGED


def test_a_segment_over_ipv6_after_its_server_failed() -> None:
    """R186 (A34): with on_failure = "reset", the reset has the number that the client expects."""
    world = World(TCP6, PLACE6, on_failure="reset")
    connection = world.establish()
    for port in range(41_000, 41_008):
        syn = Body(flags=SYN, ack=0).sent(TCP6, replace(PLACE6, client_port=port))
        refusal = Body(flags=RST | ACK, seq=0, ack=1008).answered(TCP6, replace(PLACE6, client_port=port))
        assert (world.judge(syn)[0], world.judge(refusal, FORWARD)[0]) == (CHANGED, CHANGED)
    assert [real.state for real in world.director.reals(1.0)] == ["failed"]
    world.director.tick(2.0)
    (reset,) = world.path.replies.take()
    number = int.from_bytes(connection.client_numbers[4:8], "big")
    back = TCP(sport=PLACE6.virtual_port, dport=PLACE6.client_port, flags=RST, seq=number, ack=0, window=0)
    assert reset == bytes(IPv6(src=PLACE6.virtual, dst=PLACE6.client, hlim=64) / back)
