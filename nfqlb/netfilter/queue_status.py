"""The kernel's own account of its packet queues, `/proc/net/netfilter/nfnetlink_queue`.

Its columns (net/netfilter/nfnetlink_queue.c, seq_show): queue number, netlink port id of the reader, packets
waiting, copy mode, copy range, dropped because the queue was full, dropped because the reader's socket
was full, last packet id, and a 1. The counters begin anew with each bind and are 32 bits wide.
"""

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc/net/netfilter/nfnetlink_queue")
LOG_PROC = Path("/proc/net/netfilter/nfnetlink_log")


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One bound queue. `port` is the reader's netlink port id, most often its process id."""

    number: int
    port: int
    depth: int
    dropped_full: int
    dropped_socket: int
    last_id: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a queue has room for: packets that wait, and bytes of them in its reader's socket (`used` now)."""

    packets: int
    bytes: int
    used: int


def parse_queues(text: str) -> list[QueueStatus]:
    """The bound queues, in the file's order. A line of another form is left out: a newer kernel's, say."""
    queues = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 8 or not all(field.lstrip("-").isdecimal() for field in fields):
            continue
        number, port, depth, _mode, _range, full, sock, last = map(int, fields[:8])
        queues.append(QueueStatus(number, port, depth, full, sock, last))
    return queues


def bound(path: Path) -> frozenset[int] | None:
    """The queues, or with `LOG_PROC` the NFLOG groups, that somebody reads; None where it may not be read."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return frozenset()  # the kernel's module is gone, and all that was bound with it
    except OSError:
        return None
    return frozenset(int(line.split()[0]) for line in text.splitlines() if line.strip())


def read_queues(path: Path = PROC) -> list[QueueStatus]:
    """The bound queues of this network namespace; none where the kernel does not tell."""
    try:
        return parse_queues(path.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return []
