"""`nfqlb top` by what its screen says, in a real terminal, against a control server with recorded answers."""

import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

import nfqlb
from nfqlb.runtime.protocol import ControlError
from tests.operator.dashboard.gateway import Gateway, many
from tests.operator.dashboard.screen import UTF8, Screen, top

ODD = "[red]w\x1b[2Jeb[/red]\u202e"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path / "s")
    yield made
    made.close()


def fail(gateway: Gateway, name: str) -> None:
    """A real server fails, as the gateway says it."""
    row = next(row for row in gateway.snapshot["reals"] if row["name"] == name)
    row.update(state="failed", reason="8 connections in a row", failed_s=75.0, test_in_s=12.0, connections=0)
    gateway.snapshot["verdict"] = f"1 of 3 servers ({name}) failed; queue dropping"
    gateway.snapshot["problems"] = [
        {"level": "error", "what": "queue dropping"},
        {"level": "warning", "what": f"1 of 3 servers ({name}) failed"},
    ]


# --- what it shows


def test_the_display_shows_what_the_director_does(gateway: Gateway) -> None:
    """R018: the gateway, its virtual and its real servers, and the queues are on the screen, as they are."""
    fail(gateway, "web2")
    with top(gateway.path, idle=gateway.step) as screen:
        screen.shows("1 of 3 servers (web2) failed; queue dropping", "9 connections")
        assert "I 2 in-service" in screen.row(" real ")
        assert "F 1 failed" in screen.row(" real ")
        assert "process" in screen.row(" worker ")
        screen.shows("20.0")  # microseconds a packet, once two snapshots are there
        assert screen.row("established").split()[:5] == ["1", "established", "0", "0", "0"]
        assert "█" in screen.row(" in all ")
        gateway.snapshot["connections"]["now"] = 4321
        screen.shows("4321 connections")


def test_virtual_servers(gateway: Gateway) -> None:
    www = gateway.snapshot["virtuals"][0]
    www["scheduler"] = {"desired": "fastest-response", "actual": "round-robin"}
    www["drops"] = {"no-server": 7, "not-syn": 1200}
    www["traffic"] = None
    with top(gateway.path, size=(160, 40), idle=gateway.step) as screen:
        screen.press("2")
        screen.shows("192.0.2.100:80/tcp", "192.0.2.100:8080/tcp")
        screen.hides("QUEUE")
        row = screen.row("192.0.2.100:80/tcp")
        assert row.split()[:2] == ["I", "www"]
        assert "rr for fast" in row  # the scheduler at work, and the one asked for
        assert "1207" in row
        assert row.split().count("-") == 8  # nobody counts its traffic
        assert screen.row("192.0.2.100:8080/tcp").split()[-4] == "1.98M"  # bytes out
        assert "round-robin for now, then fastest-response" in screen.lines[-2]
        assert "dropped 1200 not-syn, 7 no-server" in screen.lines[-2]


def test_real_servers(gateway: Gateway) -> None:
    """R018: state, since when and why, response time, share against fair share, unanswered, ditched."""
    fail(gateway, "web2")
    web1 = gateway.snapshot["reals"][0]
    web1.update(unanswered=31, ditched={"no_answer": 32, "reset": 33}, max_connections=34, response_s=0.0351)
    with top(gateway.path, size=(160, 40), idle=gateway.step) as screen:
        screen.press("3")
        screen.shows("10.0.0.11", "10.0.0.13")
        cells = screen.row("10.0.0.11").split()
        assert cells[:2] == ["I", "web1"]
        for said in ("31", "32", "33", "34", "35.1ms", "50%", "█"):
            assert any(said in cell for cell in cells), said
        assert screen.row("10.0.0.12").split()[0] == "F"
        screen.press("j")
        screen.shows("web2: failed, 8 connections in a row, down for 1m15s, to be tested in 12s")
        web1.update(suspect=True, in_a_row={"connections": 12, "why": ["reset"]})
        screen.press("k")
        screen.shows("web1: in-service, has refused 12 connections in a row")


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (300, 100)])
def test_fits_the_screen(gateway: Gateway, size: tuple[int, int]) -> None:
    """At every size all pages have their first lines, a footer in the last, and nothing beyond."""
    gateway.snapshot = many(200)
    with top(gateway.path, size=size, idle=gateway.step) as screen:
        screen.shows("QUEUE", "WAITING")
        for key, title in (("2", "VIRTUAL"), ("3", "REAL"), ("4", "CLIENT"), ("5", "WHEN")):
            screen.press(key)
            screen.shows(title)
            screen.hides("QUEUE")
            assert screen.lines[0].startswith(" nfqlb ")
            assert screen.lines[1].startswith(" OK all well")
            assert "? help" in screen.lines[-1]
        screen.press("3")
        last = size[1] - 6  # header, verdict, tabs, titles, the chosen row's line and the keys
        screen.shows(f" web{last} ")
        assert f" web{last + 1} " not in screen.text


