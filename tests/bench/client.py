"""The benchmark's own client, for what wrk does not do; runs inside the client's namespace.

`latency`: requests at a fixed rate, whatever the replies do (an open loop). Each is timed from the
moment it was sent; since no reply ever holds a request back, slow replies hide nothing.
`download`: a few connections that fetch one large file over and over; bytes received in a fixed time.

One JSON document on stdout.
"""

import json
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from select import select

_WARM_UP = 0.2  # seconds at the start that are not counted: slow start, cold caches
_GRACE = 1.0  # seconds to wait for the last replies


@dataclass(frozen=True, slots=True)
class Latency:
    """What each answered request took, in seconds, in order of the answers; how many got none."""

    seconds: list[float]
    lost: int


@dataclass(frozen=True, slots=True)
class Download:
    """Bytes received (headers included) and the seconds that they were counted for."""

    octets: int
    seconds: float


class _KeptAlive:
    """One connection with requests under way, answered in order (RFC 9112 section 9.3.2)."""

    def __init__(self, address: str, port: int) -> None:
        self.socket = _connect(address, port)
        self.request = _request(address, "/")
        self.sent: deque[float] = deque()
        self._buffer = b""

    def send(self) -> None:
        """Send one request; it fits the socket's buffer."""
        self.sent.append(time.perf_counter())
        self.socket.send(self.request)

    def received(self) -> list[float]:
        """Read what has come; the seconds that each answered request took."""
        data = self.socket.recv(65536)
        now = time.perf_counter()
        if not data:
            raise ConnectionError("the server closed a connection kept alive")
        self._buffer += data
        took = []
        while (end := self._reply_end()) is not None:
            self._buffer = self._buffer[end:]
            took.append(now - self.sent.popleft())
        return took

    def _reply_end(self) -> int | None:
        head, separator, _ = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return None
        end = len(head) + 4 + _content_length(head)
        return end if len(self._buffer) >= end else None


def latency(address: str, port: int, rate: float, seconds: float, connections: int) -> Latency:
    """Latencies of `rate` requests a second spread over `connections` kept alive."""
    pool = [_KeptAlive(address, port) for _ in range(connections)]
    by_socket = {one.socket: one for one in pool}
    taken: list[float] = []
    first = time.perf_counter() + 0.05
    total = int(rate * (seconds + _WARM_UP))
    number = 0
    last = first + total / rate + _GRACE
    while number < total or (any(one.sent for one in pool) and time.perf_counter() < last):
        due = first + number / rate if number < total else time.perf_counter() + 0.05
        for ready in select(list(by_socket), [], [], max(0.0, due - time.perf_counter()))[0]:
            taken += by_socket[ready].received()
        if number < total and time.perf_counter() >= due:
            pool[number % connections].send()
            number += 1
    return Latency(taken[int(rate * _WARM_UP) :], sum(len(one.sent) for one in pool))


def download(address: str, port: int, path: str, seconds: float, connections: int) -> Download:
    """Bytes that parallel downloads of `path` received in `seconds`.

    Each is a process of its own, like so many clients, so that all processors may receive.
    """
    begin = time.perf_counter() + _WARM_UP
    job = (address, port, path, begin, begin + seconds)
    with get_context("fork").Pool(connections) as pool:
        received = pool.starmap(_received, [job] * connections, chunksize=1)
    return Download(sum(received), seconds)


def _received(address: str, port: int, path: str, begin: float, end: float) -> int:
    """Bytes that one connection received between two moments."""
    request = _request(address, path)
    buffer = bytearray(256 << 10)
    count = left = 0
    with _connect(address, port) as connection:
        while (now := time.perf_counter()) < end:
            if not left:
                connection.sendall(request)
            size = connection.recv_into(buffer)
            if not size:
                raise ConnectionError("the server closed a download")
            if now >= begin:
                count += size
            left = _body_left(left, buffer, size)
    return count


def _body_left(left: int, buffer: bytearray, size: int) -> int:
    """Bytes of the body still to come; a header stands at the front of a reply's first bytes."""
    if left:
        return left - size
    head, separator, _ = bytes(buffer[: min(size, 4096)]).partition(b"\r\n\r\n")
    if not separator:
        raise ConnectionError("a reply's header came in pieces")
    return _content_length(head) - (size - len(head) - 4)


def _content_length(head: bytes) -> int:
    """The length a reply's header announces. Raises ConnectionError when it is not a 200."""
    lines = head.split(b"\r\n")
    if b" 200 " not in lines[0] + b" ":
        raise ConnectionError(f"unexpected reply: {lines[0].decode(errors='replace')}")
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ConnectionError("a reply without Content-Length")


def _connect(address: str, port: int) -> socket.socket:
    one = socket.create_connection((address, port), timeout=5)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def _request(address: str, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()


def main(words: list[str]) -> int:
    """`latency ADDRESS PORT RATE SECONDS CONNECTIONS` or `download ADDRESS PORT PATH SECONDS CONNECTIONS`."""
    what, address, port, third, seconds, connections = words
    try:
        result: Latency | Download
        if what == "latency":
            result = latency(address, int(port), float(third), float(seconds), int(connections))
        else:
            result = download(address, int(port), third, float(seconds), int(connections))
    except OSError as error:
        print(f"{what}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
