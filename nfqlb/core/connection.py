"""One connection: what is kept of it, and where a segment's numbers put it.

Owns `Connection` (the patent's connection object, fig 3C) and the sequence-number
arithmetic on it. A million of these must fit (R060), so the object holds two keys, its
link, and a few values that are shared or small; all that is the same for every connection
of a link (addresses, ports, checksum differences) is in the link.
"""

from nfqlb.core.audit import Recount
from nfqlb.core.response import Interval
from nfqlb.core.server import Link
from nfqlb.core.states import State

#: How far past the newest number seen a reset may lie and still count. A sender's next number is at most
#: one 64 KB super-packet past its last segment's own; twice that leaves room for one lost to us.
#: A blind reset then hits with a chance of 1 in 16,384 (RFC 5961 section 3 has the attack).
RESET_WINDOW = 131_072
#: How far a client's newest segment may lie past what the server has acknowledged: more than Linux's largest
#: receive buffer (tcp_rmem, 6 MB). Beyond that somebody else made it up.
IN_FLIGHT = 8_388_608
_WRAP = 0xFFFF_FFFF


class Connection:
    """A connection between a client and a real server (fig 3C, R050-R058).

    `inbound` and `outbound` are the keys of its two directions: source address, destination
    address, source port, destination port as they stand in the packet (network order).
    `client_numbers` and `server_numbers` are the sequence and acknowledgement number of the
    side's newest segment (8 bytes, network order; empty where unknown, as after a restart).
    `attempts` are the SYNs sent to the present server, 0 once that is held to have ditched it.
    `interval` is the response time under measurement, None where nothing is measured (any more).
    `quick` says that a plain segment of the server changes nothing but its numbers and `seen`; the
    client's does neither where `interval` is None too.
    `opened` and `seen` are seconds. `place` is the journal's record, `recount` the audit's last count of it.
    """

    __slots__ = (
        "attempts",
        "client_numbers",
        "inbound",
        "interval",
        "link",
        "opened",
        "outbound",
        "place",
        "quick",
        "recount",
        "seen",
        "server_numbers",
        "state",
    )

    def __init__(self, inbound: bytes, outbound: bytes, link: Link, now: float) -> None:
        self.inbound = inbound
        self.outbound = outbound
        self.link = link
        self.state = State.GONE
        self.opened = now
        self.seen = now
        self.client_numbers = b""
        self.server_numbers = b""
        self.attempts = 1
        self.place = -1
        self.interval: Interval | None = None
        self.quick = False
        self.recount: Recount | None = None

    def settle(self) -> None:
        """Follow a change of state or of measuring: may plain segments take the short path?

        An ended connection is not measured any more.
        """
        if self.state.ended:
            self.interval = None
        self.quick = self.state.quick and (self.interval is None or not self.interval.armed)

    def same_syn(self, numbers: bytes) -> bool:
        """Whether a SYN with these numbers repeats the one this connection was made for (R111, A18)."""
        return not self.client_numbers or self.client_numbers[:4] == numbers[:4]

    def acknowledges_server(self, numbers: bytes) -> bool:
        """Whether a client's segment acknowledges the server's SYN.

        Who only guesses addresses cannot know that number, so a flood of forged SYNs and
        ACKs leaves half-open entries, which go first when the table is full.
        """
        if not self.server_numbers:
            return True
        return 0 < _ahead(numbers[4:8], self.server_numbers[:4]) <= RESET_WINDOW

    def acknowledges_client(self, numbers: bytes) -> bool:
        """Whether a server's segment answers the SYN this connection was made for.

        It must acknowledge that SYN (RFC 9293 section 3.10.7.3), and any data it carried (RFC 7413).
        """
        if not self.client_numbers:
            return True
        return 0 < _ahead(numbers[4:8], self.client_numbers[:4]) <= RESET_WINDOW

    def new_data_end(self, size: int, end: int) -> int | None:
        """The sequence number after the client's newest segment with `size` bytes of data.

        None if that is not past `end`, the same of earlier ones (-1: none seen): a repetition, or too
        far ahead to be the client's own (A3b).
        """
        own = (int.from_bytes(self.client_numbers[:4], "big") + size) & _WRAP
        return own if end < 0 or 0 < (own - end) & _WRAP <= IN_FLIGHT else None

    def client_reset_fits(self, numbers: bytes) -> bool:
        """Whether a reset from the client lies inside the window (RFC 5961 section 3).

        What the server has acknowledged decides, as anybody may send segments in the client's
        name: its newest segment counts only where it can have been the client's own.
        """
        own = self.client_numbers
        if own and self.server_numbers and _ahead(own[:4], self.server_numbers[4:8]) > IN_FLIGHT:
            own = b""
        return _fits(numbers, own, self.server_numbers)

    def server_reset_fits(self, numbers: bytes) -> bool:
        """Whether a reset from the server lies inside the window.

        A refusal of the SYN has no number of its own: it must acknowledge the SYN
        (RFC 9293 section 3.10.7.3).
        """
        if self.state is State.SYN_SENT:
            return self.acknowledges_client(numbers)
        if self.state is State.SYN_RECEIVED:  # the client has acknowledged nothing yet
            return _fits(numbers, self.server_numbers, b"")
        return _fits(numbers, self.server_numbers, self.client_numbers)


def _ahead(number: bytes, base: bytes) -> int:
    """How far `number` is past `base`, modulo 2**32 (RFC 9293 section 3.4)."""
    return (int.from_bytes(number, "big") - int.from_bytes(base, "big")) & _WRAP


def _fits(reset: bytes, own: bytes, peer: bytes) -> bool:
    """Whether a reset's number follows its sender's newest segment or its peer's newest acknowledgement."""
    if not own and not peer:
        return True
    number = reset[:4]
    if own and _ahead(number, own[:4]) <= RESET_WINDOW:
        return True
    return bool(peer) and _ahead(number, peer[4:8]) <= RESET_WINDOW
