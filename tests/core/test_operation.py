"""The operator's hand: settings, weights, cleared stickiness, and what of it a successor takes over."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.admission import BY_NAME, ServerState
from nfqlb.core.chronicle import CHANGES, Kept, Kind
from nfqlb.core.health import Condition
from nfqlb.core.schedulers import SCHEDULERS
from nfqlb.core.verdict import Drop
from tests.core.memory import Notes
from tests.core.properties import TRIES
from tests.core.recount import audit
from tests.core.scenario import Scenario, real, virtual

SETTINGS = [state for state in ServerState if state.operator]
OTHER = "198.51.100.1"


def shop(servers: str = "ab", *, notes: Notes | None = None, now: float = 5000.0, **keys: Any) -> Scenario:
    """A virtual server with stickiness; the keys are of its real servers, `web` of itself."""
    web = {"sticky": 60.0, "scheduler": "round-robin", **keys.pop("web", {})}
    several = [replace(virtual("web", servers), **web), virtual("tls", servers, port=443)]
    return Scenario(several, [replace(real(name), **keys) for name in servers], now=now, keeper=notes)


def put(lab: Scenario, name: str, state: str) -> None:
    """The operator sets a real server's state."""
    lab.director.operation.set_real(name, setting=BY_NAME[state], now=lab.now)


def weigh(lab: Scenario, name: str, weight: float) -> None:
    lab.director.operation.set_real(name, weight=weight, now=lab.now)


def fail(lab: Scenario, name: str = "a") -> None:
    """Connections are refused until the server has failed."""
    number = 0
    while lab.real(name).state != "failed":
        number += 1
        assert number < 100
        call = lab.dial("tls", client=f"203.0.113.{100 + number}")
        if call.server == name:
            call.refusal()
        else:
            call.syn_ack().ack().close()


# --- the table of states


@pytest.mark.parametrize("state", SETTINGS)
def test_what_a_setting_admits(state: ServerState) -> None:
    """R039, R186 (A7, A41): the table, row by row: new clients, bound ones, and what exists."""
    lab = shop()
    held = lab.connect("web")
    assert held.server == "a"
    done = lab.director.operation.set_real("a", setting=state, now=lab.now)
    assert done.settings == (ServerState.IN_SERVICE, state)
    assert (lab.real("a").state, done.connections) == (state.shown, 1)
    assert held.says().hears().server == "a", "existing connections go on in every state"
    new = {lab.connect("tls", client=f"198.51.100.{number}").server for number in range(1, 5)}
    assert ("a" in new) is state.new
    assert (lab.connect("web").server == "a") is state.sticky
    audit(lab.director)


@pytest.mark.parametrize("setting", ["sticky-only", "maintenance", "out-of-service"])
@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_every_scheduler_heeds_it(scheduler: str, setting: str) -> None:
    """R186, R144: from the next SYN on, and from the next one after the server is back."""
    lab = shop("abc", web={"scheduler": scheduler, "sticky": 0.0})
    clients = [f"198.51.100.{number}" for number in range(1, 60)]
    put(lab, "b", setting)
    assert {lab.connect(client=client).server for client in clients} == {"a", "c"}
    put(lab, "b", "in-service")
    assert {lab.connect(client=client).server for client in clients} == {"a", "b", "c"}
    audit(lab.director)


def test_a_bound_client_of_a_server_in_maintenance_goes_elsewhere_and_stays_there() -> None:
    """R132 (A7): served by another server meanwhile, that is where it is bound from then on."""
    lab = shop()
    assert lab.connect().server == "a"
    put(lab, "a", "maintenance")
    assert lab.connect().server == "b"
    put(lab, "a", "in-service")
    assert lab.connect().server == "b"


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        (["maintenance", "in-service"], True),
        (["sticky-only", "in-service"], True),
        (["out-of-service", "in-service"], False),
        (["out-of-service", "maintenance", "in-service"], False),
        (["out-of-service", "sticky-only"], False),
        (["maintenance", "out-of-service", "out-of-service", "in-service"], False),
    ],
)
def test_only_out_of_service_forgets_its_clients(states: list[str], kept: bool) -> None:
    """R132, R186 (A7): associations are cleared when the server comes back from it, not before."""
    lab = shop("abc")
    assert lab.connect().server == "a"
    assert lab.connect(client=OTHER).server == "b"
    cleared, before = False, "in-service"
    for state in states:
        put(lab, "a", state)
        cleared |= before == "out-of-service" != state
        assert len(list(lab.director.sticky(lab.now))) == (1 if cleared else 2)
        before = state
    assert {entry.real for entry in lab.director.sticky(lab.now)} == ({"a", "b"} if kept else {"b"})
    assert (lab.connect().server == "a") is kept


