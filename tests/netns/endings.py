"""Connections that end in every way: `serve PORT...` and `call ADDRESS PORT SILENT CLOSED COUNT`.

The client opens COUNT connections (50,000 at most), two hundred at a time, and lets them end in turn by
each of `WAYS`. The first byte that it sends says what the server is to do. SILENT is a port whose server
never answers, CLOSED one whose server refuses. Writes one JSON object: how many connections ended in each
way as they should, and how many did not.
"""

import errno
import json
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from struct import pack

_TCP_REPAIR = 19  # linux/tcp.h: a socket in repair mode is closed without a word
_AT_ONCE = 200
_PATIENCE = 20.0  # seconds for one connection
_FIRST_PORT = 10_000  # every connection has a port of its own, so that none looks like an older one
_UNDONE = 0.5  # seconds after which the server has vanished: it says nothing of it
_RESET = pack("ii", 1, 0)  # SO_LINGER: close by a reset

NEVER_ANSWERED, REFUSED = "never-answered", "refused"
CLIENT_CLOSES, SERVER_CLOSES = "client-closes", "server-closes"
CLIENT_RESETS, SERVER_RESETS = "client-resets", "server-resets"
BOTH_VANISH = "both-vanish"
#: What the client orders of the server for those ways that get so far.
_ORDERS = {
    CLIENT_CLOSES: b"w",  # wait for what the client does
    SERVER_CLOSES: b"c",  # close
    CLIENT_RESETS: b"w",
    SERVER_RESETS: b"r",
    BOTH_VANISH: b"v",
}
WAYS = (NEVER_ANSWERED, REFUSED, *_ORDERS)


def vanish(sock: socket.socket) -> None:
    """Close without sending anything, as if the machine had lost its power."""
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    sock.close()


def reset(sock: socket.socket) -> None:
    """Close by a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def serve(ports: list[int]) -> None:
    """Do what each client's first byte orders, until somebody ends this program."""
    selector = selectors.DefaultSelector()
    for port in ports:
        listener = socket.create_server(("", port), backlog=4096)
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, None)
    print("serving", flush=True)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            if key.data is None:
                _accept(key.fileobj, selector)
            else:
                _obey(key.fileobj, selector)


def _accept(listener: socket.socket, selector: selectors.BaseSelector) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            continue  # the client has gone again
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, sock)


def _obey(sock: socket.socket, selector: selectors.BaseSelector) -> None:
    try:
        order = sock.recv(1)
    except ConnectionResetError:
        order = b""
    if order == b"w":
        return  # whatever ends it comes from the client
    selector.unregister(sock)
    if order == b"v":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # or the client would repeat its byte
        vanish(sock)
    elif order == b"r":
        reset(sock)
    else:
        sock.close()


class Caller:
    """The client's end of all connections."""

    def __init__(self, address: str, ports: dict[str, int]) -> None:
        self._address = address
        self._ports = ports
        self._selector = selectors.DefaultSelector()
        self._open: dict[socket.socket, tuple[str, float]] = {}  # with the way and a time in seconds
        self.done: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    def call(self, count: int) -> None:
        """Open so many connections and see each of them end."""
        opened = 0
        while opened < count or self._open:
            while opened < count and len(self._open) < _AT_ONCE:
                self._dial(WAYS[opened % len(WAYS)], _FIRST_PORT + opened)
                opened += 1
            for key, _ in self._selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                key.data(key.fileobj)
            self._look_at_times(time.monotonic())

    def _dial(self, way: str, own_port: int) -> None:
        sock = socket.socket()
        sock.bind(("", own_port))
        sock.setblocking(False)
        result = sock.connect_ex((self._address, self._ports.get(way, self._ports[""])))
        if result not in (0, errno.EINPROGRESS):
            self._finish(sock, way, right=False)
        elif way == NEVER_ANSWERED:
            sock.close()  # its SYN is on its way; nobody will ever send another segment
            self.done[way] += 1
        else:
            self._open[sock] = way, time.monotonic() + _PATIENCE
            self._selector.register(sock, selectors.EVENT_WRITE, self._connected)

    def _connected(self, sock: socket.socket) -> None:
        way, _ = self._open[sock]
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error or way == REFUSED:
            self._finish(sock, way, right=way == REFUSED and error == errno.ECONNREFUSED)
            return
        sock.send(_ORDERS[way])
        if way == CLIENT_CLOSES:
            self._finish(sock, way, right=True)
        elif way == CLIENT_RESETS:
            self._finish(sock, way, right=True, close=reset)
        elif way == BOTH_VANISH:
            self._open[sock] = way, time.monotonic() + _UNDONE
            self._selector.modify(sock, selectors.EVENT_READ, self._answered)
        else:
            self._selector.modify(sock, selectors.EVENT_READ, self._answered)

    def _answered(self, sock: socket.socket) -> None:
        way, _ = self._open[sock]
        try:
            said = sock.recv(10)
        except ConnectionResetError:
            self._finish(sock, way, right=way == SERVER_RESETS)
            return
        self._finish(sock, way, right=way == SERVER_CLOSES and not said)

    def _finish(
        self,
        sock: socket.socket,
        way: str,
        *,
        right: bool,
        close: Callable[[socket.socket], None] = socket.socket.close,
    ) -> None:
        if self._open.pop(sock, None):
            self._selector.unregister(sock)
        close(sock)
        (self.done if right else self.wrong)[way] += 1

    def _look_at_times(self, now: float) -> None:
        for sock in [sock for sock, (_, until) in self._open.items() if now > until]:
            way, _ = self._open[sock]
            vanishing = way == BOTH_VANISH
            self._finish(sock, way, right=vanishing, close=vanish if vanishing else socket.socket.close)


def main(what: str, *words: str) -> None:
    """Serve, or call."""
    if what == "serve":
        serve([int(port) for port in words])
        return
    address, port, silent, closed, count = words
    caller = Caller(address, {"": int(port), NEVER_ANSWERED: int(silent), REFUSED: int(closed)})
    caller.call(int(count))
    print(json.dumps({"done": caller.done, "wrong": caller.wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
