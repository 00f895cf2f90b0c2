"""Another configuration between two packets: what stays goes on, what is new counts, what leaves drains."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.config.transition import merged, settled
from nfqlb.core import spec
from nfqlb.core.admission import ServerState
from nfqlb.core.director import Director
from nfqlb.core.verdict import Drop
from tests.core.memory import Memory, Notes
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, address_of, real, reals, virtual


class Gateway(Scenario):
    """A scenario whose configuration changes."""

    def reload(
        self, virtuals: spec.Virtual | Sequence[spec.Virtual] | None = None,
        servers: Sequence[spec.Real] | None = None, **gateway: Any,
    ) -> None:  # fmt: skip
        """As `nfqlb reload` does it: with what leaves for as long as it has connections."""
        several = [virtuals] if isinstance(virtuals, spec.Virtual) else virtuals
        timeouts = gateway.pop("timeouts", self.config.timeouts)
        wanted = replace(
            self.config,
            gateway=replace(self.config.gateway, **gateway),
            virtuals=self.config.virtuals if several is None else tuple(several),
            reals=self.config.reals if servers is None else tuple(servers),
            timeouts=timeouts,
        )
        self.director.reconfigure(merged(self.director.config, wanted), self.now)
        self.config = wanted
        audit(self.director)
        self.settle()

    def settle(self) -> None:
        """Let go of what has drained."""
        config = settled(self.director.config, self.director.remaining())
        self.director.reconfigure(config, self.now)
        audit(self.director)

    def names(self) -> dict[str, str]:
        """State by real server."""
        return {each.name: each.state for each in self.director.reals(self.now)}


def test_a_removed_server_drains_and_disappears_when_it_is_empty() -> None:
    lab = Gateway(virtual("web", "ab"), reals("ab"))
    kept = [lab.connect(), lab.connect()]
    lab.reload(virtual("web", "b"), reals("b"))
    assert lab.names() == {"b": "in-service", "a": "draining"}
    assert [lab.connect().server for _ in range(4)] == ["b"] * 4
    assert [call.says().hears().server for call in kept] == ["a", "b"]
    kept[0].close()
    lab.settle()
    assert lab.real("a").connections == 0
    assert lab.names()["a"] == "draining", "its last packets are still translated"
    lab.wait(11)
    lab.settle()
    assert lab.names() == {"b": "in-service"}
    assert kept[1].says().server == "b"


def test_a_server_without_connections_is_gone_at_once() -> None:
    lab = Gateway(virtual("web", "ab"), reals("ab"))
    lab.reload(virtual("web", "b"), reals("b"))
    assert lab.names() == {"b": "in-service"}


def test_a_place_in_one_virtual_server_drains_alone() -> None:
    lab = Gateway([virtual("web", "ab"), virtual("tls", "ab", port=443)], reals("ab"))
    kept = lab.connect("web")
    assert kept.server == "a"
    lab.reload([virtual("web", "b"), virtual("tls", "ab", port=443)])
    assert lab.names() == {"a": "in-service", "b": "in-service"}
    assert lab.connect("web").server == "b"
    assert "a" in {lab.connect("tls").server for _ in range(2)}
    assert kept.says().hears().server == "a"
    places = [(each.real, each.state, each.connections) for each in lab.virtual("web").servers]
    assert places == [("b", "in-service", 1), ("a", "draining", 1)]
    assert lab.virtual("web").connections == 2


def test_a_removed_virtual_server_takes_no_new_connection() -> None:
    lab = Gateway([virtual("web", "a"), virtual("old", "ab", port=81)], reals("ab"))
    kept = [lab.connect("old"), lab.connect("old")]
    dialled = lab.call("old")
    lab.reload(virtual("web", "a"), reals("a"))
    assert lab.virtual("old").state == "draining"
    assert dialled.syn().refused is Drop.OUT_OF_SERVICE
    assert [call.says().hears().server for call in kept] == ["a", "b"]
    assert lab.names() == {"a": "in-service", "b": "draining"}
    for call in kept:
        call.close()
    lab.wait(11)
    lab.settle()
    assert [each.name for each in lab.director.virtuals(lab.now)] == ["web"]
    assert dialled.syn().refused is Drop.NO_VIRTUAL


def test_another_address_is_another_server_under_the_old_name() -> None:
    """The machine that had the name keeps its connections, as NAME@1."""
    lab = Gateway(virtual("web", "a"), reals("a"))
    kept = lab.connect()
    lab.reload(servers=[replace(real("a"), address=address_of("z"))])
    assert [(each.name, str(each.address), each.state) for each in lab.director.reals(lab.now)] == [
        ("a", str(address_of("z")), "in-service"),
        ("a@1", str(address_of("a")), "draining"),
    ]
    new = lab.connect()
    assert new.connection.outbound.startswith(address_of("z").packed)
    assert kept.says().hears().server == "a@1"
    lab.reload(servers=[replace(real("a"), address=address_of("y"))])
    assert set(lab.names()) == {"a", "a@1", "a@2"}
    assert new.says().server == "a@2"


def test_a_server_that_comes_back_goes_on() -> None:
    lab = Gateway(virtual("web", "ab"), reals("ab"))
    kept = lab.connect()
    lab.reload(virtual("web", "b"), reals("b"))
    lab.reload(virtual("web", "ab"), reals("ab"))
    assert lab.names() == {"a": "in-service", "b": "in-service"}
    assert lab.loads() == {"a": 1, "b": 0}
    assert kept.says().server == "a"
    assert {lab.connect().server for _ in range(2)} == {"a", "b"}


def test_a_renamed_server_is_the_same_one() -> None:
    """Its connections, its setting and its clients stay with it."""
    notes = Notes()
    lab = Gateway(virtual("web", "ab", sticky=60), reals("ab"), keeper=notes)
    kept = lab.connect()
    lab.director.operation.set_real("a", setting=ServerState.STICKY_ONLY, now=lab.now)
    lab.reload(virtual("web", ["new", "b"], sticky=60), [replace(real("a"), name="new"), real("b")])
    assert lab.names() == {"new": "sticky-only", "b": "in-service"}
    assert kept.says().server == "new"
    assert lab.connect(port=50_000).server == "new"
    kept_of_new = next(each for (_, name), each in notes.kept.items() if name == "new")
    assert kept_of_new.setting is ServerState.STICKY_ONLY


def test_what_was_remembered_of_a_name_is_not_its_new_bearers() -> None:
    notes = Notes()
    lab = Gateway(virtual("web", "ab"), reals("ab"), keeper=notes)
    lab.connect()
    lab.director.operation.set_real("a", setting=ServerState.MAINTENANCE, now=lab.now)
    lab.reload(servers=[replace(real("a"), address=address_of("z")), real("b")])
    assert lab.names() == {"a": "in-service", "b": "in-service", "a@1": "draining"}
    settings_of = {name: kept.setting for (_, name), kept in notes.kept.items()}
    assert settings_of["a"] is ServerState.IN_SERVICE
    assert settings_of["a@1"] is ServerState.MAINTENANCE


def test_sticky_clients_of_a_removed_server_get_another_one() -> None:
    lab = Gateway(virtual("web", "ab", sticky=600), reals("ab"))
    assert lab.connect(client="192.0.2.1").server == "a"
    assert lab.connect(client="192.0.2.2").server == "b"
    lab.reload(virtual("web", "b", sticky=600), reals("b"))
    assert [each.real for each in lab.director.sticky(lab.now)] == ["b"]
    assert lab.connect(client="192.0.2.1").server == "b"
    lab.reload(virtual("web", "ab", sticky=600), reals("ab"))
    assert lab.connect(client="192.0.2.1").server == "b", "it is bound there by now"


def test_sticky_entries_stay_when_their_duration_changes() -> None:
    lab = Gateway(virtual("web", "ab", sticky=600), reals("ab"))
    assert [lab.connect(client=f"192.0.2.{n}").server for n in (1, 2)] == ["a", "b"]
    lab.wait(100)
    lab.reload(virtual("web", "ab", sticky=300))
    assert [each.expires for each in lab.director.sticky(lab.now)] == [200.0, 200.0]
    assert [lab.connect(client=f"192.0.2.{n}").server for n in (2, 1)] == ["b", "a"]
    lab.reload(virtual("web", "ab", sticky=0))
    assert lab.director.totals().sticky == 0


def test_sticky_entries_follow_their_virtual_servers_into_a_group_and_out_of_it() -> None:
    one, two = virtual("one", "ab", sticky=60), virtual("two", "ab", port=81, sticky=60)
    lab = Gateway([one, two], reals("ab"))
    lab.connect("one", client="192.0.2.9")
    bound = lab.connect("one").server
    assert bound == "b"
    group = [replace(each, sticky_group="both") for each in (one, two)]
    lab.reload(group)
    assert lab.connect("two").server == bound
    lab.reload([one, two])
    assert [lab.connect(name).server for name in ("two", "one")] == [bound, bound]


def test_what_a_group_was_not_sure_of_nobody_is_sure_of_who_comes_out_of_it() -> None:
    """F24: a flood's entries stay the first to go."""
    one, two = (virtual(name, "ab", port=port, sticky=60) for name, port in (("one", 80), ("two", 81)))
    lab = Gateway([replace(each, sticky_group="both") for each in (one, two)], reals("ab"))
    lab.dial("one")
    lab.reload([one, two])
    assert [entry.loose for _, _, entry in lab.director.fpas.entries()] == [True, True]


