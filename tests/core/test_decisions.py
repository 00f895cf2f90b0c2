"""Why a connection went where it went: every reason there is, told after the fact."""

from dataclasses import replace
from typing import Any

import pytest

from nfqlb.core.admission import ServerState
from nfqlb.core.director import Director
from nfqlb.core.explanation import ALL, BEST
from nfqlb.core.snapshot import CandidateSnapshot, StickyAnswer
from nfqlb.core.verdict import Drop
from tests.core.preset import set_weight
from tests.core.scenario import VIP, Scenario, real, reals, virtual

WLC = "weighted-least-connections"


def site(servers: str = "abc", scheduler: str = WLC, *, sticky: float = 0, **keys: Any) -> Scenario:
    """A virtual server whose real servers have these keys."""
    made = [replace(real(name), **keys) for name in servers]
    return Scenario(virtual("web", servers, scheduler=scheduler, sticky=sticky), made)


def put(lab: Scenario, name: str, state: ServerState) -> None:
    """The operator puts a server into a state."""
    server = lab.director.real_servers[name]
    server.setting = state
    server.changed(lab.now)


def fail(lab: Scenario, name: str) -> None:
    """The server refuses whatever comes, until it has failed."""
    while lab.real(name).state != "failed":
        call = lab.dial(client="198.51.100.77")
        if call.server == name:
            call.refusal()
        else:
            call.syn_ack().ack().close()


def failing(servers: str = "ab", **keys: Any) -> Scenario:
    """Server a has failed just now."""
    lab = site(servers, failure_threshold=1, failure_clients=1, retry=60.0, **keys)
    fail(lab, "a")
    return lab


def reasons(lab: Scenario, to: str | None = None) -> dict[str, str]:
    """What became of each server in the last decision, the best first."""
    return {each.real: each.reason for each in lab.why(to).candidates}


def candidate(lab: Scenario, name: str) -> CandidateSnapshot:
    """A server as it was in the last decision."""
    return next(each for each in lab.why().candidates if each.real == name)


# --- who was chosen, and by what


def test_a_comparison_is_told_with_its_numbers() -> None:
    """R096, R145, R187: each server as it was before the connection counted."""
    lab = Scenario(virtual("web", "abc", scheduler=WLC), [real("a"), real("b", weight=2), real("c")])
    for _ in range(5):
        lab.connect()
    lab.wait(2)
    lab.dial(client="192.0.2.7", port=40123)
    lab.wait(3)
    told = lab.why()
    assert (told.chosen, told.chosen_port, told.refused) == ("a", 80, None)
    assert (str(told.client), told.client_port, told.virtual, told.age) == ("192.0.2.7", 40123, "web", 3)
    assert (told.by, told.scheduler, told.set_aside) == ("scheduler", WLC, None)
    assert [(each.real, each.connections, each.weight, each.indicium) for each in told.candidates] == [
        ("a", 1, 1, 1.0),
        ("b", 2, 2, 1.0),
        ("c", 2, 1, 2.0),
    ]
    assert reasons(lab) == {"a": "chosen", "b": "later-in-order", "c": "worse"}
    assert (told.equal, told.last) == (True, "c")
    assert told.others == {}


def test_what_happens_later_does_not_change_what_is_told() -> None:
    """R104: the facts are those of the decision, whatever its servers did since."""
    lab = site("ab")
    first = lab.connect()
    before = lab.why().candidates
    for _ in range(7):
        lab.connect().close()
    first.close()
    put(lab, "b", ServerState.MAINTENANCE)
    set_weight(lab.director.virtual_servers[0], "a", 0)
    lab.wait(100)
    assert lab.decisions()[-1].candidates == before


def test_round_robin_takes_the_next_in_order() -> None:
    """R099, A29."""
    lab = site("abc", "round-robin")
    lab.connect()
    lab.connect()
    told = lab.why()
    assert (told.chosen, told.last, told.equal) == ("b", "a", True)
    assert reasons(lab) == {"b": "chosen", "c": "later-in-order", "a": "later-in-order"}


