"""Page 1: how busy the gateway is, how its servers are, what the data plane does, what is wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.segment import Segment

from nfqlb.operator import story
from nfqlb.operator.dashboard import columns, grid
from nfqlb.operator.dashboard.grid import Column, Line
from nfqlb.operator.dashboard.model import QueueRow, RealRow, Snapshot, VirtualRow
from nfqlb.operator.dashboard.series import GATEWAY
from nfqlb.operator.dashboard.signs import (
    FAINT,
    PLAIN,
    TITLE,
    badness,
    colour,
    letter,
    level,
    micro,
    percent,
    short,
    some,
)
from nfqlb.operator.dashboard.state import State
from nfqlb.operator.text import several

Lines = list[list[Segment]]
_LABEL = 13  # cells of the name of a fact


def summary(state: State, width: int, height: int) -> Lines:
    """The page in `height` lines at most, the most important first; servers where there is room."""
    snapshot = state.snapshot
    assert snapshot is not None
    lines = facts(state, snapshot, width, max(1, height // 4))
    room = height - len(lines)
    if room >= 5:
        lines += _worst(state, snapshot, width, room)
    return lines[:height]


def facts(state: State, snapshot: Snapshot, width: int, most: int) -> Lines:
    """The gateway as a whole, and `most` of its problems."""
    lines = [*_busy(state, snapshot, width), *_servers(state, snapshot, width)]
    lines += [*_plane(state, snapshot, width), *_wrong(state, snapshot, width, most)]
    return lines + _losses(state, snapshot, width)


def _busy(state: State, snapshot: Snapshot, width: int) -> Lines:
    """The gateway's sparklines, each with its latest value."""
    now, limit = snapshot.connections, snapshot.limit
    part = now / limit if now is not None and limit else None
    told = [
        ("new/s", "rate", snapshot.rate, f"{short(snapshot.total)} in all"),
        ("connections", "connections", now, f"{percent(part)} of {short(limit)}"),
        ("in bytes/s", "bytes_in", snapshot.flow("bytes_in"), ""),
        ("out bytes/s", "bytes_out", snapshot.flow("bytes_out"), ""),
    ]
    lines = []
    for title, name, value, more in told:
        line = _fact(state, title, width).cell(short(value), 6, TITLE, right=True)
        line.gap(1).cell(more, 15, FAINT)
        values = state.line(GATEWAY, name)
        room = min(line.left - 2, 300)
        top = max((value for value in values[-room:] if value is not None), default=0.0) if room > 0 else 0.0
        lines.append(line.gap(1).put(state.look.spark(values, room, top)).done())
    return lines


def _fact(state: State, title: str, width: int) -> Line:
    return Line(width, state.look).gap(1).cell(title, _LABEL, FAINT)


def _servers(state: State, snapshot: Snapshot, width: int) -> Lines:
    """How many servers are in which state, the worst first."""
    lines = []
    for title, rows in (("virtual", snapshot.virtuals), ("real", snapshot.reals)):
        line = _fact(state, title, width)
        line.put(f"{several(len(rows), 'server')}:", PLAIN)
        counted = Counter(row.state for row in rows)
        for name in sorted(counted, key=lambda each: (-badness(each), each)):
            line.gap(2).put(letter(name), colour(name)).put(f" {counted[name]} {name}")
        lines.append(line.done())
    sticky = f"{short(snapshot.sticky)} of at most {some(snapshot.sticky_limit, 'entry', 'entries')}"
    lines.append(_fact(state, "sticky", width).put(sticky).done())
    return lines


def _plane(state: State, snapshot: Snapshot, width: int) -> Lines:
    """The worker, the rules, and the queues."""
    pid = "none" if snapshot.worker is None else f"process {snapshot.worker:.0f}"
    restarts = snapshot.restarts or 0
    often = "never" if not restarts else "once" if restarts == 1 else f"{restarts:.0f} times"
    lines = [_fact(state, "worker", width).put(f"{pid}, restarted {often}").done()]
    for title, said in (("rules", _rules(state, snapshot)), ("config", _reload(state, snapshot))):
        if said:
            lines.append(_fact(state, title, width).put(said).done())
    lines += _table(state, _QUEUES, snapshot.queues, width)
    return lines


def _rules(state: State, snapshot: Snapshot) -> str:
    """Whether the rules are in place, whether they had to be repaired, and who is against them."""
    rules = snapshot.rules
    if not rules:
        return ""
    present = rules.get("present")
    told = ["not looked at yet" if present is None else "in place" if present is True else "NOT in place"]
    repairs, at = rules.get("repairs"), rules.get("repaired_at")
    if isinstance(repairs, int) and repairs:
        when = f", last at {story.moment(at, state.now)}" if isinstance(at, int | float) else ""
        told.append(f"repaired {'once' if repairs == 1 else f'{repairs} times'}{when}")
    told += [said for name in ("why", "contested") if isinstance(said := rules.get(name), str) and said]
    return "; ".join(told)


