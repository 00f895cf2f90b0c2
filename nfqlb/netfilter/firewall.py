"""What a firewall of this machine makes of a packet, read from its rules without sending one.

Owns a walk through the chains of a table as the kernel would walk it. What a rule asks that cannot be
known beforehand (a set's members, a rate) is taken to be false where the rule drops, as blocklists and
limits rarely mean everybody, and told of where it accepts. Pure.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network

from nfqlb.core.spec import Address
from nfqlb.netfilter.ruleset import Table, options

_DEPTH = 32
_HARMLESS = {"-m", "--comment"}
_WIDE = 8  # a source of so many bits or fewer may be anybody's


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as rules see it. Addresses and ports that may be any are None; `state` is conntrack's."""

    came_by: str
    leaves_by: str
    protocol: str
    source: Address | None = None
    destination: Address | None = None
    source_port: int | None = None
    destination_port: int | None = None
    state: str = "NEW"


@dataclass(frozen=True, slots=True)
class Fate:
    """Whether the packet passes, by which rule, and which rule might have let it pass all the same."""

    passes: bool
    rule: str
    unless: str = ""


def fate(table: Table, chain: str, packet: Packet) -> Fate:
    """What becomes of a packet that enters a built-in chain."""
    walk = _Walk(table.chains, packet)
    found = walk.through(chain, 0)
    if found is None:
        policy = table.policies.get(chain, "ACCEPT")
        found = policy == "ACCEPT", f"policy {policy} of {chain}"
    passes, rule = found
    return Fate(passes, rule, "" if passes else walk.maybe)


def catches(table: Table, chain: str, packet: Packet, targets: Collection[str]) -> str:
    """The first rule with one of these targets that a packet surely meets in a chain, "" for none."""
    return _Walk(table.chains, packet).first(chain, targets, 0)


class _Walk:
    def __init__(self, chains: Mapping[str, tuple[str, ...]], packet: Packet) -> None:
        self._chains = chains
        self._packet = packet
        self.maybe = ""  # the first rule that would accept, if what it asks were so

    def through(self, chain: str, depth: int) -> tuple[bool, str] | None:
        """The verdict of a chain and the rule that gave it; None where the packet comes out of it."""
        for rule in self._chains.get(chain, ()) if depth < _DEPTH else ():
            conditions, target, goes = _parsed(rule)
            fits = self._fits(conditions)
            if fits is False:
                continue
            if target == "ACCEPT":
                if fits:
                    return True, f"-A {chain} {rule}"
                self.maybe = self.maybe or f"-A {chain} {rule}"
            elif target in ("DROP", "REJECT"):
                if fits:
                    return False, f"-A {chain} {rule}"
            elif target == "RETURN":
                if fits:
                    return None
            elif target in self._chains:
                found = self.through(target, depth + 1)
                if fits and (found is not None or goes):
                    return found
                if found is not None and found[0]:
                    self.maybe = self.maybe or f"-A {chain} {rule}"
        return None

    def first(self, chain: str, targets: Collection[str], depth: int) -> str:
        """See `catches`."""
        for rule in self._chains.get(chain, ()) if depth < _DEPTH else ():
            conditions, target, _ = _parsed(rule)
            if not self._fits(conditions):
                continue
            if target in targets:
                return f"-A {chain} {rule}"
            if target in ("ACCEPT", "RETURN"):
                return ""
            if target in self._chains and (found := self.first(target, targets, depth + 1)):
                return found
        return ""

    def _fits(self, conditions: tuple[tuple[str, ...], ...]) -> bool | None:
        """Whether the packet has all that a rule asks for; None where that cannot be known."""
        known = [_holds(part, self._packet) for part in conditions]
        if any(one is False for one in known):
            return False
        return None if any(one is None for one in known) else True


@lru_cache(maxsize=10_000)
def _parsed(rule: str) -> tuple[tuple[tuple[str, ...], ...], str, bool]:
    """A rule's conditions, its target ("" for none), and whether it goes there for good.

    Kept, as each server's way leads through the same rules. What follows the target is its own affair.
    """
    parts = list(options(rule))
    for number, part in enumerate(parts):
        if part[0] in ("-j", "-g") and len(part) > 1:
            return tuple(parts[:number]), part[1], part[0] == "-g"
    return tuple(parts), "", False


def _holds(part: tuple[str, ...], packet: Packet) -> bool | None:
    """Whether one condition holds; None where that cannot be known."""
    if part[0] == "!":
        inner = _holds(part[1:], packet)
        return None if inner is None else not inner
    option, *values = part
    value = values[0] if values else ""
    if option in _HARMLESS:
        return True
    if option in ("-i", "-o"):
        return _interface(value, packet.came_by if option == "-i" else packet.leaves_by)
    if option in ("-s", "-d"):
        return _address(value, packet.source if option == "-s" else packet.destination)
    if option == "-p":
        return value in (packet.protocol, "all", "0")
    if option in ("--dport", "--dports"):
        return _port(value, packet.destination_port)
    if option in ("--sport", "--sports"):
        return _port(value, packet.source_port)
    if option in ("--ctstate", "--state"):
        return packet.state in value.split(",")
    if option in ("--syn", "--tcp-flags"):
        return packet.state == "NEW" if values in ([], ["FIN,SYN,RST,ACK", "SYN"]) else None
    return None


def _interface(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def _address(text: str, address: Address | None) -> bool | None:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return None
    if address is None:  # anybody: not one of these few, but perhaps one of these many
        return True if network.prefixlen == 0 else None if network.prefixlen <= _WIDE else False
    return address in network


def _port(text: str, port: int | None) -> bool | None:
    if port is None:
        return None
    for part in text.split(","):
        first, colon, last = part.partition(":")
        if not colon and first == str(port):
            return True
        if colon and int(first or 0) <= port <= int(last or 65535):
            return True
    return False
