"""What the words and lists of `iptables/offload.rules` stand for.

Owns what only that template knows: links and their marks, the tree they are looked up in, the tap, and
what conntrack is told. `render` fills the template in with it.
"""

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from nfqlb.config.marks import OFFLOAD, LinkMarks
from nfqlb.config.numbers import idle_times, offload_queue, tap_group, whole_seconds
from nfqlb.core.reject import REPLIES_A_SECOND, Kind, rejects_with_reset
from nfqlb.core.spec import Config, Target, Virtual
from nfqlb.netfilter.errors import KernelError

if TYPE_CHECKING:
    from nfqlb.netfilter.render import Family, Items

THRESHOLD = 64
"""Copies that the kernel collects before it hands them to the tap."""
COPIED = 96
"""Bytes of a packet that the tap gets: headers with all options, or an ICMP error's quotation."""

SAMPLES = 1000
"""Requests that are timed in one second, of all servers together. Each costs two copies, told and judged."""

POLICY_PREFIX = "nq"
"""How our sets of time-outs begin."""
_INDEX = string.digits + string.ascii_letters

_GROUP = 32
"""Links that are searched one after the other: a mark costs a few nanoseconds to compare."""

_HAS_DATA = {
    4: "9,177 0 0 0,80 0 0 12,84 0 0 240,116 0 0 2,12 0 0 0,7 0 0 0,128 0 0 0,28 0 0 0,22 0 0 0",
    6: "8,80 0 0 52,84 0 0 240,116 0 0 2,4 0 0 40,7 0 0 0,128 0 0 0,28 0 0 0,22 0 0 0",
}
"""Classic BPF that returns a packet's length less its headers': X = IP header (IPv6: 40), A = TCP header."""
_TOLD = "RETURN"


def policy_name(version: int, protocol: str, index: int = 0) -> str:
    """What a set of time-outs is called in the kernel: the `index`-th of this family and protocol.

    Four characters, as the kernel shows no more of a name in a rule: of a longer one `iptables-save` writes
    the beginning, and `iptables-restore` takes the whole table back for nothing. Raises KernelError where
    the names have run out.
    """
    if index >= len(_INDEX):
        raise KernelError(f"datapath offload keeps no more than {len(_INDEX)} different idle_timeouts")
    return POLICY_PREFIX + (protocol[0] if version == 4 else protocol[0].upper()) + _INDEX[index]


def link_marks(config: Config) -> LinkMarks:
    """The links' marks. Raises KernelError where they do not fit, which `check` says as well."""
    try:
        return LinkMarks(config)
    except ValueError as error:
        raise KernelError(str(error)) from None


def words(config: Config, family: "Family", *, policies: bool) -> dict[str, str]:
    """The template's own words. Without `policies`, conntrack's time-outs stay the machine's."""
    marks = link_marks(config)
    mask, armed = marks.mask, marks.armed
    timed, timed_mask = marks.timed
    version = family.version
    copies = f"--nflog-group {tap_group(config)} --nflog-size {COPIED} --nflog-threshold"
    return {
        "queue": str(offload_queue(config)),
        "bypass": "--queue-bypass" if config.gateway.fallback else "",
        "group": str(tap_group(config)),
        "nflog": f"{copies} {THRESHOLD}",
        "nflog_soon": f"{copies} {_soon(config)}",
        "armed": f"{armed:#x}",
        "numbers": f"{marks.number_mask:#x}",
        "no_link": f"0x0/{marks.number_mask:#x}",
        "arm": f"{armed:#x}/{armed:#x}",
        "disarm": f"0x0/{armed:#x}",
        "unarmed": f"0x0/{armed:#x}",
        "answered": f"{armed:#x}/{armed:#x}",
        "replies": str(REPLIES_A_SECOND),
        "unarmed_timed": f"{timed:#x}/{timed_mask | armed:#x}",
        "armed_timed": f"{timed | armed:#x}/{timed_mask | armed:#x}",
        "has_data": _HAS_DATA[version],
        "samples": str(SAMPLES),
        "mask": f"{mask:#x}",
        "tcp_policy": _policy(version, "tcp") if policies else "",
        "udp_policy": _policy(version, "udp") if policies else "",
    }


