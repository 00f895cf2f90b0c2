"""`FpaTable` against an oracle of its own."""

from ipaddress import ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.fpa import FpaTable, masked
from nfqlb.core.scope import Scope
from nfqlb.core.server import RealServer
from tests.core.properties import TRIES
from tests.core.scenario import real

SERVERS = [RealServer(real(name), 0.0) for name in "abc"]
SCOPES = [
    Scope("web", grouped=False, interval=10.0, prefix=32),
    Scope("wide", grouped=False, interval=25.0, prefix=30),
    Scope("web", grouped=True, interval=10.0, prefix=32),
]
LIMIT = 5

_steps = st.lists(
    st.tuples(
        st.sampled_from(["assign", "assign", "loose", "loose", "confirm", "find", "expire"]),
        st.sampled_from(SCOPES),
        st.integers(0, 7),
        st.sampled_from(SERVERS),
        st.integers(1, 8000),
    ),
    max_size=80,
)


class Oracle:
    """A list of entries, the one assigned longest ago first; of `firm` ones a connection has been made."""

    def __init__(self) -> None:
        self.entries: list[tuple[Scope, bytes, RealServer, float]] = []
        self.firm: set[tuple[Scope, bytes]] = set()

    def _holding(self, scope: Scope, client: bytes) -> list[tuple[Scope, bytes, RealServer, float]]:
        return [each for each in self.entries if each[:2] == (scope, _network(client, scope.prefix))]

    def find(self, scope: Scope, client: bytes, now: float) -> RealServer | None:
        fresh = [each for each in self._holding(scope, client) if now - each[3] < scope.interval]
        return fresh[0][2] if fresh else None

    def assign(self, scope: Scope, client: bytes, server: RealServer, now: float) -> None:
        known = self._holding(scope, client)
        if known:
            self.entries.remove(known[0])
        elif len(self.entries) == LIMIT:
            loose = (each for each in self.entries if not self._is_firm(each))
            self.entries.remove(next(loose, self.entries[0]))
        self.entries.append((scope, _network(client, scope.prefix), server, now))
        self._forget()

    def confirm(self, scope: Scope, client: bytes) -> bool:
        self.firm.update(each[:2] for each in self._holding(scope, client))
        return bool(self._holding(scope, client))

    def expire(self, now: float) -> None:
        self.entries = [each for each in self.entries if now - each[3] < each[0].interval]
        self._forget()

    def _is_firm(self, entry: tuple[Scope, bytes, RealServer, float]) -> bool:
        return entry[:2] in self.firm

    def _forget(self) -> None:
        self.firm &= {each[:2] for each in self.entries}


def _network(client: bytes, prefix: int) -> bytes:
    return ip_network((client, prefix), strict=False).network_address.packed


@TRIES
@given(_steps)
def test_any_order_of_steps(steps: list[tuple[str, Scope, int, RealServer, int]]) -> None:
    """R063-R066, R151-R157 (A6, A8, A10), F25: find, assign, run out, LRU, the bound, masks and groups."""
    table, oracle = FpaTable(LIMIT), Oracle()
    now = 100.0
    for step, scope, number, server, wait in steps:
        client = bytes((192, 0, 2, number))
        now += wait / 1000
        if step == "assign":
            table.assign(scope, client, server, now)
            oracle.assign(scope, client, server, now)
            oracle.confirm(scope, client)
        elif step == "loose":
            table.assign(scope, client, server, now, loose=True)
            oracle.assign(scope, client, server, now)
        elif step == "confirm":
            assert table.confirm(scope, client) is oracle.confirm(scope, client)
        elif step == "expire":
            before = len(table)
            dropped = table.expire(now, budget=100)
            assert before - dropped == len(table)
            oracle.expire(now)
        assert table.find(scope, client, now) is oracle.find(scope, client, now)
        kept = sorted((each.name, each.grouped, held, fpa.assigned) for each, held, fpa in table.entries())
        assert kept == sorted((each.name, each.grouped, held, at) for each, held, _, at in oracle.entries)
        assert len(table) == len(kept) <= LIMIT
        assert {(each, held) for each, held, fpa in table.entries() if not fpa.loose} == oracle.firm


@TRIES
@given(st.binary(min_size=4, max_size=4), st.integers(0, 32))
def test_masks_of_ipv4(address: bytes, prefix: int) -> None:
    """R151 (A8): all but the first bits are cleared."""
    assert masked(address, prefix) == _network(address, prefix)


@TRIES
@given(st.binary(min_size=16, max_size=16), st.integers(0, 128))
def test_masks_of_ipv6(address: bytes, prefix: int) -> None:
    """R151 (A8): the same for the longer ones."""
    assert masked(address, prefix) == _network(address, prefix)


def test_clearing_up_keeps_to_its_budget() -> None:
    """R066: a bounded step at a time, and it gets there."""
    table = FpaTable(1000)
    for number in range(100):
        table.assign(SCOPES[number % 3], bytes((192, 0, 2, number)), SERVERS[0], 0.0)
    sizes = [len(table)]
    while table.expire(100.0, budget=7):
        sizes.append(len(table))
    assert all(0 < before - after <= 7 for before, after in pairwise(sizes))
    assert len(table) == 0


def test_a_scope_with_fresh_entries_does_not_hide_another_s_old_ones() -> None:
    """R065, R066: each scope has its own order."""
    table = FpaTable(1000)
    table.assign(SCOPES[1], bytes(4), SERVERS[0], 0.0)
    table.assign(SCOPES[0], bytes(4), SERVERS[0], 0.0)
    assert table.expire(12.0, budget=10) == 1
    assert [scope.name for scope, _, _ in table.entries()] == ["wide"]


def test_a_bound_of_one() -> None:
    """R066: the smallest table there can be."""
    table = FpaTable(1)
    for number in range(3):
        table.assign(SCOPES[number], bytes(4), SERVERS[number], float(number))
    assert [(scope, fpa.real) for scope, _, fpa in table.entries()] == [(SCOPES[2], SERVERS[2])]