def test_activity_counts_from_now_on() -> None:
    """R063 (A6): also that of connections which are older than the configuration."""
    lab = Gateway(virtual("web", "ab", sticky=60), reals("ab"))
    call = lab.connect()
    active = replace(virtual("web", "ab", sticky=60), sticky_refresh="activity")
    lab.wait(30)
    lab.reload(active)
    lab.wait(20)
    call.says()
    lab.wait(50)
    assert lab.connect(port=50_000).server == "a"
    lab.reload(virtual("web", "ab", sticky=60))
    assert lab.director.totals().sticky == 1


@pytest.mark.parametrize(("weight", "share"), [(4, 16), (0, 0)])
def test_weights_count_for_the_next_syn(weight: float, share: int) -> None:
    lab = Gateway(virtual("web", "ab", scheduler="weighted-round-robin"), reals("ab"))
    lab.connect()
    lab.reload(servers=[real("a"), real("b", weight=weight)])
    chosen = [lab.connect().server for _ in range(20)].count("b")
    assert chosen - share in (0, 1), "one turn was its own already"


def test_what_an_operator_set_stays_unless_the_file_says_something_new() -> None:
    lab = Gateway(virtual("web", "ab"), reals("ab"))
    lab.director.operation.set_real("a", weight=7.0, setting=ServerState.MAINTENANCE, now=lab.now)
    lab.reload(servers=[replace(real("a"), max_connections=5), real("b")])
    assert (lab.real("a").weight, lab.real("a").state) == (7.0, "maintenance")
    lab.reload(servers=[real("a", weight=3), real("b")])
    assert (lab.real("a").weight, lab.real("a").state) == (3.0, "maintenance")