def _reload(state: State, snapshot: Snapshot) -> str:
    """How the last reload went; nothing where there was none."""
    at, ok, error = (snapshot.reload.get(name) for name in ("at", "ok", "error"))
    if not isinstance(at, int | float) or ok is None:
        return ""
    when = story.moment(at, state.now)
    return (
        f"reloaded at {when}" if ok is True else f"NOT reloaded at {when}, the old one is in force: {error}"
    )


_QUEUES: list[Column[QueueRow]] = [
    Column("QUEUE", 5, lambda row, _: str(row.number), True),
    Column("FOR", 11, lambda row, _: row.role),
    Column("WAITING", 7, lambda row, _: short(row.depth), True),
    Column("FULL-DROPS", 10, lambda row, _: short(row.dropped_full), True),
    Column("SOCK-DROPS", 10, lambda row, _: short(row.dropped_socket), True),
    Column("PACKETS/s", 9, lambda row, _: short(row.rate), True),
    Column("us A PACKET", 11, lambda row, _: micro(row.cost), True),
    Column("OVERRUNS", 8, lambda row, _: short(row.overruns), True, rank=3),
    Column("REFUSED", 7, lambda row, _: short(row.refused), True, rank=2),
    Column("UNREADABLE", 10, lambda row, _: short(row.unreadable), True, rank=4),
]


def _table(state: State, columns_: Sequence[Column[QueueRow]], rows: Sequence[QueueRow], width: int) -> Lines:
    fitting = grid.fit(columns_, width)
    lines = [grid.heading(fitting, width, state.look)] if rows else []
    return lines + [grid.row(fitting, row, width, state.look) for row in rows]


def _wrong(state: State, snapshot: Snapshot, width: int, most: int) -> Lines:
    """What is wrong, the worst first."""
    lines = []
    for index, problem in enumerate(snapshot.problems[:most]):
        sign, style = level(problem.level)
        line = _fact(state, "" if index else "problems", width)
        lines.append(line.put(sign, style).gap(1).put(problem.what).done())
    more = len(snapshot.problems) - most
    if more > 0:
        lines.append(_fact(state, "", width).put(f"and {more} more", FAINT).done())
    return lines


def _losses(state: State, snapshot: Snapshot, width: int) -> Lines:
    """What was dropped and why, what clients were told, what the kernel did not tell."""
    lines = [_counted(state, "dropped", snapshot.drops, snapshot.dropping, width)]
    for title, numbers in (("replies", snapshot.replies), ("untold", snapshot.untold)):
        if numbers:
            lines.append(_counted(state, title, numbers, {}, width))
    if snapshot.unkept:
        said = f"no room for {some(snapshot.unkept, 'record')}: a new worker would not know them"
        lines.append(_fact(state, "journal", width).put(said).done())
    return lines


def _counted(
    state: State, title: str, numbers: Mapping[str, float], growing: Mapping[str, float], width: int
) -> list[Segment]:
    line = _fact(state, title, width)
    if not numbers:
        return line.put("no packets").done()
    for name in sorted(numbers, key=lambda each: (-growing.get(each, 0.0), -numbers[each])):
        speed = f" (+{short(growing[name])}/s)" if growing.get(name, 0.0) >= 0.5 else ""
        line.put(f"{short(numbers[name])} {name}{speed}").gap(3)
    return line.done()


def _worst(state: State, snapshot: Snapshot, width: int, room: int) -> Lines:
    """Servers in what room is left: virtual ones, then real ones, those that are not well first."""
    virtuals = sorted(snapshot.virtuals, key=_by_state)[: max(1, (room - 4) // 3)]
    lines: Lines = [Line(width, state.look).done()]
    fitting = grid.fit(columns.virtuals(state, virtuals), width)
    lines.append(grid.heading(fitting, width, state.look))
    lines += [grid.row(fitting, row, width, state.look) for row in virtuals]
    left = room - len(lines) - 2
    if left < 1:
        return lines
    reals = sorted(snapshot.reals, key=_by_state)[:left]
    chosen = grid.fit(columns.reals(state, reals), width)
    lines += [Line(width, state.look).done(), grid.heading(chosen, width, state.look)]
    return lines + [grid.row(chosen, row, width, state.look) for row in reals]


def _by_state(row: VirtualRow | RealRow) -> int:
    return -badness(row.state)
