"""The books audited: every counter of the director against a recount over its table."""

from collections import Counter
from collections.abc import Callable, Mapping
from math import isclose

from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.health import Condition
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.states import State

#: What the schedulers that compare go by, of a link and its server's connections. Those that draw, hash or
#: take turns have tests of their own.
MEASURES: Mapping[str, Callable[[Link, int], float]] = {
    "round-robin": lambda link, load: 0.0,
    "least-connections": lambda link, load: load,
    "weighted-least-connections": lambda link, load: load / link.real.weight,
    "fastest-response": lambda link, load: _promised(link, load),
}


_LIVE = {
    State.SYN_SENT, State.SYN_RECEIVED, State.ESTABLISHED, State.FIN_CLIENT, State.FIN_SERVER, State.UDP_NEW,
    State.UDP_FLOW,
}  # fmt: skip
#: By each word of `count_on` and `close_on`: the states that it lets count.
COUNTED: Mapping[str, set[State]] = {
    "syn": {*_LIVE, State.CLOSED},
    "syn-ack": {*_LIVE, State.CLOSED} - {State.SYN_SENT},
    "fin": _LIVE - {State.FIN_CLIENT, State.FIN_SERVER},
    "both": _LIVE,
    "time-out": {*_LIVE, State.CLOSED},
}


def audit(director: Director, *, reloaded: bool = False) -> None:
    """Fail if a counter of any real server, link or the table differs from what the table holds.

    Also: both indexes hold the same connections under the right keys, every scheduler that compares
    chooses what a plain search over the recounted numbers chooses, and whoever remembers connections or
    servers for a purpose of its own (sticky entries, records of decisions, start-up, `on_failure`) remembers
    the right ones. `reloaded`: what becomes of a failed server's connections may have been said since.
    """
    table, gateway = director.table, director.config.gateway
    found = list(table.inbound.values())
    assert {id(each) for each in found} == {id(each) for each in table.outbound.values()}
    assert len(table.inbound) == len(table.outbound) == len(table)
    for key, connection in table.inbound.items():
        assert connection.inbound == key
        assert connection.outbound == _reverse(connection)
        assert table.outbound[connection.outbound] is connection
        assert connection.state is not State.GONE
    live = [each for each in found if each.state in COUNTED[gateway.count_on] & COUNTED[gateway.close_on]]
    assert table.counted == len(live)
    on_real = Counter(each.link.real.spec.name for each in live)
    on_link = Counter(id(each.link) for each in live)
    held = Counter(id(each.link) for each in found)
    links = {id(link) for each in director.virtual_servers for link in (*each.everybody, *each.leaving)}
    assert held.keys() <= links
    unanswered = Counter(each.link.real.spec.name for each in found if each.state is State.SYN_SENT)
    for name, real in director.real_servers.items():
        assert real.connections == on_real[name], name
        assert real.unanswered == unanswered[name], name
        assert real.state.shown == _state(real, on_real[name]), name
        if real.tester is not None:
            assert real.health.condition is Condition.TESTING, name
            assert real.tester.link.real is real, name
            assert real.tester.state is State.SYN_SENT, name
            assert table.inbound[real.tester.inbound] is real.tester, name
        else:
            assert real.health.condition is not Condition.TESTING, name
    for virtual in director.virtual_servers:
        everybody = [*virtual.links, virtual.backup] if virtual.backup else list(virtual.links)
        everybody += virtual.leaving
        for link in everybody:
            assert link.connections == on_link[id(link)]
            assert link.held == held[id(link)]
            assert link.leaving is (link in virtual.leaving)
            assert not link.real.draining or link.leaving
            assert not (virtual.draining and link not in virtual.leaving)
        assert virtual.connections == sum(link.connections for link in everybody)
        half_open = [each for each in found if each.link.virtual is virtual and each.state.half_open]
        assert virtual.half_open == len(half_open)
        if virtual.guard is not None:
            assert set(virtual.guard._members) <= set(half_open)
        if virtual.spec.scheduler in MEASURES:
            _chooses(virtual, on_real)
        _starting_up(virtual, on_real)
        _stale(virtual)
    _doomed(director, reloaded=reloaded)
    _followed(director)
    _doubted(director)


def _chooses(virtual: VirtualServer, loads: Counter[str]) -> None:
    chosen, plain = virtual.scheduler.choose(b"", virtual.last), plain_choice(virtual, loads)
    if chosen is plain or virtual.spec.scheduler != "fastest-response":
        assert chosen is plain
        return
    assert chosen is not None  # and the last bit of a sum says which of two equals is better
    assert plain is not None
    ranks = [_promised(link, loads[link.real.spec.name]) for link in (chosen, plain)]
    assert abs(ranks[0] - ranks[1]) < 1e-6
    assert chosen.real.overloaded is plain.real.overloaded


def _promised(link: Link, load: int) -> float:
    """PR, seen from the beginning of time: by how much it sinks with age is the same for all."""
    virtual, response = link.virtual.spec, link.real.response
    if response.last is None:
        return load + 1 + response.tried / virtual.ageing
    return (load + (virtual.predict == "next")) * response.ratio + response.at / virtual.ageing


