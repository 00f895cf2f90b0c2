"""`sticky_refresh = "activity"`: the interval runs from the client's last packet (A6)."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.admission import ServerState
from nfqlb.core.spec import Strict
from tests.core.properties import TRIES
from tests.core.scenario import Call, Scenario, reals, virtual

OTHERS = [f"198.51.100.{number}" for number in range(1, 8)]


def shop(*, max_sticky: int = 1000, mask: int = 32, now: float = 5000.0, strict: bool = False) -> Scenario:
    """Three servers taken in turn, an interval of 60 s from the last packet on."""
    web = replace(
        virtual("web", "abc", sticky=60, sticky_mask=mask, scheduler="round-robin"), sticky_refresh="activity"
    )
    return Scenario(web, reals("abc"), max_sticky=max_sticky, now=now, strict=Strict(refresh=strict))


def bound(lab: Scenario) -> dict[str, tuple[str, float]]:
    """The sticky entries as operators see them: server and age by client."""
    return {str(each.client): (each.real, each.age) for each in lab.director.sticky(lab.now)}


def test_t8_with_activity() -> None:
    """T8, R026, R064, R153-R157 (A6): SYNs at 0, 50, 100, 161 without a packet between: as by assignment."""
    lab = shop()
    began = lab.now
    served = []
    for at in (0, 50, 100, 161):
        lab.wait(began + at - lab.now)
        served.append(lab.connect().server)
        if at == 100:
            lab.connect(client=OTHERS[0])  # takes a turn, so that "afresh" shows
    assert served == ["a", "a", "a", "c"]


def test_a_packet_in_between_prolongs_it() -> None:
    """T8, R064 (A6): the same SYNs, and a packet at 140 on the first connection."""
    lab = shop()
    began = lab.now
    served: list[str] = []
    calls: list[Call] = []
    for at in (0, 50, 100, 140, 161):
        lab.wait(began + at - lab.now)
        if at == 140:
            calls[0].says()
        else:
            calls.append(lab.connect())
            served.append(calls[-1].server)
            lab.connect(client=OTHERS[0])
    assert served == ["a"] * 4


def test_the_strict_reading_switches_it_off() -> None:
    """R153, R156 (A6): as step 812 literally has it."""
    lab = shop(strict=True)
    call = lab.connect()
    for _ in range(3):
        lab.wait(25)
        call.says()
    assert lab.connect().server == "b"


def test_either_side_s_packets_count_and_the_newest_decides() -> None:
    """R064 (A6): of several connections, whichever is in use."""
    lab = shop()
    old, new = lab.connect(), lab.connect()
    for _ in range(5):
        lab.wait(40)
        old.hears()
    lab.wait(59)
    assert bound(lab) == {"192.0.2.1": ("a", 59.0)}
    assert lab.connect().server == "a"
    lab.wait(60)
    assert bound(lab) == {}
    assert lab.connect().server == "b"
    assert new.server == "a", "an idle connection stays where it is"


def test_a_connection_that_ends_leaves_its_last_packet() -> None:
    """R064 (A6): the interval runs from there, not from the assignment."""
    lab = shop()
    call = lab.connect()
    for _ in range(4):
        lab.wait(30)
        call.says()
    call.close()
    lab.wait(11)
    assert lab.connections() == []
    assert bound(lab) == {"192.0.2.1": ("a", 11.0)}
    lab.wait(48)
    assert lab.connect(port=9).server == "a"


def test_who_was_sent_elsewhere_is_bound_by_what_it_does_there() -> None:
    """R132, R157 (A7): packets of connections to the former server prolong nothing."""
    lab = shop()
    old = lab.connect()
    lab.director.operation.set_real("a", setting=ServerState.MAINTENANCE, now=lab.now)
    new = lab.connect()
    assert (old.server, new.server) == ("a", "b")
    lab.wait(59)
    old.says()
    lab.wait(2)
    assert bound(lab) == {}
    for call in (old, new):
        call.says().close()
    lab.wait(20)
    assert bound(lab) == {}, "an entry that has run out does not come back with a packet"


def test_a_reassigned_connection_counts_for_its_new_server() -> None:
    """R041, R064 (A6)."""
    lab = shop()
    call = lab.dial().syn().syn()
    assert call.server == "b"
    call.syn_ack().ack()
    for _ in range(3):
        lab.wait(50)
        call.says()
    assert bound(lab) == {"192.0.2.1": ("b", 0.0)}
    assert lab.connect().server == "b"


def test_clients_behind_one_mask_share_it() -> None:
    """R151 (A6, A8): any one's packet prolongs it for all."""
    lab = shop(mask=24)
    call = lab.connect(client=OTHERS[0])
    for _ in range(3):
        lab.wait(50)
        call.says()
    assert lab.connect(client=OTHERS[1]).server == call.server


