"""A hundred thousand connections of every ending on the real kernel: nothing of them is left."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nfqlb.core.spec import Gateway
from nfqlb.demo.appliance import Appliance, balancing, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.netfilter.conntrack import Conntrack, Entry
from tests.netns.asking import rows, summary, wait_until
from tests.netns.both import Bench, Datapath, configuration, offloads
from tests.netns.endings import WAYS
from tests.netns.site import entered

ENDINGS = str(Path(__file__).with_name("endings.py"))
OPEN, SILENT, CLOSED = 80, 81, 82
CONNECTIONS = 100_000
CLIENTS = 2
TIMEOUTS = "[timeouts]\nidle = 4\nhalf_open = 3\nclosing = 2\n"


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, clients=CLIENTS, servers=3) as lab:
        for server in lab.servers:
            program = server.start(sys.executable, ENDINGS, "serve", str(OPEN))
            program.wait_for(program.out, "serving")
            server.run("iptables", "-w", "-A", "INPUT", "-p", "tcp", "--dport", str(SILENT), "-j", "DROP")
        yield lab


@pytest.mark.timeout(240)
def test_nothing_is_left_of_connections_of_every_ending(lab: Lab) -> None:
    """R043, R061, R127-R129, R183, R187 (A17): every count is zero again and every table empty.

    Ended by FIN of either side, by a reset of either side, refused, never answered, and forgotten by both
    sides in silence; with sticky clients among them.
    """
    config = configuration(
        lab,
        virtual("open", [server.name for server in lab.servers], port=OPEN, sticky=3),
        virtual("silent", [server.name for server in lab.servers], port=SILENT, scheduler="round-robin"),
        virtual("closed", [server.name for server in lab.servers], port=CLOSED, sticky=2),
        reals=dict.fromkeys((server.name for server in lab.servers), "failure_threshold = 0"),
    )
    with balancing(lab, config + TIMEOUTS) as appliance:
        share = CONNECTIONS // CLIENTS
        words = ("call", VIP, *map(str, (OPEN, SILENT, CLOSED, share)))
        programs = [client.start(sys.executable, ENDINGS, *words) for client in lab.clients]
        for program in programs:
            assert program.wait(150) == 0, program.stderr
            told = json.loads(program.stdout)
            assert not told["wrong"], told
            assert set(told["done"]) == set(WAYS)
            assert sum(told["done"].values()) == share
        assert summary(appliance)["connections"]["total"] == CONNECTIONS
        vanished = rows(appliance, "connections", virtual="open", limit=10_000)
        assert "established" in {row["state"] for row in vanished}, "nobody has vanished in silence"
        wait_until(lambda: not remains(appliance), "the end of all connections", timeout=30)
        if offloads(lab):  # conntrack keeps our time-outs
            wait_until(lambda: not tracked(lab), "the end of all that the kernel carried")
        assert summary(appliance)["worker"]["restarts"] == 0
        assert summary(appliance)["drops"].get("internal-error", 0) == 0


def tracked(lab: Lab) -> list[Entry]:
    """What of ours the gateway's kernel still has."""
    with entered(lab.gateway.namespace), closing(Conntrack()) as table:
        return list(table.entries(Gateway(("",), ("",)).mark_mask))


def remains(appliance: Appliance) -> list[object]:
    """Whatever is not zero or empty."""
    found: list[object] = [rows(appliance, "connections"), rows(appliance, "sticky")]
    found += [summary(appliance)[table]["now"] for table in ("connections", "sticky")]
    found += [(row["connections"] or row["unanswered"]) for row in rows(appliance, "reals")]
    for row in rows(appliance, "virtuals"):
        found += [row["connections"], *(link["connections"] for link in row["servers"])]
    return [each for each in found if each]
