"""The rule bundle as text, without a kernel."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.render import FAMILIES, IPV4, IPV6, fill, read_template, render

GATEWAY = Gateway(outside=("eth0",), inside=("eth1",), queue=4)
WEB1 = Real("web1", ip_address("10.0.0.11"))
WEB2 = Real("web2", ip_address("10.0.0.12"))
WEB = Virtual("web", ip_address("192.0.2.100"), (Server("web1", 8080), Server("web2", 80)), port=80)
CONFIG = Config(GATEWAY, (WEB1, WEB2), (WEB,))

RULES = """\
*mangle
:NFQLB-FORWARD - [0:0]
:NFQLB-INSIDE - [0:0]
:NFQLB-TO-CLIENTS - [0:0]
:NFQLB-SERVERS - [0:0]
:NFQLB-STRAYS - [0:0]
:NFQLB-OUTPUT - [0:0]
:NFQLB-ERRORS - [0:0]
:NFQLB-QUEUE - [0:0]
-A NFQLB-FORWARD -i eth1 -j NFQLB-INSIDE
-A NFQLB-INSIDE -o eth0 -j NFQLB-TO-CLIENTS
-A NFQLB-TO-CLIENTS -p icmp -j NFQLB-ERRORS
-A NFQLB-TO-CLIENTS -m conntrack --ctdir REPLY -g NFQLB-SERVERS
-A NFQLB-TO-CLIENTS -m conntrack --ctstate INVALID,UNTRACKED -g NFQLB-SERVERS
-A NFQLB-TO-CLIENTS -p tcp ! --syn -m conntrack --ctstate NEW -g NFQLB-STRAYS
-A NFQLB-SERVERS -s 10.0.0.11/32 -p tcp -m tcp --sport 8080 -m comment --comment web1 -g NFQLB-QUEUE
-A NFQLB-SERVERS -s 10.0.0.12/32 -p tcp -m tcp --sport 80 -m comment --comment web2 -g NFQLB-QUEUE
-A NFQLB-STRAYS -s 10.0.0.11/32 -p tcp -m tcp --sport 8080 -m comment --comment web1 -j DROP
-A NFQLB-STRAYS -s 10.0.0.12/32 -p tcp -m tcp --sport 80 -m comment --comment web2 -j DROP
-A NFQLB-OUTPUT -o eth0 -p icmp -j NFQLB-ERRORS
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 3 -g NFQLB-QUEUE
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 11 -g NFQLB-QUEUE
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 12 -g NFQLB-QUEUE
-A NFQLB-QUEUE -j NFQUEUE --queue-num 5
-I FORWARD 1 -j NFQLB-FORWARD
-I OUTPUT 1 -j NFQLB-OUTPUT
COMMIT
*raw
:NFQLB-PREROUTING - [0:0]
:NFQLB-OUTSIDE - [0:0]
:NFQLB-ERRORS - [0:0]
:NFQLB-QUEUE - [0:0]
-A NFQLB-PREROUTING -i eth0 -j NFQLB-OUTSIDE
-A NFQLB-OUTSIDE -d 192.0.2.100/32 -p tcp -m tcp --dport 80 -m comment --comment web -g NFQLB-QUEUE
-A NFQLB-OUTSIDE -d 192.0.2.100/32 -f -g NFQLB-QUEUE
-A NFQLB-OUTSIDE -d 192.0.2.100/32 -p icmp -j NFQLB-ERRORS
-A NFQLB-OUTSIDE -d 192.0.2.100/32 -p icmp -m icmp --icmp-type 8 -j RETURN
-A NFQLB-OUTSIDE -d 192.0.2.100/32 -j DROP
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 3 -g NFQLB-QUEUE
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 11 -g NFQLB-QUEUE
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 12 -g NFQLB-QUEUE
-A NFQLB-QUEUE -p tcp --tcp-flags SYN,ACK SYN -j NFQUEUE --queue-num 4
-A NFQLB-QUEUE -j NFQUEUE --queue-num 5
-I PREROUTING 1 -j NFQLB-PREROUTING
COMMIT
"""


def rules(text: str) -> list[str]:
    """What iptables-restore reads: no comments, no blank lines."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def section(text: str, start: str) -> list[str]:
    return [line for line in rules(text) if line.startswith(start)]


