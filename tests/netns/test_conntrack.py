"""The kernel's connection table: read, listened to and cut, and the time-outs it keeps for us."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfqlb.core.spec import Server, Timeouts
from nfqlb.netfilter import conntrack, netlink, timeouts
from nfqlb.netfilter.conntrack import ASSURED, ESTABLISHED, SEEN_REPLY, SYN_SENT, Conntrack, Entry
from nfqlb.netfilter.endings import Endings
from tests.netns.kernel_edge import MASK, OFFLOAD, OFFLOAD6, TWO, UDP, key, offloading
from tests.netns.site import CLIENT, REAL, REAL6, VIP, VIP6, Site, built, client, entered, serve, wait_until
from tests.netns.test_offload import pass_on, talking


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from built(tmp_path)


def test_an_entry_tells_all_that_a_restart_must_know(site: Site) -> None:
    with offloading(site) as edge, talking(site) as (here, there):
        pass_on(here, there, b"question")
        (entry,) = edge.entries()
        port = here.getsockname()[1]
        assert entry.inbound == key((CLIENT, port), (VIP, 80))
        assert entry.outbound == key((REAL, 8080), (CLIENT, port))
        assert (entry.protocol, entry.tcp_state) == (socket.IPPROTO_TCP, ESTABLISHED)
        assert entry.status & ASSURED
        assert entry.mark == edge.mark("web")
        with entered(site.gateway):
            found = edge.conntrack.find(entry.inbound)
            assert found is not None
            assert found._replace(timeout=0) == entry._replace(timeout=0)
            assert edge.conntrack.find(entry.outbound) is None


def test_entries_of_others_are_not_ours(site: Site) -> None:
    """Straight to a real server; and translated by a rule of somebody else."""
    site.run(
        "iptables",
        "-t",
        "nat",
        "-A",
        "PREROUTING",
        "-p",
        "tcp",
        "--dport",
        "99",
        "-j",
        "DNAT",
        "--to",
        f"{REAL}:8080",
    )
    with (
        offloading(site) as edge,
        closing(serve(site)) as listener,
        talking(site, listener, (REAL, 8080)),
        talking(site, listener, ("192.0.2.1", 99)),
        entered(site.gateway),
    ):
        assert edge.entries() == []
        assert conntrack.room()[0] == 2


def test_ipv6_entries_are_read_and_deleted(site: Site) -> None:
    site.number_ipv6()
    with offloading(site, OFFLOAD6) as edge, closing(serve(site, REAL6, 80)) as listener:
        edge.choose = lambda _key: edge.mark("web6")
        with talking(site, listener, (VIP6, 80)):
            (entry,) = edge.entries()
            assert len(entry.inbound) == 36
            assert edge.conntrack.delete(entry.inbound)
            assert not edge.conntrack.delete(entry.inbound)
            assert edge.entries() == []
            wait_until(lambda: edge.ended == [(entry.inbound, socket.IPPROTO_TCP)])


def test_an_entry_can_have_its_time_shortened(site: Site) -> None:
    with offloading(site) as edge, talking(site) as (here, there):
        pass_on(here, there, b"question")
        (entry,) = edge.entries()
        assert entry.timeout > 1000
        assert edge.conntrack.shorten(entry.inbound, entry.protocol, 7)
        (after,) = edge.entries()
        assert 4 <= after.timeout <= 7
        pass_on(here, there, b"question")
        assert edge.entries()[0].timeout > 1000
        assert edge.conntrack.delete(entry.inbound)
        assert not edge.conntrack.shorten(entry.inbound, entry.protocol, 7)


def told(sock: socket.socket) -> list[Entry]:
    """What the kernel has told of entries that came or changed."""
    found: list[Entry] = []
    with suppress(BlockingIOError):
        while True:
            buffer = bytearray(1 << 16)
            got = sock.recv_into(buffer, flags=socket.MSG_DONTWAIT)
            read = (conntrack.entry_in(buffer, at, end) for _, _, at, end in netlink.messages(buffer, got))
            found += [entry for entry in read if entry is not None]
    return found


def test_whoever_listens_is_told_how_a_connection_goes_on(site: Site) -> None:
    """F36: conntrackd listens so, to tell another gateway. A request changes the mark alone: not told."""
    config = replace(OFFLOAD, virtuals=(replace(OFFLOAD.virtuals[0], scheduler="fastest-response"),))
    with offloading(site, config) as edge, entered(site.gateway), netlink.connect() as sock:
        for group in (1, 2):  # NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_UPDATE
            sock.setsockopt(netlink.SOL_NETLINK, netlink.ADD_MEMBERSHIP, group)
        with talking(site) as (here, there):
            pass_on(here, there, b"question")
            pass_on(there, here, b"answer")
            first, *_, last = told(sock)
            assert first.tcp_state == SYN_SENT
            assert first.mark == edge.mark("web")
            assert first.outbound[:4] == ip_address(REAL).packed
            assert last.tcp_state == ESTABLISHED
            assert last.status & ASSURED
            for _ in range(5):
                pass_on(here, there, b"question")
                pass_on(there, here, b"answer")
            assert told(sock) == []
        wait_until(lambda: [entry.tcp_state for entry in told(sock)][-1:] == [conntrack.TIME_WAIT])


def test_all_of_one_link_are_deleted_and_none_of_another(site: Site) -> None:
    config = replace(
        TWO, virtuals=(replace(TWO.virtuals[0], servers=(Server("web1", 8080), Server("web1", 8081))),)
    )
    with offloading(site, config) as edge, ExitStack() as stack:
        listeners = [stack.enter_context(closing(serve(site, port=port))) for port in (8080, 8081)]
        for place in (0, 1, 0, 1):
            edge.choose = lambda _key, place=place: edge.mark("web", place)  # type: ignore[misc]
            stack.enter_context(talking(site, listeners[place]))
        assert len(edge.entries()) == 4
        edge.conntrack.delete_marked(edge.mark("web", 0), edge.marks.number_mask)
        assert [entry.mark & MASK for entry in edge.entries()] == [edge.mark("web", 1)] * 2
        wait_until(lambda: len(edge.ended) == 2)


def test_a_mask_of_nothing_would_delete_everything(site: Site) -> None:
    with (
        entered(site.gateway),
        closing(Conntrack()) as table,
        pytest.raises(ValueError, match="every connection"),
    ):
        table.delete_marked(0, 0)


@pytest.mark.parametrize(("events", "listening"), [("0", False), ("1", False), ("2", True)])
def test_endings_are_told_whatever_the_machine_says_of_events(
    site: Site, events: str, listening: bool
) -> None:
    """The rules ask for them. 2, the kernel's default, also wants a listener when a connection begins."""
    site.run("sysctl", "-qw", f"net.netfilter.nf_conntrack_events={events}")
    with offloading(site) as edge, closing(serve(site)) as listener:
        edge.listen(listening)
        with talking(site, listener) as (here, _there):
            edge.listen(True)
            inbound = key((CLIENT, here.getsockname()[1]), (VIP, 80))
            site.run("conntrack", "-F")
            wait_until(lambda: bool(edge.ended))
            assert (inbound, socket.IPPROTO_TCP) in edge.ended


