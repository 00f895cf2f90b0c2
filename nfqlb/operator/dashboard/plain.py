"""One snapshot as plain lines, for where there is no terminal to draw on: a pipe, a file, a log."""

from collections.abc import Iterator

from rich.segment import Segment

from nfqlb.operator.dashboard import panes
from nfqlb.operator.dashboard.state import Page, State
from nfqlb.operator.dashboard.views import frame, summary

WIDTH = 120
"""Columns, where nobody says how many there are."""


def plain(state: State, width: int = WIDTH) -> Iterator[str]:
    """The verdict, the summary, and all virtual and real servers."""
    yield from _texts([frame.header(state, width), frame.verdict(state, width)])
    yield ""
    if state.snapshot is not None:
        yield from _texts(summary.facts(state, state.snapshot, width, len(state.snapshot.problems)))
    for kind in ("virtuals", "reals"):
        state.page = Page(kind)
        for pane in panes.panes(state):
            pane.listing.settle(pane.keys, len(pane.rows))
            yield ""
            yield from _texts(pane.lines(state, width, focused=False)) if pane.rows else [pane.empty]


def _texts(lines: list[list[Segment]]) -> Iterator[str]:
    for line in lines:
        yield "".join(segment.text for segment in line).rstrip()
