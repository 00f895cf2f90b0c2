"""What keys do. Pure: the state and a key in, the state changed and what is to be done beyond it out.

Nothing is changed at the gateway without a question to which only `y` says yes, and nothing at all where
the dashboard was opened to read only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nfqlb.operator import change
from nfqlb.operator.dashboard.model import Place, RealRow, VirtualRow
from nfqlb.operator.dashboard.panes import AnyPane, focused, panes
from nfqlb.operator.dashboard.rows import ConnectionRow, DecisionRow
from nfqlb.operator.dashboard.state import (
    PACES,
    TABS,
    Confirming,
    Filtering,
    Page,
    State,
    Told,
    Weighing,
)
from nfqlb.operator.text import several
from nfqlb.runtime.protocol import JSONObject


@dataclass(frozen=True, slots=True)
class Order:
    """Something the gateway is to change."""

    cmd: str
    args: JSONObject


@dataclass(frozen=True, slots=True)
class Explain:
    """Why the connection of a client (ADDRESS:PORT) to a virtual server went where it went is to be told."""

    client: str
    virtual: str


@dataclass(frozen=True, slots=True)
class Do:
    """Something the loop does: "quit", "redraw", "pace" or "refresh"."""

    what: str


Deed = Order | Explain | Do

#: What may be set by a key, what is asked before, and what is said beside.
SETTINGS: Mapping[str, tuple[str, str, str]] = {
    "d": ("sticky-only", "Drain {name}?", "It has {live}; sticky ones still come."),
    "m": ("maintenance", "Take {name} into maintenance?", "It has {live}."),
    "o": ("out-of-service", "Take {name} out of service?", "It has {live}."),
    "i": ("in-service", "Put {name} in service?", ""),
}


def press(state: State, key: str) -> list[Deed]:
    """What a key does where the user is."""
    if key == "redraw":
        return [Do("redraw")]
    if state.prompt is not None:
        return _prompted(state, state.prompt, key)
    if state.told is not None:
        return _reading(state, state.told, key)
    state.message = ""
    command = _COMMANDS.get(key)
    if command is not None:
        return command(state)
    if key in SETTINGS:
        return _set(state, key)
    if key in "12345" and len(key) == 1:
        state.go(Page(TABS[int(key) - 1]))
        return [Do("refresh")]
    pane = focused(state)
    by = _moves(pane).get(key)
    if by is not None and pane is not None:
        pane.listing.move(pane.keys, by)
    return []


def _moves(pane: AnyPane | None) -> dict[str, int]:
    page, whole = (pane.listing.height, len(pane.rows)) if pane is not None else (1, 1)
    return {
        "up": -1, "k": -1, "down": 1, "j": 1, "pgup": -page, "pgdn": page, " ": page,
        "home": -whole, "g": -whole, "end": whole, "G": whole,
    }  # fmt: skip


def _quit(_state: State) -> list[Deed]:
    return [Do("quit")]


def _pause(state: State) -> list[Deed]:
    state.paused = not state.paused
    return [] if state.paused else [Do("refresh")]


def _slower(state: State) -> list[Deed]:
    return _pace(state, 1)


def _faster(state: State) -> list[Deed]:
    return _pace(state, -1)


def _pace(state: State, by: int) -> list[Deed]:
    nearest = min(range(len(PACES)), key=lambda index: abs(PACES[index] - state.pace))
    state.pace = PACES[max(0, min(len(PACES) - 1, nearest + by))]
    return [Do("pace")]


def _sort(state: State) -> list[Deed]:
    """Sort by the next column, after the last one as the gateway has the rows."""
    pane = focused(state)
    if pane is not None:
        titles = ["", *(column.title for column in pane.sortable())]
        listing = pane.listing
        listing.sort = (
            titles[(titles.index(listing.sort) + 1) % len(titles)] if listing.sort in titles else ""
        )
        listing.reverse = any(column.falling for column in pane.sortable() if column.title == listing.sort)
    return []


def _reverse(state: State) -> list[Deed]:
    pane = focused(state)
    if pane is not None:
        pane.listing.reverse = not pane.listing.reverse
    return []


def _filter(state: State) -> list[Deed]:
    pane = focused(state)
    if pane is not None:
        state.prompt = Filtering(pane.listing.pattern)
    return []


def _hold(state: State, pane: AnyPane, pattern: str) -> None:
    """Filter a list; events and decisions, which tell of the same things, together."""
    for each in panes(state) if state.page.kind == "events" else (pane,):
        each.listing.pattern = pattern


def _other(state: State) -> list[Deed]:
    """Turn to the next list of the page."""
    state.focus = (state.focus + 1) % max(1, len(panes(state)))
    return []


def _back(state: State) -> list[Deed]:
    """Give up the filter, or else the page."""
    pane = focused(state)
    if pane is not None and pane.listing.pattern:
        _hold(state, pane, "")
        return []
    state.back()
    return [Do("refresh")]


def _help(state: State) -> list[Deed]:
    state.told = Told("keys", HELP)
    return []


def _enter(state: State) -> list[Deed]:
    """Look closer at the chosen row."""
    pane = focused(state)
    row = pane.chosen if pane is not None else None
    if isinstance(row, VirtualRow):
        state.go(Page("virtual", row.name), deeper=True)
    elif isinstance(row, RealRow):
        state.go(Page("real", row.name), deeper=True)
    elif isinstance(row, Place):
        state.go(Page("real", row.real), deeper=True)
    else:
        return _explain(state)
    return [Do("refresh")]


def _explain(state: State) -> list[Deed]:
    pane = focused(state)
    row = pane.chosen if pane is not None else None
    if isinstance(row, ConnectionRow | DecisionRow):
        return [Explain(row.client, row.virtual)]
    if state.page.kind != "summary":
        state.say("choose a connection or a decision, and e explains it")
    return []


def _target(state: State) -> RealRow | VirtualRow | None:
    """The server that an order is for: the chosen one, else the one that the page is about."""
    pane: AnyPane | None = focused(state)
    row = pane.chosen if pane is not None else None
    if isinstance(row, RealRow | VirtualRow):
        return row
    if isinstance(row, Place):
        return state.real(row.real)
    kind, name = state.page
    return state.real(name) if kind == "real" else state.virtual(name) if kind == "virtual" else None


def _set(state: State, key: str) -> list[Deed]:
    """Ask whether the chosen server is to be put into another state."""
    setting, question, beside = SETTINGS[key]
    server = _allowed(state)
    if server is None:
        return []
    if isinstance(server, VirtualRow) and setting not in ("in-service", "out-of-service"):
        state.say(f"{server.name} is a virtual server: i puts it in service, o takes it out")
        return []
    live = several(server.connections, "connection")
    kind = "real" if isinstance(server, RealRow) else "virtual"
    args: JSONObject = {"name": server.name, "state": setting}
    if isinstance(server, RealRow) and setting != "in-service":
        beside = _deserted(state, server.name) or beside
    asked = f"{question} {beside}".rstrip().format(name=server.name, live=live)
    state.prompt = Confirming(asked, f"set-{kind}", args)
    return []


def _deserted(state: State, name: str) -> str:
    """Which virtual servers have nobody but this real server for new clients, in a sentence; "" for none.

    A backup of theirs may come in then, if nothing keeps it from that.
    """
    able = ("in-service", "max-capacity")
    rows = state.snapshot.virtuals if state.snapshot is not None else ()
    alone = [
        virtual.name
        for virtual in rows
        if virtual.state == "in-service"
        and {place.real for place in virtual.places if place.fair} == {name}
        and not any(place.backup and place.real != name and place.state in able for place in virtual.places)
    ]
    if not alone:
        return ""
    who = " and ".join(alone) if len(alone) < 3 else f"{len(alone)} virtual servers"
    return f"{who} {'has' if len(alone) == 1 else 'have'} no other server: new clients will be refused."


def _weigh(state: State) -> list[Deed]:
    server = _allowed(state)
    if isinstance(server, VirtualRow):
        state.say(f"{server.name} is a virtual server: real servers have weights")
    elif server is not None:
        state.prompt = Weighing(server.name)
    return []


def _allowed(state: State) -> RealRow | VirtualRow | None:
    """The server that an order is for; None, said why, where there can be none."""
    if state.read_only:
        state.say("opened with --read-only: nothing is changed from here")
        return None
    server = _target(state)
    if server is None:
        state.say("choose a server first: 2 lists the virtual ones, 3 the real ones")
    return server


def _prompted(state: State, prompt: Filtering | Weighing | Confirming, key: str) -> list[Deed]:
    if isinstance(prompt, Confirming):
        state.prompt = None
        if key == "y":
            return [Order(prompt.cmd, prompt.args)]
        state.say("nothing was changed")
    elif isinstance(prompt, Filtering):
        _typed_filter(state, prompt, key)
    else:
        _typed_weight(state, prompt, key)
    return []


def _typed_filter(state: State, prompt: Filtering, key: str) -> None:
    pane = focused(state)
    if pane is None or key in ("enter", "esc"):
        state.prompt = None
        if pane is not None and key == "esc":
            _hold(state, pane, prompt.before)
        return
    _hold(state, pane, typed(pane.listing.pattern, key))


def _typed_weight(state: State, prompt: Weighing, key: str) -> None:
    if key == "esc":
        state.prompt = None
        state.say("nothing was changed")
    elif key != "enter":
        prompt.text = typed(prompt.text, key)
    else:
        state.prompt = None
        try:
            args = change.wanted([f"weight={prompt.text}"], weighed=True)
        except ValueError as error:
            state.say(str(error))
            return
        beside = _deserted(state, prompt.name) if args["weight"] == 0 else ""
        question = f"Give {prompt.name} the weight {prompt.text}? {beside}".rstrip()
        state.prompt = Confirming(question, "set-real", {"name": prompt.name, **args})


def typed(text: str, key: str) -> str:
    """A text after one key more."""
    if key == "backspace":
        return text[:-1]
    if key == "clear":
        return ""
    return text + key if len(key) == 1 and len(text) < 64 else text


def _reading(state: State, told: Told, key: str) -> list[Deed]:
    """A text is over the page: scroll in it, or close it."""
    by = {"up": -1, "k": -1, "down": 1, "j": 1, "pgup": -10, "pgdn": 10, " ": 10, "home": -len(told.lines)}
    if key in by:
        told.top = max(0, min(told.top + by[key], len(told.lines) - 1))
    else:
        state.told = None
    return []


_COMMANDS: Mapping[str, Callable[[State], list[Deed]]] = {
    "q": _quit,
    "end-of-file": _quit,
    "?": _help,
    "h": _help,
    "p": _pause,
    "+": _slower,
    "=": _slower,
    "-": _faster,
    "s": _sort,
    "S": _reverse,
    "r": _reverse,
    "/": _filter,
    "tab": _other,
    "esc": _back,
    "enter": _enter,
    "e": _explain,
    "w": _weigh,
}

HELP = (
    "1 2 3 4 5      summary, virtual servers, real servers, connections, events and decisions",
    "up down j k    choose a row; PgUp PgDn Home End go further",
    "Enter          look closer: a server with its connections; of a connection, why it went there",
    "Esc            back; first out of the filter",
    "Tab            the other list of the page",
    "e              explain the chosen connection or decision",
    "/              show only rows that hold a text: type it, then Enter; Esc gives it up",
    "s  S           sort by the next column; the other way round",
    "p              pause the picture, and go on",
    "+  -           a longer, a shorter interval between pictures",
    "d              drain the chosen real server: it is sticky-only, takes no new clients",
    "m              take it into maintenance: no new connection, sticky clients come back to it later",
    "o              take it out of service: no new connection; also a virtual server",
    "i              put it in service; also a virtual server",
    "w              give a real server another weight",
    "Ctrl-L         draw everything anew",
    "q  Ctrl-C      leave",
    "",
    "Before anything is changed you are asked; only y says yes.",
    "",
    "States: I in-service, S sticky-only (drained), M maintenance, O out-of-service, T testing,",
    "        F failed, C at its maximum of connections, D not in the configuration any more.",
    "SHARE is a server's part of the connections of its virtual servers; the mark in it its fair",
    "share by weight. NOANSW and RESET are connections that it did not answer, or refused.",
    "A weight WT with a * was set by hand, and is not the configuration's.",
    "RESP is the last response time, PREDICT what fastest-response expects of it, where it is used.",
    "A scheduler is called as in IPVS where room is short: wlc, lc, wrr, rr, sh, mh, twos.",
    "A dash is what is not known.",
)
