"""The control protocol's words: JSON lines, one document a line.

A request is `{"id", "cmd", "args"}`, its reply `{"id", "ok", "result"}` or `{"id", "ok", "error"}` with
`{"code", "message", "hint"}`; the first reply on a connection also carries `"protocol"`. The same lines
pass between an operator and the supervisor and between the supervisor and its worker. Owned here:
how lines are cut out of a byte stream, how documents become bytes and back, and the limits on both.
No input may raise anything but `ControlError` here, whatever bytes it is made of.
"""

import json
from collections.abc import Callable, Iterator
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]
JSONObject = dict[str, JSON]
Ident = int | str | None
Result = JSON | Iterator[JSONObject]

PROTOCOL = 1
MAX_LINE = 1 << 20  # bytes of a request: far above any command, far below what could hurt
MAX_REPLY = 16 << 20  # bytes of a reply: above 10,000 connections with the longest names
MAX_DEPTH = 16  # nesting of a request; no command needs more than three
MAX_IDENT = 64  # an id comes back in the reply, so it must not be a way to grow it
#: Rows in one reply. The director makes them in one go while packets wait: 10,000 take it some 20 ms.
MAX_LIMIT = 10_000
MAX_LIMITS = {"decisions": 1000, "events": 1000}  # fewer of what has long rows: they must fit into a reply
DEFAULT_LIMITS = {"connections": 100, "sticky": MAX_LIMIT, "failures": 100, "decisions": 100, "events": 100}
ROWS_A_PIECE = 64  # rows of a list encoded at a time, where they are short: well under a millisecond
PIECE = 12 << 10  # bytes that a piece should not exceed by much; a decision may have 4 KB


class ControlError(Exception):
    """A request that was refused or failed: `code` for programs, `message` and `hint` for people."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class LineTooLongError(Exception):
    """A line went over the reader's limit; what is left of it will be skipped."""


class Peer(NamedTuple):
    """Who is at the other end of a unix socket, as the kernel saw it at connect (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class Encoded(NamedTuple):
    """A result that is JSON already: what many clients get is written once."""

    data: bytes


class Level(IntEnum):
    """What somebody may do; see `access`."""

    NONE = 0
    READ = 1
    OPERATE = 2
    ADMIN = 3

    @property
    def shown(self) -> str:
        """As it is written."""
        return self.name.lower()


Outcome = Result | Encoded | ControlError


class Request:
    """One command, to be answered once, or by a stream: at once or later, from wherever the answer comes.

    `args` is checked to be an object of moderate depth, nothing more. `peer` is None where the request
    comes from the supervisor, and `level` what it may do. The first answer counts and later ones are
    ignored, because a worker may answer what was already given up. `answered` is also set where nobody
    waits for an answer any more.
    """

    __slots__ = ("_send", "_settle", "answered", "args", "cmd", "ident", "level", "peer")

    def __init__(
        self,
        ident: Ident,
        cmd: str,
        args: JSONObject,
        peer: Peer | None,
        settle: Callable[["Request", Outcome], None],
        *,
        level: Level = Level.ADMIN,
        send: Callable[["Request", Outcome], bool] = lambda _request, _outcome: False,
    ) -> None:
        self.ident = ident
        self.cmd = cmd
        self.args = args
        self.peer = peer
        self.level = level
        self.answered = False
        self._settle = settle
        self._send = send

    def reply(self, result: Result | Encoded) -> None:
        """Answer with a document, or with an iterator of a list's rows."""
        self._answer(result)

    def stream(self, result: Result | Encoded) -> bool:
        """Send one of many replies; False where it was left out, as the last one has not been read yet."""
        return not self.answered and self._send(self, result)

    def fail(self, code: str, message: str, hint: str = "") -> None:
        """Answer with an error."""
        self._answer(ControlError(code, message, hint))

    def refuse(self, error: ControlError) -> None:
        """Answer with an error that was raised."""
        self._answer(error)

    def _answer(self, outcome: Outcome) -> None:
        if not self.answered:
            self.answered = True
            self._settle(self, outcome)


class LineReader:
    """Cuts lines out of a byte stream, none longer than `limit` bytes (the newline not counted)."""

    __slots__ = ("_buffer", "_limit", "_scanned", "_skipping")

    def __init__(self, limit: int) -> None:
        self._buffer = bytearray()
        self._limit = limit
        self._scanned = 0  # bytes at the front known to hold no newline: a long line is searched once
        self._skipping = False

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        self._buffer += data

    def finish(self) -> None:
        """The stream has ended: a last line without a newline counts as a line."""
        if self._buffer and not self._skipping:
            self._buffer += b"\n"

    def take(self) -> bytes | None:
        """The next line without its newline, or None. Raises LineTooLongError once for each line too long."""
        while True:
            end = self._buffer.find(b"\n", self._scanned)
            if end < 0:
                self._check_unfinished()
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._scanned = 0
            if self._skipping:
                self._skipping = False
                continue
            if len(line) > self._limit:
                raise LineTooLongError
            return line

    def _check_unfinished(self) -> None:
        self._scanned = len(self._buffer)
        if self._skipping or self._scanned > self._limit:
            first = not self._skipping
            self._buffer.clear()
            self._scanned = 0
            self._skipping = True
            if first:
                raise LineTooLongError