def lists(
    config: Config, virtuals: Sequence[Virtual], base: Mapping[str, "Items"], family: "Family",
    *, policies: bool,
) -> dict[str, "Items"]:  # fmt: skip
    """The template's own lists, for the `virtuals` of this family; `base` are those of every template."""
    gateway, marks = config.gateway, link_marks(config)
    links = _links(config, virtuals, marks, family)
    outside = base["outside"]
    one: Items = [{}]
    udp = any(virtual.protocol == "udp" for virtual in virtuals)
    timed = bool(marks.timed[1])
    mixed = any(virtual.datapath != OFFLOAD for virtual in config.virtuals)
    named = [{**words, **_missed(each)} for words, each in zip(base["virtual"], virtuals, strict=True)]
    tcp = [words for words in named if words["protocol"] == "tcp"]
    reset = [words for words in tcp if words["missed"] == _TOLD]
    eaten, passed = ("1",) if family.version == 6 else ("3",), () if family.version == 6 else ("3/4",)
    return {
        "fallback family": one if gateway.fallback else (),
        "fallback outside": outside if gateway.fallback else (),
        "way out": [{**into, **out} for into in base["inside"] for out in outside],
        "virtual": named,
        "TCP virtual": tcp,
        "UDP virtual": [words for words in named if words["protocol"] == "udp"],
        "UDP family": one if udp else (),
        "UDP outside": outside if udp else (),
        "timed family": one if timed else (),
        "timed outside": outside if timed else (),
        "guarded family": one if gateway.secure else (),
        "guarded outside": outside if gateway.secure else (),
        "other datapath": _other_marks(marks) if mixed else (),
        "timed other datapath": _other_marks(marks)[:1] if mixed and timed else (),
        "UDP other datapath": _other_marks(marks) if mixed and udp else (),
        "eaten error": [{"type": kind} for kind in eaten],
        "passed error": [{"type": kind} for kind in passed],
        "link": links,
        "special link": _special(config, links, family) if policies else (),
        "link group": _groups(links),
        "reset family": one if reset else (),
        "reset outside": outside if reset else (),
        "reset virtual": reset,
    }


def _soon(config: Config) -> int:
    """Copies of which one is a server's answer that the kernel may collect before it hands them over (R183).

    Answers that wait make a server look as if it did not answer: fewer than any has to have for that.
    """
    limits = [real.syn_limit for real in config.reals if real.syn_limit]
    return max(1, min([THRESHOLD, *(limit - 1 for limit in limits)]))


def _missed(virtual: Virtual) -> dict[str, str]:
    """What becomes of a segment without a connection: let through to where it is reset, or dropped."""
    told = virtual.protocol == "tcp" and rejects_with_reset(virtual, Kind.SEGMENT)
    return {"missed": _TOLD if told else "DROP"}


def _other_marks(marks: LinkMarks) -> "Items":
    """What datapath rewrite says with a connection's mark: judged, and straight to a real server."""
    mask = marks.mask
    return [{"foreign": f"{mask:#x}/{mask:#x}"}, {"foreign": f"{mask & -mask:#x}/{mask:#x}"}]


def _links(
    config: Config, virtuals: Iterable[Virtual], marks: LinkMarks, family: "Family"
) -> list[dict[str, str]]:
    """Each target of these virtual servers once, by mark, with the chain its rule stands in."""
    names: dict[int, tuple[str, Target]] = {}
    by_mark = {mark: target for target, mark in marks.marks.items()}
    for virtual in virtuals:
        for server in config.places(virtual):
            mark = marks.of(virtual, server)
            names.setdefault(mark, (server.real, by_mark[mark]))
    owners = {real.address: real.name for real in config.reals if real.address.version == family.version}
    for target, mark in config.numbers.marks:  # packets may be on their way with marks of an earlier moment
        if target.address in owners:
            names.setdefault(mark, (owners[target.address], target))
    ordered = sorted(names.items())
    tree = len(ordered) > _GROUP
    return [
        {
            "real": name,
            "protocol": target.protocol,
            "mark": f"{mark:#x}/{marks.number_mask:#x}",
            "destination": _destination(target),
            "idle": str(whole_seconds(target.idle_timeout)),
            "chain": f"NFQLB-O-LINKS-{_group(mark, marks)[0]:X}" if tree else "NFQLB-O-LINKS",
            "group": "{:#x}/{:#x}".format(*_group(mark, marks)),
        }
        for mark, (name, target) in ordered
    ]


def _group(mark: int, marks: LinkMarks) -> tuple[int, int]:
    """The upper bits of a link's mark, and their mask: those above the number of one in a group."""
    lowest = marks.mask & -marks.mask
    upper = marks.number_mask & ~((_GROUP - 1) * lowest)
    return mark & upper, upper


def _groups(links: Iterable[Mapping[str, str]]) -> "Items":
    """The chains of the tree; none where there is no tree."""
    groups = {link["chain"]: link["group"] for link in links if link["chain"] != "NFQLB-O-LINKS"}
    return [{"group_chain": chain, "group_mark": group} for chain, group in groups.items()]


def _destination(target: Target) -> str:
    """What a target is called in a DNAT rule; without a port the client's choice stays."""
    if target.port is None:
        return str(target.address)
    host = f"[{target.address}]" if target.address.version == 6 else str(target.address)
    return f"{host}:{target.port}"


def _special(config: Config, links: Iterable[Mapping[str, str]], family: "Family") -> "Items":
    """Links for TCP whose idle time-out is not the general one."""
    times = idle_times(config)
    order = {str(seconds): times.index(seconds) for seconds in times}
    return [
        {**link, "policy": _policy(family.version, "tcp", order[link["idle"]])}
        for link in links
        if link["protocol"] == "tcp" and order.get(link["idle"])
    ]


def _policy(version: int, protocol: str, index: int = 0) -> str:
    return f"--timeout {policy_name(version, protocol, index)}"
