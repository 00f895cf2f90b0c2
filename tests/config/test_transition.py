"""From one configuration to another while the gateway runs: what drains, keeps its number, or cannot be."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.config.marks import LinkMarks, check_offload
from nfqlb.config.numbers import datapaths, idle_times, offload_queue, queue_numbers
from nfqlb.config.transition import merged, refusals, settled, without_leftovers
from nfqlb.core.spec import Config, Gateway, Real, Server, Timeouts, Virtual
from tests.core.scenario import address_of, real, reals, virtual

STEADY = settings(derandomize=True, database=None, deadline=None, max_examples=200)
ROOM = 1_000_000


def of(virtuals: Sequence[Virtual], servers: Sequence[Real], **gateway: Any) -> Config:
    return Config(Gateway(("eth0",), ("eth1",), **gateway), tuple(servers), tuple(virtuals))


def offloaded(name: str, servers: Sequence[str], **keys: Any) -> Virtual:
    return replace(virtual(name, servers, **keys), datapath="offload")


WEB = of([virtual("web", "ab")], reals("ab"))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"outside": ("eth7",)}, "[gateway] outside: needs a restart"),
        ({"inside": ("eth1", "eth2")}, "[gateway] inside: needs a restart"),
        ({"queue": 5}, "[gateway] queue: needs a restart"),
        ({"mark_mask": 0xFF}, "[gateway] mark_mask: needs a restart"),
        ({"socket": "/run/else"}, "[gateway] socket: needs a restart"),
        ({"max_connections": ROOM + 1}, "[gateway] max_connections: more than 1,000,000 needs a restart"),
    ],
)
def test_what_needs_a_restart(keys: dict[str, Any], line: str) -> None:
    assert refusals(WEB, replace(WEB, gateway=replace(WEB.gateway, **keys)), room=ROOM) == [line]


def test_all_of_it_is_listed() -> None:
    asked = of([offloaded("web", "ab")], reals("ab"), queue=9, mark_mask=0xF0)
    assert refusals(WEB, asked, room=ROOM) == [
        "[gateway] queue: needs a restart",
        "[gateway] mark_mask: needs a restart",
        "virtual server web: datapath: from rewrite to offload needs a restart",
    ]


@pytest.mark.parametrize(
    "keys",
    [
        {"max_connections": 5}, {"max_sticky": 7}, {"secure": True}, {"reject": "reset"},
        {"count_on": "syn-ack"}, {"close_on": "fin"}, {"other_ports": "host"}, {"metrics": "127.0.0.1:9617"},
    ],
)  # fmt: skip
def test_what_can_change_at_once(keys: dict[str, Any]) -> None:
    asked = replace(WEB, gateway=replace(WEB.gateway, **keys))
    assert refusals(WEB, asked, room=ROOM) == []
    assert without_leftovers(merged(WEB, asked)) == asked


def test_a_datapath_that_is_not_bound() -> None:
    asked = of([virtual("web", "ab"), offloaded("more", "ab", port=81)], reals("ab"))
    (line,) = refusals(WEB, asked, room=ROOM)
    assert line == 'virtual server more: datapath: "offload" is not in use yet, which needs a restart'
    both = of(asked.virtuals[1:], reals("ab"))
    assert refusals(asked, both, room=ROOM) == []
    assert refusals(merged(asked, both), asked, room=ROOM) == [], "it is bound still"


def test_an_address_that_still_drains_on_the_other_side() -> None:
    asked = of([virtual("web", "b")], [replace(real("b"), address=WEB.virtuals[0].address)])
    asked = replace(asked, virtuals=(replace(asked.virtuals[0], address=address_of("z")),))
    (line,) = refusals(WEB, asked, room=ROOM)
    assert "wait until it has drained, or restart" in line


def test_what_leaves_is_there_until_it_is_empty() -> None:
    after = merged(WEB, of([virtual("web", "b")], reals("b")))
    assert [each.name for each in after.reals] == ["b", "a"]
    assert after.leaving.reals == {"a"}
    assert after.leaving.places == (("web", Server("a", 80)),)
    assert after.places(after.virtuals[0]) == [Server("b", 80), Server("a", 80)]
    assert without_leftovers(after) == of([virtual("web", "b")], reals("b"))
    assert settled(after, after.leaving.places) == after
    assert settled(after, []) == merged(of([virtual("web", "b")], reals("b")), without_leftovers(after))


def test_a_removed_virtual_server_has_places_to_leave_and_no_servers() -> None:
    two = of([virtual("web", "a"), virtual("old", ["a", "b:8080"], port=81, sticky=60)], reals("ab"))
    after = merged(two, of([virtual("web", "a")], reals("a")))
    old = after.virtuals[1]
    assert (old.name, old.servers, old.sticky) == ("old", (), 0.0)
    assert after.leaving.virtuals == {"old"}
    assert after.leaving.places == (("old", Server("a", 81)), ("old", Server("b", 8080)))
    some = settled(after, [("old", Server("a", 81))])
    assert [each.name for each in some.reals] == ["a"]
    assert [each.name for each in settled(after, []).virtuals] == ["web"]


def test_backups_leave_too() -> None:
    before = of([replace(virtual("web", "a"), backup="c")], [replace(real("a"), backup="b"), *reals("bc")])
    after = merged(before, of([virtual("web", "a")], reals("a")))
    assert after.leaving.places == (("web", Server("b", 80)), ("web", Server("c", 80)))
    assert after.real("a").backup == ""


def test_names_of_what_leaves() -> None:
    """Who has a name keeps it, unless the file gives it to another; then a number follows."""
    here = of([virtual("web", "a")], reals("a"))
    for turn, machine in enumerate("zyx", 1):
        wanted = of([virtual("web", "a")], [replace(real("a"), address=address_of(machine))])
        here = merged(here, wanted)
        assert {each.name for each in here.reals} == {"a", *(f"a@{number}" for number in range(1, turn + 1))}
        assert here.real("a@1").address == address_of("a")
    long = "n" * 64
    before = of([virtual("web", [long])], [Real(long, address_of("a"))])
    after = merged(before, of([virtual("web", [long])], [Real(long, address_of("b"))]))
    assert after.reals[1].name == "n" * 58 + "@1"


def test_queues_stay_when_a_datapath_goes() -> None:
    both = of([virtual("web", "a"), offloaded("fast", "a", port=81)], reals("a"), queue=10)
    after = settled(merged(both, of([offloaded("fast", "a", port=81)], reals("a"), queue=10)), [])
    assert datapaths(after) == ["rewrite", "offload"]
    assert (offload_queue(after), queue_numbers(after)) == (12, (10, 11, 12))


def test_idle_times_keep_their_places() -> None:
    """Conntrack's policies are known by them, and connections hold on to those."""
    before = of(
        [offloaded("web", "abc")],
        [real("a"), real("b", idle_timeout=60), real("c", idle_timeout=120)],
    )
    assert idle_times(before) == [3600, 60, 120]
    after = merged(before, of([offloaded("web", "ac")], [real("a", idle_timeout=90), before.reals[2]]))
    assert idle_times(after) == [3600, 60, 120, 90]
    assert idle_times(settled(after, [])) == [3600, 60, 120, 90]
    shorter = replace(without_leftovers(after), timeouts=Timeouts(idle=60.0))
    assert idle_times(merged(after, shorter)) == [60, 60, 120, 90]


