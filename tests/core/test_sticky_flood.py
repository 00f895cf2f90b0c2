"""A flood of SYNs in the names of others, and the sticky table: who is known keeps his entry."""

import pytest

from tests.core.recount import audit
from tests.core.scenario import Scenario, reals, virtual


def shop(max_sticky: int = 100, **more: object) -> Scenario:
    web = virtual("web", "abc", sticky=600, scheduler="round-robin", **more)  # type: ignore[arg-type]
    return Scenario(web, reals("abc"), max_sticky=max_sticky)


def flood(lab: Scenario, many: int) -> None:
    for number in range(many):
        lab.dial(client=f"198.51.{number >> 8}.{number & 255}")


def known(lab: Scenario) -> dict[str, str]:
    return {str(each.client): each.real for each in lab.director.sticky(lab.now)}


def test_a_flood_pushes_out_nobody_who_was_connected() -> None:
    """R065, R066, F24, F25: of 100 entries 40 are clients'; ten times as many SYNs leave those 40 alone."""
    lab = shop()
    served = {(client := f"192.0.2.{number}"): lab.connect(client=client).server for number in range(40)}
    flood(lab, 1000)
    assert served.items() <= known(lab).items()
    assert len(known(lab)) == 100
    assert {client: lab.dial(client=client).server for client in served} == served
    assert lab.director.fpas.evicted == 40 + 1000 - 100
    audit(lab.director)


def test_a_table_full_of_clients_gives_up_one_of_them_and_no_more() -> None:
    """R066, F25: that one makes room for whoever is new, and the flood is left with it."""
    lab = shop(max_sticky=40)
    clients = [f"192.0.2.{number}" for number in range(40)]
    for client in clients:
        lab.connect(client=client)
    flood(lab, 1000)
    assert len(known(lab)) == 40
    assert set(clients) - known(lab).keys() == {clients[0]}


def test_a_client_whose_entry_was_pushed_out_on_its_way_gets_it_back() -> None:
    """R066, F24: the handshake takes longer than the flood needs."""
    lab = shop(max_sticky=10)
    call = lab.dial(client="192.0.2.1")
    server = call.server
    flood(lab, 20)
    assert "192.0.2.1" not in known(lab)
    call.syn_ack().ack()
    assert known(lab)["192.0.2.1"] == server
    flood(lab, 20)
    assert lab.connect(client="192.0.2.1").server == server
    audit(lab.director)


def test_who_only_began_is_bound_all_the_same() -> None:
    """R131 (A9): an entry holds from the first SYN on; only when there is no room is it the first to go."""
    lab = shop()
    server = lab.dial().server
    assert [lab.dial().server for _ in range(4)] == [server] * 4


def test_a_guess_is_no_connection() -> None:
    """R078, F24: who acknowledges what he has not seen is not known by that."""
    lab = shop(max_sticky=10)
    forged = lab.dial(client="192.0.2.1").syn_ack()
    forged.client_sends(0x10, acknowledges=1)
    flood(lab, 10)
    assert "192.0.2.1" not in known(lab)


def test_a_flow_counts_once_something_has_come_back() -> None:
    """R066 (R012), F25: of UDP there is no more to go by."""
    lab = shop(max_sticky=10, protocol="udp")
    lab.flow(client="192.0.2.1").asks().answers()
    for number in range(30):
        lab.flow(client=f"198.51.100.{number}").asks()
    assert "192.0.2.1" in known(lab)
    assert len(known(lab)) == 10


@pytest.mark.parametrize("way", ["time", "clear", "server"])
def test_entries_that_go_another_way_are_not_looked_for_again(way: str) -> None:
    """R066, F25: whatever drops a loose entry, the next one that needs room finds another."""
    lab = shop(max_sticky=5)
    flood(lab, 5)
    if way == "time":
        lab.wait(601)
    elif way == "clear":
        lab.director.operation.clear_sticky("web", None, lab.now)
    else:
        for name in "abc":
            lab.director.fpas.forget(lab.director.real_servers[name])
    assert known(lab) == {}
    flood(lab, 8)
    assert len(known(lab)) == 5
    audit(lab.director)
