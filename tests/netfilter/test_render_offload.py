"""The rules of datapath offload as text, without a kernel."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest

from nfqlb.config.marks import LinkMarks
from nfqlb.config.numbers import idle_times, queue_numbers, tap_group
from nfqlb.core.spec import Config, Gateway, Real, Server, Timeouts, Virtual
from nfqlb.netfilter import render as rendering
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.render import FAMILIES, IPV4, join, read_template
from nfqlb.netfilter.render_offload import SAMPLES, policy_name
from nfqlb.netfilter.ruleset import parse
from nfqlb.netfilter.timeouts import wanted

render = partial(rendering.render, behind=False)  # what is behind has tests of its own

WEB1 = Real("web1", ip_address("10.0.0.11"))
WEB2 = Real("web2", ip_address("10.0.0.12"))
WEB = Virtual(
    "web", ip_address("192.0.2.100"), (Server("web1", 8080), Server("web2", 80)), port=80, datapath="offload"
)
CONFIG = Config(Gateway(outside=("eth0",), inside=("eth1",), queue=4), (WEB1, WEB2), (WEB,))
SIX = Virtual("six", ip_address("2001:db8::1"), (Server("v6", 80),), port=80, datapath="offload")
DNS = Virtual("dns", WEB.address, (Server("web1", 53),), protocol="udp", port=53, datapath="offload")
FAST = replace(WEB, name="fast", port=81, scheduler="fastest-response")
SLOW = Virtual("slow", WEB.address, (Server("web1", 443),), port=443)
EVENTS = "--ctevents new,destroy,reply,assured,protoinfo"

RULES = """\
*mangle
:NFQLB-O-PREROUTING - [0:0]
:NFQLB-O-FORWARD - [0:0]
:NFQLB-O-TO-CLIENTS - [0:0]
:NFQLB-O-ENDS - [0:0]
:NFQLB-O-ERRORS - [0:0]
:NFQLB-O-STRAYS - [0:0]
:NFQLB-O-INPUT - [0:0]
:NFQLB-O-MISSED - [0:0]
:NFQLB-O-OUTPUT - [0:0]
-A NFQLB-O-PREROUTING -i eth0 -p tcp -m tcp ! --tcp-flags FIN,RST NONE -j NFQLB-O-ENDS
-A NFQLB-O-ENDS -p tcp -m tcp --tcp-flags SYN SYN -m connmark ! --mark 0x0/0x7f0000 \
-j NFLOG --nflog-group 5 --nflog-size 96 --nflog-threshold 4
-A NFQLB-O-ENDS -p tcp -m tcp ! --tcp-flags SYN SYN -m connmark ! --mark 0x0/0x7f0000 \
-j NFLOG --nflog-group 5 --nflog-size 96 --nflog-threshold 64
-A NFQLB-O-FORWARD -i eth1 -o eth0 -j NFQLB-O-TO-CLIENTS
-A NFQLB-O-FORWARD -o eth1 -j RETURN
-A NFQLB-O-FORWARD -i eth0 -j NFQLB-O-MISSED
-A NFQLB-O-TO-CLIENTS -p tcp -m tcp --tcp-flags FIN,SYN,RST NONE -m conntrack --ctstate ESTABLISHED -j RETURN
-A NFQLB-O-TO-CLIENTS -p tcp -m tcp ! --tcp-flags FIN,SYN,RST NONE -j NFQLB-O-ENDS
-A NFQLB-O-TO-CLIENTS -p icmp -j NFQLB-O-ERRORS
-A NFQLB-O-TO-CLIENTS -m conntrack --ctstate NEW,INVALID,UNTRACKED -j NFQLB-O-STRAYS
-A NFQLB-O-ERRORS -s 192.0.2.100/32 -j RETURN
-A NFQLB-O-ERRORS -p icmp -m icmp --icmp-type 3 -m conntrack --ctstate INVALID -j DROP
-A NFQLB-O-ERRORS -p icmp -m icmp --icmp-type 11 -m conntrack --ctstate INVALID -j DROP
-A NFQLB-O-ERRORS -p icmp -m icmp --icmp-type 12 -m conntrack --ctstate INVALID -j DROP
-A NFQLB-O-ERRORS -p icmp -m icmp --icmp-type 3/4 -j RETURN
-A NFQLB-O-ERRORS -p icmp -m icmp --icmp-type 3 -m connmark ! --mark 0x0/0x7f0000 \
-m conntrack --ctproto 6 ! --ctstatus ASSURED \
-j NFLOG --nflog-group 5 --nflog-size 96 --nflog-threshold 64
-A NFQLB-O-ERRORS -p icmp -m icmp --icmp-type 3 -m connmark ! --mark 0x0/0x7f0000 \
-m conntrack --ctproto 6 ! --ctstatus ASSURED \
-j DROP
-A NFQLB-O-STRAYS -p tcp -m tcp --syn -m conntrack --ctstate NEW -j RETURN
-A NFQLB-O-STRAYS -p udp -m conntrack --ctstate NEW -j RETURN
-A NFQLB-O-STRAYS -s 10.0.0.11/32 -p tcp -m tcp --sport 8080 -m comment --comment web1 -j DROP
-A NFQLB-O-STRAYS -s 10.0.0.12/32 -p tcp -m tcp --sport 80 -m comment --comment web2 -j DROP
-A NFQLB-O-INPUT -i eth0 -j NFQLB-O-MISSED
-A NFQLB-O-MISSED -d 192.0.2.100/32 -p tcp -m tcp --dport 80 -m comment --comment web -j DROP
-A NFQLB-O-MISSED -d 192.0.2.100/32 -p icmp -m icmp --icmp-type 8 -j RETURN
-A NFQLB-O-MISSED -d 192.0.2.100/32 -j DROP
-A NFQLB-O-OUTPUT -o eth0 -p icmp -j NFQLB-O-ERRORS
-I PREROUTING 1 -j NFQLB-O-PREROUTING
-I INPUT 1 -j NFQLB-O-INPUT
-I FORWARD 1 -j NFQLB-O-FORWARD
-I OUTPUT 1 -j NFQLB-O-OUTPUT
COMMIT
*nat
:NFQLB-O-PREROUTING - [0:0]
:NFQLB-O-LINKS - [0:0]
:NFQLB-O-FALLBACK - [0:0]
-A NFQLB-O-PREROUTING -i eth0 -m mark ! --mark 0x0/0x7f0000 -j NFQLB-O-LINKS
-A NFQLB-O-PREROUTING -i eth0 -p tcp -m tcp ! --syn -j RETURN
-A NFQLB-O-PREROUTING -i eth0 -m mark --mark 0x0/0x7f0000 -j NFQLB-O-FALLBACK
-A NFQLB-O-LINKS -j CONNMARK --save-mark --nfmask 0xff0000 --ctmask 0xff0000
-A NFQLB-O-LINKS -p tcp -m mark --mark 0x20000/0x7f0000 -m comment --comment web1 \
-j DNAT --to-destination 10.0.0.11:8080
-A NFQLB-O-LINKS -p tcp -m mark --mark 0x30000/0x7f0000 -m comment --comment web2 \
-j DNAT --to-destination 10.0.0.12:80
-A NFQLB-O-FALLBACK -m mark ! --mark 0x0/0x7f0000 -g NFQLB-O-LINKS
-I PREROUTING 1 -j NFQLB-O-PREROUTING
COMMIT
*raw
:NFQLB-O-PREROUTING - [0:0]
:NFQLB-O-SYNS - [0:0]
:NFQLB-O-TRACK - [0:0]
:NFQLB-O-QUEUE - [0:0]
-A NFQLB-O-PREROUTING -i eth0 -p tcp -m tcp --syn -j NFQLB-O-SYNS
-A NFQLB-O-SYNS -m mark ! --mark 0x0/0x7f0000 -g NFQLB-O-TRACK
-A NFQLB-O-SYNS -d 192.0.2.100/32 -p tcp -m tcp --dport 80 -m comment --comment web -g NFQLB-O-QUEUE
-A NFQLB-O-TRACK -p tcp -j CT --timeout nqt0 --ctevents new,destroy,reply,assured,protoinfo
-A NFQLB-O-QUEUE -j NFQUEUE --queue-num 4 --queue-bypass
-I PREROUTING 1 -j NFQLB-O-PREROUTING
COMMIT
"""


def rules(text: str) -> list[str]:
    """What iptables-restore reads: no comments, no blank lines."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def of(virtual: Virtual, *others: Virtual, **changes: object) -> Config:
    reals = (*CONFIG.reals, Real("v6", ip_address("fd00::11")))
    gateway = replace(CONFIG.gateway, **changes)  # type: ignore[arg-type]  # by name
    return replace(CONFIG, gateway=gateway, reals=reals, virtuals=(virtual, *others))


