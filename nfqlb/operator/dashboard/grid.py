"""Lines of cells: text cut and padded to the cell, and tables whose columns come and go with the width.

Made by hand from rich's segments: a `rich.table.Table` measures every cell anew and takes 100 ms for what
fits a screen, and this has 50 ms a second for everything. Every text that is put on a line goes through
`Look.printable`, so nothing that a name holds reaches the terminal as a command, and nothing is read as
markup.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style

from nfqlb.operator.dashboard.signs import CHOSEN, FAINT, PLAIN, Look

T = TypeVar("T")

#: A text, or several with a style each.
Piece = tuple[str, Style]
Cell = str | Piece
Sortable = float | str | None


class Line:
    """One line of the screen, `width` cells: what is put on it is cut where it is full."""

    __slots__ = ("_left", "look", "segments")

    def __init__(self, width: int, look: Look) -> None:
        self.segments: list[Segment] = []
        self.look = look
        self._left = width

    @property
    def left(self) -> int:
        """Cells that are still free."""
        return self._left

    def put(self, text: str, style: Style = PLAIN) -> "Line":
        """Add a text as it is, cut where the line ends. Returns the line."""
        if self._left > 0 and text:
            text = self.look.printable(text)
            cells = len(text) if text.isascii() else cell_len(text)
            if cells > self._left:
                text, cells = cut(text, self._left, self.look), self._left
            self.segments.append(Segment(text, style))
            self._left -= cells
        return self

    def cell(self, text: str, width: int, style: Style = PLAIN, *, right: bool = False) -> "Line":
        """Add a text cut or padded to `width` cells. Returns the line."""
        text = self.look.printable(text)
        width = min(width, self._left)
        if width > 0:
            self.segments.append(Segment(fitted(text, width, self.look, right=right), style))
            self._left -= width
        return self

    def gap(self, width: int) -> "Line":
        """Leave `width` cells free. Returns the line."""
        return self.cell("", width)

    def done(self, style: Style | None = None) -> list[Segment]:
        """The whole line, filled up; all of it in `style` as well, if there is one."""
        if self._left > 0:
            self.segments.append(Segment(" " * self._left, PLAIN))
            self._left = 0
        if style is None:
            return self.segments
        return [Segment(text, (own or PLAIN) + style) for text, own, _ in self.segments]


def cut(text: str, width: int, look: Look) -> str:
    """The first `width` cells of a longer text, the last of them saying that it goes on."""
    return set_cell_size(text, width - 1) + look.more if width > 0 else ""


def fitted(text: str, width: int, look: Look, *, right: bool = False) -> str:
    """A text as exactly `width` cells."""
    cells = len(text) if text.isascii() else cell_len(text)
    if cells > width:
        return cut(text, width, look)
    padding = " " * (width - cells)
    return padding + text if right else text + padding


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column: what it says of a row, and how much room it has.

    `width` is in cells. Where the screen is too narrow, columns go by `rank`, the highest first (0 stays).
    What is left over goes to the columns that `grow`, in that proportion, up to `most` cells. `sort` makes it
    one that rows can be sorted by; `falling` says that its highest come first. `brief` is the title for where
    there is no room for the whole.
    """

    title: str
    width: int
    cell: Callable[[T, int], Cell]
    right: bool = False
    rank: int = 0
    grow: int = 0
    most: int = 1000
    sort: Callable[[T], Sortable] | None = None
    falling: bool = False
    brief: str = ""


GAP = 1
"""Cells between two columns."""


def fit(columns: Sequence[Column[T]], width: int) -> list[tuple[Column[T], int]]:
    """The columns that find room in `width` cells, each with its own width."""
    kept = list(columns)
    while len(kept) > 1 and _needed(kept) > width:
        worst = max(column.rank for column in kept)
        if worst == 0:
            break
        kept.remove(next(column for column in reversed(kept) if column.rank == worst))
    spare = max(0, width - _needed(kept))
    widths = {id(column): column.width for column in kept}
    growing = [column for column in kept if column.grow and column.width < column.most]
    while spare > 0 and growing:
        share = sum(column.grow for column in growing)
        before = spare
        for column in growing:
            more = min(max(1, before * column.grow // share), column.most - widths[id(column)], spare)
            widths[id(column)] += more
            spare -= more
        growing = [column for column in growing if widths[id(column)] < column.most]
    return [(column, widths[id(column)]) for column in kept]


def _needed(columns: Sequence[Column[T]]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) + 1)


def heading(
    fitting: Sequence[tuple[Column[T], int]], width: int, look: Look, sort: str = "", reverse: bool = False
) -> list[Segment]:
    """The line of the columns' titles; that of the column that rows are sorted by is marked."""
    line = Line(width, look)
    for column, cells in fitting:
        title = column.brief if column.brief and len(column.title) > cells else column.title
        if sort and column.title == sort:
            title = title[: cells - 1] + look.order(reverse)
        line.gap(GAP).cell(title, cells, FAINT, right=column.right)
    return line.done()


def row(
    fitting: Sequence[tuple[Column[T], int]], item: T, width: int, look: Look, *, chosen: bool = False
) -> list[Segment]:
    """One row of the table; the chosen one is shown in reverse."""
    line = Line(width, look)
    for column, cells in fitting:
        said = column.cell(item, cells)
        text, style = said if isinstance(said, tuple) else (said, PLAIN)
        line.gap(GAP).cell(text, cells, style, right=column.right)
    return line.done(CHOSEN if chosen else None)
