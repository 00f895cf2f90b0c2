"""The documents of the control protocol, made from the core's snapshots: names, units and nothing else.

Times are in seconds, addresses are text, absent values are null; fields may be added, not renamed. Also
here: which reading commands the worker answers, and what arguments each takes. Snapshots in, documents
out; nothing else is read but the wall clock, for when a decision was made. See `summary` for the gateway
as a whole.
"""

import difflib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from itertools import islice
from typing import Protocol

from nfqlb.core.explanation import Wanted
from nfqlb.core.histogram import CLASSES
from nfqlb.core.snapshot import (
    ConnectionSnapshot,
    DecisionSnapshot,
    FailureSnapshot,
    RealSnapshot,
    ShadowSnapshot,
    StickySnapshot,
    Totals,
    VirtualSnapshot,
)
from nfqlb.core.spec import Address
from nfqlb.netfilter.neighbours import UNKNOWN, Neighbour
from nfqlb.runtime import decision_view
from nfqlb.runtime.protocol import (
    DEFAULT_LIMITS,
    JSON,
    MAX_LIMIT,
    MAX_LIMITS,
    ControlError,
    JSONObject,
    Request,
    Result,
)
from nfqlb.runtime.summary import counts

logger = logging.getLogger(__name__)


class Observed(Protocol):
    """What is read of the director."""

    def totals(self) -> Totals:
        """The director as a whole."""

    def virtual_names(self) -> list[str]:
        """Every virtual server's name."""

    def real_names(self) -> list[str]:
        """Every real server's name."""

    def virtuals(self, now: float) -> Sequence[VirtualSnapshot]:
        """Every virtual server."""

    def reals(self, now: float) -> Sequence[RealSnapshot]:
        """Every real server."""

    def connections(
        self, now: float, *, limit: int, client: Address | None, virtual: str | None, real: str | None
    ) -> Sequence[ConnectionSnapshot]:
        """Live connections, at most `limit` of them."""

    def failures(self, now: float, *, limit: int, real: str | None) -> Sequence[FailureSnapshot]:
        """The latest connections that could not be made, at most `limit` of them."""

    def sticky(self, now: float, client: Address | None) -> Iterable[StickySnapshot]:
        """Sticky entries, or one client's."""

    def decisions(self, now: float, *, limit: int, wanted: Wanted) -> Iterable[DecisionSnapshot]:
        """Recorded decisions, at most `limit` of them."""


def real(snapshot: RealSnapshot) -> JSONObject:
    """One row of `reals`."""
    return {
        "name": snapshot.name,
        "address": _address(snapshot.address),
        "state": snapshot.state,
        "reason": snapshot.reason,
        "since_s": _seconds(snapshot.since),
        "set": snapshot.setting,
        "weight": snapshot.weight,
        "weight_configured": snapshot.weight_configured,
        "connections": snapshot.connections,
        "total": snapshot.total,
        "max_connections": snapshot.max_connections,
        "unanswered": snapshot.unanswered,
        "ditched": {"no_answer": snapshot.ditched_no_answer, "reset": snapshot.ditched_reset},
        "response_s": _fine_seconds(snapshot.response),
        "predicted_s": _fine_seconds(snapshot.predicted),
        "virtuals": list(snapshot.virtuals),
        "failed_s": None if snapshot.failed is None else _seconds(snapshot.failed),
        "test_in_s": None if snapshot.test is None else _seconds(snapshot.test),
        "in_a_row": {"connections": snapshot.run, "why": list(snapshot.whys)},
        "suspect": snapshot.suspect,
    }


def response(snapshot: RealSnapshot) -> JSONObject:
    """A real server's response times: how many in each class, by its upper bound in seconds, and their sum.

    Classes without any are left out.
    """
    spread = snapshot.responses
    counted = zip(CLASSES, spread.counts, strict=True)
    return {"counts": {name: count for name, count in counted if count}, "sum_s": round(spread.seconds, 6)}


def with_neighbours(rows: JSON, known: Mapping[str, Neighbour]) -> JSON:
    """The rows of `reals`, as the worker made them, with what the kernel knows of each address (A36)."""
    assert isinstance(rows, list)
    merged: list[JSON] = []
    for row in rows:
        assert isinstance(row, dict)
        neighbour = known.get(str(row["address"]), UNKNOWN)
        merged.append({**row, "mac": neighbour.mac, "neighbour": neighbour.state})
    return merged