def test_only_what_is_in_sight_is_asked_for(gateway: Gateway) -> None:
    """The histories of rows that are not seen are not asked for, and of those seen once only."""
    gateway.snapshot = many(200)
    with top(gateway.path, size=(160, 24), idle=gateway.step) as screen:
        screen.press("3")
        screen.shows(" web18 ")
        screen.until(lambda: gateway.asked.count("history") >= 18, "histories")
        seen = gateway.asked.count("snapshot")
        screen.until(lambda: gateway.asked.count("snapshot") > seen + 1, "another snapshot")
        assert gateway.asked.count("history") < 30


def test_another_size_at_once(gateway: Gateway) -> None:
    with top(gateway.path, "--interval", "60", size=(80, 24), idle=gateway.step) as screen:
        screen.shows("all well", "? help")
        screen.press("p")  # not by a new snapshot: at once
        screen.shows("PAUSED")
        screen.resize(200, 50)
        screen.until(lambda: "? help" in screen.lines[-1] and "every 60s" in screen.lines[0][150:], "width")
        screen.resize(60, 12)
        screen.until(lambda: "? help" in screen.lines[-1], "small picture")
        screen.resize(12, 4)
        screen.until(lambda: "? help" in screen.lines[-1], "tiny picture")


def test_names_are_printed_literally(gateway: Gateway) -> None:
    """Neither rich's markup nor a control character in a name does anything; wide ones keep the columns."""
    names = [ODD, "日本語サーバ", "x" * 200]
    for row, name in zip(gateway.snapshot["reals"], names, strict=True):
        row["name"] = name
    with top(gateway.path, idle=gateway.step) as screen:
        screen.press("3")
        screen.shows("[red]w\\x1b[2Jeb", "日 本 語".replace(" ", ""), "xxxx…")
        rows = [line for line in screen.lines if line.startswith(" I  ")]
        assert len(rows) == 3
        screen.press("\r")
        screen.shows("real server [red]w\\x1b[2Jeb[/red]\\u202e")


def test_without_colour(gateway: Gateway) -> None:
    """NO_COLOR: no colour is sent, and every state still says what it is by its letter."""
    fail(gateway, "web2")
    with top(gateway.path, idle=gateway.step, NO_COLOR="1") as screen:
        screen.press("3")
        screen.shows("10.0.0.12")
        assert screen.row("10.0.0.12").split()[0] == "F"
        colours = {cell.fg for line in screen.display.buffer.values() for cell in line.values()}
        assert colours == {"default"}


def test_colour_is_for_states_only(gateway: Gateway) -> None:
    fail(gateway, "web2")
    with top(gateway.path, size=(80, 24), idle=gateway.step) as screen:
        screen.press("3")
        screen.shows(" web3 ")
        cells = [cell for line in screen.display.buffer.values() for cell in line.values()]
        coloured = {cell.data for cell in cells if cell.fg != "default"}
        assert coloured == set("IFWRONG ")


@pytest.mark.parametrize(
    ("words", "environment"),
    [(["--ascii"], {}), ([], {"LANG": "C"}), ([], {"LC_ALL": "de_DE.ISO-8859-1"}), ([], {"LANG": ""})],
)
def test_ascii(gateway: Gateway, words: list[str], environment: dict[str, str]) -> None:
    """Nothing but ASCII is sent where it is asked for, or the locale knows no more."""
    gateway.snapshot["reals"][0]["name"] = "wäb"
    with top(gateway.path, *words, size=(160, 40), idle=gateway.step, **environment) as screen:
        for key, text in (("2", "192.0.2.100:80/tcp"), ("3", "w\\xe4b"), ("4", "CLIENT"), ("5", "decisions")):
            screen.press(key)
            screen.shows(text)
        screen.press("?")
        screen.shows("+- keys")
        assert bytes(screen.written).isascii()


# --- how it ends


