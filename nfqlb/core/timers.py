"""Things that fall due: first in, first out, because each queue has one delay.

Owns `DueQueue`. Every time-out state has a queue with one delay, so whatever entered first
falls due first and no heap is needed; entering costs one append. Members are grouped by
the moment they entered, so a million of them hold few time stamps. A member is never taken
out early: when it comes up, whoever asked looks whether it is still of interest.
"""

from collections import deque
from typing import Generic, TypeVar

Member = TypeVar("Member")


class DueQueue(Generic[Member]):
    """A queue whose members fall due `delay` seconds after they entered."""

    __slots__ = ("_groups", "_open_until", "delay", "grain")

    def __init__(self, delay: float, grain: float = 0.25) -> None:
        self.delay = delay
        self.grain = grain
        self._open_until = 0.0
        self._groups: deque[tuple[float, deque[Member]]] = deque()

    def __len__(self) -> int:
        return sum(len(members) for _, members in self._groups)

    def push(self, member: Member, now: float) -> None:
        """Let `member` fall due at `now` plus the delay (up to one grain later)."""
        if now < self._open_until and self._groups:
            self._groups[-1][1].append(member)
            return
        self._open_until = now + self.grain
        self._groups.append((self._open_until + self.delay, deque((member,))))

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
        members = groups[0][1]
        member = members.popleft()
        if not members:
            groups.popleft()
        return member

    def next_due(self) -> float | None:
        """When the first member falls due; None if the queue is empty."""
        return self._groups[0][0] if self._groups else None
