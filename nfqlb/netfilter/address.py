"""Virtual addresses as addresses of the gateway: added, announced, and taken away again.

An address inside the subnet of an outside interface is added to it as a /32 or /128, so that the
gateway answers ARP or neighbour solicitations for it; any other is left to routing. What was there
before is left alone. Ours carries a tag in the kernel itself (address protocol, of IPv4 also a
label), so that what a crash leaves behind is recognised without any file.

An IPv6 address gets a preferred lifetime of 0, or the gateway would take it for the source of its
own connections, and no duplicate address detection, or it would not answer for a second or two.

Start: rules first, then the address. Stop: the address first, then the rules. Otherwise the
gateway's own TCP stack resets clients in between.
"""

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from nfqlb.core.spec import Address, Config
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.facts import (
    ADDRESS_PROTOCOL,
    LABEL,
    InterfaceAddress,
    netlink,
    read_addresses,
    read_interfaces,
)

_ARP = 0x0806  # ETH_P_ARP
_BROADCAST = b"\xff" * 6
_ARP_HEADER = b"\x00\x01\x08\x00\x06\x04"  # Ethernet, IPv4, their lengths (RFC 826)
_REQUEST, _REPLY = b"\x00\x01", b"\x00\x02"
_IPV6 = 0x86DD  # ETH_P_IPV6
_ALL_NODES = ip_address("ff02::1").packed
_ALL_NODES_HARDWARE = bytes.fromhex("333300000001")  # RFC 2464, 7
_ICMPV6 = 58
_HOP_LIMIT = 255  # nothing else is believed (RFC 4861, 7.1.2)
_ADVERTISEMENT = 136  # ICMPv6 type (RFC 4861, 4.4)
_ROUTER_OVERRIDE = b"\xa0\x00\x00\x00"  # from a router, unsolicited, replaces what was known
_TARGET_HARDWARE = b"\x02\x01"  # option: target link-layer address, one unit of 8 bytes
_NODAD_NO_ROUTE = 0x02 | 0x200  # IFA_F_NODAD, IFA_F_NOPREFIXROUTE (include/uapi/linux/if_addr.h)
_FOREVER = 0xFFFFFFFF
_LABEL_LIMIT = 15  # IFNAMSIZ less the closing zero


@dataclass(frozen=True, slots=True)
class Placement:
    """A virtual address that the gateway must hold, and the interface to hold it."""

    interface: str
    address: Address

    @property
    def prefix(self) -> int:
        """The prefix length it is added with: the address alone."""
        return self.address.max_prefixlen

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix} on {self.interface}"


def placements(config: Config, present: Iterable[InterfaceAddress]) -> list[Placement]:
    """The virtual addresses that the gateway must hold, given the addresses it has without ours."""
    if not config.gateway.hold_addresses:
        return []
    others = [entry for entry in present if not entry.ours]
    taken = {entry.address.ip for entry in others}
    found: dict[Address, Placement] = {}
    for virtual in config.virtuals:
        address = virtual.address
        if address in taken:
            continue
        for entry in others:
            subnet = entry.address.network
            if (
                entry.interface in config.gateway.outside
                and subnet.prefixlen < subnet.max_prefixlen
                and address in subnet
            ):
                found.setdefault(address, Placement(entry.interface, address))
    return list(found.values())


def bring_up(config: Config) -> list[str]:
    """Adds and announces what `config` needs, keeps what is right of an earlier start, drops the rest.

    Returns a line for each address added or taken away. Raises KernelError.
    """
    done = []
    with netlink() as route:
        present = read_addresses(route)
        interfaces = read_interfaces(route)
        wanted = placements(config, present)
        held = [Placement(entry.interface, entry.address.ip) for entry in present if entry.ours]
        for old in held:
            if old not in wanted:
                done += _delete(route, interfaces[old.interface].index, old)
        for new in wanted:
            if new not in held:
                _add(route, interfaces[new.interface].index, new)
                done.append(f"address {new} added")
    for placement in wanted:
        if interfaces[placement.interface].ethernet:
            announce(placement)
    return done


def held() -> list[Placement]:
    """Every address that carries our tag, of whatever configuration. Raises KernelError."""
    with netlink() as route:
        return [Placement(entry.interface, entry.address.ip) for entry in read_addresses(route) if entry.ours]


