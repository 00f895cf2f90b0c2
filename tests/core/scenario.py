"""Conversations with a director, in the words of the trade: clients call, servers answer.

Owns `Scenario` (a director with a clock that the test moves), `Call` (one client's TCP
conversation) and `Flow` (one client's over UDP). They make nothing but packets' facts, by arithmetic
of their own on addresses and ports, so that a mistake in the core's keys cannot hide in them.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, ip_address
from typing import Any, Self

from nfqlb.core import spec
from nfqlb.core.carrier import Carrier
from nfqlb.core.chronicle import Keeper
from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.explanation import Wanted
from nfqlb.core.recorder import Recorder
from nfqlb.core.segment import ACK, FIN, NO_STAMP, RST, SYN, Segment, Stamp
from nfqlb.core.snapshot import ConnectionSnapshot, DecisionSnapshot, RealSnapshot, VirtualSnapshot
from nfqlb.core.verdict import Drop, Outcome, Pass

VIP = "203.0.113.1"
PUSH = 0x08
_WRAP = 0xFFFF_FFFF


def address_of(name: str) -> IPv4Address:
    """Servers "a" to "z" are 10.0.0.1 to 10.0.0.26; "s0" to "s65535" are 10.1.0.0 to 10.1.255.255."""
    if name[1:].isdigit():
        return IPv4Address(f"10.1.{int(name[1:]) >> 8}.{int(name[1:]) & 0xFF}")
    return IPv4Address(f"10.0.0.{ord(name) - ord('a') + 1}")


def real(
    name: str, *, weight: float = 1, max_connections: int = 0, idle_timeout: float = 3600.0
) -> spec.Real:
    """A real server."""
    return spec.Real(
        name, address_of(name), weight=weight, max_connections=max_connections, idle_timeout=idle_timeout
    )


def reals(names: Iterable[str]) -> list[spec.Real]:
    """Real servers that differ in nothing but name and address."""
    return [real(name) for name in names]


def virtual(
    name: str,
    servers: Iterable[str],
    *,
    address: str = VIP,
    port: int | None = 80,
    protocol: str = "tcp",
    scheduler: str = "round-robin",
    sticky: float = 0.0,
    sticky_mask: int = 32,
    sticky_group: str = "",
) -> spec.Virtual:
    """A virtual server; its servers are "a" or, on a port of their own, "a:8080". Port None: every port."""
    places = [server.partition(":") for server in servers]
    return spec.Virtual(
        name,
        ip_address(address),
        tuple(spec.Server(real, int(own) if own else port) for real, _, own in places),
        protocol=protocol,
        port=port,
        scheduler=scheduler,
        sticky=sticky,
        sticky_mask=sticky_mask,
        sticky_group=sticky_group,
    )


class Scenario:
    """A gateway's director, and a clock (`now`, seconds) that only `wait` moves.

    `wall` is what the kernel's clock, which stamps the packets, is ahead of it; None: no stamps.
    """

    def __init__(
        self,
        virtuals: spec.Virtual | Sequence[spec.Virtual],
        real_servers: Iterable[spec.Real],
        *,
        half_open: float = 30.0,
        closing: float = 10.0,
        udp: float = 30.0,
        max_connections: int = 1000,
        max_sticky: int = 1000,
        recorder: Recorder | None = None,
        keeper: Keeper | None = None,
        carrier: Carrier | None = None,
        strict: spec.Strict | None = None,
        count_on: str = "syn",
        close_on: str = "both",
        now: float = 5000.0,
    ) -> None:
        several = [virtuals] if isinstance(virtuals, spec.Virtual) else list(virtuals)
        self.config = spec.Config(
            spec.Gateway(
                ("eth0",),
                ("eth1",),
                max_connections=max_connections,
                max_sticky=max_sticky,
                count_on=count_on,
                close_on=close_on,
            ),
            tuple(real_servers),
            tuple(several),
            spec.Timeouts(half_open=half_open, closing=closing, udp=udp),
            strict or spec.Strict(),
        )
        self.now = now
        self.director = Director(self.config, now=now, recorder=recorder, keeper=keeper, carrier=carrier)
        self.wall: float | None = 1_700_000_000.0
        self._port = 40_000

    def stamp(self) -> Stamp:
        """When the kernel receives a packet now."""
        if self.wall is None:
            return NO_STAMP
        return divmod(round((self.now + self.wall) * 1_000_000), 1_000_000)

    def call(
        self, to: str = "", *, client: str = "192.0.2.1", port: int | None = None, isn: int = 1000,
        at: int = 0,
    ) -> "Call":  # fmt: skip
        """A client about to call a virtual server (the first, if none is named) from a port of its own.

        `at` is the port that it calls where the virtual server has none.
        """
        wanted = [each for each in self.config.virtuals if to in ("", each.name)]
        if port is None:
            self._port += 1
            port = self._port
        return Call(self, client, port, wanted[0], isn, at)

    def flow(
        self, to: str = "", *, client: str = "192.0.2.1", port: int | None = None, at: int = 0
    ) -> "Flow":
        """A client about to send datagrams; as `call`."""
        wanted = [each for each in self.config.virtuals if to in ("", each.name)]
        if port is None:
            self._port += 1
            port = self._port
        return Flow(self, client, port, wanted[0], at)

    def dial(
        self, to: str = "", *, client: str = "192.0.2.1", port: int | None = None, isn: int = 1000,
        at: int = 0,
    ) -> "Call":  # fmt: skip
        """A client's SYN, and what came of it."""
        return self.call(to, client=client, port=port, isn=isn, at=at).syn()

    def connect(
        self, to: str = "", *, client: str = "192.0.2.1", port: int | None = None, isn: int = 1000,
        at: int = 0,
    ) -> "Call":  # fmt: skip
        """A connection, established."""
        return self.dial(to, client=client, port=port, isn=isn, at=at).syn_ack().ack()

    def wait(self, seconds: float) -> None:
        """Let time pass; what has timed out by then ends."""
        self.now += seconds
        while self.director.tick(self.now):
            pass
        self.director.recount(self.now)

    # --- what can be seen

    def real(self, name: str) -> RealSnapshot:
        """A real server as operators see it."""
        return next(each for each in self.director.reals(self.now) if each.name == name)

    def virtual(self, name: str = "") -> VirtualSnapshot:
        """A virtual server as operators see it."""
        return next(each for each in self.director.virtuals(self.now) if name in ("", each.name))

    def loads(self) -> dict[str, int]:
        """Live connections by real server."""
        return {each.name: each.connections for each in self.director.reals(self.now)}

    def connections(self, *, client: str | None = None, to: str | None = None) -> list[ConnectionSnapshot]:
        """Every connection in the table, or those of one client or virtual server."""
        wanted = ip_address(client) if client else None
        return self.director.connections(self.now, limit=10_000, client=wanted, virtual=to)

    def decisions(self, limit: int = 10_000, **wanted: Any) -> list[DecisionSnapshot]:
        """The recorded decisions, newest first; `wanted` as `explanation.Wanted` has it."""
        return list(self.director.decisions(self.now, limit=limit, wanted=Wanted(**wanted)))

    def why(self, to: str | None = None) -> DecisionSnapshot:
        """The last decision, explained; that of a virtual server where several were made at this moment."""
        return self.decisions(1, virtual=to)[0]

    def drops(self) -> dict[str, int]:
        """Packets dropped, by reason."""
        return self.director.totals().drops


