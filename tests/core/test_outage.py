"""What becomes of a failed server's connections: they go on, are forgotten, or are reset (A34)."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from nfqlb.core import spec
from nfqlb.core.admission import ServerState
from nfqlb.core.chronicle import Keeper
from nfqlb.core.director import Director
from nfqlb.core.recorder import Recorder
from nfqlb.core.segment import Probe, Reset
from nfqlb.core.states import State
from nfqlb.core.verdict import Drop
from tests.core.memory import Memory, Notes
from tests.core.properties import TRIES
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, reals, virtual

QUICK = {"failure_threshold": 1, "failure_clients": 1, "retry": 60.0, "attempts": 2}


def site(
    on_failure: str, names: str = "ab", recorder: Recorder | None = None, keeper: Keeper | None = None,
    **keys: object,
) -> Scenario:  # fmt: skip
    """Servers that fail with the first connection that they do not answer twice."""
    servers = [replace(each, **{**QUICK, **keys}) for each in reals(names)]  # type: ignore[arg-type]  # by name
    web = replace(virtual("web", names), on_failure=on_failure)
    return Scenario(web, servers, max_connections=5000, recorder=recorder, keeper=keeper)


def fail(lab: Scenario, name: str = "a") -> None:
    """Let a server miss a connection, and time pass until what follows from it is done."""
    lab.director.virtual_servers[0].last = "ab".index(name) - 1
    call = lab.dial(client="198.51.100.99")
    assert call.server == name
    call.syn()
    assert lab.real(name).state == "failed"
    lab.wait(0.25)


def flipped(call: Call) -> bytes:
    """The key of a packet to the client."""
    key = call.key
    return key[4:8] + key[:4] + key[10:12] + key[8:10]


def test_they_go_on() -> None:
    """R186 (A34): the default; nothing is kept for anything else."""
    lab = site("keep")
    call = lab.connect()
    fail(lab)
    assert call.says().server == "a"
    assert lab.director.take_resets() == []
    assert all(link.members is None for link in lab.director.virtual_servers[0].links)


@pytest.mark.parametrize("on_failure", ["drop", "reset"])
def test_they_end(on_failure: str) -> None:
    """R186 (A34): those of the failed server, and no others; what comes then is without a connection."""
    lab = site(on_failure)
    calls = [lab.connect() for _ in range(6)]
    lost, kept = calls[::2], calls[1::2]
    fail(lab)
    assert lab.loads()["a"] == 0
    assert all(call.says().server == "b" for call in kept)
    assert all(call.says().refused is Drop.NO_CONNECTION for call in lost)
    assert all(call.hears().refused is Drop.SERVER_UNKNOWN for call in lost)
    audit(lab.director)


def test_a_reset_has_the_number_that_the_client_expects() -> None:
    """R186 (A34, RFC 5961): what it last acknowledged, whatever the server has sent since."""
    lab = site("reset")
    call = lab.connect().says().hears(1000).ack()
    expected = call.server_next
    call.hears(500).hears(500)
    fail(lab)
    assert lab.director.take_resets() == [Reset(flipped(call), expected, None)]
    assert lab.director.take_resets() == [], "once"
    assert lab.director.totals().replies == {"reset-on-failure": 1}


def test_no_reset_where_connections_are_dropped() -> None:
    """R186 (A34): the client finds out by what it sends."""
    lab = site("drop")
    lab.connect()
    fail(lab)
    assert lab.director.take_resets() == []


@pytest.mark.parametrize("ending", ["fin", "server_fin"])
def test_half_closed_connections_are_reset_like_any_other(ending: str) -> None:
    """R128, R186 (A34): one direction may still be in use."""
    lab = site("reset")
    call = getattr(lab.connect(), ending)().ack()
    fail(lab)
    assert [each.key for each in lab.director.take_resets()] == [flipped(call)]


def test_what_has_ended_already_is_left_alone() -> None:
    """R129, R186 (A34): late packets are still translated."""
    lab = site("reset")
    call, other = lab.connect().close(), lab.connect()
    assert (call.server, other.server) == ("a", "b")
    fail(lab)
    assert lab.director.take_resets() == []
    assert call.ack().server == "a"


def test_a_client_whose_syn_was_answered_is_reset_in_either_state() -> None:
    """R186 (A34): it may, or may not, have got the answer; the reset acknowledges its SYN."""
    lab = site("reset")
    call = lab.dial(isn=2**32 - 1).syn_ack(isn=2**32 - 1)
    fail(lab)
    assert lab.director.take_resets() == [Reset(flipped(call), 0, 0)]
    assert call.ack().refused is Drop.NO_CONNECTION


def test_a_client_whose_syn_was_not_answered_is_not_reset() -> None:
    """R186 (A34): its next SYN goes to another server, sooner than it would have."""
    lab = site("reset")
    call, _ = lab.dial(), lab.dial()
    fail(lab)
    assert lab.director.take_resets() == []
    assert lab.real("a").unanswered == 0
    assert call.syn().server == "b"
    audit(lab.director)


def test_the_connection_that_failed_the_server_goes_on_elsewhere() -> None:
    """R041, R186 (A34): it has another server by the time that the others end."""
    lab = site("reset")
    call = lab.dial().syn()
    assert (call.server, lab.real("a").state) == ("b", "failed")
    lab.wait(0.25)
    assert call.syn_ack().ack().server == "b"
    assert lab.director.take_resets() == []
    audit(lab.director)


def test_restored_connections_have_no_numbers() -> None:
    """R186 (A34): so their clients are asked for them; those that have spoken since are reset at once."""
    lab = site("reset")
    link = lab.director.virtual_servers[0].links[0]
    server = link.real.address + link.inbound.port
    calls = [lab.call(port=port) for port in (50_000, 50_001)]
    for call in calls:
        assert lab.director.restore(call.key, server, State.ESTABLISHED.code, 0, opened=lab.now, now=lab.now)
    lab.director.restored(lab.now)
    calls[1].client_sends(0x10, sequence=7, acknowledges=70)
    fail(lab)
    orders = [Reset(flipped(calls[1]), 70, None), Probe(flipped(calls[0]))]
    assert sorted(lab.director.take_resets(), key=orders.index) == orders
    assert calls[0].says().refused is Drop.NO_CONNECTION


def test_a_connection_that_has_come_back_goes_on() -> None:
    """R186 (A34): it was made, after the failure, with a server that is well again."""
    lab = site("drop")
    call = lab.dial().syn()
    assert (call.server, lab.real("a").state) == ("b", "failed")
    lab.director.operation.set_real("a", setting=ServerState.IN_SERVICE, now=lab.now)
    assert call.syn().syn_ack().ack().server == "a"
    lab.wait(0.25)
    assert call.says().hears().state == "established"
    audit(lab.director)


@pytest.mark.parametrize("on_failure", ["keep", "drop", "reset"])
def test_a_successor_ends_what_its_predecessor_had_not_come_to(on_failure: str) -> None:
    """R179, R186 (A34): the worker died while a million connections were being ended."""
    memory, notes = Memory(), Notes()
    lab = site(on_failure, recorder=memory, keeper=notes)
    calls = [lab.connect() for _ in range(6)]
    lab.dial().syn()
    assert lab.real("a").state == "failed"
    new = lab.director = Director(lab.config, now=lab.now, recorder=memory, keeper=notes)
    assert all(new.operation.restore(kept, lab.now) for kept in notes.kept.values())
    for place, (inbound, server, code, opened) in list(memory.records.items()):
        assert new.restore(inbound, server, code, place, opened=opened, now=lab.now)
    new.restored(lab.now)
    lab.wait(0.25)
    assert lab.loads()["a"] == (3 if on_failure == "keep" else 0)
    lost = [call.says().refused is Drop.NO_CONNECTION for call in calls]
    assert lost == [on_failure != "keep", False] * 3
    audit(new)


def test_where_not_every_segment_is_seen_all_clients_are_asked() -> None:
    """R186 (A34): the numbers known are those of the handshake. One that waits for an answer is not asked."""
    web = replace(virtual("web", "ab"), on_failure="reset", datapath="offload")
    lab = Scenario(web, [replace(each, **QUICK) for each in reals("ab")])  # type: ignore[arg-type]  # by name
    call, _, _ = lab.connect(), lab.connect(), lab.dial()
    fail(lab)
    assert lab.director.take_resets() == [Probe(flipped(call))]


def test_only_failures_end_connections() -> None:
    """R186 (A34): what the operator sets does not."""
    lab = site("reset")
    call = lab.connect()
    for state in ServerState:
        if state.operator:
            server = lab.director.real_servers["a"]
            server.setting = state
            server.changed(lab.now)
            lab.wait(1)
    assert call.says().server == "a"


def test_each_virtual_server_has_its_own_way() -> None:
    """R010, R186 (A34): of one machine's connections, some go on."""
    several = [
        replace(virtual("keep", "ab"), on_failure="keep"),
        replace(virtual("reset", "ab", port=81), on_failure="reset"),
        replace(virtual("drop", "ab", port=82), on_failure="drop"),
    ]
    lab = Scenario(several, [replace(each, **QUICK) for each in reals("ab")])  # type: ignore[arg-type]  # by name
    calls = {name: [lab.connect(name), lab.connect(name)] for name in ("keep", "reset", "drop")}
    fail(lab)
    assert [each.key for each in lab.director.take_resets()] == [flipped(calls["reset"][0])]
    assert calls["keep"][0].says().server == "a"
    assert {calls[name][0].says().refused for name in ("reset", "drop")} == {Drop.NO_CONNECTION}
    audit(lab.director)


