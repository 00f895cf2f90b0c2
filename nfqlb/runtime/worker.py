"""The worker: reads the queues, judges their packets, answers the supervisor's questions.

Owns the loop that everything passes through. It is forked by the supervisor, which has bound
what it reads (see `datapaths`); it restores what its predecessor knew, and from then on alternates
between packets, questions and time-outs, each within a budget, so that none starves another. It
ends when the supervisor says so; when that is gone it goes on for a while (see `orphan`).
"""

import gc
import logging
import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from selectors import EVENT_WRITE

from nfqlb.core.chronicle import Change, Notice
from nfqlb.core.spec import Config
from nfqlb.core.verdict import Drop, Reply
from nfqlb.netfilter.reply import ReplySockets, open_replies, replies_to_clients
from nfqlb.runtime import orders, rights
from nfqlb.runtime.beat import Beat
from nfqlb.runtime.bindings import identity_of
from nfqlb.runtime.channel import WorkerChannel
from nfqlb.runtime.datapaths import Datapaths, Paths
from nfqlb.runtime.estate import Holder
from nfqlb.runtime.handover import Handover
from nfqlb.runtime.journal import Journal
from nfqlb.runtime.orphan import Orphan
from nfqlb.runtime.protocol import JSONObject, Result
from nfqlb.runtime.recording import Recorder
from nfqlb.runtime.stall import BIRTH, Heart
from nfqlb.runtime.stumbles import Stumbles
from nfqlb.runtime.summary import Losses, counts
from nfqlb.runtime.tracking import Fullness
from nfqlb.runtime.views import respond

logger = logging.getLogger(__name__)

_TIMER = 0.25  # seconds between two looks at what has timed out
_TIMER_BUDGET = 2000  # connections looked at in one go: about a millisecond
#: Connections share the time stamps of their packets, which are this coarse (seconds).
_GRAIN = 0.05
#: Whatever else runs on this machine can wait longer than the packets that pass through it. Where the kernel
#: carries them, only what opens connections waits here, and more of it at a time costs less.
_NICENESS = -10
_QUIET = 10.0  # seconds between two log lines about failed judgements
_ANSWER = 10.0  # seconds that one answer may take, and the worker not be thought dead
_AT_A_TIME = 10_000  # connections taken over between two signs of life


