"""What was set and what failed, across deaths: records by name, none of them half believed."""

import mmap
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.admission import ServerState
from nfqlb.core.chronicle import Kept, Kind
from nfqlb.core.director import Director
from nfqlb.core.health import Condition
from nfqlb.netfilter.procfs import Namespace
from nfqlb.runtime.journal import Journal
from nfqlb.runtime.ledger import CAPACITY, PAIR, Ledger, packed, unpacked
from nfqlb.runtime.stall import Heart
from nfqlb.runtime.worker import Worker
from tests.core.properties import TRIES
from tests.runtime.test_journal import config

HERE = Namespace(4026531840, 7, "0f0f0f0f-0000-4000-8000-000000000000")
WEB1 = Kept(
    Kind.REAL, "web1", ServerState.STICKY_ONLY, 2.5, 90.25, Condition.FAILED, 100.5, 160.5, 7, 3,
    "8 connections in a row could not be made",
)  # fmt: skip
SHOP = Kept(Kind.VIRTUAL, "shop", ServerState.OUT_OF_SERVICE)


@pytest.fixture
def open_journal(tmp_path: Path) -> Callable[[], Journal]:
    """Opens the journal of this test, as a new process would."""
    return lambda: Journal(10, directory=tmp_path / "run", where=HERE)


Open = Callable[[], Journal]

_names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=64)
_times = st.floats(0, 1e9)
_kept = st.builds(
    Kept,
    kind=st.sampled_from(Kind),
    name=_names,
    setting=st.sampled_from([state for state in ServerState if state.operator]),
    weight=st.none() | st.floats(0, 1e6),
    bound_from=_times,
    condition=st.sampled_from(Condition),
    failed_at=_times,
    retry_at=_times,
    no_answer=st.integers(0, 2**32 - 1),
    reset=st.integers(0, 2**32 - 1),
    reason=st.text("abc ,:0123456789", max_size=88).map(str.strip),
)


@TRIES
@given(_kept, st.integers(1, 2**32 - 1))
def test_a_record_says_what_was_kept(kept: Kept, number: int) -> None:
    """R187: every field, to the bit."""
    assert unpacked(packed(kept, number)) == (number, kept)


