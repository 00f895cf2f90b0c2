"""Another configuration between two packets: what stays, what is new, and what drains (`nfqlb reload`).

Owns the order in which a director's parts follow. A real server is known by its address, a virtual server
by what clients send to; so connections, counters, sticky entries, failures and what an operator has set stay
with them. What the configuration calls `leaving` takes no new connection, keeps those that it has, and lets
its sticky entries go. The next SYN is decided by the new configuration alone.

Nothing here takes long where connections are many, but for what looks at each of them once: other states
that count (`count_on`, `close_on`), an `on_failure` that asks for connections by server, a `sticky_refresh`
that has become "activity", and a scheduler without response times, where the kernel translates.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from nfqlb.core import spec
from nfqlb.core.health import Condition
from nfqlb.core.keys import client_of
from nfqlb.core.scope import Scope
from nfqlb.core.server import RealServer, VirtualServer

if TYPE_CHECKING:
    from nfqlb.core.director import Director


def reconfigure(director: "Director", config: spec.Config, now: float) -> None:
    """Let a director follow `config` from now on; see `Director.reconfigure`."""
    scopes = {virtual: virtual.scope for virtual in director.virtual_servers}
    places = {virtual: {link.real for link in virtual.everybody} for virtual in director.virtual_servers}
    measured = {virtual for virtual in director.virtual_servers if virtual.measuring is not None}
    noted, gone = _follow_reals(director, config, now)
    noted += _follow_virtuals(director, config)
    director.config = config
    blank = director.follow_settings()
    _follow_stickiness(director, scopes, places, gone)
    _look_at_connections(director, blank, measured, scopes)
    for real in director.real_servers.values():
        real.changed(now)
        _follow_health(director, real, now)
    director.chronicle.follow(noted)


def remaining(virtuals: Iterable[VirtualServer]) -> list[tuple[str, spec.Server]]:
    """The places that are leaving and still have connections, by their virtual server's name."""
    return [
        (virtual.spec.name, spec.Server(link.real.spec.name, link.port))
        for virtual in virtuals
        for link in virtual.leaving
        if link.held
    ]


def _follow_reals(
    director: "Director", config: spec.Config, now: float
) -> tuple[list[RealServer | VirtualServer], list[RealServer]]:
    """The real servers, without their links for the moment.

    Returns those of which something else has to be remembered, and those that have just gone or drain now.
    """
    strict, draining = config.strict.syn_limit, config.leaving.reals
    before = {real.spec.address: real for real in director.real_servers.values()}
    noted: list[RealServer | VirtualServer] = []
    gone: list[RealServer] = []
    after: dict[str, RealServer] = {}
    for each in config.reals:
        leaves = each.name in draining
        real = before.pop(each.address, None)
        if real is None:  # an earlier server of that name may be remembered
            real = RealServer(each, now, strict_syn_limit=strict, draining=leaves)
            noted.append(real)
        elif leaves and not real.draining:
            real.bound_from = now
            gone.append(real)
            noted.append(real)
        elif (real.spec.name, real.spec.weight) != (each.name, each.weight):
            noted.append(real)
        real.follow(each, strict_syn_limit=strict, draining=leaves)
        after[each.name] = real
        for links in (real.links, real.standing_by, real.timed):
            links.clear()
    director.real_servers.clear()
    director.real_servers.update(after)
    return noted, gone + list(before.values())


def _follow_virtuals(director: "Director", config: spec.Config) -> list[RealServer | VirtualServer]:
    """The virtual servers and their links; returns those of which something else has to be remembered."""
    reals = director.real_servers
    before = {virtual.spec.service: virtual for virtual in director.virtual_servers}
    noted: list[RealServer | VirtualServer] = []
    after = []
    for each in config.virtuals:
        leaving, draining = config.leaving_places(each), each.name in config.leaving.virtuals
        virtual = before.get(each.service)
        if virtual is None:
            virtual = VirtualServer(each, reals, strict=config.strict, leaving=leaving, draining=draining)
            noted.append(virtual)
        else:
            if virtual.spec.name != each.name:
                noted.append(virtual)
            virtual.follow(each, reals, strict=config.strict, leaving=leaving, draining=draining)
        after.append(virtual)
    director.virtual_servers[:] = after
    return noted


def _follow_stickiness(
    director: "Director",
    scopes: Mapping[VirtualServer, Scope | None],
    places: Mapping[VirtualServer, set[RealServer]],
    gone: Iterable[RealServer],
) -> None:
    """Entries move to the scope that their virtual server has now; those of places that have gone go too."""
    sources: dict[Scope, Scope] = {}
    members: dict[Scope, set[RealServer]] = {}
    left: dict[Scope, set[RealServer]] = {}
    for virtual in director.virtual_servers:
        before, after = scopes.get(virtual), virtual.scope
        if after is None:
            continue
        if before is not None:
            sources.setdefault(after, before)
        here = {link.real for link in virtual.everybody}
        members.setdefault(after, set()).update(here)
        left.setdefault(after, set()).update(places.get(virtual, set()) - here)
    director.fpas.rescope(director.config.gateway.max_sticky, sources)
    for scope, reals in left.items():
        for real in reals - members[scope]:
            director.fpas.unbind(scope, real)
    for real in gone:
        director.fpas.forget(real)


def _look_at_connections(
    director: "Director",
    blank: set[VirtualServer],
    measured: set[VirtualServer],
    scopes: Mapping[VirtualServer, Scope | None],
) -> None:
    """What has to be told to, or of, each connection; mostly nothing, and none is looked at."""
    unmeasured = {virtual for virtual in measured if virtual.measuring is None}
    followed = {
        virtual
        for virtual in director.virtual_servers
        if virtual.scope is not None and virtual.scope.active and not _active(scopes.get(virtual))
    }
    if not (blank or unmeasured or followed):
        return
    for connection in director.table.inbound.values():
        virtual = connection.link.virtual
        if virtual in blank and connection.link.members is not None:
            connection.link.members.add(connection)
        if virtual in unmeasured:
            connection.interval = None
            connection.settle()
        if virtual in followed and virtual.scope is not None and not connection.state.ended:
            director.fpas.follow(virtual.scope, client_of(connection.inbound), connection)


def _active(scope: Scope | None) -> bool:
    return scope is not None and scope.active


def _follow_health(director: "Director", real: RealServer, now: float) -> None:
    """A failed server may be tested sooner than it was to be, or does not fail any more at all."""
    health, before = real.health, real.state
    if real.down and not real.spec.failure_threshold:
        director.watch.cleared(real, now)
        director.chronicle.real_changed(real, before, now)
    elif health.condition is Condition.FAILED and health.retry_at > now + real.spec.retry:
        health.retry_at = now + real.spec.retry
        director.watch.restored(real)
