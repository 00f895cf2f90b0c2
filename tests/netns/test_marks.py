"""Marks on the real kernel: which connection is whose, who may reach a real server directly, what survives.

Each test has a live connection through the rules, and does to its marks, its conntrack entry or the
rules what an operator, another program or a crash might do.
"""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from signal import Signals

import pytest
from pyroute2 import Conntrack

from nfqlb.demo.appliance import Appliance, balancing
from nfqlb.demo.appliance import configuration as written
from nfqlb.demo.lab import VIP as LAB_VIP
from nfqlb.demo.lab import Lab
from nfqlb.demo.web import document
from nfqlb.demo.web import serve as serve_web
from nfqlb.netfilter import rules
from tests.netns.asking import PREFIX, holding
from tests.netns.site import (
    CLIENT,
    CONFIG,
    DIRECT,
    JUDGED,
    REAL,
    SECURE,
    VIP,
    Site,
    built,
    client,
    craft,
    entered,
    send_raw,
    serve,
    wait_until,
)

CLIENT_PORT = 5000


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from built(tmp_path)


class Talk:
    """A connection with both its ends."""

    def __init__(self, here: socket.socket, there: socket.socket) -> None:
        self.here, self.there = here, there

    def ask(self, text: bytes = b"question") -> None:
        """A few bytes of the client's arrive."""
        self.here.sendall(text)
        assert self.there.recv(100) == text

    def answer(self, text: bytes = b"answer") -> None:
        """A few bytes of the server's arrive, without a word of the client's before."""
        self.there.sendall(text)
        assert self.here.recv(100) == text


@contextmanager
def talking(
    site: Site, destination: tuple[str, int] = (VIP, 80), listener: socket.socket | None = None, port: int = 0
) -> Iterator[Talk]:
    """A live connection of the client's with the real server."""
    with ExitStack() as stack:
        listening = listener or stack.enter_context(closing(serve(site)))
        here = stack.enter_context(closing(client(site, destination, port=port)))
        there = stack.enter_context(closing(listening.accept()[0]))
        there.settimeout(10)
        yield Talk(here, there)


def forget(site: Site) -> None:
    """Empties conntrack's table."""
    with entered(site.gateway), Conntrack() as table:
        table.flush()


def mark_all(site: Site, mark: int) -> None:
    """Gives every connection this mark, whatever it had."""
    with entered(site.gateway), Conntrack() as table:
        for entry in list(table.dump_entries()):
            table.entry("set", tuple_orig=entry.tuple_orig, mark=mark)


def listed(site: Site) -> int:
    """How many packets had to be looked up in the list of servers."""
    return site.counted("mangle", "NFQLB-SERVERS", "/* web1 */")


# ---- Whose is it?


def test_the_answers_of_a_balanced_connection_are_known_by_its_mark_alone(site: Site) -> None:
    with site.balancing(), talking(site) as talk:
        talk.ask()
        talk.answer()
        assert site.marks()[CLIENT, REAL] == JUDGED
        assert listed(site) == 0
        assert len(site.packets(source=REAL)) >= 3


def test_bits_of_others_stay_as_they_are(site: Site) -> None:
    """In packets and in connections: what was there before ours, and what comes after it."""
    early, late = 0x0000000F, 0x0F000000
    site.run(
        "iptables-restore",
        given="*mangle\n"
        f"-A PREROUTING -i outside -j CONNMARK --set-xmark {late:#x}/{late:#x}\n"
        f"-A POSTROUTING -o inside -m mark --mark {JUDGED | early:#x} -j RETURN\nCOMMIT\n",
    )
    with site.balancing():
        site.run("iptables", "-t", "raw", "-I", "PREROUTING", "1", "-j", "MARK", "--set-mark", str(early))
        with talking(site) as talk:
            talk.ask()
            talk.answer()
            assert site.marks()[CLIENT, REAL] == JUDGED | late
            assert site.counted("mangle", "POSTROUTING", f"mark match {JUDGED | early:#x}") >= 3
            mark_all(site, late)
            talk.ask()
            assert site.marks()[CLIENT, REAL] == JUDGED | late


