"""The doctor's judgement: one thing wrong, one finding that names it and says what to do."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.basechains import BaseChain
from nfqlb.netfilter.diagnosis import diagnose
from nfqlb.netfilter.facts import Facts, Interface, InterfaceAddress, Route
from nfqlb.netfilter.host import Finding
from nfqlb.netfilter.queue_status import QueueStatus
from nfqlb.netfilter.ruleset import parse
from nfqlb.netfilter.vitals import Vitals

VIP, WEB = ip_address("192.0.2.100"), ip_address("10.0.0.1")
CONFIG = Config(
    Gateway(("eth0",), ("eth1",), max_connections=1000),
    (Real("web1", WEB),),
    (Virtual("shop", VIP, (Server("web1", 8080),), port=80),),
)
FACTS = Facts(
    interfaces={"eth0": Interface("eth0", 1, True, 1500), "eth1": Interface("eth1", 2, True, 1500)},
    addresses=(
        InterfaceAddress("eth0", ip_interface("192.0.2.1/24")),
        InterfaceAddress("eth0", ip_interface(f"{VIP}/32"), ours=True),
        InterfaceAddress("eth1", ip_interface("10.0.0.254/24")),
    ),
    routes={WEB: Route("eth1")},
)
EMPTY = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"


def well(running: bool = True) -> Vitals:
    return Vitals(
        running=running, differences=[] if running else None, tables={"iptables": parse(EMPTY)},
        features={"eth0": {"rx-gro": True}, "eth1": {"rx-gro": True}}, drivers={"eth0": "igb", "eth1": "igb"},
        cables={"eth0": True, "eth1": True}, tracked=(10, 262144, 0), synchronised=True,
        macs={WEB: "02:00:00:00:00:01"}, ports={(WEB, 8080): ""}, files=1024, memory=1 << 34,
    )  # fmt: skip


def found(vitals: Vitals, facts: Facts = FACTS, config: Config = CONFIG) -> list[Finding]:
    return [each for each in diagnose(config, facts, vitals) if each.level != "ok"]


def only(vitals: Vitals, facts: Facts = FACTS, config: Config = CONFIG) -> Finding:
    (finding,) = found(vitals, facts, config)
    assert finding.advice
    return finding


def rules(text: str) -> Vitals:
    vitals = well()
    vitals.tables = {"iptables": parse(text)}
    return vitals


@pytest.mark.parametrize("running", [True, False])
def test_where_all_is_well_every_area_says_so(running: bool) -> None:
    rows = diagnose(CONFIG, FACTS, well(running))
    assert {row.level for row in rows} == {"ok"}
    areas = [row.area for row in rows]
    assert len(set(areas)) == len(areas)
    assert {"rules", "firewall", "neighbours", "servers", "addresses", "clock", "conntrack"} <= set(areas)


def test_without_a_configuration_the_machine_alone_is_looked_at() -> None:
    bare = Vitals(False, tracked=(0, 0, 0), synchronised=True, files=1024, memory=1)
    assert found(bare, Facts({}), Config(Gateway((), ()), (), ())) == []


def test_who_has_no_rights_is_told_what_was_not_looked_at() -> None:
    """Once; and of what he cannot see nobody says that it is well. What he sees is judged as ever."""
    vitals, facts = well(running=False), replace(FACTS, net_admin=False)
    vitals.unseen = {"firewall": "not for you", "neighbours": "not for you"}
    finding = only(vitals, facts)
    assert (finding.level, finding.area) == ("unseen", "rights")
    fine = {each.area for each in diagnose(CONFIG, facts, vitals) if each.level == "ok"}
    assert fine & {"rights", "alone", "rules", "firewall", "addresses", "neighbours"} == set()
    assert {"interfaces", "routes", "servers", "conntrack", "limits"} <= fine
    vitals.ports = {(WEB, 8080): "Connection refused"}
    assert [each.area for each in found(vitals, facts)] == ["rights", "servers"]


def test_forwarding_that_is_off() -> None:
    vitals = well()
    vitals.forwarding = {"net/ipv4/conf/eth1.7/forwarding": "0"}
    finding = only(vitals)
    assert (finding.level, finding.area) == ("error", "forwarding")
    assert finding.what == "IPv4 is not forwarded from eth1.7"
    assert finding.advice == "sysctl net.ipv4.conf.eth1/7.forwarding=1"
    vitals.running, vitals.differences = False, None
    assert found(vitals) == []


def test_rules_that_are_not_as_meant() -> None:
    vitals = well()
    vitals.differences = ["iptables raw PREROUTING: the jump is missing: -j NFQLB-PREROUTING", "another"]
    finding = only(vitals)
    assert (finding.level, finding.area) == ("error", "rules")
    assert "the jump is missing" in finding.what
    assert "1 more" in finding.what


def test_rules_of_a_gateway_that_is_gone() -> None:
    vitals = well(running=False)
    vitals.tables = {"iptables": parse("*raw\n:PREROUTING ACCEPT [0:0]\n:NFQLB-QUEUE - [0:0]\nCOMMIT\n")}
    finding = only(vitals)
    assert "no gateway runs" in finding.what
    assert "nfqlb rules remove" in finding.advice


def test_rules_of_a_worker_that_is_alone() -> None:
    """F11: to take them out would be the outage; and its queue is not somebody else's."""
    vitals = well(running=False)
    vitals.tables = {"iptables": parse("*raw\n:PREROUTING ACCEPT [0:0]\n:NFQLB-QUEUE - [0:0]\nCOMMIT\n")}
    vitals.alone = 41.6
    finding = only(vitals, replace(FACTS, queues=(QueueStatus(0, 4711, 0, 0, 0, 0),)))
    assert "has no supervisor any more: it serves for another 42 s" in finding.what
    assert "takes over from it" in finding.advice
    assert "remove" not in finding.advice


