"""What is wrong on a gateway's machine, and what to do about each: for `nfqlb doctor`.

Owns the judgement of everything that was looked at, by area: the checks of a start (`host`), and those of
the vital signs that only matter once it runs. Pure, from values to findings. What concerns the rules of
others is in `clashes`.
"""

from collections.abc import Callable, Collection, Iterator

from nfqlb.core.plural import several
from nfqlb.core.spec import Config, Real
from nfqlb.netfilter import clashes, host
from nfqlb.netfilter.conntrack import NEARLY_FULL
from nfqlb.netfilter.facts import Facts, Interface
from nfqlb.netfilter.host import Finding
from nfqlb.netfilter.sysctl import tracked
from nfqlb.netfilter.vitals import Vitals

_FULL = 0.95  # of the kernel's connection table
_FILES = 256  # what a gateway may have open at once, with room to spare
_CONNECTION = 480  # bytes that one takes in a full table (README, "What it costs")
_REFUSED = "Connection refused"

CLOCK, FINE_CLOCK = "clock", "kept right by a time service"

#: Areas of which who has no rights sees too little. A gateway looks with its own.
_OF_ROOT = ("rights", "alone", "rules", "firewall", "addresses", "neighbours")
_BLIND = Finding(
    "unseen",
    "not looked at, as that is for root: rules and firewall, other gateways and their queues, neighbours, "
    "and whether somebody else has a virtual address",
    "run as root, or with CAP_NET_ADMIN; or ask a gateway that runs, as a member of the group nfqlb-read",
    "rights",
)

Check = Callable[[Config, Facts, Vitals], Iterator[Finding]]


def diagnose(config: Config, facts: Facts, vitals: Vitals, aside: Collection[str] = ()) -> list[Finding]:
    """All findings, in the order of the areas; each area has at least one, "ok" where nothing is wrong.

    `aside` are the real servers that an operator has taken out: they may well be switched off.
    """
    found: list[Finding] = []
    blind = _OF_ROOT if not vitals.running and not facts.net_admin else ()
    for area, (checks, fine) in _AREAS.items():
        if area == "rights" and blind:
            found.append(_BLIND)
            continue
        here = [finding for check in checks for finding in check(config, facts, vitals)]
        # the gateway that runs is the one that is asked, and a worker alone can be taken over from
        if area != "alone" or not (vitals.running or vitals.alone is not None):
            here += [one for name, check in host.CHECKS if name == area for one in check(config, facts)]
        here = [finding for finding in here if not _is_aside(config, finding, aside)]
        if area in blind:
            pass  # what was found is true, but that nothing was says nothing
        elif area in vitals.unseen:
            here.append(Finding("unseen", f"could not be looked at: {vitals.unseen[area]}"))
        elif not here and (text := fine(config, facts, vitals)):
            here.append(Finding("ok", text))
        found += [Finding(each.level, each.what, each.advice, area) for each in here]
    return found


def _is_aside(config: Config, finding: Finding, aside: Collection[str]) -> bool:
    return any(
        finding.what.startswith(f"{name} ({config.real(name).address}")
        for name in aside
        if any(real.name == name for real in config.reals)
    )