class Judged:
    """What became of the last packet that was put to the director: `outcome` is what it said."""

    outcome: Outcome | None = None

    @property
    def connection(self) -> Connection:
        """The connection that the last packet was found to belong to."""
        assert isinstance(self.outcome, Connection), self.outcome
        return self.outcome

    @property
    def server(self) -> str:
        """Who serves it."""
        return self.connection.link.real.spec.name

    @property
    def refused(self) -> Drop | Pass | None:
        """Why the last packet was refused; None if it was not."""
        return None if isinstance(self.outcome, Connection) else self.outcome

    @property
    def state(self) -> str:
        """The state of its connection as operators see it."""
        return self.connection.state.shown


class Call(Judged):
    """One client's TCP conversation with a virtual server, both sides of it.

    Every method sends one segment through the director and returns the call; `outcome` is
    what the director said of the last one.
    """

    def __init__(
        self, scenario: Scenario, client: str, port: int, wanted: spec.Virtual, isn: int, at: int = 0
    ) -> None:
        self._scenario = scenario
        self._client = ip_address(client).packed
        self._port = port.to_bytes(2, "big")
        self._at = wanted.port or at
        self.key = self._client + wanted.address.packed + self._port + self._at.to_bytes(2, "big")
        self.isn = isn
        self.client_next = isn
        self.server_next = 0
        self._answering = b""

    # --- what became of it

    @property
    def reply_key(self) -> bytes:
        """The key of a server's packet, as the server sends it."""
        return self._answering

    # --- both sides

    def close(self) -> Self:
        """Both sides end it in good order, the client first."""
        return self.fin().server_fin().ack()

    # --- what the client sends

    def syn(self, isn: int | None = None) -> Self:
        """The client's SYN, or the same once more; with another `isn` a new attempt from the same port."""
        if isn is not None:
            self.isn = isn
        self.client_next = (self.isn + 1) & _WRAP
        segment = Segment(self.key, SYN, _numbers(self.isn, 0), 0, self._scenario.stamp())
        self.outcome = self._scenario.director.client_syn(segment, self._scenario.now)
        if isinstance(self.outcome, Connection):
            link = self.outcome.link
            address, port = link.real.spec.address.packed, (link.port or self._at).to_bytes(2, "big")
            self._answering = address + self._client + port + self._port
        return self

    def ack(self) -> Self:
        """The client acknowledges all it has got."""
        return self.client_sends(ACK)

    def says(self, size: int = 100) -> Self:
        """The client sends data."""
        self.client_sends(ACK | PUSH, size=size)
        self.client_next = (self.client_next + size) & _WRAP
        return self

    def fin(self) -> Self:
        """The client has no more to send."""
        self.client_sends(FIN | ACK)
        self.client_next = (self.client_next + 1) & _WRAP
        return self

    def reset(self, past: int = 0) -> Self:
        """The client aborts, with a sequence number so far past its next one."""
        return self.client_sends(RST, sequence=self.client_next + past)

    def client_sends(
        self, flags: int, *, sequence: int | None = None, acknowledges: int | None = None, size: int = 0
    ) -> Self:
        """Any segment from the client line, whoever may have sent it."""
        number = self.client_next if sequence is None else sequence
        numbers = _numbers(number, self.server_next if acknowledges is None else acknowledges)
        segment = Segment(self.key, flags, numbers, size, self._scenario.stamp())
        self.outcome = self._scenario.director.client_segment(segment, self._scenario.now)
        return self

    # --- what the server sends

    def syn_ack(self, isn: int = 700_000) -> Self:
        """The server accepts."""
        self.server_next = isn
        self.server_sends(SYN | ACK)
        self.server_next = (isn + 1) & _WRAP
        return self

    def hears(self, size: int = 1000) -> Self:
        """The server sends data."""
        self.server_sends(ACK | PUSH, size=size)
        self.server_next = (self.server_next + size) & _WRAP
        return self

    def server_ack(self) -> Self:
        """The server acknowledges all it has got."""
        return self.server_sends(ACK)

    def server_fin(self) -> Self:
        """The server has no more to send."""
        self.server_sends(FIN | ACK)
        self.server_next = (self.server_next + 1) & _WRAP
        return self

    def server_reset(self, past: int = 0) -> Self:
        """The server aborts, with a sequence number so far past its next one."""
        return self.server_sends(RST, sequence=self.server_next + past)

    def refusal(self) -> Self:
        """The server's answer to a SYN for a port where nobody listens."""
        return self.server_sends(RST | ACK, sequence=0)

    def server_sends(
        self, flags: int, *, sequence: int | None = None, acknowledges: int | None = None, size: int = 0
    ) -> Self:
        """Any segment in reply direction from the server line."""
        number = self.server_next if sequence is None else sequence
        numbers = _numbers(number, self.client_next if acknowledges is None else acknowledges)
        segment = Segment(self._answering, flags, numbers, size, self._scenario.stamp())
        self.outcome = self._scenario.director.server_segment(segment, self._scenario.now)
        return self


