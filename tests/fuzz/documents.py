"""Capture files and requests, whole and damaged."""

from contextlib import suppress
from io import BytesIO
from struct import pack

from nfqlb.core.director import Director
from nfqlb.packet import pcapng
from nfqlb.packet.frame import DamagedError, Frame
from nfqlb.packet.pcap import CaptureFile
from nfqlb.packet.sight import see
from nfqlb.replay.outcome import replay
from nfqlb.runtime import orders
from nfqlb.runtime.http import request
from nfqlb.runtime.protocol import (
    JSON,
    ControlError,
    JSONObject,
    LineReader,
    LineTooLongError,
    Outcome,
    command_of,
    decode,
    encode,
    encode_reply,
    ident_of,
    outcome_of,
)
from tests.core.recount import audit
from tests.fuzz.choices import Choices
from tests.fuzz.mutants import damage, nobody, opening, packet
from tests.fuzz.worlds import OFFLOAD, REWRITE

_MOST = 20  # lines in one story


def captures(data: bytes) -> int:
    """Capture files of both formats: frames, or one line that says what is wrong."""
    choices = Choices(data)
    made = [packet(choices, nobody, inbound=choices.below(2) == 0).data for _ in range(1 + choices.below(4))]
    whole = _pcapng(choices, made) if choices.below(2) else _pcap(choices, made)
    if choices.below(4):
        whole = damage(choices, whole, 8)
    with suppress(DamagedError):
        for frame in CaptureFile(BytesIO(whole)).frames():
            assert isinstance(frame, Frame)
            assert len(frame.data) <= min(len(whole), frame.size)
            see(frame)
    return len(made)


def replays(data: bytes) -> int:
    """What a capture would have come to: openings, answers and anything else, at times that jump about."""
    choices = Choices(data)
    made: list[bytes] = []
    while len(made) < _MOST and (choices.left or not made):
        if choices.below(3):
            made.append(opening(choices).data)
        else:
            made.append(packet(choices, nobody, inbound=choices.below(2) == 0).data)
    whole = _pcapng(choices, made)
    if choices.one_in(4):
        whole = damage(choices, whole, 8)
    with suppress(DamagedError):
        encode(replay(REWRITE, lambda: CaptureFile(BytesIO(whole)).frames()))
    return len(made)


_STEPS = (1, 1000, 1_000_000, 0, -1, -5_000_000, 90_000_000, 10**15)  # microseconds


def _pcapng(choices: Choices, made: list[bytes]) -> bytes:
    whole = pcapng.section("fuzz", "tests") + pcapng.interface("i", "", 256, choices.pick((4, 6)))
    at = 1_700_000_000_000_000
    for data in made:
        comment = "x" * choices.below(9)
        whole += pcapng.packet(0, at, data[:256], len(data), comment=comment)
        at += choices.pick(_STEPS)
    return whole + pcapng.statistics(0, 7, len(made), 0)


_FRONTS = {1: bytes(12) + b"\x08\0", 113: bytes(14) + b"\x08\0", 276: b"\x86\xdd" + bytes(18)}


def _pcap(choices: Choices, made: list[bytes]) -> bytes:
    order = choices.pick("<>")
    link = choices.pick((101, 1, 0, 108, 113, 228, 229, 276, 12, 9))
    magic = choices.pick((0xA1B2C3D4, 0xA1B23C4D))
    whole = pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65_535, link)
    front = _FRONTS.get(link, b"")
    for data in made:
        frame = front + data
        whole += pack(order + "IIII", 1_700_000_000, choices.below(1000), len(frame), len(frame)) + frame
    return whole


_COMMANDS = (
    "set-real", "set-virtual", "clear-sticky", "batch", "connections", "sticky", "failures", "decisions",
    "reals", "virtuals", "summary", "explain", "none",
)  # fmt: skip
_WORDS = (
    "name", "state", "weight", "virtual", "client", "commands", "limit", "cmd", "args", "real", "s40", "web4",
    "out-of-service", "in-service", "maintenance", "198.51.100.7", "", "\x1b[2J", "[x]", "\ud800", "ä" * 300,
)  # fmt: skip
_LINE_LIMIT = 4096


def control(data: bytes) -> int:
    """The control protocol, as the worker has it: lines, documents, and every command's arguments."""
    choices, reader = Choices(data), LineReader(_LINE_LIMIT)
    director = Director(REWRITE if choices.below(2) else OFFLOAD, now=0.0)
    count = 0
    while count < _MOST and (choices.left or not count):
        count += 1
        line = _line(choices)
        if choices.below(2):
            line = damage(choices, line)
        for part in (line[: len(line) // 2], line[len(line) // 2 :]):
            reader.feed(part)
            _take(reader, director)
        assert len(reader._buffer) <= _LINE_LIMIT
    reader.finish()
    _take(reader, director)
    audit(director)
    return count


def _take(reader: LineReader, director: Director) -> None:
    while True:
        ident = None
        try:
            line = reader.take()
            if line is None:
                return
            document = decode(line)
            with suppress(ControlError):
                outcome_of(document)
            ident = ident_of(document)
            cmd, args = command_of(document)
            outcome: Outcome = orders.answer(director, cmd, args, 1.0)
        except LineTooLongError:
            continue
        except ControlError as error:
            outcome = error
        for piece in encode_reply(ident, outcome):
            assert piece.count(b"\n") <= 1


_STRANGE = (b"[" * 9000, b"[" * 4000, b"x" * 5000, b"\0\xff\n", b'{"id":1e999}', b'{"id":' + b"9" * 4090)


def _line(choices: Choices) -> bytes:
    if choices.one_in(8):
        return choices.pick(_STRANGE) + b"\n"
    args: JSONObject = {choices.pick(_WORDS): _value(choices, 0) for _ in range(choices.below(4))}
    document: JSONObject = {"id": _value(choices, 4), "cmd": choices.pick(_COMMANDS), "args": args}
    return encode(document) + b"\n"


def _value(choices: Choices, depth: int) -> JSON:
    """Any JSON value; nested a few levels at most."""
    kind = choices.below(10)
    if kind < 4:
        return choices.pick(_WORDS)
    if kind < 7 or depth > 3:
        return choices.pick((0, 1, -1, 2**63, 10**400, 0.5, 1e308, True, False, None, 10_000, 10_001))
    if kind < 8:
        return [_value(choices, depth + 1) for _ in range(choices.below(4))]
    return {choices.pick(_WORDS): _value(choices, depth + 1) for _ in range(choices.below(4))}


def http(data: bytes) -> int:
    """The requests of those who read metrics."""
    choices = Choices(data)
    line = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain;q=0.5, */*\r\n\r\n"
    for size in range(1 + choices.below(8)):
        request(damage(choices, line)[: size * 40 or None] if choices.below(8) else choices.some(250))
    return 1
