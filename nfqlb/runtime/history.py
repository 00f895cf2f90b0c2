"""What the last five minutes looked like: one value a second of what a dashboard draws as a line.

Owns the rings: for the gateway, each virtual and each real server, so that a dashboard that was just
opened is full. Values that are not known are NaN inside and null outside. Pure: the time is passed in.
"""

from array import array
from collections.abc import Mapping
from math import isnan, nan
from typing import NamedTuple

from nfqlb.runtime.protocol import JSON, JSONObject, objects

LENGTH = 300  # values of each line
STEP = 1.0  # seconds between two of them
#: The lines of each kind. Rates are connections and bytes a second, response times seconds.
LINES: Mapping[str, tuple[str, ...]] = {
    "gateway": ("rate", "connections", "bytes_in", "bytes_out"),
    "virtual": ("rate", "connections", "bytes_in", "bytes_out"),
    "real": ("rate", "connections", "response_s"),
}

#: Of what (see `LINES`), and the name; the gateway's is empty.
Key = tuple[str, str]
#: A value for each line of a kind, None where it is not known.
Values = tuple[float | None, ...]


class History:
    """The rings. `taken` counts the moments so far."""

    def __init__(self) -> None:
        self.taken = 0
        self._at = 0.0
        self._rings: dict[Key, tuple[array[float], ...]] = {}

    def append(self, at: float, values: Mapping[Key, Values]) -> None:
        """One moment: `at` is its time of day in seconds. Who is not named any more is forgotten."""
        place, self.taken, self._at = self.taken % LENGTH, self.taken + 1, at
        for gone in self._rings.keys() - values.keys():
            del self._rings[gone]
        for key, row in values.items():
            rings = self._rings.get(key)
            if rings is None:
                rings = self._rings[key] = tuple(array("d", [nan]) * LENGTH for _ in row)
            for ring, value in zip(rings, row, strict=True):
                ring[place] = nan if value is None else value

    def names(self, of: str) -> list[str]:
        """Who of a kind has a history."""
        return [name for kind, name in self._rings if kind == of]

    def document(self, of: str, name: str) -> JSONObject | None:
        """The lines of one, the oldest value first; None where there is none of that name."""
        rings = self._rings.get((of, name))
        if rings is None:
            return None
        lines: JSONObject = {line: self._line(ring) for line, ring in zip(LINES[of], rings, strict=True)}
        return {"of": of, "name": name, "at": round(self._at, 3), "step_s": STEP, **lines}

    def _line(self, ring: "array[float]") -> JSON:
        place = self.taken % LENGTH
        whole = ring[place:] + ring[:place] if self.taken >= LENGTH else ring[:place]
        return [None if isnan(value) else value for value in whole]


class Moment(NamedTuple):
    """One second of the history. `traffic` are bytes in and out since the start, `now` seconds of a clock."""

    now: float
    traffic: dict[Key, tuple[float, float]]
    values: dict[Key, Values]


def moment(snapshot: JSONObject, before: Moment | None, now: float) -> Moment:
    """What the history keeps of a snapshot; bytes a second are known from the second one on.

    `now` is of a monotonic clock: the time of day may be set in between.
    """
    traffic: dict[Key, tuple[float, float]] = {}
    values: dict[Key, Values] = {}
    for kind, row in named_rows(snapshot):
        key = (kind, str(row["name"]))
        rate, connections = _number(row["rate"]), _number(row["connections"])
        if kind == "real":
            values[key] = (rate, connections, _number(row["response_s"]))
            continue
        bytes_ = _bytes(row.get("traffic"))
        if bytes_ is not None:
            traffic[key] = bytes_
        values[key] = (rate, connections, *_flow(bytes_, before, key, now))
    whole, key = snapshot["connections"], ("gateway", "")
    assert isinstance(whole, dict)
    everything = (sum(each[0] for each in traffic.values()), sum(each[1] for each in traffic.values()))
    if traffic:
        traffic[key] = everything
    flow = _flow(everything if traffic else None, before, key, now)
    values[key] = (_number(whole["rate"]), _number(whole["now"]), *flow)
    return Moment(now, traffic, values)


def _flow(
    bytes_: tuple[float, float] | None, before: Moment | None, key: Key, now: float
) -> tuple[float | None, float | None]:
    """Bytes a second in and out."""
    known = before.traffic.get(key) if before is not None else None
    if bytes_ is None or known is None or before is None or now <= before.now:
        return None, None
    took = now - before.now
    return max(0.0, bytes_[0] - known[0]) / took, max(0.0, bytes_[1] - known[1]) / took


def _bytes(traffic: JSON) -> tuple[float, float] | None:
    if not isinstance(traffic, dict):
        return None
    into, out = _number(traffic.get("bytes_in")), _number(traffic.get("bytes_out"))
    return None if into is None or out is None else (into, out)


def _number(value: JSON) -> float | None:
    return value if isinstance(value, int | float) else None


def named_rows(document: JSONObject) -> list[tuple[str, JSONObject]]:
    """The rows of virtual and real servers in an account or a snapshot, each with its kind."""
    kinds = (("virtual", "virtuals"), ("real", "reals"))
    return [(kind, row) for kind, name in kinds for row in objects(document[name])]
