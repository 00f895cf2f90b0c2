"""How the doctor's findings are shown: a line each, the worst first, and below it what to do. Pure."""

import textwrap
from collections.abc import Iterator, Sequence

from nfqlb.operator.text import clean, several
from nfqlb.runtime.protocol import JSONObject

#: By level: its place, its mark, its colour (SGR, ECMA-48).
_LEVELS = {
    "error": (0, "ERROR", "31;1"),
    "warning": (1, "warning", "33"),
    "unseen": (2, "?", "36"),
    "ok": (3, "ok", "32"),
}
_MARK, _AREA = 8, 11
_NARROWEST = 40


def lines(findings: Sequence[JSONObject], *, colour: bool, width: int) -> Iterator[str]:
    """The report for a terminal of so many columns; the order within a level is that of the findings."""
    indent = " " * (_MARK + _AREA + 2)
    room = max(_NARROWEST, width)
    for finding in sorted(findings, key=lambda each: _LEVELS[str(each["level"])][0]):
        _, mark, code = _LEVELS[str(finding["level"])]
        painted = f"\x1b[{code}m{mark}\x1b[0m" if colour else mark
        head = painted + " " * (_MARK - len(mark)) + f"{finding['area']:<{_AREA}}  "
        first, *rest = _wrapped(str(finding["what"]), room - len(indent))
        yield head + first
        yield from (indent + line for line in rest)
        if finding["advice"]:
            first, *rest = _wrapped(str(finding["advice"]), room - len(indent) - 3)
            yield f"{indent}-> {first}"
            yield from (f"{indent}   {line}" for line in rest)
    yield ""
    yield verdict(findings)


def verdict(findings: Sequence[JSONObject]) -> str:
    """The report in one line."""
    number = {level: sum(each["level"] == level for each in findings) for level in _LEVELS}
    said = [several(number[level], level) for level in ("error", "warning") if number[level]]
    unseen = f"; {number['unseen']} could not be looked at" if number["unseen"] else ""
    return f"{', '.join(said) or 'all well'}{unseen}"


def _wrapped(text: str, room: int) -> list[str]:
    """A text in lines; commands in it stay whole as far as they fit."""
    return textwrap.wrap(clean(text), room, break_long_words=False, break_on_hyphens=False) or [""]