def _forwarding(_config: Config, _facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    for path in vitals.forwarding if vitals.running else ():
        name = path.split("/")[3]
        setting = path.replace(".", "\0").replace("/", ".").replace("\0", "/")
        yield Finding("error", f"IPv4 is not forwarded from {name}", f"sysctl {setting}=1")


def _rules(_config: Config, _facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    if vitals.differences:
        more = f", and {len(vitals.differences) - 1} more" if len(vitals.differences) > 1 else ""
        yield Finding(
            "error",
            f"the rules are not as the gateway put them in: {vitals.differences[0]}{more}",
            "it repairs them within seconds; if they stay so, its log says why",
        )
    if vitals.running:
        return
    programs = [
        program
        for program, tables in vitals.tables.items()
        if any(table.touched for table in tables.values())
    ]
    if programs and vitals.alone is not None:
        yield Finding(
            "warning",
            "they are in place for a worker that has no supervisor any more: it serves for another "
            f"{vitals.alone:.0f} s, and nobody looks after it or them",
            "start the gateway, which takes over from it; nfqlb check FILE says whether it can",
        )
    elif programs:
        yield Finding(
            "error",
            f"rules of nfqlb are in place ({' and '.join(programs)}), but no gateway runs: what comes for "
            "the virtual servers is lost",
            "start it, or take them out: nfqlb rules remove",
        )


def _addresses(config: Config, facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    here = {entry.address.ip for entry in facts.addresses}
    for virtual in {virtual.address: virtual for virtual in config.virtuals}.values():
        address = virtual.address
        if address not in here and not config.gateway.hold_addresses:
            continue  # another gateway serves, and answers for it
        if vitals.running and address not in here and (near := _near(config, facts, virtual.address)):
            yield Finding(
                "error",
                f"virtual address {address} is not on {near}, so nobody answers for it there",
                "the gateway puts it back within seconds; if it does not, its log says why",
            )
        if mac := vitals.others.get(address):
            yield Finding(
                "error",
                f"another machine, {mac}, answers for the virtual address {address} too",
                "give one of the two another address; clients reach now one and now the other",
            )


def _near(config: Config, facts: Facts, address: object) -> str:
    """The outside interface in whose subnet an address lies, "" for none."""
    for entry in facts.addresses:
        network = entry.address.network
        alone = network.prefixlen == network.max_prefixlen
        if entry.interface in config.gateway.outside and not alone and address in network:
            return entry.interface
    return ""


def _interfaces(_config: Config, facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    for name, plugged in vitals.cables.items():
        if not plugged and facts.interfaces[name].up:
            yield Finding("error", f"interface {name} has no carrier", "look at its cable, and the other end")


def _neighbours(config: Config, facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    for real in config.reals:
        if vitals.macs.get(real.address) == "":
            route = facts.routes.get(real.address)
            where = f" on {route.interface}" if route else ""
            how = "ARP" if real.address.version == 4 else "neighbour discovery"
            yield Finding(
                "error",
                f"{real.name} ({real.address}) does not answer{where}: no reply to {how}",
                f"is it on, connected, and its address right? nfqlb set real {real.name} maintenance takes "
                "it out meanwhile",
            )


def _servers(config: Config, _facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    for real in config.reals:
        if vitals.macs.get(real.address) == "":
            continue  # said already
        for (address, port), why in vitals.ports.items():
            if why and address == real.address:
                yield _shut(real, port, why)


def _shut(real: Real, port: int, why: str) -> Finding:
    advice = "does a firewall on it, or on the way, drop what comes for that port?"
    if why == _REFUSED:
        advice = f"is the service running there, and listening on {real.address}?"
    return Finding("error", f"{real.name} ({real.address}) takes no connection on port {port}: {why}", advice)


def _mtu_of(interface: Interface) -> int:
    return interface.mtu


def _mtu(config: Config, facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    if clashes.clamps(vitals.tables):
        return
    for outer in config.gateway.outside:
        for inner in config.gateway.inside if outer in facts.interfaces else ():
            sides = [facts.interfaces[name] for name in (outer, inner) if name in facts.interfaces]
            large, small = max(sides, key=_mtu_of), min(sides, key=_mtu_of)
            if len(sides) == 1 or large.mtu == small.mtu:
                continue
            yield Finding(
                "warning",
                f"{large.name} carries packets of {large.mtu} bytes, {small.name} of {small.mtu}: longer "
                "ones must be fragmented, and who does not hear of it (ICMP is dropped somewhere) stalls",
                f"the same MTU on both, or: iptables -t mangle -A FORWARD -o {small.name} -p tcp --syn "
                "-j TCPMSS --clamp-mss-to-pmtu",
            )


def _offloads(config: Config, _facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    rewrites = [virtual for virtual in config.virtuals if virtual.datapath == "rewrite"]
    udp = [virtual for virtual in rewrites if virtual.protocol == "udp"]
    for name, features in vitals.features.items():
        if features.get("rx-lro"):
            yield Finding(
                "error",
                f"{name} joins packets in hardware (LRO) in a way that they cannot be forwarded in",
                f"ethtool -K {name} lro off",
            )
        joins = [each for each in ("rx-udp-gro-forwarding", "rx-gro-list") if features.get(each)]
        if joins and udp and name in config.gateway.outside:
            yield Finding(
                "warning",
                f"{name} joins UDP datagrams ({', '.join(joins)}); such cannot be translated and are dropped",
                f"ethtool -K {name} {' '.join(f'{each} off' for each in joins)}",
            )
        bare = features.get("rx-gro") is False and vitals.drivers.get(name, "veth") != "veth"
        if bare and rewrites:
            yield Finding(
                "warning",
                f"{name} does not join the segments of a stream (GRO), so each passes the worker alone",
                f"ethtool -K {name} gro on, for several times the throughput",
            )


def _conntrack(config: Config, _facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    now, limit, lost = vitals.tracked or (0, 0, 0)
    if limit and now >= limit * NEARLY_FULL:
        yield Finding(
            "error" if now >= limit * _FULL else "warning",
            f"the kernel tracks {now:,} of the {limit:,} connections that it has room for; "
            "beyond that it drops",
            f"sysctl net.netfilter.nf_conntrack_max={max(2 * limit, tracked(config))}",
        )
    if lost:
        dropped = several(lost, "packet or connection", "packets or connections")
        yield Finding(
            "warning",
            f"the kernel's connection table has dropped {dropped} since the machine was started",
            "a full table is the usual reason: dmesg says so; raise net.netfilter.nf_conntrack_max",
        )


def of_clock(synchronised: bool | None) -> Iterator[Finding]:
    """What is wrong with a clock of which the kernel says that."""
    if synchronised is False:
        yield Finding(
            "warning",
            "no time service keeps this machine's clock right; the times in the log are off",
            "apt-get install systemd-timesyncd, or chrony; in a container it is the host's to do",
            CLOCK,
        )


def _clock(_config: Config, _facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    yield from of_clock(vitals.synchronised)


def _limits(config: Config, _facts: Facts, vitals: Vitals) -> Iterator[Finding]:
    if 0 < vitals.files < _FILES:
        what = f"only {vitals.files} files may be open at once"
        yield Finding("warning", what, f"ulimit -n {_FILES}, or LimitNOFILE={_FILES} in the unit")
    needed = config.gateway.max_connections * _CONNECTION if config.virtuals else 0
    if not vitals.running and 0 < vitals.memory < needed:
        yield Finding(
            "warning",
            f"{config.gateway.max_connections:,} connections would take {needed >> 20:,} MB, of which "
            f"{vitals.memory >> 20:,} MB are free",
            "a lower max_connections in [gateway], or more memory",
        )


# --- what is said of an area where nothing is wrong


def _fine_interfaces(config: Config, _facts: Facts, _vitals: Vitals) -> str:
    names = dict.fromkeys(config.gateway.outside + config.gateway.inside)
    return f"{', '.join(names)}: up" if names else ""


def _fine_forwarding(config: Config, _facts: Facts, vitals: Vitals) -> str:
    if not config.virtuals:
        return ""
    return "on" if vitals.running else "run switches it on where it is not"


def _fine_rules(_config: Config, _facts: Facts, vitals: Vitals) -> str:
    return "as put in, and first in every chain" if vitals.running else "none of an earlier run"


def _fine_addresses(config: Config, facts: Facts, _vitals: Vitals) -> str:
    addresses = list(dict.fromkeys(virtual.address for virtual in config.virtuals))
    if not addresses:
        return ""
    routed = [str(address) for address in addresses if not _near(config, facts, address)]
    near = len(addresses) - len(routed)
    here = {entry.address.ip for entry in facts.addresses}
    if near and not config.gateway.hold_addresses and here.isdisjoint(addresses):
        there = several(near, "virtual address is", "virtual addresses are")
        return f"{there} not here: the other gateway serves"
    said = [f"nobody else claims {several(near, 'virtual address', 'virtual addresses')}"] if near else []
    said += [f"{', '.join(routed)}: yours to route here"] if routed else []
    return "; ".join(said)


def _fine_routes(config: Config, _facts: Facts, _vitals: Vitals) -> str:
    return "servers and clients are on their sides" if config.reals else ""


def _fine_neighbours(_config: Config, _facts: Facts, vitals: Vitals) -> str:
    number = sum(map(bool, vitals.macs.values()))
    return f"{several(number, 'server')} on the link, answering" if number else ""


def _fine_servers(_config: Config, _facts: Facts, vitals: Vitals) -> str:
    number = sum(not why for why in vitals.ports.values())
    return f"{several(number, 'port')} taking connections" if number else ""


def _fine_mtu(config: Config, _facts: Facts, vitals: Vitals) -> str:
    if not config.virtuals:
        return ""
    return "clamped to the smaller side's" if clashes.clamps(vitals.tables) else "the same on both sides"


def _fine_conntrack(_config: Config, _facts: Facts, vitals: Vitals) -> str:
    now, limit, _ = vitals.tracked or (0, 0, 0)
    return several(now, "connection") + (f" of {limit:,}" if limit else ", no limit")


def _fine_alone(_config: Config, facts: Facts, vitals: Vitals) -> str:
    if vitals.running:
        return ""
    others = ", ".join(f"{queue.number} (process {queue.port})" for queue in facts.queues)
    return f"no other gateway; queues of others: {others}" if others else "no other gateway, no other queues"


def _fine_limits(_config: Config, _facts: Facts, vitals: Vitals) -> str:
    return f"{vitals.files:,} files, {vitals.memory >> 20:,} MB of memory free"


Says = Callable[[Config, Facts, Vitals], str]

#: What is looked at in which order, and what is said of an area where nothing is wrong ("": nothing).
_AREAS: dict[str, tuple[tuple[Check, ...], Says]] = {
    "rights": ((), lambda *_: "to change the network"),
    "programs": ((), lambda _config, facts, _vitals: f"iptables of the {facts.iptables} kind"),
    "alone": ((), _fine_alone),
    "interfaces": ((_interfaces,), _fine_interfaces),
    "forwarding": ((_forwarding,), _fine_forwarding),
    "rp_filter": ((), lambda *_: "does not keep clients out"),
    "rules": ((_rules,), _fine_rules),
    "firewall": ((clashes.findings,), lambda *_: "nothing of others stands in the way"),
    "balancers": ((clashes.balancers,), lambda *_: "no other one on these addresses"),
    "addresses": ((_addresses,), _fine_addresses),
    "routes": ((), _fine_routes),
    "neighbours": ((_neighbours,), _fine_neighbours),
    "servers": ((_servers,), _fine_servers),
    "mtu": ((_mtu,), _fine_mtu),
    "offloads": ((_offloads,), lambda *_: "none that hurts"),
    "conntrack": ((_conntrack,), _fine_conntrack),
    CLOCK: ((_clock,), lambda *_: FINE_CLOCK),
    "limits": ((_limits,), _fine_limits),
}
