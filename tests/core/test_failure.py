"""Failure without probes: what fails a server, what does not, and the way back (A25, A39, A42)."""

from dataclasses import replace
from typing import Any

import pytest

from nfqlb.core.admission import BY_NAME, ServerState
from nfqlb.core.health import EVIDENCE, Ditch
from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, real, reals, virtual


def site(
    servers: str = "ab", *, half_open: float = 30.0, max_connections: int = 1000, **keys: Any
) -> Scenario:
    """A virtual server whose real servers have these keys."""
    reals = [replace(real(name), **keys) for name in servers]
    return Scenario(virtual("web", servers), reals, half_open=half_open, max_connections=max_connections)


def ditch(lab: Scenario, client: str = "192.0.2.1") -> Call:
    """A client whose third SYN in a row is not answered either."""
    return lab.dial(client=client).syn().syn()


def fail_a(lab: Scenario) -> None:
    """Server a ditches connections until it has failed; b takes them."""
    for number in range(lab.config.real("a").failure_threshold):
        assert lab.real("a").state == "in-service"
        call = lab.dial(client=f"192.0.2.{1 + number}")
        assert call.server == "a"
        assert call.syn().syn().server == "b"
        call.syn_ack().ack()
    assert lab.real("a").state == "failed"


def failing(**keys: Any) -> Scenario:
    """Servers a and b; a has failed just now."""
    lab = site(failure_threshold=2, **keys)
    fail_a(lab)
    return lab


def test_t9_only_failures_in_a_row_count() -> None:
    """T9, R179, R042: threshold 3; two ditched, one answered, three ditched: failed at the sixth."""
    lab = site("a", failure_threshold=3)
    ditch(lab, "192.0.2.1")
    ditch(lab, "192.0.2.2")
    lab.connect(client="192.0.2.3")
    ditch(lab, "192.0.2.4")
    ditch(lab, "192.0.2.5")
    assert lab.real("a").state == "in-service"
    ditch(lab, "192.0.2.6")
    assert lab.real("a").state == "failed"
    assert lab.real("a").ditched_no_answer == 5
    audit(lab.director)


def test_a_threshold_of_zero_never_fails_a_server() -> None:
    """R042, R179: the connections are counted all the same."""
    lab = site("a", failure_threshold=0)
    for number in range(40):
        ditch(lab, f"192.0.2.{1 + number % 9}")
    assert lab.real("a").state == "in-service"
    assert lab.real("a").ditched_no_answer == 40


def test_silence_says_nothing_while_packets_are_lost_on_the_way() -> None:
    """F25, R179: what was opened until then is sent on, and fails nobody; what is opened later does."""
    lab = site("ab", failure_threshold=1)
    calls = [lab.dial(client=f"192.0.2.{number}") for number in range(1, 5)]
    lab.director.watch.lost_at = lab.now
    lab.wait(1)
    servers = [call.server for call in calls]
    assert [call.syn().syn().server for call in calls] == [{"a": "b", "b": "a"}[name] for name in servers]
    assert [lab.real(name).state for name in "ab"] == ["in-service"] * 2
    assert [lab.real(name).ditched_no_answer for name in "ab"] == [0, 0]
    late = lab.dial(client="192.0.2.9")
    failed = late.server
    late.syn().syn()
    assert lab.real(failed).state == "failed"
    audit(lab.director)


def test_a_test_that_is_lost_on_the_way_is_made_again() -> None:
    """F25, R182."""
    lab = failing(retry=10)
    lab.wait(11)
    test = lab.dial(client="192.0.2.9")
    assert lab.real("a").state == "testing"
    lab.director.watch.lost_at = lab.now
    test.syn()
    assert (test.server, lab.real("a").state) == ("b", "failed")
    lab.wait(11)
    assert lab.dial(client="192.0.2.10").server == "a"
    audit(lab.director)


def test_a_refusal_counts_whatever_is_lost() -> None:
    """F25, R040: who answers is there."""
    lab = site("a", failure_threshold=1)
    lab.director.watch.lost_at = lab.now + 100
    lab.dial().server_reset()
    assert lab.real("a").state == "failed"