TOLD = replace(WEB, reject="reset")
EVERYTHING = of(TOLD, SIX, DNS, FAST, SLOW, secure=True)


def test_the_rules_of_one_virtual_server_word_for_word() -> None:
    bundle = render(CONFIG)
    assert rules(bundle.ipv4) == RULES.splitlines()
    assert bundle.ipv6 == ""
    assert bundle.queues == (4,)


def test_every_rule_has_its_reason_above_it() -> None:
    for family in FAMILIES:
        for paragraph in render(EVERYTHING).text(family).split("\n\n"):
            lines = paragraph.splitlines()
            if any(line.startswith(("-A", "-I")) for line in lines):
                assert lines[0].startswith("#"), paragraph


def test_each_built_in_chain_has_one_jump_of_a_datapath() -> None:
    for family in FAMILIES:
        for table in parse(render(EVERYTHING).text(family)).values():
            links = [chain for chain, _ in table.links]
            mixed = family is IPV4
            assert all(links.count(chain) <= 1 + mixed for chain in links)


def test_every_chain_that_is_led_to_is_there_and_none_is_idle() -> None:
    for config in (CONFIG, EVERYTHING, of(SIX), of(DNS), of(FAST)):
        for family in FAMILIES:
            for table in parse(render(config).text(family)).values():
                led = {
                    match for rules in table.chains.values() for rule in rules
                    for match in re.findall(r"-[jg] (NFQLB-\S+)", rule)
                }  # fmt: skip
                idle = table.own.keys() - led - {"NFQLB-O-QUEUE", "NFQLB-O-TRACK", "NFQLB-O-ERRORS"}
                assert led <= table.own.keys()
                assert not idle


