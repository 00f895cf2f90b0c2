"""The reject policy: who is told of what, and how many at most."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.reject import POLICY, REPLIES_A_SECOND, Action, Allowance, Kind, Side
from nfqlb.core.segment import ACK, FIN, RST, SYN
from nfqlb.core.verdict import Drop, Pass
from tests.core.properties import TRIES
from tests.core.scenario import Call, Scenario, real, virtual

NOBODY = [real("a", weight=0)]


def told(lab: Scenario, call: Call, flags: int | None) -> Action:
    """What the client gets for the refusal of its last segment."""
    assert call.refused is not None
    return lab.director.reply_to(call.refused, call.key, flags, lab.now)


def web(reject: str, on_failure: str = "keep") -> Scenario:
    """A virtual server that nobody can serve."""
    return Scenario(replace(virtual("web", "a"), reject=reject, on_failure=on_failure), NOBODY)


@pytest.mark.parametrize("reject", ["drop", "reset"])
def test_the_client_is_told_by_the_kind_of_its_packet(reject: str) -> None:
    """R113, R114, R117 (A20): a SYN that nobody takes and a stray segment are, a stray reset never is."""
    lab = web(reject)
    answer = Action.RESET if reject == "reset" else Action.DROP
    assert told(lab, lab.dial(), SYN) is answer
    for flags in (ACK, FIN | ACK, 0, SYN | ACK):
        assert told(lab, lab.call().client_sends(flags), flags) is answer
    for flags in (RST, RST | ACK):
        assert told(lab, lab.call().client_sends(flags), flags) is Action.DROP
    assert lab.director.totals().replies == ({"reset": 5} if reject == "reset" else {})
    assert lab.drops() == {"no-server": 1, "no-connection": 6}, "and counted as ever"


def test_a_datagram_is_answered_in_its_own_way() -> None:
    """R012, R114 (A20): no UDP is reset."""
    lab = web("reset")
    assert told(lab, lab.dial(), None) is Action.UNREACHABLE
    assert lab.director.totals().replies == {"unreachable": 1}


@pytest.mark.parametrize("reason", [*Drop, *Pass])
def test_most_refusals_are_nobodys_business(reason: Drop | Pass) -> None:
    """R114 (A20): what is malformed, cut, a fragment or for nobody gets no reply; nor what a server sent."""
    lab = web("reset")
    key = lab.call().key
    told = (
        Drop.NO_CONNECTION, Drop.NO_SERVER, Drop.OUT_OF_SERVICE, Drop.COLLISION, Drop.TABLE_FULL
    )  # fmt: skip
    with_reset = reason in told
    for flags in (SYN, ACK):
        action = lab.director.reply_to(reason, key, flags, lab.now)
        assert action is (Action.RESET if with_reset else Action.DROP)


def test_a_virtual_server_that_resets_on_failure_tells_strays() -> None:
    """R186 (A34): they may be a failed server's clients; who is new is treated as `reject` says."""
    lab = web("drop", "reset")
    assert told(lab, lab.call().ack(), ACK) is Action.RESET
    assert told(lab, lab.call().reset(), RST) is Action.DROP
    assert told(lab, lab.dial(), SYN) is Action.DROP
    lab = web("drop", "drop")
    assert told(lab, lab.call().ack(), ACK) is Action.DROP


WORDS = {
    Action.DROP: "dropped",
    Action.PASS: "passed on",
    Action.RESET: "reset",
    Action.UNREACHABLE: "ICMP port unreachable",
}
BROKEN, ERROR = "malformed, cut short, a fragment", "an ICMP error about no connection"
ROWS = {
    (Side.CLIENTS, "a SYN that no server can take"): (Kind.SYN,),
    (Side.CLIENTS, "any other TCP segment"): (Kind.SEGMENT,),
    (Side.CLIENTS, "a TCP reset"): (Kind.RESET,),
    (Side.CLIENTS, "a datagram that no server can take"): (Kind.DATAGRAM,),
    (Side.CLIENTS, ERROR): (Kind.ERROR,),
    (Side.CLIENTS, BROKEN): (Kind.BROKEN,),
    (Side.CLIENTS, "other protocols"): (Kind.OTHER,),
    (Side.SERVERS, "from a port behind a virtual server"): (
        Kind.SYN, Kind.SEGMENT, Kind.RESET, Kind.DATAGRAM,
    ),
    (Side.SERVERS, ERROR): (Kind.ERROR,),
    (Side.SERVERS, BROKEN): (Kind.BROKEN,),
    (Side.SERVERS, "other protocols"): (Kind.OTHER,),
}  # fmt: skip