def quit_by(key: str) -> object:
    return lambda screen: screen.press(key)


def kill_by(number: signal.Signals) -> object:
    return lambda screen: screen.process.send_signal(number)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        (quit_by("q"), 0),
        (quit_by("\x03"), 130),
        (quit_by("\x1c"), 131),
        (kill_by(signal.SIGINT), 130),
        (kill_by(signal.SIGTERM), 143),
        (kill_by(signal.SIGHUP), 129),
    ],
    ids=["q", "Ctrl-C", "Ctrl-backslash", "SIGINT", "SIGTERM", "SIGHUP"],
)
def test_the_terminal_is_as_before(gateway: Gateway, how: object, status: int) -> None:
    with top(gateway.path, idle=gateway.step) as screen:
        screen.shows("all well")
        assert termios.tcgetattr(screen.slave) != screen.modes
        assert callable(how)
        how(screen)
        assert screen.ended() == status
        as_before(screen)
        assert b"Traceback" not in screen.written


def as_before(screen: Screen) -> None:
    """The modes are as before, the cursor is back, and so is the first screen."""
    assert termios.tcgetattr(screen.slave) == screen.modes
    written = bytes(screen.written)
    assert written.rindex(b"\x1b[?25h") > written.rindex(b"\x1b[?25l")
    assert written.rindex(b"\x1b[?1049l") > written.rindex(b"\x1b[?1049h")


def a_shell_can_use_it(screen: Screen) -> None:
    """At a shell's prompt the terminal has the modes that a shell expects; clears the screen."""
    screen.press("stty -a; clear\r")
    screen.until(lambda: b"icanon" in screen.written, "the modes")
    modes = bytes(screen.written).rpartition(b"stty -a")[2].split()
    assert {b"icanon", b"echo", b"isig", b"ixon"} <= set(modes)


def test_a_defect_leaves_the_terminal_as_before(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from nfqlb.operator.dashboard.views import summary\n"
        "def broken(*_): raise RuntimeError('a defect')\n"
        "summary.summary = broken\n",
        encoding="utf-8",
    )
    path = f"{tmp_path}:{Path(nfqlb.__file__).parents[1]}"
    with top(gateway.path, idle=gateway.step, ready="", PYTHONPATH=path) as screen:
        assert screen.ended() == 1
        as_before(screen)
        written = bytes(screen.written)
        assert written.index(b"RuntimeError: a defect") > written.rindex(b"\x1b[?1049l")


def test_out_of_the_shell_and_back(gateway: Gateway) -> None:
    """Ctrl-Z gives the shell its terminal as it was, `fg` takes it again and draws everything."""
    screen = Screen(120, 40, gateway.step)
    try:
        screen.start(["bash", "--norc", "--noprofile", "-i"], {**UTF8, "PS1": "prompt> "})
        screen.shows("prompt>")
        screen.press(f"{sys.executable} -m nfqlb top --socket {gateway.path}\r")
        screen.shows("all well", "sticky")
        screen.press("\x1a")
        screen.shows("Stopped", "prompt>")
        a_shell_can_use_it(screen)
        screen.press("fg\r")
        screen.shows("all well", "sticky")
        assert "prompt>" not in screen.text
        screen.press("3")
        screen.shows("10.0.0.12")
        screen.press("q")
        screen.shows("prompt>")
        screen.press("exit\r")
        assert screen.ended() == 0
        assert screen.written.count(b"\x1b[?1049h") == screen.written.count(b"\x1b[?1049l") == 2
    finally:
        screen.close()


def test_stopped_from_outside_and_gone_on_with(gateway: Gateway) -> None:
    """After SIGSTOP nothing could be given back; SIGCONT takes the terminal again and draws everything."""
    with top(gateway.path, idle=gateway.step) as screen:
        screen.shows("all well")
        assert screen.process is not None
        taken = termios.tcgetattr(screen.slave)
        pid = screen.process.pid
        os.kill(pid, signal.SIGSTOP)
        _, status = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        termios.tcsetattr(screen.slave, termios.TCSANOW, screen.modes)
        screen.display.reset()
        os.kill(pid, signal.SIGCONT)
        screen.shows("all well")
        assert termios.tcgetattr(screen.slave) == taken
        screen.press("q")
        screen.ended()
        assert termios.tcgetattr(screen.slave) == screen.modes


