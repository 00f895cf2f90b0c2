"""New connections without a gateway: which servers the kernel gives them to while nobody reads the queue.

Owns what stands in the chain `NFQLB-O-FALLBACK` of datapath offload: a rule for each server that is well,
which marks a new connection at random, by weight. The running gateway keeps it up to date; nothing here
decides who is well. Also here: what it has spread so. (`alone` says whether it does at present.)
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nfqlb.config.marks import OFFLOAD, LinkMarks
from nfqlb.core.spec import Config, Virtual
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.iptables import Iptables
from nfqlb.netfilter.render import FAMILIES, Family, render
from nfqlb.netfilter.ruleset import VARYING, parse

_SPREAD = re.compile(rf"^\[(\d+):\d+\] -A {VARYING} .*-g NFQLB-O-LINKS", re.MULTILINE)
_FINEST = 1e-9  # what iptables keeps of a probability is 31 bits of it


@dataclass(frozen=True, slots=True)
class Share:
    """Who may be given a virtual server's new connections: marks of links, each with its weight above 0."""

    virtual: str
    servers: tuple[tuple[int, float], ...]


def wanted(config: Config) -> bool:
    """Whether the kernel is to go on alone at all."""
    return config.gateway.fallback and any(virtual.datapath == OFFLOAD for virtual in config.virtuals)


def text(config: Config, family: Family, shares: Iterable[Share]) -> str:
    """What `iptables-restore --noflush` takes: the chain of one family filled anew, in one transaction.

    "" where the family has no such chain. The chain must be there: it is not made.
    """
    last = _last(config, family)
    if not last:
        return ""
    marks = LinkMarks(config)
    virtuals = {virtual.name: virtual for virtual in config.virtuals}
    lines = ["*nat", f"-F {VARYING}"]
    for share in shares:
        virtual = virtuals[share.virtual]
        if virtual.address.version == family.version:
            lines += [f"-A {VARYING} {rule}" for rule in _rules(virtual, share.servers, marks)]
    return "\n".join([*lines, *(f"-A {VARYING} {rule}" for rule in last), "COMMIT", ""])


def put(config: Config, shares: Sequence[Share]) -> None:
    """Fill the chain of every family that has one. Raises KernelError; each family is as before or done."""
    for family in FAMILIES:
        if rules := text(config, family, shares):
            Iptables(family.program).restore(rules)


def spread() -> int:
    """How many new connections the kernel has spread alone since the chain was filled. Raises KernelError."""
    return sum(spread_in(_counted(family, "nat")) for family in FAMILIES)


def spread_in(listing: str) -> int:
    """The same from the text of `iptables-save -c -t nat`."""
    return sum(map(int, _SPREAD.findall(listing)))


def _counted(family: Family, table: str) -> str:
    tables = Iptables(family.program)
    try:
        return tables.counted(table) if tables.installed else ""
    except KernelError:
        if family is FAMILIES[0]:
            raise
        return ""  # a kernel without IPv6


def _last(config: Config, family: Family) -> tuple[str, ...]:
    """The rules that the template itself has in the chain."""
    table = parse(render(config).text(family)).get("nat")
    return table.chains.get(VARYING, ()) if table is not None else ()


def _rules(virtual: Virtual, servers: Sequence[tuple[int, float]], marks: LinkMarks) -> Iterable[str]:
    """A rule for each server. What the first has let by is the second's part of the rest, and so on."""
    port = "" if virtual.port is None else f"-m {virtual.protocol} --dport {virtual.port} "
    address = f"{virtual.address}/{virtual.address.max_prefixlen}"
    where = f"-d {address} -p {virtual.protocol} {port}-m mark --mark 0x0/{marks.number_mask:#x}"
    rest = sum(weight for _, weight in servers)
    for number, (mark, weight) in enumerate(servers, start=1):
        chance = max(_FINEST, min(1.0, weight / rest)) if rest > 0 else 1.0
        rest -= weight
        dice = "" if number == len(servers) else f" -m statistic --mode random --probability {chance:.10f}"
        yield (
            f"{where} -m comment --comment {virtual.name}{dice} "
            f"-j MARK --set-xmark {mark:#x}/{marks.number_mask:#x}"
        )
