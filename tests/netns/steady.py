"""Asks over and over and says how long each answer took: `steady ADDRESS PORT INTERVAL`, run by a client.

Every INTERVAL seconds one request over a connection that is kept, and one over a connection of its own.
Writes a line for each: `kept` or `new`, when it began (seconds of the monotonic clock, which all processes of
the machine share), and how long it took (seconds) or `failed`. Ends with status 1 where the kept one does.
"""

import sys
import time
from socket import create_connection, socket

from tests.netns.holder import ask


def timed(kind: str, connection: socket | None, address: str, port: int) -> None:
    """One request, over a connection of its own where none is given."""
    begun = time.monotonic()
    try:
        if connection is None:
            with create_connection((address, port), 15) as own:
                ask(own)
        else:
            ask(connection)
        took = f"{time.monotonic() - begun:.6f}"
    except (OSError, SystemExit):
        took = "failed"
    sys.stdout.write(f"{kind} {begun:.6f} {took}\n")
    sys.stdout.flush()
    if took == "failed" and connection is not None:
        raise SystemExit(1)


def main(address: str, port: int, interval: float) -> None:
    """Ask until somebody ends it."""
    with create_connection((address, port), 15) as kept:
        while True:
            timed("kept", kept, address, port)
            timed("new", None, address, port)
            time.sleep(interval)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
