"""A snapshot as Prometheus reads it: text format or OpenMetrics, in pieces that take no time.

Owns the collector that makes prometheus_client's metrics of a snapshot, and how they become text. With a
thousand servers that is tens of thousands of lines, a good part of a second; whoever has other things to do
in between asks for a piece at a time.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from prometheus_client import exposition as text
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from nfqlb.runtime.families import FAMILIES, Family, Kind, Row, Snapshot

#: Rows of one piece; a row of a histogram is some twenty lines.
ROWS, HISTOGRAM_ROWS = 20, 2


class Format(NamedTuple):
    """A format of exposition: its media type, and the library's way to write it."""

    content_type: str
    write: Callable[[Collector], bytes]


TEXT = Format("text/plain; version=0.0.4; charset=utf-8", text.generate_latest)
OPENMETRICS = Format(openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest)


class SnapshotCollector(Collector):
    """The metrics of one snapshot. `in_pieces`: no metric has more than a few rows.

    A family with more comes in several metrics of the same name then, one after the other. One
    without any row does not come.
    """

    def __init__(self, snapshot: Snapshot, *, in_pieces: bool = False) -> None:
        self._snapshot = snapshot
        self._in_pieces = in_pieces

    def collect(self) -> Iterator[Metric]:
        """Every metric there is."""
        for family in FAMILIES:
            rows = iter(family.rows(self._snapshot))
            room = (HISTOGRAM_ROWS if family.kind is Kind.HISTOGRAM else ROWS) if self._in_pieces else None
            while some := list(islice(rows, room)):
                yield _metric(family, some)


def pieces(snapshot: Snapshot, wanted: Format) -> Iterator[bytes]:
    """The whole text, in pieces that take less than a millisecond each."""
    end = wanted.write(_Given(()))
    begun = ""
    for metric in SnapshotCollector(snapshot, in_pieces=True).collect():
        piece = wanted.write(_Given((metric,))).removesuffix(end)
        if metric.name == begun:
            while piece.startswith(b"#"):  # its HELP and TYPE stand above already
                piece = piece.partition(b"\n")[2]
        begun = metric.name
        yield piece
    yield end


class _Given(Collector):
    """A collector of metrics that are there already."""

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self._metrics = metrics

    def collect(self) -> tuple[Metric, ...]:
        """The metrics."""
        return self._metrics


def _metric(family: Family, rows: list[Row]) -> Metric:
    if family.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, spread in rows:
            assert isinstance(spread, tuple)
            histogram.add_metric(labels, *spread)
        return histogram
    make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = make(family.name, family.help, labels=family.labels)
    for labels, value in rows:
        assert isinstance(value, float)
        metric.add_metric(labels, value)
    return metric