def test_no_packet_gets_by_where_a_worker_is_missing_unless_the_kernel_may_go_on_alone() -> None:
    """F37: of datapath rewrite none ever does."""
    without = replace(EVERYTHING, gateway=replace(EVERYTHING.gateway, fallback=False))
    for family in FAMILIES:
        text = "".join(rules(render(without).text(family)))
        assert "bypass" not in text
        assert "FALLBACK" not in text
        queued = [line for line in rules(render(EVERYTHING).text(family)) if "-j NFQUEUE" in line]
        for line in queued:
            assert line.endswith("--queue-bypass") == line.startswith("-A NFQLB-O-")


def test_the_tap_of_data_is_for_schedulers_that_use_it() -> None:
    """R173."""
    assert "bpf" not in render(of(WEB)).ipv4
    both = render(of(WEB, FAST)).ipv4
    timed = [line for line in rules(both) if "-g NFQLB-O-REQUEST" in line]
    assert timed
    assert all(f"-m limit --limit {SAMPLES}/sec --limit-burst {SAMPLES} " in line for line in timed)
    marks = LinkMarks(of(WEB, FAST))
    value, mask = marks.timed
    assert f"--mark {value:#x}/{mask | marks.armed:#x}" in both
    assert f"--mark {value | marks.armed:#x}/{mask | marks.armed:#x}" in both


@pytest.mark.parametrize(
    ("version", "packet", "data"),
    [
        (4, bytes((0x45,)) + bytes(31) + bytes((0x50,)) + bytes(7), 0),
        (4, bytes((0x45,)) + bytes(31) + bytes((0x80,)) + bytes(19), 0),
        (4, bytes((0x45,)) + bytes(31) + bytes((0x80,)) + bytes(19) + b"x", 1),
        (4, bytes((0x4F,)) + bytes(71) + bytes((0xF0,)) + bytes(47) + b"four", 4),
        (6, bytes((0x60,)) + bytes(51) + bytes((0x50,)) + bytes(7), 0),
        (6, bytes((0x60,)) + bytes(51) + bytes((0xF0,)) + bytes(47) + b"x", 1),
    ],
)
def test_the_filter_in_the_rule_measures_the_payload(version: int, packet: bytes, data: int) -> None:
    """Run here by the few instructions of BPF that it uses; the kernel's word is in tests/netns."""
    config = replace(of(FAST, replace(SIX, scheduler="fastest-response")))
    text = render(config).text(FAMILIES[version == 6])
    (program,) = set(re.findall(r'--bytecode "([^"]*)"', text))
    assert run_bpf(program, packet) == data


