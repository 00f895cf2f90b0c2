"""The rules and the tests that prove them: the table as it stands, and that the check can fail."""

from pathlib import Path

import pytest

from tests import rows
from tests.rows import Mention, Row


def found() -> list[Mention]:
    return [mention for path in rows.files() for mention in rows.mentions(path)]


def test_every_rule_that_works_is_named_by_a_test() -> None:
    assert rows.problems(rows.load(), found()) == []


def test_every_rule_has_its_entry() -> None:
    expected = [f"R{number:03}" for number in range(1, 189)] + [f"T{number}" for number in range(1, 13)]
    assert list(rows.load()) == expected


def test_the_command_lists_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows.main() == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line.split()[0] for line in lines if line[0] in "RT" and line[1].isdigit()]
    assert heads == list(rows.load())
    assert lines[-1].endswith("words only")


def test_a_rule_without_a_test_is_found() -> None:
    table = rows.load()
    without = [mention for mention in found() if mention.row != "R095"]
    (wrong,) = rows.problems(table, without)
    assert wrong.startswith("R095: said to work, but no test names it: Least connections")


def test_a_rule_yet_to_come_needs_no_test() -> None:
    table = {
        "R001": Row("R001", "one", rows.TO_COME, "later"),
        "R002": Row("R002", "two", rows.WORDS, "a reason"),
    }
    assert rows.problems(table, []) == []


def test_an_unknown_rule_is_found() -> None:
    wrong = rows.problems(rows.load(), [*found(), Mention("R189", "tests/core/test_x.py::test_y")])
    assert wrong == ["tests/core/test_x.py::test_y: there is no R189 in rows.toml"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("R095: fewest first", ["R095"]),
        ("R095, T2: a tie", ["R095", "T2"]),
        ("R030-R032 and R040", ["R030", "R031", "R032", "R040"]),
        ("R030 - R031", ["R030", "R031"]),
        ("R030 to R031", ["R030", "R031"]),
        ("(R007): in brackets", ["R007"]),
        ("T12", ["T12"]),
        ("R0955 XR095 R95 A17 H1 GTT1 F07", []),
        ("", []),
    ],
)
def test_what_a_docstring_names(text: str, expected: list[str]) -> None:
    assert list(rows.RULES.named(text)) == expected


SOURCE = '''
"""R001: the module's own words name nothing."""

def test_one() -> None:
    """R002-R003: a function."""
    # R004: a comment is no docstring

def test_r005_two() -> None:
    """T1."""

async def test_three() -> None:
    """R006: R006 once more counts once."""

class TestFour:
    """R007: for each of them."""

    def test_a(self) -> None:
        """R008: and its own."""

    def test_b(self) -> None:
        pass

    def helper(self) -> None:
        """R009: no test."""

def helper() -> None:
    """R010: no test."""
'''


def test_where_rules_are_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(SOURCE, encoding="utf-8")
    assert list(rows.mentions(path, tmp_path)) == [
        Mention("R002", "test_it.py::test_one"),
        Mention("R003", "test_it.py::test_one"),
        Mention("T1", "test_it.py::test_r005_two"),
        Mention("R005", "test_it.py::test_r005_two"),
        Mention("R006", "test_it.py::test_three"),
        Mention("R007", "test_it.py::TestFour::test_a"),
        Mention("R008", "test_it.py::TestFour::test_a"),
        Mention("R007", "test_it.py::TestFour::test_b"),
    ]


def test_files_are_found_below(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    for name in ("core/test_a.py", "test_b.py", "core/lab.py"):
        (tmp_path / name).touch()
    assert [path.name for path in rows.files(tmp_path)] == ["test_a.py", "test_b.py"]


@pytest.mark.parametrize(
    "entry",
    ['is = "works", why = "because"', 'is = "to come"', 'is = "words only"', 'is = "maybe", why = "so"'],
)
def test_an_entry_must_be_complete(tmp_path: Path, entry: str) -> None:
    table = tmp_path / "rows.toml"
    table.write_text(f'R001 = {{ {entry}, rule = "x" }}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="R001: give `is` and, unless it works, `why`"):
        rows.load(rows.RULES, table)
