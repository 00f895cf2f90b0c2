"""Sticky entries in the journal: what one worker binds, its successor finds."""

import os
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from struct import pack
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.admission import ServerState
from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.fpa import FpaTable
from nfqlb.core.scope import Scope
from nfqlb.core.segment import SYN, Segment
from nfqlb.core.server import RealServer
from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.procfs import Namespace
from nfqlb.runtime import bindings, layout
from nfqlb.runtime.bindings import identity_of
from nfqlb.runtime.journal import Journal
from nfqlb.runtime.stall import Heart
from nfqlb.runtime.worker import Worker
from tests.core.properties import TRIES

HERE = Namespace(inode=4026531840, cookie=1, boot="0f0f0f0f-0000-4000-8000-000000000000")
SERVERS = [RealServer(Real(name, ip_address(f"10.0.0.{n}")), 0.0) for n, name in enumerate("abc", 1)]
SIX = RealServer(Real("six", ip_address("fd00::11")), 0.0)
SCOPES = [
    Scope("web", grouped=False, interval=10.0, prefix=32),
    Scope("wide", grouped=False, interval=25.0, prefix=30),
    Scope("web", grouped=True, interval=10.0, prefix=32),
]
LIMIT = 5
CONFIG = Config(
    Gateway(("out",), ("in",)),
    tuple(Real(f"web{n}", ip_address(f"10.0.0.{n}")) for n in (1, 2, 3)),
    tuple(
        Virtual(
            name, ip_address("192.0.2.100"), tuple(Server(f"web{n}", 80) for n in (1, 2, 3)), port=port,
            sticky=60.0, scheduler="round-robin",
        )
        for name, port in (("web", 80), ("shop", 8080))
    ),
)  # fmt: skip

SCOPE = Scope("web", grouped=False, interval=60.0, prefix=32)

Open = Callable[..., Journal]


@pytest.fixture
def open_journal(tmp_path: Path) -> Open:
    """Opens the journal of this test, as a new process would."""

    def make(capacity: int = 1000, sticky: int = 1000) -> Journal:
        return Journal(capacity, sticky=sticky, directory=tmp_path / "run", where=HERE)

    return make


def syn(director: Director, client: int, now: float, *, port: int = 80, source: int = 1024) -> str:
    """A client's SYN; the name of the server that it went to."""
    key = pack("!II", 0xC6330000 + client, 0xC0000264) + pack("!HH", source, port)
    made = director.client_syn(Segment(key, SYN, pack("!II", client, 0)), now)
    assert isinstance(made, Connection)
    return made.link.real.spec.name


def first(journal: Journal, config: Config = CONFIG) -> Director:
    return Director(config, now=0.0, recorder=journal, keeper=journal, stickies=journal.stickies)


def taken_over(journal: Journal, config: Config = CONFIG) -> Director:
    """A director that has taken over what it could, as a worker does."""
    worker = Worker.__new__(Worker)  # its queues and its channel have no part in this
    worker._heart = Heart()
    worker._journal = journal
    worker.director = first(journal, config)
    worker._restore()
    return worker.director


def end_all(director: Director) -> None:
    """Every connection ends, so that only sticky entries are left."""
    for connection in list(director.table.inbound.values()):
        director.table.remove(connection, 0.0)


def bound(director: Director) -> list[tuple[str, bytes, str]]:
    """Every entry, in the order in which they would be given up."""
    return [(scope.name, client, fpa.real.spec.name) for scope, client, fpa in director.fpas.entries()]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a worker's clock says, in seconds: a list of one."""
    clock = [1000.0]
    monkeypatch.setattr("nfqlb.runtime.worker.time.monotonic", lambda: clock[0])
    return clock


_steps = st.lists(
    st.tuples(
        st.sampled_from(["assign", "assign", "assign", "expire", "clear", "confirm", "forget", "rescope"]),
        st.integers(0, 2), st.integers(0, 7), st.sampled_from(SERVERS), st.integers(1, 8000),
    ),
    max_size=60,
)  # fmt: skip


