"""What clients are told, on the real kernel: refused connections, strays, and those of a failed server."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw

from nfqlb.demo.appliance import Appliance, balancing, command, python_path, virtual
from nfqlb.demo.lab import ROUTED_VIP, SECOND_VIP, VIP, VIP6, Host, Lab
from nfqlb.demo.programs import run
from nfqlb.demo.web import document, serve
from nfqlb.netfilter.reply import ReplySockets
from nfqlb.packet.reply import unreachable_for
from nfqlb.runtime.protocol import ControlError
from tests.netns.asking import ask, rows, summary, wait_until
from tests.netns.both import Bench, Datapath, configuration, offloads
from tests.netns.site import ACK, FIN, RST, craft, entered, family_of

ALL = ("web1", "web2")
NOBODY = "weight = 0"
"""A server that takes no new client."""


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, clients=1, servers=2, ipv6=True) as lab:
        # as gateways have one: where the kernel tells clients of strays, it must know a way for those
        lab.gateway.run("ip", "route", "add", "default", "via", lab.client.address)
        for server in lab.servers:
            serve(lab, server, ports=(80, 81))
        yield lab


@contextmanager
def silent(server: Host) -> Iterator[None]:
    """The server drops whatever comes in and whatever it would say."""
    name = next(iter(server.interfaces.values())).name
    rules = (("INPUT", "-i", name), ("OUTPUT", "-o", name))
    for chain, *match in rules:
        server.run("iptables", "-w", "-I", chain, *match, "-p", "tcp", "-j", "DROP")
    try:
        yield
    finally:
        for chain, *match in rules:
            server.run("iptables", "-w", "-D", chain, *match, "-p", "tcp", "-j", "DROP")


def replies(appliance: Appliance) -> dict[str, int]:
    """What the gateway says that clients were told."""
    found = summary(appliance)["replies"]
    assert isinstance(found, dict)
    return found


def drops(appliance: Appliance) -> dict[str, int]:
    """What the gateway says that it dropped."""
    found = summary(appliance)["drops"]
    assert isinstance(found, dict)
    return found


def attempt(host: Host, address: str, port: int, *, patience: float = 3.0) -> OSError | None:
    """How a connection fails; None where it does not."""
    with entered(host.namespace):
        try:
            socket.create_connection((address, port), timeout=patience).close()
        except OSError as error:
            return error
    return None


PLACES = [(VIP, 80), (ROUTED_VIP, 80)]
"""An address that the gateway holds itself, and one that is only routed to it."""


@pytest.mark.parametrize(("address", "port"), PLACES)
def test_a_client_that_nobody_can_serve(lab: Lab, address: str, port: int) -> None:
    """R113, R114, R184 (A20, A28): with "reset" it is refused at once, with "drop" it waits."""
    nobody = dict.fromkeys(ALL, NOBODY)
    several = [virtual(f"web{at}", ALL, address=one, port=own) for at, (one, own) in enumerate(PLACES)]
    with balancing(lab, configuration(lab, *several, gateway='reject = "reset"', reals=nobody)) as appliance:
        for _ in range(3):
            error = attempt(lab.client, address, port)
            assert isinstance(error, ConnectionRefusedError), error
        assert replies(appliance) == {"reset": 3}, "one SYN each: no client had to repeat its own"
        assert drops(appliance) == {"no-server": 3}
    with balancing(lab, configuration(lab, *several, reals=nobody)) as appliance:
        assert isinstance(attempt(lab.client, address, port, patience=1.5), TimeoutError)
        assert replies(appliance) == {}
        assert drops(appliance)["no-server"] >= 2


@pytest.mark.parametrize("port", [53, None])
@pytest.mark.parametrize(("vip", "suffix"), [(VIP, ""), (VIP6, "-6")])
def test_datagrams_and_ipv6_that_nobody_can_serve(lab: Lab, vip: str, suffix: str, port: int | None) -> None:
    """R012, R113, R114 (A20): the client's kernel believes the unreachable, and the reset."""
    names = [f"{name}{suffix}" for name in ALL]
    several = [
        virtual("dns", names, address=vip, port=port, protocol="udp"),
        virtual("web", names, address=vip, port=port),
    ]
    nobody = dict.fromkeys(ALL, NOBODY)
    with balancing(lab, configuration(lab, *several, gateway='reject = "reset"', reals=nobody)) as appliance:
        with entered(lab.client.namespace):
            asking = socket.socket(family_of(vip), socket.SOCK_DGRAM)
        with closing(asking):
            asking.settimeout(5)
            asking.connect((vip, 53))
            for size in (0, 10, 1400):
                asking.send(bytes(size))
                with pytest.raises(ConnectionRefusedError):
                    asking.recv(100)
        assert isinstance(attempt(lab.client, vip, 53), ConnectionRefusedError)
        assert replies(appliance) == {"unreachable": 3, "reset": 1}
        assert drops(appliance) == {"no-server": 4}