def test_failures_stay_and_are_tested_as_the_new_retry_says() -> None:
    fragile = replace(real("a"), failure_threshold=1, failure_clients=1, attempts=2, retry=600.0)
    lab = Gateway(virtual("web", "ab"), [fragile, real("b")])
    lab.dial().syn()
    assert lab.real("a").state == "failed"
    lab.wait(10)
    lab.reload(servers=[replace(fragile, retry=20.0), real("b")])
    assert (lab.real("a").state, lab.real("a").test) == ("failed", 20.0)
    lab.wait(21)
    assert lab.connect().server == "a"
    assert lab.real("a").state == "in-service"


def test_a_server_that_cannot_fail_any_more_is_well() -> None:
    fragile = replace(real("a"), failure_threshold=1, failure_clients=1, attempts=2)
    lab = Gateway(virtual("web", "a"), [fragile])
    lab.dial().syn()
    lab.reload(servers=[replace(fragile, failure_threshold=0)])
    assert lab.real("a").state == "in-service"
    assert lab.connect().server == "a"


def test_round_robin_goes_on_after_the_server_used_last() -> None:
    lab = Gateway(virtual("web", "abcd"), reals("abcd"))
    assert [lab.connect().server for _ in range(3)] == ["a", "b", "c"]
    lab.reload(virtual("web", "dxab"), reals("abdx"))
    assert lab.connect().server == "d", "c is gone: it was b's turn that counts, and nobody follows it"


