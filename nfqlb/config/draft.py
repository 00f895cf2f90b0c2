"""The file's tables, each checked by itself.

Owns the step from what `tomllib` read to a `Draft`: the tables as models, together with the
keys in each that were refused and therefore hold their default. The checks between tables
work on a draft, so that one run reports the mistakes of both kinds.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_args

from pydantic import ValidationError

from nfqlb.config import support
from nfqlb.config.model import GatewayTable, RealTable, StrictTable, TableModel, TimeoutsTable, VirtualTable
from nfqlb.config.report import KeyPath, Problem, did_you_mean, kind, nearest, show
from nfqlb.config.values import NO_SERVER, SCHEDULER_ALIASES, unquoted

TableT = TypeVar("TableT", bound=TableModel)

ONCE: Mapping[str, type[TableModel]] = {
    "gateway": GatewayTable,
    "timeouts": TimeoutsTable,
    "strict": StrictTable,
}
MANY: Mapping[str, type[TableModel]] = {"real": RealTable, "virtual": VirtualTable}
TABLES: Mapping[str, type[TableModel]] = {**ONCE, **MANY}


@dataclass(frozen=True, slots=True)
class Entry(Generic[TableT]):
    """One table: where it stands, its values, and the keys that were missing or refused."""

    path: KeyPath
    values: TableT
    broken: frozenset[str] = frozenset()

    def good(self, key: str) -> bool:
        """Whether `key` holds what the file says, or its default where the file says nothing."""
        return key not in self.broken


@dataclass(slots=True)
class Draft:
    """All tables of one file. `names` are all real servers' names, refused tables' too."""

    gateway: Entry[GatewayTable]
    timeouts: Entry[TimeoutsTable]
    strict: Entry[StrictTable]
    reals: list[Entry[RealTable]] = field(default_factory=list)
    virtuals: list[Entry[VirtualTable]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


def read_tables(raw: Mapping[str, Any], problems: list[Problem]) -> Draft:
    """Checks every table by itself; adds what is wrong to `problems`."""
    draft = Draft(
        _once("gateway", GatewayTable, raw, problems),
        _once("timeouts", TimeoutsTable, raw, problems),
        _once("strict", StrictTable, raw, problems),
        _many("real", RealTable, raw, problems),
        _many("virtual", VirtualTable, raw, problems),
    )
    draft.names = {real.values.name for real in draft.reals if real.good("name")}
    listed = raw.get("real")
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict) and isinstance(item.get("name"), str):
            draft.names.add(item["name"])
    problems.extend(_unknown_top_level(raw))
    return draft


def _once(name: str, model: type[TableT], raw: Mapping[str, Any], problems: list[Problem]) -> Entry[TableT]:
    value = raw.get(name, {})
    if name not in raw and model.required:
        if name not in _meant_by(raw, TABLES):
            problems.append(Problem((name,), f"the table [{name}] is missing", _needs(model)))
        return Entry((name,), model(), frozenset(model.required))
    if not isinstance(value, dict):
        message = f"{kind(value)} where the table [{name}] belongs"
        hint = f"write [{name}] in single brackets, once"
        problems.append(Problem((name,), message, hint, on_key=True))
        return Entry((name,), model(), frozenset(model.model_fields))
    return _read(name, (name,), model, value, problems)


def _many(
    name: str, model: type[TableT], raw: Mapping[str, Any], problems: list[Problem]
) -> list[Entry[TableT]]:
    value = raw.get(name, [])
    if isinstance(value, dict):
        message = f"a single table where a list of [[{name}]] belongs"
        problems.append(Problem((name,), message, f"write [[{name}]] in double brackets", on_key=True))
        value = [value]
    elif not isinstance(value, list):
        message = f"{kind(value)} where tables [[{name}]] belong"
        problems.append(Problem((name,), message, f"start each one with a line [[{name}]]", on_key=True))
        value = []
    elif not value and name not in _meant_by(raw, TABLES):
        problems.append(Problem((name,), f"there is no [[{name}]]", _needs(model)))
    entries = []
    for index, item in enumerate(value):
        if isinstance(item, dict):
            path = (name, index) if isinstance(raw[name], list) else (name,)
            entries.append(_read(name, path, model, item, problems))
        else:
            problems.append(Problem((name, index), f"{show(item)} is {kind(item)} (allowed: a table)"))
    return entries


def _needs(model: type[TableModel]) -> str:
    *most, last = model.required
    return f"it needs at least {', '.join(most)} and {last}"


def _read(
    table: str, path: KeyPath, model: type[TableT], raw: Mapping[str, Any], problems: list[Problem]
) -> Entry[TableT]:
    """One table: refused keys are reported, and left at their default in the entry."""
    missing = [key for key in model.required if key not in raw]
    broken = set(missing)
    misspelt = _meant_by(raw, model.model_fields)
    try:
        values = model.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems.extend(_explain(table, path, model, detail) for detail in details)
        broken.update(str(detail["loc"][0]) for detail in details)
        values = model.model_validate(_what_remains(raw, [tuple(detail["loc"]) for detail in details]))
    problems.extend(Problem((*path, key), "this key is missing") for key in missing if key not in misspelt)
    problems.extend(support.refused(table, path, values))
    return Entry(path, values, frozenset(broken))


def _what_remains(raw: Mapping[str, Any], refused: list[KeyPath]) -> dict[str, Any]:
    """The table without the refused keys; of `servers`, only the refused entries are blanked."""
    whole = {loc[0] for loc in refused if loc[0] != "servers" or len(loc) == 1}
    rest = {key: value for key, value in raw.items() if key not in whole}
    for key, index in (loc for loc in refused if loc[0] not in whole):
        rest[str(key)] = [NO_SERVER if at == index else item for at, item in enumerate(rest[str(key)])]
    return rest


def _meant_by(given: Iterable[str], known: Iterable[str]) -> set[str]:
    """The known words that misspelt ones stand for: these are not reported as missing too."""
    return {near for word in given if word not in known and (near := nearest(word, known))}


def _explain(table: str, path: KeyPath, model: type[TableModel], detail: Any) -> Problem:
    """One of pydantic's error details as a problem in the operator's words."""
    loc, value = tuple(detail["loc"]), detail["input"]
    where = (*path, *loc)
    if detail["type"] == "extra_forbidden":
        return _unknown_key(where, str(loc[0]), table, model)
    if detail["type"] == "refused":
        return Problem(where, detail["ctx"]["message"], detail["ctx"]["hint"])
    if detail["type"] == "literal_error":
        return _not_a_choice(where, value, table, str(loc[0]), model)
    allowed = model.model_fields[str(loc[0])].description
    wrong = f"{show(value)} is not allowed here (allowed: {allowed})"
    listed = isinstance(value, str) and detail["type"] == "list_type"
    return Problem(where, wrong, f"in brackets: [{show(value)}]" if listed else unquoted(value))


def _not_a_choice(where: KeyPath, value: object, table: str, key: str, model: type[TableModel]) -> Problem:
    """A value that is none of a key's words; names those which work in this version."""
    choices = _words(model.model_fields[key].annotation)
    now = support.WORKING.get((table, key), choices)
    message = f"{show(value)} is not known (allowed{' now' if now != choices else ''}: {support.listed(now)})"
    hint = ""
    if isinstance(value, str):
        aliases = SCHEDULER_ALIASES if "round-robin" in choices and len(choices) > 2 else {}
        hint = did_you_mean(value, [*filter(None, choices), *aliases])
    return Problem(where, message, hint)


