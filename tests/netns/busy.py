"""Keeps connections busy and opens new ones: `busy.py ADDRESS PORT COUNT [PAUSE [NEW]]`, on a client.

Asks for `/` over each of COUNT connections, one question every PAUSE seconds (0.05), and over a new one every
NEW seconds (0.05; 0: never) as well.
Prints "busy" once all are open. At SIGTERM no new one is begun; it waits for the answers that are due and
prints one JSON object: how many connections were `kept` and how many of those have `failed`; how many were
`made` anew and how many could not be (`unmade`); and in seconds the slowest answer of either kind and the
longest `outage`, in which no answer came at all.
"""

import asyncio
import json
import random
import signal
import sys
import time

PAUSE, PATIENCE = 0.05, 15.0


class Tally:
    """What it came to."""

    def __init__(self) -> None:
        self.kept = self.failed = self.made = self.unmade = 0
        self.slowest = self.slowest_new = self.outage = 0.0
        self.heard = time.monotonic()
        self.over = asyncio.Event()
        self.resting: set[asyncio.Task[None] | None] = set()

    def answered(self) -> None:
        """An answer has come."""
        now = time.monotonic()
        self.outage, self.heard = max(self.outage, now - self.heard), now


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, and the whole answer to it."""
    writer.write(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await asyncio.wait_for(reader.readexactly(int(length.split(b":")[1])), PATIENCE)


async def rest(tally: Tally, seconds: float) -> None:
    """Wait so long; cancelled when all is over."""
    task = asyncio.current_task()
    tally.resting.add(task)
    try:
        await asyncio.sleep(seconds)
    finally:
        tally.resting.discard(task)


async def keep(
    tally: Tally, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause: float
) -> None:
    """Use one connection until it fails or all is over."""
    await rest(tally, random.uniform(0, pause))  # not all at the same time
    while not tally.over.is_set():
        begun = time.monotonic()
        try:
            await ask(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            tally.failed += 1
            return
        tally.answered()
        tally.slowest = max(tally.slowest, time.monotonic() - begun)
        await rest(tally, pause)


async def make(tally: Tally, address: str, port: int) -> None:
    """One new connection, one request over it."""
    begun = time.monotonic()
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), PATIENCE)
        await ask(reader, writer)
        writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        tally.unmade += 1
        return
    tally.answered()
    tally.made += 1
    tally.slowest_new = max(tally.slowest_new, time.monotonic() - begun)


async def main(address: str, port: int, count: int, pause: float = PAUSE, new: float = PAUSE) -> None:
    """Until SIGTERM."""
    tally = Tally()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, tally.over.set)
    pairs = [await asyncio.open_connection(address, port) for _ in range(count)]
    for pair in pairs:
        await ask(*pair)
    tally.kept, tally.heard = count, time.monotonic()
    print("busy", flush=True)
    tasks = [asyncio.create_task(keep(tally, *pair, pause)) for pair in pairs]
    while not tally.over.is_set():
        if new:
            tasks.append(asyncio.create_task(make(tally, address, port)))
        await asyncio.sleep(new or PAUSE)
    for task in filter(None, tuple(tally.resting)):
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
    del tally.over, tally.heard, tally.resting
    print(json.dumps(vars(tally)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:])))
