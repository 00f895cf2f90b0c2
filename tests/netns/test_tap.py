"""The tap on the real kernel: it tells what it should, and nothing else."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.tap import Tap
from tests.netns.kernel_edge import (
    FIN,
    FORWARD,
    PREROUTING,
    RST,
    SYN,
    TIMED,
    Edge,
    key,
    offloading,
    settle,
)
from tests.netns.site import (
    CLIENT,
    REAL,
    VIP,
    Site,
    built,
    client,
    craft,
    entered,
    send_raw,
    wait_until,
)
from tests.netns.test_offload import pass_on, talking

QUIET = 0.05
"""Seconds after which nothing more comes: the tap hands over what it has after a hundredth of one."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from built(tmp_path)


def data(edge: Edge) -> list[tuple[int, int]]:
    """The copies of plain segments: where, and bytes of data."""
    time.sleep(QUIET)
    return [(copy.hook, copy.data) for copy in edge.copies if not copy.flags & (SYN | FIN | RST)]


def test_the_tap_tells_how_a_connection_opens_and_ends(site: Site) -> None:
    """R077, R128: SYN-ACK and both FINs, each once, under the keys of the core; no data."""
    with offloading(site) as edge:
        begun = time.time()
        with talking(site) as (here, there):
            port = here.getsockname()[1]
            for _ in range(30):
                pass_on(here, there, bytes(1000))
                pass_on(there, here, bytes(1000))
            here.close()
            assert there.recv(10) == b""
        settle(edge, 3)
        assert edge.kinds() == {(FORWARD, SYN): 1, (PREROUTING, FIN): 1, (FORWARD, FIN): 1}
        assert data(edge) == []
        sides = {copy.hook: copy.key for copy in edge.copies}
        assert sides == {
            PREROUTING: key((CLIENT, port), (VIP, 80)),
            FORWARD: key((REAL, 8080), (CLIENT, port)),
        }
        assert all(begun - 1 < copy.stamp < time.time() + 1 for copy in edge.copies)
        assert edge.losses == []


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_is_told_where_it_fits_and_not_where_it_does_not(site: Site, side: str) -> None:
    """A17: conntrack holds one outside the window for INVALID, so it belongs to no connection of ours."""
    with offloading(site) as edge, talking(site) as (here, there):
        port = here.getsockname()[1]
        pass_on(here, there, b"question")
        from scapy.layers.inet import IP, TCP

        stray = TCP(sport=port, dport=80, flags="R", seq=12345)
        send_raw(site.client, craft(IP(src=CLIENT, dst=VIP), stray), VIP)
        time.sleep(QUIET)
        assert edge.kinds() == {(FORWARD, SYN): 1}
        ender = here if side == "client" else there
        ender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        ender.close()
        hook = PREROUTING if side == "client" else FORWARD
        wait_until(lambda: edge.kinds()[hook, RST] > 0)


def test_a_refusal_is_told(site: Site) -> None:
    """A42: nobody listens, the server's reset comes instead of its SYN-ACK."""
    with offloading(site) as edge:
        with pytest.raises(ConnectionRefusedError):
            client(site)
        wait_until(lambda: edge.kinds()[FORWARD, RST] == 1)


def test_connections_of_others_are_not_told(site: Site) -> None:
    """Straight to a real server, and a server's own."""
    with offloading(site) as edge:
        with talking(site, destination=(REAL, 8080)) as (here, there):
            pass_on(here, there, b"question")
        with entered(site.client):
            listener = socket.create_server((CLIENT, 9000))
        with closing(listener), entered(site.server):
            socket.create_connection((CLIENT, 9000), timeout=5).close()
        time.sleep(QUIET)
        assert edge.copies == []


