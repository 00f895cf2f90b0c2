"""Clients that the server of their sticky entry does not take are served by another one soon (R041, R064).

It refuses its client, or says nothing, while others are well served, so that it is not held to have failed.
"""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from nfqlb.core.admission import ServerState
from nfqlb.core.director import Director
from nfqlb.core.doubts import Doubts
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, real, reals, virtual

CLIENT, OTHER = "192.0.2.1", "192.0.2.2"
SCHEDULERS = (
    "round-robin", "least-connections", "weighted-least-connections", "weighted-round-robin", "source-hash",
    "maglev", "power-of-two", "fastest-response",
)  # fmt: skip


def shop(servers: str = "ab", *, scheduler: str = "source-hash", **keys: Any) -> Scenario:
    """A sticky virtual server."""
    web = replace(virtual("web", servers, scheduler=scheduler, sticky=60), **keys)
    return Scenario(web, reals(servers))


def bound(lab: Scenario, client: str = CLIENT, to: str = "") -> str:
    """The server of a client that has connected."""
    return lab.connect(to, client=client).server


def is_refused(lab: Scenario, client: str = CLIENT, to: str = "") -> str:
    """A client's connection is refused; by whom."""
    call = lab.dial(to, client=client)
    by = call.server
    assert call.refusal().state == "closed"
    return by


def entry(lab: Scenario, client: str = CLIENT) -> str:
    """What a client's sticky entry says."""
    return next(each.real for each in lab.director.sticky(lab.now) if str(each.client) == client)


def doubted(lab: Scenario, client: str = CLIENT, to: int = 0) -> list[str]:
    """Whom a client doubts, the one longest ago first."""
    found = lab.director.doubts.of(lab.director.virtual_servers[to], ip_address(client).packed, lab.now)
    return [real.spec.name for real in found]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_client_that_is_refused_is_served_by_another_server(scheduler: str) -> None:
    """R041, R064, R132 (A42): with its next connection, and from then on; others are about meanwhile."""
    lab = shop("abc", scheduler=scheduler)
    mine = bound(lab)
    others = {number: bound(lab, f"192.0.2.{number}") for number in range(2, 9)}
    assert is_refused(lab) == mine
    again = bound(lab)
    assert again != mine
    assert [bound(lab) for _ in range(5)] == [again] * 5
    assert entry(lab) == again
    assert {number: bound(lab, f"192.0.2.{number}") for number in others} == others, "the others stay"
    assert lab.real(mine).state == "in-service"
    audit(lab.director)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_new_client_is_refused_once(scheduler: str) -> None:
    """R041, R064: the entry that its first SYN has made does not lead it back either."""
    lab = shop("abc", scheduler=scheduler)
    first = is_refused(lab)
    assert bound(lab) != first


def test_a_client_that_two_servers_refuse_finds_the_third() -> None:
    """R041, R064: whatever a hash of its address says."""
    lab = shop("abc")
    assert len({is_refused(lab), is_refused(lab), bound(lab)}) == 3


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_where_all_have_refused_the_one_longest_ago_is_asked_first(scheduler: str) -> None:
    """R041, R132: it may be well again; whoever answers is doubted no longer."""
    lab = shop("abc", scheduler=scheduler)
    order = []
    for _ in range(3):
        order.append(is_refused(lab))
        lab.wait(1)
    assert sorted(order) == ["a", "b", "c"]
    assert doubted(lab) == order
    assert [is_refused(lab), is_refused(lab)] == order[:2]
    assert bound(lab) == order[2]
    assert doubted(lab) == order[:2]


def test_a_rolling_restart_refuses_a_client_once_a_server() -> None:
    """R041, R132: who refused ten seconds ago is up again when the next one goes down."""
    lab = shop("ab", sticky=1800, scheduler="round-robin")
    assert (bound(lab), is_refused(lab), bound(lab)) == ("a", "a", "b")
    lab.wait(10)
    assert is_refused(lab) == "b"
    assert [bound(lab) for _ in range(6)] == ["a"] * 6


def test_the_only_server_is_asked_again() -> None:
    """R132: there is no other."""
    lab = shop("a")
    assert (is_refused(lab), is_refused(lab), bound(lab)) == ("a", "a", "a")
    assert not lab.director.doubts.about


