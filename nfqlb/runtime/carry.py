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
        "evicted", "audit", "defects",
    }
)  # fmt: skip
#: What a worker knows from a gateway that is gone, and no counter of this one goes on from.
_REMEMBERED = "ditched"
#: Fields that tell the rows of a list apart: the first that is there does.
_IDENTITY = ("name", "real", "number")

Path = tuple[str | int, ...]
Tree = dict[str | int, "Tree | float"]


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
        self._earlier: dict[Path, float] | None = None  # what others counted before this gateway
        self._tree: Tree = {}  # both together, as a tree

    def learn(self, document: JSONObject) -> None:
        """A new account of the present worker."""
        self._last = document

    def succeed(self, begun: Mapping[Path, float]) -> None:
        """A new worker is there, which had `begun` with this: a successor knows part of what was counted.

        What the first one remembers is of an earlier gateway: connections that it has taken over count, what
        its servers could not make does not.
        """
        if self._earlier is None:
            first = begun if self._last is None else {}
            self._earlier = {path: value for path, value in first.items() if _is_remembered(path)}
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
        sums = dict(self._before)
        for path, value in self._beside.items():
            sums[path] = sums.get(path, 0) + value
        for path, value in (self._earlier or {}).items():
            sums[path] = sums.get(path, 0) - value
        self._tree = _tree(sums)

    def add(self, document: JSONObject) -> JSONObject:
        """The document with what the workers before had counted; the one given is left as it was."""
        if not self._tree:
            return document
        made = _added(document, self._tree, counts=False)
        assert isinstance(made, dict)
        return made


def _is_remembered(path: Path) -> bool:
    return path[-2:-1] == (_REMEMBERED,) and path[-1] not in COUNTERS  # a server may be called so


def _tree(sums: Mapping[Path, float]) -> Tree:
    """Sums as a tree of their places, so that nothing else of a document is looked at."""
    root: Tree = {}
    for path, value in sums.items():
        node = root
        for step in path[:-1]:
            below = node.setdefault(step, {})
            assert isinstance(below, dict)
            node = below
        node[path[-1]] = value
    return root


def _added(value: JSON, tree: Tree | float, *, counts: bool) -> JSON:
    """A value with what a tree holds for it. In a group, what the value has not is what the tree has."""
    if not isinstance(tree, dict):
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or not isinstance(value, int | float):
            return value
        # another server under the name of one that is gone has not had what was counted before
        return value + tree if value + tree >= 0 else value
    if isinstance(value, dict):
        made = dict(value)
        for name, below in tree.items():
            if not isinstance(name, str):
                continue
            within = counts or name in GROUPS
            if name in value:
                made[name] = _added(value[name], below, counts=within)
            elif counts and not isinstance(below, dict):
                made[name] = max(0, below)
        return made
    if isinstance(value, list):
        return [_row_added(row, at, tree, counts=counts) for at, row in enumerate(value)]
    return value


def _row_added(row: JSON, at: int, tree: Tree, *, counts: bool) -> JSON:
    below: Tree | float | None = tree
    for step in _identity(row, at):
        below = below.get(step) if isinstance(below, dict) else None
    return row if below is None else _added(row, below, counts=counts)


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
