"""From when and until when a connection counts for its server: `count_on` and `close_on`."""

import pytest

from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Scenario, real, reals, virtual


def test_counted_with_the_syn() -> None:
    """R125 (A17, A28): what is under way keeps a server from getting more than its maximum."""
    lab = Scenario(virtual("web", "a"), [real("a", max_connections=2)], count_on="syn")
    lab.dial()
    lab.dial()
    assert lab.dial().refused is Drop.NO_SERVER
    assert (lab.loads(), lab.real("a").unanswered, lab.real("a").state) == ({"a": 2}, 2, "max-capacity")
    audit(lab.director)


def test_counted_with_the_servers_answer() -> None:
    """R126 (A17, A28): SYNs that nobody answers fill no server; unanswered ones are counted as such."""
    lab = Scenario(virtual("web", "a"), [real("a", max_connections=2)], count_on="syn-ack")
    flood = [lab.dial() for _ in range(300)]
    assert (lab.loads(), lab.real("a").unanswered, lab.real("a").state) == ({"a": 0}, 300, "in-service")
    audit(lab.director)
    call = lab.connect()
    assert (call.server, lab.loads()) == ("a", {"a": 1})
    flood[0].syn_ack()
    assert (lab.loads(), lab.real("a").state) == ({"a": 2}, "max-capacity")
    assert lab.dial().refused is Drop.NO_SERVER
    call.close()
    assert (lab.loads(), lab.real("a").state) == ({"a": 1}, "in-service")
    audit(lab.director)


def test_an_answer_comes_once() -> None:
    """R126 (A17): however often it is repeated, and whatever the connection comes to."""
    lab = Scenario(virtual("web", "a"), reals("a"), count_on="syn-ack")
    call = lab.dial().syn_ack().syn_ack().ack()
    call.server_sends(0x12, sequence=700_000)
    assert lab.loads() == {"a": 1}
    lab.dial().refusal()
    lab.dial().reset()
    assert lab.loads() == {"a": 1}
    call.close()
    assert lab.loads() == {"a": 0}
    audit(lab.director)


def test_a_reassigned_connection_counts_where_it_is_answered() -> None:
    """R126 (A39): neither server counts it before."""
    lab = Scenario(virtual("web", "ab"), reals("ab"), count_on="syn-ack")
    call = lab.dial().syn().syn()
    assert (call.server, lab.loads()) == ("b", {"a": 0, "b": 0})
    audit(lab.director)
    call.syn_ack().ack()
    assert lab.loads() == {"a": 0, "b": 1}
    audit(lab.director)


def test_least_connections_goes_by_what_counts() -> None:
    """R095, R126: a server that answers slowly attracts no fewer for it, until it has answered."""
    lab = Scenario(virtual("web", "ab", scheduler="least-connections"), reals("ab"), count_on="syn-ack")
    first = lab.connect()
    assert [lab.dial().server for _ in range(3)] == ["b", "b", "b"]
    first.close()
    assert lab.loads() == {"a": 0, "b": 0}
    audit(lab.director)


@pytest.mark.parametrize(
    ("close_on", "half_closed", "closed"), [("fin", 0, 0), ("both", 1, 0), ("time-out", 1, 1)]
)
@pytest.mark.parametrize("side", ["client", "server"])
def test_until_when_it_counts(side: str, close_on: str, half_closed: int, closed: int) -> None:
    """R127, R128, R129 (A17): to the first FIN, to the second, or until it is forgotten."""
    lab = Scenario(virtual("web", "a"), reals("a"), closing=10, close_on=close_on)
    call = lab.connect()
    first, second = (call.fin, call.server_fin) if side == "client" else (call.server_fin, call.fin)
    first()
    assert lab.loads() == {"a": half_closed}
    first()
    audit(lab.director)
    second()
    assert lab.loads() == {"a": closed}
    audit(lab.director)
    lab.wait(11)
    assert lab.loads() == {"a": 0}
    assert lab.connections() == []
    audit(lab.director)


@pytest.mark.parametrize("count_on", ["syn", "syn-ack"])
@pytest.mark.parametrize("close_on", ["fin", "both", "time-out"])
def test_a_reset_ends_it_whatever_was_chosen(count_on: str, close_on: str) -> None:
    """R127-R129 (A17): at once, once, in every state."""
    lab = Scenario(virtual("web", "a"), reals("a"), count_on=count_on, close_on=close_on)
    makers = ("", "syn_ack", "syn_ack ack", "syn_ack ack fin", "syn_ack ack server_fin", "syn_ack ack close")
    for maker in makers:
        call = lab.dial()
        for step in maker.split():
            getattr(call, step)()
        audit(lab.director)
        call.reset().server_reset()
        assert lab.loads() == {"a": 0}, maker
        audit(lab.director)


def test_a_server_full_of_closed_connections() -> None:
    """R045, R129 (A28): with "time-out" a port is not given out again before the old one is forgotten."""
    lab = Scenario(virtual("web", "a"), [real("a", max_connections=1)], closing=10, close_on="time-out")
    lab.connect().close()
    assert lab.dial().refused is Drop.NO_SERVER
    lab.wait(11)
    assert lab.dial().server == "a"
    audit(lab.director)


def test_a_port_used_again_does_not_wait() -> None:
    """R129 (A18): its ended connection makes way."""
    lab = Scenario(virtual("web", "a"), [real("a", max_connections=1)], close_on="time-out")
    call = lab.connect().close()
    assert call.syn(isn=9_000_000).server == "a"
    assert lab.loads() == {"a": 1}
    audit(lab.director)