def virtual(snapshot: VirtualSnapshot) -> JSONObject:
    """One row of `virtuals`."""
    return {
        "name": snapshot.name,
        "address": _address(snapshot.address),
        "protocol": snapshot.protocol,
        "port": snapshot.port,
        "state": snapshot.state,
        "scheduler": {"desired": snapshot.desired, "actual": snapshot.actual},
        "connections": snapshot.connections,
        "total": snapshot.total,
        "drops": dict(sorted(snapshot.drops.items())),
        "servers": [
            {
                "real": link.real,
                "port": link.port,
                "connections": link.connections,
                "total": link.total,
                "state": link.state,
                "share": _part(link.share),
                "fair_share": _part(link.fair),
                "backup": link.backup,
            }
            for link in snapshot.servers
        ],
        "shadow": _shadow(snapshot.shadow),
        "half_open": snapshot.half_open,
        "flood": snapshot.flooded,
        "evicted": {"half_open": snapshot.given_up},
    }


def _shadow(snapshot: ShadowSnapshot | None) -> JSON:
    if snapshot is None:
        return None
    return {
        "scheduler": snapshot.scheduler,
        "evaluated": snapshot.evaluated,
        "differed": snapshot.differed,
    }


def connection(snapshot: ConnectionSnapshot) -> JSONObject:
    """One row of `connections`."""
    return {
        "virtual": snapshot.virtual,
        "protocol": snapshot.protocol,
        "client": str(snapshot.client),
        "client_port": snapshot.client_port,
        "real": snapshot.real,
        "real_port": snapshot.real_port,
        "state": snapshot.state,
        "age_s": _seconds(snapshot.age),
        "idle_s": _seconds(snapshot.idle),
    }


def failure(snapshot: FailureSnapshot) -> JSONObject:
    """One row of `failures`."""
    return {
        "real": snapshot.real,
        "state": snapshot.state,
        "ago_s": _seconds(snapshot.ago),
        "client": str(snapshot.client),
        "client_port": snapshot.client_port,
        "virtual": snapshot.virtual,
        "why": snapshot.why,
        "waited_s": _seconds(snapshot.waited),
    }


def sticky_entry(snapshot: StickySnapshot) -> JSONObject:
    """One row of `sticky`: `group` in place of `virtual` where virtual servers share their entries."""
    return {
        "group" if snapshot.grouped else "virtual": snapshot.scope,
        "client": str(snapshot.client),
        "real": snapshot.real,
        "age_s": _seconds(snapshot.age),
        "expires_s": _seconds(snapshot.expires),
    }


def answer(director: Observed, cmd: str, args: JSONObject, now: float) -> Result:
    """The worker's answer to a reading command: a document, or an iterator of a list's rows.

    Raises ControlError: "unknown-command", or "bad-argument" for one that it does not have or cannot use.
    """
    command = _COMMANDS.get(cmd)
    if command is None:
        raise ControlError("unknown-command", f"there is no command {cmd!r}", suggest(cmd, _COMMANDS))
    known, produce = command
    check_names(cmd, args, known)
    return produce(director, args, now)


def check_names(cmd: str, args: JSONObject, known: Iterable[str]) -> None:
    """Raises ControlError where a command gets an argument that it does not have."""
    for name in args:
        if name not in known:
            raise bad(f"{cmd} has no argument {name!r}", suggest(name, known))


def respond(request: Request, answered: Callable[[str, JSONObject], Result]) -> None:
    """Answer a request, come what may: a defect in a command must not cost the worker its connections.

    `answered` takes the command and its arguments and returns the result, or raises ControlError.
    """
    try:
        request.reply(answered(request.cmd, request.args))
    except ControlError as error:
        request.refuse(error)
    except Exception:
        logger.exception("command %r failed", request.cmd)
        request.fail("internal-error", f"{request.cmd} failed inside the worker", "its log says more")


def _summary(director: Observed, _args: JSONObject, _now: float) -> Result:
    return counts(director.totals())


def _reals(director: Observed, _args: JSONObject, now: float) -> Result:
    return map(real, director.reals(now))


def _virtuals(director: Observed, _args: JSONObject, now: float) -> Result:
    return map(virtual, director.virtuals(now))