def test_weighted_round_robin_gives_turns() -> None:
    """R048: there is nothing to compare."""
    lab = site("ab", "weighted-round-robin")
    lab.connect()
    assert reasons(lab) == {"a": "chosen", "b": "not-its-turn"}
    assert {each.indicium for each in lab.why().candidates} == {None}


def test_power_of_two_tells_whom_it_drew() -> None:
    """The better one of two, and the others were not drawn."""
    lab = site("abcd", "power-of-two")
    for _ in range(20):
        lab.connect()
        told = lab.why()
        first, second = told.note
        assert told.chosen in (first, second)
        other = second if told.chosen == first else first
        for each in told.candidates:
            if each.real == other:
                assert each.reason in ("worse", "later-in-order")
                assert each.indicium is not None
                chosen = candidate(lab, told.chosen)
                assert chosen.indicium is not None
                assert (each.reason == "worse") is (each.indicium > chosen.indicium)
            elif each.real != told.chosen:
                assert each.reason == "not-drawn"


@pytest.mark.parametrize("scheduler", ["source-hash", "maglev"])
def test_hashing_tells_whom_the_address_points_at(scheduler: str) -> None:
    """Where that one cannot be chosen, who was it?"""
    lab = site("abc", scheduler)
    wanted = lab.connect().server
    told = lab.why()
    assert told.note == (wanted,)
    assert sorted(reasons(lab).values()) == ["address-points-elsewhere"] * 2 + ["chosen"]
    put(lab, wanted, ServerState.OUT_OF_SERVICE)
    assert lab.connect().server != wanted
    assert lab.why().note == (wanted,)
    assert reasons(lab)[wanted] == "out-of-service"


def test_a_startup_scheduler_is_told_with_whose_place_it_took() -> None:
    """R100, R139: least connections wanted the newcomer."""
    web = replace(virtual("web", "abc", scheduler=WLC), startup="round-robin", startup_time=60)
    lab = Scenario(web, reals("abc"))
    put(lab, "c", ServerState.OUT_OF_SERVICE)
    for _ in range(20):
        lab.connect()
    lab.wait(100)
    put(lab, "c", ServerState.IN_SERVICE)
    lab.connect()
    told = lab.why()
    assert (told.by, told.scheduler, told.set_aside) == ("startup", "round-robin", "c")
    while lab.why().by == "startup":
        lab.connect()
    assert (lab.why().scheduler, lab.why().set_aside) == (WLC, None)


def test_a_backup_steps_in() -> None:
    """R027, R185: a virtual server's own."""
    lab = Scenario(replace(virtual("web", "a"), backup="z"), reals("az"))
    lab.connect()
    assert (lab.why().by, reasons(lab)) == ("scheduler", {"a": "chosen", "z": "standby"})
    put(lab, "a", ServerState.MAINTENANCE)
    lab.connect()
    told = lab.why()
    assert (told.by, told.scheduler, told.chosen) == ("backup", None, "z")
    assert reasons(lab) == {"z": "chosen", "a": "maintenance"}
    assert [each.connections for each in told.candidates] == [0, 1]


def test_a_backup_of_a_server_waits() -> None:
    """R047, R185: its place counts only where that server has failed."""
    lab = Scenario(
        virtual("web", "a"),
        [replace(real("a"), backup="b", failure_threshold=1, failure_clients=1), real("b")],
    )
    lab.connect()
    assert reasons(lab) == {"a": "chosen", "b": "standby"}
    assert candidate(lab, "b").stands_for == "a"
    fail(lab, "a")
    lab.connect()
    assert reasons(lab) == {"b": "chosen", "a": "failed"}