def test_each_virtual_server_has_its_own_policy(lab: Lab) -> None:
    """R016, R114: the gateway's is the default only."""
    several = [
        virtual("told", ALL, port=80),
        virtual("left", ALL, address=SECOND_VIP, port=80, reject="drop"),
    ]
    config = configuration(lab, *several, gateway='reject = "reset"', reals=dict.fromkeys(ALL, NOBODY))
    with balancing(lab, config):
        assert isinstance(attempt(lab.client, VIP, 80), ConnectionRefusedError)
        assert isinstance(attempt(lab.client, SECOND_VIP, 80, patience=0.5), TimeoutError)


@dataclass(frozen=True, slots=True)
class Heard:
    """A segment that came back."""

    flags: int
    seq: int
    ack: int
    packet: IP


class Stranger:
    """A client that sends single segments from a port where nobody listens, and hears what comes back."""

    def __init__(self, host: Host, address: str, *, port: int = 33_333) -> None:
        self._address, self._port, self._host = address, port, host
        with entered(host.namespace):
            self._out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._in = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self._in.settimeout(0.5)

    def close(self) -> None:
        self._out.close()
        self._in.close()

    def sends(
        self, flags: int, *, seq: int = 0, ack: int = 0, payload: bytes = b"", **more: Any
    ) -> Heard | None:
        """What comes back within half a second, None if nothing does."""
        tcp = TCP(sport=self._port, dport=80, flags=flags, seq=seq, ack=ack, **more)
        made = craft(IP(src=self._host.address, dst=self._address), tcp, Raw(payload))
        self._out.sendto(made, (self._address, 0))
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            try:
                packet = IP(self._in.recv(4096))
            except TimeoutError:
                break
            if packet.src == self._address and packet[TCP].dport == self._port:
                return Heard(int(packet[TCP].flags), packet[TCP].seq, packet[TCP].ack, packet)
        return None


@pytest.mark.parametrize("address", [VIP, ROUTED_VIP])
def test_strays(lab: Lab, address: str) -> None:
    """R113, R117 (A20): segments without a connection are reset by RFC 9293's numbers; resets never are."""
    several = [virtual("near", ALL), virtual("far", ALL, address=ROUTED_VIP)]
    with balancing(lab, configuration(lab, *several, gateway='reject = "reset"')) as appliance:
        stranger = Stranger(lab.client, address)
        try:
            heard = stranger.sends(ACK, seq=5, ack=4_000_000_000)
            assert heard is not None
            assert (heard.flags, heard.seq, heard.ack) == (RST, 4_000_000_000, 0)
            assert offloads(lab) or bytes(heard.packet) == _anew(heard.packet)
            heard = stranger.sends(FIN, seq=4_294_967_290, payload=b"x" * 10)
            assert heard is not None
            assert (heard.flags, heard.seq, heard.ack) == (RST | ACK, 0, 5)
            assert stranger.sends(RST, seq=5) is None
            assert stranger.sends(RST | ACK, seq=5, ack=7) is None
            assert stranger.sends(ACK, seq=5, ack=7, chksum=0x1234) is None
            if offloads(lab):  # refused by the rules, whose counters are iptables'
                assert replies(appliance) == drops(appliance) == {}
                return
            assert replies(appliance).get("reset") == 3, (
                "also the one whose sum was wrong, which was not sent"
            )
            assert drops(appliance) == {"no-connection": 5}
        finally:
            stranger.close()
    with balancing(lab, configuration(lab, *several)) as appliance:
        stranger = Stranger(lab.client, address)
        try:
            assert stranger.sends(ACK, seq=5, ack=7) is None
            assert replies(appliance) == {}
        finally:
            stranger.close()


