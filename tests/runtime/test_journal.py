"""The journal: what one worker writes, another finds, and nothing else."""

import gc
import logging
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from struct import pack

import pytest

from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.keys import flipped
from nfqlb.core.segment import ACK, FIN, RST, SYN, Segment
from nfqlb.core.spec import Address, Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.procfs import Namespace, namespace
from nfqlb.runtime.journal import Journal, Record, storage
from nfqlb.runtime.stall import Heart
from nfqlb.runtime.worker import Worker

HERE = Namespace(inode=4026531840, cookie=1, boot="0f0f0f0f-0000-4000-8000-000000000000")
V4: tuple[Address, ...] = (IPv4Address("192.0.2.100"), IPv4Address("10.0.0.11"), IPv4Address("10.0.0.12"))
V6: tuple[Address, ...] = (IPv6Address("2001:db8::100"), IPv6Address("fd00::11"), IPv6Address("fd00::12"))
CAPACITY = 50_000


def config(addresses: tuple[Address, ...] = V4, *, without: str = "") -> Config:
    """One virtual server, two real ones; `without` one whose server is gone."""
    virtual, *rest = addresses
    reals = tuple(Real(f"web{n}", address) for n, address in enumerate(rest, 1) if f"web{n}" != without)
    servers = tuple(Server(real.name, 8080) for real in reals)
    return Config(
        Gateway(("out",), ("in",), max_connections=CAPACITY),
        reals,
        (Virtual("web", virtual, servers, port=80, scheduler="round-robin"),),
    )


