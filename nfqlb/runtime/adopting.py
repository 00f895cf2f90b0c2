"""Connections of datapath `rewrite` that another gateway had, found in the kernel's table.

There conntrack has them from client to real server, as it stands behind the worker; the worker's mark tells
them. What their clients had asked for follows from the server's port, where that stands behind one virtual
server. Owns `Adoption`, the counterpart of `OffloadPath.sweep`.
"""

from collections.abc import Iterator
from typing import Protocol

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.keys import client_of, flipped, inbound_key, key_end, server_of
from nfqlb.core.recorder import Recorder
from nfqlb.core.states import State
from nfqlb.netfilter.conntrack import Entry
from nfqlb.runtime.carrier import state_of, time_of

_DONE = object()


class Table(Protocol):
    """The kernel's connection table (`netfilter.conntrack.Conntrack`)."""

    def marked(self, mark: int, mask: int) -> Iterator[Entry]:
        """Every entry whose mark is `mark` in the bits of `mask`."""

    def shorten(self, inbound: bytes, protocol: int, seconds: int) -> bool:
        """Let an entry have that much time left."""


class Adoption:
    """One look through `table`, begun at `now` (seconds). `recorder` is told of connections that are found.

    `adopted` counts those. What a gateway that has waited still knows from before has ended meanwhile, or the
    kernel has been told of it: so what the kernel does not have, and of which no packet has come since this
    began, is forgotten. `mistakable`: there is such, and what clients send might be taken for it until then.
    """

    def __init__(self, director: Director, table: Table, recorder: Recorder, now: float) -> None:
        self.adopted = 0
        self._director = director
        self._table = table
        self._recorder = recorder
        self._begun = self._now = now
        self.mistakable = any(map(self._is_old, director.table.inbound.values()))
        self._steps = self._look()

    def step(self, budget: int, now: float) -> bool:
        """Look at some more, `now` in seconds; True once all has been seen. Raises KernelError."""
        self._now = now
        return any(next(self._steps, _DONE) is _DONE for _ in range(budget))

    def _look(self) -> Iterator[None]:
        director, mask = self._director, self._director.config.gateway.mark_mask
        found: set[bytes] = set()
        for entry in self._table.marked(mask, mask):
            outbound = flipped(entry.inbound) + key_end(entry.protocol)
            found.add(outbound)
            self._meet(entry, outbound)
            yield
        for connection in list(director.table.inbound.values()):
            here = connection.outbound in found or connection.state.half_open
            if not here and self._is_old(connection):
                director.forget(connection, self._now)
            yield
        director.restored(self._now)  # whatever was adopted counts in the next choice

    def _is_old(self, connection: Connection) -> bool:
        """Whether it is from before, and nothing has been seen of it since."""
        return connection.seen < self._begun and connection.link.virtual.spec.datapath != OFFLOAD

    def _meet(self, entry: Entry, outbound: bytes) -> None:
        """Enter an entry's connection, if it can only be of one virtual server.

        It has no more time in the kernel's table than the connection has in ours.
        """
        virtual = self._director.destinations.behind(outbound)
        if virtual is None or virtual.spec.datapath == OFFLOAD:
            return
        port = entry.inbound[-2:] if virtual.port is None else virtual.port.to_bytes(2, "big")
        client = client_of(entry.inbound)
        client_port = entry.inbound[2 * len(client) :][:2]
        key = inbound_key(client, virtual.spec.address.packed, client_port, port, entry.protocol)
        self._adopt(key, outbound, state_of(entry))
        limit = time_of(entry, self._director.table.inbound.get(key), self._director.config.timeouts)
        if entry.timeout > limit:
            self._table.shorten(entry.inbound, entry.protocol, limit)

    def _adopt(self, key: bytes, outbound: bytes, state: State | None) -> None:
        director, known, now = self._director, self._director.table.inbound, self._now
        before = known.get(key)
        if before is not None and self._is_old(before) and _is_over(before, outbound, state):
            director.forget(before, now)
        if state is None:
            return
        if director.restore(key, server_of(outbound), state.code, -1, opened=now, now=now):
            known[key].place = self._recorder.opened(known[key])
            self.adopted += 1


def _is_over(before: Connection, outbound: bytes, state: State | None) -> bool:
    """Whether the kernel has a later connection between the same ports by now, or the end of this one."""
    return before.outbound != outbound or before.state.ended is not (state is None)
