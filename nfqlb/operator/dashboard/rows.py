"""Rows of the lists that are asked for while they are looked at: connections, failures, events, decisions.

Pure: documents in, frozen rows out; ControlError "bad-reply" where a document does not hold what it should.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nfqlb.operator import document as read
from nfqlb.operator import story
from nfqlb.operator.text import endpoint
from nfqlb.runtime.protocol import JSON, JSONObject

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """A live connection, or one that has ended and lingers. Times are in seconds."""

    virtual: str
    protocol: str
    client: str
    real: str
    server: str
    state: str
    age: float
    idle: float

    @property
    def ended(self) -> bool:
        """Whether it is kept for late packets only."""
        return self.state in ("closed", "gone")


@dataclass(frozen=True, slots=True)
class FailureRow:
    """A connection that a real server could not make, `ago` seconds ago."""

    real: str
    ago: float
    client: str
    virtual: str
    why: str


@dataclass(frozen=True, slots=True)
class EventRow:
    """Something that happened at the time of day `at`; `who` ordered it, if it was ordered."""

    at: float
    kind: str
    name: str
    text: str
    who: str
    level: str


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """Where a connection went at the time of day `at`, by what, and what its sticky entry said."""

    at: float
    virtual: str
    client: str
    server: str
    by: str
    sticky: str


def connections(document: JSON) -> list[ConnectionRow]:
    """The rows of `connections`."""
    return _read(document, _connection)


def failures(document: JSON) -> list[FailureRow]:
    """The rows of `failures`."""
    return _read(document, _failure)


def events(document: JSON) -> list[EventRow]:
    """The rows of `events`, the newest first."""
    found = _read(document, _event)
    return sorted(found, key=lambda row: row.at, reverse=True)


def decisions(document: JSON) -> list[DecisionRow]:
    """The rows of `decisions`, the newest first."""
    return _read(document, _decision)


def _read(document: JSON, one: Callable[[JSONObject], Row]) -> list[Row]:
    rows: Sequence[JSONObject] = read.rows(document)
    return [one(row) for row in rows]


def _connection(row: JSONObject) -> ConnectionRow:
    real = read.text(row, "real")
    return ConnectionRow(
        virtual=read.text(row, "virtual"),
        protocol=read.text(row, "protocol"),
        client=endpoint(read.text(row, "client"), read.port(row, "client_port")),
        real=real,
        server=endpoint(real, read.port(row, "real_port")),
        state=read.text(row, "state"),
        age=read.number(row, "age_s"),
        idle=read.number(row, "idle_s"),
    )


def _failure(row: JSONObject) -> FailureRow:
    return FailureRow(
        real=read.text(row, "real"),
        ago=read.number(row, "ago_s"),
        client=endpoint(read.text(row, "client"), read.port(row, "client_port")),
        virtual=read.text(row, "virtual"),
        why=read.text(row, "why"),
    )


def _event(row: JSONObject) -> EventRow:
    kind, name, text, who, level = (
        read.optional_text(row, field) or "" for field in ("kind", "name", "text", "who", "level")
    )
    return EventRow(read.number(row, "at"), kind, name, text, who, level)


def _decision(row: JSONObject) -> DecisionRow:
    return DecisionRow(
        at=read.number(row, "at"),
        virtual=read.text(row, "virtual"),
        client=endpoint(read.text(row, "client"), read.port(row, "client_port")),
        server=story.server(row),
        by=read.text(row, "by"),
        sticky=read.text(read.part(row, "sticky"), "said"),
    )