@pytest.mark.parametrize("mask", [0x00FF0000, 0x3, 0xC0000000, 0xFFFFFFFF])
def test_any_mask_of_two_bits_or_more_will_do(site: Site, mask: int) -> None:
    config = replace(CONFIG, gateway=replace(CONFIG.gateway, mark_mask=mask))
    with site.balancing(config), closing(serve(site)) as listener:
        with entered(site.gateway):
            assert rules.verify(config) == []
        with talking(site, listener=listener) as talk, talking(site, (REAL, 8080), listener) as direct:
            talk.answer()
            direct.answer()
        assert listed(site) == 0


def test_a_connection_straight_to_a_port_behind_a_virtual_server_passes_untouched(site: Site) -> None:
    """R015: allowed unless `secure` is set; the virtual server works beside it."""
    with site.balancing(), closing(serve(site)) as listener:
        with talking(site, (REAL, 8080), listener) as direct, talking(site, listener=listener) as talk:
            for _ in range(2):
                direct.ask()
                direct.answer()
                talk.ask()
                talk.answer()
            (own, port) = direct.here.getsockname()
            assert not [p for p in site.packets() if port in (p["ports"] or [])]  # type: ignore[operator]
            assert own == CLIENT
        assert listed(site) == 0


def test_connections_to_other_ports_of_a_real_server_get_no_mark_of_ours(site: Site) -> None:
    with site.balancing(), closing(serve(site, port=22)) as listener:
        with talking(site, (REAL, 22), listener) as direct:
            direct.ask()
            direct.answer()
            assert site.marks()[CLIENT, REAL] == 0
        assert site.packets() == []


def test_what_a_conntrack_helper_expects_inherits_the_mark_and_passes_untouched(site: Site) -> None:
    """A38, A19: a data connection that an FTP server opens is not the worker's, even if it were possible."""
    site.run("iptables", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", "80", "-j", "CT",
             "--helper", "ftp")  # fmt: skip
    with site.balancing():
        # ours must be in front; the helper's rule is moved there, as an operator who wants it would have to
        site.run("iptables", "-t", "raw", "-D", "PREROUTING", "2")
        site.run("iptables", "-t", "raw", "-I", "PREROUTING", "1", "-p", "tcp", "--dport", "80", "-j", "CT",
                 "--helper", "ftp")  # fmt: skip
        with talking(site) as talk, entered(site.client):
            with closing(socket.create_server((CLIENT, 7000))) as data:
                data.settimeout(10)
                talk.ask(b"USER somebody\r\n")
                talk.ask(b"PORT %s,27,88\r\n" % CLIENT.replace(".", ",").encode())
                with entered(site.server), socket.create_connection((CLIENT, 7000), timeout=10) as opened:
                    accepted, peer = data.accept()
                    with accepted:
                        accepted.sendall(b"data")
                        assert opened.recv(10) == b"data"
                    assert peer[0] == REAL
            assert site.marks()[REAL, CLIENT] == JUDGED
        assert not [p for p in site.packets() if 7000 in p["ports"]]  # type: ignore[operator]


# ---- secure


def refused(site: Site, port: int) -> None:
    with pytest.raises(TimeoutError):
        client(site, (REAL, port), timeout=0.5)


def test_where_secure_is_set_clients_reach_a_real_server_by_its_virtual_server_alone(site: Site) -> None:
    """R015: on no port, by no protocol; each attempt is counted under the server's name."""
    with site.balancing(SECURE), closing(serve(site)) as listener, closing(serve(site, port=22)):
        refused(site, 8080)
        refused(site, 22)
        dropped = site.counted("mangle", "NFQLB-DIRECT", "/* web1 */")
        assert dropped >= 2
        with talking(site, listener=listener) as talk:
            talk.ask()
            talk.answer()
        ping = ["ip", "netns", "exec", site.client, "ping", "-c1", "-W1", REAL]
        with pytest.raises(AssertionError):
            site.run(*ping)
        assert site.counted("mangle", "NFQLB-DIRECT", "/* web1 */") == dropped + 1