def client_key(number: int, virtual: Address = V4[0]) -> bytes:
    """The key of what client number so-and-so sends."""
    size = len(virtual.packed)
    client = bytes(size - 4) + pack("!I", 0xC6330000 + number // 60_000)
    return client + virtual.packed + pack("!HH", 1024 + number % 60_000, 80)


def connect(director: Director, number: int, *, now: float = 100.0, virtual: Address = V4[0]) -> Connection:
    """A client's SYN."""
    made = director.client_syn(Segment(client_key(number, virtual), SYN, pack("!II", number, 0)), now)
    assert isinstance(made, Connection)
    return made


def establish(director: Director, connection: Connection, *, now: float = 101.0) -> None:
    """The rest of the handshake."""
    sequence = int.from_bytes(connection.client_numbers[:4], "big")
    director.server_segment(Segment(connection.outbound, SYN | ACK, pack("!II", 9, sequence + 1)), now)
    director.client_segment(Segment(connection.inbound, ACK, pack("!II", sequence + 1, 10)), now)


@pytest.fixture
def open_journal(tmp_path: Path) -> Callable[..., Journal]:
    """Opens the journal of this test, as a new process would."""

    def make(capacity: int = CAPACITY, where: Namespace = HERE) -> Journal:
        return Journal(capacity, directory=tmp_path / "run", where=where)

    return make


Open = Callable[..., Journal]


@pytest.mark.parametrize("addresses", [V4, V6])
def test_successor_finds_every_connection(open_journal: Open, addresses: tuple[Address, ...]) -> None:
    """R187: key, server, state and age of every live connection, IPv4 or IPv6; the ended are gone."""
    journal = open_journal()
    director = Director(config(addresses), now=0.0, recorder=journal)
    states = ["syn-sent", "syn-received", "established", "fin-client", "fin-server", "closed"]
    made = [connect(director, n, now=100.0 + n, virtual=addresses[0]) for n in range(8)]
    assert {len(each.inbound) for each in made} == {12 if addresses is V4 else 36}
    director.server_segment(Segment(made[1].outbound, SYN | ACK, pack("!II", 9, 2)), 200.0)
    for each in made[2:]:
        establish(director, each)
    director.client_segment(Segment(made[3].inbound, FIN | ACK, pack("!II", 4, 10)), 201.0)
    director.server_segment(Segment(made[4].outbound, FIN | ACK, pack("!II", 10, 5)), 201.0)
    director.client_segment(Segment(made[5].inbound, RST, pack("!II", 6, 0)), 201.0)
    for gone in made[6:]:
        director.table.remove(gone, 202.0)
    assert [each.state.shown for each in made[:6]] == states

    successor = open_journal()
    records = list(successor.records())
    assert [(each.inbound, each.code, each.opened) for each in records] == [
        (each.inbound, each.state.code, float(int(each.opened))) for each in made[:6]
    ]
    for record, before in zip(records, made, strict=False):
        assert record.server == before.link.real.address + before.link.inbound.port
        assert record.place == before.place
    restored = Director(config(addresses), now=300.0, recorder=successor)
    for record in records:
        assert restored.restore(
            record.inbound, record.server, record.code, record.place, opened=record.opened, now=300.0
        )
    restored.restored(300.0)
    assert [each.state.shown for each in restored.table.inbound.values()] == states
    assert [each.outbound for each in restored.table.inbound.values()] == [each.outbound for each in made[:6]]
    assert restored.totals().connections == director.totals().connections == 5
    for old, new in zip(director.reals(0), restored.reals(0), strict=True):
        assert (old.connections, old.unanswered) == (new.connections, new.unanswered)


@pytest.mark.parametrize("addresses", [V4, V6])
@pytest.mark.parametrize("port", [80, None])
def test_successor_finds_every_flow(
    open_journal: Open, addresses: tuple[Address, ...], port: int | None
) -> None:
    """R012, R187: UDP flows beside connections with the same ports, on one port or on every one."""
    base = config(addresses)
    tcp = replace(base.virtuals[0], port=port)
    if port is None:
        tcp = replace(tcp, servers=tuple(Server(each.real, None) for each in tcp.servers))
    both = replace(base, virtuals=(tcp, replace(tcp, name="udp", protocol="udp")))
    director = Director(both, now=0.0, recorder=open_journal())
    call = connect(director, 1, virtual=addresses[0])
    keys = [client_key(number, addresses[0]) + b"\x11" for number in range(3)]
    flows = [director.client_datagram(key, 100.0) for key in keys]
    assert all(isinstance(each, Connection) for each in flows)
    made = [call, *(each for each in flows if isinstance(each, Connection))]
    director.server_datagram(made[1].outbound, 101.0)
    director.table.remove(made[3], 102.0)

    successor = open_journal()
    restored = Director(both, now=300.0, recorder=successor)
    for place, code, opened, inbound, server in successor.records():
        assert restored.restore(inbound, server, code, place, opened=opened, now=300.0)
    restored.restored(300.0)
    found = list(restored.table.inbound.values())
    assert [(each.inbound, each.outbound, each.state, each.link.real.spec.name) for each in found] == [
        (each.inbound, each.outbound, each.state, each.link.real.spec.name) for each in made[:3]
    ]
    assert restored.server_datagram(made[2].outbound, 301.0) is found[2]
    assert [each.code for each in open_journal().records()] == [1, 9, 9]


@pytest.mark.parametrize("addresses", [V4, V6])
def test_reassigned_connection_is_taken_over_with_its_new_server(
    open_journal: Open, addresses: tuple[Address, ...]
) -> None:
    """R055, R187: a third SYN goes to another server; the record says so before it goes, at its place."""
    director = Director(config(addresses), now=0.0, recorder=open_journal())
    made = [connect(director, n, virtual=addresses[0]) for n in range(3)]
    first = made[0].link.real
    for _ in range(2):
        assert connect(director, 0, virtual=addresses[0]) is made[0]
    assert made[0].link.real is not first
    records = list(open_journal().records())
    assert [(each.place, each.inbound, each.code) for each in records] == [
        (each.place, each.inbound, 1) for each in made
    ]
    assert records[0].server == made[0].link.real.address + pack("!H", 8080)
    assert [each.server for each in records[1:]] == [
        each.link.real.address + pack("!H", 8080) for each in made[1:]
    ]


def test_both_families_at_once(open_journal: Open) -> None:
    """R187: each has its own places; one's end frees none of the other's."""
    journal = open_journal()
    directors = {
        virtual: Director(config(v), now=0.0, recorder=journal) for v in (V4, V6) for virtual in v[:1]
    }
    made = [connect(director, n, virtual=vip) for vip, director in directors.items() for n in range(3)]
    assert len({each.place for each in made}) == 6
    directors[V6[0]].table.remove(made[4], 1.0)
    directors[V4[0]].table.remove(made[0], 1.0)
    kept = [each.inbound for number, each in enumerate(made) if number not in {0, 4}]
    assert [each.inbound for each in open_journal().records()] == kept
    again = [connect(directors[V6[0]], 7, virtual=V6[0]), connect(directors[V4[0]], 7)]
    assert [each.place for each in again] == [made[4].place, made[0].place]


def test_record_half_written_does_not_exist(open_journal: Open) -> None:
    """R187: killed between a record's bytes and its state, a worker leaves nothing to take over."""
    journal = open_journal()
    director = Director(config(), now=0.0, recorder=journal)
    made = [connect(director, n) for n in range(3)]
    with journal.path.open("r+b") as file:
        file.seek(made[1].place)
        file.write(b"\0")
    successor = open_journal()
    assert [each.inbound for each in successor.records()] == [made[0].inbound, made[2].inbound]
    fresh = connect(Director(config(), now=0.0, recorder=successor), 9)
    assert fresh.place == made[1].place, "its place is free again"


@pytest.mark.parametrize(
    "where",
    [
        Namespace(HERE.inode, HERE.cookie, "1f0f0f0f-0000-4000-8000-000000000000"),
        Namespace(HERE.inode, HERE.cookie + 1, HERE.boot),
    ],
)
def test_another_boot_or_namespace(open_journal: Open, where: Namespace) -> None:
    """R187: an inode number is given out again; what another boot or namespace left counts for nothing."""
    connect(Director(config(), now=0.0, recorder=open_journal()), 1)
    other = open_journal(where=where)
    assert list(other.records()) == []
    connect(Director(config(), now=0.0, recorder=other), 2)
    assert [each.inbound for each in open_journal(where=where).records()] == [client_key(2)]


def test_another_capacity(open_journal: Open) -> None:
    """R187: a file with another number of places has what it had."""
    connect(Director(config(), now=0.0, recorder=open_journal()), 1)
    assert [each.inbound for each in open_journal(CAPACITY + 1).records()] == [client_key(1)]


@pytest.mark.parametrize("damage", [b"", b"x", b"\xff" * 100, b"nfqlb journal 2\n" + bytes(5000)])
def test_no_journal_at_all(open_journal: Open, damage: bytes) -> None:
    """R187: a file that is something else is begun anew, and works."""
    journal = open_journal()
    journal.path.write_bytes(damage)
    again = open_journal()
    assert list(again.records()) == []
    connect(Director(config(), now=0.0, recorder=again), 1)
    assert len(list(open_journal().records())) == 1


def test_file_cut_short(open_journal: Open) -> None:
    """R187: a right header over missing records is no reason to fail."""
    journal = open_journal()
    connect(Director(config(), now=0.0, recorder=journal), 1)
    os.truncate(journal.path, 8192)
    assert list(open_journal().records()) == []


def test_absurd_count_of_records(open_journal: Open) -> None:
    """R187: a count that no section can have does not lead past its end, neither reading nor clearing."""
    journal = open_journal()
    connect(Director(config(), now=0.0, recorder=journal), 1)
    with journal.path.open("r+b") as file:
        file.seek(64 + 24)
        file.write(b"\xff" * 7)
    successor = open_journal()
    assert [each.inbound for each in successor.records()] == [client_key(1)]
    successor.clear()
    assert list(successor.records()) == []


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_unknown_state_is_not_restored(open_journal: Open, code: int) -> None:
    """R187: a state that this version does not know ends the connection; its place is free."""
    journal = open_journal()
    made = connect(Director(config(), now=0.0, recorder=journal), 1)
    with journal.path.open("r+b") as file:
        file.seek(made.place)
        file.write(bytes([code]))
    director, successor = taken_over(open_journal)
    assert len(director.table) == 0
    assert list(successor.records()) == []


def taken_over(open_journal: Open, to: Config | None = None) -> tuple[Director, Journal]:
    """A new director that has taken over what it could, as a worker does."""
    journal = open_journal()
    worker = Worker.__new__(Worker)  # its queues and its channel have no part in this
    worker._heart = Heart()
    worker._journal = journal
    worker.director = Director(to or config(), now=0.0, recorder=journal)
    worker._restore()
    return worker.director, journal


def test_server_that_is_gone(open_journal: Open) -> None:
    """R187: connections to a server that the configuration has no more are let go, their places free."""
    director = Director(config(), now=0.0, recorder=open_journal())
    made = [connect(director, n) for n in range(6)]
    kept = [each.inbound for each in made if each.link.real.spec.name == "web1"]
    assert len(kept) == 3
    successor, journal = taken_over(open_journal, config(without="web2"))
    assert list(successor.table.inbound) == kept
    assert [each.inbound for each in journal.records()] == kept
    assert successor.totals().connections == 3


def test_successor_of_a_successor(open_journal: Open) -> None:
    """R187: what a second worker adds and ends, a third one sees."""
    first = Director(config(), now=0.0, recorder=open_journal())
    made = [connect(first, n) for n in range(5)]
    second, _ = taken_over(open_journal)
    second.table.remove(second.table.inbound[made[2].inbound], 1.0)
    added = connect(second, 77)
    assert added.place == made[2].place
    third, _ = taken_over(open_journal)
    assert sorted(third.table.inbound) == sorted(second.table.inbound)


def test_places_are_used_again(open_journal: Open) -> None:
    """R187: ten times as many connections as there are places, a few at a time, need no more than a few."""
    journal = open_journal(8)
    director = Director(config(), now=0.0, recorder=journal)
    for n in range(80):
        connection = connect(director, n)
        assert connection.place > 0
        if n >= 7:
            director.table.remove(director.table.inbound[client_key(n - 7)], 1.0)
    assert journal.lost == 0
    assert len(list(open_journal(8).records())) == 7


def test_more_connections_than_places(open_journal: Open) -> None:
    """R187: one that finds no place is served all the same, counted, and does not survive the worker."""
    journal = open_journal(3)
    director = Director(config(), now=0.0, recorder=journal)
    made = [connect(director, n) for n in range(5)]
    assert [each.place > 0 for each in made] == [True, True, True, False, False]
    assert journal.lost == 2
    for each in made:
        establish(director, each)
    director.table.remove(made[4], 1.0)
    director.table.remove(made[0], 1.0)
    assert [each.inbound for each in open_journal(3).records()] == [client_key(1), client_key(2)]


def test_cleared_by_somebody_else(open_journal: Open) -> None:
    """R187: the supervisor, which has never written a record, forgets what its workers wrote."""
    supervisors = open_journal()
    director = Director(config(), now=0.0, recorder=open_journal())
    for n in range(10):
        connect(director, n)
    supervisors.clear()
    assert list(open_journal().records()) == []
    assert connect(Director(config(), now=0.0, recorder=supervisors), 1).place > 0


def test_fork_shares_the_journal(open_journal: Open) -> None:
    """R187: what a forked worker writes, its sibling reads, both through the file their parent opened."""
    journal = open_journal()
    pid = os.fork()
    if pid == 0:
        try:
            connect(Director(config(), now=0.0, recorder=journal), 5)
        finally:
            os.kill(os.getpid(), 9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    assert [each.inbound for each in journal.records()] == [client_key(5)]


def test_file_and_its_removal(open_journal: Open) -> None:
    """R187: nobody else may read who is connected; a clean stop leaves no file, a crash does."""
    journal = open_journal()
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert not os.get_inheritable(journal._file)
    journal.close()
    assert journal.path.exists()
    open_journal().close(remove=True)
    assert not journal.path.exists()


def test_open_file_of_wider_mode_is_narrowed(open_journal: Open) -> None:
    """R187: a mode that somebody widened does not stay so."""
    path = open_journal().path
    path.chmod(0o644)
    assert stat.S_IMODE(open_journal().path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("whose", ["directory", "file"])
def test_what_belongs_to_somebody_else_is_refused(open_journal: Open, whose: str) -> None:
    """R187: in a directory open to all, somebody may have put a file or directory of our name."""
    journal = open_journal()
    os.chown(journal.path if whose == "file" else journal.path.parent, 12345, 12345)
    with pytest.raises(KernelError, match="belongs to user 12345"):
        open_journal()


def test_links_are_not_followed(open_journal: Open, tmp_path: Path) -> None:
    """R187: a link in the file's place would have us overwrite another file; one clear line instead."""
    journal = open_journal()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    journal.path.unlink()
    journal.path.symlink_to(victim)
    with pytest.raises(KernelError, match="journal cannot be opened"):
        open_journal()
    assert victim.read_text() == "precious"


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """R187: one clear line that names the file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelError, match=r"file/run/journal-\d+: the journal cannot be opened: "):
        Journal(10, directory=tmp_path / "file" / "run", where=HERE)


def test_this_machines_own(tmp_path: Path) -> None:
    """R187: without being told, it is that of this boot and network namespace, in memory-backed storage."""
    journal = Journal(10, directory=tmp_path)
    assert journal.path.name == f"journal-{namespace().inode}"
    assert storage() in {Path("/run/nfqlb"), Path("/dev/shm/nfqlb")}


@pytest.mark.parametrize("count", [10_000, 1_000_000])
def test_restoring_many(count: int, caplog: pytest.LogCaptureFixture) -> None:
    """R060, R187: a table as large as the default limit comes back whole; the time is only reported."""
    caplog.set_level(logging.INFO)
    large = config()
    large = Config(Gateway(("out",), ("in",), max_connections=count), large.reals, large.virtuals)
    directory = storage().parent / f"nfqlb-test-{os.getpid()}"
    journal = Journal(count, directory=directory, where=HERE)
    try:
        section = journal._sections[0]
        servers = [real.address.packed + pack("!H", 8080) for real in large.reals]
        end = section.start + count * section.record.size
        while section.reserved_to < end:
            assert journal._reserve(section)
        for n in range(count):
            at = section.start + n * section.record.size
            section.record.pack_into(journal._map, at, 3, 6, 100, client_key(n), servers[n & 1])
        gc.disable()  # as in the worker
        begun = time.perf_counter()
        director, successor = taken_over(lambda: Journal(count, directory=directory, where=HERE), large)
        took = time.perf_counter() - begun
        print(f"\n{count:,} connections taken over in {took * 1000:.0f} ms")
        assert director.totals().connections == len(director.table) == count
        assert [real.connections for real in director.reals(0)] == [count // 2] * 2
        assert f"{count} connections taken over" in caplog.text
        successor.close()
    finally:
        gc.enable()
        journal.close(remove=True)
        directory.rmdir()


def test_record_is_what_it_says(open_journal: Open) -> None:
    """R187: the fields of a record, in the units that restoring takes."""
    made = connect(Director(config(), now=0.0, recorder=open_journal()), 3, now=1234.9)
    assert list(open_journal().records()) == [
        Record(made.place, 1, 1234, client_key(3), V4[1].packed + pack("!H", 8080))
    ]
    assert flipped(made.outbound)[:4] == client_key(3)[:4]
