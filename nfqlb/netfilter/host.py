"""Whether this machine can carry a configuration: checked before anything is touched.

`judge` is pure, from facts to findings; `check` reads the facts first. An error means that `run`
refuses; a warning means that it works, but probably not as the operator expects.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path
from typing import Literal

from nfqlb.config.marks import OFFLOAD
from nfqlb.config.numbers import queue_numbers
from nfqlb.core.spec import Config, Virtual
from nfqlb.netfilter import facts
from nfqlb.netfilter.facts import ELSEWHERE, Facts
from nfqlb.netfilter.render import MAX_PACKET
from nfqlb.netfilter.reply import replies_to_clients
from nfqlb.netfilter.state import DIRECTORY
from nfqlb.netfilter.sysctl import tracked

_USUAL_LIMIT = 65_536
"""Bytes that super-packets stay below unless somebody raised the limit."""

Level = Literal["error", "warning", "unseen", "ok"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about this machine: what it is, and what to do about it (may be "").

    The doctor has two levels more: "ok" for what is as it should be, "unseen" for what could not be looked
    at; and says which `area` it belongs to.
    """

    level: Level
    what: str
    advice: str = ""
    area: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.what}" + (f"; {self.advice}" if self.advice else "")


_HINT = "stop that one first, or take over from it: nfqlb run --take-over"


def check(config: Config, directory: Path = DIRECTORY, *, alone: bool = True) -> list[Finding]:
    """What stands against running `config` here, errors first; [] where nothing does.

    Without `alone` nobody minds that another nfqlb is there.
    """
    return judge(config, facts.read(config, directory), alone=alone)


def judge(config: Config, found: Facts, *, alone: bool = True) -> list[Finding]:
    """The findings that follow from the facts, errors first, otherwise in the order of the checks."""
    checks = [check for area, check in CHECKS if alone or area != "alone"]
    findings = [finding for check in checks for finding in check(config, found)]
    return sorted(findings, key=lambda finding: finding.level != "error")


def _rights(config: Config, found: Facts) -> Iterator[Finding]:
    if not found.net_admin:
        advice = "run as root, or with CAP_NET_ADMIN; in a user namespace only for a network of its own"
        yield Finding("error", "no right to change the network", advice)
    if not found.net_raw and replies_to_clients(config):
        yield Finding(
            "error",
            'no right to send resets to clients, which reject or on_failure = "reset" asks for',
            "run as root, or with CAP_NET_RAW too",
        )


def _programs(config: Config, found: Facts) -> Iterator[Finding]:
    if not found.iptables:
        yield Finding("error", "iptables is not installed", "on Debian: apt-get install iptables")
    elif found.other_rules:
        other = "legacy" if found.iptables == "nf_tables" else "nf_tables"
        yield Finding(
            "warning",
            f"iptables here is of the {found.iptables} kind, but {found.other_rules} rules stand in the "
            f"{other} tables; every packet meets both",
            f"move them over (iptables-{'legacy' if other == 'legacy' else 'nft'}-save shows them)",
        )


def _counters(config: Config, found: Facts) -> Iterator[Finding]:
    if not found.nft:
        yield Finding(
            "warning",
            "nft is not installed, so packets and bytes of virtual servers are not counted",
            "on Debian: apt-get install nftables",
        )


def _alone(config: Config, found: Facts) -> Iterator[Finding]:
    if found.owner is not None:
        who = f"process {found.owner}" if found.owner else "another process"
        yield Finding("error", f"another nfqlb, {who}, serves this network namespace", _HINT)


def _queues(config: Config, found: Facts) -> Iterator[Finding]:
    if found.owner is not None:
        return  # another nfqlb has them, which is said already
    ours = queue_numbers(config)
    for queue in found.queues:
        if queue.number in ours:
            pids = found.queue_readers.get(queue.number) or (queue.port,)
            who = ", ".join(str(pid) for pid in pids)
            plural = "es" if len(pids) > 1 else ""
            yield Finding(
                "error",
                f"queue {queue.number} is taken by process{plural} {who}",
                f"stop it, or set another `queue` in [gateway] (nfqlb uses {' and '.join(map(str, ours))})",
            )


def _interfaces(config: Config, found: Facts) -> Iterator[Finding]:
    for side in ("outside", "inside"):
        for name in getattr(config.gateway, side):
            interface = found.interfaces.get(name)
            if interface is None:
                known = ", ".join(sorted(known for known in found.interfaces if known != "lo"))
                what = f"{side} interface {name} does not exist"
                yield Finding("error", what, f"there are: {known or 'none'}")
            elif not interface.up:
                yield Finding("error", f"{side} interface {name} is down", f"ip link set {name} up")
            elif interface.port_of:
                yield Finding(
                    "error",
                    f"{side} interface {name} is a port of {interface.port_of}; rules never see its name",
                    f'name "{interface.port_of}" instead',
                )


