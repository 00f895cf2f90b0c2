"""The desk: who answers what on the supervisor's side, and what it keeps to answer from.

Owns the events, the history, the last snapshot, and the table of commands (see `answers` for the first
of them). `offer` adds a command; what nobody has offered is the worker's. Whatever else of the supervisor
is to be seen is put into `rules`, `reload` or `others`, and is in the next snapshot.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from nfqlb import __version__
from nfqlb.core.spec import Config
from nfqlb.netfilter.neighbours import Neighbour, Neighbours
from nfqlb.netfilter.queue_status import QueueStatus, Room, read_queues
from nfqlb.runtime import access, answers, picture, views
from nfqlb.runtime.events import Events
from nfqlb.runtime.history import History, Moment, moment
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject, Request, objects
from nfqlb.runtime.pulse import Account, Asks, Pulse
from nfqlb.runtime.queues import QueueSums, QueueWatch
from nfqlb.runtime.stall import LOOK
from nfqlb.runtime.stumbles import Stumbles
from nfqlb.runtime.summary import GatewayStatus
from nfqlb.runtime.waiting import Waiting
from nfqlb.runtime.watching import Watching

logger = logging.getLogger(__name__)

Handler = Callable[[Request], None]


class _Waiter(NamedTuple):
    """Who waits for a snapshot: that of the last of so many accounts from now on will do."""

    request: Request
    then: Callable[[JSONObject], None]
    accounts: int


class Worker(Asks, Protocol):
    """What is known of the worker beside what it answers."""

    pid: int | None
    restarts: int

    def forward(self, request: Request) -> None:
        """Let it answer a request; what it says is the reply."""


class Desk:
    """Answers requests; `answer` is what the control socket calls.

    `roles` are the packet queues' ("new", "established", "offload") by number, `rooms` tells what they have
    room for, and `queues` what the kernel says of them. `listeners` are called with every snapshot that is
    taken once a second, `onlookers` with the last one once a reload is over, `virtual_completers` with the
    rows of virtual servers wherever they are shown, and `followers` with each other configuration that is in
    force.
    """

    def __init__(
        self,
        config: Config,
        worker: Worker,
        roles: Mapping[int, str],
        rooms: Callable[[], Mapping[int, Room]] = dict,
        *,
        queues: Callable[[], list[QueueStatus]] = read_queues,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.events = Events(wall)
        self.history = History()
        self.rules: JSONObject = {"present": None, "repairs": 0, "repaired_at": None, "why": ""}
        self.reload: JSONObject = {"at": None, "ok": None, "error": "", "as_before": False}
        self.others: JSONObject = {}
        self.listeners: list[Callable[[JSONObject], None]] = []
        self.onlookers: list[Callable[[JSONObject], None]] = []
        self.virtual_completers: list[Callable[[Iterable[JSONObject]], None]] = []
        self.followers: list[Callable[[Config], None]] = []
        self.last: JSONObject | None = None  # the last snapshot
        self.stumbles = Stumbles()  # the supervisor's
        self.watching = Watching(clock)
        self.waiting = Waiting(clock)
        self.listeners.append(self.watching.look)
        self.pulse = Pulse(worker, self._taken, self._missed)
        self._worker = worker
        self._roles = roles
        self._rooms = rooms
        self._read = queues
        self._asked = False  # with a tick, and not answered since
        self._next_glance = 0.0
        self._clock = clock
        self._wall = wall
        self._started = clock()
        self._neighbours = Neighbours()
        self._moment: Moment | None = None
        self._queues = QueueWatch(self.events, clock)
        self._sums = QueueSums()
        self._waiters: list[_Waiter] = []
        self._handlers: dict[str, Handler] = {}
        answers.offer(self)

    def offer(self, cmd: str, handler: Handler) -> None:
        """Let `handler` answer a command, at once or later; it may raise ControlError."""
        self._handlers[cmd] = handler

    @property
    def commands(self) -> list[str]:
        """All there are, the worker's included."""
        return sorted(self._handlers.keys() | set(views.COMMANDS))

    def answer(self, request: Request) -> None:
        """Answer a request now or later. Raises ControlError where it is refused."""
        access.check(request)
        handler = self._handlers.get(request.cmd)
        if handler is not None:
            handler(request)
        elif request.cmd in views.COMMANDS:
            self._worker.forward(request)
        else:
            hint = views.suggest(request.cmd, self.commands)
            raise ControlError("unknown-command", f"there is no command {request.cmd!r}", hint)

    def forward(self, request: Request, finish: Callable[[JSON], JSON]) -> None:
        """Let the worker answer; `finish` makes of its result what is replied."""
        self.call(request, lambda result: request.reply(finish(result)))

    def call(self, request: Request, then: Callable[[JSON], None]) -> None:
        """Ask the worker, and call `then` with its result."""
        self._worker.call(request.cmd, request.args, then, request.refuse)

    def with_snapshot(self, request: Request, then: Callable[[JSONObject], None]) -> None:
        """Call `then` with the last snapshot, or with the first one where there is none yet."""
        if self.last is None:
            self._waiters.append(_Waiter(request, then, 1))
        else:
            then(self.last)

    def fresh(self, request: Request, then: Callable[[JSONObject], None]) -> None:
        """Call `then` with a snapshot that is made from now on; with the last one where no worker answers."""
        accounts = 2 if self.pulse.under_way else 1
        self._waiters.append(_Waiter(request, then, accounts))
        self.pulse.ask()

    def tick(self) -> None:
        """To be called once a second."""
        if self._asked and self.last is not None:
            self._renew(self.last)
            self._serve(self.last, at_once=True)
        self._asked = True
        self.pulse.tick()
        self.waiting.tick()

    def glance(self) -> None:
        """Between two snapshots: who has waited long enough, and, every `stall.LOOK` seconds, the queues.

        To be called at least as often; clients of the control socket make it much oftener.
        """
        if self.waiting.over():
            self.pulse.ask()
        now = self._clock()
        if self.last is None or now < self._next_glance:
            return
        self._next_glance = now + LOOK
        fresh = picture.refreshed(self.last, self.status(), self._around())
        if self._queues.look(fresh):
            self.last = picture.judged(fresh)

    def _renew(self, last: JSONObject) -> None:
        """Show the last snapshot with what can be known without the worker."""
        fresh = picture.refreshed(last, self.status(), self._around())
        self._queues.look(fresh)
        self.last = picture.judged(fresh)
        self.watching.look(self.last)

    def reloaded(self, error: str = "") -> None:
        """A reload is over, or was refused for an `error`: seen at once, and until the next one is over."""
        as_before = bool(error) and self.reload["as_before"]
        self.reload.update(at=round(self._wall(), 3), ok=not error, error=error, as_before=as_before)
        if self.last is not None:
            self._renew(self.last)
            for look in self.onlookers:
                self._carefully(look, self.last)

    def begun_as_before(self, trouble: str) -> str:
        """The gateway has begun with the configuration of before, for that trouble; returns the verdict."""
        self.reload["as_before"] = True
        self.reloaded(trouble)
        told = f"runs on the configuration of before: {trouble}"
        self.events.add("gateway", "", f"{told}; repair it, then `nfqlb reload`", level="warning")
        return told

    def configured(self, config: Config) -> None:
        """Another configuration is in force."""
        self.config = config
        for follow in self.followers:
            follow(config)

    def born(self, _pid: int) -> None:
        """A worker has been started."""
        self.pulse.born()

    def died(self, pid: int, cause: str, wait: str = "") -> None:
        """A worker is dead, and another will be started: at once, unless `wait` says otherwise."""
        level = "error" if wait else "warning"
        text = f"worker {pid} died ({cause}); {wait or 'starting another'}"
        self.events.add("worker", str(pid), text, level=level)

    # --- the pulse

    def _taken(self, account: Account, news: list[JSONObject], scheduled: bool) -> None:
        for each in news:
            at = each["at"]
            self.events.add("state", str(each["name"]), str(each["text"]), level=str(each["level"]),
                            at=at if isinstance(at, float) else None, logged=True)  # fmt: skip
        status, at = self.status(), self._wall()
        self._show(picture.snapshot(account, status, self.known_neighbours(), self._around(), at), scheduled)

    def _missed(self, error: ControlError, scheduled: bool) -> None:
        if self.last is not None:
            around, at = self._around(), self._wall()
            self._show(picture.degraded(self.last, self.status(), around, at, error.message), scheduled)
        waiters, self._waiters = self._waiters, []
        for each in waiters:
            each.request.refuse(error)

    def _show(self, snapshot: JSONObject, scheduled: bool) -> None:
        self.complete_virtuals(snapshot["virtuals"])
        self._carefully(self._queues.look, snapshot)
        self.last = snapshot = picture.judged(snapshot)
        if scheduled:
            self._asked = False
            self._moment = moment(snapshot, self._moment, self._clock())
            self.history.append(self._wall(), self._moment.values)
        self._serve(snapshot, at_once=snapshot["state"] != picture.RUNNING)
        if snapshot["state"] == picture.RUNNING:
            self.waiting.look(snapshot)
        for listen in self.listeners if scheduled else ():
            self._carefully(listen, snapshot)

    def _serve(self, snapshot: JSONObject, *, at_once: bool) -> None:
        """A snapshot for those who wait for one, and asked before its account was begun."""
        waiters, self._waiters = self._waiters, []
        for each in waiters:
            if not at_once and each.accounts > 1:
                self._waiters.append(each._replace(accounts=each.accounts - 1))
                continue
            try:
                each.then(snapshot)
            except ControlError as error:
                each.request.refuse(error)

    def _carefully(self, look: Callable[[JSONObject], object], snapshot: JSONObject) -> None:
        """Show somebody a snapshot; who stumbles over it takes nobody else's away."""
        try:
            look(snapshot)
        except Exception as error:  # noqa: BLE001
            self.stumbles.note("showing a snapshot", error)

    def _around(self) -> picture.Surroundings:
        return picture.Surroundings(self.rules, self.reload, self.others)

    def complete_virtuals(self, rows: JSON) -> JSON:
        """Add to the rows of virtual servers what the supervisor knows of them; returns the same rows."""
        assert isinstance(rows, list)
        for complete in self.virtual_completers:
            complete(objects(rows))
        return rows

    def known_neighbours(self) -> Mapping[str, Neighbour]:
        """What the kernel knows of the real servers' links, by address."""
        return self._neighbours.of([real.address for real in self.config.reals])

    def status(self) -> GatewayStatus:
        """What the supervisor knows of the gateway."""
        return GatewayStatus(
            version=__version__,
            datapath=self.config.gateway.datapath,
            state=picture.RUNNING,
            uptime=self._clock() - self._started,
            worker_pid=self._worker.pid,
            worker_restarts=self._worker.restarts,
            queues=self._sums.of(queue for queue in self._read() if queue.number in self._roles),
            roles=self._roles,
            rooms=self._rooms(),
            stumbles=self.stumbles.count,
        )
