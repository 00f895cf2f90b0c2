"""Supervisors are killed, leave, and are taken over from: connections and settings stay."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from nfqlb.demo.appliance import (
    Appliance,
    balancing,
    command,
    nfqlb_command,
    python_path,
    socket_path,
    virtual,
)
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.programs import Program
from nfqlb.demo.web import document
from nfqlb.netfilter.procfs import doing
from tests.netns.asking import (
    ask,
    files_of,
    holding,
    queued,
    rows,
    rules,
    spread,
    summary,
    traces,
    wait_until,
)
from tests.netns.both import Datapath, configuration, serving
from tests.netns.test_reload import order, without


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=3) as lab:
        yield lab


def web(lab: Lab) -> str:
    names = [server.name for server in lab.servers]
    shop = virtual("shop", [f"{name}:80" for name in names], port=8080, sticky=600, scheduler="round-robin")
    return configuration(lab, virtual("web", names, scheduler="round-robin"), shop)


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Appliance]:
    before = traces(lab)
    with balancing(lab, web(lab)) as appliance:
        yield appliance
        assert "Traceback" not in appliance.program.stderr
    assert traces(lab) == before


def start(gateway: Appliance, *words: str) -> Program:
    """Another `nfqlb run`, with the same file."""
    argv = command("run", "-c", str(gateway.config), *words)
    return gateway.lab.gateway.start(*argv, environment=python_path())


def follow(gateway: Appliance, *words: str) -> float:
    """Start another one and wait until it serves; it is the gateway from now on. Returns the seconds."""
    begun = time.monotonic()
    program = start(gateway, *words)
    program.wait_for(program.out, "ready\n", timeout=15.0)
    gateway.program = program
    return time.monotonic() - begun


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    found = doing(pid)
    return found is not None and found.state != "Z"


def kill_supervisor(gateway: Appliance) -> int:
    """`kill -9` the supervisor alone; its worker's process id."""
    worker = gateway.worker
    os.kill(gateway.program.pid, signal.SIGKILL)
    gateway.program.wait(5)
    return worker


@contextmanager
def download(lab: Lab) -> Iterator[Program]:
    """A download that is under way when the context begins, and ends intact after it."""
    digest = document(lab, "film", 4)
    film = lab.directory / "film.got"
    film.unlink(missing_ok=True)
    words = ("-sS", "--max-time", "60", "--limit-rate", "1M", "-o", str(film))
    program = lab.client.start("curl", *words, f"http://{VIP}/film/film")
    wait_until(lambda: film.exists() and film.stat().st_size > 1 << 16, "the first bytes")
    yield program
    assert program.wait(60) == 0, program.stderr
    assert lab.client.run("sha256sum", str(film)).stdout.split()[0] == digest


@contextmanager
def loaded(lab: Lab) -> Iterator[None]:
    """Connections that stay and connections that are made, for the time of the context; no request fails."""
    loads = [
        lab.client.start("wrk", "-t1", "-c10", "-d60", "--timeout", "8s", *words, f"http://{VIP}/")
        for words in ((), ("-H", "Connection: close"))
    ]
    yield
    for load in loads:
        assert load.running
        load.stop(signal.SIGINT, timeout=15)
        assert "requests in" in load.stdout, load.stderr
        assert "Socket errors" not in load.stdout, load.stdout
    wait_until(lambda: queued(lab) == 0, "empty queues")


def operate(gateway: Appliance) -> None:
    """What an operator sets: to be found again."""
    for words in (("web1", "weight=7"), ("web2", "maintenance")):
        assert order(gateway.lab, "set", "real", *words).returncode == 0


def settings(gateway: Appliance) -> list[tuple[object, object, object]]:
    return [(row["name"], row["state"], row["weight"]) for row in rows(gateway, "reals")]


def installed(lab: Lab) -> list[str]:
    """The rules, but for those by which the kernel goes on alone: they follow the servers' states."""
    return [line for line in rules(lab) if "-A NFQLB-O-FALLBACK" not in line]


def bindings(gateway: Appliance) -> list[tuple[object, object]]:
    return [(row["client"], row["real"]) for row in rows(gateway, "sticky")]


