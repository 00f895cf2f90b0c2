"""The supervisor: brings the gateway up, keeps a worker alive, and takes everything down again.

Owns the processes and the order of things. It binds the queues itself and forks the worker, so
that the kernel keeps queueing while a dead worker is replaced. Start: checks, journal, queues,
settings, worker, rules, addresses. Stop and failed starts undo exactly what was done, in the
reverse order: addresses before rules, or the gateway's own TCP would reset clients in between.

A start may take over from a gateway that is there (see `takeover`). And a supervisor may leave (SIGUSR1):
then nothing is undone, and its worker goes on until the next one is there.
"""

import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from nfqlb.config.summary import endpoint
from nfqlb.core.plural import several
from nfqlb.core.spec import Config
from nfqlb.netfilter import address, fallback, repair, rules, sysctl
from nfqlb.netfilter.queue import ask_for_stamps
from nfqlb.netfilter.reply import ReplySockets, open_replies, replies_to_clients
from nfqlb.netfilter.state import Claim, Kept, Record
from nfqlb.runtime import beginning, departure, rights
from nfqlb.runtime.beginning import Beginning
from nfqlb.runtime.captures import Captures
from nfqlb.runtime.channel import WorkerChannel
from nfqlb.runtime.checkup import Checkup
from nfqlb.runtime.control import Server
from nfqlb.runtime.datapaths import Datapaths
from nfqlb.runtime.desk import Desk
from nfqlb.runtime.estate import Heir
from nfqlb.runtime.fallback import Fallback, spread_alone
from nfqlb.runtime.guard import Guard
from nfqlb.runtime.handover import Handover, Source
from nfqlb.runtime.hands import Hands
from nfqlb.runtime.journal import Journal
from nfqlb.runtime.links import Links, with_interfaces
from nfqlb.runtime.metrics import Metrics
from nfqlb.runtime.missed import Missed
from nfqlb.runtime.notify import Notifier
from nfqlb.runtime.protocol import JSONObject
from nfqlb.runtime.reload import Reload
from nfqlb.runtime.signals import SIGNALS, forget, listen
from nfqlb.runtime.stall import LOOK, Movement, Watchdog
from nfqlb.runtime.stumbles import Stumbles
from nfqlb.runtime.takeover import Bequest
from nfqlb.runtime.tracking import Tracking
from nfqlb.runtime.traffic import Traffic
from nfqlb.runtime.worker import Worker
from nfqlb.runtime.workers import Workers

logger = logging.getLogger(__name__)

_ENDING = (signal.SIGTERM, signal.SIGINT)
_TICK = 1.0
_BREATH = 0.05  # seconds after a defect, which may come again each time


