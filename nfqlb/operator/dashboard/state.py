"""What the user looks at: the page, where they are in its lists, what is asked of them, what is known.

Owns no terminal and no socket. `actions` changes it by keys, `loop` by what the gateway says, `views` draws
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nfqlb.operator.dashboard.model import RealRow, Snapshot, VirtualRow
from nfqlb.operator.dashboard.rows import ConnectionRow, DecisionRow, EventRow, FailureRow
from nfqlb.operator.dashboard.series import Key, Series
from nfqlb.operator.dashboard.signs import Look
from nfqlb.runtime.protocol import JSONObject

#: The pages of the keys 1 to 5.
TABS = ("summary", "virtuals", "reals", "connections", "events")
#: Seconds between two pictures that can be chosen.
PACES = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
#: Rows asked for at a time: the gateway makes them while packets wait, a thousand in some 2 ms.
ROWS = {"connections": 1000, "events": 300, "decisions": 100, "failures": 5}
#: Servers in all decisions asked for at a time: each takes the gateway's worker 1.6 us to explain.
EXPLAINED = 3000
#: Connections up to which the table is looked through for those of one server: it takes 10 ms, packets wait.
FEW = 50_000
SAID_FOR = 10.0  # seconds that a message stays


class Page(NamedTuple):
    """A page: one of TABS, or the `virtual` or `real` server of that name."""

    kind: str
    name: str = ""


class Fetch(NamedTuple):
    """A list that a page needs: the command and its arguments."""

    cmd: str
    args: JSONObject


@dataclass(slots=True)
class Listing:
    """Where the user is in a list. The chosen row is known by its key, so it moves with the row."""

    selected: str = ""
    index: int = 0
    top: int = 0
    height: int = 1
    sort: str = ""
    reverse: bool = False
    pattern: str = ""

    def settle(self, keys: Sequence[str], height: int) -> None:
        """The list has these rows now, and `height` lines: keep the chosen row, or its place, in sight."""
        self.height = max(1, height)
        if self.selected and self.selected in keys:
            self.index = keys.index(self.selected)
        self.index = max(0, min(self.index, len(keys) - 1))
        if keys and self.selected:
            self.selected = keys[self.index]
        lowest = max(0, self.index - self.height + 1)
        self.top = min(max(self.top, lowest), self.index, max(0, len(keys) - self.height))

    def move(self, keys: Sequence[str], by: int) -> None:
        """Choose the row `by` further down."""
        self.index = max(0, min(self.index + by, len(keys) - 1))
        self.selected = keys[self.index] if keys else ""


@dataclass(slots=True)
class Filtering:
    """The user types what rows must hold; `before` comes back where they give it up."""

    before: str


@dataclass(slots=True)
class Weighing:
    """The user types a real server's weight."""

    name: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Confirming:
    """The user is asked whether an order is to be given."""

    question: str
    cmd: str
    args: JSONObject


@dataclass(slots=True)
class Told:
    """A text over the page, to be scrolled and closed."""

    title: str
    lines: Sequence[str]
    top: int = 0


@dataclass(slots=True)
class State:
    """Everything that is drawn. `now` is the wall time (seconds since 1970) of the picture."""

    look: Look = field(default_factory=Look)
    read_only: bool = False
    page: Page = field(default_factory=lambda: Page("summary"))
    before: list[Page] = field(default_factory=list)
    focus: int = 0
    listings: dict[str, Listing] = field(default_factory=dict)
    prompt: Filtering | Weighing | Confirming | None = None
    told: Told | None = None
    paused: bool = False
    pace: float = PACES[0]
    message: str = ""
    message_until: float = 0.0
    now: float = 0.0
    snapshot: Snapshot | None = None
    lost: str = ""
    """Why the gateway does not answer; empty while it does."""
    series: Series = field(default_factory=Series)
    seen: set[Key] = field(default_factory=set)
    """The lines that the last picture drew, or would have."""
    connections: list[ConnectionRow] | None = None
    failures: list[FailureRow] | None = None
    events: list[EventRow] | None = None
    decisions: list[DecisionRow] | None = None

    def listing(self, name: str) -> Listing:
        """Where the user is in a list of this page."""
        key = f"{self.page.kind}/{name}" if self.page.name == "" else f"{self.page.kind}/*/{name}"
        return self.listings.setdefault(key, Listing())

    def say(self, text: str) -> None:
        """Show a message for a while."""
        self.message, self.message_until = text, self.now + SAID_FOR

    def go(self, page: Page, *, deeper: bool = False) -> None:
        """Turn to a page; `deeper`: the present one is come back to."""
        if page == self.page:
            return
        self.before = [*self.before, self.page] if deeper else []
        self._turn(page)
        if page.kind in ("virtual", "real"):
            for key in [key for key in self.listings if key.startswith(f"{page.kind}/*/")]:
                del self.listings[key]

    def back(self) -> None:
        """Turn to the page that this one was come to from."""
        if self.before:
            self._turn(self.before.pop())

    def _turn(self, page: Page) -> None:
        self.page, self.focus, self.prompt = page, 0, None
        self.connections = self.failures = None

    def fetches(self) -> list[Fetch]:
        """The lists that this page needs."""
        kind, name = self.page
        live: JSONObject = {"limit": ROWS["connections"]}
        if kind in ("virtual", "real") and self.narrow:
            live[kind] = name
        if kind == "real":
            return [
                Fetch("connections", live),
                Fetch("failures", {"real": name, "limit": ROWS["failures"]}),
            ]
        if kind in ("connections", "virtual"):
            return [Fetch("connections", live)]
        if kind == "events":
            return [
                Fetch("events", {"limit": ROWS["events"]}),
                Fetch("decisions", {"limit": self._decisions()}),
            ]
        return []

    def _decisions(self) -> int:
        """How many decisions are asked for: fewer where each has many servers to be explained."""
        servers = len(self.snapshot.reals) if self.snapshot is not None else 0
        return max(10, min(ROWS["decisions"], EXPLAINED // max(1, servers)))

    @property
    def narrow(self) -> bool:
        """Whether the connections of one server are asked for, and not looked for in the newest of all."""
        return self.snapshot is not None and (self.snapshot.connections or 0) <= FEW

    def virtual(self, name: str) -> VirtualRow | None:
        """The virtual server of a name."""
        rows = self.snapshot.virtuals if self.snapshot is not None else ()
        return next((row for row in rows if row.name == name), None)

    def real(self, name: str) -> RealRow | None:
        """The real server of a name."""
        rows = self.snapshot.reals if self.snapshot is not None else ()
        return next((row for row in rows if row.name == name), None)

    def line(self, key: Key, name: str) -> list[float | None]:
        """What a sparkline is drawn from; that it is wanted is remembered."""
        self.seen.add(key)
        return self.series.values(key, name)
