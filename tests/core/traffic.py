"""Everything at once: traffic of all kinds, failures, an operator and dying workers, in any order.

Owns `Traffic`, the state machine that hypothesis drives, and the site it plays on. After every step the
books are audited (`recount`); what is told of decisions is compared with what was (`hindsight`).
"""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from nfqlb.core import spec
from nfqlb.core.admission import ServerState
from nfqlb.core.chronicle import Kind
from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.health import Condition
from nfqlb.core.keys import flipped
from nfqlb.core.segment import ACK, RST
from nfqlb.core.states import State
from tests.core.hindsight import Watched, agree
from tests.core.memory import Memory, Notes, server_of
from tests.core.recount import audit
from tests.core.scenario import Call, Flow, Scenario, real, virtual

CLIENTS = ("192.0.2.1", "192.0.2.2", "192.0.2.130")
CLIENTS6 = ("2001:db8:c::1", "2001:db8:c::2", "2001:db8:d::1")
PORTS = (40001, 40002, 40003)
SERVICES = ("turns", "least", "weighted", "other", "every", "fast", "hashed", "six")
DATAGRAMS = ("names", "more", "all", "all6")
NAMES = "abcdef"
STEPS = ("syn_ack", "ack", "says", "hears", "server_ack", "fin", "server_fin")
SETTINGS = [state for state in ServerState if state.operator]
VIP6 = "2001:db8::1"


def _servers() -> list[spec.Real]:
    """Six unlike servers, the last two with IPv6 addresses."""
    made = [
        replace(real("a", weight=3, idle_timeout=120), failure_threshold=2, retry=20.0, backup="d"),
        replace(real("b", max_connections=2, idle_timeout=60), failure_threshold=1, retry=5.0),
        real("c", weight=0.5, max_connections=3, idle_timeout=300),
        real("d", weight=0, idle_timeout=300),
        replace(real("e", idle_timeout=90), failure_threshold=1, failure_clients=1, retry=5.0, attempts=2),
        replace(real("f", weight=2, max_connections=4, idle_timeout=300), backup="e"),
    ]
    made[4:] = [replace(each, address=ip_address(f"fd00::{each.name}")) for each in made[4:]]
    return made


def _virtuals(on_failure: str, startup: str) -> list[spec.Virtual]:
    """Virtual servers of all kinds, which share the servers."""
    fast = {"scheduler": "fastest-response", "startup": startup, "startup_time": 50.0}
    one = "203.0.113.1"
    made = [
        (virtual("turns", "abcd", sticky=40, sticky_mask=25), {"sticky_refresh": "activity"}),
        (virtual("least", ["a:8080", "b:8080", "a:8081"], port=81, scheduler="least-connections"),
         {"startup": startup}),
        (virtual("weighted", "abcd", port=82, scheduler="weighted-least-connections", sticky=20,
                 sticky_group="pair"), {}),
        (virtual("other", "dcba", address="203.0.113.2", sticky=20, sticky_group="pair"), {}),
        (virtual("every", "bc", address="203.0.113.3", port=None, scheduler="least-connections"),
         {"backup": "d"}),
        (virtual("fast", "abc", port=83, sticky=30), {**fast, "sticky_refresh": "never", "clamp": 20.0,
                                                     "sticky_ditched": "keep"}),
        (virtual("hashed", "acb", port=84, scheduler="maglev"), {"backup": "d"}),
        (virtual("six", "ef", address=VIP6, sticky=40, sticky_mask=48),
         {**fast, "predict": "next", "sticky_refresh": "activity"}),
        (virtual("names", "abcd", protocol="udp", sticky=40, sticky_mask=25), {"sticky_refresh": "activity"}),
        (virtual("more", "ab", address="203.0.113.2", protocol="udp", scheduler="power-of-two"), {}),
        (virtual("all", "dc", address="203.0.113.3", port=None, protocol="udp",
                 scheduler="weighted-round-robin"), {}),
        (virtual("all6", "fe", address=VIP6, port=None, protocol="udp"), {"sticky": 20.0, "sticky_mask": 64}),
    ]  # fmt: skip
    assert one == str(made[0][0].address)
    return [replace(each, on_failure=on_failure, **keys) for each, keys in made]  # type: ignore[arg-type]  # by name


