"""The commands that the supervisor answers: by itself, or with the worker's help.

Each takes a desk and a request, and answers it at once or later; one that is refused raises ControlError.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from nfqlb.runtime import access, orders, views
from nfqlb.runtime.history import LINES
from nfqlb.runtime.protocol import JSON, JSONObject, Request, objects
from nfqlb.runtime.summary import summary

if TYPE_CHECKING:
    from nfqlb.runtime.desk import Desk


def offer(desk: "Desk") -> None:
    """Offer them all."""
    for cmd, answer in _COMMANDS.items():
        desk.offer(cmd, partial(answer, desk))
    for cmd in orders.ORDERS:
        desk.offer(cmd, partial(_order, desk))


def _summary(desk: "Desk", request: Request) -> None:
    """The gateway as a whole: what all workers counted, and what the supervisor knows.

    Refused while no worker answers, as the snapshot is not: who looks after the gateway goes by it.
    """

    def finish(counts: JSON) -> None:
        assert isinstance(counts, dict)
        whole = summary(desk.pulse.carry.add(counts), desk.status())
        desk.fresh(
            request,
            lambda last: request.reply({**whole, "verdict": last["verdict"], "problems": last["problems"]}),
        )

    desk.call(request, finish)


def _virtuals(desk: "Desk", request: Request) -> None:
    """Virtual servers, with their traffic."""

    def finish(rows: JSON) -> JSON:
        return desk.complete_virtuals(desk.pulse.carry.add({"virtuals": rows})["virtuals"])

    desk.forward(request, finish)


def _reals(desk: "Desk", request: Request) -> None:
    """Real servers, with what the kernel knows of their links (R037, A36)."""

    def finish(rows: JSON) -> JSON:
        rows = desk.pulse.carry.add({"reals": rows})["reals"]
        return views.with_neighbours(rows, desk.known_neighbours())

    desk.forward(request, finish)


def _snapshot(desk: "Desk", request: Request) -> None:
    """The last one, which costs the worker nothing; one of now for who wants that."""
    views.check_names("snapshot", request.args, ("fresh",))
    fresh = request.args.get("fresh", False)
    if not isinstance(fresh, bool):
        raise views.bad(f"fresh: {fresh!r} is neither true nor false")
    (desk.fresh if fresh else desk.with_snapshot)(request, request.reply)


def _watch(desk: "Desk", request: Request) -> None:
    desk.watching.add(request, desk.last)


def _wait(desk: "Desk", request: Request) -> None:
    """The condition is looked at in a snapshot of now, not in one from before the last order."""

    def begin(snapshot: JSONObject) -> None:
        desk.waiting.add(request, snapshot)
        desk.pulse.ask()

    desk.with_snapshot(request, begin)


def _history(desk: "Desk", request: Request) -> None:
    views.check_names("history", request.args, ("of", "name"))
    of, name = request.args.get("of", "gateway"), request.args.get("name", "")
    if not isinstance(of, str) or of not in LINES:
        raise views.bad(f"of: {of!r} has no history", views.suggest(str(of), LINES))
    found = desk.history.document(of, name) if isinstance(name, str) else None
    if found is None:
        names = desk.history.names(of)
        raise views.bad(f"name: there is no {of} server {name!r}", views.suggest(str(name), names))
    request.reply(found)


def _events(desk: "Desk", request: Request) -> None:
    views.check_names("events", request.args, ("limit",))
    rows: list[JSON] = list(desk.events.newest(views.limit("events", request.args)))
    request.reply(rows)


def _order(desk: "Desk", request: Request) -> None:
    """An order: what it came to is logged, with who gave it, and seen in a new snapshot."""

    def finish(result: JSON) -> JSON:
        _note(desk, request, request.args, result)
        desk.pulse.ask()
        return result

    desk.forward(request, finish)


def _batch(desk: "Desk", request: Request) -> None:
    """Many orders in one: each needs its level, and is an event of its own."""
    listed = objects(request.args.get("commands"))
    for each in listed:
        access.check(request, str(each.get("cmd")))

    def finish(result: JSON) -> JSON:
        results = result.get("results") if isinstance(result, dict) else None
        for each, done in zip(listed, results if isinstance(results, list) else [], strict=False):
            args = each.get("args")
            came_to = done.get("result") if isinstance(done, dict) else None
            _note(desk, request, args if isinstance(args, dict) else {}, came_to)
        desk.pulse.ask()
        return result

    desk.forward(request, finish)


def _note(desk: "Desk", request: Request, args: JSONObject, result: JSON) -> None:
    """Make events of what an order with these arguments came to."""
    said = result.get("said") if isinstance(result, dict) else None
    name = str(args.get("name") or args.get("virtual") or "")
    for line in said if isinstance(said, list) else ():
        level = "warning" if str(line).startswith(orders.WARNING) else "info"
        desk.events.add("order", name, str(line), who=access.who(request), level=level)


_COMMANDS: dict[str, Callable[["Desk", Request], None]] = {
    "summary": _summary,
    "virtuals": _virtuals,
    "reals": _reals,
    "snapshot": _snapshot,
    "watch": _watch,
    "wait": _wait,
    "history": _history,
    "events": _events,
    "batch": _batch,
    "adopt": _order,
    "adoption": lambda desk, request: desk.forward(request, lambda result: result),
}