def test_limits_count_for_the_next_syn() -> None:
    lab = Gateway(virtual("web", "a"), reals("a"))
    lab.connect()
    lab.reload(servers=[real("a", max_connections=1)])
    assert lab.dial().refused is Drop.NO_SERVER
    assert lab.real("a").state == "max-capacity"
    lab.reload(servers=[real("a", max_connections=2)])
    assert lab.connect().server == "a"


@pytest.mark.parametrize(("before", "after"), [(30.0, 5.0), (5.0, 30.0)])
def test_time_outs_that_run_are_measured_by_the_new_ones(before: float, after: float) -> None:
    lab = Gateway(virtual("web", "a"), reals("a"), half_open=before)
    lab.dial()
    lab.wait(4)
    lab.reload(timeouts=spec.Timeouts(half_open=after, closing=10.0))
    lab.wait(after - 4 - 0.5)
    assert len(lab.connections()) == 1
    lab.wait(1)
    assert lab.connections() == []


def test_another_idle_time_out() -> None:
    lab = Gateway(virtual("web", "a"), reals("a"))
    lab.connect()
    lab.reload(servers=[real("a", idle_timeout=100)])
    lab.wait(99)
    assert len(lab.connections()) == 1
    lab.wait(61)
    assert lab.connections() == []


@pytest.mark.parametrize(
    ("key", "value"), [("count_on", "syn-ack"), ("close_on", "fin"), ("close_on", "time-out")]
)
def test_other_states_count(key: str, value: str) -> None:
    lab = Gateway(virtual("web", "a", scheduler="least-connections"), reals("a"))
    for each in (lab.dial(), lab.dial().syn_ack(), lab.connect(), lab.connect().fin(), lab.connect().close()):
        assert each.refused is None
    before = lab.loads()
    gateway: dict[str, Any] = {key: value}
    lab.reload(**gateway)
    assert lab.loads() != before
    gateway = {key: "syn" if key == "count_on" else "both"}
    lab.reload(**gateway)
    assert lab.loads() == before


def test_what_becomes_of_a_failed_servers_connections_can_be_said_later() -> None:
    fragile = replace(real("a"), failure_threshold=1, failure_clients=1, attempts=2)
    lab = Gateway(virtual("web", "ab"), [fragile, real("b")])
    kept = lab.connect()
    assert kept.server == "a"
    lab.reload(replace(virtual("web", "ab"), on_failure="drop"))
    lab.connect()
    lab.dial().syn()
    assert lab.real("a").state == "failed"
    lab.wait(1)
    assert kept.says().refused is Drop.NO_CONNECTION


def test_another_server_saves_no_connection_from_its_end() -> None:
    """Those of a failed server end some at a time, and a reload may come in between."""
    fragile = replace(real("a"), failure_threshold=1, failure_clients=1, attempts=2)
    web = replace(virtual("web", "ab"), on_failure="reset")
    lab = Gateway(web, [fragile, real("b")])
    doomed = [call for call in (lab.connect() for _ in range(20)) if call.server == "a"]
    lab.director.virtual_servers[0].last = -1
    lab.dial(client="198.51.100.99").syn()
    assert lab.real("a").state == "failed"
    lab.reload(replace(virtual("web", "abc"), on_failure="reset"), [fragile, real("b"), real("c")])
    lab.wait(1)
    assert len(lab.director.take_resets()) == len(doomed) == 10


def test_a_new_virtual_server_stands_behind_its_servers_once() -> None:
    lab = Gateway(virtual("web", "a"), reals("a"))
    wanted = replace(lab.config, virtuals=(*lab.config.virtuals, virtual("tls", "a", port=443)))
    lab.director.reconfigure(merged(lab.director.config, wanted), lab.now)
    assert len(lab.director.real_servers["a"].links) == 2


