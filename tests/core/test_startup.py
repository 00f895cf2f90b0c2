"""The startup scheme: round robin while a server is new (fig 7A)."""

from dataclasses import replace
from typing import Any

import pytest

from nfqlb.core import spec
from nfqlb.core.admission import ServerState
from tests.core.preset import set_weight
from tests.core.recount import audit
from tests.core.scenario import Scenario, real, reals, virtual


def site(
    servers: str = "abcd",
    *,
    scheduler: str = "least-connections",
    startup: str = "round-robin",
    share: float = 50,
    time: float = 60,
    weights: dict[str, float] | None = None,
    test: str = "chosen",
) -> Scenario:
    """One virtual server with a startup scheme."""
    web = replace(
        virtual("web", servers, scheduler=scheduler), startup=startup, startup_share=share, startup_time=time,
        startup_test=test,
    )  # fmt: skip
    found = [real(name, weight=(weights or {}).get(name, 1)) for name in servers]
    return Scenario(web, found, max_connections=10_000)


def out(lab: Scenario, name: str) -> None:
    """Take a server out of service."""
    server = lab.director.real_servers[name]
    server.setting = ServerState.OUT_OF_SERVICE
    server.changed(lab.now)


def back(lab: Scenario, name: str) -> None:
    """Bring it into service."""
    server = lab.director.real_servers[name]
    server.setting = ServerState.IN_SERVICE
    server.changed(lab.now)


def loaded(each: int = 40, **how: Any) -> Scenario:
    """Servers a to d; d is out of service while the others get so many connections each."""
    lab = site(**how)
    out(lab, "d")
    for _ in range(3 * each):
        lab.connect()
    lab.wait(100)
    return lab


def served(lab: Scenario, times: int) -> str:
    """Who gets the next connections."""
    return "".join(lab.connect().server for _ in range(times))


def test_without_a_startup_scheme_a_new_server_attracts_every_syn() -> None:
    """R101, R134, R138: which is what the startup scheme is against; it is off by default."""
    assert spec.Virtual("web", reals("a")[0].address, ()).startup == "none"
    lab = loaded(startup="none")
    back(lab, "d")
    assert served(lab, 40) == "d" * 40


def test_a_new_server_takes_its_turns_only() -> None:
    """R100, R101, R135, R139, R140 (A11): one of four, in the order after the last used link."""
    lab = loaded()
    last = lab.connect().server
    back(lab, "d")
    first = served(lab, 12)
    assert first.count("d") == 3
    order = "abcd"
    assert first == "".join(order[(order.index(last) + 1 + step) % 4] for step in range(12))
    audit(lab.director)


def test_both_schemes_are_shown() -> None:
    """R028, R029, R134, R139: the one asked for, and the one that acted."""
    lab = loaded()
    assert (lab.virtual().desired, lab.virtual().actual) == ("least-connections", "least-connections")
    back(lab, "d")
    lab.connect()
    assert (lab.virtual().desired, lab.virtual().actual) == ("least-connections", "round-robin")
    lab.wait(60)
    lab.connect()
    assert (lab.virtual().desired, lab.virtual().actual) == ("least-connections", "least-connections")


def test_it_ends_after_its_time() -> None:
    """R100, R135 (A11): `startup_time` seconds after the server came into service, to the moment."""
    lab = loaded(each=400)
    back(lab, "d")
    lab.wait(59.9)
    assert served(lab, 8).count("d") == 2
    lab.wait(0.1)
    assert served(lab, 8) == "d" * 8


@pytest.mark.parametrize("share", [0, 25, 50, 100])
def test_it_ends_when_the_share_is_reached(share: float) -> None:
    """R097, R100, R135 (A11): so many per cent of its fair share of the virtual server's connections."""
    lab = loaded(share=share)
    back(lab, "d")
    reached = None
    for _ in range(400):
        new = lab.connect()
        total = sum(lab.loads().values())
        if lab.virtual().actual == "least-connections" and new.server == "d":
            reached = lab.loads()["d"] - 1, total - 1
            break
    if share == 100:
        assert reached is None or reached[0] == reached[1] / 4
    else:
        assert reached is not None
        connections, total = reached
        assert connections >= total / 4 * share / 100
        assert connections <= total / 4 * share / 100 + 2


@pytest.mark.parametrize(("connections", "new"), [(9, True), (10, False), (11, False)])
def test_the_share_itself_is_enough(connections: int, new: bool) -> None:
    """R097, R135 (A11): half of a quarter of 80 is 10, and less than that is new."""
    server = site().director.virtual_servers[0]
    assert server.startup is not None
    server.connections, server.links[3].connections = 80, connections
    assert server.startup.acts(server.links[3], 5001.0) is new


def test_the_fair_share_is_by_weight() -> None:
    """R048, R097, R135 (A11): a weight of 2 among 1, 1, 1 and 2 is two fifths."""
    lab = loaded(scheduler="weighted-least-connections", weights={"d": 2})
    back(lab, "d")
    while lab.connect().server != "d" or lab.virtual().actual == "round-robin":
        pass
    connections, total = lab.loads()["d"] - 1, sum(lab.loads().values()) - 1
    assert total / 5 <= connections <= total / 5 + 2


def weigh_down(lab: Scenario, name: str) -> None:
    """Let a server seem to have 1,000 connections more."""
    real = lab.director.real_servers[name]
    real.connections += 1000
    real.changed(lab.now)


