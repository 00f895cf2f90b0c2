"""The empty callback: NetfilterQueue as its README shows it, every packet accepted unread.

Only the queue and the socket are larger than the package's own defaults, as large as nfqlb's,
so that the comparison is not about lost packets.
"""

import signal
import sys

from netfilterqueue import NetfilterQueue, Packet


def accept(packet: Packet) -> None:
    """Let the packet pass."""
    packet.accept()


def main() -> None:
    """Serve queue 0 until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    queue = NetfilterQueue()
    queue.bind(0, accept, max_len=8192, sock_len=8 << 20)
    try:
        print("ready", flush=True)
        queue.run()
    finally:
        queue.unbind()


if __name__ == "__main__":
    main()
