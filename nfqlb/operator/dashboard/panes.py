"""The lists of the present page: which rows they have after filter and sorting, and which one is chosen.

Pure: the state in, panes out. A pane is drawn by `views.pane` and moved in by `actions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.segment import Segment

from nfqlb.operator.dashboard import columns, grid
from nfqlb.operator.dashboard.grid import Column, Sortable
from nfqlb.operator.dashboard.model import Place, RealRow, VirtualRow
from nfqlb.operator.dashboard.rows import ConnectionRow, DecisionRow, EventRow
from nfqlb.operator.dashboard.state import ROWS, Listing, State

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pane(Generic[T]):
    """A list on the page. `rows` are those that pass the filter, in order; `of` is how many there are in all.

    `title` stands above it where there are several, `empty` in it where there is nothing, and `about` is what
    there is to say of a row in a line of its own; empty where no line is wanted.
    """

    listing: Listing
    columns: Sequence[Column[T]]
    rows: Sequence[T]
    keys: Sequence[str]
    of: int
    title: str = ""
    empty: str = ""
    about: Callable[[T], str] | None = None

    @property
    def chosen(self) -> T | None:
        """The row that the user has chosen, or that is in its place."""
        return self.rows[self.listing.index] if self.listing.index < len(self.rows) else None

    def lines(self, state: State, width: int, *, focused: bool) -> list[list[Segment]]:
        """The titles and the rows in sight. Needs a settled listing."""
        listing, look = self.listing, state.look
        fitting = grid.fit(self.columns, width)
        drawn = [grid.heading(fitting, width, look, listing.sort, listing.reverse)]
        for index in range(listing.top, min(listing.top + listing.height, len(self.rows))):
            chosen = focused and index == listing.index
            drawn.append(grid.row(fitting, self.rows[index], width, look, chosen=chosen))
        return drawn

    def said(self) -> str:
        """What there is to say of the chosen row."""
        return self.about(self.chosen) if self.about is not None and self.chosen is not None else ""

    def sortable(self) -> list[Column[T]]:
        """The columns that rows can be sorted by."""
        return [column for column in self.columns if column.sort is not None]


AnyPane = (
    Pane[VirtualRow] | Pane[RealRow] | Pane[Place] | Pane[ConnectionRow] | Pane[EventRow] | Pane[DecisionRow]
)


def panes(state: State) -> list[AnyPane]:
    """The lists of the page that the user is on, from top to bottom."""
    if state.snapshot is None:
        return []
    return list(_PAGES[state.page.kind](state))


def focused(state: State) -> AnyPane | None:
    """The list that keys act on."""
    return at_focus(state, panes(state))


def at_focus(state: State, found: Sequence[AnyPane]) -> AnyPane | None:
    """The one of these lists of the page that keys act on."""
    return found[min(state.focus, len(found) - 1)] if found else None


def _pane(
    listing: Listing,
    columns_: Sequence[Column[T]],
    rows: Sequence[T],
    key: Callable[[T], str],
    find: Callable[[T], Sequence[str]],
    *,
    title: str = "",
    empty: str = "",
    about: Callable[[T], str] | None = None,
) -> Pane[T]:
    """A list, filtered and sorted; `find` gives the texts that a filter looks into."""
    wanted = listing.pattern.casefold()
    kept = [row for row in rows if wanted in " ".join(find(row)).casefold()] if wanted else list(rows)
    column = next((each for each in columns_ if each.title == listing.sort), None)
    if column is not None and column.sort is not None:
        kept = _sorted(kept, column.sort, listing.reverse)
    return Pane(
        listing, columns_, kept, [key(row) for row in kept], len(rows), title, empty or "nothing", about
    )


def _sorted(rows: Sequence[T], value: Callable[[T], Sortable], reverse: bool) -> list[T]:
    def order(row: T) -> tuple[bool, float, str]:
        found = value(row)
        if isinstance(found, str):
            return False, 0.0, found
        return (True, 0.0, "") if found is None else (False, found, "")

    return sorted(rows, key=order, reverse=reverse)


def _virtuals(state: State) -> list[AnyPane]:
    rows = state.snapshot.virtuals if state.snapshot is not None else ()
    return [
        _pane(
            state.listing("virtuals"),
            columns.virtuals(state, rows),
            rows,
            lambda row: row.name,
            lambda row: (row.name, row.address, row.state, row.actual, row.desired, row.protocol),
            empty="no virtual servers",
            about=about_virtual,
        )
    ]


def _reals(state: State) -> list[AnyPane]:
    rows = state.snapshot.reals if state.snapshot is not None else ()
    return [
        _pane(
            state.listing("reals"),
            columns.reals(state, rows),
            rows,
            lambda row: row.name,
            lambda row: (row.name, row.address, row.state, row.reason, *row.virtuals),
            empty="no real servers",
            about=about_real,
        )
    ]


def _connections(state: State, title: str = "") -> AnyPane:
    kind, name = state.page
    rows = list(state.connections or ())
    whole = len(rows) < ROWS["connections"]
    if kind == "real":
        rows = [row for row in rows if row.real == name]
    elif kind == "virtual":
        rows = [row for row in rows if row.virtual == name]
    asked = state.connections is not None
    return _pane(
        state.listing("connections"),
        columns.connections(rows),
        rows,
        lambda row: f"{row.client} {row.virtual} {row.protocol}",
        lambda row: (row.client, row.virtual, row.server, row.state, row.protocol),
        title=title if whole else f"{title or 'connections'} (of the newest {ROWS['connections']:,})",
        empty="no connections" if asked else "asking ...",
    )


def _events(state: State) -> list[AnyPane]:
    happened, decided = state.events or (), state.decisions or ()
    return [
        _pane(
            state.listing("events"),
            columns.events(state, happened),
            happened,
            lambda row: f"{row.at} {row.kind} {row.text}",
            lambda row: (row.kind, row.name, row.text, row.who),
            title="events",
            empty="nothing has happened yet" if state.events is not None else "asking ...",
            about=lambda row: f"{row.text}, by {row.who}" if row.who else row.text,
        ),
        _pane(
            state.listing("decisions"),
            columns.decisions(state, decided),
            decided,
            lambda row: f"{row.at} {row.client} {row.virtual}",
            lambda row: (row.client, row.virtual, row.server, row.by),
            title="decisions",
            empty="nothing was decided yet" if state.decisions is not None else "asking ...",
        ),
    ]


def _virtual(state: State) -> list[AnyPane]:
    virtual = state.virtual(state.page.name)
    rows = virtual.places if virtual is not None else ()
    return [
        _pane(
            state.listing("servers"),
            columns.places(state, rows),
            rows,
            columns.place_name,
            lambda row: (row.real, row.state),
            title="real servers",
            empty="no real servers",
        ),
        _connections(state, "connections"),
    ]


def _real(state: State) -> list[AnyPane]:
    return [_connections(state, "connections")]


_PAGES: dict[str, Callable[[State], Sequence[AnyPane]]] = {
    "summary": lambda _: (),
    "virtuals": _virtuals,
    "reals": _reals,
    "connections": lambda state: (_connections(state),),
    "events": _events,
    "virtual": _virtual,
    "real": _real,
}


def about_virtual(row: VirtualRow) -> str:
    """What does not fit into a virtual server's row."""
    said = [f"{row.name}: {row.state}"]
    said.append(row.actual if row.actual == row.desired else f"{row.actual} for now, then {row.desired}")
    said += [f"dropped {columns.reasons(row)}"] if row.drops else []
    said += [f"shadow: {row.shadow}"] if row.shadow else []
    return ", ".join(said)


def about_real(row: RealRow) -> str:
    """What does not fit into a real server's row."""
    because = columns.why(row)
    return f"{row.name}: {row.state}" + (f", {because}" if because else "")
