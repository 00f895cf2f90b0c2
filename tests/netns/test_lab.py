"""The laboratory itself: a real network, of which nothing is left however its owner ends."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfqlb.demo.appliance import python_path
from nfqlb.demo.capture import capture
from nfqlb.demo.lab import Lab, sweep
from nfqlb.demo.programs import LabError, Program, require
from nfqlb.demo.web import serve
from tests.netns.asking import PREFIX, wait_until

OWNER = """
import signal, sys, time
from nfqlb.demo.lab import Lab
from nfqlb.demo.web import serve
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it (nohup)
with Lab(servers=1, prefix=sys.argv[1]) as lab:
    nginx = serve(lab, lab.servers[0])
    print(lab.identity, nginx.pid, flush=True)
    time.sleep(30)
"""


def left_of(identity: str) -> list[str]:
    """Namespaces and directories of a laboratory."""
    places = (Path("/run/netns"), Path(tempfile.gettempdir()))
    return [str(path) for place in places for path in place.glob(f"{identity}*")]


@contextmanager
def owner(prefix: str) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Another process that has a laboratory: the process, the laboratory's identity, its nginx."""
    environment = {**os.environ, **python_path()}
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, prefix], stdout=subprocess.PIPE, text=True, env=environment
    )
    with process:
        try:
            assert process.stdout is not None
            identity, pid = process.stdout.readline().split()
            yield process, identity, int(pid)
        finally:
            process.kill()


def test_clients_and_servers_reach_each_other_through_the_gateway() -> None:
    """Plain kernel routing: what the tests of the gateway stand on."""
    with Lab(clients=1, servers=2, prefix=PREFIX) as lab:
        lab.gateway.sysctl("net.ipv4.ip_forward", "1")
        for server in lab.servers:
            serve(lab, server)
            with capture(lab, lab.client, "outside", "tcp") as recorded:
                answer = lab.client.run("curl", "-sS", f"http://{server.address}/").stdout.split()
            assert answer[:2] == [server.name, lab.client.address]
            assert recorded.addresses() == {lab.client.address, server.address}
        identity = lab.identity
    assert left_of(identity) == []


def test_nothing_is_left_after_an_exception() -> None:
    lab = Lab(servers=1, prefix=PREFIX)

    def fail() -> None:
        with lab:
            programs.append(serve(lab, lab.servers[0]))
            assert left_of(lab.identity)
            raise ZeroDivisionError

    programs: list[Program] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    assert left_of(lab.identity) == []
    assert not programs[0].running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_nothing_is_left_after_a_signal(number: signal.Signals) -> None:
    with owner(PREFIX) as (process, identity, nginx):
        assert left_of(identity)
        process.send_signal(number)
        assert process.wait(10) != 0
        assert left_of(identity) == []
        assert not Path(f"/proc/{nginx}").exists()


def test_what_a_killed_owner_left_is_swept() -> None:
    """After `kill -9` no program runs on, and the next laboratory with that prefix removes the rest."""
    with owner(f"{PREFIX}-swept") as (process, identity, nginx):
        process.kill()
        process.wait(10)
        wait_until(lambda: not Path(f"/proc/{nginx}").exists(), "nginx's end")
        assert left_of(identity)
        with owner(f"{PREFIX}-swept") as (_, other, _):
            assert left_of(identity) == []
            assert left_of(other)
            assert sweep(f"{PREFIX}-swept") == []
            assert left_of(other)
    sweep(f"{PREFIX}-swept")
    assert left_of(other) == []


def test_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(LabError, match="no-such-program") as raised:
        require("ip", "no-such-program")
    assert "\n" not in str(raised.value)
