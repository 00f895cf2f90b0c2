"""What `nfqlb show` prints: each document of the control protocol as a table for people, or as JSON.

Every function takes a document as it came over the socket and returns lines. Columns that say nothing (a
limit nobody has set, a response time nobody has measured) are left out, so that the usual tables
fit 80 columns. A document that does not hold what it should raises ControlError "bad-reply".
"""

import json
import time
from collections.abc import Callable

from nfqlb.operator import document as read
from nfqlb.operator import story
from nfqlb.operator.text import Row, age, clean, count, endpoint, facts, response, several, size, table
from nfqlb.runtime.problems import unmade
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject

_rows, _object, _list, _part = read.rows, read.whole, read.items, read.part
_text, _optional, _number, _port = read.text, read.optional, read.number, read.port


def render(subject: str, document: JSON, limit: int | None = None) -> list[str]:
    """The lines for `subject`, one of SUBJECTS. `limit` is how many rows were asked for at most."""
    lines = SUBJECTS[subject](document)
    if limit is not None and isinstance(document, list) and len(document) >= limit:
        lines.append(f"(the first {count(limit)}; --limit N shows more)")
    return lines


def as_json(document: JSON) -> list[str]:
    """One JSON document; a list has one row a line, for grep and wc."""
    if not isinstance(document, list):
        return json.dumps(document, indent=2).splitlines()
    if not document:
        return ["[]"]
    rows = [json.dumps(row) for row in document]
    return ["[", *(row + "," for row in rows[:-1]), rows[-1], "]"]


def summary(document: JSON) -> list[str]:
    """The gateway as a whole."""
    whole = _object(document)
    worker, connections, sticky = (_part(whole, name) for name in ("worker", "connections", "sticky"))
    pid = _optional(worker, "pid")
    running = "none" if pid is None else f"process {pid:.0f}"
    now, limit = _number(connections, "now"), _number(connections, "limit")
    entries = several(_number(sticky, "limit"), "entry", "entries")
    pairs = [
        ("nfqlb", f"{_text(whole, 'version')}, {_text(whole, 'datapath')} datapath"),
        ("state", f"{_text(whole, 'state')}, up for {age(_number(whole, 'uptime_s'))}"),
        *_verdict(whole),
        ("worker", f"{running}, restarted {_times(_number(worker, 'restarts'))}"),
        (
            "connections",
            f"{count(now)} of at most {count(limit)}, {count(_number(connections, 'total'))} since the start",
        ),
        ("sticky", f"{count(_number(sticky, 'now'))} of at most {entries}"),
        *((f"queue {_number(queue, 'number'):.0f}", _queue(queue)) for queue in _list(whole, "queues")),
        *_unkept(_number(_part(whole, "journal"), "lost")),
        *_followed(_part(whole, "followed")),
        *_dropped(_part(whole, "drops")),
        *_told(whole),
    ]
    return facts(pairs)


def virtuals(document: JSON) -> list[str]:
    """Virtual servers, each with what it is on a line of its own and its real servers below that."""
    found = _rows(document)
    if not found:
        return ["no virtual servers"]
    rows: list[Row] = []
    about: dict[int, list[str]] = {}  # what is said of a virtual server, by the row that it follows
    for virtual in found:
        about[len(rows)] = [_about(virtual), *_passed(virtual), *_lost(virtual), *_shadow(virtual)]
        name, state = _text(virtual, "name"), _text(virtual, "state")
        rows.append((name, state, *_connections(virtual), "", ""))
        rows += [_place(server, virtual) for server in _list(virtual, "servers")]
    lines = table(("VIRTUAL", "STATE", "CONN", "TOTAL", "SHARE", "FAIR"), rows, right=_RIGHT)
    for row in reversed(about):
        lines[row + 2 : row + 2] = [f"  {clean(line)}" for line in about[row]]
    return lines


_RIGHT = ("CONN", "TOTAL", "SHARE", "FAIR")
#: Under these schedulers no weight entitles a server to anything.
_WEIGHTLESS = ("round-robin", "least-connections", "fastest-response")


