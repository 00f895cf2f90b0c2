"""The rule bundle on the real kernel: loaded, repaired, removed, and what it does to packets.

What it does with marks is told in test_marks.py, with long packets in test_long_packets.py.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfqlb.core.spec import Real
from nfqlb.netfilter import rules
from nfqlb.netfilter.errors import KernelError
from tests.netns.site import (
    ACK,
    CLIENT,
    CONFIG,
    FIN,
    REAL,
    RST,
    SIX,
    SYN,
    VIP,
    Site,
    built,
    client,
    craft,
    entered,
    ping,
    send_raw,
    serve,
    wait_until,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

PROGRAMS = [f"{base}{suffix}" for base in ("iptables", "ip6tables") for suffix in ("", "-save", "-restore")]
FOREIGN = """\
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -s 203.0.113.1/32 -j DROP
COMMIT
*mangle
:FORWARD ACCEPT [0:0]
:MINE - [0:0]
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A FORWARD -j MINE
-A MINE -m comment --comment "speaks of -j NFQLB-QUEUE only" -j RETURN
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o wan -j MASQUERADE
COMMIT
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -s 203.0.113.2/32 -j DROP
-A FORWARD -s 203.0.113.3/32 -j DROP
COMMIT
"""


@pytest.fixture(params=["nf_tables", "legacy"])
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kernel tables `iptables` means, by a PATH that says so."""
    suffix = "nft" if request.param == "nf_tables" else "legacy"
    for program in PROGRAMS:
        base, _, verb = program.partition("-")
        found = shutil.which(
            f"{base}-{suffix}" + (f"-{verb}" if verb else ""), path=os.environ["PATH"] + ":/usr/sbin"
        )
        if found is None:
            pytest.skip(f"no iptables of the {request.param} kind")
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / program).symlink_to(found)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin")
    return str(request.param)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from built(tmp_path)


# ---- The bundle as a whole


@pytest.mark.usefixtures("kind")
def test_the_rules_load_and_a_second_time_changes_nothing(site: Site) -> None:
    with entered(site.gateway):
        rules.apply(SIX, force=True)
        once = site.run("iptables-save", "-c"), site.run("ip6tables-save", "-c")
        rules.apply(SIX, force=True)
        assert rules.verify(SIX) == []
    twice = site.run("iptables-save", "-c"), site.run("ip6tables-save", "-c")
    for before, after in zip(once, twice, strict=True):
        assert "NFQLB-QUEUE" in after
        assert site.rules_of(after) == site.rules_of(before)


@pytest.mark.usefixtures("kind")
def test_a_removal_leaves_no_trace_and_the_rules_of_others_in_order(site: Site) -> None:
    site.run("iptables-restore", given=FOREIGN)
    site.run("ip6tables-restore", given=FOREIGN.replace("203.0.113.", "2001:db8::").replace("/32", "/128"))
    before = site.rules_of(site.saved())
    with entered(site.gateway):
        rules.apply(SIX, force=True)
        assert site.rules_of(site.saved()) != before
        removed = rules.remove(site.directory)
        assert site.rules_of(site.saved()) == before
        assert rules.remove(site.directory) == []
    assert [line.partition(":")[0] for line in removed] == [
        "iptables raw",
        "iptables mangle",
        "iptables nat",
        "iptables security",
        "ip6tables raw",
        "ip6tables mangle",
        "ip6tables nat",
        "ip6tables security",
    ]


def test_a_removal_clears_what_any_version_may_have_left_anywhere(site: Site) -> None:
    left = "".join(
        f"*{table}\n:NFQLB-OLD - [0:0]\n:MINE - [0:0]\n-A NFQLB-OLD -j RETURN\n"
        f"-A {chain} -d 203.0.113.1 -j NFQLB-OLD\n"
        f"-A {chain} -j MINE\n-A MINE -g NFQLB-OLD\n-A {chain} -j NFQLB-OLD\nCOMMIT\n"
        for table, chain in (("raw", "OUTPUT"), ("mangle", "INPUT"), ("nat", "OUTPUT"), ("filter", "FORWARD"))
    )
    site.run("iptables-restore", given=left)
    site.run("ip6tables-restore", given=left.replace("203.0.113.1", "2001:db8::1"))
    with entered(site.gateway):
        assert len(rules.remove(site.directory)) == 8
    text = site.saved()
    assert "NFQLB" not in text
    assert text.count("-j MINE") == 8


