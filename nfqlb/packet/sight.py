"""What a frame of a capture says: the facts of its segment or datagram.

Owns the way from a frame to its IP packet, by its link type, and from there to the facts that the core
decides by. A capture may hold the first bytes of each packet only, and packets that no well-behaved system
sends: what cannot be told is None. Checksums are not looked at, as captures of a sender hold unfinished ones.
"""

from typing import NamedTuple

from nfqlb.core import keys
from nfqlb.core.segment import SYN, Segment, Stamp
from nfqlb.packet.decode import decode
from nfqlb.packet.decode6 import decode6, walk
from nfqlb.packet.facts import IcmpError
from nfqlb.packet.frame import Frame
from nfqlb.packet.verdicts import absurd

# link types (https://www.tcpdump.org/linktypes.html)
_NULL, _ETHERNET, _RAW, _LOOP, _SLL, _IPV4, _IPV6, _SLL2 = 0, 1, 101, 108, 113, 228, 229, 276
_BARE = frozenset((_RAW, _IPV4, _IPV6, 12, 14))  # 12 and 14: what some systems write for RAW
_IP_TYPES = (b"\x08\x00", b"\x86\xdd")
_VLAN_TYPES = (b"\x81\x00", b"\x88\xa8", b"\x91\x00")
_MOST_TAGS = 4
#: Where the ethertype of a cooked packet stands, and where its payload begins.
_COOKED = {_SLL: (14, 16), _SLL2: (0, 20)}
_FRAGMENT_OFFSET = 0x1FFF
_PLAIN, _TCP = 0x45, bytes((keys.TCP,))  # an IPv4 header without options


class Seen(NamedTuple):
    """A TCP segment or UDP datagram, as the core has keys; `flags` and `numbers` are a segment's.

    `place` tells apart by which of several interfaces it was seen; `size` is how many bytes of data it had.
    """

    key: bytes
    flags: int | None
    numbers: bytes
    size: int
    stamp: Stamp
    place: int

    def segment(self, key: bytes) -> Segment:
        """The same segment under another key: translated."""
        assert self.flags is not None
        return Segment(key, self.flags, self.numbers, self.size, self.stamp)

    @property
    def opens(self) -> bool:
        """Whether it is a SYN without ACK."""
        return self.flags is not None and self.flags & 0x12 == SYN


def ip_at(frame: Frame) -> int | None:
    """Where a frame's IP packet begins; None where it holds none."""
    data, link = frame.data, frame.link
    if link in _BARE:
        return 0
    if link in (_NULL, _LOOP):  # the address family differs from system to system; the version does not
        return 4
    if link in _COOKED:
        kind, payload = _COOKED[link]
        return payload if data[kind : kind + 2] in _IP_TYPES else None
    if link != _ETHERNET:
        return None
    at = 12
    for _ in range(_MOST_TAGS):
        if data[at : at + 2] not in _VLAN_TYPES:
            break
        at += 4
    return at + 2 if data[at : at + 2] in _IP_TYPES else None


def see(frame: Frame) -> Seen | None:
    """A frame's segment or datagram; None where it has none that can be told."""
    begin = ip_at(frame)
    if begin is None or begin >= len(frame.data):
        return None
    packet, size = frame.data[begin:], frame.size - begin
    found = _transport4(packet, size) if packet[0] >> 4 == 4 else _transport6(packet, size)
    if found is None:
        return None
    addresses, protocol, at, total = found
    place = frame.interface
    if frame.link == _SLL2:
        place = place << 32 | int.from_bytes(frame.data[4:8], "big")
    header = packet[at : at + 14]
    if protocol == keys.UDP:
        if len(header) < 8:
            return None
        return Seen(
            addresses + header[:4] + keys.UDP_END, None, b"", max(total - at - 8, 0), frame.stamp, place
        )
    if len(header) < 14:
        return None
    flags = int.from_bytes(header[12:14], "big")
    offset = (flags >> 12) * 4
    if offset < 20 or absurd(flags):
        return None
    data = max(total - at - offset, 0)
    return Seen(addresses + header[:4], flags & 0xFFF, header[4:12], data, frame.stamp, place)


def key_of(packet: bytes, size: int) -> bytes | None:
    """The key of the IP packet of `size` bytes that these are the first of; None where it has no ports.

    Of an ICMP error that is the key of the packet that it quotes, turned round: as its sender would be
    answered.
    """
    if not packet:
        return None
    if packet[0] == _PLAIN and packet[9:10] == _TCP and not packet[6] & 0x1F and not packet[7]:
        return packet[12:24] if len(packet) >= 24 else None  # the same, for what most packets are
    found = _transport4(packet, size) if packet[0] >> 4 == 4 else _transport6(packet, size)
    if found is not None:
        addresses, protocol, at, _ = found
        ports = packet[at : at + 4]
        return addresses + ports + keys.key_end(protocol) if len(ports) == 4 else None
    decoded = (decode if packet[0] >> 4 == 4 else decode6)(packet, size)
    return keys.flipped(decoded.quoted) if isinstance(decoded, IcmpError) else None


#: Addresses, protocol, where its header begins, and the packet's length.
_Transport = tuple[bytes, int, int, int]


def _transport4(packet: bytes, size: int) -> _Transport | None:
    header = (packet[0] & 0xF) * 4
    if len(packet) < 20 or header < 20 or packet[9] not in (keys.TCP, keys.UDP):
        return None
    if int.from_bytes(packet[6:8], "big") & _FRAGMENT_OFFSET:
        return None
    total = (
        int.from_bytes(packet[2:4], "big") or size
    )  # 0: longer than the field can say, before it is cut up
    return packet[12:20], packet[9], header, min(total, size)


def _transport6(packet: bytes, size: int) -> _Transport | None:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return None
    payload = walk(packet, 0)
    if payload is None or payload.protocol not in (keys.TCP, keys.UDP) or payload.fragment & 0xFFF8:
        return None
    length = int.from_bytes(packet[4:6], "big")
    return packet[8:40], payload.protocol, payload.at, min(40 + length, size) if length else size
