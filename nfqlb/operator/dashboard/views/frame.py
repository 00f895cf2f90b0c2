"""The whole screen: header with the verdict, tabs, the page, the line below it, and what lies over it."""

from collections.abc import Sequence
from datetime import datetime

from rich.segment import Segment

from nfqlb.core.plural import noun
from nfqlb.operator.dashboard import panes as lists
from nfqlb.operator.dashboard.grid import Line
from nfqlb.operator.dashboard.panes import AnyPane
from nfqlb.operator.dashboard.signs import CARE, CHOSEN, FAINT, GOOD, PLAIN, TITLE, WRONG, short, some
from nfqlb.operator.dashboard.state import Confirming, Filtering, State, Weighing
from nfqlb.operator.dashboard.views import detail, over, summary
from nfqlb.operator.text import age, count

Lines = list[list[Segment]]

_ANSWER = " y: yes, others: no "
_TABS = ("1 Summary", "2 Virtual", "3 Real", "4 Connections", "5 Events")
_TAB_OF = {"summary": 0, "virtuals": 1, "reals": 2, "connections": 3, "events": 4, "virtual": 1, "real": 2}


def frame(state: State, width: int, height: int) -> Lines:
    """Exactly `height` lines of `width` cells each; what does not fit is left out."""
    state.seen = set()
    found = lists.panes(state)
    pane = lists.at_focus(state, found)
    top = [header(state, width), verdict(state, width), _tabs(state, pane, width)]
    bottom = [_footer(state, pane, width)]
    body = page(state, found, width, max(0, height - len(top) - len(bottom)))
    lines = [*top, *body, *bottom]
    if len(lines) > height:
        lines = lines[:height]
    return over.over(lines, state, width, height) if state.told is not None else lines


def page(state: State, found: Sequence[AnyPane], width: int, height: int) -> Lines:
    """The page, with these lists, in `height` lines."""
    lines: Lines = []
    if state.snapshot is not None:
        lines = _above(state, width, height)
        lines += _lists(state, found, width, height - len(lines))
    return [*lines[:height], *(Line(width, state.look).done() for _ in range(height - len(lines)))]


def _above(state: State, width: int, height: int) -> Lines:
    """What a page shows above its lists."""
    kind, name = state.page
    if kind == "summary":
        return summary.summary(state, width, height)
    if kind == "virtual":
        return detail.virtual(state, state.virtual(name), width)
    if kind == "real":
        return detail.real(state, state.real(name), width)
    return []


