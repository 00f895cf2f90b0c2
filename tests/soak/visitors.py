"""Clients of the soak: `python -m tests.soak.visitors PLAN`, run inside a client's namespace.

PLAN is the JSON of a `Plan`. They open short connections, keep others, leave some idle, download, break off,
ask by datagrams and for names, over IPv4 and IPv6. SIGUSR1 has them rest: what is under way ends, but for the
kept and idle connections, which stay and are silent; then one line of JSON (`Account`) is written. SIGUSR2
has them go on, SIGTERM end.
"""

import asyncio
import json
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from itertools import cycle
from struct import pack
from time import monotonic

import dpkt

from nfqlb.demo import traffic
from nfqlb.demo.traffic import Visit

PATIENCE = 30.0
"""Seconds without a byte after which a connection is held to be lost."""
REPEAT = 1.0
"""Seconds after which a datagram is sent again, as a resolver does."""
TRIES = 12
IDLE = 15.0
"""Seconds between two requests over an idle connection; the servers give one up after 75."""
_CLUMSY = pack("ii", 1, 0)  # SO_LINGER: close by a reset


@dataclass(frozen=True, slots=True)
class Place:
    """A virtual server as clients see it. `kind`: "http", "echo" or "dns"."""

    name: str
    kind: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the visitors of one client do. `sources` are its addresses, IPv4 and IPv6.

    For each HTTP place `short` visitors with connections of a page, `kept` and `idle` connections, and
    `films` downloads; for each of the others `short` visitors. `pause` is the mean time between two visits in
    seconds. `film` is a document's name, `digest` its sha256. `seed` makes the choices repeatable.
    """

    places: tuple[Place, ...]
    sources: tuple[str, str]
    short: int
    kept: int
    idle: int
    films: int
    pause: float
    film: str
    digest: str
    seed: int


@dataclass(frozen=True, slots=True)
class Loss:
    """A connection or question that came to nothing. Times are of the machine's monotonic clock (s).

    `server` is "" while that is not known; `at` is when the visitor learned of it.
    """

    place: str
    what: str
    server: str
    port: int
    begun: float
    at: float
    text: str


@dataclass(slots=True)
class Account:
    """What has come of everything so far; counters by "PLACE SERVER", `pages` by server.

    `opened`: connections and flows, SERVER being "?" where the client ended before it knew. `held`: those
    that are open now. `pages`: answered requests for /page. `losses`: since the last account.
    """

    opened: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    pages: Counter[str] = field(default_factory=Counter)
    downloads: int = 0
    aborted: int = 0
    slowest: float = 0.0
    losses: list[Loss] = field(default_factory=list)


class Call(Visit):
    """A connection to one place, that is written down once, under its server as soon as that is known."""

    def __init__(self, visitors: "Visitors", place: Place) -> None:
        plan, port = visitors.plan, next(visitors.ports)
        source = plan.sources[":" in place.address]
        page = shop = place.port
        words = traffic.Plan(place.address, (source,), page, shop, plan.film, plan.digest, 0, 0.0, 0)
        super().__init__(words, place.name, source, port)
        self.account = visitors.account
        self.place = place
        self.port = port
        self.server = ""
        self.begun = monotonic()
        self._written = False

    async def __aexit__(self, *raised: object) -> None:
        self._write()
        await super().__aexit__(*raised)

    def _write(self) -> None:
        if not self._written:
            self._written = True
            self.account.opened[f"{self.place.name} {self.server or '?'}"] += 1

    async def ask(self, path: str) -> str:
        """One document, to its end; its sha256."""
        asked = monotonic()
        self.server, length = await self.get(path)
        self._write()
        digest = await self.body(length)
        self.begun = monotonic()  # so far all is well
        if path == "/page":
            self.account.pages[self.server] += 1
            self.account.slowest = max(self.account.slowest, monotonic() - asked)
        return digest

    async def break_off(self, *, clumsily: bool) -> None:
        """Begin a download and leave in the middle of it, or by a reset."""
        self.server, length = await self.get(f"/film/{self._plan.film}")
        await self._reader.readexactly(min(length, 20_000))
        if clumsily:
            line = self._writer.get_extra_info("socket")
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLUMSY)
        self.account.aborted += 1


class Visitors:
    """All visitors of one client."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.account = Account()
        first = random.Random(plan.seed).randrange(10_000, 60_000)
        #: No port comes again before everybody has forgotten it, so that no two connections are mixed up.
        self.ports = cycle([*range(first, 60_000), *range(10_000, first)])
        self.going = asyncio.Event()
        self.going.set()
        self.busy = 0

    # ---- What they do, each again and again

    async def page(self, place: Place, chance: random.Random) -> None:
        """A connection with a page or several, or none; or one that is broken off."""
        async with Call(self, place) as call:
            what = chance.random()
            with self.watched(call):
                if what < 0.04:
                    await call.break_off(clumsily=chance.random() < 0.5)
                elif what > 0.07:  # else it says nothing
                    for _ in range(chance.choice((1, 1, 1, 4))):
                        await call.ask("/page")
                        await asyncio.sleep(chance.uniform(0, self.plan.pause / 4))

    async def film(self, place: Place, _chance: random.Random) -> None:
        """A download, whole."""
        async with Call(self, place) as call:
            with self.watched(call):
                if await call.ask(f"/film/{self.plan.film}") != self.plan.digest:
                    raise OSError("the document is not what it should be")
                self.account.downloads += 1

    async def keep(self, place: Place, chance: random.Random, pause: float) -> None:
        """A connection that stays, with a request now and then; another one where it is lost."""
        async with Call(self, place) as call:
            with self.watched(call):
                await call.ask("/page")
            held = f"{place.name} {call.server}"
            self.account.held[held] += 1
            try:
                while True:
                    self.busy -= 1
                    try:
                        await self.pause(chance.uniform(pause / 2, 3 * pause / 2))
                        await self.going.wait()
                    finally:
                        self.busy += 1
                    with self.watched(call):
                        await call.ask("/page")
            finally:
                self.account.held[held] -= 1

    async def flow(self, place: Place, chance: random.Random) -> None:
        """Datagrams that one server has to answer, or one question for a name."""
        begun, port = monotonic(), next(self.ports)
        with Datagrams(self.plan.sources[":" in place.address], port, place) as line:
            servers: list[str] = []
            try:
                await line.talk(place.kind, chance, servers)
            except (OSError, TimeoutError, ValueError) as error:
                self.lose(place, "datagram", servers[0] if servers else "", port, begun, error)
            self.account.opened[f"{place.name} {servers[0] if servers else '?'}"] += 1
            if len(set(servers)) > 1 and monotonic() - begun < REPEAT:  # after that it may be another flow
                self.lose(place, "moved", servers[0], port, begun, ValueError(" ".join(servers)))

    # ---- How they go on

    @contextmanager
    def watched(self, call: Call) -> Iterator[None]:
        """What goes wrong inside is a loss of this connection's."""
        try:
            yield
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError, KeyError) as error:
            self.lose(call.place, "connection", call.server, call.port, call.begun, error)
            raise WrittenError from error

    def lose(
        self, place: Place, what: str, server: str, port: int, begun: float, error: BaseException
    ) -> None:
        """Write a loss down."""
        text = f"{type(error).__name__}: {error}"
        self.account.losses.append(Loss(place.name, what, server, port, begun, monotonic(), text))

    async def pause(self, seconds: float) -> None:
        """Sleep so long, or until it is time to rest."""
        end = monotonic() + seconds
        while self.going.is_set() and (left := end - monotonic()) > 0:
            await asyncio.sleep(min(left, 0.25))

    async def visitor(self, act: Callable[[random.Random], Awaitable[None]], place: Place, seed: str) -> None:
        """Do the same thing for ever, but while they rest."""
        chance = random.Random(seed)
        while True:
            await self.pause(chance.uniform(0, 2 * self.plan.pause))
            await self.going.wait()
            self.busy += 1
            begun = monotonic()
            try:
                await act(chance)
            except WrittenError:
                pass
            except (OSError, TimeoutError) as error:
                self.lose(place, "connect", "", 0, begun, error)
            finally:
                self.busy -= 1

    def acts(self) -> Iterator[Awaitable[None]]:
        """Every visitor."""
        plan = self.plan
        for place in plan.places:
            for number in range(plan.short):
                act = self.page if place.kind == "http" else self.flow
                yield self.visitor(
                    lambda chance, act=act, place=place: act(place, chance),  # type: ignore[misc]
                    place,
                    f"{plan.seed} {place.name} {number}",
                )
            if place.kind != "http":
                continue
            for number in range(plan.films):
                yield self.visitor(
                    lambda chance, place=place: self.film(place, chance),  # type: ignore[misc]
                    place,
                    f"{plan.seed} {place.name} film {number}",
                )
            for number in range(plan.kept + plan.idle):
                pause = plan.pause if number < plan.kept else IDLE
                yield self.visitor(
                    lambda chance, place=place, pause=pause: self.keep(place, chance, pause),  # type: ignore[misc]
                    place,
                    f"{plan.seed} {place.name} kept {number}",
                )

    async def rests(self, wanted: asyncio.Event) -> None:
        """Rest whenever that is wanted."""
        while True:
            await wanted.wait()
            wanted.clear()
            await self.rest()

    async def rest(self) -> None:
        """Let what is under way end, and tell."""
        self.going.clear()
        while self.busy:
            await asyncio.sleep(0.02)
        told = {name: getattr(self.account, name) for name in Account.__slots__}
        told["losses"] = [asdict(loss) for loss in self.account.losses]
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        self.account.losses.clear()
        self.account.slowest = 0.0

    async def run(self) -> None:
        """Until SIGTERM."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        rest = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGUSR1, rest.set)
        loop.add_signal_handler(signal.SIGUSR2, self.going.set)
        running = [asyncio.ensure_future(act) for act in (self.rests(rest), *self.acts())]
        sys.stdout.write("\n")
        sys.stdout.flush()
        ended = loop.create_task(stop.wait())
        await asyncio.wait([ended, *running], return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class WrittenError(Exception):
    """It has been written down."""


class Datagrams:
    """A socket for one flow. A context."""

    def __init__(self, source: str, port: int, place: Place) -> None:
        family = socket.AF_INET6 if ip_address(source).version == 6 else socket.AF_INET
        self._line = socket.socket(family, socket.SOCK_DGRAM)
        self._line.setblocking(False)
        self._line.bind((source, port))
        self._line.connect((place.address, place.port))

    def __enter__(self) -> "Datagrams":
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    async def talk(self, kind: str, chance: random.Random, servers: list[str]) -> None:
        """Some questions; who answered is added to `servers`. Raises what `ask` does."""
        for _ in range(chance.choice((1, 2, 3)) if kind == "echo" else 1):
            servers.append(await self.ask(kind, chance.getrandbits(16)))  # noqa: PERF401 - to be kept if one fails

    async def ask(self, kind: str, number: int) -> str:
        """Ask until there is an answer; who gave it. Raises TimeoutError and ValueError."""
        question = number.to_bytes(2, "big") if kind == "echo" else name_query(number)
        for _ in range(TRIES):
            with suppress(OSError):  # what an ICMP error said of the one before
                self._line.send(question)
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(REPEAT):
                    while True:
                        got = await asyncio.get_running_loop().sock_recv(self._line, 2000)
                        if got[:2] == question[:2]:  # else to a question that was asked twice
                            return got[2:].decode() if kind == "echo" else name_in(got)
        raise TimeoutError("no answer")


def name_query(number: int) -> bytes:
    """The question that every name server answers with its own name."""
    return bytes(dpkt.dns.DNS(id=number, qd=[dpkt.dns.DNS.Q(name="who.test", type=dpkt.dns.DNS_TXT)]))


def name_in(answer: bytes) -> str:
    """Whose answer it is. Raises ValueError."""
    found = dpkt.dns.DNS(answer).an
    if len(found) != 1:
        raise ValueError(f"{len(found)} answers")
    return bytes(found[0].rdata)[1:].decode()


def main(text: str) -> None:
    """Run the visitors of a plan given as JSON."""
    traffic.PATIENCE = PATIENCE
    values = json.loads(text)
    values["places"] = tuple(Place(**each) for each in values["places"])
    asyncio.run(Visitors(Plan(**{**values, "sources": tuple(values["sources"])})).run())


if __name__ == "__main__":
    main(sys.argv[1])
