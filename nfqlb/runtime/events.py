"""What has happened: the last 1,000 events, for the dashboard and `nfqlb show events`.

Owns the ring. Whatever is added is logged as well, once: here, or by the worker, which writes its own
lines at once because it may not live to tell them.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from nfqlb.runtime.protocol import JSONObject

logger = logging.getLogger(__name__)

KEPT = 1000
KINDS = ("state", "order", "reload", "rules", "worker", "queue", "gateway", "capture", "fallback")
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Events:
    """A ring of the newest events. `wall` gives the time of day in seconds since 1970."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._ring: deque[JSONObject] = deque(maxlen=KEPT)

    def add(
        self,
        kind: str,
        name: str,
        text: str,
        *,
        who: str = "",
        level: str = "info",
        at: float | None = None,
        logged: bool = False,
    ) -> None:
        """Keep one event, and log it unless that was done (`logged`).

        `kind` is one of KINDS, `name` what it happened to, `text` one line that says all of it, `who` the one
        who ordered it, `level` one of LEVELS, `at` its time of day where that is not now (seconds).
        """
        assert kind in KINDS
        row: JSONObject = {
            "at": round(self._wall() if at is None else at, 3),
            "kind": kind,
            "name": name,
            "text": text,
            "who": who,
            "level": level,
        }
        self._ring.append(row)
        if not logged:
            fields = {"kind": kind, "name": name, **({"who": who} if who else {})}
            said = f" (ordered by {who})" if who else ""
            logger.log(LEVELS[level], "%s%s", text, said, extra={"fields": fields})

    def newest(self, limit: int) -> list[JSONObject]:
        """At most `limit` events, the newest first."""
        return list(islice(reversed(self._ring), limit))
