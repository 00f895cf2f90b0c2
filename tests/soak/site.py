"""The laboratory of the soak: three servers, two clients and a hostile one, and the gateway between them."""

import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from nfqlb.core.keys import TCP, client_of, client_port_of
from nfqlb.core.spec import Gateway
from nfqlb.demo.appliance import Appliance, balancing, python_path, virtual
from nfqlb.demo.lab import VIP, VIP6, Host, Lab
from nfqlb.demo.programs import Program
from nfqlb.demo.web import document, home, serve
from nfqlb.netfilter.conntrack import Conntrack
from nfqlb.runtime.protocol import ControlError, JSONObject
from tests.netns.asking import traces, wait_until
from tests.netns.both import Bench, Datapath, configuration
from tests.netns.site import entered
from tests.netns.test_protocols import name_server
from tests.soak.books import Burst, Counts, Taken
from tests.soak.visitors import Loss, Place, Plan

ECHO, MANY = 7777, 5353
SOURCES = "198.18.0.0/15"
PLACES = (
    Place("web", "http", VIP, 80),
    Place("shop", "http", VIP, 8080),
    Place("fast", "http", VIP, 81),
    Place("six", "http", VIP6, 80),
    Place("dns", "dns", VIP, 53),
    Place("echo", "echo", VIP, 7),
    Place("echo6", "echo", VIP6, 7),
)
VISITED = frozenset(place.name for place in PLACES)
FLOODED = Place("shop", "http", VIP, 8080)
TIMEOUTS = "[timeouts]\nidle = 300\nhalf_open = 3\nclosing = 2\nudp = {}\n"
LIMITS = "max_connections = 50000\nmax_sticky = 2000"
_REAL = "failure_threshold = 3\nfailure_clients = 1\nretry = 2\n"
_PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Size:
    """How much traffic: what each of two clients does at each place (see `visitors.Plan`)."""

    short: int = 3
    kept: int = 4
    idle: int = 4
    films: int = 1
    pause: float = 0.3
    mebibytes: int = 6


#: Every other virtual server is the kernel's, the rest is the worker's.
Kind = Datapath | Literal["both"]


def _from(tcp: bool, client: bytes, port: int) -> tuple[bool, bytes, int]:
    """Whose a connection is: clients use no port for two at a time."""
    return tcp, client, port


@dataclass(frozen=True, slots=True)
class Shape:
    """What does not change: the gateway's datapath, `udp` of its time-outs (s), `queries` a second beside.

    Those are of a name server's flows that go on through every storm, and are not told apart: they are there
    for their number.
    """

    datapath: Kind
    udp: int = 4
    queries: int = 0


def config(
    lab: Lab, shape: Shape, *, without: str = "", weights: Sequence[int] = (), turns: bool = False
) -> str:
    """The gateway's configuration; a server may have no place anywhere, and others other weights.

    With `turns` two virtual servers have another scheduler.
    """
    names = [server.name for server in lab.servers if server.name != without]
    six = [f"{name}-6" for name in names]
    plain = "round-robin" if turns else "weighted-least-connections"
    hashed = "maglev" if turns else "power-of-two"
    pages, echoes = [f"{name}:80" for name in names], [f"{name}:{ECHO}" for name in names]
    other: dict[str, Any] = {"datapath": "offload"} if shape.datapath == "both" else {}
    virtuals: tuple[str, ...] = (
        virtual("web", names, scheduler=plain),
        virtual("shop", pages, port=8080, sticky=20, synguard=2000, synguard_rate=1500, **other),
        virtual("fast", pages, port=81, scheduler="fastest-response"),
        virtual("six", six, address=VIP6, scheduler=hashed, **other),
        virtual("dns", names, port=53, protocol="udp", scheduler="round-robin", **other),
        virtual("echo", echoes, port=7, protocol="udp"),
        virtual("echo6", [f"{n}:{ECHO}" for n in six], port=7, protocol="udp", address=VIP6, **other),
    )
    if shape.queries:
        virtuals += (virtual("many", [f"{n}:53" for n in names], port=MANY, protocol="udp"),)
    reals = {server.name: _REAL for server in lab.servers}
    for server, weight in zip(lab.servers, weights, strict=False):
        reals[server.name] += f"weight = {weight}\n"
    return configuration(lab, *virtuals, gateway=LIMITS, reals=reals) + TIMEOUTS.format(shape.udp)


