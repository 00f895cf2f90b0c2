"""The supervisor: brings the gateway up, keeps a worker alive, and takes everything down again.

Owns the processes and the order of things. It binds the queues itself and forks the worker, so
that the kernel keeps queueing while a dead worker is replaced. Start: checks, journal, queues,
settings, worker, rules, addresses. Stop and failed starts undo exactly what was done, in the
reverse order: addresses before rules, or the gateway's own TCP would reset clients in between.
"""

import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from nfqlb import __version__
from nfqlb.config.summary import endpoint
from nfqlb.core.spec import Config
from nfqlb.netfilter import address, fallback, host, rules, sysctl
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.queue import ask_for_stamps
from nfqlb.netfilter.reply import ReplySockets, open_replies, replies_to_clients
from nfqlb.netfilter.state import Claim, Record
from nfqlb.runtime.captures import Captures
from nfqlb.runtime.channel import WorkerChannel
from nfqlb.runtime.checkup import Checkup
from nfqlb.runtime.control import Server
from nfqlb.runtime.datapaths import Datapaths
from nfqlb.runtime.desk import Desk
from nfqlb.runtime.fallback import Fallback
from nfqlb.runtime.guard import Guard
from nfqlb.runtime.handover import Handover, Source
from nfqlb.runtime.hands import Hands
from nfqlb.runtime.journal import Journal
from nfqlb.runtime.metrics import Metrics
from nfqlb.runtime.missed import Missed
from nfqlb.runtime.notify import Notifier, from_environment
from nfqlb.runtime.protocol import ControlError, JSONObject
from nfqlb.runtime.reload import Reload
from nfqlb.runtime.stall import LOOK, Movement, Watchdog
from nfqlb.runtime.traffic import Traffic
from nfqlb.runtime.worker import Worker
from nfqlb.runtime.workers import Workers

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_ENDING = (signal.SIGTERM, signal.SIGINT)
_TICK = 1.0