def test_the_least_recently_used_goes_first() -> None:
    """R065, R066 (A6): by use, not by assignment."""
    lab = shop(max_sticky=3)
    calls = {}
    for client in OTHERS[:3]:
        calls[client] = lab.connect(client=client)
        lab.wait(1)
    calls[OTHERS[0]].says()
    lab.connect(client=OTHERS[3])
    assert set(bound(lab)) == {OTHERS[0], OTHERS[2], OTHERS[3]}
    calls[OTHERS[2]].says()
    lab.wait(1)
    calls[OTHERS[0]].hears()
    lab.connect(client=OTHERS[4])
    assert set(bound(lab)) == {OTHERS[0], OTHERS[2], OTHERS[4]} or set(bound(lab)) == {
        OTHERS[0], OTHERS[2], OTHERS[3],
    }, "in any case those in use stay"  # fmt: skip
    assert lab.director.totals().sticky == 3


def test_a_table_full_of_active_clients_gives_one_up() -> None:
    """R066: the search is bounded."""
    lab = shop(max_sticky=40)
    calls = [lab.connect(client=f"203.0.113.{number}") for number in range(40)]
    lab.wait(1)
    for call in calls:
        call.says()
    assert lab.connect(client=OTHERS[0]).server == "b"
    assert lab.director.totals().sticky == 40
    for call in calls:
        call.close()
    lab.wait(200)
    assert lab.director.totals().sticky == 0


def test_cleared_entries_do_not_come_back_with_a_packet() -> None:
    """R066: the client is placed anew."""
    lab = shop()
    call = lab.connect()
    lab.director.operation.clear_sticky(None, None, lab.now)
    call.says()
    call.close()
    lab.wait(15)
    assert bound(lab) == {}


@pytest.mark.parametrize("how", ["closed", "aborted"])
def test_a_successor_binds_the_clients_of_live_connections(how: str) -> None:
    """R064, R187 (A6): when they were last active is not known, so their interval begins anew."""
    lab = shop()
    live, ended = lab.connect(), lab.connect(client=OTHERS[0])
    lab.wait(30)
    if how == "closed":
        ended.close()
    else:
        ended.reset()
    for _ in range(9):
        lab.wait(9)
        live.says()
        assert ended.ack().state == "closed"
    after = shop(now=lab.now + 1)
    for connection in list(lab.director.table.inbound.values()):
        server = connection.link.real.address + connection.link.inbound.port
        after.director.restore(
            connection.inbound, server, connection.state.code, -1, opened=connection.opened, now=after.now
        )
    after.director.restored(after.now)
    assert set(bound(after)) == {"192.0.2.1"}
    live._scenario = after
    for _ in range(3):
        after.wait(50)
        live.says()
    assert after.connect().server == "a"


class Oracle:
    """By client: its server, and the moments of all that counts for it."""

    def __init__(self) -> None:
        self.server: dict[str, str] = {}
        self.last: dict[str, float] = {}
        self.counting: dict[str, list[Call]] = {}

    def binds(self, client: str, now: float) -> str | None:
        fresh = client in self.last and now - self.last[client] < 60
        return self.server[client] if fresh else None

    def opened(self, client: str, call: Call, now: float) -> None:
        if self.server.get(client) != call.server:
            self.server[client], self.counting[client] = call.server, []
        self.counting[client].append(call)
        self.last[client] = now

    def expire(self, now: float) -> None:
        """What has run out does not come back with a later packet."""
        for client in [client for client in self.last if self.binds(client, now) is None]:
            del self.server[client], self.last[client], self.counting[client]

    def packet(self, client: str, call: Call, now: float) -> None:
        if call in self.counting.get(client, []):
            self.last[client] = now


_steps = st.lists(
    st.tuples(
        st.sampled_from(["open", "open", "says", "hears", "close", "drain", "back"]),
        st.integers(0, 3),
        st.integers(0, 5),
        st.integers(0, 50),
    ),
    max_size=60,
)


@TRIES
@given(_steps)
def test_any_conversation(steps: Iterable[tuple[str, int, int, int]]) -> None:
    """R064, R153-R157 (A6): against an oracle that notes every packet."""
    lab, oracle = shop(), Oracle()
    calls: list[tuple[str, Call]] = []
    for step, number, which, wait in steps:
        lab.wait(wait)
        oracle.expire(lab.now)
        client = OTHERS[number]
        if step == "open":
            expected = oracle.binds(client, lab.now)
            call = lab.connect(client=client)
            usable = expected is not None and lab.director.real_servers[expected].admits_sticky
            if usable:
                assert call.server == expected
            oracle.opened(client, call, lab.now)
            calls.append((client, call))
        elif step in ("drain", "back"):
            setting = ServerState.MAINTENANCE if step == "drain" else ServerState.IN_SERVICE
            lab.director.operation.set_real("abc"[number % 2], setting=setting, now=lab.now)
        elif calls:
            client, call = calls[which % len(calls)]
            if step == "close":
                calls.remove((client, call))
                call.close()
            else:
                _ = call.says() if step == "says" else call.hears()
            oracle.packet(client, call, lab.now)
        lab.wait(0)
        shown = {str(each.client): each.real for each in lab.director.sticky(lab.now)}
        assert shown == {each: held for each in OTHERS if (held := oracle.binds(each, lab.now)) is not None}