def _words(annotation: Any) -> tuple[str, ...]:
    """The texts of a `Literal`, also inside an optional one."""
    words: list[str] = []
    for part in get_args(annotation):
        words += [part] if isinstance(part, str) else _words(part)
    return tuple(words)


def _unknown_key(where: KeyPath, key: str, table: str, model: type[TableModel]) -> Problem:
    (shape,) = _headers([table])
    hint = did_you_mean(key, model.model_fields)
    elsewhere = _tables_with(key)
    if elsewhere:
        hint = f"it is a key of {elsewhere}"
    elif not hint:
        hint = f"known keys: {', '.join(model.model_fields)}"
    return Problem(where, f"unknown key in {shape}", hint, on_key=True)


def _tables_with(key: str) -> str:
    return " and ".join(_headers(name for name, model in TABLES.items() if key in model.model_fields))


def _headers(names: Iterable[str]) -> list[str]:
    return [f"[[{name}]]" if name in MANY else f"[{name}]" for name in names]


def _unknown_top_level(raw: Mapping[str, Any]) -> Iterator[Problem]:
    for key, value in raw.items():
        if key in TABLES:
            continue
        if isinstance(value, dict) or kind(value) == "a list of tables":
            near = nearest(key, TABLES)
            known = ", ".join(_headers([near] if near else TABLES))
            hint = f"did you mean {known}?" if near else f"known tables: {known}"
            yield Problem((key,), "unknown table", hint, on_key=True)
        else:
            owner = _tables_with(key) or "the line with its [table]"
            yield Problem((key,), "a key outside of any table", f"it belongs below {owner}", on_key=True)
