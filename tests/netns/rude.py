"""A client of the control socket that means no good: `rude KIND SOCKET`, until somebody ends it.

KIND is how: see `KINDS`. Ends by itself where the gateway does not let it in at all, with what that said.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable

CROWD = 1000
"""Clients of the crowd, and those that read slowly."""
SLOW = 20
LINE = 10 << 20
"""Bytes of a line that is too long."""


def connect(path: str) -> socket.socket:
    """A connection; the gateway may be busy with others."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(path)
    return sock


def request(cmd: str, **args: object) -> bytes:
    """A request's line."""
    return json.dumps({"id": 1, "cmd": cmd, "args": args}).encode() + b"\n"


ALL = request("connections", limit=10_000)


def garbage(path: str) -> None:
    """Lines of nothing, each of which is answered."""
    with connect(path) as sock:
        for _ in range(500):
            sock.sendall(os.urandom(200).replace(b"\n", b"") + b"\n" + b"[" * 500 + b"\n")
            sock.recv(1 << 16)


def long_line(path: str) -> None:
    """A line of 10 MB, as far as it is taken."""
    with connect(path) as sock:
        sock.sendall(bytes(LINE))


def crowd(path: str) -> None:
    """A thousand at once, who stay for a moment where they may."""
    socks = []
    for _ in range(CROWD):
        try:
            socks.append(connect(path))
        except OSError:  # as many as the gateway keeps waiting
            time.sleep(0.01)
    time.sleep(0.5)
    for sock in socks:
        sock.close()


def slow(path: str) -> None:
    """Some who ask for much and do not read it."""
    socks = [connect(path) for _ in range(SLOW)]
    for sock in socks:
        sock.sendall(ALL * 20)
    time.sleep(5)
    for sock in socks:
        sock.close()


def gone(path: str) -> None:
    """Gone in the middle of the reply."""
    with connect(path) as sock:
        sock.sendall(ALL)
        sock.recv(100)


def greedy(path: str) -> None:
    """All that may be asked for, again and again, by many."""
    socks = [connect(path) for _ in range(SLOW)]
    while True:
        for sock in socks:
            sock.sendall(ALL)
        for sock in socks:
            while b"\n" not in sock.recv(1 << 20):
                pass


def stranger(path: str) -> None:
    """Somebody whom the gateway does not know."""
    with connect(path) as sock:
        sock.sendall(ALL)
        said = sock.recv(1 << 16)
        assert json.loads(said)["error"]["code"] == "forbidden", said


KINDS: dict[str, Callable[[str], None]] = {
    each.__name__: each for each in (garbage, long_line, crowd, slow, gone, greedy, stranger)
}


def main(kind: str, path: str) -> None:
    """Be rude."""
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    while True:
        try:
            KINDS[kind](path)
        except (ConnectionResetError, BrokenPipeError):
            continue


if __name__ == "__main__":
    main(*sys.argv[1:])
