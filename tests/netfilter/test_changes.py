"""What is read from the kernel's notices of changes; the messages are as Linux 6.18 sends them."""

import os
import socket
from collections.abc import Iterator
from struct import Struct

import pytest

from nfqlb.netfilter.changes import ADDRESSES, EVERYTHING, RULES, SETTINGS, Changes, Notice
from nfqlb.netfilter.netlink import attribute, message
from nfqlb.netfilter.procfs import process

IPV4, IPV6 = RULES[socket.AF_INET], RULES[socket.AF_INET6]
_NEW_RULE, _DELETED_RULE, _NEW_GENERATION = 10 << 8 | 6, 10 << 8 | 8, 10 << 8 | 15
_INET = 1  # the family of firewalld's tables, and of many others
_route = Struct("=IHHII").pack


class Told(Changes):
    """Notices from a pipe in the kernel's place."""

    def __init__(self) -> None:
        self._families = set()
        self._touched = set()
        self._buffer = bytearray(1 << 16)
        self.rules, self.by_rules = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.route, self.by_route = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.rules.setblocking(False)
        self.route.setblocking(False)


@pytest.fixture
def told() -> Iterator[Told]:
    changes = Told()
    yield changes
    changes.close()
    changes.by_rules.close()
    changes.by_route.close()


def rule(family: int, table: str, kind: int = _DELETED_RULE) -> bytes:
    return message(kind, 0, attribute(1, table.encode() + b"\0"), family=family)


def generation(pid: int, name: str) -> bytes:
    body = attribute(1, bytes(4)) + attribute(2, pid.to_bytes(4)) + attribute(3, name.encode() + b"\0")
    return message(_NEW_GENERATION, 0, body)


def of_route(kind: int, port: int = 0) -> bytes:
    return _route(24, kind, 0, 1, port) + bytes(8)


def test_nothing_told_is_nothing(told: Told) -> None:
    assert told.read() == Notice()


@pytest.mark.parametrize(("family", "subject"), RULES.items())
@pytest.mark.parametrize("table", ["raw", "mangle", "nat", "filter", "security"])
def test_a_flushed_table_of_iptables_concerns_the_rules_of_its_family(
    told: Told, family: int, subject: str, table: str
) -> None:
    told.by_rules.send(rule(family, table) + generation(4_000_000, "iptables"))
    notice = told.read()
    assert notice.subjects == {subject}
    (author,) = notice.authors
    assert (author.process.pid, author.process.name) == (4_000_000, "iptables")
    assert author.touched == {f"{'iptables' if family == socket.AF_INET else 'ip6tables'} {table}"}


@pytest.mark.parametrize(("family", "table"), [(_INET, "filter"), (socket.AF_INET, "firewalld")])
def test_tables_of_others_do_not_concern_us(told: Told, family: int, table: str) -> None:
    told.by_rules.send(rule(family, table, _NEW_RULE) + generation(7, "nft"))
    assert told.read() == Notice()


def test_a_transaction_in_several_datagrams_is_one(told: Told) -> None:
    told.by_rules.send(rule(socket.AF_INET, "raw"))
    assert told.read() == Notice()
    told.by_rules.send(rule(socket.AF_INET6, "nat"))
    told.by_rules.send(generation(4_000_000, "iptables-restor"))
    notice = told.read()
    assert notice.subjects == {IPV4, IPV6}
    assert len(notice.authors) == 1


def test_who_is_still_there_is_known_by_command_and_parent(told: Told) -> None:
    name = process(os.getpid()).name
    told.by_rules.send(rule(socket.AF_INET, "raw") + generation(os.getpid(), name))
    author = told.read().authors[0].process
    assert author.parent == os.getppid()
    assert author.uid == os.geteuid()
    assert f"process {os.getpid()}" in str(author)


def test_a_process_number_that_is_somebody_elses_by_now_is_not_blamed(told: Told) -> None:
    told.by_rules.send(rule(socket.AF_INET, "raw") + generation(os.getpid(), "iptables"))
    author = told.read().authors[0].process
    assert (author.command, author.parent, author.uid) == ("", 0, None)
    assert str(author) == f"iptables (process {os.getpid()})"


@pytest.mark.parametrize("kind", [20, 21])
def test_addresses_come_and_go(told: Told, kind: int) -> None:
    told.by_route.send(of_route(kind, port=4_000_000))
    notice = told.read()
    assert notice.subjects == {ADDRESSES}
    assert [author.process.pid for author in notice.authors] == [4_000_000]


def test_a_changed_setting_has_no_author(told: Told) -> None:
    told.by_route.send(of_route(80))
    assert told.read() == Notice({SETTINGS}, [])


@pytest.mark.parametrize("junk", [b"", b"\0" * 15, b"\xff" * 64, rule(socket.AF_INET, "raw")[:18]])
def test_junk_is_nothing(told: Told, junk: bytes) -> None:
    told.by_rules.send(junk)
    told.by_route.send(junk)
    assert told.read() == Notice()


def test_everything_is_everything() -> None:
    assert {IPV4, IPV6, ADDRESSES, SETTINGS} == EVERYTHING
