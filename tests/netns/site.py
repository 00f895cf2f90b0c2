"""A site for the rule bundle: a client, a gateway, a server and its neighbour on the real kernel.

Each is a network namespace of its own (`nk-PID-...`). The library is called inside the gateway's namespace,
in the very process of the test; the queues' reader is `translator.py`, so that what is seen is the rules'
doing alone.
"""

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter import address, rules, sysctl
from nfqlb.netfilter.state import Record

VIP, REAL, CLIENT = "192.0.2.100", "10.0.0.11", "192.0.2.10"
CONFIG = Config(
    Gateway(("outside",), ("inside", "inside2"), queue=10),
    (Real("web1", ip_address(REAL)),),
    (Virtual("web", ip_address(VIP), (Server("web1", 8080),), port=80),),
)
SIX = replace(
    CONFIG,
    reals=(*CONFIG.reals, Real("six", ip_address("fd00::11"))),
    virtuals=(*CONFIG.virtuals, Virtual("web6", ip_address("2001:db8::100"), (Server("six", 80),), port=80)),
)
SECURE = replace(CONFIG, gateway=replace(CONFIG.gateway, secure=True))
VIP6, REAL6, CLIENT6 = "2001:db8::100", "fd00::11", "2001:db8::10"
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
JUDGED, DIRECT = 0x00FF0000, 0x00010000

serial = itertools.count(1)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@contextmanager
def entered(namespace: str) -> Iterator[None]:
    """This process, and what it starts, inside another network namespace."""
    from pyroute2 import netns

    netns.pushns(namespace)
    try:
        yield
    finally:
        netns.popns()


