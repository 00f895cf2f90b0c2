"""What the operator asked for, as frozen values.

Owns the specifications that a configuration file is parsed into; the core is built from
them and never changes them. Everything here is already checked: names resolve, ports are
filled in, time-outs are seconds. Running state lives in the objects built from a spec.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address
#: What clients send to: an address, a protocol, and a port (None: every one).
Service = tuple[Address, str, int | None]

REWRITE = "rewrite"
"""The datapath in which every packet is seen, and changed, by the core's worker."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """`[gateway]`: the appliance itself. `outside` and `inside` are interface names."""

    outside: tuple[str, ...]
    inside: tuple[str, ...]
    datapath: str = REWRITE
    max_connections: int = 1_000_000
    max_sticky: int = 1_000_000
    queue: int = 0
    mark_mask: int = 0x00FF0000
    socket: str = "/run/nfqlb/control.sock"
    secure: bool = False
    reject: str = "drop"
    count_on: str = "syn"
    close_on: str = "both"
    other_ports: str = "drop"
    metrics: str = ""
    fallback: bool = True
    hold_addresses: bool = True


@dataclass(frozen=True, slots=True)
class Timeouts:
    """`[timeouts]`, all in seconds (A24)."""

    idle: float = 3600.0
    half_open: float = 30.0
    closing: float = 10.0
    udp: float = 30.0


@dataclass(frozen=True, slots=True)
class Real:
    """`[[real]]`: one physical machine. Limits of 0 mean "no limit".

    `idle_timeout` is in seconds and already resolved: where the file names none, it is
    the one of `[timeouts]`. `backup_when` is "failed" or "full", which is also while failed (A27).
    """

    name: str
    address: Address
    weight: float = 1
    max_connections: int = 0
    syn_limit: int = 5
    failure_threshold: int = 8
    failure_clients: int = 2
    attempts: int = 3
    reset_counts: bool = True
    retry: float = 60.0
    idle_timeout: float = 3600.0
    backup: str = ""
    backup_when: str = "failed"


@dataclass(frozen=True, slots=True)
class Server:
    """One entry of a virtual server's `servers`: which real server, and on which port.

    `port` is the real server's own port, already filled in from the virtual server's where
    the file names none; None where the virtual server answers on every port.
    """

    real: str
    port: int | None


@dataclass(frozen=True, slots=True)
class Virtual:
    """`[[virtual]]`: one virtual server (the patent's virtual machine).

    `port` None means every port. `sticky` is in seconds, 0 is off; `sticky_mask` is a
    prefix length. `ageing` divides the age of a response time, `clamp` is in per cent, 0 is off (A16);
    `synguard` are half-open connections, `synguard_rate` new ones a second, 0 is no limit;
    `synguard_share` is in per cent. `predict` is "now" or "next" (A15b), `response_start` is "request",
    "syn" or "syn-ack" (R084).
    """

    name: str
    address: Address
    servers: tuple[Server, ...]
    protocol: str = "tcp"
    port: int | None = None
    scheduler: str = "weighted-least-connections"
    startup: str = "none"
    startup_share: float = 50.0
    startup_time: float = 60.0
    startup_test: str = "chosen"
    sticky: float = 0.0
    sticky_mask: int = 32
    sticky_group: str = ""
    sticky_refresh: str = "assignment"
    sticky_ditched: str = "break"
    ageing: float = 4.0
    clamp: float = 0.0
    predict: str = "now"
    response_start: str = "request"
    backup: str = ""
    reject: str = "drop"
    on_failure: str = "keep"
    synguard: int = 0
    synguard_rate: float = 0.0
    synguard_share: float = 25.0
    shadow: str = ""
    datapath: str = REWRITE

    @property
    def service(self) -> Service:
        """What its clients send to: by that it is the same one in another configuration."""
        return self.address, self.protocol, self.port


@dataclass(frozen=True, slots=True)
class Strict:
    """`[strict]`: the literal reading of a disputed sentence, one switch each."""

    syn_limit: bool = False
    ratio: bool = False
    every_packet: bool = False
    refresh: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where a link leads: all that the kernel needs to know of it, so virtual servers share them."""

    address: Address
    protocol: str
    port: int | None
    timed: bool
    idle_timeout: float


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a running gateway has numbered in the kernel, and keeps as it is when it is reconfigured.

    `datapaths` are those that are bound, `marks` the numbers of links and `idle` the idle time-outs (whole
    seconds) in the order in which the kernel has them.
    """

    datapaths: tuple[str, ...] = ()
    marks: tuple[tuple[Target, int], ...] = ()
    idle: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Leaving:
    """What is not in the configuration any more, but still has connections: it drains.

    Names of real and of virtual servers, and places in virtual servers by the latter's name.
    """

    reals: frozenset[str] = frozenset()
    virtuals: frozenset[str] = frozenset()
    places: tuple[tuple[str, Server], ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """A whole, valid configuration.

    What a file says has neither `leaving` nor `numbers`; those are of a gateway that was reconfigured while
    it runs. What is leaving stands among `reals` and `virtuals` too, the latter without `servers`.
    """

    gateway: Gateway
    reals: tuple[Real, ...]
    virtuals: tuple[Virtual, ...]
    timeouts: Timeouts = field(default_factory=Timeouts)
    strict: Strict = field(default_factory=Strict)
    leaving: Leaving = field(default_factory=Leaving)
    numbers: Numbers = field(default_factory=Numbers)

    def real(self, name: str) -> Real:
        """The real server of that name. Raises KeyError."""
        for real in self.reals:
            if real.name == name:
                return real
        raise KeyError(name)

    def places(self, virtual: Virtual) -> list[Server]:
        """Every place that may ever serve a virtual server: its servers, their backups, its own backup (A27).

        A backup serves on the port of the server that it stands for, a virtual server's own backup on
        the virtual server's. Those that are leaving come last. Raises KeyError.
        """
        found = list(virtual.servers)
        for server in virtual.servers:
            backup = self.real(server.real).backup
            while backup:
                found.append(Server(backup, server.port))
                backup = self.real(backup).backup
        if virtual.backup:
            found.append(Server(virtual.backup, virtual.port))
        return list(dict.fromkeys(found + self.leaving_places(virtual)))

    def leaving_places(self, virtual: Virtual) -> list[Server]:
        """The places that are leaving a virtual server."""
        return [place for name, place in self.leaving.places if name == virtual.name]
