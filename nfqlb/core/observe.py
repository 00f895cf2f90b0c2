"""Makes the snapshots: reads the director's running state, changes nothing."""

from collections.abc import Iterable, Iterator, Mapping
from heapq import merge
from ipaddress import ip_address
from itertools import chain, islice
from math import fsum
from typing import TYPE_CHECKING

from nfqlb.core.admission import ServerState
from nfqlb.core.chronicle import state_of
from nfqlb.core.connection import Connection
from nfqlb.core.decision import Decision
from nfqlb.core.explanation import Wanted, explain
from nfqlb.core.health import Condition, Evidence
from nfqlb.core.keys import client_of, client_port_of
from nfqlb.core.plural import several
from nfqlb.core.response import FASTEST_RESPONSE, Linear
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.snapshot import (
    ConnectionSnapshot,
    DecisionSnapshot,
    FailureSnapshot,
    LinkSnapshot,
    RealSnapshot,
    ShadowSnapshot,
    StickySnapshot,
    Totals,
    VirtualSnapshot,
)
from nfqlb.core.spec import Address, Virtual

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
        replies=director.tally.replies(),
        evicted=director.table.evicted,
        sticky_evicted=director.fpas.evicted,
        drift=director.audit.drift,
    )


def virtuals(director: "Director", now: float) -> Iterator[VirtualSnapshot]:
    """Every virtual server, each as it is when it is asked for."""
    return map(_virtual, list(director.virtual_servers))


def _virtual(virtual: VirtualServer) -> VirtualSnapshot:
    return VirtualSnapshot(
        name=virtual.spec.name,
        address=virtual.spec.address,
        protocol=virtual.spec.protocol,
        port=virtual.port,
        state=state_of(virtual).shown,
        desired=virtual.scheduler.name,
        actual=virtual.actual,
        connections=virtual.connections,
        total=virtual.total,
        servers=tuple(_links(virtual)),
        drops={reason.value: count for reason, count in virtual.drops.items()},
        shadow=_shadow(virtual),
        half_open=virtual.half_open,
        given_up=virtual.guard.given_up if virtual.guard is not None else 0,
        flooded=virtual.guard is not None and virtual.guard.flooded,
    )


def _shadow(virtual: VirtualServer) -> ShadowSnapshot | None:
    shadow = virtual.shadow
    return ShadowSnapshot(shadow.scheduler.name, shadow.evaluated, shadow.differed) if shadow else None


def _links(virtual: VirtualServer) -> Iterator[LinkSnapshot]:
    """Every place, with its share of the connections and the fair one, by weight (A35, R097)."""
    everybody = virtual.everybody
    fair = [link.real.weight if link.real.serving and link.active else 0.0 for link in everybody]
    if virtual.backup is not None and any(fair[:-1]):
        fair[-1] = 0.0  # it serves where none of the others can
    capacity = fsum(fair)
    for link, weight in zip(everybody, fair, strict=True):
        yield _link(link, weight / capacity if capacity else None)
    for link in virtual.leaving:
        yield _link(link, None)


def _link(link: Link, fair: float | None) -> LinkSnapshot:
    virtual = link.virtual
    return LinkSnapshot(
        real=link.real.spec.name,
        port=link.port,
        connections=link.connections,
        total=link.total,
        state=(ServerState.DRAINING if link.leaving else link.real.state).shown,
        share=link.connections / virtual.connections if virtual.connections else None,
        fair=fair,
        backup=not link.leaving and (link.stands_for is not None or link is virtual.backup),
    )


def reals(director: "Director", now: float) -> Iterator[RealSnapshot]:
    """Every real server, each as it is when it is asked for; ages are those of `now`."""
    behind: dict[str, dict[str, Virtual]] = {name: {} for name in director.real_servers}
    for virtual in director.virtual_servers:
        for link in (*virtual.everybody, *virtual.leaving):
            behind[link.real.spec.name][virtual.spec.name] = virtual.spec
    return (_real(real, behind[name], now) for name, real in list(director.real_servers.items()))


