"""Stickiness through the director: who comes back to whom, and for how long (fig 8)."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from nfqlb.core.spec import Strict
from nfqlb.core.verdict import Drop
from tests.core.scenario import Call, Scenario, real, reals, virtual

OTHERS = [f"198.51.100.{number}" for number in range(1, 8)]


def shop(
    sticky: float = 60, mask: int = 32, scheduler: str = "round-robin", max_sticky: int = 1000
) -> Scenario:
    """Three servers and a sticky virtual server."""
    return Scenario(
        virtual("web", "abc", sticky=sticky, sticky_mask=mask, scheduler=scheduler),
        reals("abc"),
        max_sticky=max_sticky,
    )


@pytest.mark.parametrize("scheduler", ["round-robin", "least-connections", "weighted-least-connections"])
def test_a_client_comes_back_to_its_server(scheduler: str) -> None:
    """R026, R067, R131, R132: the sticky entry decides, the scheduler is not asked."""
    lab = shop(scheduler=scheduler)
    assert lab.connect(client=OTHERS[0]).server == "a"
    assert lab.connect(client=OTHERS[1]).server == "b"
    assert [lab.connect(client=OTHERS[0]).server for _ in range(5)] == ["a"] * 5


def test_the_interval_runs_between_connections() -> None:
    """R026, R064, R153-R157, T8 (A6, A10): SYNs at 0, 50, 100 and 161 with an interval of 60."""
    lab = shop()
    began = lab.now
    served = []
    for at in (0, 50, 100, 161):
        lab.wait(began + at - lab.now)
        served.append(lab.connect().server)
        if at == 100:
            lab.connect(client=OTHERS[0])  # takes a turn, so that "afresh" shows
    assert served == ["a", "a", "a", "c"]


@pytest.mark.parametrize(("refresh", "strict"), [("never", False), ("assignment", True)])
def test_the_interval_may_run_from_the_first_connection(refresh: str, strict: bool) -> None:
    """R153-R157, T8 (A6): SYNs at 0 and 50 the same, at 100 afresh, as step 812 literally has it."""
    web = replace(virtual("web", "abc", sticky=60), sticky_refresh=refresh)
    lab = Scenario(web, reals("abc"), strict=Strict(refresh=strict))
    began = lab.now
    served = []
    for at in (0, 50, 100, 150, 161):
        lab.wait(began + at - lab.now)
        served.append(lab.connect().server)
        lab.connect(client=OTHERS[at % 7])  # takes a turn, so that "afresh" shows
    assert served[0] == served[1] == "a"
    assert served[2] != "a"
    assert served[3] == served[2], "chosen afresh at 100, it holds until 160"
    assert served[4] != served[3]


def test_a_fixed_interval_begins_anew_with_a_choice_that_stickiness_did_not_make() -> None:
    """R132, R157 (A6, A7): the entry's server was full: the entry is repointed, and holds from then on."""
    web = replace(virtual("web", "ab", sticky=60), sticky_refresh="never")
    lab = Scenario(web, [real("a", max_connections=1), real("b")])
    first = lab.connect()
    lab.wait(50)
    assert (first.server, lab.connect().server) == ("a", "b")
    first.close()
    lab.wait(50)
    assert lab.connect().server == "b"


@pytest.mark.parametrize(("elapsed", "same"), [(59.999, True), (60.0, False), (60.001, False)])
def test_the_interval_itself_is_too_late(elapsed: float, same: bool) -> None:
    """R155, R156 (A10): less than the interval, not the interval."""
    lab = Scenario(virtual("web", "ab", sticky=60), reals("ab"), now=0.0)
    lab.connect()
    lab.now += elapsed
    assert (lab.connect().server == "a") is same


def test_an_assignment_after_the_interval_binds_anew() -> None:
    """R157 (A9): written once the server is known, and it holds from then on."""
    lab = shop()
    lab.connect()
    lab.wait(100)
    assert lab.connect().server == "b"
    lab.wait(50)
    assert lab.connect().server == "b"


