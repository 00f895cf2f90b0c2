"""A table of bounded size: who goes when it is full, and what a flood can hold on to (A23)."""

import gc

import pytest

from nfqlb.core.connection import Connection
from nfqlb.core.segment import ACK
from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Scenario, reals, virtual


def table_of(limit: int) -> Scenario:
    return Scenario(virtual("web", "ab", scheduler="least-connections"), reals("ab"), max_connections=limit)


def test_ended_connections_go_first() -> None:
    """R060, R061, R118 (A23): the one that ended first."""
    lab = table_of(4)
    half_open, first, second, live = lab.dial(), lab.connect(), lab.connect(), lab.connect()
    first.close()
    second.reset()
    assert lab.dial().refused is None
    assert first.ack().refused is Drop.NO_CONNECTION
    assert lab.dial().refused is None
    assert second.ack().refused is Drop.NO_CONNECTION
    assert half_open.syn_ack().ack().state == "established"
    assert live.says().state == "established"
    assert len(lab.connections()) == 4
    audit(lab.director)


def test_half_open_ones_go_next() -> None:
    """R060, R118 (A23): the oldest, and its counts with it."""
    lab = table_of(3)
    old, new, live = lab.dial(), lab.dial().syn_ack(), lab.connect()
    third = lab.dial()
    assert old.syn_ack().refused is Drop.SERVER_UNKNOWN
    assert new.ack().state == "established"
    assert live.says().state == "established"
    assert third.syn_ack().ack().state == "established"
    assert len(lab.connections()) == 3
    assert sum(lab.loads().values()) == 3
    audit(lab.director)


def test_an_established_connection_is_never_given_up() -> None:
    """R060, R118 (A23), F25: the SYN is refused and counted, and nothing else has changed."""
    lab = table_of(3)
    calls = [lab.connect(), lab.connect().fin(), lab.connect().server_fin()]
    before = lab.loads()
    for _ in range(5):
        assert lab.dial().refused is Drop.TABLE_FULL
    assert lab.drops() == {"table-full": 5}
    assert lab.loads() == before
    assert [call.says().refused for call in calls] == [None, None, None]
    calls[1].server_fin()
    assert lab.dial().refused is None
    audit(lab.director)


def test_a_refused_syn_takes_no_turn() -> None:
    """R023, R118: neither is the last used link moved nor anything counted."""
    lab = Scenario(virtual("web", "ab"), reals("ab"), max_connections=1)
    call = lab.connect()
    lab.dial()
    assert lab.virtual().total == 1
    call.close()
    assert lab.dial().server == "b"


def test_a_repeated_syn_needs_no_room() -> None:
    """R110, R118: it has its place already."""
    lab = table_of(1)
    call = lab.dial()
    assert call.syn().connection is call.connection
    assert call.syn(isn=9_000_000).refused is None
    assert len(lab.connections()) == 1


def test_a_flood_of_syns_leaves_established_connections_alone() -> None:
    """R060 (A23): it only pushes itself out; a handshake that is answered soon gets through."""
    lab = table_of(50)
    calls = [lab.connect() for _ in range(20)]
    for number in range(500):
        lab.dial(client=f"198.51.100.{number % 250}", port=1024 + number)
    honest = lab.dial()
    for number in range(20):
        lab.dial(client=f"198.51.100.{number % 250}", port=5024 + number)
    assert honest.syn_ack().ack().state == "established"
    assert [call.says().state for call in calls] == ["established"] * 20
    assert len(lab.connections()) == 50
    audit(lab.director)


def test_a_flood_of_syns_and_forged_acks_is_as_harmless() -> None:
    """R060, R078 (A23): who cannot see the SYN-ACK does not get established."""
    lab = table_of(50)
    lab.connect()
    for number in range(200):
        forged = lab.dial(client=f"198.51.100.{number % 250}", port=1024 + number).syn_ack()
        forged.client_sends(ACK, acknowledges=number)
    assert lab.connect().state == "established"
    audit(lab.director)


def held() -> int:
    """How many connections are in memory, in the table or not."""
    gc.collect()
    return sum(isinstance(each, Connection) for each in gc.get_objects())


@pytest.mark.parametrize("rate", [1_000_000, 20_000, 1000])
def test_new_attempts_from_one_port_leave_little_behind(rate: int) -> None:
    """R060, R061: a flood of ever new sequence numbers does not fill the memory past the table's limit."""
    before = held()
    lab = table_of(100)
    for number in range(8000):
        lab.now += 1 / rate
        lab.dial(port=1024 + number % 20, isn=1000 + number)
    assert len(lab.connections()) == 20
    assert held() - before <= 1500


def test_short_connections_leave_little_behind() -> None:
    """R060, R061: what has ended and been forgotten is not kept by the time-outs it once had."""
    before = held()
    lab = table_of(100)
    for number in range(5000):
        lab.now += 0.001
        lab.connect(port=1024 + number % 20, isn=1000 + number).says().hears().close()
    assert len(lab.connections()) == 20
    assert held() - before <= 1500
    lab.wait(60)
    assert lab.connections() == []


def test_a_table_that_has_emptied_holds_nothing() -> None:
    """R061: after every time-out has passed no connection is left in memory."""
    before = held()
    lab = table_of(100)
    for _ in range(50):
        lab.connect().close()
        lab.dial()
        lab.connect()
    lab.wait(3700)
    lab.wait(70)
    assert lab.connections() == []
    assert held() == before
