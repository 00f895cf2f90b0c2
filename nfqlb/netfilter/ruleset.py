"""Rule sets as values: what is in the kernel, what is wanted, and what leads from one to the other.

Owns reading the text of `iptables-save` and of our own rendered rules, telling whether two rules
mean the same however they are spelt, and writing the `iptables-restore` text that replaces or
removes what is ours. Pure text in, text out; nothing here runs a program. "Ours" is told by the
`NFQLB-` prefix of a chain alone, so that removal works without a configuration.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from ipaddress import ip_address, ip_network
from itertools import pairwise

from nfqlb.netfilter.render import PREFIX

Rule = frozenset[tuple[str, ...]]

VARYING = "NFQLB-O-FALLBACK"
"""The chain in which the running gateway puts rules of its own before those of the template."""

_SYN = ("--tcp-flags", "FIN,SYN,RST,ACK", "SYN")
"""What `--syn` stands for, as iptables-save spells it (iptables-extensions(8), tcp)."""

_SETS = {"--tcp-flags", "--ctstate"}
_ADDRESSES = {"-s", "-d"}
_TARGETS = {"-j", "-g"}
_IMPLIED = {"tcp", "udp", "icmp", "icmp6"}
"""Matches that `-p` alone brings along, so that `-m` may be left out."""

_WHOLE = 0xFFFFFFFF
"""The mask of a mark that is written without one."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its chains in order, each with its rules in order as text after "-A CHAIN ".

    `policies` are those of the built-in chains that are not ACCEPT.
    """

    name: str
    chains: Mapping[str, tuple[str, ...]]
    policies: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def own(self) -> dict[str, tuple[str, ...]]:
        """The chains that are ours."""
        return {chain: rules for chain, rules in self.chains.items() if chain.startswith(PREFIX)}

    @property
    def links(self) -> list[tuple[str, str]]:
        """The rules that lead from other chains into ours, as (chain, rule)."""
        return [
            (chain, rule)
            for chain, rules in self.chains.items()
            if not chain.startswith(PREFIX)
            for rule in rules
            if leads_to_us(rule)
        ]

    @property
    def touched(self) -> bool:
        """Whether anything of ours is in it."""
        return bool(self.own or self.links)


def parse(text: str) -> dict[str, Table]:
    """The tables of an `iptables-save` output or of a rendered text, by name.

    `-I CHAIN 1` counts as placed first. Counters, comments and blank lines are passed over.
    """
    tables: dict[str, dict[str, list[str]]] = {}
    chains: dict[str, list[str]] = {}
    policies: dict[str, dict[str, str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("*"):
            name = line[1:].strip()
            chains = tables.setdefault(name, {})
        elif line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            chains.setdefault(chain, [])
            if policy not in ("-", "ACCEPT"):
                policies.setdefault(name, {})[chain] = policy
        elif line.startswith("-A "):
            _, chain, rule = line.split(maxsplit=2)
            chains.setdefault(chain, []).append(rule)
        elif line.startswith("-I "):
            _, chain, _, rule = line.split(maxsplit=3)
            chains.setdefault(chain, []).insert(0, rule)
    return {
        name: Table(name, {chain: tuple(rules) for chain, rules in found.items()}, policies.get(name, {}))
        for name, found in tables.items()
    }


def leads_to_us(rule: str) -> bool:
    """Whether a rule jumps or goes to a chain of ours."""
    if PREFIX not in rule:
        return False  # of thousands of rules nearly all, and a hundred times as fast
    words = shlex.split(rule)
    return any(word in _TARGETS and target.startswith(PREFIX) for word, target in pairwise(words))


def options(rule: str) -> Iterator[tuple[str, ...]]:
    """What a rule says, an option and its values at a time, as `iptables-save` spells them."""
    return _parts(shlex.split(rule))


@lru_cache(maxsize=2048)
def canonical(rule: str) -> Rule:
    """What a rule says, whichever of iptables' spellings it is written in.

    The matches of a rule are a conjunction, so their order is not kept. `-m` matters where options
    of two modules have one name (mark, connmark). Kept, as a gateway compares the same rules again and again.
    """
    parts = map(_normal, options(rule))
    return frozenset(part for part in parts if part[0] != "-m" or part[1] not in _IMPLIED)


def differences(wanted: Table | None, live: Table | None) -> list[str]:
    """What in `live` is not as in `wanted`, one line each; [] where all is as meant.

    None stands for a table of which nothing of ours is wanted, or which does not exist.
    """
    want_own, want_links = (wanted.own, wanted.links) if wanted else ({}, [])
    live_own = live.own if live else {}
    name = wanted.name if wanted else live.name if live else ""
    found: list[str] = []
    for chain, rules in want_own.items():
        if chain not in live_own:
            found.append(f"{name} {chain}: the chain is missing")
        else:
            there = live_own[chain]
            if chain == VARYING and rules:
                there = there[-len(rules) :]
            found += [f"{name} {chain}: {text}" for text in _compare(rules, there)]
    found += [f"{name} {chain}: not of this configuration" for chain in live_own if chain not in want_own]
    return found + [f"{name} {text}" for text in _compare_links(want_links, live)]


def replacement(text: str, live: Mapping[str, Table], names: Iterable[str]) -> str:
    """`text`'s tables of these `names`, each with what clears the way for it in the live table.

    The chains are emptied, jumps to them and chains of ours that are no longer meant are removed,
    then the rules follow: one transaction a table, so that no packet meets half of it. A table in
    `names` that `text` does not have is only cleared.
    """
    wanted = parse(text)
    chosen = [name for name in wanted if name in names]
    lines: list[str] = []
    for name in chosen:
        lines += [f"*{name}", *_clearing(live.get(name), wanted[name].own), *_body(text, name)]
    for name in names:
        if name not in wanted:
            lines += [f"*{name}", *_clearing(live.get(name), ()), "COMMIT"]
    return "".join(f"{line}\n" for line in lines)


def ours(table: Table) -> str:
    """The text that brings a table's own chains, and the jumps to them, back as they are in `table`."""
    lines = [f"*{table.name}", *(f":{chain} - [0:0]" for chain in table.own)]
    lines += [f"-A {chain} {rule}" for chain, rules in table.own.items() for rule in rules]
    lines += [f"-I {chain} 1 {rule}" for chain, rule in reversed(table.links)]
    return "".join(f"{line}\n" for line in [*lines, "COMMIT"])