def test_without_stickiness_there_are_no_entries() -> None:
    """R151, R152 (A9, A10): an interval of 0 is off."""
    lab = shop(sticky=0)
    assert [lab.connect().server for _ in range(3)] == ["a", "b", "c"]
    assert list(lab.director.sticky(lab.now)) == []
    assert lab.director.totals().sticky == 0


def test_activity_does_not_prolong_it() -> None:
    """R064, R153 (A6): the time of the last assignment counts, not that of the last packet."""
    lab = shop()
    call = lab.connect()
    for _ in range(3):
        lab.wait(25)
        call.says().hears()
    assert lab.connect().server == "b"


def test_a_repeated_syn_does_not_prolong_it() -> None:
    """R111, R153 (A6): it assigns nothing."""
    lab = shop()
    call = lab.dial()
    lab.wait(25)
    assert call.syn().server == "a"
    lab.wait(35)
    assert lab.connect().server == "b"


def test_who_was_refused_is_not_bound() -> None:
    """R152 (A9): the entry is written after a server was found, and after there was room."""
    lab = Scenario(virtual("web", "a", sticky=60), [real("a", max_connections=1)])
    lab.connect()
    assert lab.dial(client=OTHERS[0]).refused is Drop.NO_SERVER
    assert [str(each.client) for each in lab.director.sticky(lab.now)] == ["192.0.2.1"]
    full = Scenario(virtual("web", "a", sticky=60), reals("a"), max_connections=1)
    full.connect()
    assert full.dial(client=OTHERS[0]).refused is Drop.TABLE_FULL
    assert [str(each.client) for each in full.director.sticky(full.now)] == ["192.0.2.1"]


def test_clients_of_one_network_may_share_an_entry() -> None:
    """R063, R151 (A8): by a prefix of their address."""
    lab = shop(mask=24)
    assert lab.connect(client="192.0.2.1").server == "a"
    assert lab.connect(client="192.0.2.254").server == "a"
    assert lab.connect(client="192.0.3.1").server == "b"
    assert [str(each.client) for each in lab.director.sticky(lab.now)] == ["192.0.2.0", "192.0.3.0"]


def test_a_mask_of_0_is_everybody() -> None:
    """R151 (A8): one entry for the whole world."""
    lab = shop(mask=0)
    assert {lab.connect(client=client).server for client in OTHERS} == {"a"}
    assert lab.director.totals().sticky == 1


def test_virtual_servers_do_not_share_entries() -> None:
    """R151 (A8): unless they say so."""
    lab = Scenario([virtual("web", "ab", sticky=60), virtual("tls", "ba", port=443, sticky=60)], reals("ab"))
    assert (lab.connect("web").server, lab.connect("tls").server) == ("a", "b")
    assert (lab.connect("web").server, lab.connect("tls").server) == ("a", "b")


def group(web: Iterable[str], tls: Iterable[str]) -> Scenario:
    """Two virtual servers in one sticky group."""
    return Scenario(
        [
            virtual("web", web, sticky=60, sticky_group="shop"),
            virtual("tls", tls, port=443, sticky=60, sticky_group="shop"),
        ],
        reals("abc"),
    )


def test_a_sticky_group_shares_entries() -> None:
    """R151 (A8): http and https of one shop."""
    lab = group("abc", ["c:8443", "b:8443", "a:8443"])
    assert lab.connect("web").server == "a"
    tls = lab.connect("tls")
    assert (tls.server, tls.connection.link.port) == ("a", 8443)
    (entry,) = lab.director.sticky(lab.now)
    assert (entry.scope, entry.grouped, entry.real) == ("shop", True, "a")


def test_a_group_s_server_that_is_not_linked_here_is_passed_over() -> None:
    """R132, R151 (A7, A8): chosen afresh, and the entry repointed."""
    lab = group("ab", "bc")
    assert lab.connect("web").server == "a"
    assert lab.connect("tls").server == "b"
    assert lab.connect("web").server == "b"


