"""Which test proves which rule, and which test which fault: `python -m tests.rows [faults]`.

Owns the traceability of the rules in `rows.toml` (R, T) and of the faults in `faults.toml` (F).
The tests are read, not run: an entry is named in the docstring of a test (or of its class), alone
or in a range such as R030-R049, or in the test's name. Ends with status 1 if an entry that works
is named by no test, or if a test names one that does not exist.
"""

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

TESTS = Path(__file__).parent

WORKS, TO_COME, WORDS, PARTLY, NOT_HERE = "works", "to come", "words only", "partly", "not here"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Table:
    """A list that tests are held against: its file, how its entries are called, what they may be."""

    path: Path
    text: str  # the key of what an entry says
    states: tuple[str, ...]
    letters: str  # entries begin with one of these
    digits: dict[str, str]  # how many follow the letter, as a regular expression
    measured: bool = False  # an entry that works has a figure

    def named(self, text: str) -> Iterator[str]:
        """The entries that a docstring names; a range stands for all that are in it."""
        for letter in self.letters:
            digits = self.digits[letter]
            dashes = rf"\s*(?:-|–|to)\s*{letter}"  # noqa: RUF001  either dash
            for first, last in re.findall(rf"\b{letter}({digits})(?:{dashes}({digits}))?\b", text):
                for each in range(int(first), int(last or first) + 1):
                    yield f"{letter}{each:0{len(first)}}"

    def in_test_name(self, name: str) -> Iterator[str]:
        """The entries that a test's name names."""
        for word in name.upper().split("_"):
            if word[:1] in self.digits and re.fullmatch(self.digits[word[0]], word[1:]):
                yield word


RULES = Table(TESTS / "rows.toml", "rule", (WORKS, TO_COME, WORDS), "RT", {"R": r"\d{3}", "T": r"\d{1,2}"})
FAULTS = Table(
    TESTS / "faults.toml", "fault", (WORKS, PARTLY, NOT_HERE, TO_COME), "F", {"F": r"\d{2}"}, measured=True
)


@dataclass(frozen=True, slots=True)
class Row:
    """One entry: its name, what it says, how far it is, why it does not work (yet), what was measured."""

    name: str
    text: str
    status: str
    why: str = ""
    figure: str = ""


@dataclass(frozen=True, slots=True)
class Mention:
    """A test that names an entry; `test` is its place as pytest writes it."""

    row: str
    test: str


def load(table: Table = RULES, path: Path | None = None) -> dict[str, Row]:
    """The entries by name, in their order. Raises ValueError if one is incomplete."""
    path = path or table.path
    rows = {}
    for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
        row = Row(name, entry[table.text], entry["is"], entry.get("why", ""), entry.get("figure", ""))
        if row.status not in table.states or bool(row.why) == (row.status == WORKS):
            raise ValueError(f"{path}: {name}: give `is` and, unless it works, `why`")
        if table.measured and row.status == WORKS and not row.figure:
            raise ValueError(f"{path}: {name}: it works, so give the measured `figure`")
        rows[name] = row
    return rows


def mentions(path: Path, root: Path = TESTS.parent, table: Table = RULES) -> Iterator[Mention]:
    """Every entry of the table that the tests of one file name."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    where = path.relative_to(root).as_posix()
    for test, node, inherited in _tests(tree):
        rows = dict.fromkeys(table.named(inherited))
        rows.update(dict.fromkeys(table.named(ast.get_docstring(node) or "")))
        rows.update(dict.fromkeys(table.in_test_name(node.name)))
        for row in rows:
            yield Mention(row, f"{where}::{test}")


def _tests(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Test functions and methods with their names, and their class's docstring, which is for them all."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            inherited = ast.get_docstring(node) or ""
            for method in node.body:
                if _is_test(method):
                    yield f"{node.name}::{method.name}", method, inherited
        elif _is_test(node):
            yield node.name, node, ""


def _is_test(node: ast.stmt) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")


def files(tests: Path = TESTS) -> list[Path]:
    """The files that pytest collects."""
    return sorted(tests.rglob("test_*.py"))


def problems(rows: dict[str, Row], found: Iterable[Mention], table: Table = RULES) -> list[str]:
    """What is wrong between table and tests, a line each; empty if nothing is."""
    found = list(found)
    proved = {mention.row for mention in found}
    wrong = [
        f"{mention.test}: there is no {mention.row} in {table.path.name}"
        for mention in found
        if mention.row not in rows
    ]
    wrong += [
        f"{row.name}: said to work, but no test names it: {row.text}"
        for row in rows.values()
        if row.status == WORKS and row.name not in proved
    ]
    return wrong


def report(rows: dict[str, Row], found: Iterable[Mention], table: Table = RULES) -> Iterator[str]:
    """The table as lines: every entry; below it its figure, why it does not work, and its tests."""
    tests: dict[str, list[str]] = {}
    for mention in found:
        tests.setdefault(mention.row, []).append(mention.test)
    for row in rows.values():
        yield f"{row.name:5} {row.status:10} {row.text}"
        for more in filter(None, (row.figure, row.why)):
            yield f"{'':17}{more}"
        proofs = tests.get(row.name, [])
        for test in proofs[:_SHOWN]:
            yield f"{'':17}{test}"
        if len(proofs) > _SHOWN:
            yield f"{'':17}and {len(proofs) - _SHOWN} more"
    counts = Counter(row.status for row in rows.values())
    yield ", ".join(f"{counts[status]} {status}" for status in table.states)


def main(arguments: Sequence[str] = ()) -> int:
    """List all rules, or with "faults" all faults; 0 if table and tests agree, else 1."""
    table = FAULTS if "faults" in arguments else RULES
    rows = load(table)
    found = [mention for path in files() for mention in mentions(path, table=table)]
    for line in report(rows, found, table):
        print(line)
    wrong = problems(rows, found, table)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
