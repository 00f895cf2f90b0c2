"""The books audited: every counter of the director against a recount over its table."""

from collections import Counter
from collections.abc import Callable, Mapping

from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.health import Condition
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.states import State

#: What the schedulers that compare go by, of connections and weight. Those that draw, hash or take
#: turns have tests of their own.
MEASURES: Mapping[str, Callable[[int, float], float]] = {
    "round-robin": lambda load, weight: 0.0,
    "least-connections": lambda load, weight: load,
    "weighted-least-connections": lambda load, weight: load / weight,
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


def audit(director: Director) -> None:
    """Fail if a counter of any real server, link or the table differs from what the table holds.

    Also: both indexes hold the same connections under the right keys, and every scheduler
    that compares chooses what a plain search over the recounted numbers chooses.
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
        everybody = [*virtual.links, virtual.backup] if virtual.backup else virtual.links
        for link in everybody:
            assert link.connections == on_link[id(link)]
        assert virtual.connections == sum(link.connections for link in everybody)
        if virtual.spec.scheduler in MEASURES:
            assert virtual.scheduler.choose(b"", virtual.last) is plain_choice(virtual, on_real)


def _state(real: RealServer, load: int) -> str:
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


def plain_choice(virtual: VirtualServer, loads: Counter[str]) -> Link | None:
    """What the scheduler must choose, found the slow way."""
    best: tuple[tuple[bool, float], Link] | None = None
    for link in virtual.links[virtual.last + 1 :] + virtual.links[: virtual.last + 1]:
        real = link.real.spec
        load = loads[real.name]
        weight = link.real.weight
        if weight == 0 or (real.max_connections and load >= real.max_connections):
            continue
        if link.real.setting.shown != "in-service":
            continue
        if link.real.health.condition is not Condition.WELL or not _active(link, loads):
            continue
        measure = MEASURES[virtual.spec.scheduler](load, weight)
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
