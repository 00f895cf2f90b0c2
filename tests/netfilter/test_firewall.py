"""What a firewall makes of a packet, read from its rules."""

from ipaddress import ip_address

import pytest

from nfqlb.netfilter.firewall import Fate, Packet, catches, fate
from nfqlb.netfilter.ruleset import parse

WEB = ip_address("10.0.0.1")
NEW = Packet("eth0", "eth1", "tcp", destination=WEB, destination_port=8080)
ANSWER = Packet("eth1", "eth0", "tcp", source=WEB, source_port=8080, state="ESTABLISHED")
STATEFUL = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"


def through(*rules: str, policy: str = "ACCEPT", packet: Packet = NEW, more: str = "") -> Fate:
    text = f"*filter\n:FORWARD {policy} [0:0]\n{more}" + "".join(f"{rule}\n" for rule in rules) + "COMMIT\n"
    return fate(parse(text)["filter"], "FORWARD", packet)


def test_without_rules_the_policy_decides() -> None:
    assert through() == Fate(True, "policy ACCEPT of FORWARD")
    assert through(policy="DROP") == Fate(False, "policy DROP of FORWARD")


def test_the_first_rule_that_fits_decides() -> None:
    accept = f"-A FORWARD -i eth0 -o eth1 -d {WEB}/32 -p tcp -m tcp --dport 8080 -j ACCEPT"
    assert through(accept, "-A FORWARD -j DROP") == Fate(True, accept)
    assert through("-A FORWARD -j DROP", accept) == Fate(False, "-A FORWARD -j DROP")


@pytest.mark.parametrize(
    "condition",
    [
        "-i eth2", "-o eth0", "-d 10.0.0.2/32", "-p udp", "-p tcp -m tcp --dport 80", "! -i eth0",
        "-s 192.0.2.7/32",
        "-m conntrack --ctstate ESTABLISHED", "-p tcp -m multiport --dports 80,443", "-i ppp+",
        "-p tcp -m tcp ! --dport 8080", "! -d 10.0.0.0/8", "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN",
    ],
)  # fmt: skip
def test_a_rule_for_other_packets_is_passed_over(condition: str) -> None:
    assert through(f"-A FORWARD {condition} -j DROP").passes
    assert not through(f"-A FORWARD {condition} -j ACCEPT", policy="DROP").passes


@pytest.mark.parametrize(
    "condition",
    [
        "", "-i eth0", "-i eth+", "-o eth1", "-d 10.0.0.0/8", "-s 0.0.0.0/0", "-p tcp", "! -p udp",
        "-p tcp -m tcp --dport 8000:9000", "-p tcp -m multiport --dports 80,8080", "! -d 10.0.0.2/32",
        "-m state --state NEW", "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", '-m comment --comment "a b"',
    ],
)  # fmt: skip
def test_a_rule_that_fits_decides(condition: str) -> None:
    assert not through(f"-A FORWARD {condition} -j DROP").passes
    assert through(f"-A FORWARD {condition} -j ACCEPT", policy="DROP").passes


def test_answers_need_a_rule_for_what_is_established() -> None:
    assert through(STATEFUL, policy="DROP", packet=ANSWER).passes
    assert not through(STATEFUL, policy="DROP", packet=NEW).passes


def test_chains_are_followed_and_returned_from() -> None:
    more = ":MINE - [0:0]\n:DEEP - [0:0]\n"
    rules = ("-A FORWARD -j MINE", "-A MINE -j DEEP", "-A MINE -j DROP")
    assert through(*rules, "-A DEEP -i eth0 -j ACCEPT", more=more) == Fate(True, "-A DEEP -i eth0 -j ACCEPT")
    assert through(*rules, "-A DEEP -j RETURN", more=more) == Fate(False, "-A MINE -j DROP")
    assert through("-A FORWARD -g MINE", "-A FORWARD -j DROP", "-A MINE -i eth9 -j DROP", more=more).passes


def test_a_loop_of_chains_comes_to_an_end() -> None:
    assert through("-A FORWARD -j A", "-A A -j B", "-A B -j A", more=":A - [0:0]\n:B - [0:0]\n").passes


def test_a_blocklist_is_not_held_to_mean_everybody() -> None:
    assert through("-A FORWARD -m set --match-set blocked src -j DROP").passes


def test_what_cannot_be_known_is_told_where_it_would_let_the_packet_pass() -> None:
    allowed = "-A FORWARD -m set --match-set allowed src -j ACCEPT"
    assert through(allowed, policy="DROP") == Fate(False, "policy DROP of FORWARD", unless=allowed)
    more = ":MINE - [0:0]\n"
    jump = "-A FORWARD -m geoip --source-country DE -j MINE"
    found = through(jump, "-A MINE -j ACCEPT", policy="DROP", more=more)
    assert (found.passes, found.unless) == (False, jump)


def test_targets_that_do_not_end_anything_are_passed_over() -> None:
    rules = ("-j LOG --log-prefix x", "-j MARK --set-xmark 0x1/0x1", "-p tcp", "-j DROP")
    assert through(*(f"-A FORWARD {rule}" for rule in rules)).rule == "-A FORWARD -j DROP"


def test_what_a_packet_surely_meets() -> None:
    text = (
        "*nat\n:POSTROUTING ACCEPT [0:0]\n:MINE - [0:0]\n-A POSTROUTING -o eth0 -j MASQUERADE\n"
        "-A POSTROUTING -m set --match-set some dst -j MASQUERADE\n-A POSTROUTING -d 10.9.0.0/16 -j ACCEPT\n"
        "-A POSTROUTING -j MINE\n-A MINE -s 10.0.0.0/8 -j SNAT --to-source 192.0.2.1\nCOMMIT\n"
    )
    table = parse(text)["nat"]
    outward = Packet("", "eth0", "tcp", source=WEB)
    assert catches(table, "POSTROUTING", outward, ["MASQUERADE"]) == "-A POSTROUTING -o eth0 -j MASQUERADE"
    assert catches(table, "POSTROUTING", NEW, ["MASQUERADE", "SNAT"]) == ""
    inward = Packet("", "eth1", "tcp", source=WEB, destination=ip_address("10.1.0.1"))
    assert catches(table, "POSTROUTING", inward, ["SNAT"]).startswith("-A MINE")
    spared = Packet("", "eth1", "tcp", source=WEB, destination=ip_address("10.9.0.1"))
    assert catches(table, "POSTROUTING", spared, ["SNAT"]) == ""


def test_ipv6_is_read_like_ipv4() -> None:
    packet = Packet("eth0", "eth1", "tcp", destination=ip_address("fd00::1"), destination_port=80)
    reject = "-j REJECT --reject-with icmp6-port-unreachable"
    assert not through(f"-A FORWARD -d fd00::/16 {reject}", packet=packet).passes
    assert through("-A FORWARD -d fd01::/16 -j DROP", packet=packet).passes
