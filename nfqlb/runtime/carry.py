"""Counters that never fall: what a worker had counted goes on where its successor begins.

Owns the sums. A counter is a number at a place in a document; lists of rows are gone through by the rows'
names, so that one server more or less moves nobody else's. What a worker counted after its last
account, less than a second before it died, is lost. Pure.
"""

from collections.abc import Iterator, Mapping

from nfqlb.runtime.protocol import JSON, JSONObject

#: Fields that count, wherever they are, and fields in which every number does.
COUNTERS = frozenset({"total"})
GROUPS = frozenset(
    {
        "drops", "replies", "followed", "losses", "ditched", "traffic", "journal", "shadow", "response",
    }
)  # fmt: skip
#: Fields that tell the rows of a list apart: the first that is there does.
_IDENTITY = ("name", "real", "number")

Path = tuple[str | int, ...]


class Carry:
    """The sums of one gateway, over all its workers.

    `learn` what is counted, again and again; `succeed` says what a new worker began with; `beside` what
    somebody else has counted that belongs to the same numbers; `add` makes of what a worker counted what
    the gateway has.
    """

    def __init__(self) -> None:
        self._last: JSONObject | None = None  # the present worker's last account
        self._begun: dict[Path, float] = {}  # and what it began with
        self._before: dict[Path, float] = {}  # what has to be added to it
        self._beside: dict[Path, float] = {}  # and what others have counted
        self._missing: dict[Path, float] = {}  # both together
        self._names: dict[Path, set[str]] = {}  # of those in groups: the names by their group

    def learn(self, document: JSONObject) -> None:
        """A new account of the present worker."""
        self._last = document

    def succeed(self, begun: Mapping[Path, float]) -> None:
        """A new worker is there, which had `begun` with this: a successor knows part of what was counted."""
        counted = self._begun if self._last is None else dict(counters(self._last))
        whole = {path: counted.get(path, 0) + self._before.get(path, 0) for path in counted | self._before}
        self._before = {
            path: missing for path, value in whole.items() if (missing := value - begun.get(path, 0)) > 0
        }
        self._last, self._begun = None, dict(begun)
        self._sum_up()

    def beside(self, counted: Mapping[Path, float]) -> None:
        """What somebody beside the workers has counted by now, in place of what was said before."""
        self._beside = dict(counted)
        self._sum_up()

    def _sum_up(self) -> None:
        self._missing = dict(self._before)
        for path, value in self._beside.items():
            self._missing[path] = self._missing.get(path, 0) + value
        self._names = {}
        for *group, name in self._missing:
            if isinstance(name, str) and name not in COUNTERS:
                self._names.setdefault(tuple(group), set()).add(name)

    def add(self, document: JSONObject) -> JSONObject:
        """The document with what the workers before had counted; the one given is left as it was."""
        if not self._missing:
            return document
        made = self._added(document, (), counts=False)
        assert isinstance(made, dict)
        return made

    def _added(self, value: JSON, path: Path, *, counts: bool) -> JSON:
        if isinstance(value, dict):
            made = {
                name: self._added(inner, (*path, name), counts=counts or name in GROUPS or name in COUNTERS)
                for name, inner in value.items()
            }
            for name in self._names.get(path, set()) - value.keys() if counts else ():
                made[name] = self._missing[(*path, name)]
            return made
        if isinstance(value, list):
            return [
                self._added(inner, (*path, *_identity(inner, at)), counts=counts)
                for at, inner in enumerate(value)
            ]
        if counts and isinstance(value, int | float) and not isinstance(value, bool):
            return value + self._missing.get(path, 0)
        return value


def counters(document: JSONObject) -> Iterator[tuple[Path, float]]:
    """Every counter in a document that is not 0, with its place."""
    return _counters(document, (), counts=False)


def _counters(value: JSON, path: Path, *, counts: bool) -> Iterator[tuple[Path, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if counts or isinstance(inner, dict | list) or name in COUNTERS:
                within = counts or name in GROUPS or name in COUNTERS
                yield from _counters(inner, (*path, name), counts=within)
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _counters(inner, (*path, *_identity(inner, at)), counts=counts)
    elif counts and value and isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def _identity(row: JSON, at: int) -> Path:
    """What tells a row from the others of its list: its name, and the port where names repeat."""
    if not isinstance(row, dict):
        return (at,)
    for field in _IDENTITY:
        name = row.get(field)
        if isinstance(name, str | int):
            port = row.get("port") if field == "real" else None
            return (name, port) if isinstance(port, int) else (name,)
    return (at,)