def test_the_gateway_goes_and_comes_back(gateway: Gateway) -> None:
    """F33: it stays up with the last picture, says that there is no answer, and goes on when there is one."""
    with top(gateway.path, idle=gateway.step) as screen:
        screen.shows("all well")
        gateway.stop()
        screen.shows("NO ANSWER", "no gateway is running")
        assert "process" in screen.row(" worker ")
        gateway.again()
        screen.shows("all well")
        screen.hides("NO ANSWER")


def test_no_gateway_at_the_start(tmp_path: Path) -> None:
    """The screen is not even taken."""
    with top(tmp_path / "nothing", ready="") as screen:
        assert screen.ended() == 1
        assert "no gateway is running" in screen.text
        assert b"\x1b" not in screen.written


def test_without_a_terminal_one_plain_snapshot(gateway: Gateway) -> None:
    """Into a pipe: everything once as plain text, all servers, no control sequence."""
    gateway.snapshot = many(200)
    process = subprocess.Popen(
        [sys.executable, "-m", "nfqlb", "top", "--socket", str(gateway.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **UTF8, "PYTHONPATH": str(Path(nfqlb.__file__).parents[1])},
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    output = b""
    while process.poll() is None:
        gateway.step()
        output += process.stdout.read() or b""
    output += process.stdout.read() or b""
    process.stdout.close()
    text = output.decode()
    assert process.returncode == 0, text
    assert "\x1b" not in text
    assert "all well" in text
    assert "established" in text
    assert " web200 " in text
    assert "192.0.2.100:8080/tcp" in text


# --- what keys do


def test_drained_after_yes(gateway: Gateway) -> None:
    with top(gateway.path, idle=gateway.step) as screen:
        screen.press("3j")
        screen.shows("web2: in-service")
        screen.press("d")
        screen.shows("Drain web2?", "4 connections", "y: yes")
        assert gateway.orders == []
        screen.press("n")
        screen.shows("nothing was changed")
        screen.press("d")
        screen.shows("Drain web2?")
        screen.press("y")
        screen.shows("web2: in-service -> sticky-only (4 connections)")
        assert gateway.orders == [("set-real", {"name": "web2", "state": "sticky-only"})]
        screen.until(lambda: screen.row("10.0.0.12").split()[0] == "S", "the new state")


@pytest.mark.parametrize(
    ("keys", "order"),
    [
        ("3my", ("set-real", {"name": "web1", "state": "maintenance"})),
        ("3oy", ("set-real", {"name": "web1", "state": "out-of-service"})),
        ("3iy", ("set-real", {"name": "web1", "state": "in-service"})),
        ("3w2.5\ry", ("set-real", {"name": "web1", "weight": 2.5})),
        ("2oy", ("set-virtual", {"name": "www", "state": "out-of-service"})),
        ("2jiy", ("set-virtual", {"name": "shop", "state": "in-service"})),
        ("2\rjdy", ("set-real", {"name": "web2", "state": "sticky-only"})),
        ("3jj\rmy", ("set-real", {"name": "web3", "state": "maintenance"})),
    ],
)
def test_orders(gateway: Gateway, keys: str, order: tuple[str, dict[str, object]]) -> None:
    with top(gateway.path, idle=gateway.step) as screen:
        screen.shows("all well")
        screen.press(keys)
        screen.until(lambda: gateway.orders, f"order, {keys!r}")
        assert gateway.orders == [order]


def test_a_limit_is_beside_the_connections_on_a_narrow_screen_too(gateway: Gateway) -> None:
    gateway.snapshot["reals"][1]["max_connections"] = 77
    with top(gateway.path, size=(80, 24), idle=gateway.step) as screen:
        screen.press("3")
        screen.shows("CONN LIMIT", "web3")
        assert screen.row("web2").split()[4:6] == ["4", "77"]


def test_how_to_say_yes_is_seen_whatever_the_name(gateway: Gateway) -> None:
    gateway.snapshot["reals"][0]["name"] = "w" * 64
    with top(gateway.path, size=(80, 24), idle=gateway.step) as screen:
        screen.press("3d")
        screen.shows("Drain wwwww", "y: yes, others: no")


def test_read_only(gateway: Gateway) -> None:
    with top(gateway.path, "--read-only", idle=gateway.step) as screen:
        screen.press("3")
        screen.shows("READ ONLY", "10.0.0.12")
        assert "d drain" not in screen.text
        for key in "dmiow":
            screen.press("p")
            screen.hides("--read-only")
            screen.press(key)
            screen.shows("opened with --read-only")
        screen.press("y")
        screen.press("4")
        screen.shows("CLIENT")
        assert gateway.orders == []


def test_a_refused_order_is_told(gateway: Gateway) -> None:
    gateway.refuses = ControlError("not-allowed", "set-real needs the level operate", "join the group nfqlb")
    with top(gateway.path, idle=gateway.step) as screen:
        screen.shows("all well")
        screen.press("3dy")
        screen.shows("set-real needs the level operate; join the group nfqlb")


def test_filter_sort_and_scroll(gateway: Gateway) -> None:
    gateway.snapshot = many(200)
    for number, row in enumerate(gateway.snapshot["reals"]):
        row["connections"] = number
    with top(gateway.path, size=(100, 24), idle=gateway.step) as screen:
        screen.press("3G")
        screen.shows(" web200 ")
        screen.press("g")
        screen.shows(" web1 ")
        screen.press("\x1b[6~\x1b[B")
        screen.shows(" web20 ")
        screen.press("/web19")
        screen.shows("rows that hold: web19_", "11 of 200 rows")
        screen.press("\r")
        screen.shows("holding 'web19'", " web199 ")
        while "CONN▼" not in screen.text:
            screen.press("s")
            screen.look(0.3)
        rows = [line.split()[1] for line in screen.lines if " web" in line]
        assert rows[0] == "web199"
        screen.press("S")
        screen.shows("CONN▲")
        assert next(line.split()[1] for line in screen.lines if " web" in line) == "web19"
        screen.press("\x1b")
        screen.shows("200 rows")


def test_paused_and_gone_on_with(gateway: Gateway) -> None:
    with top(gateway.path, idle=gateway.step) as screen:
        screen.shows("9 connections")
        screen.press("p")
        screen.shows("PAUSED")
        gateway.snapshot["connections"]["now"] = 99
        asked = gateway.asked.count("snapshot")
        screen.until(lambda: gateway.asked.count("snapshot") > asked + 1, "another snapshot")
        assert "9 connections" in screen.text
        screen.press("p")
        screen.shows("99 connections")


def test_another_interval(gateway: Gateway) -> None:
    with top(gateway.path, idle=gateway.step) as screen:
        screen.shows("every 1s")
        screen.press("+")
        screen.shows("every 2s")
        screen.press("+")
        screen.shows("every 5s")
        screen.press("---")
        screen.shows("every 1s")


def test_explained(gateway: Gateway) -> None:
    """`e` on a connection tells what `nfqlb explain` does."""
    with top(gateway.path, idle=gateway.step) as screen:
        screen.press("4")
        screen.shows("192.0.2.21:44367")
        screen.press("e")
        screen.shows("192.0.2.21:44367 to www", "weighted-least-connections compared 3 servers", "chosen")
        screen.press("\x1b")
        screen.hides("any key closes")
        gateway.empty = True
        screen.press("\r")
        screen.shows("No decision about 192.0.2.21:44367 to www is kept any more")


def test_events_and_decisions(gateway: Gateway) -> None:
    with top(gateway.path, idle=gateway.step) as screen:
        screen.press("5")
        screen.shows("died (by signal SIGKILL)", "web1:8000", "decisions 3")
        screen.press("\te")
        screen.shows("any key closes", "web1:8000")


def test_closer_and_back(gateway: Gateway) -> None:
    """Enter: a virtual server, one of its real servers with its connections; Esc back, twice."""
    with top(gateway.path, idle=gateway.step) as screen:
        screen.press("2")
        screen.shows("192.0.2.100:8080/tcp")
        screen.press("\x1b[B\r")
        screen.shows("virtual server shop", "web3:8000", "192.0.2.32:44239")
        assert "192.0.2.21:44367" not in screen.text  # of the other one
        screen.press("jj\r")
        screen.shows("real server web3", "192.0.2.41:43513", "behind www, shop")
        assert "192.0.2.32:44239" not in screen.text
        screen.press("\x1b")
        screen.shows("virtual server shop")
        screen.press("\x1b")
        screen.shows("192.0.2.100:80/tcp")


def test_help(gateway: Gateway) -> None:
    with top(gateway.path, size=(80, 24), idle=gateway.step) as screen:
        screen.press("?")
        screen.shows("more below")
        screen.press("   ")
        screen.shows("A dash is what is not known.")
        screen.press("x")
        screen.hides("any key closes")
