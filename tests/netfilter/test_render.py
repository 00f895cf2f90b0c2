"""The rule bundle as text, without a kernel."""

import re
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter import render as rendering
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.render import FAMILIES, IPV4, IPV6, fill, read_template

render = partial(rendering.render, behind=False)  # what is behind has tests of its own

GATEWAY = Gateway(outside=("eth0",), inside=("eth1",), queue=4)
WEB1 = Real("web1", ip_address("10.0.0.11"))
WEB2 = Real("web2", ip_address("10.0.0.12"))
WEB = Virtual("web", ip_address("192.0.2.100"), (Server("web1", 8080), Server("web2", 80)), port=80)
CONFIG = Config(GATEWAY, (WEB1, WEB2), (WEB,))

RULES = """\
*mangle
:NFQLB-PREROUTING - [0:0]
:NFQLB-OUTSIDE - [0:0]
:NFQLB-JUDGED - [0:0]
:NFQLB-DIRECT - [0:0]
:NFQLB-FORWARD - [0:0]
:NFQLB-INSIDE - [0:0]
:NFQLB-TO-CLIENTS - [0:0]
:NFQLB-SERVERS - [0:0]
:NFQLB-STRAYS - [0:0]
:NFQLB-OUTPUT - [0:0]
:NFQLB-ERRORS - [0:0]
:NFQLB-QUEUE - [0:0]
-A NFQLB-PREROUTING -i eth0 -j NFQLB-OUTSIDE
-A NFQLB-OUTSIDE -m mark --mark 0xff0000/0xff0000 -g NFQLB-JUDGED
-A NFQLB-OUTSIDE -m conntrack --ctstate NEW,UNTRACKED -j NFQLB-DIRECT
-A NFQLB-JUDGED -m connmark --mark 0x0/0xff0000 -j CONNMARK --save-mark --nfmask 0xff0000 --ctmask 0xff0000
-A NFQLB-DIRECT -d 10.0.0.11/32 -p tcp -m tcp --dport 8080 -m comment --comment web1 \
-j CONNMARK --set-xmark 0x10000/0xff0000
-A NFQLB-DIRECT -d 10.0.0.12/32 -p tcp -m tcp --dport 80 -m comment --comment web2 \
-j CONNMARK --set-xmark 0x10000/0xff0000
-A NFQLB-FORWARD -i eth1 -j NFQLB-INSIDE
-A NFQLB-INSIDE -o eth0 -j NFQLB-TO-CLIENTS
-A NFQLB-TO-CLIENTS -p icmp -j NFQLB-ERRORS
-A NFQLB-TO-CLIENTS -m connmark --mark 0xff0000/0xff0000 -m conntrack ! --ctstatus EXPECTED -g NFQLB-QUEUE
-A NFQLB-TO-CLIENTS -m connmark --mark 0x0/0xff0000 -m conntrack --ctdir REPLY -g NFQLB-SERVERS
-A NFQLB-TO-CLIENTS -m conntrack --ctstate INVALID,UNTRACKED -g NFQLB-SERVERS
-A NFQLB-TO-CLIENTS -p tcp ! --syn -m conntrack --ctstate NEW -g NFQLB-STRAYS
-A NFQLB-SERVERS -s 10.0.0.11/32 -p tcp -m tcp --sport 8080 -m comment --comment web1 -g NFQLB-QUEUE
-A NFQLB-SERVERS -s 10.0.0.12/32 -p tcp -m tcp --sport 80 -m comment --comment web2 -g NFQLB-QUEUE
-A NFQLB-STRAYS -s 10.0.0.11/32 -p tcp -m tcp --sport 8080 -m comment --comment web1 \
-j CONNMARK --set-xmark 0xff0000/0xff0000
-A NFQLB-STRAYS -s 10.0.0.12/32 -p tcp -m tcp --sport 80 -m comment --comment web2 \
-j CONNMARK --set-xmark 0xff0000/0xff0000
-A NFQLB-STRAYS -m connmark --mark 0xff0000/0xff0000 -g NFQLB-QUEUE
-A NFQLB-OUTPUT -o eth0 -p icmp -j NFQLB-ERRORS
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 3 -g NFQLB-QUEUE
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 11 -g NFQLB-QUEUE
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 12 -g NFQLB-QUEUE
-A NFQLB-QUEUE -p tcp -m tcp --tcp-flags SYN,RST SYN -m tcpmss --mss 65412:65535 -j TCPMSS --set-mss 65411
-A NFQLB-QUEUE -j NFQUEUE --queue-num 5
-I PREROUTING 1 -j NFQLB-PREROUTING
-I FORWARD 1 -j NFQLB-FORWARD
-I OUTPUT 1 -j NFQLB-OUTPUT
COMMIT
*nat
:NFQLB-POSTROUTING - [0:0]
-A NFQLB-POSTROUTING -o eth0 -m connmark --mark 0xff0000/0xff0000 -j ACCEPT
-I POSTROUTING 1 -j NFQLB-POSTROUTING
COMMIT
*raw
:NFQLB-PREROUTING - [0:0]
:NFQLB-OUTSIDE - [0:0]
:NFQLB-ERRORS - [0:0]
:NFQLB-QUEUE - [0:0]
:NFQLB-SYNS - [0:0]
-A NFQLB-PREROUTING -i eth0 -j NFQLB-OUTSIDE
-A NFQLB-OUTSIDE -d 192.0.2.100/32 -p tcp -m tcp --dport 80 -m comment --comment web -g NFQLB-QUEUE
-A NFQLB-OUTSIDE -d 192.0.2.100/32 -f -g NFQLB-QUEUE
-A NFQLB-OUTSIDE -d 192.0.2.100/32 -p icmp -j NFQLB-ERRORS
-A NFQLB-OUTSIDE -d 192.0.2.100/32 -p icmp -m icmp --icmp-type 8 -j RETURN
-A NFQLB-OUTSIDE -d 192.0.2.100/32 -j DROP
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 3 -g NFQLB-QUEUE
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 11 -g NFQLB-QUEUE
-A NFQLB-ERRORS -p icmp -m icmp --icmp-type 12 -g NFQLB-QUEUE
-A NFQLB-QUEUE -j MARK --set-xmark 0xff0000/0xff0000
-A NFQLB-QUEUE -p tcp -m tcp --tcp-flags SYN,ACK SYN -g NFQLB-SYNS
-A NFQLB-QUEUE -j NFQUEUE --queue-num 5
-A NFQLB-SYNS -p tcp -m tcp --tcp-flags SYN,RST SYN -m tcpmss --mss 65412:65535 -j TCPMSS --set-mss 65411
-A NFQLB-SYNS -j NFQUEUE --queue-num 4
-I PREROUTING 1 -j NFQLB-PREROUTING
COMMIT
"""