def mend(config: Config, known: Iterable[Placement], *, change: bool) -> list[Placement]:
    """The addresses that `config` needs, or that were `known` to be held, and are not there; added by now.

    One whose interface is gone, or that has become somebody else's here, is not missed. With `change`
    False nothing is added. Raises KernelError.
    """
    with netlink() as route:
        present = read_addresses(route)
        interfaces = read_interfaces(route)
        here = {entry.address.ip for entry in present}
        meant = {virtual.address for virtual in config.virtuals}
        candidates = {each.address: each for each in [*known, *placements(config, present)]}
        missing = [
            each
            for address, each in candidates.items()
            if address in meant and address not in here and each.interface in interfaces
        ]
        for each in missing if change else ():
            _add(route, interfaces[each.interface].index, each)
    for each in missing if change else ():
        if interfaces[each.interface].ethernet and interfaces[each.interface].up:
            announce(each)
    return missing


def take_down() -> list[str]:
    """Removes every address that carries our tag, of whatever configuration. Returns a line for each."""
    done = []
    with netlink() as route:
        interfaces = read_interfaces(route)
        for entry in read_addresses(route):
            if entry.ours:
                old = Placement(entry.interface, entry.address.ip)
                done += _delete(route, interfaces[entry.interface].index, old)
    return done


def announce(placement: Placement) -> None:
    """Tells the neighbours that the address is here now. Raises KernelError where it cannot be sent.

    IPv4: ARP request and reply for itself (RFC 5227, 3), as some hosts learn from the one, some from
    the other. IPv6: an unsolicited neighbour advertisement (RFC 4861, 7.2.6).
    """
    address = placement.address
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind((placement.interface, 0))
            hardware = link.getsockname()[4]
            if address.version == 6:
                link.send(advertisement(hardware, address))
                return
            for operation in (_REQUEST, _REPLY):
                link.send(announcement(hardware, address, operation))
    except OSError as error:
        raise KernelError(
            f"{placement.address} cannot be announced on {placement.interface}: {error.strerror}"
        ) from None


def announcement(hardware: bytes, address: Address, operation: bytes = _REQUEST) -> bytes:
    """An Ethernet frame in which `hardware` (6 bytes) says by ARP that the IPv4 `address` is its own."""
    target = _BROADCAST if operation == _REPLY else bytes(6)
    claim = hardware + address.packed + target + address.packed
    return _BROADCAST + hardware + _ARP.to_bytes(2) + _ARP_HEADER + operation + claim


def advertisement(hardware: bytes, address: Address) -> bytes:
    """An Ethernet frame in which `hardware` (6 bytes) tells all nodes that the IPv6 `address` is its own."""
    body = _ROUTER_OVERRIDE + address.packed + _TARGET_HARDWARE + hardware
    return icmpv6_frame(
        hardware, _ALL_NODES_HARDWARE, address.packed, _ALL_NODES, _ADVERTISEMENT, body
    )


def icmpv6_frame(
    hardware: bytes, to_hardware: bytes, source: bytes, destination: bytes, kind: int, body: bytes
) -> bytes:
    """An Ethernet frame with an ICMPv6 message of neighbour discovery: its type, and what follows its sum."""
    length = 4 + len(body)
    head = bytes((kind, 0))
    pseudo = source + destination + length.to_bytes(4) + _ICMPV6.to_bytes(4)
    checksum = -int.from_bytes(pseudo + head + body) % 0xFFFF  # RFC 1071: modulo 65,535
    header = b"\x60\0\0\0" + length.to_bytes(2) + bytes((_ICMPV6, _HOP_LIMIT)) + source + destination
    message = head + checksum.to_bytes(2) + body
    return to_hardware + hardware + _IPV6.to_bytes(2) + header + message


def _add(route: Any, index: int, placement: Placement) -> None:
    """Adds one address with every tag that fits. Untagged it would outlive us, so it is taken back then."""
    label = placement.interface + LABEL
    tags: dict[str, Any] = {"proto": ADDRESS_PROTOCOL}
    by_hand = ""
    if placement.address.version == 6:
        tags |= {"flags": _NODAD_NO_ROUTE, "preferred_lft": 0, "valid_lft": _FOREVER}
        by_hand = " nodad preferred_lft 0"
    elif len(label) <= _LABEL_LIMIT:
        tags["label"] = label
    route.addr("add", index=index, address=str(placement.address), prefixlen=placement.prefix, **tags)
    here = [entry for entry in read_addresses(route) if entry.ours]
    if not any(entry.address.ip == placement.address for entry in here):
        _delete(route, index, placement)
        raise KernelError(
            f"{placement} cannot be tagged: this kernel has no address protocol, and there is no room for a "
            f"label; add it yourself: ip address add {placement.address}/{placement.prefix} "
            f"dev {placement.interface}{by_hand}"
        )


def _delete(route: Any, index: int, placement: Placement) -> list[str]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        route.addr("del", index=index, address=str(placement.address), prefixlen=placement.prefix)
    except NetlinkError as error:
        if error.code != errno.EADDRNOTAVAIL:
            raise
        return []
    return [f"address {placement} removed"]
