"""Datapath offload with the decisions of the core: what it makes of what the kernel tells it."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nfqlb.core.director import Director
from nfqlb.core.spec import Config
from nfqlb.runtime.offload import OffloadPath
from tests.netns.kernel_edge import NEIGHBOUR, TWO, Edge, offloading
from tests.netns.site import Site, built, client, entered, serve, wait_until
from tests.netns.test_offload import pass_on, talking

ROUND = replace(TWO, virtuals=(replace(TWO.virtuals[0], scheduler="round-robin"),))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from built(tmp_path)


class Brain:
    """A director that follows an edge, and the time it lives by."""

    def __init__(self, site: Site, edge: Edge, config: Config) -> None:
        self.director = Director(config, now=time.monotonic())
        self.path = OffloadPath(self.director, edge.conntrack, time.monotonic())
        self._site = site
        edge.queue.judge = self._judge
        edge.tap.on_packet = self.path.tapped
        edge.endings.on_end = self.path.ended

    def _judge(self, buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int) -> int:
        self.path.now = time.monotonic()
        return self.path.judge(buffer, start, end, hook, info, stamp_at)

    def sweep(self) -> None:
        with entered(self._site.gateway):
            while not self.path.sweep(100):
                pass

    def states(self) -> list[str]:
        return [row.state for row in self.director.connections(time.monotonic(), limit=100)]

    def connections(self) -> list[int]:
        return [row.connections for row in self.director.reals(time.monotonic())]


@contextmanager
def thinking(site: Site, config: Config = ROUND) -> Iterator[tuple[Edge, Brain]]:
    with offloading(site, config) as edge:
        yield edge, Brain(site, edge, config)


@contextmanager
def both_serving(site: Site) -> Iterator[tuple[socket.socket, socket.socket]]:
    with closing(serve(site)) as one, entered(site.neighbour):
        other = socket.create_server((NEIGHBOUR, 8080))
        other.settimeout(10)
        with closing(other):
            yield one, other


def test_counts_follow_connections_that_the_worker_does_not_see(site: Site) -> None:
    """R118, R125, R128: in turn, and gone from the count with both FINs."""
    with thinking(site) as (_edge, brain), both_serving(site) as listeners, ExitStack() as stack:
        pairs = [stack.enter_context(talking(site, listeners[turn % 2])) for turn in range(6)]
        wait_until(lambda: brain.states() == ["established"] * 6)
        assert brain.connections() == [3, 3]
        for here, there in pairs[:2]:
            pass_on(here, there, b"question")
            here.close()
            assert there.recv(1) == b""
            there.close()
        wait_until(lambda: brain.connections() == [2, 2])


def test_a_connection_that_a_server_does_not_answer_is_served_by_another(site: Site) -> None:
    """R041, A39: on the client's own repeated SYN, a second after the first."""
    reals = tuple(replace(real, attempts=2) for real in ROUND.reals)
    with thinking(site, replace(ROUND, reals=reals)) as (_edge, brain), both_serving(site) as (_, other):
        with entered(site.server):
            subprocess.run(["iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP"], check=True)
        with talking(site, other) as (here, there):
            pass_on(here, there, b"question")
            pass_on(there, here, b"answer")
            wait_until(lambda: brain.states() == ["established"])
            assert brain.connections() == [0, 1]
            assert brain.director.reals(0.0)[0].ditched_no_answer == 1


def test_a_refused_connection_is_counted_as_such(site: Site) -> None:
    """A42."""
    with thinking(site) as (_edge, brain):
        with pytest.raises(ConnectionRefusedError):
            client(site)
        wait_until(lambda: brain.director.reals(0.0)[0].ditched_reset == 1)


def test_what_an_operator_deletes_from_conntrack_has_ended(site: Site) -> None:
    with thinking(site) as (_edge, brain), both_serving(site) as (one, _), talking(site, one):
        wait_until(lambda: brain.states() == ["established"])
        site.run("conntrack", "-D", "-p", "tcp", "--orig-port-dst", "80")
        wait_until(lambda: brain.states() == [])
        assert brain.connections() == [0, 0]


def test_a_successor_without_a_memory_takes_over_what_the_kernel_carries(site: Site) -> None:
    """The connections themselves do not notice: nobody is asked about their packets."""
    with thinking(site) as (edge, first), both_serving(site) as listeners, ExitStack() as stack:
        pairs = [stack.enter_context(talking(site, listeners[turn % 2])) for turn in range(4)]
        wait_until(lambda: first.states() == ["established"] * 4)
        second = Brain(site, edge, ROUND)
        for here, there in pairs:
            pass_on(here, there, b"question")
            pass_on(there, here, b"answer")
        assert second.states() == []
        second.sweep()
        assert second.path.adopted == 4
        assert second.connections() == [2, 2]
        pairs[0][0].close()
        pairs[0][1].close()
        wait_until(lambda: second.connections() == [1, 2])


def test_a_lost_end_is_found_by_comparing(site: Site) -> None:
    with thinking(site) as (edge, brain), both_serving(site) as listeners, ExitStack() as stack:
        pairs = [stack.enter_context(talking(site, listeners[turn % 2])) for turn in range(2)]
        wait_until(lambda: brain.states() == ["established"] * 2)
        edge.tap.on_packet = lambda *_: None
        edge.listen(False)
        here, _there = pairs[0]
        site.run("conntrack", "-D", "-p", "tcp", "--orig-port-src", str(here.getsockname()[1]))
        brain.path.now = time.monotonic() + 1
        brain.sweep()
        assert brain.path.forgotten == 1
        assert brain.connections() == [0, 1]