class Site:
    """What runs, and how to ask it.

    `taken` are the servers that were taken away so far, `bursts` the bursts of SYNs.
    """

    def __init__(
        self, lab: Bench, gateway: Appliance, web: dict[str, Program], size: Size, shape: Shape
    ) -> None:
        self.lab = lab
        self.gateway = gateway
        self.web = web
        self.size = size
        self.shape = shape
        self.before: dict[str, object] = {}  # what `traces` said when there was no gateway yet
        self.crowd: list[Program] = []
        self.trickle: Program | None = None
        self.asker: Program | None = None
        self.queries: Counter[str] = Counter()  # how many were "sent", "completed" and "lost"
        self.malformed = 0
        self.taken: list[Taken] = []
        self.bursts: list[Burst] = []
        self._read: dict[Host, int] = {}
        self._logged: dict[str, int] = {}
        self._accounts = 0
        self.logs: list[Program] = [gateway.program]

    @property
    def hostile(self) -> Host:
        """The client that means no good."""
        return self.lab.clients[-1]

    def ask(self, subject: str, arguments: JSONObject | None = None, *, patience: float = 20.0) -> Any:
        """As `Appliance.ask`, again and again for so many seconds while there is nobody who could answer."""
        end = time.monotonic() + patience
        while True:
            try:
                return self.gateway.ask(subject, arguments, patience=patience)
            except ControlError as error:
                if error.code not in WAITING or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def reload(self, **changes: Any) -> None:
        """Have another configuration read, see `config`."""
        self.gateway.config.write_text(config(self.lab, self.shape, **changes))
        self.ask("reload", patience=60.0)

    def kinds(self) -> Counter[str]:
        """What connections the gateway has, as far as it matters to somebody who wonders what keeps them.

        Their place, server and state, what the kernel's table has them as, and from how many seconds on
        they have been idle, by powers of two.
        """
        known = self.ask("connections", {"limit": 10_000})
        with entered(self.lab.gateway.namespace), closing(Conntrack()) as table:
            entries = {
                _from(entry.protocol == TCP, client_of(entry.inbound), client_port_of(entry.inbound)): entry
                for entry in table.entries(Gateway(("",), ("",)).mark_mask)
            }
        kinds: Counter[str] = Counter()
        for row in known:
            client = ip_address(row["client"]).packed
            entry = entries.get(_from(row["protocol"] == "tcp", client, row["client_port"]))
            kept = f"state {entry.tcp_state}, status {entry.status:#x}" if entry is not None else "no entry"
            idle = 1 << int(row["idle_s"]).bit_length() >> 1
            kinds[f"{row['virtual']} at {row['real']}, {row['state']}, idle {idle} s; {kept}"] += 1
        return kinds

    # ---- Traffic

    def invite(self, chance: random.Random) -> None:
        """Start the visitors of every client but the hostile one."""
        digest = document(self.lab, "film", self.size.mebibytes)
        for client in self.lab.clients[:-1]:
            words = asdict(self.size)
            words.pop("mebibytes")
            sources = (client.address, client.address6)
            plan = Plan(PLACES, sources, film="film", digest=digest, seed=chance.getrandbits(32), **words)
            self.crowd.append(self._start(client, "tests.soak.visitors", json.dumps(asdict(plan))))
        for program in self.crowd:
            program.wait_for(program.out, "\n")

    def _start(self, host: Host, module: str, *words: str) -> Program:
        paths = os.pathsep.join((str(_PACKAGE), python_path()["PYTHONPATH"]))
        return host.start(sys.executable, "-m", module, *words, environment={"PYTHONPATH": paths})

    def rest(self) -> tuple[Counts, list[Loss]]:
        """Have the visitors rest; what they have counted since the beginning, and what was lost since the
        last rest."""
        self._accounts += 1
        self._ask_no_more()
        for program in self.crowd:
            assert program.running, program.stderr
            program.send(signal.SIGUSR1)
        for program in self.crowd:
            wait_until(lambda p=program: len(told(p)) >= self._accounts or not p.running, "rest", timeout=120)  # type: ignore[misc]
            assert program.running, program.stderr
        accounts = [json.loads(told(program)[-1]) for program in self.crowd]
        return Counts.of(accounts), [Loss(**loss) for each in accounts for loss in each["losses"]]

    def go_on(self) -> None:
        """Have them go on."""
        for program in self.crowd:
            program.send(signal.SIGUSR2)
        if self.shape.queries:
            # not from where visitors are: they choose ports by themselves
            words = ("-s", VIP, "-p", str(MANY), "-Q", str(self.shape.queries), "-c", "20", "-l", "600", "-W")
            given = self.lab.directory / "queries"
            given.write_text("who.test TXT\n")
            self.asker = self.hostile.start("dnsperf", *words, "-d", str(given), ending=signal.SIGINT)

    def _ask_no_more(self) -> None:
        if self.asker is not None:
            self.asker.stop()
            found = re.findall(r"Queries (sent|completed|lost): +(\d+)", self.asker.stdout)
            self.queries.update({name: int(count) for name, count in found})
            self.asker = None

    def molest(self, seed: int, rate: float) -> None:
        """Begin to send damaged packets."""
        mac = self.lab.gateway.run("cat", "/sys/class/net/outside/address").stdout.strip()
        self.trickle = self._start(self.hostile, "tests.soak.hostile", str(seed), str(rate), "outside", mac)

    def leave_alone(self) -> None:
        """Send no more of them."""
        if self.trickle is not None:
            assert self.trickle.stop() == 0, self.trickle.stderr
            self.malformed += int(self.trickle.stdout)
            self.trickle = None

    def served(self) -> dict[str, int]:
        """How many requests for a page each server has answered, by its own log."""
        for server in self.lab.servers:
            with (home(self.lab, server) / "access.log").open("rb") as log:
                log.seek(self._read.get(server, 0))
                lines = log.read()
                self._read[server] = log.tell()
            pages = lines.count(b" GET /page 200\n")
            self._logged[server.name] = self._logged.get(server.name, 0) + pages
        return dict(self._logged)

    def lay_routes(self) -> None:
        """So that what answers a flood has somewhere to go."""
        self.lab.gateway.run("ip", "route", "replace", SOURCES, "via", self.hostile.address)

    def revive(self, server: Host) -> None:
        """Start a web server again that was killed."""
        pid = home(self.lab, server) / "nginx.pid"
        pid.unlink(missing_ok=True)
        program = server.start(*self.web[server.name].argv, ending=signal.SIGKILL)
        program.wait_for(pid, "\n")
        self.web[server.name] = program

    @property
    def said(self) -> str:
        """All that the gateways have written."""
        return "".join(program.stderr for program in self.logs)


#: What a gateway says that will answer soon, and what is said where there is none yet.
WAITING = frozenset(
    (
        "worker-restarting", "not-running", "degraded", "closed", "timeout", "unreachable", "busy",
        "worker-busy", "too-many-clients",
    )
)  # fmt: skip


def told(program: Program) -> list[str]:
    """The accounts that visitors have written, complete lines alone."""
    return program.stdout.split("\n")[1:-1]


@contextmanager
def site(shape: Shape, size: Size) -> Iterator[Site]:
    """All of it, running, for the time of the context."""
    datapath: Datapath = "rewrite" if shape.datapath == "both" else shape.datapath
    with Bench(datapath, clients=3, servers=3, ipv6=True) as lab:
        web = {server.name: serve(lab, server) for server in lab.servers}
        for server in lab.servers:
            name_server(server)
            server.start(sys.executable, str(Path(__file__).with_name("echo.py")), server.name, str(ECHO))
        for interface in ("outside", "inside"):
            lab.gateway.sysctl(f"net.ipv6.conf.{interface}.keep_addr_on_down", "1")
        before = traces(lab)
        with balancing(lab, config(lab, shape)) as gateway:
            found = Site(lab, gateway, web, size, shape)
            found.lay_routes()
            found.before = before
            yield found


