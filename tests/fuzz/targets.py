"""What is fuzzed: each target takes bytes, makes hostile input of them, and fails where something gives way.

Owns the list, and the targets that take packets; `wires` and `documents` have the others. A target returns
how many packets (messages, frames, lines) it has put in. It has no memory from one call to the next, so that
the bytes alone tell how a failure comes about.
"""

from collections.abc import Callable
from struct import pack

from nfqlb.core.rewriting import rewritings
from nfqlb.core.verdict import Drop, Pass
from nfqlb.netfilter.endings import EndingMessages
from nfqlb.netfilter.tap import TapMessages
from nfqlb.packet.decode import decode
from nfqlb.packet.decode6 import decode6
from nfqlb.packet.facts import IcmpError, TcpPacket, UdpPacket
from nfqlb.packet.path import FORWARD, OUTPUT, PREROUTING
from nfqlb.packet.sight import key_of
from nfqlb.packet.translate import (
    translate_error_inbound,
    translate_error_outbound,
    translate_inbound,
    translate_outbound,
)
from nfqlb.packet.verdicts import absurd
from tests.fuzz import documents, oracle, wires
from tests.fuzz.choices import Choices
from tests.fuzz.mutants import nobody, opening, packet
from tests.fuzz.worlds import BUFFER, OffloadGateway, RewritingGateway

_MOST = 60  # packets in one story
_INFOS = (0, 0, 0, 1, 2, 3)
_PAUSES = (0.0,) * 240 + (0.01,) * 6 + (0.5,) * 4 + (1.5, 1.5, 3.0, 6.0, 31.0, 4000.0)
_HOOKS = (PREROUTING, PREROUTING, FORWARD, FORWARD, OUTPUT, 1, 4)


def decoders(data: bytes) -> int:
    """The decoders: facts or a reason, whatever the bytes, and whatever part of a packet they are."""
    choices = Choices(data)
    count = 0
    while count < _MOST and (choices.left or not count):
        count += 1
        made = packet(choices, nobody, inbound=choices.below(2) == 0).data
        kept = made[: choices.below(len(made) + 1)] if choices.one_in(4) else made
        size = len(made) if choices.below(4) else choices.below(70_000)
        for read in (decode, decode6):
            found = read(kept, size)
            assert isinstance(found, Drop | Pass | TcpPacket | UdpPacket | IcmpError)
            if isinstance(found, IcmpError):
                assert len(found.quoted) in (12, 13, 36, 37)
        key = key_of(kept, size)
        assert key is None or len(key) in (12, 13, 36, 37)
    return count


def translation(data: bytes) -> int:
    """The translation alone, between any addresses and ports: sums against those of a plain loop."""
    choices = Choices(data)
    count = 0
    while count < _MOST and (choices.left or not count):
        count += 1
        info, inbound = choices.pick(_INFOS), choices.below(2) == 0
        made = packet(choices, nobody, inbound=inbound, info=info).data
        size = 4 if made[:1] < b"\x50" else 16
        ports = (choices.below(65_536), choices.below(65_536)) if choices.below(4) else (None, None)
        ends = oracle.Ends(choices.take(size), choices.take(size), *ports)
        found = (decode if size == 4 else decode6)(made, len(made))
        if isinstance(found, Drop | Pass):
            continue
        buffer = bytearray(made)
        hook = PREROUTING if inbound else choices.pick((FORWARD, OUTPUT))
        # the packet is of these ends: what was there before is what they say
        _address(buffer, ends, hook)
        made = bytes(buffer)
        if choices.one_in(8):
            made = oracle.vanishing(made, hook, ends)
            buffer[:] = made
        found = (decode if size == 4 else decode6)(made, len(made))
        if isinstance(found, Drop | Pass) or (isinstance(found, TcpPacket) and absurd(found.flags)):
            continue
        change = rewritings(ends.virtual, ends.virtual_port, ends.real, ends.real_port)[not inbound]
        if isinstance(found, IcmpError):
            if inbound:
                translate_error_inbound(buffer, 0, len(buffer), found, change)
            else:
                translate_error_outbound(buffer, 0, len(buffer), found, change, own=hook == OUTPUT)
        else:
            (translate_inbound if inbound else translate_outbound)(
                buffer, 0, len(buffer), found, change, info
            )
        oracle.check(made, bytes(buffer), hook, info, ends)
    return count


