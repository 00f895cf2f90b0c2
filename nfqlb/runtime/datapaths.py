"""What the two datapaths are bound to in the kernel, and how a worker is driven by it.

Owns the descriptors that outlive a worker: the supervisor binds them before it forks, so that the kernel
goes on queueing, copying and remembering while a dead worker is replaced. `Rewriting` are the two queues of
datapath `rewrite`, `Offloading` the queue, the tap and the endings of datapath `offload`. A worker
connects them to its director and runs them in turn.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, TypeVar

from nfqlb.config.marks import OFFLOAD, LinkMarks
from nfqlb.config.numbers import datapaths, offload_queue, tap_group
from nfqlb.core.chronicle import Kind
from nfqlb.core.director import Director
from nfqlb.core.spec import Config, Server
from nfqlb.netfilter.conntrack import Conntrack
from nfqlb.netfilter.endings import Endings
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.queue import MarkQueue, PacketQueue
from nfqlb.netfilter.queue_status import LOG_PROC as LOG_GROUPS
from nfqlb.netfilter.queue_status import PROC as QUEUES
from nfqlb.netfilter.queue_status import Room, bound
from nfqlb.netfilter.tap import Tap
from nfqlb.packet.path import PacketPath
from nfqlb.runtime.adopting import Adoption
from nfqlb.runtime.carrier import KernelCarrier
from nfqlb.runtime.journal import Journal
from nfqlb.runtime.offload import OffloadPath
from nfqlb.runtime.protocol import JSONObject
from nfqlb.runtime.recording import Recording

logger = logging.getLogger(__name__)

Queue = TypeVar("Queue", bound=PacketQueue)

#: A SYN flood fills its own short queue; the other holds what arrives while a worker is replaced.
_NEW_LENGTH, _NEW_RECEIVE_BUFFER = 1024, 1 << 20
_LENGTH, _RECEIVE_BUFFER = 8192, 8 << 20
#: Packets of established connections judged before new ones get a turn; and of new ones. What was lost is
#: looked for in portions of so many connections (a millisecond or two).
_BUDGET, _NEW_BUDGET, _SWEEP = 256, 64, 200
_SWEEP_AGAIN = 5.0  # seconds after it failed


Inherited = dict[str, int]
_ENDINGS = "endings"


class Runs(Protocol):
    """Something that is read when its descriptor is readable."""

    def fileno(self) -> int:
        """The descriptor."""

    def run(self, budget: int) -> int:
        """Read what waits, about `budget` packets at most; returns how many there were."""


class Source(NamedTuple):
    """What a worker reads, and how much of it in one go."""

    reader: Runs
    budget: int


class Rewriting:
    """Datapath `rewrite`: the queue of SYNs, and that of everything else. Raises KernelError.

    `inherited` as in `Datapaths`.
    """

    def __init__(self, config: Config, inherited: Inherited) -> None:
        first = config.gateway.queue
        with contextlib.ExitStack() as undo:
            self.new = _bind(first, lambda: PacketQueue(
                first, length=_NEW_LENGTH, receive_buffer=_NEW_RECEIVE_BUFFER,
                inherited=inherited.pop(_queue(first), None),
            ))  # fmt: skip
            undo.callback(self.new.close)
            self.established = _bind(first + 1, lambda: PacketQueue(
                first + 1, length=_LENGTH, receive_buffer=_RECEIVE_BUFFER,
                inherited=inherited.pop(_queue(first + 1), None),
            ))  # fmt: skip
            undo.pop_all()

    @property
    def queues(self) -> tuple[PacketQueue, ...]:
        """All queues."""
        return self.new, self.established

    def close(self) -> None:
        """Unbind."""
        for queue in self.queues:
            queue.close()

    def connect(self, path: PacketPath, on_error: Callable[[Exception], None]) -> None:
        """In a worker: let `path` judge, and free what a predecessor had read."""
        for queue in self.queues:
            queue.free_abandoned()
            queue.judge = path.judge
            queue.on_error = on_error

    def sources(self) -> list[Source]:
        """What is to be read, the most urgent first."""
        return [Source(self.established, _BUDGET), Source(self.new, _NEW_BUDGET)]


class Offloading:
    """Datapath `offload`: the queue of what opens connections, the tap, conntrack's endings.

    Raises KernelError. `inherited` as in `Datapaths`.
    """

    def __init__(self, config: Config, inherited: Inherited) -> None:
        number, mask = offload_queue(config), LinkMarks(config).number_mask
        with contextlib.ExitStack() as undo:
            self.queue = _bind(number, lambda: MarkQueue(
                number, length=_NEW_LENGTH, receive_buffer=_NEW_RECEIVE_BUFFER, mask=mask,
                inherited=inherited.pop(_queue(number), None),
            ))  # fmt: skip
            undo.callback(self.queue.close)
            group = tap_group(config)
            tap = inherited.pop(_tap(group), None)
            self.tap = Tap(group, lambda *_: None, lambda _: None, inherited=tap)
            undo.callback(self.tap.close)
            endings = inherited.pop(_ENDINGS, None)
            self.endings = Endings(lambda *_: None, lambda _: None, inherited=endings)
            undo.pop_all()

    @property
    def queues(self) -> tuple[PacketQueue, ...]:
        """All queues."""
        return (self.queue,)

    def close(self) -> None:
        """Unbind."""
        self.queue.close()
        self.tap.close()
        self.endings.close()

    def connect(self, path: OffloadPath, on_error: Callable[[Exception], None]) -> None:
        """In a worker: let `path` judge and be told, and free what a predecessor had read."""
        self.queue.free_abandoned()
        self.queue.judge = path.judge
        self.tap.on_packet, self.tap.on_loss = path.tapped, path.lost
        self.endings.on_end, self.endings.on_loss = path.ended, path.lost
        self.queue.on_error = self.tap.on_error = self.endings.on_error = on_error
        path.behind = True  # what happened while nobody was there is found by comparing

    def sources(self) -> list[Source]:
        """What is to be read, the most urgent first: who has answered counts in the next choice (R183)."""
        return [Source(self.tap, _BUDGET), Source(self.queue, _NEW_BUDGET), Source(self.endings, _BUDGET)]


class Datapaths:
    """All that a configuration's datapaths need to be bound. Raises KernelError, with nothing bound.

    `inherited` are descriptors of what is bound already, by the names that `descriptors` gives them; those
    that can be used are taken out.
    """

    def __init__(self, config: Config, inherited: Inherited | None = None) -> None:
        used = set(datapaths(config))
        given = inherited if inherited is not None else {}
        with contextlib.ExitStack() as undo:
            self.rewriting = Rewriting(config, given) if used != {OFFLOAD} else None
            if self.rewriting is not None:
                undo.callback(self.rewriting.close)
            self.offloading = Offloading(config, given) if OFFLOAD in used else None
            self._free = False  # the queue of `offload` has been let go of
            undo.pop_all()

    @property
    def _bound(self) -> list[Rewriting | Offloading]:
        return [each for each in (self.rewriting, self.offloading) if each is not None]

    @property
    def queues(self) -> list[PacketQueue]:
        """All queues."""
        return [queue for each in self._bound for queue in each.queues]

    @property
    def roles(self) -> dict[int, str]:
        """What each queue is for, by its number."""
        found = {}
        if self.rewriting is not None:
            found = {self.rewriting.new.number: "new", self.rewriting.established.number: "established"}
        if self.offloading is not None:
            found[self.offloading.queue.number] = "offload"
        return found

    def rooms(self) -> dict[int, Room]:
        """What each queue has room for, by its number. Raises OSError."""
        return {queue.number: queue.room for queue in self.queues}

    def close(self) -> None:
        """Unbind everything."""
        for each in self._bound:
            each.close()

    def descriptors(self) -> dict[str, int]:
        """The descriptors of what is bound, by name: whoever has one of them keeps it bound."""
        found = {_queue(queue.number): queue.fileno() for queue in self.queues}
        if self.offloading is not None:
            tap = self.offloading.tap
            found |= {_tap(tap.group): tap.fileno(), _ENDINGS: self.offloading.endings.fileno()}
        return found

    def let_go(self) -> bool:
        """Unbind the queue of `offload`, if there is one: the kernel spreads new connections alone then."""
        if self.offloading is None:
            return False
        self._free = True
        self.offloading.queue.let_go()
        return True

    def rebind(self, *, again: bool = False) -> list[str]:
        """Bind again what the kernel has let go of, as it does with a module of its own. Says what it was.

        `again`: also what we have let go of.
        """
        if self._free and not again:
            return []
        self._free = False
        done = []
        queues = bound(QUEUES)
        for queue in self.queues:
            if queues is not None and queue.number not in queues:
                queue.rebind()
                done.append(f"NFQUEUE {queue.number}")
        groups = bound(LOG_GROUPS)
        if self.offloading is not None and groups is not None and self.offloading.tap.group not in groups:
            self.offloading.tap.rebind()
            done.append(f"NFLOG group {self.offloading.tap.group}")
        return done

    def sources(self) -> list[Source]:
        """What a worker reads, in the order in which it should."""
        return [source for each in self._bound for source in each.sources()]


class Paths:
    """In a worker: what judges the packets of every datapath, for one director of its own.

    `now` follows the worker's clock, in seconds.
    """

    def __init__(self, config: Config, datapaths: Datapaths, journal: Journal) -> None:
        now = time.monotonic()
        self._datapaths = datapaths
        self._journal = journal
        self._table = Conntrack()
        table = self._table if datapaths.offloading is not None else None
        self._carrier = KernelCarrier(table, config.timeouts.udp) if table is not None else None
        self.director = Director(
            config, now=now, recorder=journal, keeper=journal, carrier=self._carrier,
            stickies=journal.stickies,
        )  # fmt: skip
        self._rewrite = PacketPath(self.director, now)
        self._offload = OffloadPath(self.director, table, now, journal) if table is not None else None
        self.now = now
        self._sweep_at = now
        self._adopted = 0  # connections of the kernel's that were told of, of `offload`
        self._adoption: Adoption | None = None
        self._found = 0  # since somebody last asked to adopt

    def connect(self, on_error: Callable[[Exception], None]) -> None:
        """Begin to judge."""
        if self._datapaths.rewriting is not None:
            self._datapaths.rewriting.connect(self._rewrite, on_error)
        if self._datapaths.offloading is not None and self._offload is not None:
            self._datapaths.offloading.connect(self._offload, on_error)

    def watch(self, recording: Recording | None) -> None:
        """Let a recording look at every packet that is judged or told of; None: nobody looks."""
        rewriting, offloading, offload = self._datapaths.rewriting, self._datapaths.offloading, self._offload
        if rewriting is not None:
            rewrite = self._rewrite.judge
            for queue in rewriting.queues:
                queue.judge = rewrite if recording is None else recording.judging(rewrite, "passed")
        if offloading is not None and offload is not None:
            judge, tapped = offload.judge, offload.tapped
            offloading.queue.judge = judge if recording is None else recording.judging(judge, "marked")
            offloading.tap.on_packet = tapped if recording is None else recording.tapping(tapped)

    def follow(self, config: Config, now: float) -> None:
        """Judge by another configuration from the next packet on; its datapaths must be bound."""
        self.director.reconfigure(config, now)
        self._journal.retain(
            {(Kind.REAL, each.name) for each in config.reals}
            | {(Kind.VIRTUAL, each.name) for each in config.virtuals}
        )
        if self._carrier is not None:
            self._carrier.udp = config.timeouts.udp
        if self._offload is not None:
            self._offload.follow(config)

    def remaining(self) -> list[tuple[str, Server]]:
        """Places that are leaving and have connections; all of them while something is looked for."""
        offload = self._offload
        if offload is not None and (offload.behind or offload.sweeping):
            return list(self.director.config.leaving.places)
        return self.director.remaining()

    def tell_time(self, now: float) -> None:
        """The time at which everything is judged from now on."""
        self.now = self._rewrite.now = now
        if self._offload is not None:
            self._offload.now = now

    def catch_up(self) -> bool:
        """Look for what was lost, or came from elsewhere, a portion of it; True if there is more to do."""
        return any([self._compare(), self._look_for_strangers()])

    def _look_for_strangers(self) -> bool:
        adoption = self._adoption
        if adoption is None:
            return False
        try:
            if not adoption.step(_SWEEP, self.now):
                return True
        except KernelError as error:
            logger.warning("the kernel's connections cannot be looked through: %s", error)
        self._adoption = None
        self._rewrite.replies.silent = False
        self._say_adopted(adoption.adopted)
        return False

    def _say_adopted(self, count: int) -> None:
        self._found += count
        if count:
            self.director.chronicle.adopted(count, self.now)

    def _compare(self) -> bool:
        offload = self._offload
        if offload is None or not (offload.behind or offload.sweeping) or self.now < self._sweep_at:
            return False
        try:
            if not offload.sweep(_SWEEP):
                return True
        except KernelError as error:
            logger.warning("the kernel's connections cannot be compared with: %s", error)
            offload.behind = True
            self._sweep_at = self.now + _SWEEP_AGAIN
            return False
        fresh, self._adopted = offload.adopted - self._adopted, offload.adopted
        self._say_adopted(fresh)
        return False

    def adopt(self) -> JSONObject:
        """Somebody has given connections to the kernel: begin to look for them.

        Until then nobody is told that there is no such connection.
        """
        self._found = 0
        if self._offload is not None:
            self._offload.behind, self._sweep_at = True, self.now
        if self._datapaths.rewriting is not None:
            self._adoption = Adoption(self.director, self._table, self._journal, self.now)
            self._rewrite.replies.silent = True
        return {"said": ["looking for connections that the kernel alone has"]}

    def adoption(self) -> JSONObject:
        """How far that is. `served`: clients may be let in, even if not all are known yet."""
        compared = self._offload is None or not (self._offload.behind or self._offload.sweeping)
        served = self._adoption is None or not self._adoption.mistakable
        over = self._adoption is None and compared
        return {"served": served, "over": over, "adopted": self._found}

    def take_replies(self) -> list[bytes]:
        """The packets that are to go to clients."""
        replies = self._rewrite.replies.take()
        return replies if self._offload is None else replies + self._offload.replies.take()

    def followed(self) -> Mapping[str, int]:
        """What the kernel did not tell in time, by what it is; empty where it need not tell anything."""
        offloading, offload = self._datapaths.offloading, self._offload
        if offloading is None or offload is None or self._carrier is None:
            return {}
        return {
            "lost": offloading.tap.lost,
            "overruns": offloading.tap.overruns + offloading.endings.overruns,
            "adopted": offload.adopted,
            "forgotten": offload.forgotten,
            "unanswered": self._carrier.failed,
        }


def _queue(number: int) -> str:
    return f"queue {number}"


def _tap(group: int) -> str:
    return f"tap {group}"


def _bind(number: int, bind: Callable[[], Queue]) -> Queue:
    try:
        return bind()
    except OSError as error:
        raise KernelError(
            f"NFQUEUE {number} cannot be bound: {error}; is it taken, or the kernel without nfnetlink_queue?"
        ) from None
