"""What the rules of datapath offload drop of packets that belong to no connection.

Owns the reading of those rules' counters in the text of `iptables-save -c`: the worker never sees these
packets. Pure text in, numbers out; a rule is known by its chain, and by the comment that
`iptables/offload.rules` gives it.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_interface
from itertools import pairwise

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.spec import Address, Config
from nfqlb.core.verdict import Drop

#: From clients, and told by the virtual server; from servers, and told by their address and port.
_MISSED, _STRAYS = "NFQLB-O-MISSED", "NFQLB-O-STRAYS"
_RULE = re.compile(r"\[(\d+):\d+\] -A (\S+) (.*)")

#: A virtual server's name, "" where it could be of several or none; and the reason.
Whose = tuple[str, Drop]
_Place = tuple[Address, str, int | None]


def dropped(config: Config, text: str) -> Counter[Whose]:
    """How many packets the rules in `text` have dropped, or had refused, since they were made."""
    behind = _behind(config)
    found: Counter[Whose] = Counter()
    for chain, words, packets in _rules(text):
        if chain == _MISSED:
            found[words["--comment"], Drop.NO_CONNECTION] += packets
        elif "-s" in words:
            port = words.get("--sport")
            place = ip_interface(words["-s"]).ip, words.get("-p", ""), int(port) if port else None
            found[behind.get(place, ""), Drop.SERVER_UNKNOWN] += packets
    return found


def _rules(text: str) -> Iterator[tuple[str, dict[str, str], int]]:
    """The rules that count, each with its chain, its options with their first values, and its packets."""
    for line in text.splitlines():
        rule = _RULE.match(line)
        if rule is None or rule[2] not in (_MISSED, _STRAYS):
            continue
        words = dict(pairwise(shlex.split(rule[3])))
        if "--comment" in words:  # those that say whose they are
            yield rule[2], words, int(rule[1])


def _behind(config: Config) -> dict[_Place, str]:
    """The one virtual server that each place of a server belongs to; "" where there are several."""
    found: dict[_Place, str] = {}
    for virtual in config.virtuals:
        if virtual.datapath == OFFLOAD:
            for server in config.places(virtual):
                place = config.real(server.real).address, virtual.protocol, server.port
                found[place] = virtual.name if found.get(place, virtual.name) == virtual.name else ""
    return found