def test_a_connection_is_ditched_once() -> None:
    """R040, R041, R180 (A39): at the third SYN, whatever comes after it, its time-out too."""
    lab = site("a")
    call = lab.dial()
    for _ in range(2):
        assert lab.real("a").ditched_no_answer == 0
        call.syn()
    assert lab.real("a").ditched_no_answer == 1
    call.syn().syn().syn()
    lab.wait(100)
    assert lab.connections() == []
    assert lab.real("a").ditched_no_answer == 1


@pytest.mark.parametrize("attempts", [0, 3])
@pytest.mark.parametrize("syns", [1, 2])
def test_a_connection_that_times_out_unanswered_is_ditched(attempts: int, syns: int) -> None:
    """R041: the client gave up before its third SYN."""
    lab = site("a", attempts=attempts)
    call = lab.dial()
    for _ in range(1, syns):
        call.syn()
    lab.wait(100)
    assert lab.connections() == []
    assert lab.real("a").ditched_no_answer == 1


def test_an_answered_connection_that_times_out_is_not_ditched() -> None:
    """R041: the server has done its part; the client has not."""
    lab = site("a")
    lab.dial().syn_ack()
    lab.wait(100)
    assert lab.connections() == []
    assert lab.real("a").ditched_no_answer == 0


def test_repeated_syns_to_a_server_that_has_answered_are_no_failure() -> None:
    """R180: its answers are lost on the way to the client; nothing is ditched or reassigned."""
    lab = site(failure_threshold=1)
    call = lab.dial().syn_ack()
    for _ in range(5):
        assert call.syn().server == "a"
    assert lab.real("a").ditched_no_answer == 0


def test_resets_are_counted_apart() -> None:
    """R040 (A42): a refusal fails a server like silence; operators see which it was."""
    lab = site("a", failure_threshold=3)
    assert lab.dial(client="192.0.2.1").refusal().state == "closed"
    ditch(lab, "192.0.2.2")
    assert (lab.real("a").ditched_no_answer, lab.real("a").ditched_reset) == (1, 1)
    lab.dial(client="192.0.2.3").refusal()
    assert lab.real("a").state == "failed"
    assert (lab.real("a").ditched_no_answer, lab.real("a").ditched_reset) == (1, 2)
    audit(lab.director)


def test_a_reset_that_answers_no_syn_counts_nothing() -> None:
    """R040 (RFC 9293 3.10.7.3): it must acknowledge the SYN; and one after the answer ends a connection."""
    lab = site("a", failure_threshold=1)
    call = lab.dial()
    assert call.server_sends(0x14, sequence=0, acknowledges=call.client_next + 2**30).state == "syn-sent"
    assert lab.connect().server_reset().state == "closed"
    assert lab.real("a").ditched_reset == 0
    assert lab.real("a").state == "in-service"


def test_resets_need_not_count() -> None:
    """R040 (A42): `reset_counts = false`."""
    lab = site("a", failure_threshold=1, reset_counts=False)
    for number in range(20):
        assert lab.dial(client=f"192.0.2.{1 + number}").refusal().state == "closed"
    assert lab.real("a").state == "in-service"
    assert lab.real("a").ditched_reset == 0


def test_one_broken_client_does_not_fail_a_server_that_others_use() -> None:
    """R179 (A25): failures must come from two clients while there are two."""
    lab = site("a", failure_threshold=3)
    for _ in range(10):
        ditch(lab, "192.0.2.1")
        lab.dial(client="192.0.2.2")
    assert lab.real("a").state == "in-service"
    ditch(lab, "192.0.2.2")
    assert lab.real("a").state == "failed"


def test_a_client_that_is_alone_fails_a_server() -> None:
    """R179 (A25): whoever was there before the failures began does not count."""
    lab = site("a", failure_threshold=3)
    for number in range(2, 6):
        lab.connect(client=f"192.0.2.{number}")
    lab.wait(1)
    for _ in range(2):
        ditch(lab, "192.0.2.1")
    assert lab.real("a").state == "in-service"
    ditch(lab, "192.0.2.1")
    assert lab.real("a").state == "failed"