def test_secure_is_about_clients_outside(site: Site) -> None:
    """Neighbours inside reach the server, and the server reaches whom it wants."""
    with site.balancing(SECURE), closing(serve(site)) as listener:
        with entered(site.neighbour), socket.create_connection((REAL, 8080), timeout=5) as connection:
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(b"hello")
                assert connection.recv(10) == b"hello"
        with entered(site.client):
            other = socket.create_server((CLIENT, 7000))
        with closing(other), entered(site.server), socket.create_connection((CLIENT, 7000), timeout=5) as own:
            other.settimeout(5)
            accepted, peer = other.accept()
            with accepted:
                accepted.sendall(b"hello")
                assert (own.recv(10), peer[0]) == (b"hello", REAL)
        assert site.packets() == []


def test_secure_lets_a_connection_that_is_older_go_on(site: Site) -> None:
    """New ones are refused; nobody at work is cut off by a restart."""
    with site.balancing(), closing(serve(site)) as listener, talking(site, (REAL, 8080), listener) as direct:
        with entered(site.gateway):
            rules.apply(SECURE)
        direct.ask()
        direct.answer()
        refused(site, 8080)


def test_a_dnat_rule_of_the_operators_is_an_exception_from_secure(site: Site) -> None:
    """Who writes one means it; and it is no way to a real server's own address."""
    site.run("iptables", "-t", "nat", "-A", "PREROUTING", "-d", "192.0.2.1", "-p", "tcp", "--dport", "2222",
             "-j", "DNAT", "--to-destination", f"{REAL}:22")  # fmt: skip
    with site.balancing(SECURE), closing(serve(site, port=22)) as listener:
        with talking(site, ("192.0.2.1", 2222), listener) as forwarded:
            forwarded.ask()
            forwarded.answer()
        refused(site, 22)
        assert site.packets() == []


def test_a_packet_that_conntrack_was_told_not_to_track_is_no_way_round_secure(site: Site) -> None:
    untracked = ["-p", "tcp", "-d", REAL, "--dport", "22", "-j", "CT", "--notrack"]
    site.run("iptables", "-t", "raw", "-A", "PREROUTING", *untracked)
    with closing(serve(site, port=22)) as listener:
        with site.balancing(), talking(site, (REAL, 22), listener) as direct:
            direct.ask()
        with site.balancing(SECURE):
            refused(site, 22)


# ---- What survives


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_connection_that_lost_its_mark_goes_on(site: Site, first: str) -> None:
    """By the list of servers, until its client's next packet brings the mark back."""
    with site.balancing(), talking(site) as talk:
        talk.ask()
        mark_all(site, 0)
        assert site.marks()[CLIENT, REAL] == 0
        if first == "server":
            talk.answer()
            assert listed(site) >= 1
        talk.ask()
        assert site.marks()[CLIENT, REAL] == JUDGED
        before = listed(site)
        talk.answer()
        assert listed(site) == before


def test_rules_that_set_marks_without_a_mask_cost_time_and_no_connection(site: Site) -> None:
    """As scripts for several providers do; ours stand in front, and the list of servers still knows."""
    site.run(
        "iptables-restore",
        given="*mangle\n-A PREROUTING -i outside -j MARK --set-mark 1\n"
        "-A PREROUTING -i outside -j CONNMARK --save-mark\nCOMMIT\n",
    )
    for config in (CONFIG, SECURE):
        with site.balancing(config), talking(site) as talk:
            talk.ask()
            talk.answer()
            assert site.marks()[CLIENT, REAL] == 1
            assert listed(site) >= 1


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_connection_lives_on_while_rules_with_other_marks_replace_its_own(site: Site, first: str) -> None:
    """As at the start after a crash, with another `mark_mask` in the file, or rules that knew no marks."""
    other = replace(CONFIG, gateway=replace(CONFIG.gateway, mark_mask=0x0F000000))
    with site.balancing(), talking(site) as talk:
        talk.ask()
        with entered(site.gateway):
            rules.apply(other)
            assert rules.verify(other) == []
        if first == "server":
            talk.answer()
        talk.ask()
        talk.answer()
        assert site.marks()[CLIENT, REAL] == JUDGED | 0x0F000000