class Site:
    """The namespaces, and what a test does in them."""

    def __init__(self, tmp_path: Path) -> None:
        name = f"nk-{os.getpid()}-{next(serial)}"
        self.client, self.gateway, self.server, self.neighbour = (f"{name}-{role}" for role in "cgsn")
        self.directory = tmp_path
        self.log = tmp_path / "translator.log"

    def build(self) -> None:
        for namespace in (self.client, self.gateway, self.server, self.neighbour):
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
            # else the link-local addresses, which neighbours ask each other by, wait for a second or two
            ip("netns", "exec", namespace, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        self._join(self.client, "eth", f"{CLIENT}/24", "outside", "192.0.2.1/24")
        self._join(self.server, "eth", f"{REAL}/24", "inside", "10.0.0.1/24")
        self._join(self.neighbour, "eth", "10.0.9.11/24", "inside2", "10.0.9.1/24")
        ip("-n", self.server, "route", "add", "default", "via", "10.0.0.1")
        ip("-n", self.neighbour, "route", "add", "default", "via", "10.0.9.1")
        ip("-n", self.client, "route", "add", "default", "via", "192.0.2.1")

    def number_ipv6(self) -> None:
        """IPv6 addresses beside the others, and forwarding, which nfqlb leaves to the operator."""
        self.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        for host, port, network, own in (
            (self.client, "outside", "2001:db8::", "10"),
            (self.server, "inside", "fd00::", "11"),
        ):
            ip("-n", host, "address", "add", f"{network}{own}/64", "dev", "eth", "nodad")
            ip("-n", self.gateway, "address", "add", f"{network}1/64", "dev", port, "nodad")
            ip("-n", host, "route", "add", "default", "via", f"{network}1")

    def mtu(self, octets: int) -> None:
        """Every link that a test of client and server uses."""
        for namespace, name in (
            (self.client, "eth"),
            (self.gateway, "outside"),
            (self.gateway, "inside"),
            (self.server, "eth"),
        ):
            ip("-n", namespace, "link", "set", name, "mtu", str(octets))

    def _join(self, host: str, name: str, address: str, port: str, gateway: str) -> None:
        ip("link", "add", name, "netns", host, "type", "veth", "peer", "name", port, "netns", self.gateway)
        for namespace, interface, text in ((host, name, address), (self.gateway, port, gateway)):
            ip("-n", namespace, "address", "add", text, "dev", interface)
            ip("-n", namespace, "link", "set", interface, "up")

    def destroy(self) -> None:
        for namespace in (self.client, self.gateway, self.server, self.neighbour):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True, timeout=20)

    def run(self, *command: str, given: str = "") -> str:
        """A program in the gateway's namespace, to its end."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.gateway, *command],
            input=given,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def saved(self) -> str:
        """Every table of both families, without what changes by itself."""
        text = self.run("iptables-save") + self.run("ip6tables-save")
        kept = [line for line in text.splitlines() if not line.startswith("#")]
        return re.sub(r" \[\d+:\d+\]", "", "\n".join(kept))

    def rules_of(self, text: str) -> list[str]:
        """The rules and own chains in a saved text: empty tables that iptables itself leaves do not count."""
        return [line for line in text.splitlines() if re.match(r"-A|:\S+ -", line)]

    def counted(self, table: str, chain: str, words: str, program: str = "iptables") -> int:
        """The packets that met the one rule of a chain whose listing holds `words`."""
        listing = self.run(program, "-w", "-t", table, "-vnxL", chain).splitlines()
        (line,) = [line for line in listing if words in line]
        return int(line.split()[0])

    def counts(self) -> dict[str, int]:
        """What the rules' own counters say, by what they stand for."""
        return {
            "SYNs": self.counted("raw", "NFQLB-SYNS", "NFQUEUE num 10"),
            "in": self.counted("raw", "NFQLB-QUEUE", "NFQUEUE num 11"),
            "out": self.counted("mangle", "NFQLB-QUEUE", "NFQUEUE num 11"),
            "web": self.counted("raw", "NFQLB-OUTSIDE", "/* web */"),
            "by the list of servers": self.counted("mangle", "NFQLB-SERVERS", "/* web1 */"),
        }

    def logged(self) -> dict[str, int]:
        """The same by what came out of the queues."""
        syns, inward = len(self.packets(queue=10)), len(self.packets(queue=11, source=CLIENT))
        outward = len(self.packets(queue=11, source=REAL))
        return {
            "SYNs": syns,
            "in": inward,
            "out": outward,
            "web": syns + inward,
            "by the list of servers": 0,
        }

    @contextmanager
    def balancing(self, config: Config = CONFIG) -> Iterator[None]:
        """What `nfqlb run` does: reader, settings, rules, address; and back again."""
        record = Record(self.directory)
        with self.reader(config), entered(self.gateway):
            sysctl.switch(sysctl.forwarding(config), record)
            rules.apply(config)
            address.bring_up(config)
            try:
                yield
            finally:
                with entered(self.gateway):
                    rules.remove(self.directory)

    @contextmanager
    def reader(self, config: Config = CONFIG) -> Iterator[None]:
        """A process that reads both queues and translates to the first server of each virtual server."""
        script = str(Path(__file__).with_name("translator.py"))
        pairs = [
            (str(one.address), one.port or 0, str(config.real(first.real).address), first.port or 0)
            for one in config.virtuals
            for first in one.servers[:1]
        ]
        command = [sys.executable, script, str(config.gateway.queue), json.dumps(pairs)]
        with (
            self.log.open("w") as log,
            subprocess.Popen(
                ["ip", "netns", "exec", self.gateway, *command],
                stdout=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            ) as process,
        ):
            try:
                wait_until(lambda: "bound" in self.log.read_text())
                yield
            finally:
                process.kill()

    def marks(self) -> dict[tuple[str, str], int]:
        """The mark of every connection in conntrack, by source and destination of its first packet."""
        from pyroute2 import Conntrack

        found = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            with entered(self.gateway), Conntrack(nfgen_family=family) as conntrack:
                for entry in conntrack.dump_entries():
                    found[entry.tuple_orig.saddr, entry.tuple_orig.daddr] = entry.mark or 0
        return found

    def packets(self, **wanted: object) -> list[dict[str, object]]:
        """The logged packets that are as wanted, in order."""
        entries = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [entry for entry in entries if wanted.items() <= entry.items()]


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Waits for something that the kernel or another process brings about."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def built(tmp_path: Path) -> Iterator[Site]:
    """A site, for a fixture; gone after it."""
    site = Site(tmp_path)
    try:
        site.build()
        yield site
    finally:
        site.destroy()


# ---- Connections and packets


def serve(site: Site, address: str = REAL, port: int = 8080) -> socket.socket:
    """A listening socket of the real server."""
    with entered(site.server):
        listener = socket.create_server((address, port), family=family_of(address))
    listener.settimeout(10)
    return listener


def client(
    site: Site, destination: tuple[str, int] = (VIP, 80), *, timeout: float = 10, port: int = 0
) -> socket.socket:
    """A connection of the client, from a `port` of its own (0: any), that waits `timeout` seconds at most."""
    own = CLIENT6 if ":" in destination[0] else CLIENT
    with entered(site.client):
        return socket.create_connection(destination, timeout=timeout, source_address=(own, port))


def family_of(address: str) -> socket.AddressFamily:
    """The socket family of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def send_raw(namespace: str, payload: bytes, destination: str) -> None:
    """Sends one IPv4 packet, header included."""
    with entered(namespace), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(payload, (destination, 0))


def craft(*layers: object) -> bytes:
    """The bytes of a scapy packet."""
    from scapy.compat import raw

    packet = layers[0]
    for layer in layers[1:]:
        packet = packet / layer  # type: ignore[operator]  # scapy has no types
    return bytes(raw(packet))


def ping(site: Site, destination: str = VIP) -> int:
    """The exit status of the client's ping; 0: answered."""
    command = ["ip", "netns", "exec", site.client, "ping", "-c1", "-W2", destination]
    return subprocess.run(command, check=False, capture_output=True, timeout=20).returncode