def test_only_the_chosen_server_s_newness_counts() -> None:
    """R135, R138 (A11): a server in service for long is taken as it is chosen, though another is new."""
    lab = loaded()
    back(lab, "d")
    calls = [lab.connect() for _ in range(4)]
    ends = next(call for call in calls if call.server == "a")
    weigh_down(lab, "d")
    ends.close()
    assert lab.connect().server == "a"
    assert lab.virtual().actual == "least-connections"


@pytest.mark.parametrize("test", ["any", "before"])
def test_any_server_s_newness_may_count(test: str) -> None:
    """R136, R137 (A11): while one is new they all take turns, whoever would be chosen."""
    lab = loaded(test=test)
    back(lab, "d")
    calls = [lab.connect() for _ in range(4)]
    ends = next(call for call in calls if call.server == "a")
    weigh_down(lab, "d")
    ends.close()
    assert sorted(served(lab, 4)) == list("abcd")
    assert lab.virtual().actual == "round-robin"
    lab.wait(60)
    weigh_down(lab, "d")  # the audit has counted its connections again meanwhile
    assert lab.connect().server == "a"
    assert lab.virtual().actual == "least-connections"


@pytest.mark.parametrize("test", ["any", "before"])
def test_with_any_it_ends_as_the_last_new_server_has_its_share(test: str) -> None:
    """R136, R137 (A11): against a plain look at every server, at every step."""
    lab = site(test=test, time=30, weights={"a": 2, "d": 0.5})
    server = lab.director.virtual_servers[0]
    for step, name in enumerate("dabdcadbbcadcbdabcddab" * 4):
        lab.wait(step % 7)
        (out if step % 5 == 4 else back)(lab, name)
        capacity = sum(link.real.weight for link in server.links if link.available)
        expected = any(
            link.available
            and lab.now - link.real.serving_since < 30
            and link.connections < server.connections * link.real.weight / capacity / 2
            for link in server.links
        )
        call = lab.connect()
        assert lab.virtual().actual == ("round-robin" if expected else "least-connections"), step
        if step % 3 == 0:
            call.close()


def test_before_does_not_ask_the_desired_scheduler() -> None:
    """R137: the record of decisions knows of no choice that was set aside; with "any" it does."""
    for test, aside in (("any", "d"), ("before", None)):
        lab = loaded(test=test)
        back(lab, "d")
        lab.connect()
        (told,) = lab.decisions(limit=1)
        assert (told.by, told.scheduler, told.set_aside) == ("startup", "round-robin", aside)


def test_a_server_that_was_quiesced_is_new_again() -> None:
    """R101 (A14): by weight 0, the way that operators take servers out gently."""
    lab = loaded()
    server = lab.director.virtual_servers[0]
    set_weight(server, "a", 0)
    back(lab, "d")
    served(lab, 300)
    lab.wait(100)
    for connection in list(lab.director.table.inbound.values()):
        if connection.link.real.spec.name == "a":
            lab.director.table.remove(connection, lab.now)
    lab.director.real_servers["a"].weight = 1
    lab.director.real_servers["a"].changed(lab.now)
    assert served(lab, 12).count("a") == 3
    assert lab.virtual().actual == "round-robin"


def test_a_server_that_was_full_is_not_new() -> None:
    """R101, R184: room for one more is no return into service."""
    web = replace(virtual("web", "ab", scheduler="least-connections"), startup="round-robin")
    lab = Scenario(web, [real("a", max_connections=1), real("b")])
    first = lab.connect()
    for _ in range(100):
        lab.connect()
    lab.wait(100)
    first.close()
    assert lab.connect().server == "a"
    assert lab.virtual().actual == "least-connections"


def test_a_gateway_that_has_just_started() -> None:
    """R100, R139, R140 (A11): every server is new, and connections are dealt out in turn."""
    lab = site()
    assert served(lab, 8) == "abcdabcd"
    audit(lab.director)


def test_a_time_of_0_is_none() -> None:
    """R134, R138: nothing is new for no time."""
    lab = loaded(time=0)
    back(lab, "d")
    assert served(lab, 8) == "d" * 8
    assert lab.virtual().actual == "least-connections"


def test_round_robin_passes_over_who_is_not_available() -> None:
    """R140, R144, R147: the startup scheme chooses among those that the other one may choose."""
    lab = loaded()
    out(lab, "b")
    back(lab, "d")
    assert set(served(lab, 9)) == set("acd")
    for _ in range(40):
        lab.dial()
    lab.director.real_servers["c"].unanswered += 100
    lab.director.real_servers["c"].changed(lab.now)
    for name in "ad":
        lab.director.real_servers[name].unanswered = 0
        lab.director.real_servers[name].changed(lab.now)
    assert "c" not in served(lab, 4)


def test_sticky_clients_are_not_dealt_out() -> None:
    """R132, R134: they are asked about before any scheme."""
    web = replace(virtual("web", "ab", scheduler="least-connections", sticky=600), startup="round-robin")
    lab = Scenario(web, reals("ab"))
    assert served(lab, 20) == "a" * 20


def test_the_capacity_is_that_of_available_servers() -> None:
    """R097: against a plain sum, while servers come and go."""
    lab = site(weights={"a": 0.5, "b": 2, "c": 0.1, "d": 7})
    server = lab.director.virtual_servers[0]
    assert server.startup is not None
    for step, name in enumerate("adcbaacdbdcab"):
        (out if step % 2 else back)(lab, name)
        if step % 3 == 0:
            set_weight(server, name, step)
        expected = sum(link.real.weight for link in server.links if link.available)
        assert server.startup._capacity == pytest.approx(expected)
