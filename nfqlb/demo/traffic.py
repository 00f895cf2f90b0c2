"""Visitors for the demo: many clients in one process, speaking HTTP/1.1 over real connections.

Run as `python -m nfqlb.demo.traffic PLAN` inside a client's namespace, PLAN being the JSON of a `Plan`.
Writes one `Event` as a JSON line for every request and download to standard output; ends on SIGTERM.
"""

import asyncio
import hashlib
import json
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Self

PATIENCE = 10.0
"""Seconds without a byte after which a visitor gives up and reports an error."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the visitors of one process do. `sources` are the client addresses, each with its own visitors.

    `page` and `shop` are ports of `address`: pages without and with stickiness. `film` is a document's name
    and `digest` its sha256; `films` is how many downloads go on at a time. `pause` is the mean time in
    seconds that a visitor waits between two visits. `seed` makes the pauses repeatable.
    """

    address: str
    sources: tuple[str, ...]
    page: int
    shop: int
    film: str
    digest: str
    films: int
    pause: float
    seed: int


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a visitor.

    `kind`: "answer" (a request was answered by `server` after `seconds`), "started" and "arrived" (a
    download, told apart by `client` and `port`, whole), "broken" (its content differs), "error".
    `fresh`: it was the first request of its connection. `begun` is when the connection was asked for, in
    seconds of the machine's monotonic clock.
    """

    kind: str
    place: str
    client: str
    port: int
    server: str = ""
    seconds: float = 0.0
    fresh: bool = False
    begun: float = 0.0
    text: str = ""


class Visit:
    """One connection of a visitor to a virtual server, from a port of its own where `own_port` is not 0."""

    def __init__(self, plan: Plan, place: str, source: str, own_port: int = 0) -> None:
        self._plan = plan
        self._place = place
        self._source = source
        self._from = (source, own_port)
        self._port = plan.shop if place == "shop" else plan.page
        self._asked = 0
        self._own_port = 0
        self._begun = monotonic()

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(PATIENCE):
            self._reader, self._writer = await asyncio.open_connection(
                self._plan.address, self._port, local_addr=self._from
            )
        self._own_port = self._writer.get_extra_info("sockname")[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    def event(self, kind: str, *, server: str = "", seconds: float = 0.0, text: str = "") -> Event:
        """An event of this connection."""
        fresh = self._asked == 1
        own, begun = self._own_port, self._begun
        return Event(kind, self._place, self._source, own, server, seconds, fresh, begun, text)

    async def get(self, path: str) -> tuple[str, int]:
        """Ask for a document; the server's name and the length of what follows."""
        self._asked += 1
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._plan.address}\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        if " 200 " not in head[0]:
            raise OSError(f"the server answered {head[0]}")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return fields["x-server"], int(fields["content-length"])

    async def body(self, length: int) -> str:
        """Read the document to its end; its sha256."""
        digest = hashlib.sha256()
        while length:
            async with asyncio.timeout(PATIENCE):
                block = await self._reader.read(min(length, 65536))
            if not block:
                raise OSError(f"the connection ended {length} bytes early")
            length -= len(block)
            digest.update(block)
        return digest.hexdigest()


def report(event: Event) -> None:
    """Write an event for whoever started us."""
    sys.stdout.write(json.dumps(asdict(event)) + "\n")


async def browse(plan: Plan, place: str, source: str, chance: random.Random) -> None:
    """One visit: one page, or several over the same connection."""
    async with Visit(plan, place, source) as visit:
        for _ in range(chance.choice((1, 1, 1, 4))):
            asked = monotonic()
            server, length = await visit.get("/page")
            await visit.body(length)
            report(visit.event("answer", server=server, seconds=monotonic() - asked))
            await asyncio.sleep(chance.uniform(0, plan.pause / 4))


async def download(plan: Plan, place: str, source: str, chance: random.Random) -> None:
    """One download of the film, whole, checked against its sha256."""
    async with Visit(plan, place, source) as visit:
        asked = monotonic()
        server, length = await visit.get(f"/film/{plan.film}")
        report(visit.event("started", server=server))
        intact = await visit.body(length) == plan.digest
        kind = "arrived" if intact else "broken"
        report(visit.event(kind, server=server, seconds=monotonic() - asked))


Act = Callable[[Plan, str, str, random.Random], Awaitable[None]]


async def visitor(plan: Plan, act: Act, place: str, source: str, seed: str) -> None:
    """Do the same thing again and again, with pauses; what goes wrong is an event, not the end."""
    chance = random.Random(seed)  # noqa: S311 - pauses, not secrets
    while True:
        await asyncio.sleep(chance.uniform(0, 2 * plan.pause))
        try:
            await act(plan, place, source, chance)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError, KeyError) as error:
            text = f"{type(error).__name__}: {error}"
            report(Event("error", place, source, 0, text=text))


async def visit_all(plan: Plan) -> None:
    """Every visitor of the plan at once, until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tasks = [
        visitor(plan, browse, place, source, f"{plan.seed}{place}{source}")
        for source in plan.sources
        for place in ("www", "shop")
    ]
    for number in range(plan.films):
        source = plan.sources[number % len(plan.sources)]
        tasks.append(visitor(plan, download, "www", source, f"{plan.seed}film{number}"))
    running = [asyncio.create_task(task) for task in tasks]
    while not stop.is_set():
        sys.stdout.flush()
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.2)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    sys.stdout.flush()


def main(text: str) -> None:
    """Run the visitors of a plan given as JSON."""
    values = json.loads(text)
    asyncio.run(visit_all(Plan(**{**values, "sources": tuple(values["sources"])})))


if __name__ == "__main__":
    main(sys.argv[1])
