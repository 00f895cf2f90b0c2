"""Datapath offload on the real kernel: a mark becomes a translation, and who may see what.

What the tap tells is in test_tap.py, conntrack's table in test_conntrack.py.
"""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfqlb.core.spec import Server, Virtual
from nfqlb.netfilter import conntrack, facts, host, rules, timeouts
from tests.netns.kernel_edge import (
    DNS,
    FORWARD,
    MASK,
    NEIGHBOUR,
    OFFLOAD,
    OFFLOAD6,
    TIMED,
    TWO,
    UDP,
    Edge,
    key,
    offloaded,
    offloading,
    settle,
)
from tests.netns.site import (
    CLIENT,
    CLIENT6,
    REAL,
    REAL6,
    VIP,
    VIP6,
    Site,
    built,
    client,
    craft,
    entered,
    ip,
    ping,
    send_raw,
    serve,
    wait_until,
)
from tests.netns.test_rules import FOREIGN, kind

__all__ = ["kind"]  # a fixture


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from built(tmp_path)


@contextmanager
def talking(
    site: Site, listener: socket.socket | None = None, destination: tuple[str, int] = (VIP, 80), port: int = 0
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection of the client's through the gateway: its end, and the server's."""
    with ExitStack() as stack:
        listening = listener or stack.enter_context(closing(serve(site)))
        here = stack.enter_context(closing(client(site, destination, port=port)))
        there = stack.enter_context(closing(listening.accept()[0]))
        there.settimeout(10)
        yield here, there


def pass_on(source: socket.socket, destination: socket.socket, text: bytes) -> None:
    """Bytes sent at one end arrive at the other."""
    source.sendall(text)
    assert destination.recv(1000) == text


def unheard(site: Site, end: socket.socket, other: socket.socket, table: str, chain: str, words: str) -> None:
    """What is sent at one end does not arrive at the other, and a rule has counted it."""
    other.settimeout(0.3)
    before = site.counted(table, chain, words)
    end.sendall(b"lost?")
    wait_until(lambda: site.counted(table, chain, words) > before)
    with pytest.raises(TimeoutError):
        other.recv(100)
    other.settimeout(10)


# ---- The bundle as a whole


@pytest.mark.usefixtures("kind")
def test_the_rules_come_and_go_without_a_trace(site: Site) -> None:
    """Both kinds of tables, both families, with all that the template has; others' rules stay in order."""
    config = replace(TIMED, gateway=replace(TIMED.gateway, secure=True, reject="reset"))
    config = replace(config, reals=OFFLOAD6.reals, virtuals=(*config.virtuals, *OFFLOAD6.virtuals[1:], DNS))
    config = replace(config, reals=(replace(config.reals[0], idle_timeout=600.0), *config.reals[1:]))
    site.run("iptables-restore", given=FOREIGN)
    site.run("ip6tables-restore", given=FOREIGN.replace("203.0.113.", "2001:db8::").replace("/32", "/128"))
    before = site.rules_of(site.saved())
    with entered(site.gateway):
        rules.apply(config, force=True)
        assert rules.verify(config) == []
        once = site.run("iptables-save", "-c"), site.run("ip6tables-save", "-c")
        rules.apply(config, force=True)
        assert rules.verify(config) == []
        twice = site.run("iptables-save", "-c"), site.run("ip6tables-save", "-c")
        assert list(map(site.rules_of, once)) == list(map(site.rules_of, twice))
        assert timeouts.present() == list(timeouts.wanted(config))
        rules.remove(site.directory)
        assert site.rules_of(site.saved()) == before
        assert timeouts.present() == []
        assert rules.remove(site.directory) == []


@pytest.mark.usefixtures("kind")
def test_what_iptables_saves_of_the_rules_it_also_restores(site: Site) -> None:
    """The kernel shows only four characters of a time-out's name: ours have no more."""
    with entered(site.gateway):
        rules.apply(OFFLOAD, force=True)
        saved = site.run("iptables-save")
        site.run("iptables-restore", given=saved)
        assert rules.verify(OFFLOAD) == []


def test_another_configuration_leaves_no_time_outs_of_the_one_before(site: Site) -> None:
    special = replace(OFFLOAD, reals=(replace(OFFLOAD.reals[0], idle_timeout=600.0),))
    with entered(site.gateway):
        rules.apply(special, force=True)
        assert timeouts.present() == ["nqt0", "nqt1"]
        rules.apply(OFFLOAD, force=True)
        assert timeouts.present() == ["nqt0"]
        assert any("NFQLB-O-TRACK" in line for line in rules.verify(special))


def test_a_translation_of_somebody_elses_in_front_is_found(site: Site) -> None:
    with offloading(site), entered(site.gateway):
        site.run("iptables", "-t", "nat", "-I", "PREROUTING", "-d", VIP, "-j", "DNAT", "--to", "10.0.0.99")
        (found,) = rules.verify(OFFLOAD)
        assert "nat PREROUTING: stands before our jump" in found
        assert "10.0.0.99" in found


def test_what_datapath_offload_asks_of_a_machine_is_read_from_it(site: Site) -> None:
    """A translation that is there beforehand is named; ours, once they are there, are not."""
    rule = f"-d {VIP}/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.99"
    site.run("iptables", "-t", "nat", "-A", "PREROUTING", *rule.split())
    with offloading(site), entered(site.gateway):
        found = facts.read(OFFLOAD, site.directory)
        assert found.translations == (rule,)
        assert found.timeouts
        assert found.tracked == conntrack.room()[1] > 0
        assert any(rule in finding.what for finding in host.judge(OFFLOAD, found))


# ---- The translation


def test_a_mark_becomes_a_translation_in_both_directions(site: Site) -> None:
    """R006, R007, R021: the server sees the client, the client the virtual address; one packet is queued."""
    with offloading(site) as edge, talking(site) as (here, there):
        port = here.getsockname()[1]
        assert there.getpeername() == (CLIENT, port)
        assert here.getpeername() == (VIP, 80)
        for _ in range(20):
            pass_on(here, there, b"question")
            pass_on(there, here, b"answer")
        assert edge.opened == [key((CLIENT, port), (VIP, 80))]
        (entry,) = edge.entries()
        assert entry.mark & MASK == edge.mark("web")
        assert (entry.inbound, entry.outbound) == (
            key((CLIENT, port), (VIP, 80)),
            key((REAL, 8080), (CLIENT, port)),
        )


@pytest.mark.usefixtures("kind")
def test_both_kinds_of_tables_translate(site: Site) -> None:
    with offloading(site), talking(site) as (here, there):
        pass_on(here, there, b"question")
        pass_on(there, here, b"answer")


def test_ipv6_is_translated_from_the_same_template(site: Site) -> None:
    site.number_ipv6()
    with offloading(site, OFFLOAD6) as edge, closing(serve(site, REAL6, 80)) as listener:
        edge.choose = lambda _key: edge.mark("web6")
        with talking(site, listener, (VIP6, 80)) as (here, there):
            assert there.getpeername()[0] == CLIENT6
            pass_on(here, there, b"question")
            pass_on(there, here, b"answer")
            (entry,) = edge.entries()
            assert entry.inbound == key((CLIENT6, here.getsockname()[1]), (VIP6, 80))
            settle(edge, 1)
            assert edge.copies[0].key == entry.outbound


def test_marks_of_others_are_left_alone(site: Site) -> None:
    """A packet that comes with bits of somebody else keeps them through the queue."""
    site.run(
        "iptables", "-t", "raw", "-A", "PREROUTING", "-i", "outside", "-j", "MARK", "--set-xmark", "0x5/0xff"
    )
    with offloading(site) as edge:
        with entered(site.gateway):  # in front of ours, so that the queued packet has them
            site.run("iptables", "-t", "raw", "-I", "PREROUTING", "-j", "MARK", "--set-xmark", "0x3/0xf")
            site.run(
                "iptables", "-t", "nat", "-I", "PREROUTING", "-j", "CONNMARK", "--save-mark", "--mask", "0xff"
            )
        with talking(site):
            (entry,) = edge.entries()
            assert entry.mark == edge.mark("web") | 0x5


def test_a_thousand_links_are_found_by_their_numbers(site: Site) -> None:
    """The tree: whichever number the mark has, the connection comes out at its server."""
    servers = tuple(Server("web1", 8080 + offset) for offset in range(1000))
    config = replace(
        OFFLOAD,
        gateway=replace(OFFLOAD.gateway, mark_mask=0x00FFF000),
        virtuals=(replace(OFFLOAD.virtuals[0], servers=servers),),
    )
    with offloading(site, config) as edge:
        for place in (0, 1, 30, 31, 32, 500, 998, 999):
            edge.choose = lambda _key, place=place: edge.mark("web", place)  # type: ignore[misc]
            with (
                closing(serve(site, port=8080 + place)) as listener,
                talking(site, listener) as (here, there),
            ):
                pass_on(here, there, b"question")


def test_a_virtual_server_on_every_port_keeps_the_clients_choice(site: Site) -> None:
    every = Virtual("all", ip_address(VIP), (Server("web1", None),), datapath="offload")
    with offloading(site, replace(OFFLOAD, virtuals=(every,))):
        for port in (22, 8081):
            with (
                closing(serve(site, port=port)) as listener,
                talking(site, listener, (VIP, port)) as (here, there),
            ):
                pass_on(here, there, b"question")


def test_a_silent_servers_connection_moves_to_another_with_its_next_syn(site: Site) -> None:
    """R041, A39: its entry is forgotten, the SYN marked anew; the first server's late answer is dropped."""
    with entered(site.server):
        subprocess.run(["iptables", "-A", "INPUT", "-p", "tcp", "--dport", "8080", "-j", "DROP"], check=True)
    with offloading(site, TWO) as edge:

        def choose(found: bytes) -> int:
            if edge.opened.count(found) == 1:
                return edge.mark("web", 0)
            assert edge.conntrack.delete(found)
            return edge.mark("web", 1)

        edge.choose = choose
        with entered(site.neighbour):
            listener = socket.create_server((NEIGHBOUR, 8080))
        with closing(listener), talking(site, listener, port=5000) as (here, there):
            pass_on(here, there, b"question")
            late = craft(*_tcp(REAL, CLIENT, 8080, 5000, "SA"))
            before = site.counted("mangle", "NFQLB-O-STRAYS", "/* web1 */")
            send_raw(site.server, late, CLIENT)
            wait_until(lambda: site.counted("mangle", "NFQLB-O-STRAYS", "/* web1 */") == before + 1)
            pass_on(there, here, b"answer")
        assert len(edge.opened) == 2


def _tcp(source: str, destination: str, port: int, to: int, flags: str) -> tuple[object, object]:
    from scapy.layers.inet import IP, TCP

    return IP(src=source, dst=destination), TCP(sport=port, dport=to, flags=flags, seq=1000, ack=2000)


# ---- What belongs to no connection


def test_the_middle_of_a_forgotten_connection_passes_in_neither_direction(site: Site) -> None:
    """R117: the rest of the machine may pick connections up in their middle, ours may not."""
    with offloading(site) as edge, talking(site) as (here, there):
        pass_on(here, there, b"question")
        edge.conntrack.delete_marked(edge.mark("web"), edge.marks.number_mask)
        unheard(site, here, there, "mangle", "NFQLB-O-MISSED", "/* web */")
        unheard(site, there, here, "mangle", "NFQLB-O-STRAYS", "/* web1 */")
        assert edge.entries() == []
        assert site.marks().get((REAL, CLIENT)) is None


def test_a_routed_virtual_address_is_no_way_around_either(site: Site) -> None:
    """It is not this machine's own, so what is not translated would be forwarded somewhere."""
    routed = "198.51.100.7"
    config = replace(OFFLOAD, virtuals=(replace(OFFLOAD.virtuals[0], address=ip_address(routed)),))
    site.run("ip", "route", "add", "default", "via", "192.0.2.10")
    with offloading(site, config) as edge, talking(site, destination=(routed, 80)) as (here, there):
        pass_on(here, there, b"question")
        edge.conntrack.delete_marked(edge.mark("web"), edge.marks.number_mask)
        unheard(site, here, there, "mangle", "NFQLB-O-MISSED", "/* web */")


def test_a_client_that_is_told_so_gets_a_reset(site: Site) -> None:
    """reject = "reset": in the middle of nothing."""
    config = offloaded(reject="reset")
    with offloading(site, config) as edge, talking(site) as (here, there):
        pass_on(here, there, b"question")
        edge.conntrack.delete_marked(edge.mark("web"), edge.marks.number_mask)
        here.sendall(b"anybody there?")
        with pytest.raises(ConnectionResetError):
            here.recv(100)


def test_without_a_mark_a_client_gets_nowhere(site: Site) -> None:
    """The worker drops it; and a SYN that got past the queue somehow meets no service of the gateway's."""
    with offloading(site) as edge:
        edge.choose = lambda _key: 0
        with pytest.raises(TimeoutError):
            client(site, timeout=0.5)
        with entered(site.gateway):
            listener = socket.create_server((VIP, 80))
        with closing(listener):
            site.run("iptables", "-t", "raw", "-I", "NFQLB-O-QUEUE", "-j", "ACCEPT")
            with pytest.raises(TimeoutError):
                client(site, timeout=0.5)
        assert site.counted("mangle", "NFQLB-O-MISSED", "/* web */") > 0


def test_other_ports_are_the_hosts_only_where_that_is_said(site: Site) -> None:
    with offloading(site):
        with entered(site.gateway):
            ssh = socket.create_server((VIP, 22))
        with closing(ssh), pytest.raises(TimeoutError):
            client(site, (VIP, 22), timeout=0.5)
        assert ping(site) == 0
    host = replace(OFFLOAD, gateway=replace(OFFLOAD.gateway, other_ports="host"))
    with offloading(site, host):
        with entered(site.gateway):
            ssh = socket.create_server((VIP, 22))
        with closing(ssh), closing(client(site, (VIP, 22), timeout=5)):
            pass


@pytest.mark.parametrize("secure", [False, True])
def test_secure_closes_the_way_past_the_virtual_server(site: Site, secure: bool) -> None:
    """R015: straight to a real server; what that opens itself goes on."""
    config = replace(OFFLOAD, gateway=replace(OFFLOAD.gateway, secure=secure))
    with offloading(site, config) as edge, closing(serve(site)) as listener:
        if secure:
            with pytest.raises(TimeoutError):
                client(site, (REAL, 8080), timeout=0.5)
            assert site.counted("mangle", "NFQLB-O-DIRECT", "/* web1 */") > 0
        else:
            with talking(site, listener, (REAL, 8080)) as (here, there):
                pass_on(there, here, b"answer")
        with talking(site, listener) as (here, there):
            pass_on(here, there, b"question")
        with entered(site.client):
            elsewhere = socket.create_server((CLIENT, 9000))
        with closing(elsewhere), entered(site.server):
            own = socket.create_connection((CLIENT, 9000), timeout=5, source_address=(REAL, 8081))
        with closing(own), closing(elsewhere.accept()[0] if elsewhere.fileno() >= 0 else own):
            pass
        assert len(edge.opened) == 1


# ---- ICMP errors


def _watch_errors(site: Site) -> socket.socket:
    """What of ICMP reaches the client."""
    with entered(site.client):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.settimeout(5)
    return raw


@pytest.mark.parametrize("origin", ["server", "gateway"])
def test_unreachable_is_kept_from_a_client_that_still_waits(site: Site, origin: str) -> None:
    """A20: eaten and told to the worker, whoever says it; the client's next SYN gets through."""
    refuse = [
        "iptables",
        "-{}",
        "INPUT",
        "-p",
        "tcp",
        "--syn",
        "-j",
        "REJECT",
        "--reject-with",
        "icmp-host-unreachable",
    ]
    with offloading(site) as edge, closing(_watch_errors(site)) as raw, closing(serve(site)) as listener:
        raw.settimeout(0.2)
        where = site.server
        if (
            origin == "gateway"
        ):  # in nat's POSTROUTING the connection is not there yet, so in FORWARD of filter
            where, refuse[2] = site.gateway, "FORWARD"
        with entered(where):
            subprocess.run([word.format("A") for word in refuse], check=True)
        with entered(site.client):
            here = socket.socket()
        here.setblocking(False)
        with closing(here):
            with entered(site.client), suppress(BlockingIOError):
                here.connect((VIP, 80))
            wait_until(lambda: len(edge.opened) >= 1)
            with pytest.raises(TimeoutError):
                raw.recv(1000)
            if origin == "server":
                settle(edge, 1)
                assert (edge.copies[0].hook, edge.copies[0].flags) == (FORWARD, -1)
            with entered(where):
                subprocess.run([word.format("D") for word in refuse], check=True)
            listener.settimeout(10)
            there, _ = listener.accept()
            there.close()


@pytest.mark.parametrize("origin", ["server", "gateway"])
def test_an_error_about_a_live_connection_shows_no_real_address(site: Site, origin: str) -> None:
    """conntrack translates the packet that it quotes; the gateway's own errors are no exception."""
    with offloading(site), talking(site) as (here, there), closing(_watch_errors(site)) as raw:
        pass_on(here, there, b"question")
        if origin == "gateway":
            ip("-n", site.gateway, "route", "add", "unreachable", REAL)
        else:
            with entered(site.server):
                subprocess.run(
                    ["iptables", "-A", "INPUT", "-p", "tcp", "-j", "REJECT", "--reject-with",
                     "icmp-port-unreachable"],
                    check=True,
                )  # fmt: skip
        here.sendall(b"are you there?")
        packet = raw.recv(1000)
        assert packet[20] == 3
        assert packet[28 + 16 : 28 + 20] == ip_address(VIP).packed
        assert packet[28 + 22 : 28 + 24] == (80).to_bytes(2, "big")
        assert ip_address(REAL).packed not in packet


def test_path_mtu_discovery_works_from_end_to_end(site: Site) -> None:
    """ "Too big" passes even before an answer, translated; a download through a narrow link arrives."""
    with offloading(site) as edge:
        ip("-n", site.gateway, "link", "set", "outside", "mtu", "1000")
        ip("-n", site.client, "link", "set", "eth", "mtu", "1000")
        with talking(site) as (here, there):
            there.sendall(bytes(100_000))
            got = 0
            while got < 100_000:
                got += len(here.recv(65536))
        assert edge.queue.failed == 0


def test_an_error_about_no_connection_does_not_get_out(site: Site) -> None:
    """It would quote a real server's address: of a connection that was taken from it, say."""
    with offloading(site), closing(_watch_errors(site)) as raw:
        from scapy.layers.inet import ICMP, IP

        quoted = craft(*_tcp(CLIENT, REAL, 5000, 8080, "S"))
        send_raw(site.server, craft(IP(src=REAL, dst=CLIENT), ICMP(type=3, code=1)) + quoted, CLIENT)
        wait_until(lambda: site.counted("mangle", "NFQLB-O-ERRORS", "icmptype 3 ctstate INVALID") > 0)
        raw.settimeout(0.2)
        with pytest.raises(TimeoutError):
            raw.recv(1000)


# ---- UDP


def test_udp_flows_are_marked_once(site: Site) -> None:
    """R012: all that comes before the first answer goes the same way, and only the first is queued."""
    with offloading(site, UDP) as edge:
        with entered(site.server):
            there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            there.bind((REAL, 5353))
        with entered(site.client):
            here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            here.bind((CLIENT, 5000))
        here.settimeout(5)
        there.settimeout(5)
        with closing(here), closing(there):
            for text in (b"first", b"second", bytes(20_000)):  # the last in fragments
                here.sendto(text, (VIP, 53))
                assert there.recvfrom(65536) == (text, (CLIENT, 5000))
            there.sendto(b"answer", (CLIENT, 5000))
            assert here.recvfrom(100) == (b"answer", (VIP, 53))
        assert edge.opened == [key((CLIENT, 5000), (VIP, 53))]
        (entry,) = edge.entries()
        assert 20 <= entry.timeout <= 30


# ---- Both datapaths


def test_both_datapaths_on_one_address(site: Site) -> None:
    """One virtual server rewritten by the worker, one by the kernel, on the same virtual address."""
    rewritten = Virtual("slow", ip_address(VIP), (Server("web1", 8443),), port=443)
    config = replace(OFFLOAD, virtuals=(rewritten, *OFFLOAD.virtuals))
    with offloading_beside_reader(site, config) as edge:
        edge.choose = lambda _key: edge.mark("web")
        with talking(site) as (here, there):
            pass_on(here, there, b"by the kernel")
            pass_on(there, here, b"answer")
        with (
            closing(serve(site, port=8443)) as listener,
            talking(site, listener, (VIP, 443)) as (here, there),
        ):
            pass_on(here, there, b"by the worker")
            pass_on(there, here, b"answer")
        settle(edge, 3)
        assert all(
            copy.key[-4:-2] == (8080).to_bytes(2, "big") for copy in edge.copies if copy.hook == FORWARD
        )
        with entered(site.gateway):
            assert rules.verify(config) == []


@contextmanager
def offloading_beside_reader(site: Site, config: object) -> Iterator[Edge]:
    """The same with a reader of the rewrite queues."""
    with site.reader(config), offloading(site, config) as edge:  # type: ignore[arg-type]
        yield edge
