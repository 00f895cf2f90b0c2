"""The audit: counts again, in the background, what the counters of servers say, and puts right what differs.

Owns `Audit` and one count of its own, `Recount`. The counters are moved by differences, millions of times;
one wrong difference would never go away by itself. So every connection is looked at again, some at a time,
between packets. What has been looked at and changes afterwards is followed here too, by its states alone,
so at the end both numbers are of the same moment. A difference is a defect of this program: it is healed,
counted and told.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from nfqlb.core.states import State

if TYPE_CHECKING:
    from nfqlb.core.connection import Connection
    from nfqlb.core.server import Link, RealServer, VirtualServer
    from nfqlb.core.table import ConnectionTable

#: Seconds between the end of one count and the beginning of the next.
PAUSE = 10.0


class Recount:
    """The connections that have been counted again, by link.

    Of each link: how many count, how many are held, how many SYNs are unanswered, how many are half-open.
    A connection that is in here says so (`Connection.recount`).
    """

    __slots__ = ("_counts", "links")

    def __init__(self, counts: Mapping[State, bool]) -> None:
        self._counts = counts
        self.links: dict[Link, list[int]] = {}

    def moved(self, link: "Link", state: State, sign: int) -> None:
        """A connection of a link in some state comes (1) or goes (-1)."""
        if state is State.GONE:
            return
        numbers = self.links.get(link)
        if numbers is None:
            numbers = self.links[link] = [0, 0, 0, 0]
        numbers[0] += sign * self._counts[state]
        numbers[1] += sign
        numbers[2] += sign * state.unanswered
        numbers[3] += sign * state.half_open


class Audit:
    """Audits one connection table, round after round; `drift` counts the counters that were wrong."""

    def __init__(self, table: "ConnectionTable") -> None:
        self.drift = 0
        self.rounds = 0
        self._table = table
        self._left: list[Connection] | None = None  # to be counted in this round
        self._next = 0.0

    def step(
        self, reals: Iterable["RealServer"], virtuals: Iterable["VirtualServer"], now: float, budget: int
    ) -> list[str]:
        """Count some more, `budget` connections at most; returns what was wrong, in words, and is no longer.

        `reals` and `virtuals` are all that there are.
        """
        if self._left is None or self._table.recount is None:
            if now < self._next:
                return []
            self._left = list(self._table.inbound.values())
            self._table.begin_recount()
        left, recount = self._left, self._table.recount
        assert recount is not None
        for _ in range(min(budget, len(left))):
            connection = left.pop()
            if connection.recount is not recount:  # else it is newer than this round
                connection.recount = recount
                recount.moved(connection.link, connection.state, 1)
        if left:
            return []
        self._left, self._table.recount = None, None
        self._next = now + PAUSE
        self.rounds += 1
        return self._compare(recount, list(reals), list(virtuals), now)

    def _compare(
        self, recount: Recount, reals: list["RealServer"], virtuals: list["VirtualServer"], now: float
    ) -> list[str]:
        """Compare every counter with what was counted, and set those that differ."""
        wrong: list[str] = []
        of_real = {real: [0, 0, 0, 0] for real in reals}
        whole = 0
        for virtual in virtuals:
            of_virtual = [0, 0, 0, 0]
            for link in (*virtual.everybody, *virtual.leaving):
                found = recount.links.get(link, [0, 0, 0, 0])
                for sums in (of_virtual, of_real[link.real]):
                    sums[:] = [one + more for one, more in zip(sums, found, strict=True)]
                place = f"{virtual.spec.name}, {link.real.spec.name}"
                self._heal(link, place, {"connections": found[0], "held": found[1]}, wrong)
            whole += of_virtual[0]
            numbers = {"connections": of_virtual[0], "half_open": of_virtual[3]}
            self._heal(virtual, virtual.spec.name, numbers, wrong)
        for real, (connections, _, unanswered, _) in of_real.items():
            numbers = {"connections": connections, "unanswered": unanswered}
            if self._heal(real, real.spec.name, numbers, wrong):
                real.changed(now)
        self._heal(self._table, "the table", {"counted": whole}, wrong)
        return wrong

    def _heal(self, owner: object, name: str, numbers: Mapping[str, int], wrong: list[str]) -> bool:
        """Set the counters of `owner` that are not what was counted; True if there were any."""
        healed = False
        for counter, counted in numbers.items():
            before = getattr(owner, counter)
            if before != counted:
                setattr(owner, counter, counted)
                wrong.append(f"{name}: {counter.replace('_', '-')} was {before}, {counted} were counted")
                self.drift += 1
                healed = True
        return healed
