"""A virtual server's guard against floods of SYNs: half-open connections, the rate, and fair shares."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from nfqlb.core import spec
from nfqlb.core.segment import ACK
from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Scenario, reals, virtual

HONEST = "203.0.113.7"


def guarded(limit: int = 0, rate: float = 0.0, share: float = 25.0) -> Scenario:
    """A guarded virtual server, and beside it one that is not, with the same servers."""
    web = replace(virtual("web", "ab"), synguard=limit, synguard_rate=rate, synguard_share=share)
    never_fail = [replace(each, failure_threshold=0) for each in reals("ab")]
    return Scenario([web, virtual("tls", "ab", port=443)], never_fail)


def forged(number: int) -> str:
    """Another network each time."""
    return f"10.{number >> 8 & 255}.{number & 255}.1"


def half_open(lab: Scenario, name: str = "web") -> int:
    return lab.virtual(name).half_open


def told(lab: Scenario) -> list[str]:
    return [f"{each.level}: {each.text}" for each in lab.director.chronicle.take_notices()]


# --- half-open connections


def test_the_oldest_makes_room() -> None:
    """A1 (synguard), F24: 500 forged SYNs, of which the last 50 are held; everybody else stays."""
    lab = guarded(50)
    calls = [lab.connect(client=f"192.0.2.{number}") for number in range(20)]
    answered = lab.dial(client="192.0.2.99").syn_ack()
    for number in range(500):
        lab.dial(client=forged(number))
    assert half_open(lab) == 50
    assert (lab.virtual().given_up, lab.virtual().connections) == (451, 70)
    assert [call.says().state for call in calls] == ["established"] * 20
    assert answered.ack().refused is Drop.NO_CONNECTION, "it was the oldest"
    assert lab.drops() == {"no-connection": 1}
    audit(lab.director)


def test_what_was_given_up_is_told_when_nobody_is_half_open_any_more() -> None:
    lab = guarded(50)
    for number in range(60):
        lab.dial(client=forged(number))
    lab.wait(31)
    assert (half_open(lab), lab.virtual().given_up) == (0, 10)


def test_who_answers_in_time_gets_through() -> None:
    """F24: between a client's SYN and its ACK fewer come than there is room for."""
    lab = guarded(50)
    for number in range(1000):
        lab.dial(client=forged(number))
        if number % 100 == 0:
            call = lab.dial(client=HONEST)
        if number % 100 == 40:
            assert call.syn_ack().ack().state == "established"
    assert len(lab.connections(client=HONEST)) == 10
    audit(lab.director)


def test_a_forged_ack_opens_nothing() -> None:
    """R078, F24: half-open is half-open, answered by the server or not."""
    lab = guarded(50)
    for number in range(200):
        call = lab.dial(client=forged(number)).syn_ack()
        call.client_sends(ACK, acknowledges=number)
    assert (half_open(lab), lab.virtual().connections) == (50, 50)
    assert lab.real("a").unanswered == lab.real("b").unanswered == 0
    audit(lab.director)


def test_others_are_not_concerned() -> None:
    """F24: another virtual server of the same real ones has no limit, and its own are its own."""
    lab = guarded(10)
    for number in range(30):
        lab.dial("tls", client=forged(number))
    assert (half_open(lab, "web"), half_open(lab, "tls")) == (0, 30)
    for number in range(30):
        lab.dial("web", client=forged(number))
    assert (half_open(lab, "web"), half_open(lab, "tls")) == (10, 30)


@pytest.mark.parametrize("ending", ["ack", "refusal", "reset", "time", "again"])
def test_every_way_out_of_the_handshake(ending: str) -> None:
    """R125-R129: whatever ends it, another may begin, and none is given up for it."""
    lab = guarded(3)
    calls = [lab.dial(port=5000 + number) for number in range(3)]
    for call in calls:
        if ending == "ack":
            call.syn_ack().ack()
        elif ending == "refusal":
            call.refusal()
        elif ending == "reset":
            call.syn_ack().server_reset()
        elif ending == "again":
            call.syn(isn=77)
    if ending == "time":
        lab.wait(31)
    assert half_open(lab) == (3 if ending == "again" else 0)
    assert lab.virtual().given_up == 0
    if ending != "again":
        for number in range(3):
            assert lab.dial(port=6000 + number).refused is None
        assert lab.virtual().given_up == 0
    audit(lab.director)


