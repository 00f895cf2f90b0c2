"""The rule bundle as text: fills the templates of `iptables/` in from a configuration.

Owns the small template language (`$word`, `#for each X` ... `#end`, `##` notes) and what each
word stands for. Pure but for reading the template file that comes with the package; nothing
here runs a program. The text that comes out is what `iptables-restore --noflush` takes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from nfqlb.config.marks import OFFLOAD
from nfqlb.config.numbers import queue_numbers
from nfqlb.core.spec import Address, Config, Gateway, Virtual
from nfqlb.netfilter import render_offload
from nfqlb.netfilter.errors import KernelError

PREFIX = "NFQLB-"
"""Every chain of ours begins so; nothing else in the kernel's tables is ever touched."""

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
"""What may be put into a rule as it is. "+" ends a wildcard in iptables, quotes and blanks end a word."""

MAX_PACKET = 65_531
"""Bytes of a packet that a queue hands over at most: a netlink attribute's 65,535 less its header."""

Items = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between the address families; `version` is 4 or 6.

    `errors` are the ICMP types that quote a packet (RFC 792, RFC 4443), `echo` is the echo request.
    `headers` are the bytes that IP and TCP headers take at most, all options included.
    """

    version: int
    name: str
    program: str
    icmp: str
    icmp_type: str
    echo: int
    errors: tuple[int, ...]
    headers: int

    @property
    def largest_segment(self) -> int:
        """The maximum segment size (bytes) with which every TCP packet fits a queue, whatever its options.

        A sender subtracts its options from it (RFC 6691); it need not be relied on.
        """
        return MAX_PACKET - self.headers


IPV4 = Family(4, "IPv4", "iptables", "icmp", "-m icmp --icmp-type", 8, (3, 11, 12), 60 + 60)
IPV6 = Family(6, "IPv6", "ip6tables", "ipv6-icmp", "-m icmp6 --icmpv6-type", 128, (1, 2, 3, 4), 40 + 60)
FAMILIES = (IPV4, IPV6)


@dataclass(frozen=True, slots=True)
class Bundle:
    """The rules of one configuration: a text for each address family, "" where it needs none.

    `queues` are the NFQUEUE numbers the rules send to; without a reader on each, packets are lost.
    """

    ipv4: str
    ipv6: str
    queues: tuple[int, ...]

    def text(self, family: Family) -> str:
        """The iptables-restore text of one family."""
        return self.ipv4 if family is IPV4 else self.ipv6


def render(config: Config, *, policies: bool = True, behind: bool = True) -> Bundle:
    """The rules that `config` needs. Raises KernelError for a name that cannot stand in a rule.

    `policies`: this kernel can keep time-outs of ours (see `timeouts`), which datapath offload asks for.
    `behind`: it has a table `security`.
    """
    ipv4, ipv6 = (
        _render_family(config, family, policies=policies, behind=behind) for family in FAMILIES
    )
    return Bundle(ipv4, ipv6, queue_numbers(config))


def read_template(name: str) -> str:
    """A template that comes with the package, or lies beside it where nfqlb runs from its source tree."""
    try:
        return files("nfqlb.iptables").joinpath(name).read_text(encoding="utf-8")
    except ModuleNotFoundError:
        return (Path(__file__).parents[2] / "iptables" / name).read_text(encoding="utf-8")


def fill(template: str, words: Mapping[str, str], lists: Mapping[str, Items]) -> str:
    """`template` with its words filled in and its blocks repeated; see the head of a template.

    Raises KeyError for a word or a list it does not know, ValueError for a block that is not closed.
    """
    lines: list[str] = []
    block: list[str] | None = None
    items: Items = ()
    for line in template.splitlines():
        if line.startswith("##"):
            continue
        if line.startswith("#for each "):
            if block is not None:
                raise ValueError(f"a block inside a block: {line}")
            block, items = [], lists[line.removeprefix("#for each ").strip()]
        elif line == "#end":
            if block is None:
                raise ValueError("#end without #for each")
            lines += _repeat(block, words, items)
            block = None
        elif block is not None:
            block.append(line)
        else:
            lines.append(_fill_line(line, words))
    if block is not None:
        raise ValueError("#for each without #end")
    return _squeeze(lines)


def _repeat(block: Iterable[str], words: Mapping[str, str], items: Items) -> list[str]:
    """Comments once and rules for every item, in the order of the block within each item."""
    if not items:
        return []
    comments = [_fill_line(line, words) for line in block if line.startswith("#")]
    rules = [line for line in block if not line.startswith("#")]
    return comments + [_fill_line(rule, {**words, **item}) for item in items for rule in rules]


def _fill_line(line: str, words: Mapping[str, str]) -> str:
    """One line with its words filled in; the gap that an empty word leaves is closed."""
    filled = Template(line).substitute(words)
    return filled if line.startswith("#") else " ".join(filled.split())


def _squeeze(lines: Iterable[str]) -> str:
    """The lines as text, never two blank ones in a row."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip("\n") + "\n")


