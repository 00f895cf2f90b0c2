"""Keys, from the bytes that a terminal sends for them. Pure.

Names are those of the key caps in lower case ("up", "pgdn", "enter", "esc"); what can be printed is itself. A
lone escape byte is the key, or the beginning of a sequence whose rest is still on its way: `flush` says that
nothing more came.
"""

import codecs

_SEQUENCES = {
    "[A": "up", "[B": "down", "[C": "right", "[D": "left",
    "OA": "up", "OB": "down", "OC": "right", "OD": "left",
    "[H": "home", "[F": "end", "OH": "home", "OF": "end",
    "[1~": "home", "[4~": "end", "[7~": "home", "[8~": "end",
    "[5~": "pgup", "[6~": "pgdn", "[3~": "delete", "[Z": "backtab",
}  # fmt: skip
_CONTROLS = {
    "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\b": "backspace",
    "\x0c": "redraw", "\x15": "clear", "\x04": "end-of-file",
}  # fmt: skip
_ESCAPE = "\x1b"
LONGEST = 16
"""Characters of a sequence; what is longer is none."""


class Keys:
    """Takes bytes and gives keys."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    @property
    def waiting(self) -> bool:
        """Whether the beginning of a sequence is there."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[str]:
        """The keys that are whole with these bytes."""
        self._rest += self._decoder.decode(data)
        found = []
        while self._rest:
            taken, key = _next(self._rest)
            if not taken:
                break
            self._rest = self._rest[taken:]
            if key:
                found.append(key)
        return found

    def flush(self) -> list[str]:
        """Nothing more came: an escape byte was the key."""
        rest, self._rest = self._rest, ""
        return ["esc"] if rest == _ESCAPE else []


def _next(text: str) -> tuple[int, str]:
    """How many characters the first key takes (0: more have to come), and its name (empty: none of ours)."""
    first = text[0]
    if first != _ESCAPE:
        return 1, _CONTROLS.get(first, first if first.isprintable() else "")
    if len(text) == 1:
        return 0, ""
    if text[1] == _ESCAPE:
        return 1, "esc"
    if text[1] not in "[O":
        return 2, ""  # a key with Alt
    for end in range(2, min(len(text), LONGEST)):
        if text[end].isalpha() or text[end] == "~":
            return end + 1, _SEQUENCES.get(text[1 : end + 1], "")
    return (0, "") if len(text) < LONGEST else (len(text), "")
