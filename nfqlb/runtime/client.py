"""The operator's end of the control socket: asks one command after the other and waits for the reply.

Every failure is a `ControlError` that says in one line what is wrong and what to do: nobody answers, no
permission, no reply in time, another protocol. Kept light, because `nfqlb show` imports it at each start.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

from nfqlb.runtime.protocol import (
    JSON,
    MAX_REPLY,
    PROTOCOL,
    ControlError,
    JSONObject,
    LineReader,
    LineTooLongError,
    decode,
    encode_request,
    ident_of,
    outcome_of,
)

TIMEOUT = 5.0  # seconds for a whole reply
CHUNK = 1 << 18
#: The unit of `install-service`, and the socket of a gateway that it starts.
_UNIT, _OF_UNIT = Path("/usr/local/lib/systemd/system/nfqlb.service"), Path("/run/nfqlb/control.sock")


class Client:
    """The operator's end: asks one command after the other. Blocks `timeout` seconds at most for each."""

    def __init__(self, path: Path, *, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._sock: socket.socket | None = None
        self._reader = LineReader(MAX_REPLY)
        self._ident = 0

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. The next call connects again."""
        if self._sock is not None:
            self._sock.close()
        self._sock = None
        self._reader = LineReader(MAX_REPLY)

    def call(self, cmd: str, args: JSONObject | None = None, *, patience: float = 0.0) -> JSON:
        """The command's result. Raises ControlError: the gateway's own, or why it could not be asked.

        `patience` is how many seconds more than usual the answer may take; infinite for ever.
        """
        first = self._sock is None
        return self._outcome(lambda: self._ask(cmd, args or {}, first, patience))

    def stream(self, cmd: str, args: JSONObject | None = None, *, patience: float = 0.0) -> Iterator[JSON]:
        """A command's results as they come, until this client hangs up. Raises what `call` does.

        `patience` is how many seconds more than usual each may take.
        """
        yield self.call(cmd, args, patience=patience)
        while True:
            yield self._outcome(lambda: self._reply(time.monotonic() + self._timeout + patience, False))

    def _outcome(self, reply: Callable[[], JSON | ControlError]) -> JSON:
        try:
            outcome = reply()
        except OSError as error:
            self.close()
            raise unreachable(self._path, error) from None
        except ControlError:
            self.close()
            raise
        if isinstance(outcome, ControlError):
            raise outcome
        return outcome

    def _ask(self, cmd: str, args: JSONObject, first: bool, patience: float) -> JSON | ControlError:
        deadline = time.monotonic() + self._timeout
        sock = self._connection(deadline)
        self._ident += 1
        with contextlib.suppress(BrokenPipeError):  # turned away: the reason is there to be read
            sock.sendall(encode_request(self._ident, cmd, args))
        return self._reply(deadline + patience, first)

    def _reply(self, deadline: float, first: bool) -> JSON | ControlError:
        sock = self._connection(deadline)
        line = self._line(sock, deadline)
        try:
            reply = decode(line)
            answered = ident_of(reply)
        except ControlError as error:
            raise ControlError("bad-reply", f"the gateway's reply cannot be read: {error.message}") from None
        if first and reply.get("protocol") != PROTOCOL:
            raise ControlError(
                "version-mismatch",
                f"the gateway speaks another control protocol ({reply.get('protocol')}, not {PROTOCOL})",
                "use the nfqlb that the gateway was started with",
            )
        if answered not in (self._ident, None):
            raise ControlError("bad-reply", "the gateway answered another question than the one asked")
        return outcome_of(reply)

    def _connection(self, deadline: float) -> socket.socket:
        if self._sock is None:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sock.settimeout(_left(deadline))
            self._sock.connect(str(self._path))
        self._sock.settimeout(_left(deadline))
        return self._sock

    def _line(self, sock: socket.socket, deadline: float) -> bytes:
        while True:
            try:
                line = self._reader.take()
            except LineTooLongError:
                raise ControlError("bad-reply", "the gateway's reply is longer than any may be") from None
            if line is not None:
                return line
            sock.settimeout(_left(deadline))
            data = sock.recv(CHUNK)
            if not data:
                raise ControlError("closed", "the gateway closed the connection", "it may just be stopping")
            self._reader.feed(data)


def _left(deadline: float) -> float | None:
    """Seconds until the deadline, None where that never comes. Raises TimeoutError after it.

    It is never 0, which would mean "do not wait".
    """
    if deadline == inf:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def unreachable(path: Path, error: OSError) -> ControlError:
    """Why the gateway at `path` cannot be asked, and what to do, from what the system says of it."""
    start = f"start it with `{_start(path)}`, or name its socket with --socket"
    if isinstance(error, TimeoutError | BlockingIOError):
        return ControlError("timeout", f"the gateway at {path} does not answer in time", "is it overloaded?")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return _absent(f"no gateway is running: {path} does not exist", start)
    if isinstance(error, ConnectionRefusedError):
        return _absent(f"no gateway is running: nobody answers at {path}", start)
    if isinstance(error, PermissionError):
        return ControlError(
            "permission-denied",
            f"{path}: permission denied",
            "be root or a member of the group nfqlb, or nfqlb-read to look",
        )
    return ControlError("unreachable", f"{path}: the gateway cannot be asked: {error.strerror or error}")


def _start(path: Path) -> str:
    """How the gateway at `path` is started."""
    return "systemctl start nfqlb" if path == _OF_UNIT and _UNIT.exists() else "nfqlb run -c FILE"


def _absent(what: str, start: str) -> ControlError:
    """No gateway; but its worker may be there, or its rules, with which the kernel goes on alone."""
    from nfqlb.netfilter.alone import alone, place, worker  # mostly there is a gateway

    left = worker(place())
    if left is not None:
        said = f"{what}; degraded: a worker without supervisor serves for another {left:.0f} s"
        return ControlError("degraded", said, f"{start}; it takes over from that")
    if alone():
        return ControlError("degraded", f"{what}; degraded: the kernel spreads new connections alone", start)
    return ControlError("not-running", what, start)
