"""Source hash and maglev: a client's address decides."""

from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address

import pytest

from nfqlb.core.schedulers.maglev import Maglev
from nfqlb.core.schedulers.source_hash import whole_weights
from nfqlb.core.server import Link, VirtualServer
from tests.core.preset import name_of, preset, set_weight
from tests.core.scenario import Scenario, real, reals, virtual

CLIENTS = [IPv4Address(f"198.51.{number >> 8}.{number & 0xFF}").packed for number in range(1000)]
MANY = [IPv4Address(0x0A000000 + 7 * number).packed for number in range(10_000)]

both = pytest.mark.parametrize("scheduler", ["source-hash", "maglev"])


def made(scheduler: str, servers: str, weights: Mapping[str, float] | None = None) -> VirtualServer:
    """A virtual server with idle real servers."""
    return preset(scheduler, dict.fromkeys(servers, 0), weights)


def served(server: VirtualServer, clients: list[bytes] = CLIENTS) -> list[str]:
    """Who serves each client."""
    return [name_of(server.scheduler.choose(client, -1)) for client in clients]


@both
def test_a_client_keeps_its_server(scheduler: str) -> None:
    """R099: whatever happened in between, without an entry for it anywhere."""
    lab = Scenario(virtual("web", "abcde", scheduler=scheduler), reals("abcde"))
    clients = [f"198.51.100.{number}" for number in range(40)]
    before = [lab.connect(client=client).server for client in clients]
    assert len(set(before)) == 5
    lab.connect(client="203.0.113.77").close()
    assert [lab.connect(client=client).server for client in reversed(clients)] == before[::-1]
    assert lab.director.totals().sticky == 0


@both
def test_another_gateway_sends_it_to_the_same_server(scheduler: str) -> None:
    """R099: nothing but the configuration and the address goes into it; not even the last used link."""
    one, other = made(scheduler, "abcd"), made(scheduler, "abcd")
    assert served(one) == served(other)
    assert [name_of(one.scheduler.choose(client, 2)) for client in CLIENTS] == served(one)


def test_the_hash_never_changes() -> None:
    """R099: another version of the gateway beside this one must agree; so the values are written down."""
    assert "".join(served(made("source-hash", "abcd"), CLIENTS[:16])) == "badbbbbdbaadddba"
    assert "".join(served(made("maglev", "abcd"), CLIENTS[:16])) == "dbcabacabdadcdca"


@both
def test_clients_spread_evenly(scheduler: str) -> None:
    """R099: 1,000 clients over 10 servers, 100 each, within five standard deviations."""
    shares = Counter(served(made(scheduler, "abcdefghij")))
    assert len(shares) == 10
    assert all(55 <= share <= 145 for share in shares.values()), shares


@both
@pytest.mark.parametrize("weights", [{"a": 1, "b": 2, "c": 5}, {"a": 0.25, "b": 0.5, "c": 1.25}])
def test_clients_spread_by_weight(scheduler: str, weights: Mapping[str, float]) -> None:
    """R048, R097: 125, 250 and 625 of 1,000 clients, within five standard deviations."""
    shares = Counter(served(made(scheduler, "abc", weights)))
    assert 73 <= shares["a"] <= 177
    assert 182 <= shares["b"] <= 318
    assert 549 <= shares["c"] <= 701


@both
def test_an_unavailable_server_moves_its_own_clients_only(scheduler: str) -> None:
    """R099, R144: they spread over all others, and come back with it."""
    server = made(scheduler, "abcdefghij")
    before = served(server)
    set_weight(server, "d", 0)
    during = served(server)
    assert all(old == new for old, new in zip(before, during, strict=True) if old != "d")
    moved = Counter(new for old, new in zip(before, during, strict=True) if old == "d")
    assert set(moved) == set("abcefghij")
    assert max(moved.values()) < sum(moved.values()) / 3
    set_weight(server, "d", 1)
    assert served(server) == before


@both
def test_the_clients_of_an_unavailable_server_spread_by_weight(scheduler: str) -> None:
    """R048, R144: not evenly over all, nor all of them to a neighbour."""
    server = made(scheduler, "abcd", {"a": 1, "b": 1, "c": 8, "d": 10})
    before = served(server)
    set_weight(server, "d", 0)
    moved = Counter(new for old, new in zip(before, served(server), strict=True) if old == "d")
    assert set(moved) == set("abc")
    assert moved["c"] > 2.5 * (moved["a"] + moved["b"]), moved


@both
def test_the_only_available_server_is_always_found(scheduler: str) -> None:
    """R144: however small its part of the slots is."""
    names = [f"s{number}" for number in range(200)]
    server = preset(scheduler, dict.fromkeys(names, 0), dict.fromkeys(names, 100) | {"s77": 1})
    for name in names:
        if name != "s77":
            set_weight(server, name, 0)
    assert set(served(server, CLIENTS[:50])) == {"s77"}
    set_weight(server, "s77", 0)
    assert set(served(server, CLIENTS[:50])) == {""}


