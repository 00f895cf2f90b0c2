"""Defects that a process goes on from: an exception in a part of its loop costs that part's turn, no more.

Owns how many there were, and when the log hears of one: with its traceback, but not of every one of a row.
"""

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

_QUIET = 10.0  # seconds between two log entries
#: A process that stumbles so often within a second does nothing else: another one may do better.
_MOST, _WITHIN = 200, 1.0


class Stumbles:
    """Of one process. With `hopeless` it gives up where it does nothing but stumble."""

    def __init__(self, *, hopeless: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self._hopeless = hopeless
        self._clock = clock
        self._told = -_QUIET
        self._untold = 0
        self._since = 0.0
        self._lately = 0

    def note(self, doing: str, error: Exception) -> None:
        """It stumbled while `doing` this. Raises the error again where there is no hope."""
        now = self._clock()
        self.count += 1
        if now - self._since >= _WITHIN:
            self._since, self._lately = now, 0
        self._lately += 1
        if now - self._told >= _QUIET:
            more = f" ({self._untold} more before it)" if self._untold else ""
            self._told, self._untold = now, 0
            logger.error("a defect while %s%s; going on", doing, more, exc_info=error)
        else:
            self._untold += 1
        if self._hopeless and self._lately >= _MOST:
            raise error
