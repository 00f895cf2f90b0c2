"""The connection table: every live connection under the keys of both directions.

Owns the two indexes, the time-outs, the bound (R060, R061, A23) and the only code that
moves a real server's counters. A connection's counts follow from its state alone: moving it
from one state to another moves the counters by the difference of the two rows in `states`.

Plain segments of an established flow look themselves up in `inbound` and `outbound`
directly and touch nothing here but `seen`; all else goes through `add` and `move`.
"""

from collections.abc import Callable, Iterable

from nfqlb.core.audit import Recount
from nfqlb.core.carrier import Carrier
from nfqlb.core.connection import Connection
from nfqlb.core.recorder import NoRecorder, Recorder
from nfqlb.core.server import Link
from nfqlb.core.states import State, Timeout, counting
from nfqlb.core.timers import DueQueue

#: An established connection is looked at this often (seconds) to see whether it has been idle too long,
#: or, where its time-out is short, an eighth to a quarter of that. It bounds how long a finished
#: connection is remembered by its queue; idle time-outs are hours.
IDLE_CHECK = 60.0
#: Asking a carrier takes as long as looking at so many connections.
_ASKING = 50


class ConnectionTable:
    """All connections, by key (R050, R059, A4, A5). At most `limit` of them.

    `half_open`, `closing` and `udp` are time-outs, `idle_check` how often idle ones are looked for (seconds).
    Before a connection whose SYN was never answered is forgotten, `on_silence` is told if it has timed
    out, `on_eviction` if it makes room for another. `on_gone` is told of every one that is forgotten.
    `carrier`, where there is one, is asked before a connection that might go on is given up; where it knows
    that the connection has come further, `on_progress` is told, to move it there.
    """

    def __init__(
        self, limit: int, *, half_open: float, closing: float, udp: float = 30.0,
        count_on: str = "syn", close_on: str = "both",
        recorder: Recorder | None = None, on_silence: Callable[[Connection, float], None] | None = None,
        on_eviction: Callable[[Connection, float], None] | None = None,
        on_gone: Callable[[Connection], None] | None = None, carrier: Carrier | None = None,
        on_progress: Callable[[Connection, State, float], None] | None = None,
    ) -> None:  # fmt: skip
        self.limit = limit
        self._carrier = carrier
        self._on_progress = on_progress
        self._on_gone = on_gone
        self._on_silence = on_silence
        self._on_eviction = on_eviction
        self.inbound: dict[bytes, Connection] = {}
        self.outbound: dict[bytes, Connection] = {}
        self.counted = 0
        self.total = 0
        self.reassigned = 0
        self.evicted = 0
        self.recount: Recount | None = None  # a count that is under way
        self._udp = udp
        delays = _delays(half_open, closing, udp)
        self._queues = {timeout: _queue(timeout, delay) for timeout, delay in delays.items()}
        self._idle: dict[float, DueQueue[Connection]] = {}  # by how often its members are looked at
        self._idle_of: dict[float, DueQueue[Connection]] = {}  # the same, by their idle time-out
        self._counts = counting(count_on, close_on)
        self._recorder: Recorder = recorder or NoRecorder()

    def __len__(self) -> int:
        return len(self.inbound)

    def follow(
        self, limit: int, *, half_open: float, closing: float, udp: float, count_on: str, close_on: str,
        on_gone: Callable[[Connection], None] | None,
    ) -> None:  # fmt: skip
        """Other limits and time-outs (as above) from now on; those that run already are measured by them.

        Where other states count, each connection is looked at, and the real servers must be told.
        """
        self.limit, self._udp, self._on_gone = limit, udp, on_gone
        self.recount = None  # begun under another configuration
        for timeout, delay in _delays(half_open, closing, udp).items():
            if delay != self._queues[timeout].delay:
                self._queues[timeout].retime(delay)
        counts = counting(count_on, close_on)
        if counts != self._counts:
            for connection in self.inbound.values():
                state = connection.state
                if difference := counts[state] - self._counts[state]:
                    self._count(connection.link, difference, 0)
            self._counts = counts

    def begin_recount(self) -> None:
        """Begin another count of all connections: see `audit`."""
        self.recount = Recount(self._counts)

    def add(self, connection: Connection, now: float) -> None:
        """Enter a new connection, whose first packet is now on its way (R118-R125).

        Both of its keys must be free.
        """
        connection.recount = self.recount
        self.inbound[connection.inbound] = connection
        self.outbound[connection.outbound] = connection
        connection.link.held += 1
        if connection.link.members is not None:
            connection.link.members.add(connection)
        self._set_state(connection, connection.link.virtual.opening, now)
        connection.link.total += 1
        connection.link.real.total += 1
        connection.link.virtual.total += 1
        self.total += 1
        connection.place = self._recorder.opened(connection)

    def restore(self, connection: Connection, state: State, now: float) -> None:
        """Enter a connection that another worker knew; its journal record stands already.

        Whoever restores tells the real servers afterwards that they changed.
        """
        self.inbound[connection.inbound] = connection
        self.outbound[connection.outbound] = connection
        connection.link.held += 1
        if connection.link.members is not None:
            connection.link.members.add(connection)
        connection.state = state
        connection.recount = self.recount
        if self.recount is not None:
            self.recount.moved(connection.link, state, 1)
        connection.settle()
        if state.half_open:
            self._handshake(connection, 1)
        self._count(connection.link, self._counts[state], state.unanswered)
        if state.timeout is not None:
            self._wait(connection, state.timeout, now)

    def move(self, connection: Connection, state: State, now: float) -> None:
        """Bring a connection to another state; its counts and its time-out follow."""
        self._set_state(connection, state, now)
        self._recorder.moved(connection)

    def reassign(self, connection: Connection, link: Link, outbound: bytes, now: float) -> None:
        """Send an unanswered connection to another server; `outbound`, its new key there, must be free."""
        before, unanswered = connection.link, connection.state.unanswered
        del self.outbound[connection.outbound]
        counted = self._counts[connection.state]
        if self.recount is not None and connection.recount is self.recount:
            self.recount.moved(before, connection.state, -1)
            self.recount.moved(link, connection.state, 1)
        self._count(before, -counted, -unanswered)
        before.held -= 1
        link.held += 1
        connection.link = link
        connection.outbound = outbound
        self.outbound[outbound] = connection
        if before.members is not None and link.members is not None:  # links of one virtual server
            before.members.discard(connection)
            link.members.add(connection)
        self._count(link, counted, unanswered)
        link.total += 1
        link.real.total += 1
        self.reassigned += 1
        before.real.changed(now)
        link.real.changed(now)
        self._recorder.reassigned(connection)

    def remove(self, connection: Connection, now: float) -> None:
        """Forget a connection."""
        del self.inbound[connection.inbound]
        del self.outbound[connection.outbound]
        connection.link.held -= 1
        if connection.link.members is not None:
            connection.link.members.discard(connection)
        self._set_state(connection, State.GONE, now)
        self._recorder.ended(connection)
        if self._on_gone is not None:
            self._on_gone(connection)

    def cut(self, connection: Connection, now: float) -> None:
        """Forget a connection that might go on."""
        if self._carrier is not None:
            self._carrier.cut(connection)
        self.remove(connection, now)

    def _set_state(self, connection: Connection, state: State, now: float) -> None:
        old = connection.state
        connection.state = state
        recount = self.recount
        if recount is not None and connection.recount is recount:
            recount.moved(connection.link, old, -1)
            recount.moved(connection.link, state, 1)
        if state.quick:
            if connection.interval is None:
                connection.quick = True
            else:
                connection.settle()
        counted = self._counts[state] - self._counts[old]
        unanswered = state.unanswered - old.unanswered
        if counted:
            self._count(connection.link, counted, unanswered)
            connection.link.real.changed(now)
        elif unanswered:
            real = connection.link.real
            overloaded = real.overloaded
            self._count(connection.link, 0, unanswered)
            if real.overloaded is not overloaded:  # an answered SYN alone moves no rank
                real.changed(now)
            else:
                real.stirred()
        timeout = state.timeout
        if state.half_open is not old.half_open:
            self._handshake(connection, 1 if state.half_open else -1)
        if timeout is not None and timeout is not old.timeout:
            idle = timeout is Timeout.IDLE
            queue = self._idle_queue(connection.link) if idle else self._queues[timeout]
            queue.push(connection, now)

    def _handshake(self, connection: Connection, more: int) -> None:
        """A handshake has begun (1), or is over (-1)."""
        virtual = connection.link.virtual
        virtual.half_open += more
        guard = virtual.guard
        if guard is not None:
            (guard.begun if more > 0 else guard.over)(connection)

    def _idle_queue(self, link: Link) -> DueQueue[Connection]:
        """Where connections of a link wait for their idle time-out."""
        queue = self._idle_of.get(link.real.spec.idle_timeout)
        return self._make_idle_queue(link.real.spec.idle_timeout) if queue is None else queue

    def _make_idle_queue(self, idle_timeout: float) -> DueQueue[Connection]:
        """The queue for a time-out not met before.

        One server's short time-out must not have all others' connections looked at as often, so those
        wait apart; by powers of two, for there may be as many time-outs as servers.
        """
        check = IDLE_CHECK
        while check > idle_timeout / 4:
            check /= 2
        queue = self._idle.get(check)
        if queue is None:
            queue = self._idle[check] = _queue(Timeout.IDLE, check)
            # those that come up most often behind the others, for there may not be time for all
            self._idle = dict(sorted(self._idle.items(), reverse=True))
        self._idle_of[idle_timeout] = queue
        return queue

    def _count(self, link: Link, counted: int, unanswered: int) -> None:
        link.connections += counted
        link.virtual.connections += counted
        link.real.connections += counted
        link.real.unanswered += unanswered
        self.counted += counted

    def make_room(self, now: float) -> bool:
        """Make sure one more connection fits (A23). False if the table is full of live ones.

        Ended connections go first, then the oldest UDP flow that nothing came back on (who sends
        datagrams reckons with losing one), then the oldest half-open connection; an established one,
        or a UDP flow that was answered, is never given up for a new one.
        """
        if len(self.inbound) < self.limit:
            return True
        order = (Timeout.CLOSING, Timeout.UDP_NEW, Timeout.HALF_OPEN)
        return any(self._evict(timeout, now) for timeout in order)

    def _evict(self, timeout: Timeout, now: float) -> bool:
        queue = self._queues[timeout]
        while (connection := queue.pop_first()) is not None:
            if connection.state.timeout is timeout and self.give_up(connection, now):
                self.evicted += 1
                return True
        return False

    def give_up(self, connection: Connection, now: float) -> bool:
        """Forget a connection to make room; False if it has come further than was known, and stays."""
        timeout = connection.state.timeout
        self._ask(connection, now)  # or what has been answered meanwhile would be given up
        if connection.state.timeout is not timeout:
            return False
        if not connection.state.ended and not self.released(connection, now):
            return False
        if connection.state.unanswered and self._on_eviction is not None:
            self._on_eviction(connection, now)
        self.remove(connection, now)
        return True

    def answered(self, connection: Connection, now: float) -> bool:
        """Whether a connection that looks unanswered is not, as its carrier knows."""
        return self._ask(connection, now) is not None and not connection.state.unanswered

    def released(self, connection: Connection, now: float) -> bool:
        """Whether its carrier has let go of a connection that looks unanswered, as it is just now."""
        if self._carrier is None:
            return True
        state = self._carrier.release(connection)
        if state is not None and self._on_progress is not None:
            self._on_progress(connection, state, now)
        return state is None

    def expire(self, now: float, budget: int) -> int:
        """End what has timed out, looking at no more than `budget` connections; returns how many."""
        looked = 0
        # live connections come up again and again, maybe more than there is time for: they are last
        idle = ((Timeout.IDLE, queue) for queue in self._idle.values())
        for timeout, queue in (*self._queues.items(), *idle):
            while looked < budget and (connection := queue.pop_due(now)) is not None:
                looked += 1
                if connection.state.timeout is not timeout:
                    continue  # it is gone, or has moved on: another queue has it
                if now - connection.seen < self._limit_of(connection, timeout):
                    self._wait(connection, timeout, now)
                    continue
                if self._carrier is not None and not connection.state.ended:
                    looked += _ASKING
                    if self._goes_on(connection, timeout, now):
                        continue
                if connection.state.unanswered and self._on_silence is not None:
                    self._on_silence(connection, now)
                self.remove(connection, now)
        return looked

    def _goes_on(self, connection: Connection, timeout: Timeout, now: float) -> bool:
        """Whether a connection of which nothing was heard goes on, as its carrier knows."""
        before = connection.state
        state = self._ask(connection, now)
        if state is None:
            return False
        if state.unanswered and connection.state.unanswered and self.released(connection, now):
            return False
        if connection.state is before:
            self._wait(connection, timeout, now)
        return True

    def _wait(self, connection: Connection, timeout: Timeout, now: float) -> None:
        """Look at a connection again later; its server may have another idle time-out by now."""
        idle = timeout is Timeout.IDLE
        (self._idle_queue(connection.link) if idle else self._queues[timeout]).push(connection, now)

    def _ask(self, connection: Connection, now: float) -> State | None:
        """How far a connection has come, as its carrier knows: so far it is brought here. None: ended."""
        if self._carrier is None or connection.state.ended:
            return None
        state = self._carrier.carries(connection, now)
        if state is not None and self._on_progress is not None:
            self._on_progress(connection, state, now)
        return state

    def _limit_of(self, connection: Connection, timeout: Timeout) -> float:
        """Seconds without a packet after which the connection ends (R046)."""
        if timeout is Timeout.IDLE:
            return connection.link.real.spec.idle_timeout
        if connection.state.udp:
            return self._udp
        return self._queues[timeout].delay


def _delays(half_open: float, closing: float, udp: float) -> dict[Timeout, float]:
    """How long a connection waits in each queue but those of idle ones (seconds)."""
    check = min(IDLE_CHECK, udp / 4)
    return {
        Timeout.HALF_OPEN: half_open,
        Timeout.CLOSING: closing,
        Timeout.UDP_NEW: check,
        Timeout.UDP: check,
    }


def _queue(timeout: Timeout, delay: float) -> DueQueue[Connection]:
    def wanted(members: Iterable[Connection]) -> list[Connection]:
        return [each for each in members if each.state.timeout is timeout]

    return DueQueue(delay, wanted=wanted)
