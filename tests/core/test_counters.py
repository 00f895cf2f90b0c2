"""The books are right after any order of events (R125-R129, A17)."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from nfqlb.core.connection import Connection
from nfqlb.core.segment import ACK, FIN, RST, SYN
from nfqlb.core.states import State
from tests.core.properties import TRIES
from tests.core.recount import audit
from tests.core.scenario import Call, Flow, Scenario, real, virtual

CLIENTS = ("192.0.2.1", "192.0.2.2", "192.0.2.130")
PORTS = (40001, 40002, 40003)
SERVICES = ("turns", "least", "weighted", "other", "every")
DATAGRAMS = ("names", "more", "all")
STEPS = ("syn_ack", "ack", "says", "hears", "server_ack", "fin", "server_fin")


def scenario() -> Scenario:
    """Virtual servers of all kinds that share four unlike real servers, with hardly any room."""
    return Scenario(
        [
            virtual("turns", "abcd", sticky=40, sticky_mask=25),
            virtual("least", ["a:8080", "b:8080", "a:8081"], port=81, scheduler="least-connections"),
            virtual("weighted", "abcd", port=82, scheduler="weighted-least-connections", sticky=20,
                    sticky_group="pair"),
            virtual("other", "dcba", address="203.0.113.2", sticky=20, sticky_group="pair"),
            virtual("every", "bc", address="203.0.113.3", port=None, scheduler="least-connections"),
            virtual("names", "abcd", protocol="udp", sticky=40, sticky_mask=25),
            virtual("more", "ab", address="203.0.113.2", protocol="udp"),
            virtual("all", "dc", address="203.0.113.3", port=None, protocol="udp"),
        ],
        [
            replace(real("a", weight=3, idle_timeout=120), failure_threshold=2, retry=20.0, backup="d"),
            replace(real("b", max_connections=2, idle_timeout=60), failure_threshold=1, retry=5.0),
            real("c", weight=0.5, max_connections=3, idle_timeout=300),
            real("d", weight=0, idle_timeout=300),
        ],
        max_connections=12,
        max_sticky=4,
    )  # fmt: skip


class Traffic(RuleBasedStateMachine):
    """Segments of several calls and datagrams of flows in any order, time passing between them."""

    calls = Bundle("calls")
    flows = Bundle("flows")

    def __init__(self) -> None:
        super().__init__()
        self.lab = scenario()

    @rule(
        target=calls,
        to=st.sampled_from(SERVICES),
        client=st.sampled_from(CLIENTS),
        port=st.sampled_from(PORTS),
        isn=st.sampled_from([1, 2**31, 2**32 - 1]),
    )
    def dial(self, to: str, client: str, port: int, isn: int) -> Call:
        return self.lab.dial(to, client=client, port=port, isn=isn, at=80 + port % 2)

    @rule(
        target=flows,
        to=st.sampled_from(DATAGRAMS),
        client=st.sampled_from(CLIENTS),
        port=st.sampled_from(PORTS),
    )
    def ask(self, to: str, client: str, port: int) -> Flow:
        return self.lab.flow(to, client=client, port=port, at=80 + port % 2).asks()

    @rule(flow=flows, client=st.booleans())
    def speak(self, flow: Flow, client: bool) -> None:
        if client:
            flow.asks()
        else:
            flow.answers()

    @rule(target=calls, to=st.sampled_from(SERVICES), client=st.sampled_from(CLIENTS))
    def connect(self, to: str, client: str) -> Call:
        call = self.lab.dial(to, client=client, at=8080)
        return call.syn_ack().ack() if call.refused is None else call

    @rule(call=calls, isn=st.sampled_from([None, 77, 2**30]))
    def repeat(self, call: Call, isn: int | None) -> None:
        call.syn(isn)

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

    @rule(seconds=st.sampled_from([0.1, 1.0, 9.0, 31.0, 130.0]))
    def wait(self, seconds: float) -> None:
        self.lab.wait(seconds)

    @rule(seconds=st.sampled_from([0.1, 11.0, 40.0]), budget=st.integers(1, 3))
    def hardly_time(self, seconds: float, budget: int) -> None:
        self.lab.now += seconds
        self.lab.director.tick(self.lab.now, budget)

    @rule(name=st.sampled_from("abcd"), weight=st.sampled_from([0, 1, 2.5]))
    def weigh(self, name: str, weight: float) -> None:
        server = self.lab.director.real_servers[name]
        server.weight = weight
        server.changed(self.lab.now)

    @invariant()
    def books_are_right(self) -> None:
        audit(self.lab.director)
        totals = self.lab.director.totals()
        assert len(self.lab.connections()) <= totals.connections_limit
        assert totals.sticky == len(list(self.lab.director.fpas.entries())) <= totals.sticky_limit
        sent = totals.connections_total + self.lab.director.table.reassigned
        assert sent == sum(each.total for each in self.lab.director.reals(0))
        assert totals.connections_total == sum(each.total for each in self.lab.director.virtuals(0))

    def teardown(self) -> None:
        """Everything ends: nothing is left."""
        for connection in list(self.lab.director.table.inbound.values())[::2]:
            if not connection.state.udp:
                _cut(self.lab, connection)
        audit(self.lab.director)
        self.lab.wait(400)
        self.lab.wait(400)
        director = self.lab.director
        assert not director.table.inbound
        assert not director.table.outbound
        assert director.totals().connections == director.totals().sticky == 0
        assert [(each.connections, each.unanswered) for each in director.reals(0)] == [(0, 0)] * 4
        assert {link.connections for each in director.virtual_servers for link in each.links} == {0}
        audit(director)


def _cut(lab: Scenario, connection: Connection) -> None:
    """A reset that fits, whatever the connection's state is."""
    numbers = connection.server_numbers or bytes(8)
    syn = (int.from_bytes(connection.client_numbers[:4], "big") + 1) % 2**32
    if connection.state is State.SYN_SENT:
        numbers = bytes(4) + syn.to_bytes(4, "big")
    lab.director.server_sent(connection, RST | ACK, numbers, lab.now)
    assert connection.state.ended


