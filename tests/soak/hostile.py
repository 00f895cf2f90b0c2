"""Damaged packets: `python -m tests.soak.hostile SEED RATE INTERFACE MAC`, run inside a client's namespace.

What the fuzzer's generator makes, half of it damaged further, RATE a second, straight to the gateway's link
address, so that the sender's own kernel refuses nothing. Until SIGTERM; then it writes how many there were.
"""

import random
import signal
import socket
import sys
import time

from tests.fuzz.choices import Choices
from tests.fuzz.mutants import damage, nobody, packet

_MOST = 1400


def made(chance: random.Random) -> bytes:
    """One packet of IPv4 or IPv6."""
    choices = Choices(chance.randbytes(512))
    data = packet(choices, nobody, inbound=True).data
    return (damage(choices, data) if chance.random() < 0.5 else data)[:_MOST]


def main(seed: int, rate: float, interface: str, mac: str) -> None:
    """Send until SIGTERM."""
    chance, going, sent = random.Random(seed), [True], 0
    signal.signal(signal.SIGTERM, lambda _number, _frame: going.clear())
    line = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    begun = time.monotonic()
    while going:
        if sent > (time.monotonic() - begun) * rate:
            time.sleep(0.01)
            continue
        data = made(chance)
        kind = 0x86DD if data[:1] >= b"\x60" else 0x0800
        line.sendto(data, (interface, kind, 0, 0, bytes.fromhex(mac.replace(":", ""))))
        sent += 1
    print(sent)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4])
