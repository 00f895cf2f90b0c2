"""Which test proves which rule: `python -m tests.rows`.

Owns the traceability of the rules in `rows.toml`. The tests are read, not run: a rule is
named in the docstring of a test (or of its class), alone or in a range such as R030-R049,
or in the test's name. Ends with status 1 if a rule that works is named by no test, or if a
test names a rule that does not exist.
"""

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

TESTS = Path(__file__).parent
TABLE = TESTS / "rows.toml"

WORKS, TO_COME, WORDS = "works", "to come", "words only"
_NAME = re.compile(r"\b(?:(R)(\d{3})(?:\s*(?:-|–|to)\s*R(\d{3}))?|(T)(\d{1,2}))\b")  # noqa: RUF001  either dash
_IN_TEST_NAME = re.compile(r"(?:^|_)(r\d{3}|t\d{1,2})(?=_|$)")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One rule: its name, what it says, how far it is, and why where it does not work (yet)."""

    name: str
    rule: str
    status: str
    why: str


@dataclass(frozen=True, slots=True)
class Mention:
    """A test that names a rule; `test` is its place as pytest writes it."""

    row: str
    test: str


def load(path: Path = TABLE) -> dict[str, Row]:
    """The rules by name, in their order. Raises ValueError if an entry is incomplete."""
    rows = {}
    for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
        row = Row(name, entry["rule"], entry["is"], entry.get("why", ""))
        if row.status not in (WORKS, TO_COME, WORDS) or bool(row.why) == (row.status == WORKS):
            raise ValueError(f"{path}: {name}: give `is` and, unless it works, `why`")
        rows[name] = row
    return rows


def named(text: str) -> Iterator[str]:
    """The rules that a docstring names; a range stands for all that are in it."""
    for rule, first, last, vector, number in _NAME.findall(text):
        if vector:
            yield f"T{int(number)}"
        elif rule:
            for each in range(int(first), int(last or first) + 1):
                yield f"R{each:03}"


def mentions(path: Path, root: Path = TESTS.parent) -> Iterator[Mention]:
    """Every rule that the tests of one file name."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    where = path.relative_to(root).as_posix()
    for test, node, inherited in _tests(tree):
        rows = dict.fromkeys(inherited)
        rows.update(dict.fromkeys(named(ast.get_docstring(node) or "")))
        rows.update(dict.fromkeys(row.upper() for row in _IN_TEST_NAME.findall(node.name)))
        for row in rows:
            yield Mention(row, f"{where}::{test}")


def _tests(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, list[str]]]:
    """Test functions and methods with their names, and the rules that their class names for them all."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            inherited = list(named(ast.get_docstring(node) or ""))
            for method in node.body:
                if _is_test(method):
                    yield f"{node.name}::{method.name}", method, inherited
        elif _is_test(node):
            yield node.name, node, []


def _is_test(node: ast.stmt) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")


def files(tests: Path = TESTS) -> list[Path]:
    """The files that pytest collects."""
    return sorted(tests.rglob("test_*.py"))


def problems(rows: dict[str, Row], found: Iterable[Mention]) -> list[str]:
    """What is wrong between rules and tests, a line each; empty if nothing is."""
    found = list(found)
    proved = {mention.row for mention in found}
    wrong = [
        f"{mention.test}: there is no {mention.row} in {TABLE.name}"
        for mention in found
        if mention.row not in rows
    ]
    wrong += [
        f"{row.name}: said to work, but no test names it: {row.rule}"
        for row in rows.values()
        if row.status == WORKS and row.name not in proved
    ]
    return wrong


def report(rows: dict[str, Row], found: Iterable[Mention]) -> Iterator[str]:
    """The table as lines: every rule, and below it the tests that name it or why there are none."""
    tests: dict[str, list[str]] = {}
    for mention in found:
        tests.setdefault(mention.row, []).append(mention.test)
    for row in rows.values():
        yield f"{row.name:5} {row.status:10} {row.rule}"
        if row.why:
            yield f"{'':17}{row.why}"
        proofs = tests.get(row.name, [])
        for test in proofs[:_SHOWN]:
            yield f"{'':17}{test}"
        if len(proofs) > _SHOWN:
            yield f"{'':17}and {len(proofs) - _SHOWN} more"
    counts = Counter(row.status for row in rows.values())
    yield ", ".join(f"{counts[status]} {status}" for status in (WORKS, TO_COME, WORDS))


def main() -> int:
    """List all rules; 0 if rules and tests agree, else 1."""
    rows = load()
    found = [mention for path in files() for mention in mentions(path)]
    for line in report(rows, found):
        print(line)
    wrong = problems(rows, found)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
