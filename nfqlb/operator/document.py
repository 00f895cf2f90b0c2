"""Reads documents as they come over the control socket: each value as what it should be.

Whatever is missing or of another kind raises ControlError "bad-reply". `name` is a field of `row`.
"""

from nfqlb.runtime.protocol import JSON, ControlError, JSONObject


def rows(document: JSON) -> list[JSONObject]:
    """A list's rows."""
    if not isinstance(document, list):
        raise _unreadable("a list is missing")
    return [whole(row) for row in document]


def whole(document: JSON) -> JSONObject:
    """A document that is an object."""
    if not isinstance(document, dict):
        raise _unreadable("an object is missing")
    return document


def items(row: JSONObject, name: str) -> list[JSONObject]:
    """A list of objects."""
    return rows(row.get(name))


def part(row: JSONObject, name: str) -> JSONObject:
    """An object."""
    return whole(row.get(name))


def text(row: JSONObject, name: str) -> str:
    """A text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise _unreadable(f"{name} is missing")
    return value


def optional(row: JSONObject, name: str) -> float | None:
    """A number, or null."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unreadable(f"{name} is not a number")
    return value


def optional_text(row: JSONObject, name: str) -> str | None:
    """A text, or null."""
    return None if row.get(name) is None else text(row, name)


def number(row: JSONObject, name: str) -> float:
    """A number."""
    value = optional(row, name)
    if value is None:
        raise _unreadable(f"{name} is missing")
    return value


def port(row: JSONObject, name: str) -> int | None:
    """A port, null for every port."""
    value = optional(row, name)
    return None if value is None else int(value)


def _unreadable(what: str) -> ControlError:
    return ControlError("bad-reply", f"the gateway's answer cannot be shown: {what}", "try --json")