class Worker:
    """One worker's life.

    `datapaths` is what the supervisor has bound; `replies` goes to clients whose packets are refused,
    None where they are not to know. `heart` is beaten once a round. `handover` has the configuration of a
    reload, `holder` is where the next gateway asks, should the supervisor be gone.
    """

    def __init__(
        self,
        config: Config,
        datapaths: Datapaths,
        channel: WorkerChannel,
        journal: Journal,
        heart: Heart,
        handover: Handover,
        holder: Holder,
        replies: ReplySockets | None = None,
    ) -> None:
        self._datapaths = datapaths
        self._channel = channel
        self._journal = journal
        self._heart = heart
        self._handover = handover
        self._holder = holder
        self._orphan: Orphan | None = None
        self._replies = replies
        self._stopping = False
        self._interest = select.POLLIN  # in what the channel has
        self._complained = -_QUIET
        self._stumbles = Stumbles(hopeless=True)
        self._fullness = Fullness()
        self._look_at = 0.0
        self._paths = Paths(config, datapaths, journal)
        self.director = self._paths.director
        self._recorder = Recorder(self.director, self._paths.watch)

    def stop(self) -> None:
        """End after this round."""
        self._stopping = True

    def run(self, say_serving: Callable[[], None]) -> None:
        """Serve until `stop`, or until the supervisor is long gone; `say_serving` once it has taken over."""
        # A million connections are no garbage, and looking through them would stop the world for 100 ms.
        gc.disable()
        if self._datapaths.rewriting is not None:
            with suppress(PermissionError):
                os.nice(_NICENESS)
        rights.keep(rights.WORKER)
        self._restore()
        self._beat = Beat(self.director, self._losses, time.monotonic())
        gc.freeze()
        self._paths.connect(self._complain)
        say_serving()
        self._serve()

    def _restore(self) -> None:
        """Take over what the journal remembers: what was set and what failed, then the connections."""
        begun = now = time.monotonic()
        for kept in self._journal.kept():
            if not self.director.operation.restore(kept, now):
                self._journal.forget_name(kept)
        self._restore_stickies(now)
        bind = not self._journal.whole
        restored = 0
        restore, forget = self.director.restore, self._journal.forget
        for number, (place, code, opened, inbound, server) in enumerate(self._journal.records()):
            if not number % _AT_A_TIME:
                self._heart.ask(BIRTH)
            if restore(inbound, server, code, place, opened=opened, now=now, bind=bind):
                restored += 1
            else:
                forget(place)
        self.director.restored(now)
        if restored:
            took = (time.monotonic() - begun) * 1000
            logger.info("%d connections taken over from the journal in %.0f ms", restored, took)

    def _restore_stickies(self, now: float) -> None:
        """Take over sticky entries."""
        stickies, free = self.director.stickies(identity_of), self._journal.stickies.free
        for number, (place, assigned, loose, scope, client, server) in enumerate(self._journal.bound()):
            if not number % _AT_A_TIME:
                self._heart.ask(BIRTH)
            if not stickies.restore(scope, client, server, assigned, now, loose=loose, place=place):
                free(place)

    def _serve(self) -> None:
        poll = select.poll()
        sources = {source.reader.fileno(): source for source in self._datapaths.sources()}
        for descriptor in sources:
            poll.register(descriptor, select.POLLIN)
        poll.register(self._channel.fileno(), self._interest)
        paths, beat, note = self._paths, self._heart.beat, self._stumbles.note
        timer = 0.0
        overdue = False  # more has timed out than one round looked at
        behind = False  # the kernel has not told everything
        while not self._stopping:
            beat()
            ready = poll.poll(0 if overdue or behind else _TIMER * 1000)
            now = time.monotonic()
            if now - paths.now >= _GRAIN:
                paths.tell_time(now)
            for descriptor, _ in ready:  # in the order of registration
                source = sources.get(descriptor)
                try:
                    if source is not None:
                        source.reader.run(source.budget)
                    else:
                        self._heed(poll, descriptor, now)
                except Exception as error:  # noqa: BLE001  no defect may end a worker that can go on
                    note("reading what came", error)
            if overdue or now >= timer:
                timer = now + _TIMER
                try:
                    overdue = self._look_around(now)
                except Exception as error:  # noqa: BLE001
                    overdue = False
                    note("looking at what has timed out", error)
            try:
                behind = paths.catch_up()
                self._say(now)
            except Exception as error:  # noqa: BLE001
                behind = False
                note("telling what has happened", error)

    def _look_around(self, now: float) -> bool:
        """What is to be done now and then; whether more has timed out than could be looked at."""
        if self._orphan is not None:
            self._orphan.tick(now)
            self._stopping = self._stopping or self._orphan.over
        self._recorder.look(now)
        if now >= self._look_at:  # not each time that much has timed out: it costs as much as some packets
            self._look_at = now + _TIMER
            if self._fullness.look():
                self.director.watch.lost_at = now
        overdue = self.director.tick(now, _TIMER_BUDGET)
        self.director.recount(now, _TIMER_BUDGET // 4)
        return overdue

    def _say(self, now: float) -> None:
        """Tell operators and clients what there is to tell."""
        if self.director.chronicle.touched:
            self._tell(now)
        if self._replies is not None:
            self._reply(self._replies)

    def _reply(self, sockets: ReplySockets) -> None:
        """Send what is to go to clients; what the kernel does not take is lost, as any packet may be."""
        for packet in self._recorder.saw(self._paths.take_replies()):
            if not sockets.send(packet):
                self.director.tally.reply(Reply.NOT_SENT)

    def _heed(self, poll: select.poll, descriptor: int, now: float) -> None:
        """Something is readable that is no packet."""
        if self._orphan is not None:
            self._orphan.ready(descriptor)
        else:
            self._answer(poll, now)

    def _answer(self, poll: select.poll, now: float) -> None:
        """Answer what the supervisor asks, and wait for what the channel needs from now on."""
        for request in self._channel.poll():
            with self._heart.busy(_ANSWER):
                respond(request, lambda cmd, args: self._result(cmd, args, now))
        if self._channel.lost:
            self._lose(poll, now)
            return
        wanted = select.POLLIN | (select.POLLOUT if self._channel.events & EVENT_WRITE else 0)
        if wanted != self._interest:
            self._interest = wanted
            poll.modify(self._channel.fileno(), wanted)

    def _lose(self, poll: select.poll, now: float) -> None:
        """The supervisor is gone."""
        poll.unregister(self._channel.fileno())
        self._channel.close()
        self._orphan = Orphan(
            self._holder, poll, now,
            config=lambda: self.director.config, bound=self._datapaths.descriptors,
        )  # fmt: skip

    def _result(self, cmd: str, args: JSONObject, now: float) -> Result:
        if cmd == "pulse":
            return self._beat.rows(args, now)
        if cmd == "capture":
            return self._recorder.answer(args, now)
        if cmd == "adopt":
            return self._paths.adopt()
        if cmd == "adoption":
            return self._paths.adoption()
        if cmd == "reload":
            self._reload(args, now)
        if cmd in ("reload", "remaining"):
            return {"remaining": [[name, place.real, place.port] for name, place in self._paths.remaining()]}
        result = orders.answer(self.director, cmd, args, now)
        return counts(self.director.totals(), self._losses()) if cmd == "summary" else result

    def _reload(self, args: JSONObject, now: float) -> None:
        """Follow the configuration that the supervisor has handed over. Raises ValueError, OSError."""
        size = args.get("size")
        config = self._handover.take(size if isinstance(size, int) else 0)
        if replies_to_clients(config):
            before, self._replies = self._replies, open_replies(config)
            if before is not None:
                before.close()
        self._paths.follow(config, now)

    def _losses(self) -> Losses:
        queues = self._datapaths.queues
        return Losses(
            packets={queue.number: queue.packets for queue in queues},
            busy_s={queue.number: queue.busy_s for queue in queues},
            overruns={queue.number: queue.overruns for queue in queues},
            refused={queue.number: queue.refused for queue in queues},
            unreadable={queue.number: queue.unreadable for queue in queues},
            unkept=self._journal.unkept,
            stumbles=self._stumbles.count,
            followed=self._paths.followed(),
        )

    def _tell(self, now: float) -> None:
        """Log what has changed its state."""
        chronicle = self.director.chronicle
        happened: list[Change | Notice] = [*chronicle.drain(now), *chronicle.take_notices()]
        for level, text, name in self._beat.tell(happened, now):
            logger.log(level, "%s", text, extra={"fields": {"kind": "state", "name": name}})
        if chronicle.missed:
            logger.warning("%d older changes of state were too many to be logged", chronicle.missed)
            chronicle.missed = 0

    def _complain(self, error: Exception) -> None:
        """Count a failed judgement, whose packet was dropped, and say so now and then."""
        self.director.refuse(Drop.ERROR)
        now = time.monotonic()
        if now - self._complained >= _QUIET:
            self._complained = now
            logger.error("a packet could not be judged and was dropped", exc_info=error)
