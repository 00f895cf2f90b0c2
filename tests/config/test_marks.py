"""Which mark stands for which link, and what fits into a mask."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.config.marks import LinkMarks, check_offload
from nfqlb.config.report import KeyPath
from nfqlb.core.spec import Config, Gateway, Real, Server, Strict, Virtual

STEADY = settings(derandomize=True, database=None, deadline=None, max_examples=200)
REAL = Real("web", ip_address("10.0.0.1"))


def config(plain: int, timed: int = 0, mask: int = 0x00FF0000, rewritten: int = 1) -> Config:
    """So many links of each kind, on ports of one real server."""
    vip = ip_address("192.0.2.1")

    def virtual(name: str, port: int, count: int, **changes: str) -> tuple[Virtual, ...]:
        servers = tuple(Server("web", port * 100 + offset) for offset in range(count))
        return (Virtual(name, vip, servers, port=port, **changes),) if count else ()  # type: ignore[arg-type]

    return Config(
        Gateway(("eth0",), ("eth1",), mark_mask=mask),
        (REAL,),
        virtual("plain", 1, plain, datapath="offload")
        + virtual("timed", 2, timed, datapath="offload", scheduler="fastest-response")
        + virtual("rewritten", 3, rewritten),
    )


def masks() -> st.SearchStrategy[int]:
    """Neighbouring bits, two or more."""
    return st.integers(2, 16).flatmap(
        lambda bits: st.integers(0, 32 - bits).map(lambda low: ((1 << bits) - 1) << low)
    )


@STEADY
@given(st.integers(0, 90), st.integers(0, 90), masks())
def test_every_link_has_a_mark_of_its_own_or_the_operator_is_told(plain: int, timed: int, mask: int) -> None:
    """And each mark is one that only a link can have; the measured ones are told by one comparison."""
    asked = config(plain, timed, mask)
    problems = list(check_offload(asked))
    if problems:
        with pytest.raises(ValueError, match="do not fit"):
            LinkMarks(asked)
        return
    marks = LinkMarks(asked)
    given_ = list(marks.marks.values())
    lowest = mask & -mask
    assert len(set(given_)) == len(given_) == plain + timed
    for target, mark in marks.marks.items():
        assert mark & ~marks.number_mask == 0
        assert mark not in (0, lowest, marks.number_mask)
        value, bits = marks.timed
        assert target.timed == (bool(bits) and mark & bits == value)
        assert mark | marks.armed not in (mask, lowest)
    assert marks.armed & marks.number_mask == 0
    assert marks.armed | marks.number_mask == mask


@STEADY
@given(st.integers(0, 2000), st.integers(0, 2000), masks())
def test_the_mask_that_the_hint_names_is_wide_enough(plain: int, timed: int, mask: int) -> None:
    for problem in check_offload(config(plain, timed, mask)):
        assert problem.path == ("gateway", "mark_mask")
        wider = int(problem.hint.split("mark_mask = ")[1].split(",")[0], 16)
        assert list(check_offload(config(plain, timed, wider))) == []


def test_the_usual_mask_holds_125_links() -> None:
    assert list(check_offload(config(125))) == []
    (problem,) = check_offload(config(126))
    assert problem.message == ('0x00ff0000 has no room for 126 real servers and ports of datapath "offload"')
    assert "mark_mask = 0x01ff0000" in problem.hint


def test_a_mask_of_two_bits_holds_none() -> None:
    assert list(check_offload(config(0, mask=0b11))) == []
    assert len(list(check_offload(config(1, mask=0b11)))) == 1
    assert list(check_offload(config(1, mask=0b111))) == []


def test_virtual_servers_share_the_marks_of_the_same_server_and_port() -> None:
    """A link here is where the kernel translates to; which virtual server it was, the connection tells."""
    one = config(2).virtuals[0]
    other = replace(one, name="other", port=4)
    both = replace(config(2), virtuals=(one, other))
    marks = LinkMarks(both)
    assert len(marks.marks) == 2
    assert [marks.of(other, server) for server in other.servers] == [
        marks.of(one, server) for server in one.servers
    ]


def test_backups_have_marks_too() -> None:
    """A27: of a real server, and of the virtual server."""
    asked = config(1)
    backup = Real("backup", ip_address("10.0.0.2"))
    asked = replace(
        asked,
        reals=(replace(REAL, backup="backup"), backup),
        virtuals=(replace(asked.virtuals[0], backup="web"),),
    )
    marks = LinkMarks(asked)
    assert {(str(target.address), target.port) for target in marks.marks} == {
        ("10.0.0.1", 100),
        ("10.0.0.2", 100),
        ("10.0.0.1", 1),
    }


def test_a_shadow_that_goes_by_response_times_has_them_measured() -> None:
    """R173."""
    asked = config(1)
    shadowed = replace(asked, virtuals=(replace(asked.virtuals[0], shadow="fastest-response"),))
    assert LinkMarks(asked).timed == (0, 0)
    assert LinkMarks(shadowed).timed != (0, 0)


@pytest.mark.parametrize(
    ("queue", "rewritten", "fits"), [(65533, 1, True), (65534, 1, False), (65534, 0, True)]
)
def test_both_datapaths_need_three_queues(queue: int, rewritten: int, fits: bool) -> None:
    asked = config(1, rewritten=rewritten)
    problems = list(check_offload(replace(asked, gateway=replace(asked.gateway, queue=queue))))
    assert [problem.path for problem in problems] == ([] if fits else [("gateway", "queue")])


FAST = {"scheduler": "fastest-response"}


@pytest.mark.parametrize(
    ("virtual", "strict", "path"),
    [
        ({"sticky": 60.0, "sticky_refresh": "activity"}, {}, ("virtual", 0, "sticky_refresh")),
        ({"sticky": 60.0, "sticky_refresh": "activity"}, {"refresh": True}, None),  # "never", then
        ({"sticky_refresh": "activity"}, {}, None),
        ({**FAST, "response_start": "syn"}, {}, ("virtual", 0, "response_start")),
        ({**FAST, "response_start": "syn-ack"}, {}, ("virtual", 0, "response_start")),
        ({"response_start": "syn-ack"}, {}, None),
        (FAST, {"every_packet": True}, ("strict", "every_packet")),
        ({}, {"every_packet": True}, None),
    ],
)
def test_what_needs_every_packet_needs_datapath_rewrite(
    virtual: dict[str, Any], strict: dict[str, bool], path: KeyPath | None
) -> None:
    """R084, R173 (A3, A6): refused with both ways out; where it has no effect it is nobody's mistake."""
    asked = config(1, rewritten=0)
    asked = replace(asked, virtuals=(replace(asked.virtuals[0], **virtual),), strict=Strict(**strict))
    problems = list(check_offload(asked))
    assert [problem.path for problem in problems] == ([path] if path else [])
    assert all('datapath = "rewrite"' in problem.hint for problem in problems)
    rewritten = replace(asked.virtuals[0], datapath="rewrite")
    assert list(check_offload(replace(asked, virtuals=(rewritten,)))) == []
