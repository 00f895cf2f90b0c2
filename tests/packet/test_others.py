"""UDP, and TCP over IPv6: translation both ways, against scapy's packets from scratch."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.verdict import Drop
from nfqlb.packet.path import ACCEPT, CHANGED, DROP, FORWARD, PREROUTING
from nfqlb.packet.translate import CHECKSUM_NOT_READY, SUPER_PACKET
from tests.packet.others import (
    CHAIN,
    KINDS,
    PLACE6,
    TCP6,
    UDP4,
    UDP6,
    Body,
    Kind,
    World,
    cases,
    pseudo_sum,
    situations,
    with_extensions,
)
from tests.packet.packets import ACK, FIN, NOP_OPTIONS, PSH, RST, STEADY, SYN, Place

Case = tuple[Kind, Place, Body]
MORE = {4: NOP_OPTIONS, 6: CHAIN}
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
each_way = pytest.mark.parametrize("reply", [False, True])


@STEADY
@given(cases(), st.booleans())
def test_client_packet_reaches_the_server(case: Case, known: bool) -> None:
    """R006, R012, R107, R165-R168: destination address and port become the real server's, sums are right."""
    kind, place, body = case
    world = World(kind, place)
    if known or not kind.udp:
        world.establish()
    assert world.judge(body.sent(kind, place)) == (CHANGED, body.delivered(kind, place))


@STEADY
@given(cases(), st.booleans())
def test_server_packet_reaches_the_client(case: Case, known: bool) -> None:
    """R007, R012, R169, R174-R178: source address and port become the virtual server's, sums are right."""
    kind, place, body = case
    world = World(kind, place)
    if known or not kind.udp:
        world.establish()
    else:
        world.open()
    assert world.judge(body.answered(kind, place), FORWARD) == (CHANGED, body.received(kind, place))


@STEADY
@given(cases(), st.booleans(), st.sampled_from([0, 4]))
def test_sum_that_the_kernel_has_not_finished(case: Case, reply: bool, more: int) -> None:
    """R167, R177: the field holds the pseudo header's folded sum; the sum comes out right and complete."""
    kind, place, body = case
    world = World(kind, place)
    world.establish()
    size = (8 if kind.udp else 20) + len(body.payload)
    if reply:
        begun = body.answered(kind, place, chksum=pseudo_sum(kind, place.real, place.client, size))
        wanted, hook = body.received(kind, place), FORWARD
    else:
        begun = body.sent(kind, place, chksum=pseudo_sum(kind, place.client, place.virtual, size))
        wanted, hook = body.delivered(kind, place), PREROUTING
    assert world.judge(begun, hook, CHECKSUM_NOT_READY | more) == (CHANGED, wanted)


@STEADY
@given(cases(), st.sampled_from([SUPER_PACKET, SUPER_PACKET | CHECKSUM_NOT_READY]))
def test_super_packet_to_the_server(case: Case, info: int) -> None:
    """R167: a TCP one's sum is right for conntrack; several datagrams in one cannot be helped on."""
    kind, place, body = case
    world = World(kind, place)
    world.establish()
    size = (8 if kind.udp else 20) + len(body.payload)
    begun = pseudo_sum(kind, place.client, place.virtual, size)
    fixed = {"chksum": begun} if info & CHECKSUM_NOT_READY else {}
    packet = body.sent(kind, place, **fixed)
    if kind.udp:
        assert world.judge(packet, PREROUTING, info)[0] == DROP
        assert world.refused() == {Drop.SUPER_DATAGRAM: 1}
        assert world.director.virtuals(1.0)[0].drops == {"udp-super-packet": 1}
    else:
        assert world.judge(packet, PREROUTING, info) == (CHANGED, body.delivered(kind, place))


@STEADY
@given(cases())
def test_super_packet_to_the_client(case: Case) -> None:
    """R177: the kernel sums each part itself; a UDP one has to bring the pseudo header's sum for it."""
    kind, place, body = case
    world = World(kind, place)
    world.establish()
    size = (8 if kind.udp else 20) + len(body.payload)
    packet = body.answered(kind, place, chksum=pseudo_sum(kind, place.real, place.client, size))
    verdict, translated = world.judge(packet, FORWARD, SUPER_PACKET | CHECKSUM_NOT_READY)
    assert verdict == CHANGED
    begun = pseudo_sum(kind, place.virtual, place.client, size)
    wanted = body.received(kind, place, chksum=begun)
    at = len(packet) - len(body.payload) - (2 if kind.udp else 4)
    assert translated[:at] + translated[at + 2 :] == wanted[:at] + wanted[at + 2 :]
    if kind.udp:
        assert int.from_bytes(translated[at : at + 2], "big") % 65535 == begun % 65535
        assert translated[at : at + 2] != b"\0\0"


