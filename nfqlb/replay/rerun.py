"""A capture's packets through a director of another configuration, one after the other.

Owns `Rerun`: the clock, which is the capture's, and what is noted of every decision. Servers are assumed to
answer as they did in the capture, whoever has the connection now. Response times are not taken from
that: they are the `mirror`'s.
"""

from collections import Counter
from typing import NamedTuple

from nfqlb.core import spec
from nfqlb.core.connection import Connection
from nfqlb.core.decision import Decision
from nfqlb.core.director import Director
from nfqlb.core.keys import client_of, flipped, inbound_key, port_of, protocol_of
from nfqlb.core.segment import Stamp
from nfqlb.core.server import Link, VirtualServer
from nfqlb.packet.sight import Seen
from nfqlb.replay.evidence import Evidence, Sides
from nfqlb.replay.mirror import Mirror, answer, replies_to

#: When the servers came into service, and when the capture begins (seconds): long after that.
_SERVING, _BEGIN = 1000.0, 1e6
#: As in the worker: packets of so many seconds share a time, and time-outs are looked at so often.
_GRAIN, _TICK = 0.05, 0.25
#: A pause is gone through in so many steps at most.
_STEPS = 10_000


class Placed(NamedTuple):
    """A decision: about whom, where the capture has the connection, and where it went now.

    `at` is the packet's stamp. `captured` is the server's address and port, empty where the capture does not
    tell; `link` is the server that has it now, None where it was refused; `decision` is the core's record.
    """

    at: Stamp
    virtual: VirtualServer
    key: bytes
    captured: bytes
    link: Link | None
    decision: Decision

    @property
    def again(self) -> bool:
        """Whether it was sent on, as an earlier server had not answered."""
        return self.decision.avoid is not None

    @property
    def server(self) -> bytes:
        """The address and port of the server that has it, empty where it was refused."""
        if self.link is None:
            return b""
        port = self.link.port or port_of(self.key)
        return self.link.real.address + port.to_bytes(2, "big")


class Load:
    """How many connections a place was given, and had at once at most."""

    __slots__ = ("given", "most")

    def __init__(self) -> None:
        self.given = 0
        self.most = 0

    def add(self, link: Link) -> None:
        """One more."""
        self.given += 1
        self.most = max(self.most, link.connections)


