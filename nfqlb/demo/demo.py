"""`nfqlb demo`: a whole load-balanced site on this machine, with real traffic, to watch.

Owns the scenario: what the laboratory looks like, who visits, what is done to the gateway on the way, when it
ends. What is seen is in `view`.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from rich.console import Console
from rich.live import Live

from nfqlb.core.plural import several
from nfqlb.demo.appliance import Appliance, balancing, configuration, python_path, socket_path, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.programs import POLL, LabError, require
from nfqlb.demo.tally import Reports, look
from nfqlb.demo.traffic import Plan
from nfqlb.demo.view import Scene, closing_lines, frame, progress_line
from nfqlb.demo.web import document, serve

INTERVAL = 0.5
"""Seconds between two pictures."""

LINE_INTERVAL = 2.0
"""Seconds between two lines where there is no terminal."""

FIRST_KILL = 15.0
"""Seconds until the worker is killed where the demo has no fixed duration; then every NEXT_KILL."""
NEXT_KILL = 60.0

PATIENCE = 10.0
"""Seconds within which a killed worker must be replaced."""

SPEEDS = {"web1": (3, 60), "web2": (2, 40), "web3": (1, 10)}
"""The servers' weights and the pages that each gives a second at most."""

FILM_MEBIBYTES = 3
CLIENTS = 3
ADDRESSES = 4
"""Namespaces of clients, and client addresses in each."""


class Scenario:
    """The site while it runs: laboratory, gateway, visitors, and what happens to them."""

    def __init__(self, lab: Lab, appliance: Appliance, scene: Scene) -> None:
        self._lab = lab
        self._appliance = appliance
        self._scene = scene
        self._reports: list[Reports] = []
        self._begun = time.monotonic()
        self._seconds = 0
        self._at_stake: set[tuple[str, int]] = set()
        self._next_kill = scene.duration / 2 or FIRST_KILL

    def open(self, digest: str) -> None:
        """Let the visitors in."""
        for number, client in enumerate(self._lab.clients):
            sources = [client.address]
            for more in range(1, ADDRESSES):
                sources.append(f"192.0.2.{10 * (number + 2) + more}")
                client.add_address(f"{sources[-1]}/24")
            plan = Plan(VIP, tuple(sources), 80, 8080, "film", digest, films=2, pause=0.3, seed=number)
            argv = (sys.executable, "-P", "-m", "nfqlb.demo.traffic", json.dumps(asdict(plan)))
            self._reports.append(Reports(client.start(*argv, environment=python_path()).out))
        self._begun = time.monotonic()
        self._tell(f"{CLIENTS * ADDRESSES} clients start to ask for pages and films")
        self._tell(f"nfqlb top --socket {socket_path(self._lab)} shows the gateway itself")

    def _tell(self, text: str) -> None:
        self._scene.story.append((self._scene.elapsed, text))

    @property
    def over(self) -> bool:
        """Whether the wanted duration has passed."""
        return 0 < self._scene.duration <= self._scene.elapsed

    def step(self) -> None:
        """Bring the scene up to date and do what is due."""
        scene = self._scene
        scene.elapsed = time.monotonic() - self._begun
        for reports in self._reports:
            for event in reports.read():
                scene.tally.add(event)
        while self._seconds < int(scene.elapsed):
            self._seconds += 1
            scene.tally.second()
        if not self._appliance.program.running:
            raise LabError(f"the gateway ended: {self._appliance.program.last_words}")
        scene.picture = look(self._appliance, scene.picture)
        if scene.elapsed >= self._next_kill and not scene.picture.stale:
            self._next_kill = scene.elapsed + NEXT_KILL if not scene.duration else float("inf")
            self._kill_worker(scene.picture.worker)
        self._follow_up()

    def _kill_worker(self, killed: int) -> None:
        scene = self._scene
        self._at_stake = set(scene.tally.under_way)
        os.kill(killed, signal.SIGKILL)
        begun = time.monotonic()
        live = sum(real["connections"] for real in scene.picture.reals)
        self._tell(
            f"kill -9 of worker {killed}: {live} connections live, {len(self._at_stake)} downloads half done"
        )
        while scene.picture.stale or scene.picture.worker == killed:
            scene.picture = look(self._appliance, scene.picture)
            if time.monotonic() - begun > PATIENCE:
                raise LabError(f"no new worker within {PATIENCE:g} s")
            time.sleep(POLL)
        took = time.monotonic() - begun
        self._tell(f"worker {scene.picture.worker} has taken them over, {took * 1000:.0f} ms later")
        scene.tally.worker_killed(begun)

    def _follow_up(self) -> None:
        """Say what became of the downloads that a killed worker left."""
        scene = self._scene
        if self._at_stake and not self._at_stake & set(scene.tally.under_way):
            lost = len(scene.tally.errors) + scene.tally.broken
            verdict = "arrived whole" if not lost else f"ended, with {several(lost, 'error')}"
            self._tell(f"the {len(self._at_stake)} half-done downloads have {verdict}")
            self._at_stake = set()


