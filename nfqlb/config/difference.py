"""What is different between two configurations, table by table and key by key.

Owns the comparison and how it is put: as lines for people, as a document for programs. Tables are compared
by name, as the operator wrote them. Pure; what it does to a running gateway is said in `transition`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from nfqlb.config.summary import duration, endpoint
from nfqlb.core.spec import Config, Real, Server, Virtual

ADDED, REMOVED, CHANGED = "added", "removed", "changed"
_DURATIONS = frozenset(
    ("idle", "half_open", "closing", "udp", "retry", "idle_timeout", "sticky", "startup_time")
)
_NAMES = frozenset(("port", "queue"))  # numbers that name something, and count nothing
_TITLES = {"real": "real server", "virtual": "virtual server"}
Plain = str | int | float | bool | list[str] | None
"""A value as a document has it: addresses and places as texts, times in seconds."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key: its values before and after."""

    key: str
    before: Plain
    after: Plain

    def __str__(self) -> str:
        if isinstance(self.before, list) and isinstance(self.after, list):
            listed = _moved(self.before, self.after)
            if listed:
                return f"{self.key}: {listed}"
        return f"{self.key}: {_spelled(self.key, self.before)} -> {_spelled(self.key, self.after)}"


@dataclass(frozen=True, slots=True)
class Difference:
    """One table that is not the same: `table` is "gateway", "timeouts", "strict", "real" or "virtual".

    `name` is a server's, else empty. `what` is "added", "removed" or "changed"; of a changed one `changes`
    are its keys, of the others `about` says which it is.
    """

    table: str
    name: str
    what: str
    changes: tuple[Change, ...] = ()
    about: str = ""

    @property
    def title(self) -> str:
        """What the operator calls it: `[gateway]`, `real server web1`."""
        return f"{_TITLES[self.table]} {self.name}" if self.name else f"[{self.table}]"

    def lines(self) -> Iterator[str]:
        """For people; one line for each key that is changed."""
        if self.what == CHANGED:
            for change in self.changes:
                yield f"{self.title}{':' if self.name else ''} {change}"
        else:
            yield f"{self.title}: {self.what}{f', {self.about}' if self.about else ''}"

    def document(self) -> dict[str, Any]:
        """For programs."""
        keys = [{"key": each.key, "before": each.before, "after": each.after} for each in self.changes]
        return {"table": self.table, "name": self.name, "what": self.what, "keys": keys}


def compare(before: Config, after: Config) -> list[Difference]:
    """How `after` differs from `before`: the gateway first, then real servers, then virtual servers."""
    found = []
    for table in ("gateway", "timeouts", "strict"):
        changes = tuple(_changes(getattr(before, table), getattr(after, table)))
        found += [Difference(table, "", CHANGED, changes)] if changes else []
    found += _servers("real", before.reals, after.reals)
    found += _servers("virtual", before.virtuals, after.virtuals)
    if not found and before != after:
        found += _orders(before, after)
    return found


def lines(differences: Iterable[Difference]) -> list[str]:
    """All of them for people."""
    return [line for difference in differences for line in difference.lines()]


def _servers(
    table: str, before: Sequence[Real] | Sequence[Virtual], after: Sequence[Real] | Sequence[Virtual]
) -> Iterator[Difference]:
    old: Mapping[str, Real | Virtual] = {each.name: each for each in before}
    new: Mapping[str, Real | Virtual] = {each.name: each for each in after}
    for name, each in old.items():
        if name not in new:
            yield Difference(table, name, REMOVED, about=_about(each))
        elif changes := tuple(_changes(each, new[name])):
            yield Difference(table, name, CHANGED, changes)
    for name, each in new.items():
        if name not in old:
            yield Difference(table, name, ADDED, about=_about(each))


def _orders(before: Config, after: Config) -> Iterator[Difference]:
    """The same tables in another order, which schedulers take turns by."""
    for table, one, other in (
        ("real", before.reals, after.reals),
        ("virtual", before.virtuals, after.virtuals),
    ):
        if one != other:
            change = Change("order", [each.name for each in one], [each.name for each in other])
            yield Difference(table, "", CHANGED, (change,))


def _changes(before: object, after: object) -> Iterator[Change]:
    for field in fields(before):  # type: ignore[arg-type]  # every table is a dataclass
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old != new:
            yield Change(field.name, _plain(field.name, old), _plain(field.name, new))


def _about(server: Real | Virtual) -> str:
    if isinstance(server, Real):
        return str(server.address)
    places = ", ".join(_place(each) for each in server.servers)
    return f"{server.protocol} {endpoint(server.address, server.port)} over {places}"


def _plain(key: str, value: object) -> Plain:
    if key == "servers" and isinstance(value, tuple):
        return [_place(each) for each in value]
    if isinstance(value, tuple):
        return [str(each) for each in value]
    if key == "mark_mask" and isinstance(value, int):
        return f"{value:#010x}"
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _place(server: Server) -> str:
    return server.real if server.port is None else f"{server.real}:{server.port}"


def _moved(before: list[str], after: list[str]) -> str:
    """What came to a list and what left it; empty where only the order is another."""
    came = [f"+{each}" for each in after if each not in before]
    left = [f"-{each}" for each in before if each not in after]
    return ", ".join([*came, *left])


def _spelled(key: str, value: Plain) -> str:
    if value is None:
        return "every port" if key == "port" else "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, int | float) and key not in _NAMES:
        return duration(float(value)) if key in _DURATIONS else f"{value:,.10g}"
    return str(value) or '""'
