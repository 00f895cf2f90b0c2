"""The words of the command line: which there are, how short they may be, and what is said of a wrong one.

Owns the lists of commands and of their second words. Imported at every start, so it imports little.
"""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from nfqlb.runtime.printable import clean

#: Every command with its second words.
WORDS: Mapping[str, tuple[str, ...]] = {
    "run": (),
    "check": (),
    "diff": (),
    "reload": (),
    "rules": ("show", "apply", "verify", "remove"),
    "show": ("summary", "virtuals", "reals", "connections", "sticky", "failures", "decisions", "events"),
    "top": (),
    "explain": (),
    "set": ("real", "virtual"),
    "clear": ("sticky",),
    "wait": ("real", "virtual", "connections"),
    "batch": (),
    "adopt": (),
    "doctor": (),
    "capture": (),
    "replay": (),
    "install-service": (),
    "demo": (),
}


class Parser(argparse.ArgumentParser):
    """A parser that says, where a word is missing, which there are."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with status 2."""
        super().error(clean(self.explained(message)))

    def explained(self, message: str) -> str:
        """The message, or a better one."""
        wrong = _WRONG.match(message)
        for action in self._actions:
            if not isinstance(action, argparse._SubParsersAction):
                continue
            if message.endswith(f": {action.metavar}"):
                return f"{action.metavar} is missing: {', '.join(action.choices)}"
            if wrong is not None and wrong["of"] == action.metavar:
                return _unknown(wrong["word"], str(action.metavar), list(action.choices))
        return message


_WRONG = re.compile(
    r"argument (?P<of>\S+): invalid choice: (?P<quote>['\"])(?P<word>.*)(?P=quote) \(", re.DOTALL
)


def _unknown(word: str, metavar: str, known: Sequence[str]) -> str:
    """What is said of a word that there is not: the one that was meant, or all that there are."""
    from difflib import get_close_matches

    several = [each for each in known if word and each.startswith(word)]
    if len(several) > 1:
        return f"{metavar} {word!r} may be any of {', '.join(several)}"
    near = get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
    return f"there is no {metavar} {word!r}; {hint}"


def positive(text: str) -> int:
    """A number of 1 or more. Raises ArgumentTypeError, as argparse wants it."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """A number of seconds above 0. Raises ArgumentTypeError."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def expand(argv: list[str]) -> list[str]:
    """The command line with its first two words completed, where they are the beginning of one word only."""
    words = list(argv)
    if words:
        words[0] = _complete(words[0], WORDS)
    if len(words) > 1:
        words[1] = _complete(words[1], WORDS.get(words[0], ()))
    return words


def _complete(word: str, known: Iterable[str]) -> str:
    fitting = [whole for whole in known if whole.startswith(word)]
    return fitting[0] if len(fitting) == 1 and word else word
