"""What is done to the gateway and the servers. Each returns the seconds until all was well again."""

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nfqlb.demo.appliance import socket_path
from nfqlb.demo.lab import Host
from tests.netns import test_takeover as takeover
from tests.netns.asking import wait_until
from tests.netns.long_faults import kill_worker
from tests.netns.test_guard_gateway import FLUSH
from tests.soak.books import Burst, Taken
from tests.soak.site import FLOODED, Site

_FLOOD = str(Path(__file__).resolve().parents[1] / "netns" / "flood.py")
#: What a process of the gateway dies of, and which.
Kills = Literal["nobody", "worker", "supervisor"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault by its name; `kills` says which of the gateway's processes does not survive it.

    `unseen`: of connections made meanwhile the gateway learns later, or, if they are short, never.
    """

    name: str
    act: Callable[[Site, random.Random], float]
    kills: Kills = "nobody"
    unseen: bool = False


# ---- The gateway's processes


def worker_killed(site: Site, _chance: random.Random) -> float:
    """kill -9."""
    return kill_worker(site.gateway, 0)


def worker_stopped(site: Site, _chance: random.Random) -> float:
    """SIGSTOP: found, killed and replaced."""
    stopped, begun = site.gateway.worker, time.monotonic()
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: site.ask("summary")["worker"]["pid"] not in (stopped, None), "another worker")
    return time.monotonic() - begun


def supervisor_killed(site: Site, chance: random.Random) -> float:
    """kill -9 of the supervisor alone, whose worker goes on until another one is started."""
    takeover.kill_supervisor(site.gateway)
    time.sleep(chance.uniform(0, 2))
    return _followed(site)


def both_killed(site: Site, chance: random.Random) -> float:
    """kill -9 of both, and some moments with nobody."""
    worker = site.gateway.worker
    for pid in (site.gateway.program.pid, worker):
        os.kill(pid, signal.SIGKILL)
    site.gateway.program.wait(5)
    time.sleep(chance.uniform(0, 1))
    return _followed(site)


def taken_over(site: Site, _chance: random.Random) -> float:
    """`nfqlb run --take-over`, as a new version does it."""
    old = site.gateway.program
    took = _followed(site, "--take-over")
    assert old.wait(5) == 0, old.stderr
    return took


def _followed(site: Site, *words: str) -> float:
    took = takeover.follow(site.gateway, *words)
    site.logs.append(site.gateway.program)
    return took


# ---- The servers


def server_dead(site: Site, chance: random.Random) -> float:
    """A web server is killed, with its connections, refuses new ones, and comes back."""
    server, begun = chance.choice(site.lab.servers), time.monotonic()
    site.web[server.name].stop(signal.SIGKILL)
    time.sleep(chance.uniform(1, 3))
    site.revive(server)
    site.taken.append(Taken(server.name, begun, time.monotonic()))
    return in_service(site)


def server_silent(site: Site, chance: random.Random) -> float:
    """A server hears nothing for a while."""
    server = chance.choice(site.lab.servers)
    with _deaf(server):
        time.sleep(chance.uniform(1, 4))
    return in_service(site)


@contextmanager
def _deaf(server: Host) -> Iterator[None]:
    programs = ("iptables", "ip6tables")
    for program in programs:
        server.run(program, "-w", "-I", "INPUT", "!", "-i", "lo", "-j", "DROP")
    try:
        yield
    finally:
        for program in programs:
            server.run(program, "-w", "-F", "INPUT")


def in_service(site: Site) -> float:
    """Wait until every server is in service; the seconds that it took. Clients' connections test them."""
    begun = time.monotonic()

    def all_well() -> bool:
        return {row["state"] for row in site.ask("reals")} == {"in-service"}

    wait_until(all_well, "all servers in service", timeout=40)
    return time.monotonic() - begun


# ---- The operator


def drained(site: Site, chance: random.Random) -> float:
    """A server is taken out, and put back."""
    name = chance.choice(site.lab.servers).name
    state = chance.choice(("sticky-only", "maintenance", "out-of-service"))
    site.ask("set-real", {"name": name, "state": state})
    time.sleep(chance.uniform(0.5, 2))
    begun = time.monotonic()
    site.ask("set-real", {"name": name, "state": "in-service"})
    return time.monotonic() - begun


def reloaded(site: Site, chance: random.Random) -> float:
    """Another configuration, in which a server has no place or another weight, and the first one again."""
    lab = site.lab
    gone = chance.choice(("", *(server.name for server in lab.servers)))
    weights = [chance.randint(1, 4) for _ in lab.servers]
    begun = time.monotonic()
    site.reload(without=gone, weights=weights, turns=chance.random() < 0.5)
    took = time.monotonic() - begun
    time.sleep(chance.uniform(0.5, 2))
    site.reload()
    return took


def abused(site: Site, chance: random.Random) -> float:
    """Clients of the control socket that do what no client should."""
    with ExitStack() as stack:
        lines = [stack.enter_context(_connected(site)) for _ in range(chance.randint(20, 40))]
        for line in lines:
            with suppress(OSError):
                line.sendall(_nonsense(chance))
        time.sleep(chance.uniform(0.2, 1))
        for line in lines[::3]:
            with suppress(OSError):
                line.recv(100)
    begun = time.monotonic()
    site.ask("summary")
    return time.monotonic() - begun


@contextmanager
def _connected(site: Site) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(0.5)
        with suppress(OSError):  # more than may wait for an answer
            line.connect(str(socket_path(site.lab)))
        yield line


def _nonsense(chance: random.Random) -> bytes:
    """What such a client sends: bytes, half a line, a line too long, answers that it will never read."""
    return chance.choice(
        (
            b"",
            chance.randbytes(200) + b"\n",
            b'{"id": 1, "cmd": ',
            b"[" * 5000 + b"\n",
            b"x" * (2 << 20),
            b'{"id": 1, "cmd": "snapshot"}\n' * 50,
            b'{"id": 1, "cmd": "watch", "args": {"every": 1}}\n',
            b'{"id": 1, "cmd": "connections", "args": {"limit": 10000}}\n',
            b'{"id": 1, "cmd": "set-real", "args": {"name": "\\u001b[2J", "state": 7}}\n',
            b'{"id": 1, "cmd": "wait", "args": {"condition": "real web1 failed", "timeout": 1000}}\n',
        )
    )


# ---- The network


def flushed(site: Site, chance: random.Random) -> float:
    """Somebody empties tables; the guard puts everything back."""
    repairs, begun = _rules(site)["repairs"], time.monotonic()
    what = chance.choice((FLUSH, FLUSH.replace("iptables", "ip6tables"), "iptables -t raw -F"))
    site.lab.gateway.run("sh", "-c", what)
    wait_until(lambda: _rules(site)["repairs"] > repairs and bool(_rules(site)["present"]), "a repair")
    return time.monotonic() - begun


def _rules(site: Site) -> dict[str, int]:
    found: dict[str, int] = site.ask("snapshot")["rules"]
    return found


def cable_pulled(site: Site, chance: random.Random) -> float:
    """The gateway loses the carrier on one side for a moment."""
    network, interfaces = site.lab.network, site.lab.gateway.interfaces
    interface = interfaces[chance.choice(("outside", "inside"))]
    network.plugged(interface, False)
    try:
        time.sleep(chance.uniform(0.5, 2))
    finally:
        network.plugged(interface, True)
    return in_service(site)


def link_down(site: Site, chance: random.Random) -> float:
    """Somebody takes an interface of the gateway down, and up again."""
    name, gateway = chance.choice(("outside", "inside")), site.lab.gateway
    gateway.run("ip", "link", "set", name, "down")
    time.sleep(chance.uniform(0.2, 1))
    gateway.run("ip", "link", "set", name, "up")
    site.lay_routes()
    return in_service(site)


def flooded(site: Site, chance: random.Random) -> float:
    """SYNs from anywhere for some seconds, more than the gateway lets through."""
    words = (FLOODED.address, str(FLOODED.port), "3.5", str(chance.randint(2500, 5000)))
    begun = time.monotonic()
    assert site.hostile.start(sys.executable, _FLOOD, *words).wait(30) == 0
    over = time.monotonic()
    wait_until(lambda: half_open(site) < 20, "the end of what the flood has left", timeout=30)
    site.bursts.append(Burst(FLOODED.name, begun, time.monotonic()))
    return time.monotonic() - over


def half_open(site: Site) -> int:
    """Of the virtual server that is flooded."""
    (row,) = [row for row in site.ask("virtuals") if row["name"] == FLOODED.name]
    count: int = row["half_open"]
    return count


FAULTS = (
    Fault("worker killed", worker_killed, "worker"),
    Fault("worker stopped", worker_stopped, "worker"),
    Fault("supervisor killed", supervisor_killed, "supervisor"),
    Fault("both killed", both_killed, "supervisor"),
    Fault("taken over", taken_over, "supervisor"),
    Fault("server dead", server_dead),
    Fault("server silent", server_silent),
    Fault("server drained", drained),
    Fault("configuration reloaded", reloaded),
    Fault("control socket abused", abused),
    Fault("rules flushed", flushed, unseen=True),
    Fault("cable pulled", cable_pulled),
    Fault("link down", link_down),
    Fault("SYN burst", flooded),
)
