"""The supervisor: brings the gateway up, keeps a worker alive, and takes everything down again.

Owns the processes and the order of things. It binds the queues itself and forks the worker, so
that the kernel keeps queueing while a dead worker is replaced. Start: checks, journal, queues,
settings, worker, rules, addresses. Stop and failed starts undo exactly what was done, in the
reverse order: addresses before rules, or the gateway's own TCP would reset clients in between.
"""

import logging
import mmap
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nfqlb import __version__
from nfqlb.config.summary import endpoint
from nfqlb.core.spec import Config
from nfqlb.netfilter import address, host, rules, sysctl
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.neighbours import Neighbours
from nfqlb.netfilter.queue import ask_for_stamps
from nfqlb.netfilter.queue_status import read_queues
from nfqlb.netfilter.reply import ReplySockets, replies_to_clients
from nfqlb.netfilter.state import Claim, Record
from nfqlb.runtime import orders, views
from nfqlb.runtime.channel import SupervisorChannel, WorkerChannel, pair
from nfqlb.runtime.control import Request, Server
from nfqlb.runtime.datapaths import Datapaths
from nfqlb.runtime.journal import Journal
from nfqlb.runtime.protocol import JSON, ControlError
from nfqlb.runtime.summary import GatewayStatus, summary
from nfqlb.runtime.worker import Worker

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TICK = 1.0
#: After so many workers in a row that died before they served, the journal is not trusted any more, and
#: the next ones come at this distance (seconds).
_STILLBORN, _BIRTH_INTERVAL = 3, 1.0
_FAREWELL = 3.0  # seconds a worker gets to end by itself


@dataclass(slots=True)
class _Child:
    pid: int
    channel: SupervisorChannel