def _starting_up(virtual: VirtualServer, loads: Counter[str]) -> None:
    """Whom the start-up scheduler waits for, and what the fair share is reckoned from."""
    if virtual.startup is None:
        return
    able = [link for link in virtual.links if _can_be_chosen(link, loads)]
    assert isclose(virtual.startup._capacity, sum(link.real.weight for link in able), abs_tol=1e-9)
    unmeasured = {link.position for link in able if link.real.response.last is None}
    waits = virtual.spec.scheduler == "fastest-response"
    assert virtual.startup._unmeasured == (unmeasured if waits else set())


def _stale(virtual: VirtualServer) -> None:
    """The record of decisions knows which servers have changed since it looked at them."""
    decisions = virtual.decisions
    if decisions is None:
        return
    for link in virtual.links:
        real = link.real
        seen = (real.state, real.health.condition, real.weight, real.connections, real.unanswered, real.since)
        if decisions._facts[link.position][:6] != seen:
            assert link.position in decisions.stale, real.spec.name


def _doomed(director: Director, *, reloaded: bool) -> None:
    """Where a failure ends connections, they are found by their link, or are about to end.

    A failed server has none from before it failed, but one whose client asked once more.
    """
    about_to_end = {id(each) for _, members in director._outage._doomed for each in members}
    for connection in director.table.inbound.values():
        members, on_failure = connection.link.members, connection.link.virtual.spec.on_failure
        assert (members is None) is (on_failure == "keep")
        if members is not None and not connection.state.ended:
            assert connection in members or id(connection) in about_to_end
            health = connection.link.real.health
            down = health.condition is not Condition.WELL and not reloaded
            if down and connection.opened < health.failed_at - 1:
                assert connection.state is State.SYN_SENT or id(connection) in about_to_end
    for virtual in director.virtual_servers:
        for link in (*virtual.everybody, *virtual.leaving):
            assert all(each.link is link for each in link.members or ())
            assert all(each.inbound in director.table.inbound for each in link.members or ())


def _followed(director: Director) -> None:
    """Sticky entries hold on to live connections of their own clients to their own servers."""
    assert len(director.fpas) == len(list(director.fpas.entries()))
    loose = [entry for _, _, entry in director.fpas.entries() if entry.loose]
    assert set(map(id, director.fpas._loose)) == set(map(id, loose))
    for scope, _, entry in director.fpas.entries():
        assert scope.active or entry.live is None
        for connection in entry.live or ():
            assert director.table.inbound.get(connection.inbound) is connection
            assert connection.link.real is entry.real
            assert connection.link.virtual.scope == scope


def _doubted(director: Director) -> None:
    """Doubts are about servers of virtual servers that are there, and are no more than allowed."""
    assert len(director.doubts) <= director.doubts.limit
    for virtual, clients in director.doubts.about.items():
        assert virtual.doubting
        assert virtual in director.virtual_servers
        assert clients
        assert all(clients.values())
        assert {real for found in clients.values() for real in found} <= {
            link.real for link in virtual.everybody
        }


def _state(real: RealServer, load: int) -> str:
    if real.draining:
        return "draining"
    if real.setting.shown in ("maintenance", "out-of-service"):
        return real.setting.shown
    if real.health.condition is not Condition.WELL:
        return str(real.health.condition.value)
    if real.setting.shown == "sticky-only":
        return "sticky-only"
    return "max-capacity" if real.spec.max_connections and load >= real.spec.max_connections else "in-service"


def _active(link: Link, loads: Counter[str]) -> bool:
    """Whether every server that a backup's link stands for, directly or not, is down or counts as such."""
    while (stands_for := link.stands_for) is not None:
        link = stands_for
        real = link.real.spec
        full = real.backup_when == "full" and 0 < real.max_connections <= loads[real.name]
        if link.real.health.condition is Condition.WELL and not full:
            return False
    return True


def _can_be_chosen(link: Link, loads: Counter[str]) -> bool:
    """Whether it takes new clients."""
    real = link.real
    if real.weight == 0 or real.setting.shown != "in-service" or real.health.condition is not Condition.WELL:
        return False
    return real.state.shown != "max-capacity" and _active(link, loads)


def plain_choice(virtual: VirtualServer, loads: Counter[str]) -> Link | None:
    """What the scheduler must choose, found the slow way."""
    best: tuple[tuple[bool, float], Link] | None = None
    for link in virtual.links[virtual.last + 1 :] + virtual.links[: virtual.last + 1]:
        real = link.real.spec
        load = loads[real.name]
        if (real.max_connections and load >= real.max_connections) or not _can_be_chosen(link, loads):
            continue
        measure = MEASURES[virtual.spec.scheduler](link, load)
        rank = bool(real.syn_limit) and link.real.unanswered >= real.syn_limit, measure
        if best is None or rank < best[0]:
            best = rank, link
    return best[1] if best else None


def _reverse(connection: Connection) -> bytes:
    real, inbound, port = connection.link.real.spec.address.packed, connection.inbound, connection.link.port
    size = len(real)
    client, client_port, wanted = inbound[:size], inbound[2 * size :][:2], inbound[2 * size + 2 :][:2]
    end = b"\x11" if connection.link.virtual.spec.protocol == "udp" else b""
    return real + client + (port.to_bytes(2, "big") if port else wanted) + client_port + end
