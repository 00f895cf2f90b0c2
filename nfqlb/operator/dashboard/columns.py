"""The columns of every list: what is in them, how wide they are, which go first on a narrow screen."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from nfqlb.operator import story
from nfqlb.operator.dashboard.grid import Cell, Column
from nfqlb.operator.dashboard.model import Place, RealRow, VirtualRow
from nfqlb.operator.dashboard.rows import ConnectionRow, DecisionRow, EventRow
from nfqlb.operator.dashboard.signs import FAINT, PLAIN, badness, colour, letter, level, percent, short
from nfqlb.operator.dashboard.state import State
from nfqlb.operator.text import age, endpoint, response

T = TypeVar("T")

#: What the schedulers are called where there is little room: the names of IPVS where it has them.
_SHORT = {
    "round-robin": "rr",
    "weighted-round-robin": "wrr",
    "least-connections": "lc",
    "weighted-least-connections": "wlc",
    "fastest-response": "fast",
    "source-hash": "sh",
    "maglev": "mh",
    "power-of-two": "twos",
}
_NAME, _ADDRESS = 16, 25  # cells of a name and of an address, unless there is room to spare
_BAR = 8  # cells of a share
_WHO = 36  # cells of who gave an order: "user operator (uid 1000), process 123"
_TREND = 60  # values of a sparkline that its height is taken from


def virtuals(state: State, rows: Sequence[VirtualRow]) -> list[Column[VirtualRow]]:
    """Virtual servers."""
    addresses = max(7, _widest([_address(row) for row in rows]))
    top = _top(state, "virtual", [row.name for row in rows])

    def trend(row: VirtualRow, width: int) -> Cell:
        return state.look.spark(state.line(("virtual", row.name), "rate"), width, top)

    def per_second(name: str, title: str, rank: int) -> Column[VirtualRow]:
        return _number(title, len(title), lambda row: row.flow[name], rank)

    def counted(name: str, title: str, rank: int) -> Column[VirtualRow]:
        return _number(title, len(title), lambda row: row.traffic[name], rank)

    return [
        Column("S", 2, lambda row, _: _letter(row.state), sort=lambda row: -badness(row.state)),
        _name("VIRTUAL", [row.name for row in rows], lambda row: row.name),
        Column(
            "ADDRESS", min(addresses, _ADDRESS), lambda row, _: _address(row), rank=3, grow=2, most=addresses
        ),
        Column("STATE", 14, lambda row, _: (row.state, colour(row.state)), rank=8),
        Column("SCHEDULER", 9, _scheduler, rank=1, grow=1, most=37, sort=lambda row: row.actual),
        _number("CONN", 6, lambda row: row.connections, 0),
        _number("NEW/s", 6, lambda row: row.rate, 0),
        per_second("packets_in", "IN pk/s", 4),
        per_second("packets_out", "OUT pk/s", 4),
        per_second("bytes_in", "IN B/s", 1),
        per_second("bytes_out", "OUT B/s", 1),
        counted("packets_in", "PK IN", 6),
        counted("packets_out", "PK OUT", 6),
        counted("bytes_in", "BYTES IN", 5),
        counted("bytes_out", "BYTES OUT", 5),
        _number("TOTAL", 6, lambda row: row.total, 7),
        _number("DROPS", 6, lambda row: row.dropped, 0),
        Column("NEW CONNECTIONS", 16, trend, rank=6, grow=2, most=_TREND),
        Column("DROPPED BY REASON", 18, lambda row, _: reasons(row), rank=9, grow=3),
    ]


def _address(row: VirtualRow) -> str:
    return f"{endpoint(row.address, row.port)}/{row.protocol}"


def _scheduler(row: VirtualRow, width: int) -> Cell:
    """The scheduler at work, and the one asked for where that is another one."""
    if row.desired == row.actual:
        return row.actual if len(row.actual) <= width else _SHORT.get(row.actual, row.actual)
    asked, actual = row.desired, row.actual
    if len(asked) + len(actual) + 6 > width:
        asked, actual = _SHORT.get(asked, asked), _SHORT.get(actual, actual)
    return f"{actual} for {asked}" if len(asked) + len(actual) + 5 <= width else f"{actual}/{asked}"


def reasons(row: VirtualRow) -> str:
    """Why packets of a virtual server were dropped, the most frequent reason first."""
    worst = sorted(row.drops.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{short(number)} {reason}" for reason, number in worst)


def reals(state: State, rows: Sequence[RealRow]) -> list[Column[RealRow]]:
    """Real servers."""
    addresses = max(7, _widest([row.address for row in rows]))
    top = _top(state, "real", [row.name for row in rows])
    look = state.look

    def trend(row: RealRow, width: int) -> Cell:
        return look.spark(state.line(("real", row.name), "rate"), width, top)

    return [
        Column("S", 2, lambda row, _: _letter(row.state), sort=lambda row: -badness(row.state)),
        _name("REAL", [row.name for row in rows], lambda row: row.name),
        Column("ADDRESS", min(addresses, _ADDRESS), lambda row, _: row.address, rank=5, grow=2,
               most=addresses),
        Column("STATE", 14, lambda row, _: (row.state, colour(row.state)), rank=6),
        Column("SINCE", 6, lambda row, _: _age(row.since), True, rank=2, sort=lambda row: row.since),
        Column("WT", 4, lambda row, _: _weight(row), True, rank=2, sort=lambda row: _less(row.weight),
               falling=True),
        _number("CONN", 5, lambda row: row.connections, 0),
        _number("LIMIT", 5, lambda row: row.limit or None, 2 if any(row.limit for row in rows) else 7),
        _number("NEW/s", 6, lambda row: row.rate, 1),
        Column("SHARE", _BAR, lambda row, width: look.bar(row.share, row.fair, width), rank=3, grow=1,
               most=20),
        Column("%", 4, lambda row, _: percent(row.share), True, rank=1, sort=lambda row: _less(row.share),
               falling=True),
        Column("FAIR", 4, lambda row, _: (percent(row.fair), FAINT), True, rank=3),
        _number("UNANS", 6, lambda row: row.unanswered, 2),
        _number("NOANSW", 7, lambda row: row.no_answer, 3),
        _number("RESET", 6, lambda row: row.reset, 3),
        Column("RESP", 7, lambda row, _: response(row.response), True, rank=1,
               sort=lambda row: _less(row.response), falling=True),
        Column("PREDICT", 8, lambda row, _: response(row.predicted), True, rank=5,
               sort=lambda row: _less(row.predicted), falling=True),
        _number("TOTAL", 6, lambda row: row.total, 7),
        Column("NEW CONNECTIONS", 16, trend, rank=6, grow=2, most=_TREND),
        Column("WHY", 16, lambda row, _: why(row), rank=8, grow=3),
    ]  # fmt: skip


def why(row: RealRow) -> str:
    """Why a server is in its state, since when it fails and when it is tested, and what its link lacks."""
    told = [row.reason]
    if row.failed is not None:
        told.append(f"down for {age(row.failed)}")
    if row.test is not None:
        told.append(f"to be tested in {age(row.test)}" if row.test else "waits for a client to test it")
    if row.state not in ("maintenance", "out-of-service") and row.neighbour in (
        "no route",
        "failed",
        "incomplete",
    ):
        told.append("no route to it" if row.neighbour == "no route" else f"neighbour {row.neighbour}")
    return ", ".join(filter(None, told))


def places(state: State, rows: Sequence[Place]) -> list[Column[Place]]:
    """Real servers in their place behind one virtual server."""
    look = state.look
    top = _top(state, "real", [row.real for row in rows])

    def trend(row: Place, width: int) -> Cell:
        return look.spark(state.line(("real", row.real), "rate"), width, top)

    return [
        Column("S", 2, lambda row, _: _letter(row.state), sort=lambda row: -badness(row.state)),
        _name("SERVER", list(map(place_name, rows)), place_name),
        Column("STATE", 14, lambda row, _: (row.state, colour(row.state)), rank=2),
        _number("CONN", 6, lambda row: row.connections, 0),
        _number("TOTAL", 6, lambda row: row.total, 1),
        Column("SHARE", _BAR, lambda row, width: look.bar(row.share, row.fair, width), rank=1, grow=1,
               most=24),
        Column("%", 4, lambda row, _: percent(row.share), True, sort=lambda row: _less(row.share),
               falling=True),
        Column("FAIR", 4, lambda row, _: (percent(row.fair), FAINT), True),
        Column("NEW CONNECTIONS (ALL SERVICES)", 17, trend, rank=3, grow=2, most=_TREND,
               brief="NEW, ALL SERVICES"),
        Column("", 0, lambda row, _: "", grow=1),
    ]  # fmt: skip


def place_name(row: Place) -> str:
    """A server's name with its port there."""
    name = row.real if row.port is None else endpoint(row.real, row.port)
    return f"{name} (backup)" if row.backup else name


