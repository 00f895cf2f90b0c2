"""Weighted round robin, smooth: each server in turn, as often as its weight says (R048, R099).

Owns the turns, by earliest eligible deadline first (Stoica and Abdel-Wahab, 1995): a link's turns
follow each other at a stride of 1/weight; each is due from its start and should be taken before
the next one starts. Of the turns that are due the one with the earliest end goes next. With
weights 3, 1 and 1 that gives a b a c a: no bursts. Time here is no clock: it moves on by
1/(sum of weights) a choice, so that in one unit everybody gets as many turns as its weight.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import inf, lcm
from typing import TYPE_CHECKING

from nfqlb.core.schedulers.base import Scheduler, Way
from nfqlb.core.schedulers.ranking import Ranking

if TYPE_CHECKING:
    from nfqlb.core.server import Link

#: A unit of time. Whole numbers, so that nothing drifts; divisible by every small weight.
_UNIT = lcm(*range(1, 101))
_ABSENT, _BAD, _GOOD = range(3)


class WeightedRoundRobin(Scheduler):
    """A link that was unavailable comes back at the present turn: it does not catch up on missed ones.

    Links over their SYN limit get turns only where there is no other (R147, R150), and do not
    catch up either.
    """

    name = "weighted-round-robin"
    way = Way.TAKES_TURNS

    def __init__(self, links: Sequence["Link"]) -> None:
        many = len(links)
        self._links = links
        self._present = 0
        self._step = 0
        self._capacity = Fraction(0)  # the sum of the good links' weights
        self._groups = [_ABSENT] * many
        self._weights = [0.0] * many
        self._starts = [0] * many
        self._strides = [0] * many
        self._due = Ranking([inf] * many)  # good links whose turn has started, by its end
        self._early = Ranking([inf] * many)  # the other good links, by the start of their turn
        self._bad = Ranking([inf] * many)  # bad links, by the end of their turn
        for link in links:
            self.update(link)

    def update(self, link: "Link") -> None:
        """Let the link take part, or not, or with another weight."""
        at, weight = link.position, link.real.weight
        group = _ABSENT if not link.available else _BAD if link.real.overloaded else _GOOD
        before = self._groups[at]
        if group == before and (group == _ABSENT or weight == self._weights[at]):
            return
        if before == _GOOD:
            self._capacity -= Fraction(self._weights[at])
        if group == _GOOD:
            self._capacity += Fraction(weight)
        if group != _ABSENT:
            stride = round(_UNIT / Fraction(weight))
            ahead = self._starts[at] - self._present
            if ahead > 0:  # what is left to wait for is measured by the new weight
                self._starts[at] = self._present + ahead * stride // self._strides[at]
            self._strides[at] = stride
        if group != before:  # neither what it missed counts nor what it had while all were bad
            latest = self._present + self._strides[at]
            self._starts[at] = min(max(self._starts[at], self._present), latest)
        self._groups[at], self._weights[at] = group, weight
        self._step = round(_UNIT / self._capacity) if self._capacity else 0
        self._place(at)

    def choose(
        self, client: bytes, last: int, allowed: Callable[["Link"], bool] | None = None
    ) -> "Link | None":
        """The link whose turn it is, equals in the order after `last`."""
        for ranking in (self._due, self._early, self._bad):
            position = ranking.lowest_after(last)
            if position is not None:
                link = self._links[position]
                return link if allowed is None or allowed(link) else self._choose_among(allowed, last)
        return None

    def _choose_among(self, allowed: Callable[["Link"], bool], last: int) -> "Link | None":
        """The same choice by a plain search: for the rare case that some links are refused."""
        links = [link for link in self._links if self._groups[link.position] != _ABSENT and allowed(link)]
        links.sort(key=lambda link: (link.position <= last, link.position))
        return min(links, key=lambda link: self._rank(link.position), default=None)

    def _rank(self, at: int) -> tuple[int, int]:
        """Which ranking a link stands in, and with what number."""
        start = self._starts[at]
        if self._groups[at] == _BAD:
            return 2, start + self._strides[at]
        return (0, start + self._strides[at]) if self._started(start) else (1, start)

    def chosen(self, link: "Link") -> None:
        """The link has taken its turn; the next one starts where this one should end."""
        at = link.position
        if self._groups[at] == _BAD:
            self._starts[at] = max(self._starts[at], self._present)
        elif self._due.lowest_after(-1) is None:
            self._present = max(self._present, self._starts[at])  # it was nobody's turn, so the next one came
        self._present += self._step
        self._starts[at] += self._strides[at]
        self._place(at)
        while (first := self._early.lowest_after(-1)) is not None and self._started(self._starts[first]):
            self._place(first)

    def indicium(self, link: "Link") -> float:
        """When the link's turn should be taken at the latest."""
        return (self._starts[link.position] + self._strides[link.position]) / _UNIT

    def _started(self, start: int) -> bool:
        """Whether a turn that starts then is due."""
        return start <= self._present

    def _place(self, at: int) -> None:
        """Put a link into the ranking where it belongs, and into no other."""
        rank, number = self._rank(at)
        group = self._groups[at]
        for place, ranking in enumerate((self._due, self._early, self._bad)):
            ranking.set(at, number if group != _ABSENT and place == rank else inf)
