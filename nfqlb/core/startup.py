"""Startup: another scheme places connections until conditions are stable (R100-R102, R134-R140, A11).

Owns the condition, the startup scheduler, and what the condition is reckoned from. A server starts up for
`startup_time` seconds after it came into service, by whatever way, while it has less than `startup_share`
per cent of its weighted fair share of the virtual server's connections (R097, R101). Under
fastest-response all of them do, while one that may be chosen has not been measured yet (R102).
"""

from math import fsum, inf
from typing import TYPE_CHECKING

from nfqlb.core.response import FASTEST_RESPONSE
from nfqlb.core.schedulers import RoundRobin
from nfqlb.core.schedulers.ranking import Ranking

if TYPE_CHECKING:  # a virtual server is built with its startup scheme
    from nfqlb.core.server import Link, VirtualServer


class Startup:
    """The startup scheme of one virtual server.

    `scheduler` is the one that acts in the desired one's stead. `before` is whether the condition is
    tested before the desired one is asked at all (R137).
    """

    __slots__ = (
        "_any", "_capacity", "_counted", "_links", "_new", "_unmeasured", "_virtual", "before", "scheduler",
    )  # fmt: skip

    def __init__(self, virtual: "VirtualServer") -> None:
        many = len(virtual.links)
        self.scheduler = RoundRobin(virtual.links)
        self.before = virtual.spec.startup_test == "before"
        self._any = virtual.spec.startup_test != "chosen"
        self._virtual = virtual
        self._links = virtual.links
        self._counted = [0.0] * many  # what each link adds to the sum of weights
        self._capacity = 0.0
        self._unmeasured: set[int] = set()
        self._new = Ranking([inf] * many)  # who may still start up, by connections for the weight
        for link in virtual.links:
            self.update(link)

    def update(self, link: "Link") -> None:
        """A link's server changed."""
        self.scheduler.update(link)
        at, real = link.position, link.real
        available = link.available
        counted = real.weight if available else 0.0
        if self._counted[at] != counted:
            self._counted[at] = counted
            self._capacity = fsum(self._counted)
        if self._virtual.scheduler.name == FASTEST_RESPONSE:
            if available and real.response.last is None:
                self._unmeasured.add(at)
            else:
                self._unmeasured.discard(at)
        if self._any:
            self._new.set(at, link.connections / real.weight if available else inf)

    def acts(self, chosen: "Link | None", now: float) -> bool:
        """Whether the startup scheduler places the next connection.

        `chosen` is the desired scheduler's choice, on which the condition is tested (R135); None where
        that was not asked. With `startup_test` "any" or "before" every server that may be chosen
        is looked at (R136, R137).
        """
        if self._unmeasured:
            return True
        if not self._any and chosen is not None:
            return self._starts_up(chosen, now)
        while (position := self._new.lowest_after(-1)) is not None:
            link = self._links[position]
            if now - link.real.serving_since < self._virtual.spec.startup_time:
                return self._starts_up(link, now)  # the least of its share: if this one does not, none does
            self._new.set(position, inf)
        return False

    def _starts_up(self, link: "Link", now: float) -> bool:
        spec = self._virtual.spec
        if now - link.real.serving_since >= spec.startup_time:
            return False
        fair = self._virtual.connections * link.real.weight / self._capacity
        return link.connections < fair * spec.startup_share / 100