def test_who_is_full_or_taken_out_is_no_other_server() -> None:
    """R184, R186: a doubted server that admits clients comes before one that does not."""
    lab = Scenario(virtual("web", "abc", sticky=60), [real("a"), real("b", max_connections=1), real("c")])
    assert (bound(lab, OTHER), bound(lab, "192.0.2.3")) == ("a", "b")
    lab.director.operation.set_real("c", setting=ServerState.MAINTENANCE, now=lab.now)
    assert (is_refused(lab), bound(lab)) == ("a", "a")


def test_the_backup_is_not_for_a_client_that_all_servers_have_refused() -> None:
    """R027, R185 (A27): it is for when nobody can be sent to one of them."""
    lab = Scenario(replace(virtual("web", "ab", sticky=60), backup="c"), reals("abc"))
    assert [is_refused(lab) for _ in range(6)] == ["a", "b"] * 3
    for name in "ab":
        lab.director.operation.set_real(name, setting=ServerState.MAINTENANCE, now=lab.now)
    assert is_refused(lab) == "c"
    assert bound(lab) == "c", "a backup that refused it is better than none"


def test_the_backup_takes_a_connection_that_nobody_else_has_answered() -> None:
    """R027, R185: as ever; the next one begins with the servers."""
    lab = Scenario(replace(virtual("web", "a", sticky=60), backup="b"), reals("ab"))
    assert lab.dial().syn().syn().server == "b"
    assert lab.dial().server == "a"


# --- silence


def test_a_client_that_goes_on_with_its_connection_is_sent_on_with_its_third_syn() -> None:
    """R041 (A39): as before; the entry follows."""
    lab = shop("ab", scheduler="round-robin")
    assert bound(lab) == "a"
    assert lab.dial().syn().syn().server == "b"
    assert bound(lab) == "b"


def test_a_client_that_gives_up_sooner_is_sent_on_with_its_next_connection() -> None:
    """R041, R064 (A39): its third SYN to that server, whichever connection it is of."""
    lab = shop("ab", scheduler="round-robin")
    assert bound(lab) == "a"
    call = lab.dial()
    lab.wait(1)
    call.syn()
    lab.wait(1)
    assert bound(lab) == "b"
    assert entry(lab) == "b"


@pytest.mark.parametrize(("attempts", "before"), [(0, 2), (1, 1), (2, 1), (3, 2), (5, 4)])
def test_so_many_syns_go_there_over_several_connections(attempts: int, before: int) -> None:
    """R041 (A39): one less than `attempts` and one at least; each counts once, repeated or not."""
    for first in range(1, before + 1):
        lab = Scenario(
            virtual("web", "ab", sticky=600), [replace(each, attempts=attempts) for each in reals("ab")]
        )
        assert bound(lab) == "a"
        call = lab.dial()
        for _ in range(first - 1):
            lab.wait(1)
            assert call.syn().server == "a"
        lab.wait(31)
        for _ in range(before - first):
            assert lab.dial().server == "a"
            lab.wait(31)
        assert lab.dial().server == "b"


def test_repeated_syns_of_several_connections_add_up() -> None:
    """R041 (A39): two each, of two."""
    lab = Scenario(virtual("web", "ab", sticky=600), [replace(each, attempts=5) for each in reals("ab")])
    assert bound(lab) == "a"
    calls = [lab.dial(), lab.dial()]
    lab.wait(1)
    calls[0].syn()
    assert doubted(lab) == []
    calls[1].syn()
    assert doubted(lab) == ["a"]


def test_a_syn_is_lost_where_its_server_answers_others() -> None:
    """R041, R064: one client behind a common address gives up, and all others stay where they are."""
    lab = shop("ab", scheduler="round-robin", sticky_mask=24)
    assert bound(lab) == "a"
    lost = lab.dial(client="192.0.2.200")
    lab.wait(0.5)
    assert bound(lab, client="192.0.2.40") == "a"
    lab.wait(0.5)
    assert lost.syn().server == "a"
    assert {bound(lab, client=f"192.0.2.{number}") for number in range(60, 80)} == {"a"}
    assert lost.syn().server == "b", "its third SYN goes on all the same (A39)"