def run_bpf(program: str, packet: bytes) -> int:
    """What a program of xt_bpf returns for a packet."""
    size, *lines = program.split(",")
    assert int(size) == len(lines)
    state = {"a": 0, "x": 0}
    steps: dict[int, Callable[[int], dict[str, int]]] = {
        0xB1: lambda k: {"x": 4 * (packet[k] & 0xF)},
        0x30: lambda k: {"a": packet[k]},
        0x50: lambda k: {"a": packet[state["x"] + k]},
        0x54: lambda k: {"a": state["a"] & k},
        0x74: lambda k: {"a": state["a"] >> k},
        0x04: lambda k: {"a": state["a"] + k},
        0x0C: lambda k: {"a": state["a"] + state["x"]},
        0x07: lambda k: {"x": state["a"]},
        0x80: lambda k: {"a": len(packet)},
        0x1C: lambda k: {"a": state["a"] - state["x"]},
    }
    *most, last = (list(map(int, line.split())) for line in lines)
    for code, _, _, k in most:
        state |= steps[code](k)
    assert last[0] == 0x16  # return the accumulator
    return state["a"]


def test_many_links_are_looked_up_in_a_tree() -> None:
    """Every link's rule stands in the one chain that its own mark leads to."""
    servers = tuple(Server("web1", 1000 + offset) for offset in range(100))
    config = of(replace(WEB, servers=servers))
    marks = LinkMarks(config)
    nat = parse(render(config).ipv4)["nat"]
    gates = [
        (int(value, 16), int(mask, 16), chain)
        for rule in nat.chains["NFQLB-O-LINKS"]
        for value, mask, chain in re.findall(r"--mark (\w+)/(\w+) -g (\S+)", rule)
    ]
    assert 1 < len(gates) <= 8
    for server in servers:
        mark = marks.of(config.virtuals[0], server)
        (chain,) = (name for value, mask, name in gates if mark & mask == value)
        assert len(nat.chains[chain]) <= 32
        (rule,) = (rule for rule in nat.chains[chain] if f"--mark {mark:#x}/" in rule)
        assert rule.endswith(f"--to-destination 10.0.0.11:{server.port}")


def test_each_real_server_keeps_its_idle_time_out() -> None:
    """R046: the general one, and others by link. The policies that are named are those that are made."""
    config = replace(
        of(WEB, SIX, DNS),
        reals=(WEB1, replace(WEB2, idle_timeout=60.2), Real("v6", ip_address("fd00::11"))),
        timeouts=Timeouts(idle=3600.0, half_open=30.0, closing=0.4, udp=20.0),
    )
    mark = LinkMarks(config).of(WEB, WEB.servers[1])
    text = render(config).ipv4
    assert f"-p tcp -m mark --mark {mark:#x}/0x7f0000 -j CT --timeout nqt1 {EVENTS}" in text
    assert idle_times(config) == [3600, 61]
    policies = wanted(config)
    named = {
        name for family in FAMILIES for name in re.findall(r"--timeout (\w+)", render(config).text(family))
    }
    assert named <= policies.keys() == {"nqt0", "nqt1", "nqu0", "nqT0", "nqT1"}
    assert policies["nqt1"].seconds == {
        1: 30, 2: 30, 9: 30, 3: 61, 4: 61, 5: 61, 10: 61, 11: 61, 6: 1, 7: 1, 8: 1,
    }  # fmt: skip
    assert policies["nqu0"].seconds == {1: 20, 2: 20}
    assert wanted(of(SLOW)) == {}


def test_names_of_time_outs_are_short_enough_to_be_shown_whole() -> None:
    names = {
        policy_name(version, protocol, index)
        for version in (4, 6)
        for protocol in ("tcp", "udp")
        for index in range(62)
    }
    assert len(names) == 4 * 62
    assert {len(name) for name in names} == {4}
    with pytest.raises(KernelError, match="62 different idle_timeouts"):
        policy_name(4, "tcp", 62)


def test_a_kernel_without_such_time_outs_gets_rules_without() -> None:
    text = render(of(WEB, DNS), policies=False).ipv4
    assert "--timeout" not in text
    assert text.count(f"-j CT {EVENTS}") == 2


