"""What the doctor looks at beside the facts that a start depends on: what runs, and what has gone wrong.

Nothing here judges (`diagnosis` does) or changes anything. Two questions are asked on the networks: who
has an address (`solicit`), and whether servers take connections. What cannot be looked at is noted, by the
area that it belongs to, and does not keep the rest from being looked at.
"""

import contextlib
import errno
import os
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from nfqlb.core.spec import Address, Config
from nfqlb.netfilter import basechains, clock, conntrack, ethtool, rules, solicit, sysctl
from nfqlb.netfilter.basechains import BaseChain
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.facts import Facts
from nfqlb.netfilter.iptables import Iptables
from nfqlb.netfilter.procfs import listeners
from nfqlb.netfilter.render import FAMILIES
from nfqlb.netfilter.ruleset import Table, parse
from nfqlb.netfilter.solicit import Question

_PATIENCE = 0.6  # seconds that servers and neighbours get to answer
_MOST = 256  # questions of each kind at most: what is asked must not be a flood
_IPVS = Path("/proc/net/ip_vs")

Place = tuple[Address, int]


@dataclass(slots=True)
class Vitals:
    """What was found; None and empty where it was not looked for, or could not be (`unseen`, by area).

    `differences` is what is wrong with the rules of a running gateway. `tables` are the live ones by
    program. `alone` is for how many seconds a worker without supervisor goes on. `tracked` is how many
    connections the kernel tracks, how many it may, and what it has lost since the machine was started. `macs`
    are by address, "" for no answer; `others` are machines that claim a virtual address. `ports` says of each
    server "" where it takes connections, or else why not.
    """

    running: bool
    alone: float | None = None
    forwarding: Mapping[str, str] = field(default_factory=dict)
    differences: list[str] | None = None
    tables: dict[str, dict[str, Table]] = field(default_factory=dict)
    chains: list[BaseChain] = field(default_factory=list)
    features: dict[str, dict[str, bool]] = field(default_factory=dict)
    drivers: dict[str, str] = field(default_factory=dict)
    cables: dict[str, bool] = field(default_factory=dict)
    tracked: tuple[int, int, int] | None = None
    synchronised: bool | None = None
    macs: dict[Address, str] = field(default_factory=dict)
    others: dict[Address, str] = field(default_factory=dict)
    ports: dict[Place, str] = field(default_factory=dict)
    listeners: list[str] = field(default_factory=list)
    ipvs: list[str] = field(default_factory=list)
    files: int = 0
    memory: int = 0
    unseen: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def looking(self, area: str) -> Iterator[None]:
        """What fails inside is noted under its area."""
        try:
            yield
        except (KernelError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.unseen[area] = reason or type(error).__name__


def read(config: Config, facts: Facts, *, running: bool) -> Vitals:
    """Looks at everything, within about a second. `running`: a gateway with this configuration is."""
    vitals = Vitals(running)
    knocking = _Knocking(config)
    asking = Thread(target=_ask, args=(config, facts, vitals))  # which is waiting, nothing else
    asking.start()
    looks: tuple[tuple[str, Callable[[Config, Facts, Vitals], None]], ...] = (
        ("forwarding", _forwarding),
        ("rules", _rules),
        ("firewall", _firewall),
        ("offloads", _offloads),
        ("interfaces", _cables),
        ("conntrack", _tracked),
        ("clock", _clock),
        ("balancers", _balancers),
        ("limits", _limits),
    )
    for area, look in looks:
        with vitals.looking(area):
            look(config, facts, vitals)
    with vitals.looking("servers"):
        vitals.ports = knocking.ends()
    asking.join()
    return vitals


def _ask(config: Config, facts: Facts, vitals: Vitals) -> None:
    with vitals.looking("neighbours"):
        _neighbours(config, facts, vitals)


def _forwarding(config: Config, _facts: Facts, vitals: Vitals) -> None:
    vitals.forwarding = sysctl.overwritten(sysctl.forwarding(config))


def _rules(config: Config, _facts: Facts, vitals: Vitals) -> None:
    if vitals.running:
        vitals.differences = rules.verify(config)


def _firewall(_config: Config, facts: Facts, vitals: Vitals) -> None:
    for family in FAMILIES if facts.iptables else ():
        tables = Iptables(family.program)
        if tables.installed:
            with contextlib.suppress(KernelError):  # a kernel without IPv6 cannot list its tables
                vitals.tables[family.program] = parse(tables.save())
    if not vitals.tables and facts.iptables:
        raise KernelError("the rules cannot be listed; run as root, or with CAP_NET_ADMIN")
    with contextlib.suppress(KernelError):  # no nftables, no such chains
        vitals.chains = basechains.foreign()


def _offloads(config: Config, facts: Facts, vitals: Vitals) -> None:
    for name in _interfaces(config, facts):
        vitals.features[name] = ethtool.features(name)
        with contextlib.suppress(OSError):
            vitals.drivers[name] = ethtool.driver(name)


def _cables(config: Config, facts: Facts, vitals: Vitals) -> None:
    for name in _interfaces(config, facts):
        with contextlib.suppress(OSError):  # one that is down does not say
            vitals.cables[name] = Path(f"/sys/class/net/{name}/carrier").read_text() != "0\n"
    if not Path("/sys/class/net").exists():
        raise KernelError("/sys is not there")


def _tracked(_config: Config, _facts: Facts, vitals: Vitals) -> None:
    now, limit = conntrack.room()
    lost = 0
    with contextlib.suppress(OSError):
        lost = sum(conntrack.losses().values())
    vitals.tracked = now, limit, lost


def _clock(_config: Config, _facts: Facts, vitals: Vitals) -> None:
    vitals.synchronised = clock.synchronised()


def _balancers(config: Config, _facts: Facts, vitals: Vitals) -> None:
    addresses = {virtual.address for virtual in config.virtuals}
    vitals.listeners = [str(found) for found in listeners() if found.address in addresses]
    with contextlib.suppress(FileNotFoundError):
        text = _IPVS.read_text(encoding="ascii")
        vitals.ipvs = [line for line in text.splitlines() if line.startswith(("TCP", "UDP", "FWM"))]


def _limits(_config: Config, _facts: Facts, vitals: Vitals) -> None:
    vitals.files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            vitals.memory = int(line.split()[1]) * 1024


def _neighbours(config: Config, facts: Facts, vitals: Vitals) -> None:
    """Servers on a link of this machine, and whether a virtual address is somebody else's there too."""
    here = {entry.address.ip for entry in facts.addresses}
    asked = [*_servers(config, facts), *_claims(config, facts)][:_MOST]
    if not asked:
        return
    found = solicit.ask(asked, _PATIENCE)
    for question in asked:
        mac = found.get(question, "")
        if question.source is not None:
            vitals.macs[question.address] = mac
        elif mac and (question.address not in here or vitals.running):
            vitals.others[question.address] = mac


def _servers(config: Config, facts: Facts) -> Iterator[Question]:
    for real in config.reals:
        route = facts.routes.get(real.address)
        interface = facts.interfaces.get(route.interface) if route and not route.local else None
        if interface is None or not interface.up or not interface.ethernet:
            continue
        for entry in facts.addresses:
            if entry.interface == interface.name and not entry.ours and real.address in entry.address.network:
                yield Question(interface.name, real.address, entry.address.ip)
                break


def _claims(config: Config, facts: Facts) -> Iterator[Question]:
    for address in dict.fromkeys(virtual.address for virtual in config.virtuals):
        for entry in facts.addresses:
            interface = facts.interfaces.get(entry.interface)
            near = entry.interface in config.gateway.outside and address in entry.address.network
            if near and not entry.ours and interface is not None and interface.up and interface.ethernet:
                yield Question(entry.interface, address, None)
                break


class _Knocking:
    """Connections to every TCP port that stands behind a virtual server, opened at once and closed unused."""

    def __init__(self, config: Config) -> None:
        self._selector = selectors.DefaultSelector()
        self._found: dict[Place, str] = {}
        self._unseen = ""
        self._deadline = time.monotonic() + _PATIENCE
        places = {
            (config.real(server.real).address, server.port): None
            for virtual in config.virtuals
            if virtual.protocol == "tcp"
            for server in config.places(virtual)
            if server.port is not None
        }
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        for address, port in list(places)[: min(_MOST, files // 4)]:  # others need some as well
            if port is not None:
                self._knock((address, port))

    def _knock(self, place: Place) -> None:
        try:
            sock = socket.socket(socket.AF_INET if place[0].version == 4 else socket.AF_INET6)
        except OSError as error:
            self._unseen = f"no socket for {place[0]}: {error.strerror}"
            return
        sock.setblocking(False)
        code = sock.connect_ex((str(place[0]), place[1]))
        if code == errno.EINPROGRESS:
            self._selector.register(sock, selectors.EVENT_WRITE, place)
        else:
            sock.close()
            self._found[place] = os.strerror(code) if code else ""

    def ends(self) -> dict[Place, str]:
        """What came of them; waits for those that are still open, as long as servers get.

        Raises KernelError where some could not be opened.
        """
        while ready := self._selector.select(max(0.0, self._deadline - time.monotonic())):
            for key, _ in ready:
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self._end(sock, key.data, os.strerror(code) if code else "")
            if not self._selector.get_map():
                break
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            self._end(key.fileobj, key.data, f"no answer within {_PATIENCE:g} s")
        self._selector.close()
        if self._unseen:
            raise KernelError(self._unseen)
        return self._found

    def _end(self, sock: socket.socket, place: Place, how: str) -> None:
        self._selector.unregister(sock)
        sock.close()
        self._found[place] = how


def _interfaces(config: Config, facts: Facts) -> list[str]:
    names = dict.fromkeys(config.gateway.outside + config.gateway.inside)
    return [name for name in names if name in facts.interfaces]
