"""Looking at a machine and changing it, on the real kernel: facts, settings, addresses, the claim.

One namespace of its own (`nk-PID-...`) with an outside and an inside interface; the library is
called inside it, in this very process.
"""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter import address, facts, host, procfs, queue_status, rules, sysctl
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.facts import InterfaceAddress, Route
from nfqlb.netfilter.state import Claim, Record

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

CONFIG = Config(
    Gateway(("outside",), ("inside",), queue=20),
    (Real("web1", ip_address("10.0.0.11")), Real("web2", ip_address("10.1.0.11"))),
    (
        Virtual("web", ip_address("192.0.2.100"), (Server("web1", 80), Server("web2", 80)), port=80),
        Virtual("far", ip_address("198.51.100.7"), (Server("web1", 80),), port=80),
    ),
)
FORWARDING = Path("/proc/sys/net/ipv4/conf")
READ_QUEUE = """
import sys, time
from netfilterqueue import NetfilterQueue
queue = NetfilterQueue()
queue.bind(int(sys.argv[1]), lambda packet: packet.accept())
print("bound", flush=True)
time.sleep(60)
"""

serial = itertools.count(1)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20).stdout


@contextmanager
def entered(namespace: str) -> Iterator[None]:
    """This process, and what it starts, inside another network namespace."""
    from pyroute2 import netns

    netns.pushns(namespace)
    try:
        yield
    finally:
        netns.popns()


@pytest.fixture
def gateway() -> Iterator[str]:
    """A namespace with both interfaces up and a route to each real server; this process is inside it."""
    name = f"nk-{os.getpid()}-{next(serial)}"
    ip("netns", "add", name)
    try:
        with entered(name):
            ip("link", "set", "lo", "up")
            for interface, text in (("outside", "192.0.2.1/24"), ("inside", "10.0.0.1/24")):
                ip("link", "add", interface, "type", "veth", "peer", "name", f"{interface}-far")
                ip("address", "add", text, "dev", interface)
                ip("link", "set", interface, "up")
                ip("link", "set", f"{interface}-far", "up")
            ip("route", "add", "10.1.0.0/24", "via", "10.0.0.254")
            yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)