def _client_of(to: str, number: int) -> str:
    return (CLIENTS6 if to in ("six", "all6") else CLIENTS)[number]


class Traffic(RuleBasedStateMachine):
    """Segments of several calls and datagrams of flows in any order, time passing between them."""

    calls = Bundle("calls")
    flows = Bundle("flows")

    @initialize(
        count_on=st.sampled_from(["syn", "syn-ack"]),
        close_on=st.sampled_from(["both", "fin", "time-out"]),
        on_failure=st.sampled_from(["keep", "drop", "reset"]),
        startup=st.sampled_from(["none", "round-robin"]),
        room=st.sampled_from([6, 16]),
    )
    def begin(self, count_on: str, close_on: str, on_failure: str, startup: str, room: int) -> None:
        self.memory, self.notes = self.journals()
        self.lab = Scenario(
            _virtuals(on_failure, startup), _servers(), count_on=count_on, close_on=close_on,
            max_connections=room, max_sticky=4, recorder=self.memory, keeper=self.notes,
        )  # fmt: skip
        self.watched = Watched.watch(self.lab.director)

    # --- clients and servers

    @rule(
        target=calls,
        to=st.sampled_from(SERVICES),
        client=st.integers(0, 2),
        port=st.sampled_from(PORTS),
        isn=st.sampled_from([1, 2**31, 2**32 - 1]),
    )
    def dial(self, to: str, client: int, port: int, isn: int) -> Call:
        return self.lab.dial(to, client=_client_of(to, client), port=port, isn=isn, at=80 + port % 2)

    @rule(target=flows, to=st.sampled_from(DATAGRAMS), client=st.integers(0, 2), port=st.sampled_from(PORTS))
    def ask(self, to: str, client: int, port: int) -> Flow:
        return self.lab.flow(to, client=_client_of(to, client), port=port, at=80 + port % 2).asks()

    @rule(flow=flows, client=st.booleans())
    def speak(self, flow: Flow, client: bool) -> None:
        if client:
            flow.asks()
        else:
            flow.answers()

    @rule(target=calls, to=st.sampled_from(SERVICES), client=st.integers(0, 2))
    def connect(self, to: str, client: int) -> Call:
        call = self.lab.dial(to, client=_client_of(to, client), at=8080)
        return call.syn_ack().ack() if call.refused is None else call

    @rule(call=calls, seconds=st.sampled_from([0.01, 0.3, 4.0]))
    def request(self, call: Call, seconds: float) -> None:
        call.says()
        self.lab.wait(seconds)
        call.hears()

    @rule(call=calls, isn=st.sampled_from([None, None, 77, 2**30]))
    def repeat(self, call: Call, isn: int | None) -> None:
        call.syn(isn)

    @rule(call=calls)
    def ask_in_vain(self, call: Call) -> None:
        for _ in range(3):
            call.syn()

    @rule(call=calls, what=st.sampled_from(STEPS))
    def go_on(self, call: Call, what: str) -> None:
        getattr(call, what)()

    @rule(call=consumes(calls), what=st.sampled_from(["close", "reset", "server_reset", "refusal"]))
    def end(self, call: Call, what: str) -> None:
        getattr(call, what)()

    @rule(
        call=calls,
        flags=st.integers(0, 0x1F),
        sequence=st.integers(0, 2**32 - 1),
        acknowledges=st.integers(0, 2**32 - 1),
        client=st.booleans(),
    )
    def stray(self, call: Call, flags: int, sequence: int, acknowledges: int, client: bool) -> None:
        sends = call.client_sends if client else call.server_sends
        sends(flags, sequence=sequence, acknowledges=acknowledges)

    @rule(flow=flows, unreachable=st.booleans())
    def complain(self, flow: Flow, unreachable: bool) -> None:
        if flow.answering:
            found = self.lab.director.error_from_inside(flipped(flow.answering), unreachable=unreachable)
            assert not isinstance(found, Connection) or found.outbound == flow.answering

    # --- time

    @rule(seconds=st.sampled_from([0.1, 1.0, 9.0, 31.0, 130.0]))
    def wait(self, seconds: float) -> None:
        self.lab.wait(seconds)

    @rule(seconds=st.sampled_from([0.1, 11.0, 40.0]), budget=st.integers(1, 3))
    def hardly_time(self, seconds: float, budget: int) -> None:
        self.lab.now += seconds
        self.lab.director.tick(self.lab.now, budget)

    # --- the operator

    @rule(name=st.sampled_from(NAMES), weight=st.sampled_from([0, 1, 2.5]))
    def weigh(self, name: str, weight: float) -> None:
        self.lab.director.operation.set_real(name, weight=weight, now=self.lab.now)

    @rule(
        name=st.sampled_from(NAMES),
        setting=st.sampled_from([ServerState.IN_SERVICE, *SETTINGS]),
        weight=st.sampled_from([None, None, 0, 1]),
    )
    def put(self, name: str, setting: ServerState, weight: float | None) -> None:
        self.lab.director.operation.set_real(name, setting=setting, weight=weight, now=self.lab.now)

    @rule(name=st.sampled_from(SERVICES + DATAGRAMS), out=st.booleans())
    def put_virtual(self, name: str, out: bool) -> None:
        setting = ServerState.OUT_OF_SERVICE if out else ServerState.IN_SERVICE
        self.lab.director.operation.set_virtual(name, setting)

    @rule(
        name=st.sampled_from([None, *SERVICES, *DATAGRAMS]),
        client=st.sampled_from([None, *CLIENTS, *CLIENTS6]),
    )
    def clear(self, name: str | None, client: str | None) -> None:
        packed = None if client is None else ip_address(client).packed
        self.lab.director.operation.clear_sticky(name, packed, self.lab.now)

    @rule()
    def tell(self) -> None:
        self.decisions_are_told()
        now, director = self.lab.now, self.lab.director
        director.reals(now), director.virtuals(now), director.failures(now, limit=100)
        assert director.chronicle.drain(now) is not None

    # --- the worker

    @rule(after=st.sampled_from([0.0, 0.5, 35.0]))
    def die(self, after: float) -> None:
        """The worker dies, and another takes over what the journals remember."""
        self.decisions_are_told()
        old = self.lab.director
        self.lab.now += after
        now = self.lab.now
        self.memory, self.notes = self.journals()
        new = Director(self.lab.config, now=now, recorder=self.memory, keeper=self.notes)
        for kept in self.kept():
            assert new.operation.restore(kept, now)
        for place, inbound, server, code, opened in self.remembered():
            assert new.restore(inbound, server, code, place, opened=opened, now=now)
        new.restored(now)
        self.lab.director = new
        self.watched = Watched.watch(new)
        _same_afterwards(old, new)

    def journals(self) -> tuple[Any, Any]:
        """A recorder and a keeper for a new worker, which find what earlier ones were told."""
        if not hasattr(self, "memory"):
            return Memory(), Notes()
        return self.memory, self.notes

    def kept(self) -> list[Any]:
        return list(self.notes.kept.values())

    def remembered(self) -> list[tuple[int, bytes, bytes, int, float]]:
        return [
            (place, inbound, server, code, float(int(opened)))
            for place, (inbound, server, code, opened) in self.memory.records.items()
        ]

    # --- what must hold

    @invariant()
    def books_are_right(self) -> None:
        director = self.lab.director
        audit(director)
        totals = director.totals()
        assert len(self.lab.connections()) <= totals.connections_limit
        assert totals.sticky <= totals.sticky_limit
        sent = totals.connections_total + director.table.reassigned
        assert sent == sum(each.total for each in director.reals(0))
        assert totals.connections_total == sum(each.total for each in director.virtuals(0))

    @invariant()
    def journals_are_right(self) -> None:
        """Who takes over now finds everything: each connection, and what was set and what failed."""
        table = self.lab.director.table.inbound
        told = {(inbound, server, code) for _, inbound, server, code, _ in self.remembered()}
        assert told == {(each.inbound, server_of(each), each.state.code) for each in table.values()}
        kept = {(each.kind, each.name): each for each in self.kept()}
        for name, server in self.lab.director.real_servers.items():
            one = kept.get((Kind.REAL, name))
            setting, condition = server.setting, server.health.condition
            if one is not None and one.condition is Condition.TESTING and condition is Condition.FAILED:
                condition = Condition.TESTING  # a successor's successor will make nothing else of it
            weight = None if server.weight == server.spec.weight else server.weight
            if one is None:
                assert (setting, condition, weight) == (ServerState.IN_SERVICE, Condition.WELL, None)
            else:
                assert (one.setting, one.condition, one.weight) == (setting, condition, weight), name

    @invariant()
    def resets_are_of_ended_connections(self) -> None:
        for reset in self.lab.director.take_resets():
            assert flipped(reset.key) not in self.lab.director.table.inbound

    def decisions_are_told(self) -> None:
        """What is told of every decision is what was (R104)."""
        for name in SERVICES + DATAGRAMS:
            told = [
                each
                for each in reversed(self.lab.decisions(virtual=name))
                if each.refused != "out-of-service"
            ]
            copies = [each for each in self.watched.copies if each.virtual == name][-len(told) :]
            for decision, copy in zip(told, copies if told else [], strict=True):
                agree(decision, copy)

    def teardown(self) -> None:
        """Everything ends: nothing is left."""
        if not hasattr(self, "lab"):
            return
        self.decisions_are_told()
        for connection in list(self.lab.director.table.inbound.values())[::2]:
            if not connection.state.udp and not connection.state.ended:
                _cut(self.lab, connection)
        self.books_are_right()
        self.lab.wait(400)
        self.lab.wait(400)
        director = self.lab.director
        assert not director.table.inbound
        assert not director.table.outbound
        assert director.totals().connections == director.totals().sticky == 0
        assert [(each.connections, each.unanswered) for each in director.reals(0)] == [(0, 0)] * len(NAMES)
        everybody = [link for each in director.virtual_servers for link in each.everybody]
        assert {link.connections for link in everybody} == {0}
        assert not any(link.members for link in everybody)
        assert not director._outage._doomed
        assert not director.doubts.about
        assert self.remembered() == []
        self.books_are_right()


def _same_afterwards(old: Director, new: Director) -> None:
    """A successor is where its predecessor was, but for tests under way and what a failure was to end."""
    for name, before in old.real_servers.items():
        after = new.real_servers[name]
        assert (after.setting, after.weight, after.down) == (before.setting, before.weight, before.down)
        assert after.unanswered == before.unanswered
        assert after.connections == before.connections
    for was, now in zip(old.virtual_servers, new.virtual_servers, strict=True):
        assert (now.setting, now.bound_from, now.connections) == (
            was.setting,
            was.bound_from,
            was.connections,
        )


def _cut(lab: Scenario, connection: Connection) -> None:
    """A reset that fits, whatever the connection's state is."""
    numbers = connection.server_numbers or connection.client_numbers[4:] + bytes(4)
    syn = (int.from_bytes(connection.client_numbers[:4], "big") + 1) % 2**32
    if connection.state is State.SYN_SENT:
        numbers = bytes(4) + syn.to_bytes(4, "big")
    lab.director.server_sent(connection, RST | ACK, numbers, lab.now)
    assert connection.state.ended