def _anew(packet: IP) -> bytes:
    """The packet with all its sums computed anew by scapy."""
    again = packet.copy()
    del again.chksum
    del again[TCP].chksum
    return bytes(again)


def test_the_right_to_send(lab: Lab) -> None:
    """R114: without it, a gateway that is to tell its clients does not start, and says what is missing."""
    path = lab.directory / "rights.toml"
    bare = ("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw")
    for keys, status in (('reject = "reset"', 1), ("", 0)):
        path.write_text(configuration(lab, gateway=keys))
        argv = (*bare, *command("check", "--host", str(path)))
        done = run(lab.gateway.namespace, argv, check=False, extra_environment=python_path())
        assert done.returncode == status, done.stdout + done.stderr
        assert ("CAP_NET_RAW" in done.stdout + done.stderr) == bool(status)


def test_a_gateway_with_rules_of_its_own(lab: Lab) -> None:
    """R114: replies are INVALID to conntrack, so no NAT rule changes them; a filter must let them out."""
    masquerade = ("-t", "nat", "-A", "POSTROUTING", "-o", "outside", "-j", "MASQUERADE")
    counted = ("-A", "OUTPUT", "-o", "outside", "-m", "conntrack", "--ctstate", "INVALID")
    config = configuration(lab, gateway='reject = "reset"', reals=dict.fromkeys(ALL, NOBODY))
    rules = [masquerade, counted]
    for rule in rules:
        lab.gateway.run("iptables", "-w", *rule)
    try:
        with balancing(lab, config):
            for _ in range(3):
                assert isinstance(attempt(lab.client, VIP, 80), ConnectionRefusedError)
            listed = lab.gateway.run("iptables", "-w", "-vnxL", "OUTPUT").stdout
            assert [line.split()[0] for line in listed.splitlines() if "INVALID" in line] == ["3"]
    finally:
        for rule in rules:
            lab.gateway.run("iptables", "-w", *("-D" if word == "-A" else word for word in rule))


def test_our_own_errors_get_out(lab: Lab) -> None:
    """R114: an unreachable of ours meets the rules for the gateway's own errors, and passes."""
    asked = craft(IP(src=lab.client.address, dst=VIP), UDP(sport=33_335, dport=53))
    key = asked[12:24]
    with balancing(lab, configuration(lab, gateway='reject = "reset"')) as appliance:
        with entered(lab.client.namespace):
            ears = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with entered(lab.gateway.namespace):
            sockets = ReplySockets({4})
        with ears, closing(sockets):
            ears.settimeout(5)
            assert sockets.send(unreachable_for(key, asked))
            heard = ears.recv(4096)
        assert heard[12:16] == asked[16:20]
        assert heard[28:] == asked
        assert drops(appliance) == {}


