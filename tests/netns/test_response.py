"""Response times on the real kernel: from its own stamps, and what fastest-response makes of them."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfqlb.demo.appliance import Appliance, balancing, virtual
from nfqlb.demo.lab import Host, Lab
from tests.netns.asking import ask, holding, rows, spread, summary, wait_until
from tests.netns.both import Datapath, configuration, offloads, serving

ALL = ("web1", "web2", "web3")
SLOW = Path(__file__).with_name("slow_server.py")
PORT = 8000
#: Seconds that the machine may add to a response while it does other things.
PATIENCE = 5.0
#: Seconds: longer than the first answer took.
SLOW_ANSWER = 2.0


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    """Every server has nginx on port 80, and one that can be slowed down on port 8000."""
    with serving(datapath, clients=1, servers=3) as lab:
        for server in lab.servers:
            slow(lab, server, 0)
            words = (str(SLOW), server.name, str(PORT), str(delay_of(lab, server)))
            program = server.start(sys.executable, *words)
            program.wait_for(program.out, "listening\n")
        yield lab


def delay_of(lab: Lab, server: Host) -> Path:
    """The file that says how slow a server is."""
    return lab.directory / f"{server.name}.delay"


def slow(lab: Lab, server: Host, seconds: float) -> None:
    """Let a server take so long for each answer."""
    delay_of(lab, server).write_text(str(seconds))


def real(appliance: Appliance, name: str) -> dict[str, Any]:
    """One real server as the gateway shows it."""
    return next(row for row in rows(appliance, "reals") if row["name"] == name)


@pytest.mark.parametrize("scheduler", ["weighted-least-connections", "fastest-response"])
def test_the_kernel_s_stamps_tell_the_response_time(lab: Lab, scheduler: str) -> None:
    """R032, R082, R094, R171, R188: whatever the scheduler, operators see how long a server took.

    In datapath offload the worker is told of data only where a scheduler goes by it (R173).
    """
    slow(lab, lab.servers[0], 0.4)
    web = virtual("slow", ["web1:8000"], port=8000, scheduler=scheduler)
    plain = virtual("plain", ["web2"], scheduler=scheduler)
    with balancing(lab, configuration(lab, web, plain)) as appliance:
        assert real(appliance, "web1")["response_s"] is None
        if not timed(lab, scheduler):
            assert ask(lab.client, port=8000).server == "web1"
            assert [real(appliance, name)["response_s"] for name in ALL] == [None] * 3
            return
        # the kernel begins to stamp a moment after the first who asks for it
        wait_until(lambda: measured(lab, appliance, "web2"), "a response time")
        ask(lab.client, port=8000)
        wait_until(lambda: real(appliance, "web1")["response_s"] is not None, "the worker to be told")
        shown = real(appliance, "web1")
        assert 0.4 <= shown["response_s"] < 0.4 + PATIENCE
        assert (shown["predicted_s"] is not None) is (scheduler == "fastest-response")
        assert 0 < real(appliance, "web2")["response_s"] < PATIENCE
        assert summary(appliance)["drops"].get("internal-error", 0) == 0


def timed(lab: Lab, scheduler: str) -> bool:
    """Whether response times are known at all."""
    return scheduler == "fastest-response" or not offloads(lab)


def measured(lab: Lab, appliance: Appliance, name: str) -> bool:
    """Whether a request has given a response time."""
    ask(lab.client)
    return real(appliance, name)["response_s"] is not None


@pytest.mark.parametrize("scheduler", ["round-robin", "fastest-response"])
def test_requests_of_one_connection(lab: Lab, scheduler: str) -> None:
    """R082, R162, R173: each is measured where it matters, elsewhere the first one."""
    if not timed(lab, scheduler):
        pytest.skip("without a scheduler that goes by it nothing is measured there")
    slow(lab, lab.servers[0], 0)
    web = virtual("slow", ["web1:8000"], port=8000, scheduler=scheduler)
    plain = virtual("plain", ["web2"], scheduler=scheduler)
    with balancing(lab, configuration(lab, web, plain)) as appliance:
        wait_until(lambda: measured(lab, appliance, "web2"), "a response time")
        with holding(lab.client, 1, port=8000) as held:
            wait_until(lambda: real(appliance, "web1")["response_s"] is not None, "the worker to be told")
            first = real(appliance, "web1")["response_s"]
            assert 0 < first < SLOW_ANSWER
            slow(lab, lab.servers[0], SLOW_ANSWER)
            held.again()
            if scheduler == "round-robin":
                assert real(appliance, "web1")["response_s"] == first
            else:
                wait_until(lambda: real(appliance, "web1")["response_s"] >= SLOW_ANSWER, "a slow answer")


def test_a_slow_server_gets_few_clients_until_it_is_fast_again(lab: Lab) -> None:
    """R092, R093, R098, R104, F21: it is avoided, tried now and then, and used again once it is fast."""
    web1 = lab.servers[0]
    slow(lab, web1, 0.5)
    servers = [f"{name}:{PORT}" for name in ALL]
    web = virtual("web", servers, scheduler="fastest-response", predict="next")
    with balancing(lab, configuration(lab, web)) as appliance:
        wait_until(lambda: all_measured(lab, appliance), "all servers to be tried")
        served = spread([ask(lab.client) for _ in range(100)])
        assert served["web1"] * 3 < min(served["web2"], served["web3"]), served
        slow(lab, web1, 0)

        def back() -> bool:
            return spread([ask(lab.client) for _ in range(12)]).get("web1", 0) >= 3

        begun = time.monotonic()
        wait_until(back, "web1 to be used again", timeout=40)
        print(f"slow: {served}; its share again {time.monotonic() - begun:.1f} s after it was fast")
        assert real(appliance, "web1")["response_s"] < 0.5
        assert summary(appliance)["drops"].get("internal-error", 0) == 0


def all_measured(lab: Lab, appliance: Appliance) -> bool:
    """Whether every server has a response time, after one more request."""
    ask(lab.client)
    return all(row["response_s"] is not None for row in rows(appliance, "reals"))


def test_startup_in_turn_until_all_are_known(lab: Lab) -> None:
    """R100, R102: then the scheduler that was asked for acts."""
    slow(lab, lab.servers[0], 0)
    servers = [f"{name}:{PORT}" for name in ALL]
    web = virtual("web", servers, scheduler="fastest-response", startup="round-robin", startup_time=0)
    with balancing(lab, configuration(lab, web)) as appliance:
        acted = []

        def known() -> bool:
            ask(lab.client)
            acted.append(rows(appliance, "virtuals")[0]["scheduler"]["actual"])
            return bool(acted[-1] == "fastest-response")

        wait_until(known, "the scheduler asked for")
        assert len(acted) >= 4
        assert set(acted[:-1]) == {"round-robin"}
