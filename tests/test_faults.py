"""The faults and the tests that prove what they cost: the table as it stands, and that the check can fail."""

from pathlib import Path

import pytest

from tests import rows
from tests.rows import FAULTS, Mention, Row


def found() -> list[Mention]:
    return [mention for path in rows.files() for mention in rows.mentions(path, table=FAULTS)]


def test_every_fault_that_is_said_to_be_dealt_with_is_named_by_a_test() -> None:
    assert rows.problems(rows.load(FAULTS), found(), FAULTS) == []


def test_every_fault_has_its_entry() -> None:
    assert list(rows.load(FAULTS)) == [f"F{number:02}" for number in range(1, 41)]


def test_the_command_lists_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows.main(["faults"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line.split()[0] for line in lines if line[0] == "F" and line[1].isdigit()]
    assert heads == list(rows.load(FAULTS))
    assert lines[-1].endswith("to come")


def test_a_fault_without_a_test_is_found() -> None:
    table = rows.load(FAULTS)
    without = [mention for mention in found() if mention.row != "F22"]
    (wrong,) = rows.problems(table, without, FAULTS)
    assert wrong.startswith("F22: said to work, but no test names it: All servers down; one server; ")


def test_an_unknown_fault_is_found() -> None:
    wrong = rows.problems(rows.load(FAULTS), [*found(), Mention("F41", "tests/test_x.py::test_y")], FAULTS)
    assert wrong == ["tests/test_x.py::test_y: there is no F41 in faults.toml"]


@pytest.mark.parametrize("status", [rows.PARTLY, rows.NOT_HERE, rows.TO_COME])
def test_what_does_not_work_needs_no_test(status: str) -> None:
    assert rows.problems({"F01": Row("F01", "one", status, "a reason")}, [], FAULTS) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("F07: a datagram", ["F07"]),
        ("F02-F04, R001", ["F02", "F03", "F04"]),
        ("F7 F077 XF07 0xF07 FF07", []),
    ],
)
def test_what_a_docstring_names(text: str, expected: list[str]) -> None:
    assert list(FAULTS.named(text)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("test_f07_passes", ["F07"]), ("test_f7", []), ("test_ff07", []), ("test_r007", [])],
)
def test_what_a_name_names(name: str, expected: list[str]) -> None:
    assert list(FAULTS.in_test_name(name)) == expected


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ('is = "works", figure = "3", why = "because"', "give `is` and"),
        ('is = "works"', "give the measured `figure`"),
        ('is = "partly", figure = "3"', "give `is` and"),
        ('is = "words only", why = "no rule"', "give `is` and"),
    ],
)
def test_an_entry_must_be_complete(tmp_path: Path, entry: str, says: str) -> None:
    table = tmp_path / "faults.toml"
    table.write_text(f'F01 = {{ {entry}, fault = "x" }}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=f"F01: .*{says}"):
        rows.load(FAULTS, table)