@contextmanager
def python(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program, started where this process is; killed at the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def addresses() -> str:
    """All IPv4 addresses, one a line: interface, address, label."""
    return ip("-4", "-oneline", "address", "show")


def forwarding(interface: str) -> str:
    return (FORWARDING / interface / "forwarding").read_text().strip()


def messages(findings: list[host.Finding]) -> str:
    return "\n".join(map(str, findings))


# ---- Facts and findings


@pytest.mark.usefixtures("gateway")
def test_the_facts_are_what_was_built(tmp_path: Path) -> None:
    found = facts.read(CONFIG, tmp_path)
    outside = found.interfaces["outside"]
    assert (outside.up, outside.mtu, outside.port_of, outside.ethernet) == (True, 1500, "", True)
    assert not found.interfaces["lo"].ethernet
    assert InterfaceAddress("outside", ip_interface("192.0.2.1/24")) in found.addresses
    assert found.routes == {
        ip_address("10.0.0.11"): Route("inside"),
        ip_address("10.1.0.11"): Route("inside"),
        facts.ELSEWHERE[4]: None,
    }
    assert found.rp_filter.keys() == {
        "all",
        "default",
        "lo",
        "outside",
        "inside",
        "outside-far",
        "inside-far",
    }
    assert (found.net_admin, found.owner, found.queues) == (True, None, ())
    assert found.iptables in ("nf_tables", "legacy")
    assert host.judge(CONFIG, found) == []


BREAKAGE: dict[str, tuple[list[str], str]] = {
    "down": (["link set outside down"], "error: outside interface outside is down"),
    "gone": (["link del inside"], "error: inside interface inside does not exist"),
    "no route": (["route del 10.1.0.0/24"], r"error: no route to real server web2 \(10\.1\.0\.11\)"),
    "blackhole": (
        ["route del 10.1.0.0/24", "route add blackhole 10.1.0.0/24"],
        "error: no route to real server web2",
    ),
    "wrong way": (
        ["route replace 10.1.0.0/24 via 192.0.2.254"],
        "error: the way to real server web2 .* leads out of outside, where the clients are",
    ),
    "itself": (["address add 10.1.0.11/32 dev inside"], "error: real server web2 .* is this machine itself"),
    "bridge": (
        ["link add br0 type bridge", "link set br0 up", "link set inside master br0"],
        "error: inside interface inside is a port of br0",
    ),
    "default route": (
        ["address flush dev outside", "route add default via 10.0.0.254"],
        "warning: packets to clients elsewhere .* leave by inside",
    ),
    "own address": (
        ["address add 192.0.2.100/24 dev outside"],
        "warning: virtual address 192.0.2.100 is an address of this machine already, on outside",
    ),
}


@pytest.mark.usefixtures("gateway")
@pytest.mark.parametrize("what", BREAKAGE)
def test_what_is_broken_is_found(what: str, tmp_path: Path) -> None:
    assert host.check(CONFIG, tmp_path) == []
    commands, told = BREAKAGE[what]
    for command in commands:
        ip(*command.split())
    assert re.search(told, messages(host.check(CONFIG, tmp_path)))


@pytest.mark.usefixtures("gateway")
@pytest.mark.parametrize("number", ["20", "21"])
def test_a_taken_queue_is_named_with_its_reader(number: str, tmp_path: Path) -> None:
    with python(READ_QUEUE, number) as reader:
        told = messages(host.check(CONFIG, tmp_path))
        assert f"error: queue {number} is taken by process {reader.pid};" in told


@pytest.mark.usefixtures("gateway")
def test_the_reader_of_a_queue_is_found_though_its_port_is_not_its_process_id(tmp_path: Path) -> None:
    """The kernel gives the process id only to a process's first netlink socket."""
    first = "import socket; s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12); s.bind((0, 0))"
    with python(first + READ_QUEUE, "20") as reader:
        (queue,) = queue_status.read_queues()
        assert queue.port != reader.pid
        assert procfs.readers(queue.port) == [reader.pid]
        assert f"process {reader.pid};" in messages(host.check(CONFIG, tmp_path))


@pytest.mark.usefixtures("gateway")
def test_a_second_nfqlb_in_the_same_namespace_is_found_and_in_another_is_not(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from nfqlb.netfilter.state import Claim\n"
        "claim = Claim(Path(sys.argv[1])); print(flush=True); time.sleep(60)"
    )
    with python(hold, str(tmp_path)) as other:
        assert f"error: another nfqlb, process {other.pid}," in messages(host.check(CONFIG, tmp_path))
        with pytest.raises(KernelError, match=f"process {other.pid},"):
            Claim(tmp_path)
        elsewhere = f"nk-{os.getpid()}-{next(serial)}"
        ip("netns", "add", elsewhere)
        try:
            with entered(elsewhere), Claim(tmp_path):
                pass
        finally:
            ip("netns", "del", elsewhere)


@pytest.mark.usefixtures("gateway")
def test_ones_own_claim_is_no_finding(tmp_path: Path) -> None:
    with Claim(tmp_path):
        assert host.check(CONFIG, tmp_path) == []


@pytest.mark.usefixtures("gateway")
def test_without_rights_there_is_one_clear_line(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from nfqlb.netfilter import address, host, rules; from nfqlb.netfilter.errors import KernelError\n"
        "from tests_config import CONFIG\n"
        "print(*host.check(CONFIG, Path(sys.argv[1])), sep='\\n')\n"
        "for change in (lambda: rules.apply(CONFIG, force=True), lambda: address.bring_up(CONFIG)):\n"
        "    try: change()\n"
        "    except KernelError as error: print(error)\n"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin,-net_raw", sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        env=with_configuration(tmp_path),
        check=False,
    )
    assert done.stderr == ""
    found, applied, added = done.stdout.splitlines()
    advice = "run as root, or with CAP_NET_ADMIN; in a user namespace only for a network of its own"
    assert found == f"error: no right to change the network; {advice}"
    assert applied.startswith("iptables-save: not permitted; run as root")
    assert added == "netlink: Operation not permitted; run as root, or with CAP_NET_ADMIN"


def with_configuration(tmp_path: Path) -> dict[str, str]:
    """An environment in which `from tests_config import CONFIG` gives this module's."""
    lines = ["from ipaddress import *", "from nfqlb.core.spec import *", f"CONFIG = {CONFIG!r}", ""]
    (tmp_path / "tests_config.py").write_text("\n".join(lines))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}


# ---- Settings


@pytest.mark.usefixtures("gateway")
def test_forwarding_is_switched_per_interface_and_put_back(tmp_path: Path) -> None:
    """Nothing else of the kernel's settings changes: `ip_forward` would rewrite all of them."""
    (FORWARDING / "inside" / "forwarding").write_text("1")
    record = Record(tmp_path)
    before = {entry.name: forwarding(entry.name) for entry in FORWARDING.iterdir()}
    sysctl.switch(sysctl.forwarding(CONFIG), record)
    now = {entry.name: forwarding(entry.name) for entry in FORWARDING.iterdir()}
    assert now == {**before, "outside": "1"}
    assert sysctl.restore(record) == ["net/ipv4/conf/outside/forwarding = 0"]
    assert {entry.name: forwarding(entry.name) for entry in FORWARDING.iterdir()} == before


# ---- Addresses