def test_a_firewall_that_drops_new_connections() -> None:
    text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\nCOMMIT\n"
    finding = only(rules(text))
    assert (finding.level, finding.area) == ("error", "firewall")
    assert "drops new connections to web1 (10.0.0.1, port 8080/tcp): policy DROP of FORWARD" in finding.what
    assert finding.advice == "iptables -I FORWARD -i eth0 -o eth1 -d 10.0.0.1 -p tcp --dport 8080 -j ACCEPT"
    assert found(rules(text.replace("COMMIT", finding.advice.removeprefix("iptables ").replace(
        "-I FORWARD", "-A FORWARD") + "\nCOMMIT"))) == []  # fmt: skip


def test_a_firewall_that_drops_answers() -> None:
    finding = only(rules("*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i eth1 -o eth0 -j REJECT\nCOMMIT\n"))
    assert "drops the answers of web1" in finding.what
    assert "ESTABLISHED" in finding.advice


def test_a_firewall_that_may_let_pass() -> None:
    text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m set --match-set ok src,dst -j ACCEPT\nCOMMIT\n"
    assert {each.level for each in found(rules(text))} == {"warning"}
    assert all("unless this one lets them pass" in each.what for each in found(rules(text)))


def test_nat_that_hides_the_clients() -> None:
    text = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n"
    finding = only(rules(text))
    assert "hides the clients' addresses from web1" in finding.what
    assert "-o eth0" in finding.advice
    assert found(rules(text.replace("POSTROUTING -j", "POSTROUTING -o eth0 -j"))) == []


@pytest.mark.parametrize(
    ("rule", "clashes"),
    [
        ("-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff", True),
        ("-A PREROUTING -j MARK --set-xmark 0x1/0xff", False),
        ("-A PREROUTING -j MARK --set-xmark 0x10000/0x10000", True),
        ("-A FORWARD -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", True),
        ("-A FORWARD -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff", False),
        ("-A FORWARD -m mark --mark 0x10000/0xff0000 -j ACCEPT", False),
    ],
)
def test_marks_of_others(rule: str, clashes: bool) -> None:
    vitals = rules(f"*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n{rule}\nCOMMIT\n")
    assert [each.area for each in found(vitals)] == ["firewall"] * clashes
    assert all(rule in each.what and "0xff00ffff" in each.advice for each in found(vitals))


def test_packets_kept_from_conntrack() -> None:
    finding = only(rules("*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j CT --notrack\nCOMMIT\n"))
    assert "--notrack" in finding.what


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        (BaseChain("inet", "filter", "forward", "forward", 0, drops=True), "drops what it does not accept"),
        (BaseChain("inet", "early", "pre", "prerouting", -310, drops=False), "before the gateway's rules"),
    ],
)
def test_chains_of_nftables(chain: BaseChain, words: str) -> None:
    vitals = well()
    vitals.chains = [chain, BaseChain("inet", "filter", "input", "input", 0, drops=True)]
    finding = only(vitals)
    assert words in finding.what
    assert f"nft list chain {chain}" in finding.advice


def test_other_balancers() -> None:
    vitals = well()
    vitals.listeners, vitals.ipvs = ["192.0.2.100 port 80 (haproxy, process 7)"], ["TCP  C0000264:0050 rr"]
    said = [each.what for each in found(vitals)]
    assert "haproxy" in said[0]
    assert "IPVS" in said[1]


def test_a_virtual_address_that_is_not_there() -> None:
    facts = replace(FACTS, addresses=tuple(entry for entry in FACTS.addresses if not entry.ours))
    assert only(well(), facts).what == f"virtual address {VIP} is not on eth0, so nobody answers for it there"
    assert found(well(running=False), facts) == []


def test_of_two_gateways_the_one_that_waits_has_no_virtual_address() -> None:
    """F36: the other one has it, and answers for it. Only if both have it something is wrong."""
    config = replace(CONFIG, gateway=replace(CONFIG.gateway, hold_addresses=False))
    waiting = replace(FACTS, addresses=tuple(entry for entry in FACTS.addresses if not entry.ours))
    vitals = well()
    vitals.others = {VIP: "02:00:00:00:00:99"}
    assert found(vitals, waiting, config) == []
    rows = {each.area: each for each in diagnose(config, waiting, vitals)}
    assert rows["addresses"].what == "1 virtual address is not here: the other gateway serves"
    (finding,) = found(vitals, FACTS, config)
    assert "02:00:00:00:00:99" in finding.what


