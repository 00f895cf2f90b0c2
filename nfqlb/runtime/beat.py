"""The worker's share of the pulse: one account of everything it counts, and what has happened since.

Owns the news that the supervisor has not confirmed yet: a reply may be lost. Made once a second in between
packets, so it has to be cheap: row by row, with 1,000 servers in some thirty portions of half a millisecond.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from nfqlb.core import observe
from nfqlb.core.chronicle import Change, Notice
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
        self._begun: list[JSON] = [[*path, value] for path, value in counters(whole(self._account({}, now)))]

    def tell(self, changes: Iterable[Change | Notice], now: float) -> list[tuple[int, str, str]]:
        """Keep what is worth telling of some changes; returns the level, the line and the name to log."""
        lines = []
        wall = time.time() - now
        for change in changes:
            told = news.told(change)
            if told is None:
                continue
            level, text = told
            lines.append((level, text, change.name))
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

    def rows(self, args: JSONObject, now: float) -> Iterator[JSONObject]:
        """The answer to `pulse`: what is of the whole, then a row for each virtual and each real server.

        The rows are made as they are sent, some now, some after the next packets: no packet waits for all
        of them. `whole` puts them together again. The arguments: `heard`, the number of the last news
        that the supervisor has; `begun`, whether it wants to know what this worker began with. `now` is
        in seconds of the monotonic clock.
        """
        heard = args.get("heard")
        while self._news and isinstance(heard, int) and self._number() <= heard:
            self._news.popleft()
        untold: list[JSON] = list(self._news)
        head: JSONObject = {"now": now, "news": untold}
        if args.get("begun"):
            head["begun"] = self._begun
        return self._account(head, now)

    def _number(self) -> int:
        number = self._news[0]["number"]
        assert isinstance(number, int)
        return number

    def _account(self, head: JSONObject, now: float) -> Iterator[JSONObject]:
        director = self._director
        virtuals, reals = observe.virtuals(director, now), observe.reals(director, now)
        yield {**head, **counts(director.totals(), self._losses())}
        for virtual in virtuals:
            yield {"virtual": views.virtual(virtual)}
        for real in reals:
            yield {"real": views.real(real), "response": views.response(real)}


def whole(rows: Iterable[JSON]) -> JSONObject:
    """The document that a pulse's rows make up."""
    virtuals: list[JSON] = []
    reals: list[JSON] = []
    response: JSONObject = {}
    made: JSONObject = {}
    for row in rows:
        assert isinstance(row, dict)
        real = row.get("real")
        if isinstance(real, dict):
            reals.append(real)
            response[str(real["name"])] = row["response"]
        elif "virtual" in row:
            virtuals.append(row["virtual"])
        else:
            made = row
    return {**made, "virtuals": virtuals, "reals": reals, "response": response}
