"""What is wrong with a configuration, and how the operator is told.

Owns the form of the report. The checks speak of key paths (`Problem`); once the place of
each key is known a problem becomes a `Finding`, and all findings of a file make up one
`ConfigError`, whose text reads like a compiler's.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

KeyPath = tuple[str | int, ...]
"""A place in the file: names of tables and keys, and positions (from 0) in lists."""

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_WIDTH = 100  # a longer source line is cut to the part around the caret
_LEAD = 30  # how much of such a line is kept before the caret


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake at a key path; `on_key` points at the key itself, not at its value."""

    path: KeyPath
    message: str
    hint: str = ""
    on_key: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake as it is reported.

    `line` and `column` count from 1; line 0 stands for the file as a whole, column 0 for
    the whole line. `width` is how many characters the caret underlines. `key` is the key
    path in words, empty where no key is meant.
    """

    line: int
    key: str
    message: str
    hint: str = ""
    column: int = 0
    width: int = 1


class ConfigError(Exception):
    """A configuration that is refused whole.

    `findings` holds every mistake found, in the order of the file. str() is the whole
    report: `source:line: error: key: message`, the line, a caret and a hint for each.
    """

    def __init__(self, source: str, findings: Iterable[Finding], text: str = "") -> None:
        super().__init__(source)
        self.source = source
        self.findings = tuple(sorted(findings, key=lambda finding: (finding.line, finding.column)))
        self._lines = text.split("\n")

    @property
    def many(self) -> str:
        """How many mistakes there are, in words."""
        return "an error" if len(self.findings) == 1 else f"{len(self.findings)} errors"

    def __str__(self) -> str:
        parts = [self._describe(finding) for finding in self.findings]
        if len(self.findings) > 1:
            parts.append(f"{self.many} in {printable(self.source)}")
        return "\n".join(parts)

    def _describe(self, finding: Finding) -> str:
        place = printable(self.source) + (f":{finding.line}" if finding.line else "")
        key = f"{finding.key}: " if finding.key else ""
        rows = [f"{place}: error: {key}{finding.message}"]
        if 1 <= finding.line <= len(self._lines):
            rows += _excerpt(self._lines[finding.line - 1], finding)
        if finding.hint:
            rows.append(f"      hint: {finding.hint}")
        return "\n".join(rows)


def _excerpt(line: str, finding: Finding) -> list[str]:
    """The source line under its number, and the row with the caret where there is one."""
    column = min(finding.column, len(line) + 1)
    if len(line) > _WIDTH:
        skipped = max(0, min(column - _LEAD, len(line) - _WIDTH))
        line = line[skipped : skipped + _WIDTH]
        column -= skipped
    shown = printable(line.expandtabs(1)).rstrip()
    rows = [f"{finding.line:>5} | {shown}".rstrip()]
    if column > 0 and shown:
        width = max(1, min(finding.width, len(shown) - column + 1))
        rows.append(f"      | {' ' * (column - 1)}{'^' * width}")
    return rows


def printable(text: str) -> str:
    """`text` with every character that a terminal would obey, or not show, replaced by "?"."""
    return "".join(char if char.isprintable() else "?" for char in text)


def show(value: object) -> str:
    """A value of the file as the file would spell it, on one line and kept short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 128 else "a number this large"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return f'"{printable(value[:60])}{"..." if len(value) > 60 else ""}"'
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    if isinstance(value, dict):
        return "a table"
    return printable(str(value))


def kind(value: object) -> str:
    """What sort of thing a value of the file is, in words."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "a list of tables"
    names: Sequence[tuple[type, str]] = (
        (bool, "true or false"),
        (int, "a number"),
        (float, "a number"),
        (str, "a text"),
        (list, "a list"),
        (dict, "a table"),
    )
    return next((name for sort, name in names if isinstance(value, sort)), "a date or time")


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that `word` is most likely to mean; empty where none is near."""
    return next(iter(get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word nearest to `word`; empty where none is near."""
    near = nearest(word, known)
    return f"did you mean {show(near)}?" if near else ""


def spell(parts: Iterable[str]) -> str:
    """Keys joined by dots, quoted where TOML asks for it."""
    return ".".join(part if _BARE.match(part) else show(part) for part in parts)
