"""F36: of two gateways the one that serves loses its power, and later hands over by plan; see `pair`."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIGCONT
from typing import Any, cast

import pytest

from nfqlb.demo.appliance import virtual
from nfqlb.demo.lab import VIP, VIP6
from nfqlb.demo.programs import Program
from nfqlb.demo.web import serve
from tests.netns.asking import Held, ask, holding, wait_until
from tests.netns.pair import Machine, Pair

BUSY = str(Path(__file__).with_name("busy.py"))
KEPT = 50
OUTAGE = 8.0  # seconds; some two on a machine that is not busy, but this is no measurement
#: The examples' virtual servers are of datapath offload; beside them as many of the other.
OFFLOAD, REWRITE = PORTS = 80, 8080
PLACES = [(address, port) for address in (VIP, VIP6) for port in PORTS]
SLOW = "".join(
    virtual(
        f"slow{end}", [f"web1{end}:8080", f"web2{end}:8080"],
        address=address, port=REWRITE, datapath="rewrite", sticky=600,
    )
    for end, address in (("", VIP), ("-6", VIP6))
)  # fmt: skip
HELD = 3  # idle connections to each


@pytest.fixture
def lab() -> Iterator[Pair]:
    with Pair(clients=2, servers=2) as lab:
        for server in lab.servers:
            serve(lab, server, ports=PORTS)
        for machine in lab.machines:
            text = machine.config.read_text().replace("[gateway]", '[gateway]\nreject = "reset"')
            machine.config.write_text(text + SLOW)
        yield lab


def busy(lab: Pair) -> list[Program]:
    """Connections that are kept busy, and new ones; programs that tell at their end how they fared."""
    programs = [
        lab.client.start(sys.executable, BUSY, address, str(port), str(KEPT)) for address, port in PLACES
    ]
    for program in programs:
        program.wait_for(program.out, "busy\n", timeout=20.0)
    return programs


def fared(programs: list[Program]) -> list[dict[str, float]]:
    """How the connections to each place fared, within the bounds of F36."""
    for program in programs:
        program.send(program.ending)
    for program in programs:
        # a second SIGTERM, once it is nearly through, would be the end of it
        assert program.stop(SIGCONT, timeout=20.0) == 0, program.stderr
    found = [cast(dict[str, float], json.loads(program.stdout.splitlines()[-1])) for program in programs]
    assert [each["kept"] for each in found] == [KEPT] * len(PLACES)
    assert sum(each["failed"] for each in found) <= KEPT * len(PLACES) // 100, found
    assert not any(each["unmade"] for each in found), found
    assert max(each["outage"] for each in found) <= OUTAGE, found
    return found


def counts(machine: Machine) -> int:
    """How many connections it knows."""
    rows = cast(list[dict[str, Any]], machine.ask("reals"))
    return sum(row["connections"] for row in rows)


def told_of(machine: Machine) -> int:
    """How many connections its conntrackd has been told of by the other one."""
    text = machine.run("conntrackd", "-s").partition("cache external:")[2]
    return int(text.split("current active connections:")[1].split()[0])


def test_connections_go_on_through_the_other_gateway(
    lab: Pair, record_property: Callable[[str, object], None]
) -> None:
    """F36: established connections go on and count, sticky clients keep their server, new ones are made.

    By IPv4 and IPv6 at once, through both datapaths.
    """
    first, second = lab.machines
    quiet = lab.clients[1]
    for machine in lab.machines:
        machine.boot()
    first.join()
    wait_until(lambda: first.serves, "the first gateway")
    second.join()
    bound = [ask(quiet, address=address, port=port).server for address, port in PLACES]

    def sticks() -> bool:
        return bound == [ask(quiet, address=address, port=port).server for address, port in PLACES]

    with ExitStack() as stack:
        held: list[Held] = [
            stack.enter_context(holding(quiet, HELD, address=address, port=port)) for address, port in PLACES
        ]
        there = [each.rounds()[0] for each in held]
        loads = busy(lab)
        all_of_them = len(PLACES) * (KEPT + HELD)
        wait_until(lambda: told_of(second) >= all_of_them, "what the second gateway is told")
        assert not second.serves
        assert counts(second) == 0
        lab.cut_off(first)
        wait_until(lambda: second.serves, "the second gateway")
        wait_until(lambda: counts(second) >= all_of_them, "all connections")
        assert [each.again() for each in held] == there
        record_property("power_off", fared(loads))
        assert sticks()
        wait_until(lambda: counts(second) == len(PLACES) * HELD, "the end of the others")

        lab.cut_off(first, back=True)
        loads = busy(lab)
        wait_until(lambda: told_of(first) >= all_of_them, "what the first gateway is told")
        assert second.serves
        assert not first.serves
        second.stop_keepalived()
        wait_until(lambda: first.serves, "the first gateway again")
        wait_until(lambda: counts(first) >= all_of_them, "all connections again")
        assert [each.again() for each in held] == there
        record_property("by_plan", fared(loads))
        assert sticks()
        wait_until(lambda: counts(first) == len(PLACES) * HELD, "the end of the others again")

        second.join()
        wait_until(lambda: told_of(second) >= len(PLACES) * HELD, "what the second gateway is told again")
        first.kill()
        wait_until(lambda: second.serves, "the second gateway again")
        assert [each.again() for each in held] == there
        assert sticks()
    for machine in lab.machines:
        assert "Traceback" not in machine.programs["nfqlb"].stderr
