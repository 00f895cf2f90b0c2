"""What is said about a machine, from facts that are made up here."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from math import inf

import pytest

from nfqlb.core.spec import Config, Gateway, Real, Server, Timeouts, Virtual
from nfqlb.netfilter.facts import ELSEWHERE, Facts, Interface, InterfaceAddress, Route, translations
from nfqlb.netfilter.host import Finding, judge
from nfqlb.netfilter.queue_status import QueueStatus
from nfqlb.netfilter.ruleset import parse

WEB1, WEB2 = Real("web1", ip_address("10.0.0.11")), Real("web2", ip_address("10.0.0.12"))
WEB = Virtual("web", ip_address("192.0.2.100"), (Server("web1", 80), Server("web2", 80)), port=80)
CONFIG = Config(Gateway(("eth0",), ("eth1",)), (WEB1, WEB2), (WEB,))

GOOD = Facts(
    interfaces={
        "lo": Interface("lo", 1, True, 65536),
        "eth0": Interface("eth0", 2, True, 1500),
        "eth1": Interface("eth1", 3, True, 9000),
        "eth2": Interface("eth2", 4, True, 1500),
    },
    addresses=(
        InterfaceAddress("eth0", ip_interface("192.0.2.1/24")),
        InterfaceAddress("eth1", ip_interface("10.0.0.1/24")),
    ),
    routes={WEB1.address: Route("eth1"), WEB2.address: Route("eth1"), ELSEWHERE[4]: Route("eth0")},
    rp_filter={"all": 1, "eth0": 1, "eth1": 1},
)


def gateway(**changes: object) -> Config:
    return replace(CONFIG, gateway=replace(CONFIG.gateway, **changes))  # type: ignore[arg-type]  # by name


def routed(route: Route | None) -> Facts:
    return replace(GOOD, routes={**GOOD.routes, WEB2.address: route})


def interface(name: str, **changes: object) -> Facts:
    changed = replace(GOOD.interfaces[name], **changes)  # type: ignore[arg-type]  # by name
    return replace(GOOD, interfaces={**GOOD.interfaces, name: changed})


def only(config: Config, facts: Facts) -> Finding:
    (finding,) = judge(config, facts)
    return finding


def test_a_machine_that_is_as_it_should_be_has_no_finding() -> None:
    """rp_filter = 1 on a single outside interface is among what works."""
    assert judge(CONFIG, GOOD) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (replace(GOOD, net_admin=False), ["no right", "CAP_NET_ADMIN"]),
        (replace(GOOD, iptables=""), ["iptables is not installed", "apt-get install iptables"]),
        (replace(GOOD, owner=4711), ["another nfqlb", "process 4711"]),
        (replace(GOOD, owner=0), ["another nfqlb", "another process"]),
        (routed(None), ["no route to real server web2 (10.0.0.12)", "eth1"]),
        (routed(Route("lo", local=True)), ["web2 (10.0.0.12) is this machine itself"]),
        (routed(Route("eth0")), ["web2 (10.0.0.12) leads out of eth0, where the clients are"]),
        (
            routed(Route("eth2")),
            ["web2 (10.0.0.12) leads out of eth2, not out of eth1", "add eth2 to `inside`"],
        ),
        (interface("eth1", up=False), ["inside interface eth1 is down", "ip link set eth1 up"]),
        (interface("eth0", port_of="br0"), ["outside interface eth0 is a port of br0", 'name "br0"']),
    ],
)
def test_what_makes_running_pointless_is_an_error(facts: Facts, words: list[str]) -> None:
    finding = only(CONFIG, facts)
    assert finding.level == "error"
    for word in words:
        assert word in str(finding)


def test_an_interface_that_does_not_exist_is_named_with_those_that_do() -> None:
    finding = only(gateway(inside=("eth7", "eth1")), GOOD)
    assert str(finding) == "error: inside interface eth7 does not exist; there are: eth0, eth1, eth2"


@pytest.mark.parametrize(
    ("keys", "errors"),
    [({}, 0), ({"reject": "reset"}, 1), ({"on_failure": "reset"}, 1), ({"on_failure": "drop"}, 0)],
)
def test_resets_need_a_right_of_their_own(keys: dict[str, str], errors: int) -> None:
    """R114: and only they do."""
    config = replace(CONFIG, virtuals=(WEB, replace(WEB, name="web2", port=81, **keys)))  # type: ignore[arg-type]  # by name
    assert judge(config, GOOD) == []
    findings = judge(config, replace(GOOD, net_raw=False))
    assert [finding.level for finding in findings] == ["error"] * errors
    assert "CAP_NET_RAW" in "".join(map(str, findings)) or not errors


@pytest.mark.parametrize(("number", "errors"), [(3, 0), (4, 1), (5, 1), (6, 0)])
def test_both_queues_must_be_free(number: int, errors: int) -> None:
    taken = QueueStatus(number, 99, 0, 0, 0, 0)
    findings = judge(gateway(queue=4), replace(GOOD, queues=(taken,)))
    assert len(findings) == errors


def test_a_taken_queue_is_named_with_its_processes() -> None:
    taken = QueueStatus(0, 4294963200, 0, 0, 0, 0)
    facts = replace(GOOD, queues=(taken,), queue_readers={0: (812, 813)})
    assert "queue 0 is taken by processes 812, 813" in str(only(CONFIG, facts))
    assert "process 4294963200" in str(only(CONFIG, replace(facts, queue_readers={})))


def test_a_real_server_in_the_clients_own_network_is_refused_whatever_the_route() -> None:
    """R001: it would answer its neighbours directly, past the gateway."""
    near = replace(WEB2, address=ip_address("192.0.2.12"))
    config = replace(CONFIG, reals=(WEB1, near))
    facts = replace(GOOD, routes={**GOOD.routes, near.address: Route("eth1")})
    assert "web2 (192.0.2.12) is in the network 192.0.2.0/24 of eth0" in only(config, facts).what
    direct = replace(GOOD, routes={**GOOD.routes, near.address: Route("eth0")})
    assert "leads out of eth0" in only(config, direct).what


def test_an_mtu_beyond_what_a_queue_carries_is_no_finding() -> None:
    """The rules keep TCP from using it."""
    assert judge(CONFIG, interface("eth1", mtu=65535)) == []


SIX = Real("six", ip_address("fd00::11"))
WEB6 = Virtual("web6", ip_address("2001:db8::100"), (Server("six", 80),), port=80)
CONFIG6 = replace(CONFIG, reals=(*CONFIG.reals, SIX), virtuals=(WEB, WEB6))
GOOD6 = replace(
    GOOD,
    addresses=(*GOOD.addresses, InterfaceAddress("eth0", ip_interface("2001:db8::1/64"))),
    routes={**GOOD.routes, SIX.address: Route("eth1"), ELSEWHERE[6]: Route("eth0")},
    ipv6=frozenset(("lo", "eth0", "eth1")),
    ipv6_forwarded=frozenset(("eth0", "eth1")),
)


def test_a_machine_that_forwards_ipv6_has_no_finding_about_it() -> None:
    assert judge(CONFIG6, GOOD6) == []


@pytest.mark.parametrize(
    ("forwarded", "names"), [((), "eth0 and eth1"), (("eth0",), "eth1"), (("eth1", "eth2"), "eth0")]
)
def test_forwarding_of_ipv6_is_asked_for(forwarded: tuple[str, ...], names: str) -> None:
    """Only where something needs it, and with what it costs."""
    facts = replace(GOOD6, ipv6_forwarded=frozenset(forwarded))
    finding = only(CONFIG6, facts)
    assert (finding.level, finding.what) == ("error", f"IPv6 is not forwarded from {names}")
    assert finding.advice.startswith("sysctl net.ipv6.conf.all.forwarding=1; where ")
    assert "accept_ra=2" in finding.advice
    assert judge(CONFIG, facts) == []


def test_an_interface_without_ipv6_is_named() -> None:
    facts = replace(GOOD6, ipv6=frozenset(("eth1",)), ipv6_forwarded=frozenset(("eth1",)))
    finding = only(CONFIG6, facts)
    assert str(finding) == (
        "error: there is no IPv6 on interface eth0; sysctl net.ipv6.conf.eth0.disable_ipv6=0"
    )
    assert judge(CONFIG, facts) == []


def test_super_packets_beyond_what_a_queue_carries_are_a_warning() -> None:
    eth0 = replace(GOOD.interfaces["eth0"], joined=65537)
    facts = replace(GOOD6, interfaces={**GOOD.interfaces, "eth0": eth0})
    finding = only(CONFIG6, facts)
    assert finding.level == "warning"
    assert "eth0 joins received segments to up to 65537 bytes (BIG TCP)" in finding.what
    assert finding.advice == "ip link set eth0 gro_max_size 65536"
    assert judge(CONFIG, facts) == []


def test_an_ipv6_virtual_address_that_is_every_routers_is_refused() -> None:
    """RFC 4291, 2.6.1; the last address of an IPv6 subnet is one like any other."""
    first = replace(WEB6, address=ip_address("2001:db8::"))
    finding = only(replace(CONFIG6, virtuals=(WEB, first)), GOOD6)
    assert finding.what.startswith("virtual address 2001:db8:: is the first one of 2001:db8::/64")
    last = replace(WEB6, address=ip_address("2001:db8::ffff:ffff:ffff:ffff"))
    assert judge(replace(CONFIG6, virtuals=(WEB, last)), GOOD6) == []


@pytest.mark.parametrize(
    ("everywhere", "there", "warnings"), [(0, 0, 0), (0, 1, 1), (1, 0, 2), (2, 1, 0), (1, 2, 1), (2, 2, 0)]
)
def test_strict_reverse_path_filtering_matters_with_several_outside_interfaces(
    everywhere: int, there: int, warnings: int
) -> None:
    """The value that counts is the larger one of "all" and the interface's own."""
    facts = replace(GOOD, rp_filter={"all": everywhere, "eth0": there, "eth2": 0})
    findings = judge(gateway(outside=("eth0", "eth2")), facts)
    assert [finding.level for finding in findings] == ["warning"] * warnings