def test_a_test_connection_that_is_given_up_is_made_up_for() -> None:
    """R182: its server is tested with another one."""
    one = guarded(5).config
    config = replace(one, reals=tuple(replace(each, failure_threshold=1, retry=5.0) for each in one.reals))
    lab = Scenario(config.virtuals, config.reals)
    lab.dial(client="192.0.2.1").refusal()
    lab.dial(client="192.0.2.2").refusal()
    lab.wait(6)
    lab.dial(client="192.0.2.3")
    testing = [each for each in lab.director.reals(lab.now) if each.state == "testing"]
    for number in range(6):
        lab.dial(client=forged(number))
    assert len(testing) == 1
    assert lab.virtual().given_up >= 1
    audit(lab.director)


def test_a_successor_knows_the_half_open_ones() -> None:
    """A23: what the journal had counts towards the limit."""
    lab, heir = guarded(5), guarded(5)
    for number in range(5):
        connection = lab.dial(client=forged(number)).connection
        server = connection.link.real.address + (80).to_bytes(2, "big")
        assert heir.director.restore(
            connection.inbound, server, connection.state.code, number, opened=heir.now, now=heir.now
        )
    heir.director.restored(heir.now)
    assert half_open(heir) == 5
    heir.dial(client=HONEST)
    assert (half_open(heir), heir.virtual().given_up) == (5, 1)
    audit(heir.director)


# --- one network alone


def test_a_flood_from_one_network_displaces_itself() -> None:
    """F24: its share is a quarter; the slow handshakes of others are left alone."""
    lab = guarded(40)
    slow = [lab.dial(client=f"203.0.{number}.1") for number in range(30)]
    for number in range(500):
        lab.dial(client=f"198.51.100.{number % 250}", port=1024 + number)
    assert half_open(lab) == 40
    assert [call.syn_ack().ack().state for call in slow] == ["established"] * 30
    assert len(lab.connections()) == 40
    audit(lab.director)


def test_somebody_new_takes_the_place_of_who_has_most() -> None:
    """F24: not of whoever happens to be the oldest."""
    lab = guarded(40)
    oldest = lab.dial(client=HONEST)
    for number in range(39):
        lab.dial(client="198.51.100.1", port=1024 + number)
    new = [lab.dial(client=f"203.0.{number}.1") for number in range(5)]
    assert oldest.syn_ack().ack().state == "established"
    assert [call.syn_ack().ack().state for call in new] == ["established"] * 5
    audit(lab.director)


def test_while_there_is_room_one_network_may_have_all_of_it() -> None:
    """F24: many clients may come from behind one address."""
    lab = guarded(40)
    calls = [lab.dial(client="198.51.100.1", port=1024 + number) for number in range(40)]
    assert [call.syn_ack().ack().state for call in calls] == ["established"] * 40
    assert lab.virtual().given_up == 0


def test_without_a_share_only_age_counts() -> None:
    lab = guarded(10, share=0)
    first = lab.dial(client=HONEST)
    for number in range(10):
        lab.dial(client="198.51.100.1", port=1024 + number)
    assert first.syn_ack().ack().refused is not None


def test_networks_of_ipv6_are_of_56_bits() -> None:
    """F24: who has a /56 has one share, not 2**72."""
    web = replace(virtual("web", ["v6"]), address=ip_address("2001:db8::80"), synguard=8, synguard_share=50.0)
    lab = Scenario(web, [spec.Real("v6", ip_address("2001:db8:1::11"))])
    slow = [lab.dial(client=f"2001:db8:{number:x}::1") for number in range(1, 5)]
    for number in range(100):
        lab.dial(client=f"2001:db8:ff:{number:x}::{number:x}")
    assert [call.syn_ack().ack().state for call in slow] == ["established"] * 4


# --- the rate