def test_any_order_of_events() -> None:
    """R012, R043, R050, R060, R061, R125, R128, R129, R183, R187 (A4, A5, A17, A23): the books are right.

    After every step every counter of every real server and link equals a recount over the
    table, both indexes agree, schedulers rank by the true numbers, the bounds hold; and when
    all has ended everything is zero and empty.
    """
    run_state_machine_as_test(Traffic, settings=settings(TRIES, max_examples=150, stateful_step_count=50))


def test_every_ending_moves_each_counter_once() -> None:
    """R127-R129, R183 (A17): a thousand connections of every ending, and repeated endings."""
    lab = Scenario(
        virtual("web", "ab", scheduler="least-connections"), [real("a"), real("b")], max_connections=5000
    )

    def endings(call: Call, number: int) -> None:
        if number % 7 == 0:
            call.syn_ack().ack().close()
        elif number % 7 == 1:
            call.syn_ack().ack().server_fin().fin().server_ack().fin().server_fin()
        elif number % 7 == 2:
            call.syn_ack().ack().reset().reset().server_reset()
        elif number % 7 == 3:
            call.syn_ack().ack().says().server_reset().fin().server_fin()
        elif number % 7 == 4:
            call.refusal().refusal()
        elif number % 7 == 5:
            call.syn_ack()
        elif number % 14 == 6:
            call.syn_ack().ack()

    for number in range(1000):
        endings(lab.dial(port=1024 + number), number)
        if number % 50 == 0:
            audit(lab.director)
    audit(lab.director)
    lab.wait(3700)
    lab.wait(70)
    audit(lab.director)
    assert lab.connections() == []
    assert lab.loads() == {"a": 0, "b": 0}
    assert lab.virtual().total == 1000


def test_flags_in_every_combination_on_every_state() -> None:
    """R107 (A17): no combination of flags breaks the books."""
    makers = ("", "syn_ack", "syn_ack ack", "syn_ack ack fin", "syn_ack ack server_fin", "syn_ack ack close")
    for flags in range(0x20):
        lab = Scenario(virtual("web", "ab"), [real("a"), real("b")])
        for maker in makers:
            for side in ("client_sends", "server_sends"):
                call = lab.dial()
                for step in maker.split():
                    getattr(call, step)()
                getattr(call, side)(flags)
                getattr(call, side)(flags)
                if flags == FIN | ACK and maker == "syn_ack ack":
                    assert call.state == ("fin-client" if side == "client_sends" else "fin-server")
                if not flags & (SYN | FIN | RST) and maker == "syn_ack ack":
                    assert call.state == "established"
        audit(lab.director)