def _super_packets(config: Config, found: Facts) -> Iterator[Finding]:
    """A large MTU needs no word: the rules keep TCP from using what a queue cannot carry."""
    for name in _interfaces_with_ipv6(config, found):
        interface = found.interfaces[name]
        if interface.joined > _USUAL_LIMIT:
            yield Finding(
                "warning",
                f"interface {name} joins received segments to up to {interface.joined} bytes (BIG TCP), but "
                f"a queue hands over {MAX_PACKET}; longer ones are dropped, counted, and sent again",
                f"ip link set {name} gro_max_size {_USUAL_LIMIT}",
            )


def _ipv6(config: Config, found: Facts) -> Iterator[Finding]:
    """Asked for, not done: a machine that forwards IPv6 stops listening to other routers."""
    names = _interfaces_with_ipv6(config, found)
    for name in names:
        if name not in found.ipv6:
            setting = f"net.ipv6.conf.{name.replace('.', '/')}.disable_ipv6=0"
            yield Finding("error", f"there is no IPv6 on interface {name}", f"sysctl {setting}")
    still = [name for name in names if name in found.ipv6 and name not in found.ipv6_forwarded]
    if still:
        yield Finding(
            "error",
            f"IPv6 is not forwarded from {' and '.join(still)}",
            "sysctl net.ipv6.conf.all.forwarding=1; where an interface gets its routes from router "
            "advertisements, set its accept_ra=2 first, or it loses them",
        )


def _interfaces_with_ipv6(config: Config, found: Facts) -> list[str]:
    """The interfaces that IPv6 has to pass; none where no virtual server has an address of it."""
    if all(virtual.address.version == 4 for virtual in config.virtuals):
        return []
    names = config.gateway.outside + config.gateway.inside
    return [name for name in names if name in found.interfaces]


def _rp_filter(config: Config, found: Facts) -> Iterator[Finding]:
    """Strict filtering works as the rules are placed; it hurts only where clients come by several ways."""
    outside = config.gateway.outside
    everywhere = found.rp_filter.get("all", 0)
    for name in outside:
        if len(outside) > 1 and max(everywhere, found.rp_filter.get(name, 0)) == 1:
            yield Finding(
                "warning",
                f"rp_filter is 1 on {name}, one of {len(outside)} outside interfaces: a client that comes in "
                "by another one than its route leaves by is dropped by the kernel",
                f"2 (loose) avoids it: sysctl net.ipv4.conf.{name.replace('.', '/')}.rp_filter=2",
            )


def _real_servers(config: Config, found: Facts) -> Iterator[Finding]:
    gateway = config.gateway
    if any(name not in found.interfaces for name in gateway.inside):
        return  # a missing interface has no routes, which needs no saying for each server
    inside = " or ".join(gateway.inside)
    for real in config.reals:
        who = f"real server {real.name} ({real.address})"
        route = found.routes.get(real.address)
        if route is None:
            yield Finding("error", f"no route to {who}", f"it must be reached through {inside}")
        elif route.local:
            yield Finding("error", f"{who} is this machine itself", "a real server stands behind the gateway")
        elif route.interface in gateway.outside:
            yield Finding(
                "error",
                f"the way to {who} leads out of {route.interface}, where the clients are; it would answer "
                "them past the gateway",
                f"move it behind {inside}",
            )
        elif route.interface not in gateway.inside:
            yield Finding(
                "error",
                f"the way to {who} leads out of {route.interface}, not out of {inside}",
                f"correct the route, or add {route.interface} to `inside`",
            )


def _real_servers_outside(config: Config, found: Facts) -> Iterator[Finding]:
    """A client in the same subnet is answered directly, whatever way the gateway's own route takes."""
    outside = [
        entry
        for entry in found.addresses
        if entry.interface in config.gateway.outside
        and entry.address.network.prefixlen < entry.address.max_prefixlen
    ]
    for real in config.reals:
        route = found.routes.get(real.address)
        if route is not None and route.interface in config.gateway.outside:
            continue  # said already
        for entry in outside:
            if real.address in entry.address.network:
                yield Finding(
                    "error",
                    f"real server {real.name} ({real.address}) is in the network {entry.address.network} of "
                    f"{entry.interface}, where the clients are; it would answer them past the gateway",
                    "give it an address of an inside network",
                )


def _way_to_clients(config: Config, found: Facts) -> Iterator[Finding]:
    for version in sorted({virtual.address.version for virtual in config.virtuals}):
        route = found.routes.get(ELSEWHERE[version])
        if route is not None and not route.local and route.interface not in config.gateway.outside:
            yield Finding(
                "warning",
                f"packets to clients elsewhere (IPv{version}) leave by {route.interface}, which is not among "
                "`outside`; answers that leave there are not translated",
                "correct the default route, or add the interface to `outside`",
            )


def _virtual_addresses(config: Config, found: Facts) -> Iterator[Finding]:
    reals = {real.address: real.name for real in config.reals}
    for address in dict.fromkeys(virtual.address for virtual in config.virtuals):
        for entry in found.addresses:
            if entry.address.ip != address or entry.ours:
                continue
            if config.gateway.other_ports == "drop" and config.gateway.hold_addresses:
                yield Finding(
                    "warning",
                    f"virtual address {address} is an address of this machine already, on {entry.interface}: "
                    "all else that comes for it from outside, SSH included, will be dropped",
                    'set other_ports = "host", or use an address of its own',
                )
        if address in reals:
            yield Finding("error", f"virtual address {address} is also real server {reals[address]}'s")


