"""What clients are told of packets that were refused: which, and byte for byte (scapy is the oracle)."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.packet import Raw

from nfqlb.core.reject import POLICY, Action, Kind, Side
from nfqlb.core.segment import Probe, Reset
from nfqlb.core.verdict import Drop
from nfqlb.packet.path import ACCEPT, DROP, FORWARD, OUTPUT, PREROUTING
from nfqlb.packet.reply import intact, probe, reset, reset_for, unreachable_for
from nfqlb.packet.translate import CHECKSUM_NOT_READY, SUPER_PACKET
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
    absurd,
    error,
    places,
    pseudo_sum,
    shapes,
)

PLACE = Place()
WRAP = 2**32


def told(packet: bytes, *, hook: int = PREROUTING, info: int = 0, **world: Any) -> list[bytes]:
    """What is said to a packet that a gateway with reject = "reset" refuses."""
    there = World(**{"reject": "reset", **world})
    assert there.judge(packet, hook, info)[0] == DROP
    return there.path.replies.take()


def reset_by_scapy(place: Place, flags: int, seq: int, ack: int) -> bytes:
    """A reset from a virtual server to its client."""
    tcp = TCP(sport=place.virtual_port, dport=place.client_port, flags=flags, seq=seq, ack=ack, window=0)
    return bytes(IP(src=place.virtual, dst=place.client, flags="DF", id=0, ttl=64) / tcp)


def expected(place: Place, shape: Shape) -> bytes:
    """RFC 9293 section 3.10.7.1, written down once more."""
    if shape.flags & ACK:
        return reset_by_scapy(place, RST, shape.ack, 0)
    length = len(shape.payload) + (1 if shape.flags & SYN else 0) + (1 if shape.flags & FIN else 0)
    return reset_by_scapy(place, RST | ACK, 0, (shape.seq + length) % WRAP)


def test_nobody_is_told_while_connections_are_looked_for() -> None:
    """F36: a segment's connection may be among those that are not known yet."""
    there = World(reject="reset")
    segment = Shape(flags=ACK).sent(PLACE)
    there.path.replies.silent = True
    assert there.judge(segment, PREROUTING)[0] == DROP
    assert there.path.replies.take() == []
    there.path.replies.silent = False
    assert there.judge(segment, PREROUTING)[0] == DROP
    assert len(there.path.replies.take()) == 1


@STEADY
@given(places(), shapes)
def test_any_segment_without_a_connection(place: Place, shape: Shape) -> None:
    """R113, R114, R117 (A20): its reset has the numbers of RFC 9293; a reset has none, nor has nonsense."""
    if shape.flags & (SYN | ACK) == SYN and not shape.flags & (FIN | RST):
        shape = replace(shape, flags=shape.flags | ACK)
    answers = told(shape.sent(place), place=place)
    quiet = shape.flags & RST or absurd(shape.flags)
    assert answers == ([] if quiet else [expected(place, shape)])


@pytest.mark.parametrize("payload", [b"", b"early data"])
@pytest.mark.parametrize("options", [b"", NOP_OPTIONS])
def test_a_syn_that_no_server_can_take(payload: bytes, options: bytes) -> None:
    """R113, R114, R184 (A28): its sender gives up at once."""
    shape = Shape(SYN, seq=WRAP - 1, ack=0, payload=payload, ip_options=options)
    answers = told(shape.sent(PLACE), weight=0)
    assert answers == [reset_by_scapy(PLACE, RST | ACK, 0, len(payload))]
    assert told(shape.sent(PLACE), weight=0, reject="drop") == []


def test_a_table_full_of_established_connections() -> None:
    """R060, R114 (A23): the same."""
    world = World(PLACE, reject="reset")
    world.establish()
    world.director.table.limit = 1
    other = replace(PLACE, client_port=41_000)
    assert world.judge(Shape(SYN, seq=5, ack=0).sent(other))[0] == DROP
    assert world.refused() == {Drop.TABLE_FULL: 1}
    assert world.path.replies.take() == [reset_by_scapy(other, RST | ACK, 0, 6)]
    assert world.path.replies.take() == [], "once"


@pytest.mark.parametrize("info", [0, CHECKSUM_NOT_READY, SUPER_PACKET, CHECKSUM_NOT_READY | SUPER_PACKET])
def test_what_is_damaged_gets_no_reply(info: int) -> None:
    """R114: a wrong checksum, unless the kernel says that it is not the sender's yet."""
    shape = Shape(PSH | ACK, payload=b"odd length here")
    partial = pseudo_sum(PLACE.client, PLACE.virtual, 20 + len(shape.payload))
    answers = told(shape.sent(PLACE, chksum=partial), info=info)
    assert answers == ([expected(PLACE, shape)] if info else [])
    assert told(shape.sent(PLACE), info=info) == [expected(PLACE, shape)]