def test_both_datapaths_share_tables_and_not_queues() -> None:
    text = render(of(WEB, SLOW)).ipv4
    assert [line for line in text.splitlines() if line.startswith("*")] == ["*mangle", "*nat", "*raw"]
    assert text.count("COMMIT") == 3
    assert queue_numbers(of(WEB, SLOW)) == (4, 5, 6)
    assert tap_group(CONFIG) == 5
    raw = parse(text)["raw"]
    assert [rule for _, rule in raw.links] == ["-j NFQLB-O-PREROUTING", "-j NFQLB-PREROUTING"]
    passed, taken = (
        [number for number, rule in enumerate(raw.chains["NFQLB-OUTSIDE"]) if name in rule]
        for name in ("--comment web ", "--comment slow ")
    )
    assert passed < taken
    assert "-j RETURN" in raw.chains["NFQLB-OUTSIDE"][passed[0]]
    mangle = parse(text)["mangle"]
    assert parse(render(of(FAST, SLOW)).ipv4)["mangle"].chains["NFQLB-O-ANSWER"][0] == (
        "-m connmark --mark 0xff0000/0xff0000 -j RETURN"
    )
    assert mangle.chains["NFQLB-O-ENDS"][:2] == (
        "-m connmark --mark 0xff0000/0xff0000 -j RETURN",
        "-m connmark --mark 0x10000/0xff0000 -j RETURN",
    )


def test_another_address_of_datapath_rewrite_is_not_touched() -> None:
    text = render(of(WEB, replace(SLOW, address=ip_address("192.0.2.101")))).ipv4
    assert not any("RETURN" in rule and "web" in rule for rule in parse(text)["raw"].chains["NFQLB-OUTSIDE"])


def test_a_joined_text_loses_nothing() -> None:
    one, other = render(of(WEB)).ipv4, render(of(SLOW)).ipv4
    joined = join([other, one])
    lines = [line for text in (one, other) for line in text.splitlines() if line not in ("", "COMMIT")]
    assert set(lines) <= set(joined.splitlines())
    assert len([line for line in joined.splitlines() if line not in ("", "COMMIT")]) == len(lines) - 3
    assert join([one]) == one
    assert join([]) == ""


def test_more_links_than_the_mask_has_are_refused() -> None:
    servers = tuple(Server("web1", port) for port in range(1, 200))
    with pytest.raises(KernelError, match="199 links do not fit into 0x00ff0000"):
        render(of(replace(WEB, servers=servers)))


def test_only_bits_of_the_mask_are_written() -> None:
    for mask in (0xFF0000, 0xFFFF, 0xFF000000, 0xFFFFFFFF):
        text = render(of(WEB, FAST, mark_mask=mask)).ipv4
        for value, bits in re.findall(r"--set-xmark (\w+)/(\w+)", text):
            assert int(value, 16) & ~mask == int(bits, 16) & ~mask == 0
        assert set(re.findall(r"mask (0x\w+)", text)) == {f"{mask:#x}"}


@pytest.mark.parametrize(
    ("limits", "threshold"),
    [((5, 5), 4), ((5, 3), 2), ((1, 9), 1), ((0, 9), 8), ((0, 0), 64), ((999, 0), 64)],
)
def test_answers_are_told_before_so_many_wait_that_a_server_looks_silent(
    limits: tuple[int, int], threshold: int
) -> None:
    """R183: a server with as many unanswered SYNs as its limit is passed over."""
    reals = tuple(
        replace(real, syn_limit=limit) for real, limit in zip(CONFIG.reals, limits, strict=True)
    )
    text = render(replace(CONFIG, reals=reals)).ipv4
    (rule,) = [line for line in rules(text) if "-m tcp --tcp-flags SYN SYN" in line]
    assert rule.endswith(f"--nflog-threshold {threshold}")


def test_a_reset_needs_the_one_table_that_may() -> None:
    assert "*filter" not in render(of(WEB)).ipv4
    for virtual in (TOLD, replace(WEB, on_failure="reset")):
        assert render(of(virtual)).ipv4 == render(of(TOLD)).ipv4
    text = render(of(TOLD, replace(DNS, reject="reset"))).ipv4
    assert "-d 192.0.2.100/32 -p tcp -m tcp --dport 80 -m comment --comment web -g NFQLB-O-TOLD" in text
    told = parse(text)["filter"].chains["NFQLB-O-TOLD"]
    assert [rule.partition("-j ")[2].split()[0] for rule in told] == ["REJECT", "DROP"]
    mangle = parse(text)["mangle"].chains["NFQLB-O-MISSED"]
    assert [rule.rsplit(" ", 1)[1] for rule in mangle[:2]] == ["RETURN", "DROP"]


def test_the_template_is_found_and_has_a_line_for_its_reader() -> None:
    assert read_template("offload.rules").startswith("##")
    assert "##" not in render(CONFIG).ipv4