def _reserved_addresses(config: Config, found: Facts) -> Iterator[Finding]:
    """A subnet's first and last address belong to the subnet itself (RFC 1812, 4.2.2.11).

    Of IPv6, the first one is every router's (RFC 4291, 2.6.1), and so this gateway's too.
    """
    for address in dict.fromkeys(virtual.address for virtual in config.virtuals):
        for subnet in dict.fromkeys(entry.address.network for entry in found.addresses):
            if subnet.prefixlen >= subnet.max_prefixlen - 1:
                continue
            what = ""
            if subnet.version == 6 and address == subnet.network_address:
                what = f"the first one of {subnet}, which is every router's"
            elif subnet.version == 4 and address in (subnet.network_address, subnet.broadcast_address):
                what = f"the first or last one of {subnet}, which no host can have"
            if what:
                yield Finding("error", f"virtual address {address} is {what}", "use another address of it")


def _tracking(config: Config, found: Facts) -> Iterator[Finding]:
    """The kernel's table is the one that counts where the kernel translates; `run` raises what it may."""
    if not _offloaded(config):
        return
    if 0 < found.tracked < config.gateway.max_connections:
        yield Finding(
            "warning",
            f"this machine tracks {found.tracked} connections at most, max_connections is "
            f"{config.gateway.max_connections}; beyond that the kernel drops what opens one",
            f"sysctl net.netfilter.nf_conntrack_max={tracked(config)} where it may be set: outside of "
            "containers, for all of them",
        )
    if not found.timeouts:
        times = config.timeouts
        values = {"established": times.idle, "syn_sent": times.half_open, "time_wait": times.closing}
        settings = " ".join(
            f"net.netfilter.nf_conntrack_tcp_timeout_{name}={value:.0f}" for name, value in values.items()
        )
        yield Finding(
            "warning",
            "this kernel keeps no time-outs of ours for connections that it translates (nfnetlink_cttimeout "
            "is missing); they last as long as any other of this machine",
            f"sysctl {settings} (for all connections), or datapath rewrite",
        )


def _udp(config: Config, found: Facts) -> Iterator[Finding]:
    """What a server says first on a flow that conntrack has forgotten looks like a flow of its own."""
    rewritten = any(virtual.protocol == "udp" and virtual.datapath != OFFLOAD for virtual in config.virtuals)
    udp = config.timeouts.udp
    if rewritten and udp > found.udp_timeout:
        settings = " ".join(
            f"net.netfilter.nf_conntrack_{name}={udp:.0f}" for name in ("udp_timeout", "udp_timeout_stream")
        )
        yield Finding(
            "warning",
            f"the kernel forgets a UDP flow after {found.udp_timeout:g} s without a datagram, nfqlb after "
            f"{udp:g} s; what a server says first in between reaches the client from its real address",
            f"sysctl {settings} (for all flows), or a shorter `udp`",
        )


def _translations(config: Config, found: Facts) -> Iterator[Finding]:
    """Our rules come first once they are there, so what somebody else meant for the address is void then."""
    for virtual in _offloaded(config):
        for rule in found.translations:
            if _may_meet(rule, virtual):
                yield Finding(
                    "warning",
                    f"a NAT rule of this machine may be meant for {virtual.name} ({virtual.address}), "
                    f"which comes first: {rule}",
                    "remove it, or narrow it to other addresses or ports",
                )


def _offloaded(config: Config) -> list[Virtual]:
    return [virtual for virtual in config.virtuals if virtual.datapath == OFFLOAD]


def _may_meet(rule: str, virtual: Virtual) -> bool:
    """Whether packets to a virtual server may fit a rule. What is not understood may fit."""
    words = rule.split()
    told = {option: value for option, value in pairwise(words) if option.startswith("-")}
    denied = {words[at + 1] for at, word in enumerate(words[:-1]) if word == "!"}
    destination, protocol, port = (
        told.get(option, "") if option not in denied else "" for option in ("-d", "-p", "--dport")
    )
    if destination:
        try:
            if virtual.address not in ip_network(destination, strict=False):
                return False
        except ValueError:
            return True
    if protocol and protocol not in (virtual.protocol, "all"):
        return False
    return not port.isdigit() or virtual.port is None or int(port) == virtual.port


#: What is looked at, with the area that it belongs to.
CHECKS: tuple[tuple[str, Callable[[Config, Facts], Iterator[Finding]]], ...] = (
    ("rights", _rights),
    ("programs", _programs),
    ("programs", _counters),
    ("alone", _alone),
    ("interfaces", _interfaces),
    ("forwarding", _ipv6),
    ("offloads", _super_packets),
    ("rp_filter", _rp_filter),
    ("routes", _real_servers),
    ("routes", _real_servers_outside),
    ("routes", _way_to_clients),
    ("addresses", _virtual_addresses),
    ("addresses", _reserved_addresses),
    ("alone", _queues),
    ("conntrack", _tracking),
    ("conntrack", _udp),
    ("firewall", _translations),
)
