"""Signs and cells: numbers, bars, sparklines, columns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from nfqlb.core.admission import ServerState
from nfqlb.operator.dashboard import grid
from nfqlb.operator.dashboard.grid import Column, Line
from nfqlb.operator.dashboard.signs import STATES, Look, letter, micro, percent, short
from nfqlb.operator.dashboard.terminal import knows_ascii_only

UNICODE, ASCII = Look(), Look(ascii=True)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"), (0, "0"), (0.4, "0"), (9999, "9999"), (9999.6, "10.0k"), (12_345, "12.3k"),
        (123_456, "123k"), (999_949, "1.00M"), (1_234_567, "1.23M"), (5.5e9, "5.50G"), (2e15, "2.00P"),
    ],
)  # fmt: skip
def test_numbers(number: float | None, text: str) -> None:
    assert short(number) == text


@given(st.floats(0, 9e17))
def test_numbers_have_five_cells_at_most(number: float) -> None:
    assert len(short(number)) <= 5


def test_parts_and_microseconds() -> None:
    assert (percent(None), percent(0.256)) == ("-", "26%")
    assert (micro(None), micro(12.34e-6), micro(0.0123)) == ("-", "12.3", "12300")


def test_every_state_has_a_letter_of_its_own() -> None:
    assert {state.shown for state in ServerState} <= set(STATES)
    letters = [letter(state) for state in STATES]
    assert len(set(letters)) == len(letters)
    assert letter("never heard of") == "?"


def test_a_bar_has_a_mark_where_the_fair_share_ends() -> None:
    assert UNICODE.bar(0.5, None, 8) == "████····"
    assert UNICODE.bar(0.5, 0.75, 8) == "████·│··"
    assert UNICODE.bar(0.5, 0.25, 8) == "█▓██····"
    assert ASCII.bar(0.5, 0.75, 8) == "####.|.."
    assert ASCII.bar(0.5, 0.25, 8) == "#+##...."
    assert UNICODE.bar(None, 0.5, 4) == "-   "
    assert UNICODE.bar(7.0, -1.0, 4) == "▓███"


def test_a_sparkline_ends_at_the_right_and_leaves_what_is_unknown_out() -> None:
    assert UNICODE.spark([9, 0, 4, 8], 3, 8) == "▁▅█"
    assert UNICODE.spark([1, None, 2], 5, 2) == "  ▅ █"
    assert UNICODE.spark([], 3, 0) == "   "
    assert ASCII.spark([0, 8], 2, 8) == ".@"
    assert UNICODE.spark([1], 0, 1) == ""


@given(st.text(max_size=30), st.integers(1, 20), st.booleans(), st.booleans())
def test_every_text_fits_its_cell(text: str, width: int, right: bool, ascii_only: bool) -> None:
    """Whatever a name holds, the line is as wide as it must be, and nothing in it moves the cursor."""
    line = Line(width + 3, Look(ascii_only)).cell(text, width, right=right).put(text).done()
    drawn = "".join(segment.text for segment in line)
    assert cell_len(drawn) == width + 3
    assert drawn.isprintable()
    assert drawn.isascii() or not ascii_only


def columns() -> list[Column[str]]:
    return [
        Column("A", 4, lambda row, _: row, grow=1, most=10),
        Column("B", 4, lambda row, _: row, rank=2),
        Column("C", 4, lambda row, _: row, rank=1, grow=1),
    ]


@pytest.mark.parametrize(
    ("width", "fitting"),
    [
        (16, [("A", 4), ("B", 4), ("C", 4)]),
        (15, [("A", 6), ("C", 6)]),
        (10, [("A", 8)]),
        (3, [("A", 4)]),
        (40, [("A", 10), ("B", 4), ("C", 22)]),
    ],
)
def test_columns_come_and_go_with_the_width(width: int, fitting: list[tuple[str, int]]) -> None:
    assert [(column.title, cells) for column, cells in grid.fit(columns(), width)] == fitting


@pytest.mark.parametrize(
    ("environment", "encoding", "ascii_only"),
    [
        ({"LANG": "de_DE.UTF-8"}, "utf-8", False),
        ({"LANG": "C", "LC_ALL": "en_US.utf8"}, "utf-8", False),
        ({"LANG": "C.UTF-8"}, "utf-8", False),
        ({"LC_CTYPE": "C.UTF-8", "LANG": "en_US.UTF-8"}, "utf-8", False),
        ({"LC_CTYPE": "C.UTF-8"}, "utf-8", True),  # set by Python itself
        ({"LC_CTYPE": "C.UTF-8", "LANG": "C"}, "utf-8", True),
        ({}, "utf-8", True),
        ({"LANG": "POSIX"}, "utf-8", True),
        ({"LANG": "de_DE@euro"}, "iso8859-15", True),
        ({"LANG": "de_DE.UTF-8"}, "ascii", True),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, "utf-8", True),
    ],
)
def test_the_locale_says_what_a_terminal_knows(
    environment: dict[str, str], encoding: str, ascii_only: bool
) -> None:
    assert knows_ascii_only(environment, encoding) == ascii_only
