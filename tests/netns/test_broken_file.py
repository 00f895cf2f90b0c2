"""A configuration that is spoilt on disk while the gateway runs: neither restart nor crash is an outage."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfqlb.demo.appliance import Appliance, balancing, nfqlb_command, socket_path, virtual
from nfqlb.demo.lab import Lab
from nfqlb.demo.web import serve
from tests.netns.asking import ask, files_of, holding, spread, traces, wait_until
from tests.netns.both import REWRITE, SAME, Bench, Datapath, configuration, only
from tests.netns.test_reload import order, reload
from tests.netns.test_takeover import follow, kill_supervisor, start


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, clients=1, servers=3) as lab:
        for server in lab.servers:
            serve(lab, server)
        yield lab


def web(lab: Lab, *names: str) -> str:
    return configuration(lab, virtual("web", names, scheduler="round-robin"))


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Appliance]:
    before = traces(lab)
    with balancing(lab, web(lab, "web1", "web2")) as appliance:
        yield appliance
        assert "Traceback" not in appliance.program.stderr
    assert traces(lab) == before


def spoil(gateway: Appliance) -> None:
    """Two mistakes."""
    gateway.config.write_text(gateway.config.read_text().replace("scheduler", "schedular") + "flavour = 1\n")


def verdict(gateway: Appliance) -> str:
    done = order(gateway.lab, "show", "summary")
    found = re.search(r"^verdict +(.*)$", done.stdout, flags=re.MULTILINE)
    assert found, done
    return found[1]


def test_a_restart_with_a_broken_file_goes_on_as_before(lab: Lab, gateway: Appliance) -> None:
    """It serves, says so everywhere, and a reload brings in the repaired file."""
    with holding(lab.client, 4) as held:
        first = held.rounds()[0]
        reload(gateway, web(lab, "web1", "web2", "web3"))
        spoil(gateway)
        assert gateway.stop(signal.SIGUSR1) == 0  # as `systemctl restart` does
        follow(gateway)
        assert held.again() == first
        assert spread([ask(lab.client) for _ in range(3)]) == {"web1": 1, "web2": 1, "web3": 1}
        said = f"runs on the configuration of before: {gateway.config} has 2 errors"
        assert verdict(gateway) == said
        doctor = nfqlb_command(lab, "doctor", "--json", "--socket", str(socket_path(lab))).stdout
        assert f"it {said}" in doctor
        log = gateway.program.stderr
        assert re.search(rf"ERROR: {gateway.config}:\d+: error: .*schedular", log)
        assert re.search(rf"ERROR: {gateway.config}:\d+: error: .*flavour", log)
        assert f"WARNING: {said}; repair it, then `nfqlb reload`" in log
        assert order(lab, "reload").returncode == 1
        assert "runs on the configuration of before" in verdict(gateway)
        reload(gateway, web(lab, "web1", "web2"))
        wait_until(lambda: verdict(gateway) == "all well", "a verdict as before")
        assert held.again() == first


@only(REWRITE, SAME)
def test_nobody_left_and_a_broken_file(lab: Lab, gateway: Appliance) -> None:
    """F11, F19: supervisor and worker killed; what ran before is found beside the rules."""
    spoil(gateway)
    worker = kill_supervisor(gateway)
    os.kill(worker, signal.SIGKILL)
    follow(gateway)
    assert spread([ask(lab.client) for _ in range(4)]) == {"web1": 2, "web2": 2}
    assert "runs on the configuration of before" in verdict(gateway)


@only(REWRITE, SAME)
def test_a_file_that_is_nothing_for_this_machine(lab: Lab, gateway: Appliance) -> None:
    """F11: the worker that is left is not ended for what cannot be had."""
    good = gateway.config.read_text()
    gateway.config.write_text(good.replace('outside = "outside"', 'outside = "eth9"'))
    check = ("check", "--host", str(gateway.config))
    goes_on = "would go on with the configuration of before\n"
    told = nfqlb_command(lab, *check).stderr
    assert told == f"nfqlb: 1 error: a reload would refuse it, a restart {goes_on}"
    kill_supervisor(gateway)
    assert nfqlb_command(lab, *check).stderr == f"nfqlb: 1 error: `nfqlb run` {goes_on}"
    follow(gateway)
    assert ask(lab.client).server in ("web1", "web2")
    assert verdict(gateway).endswith("cannot run on this machine: outside interface eth9 does not exist")
    reload(gateway, good)
    wait_until(lambda: verdict(gateway) == "all well", "a verdict as before")


@only(REWRITE, SAME)
def test_a_broken_file_is_refused_where_nothing_is_lost(lab: Lab) -> None:
    """At a first start, after a clean stop, after a removal, and where one runs to take over from."""
    config = web(lab, "web1", "web2")
    with balancing(lab, config) as gateway:
        (kept,) = (Path(name) for name in files_of(lab.gateway.namespace) if name.endswith(".toml"))
        assert kept.stat().st_mode & 0o777 == 0o600
        assert kept.read_text().endswith(config)
        spoil(gateway)
        assert start(gateway, "--take-over").wait(15) == 78
        assert ask(lab.client).server in ("web1", "web2")
    assert start(gateway).wait(15) == 78
    gateway = Appliance(lab, config)
    gateway.wait_ready()
    worker = kill_supervisor(gateway)
    os.kill(worker, signal.SIGKILL)
    assert f"{kept} removed" in nfqlb_command(lab, "rules", "remove").stdout
    gateway.config.write_text(config.replace('outside = "outside"', 'outside = "eth9"'))
    told = nfqlb_command(lab, "check", "--host", str(gateway.config)).stderr
    assert told == "nfqlb: 1 error: `nfqlb run` would refuse to start here\n"
    spoil(gateway)
    assert start(gateway).wait(15) == 78