@TRIES
@given(_kept, _kept, st.integers(0, PAIR // 2), st.integers(1, 1000))
def test_a_record_half_written_is_not_believed(before: Kept, after: Kept, written: int, number: int) -> None:
    """R187: whatever part of a new record stands over an older one, it is the old or the new one or none."""
    old, new = packed(before, number), packed(after, number + 2)
    for torn in (new[:written] + old[written:], old[:written] + new[written:]):
        assert unpacked(torn) in (None, (number, before), (number + 2, after))


def test_a_reason_too_long_is_cut() -> None:
    """R187: also in the middle of a character."""
    said = unpacked(packed(WEB1._replace(reason="é" * 60 + "x"), 1))
    assert said is not None
    assert said[1].reason == "é" * 44


def test_unwritten_and_foreign_records_are_none() -> None:
    """R187: zeros, noise, and codes of another version."""
    size = PAIR // 2
    assert unpacked(bytes(size)) is None
    assert unpacked(b"\xff" * size) is None
    foreign = bytearray(packed(WEB1, 1))
    foreign[9] = 99  # the setting
    foreign[:4] = crc32(bytes(foreign[4:])).to_bytes(4, "little")
    assert unpacked(bytes(foreign)) is None


def test_a_successor_finds_the_newest(open_journal: Open) -> None:
    """R187: real and virtual servers of one name apart; each write replaces the last."""
    journal = open_journal()
    assert list(journal.kept()) == []
    same = Kept(Kind.VIRTUAL, "web1", ServerState.OUT_OF_SERVICE)
    for number in range(5):
        journal.keep(WEB1._replace(reset=number))
        journal.keep(same)
    journal.keep(SHOP)
    successor = open_journal()
    assert list(successor.kept()) == [WEB1._replace(reset=4), same, SHOP]
    successor.keep(WEB1._replace(reset=9))
    assert list(open_journal().kept()) == [WEB1._replace(reset=9), same, SHOP]


@pytest.mark.parametrize("kept", [2, 3])
def test_killed_in_mid_write_the_one_before_counts(open_journal: Open, kept: int) -> None:
    """R187: in either of a record's two places."""
    journal = open_journal()
    list(journal.kept())
    for number in range(kept):
        journal.keep(WEB1._replace(reset=number))
    newest = journal._names.start + (kept & 1) * PAIR // 2
    with journal.path.open("r+b") as file:
        file.seek(newest + 60)
        file.write(b"\x55\xaa\x55")
    successor = open_journal()
    assert list(successor.kept()) == [WEB1._replace(reset=kept - 2)]
    successor.keep(WEB1._replace(reset=77))
    assert list(open_journal().kept()) == [WEB1._replace(reset=77)], "and it can be written again"


def test_a_first_write_that_was_cut_leaves_nothing(open_journal: Open) -> None:
    """R187: its place is free."""
    journal = open_journal()
    list(journal.kept())
    journal.keep(WEB1)
    with journal.path.open("r+b") as file:
        file.seek(journal._names.start + PAIR // 2)
        file.write(b"\0" * 50)
    successor = open_journal()
    assert list(successor.kept()) == []
    successor.keep(SHOP)
    assert list(open_journal().kept()) == [SHOP]


def test_names_that_are_gone_make_room(open_journal: Open) -> None:
    """R187: their places are used again, and tell nothing of who was there before."""
    journal = open_journal()
    list(journal.kept())
    for number in range(3):
        journal.keep(WEB1)
        journal.keep(SHOP._replace(name=f"gone{number}"))
    for kept in list(journal.kept()):
        if kept.name.startswith("gone"):
            journal.forget_name(kept)
    assert list(open_journal().kept()) == [WEB1]
    journal.keep(SHOP)
    assert list(open_journal().kept()) == [WEB1, SHOP]


def test_names_that_a_reload_has_taken_away_make_room(open_journal: Open) -> None:
    journal = open_journal()
    list(journal.kept())
    for kept in (WEB1, SHOP, SHOP._replace(name="gone"), WEB1._replace(kind=Kind.VIRTUAL)):
        journal.keep(kept)
    journal.retain({(Kind.REAL, "web1"), (SHOP.kind, SHOP.name)})
    assert list(open_journal().kept()) == [WEB1, SHOP]


def test_forgetting_everything_forgets_this_too(open_journal: Open) -> None:
    """R187: a journal that kills those who read it is not believed in any part."""
    journal = open_journal()
    list(journal.kept())
    journal.keep(WEB1)
    journal.clear()
    assert list(open_journal().kept()) == []


def test_more_names_than_there_is_room_for() -> None:
    """R187: counted, and the others are kept."""
    whole = mmap.mmap(-1, CAPACITY * PAIR)
    reserved = 0

    def reserve() -> bool:
        nonlocal reserved
        reserved = min(reserved + 100 * PAIR, (CAPACITY - 5) * PAIR)
        return True

    def opened() -> Ledger:
        return Ledger(whole, 0, reserved_to=lambda: reserved, reserve=reserve)

    first = opened()
    assert list(first.records()) == []
    for number in range(CAPACITY + 3):
        first.keep(SHOP._replace(name=f"v{number}"))
        if reserved == (CAPACITY - 5) * PAIR:
            reserved = CAPACITY * PAIR
    assert first.lost == 3
    assert len(list(opened().records())) == CAPACITY


def test_no_storage_is_no_reason_to_fail() -> None:
    """R187: nothing is written where nothing was reserved."""
    whole = mmap.mmap(-1, CAPACITY * PAIR)
    first = Ledger(whole, 0, reserved_to=lambda: 0, reserve=lambda: False)
    first.keep(SHOP)
    assert first.lost == 1
    assert not any(whole[: 2 * PAIR])


def test_a_worker_takes_over_what_is_there(open_journal: Open) -> None:
    """R039, R186, R187: before the connections; who is not in the configuration any more is forgotten."""
    journal = open_journal()
    list(journal.kept())
    for kept in (WEB1, WEB1._replace(name="gone"), WEB1._replace(name="web2", condition=Condition.WELL)):
        journal.keep(kept)
    successor = open_journal()
    worker = Worker.__new__(Worker)  # its queues and its channel have no part in this
    worker._heart = Heart()
    worker._journal = successor
    worker.director = Director(config(), now=200.0, recorder=successor, keeper=successor)
    worker._restore()
    shown = {real.name: (real.state, real.weight) for real in worker.director.reals(200.0)}
    assert shown == {"web1": ("failed", 2.5), "web2": ("sticky-only", 2.5)}
    assert [kept.name for kept in open_journal().kept()] == ["web1", "web2"]
    worker.director.operation.set_real("web1", setting=ServerState.MAINTENANCE, now=201.0)
    (kept,) = [kept for kept in open_journal().kept() if kept.name == "web1"]
    assert kept.setting is ServerState.MAINTENANCE, "and what it changes is written down at once"