# --- who was passed over


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (ServerState.STICKY_ONLY, "sticky-only"),
        (ServerState.MAINTENANCE, "maintenance"),
        (ServerState.OUT_OF_SERVICE, "out-of-service"),
    ],
)
def test_a_server_that_the_operator_took_out(state: ServerState, reason: str) -> None:
    """R186."""
    lab = site("ab")
    put(lab, "a", state)
    lab.wait(90)
    lab.connect()
    assert reasons(lab) == {"b": "chosen", "a": reason}
    assert candidate(lab, "a").state_age == 90


def test_a_failed_server() -> None:
    """R181."""
    lab = failing()
    lab.wait(30)
    lab.connect()
    assert reasons(lab) == {"b": "chosen", "a": "failed"}
    assert candidate(lab, "a").state_age == 30


def test_a_test_of_a_failed_server() -> None:
    """R182: one connection goes there, and no other while that is under way."""
    lab = failing()
    lab.wait(60)
    test = lab.dial()
    told = lab.why()
    assert (told.by, told.scheduler, told.chosen) == ("test", None, "a")
    assert reasons(lab) == {"a": "chosen", "b": "not-asked"}
    assert candidate(lab, "a").state == "failed"
    lab.dial()
    assert reasons(lab) == {"b": "chosen", "a": "testing"}
    test.syn_ack()
    lab.dial()
    assert candidate(lab, "a").state == "in-service"


def test_a_full_server() -> None:
    """R184."""
    lab = Scenario(virtual("web", "ab", scheduler=WLC), [real("a", max_connections=1), real("b")])
    lab.connect()
    lab.connect()
    lab.connect()
    assert reasons(lab) == {"b": "chosen", "a": "max-capacity"}
    assert (candidate(lab, "a").connections, candidate(lab, "a").max_connections) == (1, 1)


def test_a_server_of_weight_0() -> None:
    """A14."""
    lab = Scenario(virtual("web", "ab", scheduler=WLC), [real("a", weight=0), real("b")])
    lab.connect()
    assert reasons(lab) == {"b": "chosen", "a": "weight-0"}


def test_a_server_over_its_syn_limit() -> None:
    """R146, R147: it is better, and is passed over for all that."""
    lab = Scenario(
        virtual("web", "ab", scheduler=WLC), [replace(real("a", weight=100), syn_limit=2), real("b")]
    )
    for _ in range(4):
        lab.dial()
    assert reasons(lab) == {"a": "over-syn-limit", "b": "chosen"}
    assert (candidate(lab, "a").unanswered, candidate(lab, "a").syn_limit) == (2, 2)


def test_the_best_of_the_bad() -> None:
    """R150: all are over their limits, so they are compared."""
    lab = site("ab", syn_limit=1)
    lab.dial()
    lab.dial()
    lab.dial()
    assert reasons(lab) == {"a": "chosen", "b": "later-in-order"}


def test_an_answer_is_seen_though_it_moves_no_rank() -> None:
    """R183: an answered SYN that does not bring its server below the limit is counted for all that."""
    lab = site("ab")
    lab.dial().syn_ack()
    lab.dial()
    assert candidate(lab, "a").unanswered == 0


def test_a_server_that_had_not_answered() -> None:
    """R041: a reassignment is a decision of its own."""
    lab = site("ab")
    call = lab.dial().syn().syn()
    assert call.server == "b"
    told = lab.why()
    assert (told.chosen, told.unanswered_by) == ("b", "a")
    assert reasons(lab) == {"b": "chosen", "a": "no-answer"}
    assert len(lab.decisions()) == 2


def test_a_connection_that_nobody_else_can_take_stays() -> None:
    """R111: and that too is told."""
    lab = site("a")
    call = lab.dial().syn().syn()
    assert call.server == "a"
    told = lab.why()
    assert (told.chosen, told.refused, told.unanswered_by) == (None, "no-server", "a")
    assert reasons(lab) == {"a": "no-answer"}


