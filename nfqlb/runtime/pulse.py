"""The pulse: once a second the worker is asked for everything it counts, and nobody else polls it.

Owns the snapshot, the one document in which the whole gateway can be seen, and what it is made of over
time: rates, and the sums over all workers. Who shows the gateway reads the snapshot. While a worker is
replaced, or does not answer, the last one is given with the state "degraded".
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from nfqlb.runtime.beat import whole
from nfqlb.runtime.carry import Carry, Path
from nfqlb.runtime.history import Key, named_rows
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject, objects


class Asks(Protocol):
    """The way to the worker."""

    def call(
        self, cmd: str, args: JSONObject, done: Callable[[JSON], None], failed: Callable[[ControlError], None]
    ) -> None:
        """Ask; one of the two is called, now or later."""


class Account(NamedTuple):
    """What the gateway has counted: the worker's account with what its predecessors had.

    `rates` are connections a second, by the history's keys; None where there was no account before.
    """

    document: JSONObject
    rates: dict[Key, float | None]


class Pulse:
    """Asks the worker, and keeps what it said.

    `taken(account, news, scheduled)` is called with every account, `scheduled` once a second, and
    `missed(error, scheduled)` where there was none. `carry` may be asked for the sums in between.
    """

    def __init__(
        self,
        worker: Asks,
        taken: Callable[[Account, list[JSONObject], bool], None],
        missed: Callable[[ControlError, bool], None],
    ) -> None:
        self.carry = Carry()
        self._worker = worker
        self._taken = taken
        self._missed = missed
        self._heard = 0
        self._unborn = True  # the present worker has not said yet what it began with
        self._under_way = False
        self._again = False
        self._scheduled = False
        self._at = 0.0
        self._totals: dict[Key, float] = {}
        self._rates: dict[Key, float | None] = {}

    def born(self) -> None:
        """A new worker is there: it is asked at once, before anybody else asks it anything."""
        self._heard, self._unborn = 0, True
        self._under_way = False
        self.ask()

    def tick(self) -> None:
        """To be called once a second."""
        self._scheduled = True
        self.ask()

    @property
    def under_way(self) -> bool:
        """Whether an account is being made: who asks now gets the one after it."""
        return self._under_way

    def ask(self) -> None:
        """Have an account that is as of now or later. Many who ask at a time get the same."""
        if self._under_way:
            self._again = True
            return
        self._under_way, self._again = True, False
        args: JSONObject = {"heard": self._heard, **({"begun": True} if self._unborn else {})}
        self._worker.call("pulse", args, self._answered, self._failed)

    def _answered(self, result: JSON) -> None:
        assert isinstance(result, list)
        counted = whole(result)
        self._under_way = False
        if self._unborn:
            self._unborn = False
            self.carry.succeed(_begun(counted.pop("begun")))
        told = objects(counted.pop("news"))
        numbers = [number for each in told if isinstance(number := each["number"], int)]
        self._heard = max([self._heard, *numbers])
        self.carry.learn(counted)
        document = self.carry.add(counted)
        scheduled, self._scheduled = self._scheduled, False
        if scheduled:
            self._measure(document)
        self._taken(Account(document, self._rates), told, scheduled)
        self._go_on()

    def _failed(self, error: ControlError) -> None:
        scheduled, self._scheduled = self._scheduled, False
        self._under_way = False
        self._rates, self._totals = {}, {}
        self._missed(error, scheduled)
        self._go_on()

    def _go_on(self) -> None:
        if self._again and not self._under_way:
            self.ask()

    def _measure(self, document: JSONObject) -> None:
        """New rates, from what was counted since the last scheduled account."""
        at, totals = document.get("now"), dict(_totals(document))
        assert isinstance(at, float | int)
        took = at - self._at
        before = self._totals
        self._rates = {
            key: max(0.0, total - before[key]) / took if key in before and took > 0 else None
            for key, total in totals.items()
        }
        self._at, self._totals = at, totals


def _begun(pairs: JSON) -> dict[Path, float]:
    """What a worker began with, as its beat tells it: places, each with its number at the end."""
    assert isinstance(pairs, list)
    found: dict[Path, float] = {}
    for pair in pairs:
        assert isinstance(pair, list)
        *path, value = pair
        assert isinstance(value, int | float)
        found[tuple(step for step in path if isinstance(step, str | int))] = value
    return found


def _totals(document: JSONObject) -> list[tuple[Key, float]]:
    found: list[tuple[Key, JSON]] = []
    whole = document["connections"]
    assert isinstance(whole, dict)
    found.append((("gateway", ""), whole["total"]))
    for kind, row in named_rows(document):
        found.append(((kind, str(row["name"])), row["total"]))
    return [(key, total) for key, total in found if isinstance(total, int | float)]
