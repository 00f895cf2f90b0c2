"""What the kernel tells of processes in /proc: who reads a queue, which rights and which network is ours."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from sys import byteorder

_NETLINK_NETFILTER = 12  # include/uapi/linux/netlink.h
_SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, since Linux 5.14
_LISTENING = "0A"  # TCP_LISTEN, as /proc/net/tcp has it
_COMMAND = 100  # characters of a command line that are told
_NS_GET_USERNS = 0xB701  # ioctl_ns(2)
NET_ADMIN, NET_RAW = 12, 13  # include/uapi/linux/capability.h


@dataclass(frozen=True, slots=True)
class Namespace:
    """The network namespace this process is in.

    An `inode` is used again after the namespace is gone; the `cookie` (0 on old kernels) and the
    `boot` id tell the one from the other.
    """

    inode: int
    cookie: int
    boot: str


def readers(port: int) -> list[int]:
    """The ids of the processes that hold the netfilter netlink socket with this port, lowest first.

    Searched by the socket's inode: the port is only by habit the process id. Processes of others
    are seen by root alone.
    """
    inodes = set()
    for line in Path("/proc/net/netlink").read_text(encoding="ascii").splitlines()[1:]:
        columns = line.split()
        if int(columns[1]) == _NETLINK_NETFILTER and int(columns[2]) == port:
            inodes.add(f"socket:[{columns[9]}]")
    return sorted(
        int(process.name)
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and inodes & _open_files(process)
    )


def _open_files(process: Path) -> set[str]:
    """What the descriptors of a process point to; nothing where it is gone or not ours to see."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(descriptor.readlink()))
    return found


@dataclass(frozen=True, slots=True)
class Doing:
    """What a process is doing: its state's letter (proc(5)), and the processor time it has used (seconds)."""

    state: str
    used: float


def doing(process: int) -> Doing | None:
    """What the process is doing; None where there is none of this id."""
    try:
        line = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    columns = line.rpartition(")")[2].split()  # its name may hold anything, brackets too
    ticks = int(columns[11]) + int(columns[12])
    return Doing(columns[0], ticks / os.sysconf("SC_CLK_TCK"))


@dataclass(frozen=True, slots=True)
class Process:
    """A process as far as it can be told from outside; "" for what is not known, or was gone already."""

    pid: int
    name: str = ""
    command: str = ""
    parent: int = 0
    started_by: str = ""
    uid: int | None = None

    def __str__(self) -> str:
        what = self.command or self.name or "a process that is gone"
        more = [f"process {self.pid}"] if self.pid else []
        more += [f"user {self.uid}"] if self.uid is not None else []
        more += [f"started by {self.started_by}"] if self.started_by else []
        return f"{what} ({', '.join(more)})" if more else what


def process(pid: int, name: str = "") -> Process:
    """What is known of a process. One that goes by another name than `name` is another by now."""
    found = _status(pid)
    if not found or (name and found["Name"] != name):
        return Process(pid, _printable(name))
    parent, uid = int(found["PPid"]), int(found["Uid"].split()[0])
    return Process(pid, _printable(found["Name"]), _command(pid), parent, _command(parent), uid)


def _status(pid: int | str) -> dict[str, str]:
    """The lines of /proc/PID/status by name; {} where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def _command(pid: int) -> str:
    """A process's command line, cut to what fits a line of a log."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        return _printable(b" ".join(words).decode("utf-8", "backslashreplace"))[:_COMMAND]
    return ""


def _printable(text: str) -> str:
    """A text of somebody else's choice on one line, without what a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP socket that listens in this network namespace, and the first process that has it, if it shows."""

    address: IPv4Address | IPv6Address
    port: int
    owner: Process | None = None

    def __str__(self) -> str:
        who = f" ({self.owner.name}, process {self.owner.pid})" if self.owner else ""
        return f"{self.address} port {self.port}{who}"


def listeners() -> list[Listener]:
    """The listening TCP sockets that are bound to an address of their own. Raises OSError."""
    found: dict[str, tuple[IPv4Address | IPv6Address, int]] = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
                columns = line.split()
                place, _, port = columns[1].partition(":")
                if columns[3] == _LISTENING and place.strip("0"):
                    found[f"socket:[{columns[9]}]"] = _address_in(place), int(port, 16)
    owners = _owners(found.keys())
    return [Listener(*found[inode], owners.get(inode)) for inode in found]


def _address_in(text: str) -> IPv4Address | IPv6Address:
    """An address as /proc/net/tcp writes it: words of 32 bits, each in the machine's own order."""
    words = [int(text[at : at + 8], 16).to_bytes(4, byteorder) for at in range(0, len(text), 8)]
    packed = b"".join(words)
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _owners(inodes: Collection[str]) -> dict[str, Process]:
    found: dict[str, Process] = {}
    for path in Path("/proc").iterdir() if inodes else ():
        if path.name.isdigit():
            for inode in _open_files(path) & set(inodes):
                found.setdefault(inode, process(int(path.name)))
    return found


def may_administer() -> bool:
    """Whether this process has CAP_NET_ADMIN, for the network that it is in."""
    return _capable(NET_ADMIN) and _within_reach()


def may_send_raw() -> bool:
    """Whether this process has CAP_NET_RAW, for the network that it is in."""
    return _capable(NET_RAW) and _within_reach()


def _within_reach() -> bool:
    """Whether our user namespace owns this network namespace, or one that does: else no right counts here."""
    try:
        descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        os.close(fcntl.ioctl(descriptor, _NS_GET_USERNS))
    except PermissionError:
        return False
    except OSError:  # a kernel that cannot tell, before 4.9
        return True
    finally:
        os.close(descriptor)
    return True


def _capable(capability: int) -> bool:
    return capability in capabilities(kind="Eff")


def capabilities(process: int | str = "self", kind: str = "Prm") -> frozenset[int]:
    """A process's capabilities of a kind: "Prm", "Eff", "Inh", "Bnd" or "Amb" (proc(5)). Raises OSError."""
    found = _status(process)
    if not found:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    bits = int(found[f"Cap{kind}"], 16)
    return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)


def namespace() -> Namespace:
    """The network namespace of this process."""
    inode = os.stat("/proc/thread-self/ns/net").st_ino  # noqa: PTH116 - Path.stat() is the same call
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            cookie = int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
        except OSError:
            cookie = 0
    return Namespace(inode, cookie, boot)