@STEADY
@given(cases(), st.integers(1, 65534), st.booleans())
def test_damage_stays_visible(case: Case, error: int, reply: bool) -> None:
    """R167, A22: a packet that came with a wrong sum leaves with one as wrong."""
    kind, place, body = case
    world = World(kind, place)
    world.establish()
    right = body.answered(kind, place) if reply else body.sent(kind, place)
    wanted = body.received(kind, place) if reply else body.delivered(kind, place)
    at = len(right) - len(body.payload) - (2 if kind.udp else 4)
    wrong = (int.from_bytes(right[at : at + 2], "big") + error) % 65535 or 65535
    damaged = right[:at] + wrong.to_bytes(2, "big") + right[at + 2 :]
    verdict, packet = world.judge(damaged, FORWARD if reply else PREROUTING)
    assert verdict == CHANGED
    difference = int.from_bytes(packet[at : at + 2], "big") - int.from_bytes(wanted[at : at + 2], "big")
    assert difference % 65535 == error


@STEADY
@given(cases(), st.booleans(), st.sampled_from([0, CHECKSUM_NOT_READY]))
def test_short_and_unusual_path_agree(case: Case, reply: bool, info: int) -> None:
    """R107, R112, R115: options and extension headers change the way a packet takes, and nothing else."""
    kind, place, body = case
    outcomes = []
    for more in ((), MORE[kind.version]):
        world = World(kind, place)
        connection = world.establish()
        one = replace(body, more=more)
        packet = one.answered(kind, place) if reply else one.sent(kind, place)
        at = len(packet) - len(body.payload) - (8 if kind.udp else 20)
        verdict, translated = world.judge(packet, FORWARD if reply else PREROUTING, info)
        outcomes.append(
            (
                verdict, translated[8 if kind.version == 6 else 12 :][:32 if kind.version == 6 else 8],
                translated[at:], world.refused(), connection.state, connection.client_numbers,
                connection.server_numbers, connection.seen,
            )
        )  # fmt: skip
    assert outcomes[0] == outcomes[1]


@STEADY
@given(cases(), st.booleans())
def test_every_port_keeps_the_port(case: Case, reply: bool) -> None:
    """R072, R166, R176 (A21): nothing but an address and the sums changes."""
    kind, place, body = case
    place = replace(place, real_port=place.virtual_port)
    world = World(kind, place, every_port=True)
    world.establish()
    if reply:
        assert world.judge(body.answered(kind, place), FORWARD) == (CHANGED, body.received(kind, place))
    else:
        assert world.judge(body.sent(kind, place)) == (CHANGED, body.delivered(kind, place))


@STEADY
@given(situations(), st.booleans(), st.sampled_from([0, 1, 65534]), st.booleans())
def test_sums_that_come_out_at_the_ends_of_the_range(
    situation: tuple[Kind, Place], reply: bool, wanted: int, more: bool
) -> None:
    """R167, R177 (A22): a UDP sum of zero is written as 0xffff (RFC 768), a TCP one as 0 (RFC 1624)."""
    kind, place = situation
    body = Body(b"\0\0even", more=MORE[kind.version] if more else ())
    bare = replace(body, more=())
    first = bare.received(kind, place) if reply else bare.delivered(kind, place)
    found = int.from_bytes(first[kind.sum_at : kind.sum_at + 2], "big")
    body = replace(body, payload=((found - wanted) % 65535).to_bytes(2, "big") + b"even")
    world = World(kind, place)
    world.establish()
    packet = body.answered(kind, place) if reply else body.sent(kind, place)
    result = body.received(kind, place) if reply else body.delivered(kind, place)
    at = len(result) - 6 - (2 if kind.udp else 4)
    written = 65535 if kind.udp and not wanted else wanted
    assert result[at : at + 2] == written.to_bytes(2, "big")
    assert world.judge(packet, FORWARD if reply else PREROUTING) == (CHANGED, result)


