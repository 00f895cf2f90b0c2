"""The audit: a counter that has gone wrong is found, put right and told of; others are left alone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.properties import TRIES
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, real, reals, virtual


def site(max_connections: int = 1000) -> Scenario:
    several = [virtual("web", "ab"), virtual("tls", "b", port=443)]
    return Scenario(several, reals("ab"), max_connections=max_connections)


def round_of(lab: Scenario, budget: int = 1000) -> None:
    """Let one whole count pass."""
    before = lab.director.audit.rounds
    lab.now += 15
    while lab.director.audit.rounds == before:
        lab.director.tick(lab.now, budget)
        lab.director.recount(lab.now, budget // 4 or 1)


def told(lab: Scenario) -> list[str]:
    return [f"{each.level}: {each.text}" for each in lab.director.chronicle.take_notices()]


def test_nothing_is_wrong() -> None:
    """R125-R129: connections in every state, and every counter is what they add up to."""
    lab = site()
    lab.dial()
    lab.dial("tls").syn_ack()
    lab.connect().fin()
    lab.connect("tls").close()
    round_of(lab)
    assert (lab.director.audit.drift, told(lab)) == (0, [])
    audit(lab.director)


@pytest.mark.parametrize(
    ("counter", "more", "says"),
    [
        ("connections", 5, "b: connections was 7, 2 were counted"),
        ("connections", -2, "b: connections was 0, 2 were counted"),
        ("unanswered", 3, "b: unanswered was 4, 1 were counted"),
    ],
)
def test_a_real_servers_counter_is_put_right(counter: str, more: int, says: str) -> None:
    """R045, R183, F25: and the schedulers that go by it know."""
    lab = site()
    lab.connect("tls")
    lab.dial("tls")
    server = lab.director.real_servers["b"]
    setattr(server, counter, getattr(server, counter) + more)
    round_of(lab)
    assert lab.director.audit.drift == lab.director.totals().drift == 1
    assert told(lab) == [f"error: a counter had gone wrong and was put right: {says}"]
    audit(lab.director)
    round_of(lab)
    assert lab.director.audit.drift == 1, "it was healed"


def test_a_server_that_only_seemed_full_takes_connections_again() -> None:
    """R045, R184: its maximum is compared with what it has."""
    lab = Scenario(virtual("web", "a"), [real("a", max_connections=2)])
    lab.connect()
    server = lab.director.real_servers["a"]
    server.connections = 2
    server.changed(lab.now)
    assert lab.dial().refused is not None
    round_of(lab)
    assert lab.dial().refused is None


def test_every_other_counter_is_put_right() -> None:
    """R059: of virtual servers, of places, of the table."""
    lab = site()
    lab.connect()
    web = lab.director.virtual_servers[0]
    web.connections += 1
    web.half_open += 2
    web.links[0].connections += 3
    web.links[1].held -= 4
    lab.director.table.counted += 5
    round_of(lab)
    assert lab.director.audit.drift == 5
    assert len(told(lab)) == 5
    audit(lab.director)


def test_a_new_configuration_begins_a_new_count() -> None:
    """F25: what was counted under another configuration is no measure."""
    lab = site()
    for _ in range(50):
        lab.connect()
    lab.now += 15
    lab.director.recount(lab.now, 2)
    assert lab.director.table.recount is not None
    gateway = replace(lab.config.gateway, count_on="syn-ack", close_on="fin")
    lab.director.reconfigure(replace(lab.config, gateway=gateway), lab.now)
    lab.dial()
    round_of(lab, 10)
    assert lab.director.audit.drift == 0
    audit(lab.director)


def test_it_looks_at_no_more_than_it_may() -> None:
    """R060: a million connections are counted in many looks."""
    lab = site(max_connections=5000)
    for number in range(1000):
        lab.dial(port=1 + number)
    lab.now += 15
    looks = 0
    director, before = lab.director, lab.director.audit.rounds
    while director.audit.rounds == before:
        director.audit.step(director.real_servers.values(), director.virtual_servers, lab.now, 100)
        looks += 1
    assert looks == 10


_STEPS = ["dial", "answer", "ack", "fin", "server_fin", "reset", "wait", "count", "count", "again"]


@TRIES
@given(st.lists(st.tuples(st.sampled_from(_STEPS), st.integers(0, 7)), max_size=60), st.booleans())
def test_whatever_happens_meanwhile(steps: list[tuple[str, int]], tight: bool) -> None:
    """R125-R129, F25: connections come, change, move and go while they are counted; nothing seems wrong."""
    lab = site(max_connections=5) if tight else site()
    calls: list[Call] = [lab.connect() for _ in range(3)]
    for step, which in steps:
        call = calls[which % len(calls)]
        if step == "dial":
            calls.append(lab.dial("tls" if which % 2 else "web"))
        elif step == "answer" and call.reply_key:
            call.syn_ack()
        elif step == "again":
            call.syn()
        elif step == "wait":
            lab.wait(which)
        elif step == "count":
            lab.now += 4
            lab.director.recount(lab.now, 1)
        elif step in ("ack", "fin", "reset") or (step == "server_fin" and call.reply_key):
            getattr(call, step)()
    round_of(lab, 1)
    assert (lab.director.audit.drift, told(lab)) == (0, [])
    audit(lab.director)