def _render_family(config: Config, family: Family, *, policies: bool, behind: bool) -> str:
    texts = []
    if behind and (virtuals := _virtuals(config, family)):
        lists = _lists_behind(config, family, virtuals)
        texts.append(fill(read_template("behind.rules"), _words(config.gateway, family), lists))
    if virtuals := _virtuals(config, family, "rewrite"):
        lists = _lists(config, family, virtuals)
        texts.append(fill(read_template("rewrite.rules"), _words(config.gateway, family), lists))
    if virtuals := _virtuals(config, family, OFFLOAD):
        words = _words(config.gateway, family) | render_offload.words(config, family, policies=policies)
        base = _lists(config, family, virtuals)
        lists = {**base, **render_offload.lists(config, virtuals, base, family, policies=policies)}
        texts.append(fill(read_template("offload.rules"), words, lists))
    return join(texts)


def _virtuals(config: Config, family: Family, datapath: str = "") -> list[Virtual]:
    """The virtual servers of a family, and of a datapath where one is given."""
    return [
        virtual
        for virtual in config.virtuals
        if virtual.address.version == family.version and datapath in ("", virtual.datapath)
    ]


def join(texts: Sequence[str]) -> str:
    """Filled templates as one text: tables of one name become one, so that each changes in one transaction.

    What stands before a table's name stays with it. Tables come in the order of their last mention: the
    way in is each template's last, and so it is of all.
    """
    if len(texts) < 2:
        return "".join(texts)
    heads: dict[str, list[str]] = {}
    bodies: dict[str, list[str]] = {}
    order: list[str] = []
    for text in texts:
        head: list[str] = []
        name = ""
        for line in text.splitlines():
            if line.startswith("*"):
                name = line
                heads.setdefault(name, []).extend(head)
                bodies.setdefault(name, [])
                head = []
                order = [*(other for other in order if other != name), name]
            elif line == "COMMIT":
                name = ""
            else:
                (bodies[name] if name else head).append(line)
    tables = [[*heads[name], name, *bodies[name], "COMMIT", ""] for name in order]
    return _squeeze(line for table in tables for line in table)


def _words(gateway: Gateway, family: Family) -> dict[str, str]:
    mask = gateway.mark_mask
    return {
        "family": family.name,
        "icmp": family.icmp,
        "icmp_type": family.icmp_type,
        "echo": str(family.echo),
        "queue_syn": str(gateway.queue),
        "queue": str(gateway.queue + 1),
        "mask": f"{mask:#x}",
        "judged": f"{mask:#x}/{mask:#x}",
        "direct": f"{mask & -mask:#x}/{mask:#x}",
        "unmarked": f"0x0/{mask:#x}",
        "carried": f"{MAX_PACKET:,}",
        "mss": str(family.largest_segment),
        "too_long": f"{family.largest_segment + 1}:65535",
    }