class Supervisor:
    """The gateway of one configuration. `say_ready` is called once packets flow."""

    def __init__(self, config: Config, say_ready: Callable[[], None]) -> None:
        self._config = config
        self._say_ready = say_ready
        self._selector = selectors.DefaultSelector()
        self._undo = ExitStack()
        self._started = time.monotonic()
        self._stopping = False
        self._worker: _Child | None = None
        self._restarts = 0
        self._stillborn = 0
        self._serving = mmap.mmap(-1, 1)  # shared with the worker, which sets it when it has taken over
        self._next_birth = 0.0
        self._neighbours = Neighbours()

    def run(self) -> None:
        """Bring the gateway up, serve until a signal says otherwise, take it down. Raises KernelError."""
        with self._undo:
            self._start()
            self._say_ready()
            logger.info("ready: %s", _described(self._config))
            self._serve()
            logger.info("stopping")
        logger.info("stopped")

    # --- up and down

    def _start(self) -> None:
        config, undo = self._config, self._undo
        undo.enter_context(Claim())
        record = Record()
        undo.callback(_log_all, sysctl.restore, record)
        self._journal = Journal(config.gateway.max_connections)
        undo.callback(self._journal.close, remove=True)
        self._listen_to_signals()
        self._datapaths = Datapaths(config)
        undo.callback(self._datapaths.close)
        self._replies = self._open_replies()
        undo.enter_context(ask_for_stamps())  # response times are differences of stamps
        undo.callback(self._end_worker)
        self._control = Server(Path(config.gateway.socket), self._selector, self._answer)
        undo.callback(self._control.close)
        _log_all(sysctl.switch, sysctl.forwarding(config) | sysctl.tracking(config), record)
        self._fork()
        undo.callback(_log_all, rules.withdraw)
        rules.apply(config)
        undo.callback(_log_all, address.take_down)
        _log_all(address.bring_up, config)

    def _open_replies(self) -> ReplySockets | None:
        """The sockets by which clients are told of what is refused, where they are to be."""
        if not replies_to_clients(self._config):
            return None
        try:
            sockets = ReplySockets({virtual.address.version for virtual in self._config.virtuals})
        except OSError as error:
            raise KernelError(
                f'no raw socket, which "reset" needs: {error.strerror}; run as root, or with CAP_NET_RAW'
            ) from None
        self._undo.callback(sockets.close)
        return sockets

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

    # --- serving

    def _serve(self) -> None:
        tick = time.monotonic()
        while not self._stopping:
            for key, mask in self._selector.select(_TICK):
                key.data(mask)
            self._look_after_worker()
            if time.monotonic() >= tick:
                tick = time.monotonic() + _TICK
                self._control.tick()
                if self._worker is not None:
                    self._worker.channel.tick()

    # --- the worker

    def _look_after_worker(self) -> None:
        """Replace a worker that has died: at once, unless they die as fast as they come."""
        child, now = self._worker, time.monotonic()
        if child is not None:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                return
            self._worker = None
            child.channel.close()
            self._stillborn = 0 if self._serving[0] else self._stillborn + 1
            logger.warning("worker %d died (%s); starting another", pid, _cause(status))
            if self._stillborn >= _STILLBORN:
                logger.error("workers die as they start; forgetting connections, settings and failures")
                self._journal.clear()
                self._next_birth = now + _BIRTH_INTERVAL
        if now >= self._next_birth and not self._stopping:
            self._restarts += 1
            self._fork()

    def _fork(self) -> None:
        ours, theirs = pair()
        self._serving[0] = 0
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ours.close()
                self._be_worker(theirs)
                status = 0
            except Exception:
                logger.exception("the worker failed")
            finally:
                logging.shutdown()
                os._exit(status)
        theirs.close()
        self._worker = _Child(pid, SupervisorChannel(ours, self._selector))

    def _be_worker(self, channel: socket.socket) -> None:
        """In the child: let go of what is the supervisor's, and work."""
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the supervisor decides
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._control.abandon()
        worker = Worker(
            self._config, self._datapaths, WorkerChannel(channel), self._journal, self._replies
        )
        signal.signal(signal.SIGTERM, lambda *_: worker.stop())
        worker.run(self._say_serving)

    def _say_serving(self) -> None:
        self._serving[0] = 1

    def _end_worker(self) -> None:
        child = self._worker
        if child is None:
            return
        child.channel.close()
        os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + _FAREWELL
        while os.waitpid(child.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
                break
            time.sleep(0.01)
        self._worker = None

    # --- questions

    def _answer(self, request: Request) -> None:
        if self._worker is None:
            raise ControlError("worker-restarting", "the worker is being restarted", "try again in a moment")
        finish = {"summary": self._summary, "reals": self._reals}.get(request.cmd)
        if request.cmd in orders.ORDERS:
            finish = partial(_logged, request)
        if finish is None:
            self._worker.channel.forward(request)
            return
        finished = finish
        self._worker.channel.call(
            request.cmd, request.args, lambda result: request.reply(finished(result)), request.refuse
        )

    def _reals(self, rows: JSON) -> JSON:
        """The worker's rows, with what the kernel knows of each server's link (R037, A36)."""
        known = self._neighbours.of([real.address for real in self._config.reals])
        return views.with_neighbours(rows, known)

    def _summary(self, counts: JSON) -> JSON:
        assert isinstance(counts, dict)
        gateway = self._config.gateway
        ours = [queue.number for queue in self._datapaths.queues]
        return summary(
            counts,
            GatewayStatus(
                version=__version__,
                datapath=gateway.datapath,
                state="running",
                uptime=time.monotonic() - self._started,
                worker_pid=self._worker.pid if self._worker else None,
                worker_restarts=self._restarts,
                queues=[queue for queue in read_queues() if queue.number in ours],
            ),
        )


def _logged(request: Request, result: JSON) -> JSON:
    """An order was carried out: say what, and who gave it."""
    who = "the supervisor" if request.peer is None else f"user {request.peer.uid}, process {request.peer.pid}"
    said = result.get("said") if isinstance(result, dict) else None
    for line in said if isinstance(said, list) else ():
        logger.info("%s (ordered by %s)", line, who)
    return result


def run(config: Config, source: str) -> int:
    """`nfqlb run`: serve in the foreground until SIGTERM or Ctrl-C; returns the exit status.

    `source` names the configuration in the log. Prints "ready" once packets flow.
    """
    logger.info("nfqlb %s, configuration %s", __version__, source)
    try:
        findings = host.check(config)
        for finding in findings:
            level = logging.ERROR if finding.level == "error" else logging.WARNING
            logger.log(level, "%s%s", finding.what, f"; {finding.advice}" if finding.advice else "")
        if any(finding.level == "error" for finding in findings):
            return 1
        Supervisor(config, _say_ready).run()
    except (KernelError, ControlError) as error:
        logger.error("%s", error)
        return 1
    return 0


def _say_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _noticed(_number: int, _frame: object) -> None:
    """The wake-up descriptor carries the signal; a handler must stand for it to be written."""


def _log_all(act: Callable[..., list[str]], *args: object) -> None:
    for line in act(*args):
        logger.info("%s", line)


def _cause(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"by signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _described(config: Config) -> str:
    """Each virtual server with its address and how many servers it has."""
    return ", ".join(
        f"{virtual.name} {endpoint(virtual.address, virtual.port)} over "
        f"{len(virtual.servers)} server{'' if len(virtual.servers) == 1 else 's'}"
        for virtual in config.virtuals
    )