def test_each_request_and_each_answer_is_told_once(site: Site) -> None:
    """R080, R083, T12: the first data of each, however many segments it has; bare ACKs never."""
    with offloading(site, TIMED) as edge, talking(site) as (here, there):
        for length in (1, 100, 1000, 1, 1448):  # a keystroke counts as well
            pass_on(here, there, bytes(min(length, 1000)))
            for _ in range(3):
                pass_on(there, here, bytes(length % 900 + 1))
        told = data(edge)
        assert [hook for hook, _ in told] == [PREROUTING, FORWARD] * 5
        assert [octets for hook, octets in told if hook == PREROUTING] == [1, 100, 1000, 1, 1000]


def test_a_long_request_and_a_long_answer_are_told_by_their_beginning(site: Site) -> None:
    with offloading(site, TIMED) as edge, talking(site) as (here, there):
        for source, destination in ((here, there), (there, here)):
            source.sendall(bytes(300_000))
            got = 0
            while got < 300_000:
                got += len(destination.recv(65536))
        told = data(edge)
        assert [hook for hook, _ in told] == [PREROUTING, FORWARD]
        assert all(octets > 0 for _, octets in told)


def test_a_server_that_speaks_first_is_not_measured(site: Site) -> None:
    """Its greeting answers no request; the handshake is what the core goes by then (R079)."""
    with offloading(site, TIMED) as edge, talking(site) as (here, there):
        pass_on(there, here, b"220 hello")
        assert data(edge) == []
        pass_on(here, there, b"HELO")
        pass_on(there, here, b"250 ok")
        assert [hook for hook, _ in data(edge)] == [PREROUTING, FORWARD]


def test_data_in_the_last_segment_is_told_once_and_with_its_end(site: Site) -> None:
    """A request that ends with the client's FIN in the same segment is one copy, of data and of FIN."""
    with offloading(site, TIMED) as edge, talking(site) as (here, there):
        here.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        here.sendall(b"all there is")
        here.shutdown(socket.SHUT_WR)
        assert there.recv(100) == b"all there is"
        pass_on(there, here, b"answer")
        time.sleep(QUIET)
        ends = [copy for copy in edge.copies if copy.hook == PREROUTING]
        assert [(copy.flags & FIN, copy.data) for copy in ends] == [(FIN, 12)]
        assert data(edge) == [(FORWARD, 6)]


def test_what_the_tap_cannot_take_is_counted_and_reported(site: Site) -> None:
    """A reader that is away loses copies; it learns of it, and how many."""
    losses: list[int] = []
    seen: list[int] = []
    with entered(site.gateway):
        tap = Tap(9, lambda *found: seen.append(1), losses.append, receive_buffer=4096, threshold=1)
        site.run("iptables", "-A", "INPUT", "-p", "udp", "-j", "NFLOG", "--nflog-group", "9")
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with (
        closing(tap),
        closing(sender),
        entered(site.client),
        closing(socket.socket(type=socket.SOCK_DGRAM)) as out,
    ):
        for _ in range(500):
            out.sendto(b"x", ("192.0.2.1", 9))
        tap.run(10_000)
        out.sendto(b"x", ("192.0.2.1", 9))
        wait_until(lambda: tap.run(10) > 0)
        assert tap.overruns > 0
        assert tap.lost + tap.packets == 501
        assert tap.packets == len(seen)
        assert 0 in losses
        assert sum(losses) == tap.lost > 0


def test_a_group_has_one_reader(site: Site) -> None:
    with (
        entered(site.gateway),
        closing(Tap(9, lambda *_: None, lambda _: None)),
        pytest.raises(KernelError, match=r"NFLOG group 9: .*somebody else uses it"),
    ):
        Tap(9, lambda *_: None, lambda _: None)


def test_a_tap_with_nothing_to_tell_does_not_wait(site: Site) -> None:
    with entered(site.gateway), closing(Tap(9, lambda *_: None, lambda _: None)) as tap:
        begun = time.monotonic()
        assert tap.run(10) == 0
        assert time.monotonic() - begun < 1