def test_without_nft_nothing_is_counted() -> None:
    finding = only(CONFIG, replace(GOOD, nft=False))
    assert (finding.level, finding.advice) == ("warning", "on Debian: apt-get install nftables")


def test_answers_that_leave_by_an_unnamed_interface_are_a_warning() -> None:
    facts = replace(GOOD, routes={**GOOD.routes, ELSEWHERE[4]: Route("eth2")})
    finding = only(CONFIG, facts)
    assert finding.level == "warning"
    assert "leave by eth2, which is not among `outside`" in finding.what


def test_no_way_to_clients_elsewhere_is_nobodys_business() -> None:
    assert judge(CONFIG, replace(GOOD, routes={**GOOD.routes, ELSEWHERE[4]: None})) == []


def held(ours: bool) -> Facts:
    entry = InterfaceAddress("eth0", ip_interface("192.0.2.100/32"), ours)
    return replace(GOOD, addresses=(*GOOD.addresses, entry))


def test_a_virtual_address_that_is_the_gateways_own_is_a_warning_where_the_rest_is_dropped() -> None:
    finding = only(CONFIG, held(ours=False))
    assert finding.level == "warning"
    assert "192.0.2.100" in finding.what
    assert 'other_ports = "host"' in finding.advice
    assert judge(gateway(other_ports="host"), held(ours=False)) == []


