"""Medians, and paired ratios with a bootstrap interval.

The machine is noisy, so only what was measured close together is compared: a ratio is taken inside each
round, and the figure is the median of these ratios. Its interval is the percentile bootstrap (Efron 1979):
rounds are drawn with replacement and the median taken anew, many times.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

_DRAWS = 5000
_SEED = 1  # the same samples give the same interval


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the rounds' ratios and its 95 % interval."""

    median: float
    low: float
    high: float


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> Ratio | None:
    """The ratio `values[i] / base[i]` over rounds i; None where `base` is 0 in any round.

    Raises ValueError when the lists are empty or differ in length.
    """
    if not values or len(values) != len(base):
        raise ValueError(f"{len(values)} rounds against {len(base)}")
    if not all(base):
        return None
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    source = random.Random(_SEED)
    drawn = sorted(median(source.choices(ratios, k=len(ratios))) for _ in range(_DRAWS))
    edge = round(_DRAWS * 0.025)
    return Ratio(median(ratios), drawn[edge], drawn[-1 - edge])


def spread(values: Sequence[float]) -> float:
    """How noisy: half the distance between the quartiles, as a share of the median; 0 for fewer than two."""
    if len(values) < 2 or not median(values):
        return 0.0
    first, _, third = quantiles(values, n=4)
    return (third - first) / 2 / median(values)


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th percentile of two values or more."""
    cuts = quantiles(values, n=100)
    return cuts[49], cuts[98]