SECURE = replace(CONFIG, gateway=replace(GATEWAY, secure=True))


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
    assert section(text, "-A NFQLB-DIRECT") == [
        "-A NFQLB-DIRECT -d 10.0.0.11/32 -p tcp -m comment --comment web1 "
        "-j CONNMARK --set-xmark 0x10000/0xff0000"
    ]


def test_backups_have_the_rules_of_servers_word_for_word() -> None:
    """R027, R047: on the port of the server they stand for; a virtual server's own on the clients' port."""
    web3 = Real("web3", ip_address("10.0.0.13"))
    reals = (replace(WEB1, backup="web2"), replace(WEB2, backup="web3"), web3)
    web = replace(WEB, servers=(Server("web1", 8080),), backup="web3")
    config = replace(CONFIG, reals=reals, virtuals=(web,))
    text = render(config).ipv4
    places = [("10.0.0.11", 8080, "web1"), ("10.0.0.12", 8080, "web2"), ("10.0.0.13", 8080, "web3")]
    places.append(("10.0.0.13", 80, "web3"))
    assert section(text, "-A NFQLB-SERVERS") == [
        f"-A NFQLB-SERVERS -s {address}/32 -p tcp -m tcp --sport {port} -m comment --comment {name} "
        "-g NFQLB-QUEUE"
        for address, port, name in places
    ]
    assert section(text, "-A NFQLB-STRAYS")[:-1] == [
        f"-A NFQLB-STRAYS -s {address}/32 -p tcp -m tcp --sport {port} -m comment --comment {name} "
        "-j CONNMARK --set-xmark 0xff0000/0xff0000"
        for address, port, name in places
    ]
    assert section(text, "-A NFQLB-DIRECT") == [
        f"-A NFQLB-DIRECT -d {address}/32 -p tcp -m tcp --dport {port} -m comment --comment {name} "
        "-j CONNMARK --set-xmark 0x10000/0xff0000"
        for address, port, name in places
    ]
    secure = replace(config, gateway=replace(GATEWAY, secure=True))
    assert section(render(secure).ipv4, "-A NFQLB-DIRECT") == [
        f"-A NFQLB-DIRECT -d 10.0.0.1{n}/32 -m comment --comment web{n} -j DROP" for n in (1, 2, 3)
    ]