def test_a_virtual_address_that_a_crash_left_behind_is_no_finding() -> None:
    assert judge(CONFIG, held(ours=True)) == []


def test_a_virtual_address_that_is_a_real_servers_is_refused() -> None:
    config = replace(CONFIG, virtuals=(replace(WEB, address=WEB1.address),))
    assert "virtual address 10.0.0.11 is also real server web1's" in only(config, GOOD).what


@pytest.mark.parametrize("text", ["192.0.2.0", "192.0.2.255"])
def test_a_virtual_address_that_no_host_can_have_is_refused(text: str) -> None:
    config = replace(CONFIG, virtuals=(replace(WEB, address=ip_address(text)),))
    assert f"virtual address {text} is the first or last one of 192.0.2.0/24" in only(config, GOOD).what


@pytest.mark.parametrize("kind", ["nf_tables", "legacy"])
def test_rules_in_both_kinds_of_tables_are_a_warning(kind: str) -> None:
    finding = only(CONFIG, replace(GOOD, iptables=kind, other_rules=3))
    assert finding.level == "warning"
    assert f"of the {kind} kind, but 3 rules" in finding.what


def test_errors_come_first() -> None:
    taken = (QueueStatus(1, 9, 0, 0, 0, 0),)
    findings = judge(CONFIG, replace(GOOD, other_rules=1, queues=taken))
    assert [finding.level for finding in findings] == ["error", "warning"]


BAD: list[Callable[[], Facts]] = [
    lambda: Facts(interfaces={}),
    lambda: replace(GOOD, routes={}, addresses=()),
]


