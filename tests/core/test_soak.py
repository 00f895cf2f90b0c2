"""A hundred thousand connections in random order of events, ended in every way: nothing of them is left."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, real, virtual

CONNECTIONS = 100_000
UNDER_WAY = 200
STICKY = 60.0

#: What may happen to a connection, in this order, each time with other connections' events in between.
#: Those that do not come to an end by these time out.
LIVES: tuple[tuple[Callable[[Call], Call], ...], ...] = (
    (Call.syn_ack, Call.ack, Call.says, Call.hears, Call.fin, Call.server_fin, Call.ack),
    (Call.syn_ack, Call.ack, Call.hears, Call.server_fin, Call.ack, Call.fin, Call.server_ack),
    (Call.syn_ack, Call.ack, Call.says, Call.reset),
    (Call.syn_ack, Call.ack, Call.says, Call.server_reset),
    (Call.syn_ack, Call.reset, Call.reset),
    (Call.refusal, Call.syn, Call.syn_ack, Call.ack, Call.fin, Call.server_fin),
    (Call.syn, Call.syn, Call.syn_ack, Call.ack, Call.reset),
    (Call.syn, Call.syn, Call.syn, Call.syn),
    (),
    (Call.syn_ack,),
    (Call.syn_ack, Call.ack, Call.says, Call.hears),
    (Call.syn_ack, Call.ack, Call.fin),
    (Call.syn_ack, Call.ack, Call.says, Call.says, Call.hears, Call.hears, Call.server_fin),
)


def lab() -> Scenario:
    """Three virtual servers, sticky or not, over servers that fail, fill up and have a backup."""
    reals = [
        replace(real("a", weight=3, idle_timeout=120), failure_threshold=20, retry=5.0, backup="d"),
        replace(real("b", max_connections=50, idle_timeout=90), failure_threshold=30, retry=2.0),
        real("c", idle_timeout=60),
        real("d", weight=0.5, idle_timeout=30),
    ]
    virtuals = [
        virtual("least", "abc"),
        virtual("turns", "abc", port=81, scheduler="round-robin", sticky=STICKY, sticky_mask=28),
        virtual("hashed", ["a:8080", "b:80"], port=82, scheduler="maglev", sticky=STICKY),
    ]
    return Scenario(virtuals, reals, max_connections=20_000, max_sticky=20_000)


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_left_of_connections_of_every_ending(seed: int) -> None:
    """R043, R061, R127-R129, R183, R187 (A17): counters zero, both indexes empty, then the sticky table."""
    chance = random.Random(seed)
    scenario = lab()
    under_way: list[tuple[Call, list[Callable[[Call], Call]]]] = []
    dialled = 0
    while dialled < CONNECTIONS // 2 or under_way:
        if dialled < CONNECTIONS // 2 and len(under_way) < UNDER_WAY:
            dialled += 1
            call = scenario.dial(
                chance.choice(("least", "turns", "hashed")),
                client=f"192.0.{chance.randrange(16)}.{chance.randrange(256)}",
                port=1024 + dialled % 64_000,
                isn=chance.getrandbits(32),
            )
            if call.refused is None:
                under_way.append((call, list(reversed(chance.choice(LIVES)))))
            continue
        at = chance.randrange(len(under_way))
        call, to_come = under_way[at]
        if to_come:
            to_come.pop()(call)
        else:
            under_way[at] = under_way[-1]
            under_way.pop()
        if not chance.randrange(100):
            scenario.wait(chance.random())
        if not chance.randrange(20_000):
            audit(scenario.director)
    audit(scenario.director)
    scenario.wait(121)
    scenario.wait(61)
    director = scenario.director
    assert director.table.total + sum(scenario.drops().values()) >= dialled
    assert director.table.total > dialled / 2, "hardly anything happened"
    assert not director.table.inbound
    assert not director.table.outbound
    assert director.totals().connections == director.totals().sticky == 0
    assert {(each.connections, each.unanswered) for each in director.reals(scenario.now)} == {(0, 0)}
    for each in director.virtual_servers:
        assert (each.connections, {link.connections for link in each.links}) == (0, {0})
    audit(director)