def test_lost_endings_are_noticed(site: Site) -> None:
    losses: list[int] = []
    with offloading(site) as edge, closing(serve(site)) as listener, entered(site.gateway):
        endings = Endings(lambda key, protocol: None, losses.append)
        endings._socket.setsockopt(socket.SOL_SOCKET, 33, 2304)  # SO_RCVBUFFORCE: the least
        with closing(endings), ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(talking(site, listener))
            with entered(site.gateway):
                site.run("conntrack", "-F")
            endings.run(1000)
            assert losses
            assert endings.overruns == len(losses)
        assert edge.queue.failed == 0


def test_the_kernel_keeps_our_time_outs(site: Site) -> None:
    """A24, R046: half open, idle by real server, closing; in conntrack as in the core."""
    times = Timeouts(idle=200.0, half_open=20.0, closing=3.0)
    reals = (replace(TWO.reals[0], idle_timeout=77.5), replace(TWO.reals[1], idle_timeout=200.0))
    config = replace(TWO, timeouts=times, reals=reals)
    with offloading(site, config) as edge, entered(site.server), closing(serve(site)) as listener:
        subprocess_drop(site)
        with pytest.raises(TimeoutError):
            client(site, timeout=0.3)
        (entry,) = edge.entries()
        assert entry.tcp_state == SYN_SENT
        assert 15 <= entry.timeout <= 20
        subprocess_drop(site, undo=True)
        edge.conntrack.delete_marked(edge.mark("web"), edge.marks.number_mask)
        with talking(site, listener) as (here, there):
            pass_on(here, there, b"question")
            pass_on(there, here, b"answer")
            (entry,) = edge.entries()
            assert 73 <= entry.timeout <= 78
        wait_until(lambda: all(entry.timeout <= 3 for entry in edge.entries()))
        wait_until(lambda: edge.entries() == [])


