"""Replies that could not be told apart: the reverse key decides before the verdict (A5)."""

import pytest

from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Scenario, real, reals, virtual

OTHER_VIP = "203.0.113.2"


def two_sites(servers: str, *, scheduler: str = "round-robin", sticky: float = 0) -> Scenario:
    """Two virtual addresses in front of the same ports of the same servers."""
    return Scenario(
        [
            virtual("one", servers, scheduler=scheduler, sticky=sticky),
            virtual("two", servers, address=OTHER_VIP, scheduler=scheduler, sticky=sticky),
        ],
        reals(servers),
    )


@pytest.mark.parametrize("scheduler", ["round-robin", "least-connections", "weighted-least-connections"])
def test_a_collision_picks_another_server(scheduler: str) -> None:
    """R169 (A5): the same client address and port to two virtual addresses."""
    lab = two_sites("abc", scheduler=scheduler)
    one = lab.connect("one", port=40001)
    second = lab.director.virtual_servers[1]
    while (link := second.scheduler.choose(b"", second.last)) is not None:
        if link.real.spec.name == one.server:
            break
        lab.connect("two")
    two = lab.connect("two", port=40001)
    assert (one.server, two.server) == ("a", "b")
    assert one.hears().connection is not two.hears().connection
    assert one.hears().connection.link.virtual.spec.name == "one"
    audit(lab.director)


def test_every_server_taken_is_a_refusal() -> None:
    """R169 (A5): dropped and counted; left to the kernel, it would change the client's port."""
    lab = two_sites("a")
    one = lab.connect("one", port=40001)
    two = lab.dial("two", port=40001)
    assert two.refused is Drop.COLLISION
    assert lab.drops() == {"reverse-collision": 1}
    assert lab.loads() == {"a": 1}
    assert one.says().hears().state == "established"
    assert lab.dial("two", port=40002).server == "a"
    audit(lab.director)


def test_an_ended_connection_makes_way() -> None:
    """R169 (A5): nobody waits for one that only lingers for late packets."""
    lab = two_sites("a")
    lab.connect("one", port=40001).close()
    assert lab.dial("two", port=40001).server == "a"
    assert [each.virtual for each in lab.connections()] == ["two"]
    audit(lab.director)


def test_an_ended_connection_is_left_alone_where_another_server_is_free() -> None:
    """R169 (A5): its late packets are still wanted."""
    lab = two_sites("ab")
    lab.connect("one", port=40001).close()
    assert lab.dial("two", port=40001).server == "b"
    assert len(lab.connections()) == 2


def test_a_half_open_connection_does_not_make_way() -> None:
    """R169 (A5): it may yet be answered."""
    lab = two_sites("a")
    lab.dial("one", port=40001)
    assert lab.dial("two", port=40001).refused is Drop.COLLISION


def test_a_collision_overrides_stickiness() -> None:
    """R132, R169 (A5): only for the connection concerned is there no choice."""
    lab = two_sites("ab", sticky=600)
    assert lab.connect("two", port=40000).server == "a"
    assert lab.connect("two", port=40009).server == "a"
    assert lab.connect("one", port=40001).server == "a"
    assert lab.connect("two", port=40001).server == "b"


def test_full_servers_are_no_way_out() -> None:
    """R169, R184 (A5, A28): the only other server is at its maximum."""
    lab = Scenario(
        [virtual("one", "ab"), virtual("two", "ab", address=OTHER_VIP)],
        [real("a"), real("b", max_connections=1)],
    )
    assert lab.connect("one", port=40001).server == "a"
    assert lab.connect("one", port=40002).server == "b"
    assert lab.dial("two", port=40001).refused is Drop.COLLISION


def test_different_ports_on_the_server_do_not_collide() -> None:
    """R169, R073 (A5): replies from 8080 and from 8081 are told apart."""
    lab = Scenario([virtual("one", ["a:8080"]), virtual("two", ["a:8081"], address=OTHER_VIP)], reals("a"))
    one, two = lab.connect("one", port=40001), lab.connect("two", port=40001)
    assert one.hears().connection is not two.hears().connection


def test_the_colliding_connection_ends_on_its_own() -> None:
    """R169 (A17): closing one of two that nearly collided leaves the other."""
    lab = two_sites("ab")
    one, two = lab.connect("one", port=40001), lab.connect("two", port=40001)
    one.close()
    lab.wait(60)
    assert two.says().hears().state == "established"
    assert len(lab.connections()) == 1
    audit(lab.director)