def test_a_threshold_of_one_asks_who_else_was_there_while_it_was_tried() -> None:
    """R179 (A25)."""
    lab = site("a", failure_threshold=1)
    broken = lab.dial(client="192.0.2.1")
    lab.connect(client="192.0.2.2")
    broken.syn().syn()
    assert lab.real("a").state == "in-service"
    lab.connect(client="192.0.2.2")
    lab.wait(1)
    ditch(lab, "192.0.2.1")
    assert lab.real("a").state == "failed"


def test_more_clients_may_be_asked_for() -> None:
    """R179 (A25): `failure_clients = 3`."""
    lab = site("a", failure_threshold=3, failure_clients=3)
    for number in (1, 2, 1, 2, 1, 2):
        ditch(lab, f"192.0.2.{number}")
    assert lab.real("a").state == "in-service"
    ditch(lab, "192.0.2.3")
    assert lab.real("a").state == "failed"


def test_a_scan_of_closed_ports_fails_no_server() -> None:
    """R179 (A25, A42): ports that no virtual server has are nobody's; one that is closed is one client's."""
    several = [virtual("web", "a"), virtual("closed", "a", port=81)]
    lab = Scenario(several, [real("a")])
    scanner = "198.51.100.66"
    for number in range(30):
        lab.connect("web", client=f"192.0.2.{1 + number % 5}")
        scan = lab.call("closed", client=scanner)
        scan.key = scan.key[:-2] + (1000 + number).to_bytes(2, "big")
        assert scan.syn().refused is Drop.NO_VIRTUAL
    for _ in range(30):
        lab.dial("closed", client=scanner).refusal()
        lab.dial("closed", client="192.0.2.1").syn()
    assert lab.real("a").state == "in-service"
    assert lab.real("a").ditched_reset == 30


def test_evidence_is_kept_of_every_failure() -> None:
    """R040: client, port, virtual server, when, and why; the newest of them."""
    lab = site("a", failure_threshold=0)
    lab.dial(client="192.0.2.7", port=40_007).refusal()
    late = lab.dial(client="192.0.2.8")
    lab.wait(3)
    late.syn().syn()
    first, second = lab.director.real_servers["a"].health.evidence
    assert (first.client, first.port, first.virtual) == (bytes([192, 0, 2, 7]), 40_007, "web")
    assert (first.opened, first.at, first.why) == (5000.0, 5000.0, Ditch.RESET)
    assert (second.opened, second.at, second.why) == (5000.0, 5003.0, Ditch.NO_ANSWER)
    for _ in range(EVIDENCE):
        ditch(lab)
    assert len(lab.director.real_servers["a"].health.evidence) == EVIDENCE
    assert first not in lab.director.real_servers["a"].health.evidence


# --- once it has failed


def test_a_failed_server_gets_nobody() -> None:
    """R181, R144: every client is answered at its first SYN."""
    lab = failing()
    assert {lab.connect(client=f"192.0.2.{n}").server for n in range(1, 100)} == {"b"}
    assert "connections in a row" in lab.real("a").reason
    assert lab.virtual().state == "in-service"
    audit(lab.director)


def test_with_every_server_failed_a_syn_is_dropped() -> None:
    """R181 (A28): and counted; the virtual server has failed (A26)."""
    lab = site("a", failure_threshold=2)
    ditch(lab, "192.0.2.1")
    ditch(lab, "192.0.2.2")
    assert lab.virtual().state == "failed"
    assert lab.dial(client="192.0.2.3").refused is Drop.NO_SERVER
    assert lab.drops() == {"no-server": 1}


def test_existing_connections_of_a_failed_server_go_on() -> None:
    """R179 (A34)."""
    lab = site(failure_threshold=2)
    old = lab.connect(client="192.0.2.200")
    assert old.server == "a"
    lab.connect(client="192.0.2.201")
    fail_a(lab)
    assert old.says().hears().state == "established"


def test_one_live_connection_tests_a_failed_server_after_retry() -> None:
    """R182: only one client waits; its success brings the server back."""
    lab = failing(retry=60.0)
    lab.wait(59.9)
    assert lab.connect().server == "b"
    lab.wait(0.1)
    test = lab.dial()
    assert test.server == "a"
    assert lab.real("a").state == "testing"
    assert {lab.connect().server for _ in range(10)} == {"b"}
    audit(lab.director)
    test.syn_ack()
    assert lab.real("a").state == "in-service"
    assert lab.real("a").reason == ""
    assert {lab.connect().server for _ in range(10)} == {"a", "b"}
    audit(lab.director)