def _address(buffer: bytearray, ends: oracle.Ends, hook: int) -> None:
    """Let a packet be one that is between the two ends before it is translated, with the sums that it had."""
    found = oracle.spot(bytes(buffer))
    assert found is not None
    begin, inbound = 0, hook == PREROUTING
    address, port = (ends.virtual, ends.virtual_port) if inbound else (ends.real, ends.real_port)
    if found.protocol in (1, 58):
        begin = found.at + 8
        found = oracle.spot(bytes(buffer[begin:]))
        assert found is not None
        inbound = not inbound
    at = begin + found.source + (found.size if inbound else 0)
    buffer[at : at + found.size] = address
    if port is not None:
        at = begin + found.at + (2 if inbound else 0)
        buffer[at : at + 2] = port.to_bytes(2, "big")


def rewriting(data: bytes, *, scapy: bool = False) -> int:
    """Datapath rewrite from the queue's message to the verdict, packets of both lines, time passing."""
    choices, gateway = Choices(data), RewritingGateway()
    count = 0
    while count < _MOST and (choices.left or not count):
        count += 1
        hook, info = choices.pick(_HOOKS), choices.pick(_INFOS)
        stamp = pack("!QQ", 1_700_000_000 + count, 10) if choices.below(2) else b""
        gateway.pass_time(choices.pick(_PAUSES))
        if choices.one_in(8):
            gateway.open(choices)
        made = packet(choices, gateway.known, inbound=hook == PREROUTING, info=info)
        if choices.one_in(16):
            made = gateway.vanishing(made, hook)
        gateway.put(made, hook, info, stamp=stamp, scapy=scapy)
    gateway.check()
    return count


def offloading(data: bytes) -> int:
    """Datapath offload: packets that are to be marked, copies from the tap, endings from conntrack."""
    choices, gateway = Choices(data), OffloadGateway()
    path, buffer = gateway.path, bytearray(BUFFER)
    tap = TapMessages(path.tapped, path.lost)
    endings = EndingMessages(path.ended, path.lost)
    tap.on_error = endings.on_error = gateway.errors.append
    count = 0
    while count < _MOST and (choices.left or not count):
        count += 1
        gateway.pass_time(choices.pick(_PAUSES))
        what = choices.below(9)
        if what == 8:
            gateway.put(opening(choices), 0)
        elif what < 4:
            info = choices.pick(_INFOS)
            gateway.put(packet(choices, gateway.known, inbound=True, info=info), info)
        elif what < 7:
            hook = choices.pick((PREROUTING, FORWARD))
            copy = packet(choices, gateway.known, inbound=hook == PREROUTING).data[:96]
            whole = wires.copied(choices, copy, hook, count)
            buffer[: len(whole)] = whole
            tap.read(buffer, len(whole))
        else:
            key = choices.pick([*gateway.director.table.inbound, bytes(12), bytes(37)])
            whole = wires.ending(key)
            buffer[: len(whole)] = whole
            endings.read(buffer, len(whole))
    assert not tap.failed
    assert not endings.failed
    gateway.check()
    return count


TARGETS: dict[str, Callable[[bytes], int]] = {
    "decoders": decoders,
    "translation": translation,
    "rewriting": rewriting,
    "offloading": offloading,
    "queue": wires.queue,
    "tap": wires.tap,
    "conntrack": wires.conntrack,
    "captures": documents.captures,
    "replays": documents.replays,
    "control": documents.control,
    "http": documents.http,
}