def test_a_repeated_syn_to_a_removed_server_goes_to_another() -> None:
    lab = Gateway(virtual("web", "ab"), reals("ab"))
    call = lab.dial()
    assert call.server == "a"
    lab.reload(virtual("web", "b"), reals("b"))
    assert [call.syn().server for _ in range(2)] == ["a", "b"]
    lab.settle()
    assert lab.names() == {"b": "in-service"}


def test_a_backup_that_is_one_no_more_drains() -> None:
    fragile = replace(real("a"), failure_threshold=1, failure_clients=1, attempts=2, backup="b")
    lab = Gateway(virtual("web", "a"), [fragile, real("b")])
    kept = lab.dial().syn().syn_ack().ack()
    assert kept.server == "b"
    lab.reload(servers=[replace(fragile, backup=""), real("b")])
    assert kept.says().hears().server == "b"
    assert lab.dial().refused is Drop.NO_SERVER
    assert [(each.real, each.state) for each in lab.virtual().servers] == [("a", "failed"), ("b", "draining")]


def test_another_scheduler_decides_the_next_syn() -> None:
    lab = Gateway(virtual("web", "ab"), reals("ab"))
    for _ in range(4):
        call = lab.connect()
        if call.server == "b":
            call.close()
    lab.reload(virtual("web", "ab", scheduler="least-connections"))
    assert [lab.connect().server for _ in range(2)] == ["b", "b"]
    assert (lab.virtual().desired, lab.virtual().actual) == ("least-connections", "least-connections")


def test_a_port_of_its_own_beside_an_old_virtual_server_of_every_port() -> None:
    memory = Memory()
    lab = Gateway(virtual("all", "ab", port=None), reals("ab"), recorder=memory)
    kept = lab.connect(at=80)
    assert kept.server == "a"
    one = virtual("web", "b", port=80)
    lab.reload(one, reals("ab"))
    assert kept.says().hears().server == "a"
    assert lab.connect("web").server == "b"
    assert lab.virtual("all").state == "draining"
    successor = successor_of(lab, memory)
    kept._scenario = successor
    assert kept.says().hears().server == "a"


def successor_of(lab: Scenario, memory: Memory) -> Scenario:
    """The worker is killed; the next one has the same configuration."""
    successor = Scenario(lab.config.virtuals, lab.config.reals, recorder=memory, now=lab.now + 1)
    successor.director = Director(lab.director.config, now=successor.now, recorder=memory)
    for place, (inbound, server, code, opened) in list(memory.records.items()):
        assert successor.director.restore(inbound, server, code, place, opened=opened, now=successor.now)
    successor.director.restored(successor.now)
    audit(successor.director)
    return successor


def test_a_worker_that_is_forked_later_knows_what_still_drains() -> None:
    memory = Memory()
    several = [virtual("web", "ab", sticky=60), virtual("old", "b", port=81)]
    lab = Gateway(several, reals("ab"), recorder=memory)
    kept = [lab.connect("web", client="192.0.2.1"), lab.connect("old")]
    lab.reload(virtual("web", "b", sticky=60), reals("b"))
    successor = successor_of(lab, memory)
    states = {each.name: each.state for each in successor.director.reals(0)}
    assert states == {"b": "in-service", "a": "draining"}
    for call in kept:
        call._scenario = successor
        call.says().hears()
    assert successor.connect("web", client="192.0.2.1", port=50_000).server == "b"
    assert successor.director.remaining() == lab.director.remaining()


# --- any configuration after any other

NAMES = "abcd"
SCHEDULERS = ("round-robin", "least-connections", "weighted-least-connections", "source-hash", "maglev")