def test_a_server_in_service_again_starts_up() -> None:
    """R101, R135: as after any other absence."""
    lab = shop(web={"startup": "round-robin", "sticky": 0.0, "scheduler": "least-connections"})
    lab.wait(100)
    put(lab, "a", "maintenance")
    for _ in range(10):
        lab.connect()
    put(lab, "a", "in-service")
    assert Counter(lab.connect().server for _ in range(4)) == {"a": 2, "b": 2}
    assert lab.virtual().actual == "round-robin"


def test_a_weight_counts_from_the_next_connection_on() -> None:
    """R048, R097 (A14): 0 takes no new clients, bound ones still come."""
    lab = shop(web={"scheduler": "weighted-least-connections"})
    assert lab.connect().server == "a"
    weigh(lab, "a", 0)
    assert {lab.connect(client=OTHER).server for _ in range(5)} == {"b"}
    assert lab.connect().server == "a"
    weigh(lab, "a", 10)
    lab.connect(client="198.51.100.2")
    assert lab.connect("tls", client="198.51.100.3").server == "a"
    audit(lab.director)


def test_links_show_their_share() -> None:
    """R070, R097 (A35): of the connections, and the fair one by the weights of those that take new ones."""
    lab = shop("abc", web={"sticky": 0.0})
    weigh(lab, "a", 3)
    for _ in range(4):
        lab.connect()
    put(lab, "c", "maintenance")
    links = lab.virtual().servers
    shown = {link.real: (link.connections, link.total, link.share, link.fair) for link in links}
    assert shown == {"a": (2, 2, 0.5, 0.75), "b": (1, 1, 0.25, 0.25), "c": (1, 1, 0.25, 0.0)}
    assert [link.state for link in links] == ["in-service", "in-service", "maintenance"]


# --- failure and the operator


def test_in_service_clears_a_failure() -> None:
    """R179, R186: at once, with a test under way too."""
    lab = shop(failure_threshold=3, retry=10.0)
    for tested in (False, True):
        fail(lab)
        lab.wait(10 if tested else 0)
        if tested:
            assert lab.dial(client=OTHER).server == "a"
        done = lab.director.operation.set_real("a", setting=ServerState.IN_SERVICE, now=lab.now)
        assert done.states == (ServerState.TESTING if tested else ServerState.FAILED, ServerState.IN_SERVICE)
        assert {lab.connect("tls", client=f"198.51.100.{n}").server for n in range(4)} == {"a", "b"}
        audit(lab.director)


def test_in_service_begins_the_count_of_failures_anew() -> None:
    """R179: as an answered connection does."""
    lab = shop("a", failure_threshold=3, failure_clients=1)
    for _ in range(2):
        lab.dial().refusal()
    put(lab, "a", "in-service")
    for _ in range(2):
        lab.dial().refusal()
    assert lab.real("a").state == "in-service"


def test_a_server_being_drained_may_fail_and_is_tested_by_a_client_of_its_own() -> None:
    """R182 (A7): bound clients are not sent to a dead server; one of them finds out that it is back."""
    lab = shop(failure_threshold=1, failure_clients=1, retry=30.0)
    assert lab.connect(client=OTHER).server == "a"
    assert lab.connect(client="198.51.100.2").server == "b"
    assert lab.connect(client="198.51.100.3").server == "a"
    put(lab, "a", "sticky-only")
    lab.dial(client=OTHER).refusal()
    assert lab.real("a").state == "failed"
    assert "sticky-only is set" in lab.real("a").reason
    assert lab.connect(client=OTHER).server == "b", "it is bound there now"
    lab.wait(30)
    assert lab.connect(client="198.51.100.9").server == "b", "a stranger does not test it"
    test = lab.dial(client="198.51.100.3")
    assert (test.server, lab.real("a").state) == ("a", "testing")
    audit(lab.director)
    test.syn_ack()
    assert lab.real("a").state == "sticky-only"
    assert lab.connect(client="198.51.100.3").server == "a"


def test_what_a_test_finds_out_in_maintenance_is_not_lost() -> None:
    """R182: the operator's setting is shown, and after it what was found out."""
    lab = shop(failure_threshold=1, failure_clients=1, retry=10.0)
    fail(lab)
    lab.wait(10)
    test = lab.dial(client=OTHER)
    put(lab, "a", "maintenance")
    test.syn_ack()
    audit(lab.director)
    assert lab.real("a").state == "maintenance"
    lab.director.operation.set_real("a", setting=ServerState.STICKY_ONLY, now=lab.now)
    assert lab.real("a").state == "sticky-only"


