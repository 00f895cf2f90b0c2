"""The laboratory's namespaces and links, made with pyroute2.

Owns names and their owners: a laboratory's identity is `PREFIX-PID-START-SERIAL`, where PID and START (clock
ticks since boot) are the process that made it. So a later run can tell what a dead one left (`leftovers`).
"""

import itertools
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, AF_INET6
from types import TracebackType
from typing import Self

from pyroute2 import IPRoute, netns
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD

from nfqlb.demo.programs import POLL, LabError

_serial = itertools.count(1)
_NAMESPACES = Path("/run/netns")


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def new_identity(prefix: str) -> str:
    """A name that no other laboratory of this machine has; tells the process that made it."""
    pid = os.getpid()
    return f"{prefix}-{pid}-{start_time(pid)}-{next(_serial)}"


def leftovers(prefix: str) -> tuple[list[str], list[Path]]:
    """Namespaces and directories of laboratories with this prefix whose owner is dead."""
    pattern = re.compile(rf"{re.escape(prefix)}-(\d+)-(\d+)-\d+(-[a-z0-9]+)?")

    def orphaned(name: str) -> bool:
        match = pattern.fullmatch(name)
        return match is not None and start_time(int(match[1])) != int(match[2])

    spaces = [name for name in netns.listnetns() if orphaned(name)]
    folders = [path for path in Path(tempfile.gettempdir()).glob(f"{prefix}-*") if orphaned(path.name)]
    return spaces, folders


def processes(namespace: str) -> Iterator[int]:
    """The processes whose network namespace is this one."""
    try:
        wanted = (_NAMESPACES / namespace).stat()
    except FileNotFoundError:
        return
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            found = (entry / "ns/net").stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                yield int(entry.name)


def remove_namespace(name: str, *, timeout: float = 5.0) -> None:
    """Remove a namespace of a laboratory, ending what still runs in it.

    Raises LabError where a process survives SIGKILL for `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while alive := [pid for pid in processes(name) if pid != os.getpid()]:
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"namespace {name}: processes {alive} do not end")
        time.sleep(POLL)
    with suppress(FileNotFoundError):  # another one may sweep, too
        netns.remove(name)


def _socket_in(namespace: str) -> IPRoute:
    """A netlink socket of a namespace: opened there and kept, while this thread goes back.

    `IPRoute(netns=...)` would fork for it, and end the child by a SIGTERM that our own handlers would take.
    """
    netns.pushns(namespace)
    try:
        return IPRoute()
    finally:
        netns.popns()


@dataclass(frozen=True, slots=True)
class Interface:
    """One end of a link: the namespace it is in, its name there, its address with prefix length, its MTU.

    `address6` is its IPv6 address, where it has one.
    """

    namespace: str
    name: str
    address: str
    mtu: int
    address6: str = ""


class Network:
    """Namespaces, joined by switches. A context: what it made is gone when it ends.

    All switches are bridges of one namespace of their own, so a host has nothing but its own interfaces, and
    a cable can be pulled at the switch's end: the host then loses its carrier and keeps its addresses.
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._stack = ExitStack()
        self._sockets: dict[str, IPRoute] = {}
        self._ports: dict[Interface, int] = {}
        self._switch = ""

    def __enter__(self) -> Self:
        self._switch = self.namespace("switch")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove every namespace, and with them interfaces, routes, rules and sysctls."""
        self._stack.close()

    def namespace(self, role: str) -> str:
        """Make a namespace, with its loopback up, and return its name."""
        name = f"{self._identity}-{role}"
        self._stack.callback(remove_namespace, name)
        netns.create(name)
        self._sockets[name] = self._stack.enter_context(_socket_in(name))
        self._sockets[name].link("set", index=1, state="up")
        return name

    def index(self, namespace: str, interface: str) -> int:
        """The number of an interface. Raises LabError where the namespace has none of that name."""
        found = self._sockets[namespace].link_lookup(ifname=interface)
        if not found:
            raise LabError(f"namespace {namespace} has no interface {interface}")
        return int(found[0])

    def switch(self, name: str, members: list[Interface]) -> None:
        """Join interfaces, made here, by a bridge of this name."""
        route = self._sockets[self._switch]
        widest = max(member.mtu for member in members)
        route.link("add", ifname=name, kind="bridge", br_stp_state=0, br_forward_delay=0)
        bridge = self.index(self._switch, name)
        for number, member in enumerate(members):
            port = f"{name}{number}"
            there = {"ifname": member.name, "net_ns_fd": member.namespace, "mtu": member.mtu}
            route.link("add", ifname=port, kind="veth", mtu=widest, peer=there)
            index = self.index(self._switch, port)
            self._ports[member] = index
            route.link("set", index=index, master=bridge, state="up")
            self._configure(member)
        route.link("set", index=bridge, mtu=widest, state="up")

    def _configure(self, interface: Interface) -> None:
        for text in filter(None, (interface.address, interface.address6)):
            self.address(interface, text)
        index = self.index(interface.namespace, interface.name)
        self._sockets[interface.namespace].link("set", index=index, state="up")

    def address(self, interface: Interface, address: str) -> None:
        """Give an interface an address (`"192.0.2.21/24"`); an IPv6 one serves at once."""
        text, _, length = address.partition("/")
        index = self.index(interface.namespace, interface.name)
        more = {"family": AF_INET6, "flags": IFA_F_NODAD} if ":" in text else {}
        self._sockets[interface.namespace].addr(
            "add", index=index, address=text, prefixlen=int(length), **more
        )

    def route(self, namespace: str, destination: str, gateway: str) -> None:
        """Add a route (`"default"` or a network) by way of a neighbour's address."""
        family = AF_INET6 if ":" in gateway else AF_INET
        self._sockets[namespace].route("add", family=family, dst=destination, gateway=gateway)

    def mtu(self, interface: Interface, octets: int) -> None:
        """Set the MTU of a host's end of a link; the switch's end stays as it is."""
        index = self.index(interface.namespace, interface.name)
        self._sockets[interface.namespace].link("set", index=index, mtu=octets)

    def plugged(self, interface: Interface, state: bool) -> None:
        """Pull a host's cable out of its switch, or put it back."""
        self._sockets[self._switch].link("set", index=self._ports[interface], state="up" if state else "down")
