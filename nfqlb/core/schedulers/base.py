"""What a scheduler is: it is told what changed, and it chooses. It counts no connections.

Owns the base class (the patent's session distribution scheme) and `Ranked`, the kind that
gives each link an indicium (R145) and takes the lowest (A30). The rankings keep the lowest
indicium at hand, so choosing among 1,000 servers costs little more than among 10.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from nfqlb.core.schedulers.ranking import Ranking

if TYPE_CHECKING:  # servers are built with their scheduler; a scheduler only reads them
    from nfqlb.core.server import Link


class Way(Enum):
    """How a scheduler comes to a choice, and why it passes over a server that it could have chosen."""

    RANKS = "ranks"  # all are compared by `indicium`, equals by the order after the last used
    DRAWS = "draws"  # so are those few that are drawn
    TAKES_TURNS = "takes turns"  # each has its turns, whatever it is doing
    HASHES = "hashes"  # the client's address says which


class Scheduler(ABC):
    """Chooses a link for a new connection. Its state belongs to one virtual server.

    `now` is the moment of the choice; whoever asks for one sets it before. Few schedulers heed it.
    `way` says how it comes to a choice. `note` is what only the scheduler knows of its last choice, if
    there is anything: see each. Both are for the record of decisions.
    """

    name: str
    now: float = 0.0
    way: Way
    note: Sequence[int] | None = None

    @abstractmethod
    def update(self, link: "Link") -> None:
        """A link's server changed: its counters, its weight or whether it may be chosen."""

    @abstractmethod
    def choose(
        self, client: bytes, last: int, allowed: Callable[["Link"], bool] | None = None
    ) -> "Link | None":
        """The link for the next connection, None if there is none.

        `client` is the client's packed address. `last` is the position of the last used link
        (308); equals are taken in the order after it (A29). `allowed`, where given, can refuse
        links for this one choice.
        """

    def chosen(self, link: "Link") -> None:  # noqa: B027  most schedulers need not know
        """What `choose` returned was used."""

    def indicium(self, link: "Link") -> float | None:
        """What the link is judged by, lower is better; None where the scheduler does not compare."""
        return None


class Ranked(Scheduler):
    """A scheduler that takes the available link with the lowest indicium (fig 7B, R143-R150).

    Links whose servers have too many unanswered SYNs are ranked apart: the best of those bad
    machines is taken only where there is no good one (R147, R150). `rank` gives the numbers to
    compare where these are not the indicia themselves, but in the same order.
    """

    way = Way.RANKS

    def __init__(self, links: Sequence["Link"], rank: Callable[["Link"], float] | None = None) -> None:
        self._links = links
        self._rank = rank or self.indicium
        self._good = Ranking([inf] * len(links))
        self._bad = Ranking([inf] * len(links))
        for link in links:
            self.update(link)

    @abstractmethod
    def indicium(self, link: "Link") -> float:
        """The link's performance indicium; lower is better."""

    def update(self, link: "Link") -> None:
        """Rank the link anew."""
        rank = self._rank(link) if link.available else inf
        if link.real.overloaded:
            self._good.set(link.position, inf)
            self._bad.set(link.position, rank)
        else:
            self._good.set(link.position, rank)
            self._bad.set(link.position, inf)

    def choose(
        self, client: bytes, last: int, allowed: Callable[["Link"], bool] | None = None
    ) -> "Link | None":
        """The link with the lowest indicium, equals in the order after `last`."""
        position = self._good.lowest_after(last)
        if position is None:
            position = self._bad.lowest_after(last)
        if position is None:
            return None
        link = self._links[position]
        if allowed is None or allowed(link):
            return link
        return self._choose_among([each for each in self._links if each.available and allowed(each)], last)

    def _choose_among(self, links: list["Link"], last: int) -> "Link | None":
        """The same choice by a plain search: for the rare case that some links are refused."""
        in_turn = sorted(links, key=lambda each: (each.position <= last, each.position))
        return min(in_turn, key=lambda each: (each.real.overloaded, self._rank(each)), default=None)