def test_an_answer_to_anybody_ends_silence() -> None:
    """R041, R064: to a client of another network too; what was counted before counts no more."""
    lab = Scenario(virtual("web", "ab", sticky=600), reals("ab"))
    assert bound(lab) == "a"
    other = lab.dial(client=OTHER)
    third = lab.dial(client="192.0.2.3")
    assert (other.server, third.server) == ("b", "a")
    call = lab.dial()
    lab.wait(1)
    call.syn()
    assert doubted(lab) == ["a"]
    other.syn_ack()
    assert doubted(lab) == ["a"], "that was another server"
    third.syn_ack()
    assert doubted(lab) == []
    lab.wait(31)
    assert lab.dial().server == "a"
    lab.wait(31)
    assert doubted(lab) == [], "one, after that answer"


def test_a_refusal_holds_though_others_are_answered() -> None:
    """A42: a server that refuses one client means it."""
    lab = shop("ab", scheduler="round-robin")
    assert (bound(lab), bound(lab, OTHER), bound(lab, "192.0.2.3")) == ("a", "b", "a")
    is_refused(lab)
    lab.wait(1)
    assert bound(lab, "192.0.2.3") == "a"
    assert doubted(lab) == ["a"]


def test_several_connections_at_once_are_no_silence() -> None:
    """R132: as a browser opens them; only a SYN that is repeated has waited in vain."""
    lab = shop("ab", scheduler="round-robin")
    assert [lab.dial().server for _ in range(6)] == ["a"] * 6


def test_an_answer_ends_silence() -> None:
    """R132: that server works for this client, if slowly."""
    lab = shop("ab", scheduler="round-robin")
    lost = lab.dial().syn()
    lab.wait(1)
    assert lab.connect(client=OTHER).server == "b"
    assert lab.director.doubts.about
    lost.syn_ack().ack()
    assert not lab.director.doubts.about
    assert bound(lab) == "a"


def test_an_answer_to_an_older_connection_says_nothing() -> None:
    """R064: of two under way the newer one is refused."""
    lab = shop("ab", scheduler="round-robin")
    older = lab.dial()
    lab.wait(0.1)
    assert is_refused(lab) == "a"
    assert older.syn_ack().ack().server == "a"
    assert bound(lab) == "b"


def test_a_connection_established_long_ago_does_not_bind() -> None:
    """R064: it goes on with its server, which may take no new ones for all that."""
    lab = shop("ab", scheduler="round-robin")
    old = lab.connect()
    lab.wait(5)
    assert is_refused(lab) == "a"
    assert old.says().hears().server == "a"
    assert bound(lab) == "b"
    assert old.close().server == "a"
    assert bound(lab) == "b"


@pytest.mark.parametrize("attempts", [0, 3])
def test_connections_of_one_syn_each_that_time_out(attempts: int) -> None:
    """R041: two of them are silence, one is not: a client may have left at once."""
    lab = Scenario(
        virtual("web", "ab", sticky=600), [replace(each, attempts=attempts) for each in reals("ab")]
    )
    assert bound(lab) == "a"
    for server in ("a", "a", "b"):
        assert lab.dial().server == server
        lab.wait(31)


def test_what_is_lost_on_the_way_is_no_silence() -> None:
    """R041: the kernel's table was full, so no server has seen those SYNs."""
    lab = shop("ab", scheduler="round-robin")
    call = lab.dial()
    lab.director.watch.lost_at = lab.now
    call.syn()
    lab.wait(1)
    assert bound(lab) == "a"


def test_with_no_attempts_a_repeated_syn_says_nothing() -> None:
    """A39: `attempts = 0`."""
    lab = Scenario(virtual("web", "ab", sticky=60), [replace(each, attempts=0) for each in reals("ab")])
    lab.dial().syn().syn().syn()
    assert bound(lab) == "a"


# --- how long, and of whom


def test_doubt_ends_with_the_interval() -> None:
    """R155: as the entry does; the scheduler chooses as it would have."""
    lab = shop("ab")
    mine = is_refused(lab)
    lab.wait(59)
    assert lab.director.doubts.about
    lab.wait(1)
    assert not lab.director.doubts.about
    assert bound(lab) == mine


def test_a_client_that_asks_seldom_is_refused_once() -> None:
    """R064, R155: doubt lasts as long as the entry that would lead it back."""
    lab = shop("ab")
    mine = bound(lab)
    lab.wait(59)
    assert is_refused(lab) == mine
    for _ in range(4):
        lab.wait(59)
        assert bound(lab) != mine


