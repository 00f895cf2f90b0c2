"""A flood of SYNs from made-up addresses, on the real kernel: whoever is connected does not notice.

`NFQLB_FLOOD_SECONDS` makes it last longer than the few seconds it has here. What it measures is printed.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfqlb.demo.appliance import Appliance, balancing, virtual
from nfqlb.demo.lab import VIP, Host, Lab
from nfqlb.demo.programs import Program
from tests.netns.asking import ask, holding, rows, summary, wait_until
from tests.netns.both import Datapath, answer_nobody, configuration, offloads, serving

FLOOD = str(Path(__file__).with_name("flood.py"))
SECONDS = float(os.environ.get("NFQLB_FLOOD_SECONDS", "5"))
SOURCES = "198.18.0.0/15"
GUARD, STICKY = 2000, 1000
#: Under offload as much as the rate lets through until the kernel gives it up: two floods' here.
ROOM = 40_000
MEBI = 1 << 20


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=2, servers=2) as lab:
        answer_nobody(lab, SOURCES)
        yield lab


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Appliance]:
    servers = [f"{server.name}:80" for server in lab.servers]
    keys: dict[str, Any] = {"synguard_rate": 2000} if offloads(lab) else {"synguard": GUARD}
    keys |= {"scheduler": "round-robin", "sticky": 600}
    more = f"max_connections = {ROOM}\nmax_sticky = {STICKY}"
    with balancing(lab, configuration(lab, virtual("web", servers, **keys), gateway=more)) as appliance:
        yield appliance


def sent_again(host: Host) -> tuple[int, int]:
    """TCP segments that this host has sent, and sent again: those of established connections."""
    found: dict[str, int] = {}
    for file in ("snmp", "netstat"):
        lines = host.run("cat", f"/proc/net/{file}").stdout.splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            kind = names.split(":")[0]
            numbers = map(int, values.split()[1:])
            found |= {f"{kind}.{name}": n for name, n in zip(names.split()[1:], numbers, strict=True)}
    return found["Tcp.OutSegs"], max(0, found["Tcp.RetransSegs"] - found["TcpExt.TCPSynRetrans"])


def memory(process: int) -> int:
    """Bytes of main memory that are a process's own."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def web(gateway: Appliance) -> dict[str, object]:
    return rows(gateway, "virtuals")[0]


def told(gateway: Appliance, what: str) -> int:
    """How many events begin with this."""
    return sum(str(event["text"]).startswith(what) for event in rows(gateway, "events", limit=50))


def flood(lab: Lab, seconds: float, *words: str) -> Program:
    return lab.clients[1].start(sys.executable, FLOOD, VIP, "80", str(seconds), *words)


@pytest.mark.timeout(180)
def test_a_flood_from_anywhere(lab: Lab, gateway: Appliance) -> None:
    """F24, F25: no connection lost, under 1 % of their packets; bounded memory; well after five seconds."""
    first = ask(lab.client).server
    with holding(lab.client, 20) as held:
        answers = held.rounds()[0]
        how = ("-t1", "-c8", f"-d{SECONDS + 2:.0f}", "--timeout", "10s")
        load = lab.client.start("wrk", *how, f"http://{VIP}/")
        wait_until(lambda: int(summary(gateway)["connections"]["now"]) >= 28, "the load")
        before, used = [sent_again(host) for host in (lab.client, *lab.servers)], memory(gateway.worker)
        program = flood(lab, SECONDS)
        most = most_half_open = 0
        while program.running:
            whole, row = summary(gateway), web(gateway)
            most = max(most, int(whole["connections"]["now"]))
            most_half_open = max(most_half_open, int(str(row["half_open"])))
            time.sleep(0.2)
        over = time.monotonic()
        assert held.again() == answers
        wait_until(lambda: ask(lab.client).server == first, "the client's server once more", timeout=5)
        recovered = time.monotonic() - over
        after = [sent_again(host) for host in (lab.client, *lab.servers)]
        assert load.wait(30) == 0
        assert "Socket errors" not in load.stdout, load.stdout
    sent = sum(now[0] - then[0] for now, then in zip(after, before, strict=True))
    again = sum(now[1] - then[1] for now, then in zip(after, before, strict=True))
    whole, row, grown = summary(gateway), web(gateway), memory(gateway.worker) - used
    syns = int(program.stdout)
    print(
        f"{syns:,} SYNs in {SECONDS:g} s ({syns / SECONDS:,.0f}/s); of {sent:,} segments {again} sent again; "
        f"at most {most:,} connections, {most_half_open:,} half-open; memory {grown / MEBI:+.1f} MiB; "
        f"a new connection {recovered:.2f} s after the end; {json.dumps(row['drops'])}, {row['evicted']}, "
        f"{whole['evicted']}, queues {[(q['dropped_full'], q['dropped_socket']) for q in whole['queues']]}"
    )
    assert syns > 10_000
    assert again <= sent / 100
    assert most <= ROOM
    assert grown < 64 * MEBI
    assert whole["worker"]["restarts"] == 0
    assert whole["audit"] == {"drift": 0}
    if not offloads(lab):
        assert most_half_open <= GUARD
        assert int(str(whole["evicted"]["sticky"])) > 0
    wait_until(lambda: told(gateway, "web: no SYN flood any more; ") == 1, "the end of the flood", timeout=20)
    assert told(gateway, "web: SYN flood, ") == 1


@pytest.mark.timeout(120)
def test_one_clients_flood_leaves_others_their_connections(lab: Lab, gateway: Appliance) -> None:
    """F24: who has his share goes without first; somebody else's connections are made meanwhile."""
    program = flood(lab, 4, "4000" if offloads(lab) else "1500", "198.18.7.7")
    wait_until(lambda: bool(web(gateway)["flood"]), "the flood")
    slowest, made = 0.0, 0
    while program.running:
        begun = time.monotonic()
        ask(lab.client)
        made += 1
        slowest = max(slowest, time.monotonic() - begun)
    print(f"{made} connections beside {int(program.stdout):,} SYNs; the slowest took {slowest:.2f} s")
    assert made >= 10
    assert slowest < 5
