"""Backups: of a real server, in chains, and of a virtual server (A27, US 6,104,717)."""

from dataclasses import replace
from typing import Any

from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Scenario, real, virtual


def server(name: str, **keys: Any) -> Any:
    """A real server that fails at its first refusal and is tested after ten seconds."""
    return replace(real(name), failure_threshold=1, failure_clients=1, retry=10.0, **keys)


def fail(lab: Scenario, name: str, to: str = "") -> None:
    """The server refuses whatever comes, until it has failed."""
    for _ in range(20):
        call = lab.dial(to, client="192.0.2.77")
        if call.server == name:
            call.refusal()
            break
        call.syn_ack().ack().close()
    assert lab.real(name).state == "failed"


def chain() -> Scenario:
    """One server, its backup, and that one's."""
    reals = [server("a", backup="b"), server("b", backup="c"), server("c")]
    return Scenario(virtual("web", "a"), reals)


def test_a_backup_gets_nobody_while_its_server_is_well() -> None:
    """R047, R185."""
    lab = chain()
    assert {lab.connect().server for _ in range(10)} == {"a"}
    assert [each.real for each in lab.virtual().servers] == ["a", "b", "c"]


def test_a_backup_takes_the_load_of_a_failed_server() -> None:
    """R047, R185: and its own backup, where it fails too."""
    lab = chain()
    fail(lab, "a")
    assert {lab.connect().server for _ in range(5)} == {"b"}
    assert lab.virtual().state == "in-service"
    audit(lab.director)
    fail(lab, "b")
    assert {lab.connect().server for _ in range(5)} == {"c"}
    audit(lab.director)
    fail(lab, "c")
    assert lab.dial().refused is Drop.NO_SERVER
    assert lab.virtual().state == "failed"


def test_a_connection_is_reassigned_to_the_backup() -> None:
    """R047, R180: the SYN that fails its server goes to the backup at once."""
    lab = chain()
    call = lab.dial().syn()
    assert call.server == "a"
    assert call.syn().server == "b"
    assert call.syn_ack().ack().state == "established"
    audit(lab.director)


def test_it_stands_in_until_its_server_has_passed_the_test() -> None:
    """R182, R185."""
    lab = chain()
    fail(lab, "a")
    kept = lab.connect()
    lab.wait(10)
    test = lab.dial()
    assert test.server == "a"
    assert lab.connect().server == "b"
    test.syn_ack().ack()
    assert {lab.connect().server for _ in range(5)} == {"a"}
    assert kept.says().hears().server == "b"
    audit(lab.director)


def test_a_full_server_has_no_backup() -> None:
    """R047, R184 (A27): it is not down; its clients are refused."""
    lab = Scenario(virtual("web", "a"), [server("a", backup="b", max_connections=2), server("b")])
    assert [lab.connect().server for _ in range(2)] == ["a", "a"]
    assert lab.dial().refused is Drop.NO_SERVER


def test_a_full_server_has_one_where_the_operator_says_so() -> None:
    """R047, R184, R185 (A27): while it is full, and where it has failed."""
    first = server("a", backup="b", backup_when="full", max_connections=2)
    lab = Scenario(virtual("web", "a"), [first, server("b", backup="c"), server("c")])
    calls = [lab.connect() for _ in range(4)]
    assert [call.server for call in calls] == ["a", "a", "b", "b"]
    told = {each.real: each.reason for each in lab.decisions()[0].candidates}
    assert told == {"b": "chosen", "a": "max-capacity", "c": "standby"}
    audit(lab.director)
    calls[0].close()
    assert lab.connect().server == "a"
    assert {each.real: each.reason for each in lab.decisions()[0].candidates}["b"] == "standby"
    calls[1].close()
    fail(lab, "a")
    assert lab.connect().server == "b"
    audit(lab.director)


def test_a_failed_backup_is_not_tested_while_nobody_needs_it() -> None:
    """R182: a client would wait for nothing."""
    lab = chain()
    fail(lab, "a")
    fail(lab, "b")
    lab.wait(10)
    first = lab.dial()
    assert first.server == "a"
    first.syn_ack().ack()
    assert {lab.connect().server for _ in range(5)} == {"a"}
    assert lab.real("b").state == "failed"


