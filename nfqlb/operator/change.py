"""What an operator asks to be changed, from words on the command line to an order and back to lines."""

import difflib
from collections.abc import Iterator, Sequence

from nfqlb.runtime.protocol import JSON, ControlError, JSONObject


def wanted(words: Sequence[str], *, weighed: bool) -> JSONObject:
    """`in-service weight=3` as an order's arguments: at most one state, and a weight where `weighed`.

    `weight 3` is a weight too, as there is no such state.
    Whether there is such a state the gateway says. Raises ValueError where the words make no order.
    """
    args: JSONObject = {}
    for word in _joined(words) if weighed else words:
        key, equals, value = word.partition("=")
        if not equals and word == "weight" and weighed:
            raise ValueError("weight: which? weight=N")
        if not equals:
            _put(args, "state", word, "states")
        elif not weighed:
            raise ValueError(f"{word}: a virtual server has nothing to set but its state")
        elif key != "weight":
            near = difflib.get_close_matches(key, ["weight"])
            hint = "did you mean weight=N?" if near else "there is weight=N"
            raise ValueError(f"{word}: there is no {key!r} to set; {hint}")
        else:
            _put(args, "weight", _number(value), "weights")
    return args


def said(document: JSON) -> list[str]:
    """The lines that the gateway says of an order. Raises ControlError "bad-reply"."""
    lines = document.get("said") if isinstance(document, dict) else None
    if not isinstance(lines, list):
        raise ControlError("bad-reply", "the gateway's answer cannot be shown: what it did is missing")
    return [str(line) for line in lines]


def _joined(words: Sequence[str]) -> Iterator[str]:
    """The words, of which `weight` and a number after it are one."""
    rest = iter(words)
    for word in rest:
        following = next(rest, None) if word == "weight" else None
        if following is None:
            yield word
        elif following[:1].isdigit() or following[:1] in "-.":
            yield f"weight={following}"
        else:
            yield from (word, following)


def _put(args: JSONObject, key: str, value: JSON, many: str) -> None:
    if key in args:
        raise ValueError(f"two {many}: {args[key]} and {value}")
    args[key] = value


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"weight={text}: {text!r} is not a number") from None
    if number != number or number in (float("inf"), float("-inf")):  # JSON has no such numbers
        raise ValueError(f"weight={text}: {text!r} is not a weight")
    return number