def test_backups_fail_too() -> None:
    """R185, R186 (A34): a server's and the virtual server's."""
    servers = [replace(each, **QUICK) for each in reals("abc")]  # type: ignore[arg-type]  # by name
    servers[0] = replace(servers[0], backup="b")
    web = replace(virtual("web", "a"), on_failure="reset", backup="c")
    lab = Scenario(web, servers)
    for expected in "abc":
        call = lab.connect()
        assert call.server == expected
        lab.dial().syn()
        lab.wait(0.25)
        assert [each.key for each in lab.director.take_resets()] == [flipped(call)]
        lab.now += 0.5
    audit(lab.director)


def test_a_failed_test_ends_nothing_new() -> None:
    """R182, R186 (A34): and the connection of the test goes on elsewhere."""
    lab = site("reset", retry=10.0)
    fail(lab)
    lab.wait(11)
    test = lab.dial()
    assert (test.server, lab.real("a").state) == ("a", "testing")
    assert test.syn().server == "b"
    lab.wait(0.25)
    assert test.syn_ack().ack().server == "b"
    assert lab.director.take_resets() == []
    audit(lab.director)


def test_connections_made_after_the_failure_are_not_concerned() -> None:
    """R182, R186 (A34): a server that is back has new ones while the old ones are still being ended."""
    lab = site("reset", retry=0.0)
    old = [lab.connect(port=1024 + number) for number in range(400)]
    lab.director.virtual_servers[0].last = -1
    lab.dial(client="198.51.100.99").syn()
    assert lab.real("a").state == "failed"
    fresh = lab.connect()
    assert (fresh.server, lab.real("a").state) == ("a", "in-service")
    lab.wait(0.25)
    assert lab.loads()["a"] == 1
    assert fresh.says().server == "a"
    assert len(lab.director.take_resets()) == len(old) // 2


