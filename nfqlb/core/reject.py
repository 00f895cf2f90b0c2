"""What becomes of packets that belong to no connection: the reject policy (R113, R114, R117, A20).

Owns the table by side and kind of packet, and how many replies there may be. Who is refused finds
out by silence ("drop") or is told ("reset"). Replies are built in `packet.reply`; the refused
packet itself is dropped and counted under its reason in either case.
"""

from collections.abc import Iterable, Mapping
from enum import Enum, auto

from nfqlb.core.destinations import Destinations
from nfqlb.core.keys import client_of
from nfqlb.core.segment import RST
from nfqlb.core.server import VirtualServer
from nfqlb.core.spec import Virtual
from nfqlb.core.verdict import Drop, Refusal, Reply, Tally

#: Replies a second to one kind of packet, and as many at once: what Linux allows itself for ICMP
#: (net.ipv4.icmp_msgs_per_sec), so that a flood is not answered one for one. They cost the worker a
#: hundredth of its time.
REPLIES_A_SECOND = 1000


class Side(Enum):
    """Where a packet comes from (R004): the client line 202, the server line 204 or the gateway itself."""

    CLIENTS = auto()
    SERVERS = auto()


class Kind(Enum):
    """What a packet without a connection is."""

    __hash__ = object.__hash__

    SYN = auto()  # asks for a connection, and no server can take it
    SEGMENT = auto()  # any other TCP segment, but for:
    RESET = auto()
    DATAGRAM = auto()  # UDP, and no server can take it
    ERROR = auto()  # an ICMP error that quotes a packet of no connection
    BROKEN = auto()  # malformed, cut short, or a later fragment
    OTHER = auto()  # other protocols, and what else there is of ICMP


class Action(Enum):
    """What is done with a packet; those which reply drop it as well."""

    DROP = auto()
    PASS = auto()
    RESET = auto()
    UNREACHABLE = auto()


POLICY: Mapping[tuple[Side, Kind], tuple[Action, Action]] = {
    #                           reject = "drop", reject = "reset"
    (Side.CLIENTS, Kind.SYN):      (Action.DROP, Action.RESET),
    (Side.CLIENTS, Kind.SEGMENT):  (Action.DROP, Action.RESET),
    (Side.CLIENTS, Kind.RESET):    (Action.DROP, Action.DROP),  # never answered: RFC 9293 section 3.10.7.1
    (Side.CLIENTS, Kind.DATAGRAM): (Action.DROP, Action.UNREACHABLE),
    (Side.CLIENTS, Kind.ERROR):    (Action.PASS, Action.PASS),
    (Side.CLIENTS, Kind.BROKEN):   (Action.DROP, Action.DROP),
    (Side.CLIENTS, Kind.OTHER):    (Action.PASS, Action.PASS),
    # what comes from a server's port behind a virtual server would show the client a real address
    (Side.SERVERS, Kind.SYN):      (Action.DROP, Action.DROP),
    (Side.SERVERS, Kind.SEGMENT):  (Action.DROP, Action.DROP),
    (Side.SERVERS, Kind.RESET):    (Action.DROP, Action.DROP),
    (Side.SERVERS, Kind.DATAGRAM): (Action.DROP, Action.DROP),
    (Side.SERVERS, Kind.ERROR):    (Action.PASS, Action.PASS),
    (Side.SERVERS, Kind.BROKEN):   (Action.DROP, Action.DROP),
    (Side.SERVERS, Kind.OTHER):    (Action.PASS, Action.PASS),
}  # fmt: skip

#: The reasons of refusals that a client may be told of. All others: it has sent nothing of ours, or nonsense.
_TOLD = frozenset(
    (Drop.NO_SERVER, Drop.OUT_OF_SERVICE, Drop.COLLISION, Drop.TABLE_FULL, Drop.NO_CONNECTION)
)
_REPLIES = {Action.RESET: Reply.RESET, Action.UNREACHABLE: Reply.UNREACHABLE}


class Allowance:
    """A bucket of tokens: `rate` a second, `rate` at most; full at first."""

    __slots__ = ("_at", "_left", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._left = rate
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take one; False if there is none."""
        self._left = min(self.rate, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Rejection:
    """The policy of one director; `virtuals` are its virtual servers by address and port."""

    def __init__(
        self, destinations: Destinations, virtuals: Iterable[VirtualServer], tally: Tally
    ) -> None:
        self._destinations = destinations
        self._tally = tally
        self._own: frozenset[bytes] = frozenset()
        self.follow(virtuals)
        self._allowances = {kind: Allowance(REPLIES_A_SECOND) for kind in Kind}  # no kind silences another

    def follow(self, virtuals: Iterable[VirtualServer]) -> None:
        """These are the virtual servers from now on."""
        self._own = frozenset(virtual.spec.address.packed for virtual in virtuals)

    def reply_to(self, reason: Refusal, key: bytes, flags: int | None, now: float) -> Action:
        """What a client's packet that was refused for `reason` gets; a reply is counted, and to be sent.

        `key` is the packet's, `flags` are TCP's, None for a datagram.
        """
        virtual = self._destinations.find(key)
        if reason not in _TOLD or virtual is None or not self._can_be_told(client_of(key)):
            return Action.DROP
        kind = _kind(reason, flags)
        action = POLICY[Side.CLIENTS, kind][rejects_with_reset(virtual.spec, kind)]
        reply = _REPLIES.get(action)
        if reply is None:
            return action
        allowed = self._allowances[kind].take(now)
        self._tally.reply(reply if allowed else Reply.OVER_LIMIT)
        return action if allowed else Action.DROP

    def _can_be_told(self, client: bytes) -> bool:
        """Whether an address can be a single client's (RFC 1122 section 3.2.2, RFC 4443 section 2.4)."""
        return client not in self._own and not (_no_client4 if len(client) == 4 else _no_client6)(client)


def rejects_with_reset(virtual: Virtual, kind: Kind) -> bool:
    """Whether a virtual server's clients are told.

    Those of a failed server's connections are with on_failure = "reset", in whatever state their
    connection is found by then (A34).
    """
    if kind is Kind.SEGMENT and virtual.on_failure == "reset":
        return True
    return virtual.reject == "reset"


def _kind(reason: Refusal, flags: int | None) -> Kind:
    if flags is None:
        return Kind.DATAGRAM
    if flags & RST:
        return Kind.RESET
    return Kind.SEGMENT if reason is Drop.NO_CONNECTION else Kind.SYN


def _no_client4(address: bytes) -> bool:
    """ "This" network, loopback, multicast, reserved, broadcast (RFC 1122 section 3.2.1.3)."""
    return address[0] in (0, 127) or address[0] >= 224


def _no_client6(address: bytes) -> bool:
    """Multicast, unspecified, loopback, IPv4-mapped; link-local, which names no link here (RFC 4291)."""
    if address[0] == 0xFF or (address[0] == 0xFE and address[1] & 0xC0 == 0x80):
        return True
    return not any(address[:15]) or address[:12] == bytes(10) + b"\xff\xff"
