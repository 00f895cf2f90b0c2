"""Holds connections open: `holder.py ADDRESS PORT COUNT [OWN_PORT]`, run inside a client's namespace.

Opens COUNT connections one after the other and asks for `/` over each; writes the answers, one a line, and
an empty line. Asks again over all of them at each SIGUSR1. Ends at SIGTERM, or with status 1 when any fails.
"""

import signal
import socket
import sys


def ask(connection: socket.socket) -> str:
    """One request over a connection; the body of the answer."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
    received = b""
    while b"\r\n\r\n" not in received or not received.endswith(b"\n"):
        block = connection.recv(65536)
        if not block:
            raise SystemExit("a connection has ended")
        received += block
    return received.partition(b"\r\n\r\n")[2].decode()


def connect(address: str, port: int, own_port: int) -> socket.socket:
    """A connection from a port of our own (0: any), even if another one from that port goes elsewhere."""
    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind(("", own_port))
    connection.settimeout(15)
    connection.connect((address, port))
    return connection


def main(address: str, port: int, count: int, own_port: int = 0) -> None:
    """Open, ask, and ask again whenever told."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    connections: list[socket.socket] = []
    answers = []
    for _ in range(count):
        connections.append(connect(address, port, own_port))
        answers.append(ask(connections[-1]))
    while True:
        sys.stdout.write("".join(answers) + "\n")
        sys.stdout.flush()
        signal.sigwait({signal.SIGUSR1})
        answers = [ask(connection) for connection in connections]


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
