"""Who waits: requests that are answered once something holds, such as `real web1 empty`.

Owns the conditions' words (see GRAMMAR) and who waits for which. Conditions are looked at in snapshots: in
one made after the question, then once a second, and when a time is over. Not while no worker answers.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from nfqlb.core.admission import ServerState
from nfqlb.runtime import views
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject, Request, objects

GRAMMAR = (
    "conditions: real|virtual NAME [not] STATE, real|virtual NAME connections N, real|virtual NAME empty,"
    " connections N; several with `and`"
)
MOST = 86_400.0  # seconds that anybody may wait
_STATES = {
    "real": tuple(state.shown for state in ServerState),
    "virtual": (
        ServerState.IN_SERVICE.shown,
        ServerState.OUT_OF_SERVICE.shown,
        ServerState.FAILED.shown,
        ServerState.DRAINING.shown,
    ),
}
_ROWS = {"real": "reals", "virtual": "virtuals"}


class Condition(NamedTuple):
    """One condition: of the real or virtual server `name`, or of the gateway, where `kind` is "gateway".

    Either `state`, or other than that where `negated`; or at most `connections`.
    """

    kind: str
    name: str
    state: str | None = None
    negated: bool = False
    connections: int = 0

    def met(self, snapshot: JSONObject) -> bool:
        """Whether it holds. One that is gone has no connections, and no state: ControlError "gone"."""
        row = self._row(snapshot)
        if self.state is not None:
            if row is None:
                raise ControlError("gone", f"there is no {self.kind} server {self.name!r} any more")
            return (row["state"] == self.state) is not self.negated
        return row is None or _connections(row) <= self.connections

    def present(self, snapshot: JSONObject) -> str:
        """How it is now, in a few words."""
        row = self._row(snapshot)
        if row is None:
            return f"{self.name} is gone"
        if self.state is not None:
            return f"{self.name} is {row['state']}"
        number = _connections(row)
        whose = self.name or "the gateway"
        return f"{whose} has {number or 'no'} connection{'' if number == 1 else 's'}"

    def _row(self, snapshot: JSONObject) -> JSONObject | None:
        if self.kind == "gateway":
            whole = snapshot["connections"]
            assert isinstance(whole, dict)
            return {"connections": whole["now"]}
        for row in objects(snapshot[_ROWS[self.kind]]):
            if row["name"] == self.name:
                return row
        return None


def parse(text: str, snapshot: JSONObject) -> list[Condition]:
    """The conditions in a text; the servers that they name must be in the snapshot. Raises ControlError."""
    found: list[list[str]] = [[]]
    for word in text.split():
        if word == "and":
            found.append([])
        else:
            found[-1].append(word)
    return [_condition(words, snapshot) for words in found]


def _condition(words: list[str], snapshot: JSONObject) -> Condition:
    match words:
        case ["connections", number]:
            return Condition("gateway", "", connections=_number(number))
        case ["real" | "virtual" as kind, name, *rest] if rest:
            names = [str(row["name"]) for row in objects(snapshot[_ROWS[kind]])]
            if name not in names:
                raise views.bad(f"there is no {kind} server {name!r}", views.suggest(name, names))
            return _of_server(Condition(kind, name), rest)
    raise views.bad(f"{' '.join(words)!r} is no condition", GRAMMAR)


def _of_server(bare: Condition, rest: list[str]) -> Condition:
    match rest:
        case ["empty"]:
            return bare
        case ["connections", number]:
            return bare._replace(connections=_number(number))
        case ["not", state]:
            return bare._replace(state=_state(bare.kind, state), negated=True)
        case [state]:
            return bare._replace(state=_state(bare.kind, state))
    raise views.bad(f"{' '.join(rest)!r} is nothing that a server can be waited for to be", GRAMMAR)


def _state(kind: str, word: str) -> str:
    known = _STATES[kind]
    if word in known:
        return word
    near = views.suggest(word, [*known, "empty"])
    listed = f"states: {', '.join(known)}; or `empty`"
    raise views.bad(f"{word!r} is no state of a {kind} server", near if near.startswith("did") else listed)


def _number(word: str) -> int:
    if word.isascii() and word.isdigit():
        return int(word)
    raise views.bad(f"{word!r} is not a number of connections")


def _connections(row: JSONObject) -> int:
    number = row["connections"]
    assert isinstance(number, int)
    return number


class _Waiter(NamedTuple):
    request: Request
    conditions: list[Condition]
    since: float
    deadline: float


class Waiting:
    """Who waits. `look` is to be called with every snapshot, `tick` about once a second.

    `over` is to be asked whenever `left` has passed, for a snapshot by which the answer is given in time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiters: list[_Waiter] = []
        self._seen = float("-inf")  # deadlines until then have been said to be over

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, request: Request, snapshot: JSONObject) -> None:
        """Wait for the argument `condition`, `timeout` seconds at most (without end where it is not given).

        `snapshot` is only asked for names. The result is {"waited_s", "said"}: lines of how it is then. It is
        refused with "timeout" where the condition did not hold in time. Raises ControlError.
        """
        views.check_names("wait", request.args, ("condition", "timeout"))
        condition, timeout = request.args.get("condition"), request.args.get("timeout")
        if not isinstance(condition, str):
            raise views.bad("condition is missing or not a text", GRAMMAR)
        if isinstance(timeout, bool) or not isinstance(timeout, int | float | None):
            raise views.bad(f"timeout: {timeout!r} is not a number of seconds")
        if timeout is not None and not 0 < timeout <= MOST:
            raise views.bad(f"timeout: {timeout:g} is not a number of seconds above 0, and at most {MOST:g}")
        now = self._clock()
        deadline = float("inf") if timeout is None else now + timeout
        self._waiters.append(_Waiter(request, parse(condition, snapshot), now, deadline))

    def look(self, snapshot: JSONObject) -> None:
        """Answer those whose conditions hold, and those whose time is over."""
        waiting, self._waiters = self._waiters, []
        now = self._clock()
        for waiter in waiting:
            if not waiter.request.answered and not _settled(waiter, snapshot, now):
                self._waiters.append(waiter)

    def left(self) -> float:
        """Seconds until the next one's time is over; infinite where nobody's will be."""
        coming = [each.deadline for each in self._waiters if each.deadline > self._seen]
        return max(0.0, min(coming) - self._clock()) if coming else float("inf")

    def over(self) -> bool:
        """Whether somebody's time is over; once for each."""
        before, self._seen = self._seen, self._clock()
        return any(before < each.deadline <= self._seen for each in self._waiters)

    def tick(self) -> None:
        """Refuse those whose time is over, whatever the worker does."""
        now = self._clock()
        over = [waiter for waiter in self._waiters if now >= waiter.deadline + 1]
        self._waiters = [waiter for waiter in self._waiters if waiter not in over]
        for waiter in over:
            took = waiter.deadline - waiter.since
            waiter.request.fail("timeout", f"after {took:g} s: the worker does not answer")


def _settled(waiter: _Waiter, snapshot: JSONObject, now: float) -> bool:
    """Whether there was something to answer, which has been done."""
    try:
        open_ = [condition for condition in waiter.conditions if not condition.met(snapshot)]
        if not open_:
            said: list[JSON] = [condition.present(snapshot) for condition in waiter.conditions]
            waiter.request.reply({"waited_s": round(now - waiter.since, 3), "said": said})
        elif now >= waiter.deadline:
            present = ", ".join(condition.present(snapshot) for condition in open_)
            waiter.request.fail("timeout", f"after {waiter.deadline - waiter.since:g} s: {present} still")
    except ControlError as error:
        waiter.request.refuse(error)
    return waiter.request.answered