# --- virtual servers


def test_a_virtual_server_out_of_service_takes_no_new_connection() -> None:
    """R025 (A26): counted under its own reason; what exists goes on, others are not concerned."""
    lab = shop()
    held, asking = lab.connect(), lab.dial(client=OTHER)
    done = lab.director.operation.set_virtual("web", ServerState.OUT_OF_SERVICE)
    assert (done.states, done.connections) == ((ServerState.IN_SERVICE, ServerState.OUT_OF_SERVICE), 2)
    assert lab.dial().refused is Drop.OUT_OF_SERVICE
    assert lab.drops() == {"out-of-service": 1}
    assert held.says().hears().server == "a"
    assert asking.syn().syn().syn_ack().ack().state == "established"
    assert lab.virtual("web").state == "out-of-service"
    assert lab.connect("tls").server in ("a", "b")
    lab.director.operation.set_virtual("web", ServerState.IN_SERVICE)
    assert lab.connect().server == "a", "its sticky entries are kept"


@pytest.mark.parametrize(
    ("others", "state"),
    [
        ("in-service", "in-service"),
        ("failed", "failed"),
        ("maintenance", "failed"),
        ("out-of-service", "failed"),
        ("max-capacity", "in-service"),
    ],
)
def test_when_a_virtual_server_has_failed(others: str, state: str) -> None:
    """R025 (A26): none can be chosen, for reasons of failure; not because they are full."""
    lab = shop("ab", failure_threshold=1, failure_clients=1, max_connections=3)
    fail(lab, "a")
    if others == "failed":
        fail(lab, "b")
    elif others == "max-capacity":
        while lab.real("b").state != "max-capacity":
            lab.connect("tls", client=OTHER)
    else:
        put(lab, "b", others)
    assert lab.virtual("web").state == state
    put(lab, "a", "in-service")
    assert lab.virtual("web").state == "in-service"


@pytest.mark.parametrize("state", ["maintenance", "out-of-service", "sticky-only"])
def test_only_an_operator_puts_a_virtual_server_out_of_service(state: str) -> None:
    """R025 (A26): not its servers', however few are left."""
    lab = shop()
    for name in "ab":
        put(lab, name, state)
    assert lab.virtual("web").state == "in-service"
    assert lab.dial().refused is Drop.NO_SERVER


# --- stickiness cleared


def test_sticky_entries_are_cleared_by_group_and_client() -> None:
    """R066 (A8): a virtual server's are its group's; a client's is the one its masked address has."""
    group: dict[str, Any] = {"sticky": 60.0, "sticky_group": "g", "sticky_mask": 24}
    virtuals = [
        replace(virtual("one", "ab"), **group),
        replace(virtual("two", "ab", port=81), **group),
        virtual("own", "ab", port=82, sticky=60.0),
        virtual("none", "ab", port=83),
    ]
    lab = Scenario(virtuals, [real("a"), real("b")])
    operation = lab.director.operation

    def bind() -> None:
        for to in ("one", "two", "own", "none"):
            for client in ("192.0.2.1", "198.51.100.1"):
                lab.connect(to, client=client)

    bind()
    assert len(list(lab.director.sticky(lab.now))) == 4
    assert operation.clear_sticky("two", None, lab.now) == 2
    assert {entry.scope for entry in lab.director.sticky(lab.now)} == {"own"}
    bind()
    assert operation.clear_sticky(None, bytes((192, 0, 2, 1)), lab.now) == 2
    assert {str(entry.client) for entry in lab.director.sticky(lab.now)} == {"198.51.100.0", "198.51.100.1"}
    assert operation.clear_sticky("one", bytes((198, 51, 100, 77)), lab.now) == 1, "by its masked address"
    assert operation.clear_sticky("own", bytes(16), lab.now) == 0, "another family's client has none"
    assert operation.clear_sticky("none", None, lab.now) is None
    assert operation.clear_sticky(None, None, lab.now) == 1
    assert lab.director.totals().sticky == 0
    with pytest.raises(KeyError):
        operation.clear_sticky("nobody", None, lab.now)


# --- what is told


