"""F37: nobody is bound to the queue, and the kernel spreads new connections by itself (datapath offload)."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from nfqlb.demo.appliance import Appliance, balancing, nfqlb_command, socket_path, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.web import serve
from nfqlb.netfilter.alone import bypassed
from tests.netns.asking import ask, holding, rows, servers_of, spread, summary, wait_until
from tests.netns.both import OFFLOAD, Bench, configuration

WEIGHTS = {"web1": 1, "web2": 2}
DEAD = "web3"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two servers that serve, and one where nobody listens."""
    with Bench(OFFLOAD, clients=1, servers=3) as lab:
        for server in lab.servers[:2]:
            serve(lab, server)
        yield lab


def config_of(lab: Lab, gateway: str = "", dead: str = DEAD) -> str:
    reals = {name: f"weight = {weight}" for name, weight in WEIGHTS.items()}
    reals[DEAD] = "weight = 4\nfailure_threshold = 1\nfailure_clients = 1\nretry = 600"
    web = virtual("web", [*WEIGHTS, *filter(None, [dead])], scheduler="weighted-round-robin")
    return configuration(lab, web, gateway=gateway, reals=reals)


def chain(lab: Lab) -> list[str]:
    saved = lab.gateway.run("iptables-save", "-t", "nat").stdout.splitlines()
    return [line for line in saved if line.startswith("-A NFQLB-O-FALLBACK")]


def kill_both(lab: Lab, gateway: Appliance) -> None:
    worker = gateway.worker
    os.kill(gateway.program.pid, 9)
    os.kill(worker, 9)
    gateway.program.wait(5)
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the worker's end")


def shown(lab: Lab, *words: str) -> tuple[int, str]:
    done = nfqlb_command(lab, *words, "--socket", str(socket_path(lab)))
    return done.returncode, done.stdout + done.stderr


def ours(lab: Lab) -> list[str]:
    return [line for line in lab.gateway.run("iptables-save").stdout.splitlines() if "NFQLB" in line]


def test_the_kernel_goes_on_alone_and_the_next_gateway_takes_over(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    """F37: killed with all its processes; by weight, none to a failed server; counted by the next one."""
    before = ours(lab)
    config = config_of(lab)
    first = Appliance(lab, config)
    try:
        first.wait_ready()
        for _ in range(6):
            lab.client.run("curl", "-sS", "--max-time", "10", f"http://{VIP}/", check=False)
        states = {row["name"]: row["state"] for row in rows(first, "reals")}
        assert states == {"web1": "in-service", "web2": "in-service", DEAD: "failed"}
        wait_until(lambda: len(chain(lab)) == 3, "what is to happen without it")
        assert nfqlb_command(lab, "rules", "verify", "-c", str(first.config)).returncode == 0
        assert summary_part(first) == {"ready": True, "error": ""}
    finally:
        kill_both(lab, first)
    code, said = shown(lab, "show", "summary")
    assert (code, said.count("\n")) == (1, 1)
    assert "degraded: the kernel spreads new connections alone" in said
    doctor = shown(lab, "doctor")[1]
    assert "degraded" in " ".join(doctor.split())

    begun = monotonic()
    count = spread([ask(lab.client) for _ in range(60)])
    record_property("seconds", monotonic() - begun)
    assert sum(count.values()) == 60
    # by weight 20 and 40: less than 6 or more than 34 come once in 100,000 runs
    assert 6 <= count["web1"] <= 34
    assert count.keys() <= WEIGHTS.keys()

    with holding(lab.client, 10) as held, balancing(lab, config) as second:
        there = held.rounds()[0]
        assert {answer.server for answer in there} <= WEIGHTS.keys()
        wait_until(lambda: len(servers_of(second)) >= 10, "what was made without it")
        known = servers_of(second)
        assert all(known[answer.client, answer.client_port] == answer.server for answer in there)
        by_server = spread(there)
        counts = {row["name"]: row["connections"] for row in rows(second, "reals")}
        assert counts == {name: by_server[name] for name in (*WEIGHTS, DEAD)}
        texts = [row["text"] for row in rows(second, "events") if row["kind"] == "fallback"]
        assert any(text.startswith("70 new connections were made without a gateway") for text in texts), texts
        assert held.again() == there
        held.program.stop()
        wait_until(lambda: summary(second)["connections"]["now"] == 0, "the end of ten connections")
        assert {row["connections"] for row in rows(second, "reals")} == {0}
        wait_until(lambda: len(chain(lab)) >= 3, "the chain of the next gateway")
    assert ours(lab) == before
    assert "degraded" not in shown(lab, "show", "summary")[1]


def summary_part(gateway: Appliance) -> object:
    snapshot = gateway.ask("snapshot")
    assert isinstance(snapshot, dict)
    return snapshot["fallback"]


def test_a_worker_that_is_replaced_leaves_nobody_to_the_kernel(lab: Lab) -> None:
    """F37, R186: the supervisor holds the queue; and a flush is repaired, and filled again."""
    with balancing(lab, config_of(lab, dead="")) as gateway:
        wait_until(lambda: len(chain(lab)) == 3, "what is to happen without it")
        for _ in range(3):
            gateway.kill_worker()
            assert ask(lab.client).server in WEIGHTS
        listing = lab.gateway.run("iptables-save", "-c", "-t", "nat").stdout
        (last,) = [line for line in listing.splitlines() if "-A NFQLB-O-FALLBACK" in line and "LINKS" in line]
        assert last.startswith("[0:0]")
        lab.gateway.run("iptables", "-w", "-t", "nat", "-F", "NFQLB-O-FALLBACK")
        wait_until(lambda: len(chain(lab)) >= 3, "the chain repaired and filled")


def test_where_it_is_not_wanted_new_connections_wait(lab: Lab) -> None:
    """F37: fallback = false."""
    config = config_of(lab, "fallback = false")
    first = Appliance(lab, config)
    first.wait_ready()
    kill_both(lab, first)
    assert not bypassed(lab.gateway.run("iptables-save", "-t", "raw").stdout)
    done = lab.client.run("curl", "-sS", "--max-time", "2", f"http://{VIP}/", check=False)
    assert done.returncode == 28
    assert "degraded" not in shown(lab, "show", "summary")[1]
    with balancing(lab, config):
        pass
    assert not ours(lab)
