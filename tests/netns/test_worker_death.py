"""`kill -9` of the worker under traffic: what is under way goes on, on the same servers."""

from collections.abc import Iterator

import pytest

from nfqlb.demo.appliance import Appliance, balancing, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.web import document
from nfqlb.runtime.protocol import ControlError
from tests.netns.asking import ask, holding, queued, servers_of, spread, summary, wait_until, wrk
from tests.netns.both import Datapath, configuration, serving


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=3) as lab:
        yield lab


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Appliance]:
    servers = [f"{server.name}:80" for server in lab.servers]
    config = configuration(
        lab, virtual("web", servers, scheduler="round-robin"), virtual("shop", servers, port=8080, sticky=600)
    )
    with balancing(lab, config) as appliance:
        yield appliance


def replace_worker(gateway: Appliance) -> None:
    """`kill -9` the worker and wait until another one answers."""
    killed = gateway.kill_worker()

    def replaced() -> bool:
        try:
            return gateway.worker != killed
        except ControlError:
            return False

    wait_until(replaced, "a new worker")


def test_download_goes_on(lab: Lab, gateway: Appliance) -> None:
    """R187: the worker is killed in mid-download; the document ends intact, served by a new worker."""
    digest = document(lab, "film", 4)
    film = lab.directory / "film.got"
    program = lab.client.start("curl", "-sS", "--max-time", "30", "-o", str(film), f"http://{VIP}/film/film")
    wait_until(lambda: film.exists() and film.stat().st_size > 1 << 20, "the first MiB")
    replace_worker(gateway)
    assert program.running, "the download had ended before the worker was killed"
    assert program.wait(30) == 0, program.stderr
    assert lab.client.run("sha256sum", str(film)).stdout.split()[0] == digest
    assert summary(gateway)["worker"]["restarts"] == 1


def test_connections_keep_their_servers(lab: Lab, gateway: Appliance) -> None:
    """R055, R187: open connections are known to the new worker and go on to the servers that they had."""
    with holding(lab.client, 60) as held:
        first = held.rounds()[0]
        known = servers_of(gateway)
        replace_worker(gateway)
        assert held.again() == first
        assert servers_of(gateway) == known
        assert spread(first) == {"web1": 20, "web2": 20, "web3": 20}
    wait_until(lambda: summary(gateway)["connections"]["now"] == 0, "the end of sixty connections")


def test_killed_again_and_again_under_load(lab: Lab, gateway: Appliance) -> None:
    """F10, R187: five times within a load of 20 connections; no socket error, nothing stuck in a queue."""
    load = lab.client.start("wrk", "-t1", "-c20", "-d8", "--timeout", "10s", f"http://{VIP}/")
    for restarts in range(1, 6):
        wait_until(lambda: summary(gateway)["connections"]["now"] >= 20, "all connections")
        ask(lab.client, port=8080)
        replace_worker(gateway)
        assert summary(gateway)["worker"]["restarts"] == restarts
        assert summary(gateway)["connections"]["now"] >= 20
    assert load.wait(30) == 0
    assert "Socket errors" not in load.stdout, load.stdout
    assert "requests in" in load.stdout
    wait_until(lambda: queued(lab) == 0, "empty queues")
    wrk(lab.client, f"http://{VIP}/", connections=20, seconds=1)


def test_killed_while_connections_are_made(lab: Lab, gateway: Appliance) -> None:
    """R187: three times within a load of 50 clients that connect anew for each request; none is refused.

    What was not answered yet waits for the client's own repetition at the most.
    """
    closing = ("-H", "Connection: close")
    load = lab.client.start("wrk", "-t1", "-c50", "-d4", "--timeout", "10s", *closing, f"http://{VIP}/")
    for _ in range(3):
        before = summary(gateway)["connections"]["total"]
        wait_until(lambda before=before: summary(gateway)["connections"]["total"] > before, "new connections")  # type: ignore[misc]
        replace_worker(gateway)
    assert load.wait(30) == 0
    assert "Socket errors" not in load.stdout, load.stdout
    assert summary(gateway)["worker"]["restarts"] == 3
    assert summary(gateway)["connections"]["total"] > 50
    wait_until(lambda: summary(gateway)["connections"]["now"] == 0, "the end of all connections")
