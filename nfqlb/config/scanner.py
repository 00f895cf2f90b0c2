"""Where each key of a TOML text stands.

Owns the way from a key path to its place in the file, which `tomllib` does not tell. The
text has already been accepted by `tomllib`, so this reads only as much of TOML's grammar as
it takes to walk from key to key: table headers, dotted and quoted keys, and over strings,
lists and inline tables, whose members get places of their own.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass

from nfqlb.config.report import KeyPath

_BLANK = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")'  # up to two quotes may stand right before the closing three
    r"|'''.*?'{3,5}(?!')"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^\s,\]}#]+(?: \d\d:[^\s,\]}#]+)?")  # the blank of "1979-05-27 07:32:00"
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([btnfre"\\]))')
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b", '"': '"', "\\": "\\"}


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of the text: line and column from 1, and its length on that line."""

    line: int
    column: int
    width: int


class KeyPlaces:
    """The places of all keys and values of one TOML text.

    `text` must be valid TOML with "\\n" as its only line end. Raises RecursionError where
    lists are nested deeper than Python's stack, as `tomllib` does.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._line_starts = [0] + [match.end() for match in re.finditer("\n", text)]
        self._keys: dict[KeyPath, tuple[int, int]] = {}
        self._values: dict[KeyPath, tuple[int, int]] = {}
        self._tables: dict[KeyPath, int] = {}  # how many [[...]] headers each path has had
        self._scan()

    def __contains__(self, path: KeyPath) -> bool:
        return path in self._keys or path in self._values

    def __len__(self) -> int:
        return len(self._keys.keys() | self._values.keys())

    def of_key(self, path: KeyPath) -> Place | None:
        """Where the key or table header at `path` stands, else the nearest one around it."""
        while path and path not in self._keys:
            path = path[:-1]
        return self._place(self._keys[path]) if path else None

    def of_value(self, path: KeyPath) -> Place | None:
        """Where the value at `path` stands; a table's is its header; else the nearest around."""
        while path and path not in self:
            path = path[:-1]
        if not path:
            return None
        return self._place(self._values[path] if path in self._values else self._keys[path])

    def _place(self, stretch: tuple[int, int]) -> Place:
        start, end = stretch
        line = bisect_right(self._line_starts, start)
        first = self._text[start:end].split("\n", 1)[0]
        return Place(line, start - self._line_starts[line - 1] + 1, max(1, len(first)))

    def _scan(self) -> None:
        table: KeyPath = ()
        at = self._skip(_BLANK, 0)
        while at < len(self._text):
            if self._text[at] == "[":
                table, at = self._header(at)
            else:
                at = self._pair(table, at)
            at = self._skip(_BLANK, at)

    def _header(self, start: int) -> tuple[KeyPath, int]:
        """`[a.b]` or `[[a.b]]` at `start`: the path it opens, and where it ends."""
        brackets = 2 if self._text.startswith("[[", start) else 1
        parts, at = self._key(start + brackets)
        end = self._skip(_SPACE, at) + brackets
        path: KeyPath = ()
        for part in parts[:-1]:
            self._keys.setdefault((*path, part), (start, end))
            path = self._latest((*path, part))
        path = (*path, parts[-1])
        if brackets == 2:
            self._keys.setdefault(path, (start, end))
            self._tables[path] = self._tables.get(path, 0) + 1
        path = self._latest(path)
        self._keys[path] = (start, end)
        return path, end

    def _latest(self, path: KeyPath) -> KeyPath:
        """`path` itself, or its newest member where it is a list of tables."""
        count = self._tables.get(path)
        return path if count is None else (*path, count - 1)

    def _pair(self, table: KeyPath, start: int) -> int:
        """`key = value` at `start`, inside `table`; returns where it ends."""
        parts, at = self._key(start)
        for size in range(1, len(parts) + 1):
            self._keys.setdefault((*table, *parts[:size]), (start, at))
        at = self._skip(_SPACE, self._skip(_SPACE, at) + 1)
        return self._value((*table, *parts), at)

    def _key(self, at: int) -> tuple[list[str], int]:
        """A key, dotted or not: its parts, and where its last part ends."""
        parts: list[str] = []
        while True:
            at = self._skip(_SPACE, at)
            end = self._skip(_STRING if self._text[at] in "\"'" else _BARE_KEY, at)
            parts.append(_unquote(self._text[at:end]))
            at = self._skip(_SPACE, end)
            if not self._text.startswith(".", at):
                return parts, end
            at += 1

    def _value(self, path: KeyPath, start: int) -> int:
        """A value at `start`; notes its place and its members', returns where it ends."""
        opening = self._text[start]
        if opening in "\"'":
            end = self._skip(_STRING, start)
        elif opening in "[{":
            end = self._members(path, start)
        else:
            end = self._skip(_SCALAR, start)
        self._values[path] = (start, end)
        return end

    def _members(self, path: KeyPath, start: int) -> int:
        """The members of a list or inline table at `start`; returns where it ends."""
        is_list = self._text[start] == "["
        at, index = self._skip(_BLANK, start + 1), 0
        while self._text[at] not in "]}":
            at = self._value((*path, index), at) if is_list else self._pair(path, at)
            index += 1
            at = self._skip(_BLANK, at)
            if self._text[at] == ",":
                at = self._skip(_BLANK, at + 1)
        return at + 1

    def _skip(self, pattern: re.Pattern[str], at: int) -> int:
        """Where the stretch that `pattern` matches at `at` ends. Raises ValueError if none does."""
        match = pattern.match(self._text, at)
        if match is None:
            raise ValueError(f"no valid TOML at character {at}")
        return match.end()


def _unquote(key: str) -> str:
    """A key as `tomllib` reads it: without quotes, escapes resolved."""
    if key.startswith("'"):
        return key[1:-1]
    if key.startswith('"'):
        return _ESCAPE.sub(_unescape, key[1:-1])
    return key


def _unescape(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2]
    return chr(int(code, 16)) if code else _ESCAPED[escape[3]]