def test_chains_in_the_tables_of_the_other_kind_are_told_and_removed(site: Site) -> None:
    """`iptables` may have been switched over while nfqlb was down."""
    if shutil.which("iptables-legacy", path=os.environ["PATH"] + ":/usr/sbin") is None:
        pytest.skip("no iptables of the legacy kind")
    site.run("iptables-legacy-restore", "--noflush", given="*raw\n:NFQLB-OLD - [0:0]\nCOMMIT\n")
    with entered(site.gateway):
        rules.apply(CONFIG, force=True)
        assert [line.partition(":")[0] for line in rules.verify(CONFIG)] == ["iptables-legacy"]
        assert "iptables-legacy raw: NFQLB-OLD" in rules.remove(site.directory)
    assert "NFQLB" not in site.run("iptables-legacy-save")


def test_rules_without_a_reader_of_their_queues_are_refused(site: Site) -> None:
    before = site.saved()
    with entered(site.gateway), pytest.raises(KernelError, match="nobody reads queues 10 and 11"):
        rules.apply(CONFIG)
    assert site.rules_of(site.saved()) == site.rules_of(before)


def test_rules_with_a_reader_go_in(site: Site) -> None:
    with site.reader(), entered(site.gateway):
        rules.apply(CONFIG)
        assert rules.verify(CONFIG) == []


DAMAGE = {
    "a rule deleted": ("-t raw -D NFQLB-QUEUE 1", "iptables raw NFQLB-QUEUE: missing: "),
    "a rule added": ("-t raw -I NFQLB-OUTSIDE -j ACCEPT", "iptables raw NFQLB-OUTSIDE: not ours: -j ACCEPT"),
    "a rule in front": (
        "-t raw -I PREROUTING -i outside -j ACCEPT",
        "iptables raw PREROUTING: stands before our jump: -i outside -j ACCEPT",
    ),
    "the jump gone": (
        "-t mangle -D FORWARD -j NFQLB-FORWARD",
        "iptables mangle FORWARD: the jump is missing: -j NFQLB-FORWARD",
    ),
    "the jump twice": (
        "-t mangle -A OUTPUT -j NFQLB-OUTPUT",
        "iptables mangle OUTPUT: the jump stands there 2",
    ),
    "a chain emptied": (
        "-t mangle -F NFQLB-SERVERS",
        "iptables mangle NFQLB-SERVERS: missing: -s 10.0.0.11/32",
    ),
    "a chain more": ("-t filter -N NFQLB-MORE", "iptables filter NFQLB-MORE: not of this configuration"),
    "all of a table": ("-t mangle -F", "iptables mangle FORWARD: the jump is missing"),
}


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_and_repaired(site: Site, damage: str) -> None:
    command, told = DAMAGE[damage]
    with entered(site.gateway):
        rules.apply(CONFIG, force=True)
        meant = site.rules_of(site.saved())
        site.run("iptables", "-w", *command.split())
        lines = rules.verify(CONFIG)
        assert any(line.startswith(told) for line in lines), lines
        rules.apply(CONFIG, force=True)
        assert rules.verify(CONFIG) == []
    foreign = {"-A PREROUTING -i outside -j ACCEPT"}
    assert [line for line in site.rules_of(site.saved()) if line not in foreign] == meant


def test_another_configuration_replaces_the_rules_of_the_last_one(site: Site) -> None:
    other = replace(CONFIG, virtuals=(replace(CONFIG.virtuals[0], port=443, name="tls"),))
    with entered(site.gateway):
        rules.apply(SIX, force=True)
        assert rules.verify(other) != []
        rules.apply(other, force=True)
        assert rules.verify(other) == []
    assert "2001:db8" not in site.saved()


@pytest.mark.usefixtures("kind")
def test_a_refused_table_takes_the_others_back_with_it(site: Site) -> None:
    """The impossible queue stands in the last table only, so the others are in by then."""
    impossible = replace(CONFIG, gateway=replace(CONFIG.gateway, queue=-1))
    with entered(site.gateway):
        with pytest.raises(KernelError, match=r'rule "-A NFQLB-SYNS .*--queue-num -1"'):
            rules.apply(impossible, force=True)
        assert site.rules_of(site.saved()) == []
        rules.apply(CONFIG, force=True)
        before = site.saved()
        moved = replace(impossible, reals=(Real("web1", ip_address("10.0.0.99")),))
        with pytest.raises(KernelError):
            rules.apply(moved, force=True)
        assert site.saved() == before
        assert rules.verify(CONFIG) == []


