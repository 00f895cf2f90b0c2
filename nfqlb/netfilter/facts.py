"""What this machine is like at one moment, read over netlink and from /proc as plain values.

Nothing here judges or changes anything; `host` judges, `address` changes. pyroute2 is imported
where it is used, for it costs a quarter of a second that most commands do not need to spend.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from math import inf
from pathlib import Path
from typing import Any

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.spec import Address, Config
from nfqlb.netfilter import sysctl, timeouts
from nfqlb.netfilter.conntrack import room
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.iptables import Iptables, installed
from nfqlb.netfilter.procfs import may_administer, may_send_raw, namespace, readers
from nfqlb.netfilter.queue_status import QueueStatus, read_queues
from nfqlb.netfilter.render import PREFIX
from nfqlb.netfilter.ruleset import Table, parse
from nfqlb.netfilter.state import DIRECTORY, owner

ADDRESS_PROTOCOL = 110
"""Tags an address as ours (IFA_PROTO, since Linux 5.18); the kernel's own values are 1 to 3."""

LABEL = ":nfqlb"
"""Tags an IPv4 address as ours on any kernel, after the interface's name: `eth0:nfqlb`."""

ELSEWHERE = {4: ip_address("203.0.113.253"), 6: ip_address("2001:db8:ffff:ffff::fffd")}
"""Clients without a route of their own: documentation addresses (RFC 5737, RFC 3849). Nothing is sent."""

_IPV6_SETTINGS = Path("/proc/sys/net/ipv6/conf")

_UP = 1  # IFF_UP, include/uapi/linux/if.h
_JOINED = 65_536  # GRO_LEGACY_MAX_SIZE, include/linux/netdevice.h
_ETHERNET = 1  # ARPHRD_ETHER, include/uapi/linux/if_arp.h
_UNICAST, _LOCAL = 1, 2  # RTN_*, include/uapi/linux/rtnetlink.h


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface. `mtu` is in bytes; `port_of` names the bridge or bond it belongs to, or is "".

    `joined` is below which length (bytes) the kernel joins received IPv6 segments into one super-packet.
    """

    name: str
    index: int
    up: bool
    mtu: int
    port_of: str = ""
    ethernet: bool = True
    joined: int = _JOINED


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of this machine with its prefix length; `ours` where it carries our tag."""

    interface: str
    address: IPv4Interface | IPv6Interface
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """Where packets for an address go: out of `interface`, or to this machine itself where `local`."""

    interface: str
    local: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is looked at before anything is touched.

    `routes` has None for an address that no route leads to. `rp_filter` is by interface, "all"
    included. `ipv6` are the interfaces on which IPv6 is switched on, `ipv6_forwarded` those from
    which the kernel forwards it. `iptables` is "nf_tables", "legacy", or "" where there is none;
    `nft` says whether that program is there, `other_rules` counts the rules in the tables of the
    other kind. `queue_readers` maps a bound queue's number to the process ids that read it, `owner` is
    another nfqlb's process id in this network namespace. `udp_timeout` is how long the kernel remembers
    a UDP flow at least (seconds).

    Of interest to datapath offload alone, and read only for it: how many connections the kernel may track
    once `run` has done what it can (0: no limit, or not known yet), whether it keeps `timeouts` of ours for
    them, and the rules of others that change destination addresses, in the order of their chain.
    """

    interfaces: Mapping[str, Interface]
    addresses: tuple[InterfaceAddress, ...] = ()
    routes: Mapping[Address, Route | None] = field(default_factory=dict)
    rp_filter: Mapping[str, int] = field(default_factory=dict)
    ipv6: frozenset[str] = frozenset()
    ipv6_forwarded: frozenset[str] = frozenset()
    queues: tuple[QueueStatus, ...] = ()
    queue_readers: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    net_admin: bool = True
    net_raw: bool = True
    iptables: str = "nf_tables"
    nft: bool = True
    other_rules: int = 0
    owner: int | None = None
    tracked: int = 0
    timeouts: bool = True
    translations: tuple[str, ...] = ()
    udp_timeout: float = inf


def read(config: Config, directory: Path = DIRECTORY) -> Facts:
    """The facts that matter to `config`. `directory` is where a running nfqlb leaves its lock."""
    wanted = [real.address for real in config.reals]
    versions = {address.version for address in wanted}
    with netlink() as route:
        interfaces = read_interfaces(route)
        names = {interface.index: interface.name for interface in interfaces.values()}
        routes = {
            address: _lookup(route, names, address)
            for address in [*wanted, *(ELSEWHERE[version] for version in versions)]
        }
        addresses = read_addresses(route)
    bound = tuple(read_queues())
    kind, other_rules = _programs()
    offload = any(virtual.datapath == OFFLOAD for virtual in config.virtuals)
    return Facts(
        interfaces=interfaces,
        addresses=tuple(addresses),
        routes=routes,
        rp_filter=_rp_filter(),
        ipv6=frozenset(name for name in interfaces if _ipv6_setting(name, "disable_ipv6") == 0),
        ipv6_forwarded=frozenset(name for name in interfaces if _forwards_ipv6(name)),
        queues=bound,
        queue_readers={queue.number: tuple(readers(queue.port)) for queue in bound},
        net_admin=may_administer(),
        net_raw=may_send_raw(),
        iptables=kind,
        nft=installed("nft"),
        other_rules=other_rules,
        owner=_other(directory),
        udp_timeout=_udp_timeout(),
        **(_of_offload(config, bool(kind)) if offload else {}),
    )


@contextmanager
def netlink() -> Iterator[Any]:
    """A pyroute2 `IPRoute` (it ships no types) for this network namespace. Raises KernelError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as route:
        try:
            yield route
        except NetlinkError as error:
            hint = "; run as root, or with CAP_NET_ADMIN" if error.code == errno.EPERM else ""
            raise KernelError(f"netlink: {error.args[-1]}{hint}") from None


