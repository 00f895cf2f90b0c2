"""A TCP segment's translation, both ways, against scapy's packets from scratch."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nfqlb.core.verdict import Drop
from nfqlb.packet.path import CHANGED, DROP, FORWARD, PREROUTING
from nfqlb.packet.translate import CHECKSUM_NOT_READY, SUPER_PACKET
from tests.packet.packets import (
    ACK,
    NOP_OPTIONS,
    PSH,
    RST,
    START,
    STEADY,
    SYN,
    Place,
    Shape,
    World,
    absurd,
    places,
    pseudo_sum,
    shapes,
    sums_fit,
)

_SUPER = st.sampled_from([SUPER_PACKET, SUPER_PACKET | CHECKSUM_NOT_READY, SUPER_PACKET | 4])


def _without_transport_sum(packet: bytes) -> bytes:
    at = (packet[0] & 15) * 4 + 16
    return packet[:at] + packet[at + 2 :]


@STEADY
@given(places(), shapes)
def test_client_segment_reaches_the_server(place: Place, shape: Shape) -> None:
    """R006, R107, R165-R168: destination address and port become the real server's, sums are right."""
    world = World(place)
    world.establish()
    verdict, packet = world.judge(shape.sent(place))
    if absurd(shape.flags):
        assert (verdict, world.refused()) == (DROP, {Drop.MALFORMED: 1})
        assert world.director.virtuals(1.0)[0].drops == {"malformed": 1}
        return
    assert verdict == CHANGED
    assert packet == shape.delivered(place)
    assert sums_fit(packet)


@STEADY
@given(places(), shapes)
def test_server_segment_reaches_the_client(place: Place, shape: Shape) -> None:
    """R007, R169, R174-R178: source address and port become the virtual server's, sums are right."""
    world = World(place)
    world.establish()
    verdict, packet = world.judge(shape.answered(place), FORWARD)
    if absurd(shape.flags):
        assert (verdict, world.refused()) == (DROP, {Drop.MALFORMED: 1})
        assert world.director.virtuals(1.0)[0].drops == {"malformed": 1}
        return
    assert verdict == CHANGED
    assert packet == shape.received(place)
    assert sums_fit(packet)


@STEADY
@given(places(), shapes, st.booleans(), st.sampled_from([0, 4]))
def test_sum_that_the_kernel_has_not_finished(place: Place, shape: Shape, reply: bool, more: int) -> None:
    """R167, R177: the field holds the pseudo header's folded sum; the sum comes out right and complete."""
    assume(not absurd(shape.flags))
    world = World(place)
    world.establish()
    size = len(shape.sent(place)) - 20 - len(shape.ip_options)
    if reply:
        begun = shape.answered(place, chksum=pseudo_sum(place.real, place.client, size))
        wanted = shape.received(place)
    else:
        begun = shape.sent(place, chksum=pseudo_sum(place.client, place.virtual, size))
        wanted = shape.delivered(place)
    hook = FORWARD if reply else PREROUTING
    assert world.judge(begun, hook, CHECKSUM_NOT_READY | more) == (CHANGED, wanted)


@STEADY
@given(places(), shapes, _SUPER)
def test_super_packet_to_the_server(place: Place, shape: Shape, info: int) -> None:
    """R167: conntrack will look at a super-packet's own sum; it is right, begun or finished by the kernel."""
    assume(not absurd(shape.flags))
    world = World(place)
    world.establish()
    size = len(shape.sent(place)) - 20 - len(shape.ip_options)
    begun = {"chksum": pseudo_sum(place.client, place.virtual, size)} if info & CHECKSUM_NOT_READY else {}
    assert world.judge(shape.sent(place, **begun), PREROUTING, info) == (CHANGED, shape.delivered(place))


@STEADY
@given(places(), shapes, _SUPER)
def test_super_packet_to_the_client(place: Place, shape: Shape, info: int) -> None:
    """R177: on its way out the kernel sums each segment itself; all but the transport sum is right."""
    assume(not absurd(shape.flags))
    world = World(place)
    world.establish()
    verdict, translated = world.judge(shape.answered(place, chksum=0x1234), FORWARD, info)
    assert verdict == CHANGED
    assert _without_transport_sum(translated) == _without_transport_sum(shape.received(place))


@STEADY
@given(places(), shapes, st.integers(1, 65534), st.booleans())
def test_damage_stays_visible(place: Place, shape: Shape, error: int, reply: bool) -> None:
    """R167, A22: a segment that came with a wrong sum leaves with a wrong sum; nothing is laundered."""
    assume(not absurd(shape.flags))
    world = World(place)
    world.establish()
    right = shape.answered(place) if reply else shape.sent(place)
    at = (right[0] & 15) * 4 + 16
    wrong = (int.from_bytes(right[at : at + 2], "big") + error) % 65535
    damaged = right[:at] + wrong.to_bytes(2, "big") + right[at + 2 :]
    verdict, packet = world.judge(damaged, FORWARD if reply else PREROUTING)
    assert verdict == CHANGED
    assert not sums_fit(packet)