@pytest.mark.parametrize(
    "client",
    ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"],
)
def test_who_is_no_single_client_is_not_told(client: str) -> None:
    """R114 (RFC 1122 section 3.2.2): loopback, multicast, broadcast, nobody."""
    assert told(Shape().sent(replace(PLACE, client=client))) == []
    assert told(Shape(SYN, ack=0).sent(replace(PLACE, client=client)), weight=0) == []


def test_a_packet_that_claims_to_come_from_its_destination() -> None:
    """R114: land, with the same port and another."""
    for port in (PLACE.virtual_port, 1234):
        assert told(Shape(SYN).sent(replace(PLACE, client=PLACE.virtual, client_port=port)), weight=0) == []


def test_only_virtual_servers_speak() -> None:
    """R114: what is for an address or port of nobody is left to others."""
    for other in (replace(PLACE, virtual="192.0.2.101"), replace(PLACE, virtual_port=81)):
        assert told(Shape(ACK).sent(other)) == []
        assert told(Shape(SYN).sent(other)) == []


# ---- the whole table


def samples(kind: Kind, side: Side) -> list[bytes]:
    """Packets of a kind, none of a connection."""
    sent = Shape.sent if side is Side.CLIENTS else Shape.answered
    source, target = (PLACE.client, PLACE.virtual) if side is Side.CLIENTS else (PLACE.real, PLACE.client)
    whole, strange = Shape(PSH | ACK, payload=b"hello"), replace(PLACE, client_port=45_678)
    quoted = whole.answered(strange), whole.sent(strange)
    return {
        Kind.SYN: [sent(Shape(SYN, ack=0), PLACE), sent(Shape(SYN, ip_options=NOP_OPTIONS), PLACE)],
        Kind.SEGMENT: [sent(Shape(flags), PLACE) for flags in (ACK, FIN | ACK, FIN, 0, SYN | ACK)],
        Kind.RESET: [sent(Shape(flags), PLACE) for flags in (RST, RST | ACK)],
        Kind.ERROR: [error(source, target, each) for each in quoted],
        Kind.BROKEN: [
            sent(whole, PLACE)[:-1],
            sent(Shape(SYN | FIN), PLACE),
            bytes(IP(src=source, dst=target, flags="MF", proto=6) / Raw(bytes(40))),
        ],
        Kind.OTHER: [bytes(IP(src=source, dst=target) / ICMP()), bytes(IP(src=source, dst=target, proto=47))],
    }.get(kind, [])  # fmt: skip


@pytest.mark.parametrize("row", POLICY, ids=lambda row: f"{row[0].name}-{row[1].name}".lower())
@pytest.mark.parametrize("reject", ["drop", "reset"])
def test_every_row_of_the_policy(row: tuple[Side, Kind], reject: str) -> None:
    """R113, R114, R117 (A19, A20): what the table says is what is done."""
    side, kind = row
    action = POLICY[row][reject == "reset"]
    packets = samples(kind, side)
    assert bool(packets) == (kind is not Kind.DATAGRAM)
    for packet in packets:
        world = World(PLACE, reject=reject, weight=0)
        verdict, _ = world.judge(packet, PREROUTING if side is Side.CLIENTS else FORWARD)
        assert verdict == (ACCEPT if action is Action.PASS else DROP)
        assert len(world.path.replies.take()) == (action is Action.RESET)


def test_the_policy_knows_every_kind_on_both_sides() -> None:
    """R114: no packet is without a rule."""
    assert set(POLICY) == {(side, kind) for side in Side for kind in Kind}


# ---- no loops


@STEADY
@given(places(), shapes, st.booleans())
def test_a_reply_is_never_answered(place: Place, shape: Shape, unreachable: bool) -> None:
    """R114: two gateways that reject with a reset, each other's client, fall silent at once."""
    here = World(place, reject="reset", weight=0)
    packet = shape.sent(place)
    here.judge(packet)
    there = World(
        replace(place, client=place.virtual, client_port=place.virtual_port, virtual=place.client,
                virtual_port=place.client_port),
        reject="reset", weight=0,
    )  # fmt: skip
    replies = here.path.replies.take()
    if unreachable:
        key = packet[12:20] + packet[(packet[0] & 15) * 4 :][:4]
        replies.append(unreachable_for(key, packet))
    for reply in replies:
        there.judge(reply)
        assert there.path.replies.take() == []