@TRIES
@given(_steps)
def test_any_order_of_steps(steps: list[tuple[str, int, int, RealServer, int]]) -> None:
    """R063-R066: the records are the table's entries at any moment, oldest first, and no more than those."""
    with TemporaryDirectory() as directory:
        journal = Journal(10, directory=Path(directory), where=HERE)
        table, scopes, now = FpaTable(LIMIT, journal.stickies), list(SCOPES), 100.0
        for step, at, number, server, wait in steps:
            now += wait / 1000
            scope, client = scopes[at], bytes((192, 0, 2, number))
            if step == "assign":
                table.assign(scope, client, server, now, loose=bool(number & 1))
            elif step == "confirm":
                table.confirm(scope, client)
            elif step == "expire":
                table.expire(now, budget=100)
            elif step == "clear":
                table.clear(scope, client if number else None)
            elif step == "forget":
                table.forget(server)
            else:  # a virtual server gets another name, and now and then two come of one
                scopes[at] = replace(scope, name=f"n{number}")
                sources = dict(zip(scopes, SCOPES if number == 7 else scopes, strict=True))
                sources[scopes[at]] = scope
                table.rescope(LIMIT, sources)
            held = [
                (identity_of(each), key, fpa.real.address, float(int(fpa.assigned)), fpa.place, fpa.loose)
                for each, key, fpa in table.entries()
            ]
            records = [
                (each.scope, each.client, each.server, each.assigned, each.place, each.loose)
                for each in Journal(10, directory=Path(directory), where=HERE).bound()
            ]
            assert sorted(held) == sorted(records)
            assert [each[3] for each in records] == sorted(each[3] for each in records)
            assert all(each[4] >= 0 for each in held)


def test_clients_without_a_connection_stay_bound(open_journal: Open, now: list[float]) -> None:
    """R151, R187: a successor sends them to where they were, in the order in which they would be given up."""
    director = first(open_journal())
    sent = {client: syn(director, client, 990.0 + client) for client in range(5)}
    assert set(sent.values()) == {"web1", "web2", "web3"}
    syn(director, 0, 998.0, source=1025)  # refreshed: the last one to be given up
    end_all(director)
    before = bound(director)
    successor = taken_over(open_journal())
    assert not successor.table.inbound
    assert bound(successor) == before
    assert [client[-1] for _, client, _ in before] == [1, 2, 3, 4, 0]
    for client in reversed(range(5)):
        assert syn(successor, client, 1001.0, source=1026) == sent[client]


def test_an_entry_does_not_hold_for_longer(open_journal: Open, now: list[float]) -> None:
    """R154: the interval runs from when it was assigned, whoever counts it; what has run out is freed."""
    director = first(open_journal())
    syn(director, 1, 900.0)
    syn(director, 2, 950.0)
    end_all(director)
    journal = open_journal()
    successor = taken_over(journal)
    assert [client[-1] for _, client, _ in bound(successor)] == [2]
    assert len(journal.bound()) == 1
    assert len(list(successor.sticky(1009.0))) == 1
    assert not list(successor.sticky(1010.5))


def test_a_cleared_entry_stays_cleared(open_journal: Open, now: list[float]) -> None:
    """R187: even where its client has connections, which say where it had been sent."""
    director = first(open_journal())
    for client in (1, 2):
        syn(director, client, 990.0)
    syn(director, 1, 990.0, port=8080)
    assert director.operation.clear_sticky("web", bytes((0xC6, 0x33, 0, 1)), 991.0) == 1
    successor = taken_over(open_journal())
    assert len(successor.table.inbound) == 3
    assert [(name, client[-1]) for name, client, _ in bound(successor)] == [("web", 2), ("shop", 1)]


def test_a_server_that_was_out_of_service_comes_back_without_them(
    open_journal: Open, now: list[float]
) -> None:
    """R064, R187 (A7): not even the connections that it still has bring them back."""
    director = first(open_journal())
    name = syn(director, 1, 990.0)
    for setting in (ServerState.OUT_OF_SERVICE, ServerState.IN_SERVICE):
        director.operation.set_real(name, setting=setting, now=991.0)
    assert bound(taken_over(open_journal())) == []


