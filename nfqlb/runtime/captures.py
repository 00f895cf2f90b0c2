"""Captures, on the supervisor's side: who takes one, and what came of it.

Owns the events of a capture. The worker records (see `recording`); the client takes away what it recorded,
again and again, each time in a request of its own. Between two of them nobody waits, so nothing piles up for
a client that is slow or gone; the worker ends a capture that nobody takes from, and here that is noticed.
"""

import time
from collections.abc import Callable
from typing import Protocol

from nfqlb.core.plural import several
from nfqlb.runtime.access import who
from nfqlb.runtime.events import Events
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject, Request
from nfqlb.runtime.pulse import Asks
from nfqlb.runtime.recording import PATIENCE, USUAL
from nfqlb.runtime.views import bad, check_names

_DOING = ("start", "take", "stop")
_ENDED = {
    "packets": "it has as many packets as it was to have",
    "seconds": "its time is over",
    "bytes": "it has as many bytes as it was to have",
    "stopped": "stopped",
}


class Desk(Protocol):
    """What is needed of the supervisor's desk."""

    events: Events
    listeners: list[Callable[[JSONObject], None]]

    def offer(self, cmd: str, handler: Callable[[Request], None]) -> None:
        """Let `handler` answer a command."""


class Captures:
    """The captures of one gateway, one at a time."""

    def __init__(self, desk: Desk, worker: Asks, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = desk.events
        self._worker = worker
        self._clock = clock
        self._capture: JSONObject | None = None  # the one under way
        self._who = ""
        self._taken_at = 0.0
        self._stood: JSONObject = {}
        desk.offer("capture", self._asked)
        desk.listeners.append(self._look)

    def _asked(self, request: Request) -> None:
        args = request.args
        doing = [name for name in _DOING if name in args]
        if len(doing) != 1:
            raise bad("capture needs one of start, take and stop", 'as in {"start": "shop"}')
        known = ("start", *USUAL) if doing == ["start"] else doing
        check_names("capture", args, known)
        done = self._begun if doing == ["start"] else self._taken

        def failed(error: ControlError) -> None:
            asked = args.get("take", args.get("stop"))
            ours = self._capture is not None and self._capture["capture"] == asked
            if ours and error.code in ("capture-over", "worker-restarting"):
                self._over("the worker was replaced", level="warning")
            request.refuse(error)

        self._worker.call("capture", args, lambda result: done(request, result), failed)

    def _begun(self, request: Request, result: JSON) -> None:
        assert isinstance(result, dict)
        self._over("another one has begun")
        self._capture, self._who, self._taken_at = result, who(request), self._clock()
        self._stood = {"seen": 0, "lost": 0}
        self._tell("a capture has begun")
        request.reply(result)

    def _taken(self, request: Request, result: JSON) -> None:
        assert isinstance(result, list)
        head = result[0]
        assert isinstance(head, dict)
        self._taken_at, self._stood = self._clock(), head
        ended = head["ended"]
        if ended and not head["waiting"]:
            self._over(_ENDED.get(str(ended), str(ended)))
        request.reply(result)

    def _look(self, _snapshot: JSONObject) -> None:
        """With every pulse: is its client still there?"""
        if self._clock() - self._taken_at > PATIENCE + 1:
            self._over("its client is gone", level="warning")

    def _over(self, why: str, level: str = "info") -> None:
        if self._capture is None:
            return
        lost = self._stood["lost"]
        told = f", {lost} more lost" if lost else ""
        packets = several(int(str(self._stood["seen"])), "packet")
        self._tell(f"the capture has ended after {packets}{told}: {why}", level)
        self._capture = None

    def _tell(self, text: str, level: str = "info") -> None:
        assert self._capture is not None
        name = str(self._capture["virtual"])
        self._events.add("capture", name, f"{name}: {text}", who=self._who, level=level)
