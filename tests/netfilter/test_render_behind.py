"""The rules behind all others, word for word, and what each datapath needs of them."""

from dataclasses import replace
from ipaddress import ip_address

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.render import FAMILIES, IPV4, IPV6, render
from nfqlb.netfilter.ruleset import Table, parse

CONFIG = Config(
    Gateway(("eth0",), ("eth1", "eth2")),
    (Real("web1", ip_address("10.0.0.1")),),
    (Virtual("shop", ip_address("192.0.2.10"), (Server("web1", 8080),), port=80),),
)
SHOP = CONFIG.virtuals[0]
JUDGED = "-m connmark --mark 0xff0000/0xff0000"
MISSED = "-d 192.0.2.10/32 -p tcp -m tcp --dport 80 -m comment --comment shop -j DROP"
REWRITE = {
    "INPUT": ["-j NFQLB-B-INPUT"],
    "FORWARD": ["-j NFQLB-B-FORWARD"],
    "NFQLB-B-INPUT": ["-i eth0 -j NFQLB-B-MISSED"],
    "NFQLB-B-MISSED": ["-m conntrack --ctstate UNTRACKED -j RETURN", MISSED],
    "NFQLB-B-FORWARD": [
        "-i eth0 -j NFQLB-B-INWARD",
        f"-i eth1 -o eth0 {JUDGED} -m conntrack ! --ctstatus EXPECTED -j NFQLB-B-OUTWARD",
        f"-i eth2 -o eth0 {JUDGED} -m conntrack ! --ctstatus EXPECTED -j NFQLB-B-OUTWARD",
    ],
    "NFQLB-B-INWARD": [f"{JUDGED} -j RETURN", "-d 192.0.2.10/32 -j NFQLB-B-MISSED"],
    "NFQLB-B-OUTWARD": ["-s 192.0.2.10/32 -j RETURN", "-p tcp -j DROP", "-p udp -j DROP"],
}
OFFLOAD = {name: REWRITE[name] for name in ("INPUT", "NFQLB-B-INPUT", "NFQLB-B-MISSED")}


def behind(*virtuals: Virtual, ipv6: bool = False) -> dict[str, list[str]]:
    text = render(replace(CONFIG, virtuals=virtuals)).text(IPV6 if ipv6 else IPV4)
    table = parse(text).get("security", Table("security", {}))
    return {chain: list(rules) for chain, rules in table.chains.items()}


def test_the_rules_of_rewrite_word_for_word() -> None:
    assert behind(SHOP) == REWRITE


def test_offload_needs_them_for_what_reaches_the_gateway_itself_alone() -> None:
    """Forwarded packets are the kernel's fast way; there mangle and conntrack see to it."""
    assert behind(replace(SHOP, datapath="offload")) == OFFLOAD


def test_both_share_the_table_and_each_address_stands_in_it_once() -> None:
    found = behind(SHOP, replace(SHOP, name="tls", port=443, datapath="offload"), replace(SHOP, port=81))
    assert len(found["NFQLB-B-MISSED"]) == 1 + 3
    assert len(found["NFQLB-B-INWARD"]) == 2
    assert len(found["NFQLB-B-OUTWARD"]) == 3


def test_a_family_without_virtual_servers_has_none() -> None:
    six = Virtual("six", ip_address("2001:db8::10"), (Server("web1", 80),), port=80)
    assert behind(six) == {}
    assert behind(six, ipv6=True)["NFQLB-B-OUTWARD"][0] == "-s 2001:db8::10/128 -j RETURN"


def test_they_come_first_so_that_nothing_is_let_in_before_them() -> None:
    text = render(CONFIG).ipv4
    assert text.index("*security") < text.index("*mangle") < text.index("*raw")


def test_without_the_table_there_is_none_of_it() -> None:
    for family in FAMILIES:
        assert "security" not in render(CONFIG, behind=False).text(family)
