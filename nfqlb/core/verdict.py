"""What the director answers: a connection to translate for, or a reason to do otherwise.

Owns the list of reasons. A packet is never dropped or passed over without one of these
being counted.
"""

from collections import Counter
from enum import Enum
from typing import TYPE_CHECKING

from nfqlb.core.connection import Connection

if TYPE_CHECKING:
    from nfqlb.core.server import VirtualServer


class Drop(Enum):
    """Why a packet is dropped; the value is what operators read (A20)."""

    NO_CONNECTION = "no-connection"  # a client's segment for a connection nobody knows (R113, R117)
    NO_SERVER = "no-server"  # no server may take a new connection (A28)
    COLLISION = "reverse-collision"  # no server left whose replies could be told apart (A5)
    TABLE_FULL = "table-full"  # and every connection in it is established (A23)
    SERVER_UNKNOWN = "server-no-connection"  # it would show the client a real address
    SYN_RATE = "over-syn-rate"  # more new connections than `synguard_rate` lets through
    UNREACHABLE = "unreachable-eaten"  # it would make the client give up; its next SYN may do better
    CUT = "cut"  # the kernel handed over less than the packet
    MALFORMED = "malformed"
    FRAGMENT = "fragment"  # no ports to look up by (A37)
    OUT_OF_SERVICE = "out-of-service"  # the operator has taken the virtual server out (R025)
    SUPER_DATAGRAM = "udp-super-packet"  # datagrams that the kernel could not part again, on their way in
    NO_VIRTUAL = "no-virtual-server"  # a SYN or datagram for what none of ours has
    ERROR = "internal-error"


class Pass(Enum):
    """Why a packet is let through as it is (A19, A20)."""

    NOT_OURS = "not-ours"


class Reply(Enum):
    """What clients are told; the value is what operators read (A20, A34)."""

    RESET = "reset"  # in answer to a refused segment
    UNREACHABLE = "unreachable"  # in answer to a refused datagram
    FAILURE = "reset-on-failure"  # to the client of a failed server's connection
    OVER_LIMIT = "over-limit"  # nothing: too many have been told just now
    NOT_SENT = "not-sent"  # nothing: the kernel did not take the packet


Refusal = Drop | Pass
Outcome = Connection | Refusal


class Tally:
    """Counts refusals by reason, and what clients were told of them."""

    __slots__ = ("_counts", "_replies")

    def __init__(self) -> None:
        self._counts: Counter[Refusal] = Counter()
        self._replies: Counter[Reply] = Counter()

    def add(self, reason: Refusal) -> None:
        """Count one."""
        self._counts[reason] += 1

    def refuse(self, reason: Refusal, virtual: "VirtualServer | None" = None) -> Refusal:
        """Count one and return it; `virtual` is whose packet it was, None where nobody can tell."""
        self._counts[reason] += 1
        if virtual is not None and isinstance(reason, Drop):
            virtual.drops[reason] = virtual.drops.get(reason, 0) + 1
        return reason

    def reply(self, what: Reply) -> None:
        """Count one reply to a client, or one that was not made."""
        self._replies[what] += 1

    def replies(self) -> dict[str, int]:
        """What clients were told, by kind; only kinds that occurred."""
        return {what.value: count for what, count in self._replies.items()}

    def drops(self) -> dict[str, int]:
        """How many packets were dropped, by reason; only reasons that occurred."""
        return {reason.value: count for reason, count in self._counts.items() if isinstance(reason, Drop)}

    def count(self, reason: Refusal) -> int:
        """How often this reason was given."""
        return self._counts[reason]
