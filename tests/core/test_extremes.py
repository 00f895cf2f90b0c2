"""Nobody, one, thousands: every scheduler has an answer, whatever there is to choose from."""

from collections import Counter
from dataclasses import replace

import pytest

from nfqlb.core.schedulers import SCHEDULERS
from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Scenario, real, reals, virtual

every = pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))


@every
def test_nobody_may_be_chosen(scheduler: str) -> None:
    """F22: all of weight 0, or all failed; a SYN is refused and counted, until there is a server again."""
    lab = Scenario(virtual("web", "ab", scheduler=scheduler), [real("a", weight=0), real("b", weight=0)])
    assert lab.dial().refused is Drop.NO_SERVER
    failing = [replace(each, failure_threshold=1, retry=1000.0) for each in reals("ab")]
    lab = Scenario(virtual("web", "ab", scheduler=scheduler), failing)
    for number in range(4):
        call = lab.dial(client=f"192.0.2.{number}")
        if call.refused is None:
            call.refusal()
    assert lab.dial().refused is Drop.NO_SERVER
    audit(lab.director)
    lab.wait(1001)
    assert lab.connect().state == "established"
    audit(lab.director)


@every
def test_there_is_one(scheduler: str) -> None:
    """F22: it gets everybody."""
    lab = Scenario(virtual("web", "a", scheduler=scheduler), reals("a"))
    assert {lab.connect(client=f"192.0.2.{number}").server for number in range(50)} == {"a"}
    audit(lab.director)


@every
def test_there_are_4096(scheduler: str) -> None:
    """F22: connections are made, spread, and end."""
    names = [f"s{number}" for number in range(4096)]
    lab = Scenario(virtual("web", names, scheduler=scheduler), reals(names), max_connections=10_000)
    calls = [lab.connect(client=f"10.9.{number >> 8}.{number & 255}") for number in range(500)]
    assert len({call.server for call in calls}) > 400
    for call in calls:
        call.close()
    assert sum(lab.loads().values()) == 0


@pytest.mark.parametrize("scheduler", sorted({*SCHEDULERS} - {"source-hash", "maglev", "fastest-response"}))
def test_ten_thousand_ports_of_one_client(scheduler: str) -> None:
    """F27: each of eight servers has its share of them to within 15 %; by hash one has them all."""
    lab = Scenario(virtual("web", "abcdefgh", scheduler=scheduler), reals("abcdefgh"), max_connections=20_000)
    shares = Counter(lab.connect(port=1024 + number).server for number in range(10_000))
    assert all(abs(share - 1250) <= 0.15 * 1250 for share in shares.values()), shares
    assert len(shares) == 8


def test_both_sides_call_at_a_time() -> None:
    """F26: a server's SYN without ACK (RFC 9293 section 3.5) neither opens a connection nor ends one."""
    lab = Scenario(virtual("web", "ab"), reals("ab"))
    call = lab.dial()
    call.server_sends(0x02)
    assert call.state == "syn-sent"
    assert call.syn_ack().ack().state == "established"
    assert sum(lab.loads().values()) == 1
    audit(lab.director)
