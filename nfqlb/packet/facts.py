"""What is decoded of a packet that takes no short path.

Owns the facts that `decode` and `decode6` come out with, and the layouts of the two IP headers. All places
are in bytes from the packet's start.
"""

from dataclasses import dataclass
from typing import NamedTuple

from nfqlb.core.segment import Segment
from nfqlb.core.verdict import Drop, Pass


class Layout(NamedTuple):
    """Where an IP header has its fields. `header_sum` is None where there is none (IPv6)."""

    source: int
    destination: int
    size: int
    header_sum: int | None


IPV4 = Layout(source=12, destination=16, size=4, header_sum=10)  # RFC 791
IPV6 = Layout(source=8, destination=24, size=16, header_sum=None)  # RFC 8200


@dataclass(frozen=True, slots=True)
class TcpPacket:
    """A TCP segment, and where its TCP header begins."""

    segment: Segment
    transport_at: int
    layout: Layout = IPV4

    @property
    def key(self) -> bytes:
        """The segment's key."""
        return self.segment.key

    @property
    def flags(self) -> int:
        """TCP's flags."""
        return self.segment.flags


@dataclass(frozen=True, slots=True)
class UdpPacket:
    """A UDP datagram's key, where its UDP header begins, and how many bytes its length field says it has."""

    key: bytes
    transport_at: int
    length: int
    layout: Layout = IPV4

    @property
    def flags(self) -> None:
        """None: a datagram has none."""


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An ICMP error about a TCP segment or a UDP datagram.

    `quoted` is the key of the packet it quotes, as it stands there; `udp` says what that is. `icmp_at`,
    `quoted_at` and `quoted_transport_at` are where the ICMP header, the quoted IP header and the
    quoted transport header begin. `unreachable` is false for "fragmentation needed" and "packet too big",
    which path-MTU discovery lives on.
    """

    quoted: bytes
    unreachable: bool
    icmp_at: int
    quoted_at: int
    quoted_transport_at: int
    udp: bool = False
    layout: Layout = IPV4


Decoded = TcpPacket | UdpPacket | IcmpError | Drop | Pass