def test_another_configuration(open_journal: Open, now: list[float]) -> None:
    """R187: entries of servers and virtual servers that are gone are freed; names of servers may change."""
    director = first(open_journal())
    sent = {client: syn(director, client, 990.0) for client in range(6)}
    syn(director, 1, 990.0, port=8080)
    end_all(director)
    reals = (Real("other", ip_address("10.0.0.1")), CONFIG.reals[1])
    servers = (Server("other", 80), Server("web2", 80))
    config = replace(CONFIG, reals=reals, virtuals=(replace(CONFIG.virtuals[0], servers=servers),))
    journal = open_journal()
    successor = taken_over(journal, config)
    kept = {client: {"web1": "other"}.get(name, name) for client, name in sent.items() if name != "web3"}
    assert {client[-1]: name for _, client, name in bound(successor)} == kept
    assert len(journal.bound()) == 4
    syn(successor, 9, 1000.0)
    assert len(journal.bound()) == 5, "what was freed is used again"


def test_activity_goes_on_with_the_connections(open_journal: Open, now: list[float]) -> None:
    """A6, R187: an entry whose time has passed holds while the client has a connection; others do not."""
    virtual = replace(CONFIG.virtuals[0], sticky_refresh="activity")
    config = replace(CONFIG, virtuals=(virtual,))
    director = first(open_journal(), config)
    for client in (1, 2):
        syn(director, client, 900.0)
    director.table.remove(director.table.inbound[next(iter(director.table.inbound))], 900.0)
    successor = taken_over(open_journal(), config)
    assert [each.client.packed[-1] for each in successor.sticky(1000.0)] == [2]


def test_a_full_table_gives_up_the_same_ones(open_journal: Open, now: list[float]) -> None:
    """R066, F25: at the limit the least recently used one makes room, and its record is used again."""
    gateway = replace(CONFIG.gateway, max_sticky=10)
    config = replace(CONFIG, gateway=gateway)
    director = first(open_journal(sticky=10), config)
    for client in range(40):
        syn(director, client, 950.0 + client)
    end_all(director)
    journal = open_journal(sticky=10)
    assert [each.client[-1] for each in journal.bound()] == list(range(30, 40))
    successor = taken_over(journal, config)
    syn(successor, 99, 1000.0)
    assert [client[-1] for _, client, _ in bound(successor)] == [*range(31, 40), 99]
    assert journal.unkept == 0


def test_a_smaller_table_keeps_what_it_has_room_for(open_journal: Open, now: list[float]) -> None:
    """R066: the records that are too many are freed."""
    director = first(open_journal())
    for client in range(20):
        syn(director, client, 970.0 + client)
    end_all(director)
    config = replace(CONFIG, gateway=replace(CONFIG.gateway, max_sticky=5))
    journal = open_journal(sticky=5)
    successor = taken_over(journal, config)
    assert [client[-1] for _, client, _ in bound(successor)] == list(range(15, 20))
    assert len(journal.bound()) == 5


def test_what_a_flood_has_left_goes_first_with_a_successor_too(open_journal: Open, now: list[float]) -> None:
    """F24: who was never connected stays loose; who was is not pushed out."""
    config = replace(CONFIG, gateway=replace(CONFIG.gateway, max_sticky=10))
    director = first(open_journal(), config)
    for client in range(10):
        syn(director, client, 990.0 + client / 2)
    director.fpas.confirm(SCOPE, bytes((0xC6, 0x33, 0, 0)))
    end_all(director)
    successor = taken_over(open_journal(), config)
    for client in range(100, 130):
        syn(successor, client, 1000.0)
    assert [client[-1] for _, client, _ in bound(successor)] == [0, *range(121, 130)]