def test_doubt_ends_when_the_server_comes_back() -> None:
    """R182: it failed, was tested and answered; or an operator has put it back in service."""
    lab = shop("ab", scheduler="round-robin")
    assert bound(lab) == "a"
    is_refused(lab)
    for state in (ServerState.MAINTENANCE, ServerState.IN_SERVICE):
        lab.wait(1)
        lab.director.operation.set_real("a", setting=state, now=lab.now)
    assert bound(lab) == "a"


def test_doubt_that_has_ended_does_not_come_back() -> None:
    """R064, R182: one silent connection is no more after it than without it."""
    lab = shop("ab", sticky=600, scheduler="round-robin")
    assert (bound(lab), is_refused(lab)) == ("a", "a")
    for state in (ServerState.MAINTENANCE, ServerState.IN_SERVICE):
        lab.wait(1)
        lab.director.operation.set_real("a", setting=state, now=lab.now)
    assert lab.dial().server == "a"
    lab.wait(31)
    assert doubted(lab) == []


def test_doubt_whose_time_is_over_does_not_come_back() -> None:
    """R155: also where it is not forgotten yet, as the client doubts another server."""
    lab = Scenario(virtual("web", "abc", sticky=600), reals("abc"))
    assert is_refused(lab) == "a"
    lab.wait(590)
    assert (is_refused(lab), bound(lab)) == ("b", "c")
    lab.wait(11)
    lab.director.operation.set_real("c", setting=ServerState.MAINTENANCE, now=lab.now)
    assert lab.dial().server == "a"
    lab.wait(31)
    assert doubted(lab) == ["b"]


def test_who_was_full_meanwhile_has_not_come_back() -> None:
    """R184: that is so with any connection; it says nothing of those that it refuses."""
    lab = Scenario(virtual("web", "ab", sticky=600), [real("a", max_connections=1), real("b")])
    assert is_refused(lab) == "a"
    lab.wait(11)
    others = [lab.connect(client=f"192.0.2.{number}") for number in (2, 3)]
    assert lab.real("a").state == "max-capacity"
    for each in others:
        each.close()
    lab.wait(11)
    assert lab.real("a").state == "in-service"
    assert doubted(lab) == ["a"]


def test_clearing_a_client_s_entry_clears_its_doubts() -> None:
    """R065: it gets a server anew, as any new client."""
    lab = shop("ab")
    mine = is_refused(lab)
    is_refused(lab, client="192.0.2.7")
    assert lab.director.operation.clear_sticky("web", bytes([192, 0, 2, 1]), lab.now) == 1
    assert len(lab.director.doubts) == 1
    assert bound(lab) == mine
    is_refused(lab)
    lab.director.operation.clear_sticky(None, None, lab.now)
    assert not lab.director.doubts.about


def test_clients_that_share_an_entry_share_its_doubts() -> None:
    """R063 (A8): one behind the same router, or of the same network."""
    lab = shop("ab", sticky_mask=24, scheduler="round-robin")
    assert is_refused(lab) == "a"
    assert bound(lab, client="192.0.2.77") == "b"


def pair(**keys: Any) -> Scenario:
    """Two virtual servers in a sticky group, on the same servers."""
    made = [virtual(f"p{port}", "ab", port=port, sticky=60, sticky_group="shop") for port in (80, 443)]
    return Scenario([replace(each, **keys) for each in made], reals("ab"))


def test_a_refused_port_moves_the_client_s_whole_group() -> None:
    """R151 (A8): port 443 of its server refuses while port 80 works; in the end both are at one server."""
    lab = pair()
    assert bound(lab, to="p80") == "a"
    assert is_refused(lab, to="p443") == "a"
    assert bound(lab, to="p80") == "a", "nothing is wrong there"
    assert bound(lab, to="p443") == "b"
    assert [bound(lab, to=to) for to in ("p80", "p443", "p80")] == ["b"] * 3


def test_a_group_whose_servers_have_a_port_each() -> None:
    """R151 (A8): one refuses on 443, the other on 80: a client is refused once by each, and then by none."""
    lab = pair()
    assert (bound(lab, to="p80"), is_refused(lab, to="p443"), bound(lab, to="p443")) == ("a", "a", "b")
    assert is_refused(lab, to="p80") == "b"
    assert [bound(lab, to=to) for to in ("p80", "p443") * 3] == ["a", "b"] * 3