def _connections(director: Observed, args: JSONObject, now: float) -> Result:
    found = director.connections(
        now,
        limit=limit("connections", args),
        client=client_named(args),
        virtual=_name("virtual", args, director.virtual_names),
        real=_name("real", args, director.real_names),
    )
    return map(connection, found)


def _failures(director: Observed, args: JSONObject, now: float) -> Result:
    name = _name("real", args, director.real_names)
    return map(failure, director.failures(now, limit=limit("failures", args), real=name))


def _sticky(director: Observed, args: JSONObject, now: float) -> Result:
    found = director.sticky(now, client_named(args))
    return map(sticky_entry, list(islice(found, limit("sticky", args))))


def _decisions(director: Observed, args: JSONObject, now: float) -> Result:
    wanted = Wanted(client=client_named(args), virtual=_name("virtual", args, director.virtual_names))
    connection = args.get("connection")
    if connection is not None:
        try:
            wanted = decision_view.of_connection(str(connection), wanted)
        except ValueError as error:
            raise bad(f"connection: {error}", decision_view.QUAD) from None
    found = director.decisions(now, limit=limit("decisions", args), wanted=wanted)
    wall = time.time()
    return (decision_view.decision(snapshot, wall) for snapshot in found)


_COMMANDS: dict[str, tuple[tuple[str, ...], Callable[[Observed, JSONObject, float], Result]]] = {
    "summary": ((), _summary),
    "virtuals": ((), _virtuals),
    "reals": ((), _reals),
    "connections": (("limit", "client", "virtual", "real"), _connections),
    "sticky": (("limit", "client"), _sticky),
    "failures": (("limit", "real"), _failures),
    "decisions": (("limit", "client", "virtual", "connection"), _decisions),
}
COMMANDS = tuple(_COMMANDS)
#: How fewer rows are asked for, where the most that can be had are not enough.
_NARROWER = {
    "connections": "client, virtual and real narrow it down",
    "decisions": "client and virtual narrow it down",
    "sticky": "client narrows it down",
    "failures": "real narrows it down",
}


def limit(cmd: str, args: JSONObject) -> int:
    """The argument `limit` of a list: how many rows at most. Raises ControlError where it is none."""
    number = args.get("limit")
    if number is None:
        return DEFAULT_LIMITS[cmd]
    if isinstance(number, bool) or not isinstance(number, int):
        raise bad(f"limit: {number!r} is not a whole number")
    most = MAX_LIMITS.get(cmd, MAX_LIMIT)
    if not 1 <= number <= most:
        raise bad(f"limit: {number} is not between 1 and {most}", _NARROWER.get(cmd, ""))
    return number


def client_named(args: JSONObject) -> Address | None:
    """The argument `client`. Raises ControlError where it is no address."""
    client = args.get("client")
    if client is None:
        return None
    if isinstance(client, str):
        with suppress(ValueError):
            return ip_address(client)
    raise bad(f"client: {client!r} is not an IP address", "one such as 192.0.2.7 or 2001:db8::7")


def _name(kind: str, args: JSONObject, names: Callable[[], list[str]]) -> str | None:
    """The argument that names a server of this kind, None where none is named."""
    name = args.get(kind)
    if name is None:
        return None
    known = names()
    if isinstance(name, str) and name in known:
        return name
    raise bad(f"{kind}: there is no {kind} server {name!r}", suggest(str(name), known))


def suggest(word: str, words: Iterable[str]) -> str:
    """A hint: the nearest of the words, or where there are few of them all."""
    known = list(words)
    near = difflib.get_close_matches(word[:64], known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there is {', '.join(known)}" if 0 < len(known) <= 8 else ""


def bad(message: str, hint: str = "") -> ControlError:
    """The refusal of an argument."""
    return ControlError("bad-argument", message, hint)


@lru_cache(maxsize=4096)
def _address(address: Address) -> str:
    """A server's address as text. There are few, they are asked for every second, and IPv6 takes 10 us."""
    return str(address)


def _part(value: float | None) -> float | None:
    """A share, as a number from 0 to 1."""
    return None if value is None else round(value, 4)


def _seconds(value: float) -> float:
    """Seconds to the millisecond; never below zero, whatever two clocks say of each other."""
    return round(max(value, 0.0), 3)


def _fine_seconds(value: float | None) -> float | None:
    """A response time, in seconds to the microsecond."""
    return None if value is None else round(value, 6)
