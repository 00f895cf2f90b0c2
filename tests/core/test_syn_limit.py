"""The limit of unanswered SYNs: bad machines, and the best of them (fig 7B)."""

from dataclasses import replace

import pytest

from nfqlb.core import spec
from nfqlb.core.schedulers import SCHEDULERS
from nfqlb.core.spec import Real, Strict
from tests.core.preset import name_of, preset
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, real, reals, virtual

EVERY = sorted(SCHEDULERS)


def limited(name: str, limit: int) -> Real:
    """A real server that never fails and never hands on, so that nothing but its limit counts."""
    return replace(real(name), syn_limit=limit, attempts=0, failure_threshold=0)


def least(servers: str, limit: int = 5, strict: bool = False, sticky: float = 0) -> Scenario:
    """Least connections, each server with that limit."""
    return Scenario(
        virtual("web", servers, scheduler="least-connections", sticky=sticky),
        [limited(name, limit) for name in servers],
        strict=Strict(syn_limit=strict),
    )


def dialled(lab: Scenario, times: int) -> list[Call]:
    """SYNs of so many connections; nobody answers them."""
    return [lab.dial() for _ in range(times)]


def servers_of(calls: list[Call]) -> str:
    """Who got them, in order."""
    return "".join(call.server for call in calls)


@pytest.mark.parametrize("strict", [False, True])
def test_t6(strict: bool) -> None:
    """T6, R076, R146, R147 (A1): unanswered 4, 5, 6: the only one below 5, or, strictly, not above."""
    loads, unanswered = {"a": 90, "b": 50, "c": 10}, {"a": 4, "b": 5, "c": 6}
    server = preset("least-connections", loads, unanswered=unanswered, strict=strict)
    assert name_of(server.scheduler.choose(b"", -1)) == ("b" if strict else "a")


@pytest.mark.parametrize("strict", [False, True])
def test_t7(strict: bool) -> None:
    """T7, R147, R150: unanswered 5, 7, 9 and indicia 3, 2, 1: the best bad machine."""
    loads, unanswered = {"a": 3, "b": 2, "c": 1}, {"a": 5, "b": 7, "c": 9}
    server = preset("least-connections", loads, unanswered=unanswered, strict=strict)
    assert name_of(server.scheduler.choose(b"", -1)) == ("a" if strict else "c")
    if strict:
        server = preset("least-connections", loads, unanswered={"a": 6, "b": 7, "c": 9}, strict=strict)
        assert name_of(server.scheduler.choose(b"", -1)) == "c"


def test_equals_among_the_bad_take_turns() -> None:
    """R147, R150 (A29): ties are broken in the order after the last used, as among the good."""
    server = preset("round-robin", dict.fromkeys("abc", 0), unanswered=dict.fromkeys("abc", 5))
    assert [name_of(server.scheduler.choose(b"", last)) for last in (-1, 0, 1, 2)] == ["a", "b", "c", "a"]


def test_a_narrowed_choice_prefers_the_good_too() -> None:
    """R147, R150 (A5): where links are refused for one connection."""
    server = preset("least-connections", {"a": 0, "b": 1, "c": 9}, unanswered={"b": 5})
    chosen = server.scheduler.choose(b"", -1, lambda link: name_of(link) != "a")
    assert name_of(chosen) == "c"
    assert name_of(server.scheduler.choose(b"", -1, lambda link: name_of(link) == "b")) == "b"


@pytest.mark.parametrize("scheduler", EVERY)
def test_the_fifth_unanswered_syn_is_the_last(scheduler: str) -> None:
    """R076, R146 (A1): a server with five is passed over, whatever the scheme, while another has fewer."""
    lab = Scenario(virtual("web", "ab", scheduler=scheduler), [limited("a", 5), limited("b", 5)])
    calls = [lab.dial(client=f"198.51.100.{number}") for number in range(1, 11)]
    assert sorted(servers_of(calls)) == list("aaaaabbbbb")
    assert [lab.real(name).unanswered for name in "ab"] == [5, 5]
    audit(lab.director)
    assert lab.dial(client="198.51.100.99").refused is None, "the best of the bad takes it"
    audit(lab.director)


