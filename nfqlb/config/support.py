"""What this version does of what a configuration can say.

Owns the table of keys that are known and checked but not obeyed in full yet. Setting one to
anything but the values listed here, its default and what switches it off, is refused: a key
is never ignored. A later version lifts a refusal by deleting its line.
"""

from collections.abc import Iterator, Mapping

from nfqlb.config.model import TableModel
from nfqlb.config.report import KeyPath, Problem, show

WORKING: Mapping[tuple[str, str], tuple[object, ...]] = {}
"""Table and key -> the values that work, the default first. Keys that are not here work in full."""


def refused(table: str, path: KeyPath, model: TableModel) -> Iterator[Problem]:
    """The keys that the file sets in this table to what this version does not do."""
    for key in sorted(model.model_fields_set):
        value = getattr(model, key)
        if value not in (allowed := WORKING.get((table, key), (value,))):
            yield _not_yet((*path, key), show(value), listed(allowed))


def listed(values: tuple[object, ...]) -> str:
    """Allowed values in words: `3 or 0`."""
    *most, last = ['"" for none' if value == "" else show(value) for value in values]
    return f"{', '.join(most)} or {last}" if most else last


def _not_yet(path: KeyPath, what: str, allowed: str) -> Problem:
    return Problem(path, f"{what} is not supported yet (allowed now: {allowed})")
