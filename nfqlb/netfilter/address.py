"""Virtual addresses as addresses of the gateway: added, announced, and taken away again.

An address inside the subnet of an outside interface is added to it as a /32, so that the gateway
answers ARP for it; any other is left to routing. What was there before is left alone. Ours carries
a tag in the kernel itself (address protocol and label), so that what a crash leaves behind is
recognised without any file.

Start: rules first, then the address. Stop: the address first, then the rules. Otherwise the
gateway's own TCP stack resets clients in between.
"""

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
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
    others = [entry for entry in present if not entry.ours]
    taken = {entry.address.ip for entry in others}
    found: dict[Address, Placement] = {}
    for virtual in config.virtuals:
        address = virtual.address
        if not isinstance(address, IPv4Address) or address in taken:
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
    """Tells the neighbours that the address is here now: ARP request and reply for itself (RFC 5227, 3).

    Some hosts learn from the one, some from the other. Raises KernelError where it cannot be sent.
    """
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind((placement.interface, _ARP))
            hardware = link.getsockname()[4]
            for operation in (_REQUEST, _REPLY):
                link.send(announcement(hardware, placement.address, operation))
    except OSError as error:
        raise KernelError(
            f"{placement.address} cannot be announced on {placement.interface}: {error.strerror}"
        ) from None


def announcement(hardware: bytes, address: Address, operation: bytes = _REQUEST) -> bytes:
    """An Ethernet frame in which `hardware` (6 bytes) says that `address` is its own."""
    target = _BROADCAST if operation == _REPLY else bytes(6)
    claim = hardware + address.packed + target + address.packed
    return _BROADCAST + hardware + _ARP.to_bytes(2) + _ARP_HEADER + operation + claim


def _add(route: Any, index: int, placement: Placement) -> None:
    """Adds one address with every tag that fits. Untagged it would outlive us, so it is taken back then."""
    label = placement.interface + LABEL
    tags: dict[str, Any] = {"proto": ADDRESS_PROTOCOL}
    if len(label) <= _LABEL_LIMIT:
        tags["label"] = label
    route.addr("add", index=index, address=str(placement.address), prefixlen=placement.prefix, **tags)
    here = [entry for entry in read_addresses(route) if entry.ours]
    if not any(entry.address.ip == placement.address for entry in here):
        _delete(route, index, placement)
        raise KernelError(
            f"{placement} cannot be tagged: this kernel has no address protocol, and the name is too long "
            f"for a label; add it yourself: ip address add {placement.address} dev {placement.interface}"
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