@contextmanager
def site(scene: Scene) -> Iterator[Scenario]:
    """Build the laboratory, servers, gateway; all gone when the context ends."""
    require("ip", "setpriv", "nginx", "iptables-restore")
    with Lab(clients=CLIENTS, servers=len(SPEEDS), prefix="nfqlb-demo") as lab:
        for server in lab.servers:
            serve(lab, server, ports=(8000,), rate=SPEEDS[server.name][1], log=False)
        digest = document(lab, "film", FILM_MEBIBYTES)
        servers = [f"{name}:8000" for name in SPEEDS]
        config = configuration(
            lab,
            virtual("www", servers),
            virtual("shop", servers, port=8080, sticky="60s"),
            reals={name: f"weight = {weight}" for name, (weight, _) in SPEEDS.items()},
        )
        with balancing(lab, config) as appliance:
            scenario = Scenario(lab, appliance, scene)
            scenario.open(digest)
            yield scenario


def play(scenario: Scenario, show: Callable[[], None]) -> None:
    """Let the site run until its duration has passed or Ctrl-C, a picture every INTERVAL seconds."""
    due = time.monotonic()
    while not scenario.over:
        scenario.step()
        show()
        due += INTERVAL
        time.sleep(max(0.0, due - time.monotonic()))


def watch(console: Console, scene: Scene, scenario: Scenario) -> None:
    """Play on a terminal: a full-screen picture, the terminal as before at the end."""
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:

        def show() -> None:
            live.update(frame(scene, console.width, console.height), refresh=True)

        play(scenario, show)


def narrate(console: Console, scene: Scene, scenario: Scenario) -> None:
    """Play without a terminal: a line for whatever happens and one every LINE_INTERVAL seconds."""
    told = 0
    next_line = 0.0

    def show() -> None:
        nonlocal told, next_line
        for at, text in scene.story[told:]:
            console.print(f"{at:6.1f} s  {text}", soft_wrap=True)
        told = len(scene.story)
        if scene.elapsed >= next_line:
            console.print(f"{scene.elapsed:6.1f} s  {progress_line(scene)}", soft_wrap=True)
            next_line = scene.elapsed + LINE_INTERVAL

    play(scenario, show)


def main(duration: float | None) -> int:
    """Run the demo for `duration` seconds, or until Ctrl-C; return the exit status.

    0: requests were answered and none failed; 1: the site could not be built (one line on stderr) or there
    were errors.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    scene = Scene(f"many servers behind one address, {VIP}", duration=duration or 0.0)
    console.print("Building clients, a gateway and three unlike web servers ...")
    try:
        with site(scene) as scenario:
            (watch if console.is_terminal and not console.is_dumb_terminal else narrate)(
                console, scene, scenario
            )
    except LabError as error:
        sys.stderr.write(f"nfqlb demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        console.print("Stopped, and everything is taken down again.")
    for line in closing_lines(scene):
        console.print(line, soft_wrap=True)
    wrong = len(scene.tally.errors) + scene.tally.broken
    return 1 if wrong or not scene.tally.answered else 0