class Rerun:
    """One run. Packets are put to it in the order of the capture, by their number there.

    `earlier` counts the connections that were open before the capture began, `unmodelled` what their clients
    sent: nothing is known of their opening, so they are left out. `captured` and `replayed` are loads by
    link, `elsewhere` the connections of servers that this configuration does not have, by virtual server and
    address and port.
    """

    def __init__(self, config: spec.Config) -> None:
        self.director = Director(config, now=_SERVING)
        self.placed: list[Placed] = []
        self.captured: dict[tuple[str, bytes], Load] = {}
        self.replayed: dict[tuple[str, bytes], Load] = {}
        self.elsewhere: Counter[tuple[str, bytes]] = Counter()
        self.responses: dict[str, list[float]] = {name: [] for name in self.director.real_servers}
        self._config = config
        self.unmodelled = 0
        self._earlier: set[bytes] = set()
        self._opened: set[bytes] = set()  # keys of what began in the capture, also where it was refused
        self._sides = Sides(outside=True, answers_inside=False, handshakes=False)
        self._now = _BEGIN
        self._ticked = _BEGIN
        self._first: Stamp = ()
        self._calls: dict[bytes, bytes] = {}  # by the key of what servers send, that of what the client sends

    @property
    def earlier(self) -> int:
        """How many connections were left out."""
        return len(self._earlier)

    def begin(self, evidence: Evidence) -> None:
        """The capture has been read once."""
        self._evidence = evidence
        self._sides = evidence.sides
        self._mirror = Mirror(self._config, _SERVING, handshakes=self._sides.handshakes)

    def put(self, seen: Seen, number: int) -> None:
        """The next packet, which has this number in the capture."""
        key = self._client_key(seen)
        if key is not None:
            self._pass_time(seen.stamp)
            self._client(key, seen, number)
            return
        key = self._served_key(seen)
        if key is not None:
            self._pass_time(seen.stamp)
            self._server(key, seen)

    # --- whose packet it is

    def _client_key(self, seen: Seen) -> bytes | None:
        """The key under which a client's packet came to a virtual server; None where it is no such packet."""
        destinations = self.director.destinations
        if self._sides.outside:
            return seen.key if destinations.find(seen.key) is not None else None
        virtual = destinations.behind(flipped(seen.key))
        if virtual is None or destinations.find(seen.key) is not None or seen.key in self._evidence.strange:
            return None
        client = client_of(seen.key)
        ports = seen.key[2 * len(client) :]
        port = ports[2:4] if virtual.port is None else virtual.port.to_bytes(2, "big")
        key = inbound_key(client, virtual.spec.address.packed, ports[:2], port, protocol_of(seen.key))
        self._calls[flipped(seen.key)] = key
        return key

    def _served_key(self, seen: Seen) -> bytes | None:
        """The key of the client that a server's packet is for; None where it is none, or counts elsewhere."""
        if not self._sides.answers_inside:
            key = flipped(seen.key)
            return key if self.director.destinations.find(key) is not None else None
        return self._calls.get(seen.key)

    # --- what happens

    def _client(self, key: bytes, seen: Seen, number: int) -> None:
        opens = seen.opens or (seen.flags is None and key not in self.director.table.inbound)
        virtual = self.director.destinations.find(key)
        assert virtual is not None
        if not opens:
            self._go_on(key, seen)
            return
        self._opened.add(key)
        server = self._evidence.server_of(seen, number) or b""
        if server:
            self._calls[replies_to(key, server)] = key
        mark = virtual.decisions.mark if virtual.decisions is not None else None
        if seen.flags is None:
            outcome = self.director.client_datagram(key, self._now)
        else:
            outcome = self.director.client_syn(seen.segment(key), self._now)
        if isinstance(outcome, Connection):
            outcome.interval = None  # the mirror measures
            outcome.settle()
        if virtual.decisions is not None and virtual.decisions.mark is not mark:
            link = outcome.link if isinstance(outcome, Connection) else None
            self._decided(Placed(seen.stamp, virtual, key, server, link, virtual.decisions.newest()), seen)
        elif server:
            self._mirror.place(key, server, seen, self._now)

    def _decided(self, placed: Placed, seen: Seen) -> None:
        """Note a decision, and have the mirror do as the capture did; where that does not tell, as we did."""
        self.placed.append(placed)
        name, key = placed.virtual.spec.name, placed.key
        server = placed.captured or placed.server
        link = self._mirror.place(key, server, seen, self._now) if server else None
        if placed.captured and link is not None:
            self.captured.setdefault((name, placed.captured), Load()).add(link)
        elif placed.captured:
            self.elsewhere[name, placed.captured] += 1
        if placed.link is not None and placed.decision.refused is None:
            self.replayed.setdefault((name, placed.server), Load()).add(placed.link)

    def _go_on(self, key: bytes, seen: Seen) -> None:
        if key not in self.director.table.inbound:
            self._left_out(key)
        elif seen.flags is None:
            self.director.client_datagram(key, self._now)
        else:
            self.director.client_segment(seen.segment(key), self._now)
        self._mirror.client(key, seen, self._now)

    def _left_out(self, key: bytes) -> None:
        if key not in self._opened:
            self._earlier.add(key)
            self.unmodelled += 1

    def _server(self, key: bytes, seen: Seen) -> None:
        connection = self.director.table.inbound.get(key)
        if connection is not None:
            answer(self.director, connection, seen, self._now, handshakes=self._sides.handshakes)
        self._mirror.server(key, seen, self._now)
        for name, response in self._mirror.measured():
            real = self.director.real_servers[name]
            real.response = response
            for link in real.timed:
                link.virtual.updated(link)
            real.stirred()
            if response.last is not None:
                self.responses[name].append(response.last)

    # --- time

    def _pass_time(self, stamp: Stamp) -> None:
        """Follow the capture's clock; where that goes back, time stands still."""
        self._first = self._first or stamp
        now = _BEGIN + (stamp[0] - self._first[0]) + (stamp[1] - self._first[1]) / 1_000_000
        if now - self._now < _GRAIN:
            return
        step = max(_TICK, (now - self._ticked) / _STEPS)
        while self._ticked + step <= now:
            self._ticked += step
            self._tick(self._ticked)
        self._now = now

    def _tick(self, now: float) -> None:
        for director in (self.director, self._mirror.director):
            while director.tick(now):
                pass
