"""The soak's books: they agree where they should, and each kind of disagreement is found."""

from collections import Counter
from typing import Any

import pytest

from tests.soak import books
from tests.soak.books import Burst, Counts, Ledger, Taken
from tests.soak.gauge import growth
from tests.soak.visitors import Loss


def ledger(**links: tuple[int, int]) -> Ledger:
    """Of a virtual server `web`: for each server its connections now and ever."""
    servers = [
        {"real": name.replace("_", "-"), "connections": now, "total": ever}
        for name, (now, ever) in links.items()
    ]
    return Ledger.of([{"name": "web", "total": sum(ever for _, ever in links.values()), "servers": servers}])


def opened(**servers: int) -> Counter[tuple[str, str]]:
    return Counter({("web", name if name != "nobody" else books.UNKNOWN): n for name, n in servers.items()})


EMPTY = ledger(web1=(0, 0), web2=(0, 0))


def test_accounts_are_added_up() -> None:
    account: dict[str, Any] = {"opened": {"web web1": 2}, "held": {"web web1": 0, "web web2": 1}}
    account |= {"pages": {"web1": 5}, "downloads": 1, "aborted": 2, "slowest": 0.5}
    whole = Counts.of([account, {**account, "slowest": 0.25}])
    assert whole.opened == {("web", "web1"): 4}
    assert whole.held == {("web", "web2"): 2}
    assert (whole.pages["web1"], whole.downloads, whole.aborted, whole.slowest) == (10, 2, 4, 0.5)


def test_what_agrees() -> None:
    after = ledger(web1=(1, 3), web2=(0, 4))
    assert books.after_calm(opened(web1=3, web2=4), EMPTY, after) == []
    assert books.after_calm(opened(web1=3, web2=2, nobody=2), EMPTY, after) == []
    assert books.after_storm(opened(web1=3, web2=3, nobody=9), EMPTY, after) == []
    assert books.at_rest(Counter({("web", "web1"): 1}), after) == []


def test_a_machine_with_two_addresses_is_one_server() -> None:
    assert books.after_calm(opened(web1=3), ledger(web1_6=(0, 0)), ledger(web1_6=(0, 3))) == []


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ({"web1": 3, "web2": 3}, "web: 6 connections were opened, the gateway counted 7"),
        ({"web1": 4, "web2": 4}, "web: 8 connections were opened, the gateway counted 7"),
        ({"web1": 2, "web2": 5}, "('web', 'web2'): 5 connections were opened, the gateway counted 4"),
        ({"web1": 3, "web2": 2, "nobody": 1}, "web: 6 connections were opened, the gateway counted 7"),
    ],
)
def test_what_does_not_agree_after_calm(seen: dict[str, int], says: str) -> None:
    assert says in books.after_calm(opened(**seen), EMPTY, ledger(web1=(0, 3), web2=(0, 4)))


def test_what_is_missing_after_a_storm() -> None:
    (text,) = books.after_storm(opened(web1=5), EMPTY, ledger(web1=(0, 3), web2=(0, 1)))
    assert text == "web: 5 connections were opened, the gateway counted 4"


def test_what_is_still_there_at_rest() -> None:
    held = Counter({("web", "web1"): 1})
    wrong = books.at_rest(held, ledger(web1=(0, 1), web2=(2, 2)))
    assert [text.split(":")[0] for text in wrong] == ["('web', 'web1')", "('web', 'web2')"]


def test_pages() -> None:
    arrived = Counter(web1=3)
    assert books.by_servers(arrived, {"web1": 3}, exact=True) == []
    assert books.by_servers(arrived, {"web1": 4}, exact=False) == []
    assert books.by_servers(arrived, {"web1": 4}, exact=True)
    assert books.by_servers(arrived, {"web1": 2}, exact=False)


@pytest.mark.parametrize(
    ("server", "begun", "at", "explained"),
    [
        ("web1", 5, 11, True),
        ("web1", 12, 13, True),
        ("web1", 5, 9, False),
        ("web1", 16, 20, False),
        ("web2", 5, 11, False),
        ("", 5, 11, True),
        ("", 16, 20, False),
    ],
)
def test_which_losses_are_explained(server: str, begun: float, at: float, explained: bool) -> None:
    loss = Loss("web", "connection", server, 1, begun, at, "gone")
    assert books.unexcused([loss], [Taken("web1", 10, 15)]) == ([] if explained else [loss])


@pytest.mark.parametrize(
    ("place", "what", "server", "begun", "expected"),
    [
        ("shop", "connection", "", 12, True),
        ("shop", "connection", "web1", 12, False),
        ("shop", "connect", "", 12, False),
        ("shop", "connection", "", 16, False),
        ("web", "connection", "", 12, False),
    ],
)
def test_which_losses_are_a_bursts(
    place: str, what: str, server: str, begun: float, expected: bool
) -> None:
    loss = Loss(place, what, server, 1, begun, begun + 30, "gone")
    assert books.given_up([loss], [Burst("shop", 10, 15)]) == ([loss] if expected else [])


def test_growth() -> None:
    assert growth([100, 100, 100, 500, 100, 100, 101, 102, 103]) == pytest.approx(0.02)
    assert growth([100]) == 0