def _lists(state: State, found: Sequence[AnyPane], width: int, height: int) -> Lines:
    lines: Lines = []
    state.focus = min(state.focus, max(0, len(found) - 1))
    for index, pane in enumerate(found):
        room = height - len(lines)
        if index < len(found) - 1:
            room = min(len(pane.rows) + 3, room // 2)
        lines += _list(state, pane, width, room, focused=index == state.focus, titled=len(found) > 1)
    return lines


def _list(state: State, pane: AnyPane, width: int, room: int, *, focused: bool, titled: bool) -> Lines:
    """One list in `room` lines: its title, its rows, and what there is to say of the chosen one."""
    lines: Lines = []
    if room <= 0:
        return lines
    if titled or pane.title:
        lines.append(
            _rule(state, pane, width, which="" if not titled else "keys move here" if focused else "Tab")
        )
    said = pane.about is not None and room >= 5
    pane.listing.settle(pane.keys, room - len(lines) - 1 - said)
    lines += pane.lines(state, width, focused=focused)[: room - len(lines)]
    if not pane.rows:
        text = f"nothing holds {pane.listing.pattern!r}" if pane.listing.pattern and pane.of else pane.empty
        lines.append(Line(width, state.look).gap(1).put(text, FAINT).done())
    lines += [Line(width, state.look).done() for _ in range(room - len(lines) - said)]
    if said:
        lines.append(Line(width, state.look).gap(1).put(pane.said(), FAINT).done())
    return lines[:room]


def _rule(state: State, pane: AnyPane, width: int, *, which: str) -> list[Segment]:
    rule = state.look.rule
    line = Line(width, state.look).put(rule, FAINT).put(f" {pane.title} ", TITLE)
    line.put(f"{_amount(pane)} ", FAINT).put(f"({which}) " if which else "", FAINT)
    return line.put(rule * line.left, FAINT).done()


def _amount(pane: AnyPane) -> str:
    """How many rows there are, and of how many."""
    shown = count(len(pane.rows))
    return shown if len(pane.rows) == pane.of else f"{shown} of {count(pane.of)}"


def header(state: State, width: int) -> list[Segment]:
    """Who this is, how long and how busy; when the picture is from."""
    line = Line(width, state.look).put(" nfqlb ", CHOSEN)
    snapshot = state.snapshot
    right = f" every {state.pace:g}s "
    if snapshot is not None:
        right += datetime.fromtimestamp(snapshot.at).strftime("%H:%M:%S ")
        up = "" if snapshot.uptime is None else f"  up {age(snapshot.uptime)}"
        left = f" {snapshot.version} {snapshot.datapath}{up}  {some(snapshot.connections, 'connection')}"
        line.cell(
            left + f"  {short(snapshot.rate)} new/s", max(0, line.left - len(right) - _flags_width(state))
        )
    else:
        line.gap(max(0, line.left - len(right) - _flags_width(state)))
    for flag in _flags(state):
        line.put(f" {flag} ", CHOSEN).gap(1)
    return line.put(right, FAINT).done()


def _flags(state: State) -> list[str]:
    return [*(["PAUSED"] if state.paused else []), *(["READ ONLY"] if state.read_only else [])]


def _flags_width(state: State) -> int:
    return sum(len(flag) + 3 for flag in _flags(state))


def verdict(state: State, width: int) -> list[Segment]:
    """One line on how things are, the worst first."""
    line = Line(width, state.look).gap(1)
    snapshot = state.snapshot
    if state.lost:
        since = "" if snapshot is None else f" for {age(max(0.0, state.now - snapshot.at))}"
        return line.put(f"NO ANSWER{since}", WRONG).gap(1).put(state.lost).done()
    if snapshot is None:
        return line.put("asking the gateway ...", FAINT).done()
    levels = {problem.level for problem in snapshot.problems}
    if "error" in levels:
        line.put("WRONG", WRONG)
    else:
        line.put(*(("LOOK", CARE) if "warning" in levels else ("OK", GOOD)))
    return line.gap(1).put(snapshot.verdict or snapshot.state, TITLE).done()


def _tabs(state: State, pane: AnyPane | None, width: int) -> list[Segment]:
    line = Line(width, state.look)
    current = _TAB_OF[state.page.kind]
    names = _TABS if width >= 64 else tuple(tab[:5] for tab in _TABS)
    for index, name in enumerate(names):
        line.gap(1).put(f" {name} ", CHOSEN if index == current else PLAIN)
    told = []
    if pane is not None:
        listing = pane.listing
        if state.page.kind in ("virtuals", "reals", "connections"):
            told.append(f"{_amount(pane)} {noun(pane.of, 'row')}")
        told += [f"holding {listing.pattern!r}"] if listing.pattern else []
    text = ", ".join(told)
    if line.left > len(text) + 2:
        line.cell(text, line.left - 1, FAINT, right=True)
    return line.done()


def _footer(state: State, pane: AnyPane | None, width: int) -> list[Segment]:
    line = Line(width, state.look)
    prompt = state.prompt
    if isinstance(prompt, Confirming):
        line.cell(f" {prompt.question}", max(0, width - len(_ANSWER)), TITLE)
        return line.put(_ANSWER).done(CHOSEN)
    if isinstance(prompt, Weighing):
        return line.put(f" weight of {prompt.name}: {prompt.text}_ ", TITLE).put("(Enter, Esc)", FAINT).done()
    if isinstance(prompt, Filtering):
        pattern = pane.listing.pattern if pane is not None else ""
        return line.put(f" rows that hold: {pattern}_ ", TITLE).put("(Enter, Esc)", FAINT).done()
    if state.message and state.now < state.message_until:
        return line.put(f" {state.message}", TITLE).done()
    for hint in _hints(state):
        if len(hint) + 2 <= line.left:
            line.put(f" {hint} ", FAINT)
    return line.done()


def _hints(state: State) -> list[str]:
    """The keys that matter on this page, those first that should have room."""
    kind = state.page.kind
    hints = ["? help", "q leave"]
    if state.before:
        hints.append("Esc back")
    if kind in ("virtuals", "reals", "virtual"):
        hints.append("Enter closer")
    if kind in ("connections", "events", "virtual", "real"):
        hints.append("e explain")
    if not state.read_only and kind in ("reals", "real", "virtual"):
        hints += ["d drain", "m maintain", "i in service", "w weight"]
    if kind in ("events", "virtual"):
        hints.append("Tab other list")
    return [*hints, *(["/ filter", "s sort"] if kind != "summary" else []), "p pause"]