@STEADY
@given(places(), shapes, st.booleans(), st.sampled_from([0, CHECKSUM_NOT_READY]))
def test_short_and_unusual_path_agree(place: Place, shape: Shape, reply: bool, info: int) -> None:
    """R107, R112, R115: IP options change the way a segment takes, and nothing else."""
    outcomes = []
    for options in (b"", NOP_OPTIONS):
        world = World(place)
        connection = world.establish()
        one = replace(shape, ip_options=options)
        packet, hook = (one.answered(place), FORWARD) if reply else (one.sent(place), PREROUTING)
        verdict, translated = world.judge(packet, hook, info)
        known = world.director.table.inbound.get(connection.inbound)
        assert known is not None
        outcomes.append(
            (
                verdict, translated[12:20], translated[20 + len(options) :], world.refused(), known.state,
                known.client_numbers, known.server_numbers, known.seen,
            )
        )  # fmt: skip
    assert outcomes[0] == outcomes[1]


@STEADY
@given(places(), shapes, st.booleans(), st.sampled_from([0, CHECKSUM_NOT_READY, SUPER_PACKET]))
def test_nothing_else_changes(place: Place, shape: Shape, reply: bool, info: int) -> None:
    """R165-R167, R175-R177: address, port and sums; options, numbers, TTL and payload stay as they came."""
    assume(not absurd(shape.flags))
    world = World(place)
    world.establish()
    plain = replace(shape, ip_options=b"")
    packet = plain.answered(place) if reply else plain.sent(place)
    _, translated = world.judge(packet, FORWARD if reply else PREROUTING, info)
    changed = {at for at, (old, new) in enumerate(zip(packet, translated, strict=True)) if old != new}
    sums = {10, 11, 36, 37}
    assert changed <= sums | ({12, 13, 14, 15, 20, 21} if reply else {16, 17, 18, 19, 22, 23})


@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize("wanted", [0x0000, 0x0001, 0xFFFE])
@pytest.mark.parametrize("options", [b"", NOP_OPTIONS])
def test_sums_that_come_out_at_the_ends_of_the_range(reply: bool, wanted: int, options: bytes) -> None:
    """R167, R177: 0x0000 is a sum as good as any; 0xffff, its double, is never written (RFC 1624)."""
    place = Place()
    shape = Shape(PSH | ACK, payload=b"odd", ip_options=options)
    for _ in range(3):  # scapy's own sums are the distance to go
        packet = shape.received(place) if reply else shape.delivered(place)
        at = (packet[0] & 15) * 4 + 16
        ip_sum, tcp_sum = (int.from_bytes(packet[where : where + 2], "big") for where in (10, at))
        shape = replace(
            shape,
            id=(shape.id + ip_sum - wanted) % 65535,
            urgent=(shape.urgent + tcp_sum - wanted) % 65535,
        )
    wanted_packet = shape.received(place) if reply else shape.delivered(place)
    at = (wanted_packet[0] & 15) * 4 + 16
    assert wanted_packet[10:12] == wanted_packet[at : at + 2] == wanted.to_bytes(2, "big")
    world = World(place)
    world.establish()
    packet = shape.answered(place) if reply else shape.sent(place)
    assert world.judge(packet, FORWARD if reply else PREROUTING) == (CHANGED, wanted_packet)


@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize("options", [b"", NOP_OPTIONS])
def test_sender_that_writes_ffff_for_zero(reply: bool, options: bytes) -> None:
    """R167, R177: 0xffff in a sum's field means 0x0000 (RFC 1624 section 3); it comes out as scapy has it."""
    place = Place()
    shape = Shape(PSH | ACK, payload=b"even", ip_options=options)
    for _ in range(3):
        packet = shape.answered(place) if reply else shape.sent(place)
        at = (packet[0] & 15) * 4 + 16
        ip_sum, tcp_sum = (int.from_bytes(packet[where : where + 2], "big") for where in (10, at))
        shape = replace(shape, id=(shape.id + ip_sum) % 65535, urgent=(shape.urgent + tcp_sum) % 65535)
    doubled = bytearray(shape.answered(place) if reply else shape.sent(place))
    assert doubled[10:12] == doubled[at : at + 2] == b"\0\0"
    doubled[10:12] = doubled[at : at + 2] = b"\xff\xff"
    world = World(place)
    world.establish()
    wanted = shape.received(place) if reply else shape.delivered(place)
    assert world.judge(bytes(doubled), FORWARD if reply else PREROUTING) == (CHANGED, wanted)


@pytest.mark.parametrize("info", [0, CHECKSUM_NOT_READY])
def test_addresses_with_the_same_sum(info: int) -> None:
    """R167: two addresses whose words are the same in another order change no sum, and still change."""
    place = Place(virtual="192.0.2.100", virtual_port=80, real="2.100.192.0", real_port=80)
    world = World(place)
    world.establish()
    shape = Shape(PSH | ACK, payload=b"x")
    begun = pseudo_sum(place.client, place.virtual, 21)
    packet = shape.sent(place, chksum=begun) if info else shape.sent(place)
    assert world.judge(packet, info=info) == (CHANGED, shape.delivered(place))