def _clearing(live: Table | None, keep: Iterable[str]) -> list[str]:
    """The lines that take our jumps out, empty our chains and delete those not in `keep`."""
    if live is None:
        return []
    lines = [f"-D {chain} {rule}" for chain, rule in live.links]
    lines += [f"-F {chain}" for chain in live.own]
    return lines + [f"-X {chain}" for chain in live.own if chain not in set(keep)]


def _body(text: str, name: str) -> Iterator[str]:
    """The lines of one table of `text`, after its "*name" and with its COMMIT."""
    inside = False
    for line in text.splitlines():
        if inside:
            yield line
        if line == f"*{name}":
            inside = True
        elif line == "COMMIT":
            inside = False


def _compare(wanted: tuple[str, ...], live: tuple[str, ...]) -> list[str]:
    """The rules of one chain that are missing or too many, in order."""
    matcher = SequenceMatcher(None, [*map(canonical, wanted)], [*map(canonical, live)], autojunk=False)
    found: list[str] = []
    for kind, start, end, live_start, live_end in matcher.get_opcodes():
        if kind != "equal":
            found += [f"missing: {rule}" for rule in wanted[start:end]]
            found += [f"not ours: {rule}" for rule in live[live_start:live_end]]
    return found


def _compare_links(wanted: list[tuple[str, str]], live: Table | None) -> list[str]:
    """What is wrong with the jumps into our chains: each must be there once, and first."""
    live_links = live.links if live else []
    found: list[str] = []
    for chain, rule in wanted:
        same = [place for place in live_links if place[0] == chain and canonical(place[1]) == canonical(rule)]
        if not same:
            found.append(f"{chain}: the jump is missing: {rule}")
            continue
        if len(same) > 1:
            found.append(f"{chain}: the jump stands there {len(same)} times: {rule}")
        rules = live.chains[chain] if live else ()
        found += [f"{chain}: stands before our jump: {other}" for other in _in_front(rules)]
    meant = {(chain, canonical(rule)) for chain, rule in wanted}
    found += [
        f"{chain}: leads to our chains, but is not ours: {rule}"
        for chain, rule in live_links
        if (chain, canonical(rule)) not in meant
    ]
    return found


def _in_front(rules: tuple[str, ...]) -> Iterator[str]:
    for rule in rules:
        if leads_to_us(rule):
            return
        yield rule


def _parts(words: list[str]) -> Iterator[tuple[str, ...]]:
    """The words of a rule, an option and its values at a time; a negation belongs to its option."""
    part: list[str] = []
    for word in words:
        starts = word == "!" or (word.startswith("-") and part != ["!"])
        if part and starts:
            yield tuple(part)
            part = []
        part.append(word)
    if part:
        yield tuple(part)


def _normal(part: tuple[str, ...]) -> tuple[str, ...]:
    """One option in one spelling."""
    if part[0] == "!":
        return ("!", *_normal(part[1:]))
    if part == ("--syn",):
        part = _SYN
    option, *values = part
    if option in _SETS:
        return (option, *(",".join(sorted(value.split(","))) for value in values))
    if option in _ADDRESSES and len(values) == 1:
        return (option, _network(values[0]))
    if option == "--mark" and len(values) == 1:
        return (option, _mark(values[0]))
    return part


def _mark(value: str) -> str:
    """A mark with its mask in one spelling; what is no mark stays as it is."""
    mark, _, mask = value.partition("/")
    try:
        return f"{int(mark, 0):#x}/{int(mask, 0) if mask else _WHOLE:#x}"
    except ValueError:
        return value


def _network(value: str) -> str:
    """An address match in one spelling; a mask with holes, such as 0.0.0.1, stays as it is.

    `ip_network` alone would read 0.0.0.1 as the host mask of a /31.
    """
    address, slash, mask = value.partition("/")
    try:
        if slash and not mask.isdecimal():
            host = int(ip_address(mask)) ^ ((1 << ip_address(mask).max_prefixlen) - 1)
            if host & (host + 1):
                return value
            mask = str(ip_address(mask).max_prefixlen - host.bit_length())
        return str(ip_network(address + slash + mask, strict=False))
    except ValueError:
        return value
