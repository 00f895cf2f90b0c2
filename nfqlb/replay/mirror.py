"""The gateway of the capture: connections placed as they were, not as anybody would choose.

Owns `Mirror`, a director that nothing is asked of: it is told which server each connection got. From it come
how many connections every server had, and how long its answers took, by the capture's own times. A server's
response times are its own, so they are taken here, and not where the replay would have sent the connection.
"""

from dataclasses import replace

from nfqlb.core import spec
from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.keys import flipped
from nfqlb.core.response import FASTEST_RESPONSE, Interval, ResponseTime
from nfqlb.core.segment import SYN
from nfqlb.core.server import Link
from nfqlb.packet.sight import Seen


class Mirror:
    """The capture's own placements. `config` is the one that the capture is replayed with."""

    def __init__(self, config: spec.Config, now: float, *, handshakes: bool) -> None:
        self.director = Director(_obedient(config), now=now, decisions=0)
        self._handshakes = handshakes
        self._known = {name: real.response for name, real in self.director.real_servers.items()}

    def place(self, key: bytes, server: bytes, seen: Seen, now: float) -> Link | None:
        """A connection got this server (address and port): its place, or None if it has none here."""
        table = self.director.table
        known = table.inbound.get(key)
        if known is not None:
            stays = not known.state.ended and (known.state.quick or known.same_syn(seen.numbers))
            if stays and known.outbound == replies_to(key, server):
                return known.link
            table.remove(known, now)
        virtual = self.director.destinations.find(key)
        if virtual is None:
            return None
        held = table.outbound.get(replies_to(key, server))
        if held is not None and held.state.ended:
            table.remove(held, now)
        state = virtual.opening
        if not self.director.restore(key, server, state.code, -1, opened=now, now=now):
            return None
        connection = table.inbound[key]
        connection.client_numbers = seen.numbers
        if virtual.measuring is not None:
            connection.interval = Interval(virtual.measuring.arms_at_syn, seen.stamp, now)
        return connection.link

    def client(self, key: bytes, seen: Seen, now: float) -> None:
        """A client's packet that opens nothing."""
        connection = self.director.table.inbound.get(key)
        if connection is None:
            return
        if seen.flags is None:
            self.director.client_datagram(key, now)
        elif not seen.flags & SYN:
            self.director.client_segment(seen.segment(key), now)

    def server(self, key: bytes, seen: Seen, now: float) -> None:
        """A server's packet to the client whose packets have this key."""
        connection = self.director.table.inbound.get(key)
        if connection is not None:
            answer(self.director, connection, seen, now, handshakes=self._handshakes)

    def measured(self) -> list[tuple[str, ResponseTime]]:
        """Whose response time is another one than when this was last asked, and what it is."""
        found = []
        for name, real in self.director.real_servers.items():
            if real.response is not self._known[name]:
                self._known[name] = real.response
                found.append((name, real.response))
        return found


def answer(director: Director, connection: Connection, seen: Seen, now: float, *, handshakes: bool) -> None:
    """Let a director see a server's packet, whichever server it has the connection with."""
    if seen.flags is None:
        director.server_datagram(connection.outbound, now)
    elif handshakes and seen.flags & SYN:
        director.handshake_seen(connection, seen.flags, seen.numbers, now, seen.stamp)
    else:
        director.server_segment(seen.segment(connection.outbound), now)


def replies_to(key: bytes, server: bytes) -> bytes:
    """The key of what the server at this address and port sends, for the key of what its client sends."""
    size = (len(key) - 4) // 2
    back = flipped(key)
    return server[:size] + back[size : 2 * size] + server[size:] + back[2 * size + 2 :]


def _obedient(config: spec.Config) -> spec.Config:
    """The same servers, for a director that turns nobody away and measures every response."""
    reals = (
        replace(real, failure_threshold=0, attempts=0, max_connections=0, syn_limit=0, backup_when="failed")
        for real in config.reals
    )
    virtuals = (
        replace(
            virtual, scheduler="round-robin", startup="none", sticky=0.0, sticky_group="", on_failure="keep",
            datapath=spec.REWRITE, shadow=FASTEST_RESPONSE if virtual.protocol == "tcp" else "",
        )
        for virtual in config.virtuals
    )  # fmt: skip
    return replace(config, reals=tuple(reals), virtuals=tuple(virtuals))
