"""A laboratory: clients, a gateway and servers, each a network namespace of this machine.

    client1 ... clientN -- outside 192.0.2.0/24 -- gateway -- inside 10.0.0.0/24 -- web1 ... webN

A router may stand in between: `router="inside"` puts the servers one hop further, inside -- router -- far
10.0.1.0/24, `router="outside"` the clients: far 203.0.113.0/24 -- router -- outside. With `ipv6=True` every
end of a link has an IPv6 address as well (see `sixth`), and gateway and router forward IPv6. Leaves no
namespace, process or file behind: not after an exception, SIGTERM, SIGHUP or Ctrl-C; `sweep` clears what a
killed one left.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self

from nfqlb.demo.network import Interface, Network, leftovers, new_identity, remove_namespace
from nfqlb.demo.programs import LabError, Program, require, run

VIP = "192.0.2.100"
"""A virtual IP in the outside interface's own subnet: announced by the gateway."""
SECOND_VIP = "192.0.2.101"
ROUTED_VIP = "198.51.100.7"
"""A virtual IP in no subnet of the gateway: reached because the clients route through it."""
VIP6 = "2001:db8:0:2::100"
"""Like `VIP`, of IPv6."""

_NETWORKS6 = {
    "192.0.2": "2001:db8:0:2", "203.0.113": "2001:db8:0:113", "10.0.0": "fd00:0:0:1", "10.0.1": "fd00:0:0:2"
}  # fmt: skip
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def sixth(address: str) -> str:
    """The IPv6 address beside an IPv4 one of the laboratory: `192.0.2.11/24`, `2001:db8:0:2::11/64`."""
    text, _, length = address.partition("/")
    network, _, host = text.rpartition(".")
    return f"{_NETWORKS6[network]}::{'' if host == '0' else host}{'/64' if length else ''}"


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came; ends the program the way Ctrl-C does, through every clean-up."""


class Host:
    """One machine of the laboratory.

    `address` is its first one without prefix length, `address6` the IPv6 one ("" without IPv6);
    `interfaces` maps names to `Interface`.
    """

    def __init__(self, lab: "Lab", name: str, interfaces: Mapping[str, Interface], namespace: str) -> None:
        self.name = name
        self.namespace = namespace
        self.interfaces = dict(interfaces)
        first = next(iter(interfaces.values()))
        self.address = first.address.partition("/")[0]
        self.address6 = first.address6.partition("/")[0]
        self._lab = lab

    def run(
        self, *argv: str, timeout: float = 30.0, check: bool = True, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end; see `programs.run`."""
        return run(self.namespace, argv, timeout=timeout, check=check, given=given)

    def start(
        self,
        *argv: str,
        environment: Mapping[str, str] | None = None,
        ending: signal.Signals = signal.SIGTERM,
    ) -> Program:
        """Start a program here; it is ended by `ending` with the laboratory or its owner at the latest."""
        return self._lab.start(self, argv, environment, ending)

    def sysctl(self, key: str, value: str | None = None) -> str:
        """Read a setting of this namespace (`"net.ipv4.ip_forward"`); write it first if a value is given."""
        path = "/proc/sys/" + key.replace(".", "/")
        if value is not None:
            self.run("tee", path, given=value)
        return self.run("cat", path).stdout.strip()

    def mtu(self, interface: str, octets: int) -> None:
        """Set the MTU of one interface; the other end of the link stays as it is."""
        self._lab.network.mtu(self.interfaces[interface], octets)

    def add_address(self, address: str) -> None:
        """Give the first interface a further address with prefix length."""
        self._lab.network.address(next(iter(self.interfaces.values())), address)

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Pull the cable of the first interface for the time of the context."""
        interface = next(iter(self.interfaces.values()))
        self._lab.network.plugged(interface, False)
        try:
            yield
        finally:
            self._lab.network.plugged(interface, True)


class Lab:
    """The laboratory; a context. MTUs are in bytes and hold for every end of the links on that side.

    `directory` is its own, for sockets, configuration, logs and documents. Raises LabError without root or
    where a program is missing.
    """

    def __init__(
        self,
        *,
        clients: int = 1,
        servers: int = 3,
        router: Literal["inside", "outside"] | None = None,
        mtu_outside: int = 1500,
        mtu_inside: int = 1500,
        ipv6: bool = False,
        prefix: str = "nfqlb",
    ) -> None:
        self._sizes = (clients, servers)
        self._routed = router
        self._mtus = (mtu_outside, mtu_inside)
        self._ipv6 = ipv6
        self._prefix = prefix
        self._stack = ExitStack()
        self._owner = os.getpid()
        self._started = 0
        self.clients: tuple[Host, ...] = ()
        self.servers: tuple[Host, ...] = ()
        self.router: Host | None = None

    @property
    def client(self) -> Host:
        """The first client."""
        return self.clients[0]

    def __enter__(self) -> Self:
        require("ip", "setpriv")
        sweep(self._prefix)
        _guard(self)
        try:
            self._build()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if os.getpid() != self._owner:
            os._exit(1)  # a child of a fork, on its way out through our clean-ups
        try:
            with _undisturbed():
                self._stack.close()
        finally:
            _unguard(self)

    def _build(self) -> None:
        self.identity = new_identity(self._prefix)
        self.directory = Path(tempfile.gettempdir()) / self.identity
        self.directory.mkdir(mode=0o700)
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.network = self._stack.enter_context(Network(self.identity))
        outside, inside = self._mtus
        self.gateways = self._build_gateways(outside, inside)
        self.gateway = self.gateways[0]
        self.clients = self._build_side("client", "outside", "192.0.2", "203.0.113", self._sizes[0], outside)
        self.servers = self._build_side("web", "inside", "10.0.0", "10.0.1", self._sizes[1], inside)

    def _build_gateways(self, outside: int, inside: int) -> tuple[Host, ...]:
        """One gateway, its ends of the links with these MTUs."""
        gateway = self._host("gateway", outside=("192.0.2.1/24", outside), inside=("10.0.0.1/24", inside))
        self._forward_ipv6(gateway)
        return (gateway,)

    def _build_side(
        self, name: str, side: str, near: str, far: str, count: int, mtu: int
    ) -> tuple[Host, ...]:
        """The hosts of one side of the gateway, on the network `near`, or on `far` behind the router."""
        routed = self._routed == side
        net = far if routed else near
        hosts = tuple(
            self._host(f"{name}{n}", **{side: (f"{net}.{10 + n}/24", mtu)}) for n in range(1, count + 1)
        )
        beside = hosts
        if routed:
            router = self._host("router", **{side: (f"{near}.2/24", mtu), "far": (f"{far}.1/24", mtu)})
            router.sysctl("net.ipv4.ip_forward", "1")
            self._forward_ipv6(router)
            ends = [router.interfaces["far"], *(host.interfaces[side] for host in hosts)]
            self.network.switch("far", ends)
            self.router = router
            beside = (router,)
        self.network.switch(side, [host.interfaces[side] for host in (*self.gateways, *beside)])
        if self.router is not None and routed:
            self._route(self.gateway, f"{far}.0/24", f"{near}.2")
            self._route(self.router, "default", f"{near}.1")
        for host in hosts:
            self._route(host, "default", f"{net}.1")
        return hosts

    def _route(self, host: Host, destination: str, gateway: str) -> None:
        """A route, and its like of IPv6."""
        self.network.route(host.namespace, destination, gateway)
        if self._ipv6:
            beside = destination if destination == "default" else sixth(destination)
            self.network.route(host.namespace, beside, sixth(gateway))

    def _forward_ipv6(self, host: Host) -> None:
        if self._ipv6:
            host.sysctl("net.ipv6.conf.all.forwarding", "1")

    def _host(self, name: str, **interfaces: tuple[str, int]) -> Host:
        namespace = self.network.namespace(name)
        ends = {
            key: Interface(namespace, key, address, mtu, sixth(address) if self._ipv6 else "")
            for key, (address, mtu) in interfaces.items()
        }
        host = Host(self, name, ends, namespace)
        if self._ipv6:  # else a link-local address, by which neighbours are asked, waits for a second or two
            host.sysctl("net.ipv6.conf.default.accept_dad", "0")
        return host

    def start(
        self,
        host: Host,
        argv: tuple[str, ...],
        environment: Mapping[str, str] | None,
        ending: signal.Signals,
    ) -> Program:
        """Start a program on a host, its output in `directory`, ended with the laboratory at the latest."""
        self._started += 1
        base = f"{self._started:03}-{host.name}-{Path(argv[0]).name}"
        program = Program(
            host.namespace,
            argv,
            out=self.directory / f"{base}.out",
            err=self.directory / f"{base}.err",
            ending=ending,
            extra_environment=environment,
        )
        self._stack.callback(program.stop)
        return program


def sweep(prefix: str = "nfqlb") -> list[str]:
    """Remove what laboratories with this prefix left whose owner is dead; return the namespaces' names."""
    spaces, folders = leftovers(prefix)
    for name in spaces:
        remove_namespace(name)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return spaces


_open: set[Lab] = set()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(signal.Signals(number).name)


def _guard(lab: Lab) -> None:
    """While a laboratory is open, SIGTERM and SIGHUP end this program through its clean-ups."""
    if threading.current_thread() is not threading.main_thread():
        return
    if not _open:
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _terminate)
    _open.add(lab)


def _unguard(lab: Lab) -> None:
    _open.discard(lab)
    if _open or threading.current_thread() is not threading.main_thread():
        return
    for number in _ENDING:
        if signal.getsignal(number) is _terminate:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back for the time of the context; one that came acts after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDING)}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        if came:
            signal.raise_signal(signal.Signals(came[0]))


__all__ = [
    "ROUTED_VIP",
    "SECOND_VIP",
    "VIP",
    "VIP6",
    "Host",
    "Lab",
    "LabError",
    "Program",
    "Terminated",
    "sixth",
    "sweep",
]