def test_doubts_are_of_one_virtual_server() -> None:
    """R151 (A8): without a group each has entries of its own."""
    lab = Scenario(
        [virtual("web", "ab", sticky=60), virtual("tls", "ab", port=443, sticky=60)], reals("ab")
    )
    assert (bound(lab, to="web"), bound(lab, to="tls")) == ("a", "a")
    is_refused(lab, to="tls")
    assert (bound(lab, to="web"), bound(lab, to="tls")) == ("a", "b")


def test_with_keep_an_entry_holds_whatever_its_server_does() -> None:
    """R132, R156: the letter of figure 8; until the server has failed."""
    lab = shop("ab", scheduler="round-robin", sticky_ditched="keep")
    bound(lab)
    for _ in range(20):
        assert is_refused(lab) == "a"
        lab.connect(client=OTHER)
    lab.dial().syn()
    assert bound(lab) == "a"
    assert lab.dial().syn().syn().server == "b", "its third SYN goes on all the same (A39)"
    assert not lab.director.doubts.about


def test_a_refusal_that_does_not_count_breaks_nothing() -> None:
    """A42: `reset_counts = false`."""
    made = [replace(each, reset_counts=False) for each in reals("ab")]
    lab = Scenario(virtual("web", "ab", sticky=60), made)
    assert [is_refused(lab) for _ in range(4)] == ["a"] * 4


def test_a_closed_port_breaks_nothing_where_a_virtual_server_has_every_port() -> None:
    """A42: who tries ports would lose his server; silence counts there as elsewhere."""
    lab = Scenario(virtual("all", "ab", port=None, sticky=60), reals("ab"))
    assert lab.connect(at=443).server == "a"
    for port in range(9000, 9005):
        assert lab.dial(at=port).refusal().server == "a"
    assert lab.connect(at=443).server == "a"
    lab.dial(at=443).syn()
    assert lab.connect(at=443).server == "b"


def test_without_stickiness_nothing_is_remembered() -> None:
    """R132: nothing leads the client back."""
    lab = Scenario(virtual("web", "ab"), reals("ab"))
    is_refused(lab)
    lab.dial().syn()
    assert not lab.director.doubts.about


def test_flows_say_nothing() -> None:
    """R012: a datagram need not be answered."""
    lab = Scenario(virtual("dns", "ab", protocol="udp", sticky=60), reals("ab"))
    for port in range(40_000, 40_010):
        assert lab.flow(port=port).asks().asks().server == "a"
        lab.wait(31)
    assert not lab.director.doubts.about


# --- beside failures and tests


def test_a_client_in_doubt_tests_nobody() -> None:
    """R182: it has just been refused; the next one tests the failed server."""
    made = [replace(each, failure_threshold=2, failure_clients=1, retry=10.0) for each in reals("abc")]
    lab = Scenario(virtual("web", "abc", sticky=60), made)
    for number in (10, 11, 12, 13, 14):
        if (call := lab.dial(client=f"192.0.2.{number}")).server == "a":
            call.refusal()
        else:
            call.syn_ack().ack()
    assert lab.real("a").state == "failed"
    assert is_refused(lab) == "c"
    lab.wait(11)
    assert bound(lab) == "b"
    assert lab.dial(client="192.0.2.20").server == "a"
    assert lab.real("a").state == "testing"


def failed_and_due(servers: str, **keys: Any) -> Scenario:
    """Server a has failed and may be tested; the others never fail. Bound are 192.0.2.50 and on."""
    made = [replace(each, failure_threshold=0) for each in reals(servers)]
    made[0] = replace(made[0], failure_threshold=1, failure_clients=1, retry=10.0)
    lab = Scenario(replace(virtual("web", servers, sticky=1800), **keys), made)
    is_refused(lab, "192.0.2.50")
    assert lab.real("a").state == "failed"
    return lab


def test_a_server_that_is_due_for_its_test_comes_before_doubted_ones() -> None:
    """R182: or a client that doubts all others would never learn that it is well again."""
    lab = failed_and_due("ab")
    assert is_refused(lab) == "b"
    lab.wait(9)
    assert is_refused(lab) == "b", "not before its time"
    lab.wait(1)
    assert (bound(lab), lab.why().by, lab.real("a").state) == ("a", "test", "in-service")
    assert bound(lab) == "a"


def test_a_client_goes_on_from_its_test_to_doubted_servers_by_age() -> None:
    """R182: it is not left with a server that has not answered it."""
    lab = failed_and_due("abc")
    order = [is_refused(lab)]
    lab.wait(1)
    order.append(is_refused(lab))
    lab.wait(10)
    test = lab.dial()
    assert (sorted(order), test.server) == (["b", "c"], "a")
    lab.wait(1)
    assert test.syn().server == order[0]