def test_the_rules_of_one_virtual_server_word_for_word() -> None:
    bundle = render(CONFIG)
    assert rules(bundle.ipv4) == RULES.splitlines()
    assert bundle.ipv6 == ""
    assert bundle.queues == (4, 5)


def test_no_rule_lets_packets_past_the_worker() -> None:
    """R001: every packet passes through it, or waits, or is lost."""
    for family in FAMILIES:
        text = render(mixed()).text(family)
        assert "NFQUEUE" in text
        assert not any("bypass" in rule for rule in rules(text))


def test_every_rule_has_its_reason_above_it() -> None:
    """A comment, then the rules it speaks of, in one paragraph; every paragraph with a rule has one."""
    for paragraph in render(CONFIG).ipv4.split("\n\n"):
        lines = paragraph.splitlines()
        if any(line.startswith(("-A", "-I")) for line in lines):
            assert lines[0].startswith("#"), paragraph


def test_the_way_out_is_there_before_the_way_in() -> None:
    """Tables are committed one after the other; whatever is let in needs its answer caught."""
    lines = rules(render(CONFIG).ipv4)
    assert lines.index("*mangle") < lines.index("COMMIT") < lines.index("*raw")


def test_other_ports_of_a_virtual_address_may_belong_to_the_host() -> None:
    gateway = replace(GATEWAY, other_ports="host")
    text = render(replace(CONFIG, gateway=gateway)).ipv4
    dropped = set(rules(render(CONFIG).ipv4)) - set(rules(text))
    assert dropped == {
        "-A NFQLB-OUTSIDE -d 192.0.2.100/32 -p icmp -m icmp --icmp-type 8 -j RETURN",
        "-A NFQLB-OUTSIDE -d 192.0.2.100/32 -j DROP",
    }
    assert "other_ports" not in text


def test_several_virtual_servers_on_one_address_share_its_drop_and_their_real_servers() -> None:
    """R009, R010: several ports of one address, a real server behind more than one virtual server."""
    tls = replace(WEB, name="tls", port=443, servers=(Server("web1", 8080), Server("web2", 443)))
    text = render(replace(CONFIG, virtuals=(WEB, tls))).ipv4
    inward = section(text, "-A NFQLB-OUTSIDE")
    assert [rule for rule in inward if rule.endswith("-j DROP")] == [inward[-1]]
    assert [rule.split("--comment ")[1] for rule in inward if "--dport" in rule] == [
        "web -g NFQLB-QUEUE",
        "tls -g NFQLB-QUEUE",
    ]
    assert [rule.split()[3] + " " + rule.split()[9] for rule in section(text, "-A NFQLB-SERVERS")] == [
        "10.0.0.11/32 8080",
        "10.0.0.12/32 80",
        "10.0.0.12/32 443",
    ]


def test_the_drops_stand_behind_the_virtual_servers_of_all_addresses() -> None:
    """R008: several virtual addresses."""
    other = replace(WEB, name="other", address=ip_address("192.0.2.101"))
    inward = section(render(replace(CONFIG, virtuals=(WEB, other))).ipv4, "-A NFQLB-OUTSIDE")
    drops = [place for place, rule in enumerate(inward) if rule.endswith("-j DROP")]
    assert len(drops) == 2
    assert min(drops) > max(place for place, rule in enumerate(inward) if rule.endswith("NFQLB-QUEUE"))


def test_a_virtual_server_on_every_port_matches_no_port() -> None:
    every = replace(WEB, port=None, servers=(Server("web1", None),))
    text = render(replace(CONFIG, virtuals=(every,))).ipv4
    assert "-A NFQLB-OUTSIDE -d 192.0.2.100/32 -p tcp -m comment --comment web -g NFQLB-QUEUE" in rules(text)
    assert section(text, "-A NFQLB-SERVERS") == [
        "-A NFQLB-SERVERS -s 10.0.0.11/32 -p tcp -m comment --comment web1 -g NFQLB-QUEUE"
    ]


