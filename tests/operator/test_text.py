"""Plain text: numbers and ages as people read them, and nothing that could move a cursor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.operator.text import (
    age,
    clean,
    clean_lines,
    count,
    endpoint,
    facts,
    response,
    several,
    size,
    table,
)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0.0s"),
        (0.44, "0.4s"),
        (9.94, "9.9s"),
        (9.95, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (192, "3m12s"),
        (3599.4, "59m59s"),
        (3599.6, "1h00m"),
        (7500, "2h05m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
        (273600, "3d04h"),
        (400 * 86400, "400d00h"),
    ],
)
def test_an_age_is_its_two_largest_units(seconds: float, said: str) -> None:
    assert age(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "-"), (0.0, "0.0ms"), (0.01234, "12.3ms"), (9.9999, "9999.9ms"), (10.0, "10.0s")],
)
def test_a_response_time_is_in_milliseconds(seconds: float | None, said: str) -> None:
    assert response(seconds) == said


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (0, "0 B"), (999, "999 B"), (999.6, "1.0 kB"), (1000, "1.0 kB"), (9949, "9.9 kB"), (9950, "10 kB"),
        (999_499, "999 kB"), (999_500, "1.0 MB"), (34_567_890, "35 MB"), (2.5e9, "2.5 GB"), (7e12, "7.0 TB"),
        (12e18, "12000 PB"),
    ],
)  # fmt: skip
def test_a_size_is_in_the_unit_that_suits_it(octets: float, said: str) -> None:
    assert size(octets) == said


def test_numbers_have_their_thousands_apart() -> None:
    assert [count(n) for n in (0, 999, 1000, 1234567)] == ["0", "999", "1,000", "1,234,567"]
    assert [several(n, "packet") for n in (0, 1, 2000)] == ["0 packets", "1 packet", "2,000 packets"]


def test_an_endpoint_is_unmistakable() -> None:
    assert endpoint("192.0.2.1", 80) == "192.0.2.1:80"
    assert endpoint("2001:db8::1", 80) == "[2001:db8::1]:80"
    assert endpoint("web1", None) == "web1:*"


@given(st.text())
def test_nothing_unprintable_gets_through(text: str) -> None:
    assert clean(text).isprintable()
    assert all(line.isprintable() for line in clean_lines(text).split("\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain ü", "plain ü"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\r\tc\x00", "a\\nb\\r\\tc\\x00"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202eevil", "\\u202eevil"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, said: str) -> None:
    assert clean(text) == said


def test_a_report_keeps_its_lines() -> None:
    assert clean_lines("a\n\tb\x1b\n") == "a\n        b\\x1b\n"


def test_columns_are_aligned_and_cleaned() -> None:
    rows = [("web1", "5"), ("a\x1b", "1,000")]
    assert table(("NAME", "N"), rows, right=("N",)) == [
        "NAME       N",
        "web1       5",
        "a\\x1b  1,000",
    ]


def test_facts_are_aligned_and_cleaned() -> None:
    assert facts([("state", "running\x07"), ("", "more")]) == ["state  running\\x07", "       more"]
