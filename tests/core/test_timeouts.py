"""Time-outs: half-open, idle, closing (A24), and that none of them waits for another."""

import pytest

from nfqlb.core.segment import ACK, RST
from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, real, reals, virtual

#: A connection is looked at when it may be due; it ends at the latest after so many more seconds.
LATE = 60.5


def test_a_syn_that_is_never_answered_ends() -> None:
    """R061, R129, R183 (A24): after the half-open time-out nothing is left of it."""
    lab = Scenario(virtual("web", "a"), reals("a"), half_open=30)
    call = lab.dial()
    lab.wait(29)
    assert len(lab.connections()) == 1
    lab.wait(2)
    assert lab.connections() == []
    assert (lab.loads(), lab.real("a").unanswered) == ({"a": 0}, 0)
    assert call.syn_ack().refused is Drop.SERVER_UNKNOWN
    audit(lab.director)


def test_a_handshake_that_is_never_finished_ends() -> None:
    """R061, R129 (A24): the client's ACK did not come."""
    lab = Scenario(virtual("web", "a"), reals("a"), half_open=30)
    lab.dial().syn_ack()
    lab.wait(31)
    assert lab.connections() == []
    assert lab.loads() == {"a": 0}


def test_a_repeated_syn_gives_the_server_more_time() -> None:
    """R046, R111: activity of the connection."""
    lab = Scenario(virtual("web", "a"), reals("a"), half_open=30)
    call = lab.dial()
    for _ in range(4):
        lab.wait(25)
        call.syn()
    assert lab.connections()[0].age == 100
    lab.wait(61)
    assert lab.connections() == []


@pytest.mark.parametrize("side", ["client", "server"])
def test_traffic_of_either_side_keeps_a_connection(side: str) -> None:
    """R046 (A24): a server that only pushes is activity too."""
    lab = Scenario(virtual("web", "a"), [real("a", idle_timeout=600)])
    call = lab.connect()
    for _ in range(10):
        lab.wait(599)
        call.says() if side == "client" else call.hears()
    assert call.state == "established"


def test_an_idle_connection_ends() -> None:
    """R046, R061, R129: with no activity for its interval, not before."""
    lab = Scenario(virtual("web", "a"), [real("a", idle_timeout=600)])
    call = lab.connect()
    lab.wait(599)
    assert len(lab.connections()) == 1
    lab.wait(LATE)
    assert lab.connections() == []
    assert lab.loads() == {"a": 0}
    assert call.says().refused is Drop.NO_CONNECTION
    audit(lab.director)


@pytest.mark.parametrize("ending", ["fin", "server_fin"])
def test_a_half_closed_connection_is_idle_like_any_other(ending: str) -> None:
    """R046, R128: it does not stay for ever when the other side never closes."""
    lab = Scenario(virtual("web", "a"), [real("a", idle_timeout=600)])
    getattr(lab.connect(), ending)()
    lab.wait(599)
    assert len(lab.connections()) == 1
    lab.wait(LATE)
    assert lab.connections() == []


def test_each_real_server_has_its_own_interval() -> None:
    """R046: it is a field of the physical machine."""
    servers = [real("a", idle_timeout=20), real("b", idle_timeout=300), real("c")]
    lab = Scenario(virtual("web", "abc"), servers)
    for _ in range(3):
        lab.connect()
    lab.wait(19)
    assert lab.loads() == {"a": 1, "b": 1, "c": 1}
    lab.wait(10)
    assert lab.loads() == {"a": 0, "b": 1, "c": 1}
    lab.wait(270)
    assert lab.loads() == {"a": 0, "b": 1, "c": 1}
    lab.wait(LATE)
    assert lab.loads() == {"a": 0, "b": 0, "c": 1}
    lab.wait(3600)
    assert lab.loads() == {"a": 0, "b": 0, "c": 0}


def looked_at(lab: Scenario, seconds: float) -> int:
    """How many connections are looked at while so much time passes, in steps of a quarter of a second."""
    table, before = lab.director.table, 0
    for _ in range(int(seconds * 4)):
        lab.now += 0.25
        while looked := table.expire(lab.now, 1000):
            before += looked
    return before


def test_a_short_interval_is_its_servers_own_affair() -> None:
    """R046, R061: the others' connections are not looked at more often for it."""
    patient = [real(name, idle_timeout=3600) for name in "bcd"]
    alone, beside = (
        Scenario(virtual("web", "bcd"), patient),
        Scenario(virtual("web", "abcd"), [real("a", idle_timeout=2), *patient]),
    )
    crowd(alone, 300)
    crowd(beside, 400)
    assert beside.loads() == {"a": 100, "b": 100, "c": 100, "d": 100}
    looked_at(alone, 32)  # the half-open time-out's queue has forgotten them by then
    looked_at(beside, 32)
    assert beside.loads() == {"a": 0, "b": 100, "c": 100, "d": 100}
    assert looked_at(alone, 30) == looked_at(beside, 30) == 300


