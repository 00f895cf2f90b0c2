"""What the director answers: a connection to translate for, or a reason to do otherwise.

Owns the list of reasons. A packet is never dropped or passed over without one of these
being counted.
"""

from collections import Counter
from enum import Enum

from nfqlb.core.connection import Connection


class Drop(Enum):
    """Why a packet is dropped; the value is what operators read (A20)."""

    NO_CONNECTION = "no-connection"  # a client's segment for a connection nobody knows (R113, R117)
    NO_SERVER = "no-server"  # no server may take a new connection (A28)
    COLLISION = "reverse-collision"  # no server left whose replies could be told apart (A5)
    TABLE_FULL = "table-full"  # and every connection in it is established (A23)
    SERVER_UNKNOWN = "server-no-connection"  # it would show the client a real address
    UNREACHABLE = "unreachable-eaten"  # it would make the client give up; its next SYN may do better
    CUT = "cut"  # the kernel handed over less than the packet
    MALFORMED = "malformed"
    FRAGMENT = "fragment"  # no ports to look up by (A37)
    SUPER_DATAGRAM = "udp-super-packet"  # datagrams that the kernel could not part again, on their way in
    NO_VIRTUAL = "no-virtual-server"  # a SYN or datagram for what none of ours has
    ERROR = "internal-error"


class Pass(Enum):
    """Why a packet is let through as it is (A19, A20)."""

    NOT_OURS = "not-ours"


Refusal = Drop | Pass
Outcome = Connection | Refusal


class Tally:
    """Counts refusals by reason."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: Counter[Refusal] = Counter()

    def add(self, reason: Refusal) -> None:
        """Count one."""
        self._counts[reason] += 1

    def refuse(self, reason: Refusal) -> Refusal:
        """Count one and return it."""
        self._counts[reason] += 1
        return reason

    def drops(self) -> dict[str, int]:
        """How many packets were dropped, by reason; only reasons that occurred."""
        return {reason.value: count for reason, count in self._counts.items() if isinstance(reason, Drop)}

    def count(self, reason: Refusal) -> int:
        """How often this reason was given."""
        return self._counts[reason]
