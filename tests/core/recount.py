"""The books audited: every counter of the director against a recount over its table."""

from collections import Counter

from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.server import Link, VirtualServer
from nfqlb.core.states import State


def audit(director: Director) -> None:
    """Fail if a counter of any real server, link or the table differs from what the table holds.

    Also: both indexes hold the same connections under the right keys, and every scheduler
    chooses what a plain search over the recounted numbers chooses.
    """
    table = director.table
    found = list(table.inbound.values())
    assert {id(each) for each in found} == {id(each) for each in table.outbound.values()}
    assert len(table.inbound) == len(table.outbound) == len(table)
    for key, connection in table.inbound.items():
        assert connection.inbound == key
        assert connection.outbound == _reverse(connection)
        assert table.outbound[connection.outbound] is connection
        assert connection.state is not State.GONE
    live = [each for each in found if each.state is not State.CLOSED]
    assert table.counted == len(live)
    on_real = Counter(each.link.real.spec.name for each in live)
    on_link = Counter(id(each.link) for each in live)
    unanswered = Counter(each.link.real.spec.name for each in live if each.state is State.SYN_SENT)
    for name, real in director.real_servers.items():
        assert real.connections == on_real[name], name
        assert real.unanswered == unanswered[name], name
        limit = real.spec.max_connections
        assert real.state == ("max-capacity" if limit and on_real[name] >= limit else "in-service"), name
    for virtual in director.virtual_servers:
        for link in virtual.links:
            assert link.connections == on_link[id(link)]
        assert virtual.scheduler.choose(virtual.last) is plain_choice(virtual, on_real)


def plain_choice(virtual: VirtualServer, loads: Counter[str]) -> Link | None:
    """What the scheduler must choose, found the slow way."""
    best: tuple[float, Link] | None = None
    for link in virtual.links[virtual.last + 1 :] + virtual.links[: virtual.last + 1]:
        real = link.real.spec
        load = loads[real.name]
        weight = link.real.weight
        if weight == 0 or (real.max_connections and load >= real.max_connections):
            continue
        measure = {
            "round-robin": 0.0,
            "least-connections": float(load),
            "weighted-least-connections": load / weight,
        }[virtual.spec.scheduler]
        if best is None or measure < best[0]:
            best = measure, link
    return best[1] if best else None


def _reverse(connection: Connection) -> bytes:
    real, port = connection.link.real.spec.address.packed, connection.link.port
    client, client_port = connection.inbound[:4], connection.inbound[8:10]
    return real + client + port.to_bytes(2, "big") + client_port
