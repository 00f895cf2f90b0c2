"""Fastest response: the server with the lowest predicted response time (R098, fig 9).

Owns the comparison of predictions, PR = connections * R - f(age), and what takes a prediction's place
where a server has not been measured. PR depends on the time; with the patent's ageing (the age divided
by a number) the order does not, as all predictions sink alike: connections * R + (time of the sample)
/ number orders the same way, and a ranking keeps the lowest at hand. Any other ageing is searched for
at the moment of the choice.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING

from nfqlb.core.response import FASTEST_RESPONSE, Ageing, Linear
from nfqlb.core.schedulers.base import Ranked

if TYPE_CHECKING:
    from nfqlb.core.server import Link

#: R of a server that was tried and has not answered yet: a second a connection. The next one always counts,
#: or one that closes what it accepts would look idle, and be chosen again and again.
_UNKNOWN = 1.0


class FastestResponse(Ranked):
    """PR below 0 wins over any that is not: so every server is tried again, the stalest first (R092, R093).

    A server that was never measured goes before all others, once. Until it has answered it is taken
    to need a second a connection, counted from when it was last tried, so that one which never
    answers gets few. `ageing` takes the place of the virtual server's own where given.
    """

    name = FASTEST_RESPONSE

    def __init__(self, links: Sequence["Link"], ageing: Ageing | None = None) -> None:
        self._ageing: Ageing = Linear() if ageing is None else ageing
        self._next = 0
        if links:
            virtual = links[0].virtual.spec
            self._ageing = Linear(virtual.ageing) if ageing is None else ageing
            self._next = int(virtual.predict == "next")  # A15b
        self._divisor = self._ageing.divisor if isinstance(self._ageing, Linear) else 0.0
        super().__init__(links, self._timeless if self._divisor else self.indicium)

    def update(self, link: "Link") -> None:
        """Rank the link anew, where there is a ranking."""
        if self._divisor:
            super().update(link)

    def choose(
        self, client: bytes, last: int, allowed: Callable[["Link"], bool] | None = None
    ) -> "Link | None":
        """The link with the lowest prediction, equals in the order after `last` (A29)."""
        if self._divisor:
            return super().choose(client, last, allowed)
        usable = (each for each in self._links if each.available)
        return self._choose_among([each for each in usable if allowed is None or allowed(each)], last)

    def chosen(self, link: "Link") -> None:
        """Remember that a server which has not been measured is being tried."""
        if link.real.response.last is None:
            link.real.tried(self.now)
            self.update(link)

    def indicium(self, link: "Link") -> float:
        """PR at `now` in seconds, may be below 0 (R087, R158-R160, A15); -inf for one still to be tried."""
        load, ratio, at = self._known(link)
        return load - self._ageing(ratio, self.now - at) if at > -inf else -inf

    def _timeless(self, link: "Link") -> float:
        """A number in the same order as PR under linear ageing, at any time: PR * divisor + now."""
        load, _, at = self._known(link)
        return load * self._divisor + at

    def _known(self, link: "Link") -> tuple[float, float, float]:
        """Connections * R, R, and when it was taken, -inf for never; or what is assumed in its place."""
        real = link.real
        response = real.response
        if response.last is not None:
            return (real.connections + self._next) * response.ratio, response.ratio, response.at
        return (real.connections + 1) * _UNKNOWN, _UNKNOWN, self.tried(link)

    def tried(self, link: "Link") -> float:
        """When a server that has not been measured was last tried (seconds), -inf for never."""
        return link.real.response.tried
