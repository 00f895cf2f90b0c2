"""The guard without a kernel: how many repairs it makes, and how it says what was missing."""

from nfqlb.runtime.guard import Patience, brief


def test_a_burst_is_repaired_at_once_and_then_one_in_an_interval() -> None:
    patience = Patience(burst=3, interval=4.0)
    for _ in range(3):
        assert patience.has(100.0)
        patience.take()
    assert not patience.has(100.0)
    assert not patience.has(103.9)
    assert patience.has(104.0)
    patience.take()
    assert not patience.has(107.0)


def test_who_flushes_for_ever_gets_no_more_than_one_repair_in_an_interval() -> None:
    patience = Patience(burst=12, interval=4.0)
    made = 0
    for tick in range(10_000):  # every tenth of a second
        if patience.has(tick / 10):
            patience.take()
            made += 1
    assert 12 + 249 <= made <= 12 + 250


def test_after_a_long_peace_the_burst_is_whole_again_and_no_larger() -> None:
    patience = Patience(burst=2, interval=4.0)
    for _ in range(2):
        assert patience.has(0.0)
        patience.take()
    assert not patience.has(7.0) or not patience.whole
    assert patience.has(8.0)
    assert patience.whole
    patience.has(1000.0)
    patience.take()
    patience.take()
    assert not patience.has(1000.0)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    patience = Patience(burst=1, interval=4.0)
    assert patience.has(50.0)
    patience.take()
    assert not patience.has(50.0)
    assert not patience.has(10.0)
    assert not patience.has(13.9)


def test_single_findings_are_told_as_they_are() -> None:
    assert brief(["iptables raw PREROUTING: the jump is missing: -j NFQLB-PREROUTING"]) == (
        "iptables raw PREROUTING: the jump is missing: -j NFQLB-PREROUTING"
    )
    assert brief([]) == ""


def test_many_findings_of_a_table_are_counted() -> None:
    found = [f"iptables raw NFQLB-QUEUE: missing: -j RULE{number}" for number in range(15)]
    found += ["address 192.0.2.100/32 on outside: missing"]
    assert brief(found) == (
        "iptables raw: 15 rules or chains missing or changed; address 192.0.2.100/32 on outside: missing"
    )


def test_of_many_kinds_of_findings_three_are_told() -> None:
    found = [f"net/ipv4/conf/eth{number}/forwarding is 0, should be 1" for number in range(5)]
    assert brief(found) == "; ".join([*found[:3], "and 2 more"])
