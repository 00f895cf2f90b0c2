"""Signs: the letter and colour of a state, bars and sparklines, and numbers that fit a few cells.

Colour says nothing that a letter or word beside it does not say, and is used for states alone. `Look` has the
signs twice: for terminals that know Unicode, and for those that know ASCII only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style

from nfqlb.core.plural import noun
from nfqlb.operator.text import clean

PLAIN = Style.null()
TITLE = Style(bold=True)
FAINT = Style(dim=True)
CHOSEN = Style(reverse=True)
GOOD = Style(color="green")
CARE = Style(color="yellow")
WRONG = Style(color="red", bold=True)

#: The letter of every state, how bad it is (0: as it should be) and its colour.
STATES: dict[str, tuple[str, int, Style]] = {
    "in-service": ("I", 0, GOOD),
    "testing": ("T", 3, CARE),
    "max-capacity": ("C", 2, CARE),
    "sticky-only": ("S", 1, CARE),
    "maintenance": ("M", 1, CARE),
    "out-of-service": ("O", 1, CARE),
    "draining": ("D", 1, CARE),
    "failed": ("F", 4, WRONG),
}
_UNKNOWN = ("?", 2, CARE)

#: The same for what a gateway, a problem or an event says of itself.
LEVELS: dict[str, tuple[str, Style]] = {
    "running": ("OK", GOOD),
    "degraded": ("DEGRADED", WRONG),
    "error": ("E", WRONG),
    "warning": ("W", CARE),
    "info": ("I", GOOD),
}


@dataclass(frozen=True, slots=True)
class Look:
    """The signs at hand; `ascii` where the terminal knows no others."""

    ascii: bool = False

    @property
    def more(self) -> str:
        """Ends a text that was cut."""
        return "~" if self.ascii else "…"

    @property
    def rule(self) -> str:
        """Draws lines across."""
        return "-" if self.ascii else "─"

    def order(self, reverse: bool) -> str:
        """Marks the column that rows are sorted by."""
        return ("v" if reverse else "^") if self.ascii else ("▼" if reverse else "▲")

    def printable(self, text: str) -> str:
        """The text without anything that moves the cursor, and in ASCII if there is no other."""
        text = clean(text)
        if self.ascii and not text.isascii():
            return text.encode("ascii", "backslashreplace").decode()
        return text

    def spark(self, values: Sequence[float | None], width: int, top: float) -> str:
        """The latest `width` values as columns of which `top` is the highest; unknown ones are blank."""
        levels = ".:-=+*#@" if self.ascii else "▁▂▃▄▅▆▇█"
        if width <= 0:
            return ""
        steps = 7 / top if top > 0 else 0.0
        drawn = "".join(
            " " if value is None else levels[min(7, max(0, round(value * steps)))]
            for value in values[-width:]
        )
        return drawn.rjust(width)

    def bar(self, share: float | None, fair: float | None, width: int) -> str:
        """A share of 0 to 1 as a bar of `width` cells; a stroke stands where the fair share would end."""
        full, stroke, empty = ("#", "|", ".") if self.ascii else ("█", "│", "·")
        if share is None or width <= 0:
            return "-".ljust(max(width, 0))
        filled = round(min(max(share, 0.0), 1.0) * width)
        cells = [full] * filled + [empty] * (width - filled)
        if fair is not None:
            mark = min(width - 1, max(0, round(min(max(fair, 0.0), 1.0) * width) - 1))
            cells[mark] = ("+" if self.ascii else "▓") if mark < filled else stroke
        return "".join(cells)


def letter(state: str) -> str:
    """The letter of a state; "?" of one that is not known here."""
    return STATES.get(state, _UNKNOWN)[0]


def badness(state: str) -> int:
    """How far a state is from what should be: 0 to 4."""
    return STATES.get(state, _UNKNOWN)[1]


def colour(state: str) -> Style:
    """The colour of a state."""
    return STATES.get(state, _UNKNOWN)[2]


def level(name: str) -> tuple[str, Style]:
    """The sign and colour of a level."""
    return LEVELS.get(name, ("?", CARE))


_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float | None) -> str:
    """A number in five cells at most: 1234, 12.3k, 4.56M; a dash where there is none."""
    if number is None:
        return "-"
    if abs(number) < 9999.5:
        return f"{number:.0f}"
    for size, unit in _UNITS:
        if abs(number) >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{number:.0f}"


def some(number: float | None, one: str, many: str = "") -> str:
    """So many things, in few cells: 1 packet, 12.3k packets; a dash for a number that is not known."""
    return f"{short(number)} {noun(number or 0, one, many)}"


def percent(part: float | None) -> str:
    """A part of 1 in per cent; a dash where there is none."""
    return "-" if part is None else f"{part:.0%}"


def micro(seconds: float | None) -> str:
    """A time in microseconds."""
    return "-" if seconds is None else f"{seconds * 1e6:.1f}" if seconds < 1e-3 else f"{seconds * 1e6:.0f}"
