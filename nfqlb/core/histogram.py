"""How response times are spread: counted in fixed classes, for each real server.

Owns the classes and the count. The last response time says how a server does now; how many of its clients
waited how long is only told by all of them. The classes are the same for every server, so that servers
can be added up, and counts from two workers too.
"""

from bisect import bisect_left
from dataclasses import dataclass

#: The upper bounds of the classes, in seconds, each of them included; what is longer has the last class.
#: Three a decade, which is as exact as a percentile read from a chart needs.
BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
#: The classes by name: each by its upper bound.
CLASSES = (*map(str, BOUNDS), "+Inf")


@dataclass(frozen=True, slots=True)
class Spread:
    """The response times of one server so far: how many in each class, and their sum in seconds.

    `counts` has one number a bound, and a last one for what is above all bounds.
    """

    counts: tuple[int, ...]
    seconds: float


NEVER = Spread((0,) * len(CLASSES), 0.0)
"""Of a server that was never measured."""


class Histogram:
    """Counts one server's response times as they are measured (R085)."""

    __slots__ = ("_counts", "_seconds")

    def __init__(self) -> None:
        self._counts = [0] * len(CLASSES)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """A response took so many seconds, 0 or more."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def spread(self) -> Spread:
        """What has been counted."""
        return Spread(tuple(self._counts), self._seconds)