class Flow(Judged):
    """One client's datagrams to a virtual server, and the server's answers.

    Every method sends one datagram through the director and returns the flow; `outcome` is what the
    director said of the last one.
    """

    def __init__(self, scenario: Scenario, client: str, port: int, wanted: spec.Virtual, at: int) -> None:
        self._scenario = scenario
        self._client = ip_address(client).packed
        self._port = port.to_bytes(2, "big")
        self._at = (wanted.port or at).to_bytes(2, "big")
        self.key = self._client + wanted.address.packed + self._port + self._at + b"\x11"
        self.answering = b""

    def asks(self) -> Self:
        """The client sends a datagram."""
        self.outcome = self._scenario.director.client_datagram(self.key, self._scenario.now)
        if isinstance(self.outcome, Connection):
            link = self.outcome.link
            port = link.port.to_bytes(2, "big") if link.port else self._at
            self.answering = link.real.spec.address.packed + self._client + port + self._port + b"\x11"
        return self

    def answers(self) -> Self:
        """The server that got its last datagram sends one back."""
        self.outcome = self._scenario.director.server_datagram(self.answering, self._scenario.now)
        return self


def _numbers(sequence: int, acknowledgement: int) -> bytes:
    return (sequence & _WRAP).to_bytes(4, "big") + (acknowledgement & _WRAP).to_bytes(4, "big")