def test_killed_supervisor_is_followed(lab: Lab, gateway: Appliance) -> None:
    """F11, R187: its worker goes on, new connections too; the next start finds all that there was."""
    with holding(lab.client, 6) as held, ExitStack() as downloads:
        first = held.rounds()[0]
        ask(lab.client, port=8080)
        operate(gateway)
        before, bound, there = settings(gateway), bindings(gateway), installed(lab)
        film = downloads.enter_context(download(lab))
        assert before[:2] == [("web1", "in-service", 7), ("web2", "maintenance", 1)]
        assert len(bound) == 1
        worker = kill_supervisor(gateway)
        assert film.running
        assert held.again() == first
        assert ask(lab.client).server in ("web1", "web3"), "new connections, and what is set holds"
        assert is_alive(worker)
        assert installed(lab) == there
        follow(gateway)
        assert not is_alive(worker)
        assert held.again() == first
        assert settings(gateway) == before
        assert bindings(gateway) == bound
        assert installed(lab) == there
        assert ask(lab.client).server in ("web1", "web3")
    assert f"taken over from process {worker}" in gateway.program.stderr


def test_supervisor_and_worker_killed_at_once(lab: Lab, gateway: Appliance) -> None:
    """F11, F19, R187: nobody is left; rules and addresses stay, the next start has the journal."""
    with holding(lab.client, 6) as held, ExitStack() as downloads:
        first = held.rounds()[0]
        ask(lab.client, port=8080)
        operate(gateway)
        film = downloads.enter_context(download(lab))
        before, bound, there = settings(gateway), bindings(gateway), installed(lab)
        worker = gateway.worker
        for pid in (gateway.program.pid, worker):
            os.kill(pid, signal.SIGKILL)
        gateway.program.wait(5)
        assert film.running
        assert installed(lab) == there
        follow(gateway)
        assert held.again() == first
        assert (settings(gateway), bindings(gateway), installed(lab)) == (before, bound, there)


def test_killed_supervisors_under_load(lab: Lab, gateway: Appliance) -> None:
    """F11: three in a row, under connections that stay and connections that are made; no request fails."""
    with loaded(lab):
        for _ in range(3):
            total = summary(gateway)["connections"]["total"]
            wait_until(lambda total=total: summary(gateway)["connections"]["total"] > total + 20, "traffic")  # type: ignore[misc]
            kill_supervisor(gateway)
            follow(gateway)


def test_a_new_version_takes_over(lab: Lab, gateway: Appliance) -> None:
    """F40, R187: under load and in the middle of a download; no request fails, the old one ends well."""
    with loaded(lab), holding(lab.client, 6, port=8080) as held, ExitStack() as downloads:
        first = held.rounds()[0]
        operate(gateway)
        before, bound, there = settings(gateway), bindings(gateway), installed(lab)
        downloads.enter_context(download(lab))
        for _ in range(2):
            old, worker = gateway.program, gateway.worker
            follow(gateway, "--take-over")
            assert old.wait(5) == 0
            assert not is_alive(worker)
            assert f"taken over from process {old.pid}" in gateway.program.stderr
            assert held.again() == first
        assert (settings(gateway), bindings(gateway), installed(lab)) == (before, bound, there)


def test_what_waits_in_a_queue_is_not_dropped(lab: Lab, gateway: Appliance) -> None:
    """F40: with each chain that hangs at a hook, and is taken away, the kernel drops all that is queued.

    So the table that counts stays, and goes on counting.
    """
    for _ in range(3):
        ask(lab.client)
    before, counted = handles(lab), traffic_of(gateway)
    assert before
    assert counted > 0
    follow(gateway, "--take-over")
    assert handles(lab) == before
    assert traffic_of(gateway) >= counted
    kill_supervisor(gateway)
    follow(gateway)
    assert handles(lab) == before


def handles(lab: Lab) -> list[str]:
    """Each table and chain of nft, with the number that it got when it was made."""
    listing = lab.gateway.run("nft", "-a", "list", "ruleset").stdout
    return [line.strip() for line in listing.splitlines() if re.search(r"^\t?(table|chain) .*# handle", line)]


def traffic_of(gateway: Appliance) -> int:
    """Packets from clients of the first virtual server."""
    traffic = rows(gateway, "virtuals")[0]["traffic"]
    assert isinstance(traffic, dict)
    return int(traffic["packets_in"])