def test_each_failure_and_each_return_is_told_once() -> None:
    """R181: with the connections that did it; tests that fail in between change nothing that is news."""
    lab = shop(failure_threshold=3, failure_clients=2, retry=10.0)
    lab.director.chronicle.drain(lab.now)
    fail(lab)
    (change,) = lab.director.chronicle.drain(lab.now)
    assert (change.kind, change.name, change.before.shown, change.after.shown) == (
        Kind.REAL, "a", "in-service", "failed",
    )  # fmt: skip
    assert change.reason == "3 connections in a row could not be made"
    assert len(change.evidence) == 3
    assert len({each.client for each in change.evidence}) >= 2
    lab.wait(10)
    lab.dial(client=OTHER).refusal()
    lab.wait(10)
    lab.dial(client=OTHER).syn_ack()
    changes = lab.director.chronicle.drain(lab.now)
    assert [each.after.shown for each in changes] == ["testing", "failed", "testing", "in-service"]
    assert changes[-1].lasted == 20.0
    assert lab.director.chronicle.drain(lab.now) == []


def test_a_server_that_fills_up_is_no_news() -> None:
    """R184: it may do so with every connection."""
    lab = shop("a", max_connections=1)
    for _ in range(3):
        lab.connect().close()
    assert lab.director.chronicle.drain(lab.now) == []


def test_a_virtual_server_that_fails_and_returns_is_news() -> None:
    """R025 (A26): after its servers."""
    lab = shop("a", failure_threshold=1, failure_clients=1, retry=10.0)
    lab.dial(client=OTHER).refusal()
    told = [(each.name, each.after.shown) for each in lab.director.chronicle.drain(lab.now)]
    assert told == [("a", "failed"), ("web", "failed"), ("tls", "failed")]
    lab.wait(10)
    lab.dial(client=OTHER).syn_ack()
    told = [(each.name, each.after.shown) for each in lab.director.chronicle.drain(lab.now)]
    assert told[-2:] == [("web", "in-service"), ("tls", "in-service")]


def test_news_that_nobody_reads_are_bounded() -> None:
    """R181: the newest are kept, the others counted."""
    lab = shop()
    for number in range(CHANGES + 10):
        put(lab, "a", "maintenance" if number % 2 else "sticky-only")
    chronicle = lab.director.chronicle
    assert chronicle.missed == 10
    changes = chronicle.drain(lab.now)
    assert len(changes) == CHANGES
    assert all(change.by_operator for change in changes)


# --- a successor


def succeed(lab: Scenario, notes: Notes, after: float = 1.0, servers: str = "ab", **keys: Any) -> Scenario:
    """The worker dies; another one takes over what was kept, then the connections."""
    successor = shop(servers, notes=notes, now=lab.now + after, **keys)
    for kept in list(notes.kept.values()):
        successor.director.operation.restore(kept, successor.now)
    for connection in list(lab.director.table.inbound.values()):
        link = connection.link
        server = link.real.address + link.inbound.port
        successor.director.restore(
            connection.inbound, server, connection.state.code, -1, opened=float(int(connection.opened)),
            now=successor.now,
        )  # fmt: skip
    successor.director.restored(successor.now)
    audit(successor.director)
    assert successor.director.chronicle.drain(successor.now) == [], "what was taken over is no news"
    return successor


def test_settings_and_weights_are_taken_over() -> None:
    """R039, R186: of real and of virtual servers."""
    notes = Notes()
    lab = shop("abc", notes=notes)
    put(lab, "a", "sticky-only")
    put(lab, "b", "maintenance")
    weigh(lab, "c", 2.5)
    lab.director.operation.set_virtual("tls", ServerState.OUT_OF_SERVICE)
    after = succeed(lab, notes, servers="abc")
    assert [after.real(name).state for name in "abc"] == ["sticky-only", "maintenance", "in-service"]
    assert [after.real(name).weight for name in "abc"] == [1, 1, 2.5]
    assert [after.virtual(name).state for name in ("web", "tls")] == ["in-service", "out-of-service"]
    assert after.connect(client=OTHER).server == "c"


def test_a_weight_put_back_follows_the_configuration_again() -> None:
    """R048: it is no setting any more."""
    notes = Notes()
    lab = shop(notes=notes)
    weigh(lab, "a", 3)
    weigh(lab, "a", 1)
    assert succeed(lab, notes, weight=7).real("a").weight == 7


def test_a_failed_server_stays_failed() -> None:
    """R179, R182: since when, why, how often, and when it is tested."""
    notes = Notes()
    lab = shop(notes=notes, failure_threshold=3, retry=60.0)
    fail(lab)
    before = lab.real("a")
    lab.wait(20)
    after = succeed(lab, notes, after=1.0, failure_threshold=3, retry=60.0)
    seen = after.real("a")
    assert (seen.state, seen.reason, seen.since) == ("failed", before.reason, 21.0)
    assert seen.ditched_reset == before.ditched_reset == 3
    after.wait(38.9)
    assert {after.connect(client=OTHER).server for _ in range(3)} == {"b"}
    after.wait(0.1)
    assert after.dial(client="198.51.100.2").syn_ack().server == "a"
    assert after.real("a").state == "in-service"


