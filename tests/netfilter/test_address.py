"""Which virtual addresses the gateway holds, and how it says so; no kernel needed."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface

import dpkt
import pytest

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.address import Placement, announcement, placements
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


def test_a_single_address_is_no_subnet() -> None:
    here = present(("eth0", "192.0.2.100/32"))
    assert placements(config("192.0.2.100"), [replace(here[0], ours=True)]) == []


def test_the_first_outside_interface_with_the_subnet_holds_the_address() -> None:
    here = [*HERE, *present(("eth5", "198.51.100.1/24"))]
    wanted = config("198.51.100.7", "192.0.2.100", outside=("eth0", "eth5"))
    assert [place.interface for place in placements(wanted, here)] == ["eth5", "eth0"]


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
