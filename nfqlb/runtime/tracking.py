"""The kernel's connection table: how full it is, what it has lost for that, and who is told of it.

Every packet that is translated passes it, in either datapath; where it is full the kernel drops what would
begin a new connection, and nothing else shows why. Looked at once a second; what was found is `conntrack` in
the snapshot.
"""

import time
from collections.abc import Callable, Mapping

from nfqlb.netfilter import conntrack
from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime.events import Events
from nfqlb.runtime.protocol import JSON, JSONObject
from nfqlb.runtime.rising import Rising

#: Seconds for which the table is said to be full after it was, and nearly full.
HELD = 10.0
#: Losses that a full table is the reason of: what finds no room, and what is given up for others.
_FOR_ROOM = ("drop", "early_drop")


class Fullness:
    """Whether the table loses connections for want of room. `room` and `losses` as for `Tracking`."""

    def __init__(
        self,
        room: Callable[[], tuple[int, int]] = conntrack.room,
        losses: Callable[[], Mapping[str, int]] = conntrack.losses,
    ) -> None:
        self._room = room
        self._losses = losses
        self._lost: int | None = None

    def look(self) -> bool:
        """Whether it is full, or has lost something since the last look; False where nobody can say."""
        try:
            now, limit = self._room()
            found = self._losses()
        except (KernelError, OSError):
            return False
        before, self._lost = self._lost, sum(found.get(name, 0) for name in _FOR_ROOM)
        return (limit > 0 and now >= limit) or (before is not None and self._lost > before)


class Tracking:
    """Tells `events`, and puts `conntrack` into `others`, which is shown with every snapshot.

    `room` and `losses` are what `conntrack` has of these names; where the kernel does not tell, nothing is
    known of the table.
    """

    def __init__(
        self,
        events: Events,
        others: JSONObject,
        *,
        room: Callable[[], tuple[int, int]] = conntrack.room,
        losses: Callable[[], Mapping[str, int]] = conntrack.losses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events = events
        self._others = others
        self._room = room
        self._losses = losses
        self._clock = clock
        self._sums: dict[str, Rising] = {}
        self._begun: dict[str, int] = {}  # what had been lost before we looked
        self._told = ""
        self._near = self._lost = -HELD  # when it was last nearly full, and when full, or losing something

    def tick(self) -> None:
        """To be called once a second."""
        try:
            now, limit = self._room()
            lost = self._count(self._losses())
        except (KernelError, OSError):
            self._others["conntrack"] = None
            return
        at = self._clock()
        if limit and now >= limit * conntrack.NEARLY_FULL:
            self._near = at
        if limit and now >= limit:
            self._lost = at
        losing = at - self._lost < HELD
        shown: dict[str, JSON] = dict(lost)
        self._others["conntrack"] = {"now": now, "limit": limit, "lost": shown, "losing": losing}
        near = at - self._near < HELD
        self._tell(now, limit, sum(lost.get(name, 0) for name in _FOR_ROOM), losing=losing, near=near)

    def _count(self, found: Mapping[str, int]) -> dict[str, int]:
        """What was lost since we began to look; notes whether it has become more."""
        lost = {}
        for name, count in found.items():
            begun = self._begun.setdefault(name, count)
            rising = self._sums.setdefault(name, Rising())
            before = max(begun, rising.total)
            lost[name] = rising.at(count) - begun
            if name in _FOR_ROOM and rising.total > before:
                self._lost = self._clock()
        return lost

    def _tell(self, now: int, limit: int, lost: int, *, losing: bool, near: bool) -> None:
        """One event whenever it becomes nearly full, or full, and when it has room again."""
        how = "full" if losing else "near" if near else ""
        before, self._told = self._told, how
        if how == before:
            return
        full = f"{now:,} of {limit:,} (nf_conntrack_max)"
        if how == "full":
            text = f"the kernel's connection table is full: {full}; new connections are lost, {lost:,} so far"
            self._events.add("gateway", "conntrack", text, level="error")
        elif how == "near" and not before:
            text = f"the kernel's connection table is nearly full: {full}; beyond that it drops"
            self._events.add("gateway", "conntrack", text, level="warning")
        elif not how:
            text = f"the kernel's connection table has room again: {full}; {lost:,} lost meanwhile"
            self._events.add("gateway", "conntrack", text)