def test_replies_that_could_not_be_told_apart() -> None:
    """R169 (A5): another virtual server's connection holds the place."""
    lab = Scenario(
        [virtual("one", "ab", scheduler=WLC), virtual("two", "ab", address="203.0.113.2", scheduler=WLC)],
        reals("ab"),
    )
    lab.connect("one", port=40001)
    lab.connect("one", port=40002)
    lab.connect("one", port=40003)
    lab.connect("two", port=40009)
    assert lab.connect("two", port=40001).server == "b"
    assert reasons(lab, "two") == {"b": "chosen", "a": "collision"}


# --- refusals


def test_no_server_at_all() -> None:
    """A28."""
    lab = site("ab")
    put(lab, "a", ServerState.OUT_OF_SERVICE)
    put(lab, "b", ServerState.STICKY_ONLY)
    assert lab.dial().refused is Drop.NO_SERVER
    told = lab.why()
    assert (told.chosen, told.refused, told.by, told.scheduler) == (None, "no-server", "none", None)
    assert reasons(lab) == {"a": "out-of-service", "b": "sticky-only"}


def test_no_server_whose_replies_could_be_told_apart() -> None:
    """A5."""
    lab = Scenario([virtual("one", "a"), virtual("two", "a", address="203.0.113.2")], reals("a"))
    lab.connect("one", port=40001)
    assert lab.dial("two", port=40001).refused is Drop.COLLISION
    assert (lab.why("two").refused, reasons(lab, "two")) == ("reverse-collision", {"a": "collision"})


def test_an_ended_connection_makes_way() -> None:
    """A5: it is no reason against its server."""
    lab = Scenario([virtual("one", "a"), virtual("two", "a", address="203.0.113.2")], reals("a"))
    lab.connect("one", port=40001).close()
    assert lab.dial("two", port=40001).server == "a"
    assert (lab.why("two").chosen, reasons(lab, "two")) == ("a", {"a": "chosen"})


def test_no_room() -> None:
    """A23: whom it would have been is told, and that it was not."""
    lab = Scenario(virtual("web", "ab", scheduler=WLC, sticky=60), reals("ab"), max_connections=2)
    lab.connect()
    lab.connect()
    assert lab.dial().refused is Drop.TABLE_FULL
    told = lab.why()
    assert (told.chosen, told.refused) == (None, "table-full")
    assert "table-full" in reasons(lab).values()
    assert told.sticky.written is None
    assert len(lab.decisions()) == 3


# --- the sticky entry


def test_what_a_sticky_entry_says() -> None:
    """R131, R132, R152, R157: off, none, used and renewed, run out."""
    lab = site("ab")
    lab.connect()
    assert lab.why().sticky == StickyAnswer("off", None, None, None)
    lab = site("ab", sticky=60)
    lab.connect()
    assert lab.why().sticky == StickyAnswer("none", None, None, "a")
    lab.connect()
    assert lab.why().sticky == StickyAnswer("used", "a", None, "a")
    assert (lab.why().by, lab.why().scheduler) == ("sticky", None)
    assert reasons(lab) == {"a": "chosen", "b": "not-asked"}
    lab.wait(60)
    lab.connect()
    assert lab.why().sticky == StickyAnswer("none", None, None, "b")


def test_a_sticky_entry_that_is_not_renewed() -> None:
    """A6."""
    lab = Scenario(replace(virtual("web", "ab", sticky=60), sticky_refresh="never"), reals("ab"))
    lab.connect()
    lab.connect()
    assert lab.why().sticky == StickyAnswer("used", "a", None, None)


@pytest.mark.parametrize(
    ("state", "reason"),
    [(ServerState.MAINTENANCE, "maintenance"), (ServerState.OUT_OF_SERVICE, "out-of-service")],
)
def test_a_sticky_entry_overridden_by_the_operator(state: ServerState, reason: str) -> None:
    """A7."""
    lab = site("ab", sticky=60)
    lab.connect()
    put(lab, "a", state)
    lab.connect()
    assert lab.why().sticky == StickyAnswer("overridden", "a", reason, "b")