@pytest.mark.parametrize("size", [65_511, 65_510, 40_001])
@pytest.mark.parametrize("options", [b"", NOP_OPTIONS])
@pytest.mark.parametrize("info", [0, CHECKSUM_NOT_READY])
def test_largest_packets(size: int, options: bytes, info: int) -> None:
    """R165-R167, R175-R177: up to the longest packet that a queue hands over, both ways."""
    place = Place()
    world = World(place)
    world.establish()
    shape = Shape(PSH | ACK, payload=bytes(range(251)) * 262, ip_options=options)
    shape = replace(shape, payload=shape.payload[: size - 20 - len(options)])
    length = 20 + len(shape.payload)
    sent, answered = {}, {}
    if info:
        sent = {"chksum": pseudo_sum(place.client, place.virtual, length)}
        answered = {"chksum": pseudo_sum(place.real, place.client, length)}
    assert world.judge(shape.sent(place, **sent), PREROUTING, info) == (CHANGED, shape.delivered(place))
    assert world.judge(shape.answered(place, **answered), FORWARD, info) == (CHANGED, shape.received(place))


def test_syn_opens_and_is_translated() -> None:
    """R109, R110, R117, R161-R168: the only segment that needs no connection makes one, and goes by it."""
    place = Place()
    world = World(place)
    shape = Shape(SYN, ack=0, options=(("MSS", 1460), ("SAckOK", b""), ("WScale", 7)))
    assert world.judge(shape.sent(place)) == (CHANGED, shape.delivered(place))
    assert [each.state.shown for each in world.director.table.inbound.values()] == ["syn-sent"]
    assert world.judge(shape.sent(place)) == (CHANGED, shape.delivered(place))  # R111: repeated
    assert len(world.director.table) == 1


@pytest.mark.parametrize("flags", [ACK, PSH | ACK, 0x11, RST, RST | ACK, SYN | ACK, 0, 0x29])
@pytest.mark.parametrize("options", [b"", NOP_OPTIONS])
def test_segment_without_connection(flags: int, options: bytes) -> None:
    """R113, R114, R117: dropped under the reason of its side, whichever path it took."""
    place = Place()
    world = World(place)
    shape = Shape(flags, ip_options=options)
    assert world.judge(shape.sent(place))[0] == DROP
    assert world.refused() == {Drop.NO_CONNECTION: 1}
    assert world.judge(shape.answered(place), FORWARD)[0] == DROP
    assert world.refused() == {Drop.NO_CONNECTION: 1, Drop.SERVER_UNKNOWN: 1}


def test_every_part_of_the_quad_counts() -> None:
    """R019: a segment that differs in one of source, destination and their ports is another's."""
    place = Place()
    world = World(place)
    world.establish()
    others = [
        replace(place, client="198.51.100.8"),
        replace(place, client_port=40_002),
        replace(place, virtual="192.0.2.101"),
        replace(place, virtual_port=81),
    ]
    for count, other in enumerate(others, 1):
        assert world.judge(Shape().sent(other))[0] == DROP
        assert world.refused() == {Drop.NO_CONNECTION: count}
    for other in (replace(place, real="10.0.0.12"), replace(place, real_port=8081), *others[:2]):
        assert world.judge(Shape().answered(other), FORWARD)[0] == DROP
    assert world.refused()[Drop.SERVER_UNKNOWN] == 4
    assert world.judge(Shape().sent(place))[0] == CHANGED


def test_direction_is_that_of_the_hook() -> None:
    """R004: the side a packet arrived on decides; a server's segment on the client line is nobody's."""
    place = Place()
    world = World(place)
    world.establish()
    assert world.judge(Shape().answered(place), PREROUTING)[0] == DROP
    assert world.judge(Shape().sent(place), FORWARD)[0] == DROP
    assert world.refused() == {Drop.NO_CONNECTION: 1, Drop.SERVER_UNKNOWN: 1}


def test_syn_to_nobody() -> None:
    """R005, R117: a SYN to an address and port that no virtual server has opens nothing."""
    world = World()
    assert world.judge(Shape(SYN).sent(Place(virtual_port=81)))[0] == DROP
    assert world.refused() == {Drop.NO_VIRTUAL: 1}
    assert len(world.director.table) == 0


def test_time_of_the_last_packet() -> None:
    """R053, A24: both paths and both directions note when a connection was last heard of."""
    place = Place()
    world = World(place)
    connection = world.establish()
    for now, packet, hook in (
        (2.0, Shape().sent(place), PREROUTING),
        (3.0, Shape().answered(place), FORWARD),
        (4.0, Shape(ip_options=NOP_OPTIONS).sent(place), PREROUTING),
        (5.0, Shape(ip_options=NOP_OPTIONS).answered(place), FORWARD),
    ):
        world.path.now = now
        world.judge(packet, hook)
        assert connection.seen == now


def test_packet_lies_at_an_odd_place() -> None:
    """The place in the buffer that all these tests use proves that none is presupposed."""
    assert START % 2 == 1