def test_the_readme_says_the_same() -> None:
    """R114 (A20): its table is the policy, row for row."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    part = text.partition("\n### What is refused\n")[2].partition("\n### ")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]
    found = {}
    side = Side.CLIENTS
    for *first, what, drop, reset in lines:
        side = Side.SERVERS if first == ["servers"] else side
        found[side, what] = (drop, reset)
    said = {
        row: {tuple(WORDS[action] for action in POLICY[row[0], kind]) for kind in kinds}
        for row, kinds in ROWS.items()
    }
    assert said == {row: {actions} for row, actions in found.items()}
    assert sorted((side.value, kind.name) for (side, _), kinds in ROWS.items() for kind in kinds) == sorted(
        (side.value, kind.name) for side, kind in POLICY
    )


def test_nothing_from_the_servers_is_answered() -> None:
    """R114 (A20): nor anything let through that would show a real address."""
    for (side, kind), actions in POLICY.items():
        if side is Side.SERVERS:
            passes = kind in (Kind.ERROR, Kind.OTHER)
            assert actions == (Action.PASS if passes else Action.DROP,) * 2


@pytest.mark.parametrize(
    "client",
    ["::", "::1", "::ffff:192.0.2.1", "ff02::1", "ff0e::7", "fe80::1", "febf::1", "203.0.113.1"],
)
def test_addresses_of_no_single_client(client: str) -> None:
    """R114 (RFC 4443 section 2.4): multicast, nobody, ourselves; and what no router may carry."""
    address = "2001:db8::1" if ":" in client else "203.0.113.1"
    lab = Scenario(replace(virtual("web", "a", address=address), reject="reset"), NOBODY)
    call = lab.call(client=client)
    assert lab.director.reply_to(Drop.NO_SERVER, call.key, SYN, lab.now) is Action.DROP
    good = lab.call(client="2001:db8::7" if ":" in client else "203.0.113.7")
    assert lab.director.reply_to(Drop.NO_SERVER, good.key, SYN, lab.now) is Action.RESET


def test_replies_are_bounded() -> None:
    """R114: a thousand at once, a thousand a second; the rest is dropped in silence, and counted."""
    lab = web("reset")
    first = [told(lab, lab.dial(port=1024 + number), SYN) for number in range(2 * REPLIES_A_SECOND)]
    assert first == [Action.RESET] * REPLIES_A_SECOND + [Action.DROP] * REPLIES_A_SECOND
    assert lab.director.totals().replies == {"reset": 1000, "over-limit": 1000}
    assert told(lab, lab.call().ack(), ACK) is Action.RESET, "a flood of SYNs silences no other kind"
    lab.now += 0.01
    later = [told(lab, lab.dial(port=1024 + number), SYN) for number in range(20)]
    assert later.count(Action.RESET) == 10


@TRIES
@given(st.lists(st.integers(0, 40), max_size=200), st.sampled_from([1.0, 8.0, 64.0]))
def test_an_allowance(waits: list[int], rate: float) -> None:
    """R114: the same as by the other way of reckoning, which asks when the next one is due."""
    allowance = Allowance(rate)
    now = due = 100.0  # multiples of 1/256, which no sum of them spoils
    for wait in waits:
        now += wait / 256
        conforms = now >= due - (rate - 1) / rate
        assert allowance.take(now) is conforms
        if conforms:
            due = max(now, due) + 1 / rate
