"""What sparklines are drawn from: the gateway's own history once, then a value from each snapshot.

So a fresh dashboard is full at once and need not ask again. After a gap (a pause, a long interval) a line is
asked for anew where it is seen. Pure.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from nfqlb.operator import document as read
from nfqlb.operator.dashboard.model import Snapshot
from nfqlb.runtime.protocol import JSON

#: Of what ("gateway", "virtual", "real"), and the name; the gateway's is empty.
Key = tuple[str, str]
Values = deque[float | None]

GATEWAY: Key = ("gateway", "")
LENGTH = 300  # values of a line, one a second
GAP = 2.5  # seconds between two snapshots, after which what lies between them is not known
_NAMES = {
    "gateway": ("rate", "connections", "bytes_in", "bytes_out"),
    "virtual": ("rate", "connections", "bytes_in", "bytes_out"),
    "real": ("rate", "connections", "response_s"),
}


class Series:
    """The lines that are known, by key and name."""

    def __init__(self) -> None:
        self._lines: dict[Key, dict[str, Values]] = {}
        self._old: set[Key] = set()  # lines that lack what was in a gap
        self._at: float | None = None

    def values(self, key: Key, name: str) -> list[float | None]:
        """The latest values, one a second, the oldest first; empty where nothing is known."""
        line = self._lines.get(key, {}).get(name)
        return list(line) if line is not None else []

    def missing(self, wanted: Iterable[Key]) -> list[Key]:
        """Which of these have to be asked for."""
        return [key for key in wanted if key not in self._lines or key in self._old]

    def fill(self, key: Key, document: JSON) -> None:
        """Take the gateway's history of one. Raises ControlError "bad-reply"."""
        whole = read.whole(document)
        self._old.discard(key)
        self._lines[key] = {
            name: deque(map(_number, found) if isinstance(found := whole.get(name), list) else (), LENGTH)
            for name in _NAMES[key[0]]
        }

    def add(self, snapshot: Snapshot) -> None:
        """One moment more of every known line. A snapshot seen already adds nothing."""
        before, self._at = self._at, snapshot.at
        if before is None or not 0 <= snapshot.at - before <= GAP:
            self._old.update(self._lines)
            return
        steps = max(0, round(snapshot.at - before))
        seen = set()
        for key, values in _moment(snapshot):
            seen.add(key)
            line = self._lines.get(key)
            if line is not None:
                for name, value in zip(_NAMES[key[0]], values, strict=True):
                    line[name].extend([value] * steps)
        for key in self._lines.keys() - seen:
            del self._lines[key]
            self._old.discard(key)

    def forget(self) -> None:
        """The gateway is away: what is known of it goes no further."""
        self._lines.clear()
        self._old.clear()
        self._at = None


def _moment(snapshot: Snapshot) -> Iterator[tuple[Key, tuple[float | None, ...]]]:
    flow = (snapshot.flow("bytes_in"), snapshot.flow("bytes_out"))
    yield GATEWAY, (snapshot.rate, snapshot.connections, *flow)
    for virtual in snapshot.virtuals:
        bytes_ = (virtual.flow["bytes_in"], virtual.flow["bytes_out"])
        yield ("virtual", virtual.name), (virtual.rate, virtual.connections, *bytes_)
    for real in snapshot.reals:
        yield ("real", real.name), (real.rate, real.connections, real.response)


def _number(value: JSON) -> float | None:
    return value if isinstance(value, int | float) else None
