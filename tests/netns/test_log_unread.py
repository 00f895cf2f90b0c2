"""Nobody reads the log: what cannot be written is lost, and packets pass as before."""

import os
import time
from collections.abc import Iterator

import pytest

from nfqlb.demo.appliance import Appliance, command, python_path, socket_path
from nfqlb.demo.lab import Lab
from nfqlb.runtime.client import Client
from tests.netns.asking import ask, summary
from tests.netns.both import REWRITE, SAME, Datapath, configuration, only, serving


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=2) as lab:
        yield lab


class Unread(Appliance):
    """A gateway whose log goes to a pipe, of which the test has the other end."""

    def __init__(self, lab: Lab, config: str) -> None:
        self.lab = lab
        self.config = lab.directory / "nfqlb.toml"
        self.config.write_text(config)
        pipe = lab.directory / "log.pipe"
        os.mkfifo(pipe)
        self.reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        words = ("sh", "-c", f'exec "$@" 2>{pipe}', "sh", *command("run", "-c", str(self.config)))
        self.program = lab.gateway.start(*words, environment=python_path())


@only(REWRITE, SAME)
def test_a_log_that_nobody_reads_holds_nothing_up(lab: Lab) -> None:
    """F30: a thousand orders fill the pipe many times over; then it is read, and says how many were lost."""
    gateway = Unread(lab, configuration(lab))
    try:
        gateway.wait_ready()
        with Client(socket_path(lab)) as client:
            for number in range(1000):
                client.call("set-real", {"name": "web1", "weight": 1 + number % 2})
            begun = time.monotonic()
            for _ in range(10):
                ask(lab.client)
                client.call("set-real", {"name": "web2", "state": "maintenance"})
                client.call("set-real", {"name": "web2", "state": "in-service"})
            took = time.monotonic() - begun
        assert took < 10
        assert summary(gateway)["worker"]["restarts"] == 0
        kept = os.read(gateway.reader, 1 << 20)
        assert b"weight" in kept
        gateway.stop()
        assert b" log entries were lost: nobody read them" in os.read(gateway.reader, 1 << 20)
    finally:
        gateway.stop()
        os.close(gateway.reader)