class Supervisor:
    """The gateway of one configuration, and of those that `source` has when it is asked again.

    `say_ready` is called once packets flow; `notifier` is told of that and of all that follows.
    """

    def __init__(
        self, config: Config, source: Source, say_ready: Callable[[], None], notifier: Notifier
    ) -> None:
        self._config = config
        self._source = source
        self._say_ready = say_ready
        self._notifier = notifier
        self._selector = selectors.DefaultSelector()
        self._undo = ExitStack()
        self._stopping = False

    def run(self) -> None:
        """Bring the gateway up, serve until a signal says otherwise, take it down. Raises KernelError."""
        with self._undo:
            self._start()
            self._say_ready()
            self._notifier.ready("all well")
            self._desk.events.add("gateway", "", f"ready: {_described(self._config)}")
            self._serve()
            self._notifier.stopping()
            logger.info("stopping")
        logger.info("stopped")

    # --- up and down

    def _start(self) -> None:
        config, undo = self._config, self._undo
        undo.enter_context(Claim())
        record = Record()
        undo.callback(_log_all, sysctl.restore, record)
        self._journal = Journal(config.gateway.max_connections, sticky=config.gateway.max_sticky)
        undo.callback(self._journal.close, remove=True)
        self._listen_to_signals()
        self._datapaths = Datapaths(config)
        undo.callback(self._datapaths.close)
        self._replies: ReplySockets | None = None
        undo.callback(self._close_replies)
        self._open_replies(config)
        self._handover = Handover()
        undo.callback(self._handover.close)
        undo.enter_context(ask_for_stamps())  # response times are differences of stamps
        self._workers = Workers(self._selector, self._journal, self._be_worker)
        undo.callback(self._workers.end)
        self._desk = Desk(config, self._workers, self._datapaths.roles)
        self._workers.born, self._workers.died = self._desk.born, self._desk.died
        moves = Movement()
        self._desk.listeners += [
            lambda snapshot: self._notifier.status(str(snapshot["verdict"])),
            lambda snapshot: self._workers.condemn(moves.look(snapshot)),
        ]
        Captures(self._desk, self._workers)
        self._checkup = Checkup(self._selector, lambda: self._desk.config, lambda: self._desk.last)
        undo.callback(self._checkup.close)
        self._desk.offer("host", self._checkup.answer)
        self._control = Server(Path(config.gateway.socket), self._selector, self._desk.answer)
        undo.callback(self._control.close)
        self._metrics = Metrics(config, self._selector, lambda: self._desk.last, self._desk.events)
        self._desk.followers.append(self._metrics.configured)
        undo.callback(self._metrics.close)
        _log_all(sysctl.switch, sysctl.forwarding(config) | sysctl.tracking(config), record)
        self._workers.start()
        undo.callback(_log_all, rules.withdraw)
        traffic = Traffic(config)
        traffic.begin()
        self._desk.virtual_completers.append(traffic.complete)
        self._missed = Missed(config, self._selector, self._desk.pulse.carry.beside)
        undo.callback(self._missed.close)
        self._desk.followers += [traffic.configured, self._missed.follow]
        alone = _spread_alone(config)
        rules.apply(config)
        undo.callback(_log_all, address.take_down)
        _log_all(address.bring_up, config)
        self._guard = Guard(
            config, self._selector, self._desk.events.add, self._desk.rules, self._datapaths.rebind
        )
        undo.callback(self._guard.close)
        self._prepare_fallback(alone)
        self._prepare_reloads()

    def _prepare_fallback(self, alone: int) -> None:
        """`alone`: so many connections were made without us, before."""
        state: JSONObject = {}
        self._desk.others["fallback"] = state
        self._fallback = Fallback(
            self._config, self._selector, self._desk.events.add, state, lambda: self._desk.rules["repairs"]
        )
        self._undo.callback(self._fallback.close)
        self._desk.listeners.append(self._fallback.look)
        self._guard.helpers.append(lambda: self._fallback.pid)
        if alone:
            were = "connection was" if alone == 1 else "connections were"
            text = f"{alone:,} new {were} made without a gateway, spread by the kernel alone; taken over"
            self._desk.events.add("fallback", "fallback", text, level="warning")

    def _prepare_reloads(self) -> None:
        self._hands = Hands(self._selector)
        self._undo.callback(self._hands.close)
        self._reload = Reload(
            self._config,
            self._source,
            self._desk,
            self._workers,
            self._hands,
            self._handover,
            room=self._config.gateway.max_connections,
            prepare=self._open_replies,
            follow=self._follow,
            rest=self._guard.at_rest,
            begins=self._notifier.reloading,
            over=self._reloaded,
        )
        self._undo.callback(self._reload.close)

    def _follow(self, config: Config) -> None:
        """Another configuration is in force: a worker that is forked has it."""
        self._config = config
        self._desk.configured(config)
        self._guard.follow(config)
        self._fallback.follow(config)

    def _reloaded(self) -> None:
        self._notifier.ready()
        self._fallback.again()

    def _open_replies(self, config: Config) -> None:
        """The sockets by which clients are told of what is refused, where they are to be."""
        if replies_to_clients(config):
            replies = open_replies(config)
            self._close_replies()
            self._replies = replies

    def _close_replies(self) -> None:
        if self._replies is not None:
            self._replies.close()
            self._replies = None

    def _listen_to_signals(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        before = {number: signal.signal(number, _noticed) for number in _SIGNALS}
        wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

        def restore() -> None:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.unregister(ours)
            ours.close()
            theirs.close()

        self._undo.callback(restore)
        self._selector.register(ours, selectors.EVENT_READ, lambda _mask: self._signalled(ours.recv(64)))

    def _signalled(self, numbers: bytes) -> None:
        if any(number in numbers for number in _ENDING):
            self._stopping = True
        elif signal.SIGHUP in numbers:
            self._reload.signalled()

    # --- serving

    def _serve(self) -> None:
        tick = time.monotonic()
        watchdog = Watchdog(self._workers.heart, self._notifier.watchdog, tick)
        while not self._stopping:
            for key, mask in self._selector.select(LOOK):
                key.data(mask)
            now = time.monotonic()
            if not self._stopping:
                self._workers.look_after()
            if watchdog.due(now):
                self._notifier.alive()
            if now >= tick:
                tick = now + _TICK
                self._control.tick()
                self._metrics.tick()
                self._workers.tick()
                self._desk.tick()
                self._missed.tick()
                self._guard.tick()
                self._fallback.tick()
                self._hands.tick()
                self._reload.tick()
                self._checkup.tick()

    # --- the worker

    def _be_worker(self, channel: socket.socket, say_serving: Callable[[], None]) -> None:
        """In the child: let go of what is the supervisor's, and work."""
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the supervisor decides
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._control.abandon()
        self._metrics.abandon()
        worker = Worker(
            self._config,
            self._datapaths,
            WorkerChannel(channel),
            self._journal,
            self._workers.heart,
            self._handover,
            self._replies,
        )
        signal.signal(signal.SIGTERM, lambda *_: worker.stop())
        worker.run(say_serving)


def run(config: Config, source: Source) -> int:
    """`nfqlb run`: serve in the foreground until SIGTERM or Ctrl-C; returns the exit status.

    `source` is where the configuration comes from. Prints "ready" once packets flow.
    """
    logger.info("nfqlb %s, configuration %s", __version__, source.path)
    notifier = from_environment(os.environ)
    try:
        findings = host.check(config)
        for finding in findings:
            level = logging.ERROR if finding.level == "error" else logging.WARNING
            logger.log(level, "%s%s", finding.what, f"; {finding.advice}" if finding.advice else "")
        if any(finding.level == "error" for finding in findings):
            return 1
        Supervisor(config, source, _say_ready, notifier).run()
    except (KernelError, ControlError) as error:
        logger.error("%s", error)
        return 1
    finally:
        notifier.close()
    return 0


def _say_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _noticed(_number: int, _frame: object) -> None:
    """The wake-up descriptor carries the signal; a handler must stand for it to be written."""


def _log_all(act: Callable[..., list[str]], *args: object) -> None:
    for line in act(*args):
        logger.info("%s", line)


def _spread_alone(config: Config) -> int:
    """New connections that the kernel has spread since a predecessor's death."""
    try:
        return fallback.spread() if fallback.wanted(config) else 0
    except KernelError:
        return 0  # whatever is wrong with iptables, the rules themselves will tell


def _described(config: Config) -> str:
    """Each virtual server with its address and how many servers it has."""
    return ", ".join(
        f"{virtual.name} {endpoint(virtual.address, virtual.port)} over "
        f"{len(virtual.servers)} server{'' if len(virtual.servers) == 1 else 's'}"
        for virtual in config.virtuals
    )