def test_a_test_connection_moves_at_its_second_syn() -> None:
    """R182: nobody waits longer than that; the failure starts the timer again."""
    lab = failing(retry=60.0)
    lab.wait(60)
    test = lab.dial()
    lab.wait(1)
    assert test.syn().server == "b"
    assert lab.real("a").state == "failed"
    assert test.syn_ack().ack().state == "established"
    assert lab.real("a").ditched_no_answer == 3
    lab.wait(59.9)
    assert lab.connect().server == "b"
    lab.wait(0.1)
    assert lab.dial().server == "a"
    audit(lab.director)


def test_how_long_a_server_has_failed_and_when_it_is_tested_can_be_seen() -> None:
    """R182: a failed test begins the state anew, not the outage."""
    lab = failing(retry=60.0)
    assert (lab.real("b").failed, lab.real("b").test) == (None, None)
    since = lab.real("a").since
    assert lab.real("a").test == 60.0 - since
    lab.wait(59)
    assert (lab.real("a").failed, lab.real("a").test) == (since + 59, 1.0 - since)
    lab.wait(2)
    assert lab.real("a").test == 0.0
    test = lab.dial()
    assert (lab.real("a").state, lab.real("a").test) == ("testing", None)
    lab.wait(1)
    test.syn()
    again = lab.real("a")
    assert (again.reason, again.since, again.failed, again.test) == (
        "the test connection was not answered", 0.0, since + 62, 60.0
    )  # fmt: skip
    lab.wait(60)
    lab.dial().syn_ack()
    assert (lab.real("a").failed, lab.real("a").test) == (None, None)


@pytest.mark.parametrize("attempts", [0, 3, 5])
def test_a_failed_test_is_counted_once(attempts: int) -> None:
    """R040: also where there is no other server, so that its connection stays."""
    lab = site("a", failure_threshold=1, attempts=attempts, retry=60.0)
    lab.dial().refusal()
    lab.wait(60)
    test = lab.dial().syn()
    assert lab.real("a").state == "failed"
    for _ in range(6):
        assert test.syn().server == "a"
    lab.wait(100)
    assert lab.real("a").ditched_no_answer == 1


def test_a_refused_test_starts_the_timer_again() -> None:
    """R182."""
    lab = failing(retry=60.0)
    lab.wait(60)
    lab.dial().refusal()
    assert lab.real("a").state == "failed"
    assert lab.real("a").ditched_reset == 1
    assert lab.connect().server == "b"
    lab.wait(60)
    assert lab.dial().server == "a"


def test_a_refused_test_tells_nothing_where_resets_do_not_count() -> None:
    """R182 (A42): the server is tested again later, and nothing is counted."""
    lab = failing(retry=60.0, reset_counts=False)
    lab.wait(60)
    lab.dial().refusal()
    assert lab.real("a").state == "failed"
    assert lab.real("a").ditched_reset == 0


def test_a_test_that_times_out_has_failed() -> None:
    """R182: its client sent one SYN and no other."""
    lab = failing(retry=60.0)
    lab.wait(60)
    lab.dial()
    lab.wait(40)
    assert lab.real("a").state == "failed"
    assert lab.real("a").ditched_no_answer == 3
    audit(lab.director)


@pytest.mark.parametrize("ending", ["reset", "anew"])
def test_a_test_that_its_client_gives_up_tells_nothing(ending: str) -> None:
    """R182: the server is not left testing for ever; nothing is counted."""
    lab = failing(retry=60.0)
    lab.wait(60)
    test = lab.dial()
    test.reset() if ending == "reset" else test.syn(isn=77_000)
    assert lab.real("a").state == "failed"
    assert lab.real("a").ditched_no_answer == 2
    lab.wait(60)
    assert lab.dial().server == "a"


