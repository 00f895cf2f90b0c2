"""A text over the page: the keys, or why a connection went where it went."""

from rich.segment import Segment

from nfqlb.operator.dashboard.grid import Line, fitted
from nfqlb.operator.dashboard.signs import FAINT, PLAIN, TITLE
from nfqlb.operator.dashboard.state import State

_MARGIN = 2  # cells left of the text and right of it, the frame in them


def over(lines: list[list[Segment]], state: State, width: int, height: int) -> list[list[Segment]]:
    """The lines of the screen with the text in front, as much of it as there is room for."""
    told = state.told
    assert told is not None
    look = state.look
    texts = [look.printable(text) for text in told.lines]
    inner = min(max([len(told.title) + 4, *map(len, texts)], default=0), max(1, width - 2 * _MARGIN))
    room = max(1, min(len(texts), height - 4))
    told.top = min(told.top, max(0, len(texts) - room))
    left = (width - inner - 2 * _MARGIN) // 2
    first = max(0, (height - room - 2) // 2)
    side, rule = ("|", "-") if look.ascii else ("│", "─")
    corners = "++++" if look.ascii else "╭╮╰╯"
    hidden = len(texts) - room - told.top
    end = f" {hidden} more below, any other key closes " if hidden > 0 else " any key closes "
    box = [(corners[0], f"{rule} {told.title} ", corners[1])]
    box += [(side, f" {fitted(text, inner, look)} ", side) for text in texts[told.top : told.top + room]]
    box.append((corners[2], rule + (end if len(end) < inner else ""), corners[3]))
    drawn = list(lines)
    for offset, (begin, middle, close) in enumerate(box):
        if first + offset >= len(drawn):
            break
        line = Line(width, look).gap(left)
        edge = offset in (0, len(box) - 1)
        body = middle + rule * (inner + 2 - len(middle)) if edge else middle
        line.put(begin, FAINT).put(body, FAINT if edge and offset else TITLE if edge else PLAIN)
        drawn[first + offset] = line.put(close, FAINT).done()
    return drawn
