"""What each decision was made from: raw facts of the last ones of every virtual server.

Owns the record (R187): `Decisions`, a ring that is filled whenever a server is chosen for a SYN. That
happens on the way of every new connection, so nothing is worked out here: facts are kept as they are,
and `explanation` derives reasons from them when somebody asks.

Nor is any server looked at that has not changed: with each decision is kept what the changed ones were
before, and so the facts at an earlier decision are found by going back from the present. A decision costs
the same with 10 servers and with 1,000.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nfqlb.core.admission import ServerState
from nfqlb.core.health import Condition, Ditch
from nfqlb.core.response import ResponseTime
from nfqlb.core.selection import Choice, Findings
from nfqlb.core.verdict import Drop

if TYPE_CHECKING:
    from nfqlb.core.server import Link, RealServer, VirtualServer

#: Decisions that a virtual server keeps, where the servers of all are not too many for that.
KEPT = 256
#: Changes of servers that all records together may come to hold: some 50 MB, should every server change
#: between any two decisions.
_CHANGES = 262_144
#: What a decision takes beside them, in their size.
_FRAME = 4


class Facts(NamedTuple):
    """What a real server was judged by: see `RealServer`. `since` is when it came into its state."""

    state: ServerState
    condition: Condition
    weight: float
    connections: int
    unanswered: int
    since: float
    response: ResponseTime


_Raw = tuple[ServerState, Condition, float, int, int, float, ResponseTime]
#: What changed: a link's position, its server's facts before, and the other changes of the same decision.
_Undo = tuple[int, _Raw, "_Undo"] | tuple[()]


def _facts_of(real: "RealServer") -> _Raw:
    """The fields of `Facts`; making a plain tuple takes a fifth of the time."""
    return (
        real.state, real.health.condition, real.weight, real.connections, real.unanswered, real.since,
        real.response,
    )  # fmt: skip


class Decision(NamedTuple):
    """One decision: what was found, in seconds, bytes and positions.

    `raw` are all servers' facts before anything followed from it, by the positions of their links, a virtual
    server's own backup last. `now` is its moment, `key` the connection's, `last` the position of the link
    used last (308). `link` was chosen, for the reason `by` (see `Choice`); None where none was, for the
    reason `refused`, which is also given where the table was full, so that the choice came to nothing.
    `avoid` is the server that had not answered the connection. `bound`, `set_aside`, `crossed`, `shadowed`
    and `doubted` are the selection's `Findings`, `note` is the scheduler's.
    """

    raw: tuple[_Raw, ...]
    now: float
    key: bytes
    last: int
    link: "Link | None"
    by: str
    avoid: "RealServer | None"
    bound: "RealServer | None"
    set_aside: "Link | None"
    crossed: Sequence[int]
    shadowed: "Link | None"
    doubted: Mapping["RealServer", Ditch]
    note: Sequence[int] | None
    refused: Drop | None

    def facts(self) -> list[Facts]:
        """Every server's facts."""
        return list(map(Facts._make, self.raw))


#: What has changed since the decision before, the facts of a virtual server's own backup, then the fields of
#: `Decision` from `now` on, with the findings as they were told.
_Record = tuple[
    _Undo, _Raw | None, float, bytes, int, "Link | None", str, "RealServer | None",
    Findings, Sequence[int] | None, Drop | None,
]  # fmt: skip


class Decisions:
    """The last decisions of one virtual server, at most `length`.

    `stale` are the positions of links whose servers have changed since the last one.
    """

    __slots__ = ("_facts", "_reals", "_ring", "_virtual", "stale")

    def __init__(self, virtual: "VirtualServer", length: int) -> None:
        self.stale: set[int] = set()
        self._virtual = virtual
        self._reals = [link.real for link in virtual.links]
        self._facts = [_facts_of(real) for real in self._reals]
        self._ring: deque[_Record] = deque(maxlen=length)

    def note(
        self, now: float, key: bytes, outcome: Choice | Drop, avoid: "RealServer | None", found: Findings
    ) -> None:
        """Keep a decision. Nothing may have followed from it yet."""
        undo: _Undo = ()
        facts, stale = self._facts, self.stale
        while stale:
            at = stale.pop()
            undo = (at, facts[at], undo)
            real = self._reals[at]  # `_facts_of`, whose call would be felt here
            facts[at] = (
                real.state, real.health.condition, real.weight,
                real.connections, real.unanswered, real.since, real.response,
            )  # fmt: skip
        virtual = self._virtual
        if isinstance(outcome, Choice):
            link, by = outcome
            refused = None
        else:
            link, by, refused = None, "", outcome
        backup = None if virtual.backup is None else _facts_of(virtual.backup.real)
        self._ring.append(
            (
                undo, backup, now, key, virtual.last, link, by, avoid, found,
                virtual.scheduler.note, refused,
            )
        )  # fmt: skip

    def came_to_nothing(self, refused: "Drop") -> None:
        """The last decision could not be followed."""
        self._ring.append((*self._ring.pop()[:-1], refused))

    @property
    def mark(self) -> object:
        """Something that is another one after each decision."""
        return self._ring[-1] if self._ring else None

    def newest(self) -> Decision:
        """The last one, of which there must be one."""
        return next(self.newest_first(lambda _: True))

    def newest_first(self, wanted: Callable[[bytes], bool]) -> Iterator[Decision]:
        """Those whose connection's key is wanted; to be read before anything else happens."""
        facts = self._facts.copy()
        for record in reversed(self._ring):
            undo, backup, _, key = record[:4]
            if wanted(key):
                raw = (*facts, backup) if backup else tuple(facts)
                yield Decision(raw, *record[2:8], *record[8], *record[9:])
            while undo:
                at, before, undo = undo
                facts[at] = before


def start_recording(virtuals: Sequence["VirtualServer"], length: int) -> None:
    """Give every virtual server without one a record of its last `length` decisions; none where that is 0.

    Where virtual servers and their servers are very many, each keeps fewer, but at least one.
    """
    for virtual in virtuals if length else ():
        if virtual.decisions is not None:
            continue
        share = _CHANGES // len(virtuals) // (len(virtual.links) + _FRAME)
        virtual.decisions = Decisions(virtual, min(length, max(1, share)))