# ---- What the rules do to packets


def firewall(site: Site) -> None:
    """A host firewall that lets through only what conntrack understands, and strict path filters."""
    site.run(
        "iptables-restore",
        given="*filter\n:FORWARD DROP [0:0]\n:INPUT DROP [0:0]\n"
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n"
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
        f"-A FORWARD -d {REAL} -p tcp --dport 8080 -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n",
    )
    for name in ("all", "outside", "inside"):
        site.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=1")


def test_only_syns_meet_the_short_queue_and_everything_else_the_other(site: Site) -> None:
    """R001, R004: with a stateful firewall, strict path filters, and the virtual address on the gateway."""
    firewall(site)
    with site.balancing(), closing(serve(site)) as listener:
        with closing(client(site)) as connection:
            accepted, peer = listener.accept()
            with accepted:
                assert peer[0] == CLIENT
                assert connection.getpeername() == (VIP, 80)
                connection.sendall(b"question")  # short: the kernel cuts long ones up behind the counters
                assert accepted.recv(100) == b"question"
                accepted.sendall(b"answer")
                assert connection.recv(100) == b"answer"
        wait_until(lambda: len([p for p in site.packets() if int(str(p["flags"])) & FIN]) == 2)
        wait_until(lambda: site.counts() == site.logged())
        syns = site.packets(queue=10)
        assert [(p["source"], p["destination"], p["flags"]) for p in syns] == [(CLIENT, VIP, SYN)]
        rest = site.packets(queue=11)
        assert rest[0]["flags"] == SYN | ACK
        assert {(p["source"], p["destination"]) for p in rest} == {(CLIENT, VIP), (REAL, CLIENT)}
    assert "NFQLB" not in site.saved()


def test_the_flags_of_a_packet_choose_its_queue(site: Site) -> None:
    """A SYN without ACK asks for something new, whatever else is set; all else may belong to something."""
    from scapy.layers.inet import IP, TCP

    wanted = {"S": 10, "SF": 10, "SR": 10, "SA": 11, "A": 11, "R": 11, "FA": 11, "": 11}
    with site.balancing():
        for number, flags in enumerate(wanted):
            packet = craft(IP(src=CLIENT, dst=VIP), TCP(sport=6000 + number, dport=80, flags=flags))
            send_raw(site.client, packet, VIP)
        wait_until(lambda: len(site.packets(source=CLIENT)) >= len(wanted))
        seen = {json.dumps(packet["ports"]): packet["queue"] for packet in site.packets(source=CLIENT)}
    assert seen == {json.dumps([6000 + n, 80]): queue for n, queue in enumerate(wanted.values())}


def test_other_ports_of_a_virtual_address_are_dark_but_answer_ping(site: Site) -> None:
    with site.balancing():
        with pytest.raises(TimeoutError):
            client(site, (VIP, 22), timeout=0.5)
        assert ping(site) == 0
        assert site.packets() == []


def test_other_ports_may_reach_the_gateway(site: Site) -> None:
    with site.balancing(replace(CONFIG, gateway=replace(CONFIG.gateway, other_ports="host"))):
        with pytest.raises(ConnectionRefusedError):
            client(site, (VIP, 22))
        assert ping(site) == 0
        assert site.packets() == []


def test_icmp_errors_from_outside_and_inside_reach_the_worker_and_echo_does_not(site: Site) -> None:
    from scapy.layers.inet import ICMP, IP, TCP

    with site.balancing():
        answer = IP(src=VIP, dst=CLIENT) / TCP(sport=80, dport=5000)
        request = IP(src=CLIENT, dst=REAL) / TCP(sport=5000, dport=8080)
        router = "10.0.0.77"  # somebody on the way: the source of an error says nothing
        for kind, code in ((3, 4), (11, 0), (12, 0)):
            error = ICMP(type=kind, code=code)
            send_raw(site.client, craft(IP(src=CLIENT, dst=VIP), error, answer), VIP)
            send_raw(site.server, craft(IP(src=router, dst=CLIENT), error, request), CLIENT)
        send_raw(site.server, craft(IP(src=REAL, dst=CLIENT), ICMP(type=8), b"x" * 8), CLIENT)
        assert ping(site) == 0
        seen = {(p["source"], p["destination"], p["type"]) for p in site.packets(protocol=1, queue=11)}
        assert seen == {
            *((CLIENT, VIP, kind) for kind in (3, 11, 12)),
            *((router, CLIENT, kind) for kind in (3, 11, 12)),
        }
        assert len(site.packets(protocol=1)) == 6