def test_a_sticky_client_of_a_drained_server_still_comes() -> None:
    """A7: sticky only, and weight 0, are no reason against it."""
    lab = site("ab", sticky=60)
    lab.connect()
    put(lab, "a", ServerState.STICKY_ONLY)
    lab.connect()
    assert reasons(lab) == {"a": "chosen", "b": "not-asked"}


def test_a_sticky_entry_overridden_by_what_became_of_its_server() -> None:
    """A7: failed, full, and the one that had not answered."""
    lab = site("ab", sticky=600, failure_threshold=1, failure_clients=1)
    lab.connect()
    lab.dial().refusal()
    lab.connect()
    assert lab.why().sticky == StickyAnswer("overridden", "a", "failed", "b")
    lab = Scenario(virtual("web", "ab", sticky=60), [real("a", max_connections=1), real("b")])
    lab.connect()
    lab.connect()
    assert lab.why().sticky == StickyAnswer("overridden", "a", "max-capacity", "b")
    lab = site("ab", sticky=60)
    lab.connect()
    lab.dial().syn().syn()
    assert lab.why().sticky == StickyAnswer("overridden", "a", "no-answer", "b")


def test_a_sticky_entry_of_a_group_may_name_a_stranger() -> None:
    """A8: a server that has no place in this virtual server."""
    lab = Scenario(
        [
            virtual("one", "a", sticky=60, sticky_group="all"),
            virtual("two", "b", port=81, sticky=60, sticky_group="all"),
        ],
        reals("ab"),
    )
    lab.connect("one")
    lab.connect("two")
    assert lab.why("two").sticky == StickyAnswer("overridden", "a", "gone", "b")


def test_a_sticky_entry_of_a_backup_that_is_not_needed_any_more() -> None:
    """A27."""
    lab = Scenario(replace(virtual("web", "a", sticky=60), backup="z"), reals("az"))
    put(lab, "a", ServerState.MAINTENANCE)
    lab.connect()
    put(lab, "a", ServerState.IN_SERVICE)
    lab.connect()
    assert lab.why().sticky == StickyAnswer("overridden", "z", "standby", "a")


def test_a_collision_overrides_a_sticky_entry() -> None:
    """A5."""
    lab = Scenario(
        [
            virtual("one", "ab", sticky=60, sticky_group="all"),
            virtual("two", "ab", address="203.0.113.2", sticky=60, sticky_group="all"),
        ],
        reals("ab"),
    )
    lab.connect("one", port=40001)
    assert lab.connect("two", port=40001).server == "b"
    assert lab.why("two").sticky == StickyAnswer("overridden", "a", "collision", "b")
    assert reasons(lab, "two") == {"b": "chosen", "a": "collision"}


# --- what is kept, and found again


def test_of_many_servers_the_best_are_told_and_the_others_counted() -> None:
    """Up to 16 one by one."""
    names = [f"s{number}" for number in range(ALL)]
    lab = Scenario(virtual("web", names, scheduler=WLC), reals(names))
    lab.connect()
    assert (len(lab.why().candidates), lab.why().others) == (ALL, {})
    names = [f"s{number}" for number in range(40)]
    lab = Scenario(virtual("web", names, scheduler=WLC), reals(names))
    for name in names[:5]:
        put(lab, name, ServerState.OUT_OF_SERVICE)
    for _ in range(30):
        lab.connect()
    lab.connect()
    told = lab.why()
    assert told.chosen == "s35"
    assert [each.real for each in told.candidates] == ["s35", *(f"s{n}" for n in (36, 37, 38, 39, 5, 6, 7))]
    assert len(told.candidates) == BEST
    assert told.others == {"worse": 27, "out-of-service": 5}