def test_each_interface_is_named_once_in_each_direction() -> None:
    """R002, R003, R004: packets are told apart by the side they come from."""
    gateway = replace(GATEWAY, outside=("eth0", "ppp0.7"), inside=("eth1", "eth2"))
    text = render(replace(CONFIG, gateway=gateway)).ipv4
    arriving = [
        "-A NFQLB-PREROUTING -i eth0 -j NFQLB-OUTSIDE",
        "-A NFQLB-PREROUTING -i ppp0.7 -j NFQLB-OUTSIDE",
    ]
    assert section(text, "-A NFQLB-PREROUTING") == arriving * 2  # in mangle and in raw
    assert section(text, "-A NFQLB-FORWARD") == [
        "-A NFQLB-FORWARD -i eth1 -j NFQLB-INSIDE",
        "-A NFQLB-FORWARD -i eth2 -j NFQLB-INSIDE",
    ]
    assert len(section(text, "-A NFQLB-INSIDE")) == len(section(text, "-A NFQLB-OUTPUT")) == 2


def test_strays_are_a_matter_of_tcp() -> None:
    """A real server's own first datagram is new to conntrack as well, and must pass."""
    dns = replace(WEB, name="dns", protocol="udp", port=53, servers=(Server("web1", 53),))
    text = render(replace(CONFIG, virtuals=(dns,))).ipv4
    assert not any("-s 10.0.0" in rule for rule in section(text, "-A NFQLB-STRAYS"))
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
    raw = bundle.text(IPV6).partition("*raw")[2]
    assert section(raw, "-A NFQLB-OUTSIDE") == [
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -p tcp -m tcp --dport 80 -m comment --comment web6 "
        "-g NFQLB-QUEUE",
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -p ipv6-icmp -j NFQLB-ERRORS",
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j RETURN",
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j RETURN",
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j RETURN",
        "-A NFQLB-OUTSIDE -d 2001:db8::100/128 -j DROP",
    ]
    assert section(raw, "-A NFQLB-ERRORS") == [
        f"-A NFQLB-ERRORS -p ipv6-icmp -m icmp6 --icmpv6-type {kind} -g NFQLB-QUEUE" for kind in (1, 2, 3, 4)
    ]


def test_a_udp_virtual_server_differs_in_its_matches_alone() -> None:
    """A20, R011: no SYN, no stray, but marks and queue as for TCP."""
    servers = (Server("web1", 5353), Server("web2", 53))
    dns = replace(WEB, name="dns", protocol="udp", port=53, servers=servers)
    text = render(replace(CONFIG, virtuals=(dns,))).ipv4
    raw = text.partition("*raw")[2]
    assert section(raw, "-A NFQLB-OUTSIDE")[0] == (
        "-A NFQLB-OUTSIDE -d 192.0.2.100/32 -p udp -m udp --dport 53 -m comment --comment dns -g NFQLB-QUEUE"
    )
    assert section(text, "-A NFQLB-DIRECT")[0] == (
        "-A NFQLB-DIRECT -d 10.0.0.11/32 -p udp -m udp --dport 5353 -m comment --comment web1 "
        "-j CONNMARK --set-xmark 0x10000/0xff0000"
    )
    changed = {"-A NFQLB-DIRECT", "-A NFQLB-SERVERS", "-A NFQLB-STRAYS", "-A NFQLB-OUTSIDE"}
    others = [rule for rule in rules(text) if " ".join(rule.split()[:2]) not in changed]
    assert others == [rule for rule in RULES.splitlines() if " ".join(rule.split()[:2]) not in changed]