def test_the_gateways_own_icmp_errors_reach_the_worker(site: Site) -> None:
    """They quote the packet after its translation, and so a real server's address."""
    with site.balancing(), closing(serve(site)) as listener, closing(client(site)) as connection:
        accepted, _ = listener.accept()
        with accepted:
            connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)  # ends at the gateway
            connection.sendall(b"x")
            wait_until(lambda: site.packets(protocol=1) != [])
            (error, *_) = site.packets(protocol=1)
            assert (error["queue"], error["source"], error["type"]) == (11, "192.0.2.1", 11)
            assert error["destination"] == CLIENT


def test_an_own_icmp_error_about_a_connections_very_first_packet_goes_nowhere(site: Site) -> None:
    """The kernel does not queue what belongs to an unconfirmed connection; the client is shown nothing."""
    from scapy.layers.inet import IP, TCP

    with site.balancing():
        first = craft(IP(src=CLIENT, dst=VIP, ttl=1), TCP(sport=5001, dport=80, flags="S"))
        with entered(site.client), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as eye:
            send_raw(site.client, first, VIP)
            wait_until(lambda: site.counted("mangle", "NFQLB-ERRORS", "icmptype 11") == 1)
            eye.settimeout(0.3)
            with pytest.raises(TimeoutError):
                eye.recv(2048)


def test_fragments_are_whole_again_before_the_queue(site: Site) -> None:
    """F06, A37: a later fragment has no ports, so the kernel must have put it together before."""
    from scapy.layers.inet import IP, TCP, fragment

    with site.balancing():
        whole = IP(src=CLIENT, dst=VIP, id=77) / TCP(sport=5002, dport=80, flags="PA") / (b"y" * 3000)
        for piece in reversed(fragment(whole, fragsize=1000)):
            send_raw(site.client, bytes(piece), VIP)
        wait_until(lambda: len(site.packets(source=CLIENT)) == 1)
        (packet,) = site.packets(source=CLIENT)
        assert (packet["length"], packet["fragment"], packet["ports"]) == (3040, False, [5002, 80])


def test_fragments_of_no_whole_packet_never_reach_the_queue(site: Site) -> None:
    """F06: shuffled ones are whole; what overlaps, lacks its first or shares an id is kept, in bounds."""
    from scapy.layers.inet import IP, TCP, fragment
    from scapy.packet import Raw

    def pieces(number: int, port: int, text: bytes) -> list[bytes]:
        whole = IP(src=CLIENT, dst=VIP, id=number) / TCP(sport=port, dport=80, flags="PA") / text
        return [bytes(piece) for piece in fragment(whole, fragsize=1000)]

    def overlap(number: int) -> bytes:
        return craft(IP(src=CLIENT, dst=VIP, id=number, frag=60, flags="MF", proto=6), Raw(b"x" * 1000))

    with site.balancing():
        strange = [
            *(piece for number in range(200) for piece in pieces(1000 + number, 6000, b"n" * 3000)[1:]),
            *(piece for number in range(200) for piece in [*pieces(2000 + number, 6001, b"o" * 3000)[:1],
                                                           overlap(2000 + number)]),
            *pieces(3000, 6002, b"1" * 3000)[:2], *pieces(3000, 6003, b"2" * 3000)[:2],
        ]  # fmt: skip
        for piece in strange:
            send_raw(site.client, piece, VIP)
        first, second, third, last = pieces(77, 5002, b"y" * 3000)
        for piece in (third, first, last, second):
            send_raw(site.client, piece, VIP)
        wait_until(lambda: len(site.packets(source=CLIENT)) >= 1)
        assert [(packet["length"], packet["fragment"], packet["ports"])
                for packet in site.packets(source=CLIENT)] == [(3040, False, [5002, 80])]  # fmt: skip
        with entered(site.gateway):
            words = Path("/proc/thread-self/net/sockstat").read_text("ascii").split()
            limit = int(Path("/proc/sys/net/ipv4/ipfrag_high_thresh").read_text("ascii"))
        assert int(words[words.index("FRAG:") + 4]) <= limit


