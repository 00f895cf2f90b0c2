"""The facts of one TCP segment that decisions are made from, and of one that is to be sent.

Owns `Segment`, `Reset`, `Probe` and the names of the TCP flags. The codec makes segments from bytes, and
bytes from resets; tests make segments from nothing.
"""

from typing import NamedTuple

FIN = 0x01
SYN = 0x02
RST = 0x04
ACK = 0x10


#: When the kernel received a packet: seconds and microseconds of the wall clock; empty where it did not say.
Stamp = tuple[int, ...]
NO_STAMP: Stamp = ()


class Segment(NamedTuple):
    """One TCP segment as the director sees it.

    `key` is source address, destination address, source port, destination port in network
    order, as in the packet (R019). `numbers` are its sequence and acknowledgement number,
    8 bytes in network order. `size` is how many bytes of data it carries, `stamp` when the kernel
    received it.
    """

    key: bytes
    flags: int
    numbers: bytes
    size: int = 0
    stamp: Stamp = NO_STAMP


class Reset(NamedTuple):
    """A TCP reset that a client is to get.

    `key` is as in the packet (virtual server to client), `sequence` its number; `acknowledges` is None for
    one without ACK.
    """

    key: bytes
    sequence: int
    acknowledges: int | None


class Probe(NamedTuple):
    """A SYN-ACK that a client never asked for: it answers with the number that it expects next.

    So it does whatever its own numbers are (RFC 5961 section 4.2), and conntrack makes no connection of it.
    `key` is as in the packet (virtual server to client).
    """

    key: bytes