@both
def test_a_server_that_begins_with_weight_0_gets_its_clients_later(scheduler: str) -> None:
    """R048 (A14): 0 takes nobody; another weight makes new slots."""
    server = made(scheduler, "abcd", {"d": 0})
    assert set(served(server)) == set("abc")
    set_weight(server, "d", 1)
    assert served(server) == served(made(scheduler, "abcd"))


@both
def test_servers_over_their_syn_limit_are_passed_over(scheduler: str) -> None:
    """R147, R150: unless all are; then everybody keeps the server of the address."""
    before = served(made(scheduler, "abc"))
    some = preset(scheduler, dict.fromkeys("abc", 0), unanswered={"a": 5, "b": 4})
    after = served(some)
    assert set(after) == {"b", "c"}
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "a")
    everybody = preset(scheduler, dict.fromkeys("abc", 0), unanswered=dict.fromkeys("abc", 9))
    assert served(everybody) == before


def test_maglev_heeds_no_order_of_configuration() -> None:
    """R099: servers are known by name."""
    names = [f"s{number}" for number in range(30)]
    weights: dict[str, float] = {name: 1 + number % 3 for number, name in enumerate(names)}

    def slots(order: list[str]) -> list[str]:
        scheduler = preset("maglev", dict.fromkeys(order, 0), weights).scheduler
        assert isinstance(scheduler, Maglev)
        return [name_of(link) for link in scheduler._slots]

    assert slots(names) == slots(names[::-1]) == slots(names[7:] + names[:7])


@pytest.mark.parametrize("many", [10, 50])
def test_maglev_moves_hardly_anybody_else_when_a_server_goes(many: int) -> None:
    """R099, F28: beside the clients of the server that was taken out, at most 1/N + 2 % of the others."""
    names = [f"s{number}" for number in range(many)]
    before = served(preset("maglev", dict.fromkeys(names, 0)), MANY)
    after = served(preset("maglev", dict.fromkeys(names[:3] + names[4:], 0)), MANY)
    others = [(old, new) for old, new in zip(before, after, strict=True) if old != "s3"]
    moved = sum(old != new for old, new in others)
    assert moved <= (1 / many + 0.02) * len(others)
    assert len(others) < len(before)


def test_source_hash_does_move_others_when_a_server_goes() -> None:
    """R099: which is what maglev is for, and why the bound above proves something."""
    names = [f"s{number}" for number in range(10)]
    before = served(preset("source-hash", dict.fromkeys(names, 0)))
    after = served(preset("source-hash", dict.fromkeys(names[:3] + names[4:], 0)))
    assert sum(old != new for old, new in zip(before, after, strict=True)) > 500


def test_maglev_fills_every_slot_by_weight() -> None:
    """R048, R097: each server's part of the table is its share to within two slots."""
    weights = {"a": 1, "b": 2.5, "c": 100, "d": 0}
    scheduler = made("maglev", "abcd", weights).scheduler
    assert isinstance(scheduler, Maglev)
    slots = Counter(name_of(link) for link in scheduler._slots)
    assert slots.total() == 4099
    for name, weight in weights.items():
        assert abs(slots[name] - 4099 * weight / 103.5) <= 2, name


def test_a_weight_however_small_has_a_slot() -> None:
    """R048: weights of one and a million."""
    scheduler = made("maglev", "ab", {"a": 0.001, "b": 1_000_000}).scheduler
    assert isinstance(scheduler, Maglev)
    assert Counter(name_of(link) for link in scheduler._slots)["a"] == 1
    assert whole_weights([0.001, 1_000_000, 0]) == [1, 100, 0]
    assert whole_weights([1, 2, 5]) == [1, 2, 5]
    assert whole_weights([0.25, 0.5, 1.25]) == [20, 40, 100]
    assert whole_weights([]) == []
    assert whole_weights([0, 0]) == [0, 0]


def test_one_weight_for_every_virtual_server() -> None:
    """R048: a real server's weight counts wherever it has a place, also on two ports of it."""
    lab = Scenario(virtual("web", ["a:8001", "a:8002", "b"], scheduler="maglev"), [real("a"), real("b")])
    ports = Counter(lab.connect(client=f"198.51.100.{number}").connection.link.port for number in range(200))
    assert set(ports) == {8001, 8002, 80}
    assert all(35 <= number <= 100 for number in ports.values()), ports


class Counted(Maglev):
    """Counts the tables that it makes."""

    made = 0

    def _filled(self) -> Sequence[Link]:
        self.made += 1
        return super()._filled()


def test_many_new_weights_make_one_table() -> None:
    """R048: a table takes long to make, so setting every server's weight makes only one."""
    servers = {f"s{number}": 0 for number in range(50)}
    web = preset("maglev", servers)
    web.scheduler = scheduler = Counted(web.links)
    for name in servers:
        set_weight(web, name, 3)
    set_weight(web, "s0", 30)
    assert scheduler.made == 1
    served = Counter(name_of(scheduler.choose(bytes((1, 2, at >> 8, at & 255)), -1)) for at in range(5_000))
    assert scheduler.made == 2
    assert served["s0"] > 3 * max(served[name] for name in servers if name != "s0")
