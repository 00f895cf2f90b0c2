"""What the kernel is told to count, as the text that nft reads."""

from dataclasses import replace
from ipaddress import ip_address

from nfqlb.core.spec import Config, Gateway, Virtual
from nfqlb.netfilter.accounting import Counter, Counters, label, script

SHOP = Virtual("shop", ip_address("192.0.2.10"), (), port=80)
DNS6 = Virtual("dns.6-", ip_address("2001:db8::10"), (), port=53, protocol="udp")
ALL = Virtual("9all", ip_address("192.0.2.11"), (), port=None)
CONFIG = Config(Gateway(("eth0", "eth0.7"), ("eth1",)), (), (SHOP,))
ZERO = Counters(Counter(0, 0), Counter(0, 0))


def test_one_virtual_server() -> None:
    """In front of all rules on the way in, behind the translation on the way out; outside alone."""
    assert script(CONFIG).splitlines()[:20] == [
        "add table inet nfqlb",
        "delete table inet nfqlb",
        "add table inet nfqlb",
        "add counter inet nfqlb in-192.0.2.10-tcp-80",
        "add counter inet nfqlb out-192.0.2.10-tcp-80",
        "add chain inet nfqlb in { type filter hook prerouting priority -305; policy accept; }",
        "flush chain inet nfqlb in",
        "add chain inet nfqlb out { type filter hook postrouting priority 150; policy accept; }",
        "flush chain inet nfqlb out",
        "add map inet nfqlb in4 { type ipv4_addr . inet_proto . inet_service : counter; }",
        "flush map inet nfqlb in4",
        'add element inet nfqlb in4 { 192.0.2.10 . tcp . 80 : "in-192.0.2.10-tcp-80" }',
        'add rule inet nfqlb in iifname { "eth0", "eth0.7" } '
        "counter name ip daddr . meta l4proto . th dport map @in4",
        "add map inet nfqlb out4 { type ipv4_addr . inet_proto . inet_service : counter; }",
        "flush map inet nfqlb out4",
        'add element inet nfqlb out4 { 192.0.2.10 . tcp . 80 : "out-192.0.2.10-tcp-80" }',
        'add rule inet nfqlb out oifname { "eth0", "eth0.7" } '
        "counter name ip saddr . meta l4proto . th sport map @out4",
        "add map inet nfqlb in4any { type ipv4_addr . inet_proto : counter; }",
        "flush map inet nfqlb in4any",
        "add map inet nfqlb out4any { type ipv4_addr . inet_proto : counter; }",
    ]


def test_other_kinds_of_virtual_servers() -> None:
    """IPv6, UDP, every port: each where it belongs, and no rule for what there is none of."""
    text = script(replace(CONFIG, virtuals=(DNS6, ALL)))
    assert 'add element inet nfqlb in6 { 2001:db8::10 . udp . 53 : "in-2001_db8__10-udp-53" }' in text
    assert "counter name ip6 saddr . meta l4proto . th sport map @out6\n" in text
    assert 'add element inet nfqlb out4any { 192.0.2.11 . tcp : "out-192.0.2.11-tcp-any" }' in text
    assert "counter name ip daddr . meta l4proto map @in4any\n" in text
    assert text.count("add rule ") == 4


def test_going_on_with_what_is_counted() -> None:
    """Only the counters of virtual servers that are gone go; no table is deleted."""
    lines = script(CONFIG, {label(SHOP): ZERO, "old": ZERO}).splitlines()
    assert [line for line in lines if line.startswith("delete")] == [
        "delete counter inet nfqlb in-old",
        "delete counter inet nfqlb out-old",
    ]
    assert lines[0] == "add table inet nfqlb"
    assert lines.index("flush map inet nfqlb out4") < lines.index("delete counter inet nfqlb in-old")
