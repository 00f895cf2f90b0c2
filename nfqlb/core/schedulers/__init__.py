"""The schedulers (session distribution schemes, R095-R099), by name.

One scheduler a file. To add one: write its class, list it in `SCHEDULERS`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nfqlb.core.schedulers.base import Ranked, Scheduler
from nfqlb.core.schedulers.least_connections import LeastConnections
from nfqlb.core.schedulers.round_robin import RoundRobin
from nfqlb.core.schedulers.weighted_least_connections import WeightedLeastConnections

if TYPE_CHECKING:  # a link is built with its virtual server, which is built with its scheduler
    from nfqlb.core.server import Link

__all__ = ["SCHEDULERS", "Ranked", "Scheduler", "make_scheduler"]

SCHEDULERS: dict[str, type[Ranked]] = {
    scheduler.name: scheduler for scheduler in (RoundRobin, LeastConnections, WeightedLeastConnections)
}


def make_scheduler(name: str, links: Sequence["Link"]) -> Scheduler:
    """A scheduler for one virtual server's links, in their search order. Raises KeyError."""
    return SCHEDULERS[name](links)