@pytest.mark.usefixtures("gateway")
def test_a_virtual_address_of_the_outside_subnet_is_added_and_taken_away() -> None:
    before = addresses()
    assert address.bring_up(CONFIG) == ["address 192.0.2.100/32 on outside added"]
    assert "inet 192.0.2.100/32 scope global outside:nfqlb" in addresses()
    assert "198.51.100.7" not in addresses()
    assert address.bring_up(CONFIG) == []
    assert address.take_down() == ["address 192.0.2.100/32 on outside removed"]
    assert addresses() == before
    assert address.take_down() == []


@pytest.mark.usefixtures("gateway")
def test_an_address_that_was_there_before_stays() -> None:
    ip("address", "add", "192.0.2.100/24", "dev", "outside")
    before = addresses()
    assert address.bring_up(CONFIG) == []
    assert address.take_down() == []
    assert addresses() == before


@pytest.mark.usefixtures("gateway")
def test_the_next_start_drops_the_address_of_another_configuration() -> None:
    address.bring_up(CONFIG)
    other = replace(CONFIG, virtuals=(replace(CONFIG.virtuals[0], address=ip_address("192.0.2.101")),))
    assert address.bring_up(other) == [
        "address 192.0.2.100/32 on outside removed",
        "address 192.0.2.101/32 on outside added",
    ]


@pytest.mark.usefixtures("gateway")
def test_an_address_is_tagged_where_the_name_leaves_no_room_for_a_label() -> None:
    ip("link", "set", "outside", "down")
    ip("link", "set", "outside", "name", "outside-of-this")
    ip("link", "set", "outside-of-this", "up")
    config = replace(CONFIG, gateway=replace(CONFIG.gateway, outside=("outside-of-this",)))
    assert address.bring_up(config) == ["address 192.0.2.100/32 on outside-of-this added"]
    assert address.take_down() == ["address 192.0.2.100/32 on outside-of-this removed"]


@pytest.mark.usefixtures("gateway")
def test_neighbours_hear_of_the_address() -> None:
    with closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))) as ear:
        ear.bind(("outside-far", 0x0806))
        ear.settimeout(5)
        address.bring_up(CONFIG)
        frames = [ear.recv(2048) for _ in range(2)]
    (mac,) = re.findall(r"link/ether (\S+)", ip("-oneline", "link", "show", "outside"))
    assert {frame[20:22] for frame in frames} == {b"\0\1", b"\0\2"}
    assert {frame[22:32] for frame in frames} == {
        bytes.fromhex(mac.replace(":", "")) + bytes([192, 0, 2, 100])
    }


# ---- All of it


def state() -> list[str]:
    """Everything that nfqlb changes, as text."""
    saved = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True, timeout=20).stdout
    own = [line for line in saved.splitlines() if line.startswith("-A") or " - [" in line]
    return [*own, addresses(), forwarding("outside"), forwarding("inside")]


START = """
import sys, time
from pathlib import Path
from tests_config import CONFIG
from nfqlb.netfilter import address, rules, sysctl
from nfqlb.netfilter.state import Claim, Record
directory = Path(sys.argv[1])
claim = Claim(directory)
sysctl.switch(sysctl.forwarding(CONFIG), Record(directory))
rules.apply(CONFIG, force=True)
address.bring_up(CONFIG)
print("up", flush=True)
time.sleep(60)
"""


def crash(tmp_path: Path) -> None:
    """A start of everything, in a process that is killed in the middle of its work."""
    command = [sys.executable, "-c", START, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=with_configuration(tmp_path)
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGKILL)


@pytest.mark.usefixtures("gateway")
def test_a_removal_after_a_crash_puts_everything_back_without_a_configuration(tmp_path: Path) -> None:
    before = state()
    crash(tmp_path)
    left = state()
    assert left != before
    assert left[-2:] == ["1", "1"]
    assert "192.0.2.100" in left[-3]
    done = rules.remove(tmp_path)
    assert state() == before
    assert len(done) == 7
    assert rules.remove(tmp_path) == []


@pytest.mark.usefixtures("gateway")
def test_the_next_start_adopts_what_a_crash_left_and_ends_without_a_trace(tmp_path: Path) -> None:
    before = state()
    crash(tmp_path)
    left = state()
    with Claim(tmp_path):
        assert sysctl.switch(sysctl.forwarding(CONFIG), Record(tmp_path)) == []
        rules.apply(CONFIG, force=True)
        assert rules.verify(CONFIG) == []
        assert address.bring_up(CONFIG) == []
        assert state() == left
        rules.remove(tmp_path)
    assert state() == before


def test_namespaces_are_told_apart_even_where_a_number_is_given_out_again() -> None:
    """A record of a dead namespace must not touch the one that got its number."""
    seen = set()
    for name in (f"nk-{os.getpid()}-{next(serial)}" for _ in range(3)):
        ip("netns", "add", name)
        try:
            with entered(name):
                seen.add(procfs.namespace().cookie)
        finally:
            ip("netns", "del", name)
    assert len(seen) == 3
    assert 0 not in seen
