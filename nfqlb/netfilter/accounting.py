"""What each virtual server takes and gives: packets and bytes, counted by the kernel.

Owns a table of nf_tables called "nfqlb", beside the iptables rules and of no effect on any packet: two chains
and a pair of named counters for each virtual server. It counts what comes for an address and port before
anybody has touched it (in front of `raw PREROUTING`, and only once of a packet that a queue sends round
again), and what leaves from there after everybody has (behind the translation in POSTROUTING). There
both datapaths look the same, and one look-up finds the counter, however many virtual servers there are.
Rules that are made anew and workers that are replaced do not touch it. iptables itself could count neither: a
rule of its own has no place behind conntrack's translation, and a list of rules would cost each packet more
with every virtual server.

A packet is what the kernel handles as one: a super-packet (GRO, GSO) counts once, with one header. Bytes
are those of IP packets, headers included.
"""

import errno
import subprocess
from collections.abc import Iterator, Mapping
from struct import Struct
from typing import NamedTuple

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.spec import Config, Virtual
from nfqlb.netfilter import netlink
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.iptables import program, search_path
from nfqlb.netfilter.netlink import FIRST_ATTRIBUTE, NetlinkError, attribute, attributes

TABLE = "nfqlb"

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES; messages and attributes: linux/netfilter/nf_tables.h
_GET_TABLE, _GET_OBJECT = _SUBSYSTEM | 1, _SUBSYSTEM | 19
_TABLE_NAME = 1
_OBJECT_TABLE, _OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA, _OBJECT_USE = 1, 2, 3, 4, 5
_COUNTER_TYPE = (1).to_bytes(4, "big")
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_INET = 1  # NFPROTO_INET
_number = Struct("!Q").unpack_from
_use = Struct("!I").unpack_from

_ATTEMPTS = 5
_TIMEOUT = 20  # seconds: a thousand virtual servers take well under one
_IN, _OUT = "in-", "out-"

#: Hooks as nft calls them: before everything but the reassembly of fragments (-400); after the translation
#: of addresses (100).
_FIRST, _LAST = "prerouting priority -305", "postrouting priority 150"

#: Empty chains: as long as there is one for NAT on either side, the kernel goes on translating what datapath
#: offload has placed, whoever deletes those of iptables (`iptables -t nat -X` does).
_HOLDING = (("hold-in", "prerouting priority -100"), ("hold-out", "postrouting priority 100"))


class Counter(NamedTuple):
    """Packets and bytes, as the kernel has counted them since the counter was made."""

    packets: int
    bytes: int


class Counters(NamedTuple):
    """One virtual server's."""

    inbound: Counter
    outbound: Counter


def label(virtual: Virtual) -> str:
    """What the counters of a virtual server are called: what its clients send to, whatever its name is."""
    address = str(virtual.address).replace(":", "_")
    return f"{address}-{virtual.protocol}-{virtual.port or 'any'}"


def script(config: Config, present: Mapping[str, Counters] | None = None) -> str:
    """What makes the table count for `config`, for `nft -f`: one transaction.

    `present` are the counters to go on with, as `read` has them; None begins anew.
    """
    lines = [f"add table inet {TABLE}"]
    if present is None:
        lines += [f"delete table inet {TABLE}", f"add table inet {TABLE}"]
    names = [label(virtual) for virtual in config.virtuals]
    for name in names:
        lines += [f"add counter inet {TABLE} {side}{name}" for side in (_IN, _OUT)]
    for chain, hook in (("in", _FIRST), ("out", _LAST)):
        lines += [
            f"add chain inet {TABLE} {chain} {{ type filter hook {hook}; policy accept; }}",
            f"flush chain inet {TABLE} {chain}",
        ]
    if any(virtual.datapath == OFFLOAD for virtual in config.virtuals):
        lines += [f"add chain inet {TABLE} {chain} {{ type nat hook {hook}; policy accept; }}"
                  for chain, hook in _HOLDING]  # fmt: skip
    for version in (4, 6):
        for every_port in (False, True):
            virtuals = [
                virtual
                for virtual in config.virtuals
                if virtual.address.version == version and (virtual.port is None) == every_port
            ]
            lines += _lookups(config, version, every_port, virtuals)
    for gone in present or ():
        if gone not in names:
            lines += [f"delete counter inet {TABLE} {side}{gone}" for side in (_IN, _OUT)]
    return "".join(f"{line}\n" for line in lines)