@st.composite
def gateways(draw: st.DrawFn) -> Config:
    """Offloaded virtual servers over some of a few servers, measured or not."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True))
    several = [
        offloaded(
            f"web{port}",
            draw(st.lists(st.sampled_from(names), min_size=1, max_size=len(names), unique=True)),
            port=port,
            scheduler=draw(st.sampled_from(["fastest-response", "least-connections"])),
        )
        for port in range(80, 80 + draw(st.integers(1, 4)))
    ]
    servers = [real(name, idle_timeout=draw(st.sampled_from([60.0, 3600.0]))) for name in names]
    return of(several, servers, mark_mask=draw(st.just(0x00FF0000)))


@STEADY
@given(st.lists(gateways(), min_size=2, max_size=5), st.data())
def test_a_mark_in_use_never_changes_its_meaning(steps: list[Config], data: st.DataObject) -> None:
    """Neither from one configuration to the next, nor between what is measured and what is not."""
    running = steps[0]
    for wanted in steps[1:]:
        if list(check_offload(wanted)) or refusals(running, wanted, room=ROOM):
            continue
        before = LinkMarks(running).marks
        both = merged(running, wanted)
        after = LinkMarks(both)
        meanings = {mark: target for target, mark in before.items()}
        assert all(meanings.get(mark, target) == target for target, mark in after.marks.items())
        assert before.items() <= after.marks.items(), "packets are on their way with them"
        assert len(set(after.marks.values())) == len(after.marks)
        for target, mark in after.marks.items():
            value, bits = after.timed
            assert target.timed == (bool(bits) and mark & bits == value)
        places = both.leaving.places
        left = data.draw(st.lists(st.sampled_from(places), unique=True)) if places else []
        running = settled(both, left)
        needed = LinkMarks(running).marks
        assert needed.items() <= after.marks.items()
        assert len(needed) == len({after.of(each, place) for each in running.virtuals for place in
                                   running.places(each)})  # fmt: skip
        assert idle_times(running)[: len(idle_times(both))] == idle_times(both)
