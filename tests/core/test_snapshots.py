"""What can be seen: immutable pictures, true at their moment."""

from dataclasses import fields
from typing import Any

import pytest

from nfqlb.core.snapshot import LinkSnapshot
from tests.core.scenario import VIP, Scenario, address_of, real, reals, virtual


def test_a_virtual_server() -> None:
    """R021, R025, R028, R029, R187: its name, address, scheme, state, connections and servers."""
    lab = Scenario(virtual("web", ["a:8080", "b"], port=81, scheduler="least-connections"), reals("ab"))
    lab.connect()
    lab.connect().close()
    (seen,) = lab.director.virtuals(lab.now)
    assert (seen.name, str(seen.address), seen.protocol, seen.port) == ("web", VIP, "tcp", 81)
    assert (seen.state, seen.desired, seen.actual) == ("in-service",) + ("least-connections",) * 2
    assert (seen.connections, seen.total) == (1, 2)
    assert seen.servers == (
        LinkSnapshot("a", 8080, 1, total=1, share=1.0, fair=0.5),
        LinkSnapshot("b", 81, 0, total=1, share=0.0, fair=0.5),
    )


def test_a_real_server() -> None:
    """R030, R031, R033, R038, R039, R043, R045, R048: in the order of the config."""
    lab = Scenario(
        [virtual("web", "ba"), virtual("tls", "b", port=443)],
        [real("a", weight=2.5), real("b", max_connections=9)],
    )
    lab.wait(3)
    lab.connect("web")
    lab.dial("tls")
    first, second = lab.director.reals(lab.now)
    assert (first.name, first.address, first.weight, first.virtuals) == ("a", address_of("a"), 2.5, ("web",))
    assert (second.name, second.state, second.reason, second.since) == ("b", "in-service", "", 3.0)
    assert (second.connections, second.total, second.unanswered, second.max_connections) == (2, 2, 1, 9)
    assert second.virtuals == ("web", "tls")
    assert (second.response, second.predicted) == (None, None)
    assert (second.ditched_no_answer, second.ditched_reset) == (0, 0)


def test_a_connection() -> None:
    """R050-R058, R187: who, through what, to whom, in which state, since when, idle for how long."""
    lab = Scenario(virtual("web", ["a:8080"]), reals("a"))
    call = lab.connect(client="192.0.2.9", port=50000)
    lab.wait(10)
    call.says()
    lab.wait(5)
    (seen,) = lab.connections()
    assert (seen.virtual, seen.protocol) == ("web", "tcp")
    assert (str(seen.client), seen.client_port) == ("192.0.2.9", 50000)
    assert (seen.real, seen.real_port, seen.state) == ("a", 8080, "established")
    assert (seen.age, seen.idle) == (15.0, 5.0)


def test_the_director_as_a_whole() -> None:
    """R060, R066, R187: how much there is, and how much there may be."""
    lab = Scenario(virtual("web", "a", sticky=60), reals("a"), max_connections=5, max_sticky=7)
    lab.connect()
    lab.connect().close()
    lab.call(port=1).ack()
    seen = lab.director.totals()
    assert (seen.connections, seen.connections_total, seen.connections_limit) == (1, 2, 5)
    assert (seen.sticky, seen.sticky_limit) == (1, 7)
    assert seen.drops == {"no-connection": 1}


def test_pictures_do_not_change() -> None:
    """R187: neither by their reader nor by what happens afterwards."""
    lab = Scenario(virtual("web", "a", sticky=60), reals("a"))
    lab.connect()
    lab.call(port=1).ack()
    now = lab.now
    pictures: list[Any] = [
        lab.director.totals(), *lab.director.reals(now), *lab.director.virtuals(now),
        *lab.connections(), *lab.director.sticky(now), lab.director.virtuals(now)[0].servers[0],
    ]  # fmt: skip
    before = [repr(each) for each in pictures]
    lab.connect()
    lab.call(port=1).ack()
    lab.wait(5000)
    assert [repr(each) for each in pictures] == before
    for each in pictures:
        with pytest.raises(AttributeError):
            setattr(each, _first_field(each), None)
    assert lab.drops() == {"no-connection": 2}


def _first_field(picture: Any) -> str:
    """Pictures are dataclasses or, where there are many of them, named tuples."""
    named: Any = getattr(picture, "_fields", None)
    return str(named[0] if named else fields(picture)[0].name)


def test_nothing_has_happened_yet() -> None:
    """R105: a director just started."""
    lab = Scenario(virtual("web", "ab", sticky=60), reals("ab"))
    assert lab.connections() == []
    assert list(lab.director.sticky(lab.now)) == []
    assert lab.loads() == {"a": 0, "b": 0}
    assert lab.drops() == {}
    assert lab.director.totals().connections_total == 0


def test_live_connections_are_listed_before_ended_ones_and_newest_first() -> None:
    """A list that is cut short shows what goes on now."""
    lab = Scenario(virtual("web", "ab"), reals("ab"))
    older, ended, newer = (lab.connect(port=port) for port in (40001, 40002, 40003))
    ended.fin()
    ended.server_fin()
    assert [each.client_port for each in lab.connections()] == [40003, 40001, 40002]
    assert older.state == newer.state
