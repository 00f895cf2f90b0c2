"""The demo's picture: it fits, it says what is so, and nothing in it is taken for markup."""

import io

import pytest
from rich.console import Console

from nfqlb.demo.tally import ConnectionRow, Picture, RealRow, Tally, VirtualRow
from nfqlb.demo.traffic import Event
from nfqlb.demo.view import Scene, bar, closing_lines, frame, progress_line, sparkline


def real(name: str, weight: float, connections: int) -> RealRow:
    return RealRow(
        name=name, address="10.0.0.11", state="in-service", weight=weight, connections=connections, total=0
    )


def answer(server: str, client: str = "192.0.2.11", *, place: str = "www", begun: float = 0.0) -> Event:
    return Event("answer", place, client, 40000, server, 0.02, fresh=True, begun=begun)


@pytest.fixture
def scene() -> Scene:
    """Three servers of weight 3, 2, 1 that were given 6, 3 and 1 connections."""
    tally = Tally()
    for server, times in (("[web]1", 6), ("web2", 3), ("web3", 1)):
        for _ in range(times):
            tally.add(answer(server))
    tally.add(answer("web2", place="shop"))
    virtual = VirtualRow(
        name="www",
        address="192.0.2.100",
        port=80,
        scheduler={"desired": "round-robin", "actual": "least-connections"},
        connections=3,
        total=11,
        servers=[{"real": "web2", "port": 80, "connections": 3}],
    )
    connection = ConnectionRow(
        virtual="www",
        client="192.0.2.11",
        client_port=40000,
        real="web2",
        real_port=8000,
        state="established",
        age_s=1.25,
    )
    reals = [real("[web]1", 3, 1), real("web2", 2, 3), real("web3", 1, 0)]
    picture = Picture(4711, 1, reals, [virtual], [connection] * 100, stale=False)
    return Scene("many servers", 75.0, 90.0, tally, picture, [(5.0, "something [bold] happened")])


def drawn(scene: Scene, width: int, height: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(frame(scene, width, height))
    return captured.get().splitlines()


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (160, 50), (240, 70)])
def test_fills_the_screen_and_no_more(scene: Scene, size: tuple[int, int]) -> None:
    width, height = size
    lines = drawn(scene, width, height)
    assert height - 4 <= len(lines) < height
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("size", [(20, 5), (40, 12), (10, 3), (119, 15)])
def test_small_screens_do_not_fail(scene: Scene, size: tuple[int, int]) -> None:
    assert max(map(len, drawn(scene, *size))) <= size[0]


def test_says_who_got_what(scene: Scene) -> None:
    """R097: a server's share stands beside its weight's part of the sum of weights."""
    lines = drawn(scene, 100, 30)
    (first,) = [line for line in lines if line.startswith(" [web]1")]
    assert "55%" in first
    assert "50%" in first
    assert "20 ms" in first
    assert any("something [bold] happened" in line for line in lines)
    assert any("192.0.2.11:40000" in line and "web2:8000" in line and "1.2 s" in line for line in lines)
    assert any("least-connections" in line and "192.0.2.100:80" in line for line in lines)
    assert "1:15 of 1:30" in lines[0]


def test_old_facts_are_called_so(scene: Scene) -> None:
    assert not any("gateway silent" in line for line in drawn(scene, 100, 30))
    scene.picture = Picture(4711, 1, scene.picture.reals, scene.picture.virtuals)
    assert any("gateway silent" in line for line in drawn(scene, 100, 30))


def test_errors_are_shown_and_told_at_the_end(scene: Scene) -> None:
    scene.tally.add(Event("error", "www", "192.0.2.12", 0, text="TimeoutError: "))
    scene.tally.add(Event("broken", "www", "192.0.2.12", 5))
    assert any("2 errors" in line for line in drawn(scene, 80, 24))
    assert "2 errors" in progress_line(scene)
    lines = closing_lines(scene)
    assert "1 error, 1 damaged" in lines[0]
    assert any("192.0.2.12" in line and "TimeoutError" in line for line in lines)


def test_bar_is_as_long_as_its_share() -> None:
    assert bar(0.5, 8) == "████    "
    assert bar(1 / 16, 8) == "▌       "
    assert bar(2.0, 4) == "████"
    assert bar(-1.0, 4) == "    "


def test_sparkline_shows_the_latest_values() -> None:
    assert sparkline([9, 0, 4, 8], 3, 8) == "▁▄█"
    assert sparkline([], 3, 0) == "   "
