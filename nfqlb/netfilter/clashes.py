"""Rules and programs of others on this machine that stand in the gateway's way.

Owns the judgement of the live rules that are not ours: what would be dropped, translated or marked by them.
Pure, from values to findings.
"""

from collections.abc import Iterator, Mapping
from itertools import product

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.spec import Config, Real
from nfqlb.netfilter.facts import Facts
from nfqlb.netfilter.firewall import Packet, catches, fate
from nfqlb.netfilter.host import Finding
from nfqlb.netfilter.render import FAMILIES, PREFIX
from nfqlb.netfilter.ruleset import Table, options
from nfqlb.netfilter.vitals import Vitals

_WAYS = 32  # servers' ports for which the way through a firewall is followed
_RAW = -300  # the priority of iptables' raw table (linux/netfilter_ipv4.h)
_HIDING = ("MASQUERADE", "SNAT", "NETMAP")
_WHOLE = 0xFFFFFFFF

Tables = Mapping[str, Mapping[str, Table]]


def findings(config: Config, facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    """What is wrong with the rules of others."""
    yield from _ways(config, facts, vitals)
    yield from _hidden(config, facts, vitals)
    yield from _marks(config, vitals.tables)
    yield from _untracked(vitals.tables)
    yield from _chains(config, vitals)


def balancers(_config: Config, _facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    """Programs that want the same connections."""
    for found in vitals.listeners:
        yield Finding(
            "warning",
            f"another program listens on {found}; clients from outside do not reach it there",
            "stop it, or let it listen on another address",
        )
    if vitals.ipvs:
        yield Finding(
            "warning",
            f"the kernel's own balancer (IPVS) has services here: {vitals.ipvs[0]}",
            "ipvsadm -L -n shows them; no address may be served by both",
        )


def clamps(tables: Tables) -> bool:
    """Whether somebody already keeps TCP to what the smaller link carries."""
    return any(
        "--clamp-mss-to-pmtu" in rule
        for program in tables.values()
        for table in program.values()
        for chain, rules in table.chains.items()
        if not chain.startswith(PREFIX)
        for rule in rules
    )


def _ways(config: Config, facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    """New connections to servers, and their answers, on their way through the filter table."""
    said: set[tuple[str, bool]] = set()
    for real, protocol, port in _servers(config)[:_WAYS]:
        table = _table(vitals.tables, real, "filter")
        route = facts.routes.get(real.address)
        if table is None or route is None or route.interface not in config.gateway.inside:
            continue
        for outside, inward in product(config.gateway.outside, (True, False)):
            packet = _packet(real, protocol, port, outside, route.interface, inward=inward)
            found = fate(table, "FORWARD", packet)
            if found.passes or (found.rule, inward) in said:
                continue
            said.add((found.rule, inward))
            what = f"new connections to {real.name}" if inward else f"the answers of {real.name}"
            unless = f", unless this one lets them pass: {found.unless}" if found.unless else ""
            yield Finding(
                "warning" if found.unless else "error",
                f"the firewall drops {what} ({real.address}, port {port or 'any'}/{protocol}): "
                f"{found.rule}{unless}",
                _open(real, protocol, port, packet, inward=inward),
            )


def _packet(
    real: Real, protocol: str, port: int | None, outside: str, inside: str, *, inward: bool
) -> Packet:
    if inward:
        return Packet(outside, inside, protocol, destination=real.address, destination_port=port)
    return Packet(
        inside, outside, protocol, source=real.address, source_port=port, state="ESTABLISHED"
    )


def _open(real: Real, protocol: str, port: int | None, packet: Packet, *, inward: bool) -> str:
    """The rule that would let a packet pass."""
    program = FAMILIES[0].program if real.address.version == 4 else FAMILIES[1].program
    if not inward:
        return f"{program} -I FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
    dport = f" --dport {port}" if port else ""
    return (
        f"{program} -I FORWARD -i {packet.came_by} -o {packet.leaves_by} -d {real.address} "
        f"-p {protocol}{dport} -j ACCEPT"
    )


def _servers(config: Config) -> list[tuple[Real, str, int | None]]:
    """Each server's ports once: server, protocol, port."""
    return list(
        dict.fromkeys(
            (config.real(server.real), virtual.protocol, server.port)
            for virtual in config.virtuals
            for server in config.places(virtual)
        )
    )


def _table(tables: Tables, real: Real, name: str) -> Table | None:
    program = FAMILIES[0].program if real.address.version == 4 else FAMILIES[1].program
    return tables.get(program, {}).get(name)


def _hidden(config: Config, facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    """Clients' addresses that are hidden from the servers by somebody's NAT."""
    said: set[str] = set()
    for real, protocol, port in _servers(config)[:_WAYS]:
        table = _table(vitals.tables, real, "nat")
        route = facts.routes.get(real.address)
        if table is None or route is None:
            continue
        packet = Packet("", route.interface, protocol, destination=real.address, destination_port=port)
        rule = catches(table, "POSTROUTING", packet, _HIDING)
        if rule and rule not in said:
            said.add(rule)
            yield Finding(
                "warning",
                f"a NAT rule hides the clients' addresses from {real.name}: {rule}",
                f"narrow it to what leaves by the outside: -o {config.gateway.outside[0]}",
            )


def _marks(config: Config, tables: Tables) -> Iterator[Finding]:
    """Rules of others that overwrite the bits of marks which are ours."""
    mask = config.gateway.mark_mask
    for program, name, rule in _foreign(tables):
        if _changed(rule) & mask and config.virtuals:
            yield Finding(
                "warning",
                f"a rule changes the bits {mask:#x} of marks, which nfqlb uses: {program} -t {name} {rule}",
                f"give it a mask without them (--set-xmark VALUE/{_WHOLE & ~mask:#x}), or set another "
                "mark_mask in [gateway]",
            )


def _foreign(tables: Tables) -> Iterator[tuple[str, str, str]]:
    """The rules of others: program, table, and the rule with its chain."""
    for program, found in tables.items():
        for table in found.values():
            for chain, rules in table.chains.items():
                if not chain.startswith(PREFIX):
                    for rule in rules:
                        yield program, table.name, f"-A {chain} {rule}"


def _changed(rule: str) -> int:
    """The bits of a packet's or a connection's mark that a rule may change."""
    if "MARK" not in rule:
        return 0
    parts = {part[0]: part[1:] for part in options(rule)}
    target = parts.get("-j", ("",))[0]
    if target not in ("MARK", "CONNMARK"):
        return 0
    for option in ("--set-xmark", "--set-mark"):
        if option in parts:
            value, _, mask = parts[option][0].partition("/")
            return int(value, 0) | (int(mask, 0) if mask else _WHOLE)
    for option, mask_option in (("--restore-mark", "--nfmask"), ("--save-mark", "--ctmask")):
        if option in parts:
            return int(parts.get(mask_option, (str(_WHOLE),))[0], 0)
    return 0


def _untracked(tables: Tables) -> Iterator[Finding]:
    for program, name, rule in _foreign(tables):
        if name == "raw" and ("--notrack" in rule or "-j NOTRACK" in rule):
            yield Finding(
                "warning",
                f"a rule keeps packets from conntrack, by which servers' answers are known: {program} -t raw "
                f"{rule}",
                "narrow it so that it leaves out virtual and real servers",
            )


def _chains(config: Config, vitals: Vitals) -> Iterator[Finding]:
    """Chains of nftables outside of iptables' tables, whose rules are not read here."""
    rewrites = any(virtual.datapath != OFFLOAD for virtual in config.virtuals)
    for chain in vitals.chains if config.virtuals else ():
        listing = f"nft list chain {chain}"
        if chain.hook == "prerouting" and chain.priority < _RAW and rewrites:
            yield Finding(
                "warning",
                f"the nftables chain {chain} comes before the gateway's rules (priority {chain.priority})",
                f"see that it lets packets to virtual servers alone: {listing}",
            )
        elif chain.hook == "forward" and chain.drops:
            yield Finding(
                "warning",
                f"the nftables chain {chain} drops what it does not accept",
                "see that it accepts new connections from outside to the servers, and established ones: "
                f"{listing}",
            )