def _about(virtual: JSONObject) -> str:
    """A virtual server's address, and the scheduler that is at work."""
    scheduler = _part(virtual, "scheduler")
    desired, actual = _text(scheduler, "desired"), _text(scheduler, "actual")
    where = endpoint(_text(virtual, "address"), _port(virtual, "port"))
    how = desired if desired == actual else f"{actual} for now, then {desired}"
    return f"{where}/{_text(virtual, 'protocol')}, {how}"


def _passed(virtual: JSONObject) -> list[str]:
    """What came for a virtual server and left from it; nothing where nobody counts."""
    if virtual.get("traffic") is None:
        return []
    traffic = _part(virtual, "traffic")
    ways = []
    for way in ("in", "out"):
        packets = several(_number(traffic, f"packets_{way}"), "packet")
        ways.append(f"{way} {size(_number(traffic, f'bytes_{way}'))} ({packets})")
    return [", ".join(ways)]


def _lost(virtual: JSONObject) -> list[str]:
    """What was dropped of a virtual server's packets, by reason; nothing where nothing was."""
    drops = _part(virtual, "drops") if "drops" in virtual else {}
    told = [f"{count(_number(drops, reason))} {reason}" for reason in drops if _number(drops, reason)]
    return [f"dropped {', '.join(told)}"] if told else []


def _shadow(virtual: JSONObject) -> list[str]:
    """What its shadow would have done; nothing where it has none."""
    if virtual.get("shadow") is None:
        return []
    shadow = _part(virtual, "shadow")
    evaluated, differed = _number(shadow, "evaluated"), _number(shadow, "differed")
    told = f"shadow {_text(shadow, 'scheduler')}: "
    if not evaluated:
        return [told + "not asked yet"]
    return [f"{told}another server in {differed / evaluated:.1%} of {several(evaluated, 'decision')}"]


def _place(server: JSONObject, virtual: JSONObject) -> Row:
    """A real server behind a virtual one: as `servers` in the configuration has it."""
    port = _port(server, "port")
    name = _text(server, "real") + ("" if port is None else f":{port}")
    share, fair = (_optional(server, part) for part in ("share", "fair_share"))
    weighed = _text(_part(virtual, "scheduler"), "actual") not in _WEIGHTLESS
    return (
        f"  {name} (backup)" if server.get("backup") is True else f"  {name}",
        _text(server, "state"),
        *_connections(server),
        "" if share is None else f"{share:.0%}",
        "" if fair is None or not weighed else f"{fair:.0%}",
    )


def _connections(row: JSONObject) -> tuple[str, str]:
    """How many there are now, and have been."""
    return count(_number(row, "connections")), count(_number(row, "total"))


def reals(document: JSON) -> list[str]:
    """Real servers, and below them the reason of every state that is not the usual one."""
    found = _rows(document)
    if not found:
        return ["no real servers"]
    columns: list[tuple[str, list[str]]] = [
        ("REAL", [_text(real, "name") for real in found]),
        ("ADDRESS", [_text(real, "address") for real in found]),
        ("STATE", [_text(real, "state") for real in found]),
        ("SINCE", [age(_number(real, "since_s")) for real in found]),
        ("WEIGHT", [f"{_number(real, 'weight'):g}{'*' if _reweighed(real) else ''}" for real in found]),
        ("CONN", [count(_number(real, "connections")) for real in found]),
    ]
    limits = [_number(real, "max_connections") for real in found]
    if any(limits):
        columns.append(("LIMIT", [count(limit) if limit else "-" for limit in limits]))
    columns.append(("TOTAL", [count(_number(real, "total")) for real in found]))
    unanswered = [_number(real, "unanswered") for real in found]
    if any(unanswered):
        columns.append(("UNANS", [count(number) for number in unanswered]))
    ditched = [_part(real, "ditched") for real in found]
    for title, key in (("NOANSW", "no_answer"), ("RESET", "reset")):
        if any(_number(part, key) for part in ditched):
            columns.append((title, [count(_number(part, key)) for part in ditched]))
    times = [_optional(real, "response_s") for real in found]
    if any(time is not None for time in times):
        columns.append(("RESP", [response(time) for time in times]))
    titles = [title for title, _ in columns]
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    lines = table(titles, rows, right=titles[3:])
    told = [(_text(real, "name"), why) for real in found if (why := _why(real))]
    told += [(_text(real, "name"), by_hand) for real in found if (by_hand := _reweighed(real))]
    told += [(_text(real, "name"), wrong) for real in found if (wrong := _wrong_link(real))]
    return [*lines, "", *facts(told)] if told else lines


