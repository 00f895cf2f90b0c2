"""Sets of time-outs that the kernel keeps for connections of ours, so that its table goes by ours.

Owns the policies of nfnetlink_cttimeout (linux/netfilter/nfnetlink_cttimeout.h) whose names have four
letters and begin with "nq". Rules name them (`CT --timeout NAME`), so they are made before the rules and
removed after them.
"""

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from nfqlb.config.marks import OFFLOAD
from nfqlb.config.numbers import idle_times, whole_seconds
from nfqlb.core.spec import Config
from nfqlb.netfilter import netlink
from nfqlb.netfilter.netlink import FIRST_ATTRIBUTE, NetlinkError, attribute, nested
from nfqlb.netfilter.render_offload import POLICY_PREFIX, policy_name

_SUBSYSTEM = 8 << 8  # NFNL_SUBSYS_CTNETLINK_TIMEOUT
_NEW, _GET, _DELETE = _SUBSYSTEM, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_NAME, _NETWORK, _TRANSPORT, _DATA = 1, 2, 3, 4
# CTA_TIMEOUT_TCP_*: what of a TCP connection each is for
_HALF_OPEN = (1, 2, 9)  # SYN sent, SYN received, SYN sent by both
_IDLE = (3, 4, 5, 10, 11)  # established, closed by one side; and limits for repeated and unanswered data
_CLOSING = (6, 7, 8)  # the last ACK awaited, TIME_WAIT, reset
_UDP = (1, 2)  # without and with an answer
_NAME_LENGTH = 4
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Policy:
    """One set of time-outs, in whole seconds by the kernel's attribute number."""

    version: int
    protocol: int
    seconds: Mapping[int, int]


def wanted(config: Config) -> dict[str, Policy]:
    """The policies that the rules of `config` name, by name."""
    found: dict[str, Policy] = {}
    timeouts = config.timeouts
    kinds = {
        (virtual.address.version, virtual.protocol)
        for virtual in config.virtuals
        if virtual.datapath == OFFLOAD
    }
    for version in sorted({version for version, _ in kinds}):  # the rules for TCP name theirs in any case
        for index, idle in enumerate(idle_times(config)):
            seconds = dict.fromkeys(_HALF_OPEN, whole_seconds(timeouts.half_open))
            seconds |= dict.fromkeys(_IDLE, idle)
            seconds |= dict.fromkeys(_CLOSING, whole_seconds(timeouts.closing))
            found[policy_name(version, "tcp", index)] = Policy(version, socket.IPPROTO_TCP, seconds)
        if (version, "udp") in kinds:
            seconds = dict.fromkeys(_UDP, whole_seconds(timeouts.udp))
            found[policy_name(version, "udp")] = Policy(version, socket.IPPROTO_UDP, seconds)
    return found


def available() -> bool:
    """Whether this kernel has such policies at all. Raises KernelError without the right to ask."""
    try:
        present()
    except NetlinkError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
            return False
        raise
    return True


def present() -> list[str]:
    """The names of our policies in this network namespace. Raises KernelError."""
    names = []
    with netlink.connect() as sock:
        request = netlink.message(_GET, netlink.DUMP, b"")
        for buffer, at, end in netlink.answers(sock, request, "conntrack time-outs"):
            for kind, start, stop in netlink.attributes(buffer, at + FIRST_ATTRIBUTE, end):
                if kind == _NAME:
                    names.append(bytes(buffer[start:stop]).rstrip(b"\0").decode("ascii", "replace"))
    return [name for name in names if name.startswith(POLICY_PREFIX) and len(name) == _NAME_LENGTH]


def put(config: Config) -> list[str]:
    """Makes the policies that `config` needs, or corrects them; returns their names. Raises KernelError."""
    policies = wanted(config)
    with netlink.connect() as sock:
        for name, policy in policies.items():
            flags = netlink.ACK | netlink.CREATE | netlink.REPLACE
            request = netlink.message(_NEW, flags, _body(name, policy))
            netlink.ask(sock, request, f"conntrack time-outs {name}")
    return list(policies)


def remove(keep: frozenset[str] = frozenset()) -> list[str]:
    """Removes our policies but those to `keep`; returns their names. Raises KernelError.

    One that a rule still names stays, and is not among those returned. Connections that had it go on
    with the machine's own time-outs.
    """
    if not available():
        return []
    done = []
    with netlink.connect() as sock:
        for name in present():
            if name in keep:
                continue
            request = netlink.message(_DELETE, netlink.ACK, _named(name))
            try:
                netlink.ask(sock, request, f"conntrack time-outs {name}")
            except NetlinkError as error:
                if error.errno not in (errno.EBUSY, errno.ENOENT):
                    raise
            else:
                done.append(name)
    return done


def _body(name: str, policy: Policy) -> bytes:
    values = (attribute(kind, seconds.to_bytes(4, "big")) for kind, seconds in policy.seconds.items())
    network = _FAMILIES[policy.version].to_bytes(2, "big")
    return (
        _named(name)
        + attribute(_NETWORK, network)
        + attribute(_TRANSPORT, bytes((policy.protocol,)))
        + nested(_DATA, *values)
    )


def _named(name: str) -> bytes:
    return attribute(_NAME, name.encode("ascii") + b"\0")