def test_refusals_still_fail_a_server() -> None:
    """R179 (A25): from two clients, in a row; each is refused once."""
    made = [replace(each, failure_threshold=4) for each in reals("ab")]
    lab = Scenario(virtual("web", "ab", scheduler="least-connections", sticky=60), made)
    held = [lab.connect(client=f"192.0.2.{number}") for number in range(100, 110)]
    assert lab.loads() == {"a": 5, "b": 5}
    for call in held:
        if call.server == "a":
            call.close()
    refused = 0
    for number in range(1, 8):
        call = lab.dial(client=f"192.0.2.{number}")
        if call.server == "a":
            refused += call.refusal() is call
            assert bound(lab, client=f"192.0.2.{number}") == "b"
    assert (refused, lab.real("a").state) == (4, "failed")


# --- what is kept


def test_a_successor_knows_entries_and_no_doubts() -> None:
    """R064: a client whose entry still names the refusing server is refused once more, and then served."""
    lab = shop("ab")
    mine = bound(lab)
    is_refused(lab)
    old = lab.director
    lab.director = Director(lab.config, now=lab.now)
    for _, client, fpa in old.fpas.entries():
        scope = lab.director.virtual_servers[0].scope
        assert scope is not None
        lab.director.fpas.restore(scope, client, lab.director.real_servers[fpa.real.spec.name], fpa.assigned)
    assert is_refused(lab) == mine
    assert bound(lab) != mine


def test_there_are_only_so_many() -> None:
    """The latest; a flood in others' names pushes out its own."""
    lab = shop("ab", scheduler="round-robin")
    doubts: Doubts = lab.director.doubts
    doubts.limit = 3
    calls: list[Call] = [lab.dial(client=f"192.0.2.{number}") for number in range(1, 6)]
    for call in calls:
        call.refusal()
    (clients,) = doubts.about.values()
    assert [client[-1] for client in clients] == [3, 4, 5]


def test_a_flood_of_one_virtual_server_s_pushes_out_its_own() -> None:
    """The other's clients go on remembering."""
    made = [replace(each, failure_threshold=0) for each in reals("ab")]
    lab = Scenario([virtual("web", "ab", sticky=60), virtual("tls", "ab", port=443, sticky=60)], made)
    lab.director.doubts.limit = 3
    is_refused(lab, to="tls")
    for number in range(1, 9):
        is_refused(lab, f"192.0.2.{number}", "web")
    assert len(lab.director.doubts) == 3
    assert doubted(lab, to=1) == ["a"]


def test_each_is_forgotten_in_its_time() -> None:
    """R155: whatever longer intervals other virtual servers have."""
    made = [replace(each, failure_threshold=0) for each in reals("ab")]
    lab = Scenario([virtual("long", "ab", sticky=3600), virtual("short", "ab", port=81, sticky=60)], made)
    is_refused(lab, to="long")
    for number in range(1, 100):
        is_refused(lab, f"192.0.2.{number}", "short")
    lab.wait(59)
    assert len(lab.director.doubts) == 100
    lab.wait(1)
    assert len(lab.director.doubts) == 1
    lab.wait(3540)
    assert len(lab.director.doubts) == 0


def test_so_many_are_looked_at_and_no_more() -> None:
    """The rest has its turn."""
    made = [replace(each, failure_threshold=0) for each in reals("ab")]
    lab = Scenario([virtual(f"v{port}", "ab", port=port, sticky=60) for port in range(81, 85)], made)
    for port in range(81, 85):
        for number in range(1, 6):
            is_refused(lab, f"192.0.2.{number}", f"v{port}")
    doubts: Doubts = lab.director.doubts
    left = []
    for _ in range(8):
        doubts.expire(lab.now + 60, 3)
        left.append(len(doubts))
    assert left == [17, 14, 11, 8, 5, 2, 0, 0]


def test_another_configuration_knows_those_that_still_mean_something() -> None:
    """Not those about a server that has left, nor any where entries hold whatever happens."""
    lab = shop("abc", scheduler="round-robin")
    assert (is_refused(lab), is_refused(lab)) == ("a", "b")
    web = lab.config.virtuals[0]
    lab.director.reconfigure(replace(lab.config, virtuals=(replace(web, servers=web.servers[1:]),)), lab.now)
    assert doubted(lab) == ["b"]
    assert bound(lab) == "c"
    lab.director.reconfigure(replace(lab.config, virtuals=(replace(web, sticky_ditched="keep"),)), lab.now)
    assert not lab.director.doubts.about


