"""What the tests ask of a laboratory: requests from its clients, what is left on its gateway."""

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from signal import SIGUSR1
from typing import Any, cast

from nfqlb.demo.appliance import Appliance
from nfqlb.demo.lab import VIP, Host, Lab
from nfqlb.demo.programs import Program

PREFIX = "nfqlb-test"
"""Of every laboratory that the tests make."""

HOLDER = Path(__file__).with_name("holder.py")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said of a request: its own name, and the client's address and port as it saw them."""

    server: str
    client: str
    client_port: int
    port: int


def parse(line: str) -> Answer:
    """The answer in the first line of a page."""
    server, client, client_port, port = line.split()
    return Answer(server, client, int(client_port), int(port))


#: Below the ports that the kernel gives out. One used twice in ten seconds, through two virtual servers,
#: would be a collision, which rightly overrides stickiness (A5).
_LOCAL_PORTS = cycle(range(20_000, 32_000))


def ask(host: Host, *, address: str = VIP, port: int = 80, source: str = "") -> Answer:
    """One request over a connection of its own, from a port not used before."""
    interface = ("--interface", source) if source else ()
    url = f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"
    local = ("--local-port", str(next(_LOCAL_PORTS)))
    return parse(host.run("curl", "-sS", "--max-time", "10", *local, *interface, url).stdout)


def spread(answers: list[Answer]) -> Counter[str]:
    """How many answers each server gave."""
    return Counter(answer.server for answer in answers)


class Held:
    """Connections held open by a client."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def rounds(self) -> list[list[Answer]]:
        """The answers over each connection: one list for every round of requests that is complete."""
        text = self.program.stdout
        return [[parse(line) for line in block.splitlines()] for block in text.split("\n\n")[:-1]]

    def again(self) -> list[Answer]:
        """One more request over every connection; the answers in the connections' order."""
        before = len(self.rounds())
        self.program.send(SIGUSR1)
        wait_until(
            lambda: len(self.rounds()) > before or not self.program.running, "another round of answers"
        )
        assert self.program.running, self.program.stderr
        return self.rounds()[-1]


@contextmanager
def holding(
    host: Host, count: int, *, address: str = VIP, port: int = 80, own_port: int = 0
) -> Iterator[Held]:
    """Open `count` connections one after the other, ask once over each, and keep them open.

    `own_port` is the client's port for a single one, 0 for any.
    """
    program = host.start(sys.executable, str(HOLDER), address, str(port), str(count), str(own_port))
    try:
        program.wait_for(program.out, "\n\n", timeout=20.0)
        yield Held(program)
    finally:
        program.stop()


def wait_until(condition: Callable[[], bool], what: str, *, timeout: float = 15.0) -> None:
    """Wait until something is so. Fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what} after {timeout:g} s"
        time.sleep(0.02)


def rows(appliance: Appliance, subject: str, **arguments: object) -> list[dict[str, Any]]:
    """A list that the gateway shows."""
    return cast(list[dict[str, Any]], appliance.ask(subject, cast(Any, arguments)))


def summary(appliance: Appliance) -> dict[str, Any]:
    """The gateway's summary."""
    return cast(dict[str, Any], appliance.ask("summary"))


def servers_of(appliance: Appliance) -> dict[tuple[str, int], str]:
    """Each live connection's client address and port, with its server."""
    found = rows(appliance, "connections", limit=10_000)
    return {(row["client"], row["client_port"]): row["real"] for row in found}


def queued(lab: Lab) -> int:
    """Packets that wait in the gateway's queues."""
    text = lab.gateway.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout
    return sum(int(line.split()[2]) for line in text.splitlines())


def rules(lab: Lab, program: str = "iptables-save") -> list[str]:
    """The gateway's chains and rules, in order, without counters and what it varies by itself (F37)."""
    text = lab.gateway.run(program).stdout
    found = [line for line in text.splitlines() if line.startswith(("*", "-A", ":"))]
    found = [line for line in found if not re.match("-A NFQLB-O-FALLBACK .* -j MARK ", line)]
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in found]


def traces(lab: Lab) -> dict[str, object]:
    """Whatever nfqlb might leave on the gateway."""
    host = lab.gateway
    return {
        "rules": [line for line in rules(lab) if "-A" in line or "NFQLB" in line],
        "addresses": host.run("ip", "-o", "address", "show").stdout.replace(" tentative", ""),
        "settings": host.run(
            "sh", "-c", "grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv4/ip_forward"
        ).stdout,
        "queues": host.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout,
        "files": files_of(host.namespace),
        "socket": (lab.directory / "control.sock").exists(),
    }


def files_of(namespace: str) -> list[str]:
    """The files that nfqlb keeps for a network namespace: its state, its lock, its journal."""
    inode = Path(f"/run/netns/{namespace}").stat().st_ino
    places = (Path("/run/nfqlb"), Path("/dev/shm/nfqlb"))
    return [str(path) for place in places for path in place.glob(f"*-{inode}*")]


def wrk(host: Host, url: str, *, connections: int, seconds: int) -> str:
    """Load a URL with wrk; its report, after it was seen that no socket error or bad answer is in it."""
    report = host.run("wrk", "-t2", f"-c{connections}", f"-d{seconds}", url, timeout=seconds + 20).stdout
    assert "Socket errors" not in report, report
    assert "Non-2xx" not in report, report
    found = re.search(r"(\d+) requests in", report)
    assert found, report
    assert int(found[1]) >= connections, report
    return report