@STEADY
@given(cases((UDP4,)), st.booleans(), st.booleans())
def test_no_sum_stays_none(case: Case, reply: bool, known: bool) -> None:
    """R167, R177 (A22): over IPv4 a sender may do without; nobody makes one up for it."""
    kind, place, body = case
    world = World(kind, place)
    if known:
        world.establish()
    else:
        world.open()
    if reply:
        packet, wanted = body.answered(kind, place, chksum=0), body.received(kind, place, chksum=0)
    else:
        packet, wanted = body.sent(kind, place, chksum=0), body.delivered(kind, place, chksum=0)
    assert world.judge(packet, FORWARD if reply else PREROUTING) == (CHANGED, wanted)


@STEADY
@given(cases((UDP4, UDP6)), st.binary(min_size=1, max_size=9), st.booleans())
def test_surplus_after_the_datagram(case: Case, surplus: bytes, begun: bool) -> None:
    """R167: bytes after what UDP's length covers pass on unchanged and are in no sum."""
    kind, place, body = case
    world = World(kind, place)
    world.establish()
    body = replace(body, surplus=surplus)
    size = 8 + len(body.payload)
    fixed = {"chksum": pseudo_sum(kind, place.client, place.virtual, size)} if begun else {}
    info = CHECKSUM_NOT_READY if begun else 0
    assert world.judge(body.sent(kind, place, **fixed), PREROUTING, info) == (
        CHANGED,
        body.delivered(kind, place),
    )


@each_kind
@pytest.mark.parametrize("size", [65_531, 65_530, 60_028])
@pytest.mark.parametrize("info", [0, CHECKSUM_NOT_READY])
@pytest.mark.parametrize("usual", [False, True])
def test_largest_packets(kind: Kind, size: int, info: int, usual: bool) -> None:
    """R165-R167, R175-R177, A37: up to the longest packet that a queue hands over, both ways."""
    place = kind.place
    world = World(kind, place)
    world.establish()
    more = () if usual else MORE[kind.version]
    head = len(Body(b"", more=more).sent(kind, place))
    body = Body(b"")
    body = replace(body, payload=(bytes(range(251)) * 262)[: size - head], more=more)
    length = len(body.payload) + (8 if kind.udp else 20)
    sent, answered = {}, {}
    if info:
        sent = {"chksum": pseudo_sum(kind, place.client, place.virtual, length)}
        answered = {"chksum": pseudo_sum(kind, place.real, place.client, length)}
    packet = body.sent(kind, place, **sent)
    assert len(packet) == size
    assert world.judge(packet, PREROUTING, info) == (CHANGED, body.delivered(kind, place))
    packet = body.answered(kind, place, **answered)
    assert world.judge(packet, FORWARD, info) == (CHANGED, body.received(kind, place))


@pytest.mark.parametrize("more", [(), CHAIN])
def test_syn_opens_over_ipv6(more: tuple[tuple[int, bytes], ...]) -> None:
    """R109, R110, R117, R161-R168: the only segment that needs no connection makes one, and goes by it."""
    world = World(TCP6, PLACE6)
    body = Body(b"", flags=SYN, ack=0, more=more)
    for _ in range(2):  # R111: repeated
        assert world.judge(body.sent(TCP6, PLACE6)) == (CHANGED, body.delivered(TCP6, PLACE6))
    assert [each.state.shown for each in world.director.table.inbound.values()] == ["syn-sent"]


@pytest.mark.parametrize("flags", [ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, SYN | ACK, 0])
@pytest.mark.parametrize("more", [(), CHAIN])
def test_segment_without_connection(flags: int, more: tuple[tuple[int, bytes], ...]) -> None:
    """R113, R114, R117: dropped under the reason of its side, whichever path it took."""
    world = World(TCP6, PLACE6)
    body = Body(flags=flags, more=more)
    assert world.judge(body.sent(TCP6, PLACE6))[0] == DROP
    assert world.judge(body.answered(TCP6, PLACE6), FORWARD)[0] == DROP
    assert world.refused() == {Drop.NO_CONNECTION: 1, Drop.SERVER_UNKNOWN: 1}


@pytest.mark.parametrize("flags", [SYN | FIN, SYN | RST, SYN | FIN | RST, SYN | FIN | ACK])
@pytest.mark.parametrize("more", [(), CHAIN])
@each_way
def test_flags_that_exclude_each_other(flags: int, more: tuple[tuple[int, bytes], ...], reply: bool) -> None:
    """R107, R114: such a segment is malformed, over IPv6 too."""
    world = World(TCP6, PLACE6)
    world.establish()
    body = Body(flags=flags, more=more)
    packet = body.answered(TCP6, PLACE6) if reply else body.sent(TCP6, PLACE6)
    assert world.judge(packet, FORWARD if reply else PREROUTING)[0] == DROP
    assert world.refused() == {Drop.MALFORMED: 1}