def test_taking_over_with_another_configuration(lab: Lab, gateway: Appliance) -> None:
    """F40: as a reload does it: who is gone drains, and what cannot be had leaves the old one serving."""
    with holding(lab.client, 6) as held:
        first = held.rounds()[0]
        assert spread(first) == {"web1": 2, "web2": 2, "web3": 2}
        good = gateway.config.read_text()
        gateway.config.write_text(good.replace('inside = "inside"', 'inside = "inside"\nqueue = 7', 1))
        refused = start(gateway, "--take-over")
        assert refused.wait(15) == 1
        assert "[gateway] queue: needs a restart" in refused.stderr
        assert held.again() == first
        names = ["web1", "web2"]
        gateway.config.write_text(
            without(lab, "web3", configuration(lab, virtual("web", names, scheduler="round-robin")))
        )
        follow(gateway, "--take-over")
        assert held.again() == first
        states = {row["name"]: row["state"] for row in rows(gateway, "reals")}
        assert states == {"web1": "in-service", "web2": "in-service", "web3": "draining"}
        assert spread([ask(lab.client) for _ in range(4)]) == {"web1": 2, "web2": 2}


def test_one_that_fails_while_it_takes_over(lab: Lab, gateway: Appliance) -> None:
    """F40: stopped, and killed, before the old one has ended: that goes on, guards its rules, and reloads."""
    before = installed(lab)

    def said() -> int:
        return gateway.program.stderr.count("goes on as before")

    stopped = "import os, signal; from nfqlb.netfilter import rules; rules.apply = lambda _config: "
    main = "; from nfqlb.operator.cli import main; raise SystemExit(main())"
    kinds = ("os.kill(os.getpid(), signal.SIGKILL)", "exec('raise rules.KernelError(\"no luck\")')")
    for number, what in enumerate(kinds, 1):
        words = ("run", "-c", str(gateway.config), "--take-over")
        argv = (command()[0], "-P", "-c", stopped + what + main, *words)
        failing = lab.gateway.start(*argv, environment=python_path())
        assert failing.wait(15) != 0
        wait_until(lambda number=number: said() >= number, "the old one's word")  # type: ignore[misc]
        assert ask(lab.client).server in ("web1", "web2", "web3")
        assert installed(lab) == before
    assert said() == 2
    assert order(lab, "reload").returncode == 0
    lab.gateway.run("iptables", "-t", "raw", "-F")
    wait_until(lambda: installed(lab) == before, "the guard")
    follow(gateway, "--take-over")


def test_left_to_the_next_one(lab: Lab, gateway: Appliance) -> None:
    """F40: SIGUSR1, as `systemctl restart` sends it: it ends well and leaves everything, its worker too."""
    with holding(lab.client, 6) as held, download(lab) as film:
        first, there, worker = held.rounds()[0], installed(lab), gateway.worker
        assert gateway.stop(signal.SIGUSR1) == 0
        assert film.running
        assert is_alive(worker)
        assert installed(lab) == there
        assert held.again() == first
        follow(gateway)
        assert held.again() == first
        assert not is_alive(worker)


def test_a_worker_alone_ends_when_it_is_told_to(lab: Lab, gateway: Appliance) -> None:
    """F11: what is left then is the journal's."""
    worker = kill_supervisor(gateway)
    assert ask(lab.client).server in ("web1", "web2", "web3")
    os.kill(worker, signal.SIGTERM)
    wait_until(lambda: not is_alive(worker), "the worker's end")
    follow(gateway)


def test_started_twice_stopped_twice(lab: Lab, gateway: Appliance) -> None:
    """F19: a second one is refused with the owner and the way to take over; rules go without a file."""
    second = start(gateway)
    assert second.wait(15) == 1
    assert f"another nfqlb, process {gateway.program.pid}, serves" in second.stderr
    assert "nfqlb run --take-over" in second.stderr
    assert ask(lab.client).server in ("web1", "web2", "web3")
    worker = kill_supervisor(gateway)
    os.kill(worker, signal.SIGKILL)
    files = [*files_of(lab.gateway.namespace), str(socket_path(lab))]
    files = [path for path in files if not path.endswith(".json")]  # of that, what is put back is told
    for told in (files, []):
        done = nfqlb_command(lab, "rules", "remove")
        assert done.returncode == 0
        assert [path for path in files if f"{path} removed" in done.stdout.splitlines()] == told
        assert not [line for line in installed(lab) if "NFQLB" in line]
        assert files_of(lab.gateway.namespace) == []
    follow(gateway, "--take-over")  # nobody is there: a start like any other
    os.kill(gateway.program.pid, signal.SIGTERM)
    assert gateway.stop() == 0, "told twice"
