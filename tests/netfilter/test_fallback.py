"""What stands ready in the kernel for the time without a gateway (F37); no kernel needed."""

import re
from dataclasses import replace
from fractions import Fraction
from ipaddress import ip_address

import pytest

from nfqlb.config.marks import LinkMarks
from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter import fallback
from nfqlb.netfilter.alone import bypassed
from nfqlb.netfilter.fallback import Share
from nfqlb.netfilter.render import FAMILIES, IPV4, IPV6, render
from nfqlb.netfilter.ruleset import differences, parse

WEB = Virtual(
    "web",
    ip_address("192.0.2.100"),
    (Server("a", 80), Server("b", 80), Server("c", 80)),
    port=80,
    datapath="offload",
)
DNS = replace(WEB, name="dns", protocol="udp", port=None, servers=(Server("a", None),))
SIX = replace(WEB, name="six", address=ip_address("2001:db8::1"), servers=(Server("s", 80),))
CONFIG = Config(
    Gateway(("eth0",), ("eth1",)),
    tuple(
        Real(name, ip_address(address))
        for name, address in (("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3"), ("s", "fd00::1"))
    ),
    (WEB, DNS, SIX),
)
MARKS = LinkMarks(CONFIG)
A, B, C = (MARKS.of(WEB, server) for server in WEB.servers)


def rules(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("-A")]


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 3), (0.5, 7, 0.25), (3, 1e-6, 1)])
def test_each_server_gets_its_part_of_what_those_before_it_let_by(weights: tuple[float, ...]) -> None:
    lines = rules(fallback.text(CONFIG, IPV4, [Share("web", tuple(zip((A, B, C), weights, strict=True)))]))
    rest, parts = Fraction(1), []
    for line in lines[:-1]:
        chance = re.search(r"--probability (\S+)", line)
        part = Fraction(chance[1]) if chance else Fraction(1)
        parts.append(float(rest * part))
        rest *= 1 - part
    assert rest == 0
    assert parts == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-8)


def test_only_what_has_no_mark_yet_is_given_one_and_only_bits_of_the_number() -> None:
    text = fallback.text(CONFIG, IPV4, [Share("web", ((B, 1.0),)), Share("dns", ((A, 1.0),))])
    where = "-m mark --mark 0x0/0x7f0000 -m comment --comment"
    assert rules(text) == [
        f"-A NFQLB-O-FALLBACK -d 192.0.2.100/32 -p tcp -m tcp --dport 80 {where} web "
        f"-j MARK --set-xmark {B:#x}/0x7f0000",
        f"-A NFQLB-O-FALLBACK -d 192.0.2.100/32 -p udp {where} dns -j MARK --set-xmark {A:#x}/0x7f0000",
        "-A NFQLB-O-FALLBACK -m mark ! --mark 0x0/0x7f0000 -g NFQLB-O-LINKS",
    ]
    assert text.splitlines()[:2] == ["*nat", "-F NFQLB-O-FALLBACK"]
    assert text.endswith("COMMIT\n")


def test_each_family_has_its_own_virtual_servers() -> None:
    shares = [Share("web", ((A, 1.0),)), Share("six", ((MARKS.of(SIX, SIX.servers[0]), 1.0),))]
    for family, name in ((IPV4, "web"), (IPV6, "six")):
        first, *_ = rules(fallback.text(CONFIG, family, shares))
        assert f"--comment {name} " in first
    assert fallback.text(replace(CONFIG, virtuals=(WEB,)), IPV6, [shares[0]]) == ""


def test_without_it_nothing_is_written() -> None:
    off = replace(CONFIG, gateway=replace(CONFIG.gateway, fallback=False))
    assert fallback.wanted(CONFIG)
    assert not fallback.wanted(off)
    assert not fallback.wanted(replace(CONFIG, virtuals=(replace(WEB, datapath="rewrite"),)))
    assert [fallback.text(off, family, []) for family in FAMILIES] == ["", ""]


def test_what_the_gateway_writes_there_is_no_tampering_but_an_emptied_chain_is() -> None:
    wanted = parse(render(CONFIG).ipv4)["nat"]
    written = parse(fallback.text(CONFIG, IPV4, [Share("web", ((A, 1.0), (B, 2.0)))]))["nat"]
    live = replace(wanted, chains={**wanted.chains, **written.chains})
    assert differences(wanted, live) == []
    for emptied in ((), written.chains["NFQLB-O-FALLBACK"][:-1]):
        assert differences(wanted, replace(live, chains={**live.chains, "NFQLB-O-FALLBACK": emptied}))


def test_what_was_spread_alone_and_past_which_queues_is_read_from_listings() -> None:
    assert fallback.spread_in(
        "[9:540] -A NFQLB-O-PREROUTING -i eth0 -m mark --mark 0x0/0x7f0000 -j NFQLB-O-FALLBACK\n"
        "[7:420] -A NFQLB-O-FALLBACK -d 192.0.2.100/32 -p tcp -j MARK --set-xmark 0x20000/0x7f0000\n"
        "[12:720] -A NFQLB-O-FALLBACK -m mark ! --mark 0x0/0x7f0000 -g NFQLB-O-LINKS\n"
    ) == 12  # fmt: skip
    assert bypassed(
        "-A NFQLB-O-QUEUE -j NFQUEUE --queue-num 4 --queue-bypass\n"
        "-A MINE -j NFQUEUE --queue-num 5 --queue-bypass\n"
        "-A NFQLB-QUEUE -j NFQUEUE --queue-num 6\n"
    ) == {4}  # fmt: skip
    assert bypassed("-A NFQLB-O-QUEUE -j NFQUEUE --queue-num 4\n") == set()