def test_a_flood_is_not_answered_one_for_one(lab: Lab) -> None:
    """R114: a thousand at once and a thousand a second, the rest in silence."""
    config = configuration(lab, gateway='reject = "reset"')
    with balancing(lab, config) as appliance:
        packet = craft(IP(src=lab.client.address, dst=VIP), TCP(sport=33_334, dport=80, flags=ACK, ack=1))
        with entered(lab.client.namespace):
            out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        begun = time.monotonic()
        with out:
            for _ in range(6000):
                out.sendto(packet, (VIP, 0))
        if offloads(lab):
            took = time.monotonic() - begun
            told, silent = (refused_by_rules(lab, target) for target in ("REJECT", "DROP"))
            assert told + silent == 6000
            assert 1000 <= told <= 1000 * (1.1 + took)
            assert ask(lab.client).server in ALL
            return
        wait_until(lambda: drops(appliance).get("no-connection", 0) >= 5500, "the flood's end")
        whole = summary(appliance)
        took = time.monotonic() - begun + 0.3  # the worker's clock is looked at only so often
        told = whole["replies"]
        assert 1000 <= told["reset"] <= 1000 * (1 + took)
        assert told["reset"] + told["over-limit"] == whole["drops"]["no-connection"]
        assert ask(lab.client).server in ALL


def refused_by_rules(lab: Lab, target: str) -> int:
    """What the rules of datapath offload have counted of segments without a connection."""
    listed = lab.gateway.run("iptables", "-w", "-vnxL", "NFQLB-O-TOLD").stdout
    return sum(int(line.split()[0]) for line in listed.splitlines() if line.split()[2:3] == [target])


# ---- connections of a failed server


def failing(lab: Lab, on_failure: str, reject: str = "drop") -> str:
    """A gateway whose first server fails with the first connection that it does not answer."""
    real = "failure_threshold = 1\nfailure_clients = 1\nretry = 3600"
    several = [
        virtual("web", ALL, scheduler="round-robin", on_failure=on_failure, reject=reject),
        virtual("far", ALL, address=ROUTED_VIP, scheduler="round-robin", on_failure=on_failure),
    ]
    return configuration(lab, *several, reals=dict.fromkeys(ALL, real))


class Download:
    """A connection in the middle of a download."""

    def __init__(self, host: Host, address: str) -> None:
        with entered(host.namespace):
            self.socket = socket.create_connection((address, 80), timeout=10)
        self.port: int = self.socket.getsockname()[1]
        self.socket.sendall(b"GET /film/long HTTP/1.1\r\nHost: lab\r\n\r\n")
        self.received = len(self.socket.recv(20_000))

    def drain(self, patience: float = 10.0) -> OSError | None:
        """Read until no more comes: the error that ends it, None where it ends well."""
        self.socket.settimeout(patience)
        try:
            while block := self.socket.recv(65_536):
                self.received += len(block)
        except OSError as error:
            return error
        return None


@contextmanager
def downloads(lab: Lab, address: str, count: int = 2) -> Iterator[list[Download]]:
    """So many downloads of one client."""
    document(lab, "long", 20)
    found: list[Download] = []
    try:
        found.extend(Download(lab.client, address) for _ in range(count))
        yield found
    finally:
        for each in found:
            each.socket.close()


def failed(lab: Lab, appliance: Appliance) -> bool:
    """Whether the silent server has failed by now; a request that it does not answer does that."""
    ask(lab.client)
    return any(row["state"] == "failed" for row in rows(appliance, "reals"))


def carriers(appliance: Appliance, *those: Download) -> list[str | None]:
    """Which servers the gateway has these downloads on."""
    ports = {row["client_port"]: row["real"] for row in rows(appliance, "connections", limit=1000)}
    return [ports.get(each.port) for each in those]


