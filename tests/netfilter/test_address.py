"""Which virtual addresses the gateway holds, and how it says so; no kernel needed."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface

import dpkt
import pytest

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.address import Placement, advertisement, announcement, placements
from nfqlb.netfilter.facts import InterfaceAddress

REAL = Real("web1", ip_address("10.0.0.11"))


def config(*addresses: str, outside: tuple[str, ...] = ("eth0",)) -> Config:
    virtuals = tuple(
        Virtual(f"v{number}", ip_address(address), (Server("web1", 80),), port=80 + number)
        for number, address in enumerate(addresses)
    )
    return Config(Gateway(outside, ("eth1",)), (REAL,), virtuals)


def present(*entries: tuple[str, str]) -> list[InterfaceAddress]:
    return [InterfaceAddress(interface, ip_interface(address)) for interface, address in entries]


HERE = present(("lo", "127.0.0.1/8"), ("eth0", "192.0.2.1/24"), ("eth1", "10.0.0.1/24"))


def test_a_virtual_address_in_the_outside_subnet_is_held_there() -> None:
    assert placements(config("192.0.2.100"), HERE) == [Placement("eth0", IPv4Address("192.0.2.100"))]


def test_an_address_of_several_virtual_servers_is_held_once() -> None:
    assert len(placements(config("192.0.2.100", "192.0.2.100", "192.0.2.101"), HERE)) == 2


@pytest.mark.parametrize("address", ["198.51.100.7", "10.0.0.100", "127.0.0.5", "192.0.2.1"])
def test_any_other_is_left_to_routing_or_to_whoever_has_it(address: str) -> None:
    """Out of every subnet, in an inside one, in loopback's, or there already."""
    assert placements(config(address), HERE) == []


def test_an_address_that_is_there_already_is_left_on_whatever_interface() -> None:
    here = [*HERE, *present(("lo", "192.0.2.100/32"))]
    assert placements(config("192.0.2.100"), here) == []


def test_what_an_earlier_start_left_is_still_wanted() -> None:
    ours = InterfaceAddress("eth0", ip_interface("192.0.2.100/32"), ours=True)
    assert placements(config("192.0.2.100"), [*HERE, ours]) == [Placement("eth0", IPv4Address("192.0.2.100"))]


def test_where_somebody_else_puts_addresses_none_is_wanted() -> None:
    """F36: hold_addresses = false."""
    given = config("192.0.2.100")
    given = replace(given, gateway=replace(given.gateway, hold_addresses=False))
    ours = InterfaceAddress("eth0", ip_interface("192.0.2.100/32"), ours=True)
    assert placements(given, [*HERE, ours]) == []


def test_a_single_address_is_no_subnet() -> None:
    here = present(("eth0", "192.0.2.100/32"))
    assert placements(config("192.0.2.100"), [replace(here[0], ours=True)]) == []


def test_the_first_outside_interface_with_the_subnet_holds_the_address() -> None:
    here = [*HERE, *present(("eth5", "198.51.100.1/24"))]
    wanted = config("198.51.100.7", "192.0.2.100", outside=("eth0", "eth5"))
    assert [place.interface for place in placements(wanted, here)] == ["eth5", "eth0"]


HERE6 = [*HERE, *present(("eth0", "2001:db8::1/64"), ("eth0", "fe80::1/64"), ("eth1", "fd00::1/64"))]


def test_an_ipv6_address_of_the_outside_subnet_is_held_as_a_single_one() -> None:
    (placement,) = placements(config("2001:db8::100"), HERE6)
    assert placement == Placement("eth0", IPv6Address("2001:db8::100"))
    assert str(placement) == "2001:db8::100/128 on eth0"


@pytest.mark.parametrize("address", ["2001:db8:1::7", "fd00::100", "2001:db8::1", "::2"])
def test_any_other_ipv6_address_is_left_to_routing(address: str) -> None:
    assert placements(config(address), HERE6) == []


def test_an_advertisement_is_an_unsolicited_one_that_overrides() -> None:
    """RFC 4861, 4.4 and 7.2.6: to all nodes, hop limit 255, with the hardware address; checked by scapy."""
    from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
    from scapy.layers.l2 import Ether

    frame = advertisement(bytes.fromhex("020000000001"), IPv6Address("2001:db8::100"))
    meant = (
        Ether(dst="33:33:00:00:00:01", src="02:00:00:00:00:01")
        / IPv6(src="2001:db8::100", dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt="2001:db8::100", R=1, S=0, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:00:01")
    )
    assert frame == bytes(meant)


@pytest.mark.parametrize(("operation", "target"), [(b"\0\1", bytes(6)), (b"\0\2", b"\xff" * 6)])
def test_an_announcement_is_a_gratuitous_arp(operation: bytes, target: bytes) -> None:
    """RFC 5227, 3: sender and target protocol address are both the announced one."""
    mac = bytes.fromhex("020000000001")
    frame = dpkt.ethernet.Ethernet(announcement(mac, IPv4Address("192.0.2.100"), operation))
    assert (frame.dst, frame.src, frame.type) == (b"\xff" * 6, mac, dpkt.ethernet.ETH_TYPE_ARP)
    arp = frame.data
    assert (arp.hrd, arp.pro, arp.hln, arp.pln) == (1, 0x0800, 6, 4)
    assert arp.op == int.from_bytes(operation)
    assert (arp.sha, arp.tha) == (mac, target)
    assert arp.spa == arp.tpa == bytes([192, 0, 2, 100])
