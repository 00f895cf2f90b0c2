"""What all who judge packets share: verdicts, hooks, and which TCP headers cannot be.

Owns no packet; `path` has the way of one.
"""

from nfqlb.core.segment import FIN, RST, SYN

# verdicts
DROP = 0
ACCEPT = 1
CHANGED = 2  # accept, with the bytes as they stand in the buffer now

# where a packet was queued (linux/netfilter.h): the rules send us the client line in PREROUTING,
# the server line in FORWARD, and the gateway's own ICMP errors in OUTPUT
PREROUTING = 0
FORWARD = 2
OUTPUT = 3

#: A buffer must go on for so many bytes after a packet's start: headers are read before they are measured.
LOOKAHEAD = 64

_NEVER = 1 << 30


def absurd(flags: int) -> bool:
    """Whether no TCP segment has these flags together."""
    return bool(flags & SYN and flags & (FIN | RST))


def least_lengths(before: int) -> list[int]:
    """By the word of TCP offset and flags: the least length that holds such a header, `before` bytes into it.

    No length does for a header too short, or for flags that no segment has together.
    """
    return [
        _NEVER if word >> 12 < 5 or absurd(word) else before + (word >> 12) * 4 for word in range(0x10000)
    ]