def test_as_many_intervals_as_servers() -> None:
    """R046, R061: each connection ends in its own time, and few queues are asked for them."""
    intervals = {f"s{number}": 0.001 * 1.09**number for number in range(200)}
    servers = [real(name, idle_timeout=interval) for name, interval in intervals.items()]
    lab = Scenario(virtual("web", list(intervals)), servers)
    calls = crowd(lab, 200)
    assert len(lab.director.table._idle) <= 20
    for name, call in zip(intervals, calls, strict=True):
        assert call.server == name
    elapsed = 0.0
    for _ in range(240):
        lab.wait(0.5)
        elapsed += 0.5
        left = {each.real for each in lab.connections()}
        assert {name for name, interval in intervals.items() if interval > elapsed} <= left
        assert left <= {name for name, interval in intervals.items() if interval * 1.25 + 1 > elapsed}


def test_what_has_ended_is_kept_for_the_closing_time_out() -> None:
    """R129 (A24): and not much longer."""
    lab = Scenario(virtual("web", "a"), reals("a"), closing=10)
    lab.connect().close()
    lab.wait(9.9)
    assert len(lab.connections()) == 1
    lab.wait(0.5)
    assert lab.connections() == []


def test_late_packets_keep_an_ended_connection_translatable() -> None:
    """R129 (A24): as long as they come."""
    lab = Scenario(virtual("web", "a"), reals("a"), closing=10)
    call = lab.connect().close()
    for _ in range(5):
        lab.wait(8)
        assert call.server_ack().server == "a"
    lab.wait(21)
    assert call.ack().refused is Drop.NO_CONNECTION


def crowd(lab: Scenario, number: int) -> list[Call]:
    """So many connections, established."""
    return [lab.connect(port=1024 + each) for each in range(number)]


def test_a_step_is_bounded() -> None:
    """R061: no more than the budget is looked at in one go, and `tick` says whether there is more."""
    lab = Scenario(virtual("web", "a"), reals("a"), half_open=30)
    for number in range(100):
        lab.dial(port=1024 + number)
    lab.now += 60
    left = []
    while lab.director.tick(lab.now, 30):
        left.append(len(lab.connections()))
    assert left == [70, 40, 10]
    assert lab.connections() == []


def test_many_live_connections_do_not_hold_up_what_has_ended() -> None:
    """R061, R129: with more live connections to look at than there is time for, ended ones still go."""
    lab = Scenario(virtual("web", "a", sticky=5), [real("a", idle_timeout=40)], closing=10)
    calls = crowd(lab, 400)
    for call in calls[:20]:
        call.reset()
    for _ in range(200):
        lab.now += 0.25
        for call in calls[20:]:
            call.connection.seen = lab.now
        lab.director.tick(lab.now, 4)
    assert {each.state for each in lab.connections()} == {"established"}
    assert lab.director.totals().sticky == 0


def test_many_sticky_entries_do_not_hold_up_connections() -> None:
    """R061, R066: nor the other way round."""
    lab = Scenario(virtual("web", "a", sticky=5), reals("a"), half_open=5)
    for number in range(200):
        lab.dial(client=f"198.51.100.{number}")
    lab.now += 20
    lab.director.tick(lab.now, 20)
    assert len(lab.connections()) < 200
    assert lab.director.totals().sticky < 200
    steps = 1
    while lab.director.tick(lab.now, 20):
        steps += 1
    assert lab.connections() == []
    assert lab.director.totals().sticky == 0
    assert steps <= 2 * 400 / 20 + 2


def test_a_tick_with_nothing_to_do() -> None:
    """R061: says so, whatever the budget."""
    lab = Scenario(virtual("web", "a"), reals("a"))
    assert lab.director.tick(lab.now, 1) is False
    assert lab.director.tick(lab.now) is False


def test_segments_that_change_nothing_are_still_activity() -> None:
    """R046: a reset outside its window, too: somebody is there."""
    lab = Scenario(virtual("web", "a"), [real("a", idle_timeout=600)])
    call = lab.connect()
    lab.wait(500)
    call.client_sends(RST, sequence=call.client_next + 2**30)
    lab.wait(500)
    assert call.client_sends(ACK).state == "established"