def test_the_backup_serves_on_the_port_of_the_server_it_stands_for() -> None:
    """R072, R185."""
    reals = [server("a", backup="b"), server("b")]
    lab = Scenario(virtual("web", ["a:8080"]), reals)
    fail(lab, "a")
    assert lab.connect().connection.link.port == 8080
    audit(lab.director)


def test_a_server_beside_it_may_be_the_backup() -> None:
    """R185: it takes the failed one's turns beside its own."""
    reals = [server("a", backup="b"), server("b"), server("c")]
    lab = Scenario(virtual("web", "abc"), reals)
    fail(lab, "a")
    served = [lab.connect().server for _ in range(9)]
    assert (served.count("b"), served.count("c")) == (6, 3)
    audit(lab.director)


def test_clients_bound_to_a_backup_go_home_with_its_server() -> None:
    """R132, R185 (A7): while it stands in they stay with it."""
    lab = Scenario(virtual("web", "a", sticky=600), [server("a", backup="b"), server("b")])
    fail(lab, "a")
    assert [lab.connect(client="192.0.2.5").server for _ in range(3)] == ["b"] * 3
    lab.wait(10)
    assert lab.connect(client="192.0.2.6").server == "a"
    assert lab.connect(client="192.0.2.5").server == "a"


# --- of a virtual server


def spare(**keys: Any) -> Scenario:
    """Two servers, and one for when neither can be chosen."""
    reals = [server("a", **keys), server("b", **keys), server("z")]
    return Scenario(replace(virtual("web", ["a:8080", "b:8080"]), backup="z"), reals)


def test_a_virtual_servers_backup_gets_nobody_while_there_is_another() -> None:
    """R027, R185."""
    lab = spare()
    fail(lab, "a")
    assert {lab.connect().server for _ in range(6)} == {"b"}


def test_a_virtual_servers_backup_serves_where_all_have_failed() -> None:
    """R027, R185: on the virtual server's own port; counted like any server."""
    lab = spare()
    fail(lab, "a")
    fail(lab, "b")
    calls = [lab.connect() for _ in range(5)]
    assert {call.server for call in calls} == {"z"}
    assert calls[0].connection.link.port == 80
    assert lab.loads()["z"] == lab.virtual().connections == 5
    assert [each.connections for each in lab.virtual().servers] == [0, 0, 5]
    assert [each.backup for each in lab.virtual().servers] == [False, False, True]
    assert lab.real("z").virtuals == ("web",)
    assert lab.virtual().state == "in-service"
    assert lab.virtual().actual == "round-robin"
    audit(lab.director)
    for call in calls:
        call.close()
    assert lab.loads()["z"] == 0
    audit(lab.director)


def test_a_virtual_servers_backup_serves_where_all_are_full() -> None:
    """R027, R184 (A28)."""
    lab = spare(max_connections=1)
    assert [lab.connect().server for _ in range(4)] == ["a", "b", "z", "z"]
    audit(lab.director)


def test_a_failed_backup_of_a_virtual_server_returns() -> None:
    """R027, R182: it is tested where it is needed, and only there."""
    lab = spare()
    for name in "abz":
        fail(lab, name)
    assert lab.dial().refused is Drop.NO_SERVER
    assert lab.virtual().state == "failed"
    lab.wait(10)
    tests = [lab.dial(), lab.dial(), lab.dial()]
    assert [test.server for test in tests] == ["a", "b", "z"]
    assert lab.dial().refused is Drop.NO_SERVER
    for test in tests:
        test.syn_ack()
    assert [lab.real(name).state for name in "abz"] == ["in-service"] * 3
    assert {lab.connect().server for _ in range(4)} == {"a", "b"}
    audit(lab.director)


def test_connections_of_backups_are_taken_over() -> None:
    """R187, R047, R027: a successor knows the backups' connections too."""
    for lab in (chain(), spare()):
        for name in lab.virtual().servers[:-1]:
            fail(lab, name.real)
        call = lab.connect()
        link = call.connection.link
        successor = Scenario(lab.config.virtuals, lab.config.reals)
        place = link.real.address + link.inbound.port
        assert successor.director.restore(call.key, place, 3, 0, opened=lab.now, now=lab.now)
        successor.director.restored(lab.now)
        assert successor.loads() == {**dict.fromkeys(lab.loads(), 0), call.server: 1}
        audit(successor.director)