def test_ipv6(open_journal: Open) -> None:
    """R063: addresses of sixteen bytes."""
    table = FpaTable(10, open_journal().stickies)
    scope = Scope("six", grouped=False, interval=60.0, prefix=64)
    client = ip_address("2001:db8:0:7::9").packed
    table.assign(scope, client, SIX, 5.0)
    (record,) = open_journal().bound()
    assert (record.scope, record.client, record.server) == (
        identity_of(scope), ip_address("2001:db8:0:7::").packed, SIX.address,
    )  # fmt: skip


def test_no_room(open_journal: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """F30: with the storage used up clients are bound all the same, and it is counted."""
    journal = open_journal()

    def full(_file: int, _offset: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    table = FpaTable(10, journal.stickies)
    for number in range(3):
        table.assign(SCOPES[0], bytes((192, 0, 2, number)), SERVERS[0], 5.0)
    table.assign(SCOPES[0], bytes((192, 0, 2, 1)), SERVERS[1], 6.0)
    table.forget(SERVERS[0])
    assert len(table) == 1
    assert journal.unkept == 3
    assert open_journal().bound() == []


def test_a_half_written_record_does_not_exist(open_journal: Open) -> None:
    """R187: killed between two of its fields, the first byte is not there yet."""
    journal = open_journal()
    table = FpaTable(10, journal.stickies)
    table.assign(SCOPES[0], bytes(4), SERVERS[0], 5.0)
    (record,) = journal.bound()
    data = bytearray(bindings.RECORD.size)
    bindings.RECORD.pack_into(data, 0, 0, 5, record.scope, record.client, record.server)
    assert list(bindings.read(memoryview(data), 0)) == []


def test_the_journal_of_another_version_is_taken_over(open_journal: Open, now: list[float]) -> None:
    """F40, R187: without a section for sticky entries; connections say where their clients belong."""
    journal = open_journal()
    director = first(journal)
    sent = {client: syn(director, client, 990.0) for client in range(4)}
    director.operation.set_real("web2", weight=7.0, now=990.0)
    entry = layout.Section(layout.Wanted(4, bindings.RECORD, 0, 0), 0, 0, 3)
    with journal.path.open("r+b") as file:
        file.truncate(journal._sticky.start)
        file.seek(entry.entry_at)
        file.write(bytes(len(entry.entry(0))))
    journal = open_journal()
    assert not journal.whole
    successor = taken_over(journal)
    assert {client[-1]: name for _, client, name in bound(successor)} == sent
    assert len(successor.table.inbound) == 4
    assert successor.real_servers["web2"].weight == 7.0
    again = open_journal()
    assert again.whole
    assert bound(taken_over(again)) == bound(successor)


@pytest.mark.parametrize("capacity", [50, 5000])
def test_room_for_other_numbers(open_journal: Open, now: list[float], capacity: int) -> None:
    """F40: another `max_connections` or `max_sticky` loses nothing of what is there."""
    director = first(open_journal())
    sent = {client: syn(director, client, 990.0) for client in range(100)}
    director.operation.set_virtual("shop", ServerState.OUT_OF_SERVICE)
    journal = open_journal(capacity, capacity)
    successor = taken_over(journal)
    assert len(successor.table.inbound) == 100
    assert {client[-1]: name for _, client, name in bound(successor)} == sent
    assert not successor.virtual_servers[1].setting.new
    syn(successor, 200, 1000.0)
    assert len(bound(taken_over(open_journal(capacity, capacity)))) == 101
    assert [file.name for file in journal.path.parent.iterdir()] == [journal.path.name]


def test_a_copy_that_fails_leaves_the_journal_as_it_was(
    open_journal: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F30: no room for the new file: the old one is still there, and nothing else."""
    director = first(open_journal())
    syn(director, 1, 990.0)
    path = open_journal().path
    before = path.read_bytes()

    def full(_file: int, _offset: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as short:
        short.setattr(os, "posix_fallocate", full)
        with pytest.raises(Exception, match="cannot be opened: No space left"):
            open_journal(5000, 5000)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