def _lists(config: Config, family: Family, virtuals: Sequence[Virtual]) -> dict[str, Items]:
    gateway = config.gateway
    vips = _vips(virtuals)
    closed = vips if gateway.other_ports == "drop" else ()
    servers = _servers(config, virtuals)
    return {
        "outside": [{"outside": _safe(name)} for name in gateway.outside],
        "inside": [{"inside": _safe(name)} for name in gateway.inside],
        "error": [{"type": str(number)} for number in family.errors],
        "virtual": [_virtual_words(virtual) for virtual in virtuals],
        "offloaded virtual": [
            _virtual_words(virtual)
            for virtual in _virtuals(config, family, OFFLOAD)
            if virtual.address in {other.address for other in virtuals}
        ],
        "vip": vips,
        "IPv4 vip": vips if family is IPV4 else (),
        "closed vip": closed,
        "closed IPv6 vip": closed if family is IPV6 else (),
        "server": servers,
        "TCP server": [server for server in servers if server["protocol"] == "tcp"],
        "open server": () if gateway.secure else servers,
        "guarded real": _reals(config, virtuals) if gateway.secure else (),
    }


def _lists_behind(config: Config, family: Family, virtuals: Sequence[Virtual]) -> dict[str, Items]:
    """For the template `behind.rules`: what concerns all virtual servers, and what only those of rewrite."""
    outside = [{"outside": _safe(name)} for name in config.gateway.outside]
    inside = [{"inside": _safe(name)} for name in config.gateway.inside]
    rewriting = _virtuals(config, family, "rewrite")
    return {
        "outside": outside,
        "virtual": [_virtual_words(virtual) for virtual in virtuals],
        "rewriting family": [{}] if rewriting else (),
        "rewriting outside": outside if rewriting else (),
        "rewriting way out": [i | o for i in inside for o in outside] if rewriting else (),
        "rewriting vip": _vips(rewriting),
    }


def _virtual_words(virtual: Virtual) -> dict[str, str]:
    return {
        "virtual": _safe(virtual.name),
        "vip": _host(virtual.address),
        "protocol": _safe(virtual.protocol),
        "dport": _port("--dport", virtual.protocol, virtual.port),
    }


def _vips(virtuals: Iterable[Virtual]) -> Items:
    """Each virtual address once, in the order of the configuration."""
    return [{"vip": _host(address)} for address in dict.fromkeys(virtual.address for virtual in virtuals)]


def _servers(config: Config, virtuals: Iterable[Virtual]) -> Items:
    """Each address, protocol and port that may answer for virtual servers, once: they share them."""
    found: dict[tuple[Address, str, int | None], str] = {}
    for virtual in virtuals:
        for server in config.places(virtual):
            real = config.real(server.real)
            found.setdefault((real.address, virtual.protocol, server.port), real.name)
    return [
        {
            "real": _safe(name),
            "address": _host(address),
            "protocol": _safe(protocol),
            "sport": _port("--sport", protocol, port),
            "dport": _port("--dport", protocol, port),
        }
        for (address, protocol, port), name in found.items()
    ]


def _reals(config: Config, virtuals: Iterable[Virtual]) -> Items:
    """Each real server behind one of these virtual servers, backups too, once."""
    names = dict.fromkeys(server.real for virtual in virtuals for server in config.places(virtual))
    return [{"real": _safe(name), "address": _host(config.real(name).address)} for name in names]


def _port(option: str, protocol: str, port: int | None) -> str:
    """The match for a port, or nothing where every port is meant."""
    return "" if port is None else f"-m {protocol} {option} {port}"


def _host(address: Address) -> str:
    return f"{address}/{address.max_prefixlen}"


def _safe(word: str) -> str:
    if not _SAFE.fullmatch(word):
        raise KernelError(f"{word!r} cannot stand in an iptables rule; only letters, digits, and _ . @ - can")
    return word
