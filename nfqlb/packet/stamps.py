"""When packets were received, for those from which response times are measured.

Owns the reading of the kernel's time stamps, which takes a tenth of what a packet costs: so it is
done only where the stamp will be used.
"""

from struct import Struct

from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.segment import NO_STAMP, SYN

#: Seconds and microseconds (NFQA_TIMESTAMP), at its place in the buffer.
read_stamp = Struct("!QQ").unpack_from


def client_sent(
    director: Director, connection: Connection, flags: int, numbers: bytes, size: int, buffer: bytearray,
    stamp_at: int, now: float,
) -> None:  # fmt: skip
    """A client's segment, with `size` bytes of data, that changes its connection or what is measured.

    `stamp_at` is where its time stamp stands, 0 if it has none; `now` is in seconds.
    """
    measured = size and stamp_at and connection.interval is not None
    stamp = read_stamp(buffer, stamp_at) if measured else NO_STAMP
    director.client_sent(connection, flags, numbers, now, size, stamp)


def server_sent(
    director: Director, connection: Connection, flags: int, numbers: bytes, size: int, buffer: bytearray,
    stamp_at: int, now: float,
) -> None:  # fmt: skip
    """The same for a server's segment."""
    measured = (size or flags & SYN) and stamp_at and connection.interval is not None
    stamp = read_stamp(buffer, stamp_at) if measured else NO_STAMP
    director.server_sent(connection, flags, numbers, now, size, stamp)