@each_kind
def test_ends_of_a_connection(kind: Kind) -> None:
    """R128, R129: what opens, changes or ends it is put to the director on either path."""
    world = World(kind, kind.place)
    connection = world.establish()
    if kind.udp:
        assert connection.state.shown == "udp"
        return
    for more in ((), CHAIN):
        body = Body(b"", flags=FIN | ACK, more=more)
        assert world.judge(body.sent(kind, kind.place)) == (CHANGED, body.delivered(kind, kind.place))
        assert connection.state.shown == "fin-client"
    body = Body(b"", flags=FIN | ACK, seq=2000, ack=1001)
    assert world.judge(body.answered(kind, kind.place), FORWARD)[0] == CHANGED
    assert connection.state.shown == "closed"


@each_kind
@pytest.mark.parametrize("usual", [False, True])
def test_every_part_of_the_key_counts(kind: Kind, usual: bool) -> None:
    """R019, A4: one address, port or protocol that differs makes it another's."""
    place = kind.place
    world = World(kind, place)
    world.establish()
    more = () if usual else MORE[kind.version]
    other = "2001:db8:9::9" if kind.version == 6 else "203.0.113.99"
    others = [replace(place, virtual=other), replace(place, virtual_port=81)]
    if not kind.udp:  # a datagram from elsewhere would open a flow
        others += [replace(place, client=other), replace(place, client_port=40_002)]
    for each in others:
        assert world.judge(Body(more=more).sent(kind, each))[0] == DROP
    for each in (replace(place, real=other), replace(place, real_port=8081), replace(place, client=other)):
        assert world.judge(Body(more=more).answered(kind, each), FORWARD)[0] == DROP
    assert world.refused()[Drop.SERVER_UNKNOWN] == 3
    sibling = Kind(kind.version, "tcp" if kind.udp else "udp")
    assert world.judge(Body(more=more).sent(sibling, place))[0] == DROP
    assert world.judge(Body(more=more).answered(sibling, place), FORWARD)[0] == DROP
    assert len(world.director.table) == 1
    assert world.judge(Body(more=more).sent(kind, place))[0] == CHANGED


@each_kind
def test_direction_is_that_of_the_hook(kind: Kind) -> None:
    """R004: a server's packet on the client line is nobody's."""
    world = World(kind, kind.place)
    world.establish()
    assert world.judge(Body().answered(kind, kind.place), PREROUTING)[0] == DROP
    assert world.judge(Body().sent(kind, kind.place), FORWARD)[0] == DROP
    reason = Drop.NO_VIRTUAL if kind.udp else Drop.NO_CONNECTION
    assert world.refused() == {reason: 1, Drop.SERVER_UNKNOWN: 1}


@each_kind
@pytest.mark.parametrize("usual", [False, True])
def test_time_of_the_last_packet(kind: Kind, usual: bool) -> None:
    """R053, A24: both paths and both directions note when a connection was last heard of."""
    world = World(kind, kind.place)
    connection = world.establish()
    body = Body(more=() if usual else MORE[kind.version])
    for now, packet, hook in (
        (2.0, body.sent(kind, kind.place), PREROUTING),
        (3.0, body.answered(kind, kind.place), FORWARD),
    ):
        world.path.now = now
        assert world.judge(packet, hook)[0] == CHANGED
        assert connection.seen == now


def test_a_datagram_from_port_zero_wants_no_answer() -> None:
    """R114: RFC 768 allows it; to port zero there is no way."""
    for kind in (UDP4, UDP6):
        world = World(kind, kind.place)
        place = replace(kind.place, client_port=0)
        assert world.judge(Body().sent(kind, place)) == (CHANGED, Body().delivered(kind, place))


@pytest.mark.parametrize("protocol", [50, 51, 59, 132, 41, 4, 135, 255])
@pytest.mark.parametrize("hook", [PREROUTING, FORWARD])
def test_what_hides_its_transport_is_not_ours(protocol: int, hook: int) -> None:
    """R114: ESP, AH, no next header, SCTP, tunnels and the unknown pass unread, counted."""
    world = World(TCP6, PLACE6)
    world.establish()
    packet = with_extensions(Body().sent(TCP6, PLACE6), ((protocol, bytes(8)),))
    passed, after = world.judge(packet, hook)
    assert (passed, after) == (ACCEPT, packet)
    assert world.director.totals().drops == {}