def connections(document: JSON) -> list[str]:
    """Live connections."""
    rows = [
        (
            _text(one, "virtual"),
            _text(one, "protocol"),
            endpoint(_text(one, "client"), _port(one, "client_port")),
            endpoint(_text(one, "real"), _port(one, "real_port")),
            _text(one, "state"),
            age(_number(one, "age_s")),
            age(_number(one, "idle_s")),
        )
        for one in _rows(document)
    ]
    if not rows:
        return ["no connections"]
    titles = ("VIRTUAL", "PROTO", "CLIENT", "REAL", "STATE", "AGE", "IDLE")
    return table(titles, rows, right=("AGE", "IDLE"))


def sticky(document: JSON) -> list[str]:
    """Sticky entries: which client goes to which real server, and for how long."""
    rows = [
        (
            f"group {_text(one, 'group')}" if "group" in one else _text(one, "virtual"),
            _text(one, "client"),
            _text(one, "real"),
            age(_number(one, "age_s")),
            age(_number(one, "expires_s")),
        )
        for one in _rows(document)
    ]
    if not rows:
        return ["no sticky entries"]
    return table(("VIRTUAL", "CLIENT", "REAL", "AGE", "EXPIRES"), rows, right=("AGE", "EXPIRES"))


def failures(document: JSON) -> list[str]:
    """Connections that real servers could not make, the latest first for each server."""
    rows = [
        (
            _text(one, "real"),
            _text(one, "state"),
            age(_number(one, "ago_s")),
            endpoint(_text(one, "client"), _port(one, "client_port")),
            _text(one, "virtual"),
            _text(one, "why"),
            age(_number(one, "waited_s")),
        )
        for one in _rows(document)
    ]
    if not rows:
        return ["no failures"]
    titles = ("REAL", "STATE", "AGO", "CLIENT", "VIRTUAL", "WHY", "WAITED")
    return table(titles, rows, right=("AGO", "WAITED"))


def decisions(document: JSON) -> list[str]:
    """Recorded decisions, the newest first."""
    rows = [
        (
            f"{age(_number(one, 'age_s'))} ago",
            _text(one, "virtual"),
            endpoint(_text(one, "client"), _port(one, "client_port")),
            story.server(one),
            _text(one, "by"),
            _text(_part(one, "sticky"), "said"),
        )
        for one in _rows(document)
    ]
    if not rows:
        return ["no decisions"]
    return table(("WHEN", "VIRTUAL", "CLIENT", "TO", "BY", "STICKY"), rows, right=("WHEN",))


def events(document: JSON) -> list[str]:
    """What has happened, the latest first, in the local time."""
    rows = [
        (
            _when(_number(one, "at")),
            _text(one, "level"),
            _text(one, "kind"),
            _text(one, "text") + (f" (ordered by {who})" if (who := _text(one, "who")) else ""),
        )
        for one in _rows(document)
    ]
    return table(("WHEN", "LEVEL", "KIND", "WHAT"), rows) if rows else ["no events"]