def test_connections_that_a_real_server_opens_itself_pass_untouched(site: Site) -> None:
    """A19: not even from the very port that stands behind the virtual server."""
    with site.balancing():
        with entered(site.client):
            listener = socket.create_server((CLIENT, 7000))
        with closing(listener), entered(site.server), socket.socket() as own:
            own.settimeout(10)
            own.bind((REAL, 8080))
            own.connect((CLIENT, 7000))
            listener.settimeout(10)
            accepted, peer = listener.accept()
            with accepted:
                assert peer == (REAL, 8080)
                accepted.sendall(b"hello")
                assert own.recv(10) == b"hello"
        assert site.packets() == []


def test_what_conntrack_cannot_place_goes_to_the_worker_or_nowhere(site: Site) -> None:
    """R007: never to the client as it is, that would show it a real server's address."""
    from scapy.layers.inet import IP, TCP

    with site.balancing():
        with entered(site.client):
            eye = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            eye.bind(("eth", 0x0800))
        with closing(eye):
            for flags in ("SA", "R", "RA", "FA", "A"):
                late = IP(src=REAL, dst=CLIENT) / TCP(sport=8080, dport=5003, flags=flags)
                send_raw(site.server, craft(late), CLIENT)
            wait_until(lambda: len(site.packets(source=REAL)) == 5)
            assert site.counted("mangle", "NFQLB-STRAYS", "NFQLB-QUEUE") == 1
            assert {p["flags"] for p in site.packets(source=REAL, queue=11)} == {
                ACK,
                SYN | ACK,
                RST,
                RST | ACK,
                FIN | ACK,
            }
            eye.settimeout(0.3)
            sources = set()
            with suppress(TimeoutError):
                while True:
                    sources.add(socket.inet_ntoa(eye.recv(2048)[26:30]))
            assert REAL not in sources


def test_a_connection_outlives_a_flush_of_conntrack(site: Site) -> None:
    from pyroute2 import Conntrack

    with site.balancing(), closing(serve(site)) as listener, closing(client(site)) as connection:
        accepted, _ = listener.accept()
        with accepted:
            for turn in range(3):
                with entered(site.gateway), Conntrack() as conntrack:
                    conntrack.flush()
                connection.sendall(b"question%d" % turn)
                assert accepted.recv(100) == b"question%d" % turn
                accepted.sendall(b"answer%d" % turn)
                assert connection.recv(100) == b"answer%d" % turn


@pytest.mark.parametrize("hidden", [False, True], ids=["", "masquerade"])
def test_a_connection_outlives_a_flush_of_conntrack_where_the_server_speaks_first(
    site: Site, hidden: bool
) -> None:
    """Its packet makes the entry the wrong way round, and a client that only listens never sets it right."""
    from pyroute2 import Conntrack

    if hidden:  # what servers open themselves goes out under the gateway's address
        site.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "outside", "-j", "MASQUERADE")
    with site.balancing(), closing(serve(site)) as listener, closing(client(site)) as connection:
        accepted, _ = listener.accept()
        with accepted:
            for turn in range(3):
                with entered(site.gateway), Conntrack() as conntrack:
                    conntrack.flush()
                accepted.sendall(b"news%d" % turn)
                assert connection.recv(100) == b"news%d" % turn
            connection.sendall(b"thanks")
            assert accepted.recv(100) == b"thanks"
            accepted.sendall(b"bye")
            assert connection.recv(100) == b"bye"


def test_a_download_outlives_a_flush_of_conntrack(site: Site) -> None:
    """The server may speak first after it; its packet must not make the entry the wrong way round."""
    from pyroute2 import Conntrack

    size = 3_000_000
    with site.balancing(), closing(serve(site)) as listener, closing(client(site)) as connection:
        accepted, _ = listener.accept()
        with accepted, ThreadPoolExecutor(1) as pool:
            sent = pool.submit(accepted.sendall, bytes(size))
            received, flushed = 0, 0
            while received < size:
                received += len(connection.recv(65536))
                if received > (flushed + 1) * 500_000:
                    flushed += 1
                    with entered(site.gateway), Conntrack() as conntrack:
                        conntrack.flush()
            sent.result(timeout=10)
            assert (received, flushed) == (size, 5)


def test_traffic_among_inside_networks_is_left_alone(site: Site) -> None:
    """A real server's answer to a neighbour is in reply direction too, and none of ours."""
    with site.balancing(), closing(serve(site)) as listener, entered(site.neighbour):
        with socket.create_connection((REAL, 8080), timeout=10) as connection:
            accepted, peer = listener.accept()
            with accepted:
                assert peer[0] == "10.0.9.11"
                accepted.sendall(b"hello")
                assert connection.recv(10) == b"hello"
        assert site.packets() == []