def connections(rows: Sequence[ConnectionRow]) -> list[Column[ConnectionRow]]:
    """Live connections, and those that linger."""
    virtual = _widest([row.virtual for row in rows])
    client, real = _widest([row.client for row in rows]), _widest([row.server for row in rows])
    return [
        Column("CLIENT", 21, lambda row, _: row.client, grow=2, most=max(21, client),
               sort=lambda row: row.client),
        Column("VIRTUAL", 8, lambda row, _: row.virtual, grow=1, most=max(8, virtual),
               sort=lambda row: row.virtual),
        Column("PROTO", 5, lambda row, _: row.protocol, rank=2),
        Column("REAL", 12, lambda row, _: row.server, grow=1, most=max(12, real),
               sort=lambda row: row.server),
        Column("STATE", 14, lambda row, _: (row.state, FAINT if row.ended else PLAIN),
               sort=lambda row: row.state),
        Column("AGE", 6, lambda row, _: age(row.age), True, sort=lambda row: row.age),
        Column("IDLE", 6, lambda row, _: age(row.idle), True, rank=1, sort=lambda row: row.idle),
        Column("", 0, lambda row, _: "", grow=1),
    ]  # fmt: skip


def events(state: State, rows: Sequence[EventRow]) -> list[Column[EventRow]]:
    """What happened."""
    who = _widest([row.who for row in rows])
    return [
        Column("L", 1, lambda row, _: level(row.level)),
        Column("WHEN", 8, lambda row, _: story.moment(row.at, state.now)[-8:], sort=lambda row: -row.at),
        Column("KIND", 7, lambda row, _: row.kind, rank=1, sort=lambda row: row.kind),
        Column("WHAT", 20, lambda row, _: row.text, grow=1),
        Column("BY", max(2, min(who, _WHO)), lambda row, _: row.who, rank=2, sort=lambda row: row.who),
    ]