def test_each_interface_is_named_once_in_each_direction() -> None:
    """R002, R003, R004: packets are told apart by the side they come from."""
    gateway = replace(GATEWAY, outside=("eth0", "ppp0.7"), inside=("eth1", "eth2"))
    text = render(replace(CONFIG, gateway=gateway)).ipv4
    assert section(text, "-A NFQLB-PREROUTING") == [
        "-A NFQLB-PREROUTING -i eth0 -j NFQLB-OUTSIDE",
        "-A NFQLB-PREROUTING -i ppp0.7 -j NFQLB-OUTSIDE",
    ]
    assert section(text, "-A NFQLB-FORWARD") == [
        "-A NFQLB-FORWARD -i eth1 -j NFQLB-INSIDE",
        "-A NFQLB-FORWARD -i eth2 -j NFQLB-INSIDE",
    ]
    assert len(section(text, "-A NFQLB-INSIDE")) == len(section(text, "-A NFQLB-OUTPUT")) == 2


def test_strays_are_a_matter_of_tcp() -> None:
    """A real server's own first datagram is new to conntrack as well, and must pass."""
    dns = replace(WEB, name="dns", protocol="udp", port=53, servers=(Server("web1", 53),))
    text = render(replace(CONFIG, virtuals=(dns,))).ipv4
    assert section(text, "-A NFQLB-STRAYS") == []
    assert section(text, "-A NFQLB-SERVERS") == [
        "-A NFQLB-SERVERS -s 10.0.0.11/32 -p udp -m udp --sport 53 -m comment --comment web1 -g NFQLB-QUEUE"
    ]


def mixed() -> Config:
    real = Real("six", ip_address("fd00::11"))
    six = Virtual("web6", ip_address("2001:db8::100"), (Server("six", 80),), port=80)
    return Config(GATEWAY, (WEB1, WEB2, real), (WEB, six))


def test_each_family_has_the_rules_of_its_own_addresses() -> None:
    bundle = render(mixed())
    assert rules(bundle.ipv4) == RULES.splitlines()
    assert "192.0.2.100" not in bundle.ipv6
    inward = section(bundle.text(IPV6), "-A NFQLB-OUTSIDE")
    assert inward == [
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -p tcp -m tcp --dport 80 -m comment --comment web6 "
        "-g NFQLB-QUEUE",
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -p ipv6-icmp -j NFQLB-ERRORS",
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j RETURN",
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j RETURN",
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j RETURN",
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -j DROP",
    ]


@pytest.mark.parametrize("name", ["eth+", "a b", 'e"th', "", "-j", "x\ny"])
def test_a_name_that_would_mean_something_to_iptables_is_refused(name: str) -> None:
    with pytest.raises(KernelError, match="cannot stand in an iptables rule"):
        render(replace(CONFIG, gateway=replace(GATEWAY, outside=(name,))))


def test_a_virtual_server_of_another_datapath_has_no_rules_here() -> None:
    assert render(replace(CONFIG, virtuals=(replace(WEB, datapath="offload"),))).ipv4 == ""


def test_the_template_is_found_and_has_a_line_for_its_reader() -> None:
    template = read_template("rewrite.rules")
    assert template.startswith("##")
    assert "##" not in render(CONFIG).text(IPV4)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("-A $unknown", KeyError),
        ("#for each nothing known\n#end", KeyError),
        ("#for each thing\n-A $thing", ValueError),
        ("#end", ValueError),
        ("#for each thing\n#for each thing\n#end\n#end", ValueError),
    ],
)
def test_a_template_with_a_mistake_is_refused(template: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        fill(template, {}, {"thing": [{"thing": "1"}]})


def test_a_block_writes_its_comment_once_and_its_rules_for_each() -> None:
    template = (
        "## note\n$a\n\n#for each x\n# why\n-A $a $x\n-B $x\n#end\n\n#for each y\n# why not\n-C\n#end\nend\n"
    )
    text = fill(template, {"a": "A"}, {"x": [{"x": "1"}, {"x": "2"}], "y": []})
    assert text == "A\n\n# why\n-A A 1\n-B 1\n-A A 2\n-B 2\n\nend\n"