def test_a_test_that_makes_room_tells_nothing() -> None:
    """R182, R061: its connection is evicted from a full table; another will test the server."""
    lab = failing(retry=60.0, max_connections=3)
    lab.wait(60)
    test = lab.dial()
    assert test.server == "a"
    lab.connect()
    assert test.syn_ack().refused is Drop.SERVER_UNKNOWN
    assert lab.real("a").state == "failed"
    assert lab.real("a").ditched_no_answer == 2


def test_older_connections_neither_pass_nor_fail_a_test() -> None:
    """R182: only the test connection speaks of now."""
    lab = site("ab", failure_threshold=1, failure_clients=1, retry=5.0)
    calls = [lab.dial(client=f"192.0.2.{1 + number}") for number in range(6)]
    lost, answered, failing = calls[0], calls[2], calls[4]
    assert [call.server for call in (lost, answered, failing)] == ["a"] * 3
    lost.syn().syn().syn_ack()
    lab.wait(5)
    test = lab.dial()
    assert (test.server, lab.real("a").state) == ("a", "testing")
    answered.syn_ack()
    assert lab.real("a").state == "testing"
    failing.syn().syn()
    assert lab.real("a").state == "testing"
    assert lab.real("a").ditched_no_answer == 2
    test.syn_ack()
    assert lab.real("a").state == "in-service"
    audit(lab.director)


def test_a_client_bound_elsewhere_tests_nothing() -> None:
    """R132, R182: a sticky entry that holds comes first; a client of the failed server tests it."""
    reals = [replace(real(name), failure_threshold=2, retry=60.0) for name in "ab"]
    lab = Scenario(virtual("web", "ab", sticky=600), reals)
    fail_a(lab)
    lab.wait(60)
    assert lab.dial(client="192.0.2.1").server == "b"
    test = lab.dial(client="192.0.2.99")
    assert test.server == "a"
    assert test.syn().server == "b"
    assert lab.dial(client="192.0.2.99").server == "b"


def test_a_client_that_has_waited_tests_nothing_while_there_is_another_server() -> None:
    """R182: a reassigned connection goes where an answer is likely."""
    lab = site("abc", failure_threshold=1, failure_clients=1, retry=10.0)
    lab.dial().refusal()
    waiting = lab.dial()
    assert waiting.server == "b"
    lab.wait(10)
    assert waiting.syn().syn().server == "c"


def test_where_all_have_failed_whoever_is_due_is_tested() -> None:
    """R182: also with a client that has waited already."""
    lab = site("ab", failure_threshold=1, failure_clients=1, retry=10.0)
    lab.dial().refusal()
    waiting = lab.dial()
    lab.wait(10)
    assert waiting.syn().syn().server == "a"
    assert lab.real("a").state == "testing"
    assert lab.real("b").state == "failed"
    assert waiting.syn_ack().ack().state == "established"
    assert lab.real("a").state == "in-service"
    audit(lab.director)


def test_a_server_with_weight_zero_is_not_tested() -> None:
    """R182 (A14): the operator wants no new connection there."""
    lab = failing(retry=60.0)
    lab.director.real_servers["a"].weight = 0
    lab.wait(60)
    assert {lab.connect().server for _ in range(5)} == {"b"}


@pytest.mark.parametrize(
    ("setting", "weight"), [("in-service", 0.0), ("sticky-only", 1.0), ("sticky-only", 0.0)]
)
def test_a_drained_server_is_tested_by_who_is_bound_to_it(setting: str, weight: float) -> None:
    """R182 (A7, A14): nobody else comes; weight 0 drains as sticky-only does."""
    servers = [replace(each, failure_threshold=1, failure_clients=1, retry=10.0) for each in reals("ab")]
    lab = Scenario(virtual("web", "ab", sticky=600), servers)
    assert lab.connect().server == "a"
    lab.director.operation.set_real("a", setting=BY_NAME[setting], weight=weight, now=lab.now)
    lab.dial().refusal()
    lab.wait(10)
    assert lab.connect(client="192.0.2.99").server == "b"
    assert lab.real("a").state == "failed"
    assert lab.dial().syn_ack().server == "a"
    assert lab.real("a").state == ("sticky-only" if setting == "sticky-only" else "in-service")
    assert lab.real("a").reason != ""
    audit(lab.director)


