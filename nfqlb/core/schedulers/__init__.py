"""The schedulers (session distribution schemes, R095-R099), by name.

One scheduler a file. To add one: write its class, list it in `SCHEDULERS`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nfqlb.core import spec
from nfqlb.core.schedulers.base import Ranked, Scheduler
from nfqlb.core.schedulers.fastest_response import FastestResponse
from nfqlb.core.schedulers.least_connections import LeastConnections
from nfqlb.core.schedulers.maglev import Maglev
from nfqlb.core.schedulers.power_of_two import PowerOfTwo
from nfqlb.core.schedulers.round_robin import RoundRobin
from nfqlb.core.schedulers.source_hash import SourceHash
from nfqlb.core.schedulers.weighted_least_connections import WeightedLeastConnections
from nfqlb.core.schedulers.weighted_round_robin import WeightedRoundRobin

if TYPE_CHECKING:  # a link is built with its virtual server, which is built with its scheduler
    from nfqlb.core.server import Link

__all__ = ["SCHEDULERS", "Ranked", "RoundRobin", "Scheduler", "make_scheduler"]

SCHEDULERS: dict[str, Callable[[Sequence["Link"]], Scheduler]] = {
    RoundRobin.name: RoundRobin,
    WeightedRoundRobin.name: WeightedRoundRobin,
    LeastConnections.name: LeastConnections,
    WeightedLeastConnections.name: WeightedLeastConnections,
    FastestResponse.name: FastestResponse,
    SourceHash.name: SourceHash,
    Maglev.name: Maglev,
    PowerOfTwo.name: PowerOfTwo,
}


def make_scheduler(virtual: spec.Virtual, links: Sequence["Link"]) -> Scheduler:
    """A virtual server's scheduler for its links, in their search order. Raises KeyError."""
    return SCHEDULERS[virtual.scheduler](links)
