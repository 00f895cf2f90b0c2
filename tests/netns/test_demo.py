"""`nfqlb demo` from start to end: with and without a terminal, and nothing left after it."""

import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nfqlb.demo.appliance import command, python_path
from nfqlb.demo.lab import sweep
from nfqlb.demo.network import processes
from nfqlb.demo.programs import run
from tests.netns.asking import files_of, wait_until


def environment() -> dict[str, str]:
    return {**os.environ, **python_path(), "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}


def namespaces_of(pid: int) -> list[str]:
    """The demo's namespaces that belong to a process."""
    return [path.name for path in Path("/run/netns").glob(f"nfqlb-demo-{pid}-*")]


def test_without_a_terminal() -> None:
    """Plain lines, the worker killed halfway, every download whole, a summary, status 0, nothing left."""
    process = subprocess.Popen(
        command("demo", "--duration", "8"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, ""), out
    assert "\x1b" not in out
    assert "kill -9 of worker" in out
    assert "has taken them over" in out
    assert "downloads have arrived whole" in out
    assert "0 errors, 0 damaged" in out
    assert "12 of 12 clients of shop stay with one server" in out
    assert "killed and replaced: 1 x" in out
    assert namespaces_of(process.pid) == []


def test_killed_demo_leaves_no_process() -> None:
    """After `kill -9` of the demo its programs end, the gateway cleanly; the next one sweeps the rest."""
    process = subprocess.Popen(
        command("demo"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    with process:
        assert process.stdout is not None
        while "clients start" not in process.stdout.readline():
            assert process.poll() is None
        spaces = namespaces_of(process.pid)
        (gateway,) = [name for name in spaces if name.endswith("-gateway")]
        assert files_of(gateway)
        process.kill()
        process.wait(10)
        wait_until(lambda: not any(list(processes(name)) for name in spaces), "the programs' end")
        assert files_of(gateway) == []
        assert "NFQLB" not in run(gateway, ("iptables-save",)).stdout
        assert set(sweep("nfqlb-demo")) >= set(spaces)
        assert namespaces_of(process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal(number: signal.Signals) -> None:
    """A full-screen picture; Ctrl-C or SIGTERM ends it, the screen is as before, nothing is left."""
    pid, terminal = pty.fork()
    if pid == 0:
        argv = command("demo")
        os.execve(argv[0], argv, environment())
    try:
        screen = b""
        deadline = time.monotonic() + 30
        while b"virtual servers" not in screen:
            assert time.monotonic() < deadline
            screen += os.read(terminal, 65536)
        assert b"\x1b[?1049h" in screen
        assert namespaces_of(pid)
        if number == signal.SIGINT:
            os.write(terminal, b"\x03")
        else:
            os.kill(pid, number)
        rest = drain(terminal)
        assert b"\x1b[?1049l" in rest
        assert rest.rindex(b"\x1b[?25h") > rest.rfind(b"\x1b[?25l")
        assert b"Traceback" not in rest
        assert b"stay with one server" in rest
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert os.WIFEXITED(status)
    assert namespaces_of(pid) == []


def drain(terminal: int) -> bytes:
    """What comes until the program closes its terminal."""
    found = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:
            return found
        if not block:
            return found
        found += block