def test_where_secure_is_set_the_real_servers_are_guarded_and_nothing_else_changes() -> None:
    """R015: each real server once, whatever protocol, whatever port."""
    tls = replace(WEB, name="tls", port=443, servers=(Server("web1", 443),))
    text = render(replace(SECURE, virtuals=(WEB, tls))).ipv4
    assert section(text, "-A NFQLB-DIRECT") == [
        "-A NFQLB-DIRECT -d 10.0.0.11/32 -m comment --comment web1 -j DROP",
        "-A NFQLB-DIRECT -d 10.0.0.12/32 -m comment --comment web2 -j DROP",
    ]
    secure, open_ = (
        [rule for rule in rules(render(config).ipv4) if not rule.startswith("-A NFQLB-DIRECT")]
        for config in (SECURE, CONFIG)
    )
    assert secure == open_


def test_a_real_server_that_serves_nobody_is_nobodys_business() -> None:
    idle = replace(SECURE, reals=(*SECURE.reals, Real("idle", ip_address("10.0.0.99"))))
    assert "10.0.0.99" not in render(idle).ipv4


@pytest.mark.parametrize(
    ("mask", "judged", "direct"),
    [
        (0x00FF0000, "0xff0000/0xff0000", "0x10000/0xff0000"),
        (0x3, "0x3/0x3", "0x1/0x3"),
        (0xC0000000, "0xc0000000/0xc0000000", "0x40000000/0xc0000000"),
        (0xFFFFFFFF, "0xffffffff/0xffffffff", "0x1/0xffffffff"),
    ],
)
def test_no_rule_touches_a_bit_outside_the_mask(mask: int, judged: str, direct: str) -> None:
    text = render(replace(CONFIG, gateway=replace(GATEWAY, mark_mask=mask))).ipv4
    written = set(re.findall(r"-j (?:CONN)?MARK (.*)", text))
    assert written == {
        f"--set-xmark {judged}",
        f"--set-xmark {direct}",
        f"--save-mark --nfmask {mask:#x} --ctmask {mask:#x}",
    }
    assert set(re.findall(r"--mark (\S+)", text)) == {judged, f"0x0/{mask:#x}"}


def test_the_segment_size_is_bounded_just_before_each_queue() -> None:
    """Above what a queue carries, all headers included, in both families and on both ways."""
    for family, largest in ((IPV4, 65411), (IPV6, 65431)):
        lines = rules(render(mixed()).text(family))
        bounds = [number for number, rule in enumerate(lines) if "TCPMSS" in rule]
        assert len(bounds) == 2
        for number in bounds:
            assert lines[number].endswith(
                f"-m tcpmss --mss {largest + 1}:65535 -j TCPMSS --set-mss {largest}"
            )
            assert "-j NFQUEUE" in lines[number + 1]


@pytest.mark.parametrize("name", ["eth+", "a b", 'e"th', "", "-j", "x\ny"])
def test_a_name_that_would_mean_something_to_iptables_is_refused(name: str) -> None:
    with pytest.raises(KernelError, match="cannot stand in an iptables rule"):
        render(replace(CONFIG, gateway=replace(GATEWAY, outside=(name,))))


def test_a_virtual_server_of_another_datapath_has_no_rules_here() -> None:
    text = render(replace(CONFIG, virtuals=(replace(WEB, datapath="offload"),))).ipv4
    assert not re.search(r"NFQLB-(?!O-)", text)


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
