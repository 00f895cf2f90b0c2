"""Things that fall due: first in, first out, because each queue has one delay.

Owns `DueQueue`. Every time-out state has a queue with one delay, so whatever entered first
falls due first and no heap is needed; entering costs one append. Members are grouped by
the moment they entered, so a million of them hold few time stamps.

A member is not taken out when it is of no more interest, as looking for it would cost too
much: when it comes up, whoever asked looks at it. So that a queue does not hold many more
members than are wanted, a group is cleared of the others when it is 1, 8, 64... groups old:
a few looks at each member in all, and one that was wanted for a while is held eight times
that long at most.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Member = TypeVar("Member")

#: Members of a group at most: what one `push` may have to clear takes well under a millisecond.
_GROUP = 1024


class DueQueue(Generic[Member]):
    """A queue whose members fall due `delay` seconds after they entered.

    `wanted` picks from some members those that are still of interest; without it all of them are.
    """

    __slots__ = ("_groups", "_open_until", "_wanted", "delay", "grain")

    def __init__(
        self,
        delay: float,
        grain: float = 0.25,
        wanted: Callable[[Iterable[Member]], list[Member]] | None = None,
    ) -> None:
        self.delay = delay
        self.grain = grain
        self._wanted = wanted
        self._open_until = 0.0
        self._groups: deque[tuple[float, deque[Member]]] = deque()  # the first one has members

    def __len__(self) -> int:
        return sum(len(members) for _, members in self._groups)

    def push(self, member: Member, now: float) -> None:
        """Let `member` fall due at `now` plus the delay (up to one grain later)."""
        groups = self._groups
        if now < self._open_until and groups and len(groups[-1][1]) < _GROUP:
            groups[-1][1].append(member)
            return
        if self._wanted is not None:
            self._clear(self._wanted)
        self._open_until = now + self.grain
        groups.append((self._open_until + self.delay, deque((member,))))

    def retime(self, delay: float) -> None:
        """Let every member fall due so many seconds after it entered; looks at each group of members."""
        later = delay - self.delay
        self.delay = delay
        self._groups = deque((due + later, members) for due, members in self._groups)

    def pop_due(self, now: float) -> Member | None:
        """The next member that is due, None if none is."""
        groups = self._groups
        if not groups or groups[0][0] > now:
            return None
        return self.pop_first()

    def pop_first(self) -> Member | None:
        """The member that entered first, due or not; None if the queue is empty."""
        groups = self._groups
        if not groups:
            return None
        member = groups[0][1].popleft()
        self._drop_empty()
        return member

    def _clear(self, wanted: Callable[[Iterable[Member]], list[Member]]) -> None:
        """Clear the groups whose age it is time for, the youngest first."""
        groups = self._groups
        age = 1
        while age <= len(groups):
            due, members = groups[-age]
            groups[-age] = due, deque(wanted(members))
            age *= 8
        self._drop_empty()

    def _drop_empty(self) -> None:
        groups = self._groups
        while groups and not groups[0][1]:
            groups.popleft()
