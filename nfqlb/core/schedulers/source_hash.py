"""Source hash: a client's address decides, the same way on every gateway with this configuration.

Owns how the slots are filled: each server has as many as its weight says, in the configuration's
order. Another weight, or another list of servers, moves most clients: where that matters, take maglev.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nfqlb.core.schedulers.hashing import Hashing

if TYPE_CHECKING:
    from nfqlb.core.server import Link

_FINEST = 100  # slots of the heaviest server, where weights are no small whole numbers


class SourceHash(Hashing):
    """Weights count as ratios: a hundred slots for the heaviest server at most."""

    name = "source-hash"

    def _filled(self) -> Sequence["Link"]:
        pairs = zip(self._links, whole_weights(self._weights), strict=True)
        return [link for link, weight in pairs for _ in range(weight)]


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of the weights, none above 100; a positive weight gets at least 1."""
    heaviest = max(weights, default=0)
    if heaviest <= _FINEST and all(weight == int(weight) for weight in weights):
        return [int(weight) for weight in weights]
    return [max(1, round(weight * _FINEST / heaviest)) if weight > 0 else 0 for weight in weights]
