"""The sockets that carry replies to clients: both IP versions, from an address that is not the gateway's."""

import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfqlb.netfilter.reply import ReplySockets
from nfqlb.packet.reply import reset_for, unreachable_for
from tests.netns.site import CLIENT, CLIENT6, Site, built, entered, ip

_IPV4, _IPV6 = 0x0800, 0x86DD
AWAY, AWAY6 = "198.51.100.7", "2001:db8:1::7"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A gateway that would drop in silence what is for the virtual addresses."""
    for site in built(tmp_path):
        site.number_ipv6()
        ip("-n", site.gateway, "route", "add", "blackhole", f"{AWAY}/32")
        ip("-n", site.gateway, "-6", "route", "add", "blackhole", f"{AWAY6}/128")
        yield site


def heard(tap: socket.socket, protocol: int, port: int) -> tuple[bytes, bytes, int]:
    """The client's packet on the gateway's outside: its key, itself, where its transport header begins."""
    while True:
        packet = tap.recv(65_536)
        at = 40 if packet[0] >> 4 == 6 else 20
        if packet[6 if at == 40 else 9] != protocol or packet[at + 2 : at + 4] != port.to_bytes(2, "big"):
            continue
        addresses = packet[8:40] if at == 40 else packet[12:20]
        return addresses + packet[at : at + 4], packet, at


def tapped(site: Site, six: bool) -> socket.socket:
    """What comes in on the gateway's outside."""
    with entered(site.gateway):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_IPV6 if six else _IPV4))
        tap.bind(("outside", _IPV6 if six else _IPV4))
    tap.settimeout(10)
    return tap


@pytest.mark.parametrize("six", [False, True])
def test_a_client_believes_them(site: Site, six: bool) -> None:
    """R114: a SYN is refused by a reset, a datagram by an ICMP error; the connections fail at once."""
    family, address = (socket.AF_INET6, AWAY6) if six else (socket.AF_INET, AWAY)
    with entered(site.gateway):
        sockets = ReplySockets((4, 6))
    with closing(sockets), tapped(site, six) as tap:
        with entered(site.client):
            caller, asker = socket.socket(family), socket.socket(family, socket.SOCK_DGRAM)
        with caller, asker:
            caller.setblocking(False)
            assert caller.connect_ex((address, 80)) != 0
            key, packet, at = heard(tap, 6, 80)
            assert ip_address(key[: len(key) // 2 - 2]) == ip_address(CLIENT6 if six else CLIENT)
            assert sockets.send(reset_for(key, packet, at, len(packet)))
            caller.settimeout(10)
            with pytest.raises(ConnectionRefusedError):
                caller.sendall(b"anybody there?")
            asker.settimeout(10)
            asker.connect((address, 53))
            asker.send(b"x" * 1400)
            key, packet, _ = heard(tap, 17, 53)
            assert sockets.send(unreachable_for(key, packet[:1500]))
            with pytest.raises(ConnectionRefusedError):
                asker.recv(1)


def test_what_the_kernel_does_not_take(site: Site) -> None:
    """R114: is told, and never waited for: a broadcast address, no route."""
    with entered(site.gateway):
        sockets = ReplySockets({4})
        ip("-n", site.gateway, "route", "add", "unreachable", "203.0.113.0/24")
    with closing(sockets):
        for destination in ("192.0.2.255", "255.255.255.255", "203.0.113.1"):
            packet = bytearray(40)
            packet[0], packet[3], packet[9] = 0x45, 40, 6
            packet[12:20] = ip_address(AWAY).packed + ip_address(destination).packed
            assert not sockets.send(bytes(packet))
            packet[16:20] = ip_address(CLIENT).packed
            assert sockets.send(bytes(packet))