def test_many_that_cannot_be_tested_do_not_hold_up_the_others() -> None:
    """R182: nor does a SYN look at all of them; a few SYNs do."""
    names = [f"s{number}" for number in range(100)]
    servers = [replace(real(name), failure_threshold=1, failure_clients=1, retry=10.0) for name in names]
    lab = Scenario(virtual("web", names), servers)
    for _ in names[:99]:
        lab.dial().refusal()
    for name in names[:90]:
        lab.director.operation.set_real(name, setting=ServerState.MAINTENANCE, now=lab.now)
    lab.wait(10)
    served = [lab.connect().server for _ in range(40)]
    assert set(names[90:]) <= set(served)
    assert {lab.real(name).state for name in names[90:]} == {"in-service"}
    for name in names[:90]:
        lab.director.operation.set_real(name, setting=ServerState.IN_SERVICE, now=lab.now)
    assert set(lab.loads()) == {lab.connect().server for _ in range(200)}
    audit(lab.director)


def test_a_server_is_tested_through_the_virtual_servers_it_stands_behind() -> None:
    """R010, R182."""
    reals = [replace(real(name), failure_threshold=1, failure_clients=1, retry=10.0) for name in "ab"]
    lab = Scenario([virtual("one", "a"), virtual("two", "b", address="203.0.113.2")], reals)
    lab.dial("one").refusal()
    lab.wait(10)
    assert lab.dial("two").syn_ack().server == "b"
    assert lab.dial("one").server == "a"


@pytest.mark.parametrize(
    "setting", [ServerState.MAINTENANCE, ServerState.OUT_OF_SERVICE, ServerState.STICKY_ONLY]
)
def test_a_server_that_the_operator_took_out_is_not_tested(setting: ServerState) -> None:
    """R182 (A7): nor does it come back by itself. Drained, it is still shown as failed."""
    lab = failing(retry=60.0)
    server = lab.director.real_servers["a"]
    server.setting = setting
    server.changed(lab.now)
    lab.wait(60)
    assert {lab.connect().server for _ in range(5)} == {"b"}
    drained = setting is ServerState.STICKY_ONLY
    assert lab.real("a").state == ("failed" if drained else setting.shown)
    server.setting = ServerState.IN_SERVICE
    server.changed(lab.now)
    assert lab.real("a").state == "failed"
    assert lab.dial().server == "a"


@pytest.mark.parametrize("tested", [False, True])
def test_a_server_may_be_declared_well(tested: bool) -> None:
    """R179: its count begins anew, and a test that is under way no longer decides anything."""
    lab = failing(retry=60.0)
    test = None
    if tested:
        lab.wait(60)
        test = lab.dial()
        assert test.server == "a"
    lab.director.watch.cleared(lab.director.real_servers["a"], lab.now)
    assert lab.real("a").state == "in-service"
    assert {lab.connect().server for _ in range(4)} == {"a", "b"}
    if test is not None:
        assert test.syn().server == "a", "a connection like any other: it moves with its third SYN"
        assert test.syn().server == "b"
        assert lab.real("a").state == "in-service"
    audit(lab.director)


@pytest.mark.parametrize(("threshold", "many"), [(1, 3), (4, 4), (0, 8)])
def test_a_server_that_takes_nobody_and_has_not_failed_can_be_seen(threshold: int, many: int) -> None:
    """R040, R179 (A25): one client is refused again and again while another is about; an answer ends it."""
    lab = site("a", failure_threshold=threshold)
    for number in range(1, many + 2):
        lab.connect(client="192.0.2.2").close() if number == 1 else None
        lab.dial(client="192.0.2.2")
        lab.dial(client="192.0.2.1").refusal()
        shown = lab.real("a")
        assert (shown.state, shown.run, shown.whys) == ("in-service", number, ("reset",))
        assert shown.suspect is (number >= many)
    ditch(lab, "192.0.2.1")
    assert lab.real("a").whys == ("no-answer", "reset")
    lab.connect(client="192.0.2.1")
    shown = lab.real("a")
    assert (shown.run, shown.whys, shown.suspect) == (0, (), False)


def test_a_failed_server_is_no_mere_suspect() -> None:
    """R181: the run is over with the failure."""
    lab = failing()
    assert (lab.real("a").run, lab.real("a").suspect) == (0, False)
