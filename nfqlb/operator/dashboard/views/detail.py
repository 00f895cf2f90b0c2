"""What is above the lists on the page of one server: everything that is known of it."""

from collections.abc import Sequence
from math import isinf

from rich.segment import Segment

from nfqlb.operator.dashboard import columns
from nfqlb.operator.dashboard.grid import Line
from nfqlb.operator.dashboard.model import RealRow, VirtualRow
from nfqlb.operator.dashboard.series import Key
from nfqlb.operator.dashboard.signs import FAINT, PLAIN, TITLE, colour, letter, percent, short, some
from nfqlb.operator.dashboard.state import State
from nfqlb.operator.text import age, endpoint, response

Lines = list[list[Segment]]
_LABEL = 13


def virtual(state: State, row: VirtualRow | None, width: int) -> Lines:
    """A virtual server."""
    if row is None:
        return _gone(state, "virtual", width)
    where = f"{endpoint(row.address, row.port)}/{row.protocol}"
    key = ("virtual", row.name)
    lines = [_name(state, f"virtual server {row.name}", row.state, where, width)]
    now = row.actual if row.actual == row.desired else f"{row.actual} for now, then {row.desired}"
    lines.append(_fact(state, "scheme", now + (f"; shadow: {row.shadow}" if row.shadow else ""), width))
    lines.append(_fact(state, "traffic in", _traffic(row, "packets_in", "bytes_in"), width))
    lines.append(_fact(state, "traffic out", _traffic(row, "packets_out", "bytes_out"), width))
    lines.append(_fact(state, "dropped", columns.reasons(row) or "no packets", width))
    lines.append(_trend(state, "new/s", key, "rate", short(row.rate), width))
    lines.append(_trend(state, "connections", key, "connections", short(row.connections), width))
    lines.append(_trend(state, "out bytes/s", key, "bytes_out", short(row.flow["bytes_out"]), width))
    return lines


def _traffic(row: VirtualRow, packets: str, bytes_: str) -> str:
    return (
        f"{some(row.flow[packets], 'packet')}/s, {some(row.flow[bytes_], 'byte')}/s; "
        f"{some(row.traffic[packets], 'packet')}, {some(row.traffic[bytes_], 'byte')} since the start"
    )


def real(state: State, row: RealRow | None, width: int) -> Lines:
    """A real server."""
    if row is None:
        return _gone(state, "real", width)
    because = columns.why(row)
    since = "" if row.since is None else f"since {age(row.since)}"
    key = ("real", row.name)
    said = ", ".join(filter(None, (since, because)))
    lines = [_name(state, f"real server {row.name}", row.state, said, width)]
    link = ", ".join(filter(None, (row.mac, row.neighbour)))
    lines.append(_fact(state, "address", row.address + (f" ({link})" if link else ""), width))
    limit = f"of at most {short(row.limit)}" if row.limit else "without a limit"
    weight = "-" if row.weight is None else f"{row.weight:g}"
    if row.configured not in (None, row.weight):
        weight += f" set by hand, {row.configured:g} in the configuration"
    live = f"{short(row.connections)} {limit}, {short(row.total)} in all; weight {weight}"
    lines.append(_fact(state, "connections", f"{live}; behind {', '.join(row.virtuals) or 'nothing'}", width))
    share = f"{percent(row.share)} of its virtual servers' connections, fair would be {percent(row.fair)}"
    line = Line(width, state.look).gap(1).cell("share", _LABEL, FAINT)
    lines.append(line.put(state.look.bar(row.share, row.fair, 20)).gap(1).put(share).done())
    bad = f"{some(row.unanswered, 'unanswered SYN')}; ditched {short(row.no_answer)} without answer, "
    lines.append(_fact(state, "trouble", f"{bad}{short(row.reset)} reset", width))
    lines.append(_fact(state, "response", _answers(row), width))
    lines.append(_trend(state, "new/s", key, "rate", short(row.rate), width))
    lines.append(_trend(state, "connections", key, "connections", short(row.connections), width))
    lines.append(_trend(state, "response", key, "response_s", response(row.response), width))
    return lines + _failures(state, width)


def _answers(row: RealRow) -> str:
    """A server's response times: the last, what is expected, and how most of them were."""
    said = f"{response(row.response)} last, {response(row.predicted)} predicted"
    parts = [
        f"{part:.0%} {'over 10s' if isinf(bound) else f'within {1000 * bound:g}ms'}"
        for part in (0.5, 0.9, 0.99)
        if (bound := row.within(part)) is not None
    ]
    return "; ".join([said, ", ".join(parts)]) if parts else said


def _failures(state: State, width: int) -> Lines:
    """The latest connections that it could not make."""
    lines = []
    for index, failure in enumerate(state.failures or ()):
        said = f"{age(failure.ago)} ago: {failure.client} to {failure.virtual}, {failure.why}"
        lines.append(_fact(state, "" if index else "failed for", said, width))
    return lines


def _gone(state: State, kind: str, width: int) -> Lines:
    said = f"there is no {kind} server {state.page.name} any more; Esc goes back"
    return [Line(width, state.look).gap(1).put(said).done()]


def _name(state: State, name: str, condition: str, more: str, width: int) -> list[Segment]:
    line = Line(width, state.look).gap(1).put(name, TITLE).gap(2)
    line.put(f"{letter(condition)} {condition}", colour(condition))
    return line.gap(2).put(more, PLAIN).done()


def _fact(state: State, title: str, said: str, width: int) -> list[Segment]:
    return Line(width, state.look).gap(1).cell(title, _LABEL, FAINT).put(said).done()


def _trend(state: State, title: str, key: Key, name: str, now: str, width: int) -> list[Segment]:
    """A sparkline of the last minutes with its latest value."""
    line = Line(width, state.look).gap(1).cell(title, _LABEL, FAINT).cell(now, 8, TITLE, right=True).gap(1)
    values: Sequence[float | None] = state.line(key, name)
    room = min(line.left - 1, 300)
    top = max((value for value in values[-room:] if value is not None), default=0.0) if room > 0 else 0.0
    return line.put(state.look.spark(values, room, top)).done()
