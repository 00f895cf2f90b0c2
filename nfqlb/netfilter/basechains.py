"""The chains of nftables that packets come through and that are not iptables': firewalld's, or by hand.

Owns one netlink dump (linux/netfilter/nf_tables.h, NFT_MSG_GETCHAIN). `nft` itself need not be installed.
"""

import socket
from dataclasses import dataclass

from nfqlb.netfilter import netlink
from nfqlb.netfilter.accounting import TABLE
from nfqlb.netfilter.netlink import DUMP, FIRST_ATTRIBUTE, attributes

_GET_CHAIN = 10 << 8 | 4
_TABLE_NAME, _NAME, _HOOK, _POLICY = 1, 3, 4, 5
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_FAMILIES = {1: "inet", socket.AF_INET: "ip", socket.AF_INET6: "ip6"}
_IPTABLES = ("raw", "mangle", "nat", "filter", "security")


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain with a hook. It is called in order of priority, the least first; iptables' raw has -300."""

    family: str
    table: str
    name: str
    hook: str
    priority: int
    drops: bool

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


def foreign() -> list[BaseChain]:
    """Those in tables that are neither iptables' nor ours.

    Raises KernelError, as where this kernel has no nftables.
    """
    found = []
    with netlink.connect() as sock:
        request = netlink.message(_GET_CHAIN, DUMP, b"")
        for buffer, at, end in netlink.answers(sock, request, "chains of nftables"):
            family = _FAMILIES.get(buffer[at + 16], "")
            told = attributes(buffer, at + FIRST_ATTRIBUTE, end)
            values = {kind: bytes(buffer[begin:stop]) for kind, begin, stop in told}
            chain = _chain(family, values)
            if chain is None or chain.table == TABLE:
                continue
            if family == "inet" or chain.table not in _IPTABLES:
                found.append(chain)
    return found


def _chain(family: str, values: dict[int, bytes]) -> BaseChain | None:
    """None for a chain without a hook, or of a family that IP packets do not pass."""
    if _HOOK not in values or not family:
        return None
    nested = values[_HOOK]
    hook = {kind: nested[a:b] for kind, a, b in attributes(nested, 0, len(nested))}
    number = int.from_bytes(hook.get(_HOOK_NUMBER, b""), "big")
    if number >= len(_HOOKS):
        return None
    priority = int.from_bytes(hook.get(_HOOK_PRIORITY, bytes(4)), "big", signed=True)
    drops = int.from_bytes(values.get(_POLICY, b"\1"), "big") == 0
    table, name = _text(values[_TABLE_NAME]), _text(values[_NAME])
    return BaseChain(family, table, name, _HOOKS[number], priority, drops)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")