def decode(line: bytes) -> JSONObject:
    """One line as an object. Raises ControlError "bad-request" for anything else."""
    try:
        document: JSON = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise _bad("the line is not UTF-8 text") from None
    except RecursionError:
        raise _bad("the document is nested too deeply") from None
    except ValueError as error:
        raise _bad(f"the line is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _bad("the line is JSON but not an object")
    if _deeper(document, MAX_DEPTH):
        raise _bad("the document is nested too deeply")
    return document


def ident_of(document: JSONObject) -> Ident:
    """A request's or a reply's `id`; None where there is none. Raises ControlError "bad-request"."""
    ident = document.get("id")
    if ident is None or (isinstance(ident, str) and len(ident) <= MAX_IDENT):
        return ident
    if isinstance(ident, int) and not isinstance(ident, bool) and -(2**63) <= ident < 2**63:
        return ident
    raise _bad(f"id must be a whole number or a text of at most {MAX_IDENT} characters")


def command_of(document: JSONObject) -> tuple[str, JSONObject]:
    """A request's `cmd` and `args` (none given: empty). Raises ControlError "bad-request"."""
    cmd = document.get("cmd")
    if not isinstance(cmd, str) or not cmd:
        raise _bad("cmd is missing or not a text")
    args = document.get("args")
    if args is None:
        return cmd, {}
    if not isinstance(args, dict):
        raise _bad("args must be an object")
    return cmd, args


def outcome_of(reply: JSONObject) -> JSON | ControlError:
    """What a reply says: its result, or its error as a value. Raises ControlError "bad-reply"."""
    if reply.get("ok") is True and "result" in reply:
        return reply["result"]
    error = reply.get("error")
    if reply.get("ok") is False and isinstance(error, dict):
        code, message, hint = error.get("code"), error.get("message"), error.get("hint", "")
        if isinstance(code, str) and isinstance(message, str) and isinstance(hint, str):
            return ControlError(code, message, hint)
    raise ControlError("bad-reply", "the reply has neither a result nor an error that can be read")


#: What goes out is made here, and no part of it holds itself.
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


def objects(value: JSON) -> list[JSONObject]:
    """The objects of a list; none where it is no list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def part(document: JSONObject, name: str) -> JSONObject:
    """The object of that name in another; empty where there is none."""
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def encode(document: JSON) -> bytes:
    """A document as bytes, without the newline. Raises ValueError (also for NaN) or TypeError.

    Only ASCII comes out, so text that is no valid UTF-8 (a lone surrogate) cannot break a reply.
    """
    return _ENCODER.encode(document).encode("ascii")


def encode_request(ident: Ident, cmd: str, args: JSONObject) -> bytes:
    """A request as a whole line."""
    return encode({"id": ident, "cmd": cmd, "args": args}) + b"\n"


def encode_reply(ident: Ident, outcome: Outcome, *, first: bool = False) -> Iterator[bytes]:
    """A reply's line in pieces, the last one ending in a newline; `first` adds the protocol's version.

    Lists are encoded a few rows at a time, as the pieces are asked for: whoever sends them decides how
    long it stays at it. Raises what `encode` raises.
    """
    head: JSONObject = {"id": ident, "ok": not isinstance(outcome, ControlError)}
    if first:
        head["protocol"] = PROTOCOL
    if isinstance(outcome, ControlError):
        head["error"] = {"code": outcome.code, "message": outcome.message, "hint": outcome.hint}
        yield encode(head) + b"\n"
    elif isinstance(outcome, Encoded):
        yield encode(head)[:-1] + b',"result":' + outcome.data + b"}\n"
    elif isinstance(outcome, None | bool | int | float | str | dict):
        head["result"] = outcome
        yield encode(head) + b"\n"
    else:
        yield encode(head)[:-1] + b',"result":['
        rows = iter(outcome)
        separator = b""
        count = 4
        while piece := list(islice(rows, count)):
            data = encode(piece)[1:-1]
            yield separator + data
            separator = b","
            count = max(1, min(ROWS_A_PIECE, PIECE * len(piece) // len(data)))
        yield b"]}\n"


def _bad(message: str) -> ControlError:
    return ControlError("bad-request", message, 'a request is one line like {"id": 1, "cmd": "summary"}')


def _no_constant(name: str) -> JSON:
    raise ValueError(f"{name} is not a JSON number")


def _deeper(value: JSON, levels: int) -> bool:
    if isinstance(value, dict):
        return levels == 0 or any(_deeper(inner, levels - 1) for inner in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_deeper(inner, levels - 1) for inner in value)
    return False