def _real(real: RealServer, virtuals: Mapping[str, Virtual], now: float) -> RealSnapshot:
    health = real.health
    tested = health.condition is Condition.FAILED and real.setting.sticky
    return RealSnapshot(
        name=real.spec.name,
        address=real.spec.address,
        state=real.state.shown,
        reason=reason_of(real),
        since=now - real.since,
        setting=real.setting.shown,
        weight=real.weight,
        weight_configured=real.spec.weight,
        connections=real.connections,
        total=real.total,
        max_connections=real.spec.max_connections,
        unanswered=real.unanswered,
        ditched_no_answer=health.no_answer,
        ditched_reset=health.reset,
        response=real.response.last,
        predicted=_predicted(real, virtuals.values(), now),
        virtuals=tuple(virtuals),
        failed=None if health.condition is Condition.WELL else now - health.failed_at,
        test=max(0.0, health.retry_at - now) if tested else None,
        responses=real.responses.spread(),
        run=health.run,
        whys=tuple(sorted(why.value for why in health.whys)),
        suspect=health.suspect,
    )


def _predicted(real: RealServer, virtuals: Iterable[Virtual], now: float) -> float | None:
    """As the first virtual server sees it that goes by it, not below 0 (A15); None where none does."""
    going = (each for each in virtuals if FASTEST_RESPONSE in (each.scheduler, each.shadow))
    virtual = next(going, None)
    if real.response.last is None or virtual is None:
        return None
    connections = real.connections + (virtual.predict == "next")
    return max(0.0, real.response.predicted(connections, Linear(virtual.ageing), now))


def deserted(virtual: VirtualServer) -> bool:
    """Whether a virtual server in service has no server that takes new clients, or would if it had room."""
    if virtual.draining or virtual.setting is not ServerState.IN_SERVICE:
        return False
    return not any(link.real.serving and link.active for link in virtual.everybody)


def reason_of(real: RealServer) -> str:
    """Why a real server is in its state; empty where it is in the usual one."""
    if real.draining:
        return "not in the configuration any more"
    set_by_hand = real.setting is not ServerState.IN_SERVICE
    if real.health.reason and real.state is not real.setting:
        return f"{real.health.reason}; {real.setting.shown} is set" if set_by_hand else real.health.reason
    if set_by_hand:
        return "set by the operator"
    if real.full:
        return f"at its maximum of {several(real.spec.max_connections, 'connection')}"
    if real.weight == 0:
        return "weight 0: no new clients"
    return ""


def failures(
    director: "Director", now: float, *, limit: int, real: str | None = None
) -> list[FailureSnapshot]:
    """The latest connections that could not be made, newest first for each real server, at most `limit`."""
    found = (
        _failure(each, evidence, now)
        for name, each in director.real_servers.items()
        if real in (None, name)
        for evidence in reversed(each.health.evidence)
    )
    return list(islice(found, limit))


def _failure(real: RealServer, evidence: Evidence, now: float) -> FailureSnapshot:
    return FailureSnapshot(
        real=real.spec.name,
        state=real.state.shown,
        ago=now - evidence.at,
        client=ip_address(evidence.client),
        client_port=evidence.port,
        virtual=evidence.virtual,
        why=evidence.why.value,
        waited=evidence.at - evidence.opened,
    )


def connections(
    director: "Director", now: float, *, limit: int, client: Address | None, virtual: str | None,
    real: str | None = None,
) -> list[ConnectionSnapshot]:  # fmt: skip
    """At most `limit` connections: live ones, newest first, then those that only linger."""
    table = director.table.inbound
    live = (each for each in reversed(table.values()) if not each.state.ended)
    ended = (each for each in reversed(table.values()) if each.state.ended)
    wanted: Iterable[Connection] = chain(live, ended)
    if client is not None:
        packed = client.packed
        wanted = (
            each
            for each in wanted
            if each.inbound.startswith(packed) and client_of(each.inbound) == packed
        )
    if virtual is not None:
        wanted = (each for each in wanted if each.link.virtual.spec.name == virtual)
    if real is not None:
        wanted = (each for each in wanted if each.link.real.spec.name == real)
    return [_connection(each, now) for each in islice(wanted, limit)]


def _connection(connection: Connection, now: float) -> ConnectionSnapshot:
    key = connection.inbound
    link = connection.link
    return ConnectionSnapshot(
        virtual=link.virtual.spec.name,
        protocol=link.virtual.spec.protocol,
        client=ip_address(client_of(key)),
        client_port=client_port_of(key),
        real=link.real.spec.name,
        real_port=client_port_of(connection.outbound),
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
        age = now - entry.used()
        if age < scope.interval:
            yield StickySnapshot(
                scope=scope.name,
                grouped=scope.grouped,
                client=ip_address(address),
                real=entry.real.spec.name,
                age=age,
                expires=scope.interval - age,
            )