def test_a_group_and_a_virtual_server_of_the_same_name_are_two() -> None:
    """R151 (A8): names of groups and of virtual servers do not meet."""
    lab = Scenario(
        [
            virtual("web", "ab", sticky=60),
            virtual("tls", "ba", port=443, sticky=60, sticky_group="web"),
        ],
        reals("ab"),
    )
    assert (lab.connect("web").server, lab.connect("tls").server) == ("a", "b")


def test_weight_0_still_takes_sticky_clients() -> None:
    """R048, R132 (A7, A14): who has an entry keeps coming, who has none goes elsewhere."""
    lab = shop()
    lab.connect()
    quiesce(lab, "a")
    assert lab.connect().server == "a"
    assert {lab.connect(client=client).server for client in OTHERS} == {"b", "c"}


def quiesce(lab: Scenario, name: str) -> None:
    """Set a server's weight to 0 while connections run."""
    server = lab.director.real_servers[name]
    server.weight = 0
    server.changed(lab.now)


def test_a_full_server_does_not_take_sticky_clients() -> None:
    """R045, R132, R184 (A7): below its maximum only; else afresh, and the entry repointed."""
    lab = Scenario(virtual("web", "ab", sticky=60), [real("a", max_connections=1), real("b")])
    first = lab.connect()
    assert (first.server, lab.connect().server) == ("a", "b")
    first.close()
    assert lab.connect().server == "b"


def test_an_assignment_by_stickiness_takes_a_turn() -> None:
    """R023, R132 (A12): the last used link moves whoever decided."""
    lab = shop()
    lab.connect(client=OTHERS[0])
    lab.connect(client=OTHERS[1])
    lab.connect(client=OTHERS[0])
    assert lab.connect(client=OTHERS[2]).server == "b"


def test_entries_end_by_themselves() -> None:
    """R065, R066: after the interval nothing is left of them."""
    lab = shop()
    for client in OTHERS:
        lab.connect(client=client)
    lab.wait(59)
    assert lab.director.totals().sticky == len(OTHERS)
    lab.wait(1)
    assert lab.director.totals().sticky == 0
    assert list(lab.director.sticky(lab.now)) == []


def test_a_full_sticky_table_forgets_who_came_longest_ago() -> None:
    """R066: least recently used first, whichever virtual server's it is."""
    lab = shop(max_sticky=3)
    for client in OTHERS[:3]:
        lab.connect(client=client)
        lab.wait(1)
    lab.connect(client=OTHERS[0])
    lab.wait(1)
    lab.connect(client=OTHERS[3])
    assert sorted(str(each.client) for each in lab.director.sticky(lab.now)) == [
        "198.51.100.1", "198.51.100.3", "198.51.100.4",
    ]  # fmt: skip
    assert lab.director.totals().sticky == lab.director.totals().sticky_limit == 3


def test_what_is_seen_of_an_entry() -> None:
    """R062-R064: the server, the client, since when and for how long."""
    lab = shop()
    lab.connect(client=OTHERS[0])
    lab.wait(20)
    (entry,) = lab.director.sticky(lab.now)
    assert (entry.scope, entry.grouped, str(entry.client), entry.real) == ("web", False, OTHERS[0], "a")
    assert (entry.age, entry.expires) == (20.0, 40.0)
    lab.now += 40
    assert list(lab.director.sticky(lab.now)) == [], "it holds no longer, though nobody has cleared it yet"


def test_stickiness_holds_after_the_connection_has_ended() -> None:
    """R026, R067: it is about the next connection."""
    lab = shop()

    def visit() -> Call:
        return lab.connect().says().hears().close()

    assert [visit().server for _ in range(3)] == ["a", "a", "a"]
    lab.wait(30)
    assert visit().server == "a"
