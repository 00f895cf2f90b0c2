"""What a shell offers for the word that is being typed: `nfqlb complete WORDS...`, which nobody types.

`offered` is pure: from the words so far and the parser of the command line to candidates. Names come from
the running gateway, or else from the configuration; whatever fails, there are fewer candidates and
no message, for the operator is in the middle of a line.
"""

import argparse
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from nfqlb.runtime.protocol import ControlError

FILES = ":files"
"""Instead of candidates: the shell completes file names by itself."""
DIRECTORIES = ":directories"
#: What a configuration takes for a name (`config.values`, which takes long to load). What is offered becomes
#: part of a line that a shell runs, wherever the name came from.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_ANSWER = 0.5  # seconds that the gateway gets
_PATHS = {"FILE": FILES, "PATH": FILES, "DIRECTORY": DIRECTORIES}
_STATES = {
    "real": ("in-service", "sticky-only", "maintenance", "out-of-service"),
    "virtual": ("in-service", "out-of-service"),
}
_SET = {"real": (*_STATES["real"], "drain", "weight="), "virtual": _STATES["virtual"]}

Names = Mapping[str, Sequence[str]]
"""The names of `real` and of `virtual` servers."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word that may stand here, and what it means (may be "")."""

    word: str
    about: str = ""


class _Line:
    """The words before the one that is typed, as argparse would take them."""

    def __init__(self, parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
        self.parser = parser
        self.pending: argparse.Action | None = None  # the option whose value is typed
        self.given: list[str] = []  # positional words of this parser
        for word in words:
            self._take(word)

    @property
    def positional(self) -> argparse.Action | None:
        """What the next word is where it is no option."""
        actions = [action for action in self.parser._actions if not action.option_strings]
        if len(self.given) < len(actions):
            return actions[len(self.given)]
        return actions[-1] if actions and actions[-1].nargs in ("*", "+", "...") else None

    @property
    def options(self) -> Iterator[argparse.Action]:
        """The options that may stand here."""
        return (action for action in self.parser._actions if action.option_strings)

    def _take(self, word: str) -> None:
        if self.pending is not None:
            self.pending = None
        elif word.startswith("-"):
            found = [each for each in self.options if word in each.option_strings]
            self.pending = found[0] if found and found[0].nargs != 0 else None
        else:
            action = self.positional
            self.given.append(word)
            if isinstance(action, argparse._SubParsersAction):
                fitting = [name for name in action.choices if name.startswith(word)]
                chosen = word if word in action.choices else fitting[0] if len(fitting) == 1 else None
                if chosen is not None:
                    self.parser, self.given = action.choices[chosen], []


def offered(parser: argparse.ArgumentParser, words: Sequence[str], names: Names) -> list[Candidate] | str:
    """What the last of `words` may become, or FILES or DIRECTORIES. The words come without the program's."""
    *before, typed = words or [""]
    line = _Line(parser, before)
    if line.pending is not None:
        found = _values(line, line.pending, names)
    elif typed.startswith("-"):
        found = [
            Candidate(max(action.option_strings, key=len), action.help or "")
            for action in line.options
            if action.help != argparse.SUPPRESS
        ]
    else:
        found = _values(line, line.positional, names) if line.positional is not None else []
    if isinstance(found, str):
        return found
    return [each for each in found if each.word.startswith(typed)]


def _values(line: _Line, action: argparse.Action, names: Names) -> list[Candidate] | str:
    if isinstance(action, argparse._SubParsersAction):
        listed = [Candidate(each.dest, each.help or "") for each in action._choices_actions]
        return [each for each in listed if each.about != argparse.SUPPRESS]
    if action.choices is not None:
        return [Candidate(str(choice)) for choice in action.choices]
    metavar = str(action.metavar)
    if metavar in _PATHS:
        return _PATHS[metavar]
    if metavar == "CONDITION":
        return _condition(line.given, names)
    kind = line.parser.get_default("kind")
    if metavar.startswith("STATE"):
        return [Candidate(state) for state in _SET.get(kind, ())]
    for subject in ("real", "virtual"):
        if subject in (action.dest, metavar.lower()) or (action.dest == "name" and kind == subject):
            return [Candidate(name, f"{subject} server") for name in names.get(subject, ())]
    return []


def _condition(given: Sequence[str], names: Names) -> list[Candidate]:
    """The next word of what `nfqlb wait` waits for."""
    if not given or given[-1] == "and":
        return [Candidate(word) for word in ("real", "virtual", "connections")]
    if given[-1] in names:
        return [Candidate(name) for name in names[given[-1]]]
    if len(given) > 1 and given[-2] in names:
        words = ("empty", "connections", "not", "failed", *_STATES[given[-2]])
        return [Candidate(word) for word in words]
    return []


def names_for(words: Sequence[str], socket: Path, config: Path) -> Names:
    """The servers' names: of the gateway that the words mean, or of the configuration. Never raises."""
    given = _option(words, "-c", "--config")
    document = _read(Path(given or config))
    gateway = document.get("gateway")
    said = gateway.get("socket") if given and isinstance(gateway, dict) else None
    path = Path(_option(words, "--socket") or (said if isinstance(said, str) and said else socket))
    return _running(path) or {subject: _named(document.get(subject)) for subject in ("real", "virtual")}


def _option(words: Sequence[str], *names: str) -> str:
    return next((value for name, value in pairwise(words) if name in names), "")


def _read(config: Path) -> dict[str, object]:
    """The file's tables as they stand there, right or wrong."""
    with suppress(OSError, ValueError, RecursionError):
        return tomllib.loads(config.read_text(encoding="utf-8"))
    return {}


def _running(socket: Path) -> Names:
    from nfqlb.runtime.client import Client

    with suppress(ControlError, ValueError), Client(socket, timeout=_ANSWER) as client:
        snapshot = client.call("snapshot")  # the supervisor has it, however busy the worker is
        if isinstance(snapshot, dict):
            return {"real": _named(snapshot.get("reals")), "virtual": _named(snapshot.get("virtuals"))}
    return {}


def _named(rows: object) -> list[str]:
    names = [row.get("name") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [name for name in names if isinstance(name, str) and _NAME.match(name)]