def test_a_decision_among_1000_servers_is_told_the_same_way() -> None:
    """The facts of each as they were, though none is copied."""
    names = [f"s{number}" for number in range(1000)]
    lab = Scenario(virtual("web", names, scheduler=WLC), reals(names), max_connections=10_000)
    for _ in range(1500):
        lab.connect()
    kept = lab.decisions()
    assert len(kept) == 256
    for number, told in enumerate(reversed(kept), start=1500 - 256):
        assert told.chosen == f"s{number % 1000}"
        assert (len(told.candidates), sum(told.others.values())) == (BEST, 1000 - BEST)
        worse = [each for each in told.candidates if each.reason == "worse"]
        assert len(worse) + told.others.get("worse", 0) == number % 1000
        for each in told.candidates:
            assert each.connections == number // 1000 + (each in worse)
        assert told.candidates[0].reason == "chosen"


def test_what_is_asked_for_is_found() -> None:
    """By client, by its port, by virtual server and by address and port; newest first."""
    lab = Scenario([virtual("one", "ab"), virtual("two", "ab", port=81)], reals("ab"))
    for number in range(6):
        lab.now += 1
        lab.connect("one" if number % 3 else "two", client=f"192.0.2.{number % 2}", port=40000 + number)
    assert [told.client_port for told in lab.decisions()] == [40005, 40004, 40003, 40002, 40001, 40000]
    assert [told.client_port for told in lab.decisions(limit=2)] == [40005, 40004]
    assert [told.client_port for told in lab.decisions(virtual="two")] == [40003, 40000]
    client = lab.why().client
    assert [told.client_port for told in lab.decisions(client=client)] == [40005, 40003, 40001]
    assert [told.client_port for told in lab.decisions(client=client, client_port=40003)] == [40003]
    assert lab.decisions(client=client, client_port=40002) == []
    vip = lab.config.virtuals[0].address
    assert str(vip) == VIP
    assert [told.virtual for told in lab.decisions(address=vip, port=81)] == ["two", "two"]
    assert lab.decisions(address=vip, port=82) == []


def test_a_record_is_bounded() -> None:
    """The last ones of each virtual server, and none where none is wanted."""
    lab = Scenario([virtual("one", "ab"), virtual("two", "ab", port=81)], reals("ab"))
    lab.director = Director(lab.config, now=lab.now, decisions=5)
    lab.connect("two", port=39999)
    for number in range(20):
        lab.connect("one", port=40000 + number)
    assert [told.client_port for told in lab.decisions(virtual="one")] == [40019, 40018, 40017, 40016, 40015]
    assert [told.client_port for told in lab.decisions(virtual="two")] == [39999]
    lab.director = Director(lab.config, now=lab.now, decisions=0)
    lab.connect("one")
    assert lab.decisions() == []
    assert lab.director.virtual_servers[0].decisions is None


def test_all_records_together_are_bounded() -> None:
    """A thousand virtual servers, or 3,000 servers, keep fewer each."""
    many = [virtual(f"v{number}", "ab", port=1000 + number) for number in range(1000)]
    lab = Scenario(many, reals("ab"))
    for _ in range(50):
        lab.connect("v7").close()
    assert len(lab.decisions()) == 43
    names = [f"s{number}" for number in range(3000)]
    lab = Scenario(virtual("web", names), reals(names))
    for _ in range(100):
        lab.connect().close()
    assert len(lab.decisions()) == 87


def test_every_server_may_change_between_two_decisions() -> None:
    """The facts of each decision are its own for all that, back to the first."""
    lab = site("abc", "round-robin")
    for number in range(300):
        for server in lab.director.real_servers.values():
            server.unanswered = number
            server.changed(lab.now)
        lab.dial()
    told = lab.decisions()
    assert len(told) == 256
    for number, each in zip(range(299, 43, -1), told, strict=True):
        assert {candidate.unanswered for candidate in each.candidates} == {number}