def decisions(state: State, rows: Sequence[DecisionRow]) -> list[Column[DecisionRow]]:
    """Where connections went."""
    virtual = _widest([row.virtual for row in rows])
    client, server = _widest([row.client for row in rows]), _widest([row.server for row in rows])
    return [
        Column("WHEN", 8, lambda row, _: story.moment(row.at, state.now)[-8:], sort=lambda row: -row.at),
        Column("CLIENT", 21, lambda row, _: row.client, grow=1, most=max(21, client),
               sort=lambda row: row.client),
        Column("VIRTUAL", 8, lambda row, _: row.virtual, grow=1, most=max(8, virtual),
               sort=lambda row: row.virtual),
        Column("TO", 14, lambda row, _: row.server, grow=1, most=max(14, server),
               sort=lambda row: row.server),
        Column("BY", 9, lambda row, _: row.by, sort=lambda row: row.by),
        Column("STICKY", 10, lambda row, _: row.sticky, rank=1),
        Column("", 0, lambda row, _: "", grow=1),
    ]  # fmt: skip


def _letter(state: str) -> Cell:
    return letter(state), colour(state)


def _weight(row: RealRow) -> str:
    """One that was set by hand has a mark."""
    if row.weight is None:
        return "-"
    return f"{row.weight:g}{'' if row.configured in (None, row.weight) else '*'}"


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else age(seconds)


def _less(value: float | None) -> float:
    """A value to sort by, what is not known after all others."""
    return float("-inf") if value is None else value


def _name(title: str, names: Sequence[str], value: Callable[[T], str]) -> Column[T]:
    """A column of names: as wide as the longest, up to what a screen has room for."""
    widest = max(len(title) + 1, _widest(names))
    return Column(title, min(widest, _NAME), lambda row, _: value(row), grow=3, most=widest, sort=value)


def _number(title: str, width: int, value: Callable[[T], float | None], rank: int) -> Column[T]:
    """A column of numbers, the highest first where rows are sorted by it."""
    return Column(
        title,
        width,
        lambda row, _: short(value(row)),
        True,
        rank,
        sort=lambda row: _less(value(row)),
        falling=True,
    )


def _widest(texts: Sequence[str]) -> int:
    return max(map(len, texts), default=0)


def _top(state: State, of: str, names: Sequence[str]) -> float:
    """The highest value of the rates that are drawn together, so that their heights compare."""
    top = 0.0
    for name in names:
        values = state.series.values((of, name), "rate")[-_TREND:]
        top = max(top, max((value for value in values if value is not None), default=0.0))
    return top