def test_a_connection_that_comes_back_as_the_test_is_left_alone() -> None:
    """R182, R186 (A34): given up, it would leave its server in testing for ever."""
    lab = site("reset", retry=0.0)
    call, other = lab.dial(), lab.dial(client="198.51.100.99")
    assert (call.server, other.server) == ("a", "b")
    lab.dial(client="198.51.100.98").syn()
    assert lab.real("a").state == "failed"
    assert call.syn().server == "b"
    assert call.syn().server == "a"
    assert lab.real("a").state == "testing"
    lab.wait(0.25)
    audit(lab.director)
    assert call.syn_ack().ack().server == "a"
    assert lab.real("a").state == "in-service"


def test_they_are_gone_through_in_steps() -> None:
    """R060, R186 (A34): however many there are, one step ends few, and says that there is more."""
    lab = site("reset", "a")
    calls = [lab.connect(port=1024 + number) for number in range(1000)]
    lab.dial().syn()
    assert lab.loads() == {"a": 1001}, "the failure itself ends none"
    steps = 0
    while lab.director.tick(lab.now, 1600):
        steps += 1
        assert len(lab.director.take_resets()) <= 100
        assert lab.loads()["a"] >= 1001 - 100 * steps
        audit(lab.director)
    assert 9 <= steps <= 11
    assert lab.loads() == {"a": 0}
    assert calls[0].says().refused is Drop.NO_CONNECTION


class Failures(RuleBasedStateMachine):
    """Connections that come, end, move and are reset while servers fail and come back."""

    def __init__(self) -> None:
        super().__init__()
        servers = [replace(each, **{**QUICK, "retry": 1.0}) for each in reals("abc")]  # type: ignore[arg-type]  # by name
        several = [
            replace(virtual("web", "abc"), on_failure="reset"),
            replace(virtual("tls", "abc", port=443), on_failure="drop"),
        ]
        self.lab = Scenario(several, servers, max_connections=30)
        self.calls: list[Call] = []

    @rule(to=st.sampled_from(["web", "tls"]), answered=st.booleans())
    def dials(self, to: str, answered: bool) -> None:
        call = self.lab.dial(to)
        if call.refused is None:
            self.calls.append(call.syn_ack().ack() if answered else call)

    @rule(
        which=st.integers(0, 50), what=st.sampled_from(["syn", "syn_ack", "ack", "fin", "reset", "refusal"])
    )
    def goes_on(self, which: int, what: str) -> None:
        if self.calls:
            getattr(self.calls[which % len(self.calls)], what)()

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.lab.now += seconds

    @rule(budget=st.integers(1, 30))
    def a_step(self, budget: int) -> None:
        self.lab.director.tick(self.lab.now, budget)
        for order in self.lab.director.take_resets():
            inbound = order.key[4:8] + order.key[:4] + order.key[10:12] + order.key[8:10]
            assert inbound not in self.lab.director.table.inbound

    @invariant()
    def books_are_right(self) -> None:
        audit(self.lab.director)
        table = self.lab.director.table
        for each in self.lab.director.virtual_servers:
            for link in each.links:
                assert link.members is not None
                assert link.members <= {one for one in table.inbound.values() if one.link is link}


def test_any_order_of_failures() -> None:
    """R043, R183, R186 (A17, A34): the books are right after every step."""
    run_state_machine_as_test(Failures, settings=settings(TRIES, max_examples=100, stateful_step_count=40))


def test_the_keys_default() -> None:
    """R186 (A34): keep, and drop."""
    made = virtual("web", "a")
    assert isinstance(made, spec.Virtual)
    assert (made.on_failure, made.reject) == ("keep", "drop")