def _when(at: float) -> str:
    """A time of day, in the local time."""
    try:
        return time.strftime("%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        raise ControlError("bad-reply", "the gateway's answer cannot be shown: a time that is none") from None


SUBJECTS: dict[str, Callable[[JSON], list[str]]] = {
    "summary": summary,
    "virtuals": virtuals,
    "reals": reals,
    "connections": connections,
    "sticky": sticky,
    "failures": failures,
    "decisions": decisions,
    "events": events,
}


def _why(real: JSONObject) -> str:
    """The reason of a server's state, or why it should be another.

    Of one that has failed also since when, and when it is tested.
    """
    failed, test = _optional(real, "failed_s"), _optional(real, "test_in_s")
    told = [_text(real, "reason"), unmade(real)]
    if failed is not None:
        told.append(f"down for {age(failed)}")
    if test is not None:
        told.append(f"to be tested in {age(test)}" if test else "waits for a client to test it")
    return ", ".join(filter(None, told))


def _reweighed(real: JSONObject) -> str:
    """What is to be known of a weight that was set by hand; empty where it is the configuration's."""
    weight, configured = _number(real, "weight"), _optional(real, "weight_configured")
    if configured in (None, weight):
        return ""
    return f"weight {weight:g} set by hand, {configured:g} in the configuration"


def _wrong_link(real: JSONObject) -> str:
    """What is wrong between the gateway and a server that nobody has taken out; empty if nothing is."""
    state = _text(real, "neighbour")
    if _text(real, "state") in ("maintenance", "out-of-service"):
        return ""
    if state == "no route":
        return f"no route to {_text(real, 'address')}"
    if state in ("failed", "incomplete"):
        return f"{_text(real, 'address')} does not answer for its link address (neighbour {state})"
    return ""


def _queue(queue: JSONObject) -> str:
    full, sock = _number(queue, "dropped_full"), _number(queue, "dropped_socket")
    waiting = f"{several(_number(queue, 'depth'), 'packet')} waiting"
    dropped = f"dropped {count(full)} (queue full) and {count(sock)} (socket full)" if full or sock else ""
    overruns = _number(queue, "overruns")
    worker = [several(overruns, "overrun")] if overruns else []
    others = ((_number(queue, name), name) for name in ("refused", "unreadable"))
    worker += [f"{count(many)} {name}" for many, name in others if many]
    return ", ".join(filter(None, (waiting, dropped or "none dropped", *worker, _judged(queue))))


def _judged(queue: JSONObject) -> str:
    """How many packets have been judged, and what one of them took; "" for none."""
    packets, busy = _optional(queue, "packets"), _optional(queue, "busy_s")
    if not packets or busy is None:
        return ""
    return f"{count(packets)} judged in {busy / packets * 1e6:.1f}us each"


def _verdict(whole: JSONObject) -> list[tuple[str, str]]:
    """What is wrong, the worst first; a gateway just started has not found out yet."""
    verdict = read.optional_text(whole, "verdict") if "verdict" in whole else None
    return [("verdict", verdict)] if verdict is not None else []


def _unkept(lost: float) -> list[tuple[str, str]]:
    told = f"no room for {several(lost, 'record')}: a new worker would not know them"
    return [("journal", told)] if lost else []


def _followed(followed: JSONObject) -> list[tuple[str, str]]:
    """What the kernel did not tell of connections that it carries, and what was found out all the same."""
    told = [f"{count(_number(followed, name))} {name}" for name in followed if _number(followed, name)]
    return [("kernel", f"untold: {', '.join(told)}")] if told else []


def _dropped(drops: JSONObject) -> list[tuple[str, str]]:
    return _listed("dropped", drops) or [("dropped", "no packets")]


def _told(whole: JSONObject) -> list[tuple[str, str]]:
    """What clients were told of packets that were refused; nothing where nobody was told anything."""
    return _listed("replies", _part(whole, "replies"))


def _listed(title: str, numbers: JSONObject) -> list[tuple[str, str]]:
    """One row for each number that is not 0, the title before the first."""
    names = [name for name in numbers if _number(numbers, name)]
    width = max((len(count(_number(numbers, name))) for name in names), default=0)
    said = [f"{count(_number(numbers, name)):>{width}} {name}" for name in names]
    return list(zip([title, *[""] * (len(said) - 1)], said, strict=True)) if said else []


def _times(number: float) -> str:
    return several(number, "time") if number else "never"