@st.composite
def configurations(draw: st.DrawFn) -> tuple[list[spec.Virtual], list[spec.Real]]:
    """Some servers behind some virtual servers, with everything that may differ."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    machines = draw(st.permutations("abcdwxyz"))
    servers = [
        replace(
            real(name, weight=draw(st.sampled_from([1, 2, 0.5]))),
            max_connections=draw(st.sampled_from([0, 3])),
            address=address_of(name if draw(st.booleans()) else machine),
            idle_timeout=draw(st.sampled_from([60.0, 3600.0])),
        )
        for name, machine in zip(names, machines, strict=False)
    ]
    if len({each.address for each in servers}) < len(servers):
        servers = [replace(each, address=address_of(each.name)) for each in servers]
    if len(names) > 1 and draw(st.booleans()):
        servers[0] = replace(servers[0], backup=names[1])
    made = []
    for index in range(draw(st.integers(1, 3))):
        port = draw(st.sampled_from([80, 81, 82])) + 10 * index
        places = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
        suffix = draw(st.sampled_from(["", ":8080"]))
        one = virtual(
            draw(st.sampled_from(["web", "shop", "tls"])) + str(index),
            [place + suffix for place in places],
            port=port,
            scheduler=draw(st.sampled_from(SCHEDULERS)),
            sticky=draw(st.sampled_from([0.0, 0.0, 30.0, 60.0])),
        )
        one = replace(
            one,
            on_failure=draw(st.sampled_from(["keep", "drop", "reset"])),
            startup=draw(st.sampled_from(["none", "round-robin"])),
            backup=draw(st.sampled_from(["", names[-1]])),
            sticky_refresh=draw(st.sampled_from(["assignment", "activity", "never"])),
        )
        made.append(one)
    return made, servers


def _fresh(lab: Gateway) -> Scenario:
    """A director built from the new configuration alone, in which the connections that stay are the same."""
    fresh = Scenario(lab.config.virtuals, lab.config.reals, now=lab.now)
    fresh.director = Director(replace(lab.director.config), now=lab.now)
    for connection in lab.director.table.inbound.values():
        size = len(connection.link.real.address)
        server = connection.outbound[:size] + connection.outbound[2 * size :][:2]
        assert fresh.director.restore(
            connection.inbound, server, connection.state.code, -1, opened=connection.opened, now=lab.now
        )
    fresh.director.restored(lab.now)
    return fresh


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(st.lists(configurations(), min_size=2, max_size=4), st.data())
def test_any_configuration_after_any_other(steps: list[Any], data: st.DataObject) -> None:
    """Kept connections keep their servers, the books are right, and new ones go where they would anyway."""
    memory, notes = Memory(), Notes()
    lab = Gateway(*steps[0], recorder=memory, keeper=notes)
    calls: list[tuple[Call, bytes]] = []
    for virtuals, servers in steps[1:]:
        for number in range(data.draw(st.integers(0, 8))):
            name = data.draw(st.sampled_from([each.name for each in lab.config.virtuals]))
            call = lab.dial(name, client=f"192.0.2.{number % 3}")
            if call.refused is None:
                if data.draw(st.booleans()):
                    call.syn_ack().ack()
                calls.append((call, call.connection.link.real.address))
        lab.wait(data.draw(st.sampled_from([0.0, 5.0])))
        lab.reload(virtuals, servers)
        for call, machine in calls:
            if call.connection.state.quick:
                assert call.says().hears().refused is None
                assert call.connection.link.real.address == machine
        _decides_alike(lab)
    successor_of(lab, memory)
    for call, _ in calls:
        if call.connection.state.quick and not call.connection.state.ended:
            call.close()
    lab.wait(4000)
    lab.wait(4000)
    lab.settle()
    assert memory.records == {}
    assert set(lab.names()) == {each.name for each in lab.config.reals}
    assert [each.name for each in lab.director.virtuals(0)] == [each.name for each in lab.config.virtuals]


def _decides_alike(lab: Gateway) -> None:
    """As one that was built from the new configuration, with the same connections, turns and clients."""
    fresh = _fresh(lab)
    for mine, other in zip(lab.director.virtual_servers, fresh.director.virtual_servers, strict=True):
        other.last = mine.last
        for link, twin in zip(mine.everybody, other.everybody, strict=True):
            assert (link.real.spec, link.port) == (twin.real.spec, twin.port)
            assert link.connections == twin.connections
            twin.real.serving_since = link.real.serving_since
        assert (mine.spec, mine.port, mine.connections) == (other.spec, other.port, other.connections)
        for client in range(6):
            packed = bytes((198, 51, 100, client))
            choices = [each.scheduler.choose(packed, each.last) for each in (mine, other)]
            assert len({None if each is None else each.position for each in choices}) == 1
