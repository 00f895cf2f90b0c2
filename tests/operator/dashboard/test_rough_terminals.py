"""`nfqlb top` on terminals that are tiny, huge, changing all the time, dumb, or going away (F33)."""

import os
import random
import re
import signal
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.operator.dashboard.cost import spent
from tests.operator.dashboard.gateway import Gateway, many
from tests.operator.dashboard.screen import PATIENCE, UTF8, Screen, top
from tests.operator.dashboard.test_top import a_shell_can_use_it, as_before

PAGES = "12345"
MOVES = re.compile(rb"\x1b\[(\d+);(\d+)H")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path / "s", many(200))
    yield made
    made.close()


def wait_for_end(screen: Screen) -> int:
    """The exit status of the program, whose terminal is gone."""
    assert screen.process is not None
    deadline = time.monotonic() + PATIENCE
    while screen.process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return screen.process.returncode


@pytest.mark.parametrize("size", [(20, 5), (10, 4)])
def test_a_tiny_screen(gateway: Gateway, size: tuple[int, int]) -> None:
    """F33: every page, question and the help: nothing is written beyond the screen, so nothing scrolls."""
    with top(gateway.path, size=size, idle=gateway.step, ready="nfqlb") as screen:
        for key in PAGES:
            screen.press(key)
            screen.until(lambda: "? help" in screen.lines[-1], f"page {key}")
            assert screen.lines[0].startswith(" nfqlb"), screen.text
        screen.press("?")
        screen.shows("keys")
        screen.press("\x1b")
        screen.hides("keys")
        screen.press("3")
        screen.shows("? help")
        screen.press("d")
        screen.shows("y: yes")
        screen.press("nw/\rsp")
        screen.until(lambda: gateway.orders == [] and "y: yes" not in screen.text)
        places = [(int(row), int(column)) for row, column in MOVES.findall(bytes(screen.written))]
        assert max(row for row, _ in places) == size[1]
        assert max(column for _, column in places) <= size[0]
        screen.press("q")
        assert screen.ended() == 0
        as_before(screen)


def test_a_storm_of_resizes(gateway: Gateway) -> None:
    """F33: 500 sizes within seconds, absurd ones too; then the picture is whole, and it has cost little."""
    source = random.Random(33)
    with top(gateway.path, size=(80, 24), idle=gateway.step) as screen:
        assert screen.process is not None
        screen.press("3")
        screen.shows(" web12 ")
        for _ in range(500):
            sizes = [(1, 1), (20, 5), (80, 24), (300, 100), (source.randrange(1, 500), 3)]
            screen.resize(*source.choice(sizes))
            screen.look(0.002)
        screen.resize(300, 100)
        screen.until(lambda: "? help" in screen.lines[99] and " web90 " in screen.text, "the whole picture")
        screen.resize(80, 24)
        screen.until(lambda: "? help" in screen.lines[23] and "web90" not in screen.text, "the small one")
        assert all(line.startswith(" I  web") for line in screen.lines[4:21]), screen.text
        assert spent(screen.process.pid) < 15
        screen.process.send_signal(signal.SIGTERM)
        assert screen.ended() == 143
        as_before(screen)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_amid_a_storm(gateway: Gateway, number: signal.Signals) -> None:
    """F33: the terminal is as it was, also where the signal comes again and again."""
    with top(gateway.path, size=(80, 24), idle=gateway.step) as screen:
        assert screen.process is not None
        for count in range(60):
            screen.resize(40 + count, 10 + count % 20)
            screen.look(0.001)
            if count >= 30:
                screen.process.send_signal(number)
        while screen.process.poll() is None:
            screen.process.send_signal(number)
            screen.look(0.001)
        assert screen.ended() == 128 + number
        as_before(screen)
        assert b"Traceback" not in screen.written


def test_ended_while_it_is_stopped(gateway: Gateway) -> None:
    """F33: SIGTSTP gives the terminal back; a SIGTERM meanwhile ends it when it goes on."""
    screen = Screen(80, 24, gateway.step)
    try:
        screen.start(["bash", "--norc", "--noprofile", "-i"], {**UTF8, "PS1": "prompt> "})
        screen.shows("prompt>")
        screen.press(f"{sys.executable} -m nfqlb top --socket {gateway.path}\r")
        screen.shows("all well", "sticky")
        screen.press("\x1a")
        screen.shows("Stopped", "prompt>")
        screen.press("clear; kill %1; until ! kill -0 %1; do sleep 0.1; done\r")
        screen.shows("Exit 143")
        a_shell_can_use_it(screen)
        assert screen.written.count(b"\x1b[?1049h") == screen.written.count(b"\x1b[?1049l") == 1
    finally:
        screen.close()


def test_the_terminal_is_gone(gateway: Gateway) -> None:
    """F33: a connection that breaks, or a window that is closed, ends it; it does not stay behind."""
    screen = Screen(80, 24, gateway.step)
    master = screen.fd
    try:
        screen.start([sys.executable, "-m", "nfqlb", "top", "--socket", str(gateway.path)], UTF8)
        screen.shows("all well")
        screen.fd = os.open(os.devnull, os.O_RDWR)
        os.close(master)
        assert wait_for_end(screen) == 128 + signal.SIGHUP
    finally:
        screen.close()


def test_killed(gateway: Gateway) -> None:
    """F33: nobody can put the terminal back then, but the gateway lets it go, and answers the next one."""
    with top(gateway.path, idle=gateway.step) as screen:
        assert screen.process is not None
        screen.process.kill()
        assert screen.ended() == -signal.SIGKILL
        termios.tcsetattr(screen.slave, termios.TCSANOW, screen.modes)
    with top(gateway.path, idle=gateway.step) as screen:
        screen.shows("all well")


@pytest.mark.parametrize("kind", ["dumb", "unknown", ""])
def test_a_terminal_that_can_do_nothing(gateway: Gateway, kind: str) -> None:
    """F33: one plain snapshot, in lines no longer than the terminal is wide, and no control sequence."""
    with top(gateway.path, size=(100, 24), idle=gateway.step, ready="", TERM=kind) as screen:
        assert screen.ended() == 0
        assert b"\x1b" not in screen.written
        assert b"all well" in screen.written
        assert b" web200 " in screen.written
        assert max(map(len, screen.written.decode().split("\r\n"))) <= 100
        assert termios.tcgetattr(screen.slave) == screen.modes
