"""Who watches: clients that get a snapshot every so many seconds until they hang up.

Owns the subscriptions. A client that has not read its last snapshot gets none meanwhile, so nothing waits
for it here; see `control` for when it is let go.
"""

import time
from collections.abc import Callable

from nfqlb.runtime import views
from nfqlb.runtime.protocol import Encoded, JSONObject, Request, encode

#: Seconds between two snapshots. They are made once a second.
LEAST, MOST = 1.0, 60.0
_EARLY = 0.1  # seconds by which the pulse may come early, and still be the one that is due


class Watching:
    """The subscriptions. `look` is to be called with every snapshot of the pulse."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._watchers: list[_Watcher] = []

    def __len__(self) -> int:
        return len(self._watchers)

    def add(self, request: Request, last: JSONObject | None) -> None:
        """Subscribe: argument `every` in seconds. `last` is sent at once. Raises ControlError."""
        views.check_names("watch", request.args, ("every",))
        watcher = _Watcher(request, _every(request))
        self._watchers.append(watcher)
        if last is not None:
            self._send([watcher], last)

    def look(self, snapshot: JSONObject) -> None:
        """Send a snapshot to everybody whose time has come, and forget who is gone."""
        self._watchers = [watcher for watcher in self._watchers if not watcher.request.answered]
        now = self._clock()
        self._send([watcher for watcher in self._watchers if now >= watcher.due - _EARLY], snapshot)

    def _send(self, watchers: "list[_Watcher]", snapshot: JSONObject) -> None:
        if not watchers:
            return
        now, encoded = self._clock(), Encoded(encode(snapshot))
        for watcher in watchers:
            if watcher.request.stream(encoded):
                watcher.due = now + watcher.every


class _Watcher:
    """One subscription."""

    __slots__ = ("due", "every", "request")

    def __init__(self, request: Request, every: float) -> None:
        self.request = request
        self.every = every
        self.due = 0.0


def _every(request: Request) -> float:
    every = request.args.get("every", LEAST)
    if isinstance(every, bool) or not isinstance(every, int | float) or not LEAST <= every <= MOST:
        raise views.bad(f"every: {every!r} is not a number of seconds from {LEAST:g} to {MOST:g}")
    return every