@pytest.mark.parametrize("address", [VIP, ROUTED_VIP])
def test_the_clients_of_a_failed_server_are_told(lab: Lab, address: str) -> None:
    """R186 (A34): "reset": a download whose server is cut off is over once the server has failed."""
    with balancing(lab, failing(lab, "reset")) as appliance, downloads(lab, address) as (cut, other):
        assert carriers(appliance, cut, other) == ["web1", "web2"]
        with silent(lab.servers[0]):
            wait_until(lambda: failed(lab, appliance), "the server's failure")
            assert isinstance(cut.drain(), ConnectionResetError)
            assert carriers(appliance, cut, other) == [None, "web2"]
            assert replies(appliance) == {"reset-on-failure": 1}
            assert isinstance(other.drain(0.5), TimeoutError), "it goes on, slowly"
            assert again(lab, address, cut.port).startswith("web2 ")
        assert drops(appliance).get("internal-error", 0) == 0


def again(lab: Lab, address: str, port: int) -> str:
    """A request from the very port of a connection that was reset: conntrack may still know that one."""
    url = f"http://{address}/"
    return lab.client.run("curl", "-sS", "--max-time", "10", "--local-port", str(port), url).stdout


@pytest.mark.parametrize(("reject", "refused"), [("drop", False), ("reset", True)])
def test_connections_of_a_failed_server_are_forgotten(lab: Lab, reject: str, refused: bool) -> None:
    """R186 (A34): "drop": what their clients send then is rejected as anything without a connection."""
    config = failing(lab, "drop", reject=reject)
    with balancing(lab, config) as appliance, downloads(lab, VIP) as (cut, other), silent(lab.servers[0]):
        wait_until(lambda: failed(lab, appliance), "the server's failure")
        wait_until(lambda: carriers(appliance, cut, other) == [None, "web2"], "the connection's end")
        assert "reset-on-failure" not in replies(appliance)
        if refused:  # a word of it is enough: that it has room for more, say
            with suppress(OSError):
                cut.socket.sendall(b"still there?")
            assert isinstance(cut.drain(), ConnectionResetError)
        else:
            before = strays(lab, appliance)
            cut.socket.sendall(b"still there?")
            wait_until(lambda: strays(lab, appliance) > before, "the refused segment")
            assert isinstance(cut.drain(0.5), TimeoutError)
            assert replies(appliance) == {}


def strays(lab: Lab, appliance: Appliance) -> int:
    """How many segments without a connection were dropped: by the worker, or by the rules."""
    if not offloads(lab):
        return drops(appliance).get("no-connection", 0)
    listed = lab.gateway.run("iptables", "-w", "-t", "mangle", "-vnxL", "NFQLB-O-MISSED").stdout
    return sum(int(line.split()[0]) for line in listed.splitlines() if "/* web */" in line)


def test_connections_of_a_failed_server_go_on(lab: Lab) -> None:
    """R186 (A34): "keep": the server comes back, and nothing was lost."""
    with balancing(lab, failing(lab, "keep")) as appliance, downloads(lab, VIP) as (cut, other):
        with silent(lab.servers[0]):
            wait_until(lambda: failed(lab, appliance), "the server's failure")
            assert carriers(appliance, cut, other) == ["web1", "web2"]
        before = cut.received
        cut.socket.settimeout(10.0)
        while cut.received < before + 1_000_000:
            cut.received += len(cut.socket.recv(65_536))
        assert replies(appliance) == {}


def test_a_worker_that_knows_no_numbers(lab: Lab) -> None:
    """R186 (A34): after a restart an idle client is asked for them first."""
    with balancing(lab, failing(lab, "reset")) as appliance:
        with entered(lab.client.namespace):
            idle = socket.create_connection((VIP, 80), timeout=10)
        with idle, silent(lab.servers[0]):
            killed = appliance.kill_worker()
            wait_until(lambda: restarted(appliance, killed), "the next worker")
            wait_until(lambda: failed(lab, appliance), "the server's failure")
            with pytest.raises(ConnectionResetError):
                idle.recv(1)
        told = {} if offloads(lab) else {"reset": 1}  # or by the rules
        assert replies(appliance) == {"reset-on-failure": 1, **told}


def restarted(appliance: Appliance, killed: int) -> bool:
    """Whether another worker than this answers."""
    try:
        return appliance.worker != killed
    except ControlError:
        return False
