"""The worker's share of the pulse: one account of everything it counts, and what has happened since.

Owns the news that the supervisor has not confirmed yet: a reply may be lost. Made once a second in between
packets, so it has to be cheap.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from nfqlb.core.chronicle import Change
from nfqlb.core.director import Director
from nfqlb.runtime import news, views
from nfqlb.runtime.carry import counters
from nfqlb.runtime.protocol import JSON, JSONObject
from nfqlb.runtime.summary import Losses, counts

#: News kept for the supervisor; of more, the newest.
NEWS = 512
_LEVELS = {logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}


class Beat:
    """One worker's accounts, from when it has taken over: what it knows then is not of its own counting."""

    def __init__(self, director: Director, losses: Callable[[], Losses], now: float) -> None:
        self._director = director
        self._losses = losses
        self._news: deque[JSONObject] = deque(maxlen=NEWS)
        self._told = 0
        self._begun: list[JSON] = [[*path, value] for path, value in counters(self._account(now))]

    def tell(self, changes: Iterable[Change], now: float) -> list[tuple[int, str]]:
        """Keep what is worth telling of some changes; returns the lines to log, with their levels."""
        lines = []
        wall = time.time() - now
        for change in changes:
            told = news.told(change)
            if told is None:
                continue
            lines.append(told)
            level, text = told
            self._told += 1
            self._news.append(
                {
                    "number": self._told,
                    "at": round(wall + change.at, 3),
                    "name": change.name,
                    "text": text,
                    "level": _LEVELS[level],
                }
            )
        return lines

    def document(self, args: JSONObject, now: float) -> JSONObject:
        """The answer to `pulse`.

        Its arguments: `heard`, the number of the last news that the supervisor has; `begun`, whether it
        wants to know what this worker began with. `now` is in seconds of the monotonic clock.
        """
        heard = args.get("heard")
        while self._news and isinstance(heard, int) and self._number() <= heard:
            self._news.popleft()
        untold: list[JSON] = list(self._news)
        document: JSONObject = {"now": now, **self._account(now), "news": untold}
        if args.get("begun"):
            document["begun"] = self._begun
        return document

    def _number(self) -> int:
        number = self._news[0]["number"]
        assert isinstance(number, int)
        return number

    def _account(self, now: float) -> JSONObject:
        director = self._director
        virtuals: list[JSON] = [views.virtual(each) for each in director.virtuals(now)]
        seen = director.reals(now)
        reals: list[JSON] = [views.real(each) for each in seen]
        response: JSONObject = {each.name: views.response(each) for each in seen}
        losses = self._losses()
        return {
            **counts(director.totals(), losses),
            "virtuals": virtuals,
            "reals": reals,
            "response": response,
        }