# --- what is told


def test_a_client_that_leaves_is_told_of_and_how_many_more_connections_went_elsewhere() -> None:
    """One notice a minute and server."""
    lab = shop("ab", scheduler="round-robin")
    for number in range(1, 8):
        bound(lab, client=f"192.0.2.{number}")
    mine = [f"192.0.2.{number}" for number in (1, 3, 5, 7)]
    for client in mine:
        assert is_refused(lab, client=client) == "a"
        assert bound(lab, client=client) == "b"
    (notice,) = lab.director.chronicle.take_notices()
    assert (notice.name, notice.level) == ("a", "warning")
    assert notice.text == "a refused 192.0.2.1, bound to it in web: it goes to b now"
    lab.wait(59)
    assert lab.director.chronicle.take_notices() == []
    lab.wait(1)
    (notice,) = lab.director.chronicle.take_notices()
    assert notice.text == "a: 3 more connections of clients that it did not take went elsewhere"
    lab.wait(60)
    assert lab.director.chronicle.take_notices() == []


def test_what_goes_elsewhere_again_and_again_is_told_as_connections() -> None:
    """R151 (A8): one client, whose group's servers have a port each."""
    lab = pair()
    assert (bound(lab, to="p80"), is_refused(lab, to="p443"), bound(lab, to="p443")) == ("a", "a", "b")
    assert is_refused(lab, to="p80") == "b"
    for _ in range(4):
        assert (bound(lab, to="p80"), bound(lab, to="p443")) == ("a", "b")
    assert len(lab.director.chronicle.take_notices()) == 2
    lab.wait(60)
    assert [each.text for each in lab.director.chronicle.take_notices()] == [
        f"{name}: {more} more connections of clients that it did not take went elsewhere"
        for name, more in (("a", 4), ("b", 3))
    ]


def test_who_is_sent_on_for_silence_is_told_of_too() -> None:
    """With its next connection; a SYN that is sent on is no news, as ever."""
    lab = shop("abc", scheduler="round-robin")
    bound(lab, OTHER)
    lab.dial(client=OTHER).syn().syn()
    assert entry(lab, OTHER) == "b"
    assert lab.director.chronicle.take_notices() == []
    lab.dial(client="192.0.2.9").syn()
    lab.wait(1)
    assert bound(lab, "192.0.2.9") != "c"
    (notice,) = lab.director.chronicle.take_notices()
    assert notice.text == "c did not answer 192.0.2.9, bound to it in web: it goes to a now"


def test_a_decision_says_whom_its_client_doubted() -> None:
    """R104, R187: the entry was overridden, as its server had refused the client; and what became of each."""
    lab = shop("ab", scheduler="round-robin")
    bound(lab)
    is_refused(lab)
    before = lab.why()
    assert (before.chosen, before.ditched, before.doubted) == ("a", "reset", {})
    bound(lab)
    told = lab.why()
    assert (told.chosen, told.ditched, told.doubted) == ("b", None, {"a": "reset"})
    assert (told.sticky.said, told.sticky.real, told.sticky.reason, told.sticky.written) == (
        "overridden", "a", "refused-before", "b"
    )  # fmt: skip
    assert {each.real: each.reason for each in told.candidates} == {"a": "refused-before", "b": "chosen"}


def test_a_decision_says_that_the_chosen_server_had_refused_its_client() -> None:
    """R104: longer ago than the other, to which it is bound."""
    lab = shop("ab", scheduler="round-robin")
    is_refused(lab)
    lab.wait(1)
    is_refused(lab)
    bound(lab)
    told = lab.why()
    assert (told.chosen, told.by) == ("a", "scheduler")
    assert (told.sticky.said, told.sticky.real, told.sticky.reason) == ("overridden", "b", "refused-before")
    assert told.doubted == {"a": "reset", "b": "reset"}
    assert {each.real: each.reason for each in told.candidates} == {"a": "chosen", "b": "refused-before"}
    lab = shop("a")
    is_refused(lab), bound(lab)
    assert (lab.why().by, lab.why().sticky.said, lab.why().doubted) == ("sticky", "used", {"a": "reset"})