def test_a_test_that_was_under_way_is_made_again_at_once() -> None:
    """R182: the lost test told nothing, so the next client makes another."""
    notes = Notes()
    lab = shop(notes=notes, failure_threshold=3, retry=60.0)
    fail(lab)
    lab.wait(60)
    lost = lab.dial(client=OTHER)
    assert lab.real("a").state == "testing"
    after = succeed(lab, notes, failure_threshold=3, retry=60.0)
    assert (after.real("a").state, after.real("a").unanswered) == ("failed", 1)
    assert after.real("a").reason == "its test was lost with the worker"
    lost._scenario = after
    assert lost.syn_ack().server == "a"
    assert after.real("a").state == "failed", "an answer to what is no test any more proves nothing"
    assert after.dial(client="198.51.100.2").syn_ack().server == "a"
    assert after.real("a").state == "in-service"


def test_what_was_found_out_in_maintenance_is_taken_over() -> None:
    """R182: also where the shown state did not change with it."""
    notes = Notes()
    lab = shop(notes=notes, failure_threshold=3, retry=10.0)
    fail(lab)
    lab.wait(10)
    test = lab.dial(client=OTHER)
    put(lab, "a", "maintenance")
    test.syn_ack()
    assert notes.kept[Kind.REAL, "a"].condition is Condition.WELL


def test_another_configuration() -> None:
    """R179, R186: names that are gone are refused; who may not fail has not; the new `retry` counts."""
    notes = Notes()
    lab = shop("abc", notes=notes, failure_threshold=3, retry=3600.0)
    fail(lab)
    put(lab, "c", "maintenance")
    operation = shop("ab").director.operation
    assert not operation.restore(notes.kept[Kind.REAL, "c"], lab.now)
    assert not operation.restore(Kept(Kind.VIRTUAL, "gone"), lab.now)
    assert not operation.restore(Kept(Kind.VIRTUAL, "a"), lab.now), "another kind's name"
    assert succeed(lab, notes, failure_threshold=0).real("a").state == "in-service"
    after = succeed(lab, notes, failure_threshold=3, retry=10.0)
    after.wait(10)
    assert after.dial(client=OTHER).server == "a"


@pytest.mark.parametrize("how", ["out-of-service", "clear"])
def test_cleared_stickiness_does_not_come_back_with_a_successor(how: str) -> None:
    """R132 (A7): a connection from before binds its client no more; one from after it does."""
    notes = Notes()
    lab = shop("abc", notes=notes)
    before = lab.connect()
    assert before.server == "a"
    lab.wait(2)
    if how == "clear":
        lab.director.operation.clear_sticky("web", None, lab.now)
    else:
        put(lab, "a", "out-of-service")
        put(lab, "a", "in-service")
    lab.wait(2)
    assert lab.connect(client=OTHER).server == "b"
    after = succeed(lab, notes, servers="abc")
    assert {str(entry.client) for entry in after.director.sticky(after.now)} == {OTHER}


_orders = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.one_of(st.sampled_from(SETTINGS), st.sampled_from([0.0, 0.5, 1.0, 3.0])),
        st.integers(0, 3),
        st.sampled_from(["connect", "dial", "refuse", "close"]),
    ),
    max_size=40,
)


@TRIES
@given(_orders, st.sampled_from(["round-robin", "least-connections", "weighted-least-connections"]))
def test_any_orders_between_any_connections(
    orders: list[tuple[str, ServerState | float, int, str]], scheduler: str
) -> None:
    """R039, R043, R048, R186: the books hold, choices are a plain search's, and nothing is forgotten."""
    notes = Notes()
    keys: dict[str, Any] = {"web": {"scheduler": scheduler}, "failure_threshold": 2, "failure_clients": 1}
    lab = shop("abc", notes=notes, **keys)
    open_calls = []
    for name, order, wait, what in orders:
        if isinstance(order, float):
            weigh(lab, name, order)
        else:
            put(lab, name, order.shown)
        lab.wait(wait)
        call = lab.dial(client=f"198.51.100.{wait}")
        if call.refused is None:
            assert lab.director.real_servers[call.server].setting.sticky
            if what == "refuse":
                call.refusal()
            elif what != "dial":
                open_calls.append(call.syn_ack().ack())
        if what == "close" and open_calls:
            open_calls.pop(0).close()
        audit(lab.director)
    after = succeed(lab, notes, after=0.0, servers="abc", **keys)
    for name in "abc":
        old, new = lab.director.real_servers[name], after.director.real_servers[name]
        assert (new.setting, new.weight, new.down) == (old.setting, old.weight, old.down)
