"""Packets pass beside full disks, logs that nobody reads, and whoever else does not do his part.

How much slower they are is measured by hand: `python -m tests.netns.unread 8 2`.
"""

from collections.abc import Iterator

import pytest

from nfqlb.demo.lab import Lab
from nfqlb.demo.web import serve
from tests.netns.asking import summary
from tests.netns.beside import asking_steadily
from tests.netns.both import Bench, Datapath
from tests.netns.unread import FAULTS, surrounded, timed


@pytest.fixture
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, servers=2) as lab:
        for server in lab.servers:
            serve(lab, server)
        yield lab


def test_f30_packets_pass_whatever_is_full_or_not_read(lab: Lab) -> None:
    """F30: no request fails or waits beside any of them, and no worker dies; the log tells what it lost."""
    with surrounded(lab) as around:
        with asking_steadily(lab, interval=0.01) as steady:
            seen = list(timed(around, steady, 0.4))
        assert [name for name, _, _ in seen] == list(FAULTS)
        for name, quiet, beside in seen:
            assert (name, quiet.failed, beside.failed) == (name, 0, 0)
            assert min(len(beside.kept), len(beside.new)) > 5, name
            assert beside.worst < 5.0, name
        assert summary(around.gateway)["worker"]["restarts"] == 0
        assert b" log entries were lost: nobody read them" in around.heard
    assert around.gateway.program.status == 0
