"""From a configuration file to a `Config`, or to the report of what is wrong with it.

Owns the way through: read, decode, parse, check each table, check between tables, build.
Nothing but the file is looked at; whether this machine fits is another matter.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from nfqlb.config.checks import check_all, sticky_bits
from nfqlb.config.draft import Draft, Entry, read_tables
from nfqlb.config.marks import check_offload
from nfqlb.config.model import GatewayTable, RealTable, VirtualTable
from nfqlb.config.report import ConfigError, Finding, KeyPath, Problem, printable, spell
from nfqlb.config.scanner import KeyPlaces
from nfqlb.config.values import NAME
from nfqlb.core.spec import Config, Gateway, Real, Server, Strict, Timeouts, Virtual

__all__ = ["load", "parse", "read", "ConfigError", "Finding"]

LARGEST = 4 * 1024 * 1024
"""No file is larger, in bytes: room for tens of thousands of servers."""

_SYNTAX = re.compile(
    r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)\Z", re.DOTALL
)
_TABLE = re.compile(r"\(((?:'[^']*'(?:, )?)+),?\)")
"""How tomllib spells the name of a table: ('gateway',)."""
_TWICE = "the same key is set further up; is a [[real]] or [[virtual]] line missing in between?"
_LINES = "a line is a table such as [gateway], or key = value"
_QUOTES = 'a text stands in quotes: outside = "eth0"; true and false are lower case'
_CLOSING = 'the text needs its closing quote " on the same line'
_SYNTAX_HINTS = (
    ("Cannot declare ('real',)", "write [[real]] in double brackets for each real server"),
    ("Cannot declare ('virtual',)", "write [[virtual]] in double brackets for each virtual server"),
    ("Cannot declare", "the same table stands further up: put its keys together"),
    ("Cannot mutate", "this table or list was written as a whole further up"),
    ("Cannot overwrite", _TWICE),
    ("Invalid value", _QUOTES),
    ("Invalid statement", _LINES),
    ("Expected '='", _LINES),
    ("Expected newline", "one key = value on a line; addresses, names and 5m stand in quotes"),
    ("Unclosed array", "a list has commas between its entries, and a closing bracket ]"),
    ("Unterminated string", _CLOSING),
    ("Illegal character '\\n'", _CLOSING),
    ("Found invalid character '\\n'", _CLOSING),
    ("Exceeds the limit", "a number has thousands of digits"),
)


def load(path: Path) -> Config:
    """The configuration in the file at `path`. Raises ConfigError as `read` and `parse` do."""
    return parse(read(path), str(path))


def read(path: Path) -> str:
    """The text of the file at `path`.

    Raises ConfigError where it cannot be read, is longer than 4 MiB, or is no UTF-8 text.
    """
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from None
    if len(data) > LARGEST:
        raise ConfigError(source, [Finding(0, "", f"longer than {LARGEST // 2**20} MiB: no configuration")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8 text"
        raise ConfigError(source, [Finding(line, "", message, "save the file as UTF-8")]) from None


def parse(text: str, source: str) -> Config:
    """The configuration that `text` holds; `source` is how the report calls it.

    Raises ConfigError with every mistake in it; a breach of TOML's syntax hides all others.
    """
    text = text.replace("\r\n", "\n")
    try:
        raw, places = tomllib.loads(text), KeyPlaces(text)
    except RecursionError:
        raise ConfigError(source, [Finding(0, "", "lists or tables are nested too deeply")]) from None
    except ValueError as error:  # TOMLDecodeError, and numbers with more digits than int() takes
        raise ConfigError(source, [_syntax_finding(str(error), text)], text) from None
    problems: list[Problem] = []
    draft = read_tables(raw, problems)
    problems.extend(check_all(draft))
    config = None if problems else _build(draft)
    if config is not None:
        problems.extend(check_offload(config))
    if config is None or problems:
        raise ConfigError(source, [_locate(problem, raw, places) for problem in problems], text)
    return config


def _unreadable(source: str, error: OSError | ValueError) -> ConfigError:
    if isinstance(error, FileNotFoundError):
        finding = Finding(0, "", "there is no such file")
    elif isinstance(error, IsADirectoryError):
        finding = Finding(0, "", "this is a directory", "name the file in it")
    elif isinstance(error, PermissionError):
        finding = Finding(0, "", "no permission to read this file")
    else:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        finding = Finding(0, "", f"cannot be read: {printable(reason)}")
    return ConfigError(source, [finding])


def _syntax_finding(complaint: str, text: str) -> Finding:
    match = _SYNTAX.match(complaint)
    what = printable(match["what"] if match else complaint)
    what = _TABLE.sub(lambda found: f"[{found[1].replace(chr(39), '').replace(', ', '.')}]", what)
    message = f"not valid TOML: {what[:1].lower()}{what[1:]}"
    hint = next((hint for start, hint in _SYNTAX_HINTS if complaint.startswith(start)), "")
    if match is None:
        return Finding(0, "", "not valid TOML", hint or what)
    if match["line"] is None:  # at the end of the text
        return Finding(text.rstrip("\n").count("\n") + 1, "", message, hint)
    return Finding(int(match["line"]), "", message, hint, int(match["column"]))


def _locate(problem: Problem, raw: dict[str, Any], places: KeyPlaces) -> Finding:
    """The finding for a problem: its key path in words, its line and its column."""
    place = places.of_key(problem.path) if problem.on_key else places.of_value(problem.path)
    key = _in_words(problem.path, raw)
    if place is None:
        return Finding(0, key, problem.message, problem.hint)
    return Finding(place.line, key, problem.message, problem.hint, place.column, place.width)


def _in_words(path: KeyPath, raw: dict[str, Any]) -> str:
    """`real[web1].weight`; a table without a proper name goes by its number: `real[#2].weight`."""
    table, *rest = path
    words = spell([str(table)])
    if rest and isinstance(rest[0], int):
        tables = raw[str(table)]
        name = tables[rest[0]].get("name") if isinstance(tables[rest[0]], dict) else None
        proper = isinstance(name, str) and NAME.match(name)
        words += f"[{name}]" if proper else f"[#{rest[0] + 1}]"
        rest = rest[1:]
    if rest and isinstance(rest[0], str):
        words += f".{spell([rest[0]])}"
    return words


def _build(draft: Draft) -> Config:
    """The specs for a draft without a problem."""
    gateway = draft.gateway.values
    timeouts = Timeouts(**dict(draft.timeouts.values))
    sides = {"outside": tuple(gateway.outside), "inside": tuple(gateway.inside)}
    return Config(
        gateway=Gateway(**{**dict(gateway), **sides}),
        reals=tuple(_real(entry, timeouts) for entry in draft.reals),
        virtuals=tuple(_virtual(entry, gateway) for entry in draft.virtuals),
        timeouts=timeouts,
        strict=Strict(**dict(draft.strict.values)),
    )


def _real(entry: Entry[RealTable], timeouts: Timeouts) -> Real:
    idle = entry.values.idle_timeout
    filled = {"idle_timeout": timeouts.idle if idle is None else idle}
    return Real(**{**dict(entry.values), **filled})


def _virtual(entry: Entry[VirtualTable], gateway: GatewayTable) -> Virtual:
    values = entry.values
    bits = sticky_bits(entry)
    assert bits is not None  # an address is required
    filled = {
        "servers": tuple(Server(ref.real, ref.port or values.port) for ref in values.servers),
        "sticky_mask": bits[1],
        "reject": values.reject or gateway.reject,
        "datapath": values.datapath or gateway.datapath,
    }
    return Virtual(**{**dict(values), **filled})
