"""Counters go on where a worker's successor begins."""

from hypothesis import given
from hypothesis import strategies as st

from nfqlb.runtime.carry import Carry, counters
from nfqlb.runtime.protocol import JSONObject


def account(total: int, drops: dict[str, int] | None = None, ditched: int = 0) -> JSONObject:
    """What a worker counts."""
    return {
        "now": 12.5,
        "connections": {"now": 2, "total": total, "limit": 100},
        "drops": dict(drops or {}),
        "virtuals": [{"name": "web", "servers": [{"real": "a", "port": 80, "total": total}]}],
        "reals": [{"name": "a", "total": total, "ditched": {"no_answer": ditched, "reset": 0}}],
    }


def begun(document: JSONObject) -> dict[tuple[str | int, ...], float]:
    return dict(counters(document))


def test_what_a_first_worker_counts_is_left_alone() -> None:
    carry, document = Carry(), account(7)
    carry.succeed(begun(account(0)))
    carry.learn(document)
    assert carry.add(document) is document


def test_a_successor_s_counters_go_on() -> None:
    carry = Carry()
    carry.learn(account(7, {"no-server": 3}))
    carry.succeed({})
    assert carry.add(account(2, {"no-server": 1})) == account(9, {"no-server": 4})


def test_a_successor_knows_part_of_it_from_the_journal() -> None:
    """Two connections of seven were taken over, and count again; how often a server failed is kept."""
    carry = Carry()
    carry.learn(account(7, ditched=5))
    carry.succeed(begun(account(2, ditched=5)))
    assert carry.add(account(2, ditched=5)) == account(7, ditched=5)
    assert carry.add(account(3, ditched=6)) == account(8, ditched=6)


def test_what_servers_could_not_make_before_this_gateway_does_not_count() -> None:
    """The first worker knows it from the journal, and so does every other; connections taken over count."""
    carry = Carry()
    carry.succeed(begun(account(2, ditched=5)))
    assert carry.add(account(2, ditched=5)) == account(2)
    carry.learn(account(4, ditched=6))
    assert carry.add(account(4, ditched=6)) == account(4, ditched=1)
    carry.succeed(begun(account(1, ditched=7)))  # one more than was told before the first one died
    assert carry.add(account(1, ditched=7)) == account(4, ditched=2)
    assert carry.add(account(1, ditched=1)) == account(4, ditched=1)  # another server, of the same name


def test_a_server_counts_whatever_its_name_is() -> None:
    document: JSONObject = {"reals": [{"name": "ditched", "total": 7, "ditched": {"reset": 2}}]}
    carry = Carry()
    carry.succeed(begun(document))
    assert carry.add(document) == {"reals": [{"name": "ditched", "total": 7, "ditched": {"reset": 0}}]}


def test_another_server_of_the_same_name_begins_with_its_own() -> None:
    """And what it has not counted at all is never less than nothing."""
    carry = Carry()
    carry.succeed(begun({"reals": [{"name": "a", "ditched": {"no_answer": 5, "reset": 4}}]}))
    fresh: JSONObject = {"reals": [{"name": "a", "ditched": {"no_answer": 3}}]}
    assert carry.add(fresh) == {"reals": [{"name": "a", "ditched": {"no_answer": 3, "reset": 0}}]}


def test_a_reason_that_has_not_occurred_again_is_still_there() -> None:
    carry = Carry()
    carry.learn(account(7, {"no-server": 3, "malformed": 1}))
    carry.succeed({})
    assert carry.add(account(0, {"malformed": 1})) == account(7, {"no-server": 3, "malformed": 2})
    carry.learn(account(0, {"malformed": 1}))
    carry.succeed({})
    assert carry.add(account(0)) == account(7, {"no-server": 3, "malformed": 2})


def test_many_successors() -> None:
    carry, whole = Carry(), 0
    for counted in (5, 0, 8, 1):
        carry.learn(account(counted))
        carry.succeed({})
        whole += counted
    assert carry.add(account(0)) == account(whole)


def test_a_worker_that_died_before_its_first_account_changes_nothing() -> None:
    carry = Carry()
    carry.learn(account(7))
    carry.succeed(begun(account(2)))
    carry.succeed(begun(account(1)))
    assert carry.add(account(1)) == account(7)


def test_servers_are_told_apart_by_name_and_port_not_by_place() -> None:
    carry = Carry()
    carry.learn({"servers": [{"real": "a", "port": 1, "total": 5}, {"real": "a", "port": 2, "total": 7}]})
    carry.succeed({})
    assert carry.add({"servers": [{"real": "a", "port": 2, "total": 0}]}) == {
        "servers": [{"real": "a", "port": 2, "total": 7}]
    }


def test_what_is_not_counted_is_not_added_up() -> None:
    carry = Carry()
    carry.learn(account(7))
    carry.succeed({})
    connections = carry.add(account(0))["connections"]
    assert connections == {"now": 2, "total": 7, "limit": 100}


def shown(document: JSONObject) -> dict[tuple[str | int, ...], float]:
    return dict(counters(document))


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["malformed", "no-server"])), max_size=5),
            st.integers(0, 5),
            st.booleans(),
        ),
        max_size=6,
    )
)
def test_no_counter_ever_falls(lives: list[tuple[list[tuple[int, str]], int, bool]]) -> None:
    """Workers that count, account now and then, take some of it over from the journal, and die."""
    carry = Carry()
    known: dict[tuple[str | int, ...], float] = {}
    for steps, restored, dies_early in lives:
        total, drops, ditched = restored, dict[str, int](), restored
        carry.succeed(begun(account(total, drops, ditched)))
        for more, reason in [] if dies_early else steps:
            total += more
            ditched += more
            drops[reason] = drops.get(reason, 0) + more
            document = account(total, drops, ditched)
            carry.learn(document)
            now = shown(carry.add(document))
            assert all(now.get(path, 0) >= value for path, value in known.items())
            known = now