def test_our_own_errors_are_not_held_back() -> None:
    """R114: on its way out one meets the rules for the gateway's own errors, and quotes no connection."""
    world = World(PLACE)
    connection = world.establish()
    packet = Shape().sent(PLACE)
    reply = unreachable_for(connection.inbound, packet)
    assert world.judge(reply, OUTPUT) == (ACCEPT, reply)


# ---- bytes, for both versions and protocols

SIX = (ip_address("2001:db8::7"), ip_address("2001:db8::100"))


def key_of(packet: IP | IPv6) -> bytes:
    """The key of a packet as scapy reads it."""
    transport = packet[TCP] if TCP in packet else packet[UDP]
    ports = transport.sport.to_bytes(2, "big") + transport.dport.to_bytes(2, "big")
    return bytes(ip_address(packet.src).packed + ip_address(packet.dst).packed + ports)


_words = st.integers(0, WRAP - 1)


@STEADY
@given(_words, _words, st.integers(0, 0xFF), st.binary(max_size=30), st.integers(0, 10), st.booleans())
def test_resets_of_both_versions(
    seq: int, ack: int, flags: int, payload: bytes, options: int, six: bool
) -> None:
    """R113, R114: one rule, whatever carries the segment, and whatever stands between."""
    ip = IPv6(src=str(SIX[0]), dst=str(SIX[1])) if six else IP(src=PLACE.client, dst=PLACE.virtual)
    tcp = TCP(sport=40_001, dport=80, flags=flags, seq=seq, ack=ack, options=[("NOP", None)] * options * 4)
    made = bytes(ip / tcp / Raw(payload))
    found = type(ip)(made)
    transport = 40 if six else 20
    reply = reset_for(key_of(found), made[:1500], transport, len(made))
    length = len(payload) + bool(flags & SYN) + bool(flags & FIN)
    numbers = (RST, ack, 0) if flags & ACK else (RST | ACK, 0, (seq + length) % WRAP)
    back = TCP(sport=80, dport=40_001, flags=numbers[0], seq=numbers[1], ack=numbers[2], window=0)
    if six:
        assert reply == bytes(IPv6(src=str(SIX[1]), dst=str(SIX[0]), hlim=64) / back)
    else:
        around = IP(src=PLACE.virtual, dst=PLACE.client, flags="DF", id=0, ttl=64)
        assert reply == bytes(around / back)
    buffer = bytearray(made)
    assert intact(buffer, len(buffer), transport, key_of(found), 6)
    buffer[transport + 4] ^= 0x10
    assert not intact(buffer, len(buffer), transport, key_of(found), 6)


@STEADY
@given(
    st.integers(1, 65535), st.sampled_from([0, 1, 500, 519, 520, 521, 1191, 1192, 1193, 3000]), st.booleans()
)
def test_unreachables_of_both_versions(port: int, size: int, six: bool) -> None:
    """R114 (RFC 1122 section 3.2.2.1, RFC 4443 section 3.1): as much of the datagram is quoted as fits."""
    ip = IPv6(src=str(SIX[0]), dst=str(SIX[1])) if six else IP(src=PLACE.client, dst=PLACE.virtual, id=7)
    made = bytes(ip / UDP(sport=port, dport=53) / Raw(b"x" * size))
    found = type(ip)(made)
    reply = unreachable_for(key_of(found), made[:1500])
    if six:
        around = IPv6(src=str(SIX[1]), dst=str(SIX[0]), hlim=64)
        wanted = bytes(around / ICMPv6DestUnreach(code=4) / Raw(made[: 1280 - 48]))
        assert len(reply) == min(1280, 48 + len(made))
    else:
        around = IP(src=PLACE.virtual, dst=PLACE.client, flags="DF", id=0, ttl=64)
        wanted = bytes(around / ICMP(type=3, code=3) / Raw(made[: 576 - 28]))
        assert len(reply) == min(576, 28 + len(made))
    assert reply == wanted
    transport = 40 if six else 20
    assert intact(bytearray(made), len(made), transport, key_of(found), 17)
    without = bytearray(made)
    without[transport + 6 : transport + 8] = bytes(2)
    assert intact(without, len(made), transport, key_of(found), 17) is not six


def test_resets_that_nobody_asked_for() -> None:
    """R186 (A34): with the number that the client expects, and an acknowledgement where one is due."""
    here = ip_address(PLACE.virtual).packed + ip_address(PLACE.client).packed
    key = here + (80).to_bytes(2, "big") + (40_001).to_bytes(2, "big")
    assert reset(Reset(key, 77, None)) == reset_by_scapy(PLACE, RST, 77, 0)
    assert reset(Reset(key, 77, 0)) == reset_by_scapy(PLACE, RST | ACK, 77, 0)
    assert probe(Probe(key)) == reset_by_scapy(PLACE, SYN | ACK, 0, 0)