@pytest.mark.parametrize("facts", BAD)
def test_missing_facts_are_findings_and_never_an_exception(facts: Callable[[], Facts]) -> None:
    assert judge(CONFIG, facts())


# ---- What only datapath offload asks for

OFFLOAD = replace(CONFIG, virtuals=(replace(WEB, datapath="offload"),))


def test_a_connection_table_that_is_too_small_is_told() -> None:
    small = replace(GOOD, tracked=262_144)
    finding = only(OFFLOAD, small)
    assert finding.level == "warning"
    for word in ("262144 connections", "1000000", "nf_conntrack_max=1250000"):
        assert word in str(finding)
    assert judge(CONFIG, small) == []
    assert judge(OFFLOAD, replace(GOOD, tracked=1_000_000)) == []
    assert judge(OFFLOAD, replace(GOOD, tracked=0)) == []  # no limit


def test_a_kernel_that_keeps_no_time_outs_of_ours_is_told_with_the_way_around() -> None:
    finding = only(OFFLOAD, replace(GOOD, timeouts=False))
    assert finding.level == "warning"
    assert "nfnetlink_cttimeout" in finding.what
    assert "nf_conntrack_tcp_timeout_established=3600" in finding.advice


@pytest.mark.parametrize(
    "rule",
    [
        "-d 192.0.2.100/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.99",
        "-d 192.0.2.0/24 -j DNAT --to-destination 10.0.0.99",
        "-i eth0 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080",
        "-j DNAT --to-destination 10.0.0.99",
        "! -d 198.51.100.1/32 -p tcp -j DNAT --to-destination 10.0.0.99",
        "-p tcp -m multiport --dports 80,443 -j REDIRECT",
    ],
)
def test_a_translation_that_may_mean_a_virtual_server_is_told(rule: str) -> None:
    found = replace(GOOD, translations=(rule,))
    finding = only(OFFLOAD, found)
    assert finding.level == "warning"
    assert rule in finding.what
    assert judge(CONFIG, found) == []


@pytest.mark.parametrize(
    "rule",
    [
        "-d 192.0.2.101/32 -p tcp -j DNAT --to-destination 10.0.0.99",
        "-d 192.0.2.100/32 -p udp -j DNAT --to-destination 10.0.0.99",
        "-d 192.0.2.100/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.0.0.99",
        "-d 2001:db8::1/128 -j DNAT --to-destination fd00::1",
    ],
)
def test_a_translation_of_something_else_is_not(rule: str) -> None:
    assert judge(OFFLOAD, replace(GOOD, translations=(rule,))) == []


def test_translations_are_found_wherever_a_packet_from_outside_may_go() -> None:
    """Docker's chain, say; not those of packets that this machine sends, and not ours."""
    saved = """\
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:NFQLB-O-LINKS - [0:0]
-A PREROUTING -j NFQLB-O-LINKS
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -d 127.0.0.1/32 -j DNAT --to-destination 10.0.0.3
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER -j DOCKER
-A NFQLB-O-LINKS -p tcp -j DNAT --to-destination 10.0.0.1:80
COMMIT
"""
    assert translations(parse(saved)["nat"]) == [
        "! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80"
    ]


def test_the_queue_of_datapath_offload_is_one() -> None:
    taken = replace(GOOD, queues=(QueueStatus(1, 77, 0, 0, 0, 0),))
    assert judge(OFFLOAD, taken) == []
    taken = replace(GOOD, queues=(QueueStatus(0, 77, 0, 0, 0, 0),))
    assert "(nfqlb uses 0)" in only(OFFLOAD, taken).advice


@pytest.mark.parametrize(("udp", "kernel", "told"), [(30, 30, False), (31, 30, True), (300, inf, False)])
def test_the_kernel_should_not_forget_udp_flows_before_we_do(udp: float, kernel: float, told: bool) -> None:
    """R007: or a server's next datagram would pass under its own address."""
    flows = replace(CONFIG, virtuals=(replace(CONFIG.virtuals[0], protocol="udp"),))
    found = judge(replace(flows, timeouts=Timeouts(udp=udp)), replace(GOOD, udp_timeout=kernel))
    assert [finding.level for finding in found] == ["warning"] * told
    tcp = replace(CONFIG, timeouts=Timeouts(udp=udp))
    assert judge(tcp, replace(GOOD, udp_timeout=kernel)) == []
