"""The desk: who answers what on the supervisor's side, and what it keeps to answer from.

Owns the commands that the supervisor answers, the events, the history and the last snapshot. `offer` adds a
command; what nobody has offered is the worker's. Whatever else of the supervisor is to be seen is put
into `rules`, `reload` or `others`, and is in the next snapshot.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from nfqlb import __version__
from nfqlb.core.spec import Config
from nfqlb.netfilter.neighbours import Neighbour, Neighbours
from nfqlb.netfilter.queue_status import read_queues
from nfqlb.runtime import history as histories
from nfqlb.runtime import orders, picture, views
from nfqlb.runtime.events import KEPT, Events
from nfqlb.runtime.history import History, Moment, moment
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject, Request
from nfqlb.runtime.pulse import Account, Asks, Pulse
from nfqlb.runtime.summary import GatewayStatus, summary

logger = logging.getLogger(__name__)

Handler = Callable[[Request], None]


class Worker(Asks, Protocol):
    """What is known of the worker beside what it answers."""

    pid: int | None
    restarts: int


class Desk:
    """Answers requests; `answer` is what the control socket calls.

    `roles` are the packet queues' ("new", "established", "offload") by number. `listeners` are called with
    every snapshot that is taken once a second, `completers` before with the same document, to add to it.
    """

    def __init__(
        self,
        config: Config,
        worker: Worker,
        roles: Mapping[int, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.events = Events(wall)
        self.history = History()
        self.rules: JSONObject = {"present": None, "repairs": 0, "repaired_at": None, "why": ""}
        self.reload: JSONObject = {"at": None, "ok": None, "error": ""}
        self.others: JSONObject = {}
        self.listeners: list[Callable[[JSONObject], None]] = []
        self.completers: list[Callable[[JSONObject], None]] = []
        self.last: JSONObject | None = None  # the last snapshot
        self.pulse = Pulse(worker, self._taken, self._missed)
        self._worker = worker
        self._roles = roles
        self._clock = clock
        self._wall = wall
        self._started = clock()
        self._neighbours = Neighbours()
        self._moment: Moment | None = None
        self._dropped: dict[JSON, float] = {}  # packets that each queue had dropped a second ago
        self._first: list[Request] = []  # who wait for the first snapshot
        self._handlers: dict[str, Handler] = {}
        for cmd, handler in (
            ("summary", self._summary),
            ("virtuals", partial(self._rows, "virtuals")),
            ("reals", partial(self._rows, "reals")),
            ("snapshot", self._snapshot),
            ("history", self._history),
            ("events", self._events),
        ):
            self.offer(cmd, handler)
        for cmd in orders.ORDERS:
            self.offer(cmd, self._order)

    def offer(self, cmd: str, handler: Handler) -> None:
        """Let `handler` answer a command, at once or later; it may raise ControlError."""
        self._handlers[cmd] = handler

    @property
    def commands(self) -> list[str]:
        """All there are, the worker's included."""
        return sorted(self._handlers.keys() | set(views.COMMANDS))

    def answer(self, request: Request) -> None:
        """Answer a request now or later. Raises ControlError where it is refused."""
        handler = self._handlers.get(request.cmd)
        if handler is not None:
            handler(request)
        elif request.cmd in views.COMMANDS:
            self.forward(request)
        else:
            hint = views.suggest(request.cmd, self.commands)
            raise ControlError("unknown-command", f"there is no command {request.cmd!r}", hint)

    def forward(self, request: Request, finish: Callable[[JSON], JSON] = lambda result: result) -> None:
        """Let the worker answer; `finish` makes of its result what is replied."""
        self._worker.call(
            request.cmd, request.args, lambda result: request.reply(finish(result)), request.refuse
        )

    def tick(self) -> None:
        """To be called once a second."""
        self.pulse.tick()

    def configured(self, config: Config) -> None:
        """Another configuration is in force."""
        self.config = config

    def born(self, _pid: int) -> None:
        """A worker has been started."""
        self.pulse.born()

    def died(self, pid: int, cause: str) -> None:
        """A worker is dead, and another will be started."""
        self.events.add("worker", str(pid), f"worker {pid} died ({cause}); starting another", level="warning")

    # --- the pulse

    def _taken(self, account: Account, news: list[JSONObject], scheduled: bool) -> None:
        for each in news:
            at = each["at"]
            self.events.add("state", str(each["name"]), str(each["text"]), level=str(each["level"]),
                            at=at if isinstance(at, float) else None, logged=True)  # fmt: skip
        around = picture.Surroundings(
            self._roles, self._known_neighbours(), self.rules, self.reload, self.others
        )
        self._show(picture.snapshot(account, self._status(), around, self._wall()), scheduled)

    def _missed(self, error: ControlError, scheduled: bool) -> None:
        if self.last is not None:
            self._show(picture.degraded(self.last, self._wall()), scheduled)
        first, self._first = self._first, []
        for request in first:
            request.refuse(error)

    def _show(self, snapshot: JSONObject, scheduled: bool) -> None:
        for complete in self.completers:
            complete(snapshot)
        self.last = snapshot = picture.judged(snapshot)
        if scheduled:
            self._moment = moment(snapshot, self._moment)
            self.history.append(self._moment.at, self._moment.values)
        first, self._first = self._first, []
        for request in first:
            request.reply(snapshot)
        for listen in self.listeners if scheduled else ():
            listen(snapshot)

    def _status(self) -> GatewayStatus:
        return GatewayStatus(
            version=__version__,
            datapath=self.config.gateway.datapath,
            state=picture.RUNNING,
            uptime=self._clock() - self._started,
            worker_pid=self._worker.pid,
            worker_restarts=self._worker.restarts,
            queues=[queue for queue in read_queues() if queue.number in self._roles],
            roles=self._roles,
        )

    # --- commands

    def _summary(self, request: Request) -> None:
        def finish(counts: JSON) -> JSON:
            assert isinstance(counts, dict)
            return summary(self.pulse.carry.add(counts), self._status())

        self.forward(request, finish)

    def _rows(self, cmd: str, request: Request) -> None:
        """Virtual or real servers; the latter with what the kernel knows of their links (R037, A36)."""

        def finish(rows: JSON) -> JSON:
            rows = self.pulse.carry.add({cmd: rows})[cmd]
            return views.with_neighbours(rows, self._known_neighbours()) if cmd == "reals" else rows

        self.forward(request, finish)

    def _known_neighbours(self) -> Mapping[str, Neighbour]:
        return self._neighbours.of([real.address for real in self.config.reals])

    def _snapshot(self, request: Request) -> None:
        views.check_names("snapshot", request.args, ())
        if self.last is None:
            self._first.append(request)
        else:
            request.reply(self.last)

    def _history(self, request: Request) -> None:
        views.check_names("history", request.args, ("of", "name"))
        of, name = request.args.get("of", "gateway"), request.args.get("name", "")
        if not isinstance(of, str) or of not in histories.LINES:
            raise views.bad(f"of: {of!r} has no history", views.suggest(str(of), histories.LINES))
        found = self.history.document(of, name) if isinstance(name, str) else None
        if found is None:
            names = self.history.names(of)
            raise views.bad(f"name: there is no {of} server {name!r}", views.suggest(str(name), names))
        request.reply(found)

    def _events(self, request: Request) -> None:
        views.check_names("events", request.args, ("limit",))
        limit = request.args.get("limit", 100)
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= KEPT:
            raise views.bad(f"limit: {limit!r} is not a whole number between 1 and {KEPT}")
        rows: list[JSON] = list(self.events.newest(limit))
        request.reply(rows)

    def _order(self, request: Request) -> None:
        """An order: what it came to is logged, with who gave it, and seen in a new snapshot."""

        def finish(result: JSON) -> JSON:
            said = result.get("said") if isinstance(result, dict) else None
            name = str(request.args.get("name") or request.args.get("virtual") or "")
            for line in said if isinstance(said, list) else ():
                self.events.add("order", name, str(line), who=who(request))
            self.pulse.ask()
            return result

        self.forward(request, finish)


def who(request: Request) -> str:
    """Who asks, for the log."""
    peer = request.peer
    return "the supervisor" if peer is None else f"user {peer.uid}, process {peer.pid}"
