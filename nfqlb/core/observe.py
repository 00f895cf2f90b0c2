"""Makes the snapshots: reads the director's running state, changes nothing."""

from collections.abc import Iterable, Iterator
from heapq import merge
from ipaddress import ip_address
from itertools import chain, islice
from typing import TYPE_CHECKING

from nfqlb.core.admission import ServerState
from nfqlb.core.connection import Connection
from nfqlb.core.decision import Decision
from nfqlb.core.explanation import Wanted, explain
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.snapshot import (
    ConnectionSnapshot,
    DecisionSnapshot,
    LinkSnapshot,
    RealSnapshot,
    StickySnapshot,
    Totals,
    VirtualSnapshot,
)
from nfqlb.core.spec import Address
from nfqlb.core.states import State

if TYPE_CHECKING:
    from nfqlb.core.director import Director


def totals(director: "Director") -> Totals:
    """The director as a whole."""
    return Totals(
        connections=director.table.counted,
        connections_total=director.table.total,
        connections_limit=director.table.limit,
        sticky=len(director.fpas),
        sticky_limit=director.fpas.limit,
        drops=director.tally.drops(),
    )


def virtuals(director: "Director", now: float) -> list[VirtualSnapshot]:
    """Every virtual server."""
    return [
        VirtualSnapshot(
            name=virtual.spec.name,
            address=virtual.spec.address,
            protocol=virtual.spec.protocol,
            port=virtual.port,
            state=_virtual_state(virtual),
            desired=virtual.scheduler.name,
            actual=virtual.actual,
            connections=virtual.connections,
            total=virtual.total,
            servers=tuple(
                LinkSnapshot(link.real.spec.name, link.port, link.connections) for link in _everybody(virtual)
            ),
        )
        for virtual in director.virtual_servers
    ]


def _everybody(virtual: VirtualServer) -> list[Link]:
    """All that may ever serve it, backups last."""
    return [*virtual.links, virtual.backup] if virtual.backup else virtual.links


def _virtual_state(virtual: VirtualServer) -> str:
    """Failed is where no server may be chosen because of failures, and no backup either (A26)."""
    everybody = _everybody(virtual)
    if any(link.available for link in everybody):
        return ServerState.IN_SERVICE.shown
    failed = any(link.real.down for link in everybody)
    return (ServerState.FAILED if failed else ServerState.IN_SERVICE).shown


def reals(director: "Director", now: float) -> list[RealSnapshot]:
    """Every real server."""
    behind: dict[str, dict[str, None]] = {name: {} for name in director.real_servers}
    for virtual in director.virtual_servers:
        for link in _everybody(virtual):
            behind[link.real.spec.name][virtual.spec.name] = None
    return [_real(real, tuple(behind[name]), now) for name, real in director.real_servers.items()]


def _real(real: RealServer, virtuals: tuple[str, ...], now: float) -> RealSnapshot:
    return RealSnapshot(
        name=real.spec.name,
        address=real.spec.address,
        state=real.state.shown,
        reason=_reason(real),
        since=now - real.since,
        weight=real.weight,
        connections=real.connections,
        total=real.total,
        max_connections=real.spec.max_connections,
        unanswered=real.unanswered,
        ditched_no_answer=real.health.no_answer,
        ditched_reset=real.health.reset,
        response=None,
        predicted=None,
        virtuals=virtuals,
    )


def _reason(real: RealServer) -> str:
    if real.setting is not ServerState.IN_SERVICE:
        return "set by the operator"
    if real.health.reason:
        return real.health.reason
    if real.full:
        return f"at its maximum of {real.spec.max_connections} connections"
    if real.weight == 0:
        return "weight 0: no new connections"
    return ""


def connections(
    director: "Director", now: float, *, limit: int, client: Address | None, virtual: str | None
) -> list[ConnectionSnapshot]:
    """At most `limit` connections: live ones, newest first, then those that only linger."""
    table = director.table.inbound
    live = (each for each in reversed(table.values()) if each.state is not State.CLOSED)
    ended = (each for each in reversed(table.values()) if each.state is State.CLOSED)
    wanted: Iterable[Connection] = chain(live, ended)
    if client is not None:
        packed = client.packed
        wanted = (each for each in wanted if each.inbound.startswith(packed))
    if virtual is not None:
        wanted = (each for each in wanted if each.link.virtual.spec.name == virtual)
    return [_connection(each, now) for each in islice(wanted, limit)]


def _connection(connection: Connection, now: float) -> ConnectionSnapshot:
    key = connection.inbound
    link = connection.link
    return ConnectionSnapshot(
        virtual=link.virtual.spec.name,
        protocol=link.virtual.spec.protocol,
        client=ip_address(key[: (len(key) - 4) // 2]),
        client_port=int.from_bytes(key[-4:-2], "big"),
        real=link.real.spec.name,
        real_port=link.port,
        state=connection.state.shown,
        age=max(0.0, now - connection.opened),
        idle=max(0.0, now - connection.seen),
    )


def decisions(director: "Director", now: float, *, limit: int, wanted: Wanted) -> Iterator[DecisionSnapshot]:
    """At most `limit` of the decisions that are kept, the newest first; each is explained when read.

    Those of one moment come in the order of their virtual servers.
    """
    kept = [_kept(virtual, wanted) for virtual in director.virtual_servers if wanted.fits(virtual)]
    newest = list(islice(merge(*kept, key=lambda one: -one[1].now), limit))
    return (explain(virtual, decision, now) for virtual, decision in newest)


def _kept(virtual: VirtualServer, wanted: Wanted) -> Iterator[tuple[VirtualServer, Decision]]:
    if virtual.decisions is not None:
        for decision in virtual.decisions.newest_first(wanted.fits_key):
            yield virtual, decision


def sticky(director: "Director", now: float, client: Address | None = None) -> Iterator[StickySnapshot]:
    """Every sticky entry that still holds, or those of one client; one by one: there may be a million."""
    fpas = director.fpas
    found = fpas.entries() if client is None else fpas.entries_of(client.packed)
    for scope, address, entry in found:
        age = now - entry.assigned
        if age < scope.interval:
            yield StickySnapshot(
                scope=scope.name,
                grouped=scope.grouped,
                client=ip_address(address),
                real=entry.real.spec.name,
                age=age,
                expires=scope.interval - age,
            )