class Supervisor:
    """The gateway of one configuration, and of those that `source` has when it is asked again.

    `say_ready` is called once packets flow; `notifier` is told of that and of all that follows. `heir` has
    what a gateway that is there gives us: `config` goes on from what that runs. It is that of `begins`,
    whose text `kept` is to have for a next start.
    """

    def __init__(
        self,
        config: Config,
        begins: Beginning,
        source: Source,
        kept: Kept,
        say_ready: Callable[[], None],
        notifier: Notifier,
        heir: Heir | None = None,
    ) -> None:
        self._config = config
        self._begins = begins
        self._source = source
        self._kept = kept
        self._say_ready = say_ready
        self._notifier = notifier
        self._selector = selectors.DefaultSelector()
        self._undo = ExitStack()
        self._stopping = False
        self._stumbles = Stumbles()
        self._heir = heir
        self.leaving = heir is not None  # until we have taken over, what is there is not ours to undo

    def run(self) -> None:
        """Bring the gateway up, serve until a signal says otherwise, take it down. Raises KernelError.

        Where it is left as it is, `leaving` is set: this process may only end without cleaning up, as its
        libraries would unbind the queues.
        """
        with self._undo:
            self._start()
            self.leaving = False
            self._say_ready()
            self._notifier.ready("all well")
            self._desk.events.add("gateway", "", f"ready: {_described(self._config)}")
            self._begun()
            self._serve()
            self._notifier.stopping()
            logger.info("leaving" if self.leaving else "stopping")
        logger.info("gone; everything is left to the next one" if self.leaving else "stopped")

    # --- up and down

    def _start(self) -> None:
        """Each part in its order: what is undone, is so the other way round."""
        record = Record()
        self._secure(record)
        self._hold()
        self._furnish()
        _log_all(sysctl.switch, repair.settings(self._config), record)
        rights.keep(rights.SUPERVISOR)  # who has a queue that we want is told only to who may look
        self._workers.start()
        self._lead_traffic()
        self._look_after()

    def _secure(self, record: Record) -> None:
        """This machine and its queues are ours alone, or taken over."""
        if self._heir is None:
            self._claim_it()
        self._finally(_log_all, sysctl.restore, record)
        self._undo.callback(listen(SIGNALS, self._selector, self._signalled))
        self._datapaths = Datapaths(self._config, self._heir.bound if self._heir is not None else None)
        self._finally(self._datapaths.close)
        if self._heir is not None:
            self._take_over(self._heir, record)

    def _hold(self) -> None:
        """What outlives a worker, and those that make the next one."""
        config = self._config
        self._journal = Journal(config.gateway.max_connections, sticky=config.gateway.max_sticky)
        self._finally(self._journal.close, remove=True)
        self._bequest = Bequest(self._selector, self._leave_to)
        self._undo.callback(lambda: self._bequest.close(remove=not self.leaving))
        self._replies: ReplySockets | None = None
        self._undo.callback(self._close_replies)
        self._open_replies(config)
        self._handover = Handover()
        self._undo.callback(self._handover.close)
        self._undo.enter_context(ask_for_stamps())  # response times are differences of stamps
        self._workers = Workers(self._selector, self._journal, self._be_worker)
        self._finally(self._workers.end)

    def _furnish(self) -> None:
        """The desk, and the doors to it."""
        self._desk = Desk(self._config, self._workers, self._datapaths.roles, self._datapaths.rooms)
        self._desk.stumbles = self._stumbles
        self._workers.born, self._workers.died = self._desk.born, self._desk.died
        self._workers.rest = self._rest
        moves = Movement()
        self._desk.listeners += [self._judged, lambda snapshot: self._workers.condemn(moves.look(snapshot))]
        self._desk.onlookers.append(self._judged)
        Captures(self._desk, self._workers)
        self._checkup = Checkup(self._selector, lambda: self._desk.config, lambda: self._desk.last)
        self._undo.callback(self._checkup.close)
        self._desk.offer("host", self._checkup.answer)
        self._control = Server(Path(self._config.gateway.socket), self._selector, self._desk.answer)
        self._undo.callback(self._control.close)
        self._metrics = Metrics(self._config, self._selector, lambda: self._desk.last, self._desk.events)
        self._desk.followers.append(self._metrics.configured)
        self._undo.callback(self._metrics.close)

    def _lead_traffic(self) -> None:
        """Rules and addresses: from here on packets come to the worker."""
        config = self._config
        self._finally(_log_all, departure.withdraw)
        traffic = Traffic(config)
        if self._heir is None:
            traffic.begin()
        else:  # with a chain at a hook that is taken away the kernel drops what waits in queues
            traffic.configured(config)
        self._desk.virtual_completers.append(traffic.complete)
        self._missed = Missed(config, self._selector, self._desk.pulse.carry.beside)
        self._undo.callback(self._missed.close)
        self._desk.followers += [traffic.configured, self._missed.follow]
        self._alone = spread_alone(config)
        rules.apply(config)
        _log_all(rules.withdraw_other_kind)
        self._finally(_log_all, address.take_down)
        _log_all(address.bring_up, config)

    def _look_after(self) -> None:
        """Whoever sees to it that all stays so, and whoever changes it."""
        self._guard = Guard(
            self._config, self._selector, self._desk.events.add, self._desk.rules, self._datapaths.rebind
        )
        self._undo.callback(self._guard.close)
        self._watch_links()
        self._tracking = Tracking(self._desk.events, self._desk.others)
        self._prepare_fallback()
        self._prepare_reloads()

    def _watch_links(self) -> None:
        state: JSONObject = {}
        self._desk.others["links"] = state
        self._links = Links(
            self._config, self._selector, self._desk.events.add, state, self._rename, self._guard.look
        )
        self._undo.callback(self._links.close)

    def _rename(self, names: Mapping[str, str]) -> bool:
        """Interfaces are called otherwise; whether that could be followed."""
        if self._reload.busy:
            return False
        sysctl.renamed(names, Record())
        self._reload.in_force(with_interfaces(self._reload.config, names))
        return True

    def _prepare_fallback(self) -> None:
        alone = self._alone  # so many connections were made without us, before
        state: JSONObject = {}
        self._desk.others["fallback"] = state
        self._fallback = Fallback(
            self._config,
            self._selector,
            self._desk.events.add,
            state,
            repairs=lambda: self._desk.rules["repairs"],
            adopt=lambda: self._workers.call("adopt", {}, lambda _result: None, lambda _error: None),
        )
        self._undo.callback(self._fallback.close)
        self._desk.listeners.append(self._fallback.look)
        self._guard.helpers.append(lambda: self._fallback.pid)
        if alone:
            were = "connection was" if alone == 1 else "connections were"
            text = f"{alone:,} new {were} made without a gateway, spread by the kernel alone; taken over"
            self._desk.events.add("fallback", "fallback", text, level="warning")

    def _begun(self) -> None:
        """What is left behind unless we stop cleanly, and what we could not begin with."""
        beginning.keep(self._kept, self._begins.text)
        self._finally(_log_all, self._kept.remove)
        if trouble := self._begins.trouble:
            self._notifier.status(self._desk.begun_as_before(trouble))

    def _finally(self, act: Callable[..., object], *args: object, **words: object) -> None:
        """Undo this at the end, unless everything is to be left as it is."""
        self._undo.callback(lambda: None if self.leaving else act(*args, **words))

    def _claim_it(self) -> None:
        self._claim = Claim()
        self._undo.callback(self._claim.release)

    def _take_over(self, heir: Heir, record: Record) -> None:
        """From a gateway that is there: all that can fail comes before it ends. Raises KernelError.

        Its rules become ours, which do for both as in a reload, and its packets wait for our worker.
        """
        config = self._config
        _log_all(sysctl.switch, repair.settings(config), record)
        rules.apply(config)
        heir.end()
        self._claim_it()
        logger.info("taken over from process %d, nfqlb %s", heir.pid, heir.version)

    def _leave_to(self) -> Config | None:
        """Somebody wants to take over: what from; None where that cannot be at the moment."""
        return None if self._reload.busy else self._config

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
            named=self._links.named,
            keep=lambda text: beginning.keep(self._kept, text),
        )
        self._undo.callback(self._reload.close)
        self._bequest.offer(self._datapaths.descriptors, self._guard.at_rest, self._end_for)

    def _follow(self, config: Config) -> None:
        """Another configuration is in force: a worker that is forked has it."""
        self._config = config
        self._desk.configured(config)
        self._guard.follow(config)
        self._fallback.follow(config)

    def _judged(self, snapshot: JSONObject) -> None:
        self._notifier.status(str(snapshot["verdict"]))

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

    def _signalled(self, numbers: bytes) -> None:
        if any(number in numbers for number in _ENDING):
            self._stopping = True
        elif signal.SIGUSR1 in numbers:
            logger.info("told to leave everything to the next one")
            self._stopping = self.leaving = True
        elif signal.SIGHUP in numbers:
            self._reload.signalled()

    def _end_for(self) -> None:
        """Another one takes over now: the worker ends, and everything stays as it is."""
        self._stopping = self.leaving = True
        self._workers.end()

    # --- serving

    def _rest(self, rests: bool) -> str:
        """No worker is there for a while, or one will be: what happens to packets meanwhile, in words."""
        if not rests:
            self._datapaths.rebind(again=True)
            return ""
        alone = self._datapaths.let_go() if fallback.wanted(self._config) else False
        return "; the kernel spreads new connections alone" if alone else ""

    def _serve(self) -> None:
        tick = time.monotonic()
        watchdog = Watchdog(self._workers.heart, self._notifier.watchdog, tick)
        looks = (self._workers.look_after, self._desk.glance)
        ticks = (
            self._control.tick, self._metrics.tick, self._workers.tick, self._desk.tick, self._missed.tick,
            self._guard.tick, self._links.tick, self._fallback.tick, self._tracking.tick, self._hands.tick,
            self._reload.tick, self._checkup.tick,
        )  # fmt: skip
        while not self._stopping:
            for key, mask in self._selector.select(min(LOOK, self._desk.waiting.left())):
                self._carefully(key.data, mask)
            now = time.monotonic()
            if not self._stopping:
                for look in looks:
                    self._carefully(look)
            if watchdog.due(now, idle=self._workers.resting):
                self._notifier.alive()
            if now >= tick:
                tick = now + _TICK
                for each in ticks:
                    self._carefully(each)

    def _carefully(self, act: Callable[..., object], *args: object) -> None:
        """No defect in what is beside the packets may end the gateway."""
        try:
            act(*args)
        except Exception as error:  # noqa: BLE001
            self._stumbles.note(f"in {getattr(act, '__qualname__', act)}", error)
            time.sleep(_BREATH)

    # --- the worker

    def _be_worker(self, channel: socket.socket, say_serving: Callable[[], None]) -> None:
        """In the child: let go of what is the supervisor's, and work."""
        forget(SIGNALS)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the supervisor decides
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._claim.abandon()
        self._control.abandon()
        self._metrics.abandon()
        worker = Worker(
            self._config,
            self._datapaths,
            WorkerChannel(channel),
            self._journal,
            self._workers.heart,
            self._handover,
            self._bequest.holder,
            self._replies,
        )
        signal.signal(signal.SIGTERM, lambda *_: worker.stop())
        worker.run(say_serving)


def _log_all(act: Callable[..., list[str]], *args: object) -> None:
    for line in act(*args):
        logger.info("%s", line)


def _described(config: Config) -> str:
    """Each virtual server with its address and how many servers it has."""
    return ", ".join(
        f"{virtual.name} {endpoint(virtual.address, virtual.port)} over "
        + several(len(virtual.servers), "server")
        for virtual in config.virtuals
    )