def subprocess_drop(site: Site, *, undo: bool = False) -> None:
    """The server stops hearing, or hears again."""
    import subprocess

    rule = ["iptables", "-D" if undo else "-A", "INPUT", "-p", "tcp", "-j", "DROP"]
    with entered(site.server):
        subprocess.run(rule, check=True)


def test_a_policy_in_use_stays_and_goes_with_its_rules(site: Site) -> None:
    with offloading(site), entered(site.gateway):
        assert timeouts.remove() == []
        assert timeouts.present() == ["nqt0"]
    with entered(site.gateway):
        assert timeouts.present() == []


def test_policies_are_corrected_in_place(site: Site) -> None:
    with entered(site.gateway):
        timeouts.put(OFFLOAD)
        assert timeouts.put(replace(OFFLOAD, timeouts=Timeouts(idle=5.0))) == ["nqt0", "nqt1"]
        assert sorted(timeouts.remove()) == ["nqt0", "nqt1"]
        assert timeouts.available()


def test_what_was_taken_goes_on_once_it_is_put_back(site: Site) -> None:
    """A39: as it does where a server answers in the moment in which its connection is given up."""
    with offloading(site) as edge, talking(site) as (here, there), entered(site.gateway):
        (before,) = edge.entries()
        taken = edge.conntrack.take(before.inbound)
        assert taken is not None
        assert (taken.tcp_state, taken.mark) == (ESTABLISHED, before.mark)
        assert edge.conntrack.take(before.inbound) is None
        assert edge.entries() == []
        assert edge.conntrack.put_back(taken)
        assert not edge.conntrack.put_back(taken)
        (after,) = edge.entries()
        assert after._replace(timeout=0) == before._replace(timeout=0)
        for _ in range(3):
            pass_on(here, there, b"question")
            pass_on(there, here, b"answer")
        wait_until(lambda: edge.ended == [(before.inbound, socket.IPPROTO_TCP)])


def datagrams(site: Site, namespace: str, end: tuple[str, int]) -> socket.socket:
    """A UDP socket there."""
    with entered(namespace):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(end)
    sock.settimeout(5)
    return sock


def test_a_flow_is_taken_and_put_back(site: Site) -> None:
    """R012."""
    with (
        offloading(site, UDP) as edge,
        closing(datagrams(site, site.server, (REAL, 5353))) as there,
        closing(datagrams(site, site.client, (CLIENT, 5000))) as here,
    ):
        here.sendto(b"question", (VIP, 53))
        assert there.recvfrom(100) == (b"question", (CLIENT, 5000))
        for status in (0, SEEN_REPLY):
            with entered(site.gateway):
                taken = edge.conntrack.take(key((CLIENT, 5000), (VIP, 53)), socket.IPPROTO_UDP)
                assert taken is not None
                assert taken.status & SEEN_REPLY == status
                assert edge.conntrack.put_back(taken)
            there.sendto(b"answer", (CLIENT, 5000))
            assert here.recvfrom(100) == (b"answer", (VIP, 53))
        assert len(edge.opened) == 1