def test_what_is_above_the_rate_is_refused() -> None:
    """A1 (synguard), F24: 100 a second, and as many at once; SYNs of known connections are not counted."""
    lab = guarded(rate=100)
    calls = [lab.dial(client=forged(number)) for number in range(150)]
    assert [call.refused for call in calls] == [None] * 100 + [Drop.SYN_RATE] * 50
    assert calls[0].syn().refused is None
    lab.wait(0.5)
    calls = [lab.dial(client=forged(1000 + number)) for number in range(60)]
    assert [call.refused for call in calls] == [None] * 50 + [Drop.SYN_RATE] * 10
    assert lab.virtual().drops == lab.drops() == {"over-syn-rate": 60}
    assert lab.dial("tls").refused is None
    audit(lab.director)


def test_a_refused_syn_changes_nothing() -> None:
    """R023: no turn is taken, no entry made, no visitor noted."""
    lab = guarded(rate=1)
    lab.dial(client=forged(1))
    before = lab.director.table.total, lab.virtual().total, len(lab.connections())
    assert lab.dial(client=HONEST).refused is Drop.SYN_RATE
    assert (lab.director.table.total, lab.virtual().total, len(lab.connections())) == before


def test_one_network_cannot_use_up_the_rate() -> None:
    """F24: it gets all that others leave, and half of it where they do not; they get theirs."""
    lab = guarded(rate=1000)
    through, flooder = 0, 0
    for tick in range(400):  # four seconds; the flooder sends 5,000 a second
        lab.now += 0.01
        for number in range(50):
            flooder += lab.dial(client="198.51.100.1", port=1024 + tick * 50 + number).refused is None
        for number in range(2):
            through += lab.dial(client=forged(tick * 2 + number)).refused is None
    assert through == 800, "nobody else was refused"
    assert 2500 <= flooder <= 4500


def test_alone_a_network_has_the_whole_rate() -> None:
    """F24: as from behind one address."""
    lab = guarded(rate=1000)
    got = 0
    for tick in range(400):
        lab.now += 0.01
        got += sum(lab.dial(port=1024 + tick * 20 + number).refused is None for number in range(20))
    assert 3990 <= got <= 5010


def test_networks_that_are_remembered_are_bounded() -> None:
    """F24: random sources fill no memory."""
    lab = guarded(rate=50_000)
    for number in range(10_000):
        lab.dial(client=forged(number))
    guard = lab.director.virtual_servers[0].guard
    assert guard is not None
    assert len(guard._use) == 4096


# --- what is told


def test_a_flood_is_told_of_when_it_begins_and_when_it_is_over() -> None:
    """F24: two lines, however many SYNs."""
    lab = guarded(50)
    for number in range(60):
        lab.dial(client=forged(number))
    lab.director.tick(lab.now)
    assert lab.virtual().flooded
    assert told(lab) == ["warning: web: SYN flood, 50 half-open connections; giving up the oldest"]
    for number in range(300):
        lab.now += 0.02
        lab.dial(client=forged(number + 100))
        lab.director.tick(lab.now)
    assert told(lab) == []
    lab.wait(5.1)
    assert not lab.virtual().flooded
    over = "info: web: no SYN flood any more; 310 half-open connections given up, 0 SYNs refused so far"
    assert told(lab) == [over]


def test_a_rate_is_told_of_as_well() -> None:
    lab = guarded(rate=5)
    for number in range(9):
        lab.dial(client=forged(number))
    lab.director.tick(lab.now)
    assert told(lab) == ["warning: web: SYN flood, 5 half-open connections; refusing what is above the rate"]


# --- another configuration


def test_a_reload_changes_the_limits() -> None:
    """F24: what is there counts at once, and goes with the next ones."""
    lab = guarded(50)
    for number in range(50):
        lab.dial(client=forged(number))
    web, tls = lab.config.virtuals
    lab.director.reconfigure(replace(lab.config, virtuals=(replace(web, synguard=10), tls)), lab.now)
    for number in range(10):
        lab.dial(client=forged(100 + number))
    assert half_open(lab) == 10
    lab.director.reconfigure(replace(lab.config, virtuals=(replace(web, synguard=0), tls)), lab.now)
    for number in range(100):
        lab.dial(client=forged(200 + number))
    assert half_open(lab) > 100
    lab.director.reconfigure(replace(lab.config, virtuals=(replace(web, synguard=20), tls)), lab.now)
    lab.wait(31)
    for number in range(100):
        lab.dial(client=forged(300 + number))
    assert half_open(lab) == 20
    audit(lab.director)