def test_a_server_that_does_not_answer_gets_no_more_than_its_limit() -> None:
    """R076, R146, R147: though it has the fewest connections by far."""
    lab = least("ab")
    for _ in range(10):
        lab.connect().close()
    silent = []
    for _ in range(40):
        call = lab.dial()
        if call.server == "a":
            silent.append(call)
        else:
            call.syn_ack().ack()
    assert len(silent) == 5
    assert lab.loads() == {"a": 5, "b": 35}
    audit(lab.director)


def test_a_repeated_syn_is_no_second_one() -> None:
    """R076, R146 (A1): connections are counted, not packets."""
    lab = least("ab", limit=2)
    call = lab.dial()
    for _ in range(5):
        assert call.syn().server == "a"
    assert lab.real("a").unanswered == 1
    lab.connect()
    assert lab.dial().server == "a", "one is below the limit of two"


@pytest.mark.parametrize("answer", ["syn-ack", "refusal", "reset", "time-out"])
def test_a_server_is_good_again_when_fewer_are_unanswered(answer: str) -> None:
    """R076, R146, R183 (A1): by an answer, a reset by either side, or when the half-open one is given up."""
    lab = Scenario(
        virtual("web", "ab"), [replace(limited("a", 1), reset_counts=False), limited("b", 0)], half_open=20
    )
    silent = lab.dial()
    assert servers_of([lab.connect() for _ in range(3)]) == "bbb"
    if answer == "syn-ack":
        silent.syn_ack()
    elif answer == "refusal":
        silent.refusal()
    elif answer == "reset":
        silent.reset()
    else:
        lab.wait(21)
    assert lab.real("a").unanswered == 0
    assert "a" in servers_of([lab.dial(), lab.dial()])
    audit(lab.director)


@pytest.mark.parametrize(
    ("limit", "strict", "taken"), [(1, False, 1), (1, True, 2), (3, False, 3), (3, True, 4)]
)
def test_the_limit_can_be_set(limit: int, strict: bool, taken: int) -> None:
    """R076, R146 (A1): who has as many as the limit is bad; read literally (756), who has more."""
    lab = Scenario(
        virtual("web", "ab"), [limited("a", limit), limited("b", 0)], strict=Strict(syn_limit=strict)
    )
    assert servers_of(dialled(lab, 20)).count("a") == taken


@pytest.mark.parametrize("strict", [False, True])
def test_the_limit_can_be_removed(strict: bool) -> None:
    """R076 (A1): 0 is none."""
    lab = least("ab", limit=0, strict=strict)
    assert servers_of(dialled(lab, 40)) == "ab" * 20
    assert lab.real("a").unanswered == 20


def test_servers_may_differ() -> None:
    """R076: each has its own limit."""
    lab = Scenario(virtual("web", "abc"), [limited("a", 1), limited("b", 2), limited("c", 0)])
    assert servers_of(dialled(lab, 10)) == "abcbcccccc"


def test_sticky_clients_still_come() -> None:
    """R132, R146: the limit belongs to the search; an entry is not searched for."""
    lab = least("ab", limit=1, sticky=60)
    assert lab.dial().server == "a"
    assert [lab.dial().server for _ in range(4)] == ["a"] * 4
    assert lab.dial(client="198.51.100.1").server == "b"
    audit(lab.director)


def test_all_of_a_server_s_syns_count() -> None:
    """R076, A35: those through another virtual server too."""
    lab = Scenario([virtual("web", "ab"), virtual("tls", "ab", port=443)], [limited("a", 2), limited("b", 0)])
    assert lab.dial("web").server == lab.dial("tls").server == "a"
    assert servers_of([lab.dial("web"), lab.dial("web"), lab.dial("tls")]) == "bbb"


def test_the_default_limit() -> None:
    """R076 (A1): five."""
    assert spec.Real("a", reals("a")[0].address).syn_limit == 5


def test_limits_and_availability_are_two_things() -> None:
    """R144, R150: a bad machine that takes no new connections is none at all."""
    server = preset("least-connections", {"a": 1, "b": 0}, {"a": 1, "b": 0}, unanswered={"a": 9, "b": 9})
    assert name_of(server.scheduler.choose(b"", -1)) == "a"