def read_interfaces(route: Any) -> dict[str, Interface]:
    """All interfaces by name. A bridge or bond shows packets under its own name, not its ports'."""
    links = list(route.get_links())
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
    kinds = {link["index"]: link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") for link in links}
    found = {}
    for link in links:
        master = link.get_attr("IFLA_MASTER")
        port_of = names.get(master, "") if kinds.get(master) != "vrf" else ""
        name = names[link["index"]]
        found[name] = Interface(
            name,
            link["index"],
            bool(link["flags"] & _UP),
            link.get_attr("IFLA_MTU"),
            port_of,
            link["ifi_type"] == _ETHERNET,
            link.get_attr("IFLA_GRO_MAX_SIZE") or _JOINED,
        )
    return found


def read_addresses(route: Any) -> list[InterfaceAddress]:
    """All addresses of this machine."""
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in route.get_links()}
    found = []
    for entry in route.get_addr():
        text = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
        label = entry.get_attr("IFA_LABEL") or ""
        ours = entry.get_attr("IFA_PROTO") == ADDRESS_PROTOCOL or label.endswith(LABEL)
        address = ip_interface(f"{text}/{entry['prefixlen']}")
        found.append(InterfaceAddress(names.get(entry["index"], ""), address, ours))
    return found


def _lookup(route: Any, names: Mapping[int, str], address: Address) -> Route | None:
    """The kernel's own answer for one address; sends nothing."""
    from pyroute2.netlink.exceptions import NetlinkError

    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        answer = route.route("get", dst=str(address), family=family)[0]
    except NetlinkError:
        return None
    if answer["type"] not in (_UNICAST, _LOCAL):
        return None
    return Route(names.get(answer.get_attr("RTA_OIF"), ""), answer["type"] == _LOCAL)


def _other(directory: Path) -> int | None:
    """Another process that holds this network namespace; this one may hold it already."""
    process = owner(directory, namespace())
    return None if process == os.getpid() else process


def _of_offload(config: Config, iptables: bool) -> dict[str, Any]:
    """What only datapath offload asks for."""
    rules: list[str] = []
    for program in ("iptables", "ip6tables") if iptables else ():
        with contextlib.suppress(KernelError):
            table = parse(Iptables(program).save()).get("nat")
            rules += translations(table) if table else ()
    tracked = 0
    with contextlib.suppress(KernelError):  # nobody has asked for conntrack yet; our rules will
        tracked = int(sysctl.tracking(config).get(sysctl.TRACKED, room()[1]))
    return {"tracked": tracked, "timeouts": timeouts.available(), "translations": tuple(rules)}


def translations(table: Table) -> list[str]:
    """The rules of others in a nat table that may give a packet from outside another destination.

    Chains are followed in order, each once; conditions of the jumps to them are not weighed.
    """
    found: list[str] = []
    seen: set[str] = set()

    def follow(chain: str) -> None:
        seen.add(chain)
        for rule in table.chains.get(chain, ()):
            words = rule.split()
            target = next((words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-j", "-g")), "")
            if target in ("DNAT", "REDIRECT", "NETMAP"):
                found.append(rule)
            elif target in table.chains and target not in seen and not target.startswith(PREFIX):
                follow(target)

    follow("PREROUTING")
    return found


def _rp_filter() -> dict[str, int]:
    """The reverse path filter of every interface and of "all"."""
    found = {}
    for entry in Path("/proc/sys/net/ipv4/conf").iterdir():
        with contextlib.suppress(OSError, ValueError):
            found[entry.name] = int((entry / "rp_filter").read_text(encoding="ascii"))
    return found


def _udp_timeout() -> float:
    """The least time that conntrack keeps a UDP flow; inf where it is not there yet to be asked."""
    found = [inf]
    for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
        with contextlib.suppress(OSError, ValueError):
            found.append(float(Path(f"/proc/sys/net/netfilter/{name}").read_text(encoding="ascii")))
    return min(found)


def _forwards_ipv6(interface: str) -> bool:
    """Whether IPv6 packets that come in there are forwarded (net/ipv6/ip6_output.c, ip6_forward)."""
    return _ipv6_setting("all", "forwarding") == 1 or _ipv6_setting(interface, "force_forwarding") == 1


def _ipv6_setting(interface: str, name: str) -> int | None:
    """A setting of an interface, None where this kernel has none: it lacks IPv6, or is older."""
    with contextlib.suppress(OSError, ValueError):
        return int((_IPV6_SETTINGS / interface / name).read_text(encoding="ascii"))
    return None


def _programs() -> tuple[str, int]:
    """Which kind of iptables is used here, and how many rules the other kind holds."""
    tables = Iptables()
    if not tables.installed:
        return "", 0
    other = tables.other_kind()
    saved = ""
    if other.installed:
        with contextlib.suppress(KernelError):  # tables that cannot be listed hold nothing
            saved = other.save()
    return tables.kind(), sum(line.startswith("-A ") for line in saved.splitlines())
