"""`nfqlb explain` on the real kernel: why a real request went where it went."""

import json
import re
import time
from collections.abc import Iterator

import pytest

from nfqlb.demo.appliance import Appliance, balancing, nfqlb_command, socket_path, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.web import serve
from nfqlb.runtime.protocol import ControlError
from tests.netns.asking import ask, holding, rows, wait_until
from tests.netns.both import Bench, Datapath, configuration

SERVERS = ("web1", "web2")


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, clients=1, servers=2) as lab:
        for server in lab.servers:
            serve(lab, server, ports=(80,))
        yield lab


def explain(lab: Lab, *words: str, known: bool = True) -> str:
    """What the command says; on stderr where it knows of no such decision."""
    done = nfqlb_command(lab, "explain", *words, "--socket", str(socket_path(lab)))
    assert (done.returncode, done.stderr if known else done.stdout) == (0 if known else 1, "")
    return done.stdout if known else done.stderr


def config(lab: Lab, sticky: int = 0) -> str:
    """A virtual server whose web2 has twice the weight."""
    shop = virtual("shop", SERVERS, scheduler="weighted-least-connections", sticky=sticky)
    return configuration(lab, shop, reals={"web2": "weight = 2"})


def test_a_request_is_explained(lab: Lab) -> None:
    """R187, R096: the server that curl got, and the numbers that were compared."""
    with balancing(lab, config(lab)) as appliance, holding(lab.client, 2):
        answer = ask(lab.client)
        told = rows(appliance, "decisions", limit=1)[0]
        assert abs(told["at"] - time.time()) < 60
        assert (told["client"], told["client_port"]) == (answer.client, answer.client_port)
        assert (told["chosen"], told["virtual"], told["by"]) == (answer.server, "shop", "scheduler")
        who = f"{answer.client}:{answer.client_port}"
        for words in ((), ("--connection", who), ("--connection", f"{who}-{VIP}:80", "--virtual", "shop")):
            first, *lines = explain(lab, *words).splitlines()
            assert first.endswith(f"  {who} to shop went to web2:80.")
            assert lines == [
                "  Clients are not sticky here. weighted-least-connections compared 2 servers.",
                "    web2   1 connection / weight 2 = 0.5   chosen",
                "    web1   1 connection / weight 1 = 1     worse",
            ]
        assert len(json.loads(explain(lab, "--client", answer.client, "--last", "9", "--json"))) == 3
        table = nfqlb_command(lab, "show", "decisions", "--socket", str(socket_path(lab))).stdout
        assert table.splitlines()[1].split()[2:] == ["shop", who, "web2:80", "scheduler", "off"]


def test_a_sticky_client_is_explained_and_what_is_left_after_the_worker(lab: Lab) -> None:
    """R187: the record is the worker's; connections and sticky entries outlive that."""
    with balancing(lab, config(lab, sticky=600)) as appliance, holding(lab.client, 1) as held:
        (answer,) = held.rounds()[0]
        assert ask(lab.client).server == answer.server
        assert f"Its sticky entry says {answer.server}, and holds anew." in explain(lab)
        before = appliance.kill_worker()
        wait_until(lambda: restarted(appliance, before), "another worker")
        assert held.again()[0].server == answer.server
        who = f"{answer.client}:{answer.client_port}"
        first, *known = explain(lab, "--connection", who, known=False).splitlines()
        assert first.startswith("No decision about")
        assert known[0].startswith(f"  {who} to shop is with {answer.server}:80:")
        assert known[1].startswith(f"  sticky entry for shop: {answer.server}, for ")
        assert explain(lab, known=False) == "no decision is recorded yet\n"


def restarted(appliance: Appliance, before: int) -> bool:
    """Whether a worker with another process id answers."""
    try:
        return appliance.worker != before and bool(rows(appliance, "connections"))
    except (ControlError, AssertionError):
        return False


def test_a_failed_server_is_explained(lab: Lab) -> None:
    """R181, R187: refused connections fail web1, and that is said."""
    keys = "failure_threshold = 1\nfailure_clients = 1\nretry = 3600"
    shop = virtual("shop", ["web1:9000", "web2:80"], scheduler="round-robin")
    with balancing(lab, configuration(lab, shop, reals={"web1": keys})):
        for _ in range(2):
            lab.client.run("curl", "-sS", "--max-time", "10", f"http://{VIP}/", check=False)
        assert ask(lab.client).server == "web2"
        lines = explain(lab).splitlines()
        assert re.fullmatch(r"    web2   \d connections?, weight 1 +chosen", lines[2]), lines
        assert re.fullmatch(r"    web1   had failed (\d+\.\ds|just) before +passed over", lines[3]), lines


def test_a_shadow_is_asked_and_not_obeyed(lab: Lab) -> None:
    """R098: by real response times, which are measured for it under both datapaths."""
    turns = virtual("shop", SERVERS, scheduler="round-robin", shadow="fastest-response")
    with balancing(lab, configuration(lab, turns)) as appliance:
        answers = [ask(lab.client).server for _ in range(8)]
        assert answers == ["web1", "web2"] * 4
        (shop,) = rows(appliance, "virtuals")
        assert shop["shadow"]["scheduler"] == "fastest-response"
        assert shop["shadow"]["evaluated"] == 8
        assert 0 <= shop["shadow"]["differed"] <= 8
        wait_until(
            lambda: all(each["response_s"] for each in rows(appliance, "reals")), "response times"
        )
        assert "In shadow, fastest-response would have taken " in " ".join(explain(lab).split())
        shown = nfqlb_command(lab, "show", "virtuals", "--socket", str(socket_path(lab))).stdout
        said = r"^  shadow fastest-response: another server in [\d.]+% of 8 decisions$"
        assert re.search(said, shown, re.M)