def _lookups(config: Config, version: int, every_port: bool, virtuals: list[Virtual]) -> Iterator[str]:
    """The maps from addresses to counters, and the rules that go by them, for one kind of virtual server."""
    network = "ip" if version == 4 else "ip6"
    port_type = "" if every_port else " . inet_service"
    for side, chain, facing, address, port in (
        (_IN, "in", f"iifname {_any_of(config.gateway.outside)}", "daddr", "dport"),
        (_OUT, "out", f"oifname {_any_of(config.gateway.outside)}", "saddr", "sport"),
    ):
        name = f"{chain}{version}{'any' if every_port else ''}"
        keys = f"ipv{version}_addr . inet_proto{port_type}"
        yield f"add map inet {TABLE} {name} {{ type {keys} : counter; }}"
        yield f"flush map inet {TABLE} {name}"
        if not virtuals:
            continue
        places = ", ".join(f'{_place(virtual)} : "{side}{label(virtual)}"' for virtual in virtuals)
        yield f"add element inet {TABLE} {name} {{ {places} }}"
        looked_up = f"{network} {address} . meta l4proto" + ("" if every_port else f" . th {port}")
        yield f"add rule inet {TABLE} {chain} {facing} counter name {looked_up} map @{name}"


def _any_of(interfaces: tuple[str, ...]) -> str:
    return "{ " + ", ".join(f'"{interface}"' for interface in interfaces) + " }"


def _place(virtual: Virtual) -> str:
    """What a virtual server answers on, as a key of its map."""
    words = [str(virtual.address), virtual.protocol]
    return " . ".join(words if virtual.port is None else [*words, str(virtual.port)])


def put(config: Config, present: Mapping[str, Counters] | None = None) -> None:
    """Have the kernel count for `config`. Raises KernelError. `present` as in `script`."""
    _run(script(config, present))


def remove() -> list[str]:
    """Takes the table out; returns a line that says so, [] where there was none. Raises KernelError."""
    if not exists():
        return []
    _run(f"delete table inet {TABLE}\n")
    return [f"nft table inet {TABLE}"]


def exists() -> bool:
    """Whether the table is there. Raises KernelError without the right to ask."""
    request = netlink.message(_GET_TABLE, netlink.ACK, _text(_TABLE_NAME, TABLE), family=_INET)
    try:
        with netlink.connect() as sock:
            netlink.ask(sock, request, "nf_tables")
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
            return False  # not there, or a kernel without nf_tables
        raise
    return True


def read() -> dict[str, Counters]:
    """What has been counted, by the virtual servers' labels: of those whose counters packets still reach.

    Empty where the table is gone. Raises KernelError.
    """
    found: dict[str, Counter] = {}
    body = _text(_OBJECT_TABLE, TABLE) + attribute(_OBJECT_TYPE, _COUNTER_TYPE)
    request = netlink.message(_GET_OBJECT, netlink.DUMP, body, family=_INET)
    for attempt in range(_ATTEMPTS):
        try:
            found = dict(_dump(request))
            break
        except NetlinkError as error:  # somebody changed a table meanwhile: once more
            if error.errno != errno.EINTR or attempt == _ATTEMPTS - 1:
                raise
    return {
        name.removeprefix(_IN): Counters(inbound, found[_OUT + name.removeprefix(_IN)])
        for name, inbound in found.items()
        if name.startswith(_IN) and _OUT + name.removeprefix(_IN) in found
    }


def _dump(request: bytes) -> Iterator[tuple[str, Counter]]:
    with netlink.connect() as sock:
        for buffer, at, end in netlink.answers(sock, request, "nf_tables"):
            counter = _counter_in(buffer, at, end)
            if counter is not None:
                yield counter


def _counter_in(buffer: bytearray, at: int, end: int) -> tuple[str, Counter] | None:
    """The name and state of the counter in a message; None for one that no map leads to."""
    name, used, counted = "", 0, Counter(0, 0)
    for kind, start, stop in attributes(buffer, at + FIRST_ATTRIBUTE, end):
        if kind == _OBJECT_NAME:
            name = bytes(buffer[start:stop]).rstrip(b"\0").decode("ascii", "replace")
        elif kind == _OBJECT_USE:
            used = _use(buffer, start)[0]
        elif kind == _OBJECT_DATA:
            inside = {each: _number(buffer, where)[0] for each, where, _ in attributes(buffer, start, stop)}
            counted = Counter(inside.get(_COUNTER_PACKETS, 0), inside.get(_COUNTER_BYTES, 0))
    return (name, counted) if name and used else None


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode("ascii") + b"\0")


def _run(text: str) -> None:
    try:
        done = subprocess.run(
            [program("nft"), "-f", "-"], input=text, capture_output=True, text=True, timeout=_TIMEOUT,
            env={"LC_ALL": "C", "PATH": search_path()}, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise KernelError("nft is not installed; on Debian: apt-get install nftables") from None
    except subprocess.TimeoutExpired:
        raise KernelError(f"nft did not finish within {_TIMEOUT} s") from None
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "Error" in line), "failed")
        raise KernelError(f"nft: {said.partition('Error: ')[2] or said}")
