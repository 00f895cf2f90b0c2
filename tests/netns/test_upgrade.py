"""A new version in place of the old one: killed and started anew, as `systemctl kill -s KILL nfqlb` does."""

import os
from collections.abc import Iterator
from signal import SIGKILL

import pytest

from nfqlb.demo.appliance import Appliance, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.web import document
from tests.netns.asking import ask, holding, servers_of, traces, wait_until
from tests.netns.both import Datapath, configuration, serving


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=2) as lab:
        yield lab


def test_what_runs_through_it_goes_on_with_the_next_version(lab: Lab) -> None:
    """F40: a download and held connections; and once it is stopped the machine is as it was before."""
    before = traces(lab)
    digest = document(lab, "film", 16)
    film = lab.directory / "film.got"
    config = configuration(lab, virtual("web", ["web1", "web2"], scheduler="round-robin"))
    old = Appliance(lab, config)
    old.wait_ready()
    with holding(lab.client, 6) as held:
        first = held.rounds()[0]
        known = servers_of(old)
        limits = ("--limit-rate", "3M", "--max-time", "60")
        download = lab.client.start("curl", "-sS", *limits, "-o", str(film), f"http://{VIP}/film/film")
        wait_until(lambda: film.exists() and film.stat().st_size > 1 << 20, "the first MiB")
        for process in (old.program.pid, old.worker):
            os.kill(process, SIGKILL)
        old.program.wait(5)
        new = Appliance(lab, config)
        new.wait_ready()
        assert download.running, "it had ended before the new one was there"
        assert held.again() == first
        assert known.items() <= servers_of(new).items()
        assert ask(lab.client).server in ("web1", "web2")
        assert download.wait(60) == 0, download.stderr
    assert lab.client.run("sha256sum", str(film)).stdout.split()[0] == digest
    assert new.stop() == 0
    assert traces(lab) == before