def test_a_direct_connection_outlives_a_flush_of_conntrack(site: Site) -> None:
    with site.balancing(), talking(site, (REAL, 8080)) as direct:
        for _ in range(2):
            forget(site)
            direct.ask()
            direct.answer()
        assert site.marks()[CLIENT, REAL] == DIRECT
        assert site.packets() == []


def test_a_connection_taken_up_the_wrong_way_round_is_told_by_its_mark(site: Site) -> None:
    """The entry was made by the server's packet while the rules were out: its direction would mislead."""
    swallow = ["PREROUTING", "-t", "raw", "-s", REAL, "-j", "DROP"]  # lest the client resets what it gets
    enter_client = ["ip", "netns", "exec", site.client, "iptables"]
    site.run("iptables", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT")
    with site.balancing(), talking(site) as talk:
        talk.ask()
        with entered(site.gateway):
            rules.withdraw()
        forget(site)
        site.run(*enter_client, "-A", *swallow)
        talk.there.sendall(b"lost")
        wait_until(lambda: (REAL, CLIENT) in site.marks())
        site.run(*enter_client, "-D", *swallow)
        with entered(site.gateway):
            rules.apply(CONFIG)
        talk.here.sendall(b"question")
        assert talk.there.recv(100) == b"question"
        assert talk.here.recv(100) == b"lost"
        talk.answer()


def test_marks_that_a_packet_brings_along_mean_nothing_once_the_connection_has_its_own(site: Site) -> None:
    """A client that uses one port for the virtual server and for the real one does not turn the one that
    came first into the other."""
    from scapy.layers.inet import IP, TCP

    with site.balancing(), talking(site, (REAL, 8080), port=CLIENT_PORT) as direct:
        syn = IP(src=CLIENT, dst=VIP) / TCP(sport=CLIENT_PORT, dport=80, flags="S", seq=1)
        send_raw(site.client, craft(syn), VIP)
        wait_until(lambda: len(site.packets(queue=10)) == 1)
        direct.ask()
        direct.answer()
        assert site.marks()[CLIENT, REAL] == DIRECT


# ---- With the gateway itself


def test_a_guarded_gateway_carries_its_connections_over_a_crash_and_a_flush(tmp_path: Path) -> None:
    """R015: with `secure`, clients get in by the virtual server alone; the supervisor is killed with
    connections open, the next one takes them over with their marks, and conntrack may forget them all."""
    with Lab(servers=2, prefix=PREFIX) as lab:
        for server in lab.servers:
            serve_web(lab, server)
        digest = document(lab, "film", 20)
        config = written(lab, gateway="secure = true")
        first = Appliance(lab, config)
        first.wait_ready()
        with holding(lab.client, 4) as held:
            direct = f"http://{lab.servers[0].address}/"
            assert lab.client.run("curl", "-sS", "--max-time", "1", direct, check=False).returncode == 28
            first.stop(Signals.SIGKILL)
            with balancing(lab, config):
                assert held.again() == held.rounds()[0]
                url = f"http://{LAB_VIP}/files/film"
                pipe = f"curl -sS --limit-rate 8M --max-time 30 {url} | sha256sum"
                fetch = lab.client.start("sh", "-c", pipe)
                for _ in range(3):
                    flush(lab)
                    assert held.again() == held.rounds()[0]
                assert fetch.running
                assert fetch.wait(40) == 0
                assert fetch.stdout.split()[0] == digest
                guarded = lab.gateway.run("iptables", "-t", "mangle", "-vnxL", "NFQLB-DIRECT").stdout
                assert re.search(r"^ *[1-9]\d* .* DROP .*/\* web1 \*/", guarded, re.MULTILINE)


def flush(lab: Lab) -> None:
    """Empties the conntrack table of a laboratory's gateway."""
    with entered(lab.gateway.namespace), Conntrack() as table:
        table.flush()