def test_a_virtual_address_that_somebody_else_has() -> None:
    vitals = well()
    vitals.others = {VIP: "02:00:00:00:00:99"}
    finding = only(vitals)
    assert (finding.level, finding.area) == ("error", "addresses")
    assert "02:00:00:00:00:99" in finding.what


def test_a_server_that_is_off_is_told_of_once() -> None:
    vitals = well()
    vitals.macs, vitals.ports = {WEB: ""}, {(WEB, 8080): "no answer within 0.6 s"}
    finding = only(vitals)
    assert (finding.level, finding.area) == ("error", "neighbours")
    assert finding.what == "web1 (10.0.0.1) does not answer on eth1: no reply to ARP"
    assert [each.level for each in diagnose(CONFIG, FACTS, vitals, ["web1"]) if each.level != "ok"] == []
    areas = [each.area for each in diagnose(CONFIG, FACTS, vitals, ["web1"])]
    assert not {"neighbours", "servers"} & set(areas), "nobody answers, and that is meant"


@pytest.mark.parametrize(("why", "advice"), [("Connection refused", "running"), ("no answer", "firewall")])
def test_a_service_that_is_off(why: str, advice: str) -> None:
    vitals = well()
    vitals.ports = {(WEB, 8080): why}
    finding = only(vitals)
    assert finding.what == f"web1 (10.0.0.1) takes no connection on port 8080: {why}"
    assert advice in finding.advice


def test_a_cable_that_is_out() -> None:
    vitals = well()
    vitals.cables = {"eth0": False, "eth1": True}
    assert only(vitals).what == "interface eth0 has no carrier"


@pytest.mark.parametrize(("outer", "inner", "small"), [(1500, 1400, "eth1"), (1492, 1500, "eth0")])
def test_links_of_different_mtu(outer: int, inner: int, small: str) -> None:
    interfaces = {"eth0": Interface("eth0", 1, True, outer), "eth1": Interface("eth1", 2, True, inner)}
    finding = only(well(), replace(FACTS, interfaces=interfaces))
    assert (finding.level, finding.area) == ("warning", "mtu")
    assert f"-o {small} " in finding.advice
    clamp = "-A FORWARD -p tcp -j TCPMSS --clamp-mss-to-pmtu"
    clamped = rules(f"*mangle\n:FORWARD ACCEPT [0:0]\n{clamp}\nCOMMIT\n")
    assert found(clamped, replace(FACTS, interfaces=interfaces)) == []


def test_offloads_that_hurt() -> None:
    vitals = well()
    vitals.features = {"eth0": {"rx-lro": True, "rx-gro": False}, "eth1": {"rx-gro": False}}
    vitals.drivers = {"eth0": "igb", "eth1": "veth"}
    advice = [each.advice.split(",")[0] for each in found(vitals)]
    assert advice == ["ethtool -K eth0 lro off", "ethtool -K eth0 gro on"]
    udp = replace(CONFIG, virtuals=(*CONFIG.virtuals, replace(CONFIG.virtuals[0], protocol="udp", name="u")))
    vitals.features = {"eth0": {"rx-udp-gro-forwarding": True, "rx-gro": True}}
    vitals.ports = {}
    assert only(vitals, config=udp).advice == "ethtool -K eth0 rx-udp-gro-forwarding off"
    assert found(vitals) == []


@pytest.mark.parametrize(("now", "level"), [(100, ""), (820, "warning"), (990, "error")])
def test_room_in_conntrack(now: int, level: str) -> None:
    vitals = well()
    vitals.tracked = (now, 1000, 0)
    assert [each.level for each in found(vitals)] == [level] * bool(level)
    assert all("nf_conntrack_max=2000" in each.advice for each in found(vitals))


def test_what_conntrack_has_lost() -> None:
    vitals = well()
    vitals.tracked = (1, 1000, 12)
    assert "dropped 12" in only(vitals).what


def test_a_clock_that_nobody_keeps_right() -> None:
    vitals = well()
    vitals.synchronised = False
    assert (only(vitals).level, only(vitals).area) == ("warning", "clock")


def test_too_few_files_and_too_little_memory() -> None:
    vitals = well(running=False)
    vitals.files, vitals.memory = 64, 1000
    assert [each.area for each in found(vitals)] == ["limits", "limits"]


def test_what_could_not_be_looked_at_is_not_said_to_be_fine() -> None:
    vitals = well()
    vitals.unseen = {"firewall": "not permitted", "clock": "not permitted"}
    vitals.tables, vitals.synchronised = {}, None
    rows = {each.area: each for each in diagnose(CONFIG, FACTS, vitals)}
    assert rows["firewall"].level == rows["clock"].level == "unseen"
    assert "not permitted" in rows["firewall"].what


def test_the_checks_of_a_start_are_among_them() -> None:
    facts = replace(FACTS, routes={WEB: None}, owner=77)
    assert [each.area for each in found(well(running=False), facts)] == ["alone", "routes"]
    assert [each.area for each in found(well(), facts)] == ["routes"]
