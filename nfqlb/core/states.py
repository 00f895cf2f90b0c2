"""The states of a connection, what each counts for, and what moves one to the next.

Owns two tables. `State` says of each state which time-out runs, whether it counts as a
connection of its server (R125-R129; `counting` fills in what the operator chose), whether it
counts as an unanswered SYN (R183), and whether plain packets may take the short path.
`TRANSITIONS` says which event leads where; an event that is not listed changes nothing.
Counters are moved by nothing else than the difference of two states' rows, so no counter can
move twice (A17).
"""

from enum import Enum, auto


class Timeout(Enum):
    """Which of the time-outs runs in a state (A24)."""

    __hash__ = object.__hash__

    HALF_OPEN = auto()
    IDLE = auto()
    CLOSING = auto()
    UDP_NEW = auto()
    UDP = auto()


class Counted(Enum):
    """Whether a state counts as a connection of its server: always, never, or as the operator chose.

    The value holds the key of `[gateway]` and the words of it under which the state counts.
    """

    __hash__ = object.__hash__

    NEVER = ("count_on", ())
    ALWAYS = ("count_on", ("syn", "syn-ack"))
    BEFORE_ANSWER = ("count_on", ("syn",))  # R125, else R126
    HALF_CLOSED = ("close_on", ("both", "time-out"))  # not R127
    CLOSED = ("close_on", ("time-out",))  # R129


class State(Enum):
    """A connection's state; the members' values are one row each.

    `code` is the byte that stands for the state in the journal; it never changes meaning.
    `ended`: nothing more is to come of it, only late packets are still translated. `half_open`:
    it waits for the end of TCP's handshake. `udp`: it is a UDP flow's.
    """

    #               code  shown           time-out           counted         unanswered quick
    SYN_SENT     = (1, "syn-sent",     Timeout.HALF_OPEN, Counted.BEFORE_ANSWER, True,  False)  # fmt: skip
    SYN_RECEIVED = (2, "syn-received", Timeout.HALF_OPEN, Counted.ALWAYS,        False, False)  # fmt: skip
    ESTABLISHED  = (3, "established",  Timeout.IDLE,      Counted.ALWAYS,        False, True)  # fmt: skip
    FIN_CLIENT   = (4, "fin-client",   Timeout.IDLE,      Counted.HALF_CLOSED,   False, True)  # fmt: skip
    FIN_SERVER   = (5, "fin-server",   Timeout.IDLE,      Counted.HALF_CLOSED,   False, True)  # fmt: skip
    CLOSED       = (6, "closed",       Timeout.CLOSING,   Counted.CLOSED,        False, True)  # fmt: skip
    ABORTED      = (8, "closed",       Timeout.CLOSING,   Counted.NEVER,         False, True)  # fmt: skip
    # A UDP flow has no handshake and no end but its time-out. Nothing has come back, or something has.
    UDP_NEW      = (7, "udp-new",      Timeout.UDP_NEW,   Counted.ALWAYS,        False, False)  # fmt: skip
    UDP_FLOW     = (9, "udp",          Timeout.UDP,       Counted.ALWAYS,        False, True)  # fmt: skip
    GONE         = (0, "gone",         None,              Counted.NEVER,         False, False)  # fmt: skip

    __hash__ = object.__hash__  # members are looked up for every segment that changes a connection

    def __init__(
        self, code: int, shown: str, timeout: Timeout | None, counted: Counted, unanswered: bool, quick: bool
    ) -> None:
        self.code = code
        self.shown = shown
        self.timeout = timeout
        self.counted = counted
        self.unanswered = unanswered
        self.quick = quick
        self.ended = timeout is Timeout.CLOSING
        self.half_open = timeout is Timeout.HALF_OPEN
        self.udp = timeout in (Timeout.UDP_NEW, Timeout.UDP)


def counting(count_on: str, close_on: str) -> dict[State, bool]:
    """The column `counted`, as `[gateway] count_on` and `close_on` fill it in (R125-R129, A17).

    A connection counts from its SYN ("syn") or the server's answer ("syn-ack") on, until the first
    FIN ("fin"), until both directions are closed ("both"), or until it is forgotten ("time-out"). A
    reset ends it at once in any case.
    """
    chosen = {"count_on": count_on, "close_on": close_on}
    columns = {state: state.counted.value for state in State}
    return {state: chosen[key] in words for state, (key, words) in columns.items()}


class Event(Enum):
    """What a segment means for its connection."""

    __hash__ = object.__hash__

    SYN_ACK = auto()  # the server answered (R077)
    ACK = auto()  # the client acknowledged the server's sequence number (R078)
    CLIENT_FIN = auto()
    SERVER_FIN = auto()
    RESET = auto()  # by either side, inside its window (RFC 5961 section 3)
    ANSWER = auto()  # a server's datagram


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.SYN_SENT: {
        Event.SYN_ACK: State.SYN_RECEIVED,
        Event.RESET: State.ABORTED,
    },
    State.SYN_RECEIVED: {
        Event.ACK: State.ESTABLISHED,
        Event.CLIENT_FIN: State.FIN_CLIENT,
        Event.SERVER_FIN: State.FIN_SERVER,
        Event.RESET: State.ABORTED,
    },
    State.ESTABLISHED: {
        Event.CLIENT_FIN: State.FIN_CLIENT,
        Event.SERVER_FIN: State.FIN_SERVER,
        Event.RESET: State.ABORTED,
    },
    # the connection has ended when both directions are closed
    State.FIN_CLIENT: {Event.SERVER_FIN: State.CLOSED, Event.RESET: State.ABORTED},
    State.FIN_SERVER: {Event.CLIENT_FIN: State.CLOSED, Event.RESET: State.ABORTED},
    State.CLOSED: {Event.RESET: State.ABORTED},  # it may still count (R129)
    State.ABORTED: {},
    State.UDP_NEW: {Event.ANSWER: State.UDP_FLOW},
    State.UDP_FLOW: {},
    State.GONE: {},
}

BY_CODE: dict[int, State] = {state.code: state for state in State}
