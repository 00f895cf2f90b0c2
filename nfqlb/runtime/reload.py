"""Reload: another configuration while the gateway runs (`nfqlb reload`, SIGHUP).

Owns the order of things, which is such that no packet of a connection that stays meets half of a change:

1. The file is read and compared. Where it is bad, or asks for what needs a restart or for what this machine
   cannot do (`host`), nothing has happened.
2. Settings and rules for what is and what was: whatever either needs is there. Marks keep their meaning.
3. From here on a worker that is forked has the new configuration, so it may die at any moment.
4. The running worker takes it between two packets.
5. New addresses come up, as everybody knows now what to do with their packets; those of no use go down.
6. What has no connections is let go of by the worker, then by the rules. The rest drains, and is looked at
   every other second.

Where step 2 fails, everything is put back. Where the worker fails it is replaced, by one that has the
configuration of before; where an address cannot be had, the way back is a reload, too. Kernel work is done
in a child: iptables may have to wait for somebody, and there is a worker to look after.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Protocol

from nfqlb.config import difference, transition
from nfqlb.config.load import ConfigError
from nfqlb.core.spec import Config, Server
from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime import access
from nfqlb.runtime.comparison import Comparison, Looks, file_of, judged
from nfqlb.runtime.course import Course, Runner, Step
from nfqlb.runtime.desk import Desk, Worker
from nfqlb.runtime.handover import Handover, Reading, Source
from nfqlb.runtime.protocol import JSON, ControlError, Request

logger = logging.getLogger(__name__)

_LOOK = 2.0  # seconds between looks at what drains
_WHY = {
    "needs-restart": "cannot be taken while the gateway runs",
    "host-refused": "cannot run on this machine",
}
_LISTED = 5  # so many differences are in the event; the log has all


class _RefusedError(ControlError):
    """Nothing has been changed yet."""


class Kernel(Looks, Protocol):
    """What is done in the kernel (`hands.Hands`). Raises KernelError into the course."""

    def rules(self, config: Config) -> Step:
        """Settings and rules as a configuration needs them."""

    def addresses(self, config: Config) -> Step:
        """Virtual addresses as a configuration needs them."""


class Reload:
    """Reloads one gateway. `config` is what runs: what the file said, and what still drains.

    `room` is how many connections there can be at most. `prepare` is called before anything is changed, and
    raises KernelError where this process lacks something; `follow` whenever another configuration is in
    force. `rest` is a context in which nobody takes our changes for another's; `begins` and `over` are called
    when a reload begins and ends, `keep` with the text of the configuration that is in force then. `named`
    gives a configuration the present names of interfaces.
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        desk: Desk,
        worker: Worker,
        kernel: Kernel,
        handover: Handover,
        *,
        room: int,
        prepare: Callable[[Config], None],
        follow: Callable[[Config], None],
        rest: Callable[[], AbstractContextManager[None]],
        begins: Callable[[], None] = lambda: None,
        over: Callable[[], None] = lambda: None,
        named: Callable[[Config], Config] = lambda config: config,
        keep: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.config = config
        self._source = source
        self._desk = desk
        self._worker = worker
        self._kernel = kernel
        self._handover = handover
        self._room = room
        self._prepare = prepare
        self._follow = follow
        self._rest = rest
        self._begins = begins
        self._over = over
        self._named = named
        self._keep = keep
        self._runner = Runner(self._ended)
        self._request: Request | None = None  # whose course is under way
        self._again = False  # another signal came meanwhile
        self._looked = 0.0
        self._comparison = Comparison(desk, kernel, lambda: self.config, self._read, room=room)
        desk.offer("reload", self._asked)
        desk.offer("diff", self._comparison.diff)
        desk.offer("verify", self._verify)

    @property
    def busy(self) -> bool:
        """Whether a reload is under way."""
        return self._runner.busy

    # --- questions and orders

    def signalled(self) -> None:
        """SIGHUP: reload; the outcome is in the log."""
        if self._runner.busy:
            self._again = True
            return
        with suppress(ControlError):  # logged, and kept as an event
            self._begin(None, "SIGHUP", None)

    def tick(self) -> None:
        """To be called once a second: let go of what has drained."""
        now = time.monotonic()
        if self._runner.busy or not self.config.leaving.places or now < self._looked + _LOOK:
            return
        self._looked = now
        self._runner.run(self._look())

    def close(self) -> None:
        """Nothing goes on any more: the gateway is being taken down."""
        self._again = False
        self._runner.close()

    def _asked(self, request: Request) -> None:
        if self._runner.busy:
            raise ControlError("busy", "another reload is under way", "try again in a moment")
        self._begin(file_of(request), access.who(request), request)

    def _verify(self, request: Request) -> None:
        if self._runner.busy:
            raise ControlError("busy", "a reload is under way", "try again in a moment")
        self._comparison.verify(request)

    def _read(self, path: Path | None) -> Reading:
        try:
            reading = self._source.reading(path)
            return reading._replace(config=self._named(reading.config))
        except ConfigError as error:
            raise ControlError("bad-config", str(error)) from None

    def _begin(self, path: Path | None, who: str, request: Request | None) -> None:
        """Begin a reload. Raises ControlError where that is all."""
        name = str(path or self._source.path)
        try:
            wanted = self._read(path)
        except ControlError as error:
            self._refused(name, who, error)
            raise
        self._request = request
        self._runner.run(self._carry_out(wanted, name, who, request))

    def _refused(self, name: str, who: str, error: ControlError) -> None:
        """Nothing has changed: say why."""
        first, *more = error.message.split("\n")
        what = _WHY.get(error.code, "is refused")
        self._desk.reloaded(first)
        text = f"{name} {what}; nothing is changed: {first}"
        self._desk.events.add("reload", name, text, who=who, level="error")
        for line in more:
            logger.error("%s", line)

    # --- the course of a reload

    def _carry_out(self, reading: Reading, name: str, who: str, request: Request | None) -> Course:
        before, wanted = transition.without_leftovers(self.config), reading.config
        found = difference.compare(before, wanted)
        with ExitStack() as undo:
            undo.enter_context(self._rest())
            self._begins()
            undo.callback(self._over)
            try:
                warnings = yield from self._examine(before, wanted)
                yield from self._change(wanted)
            except _RefusedError as error:
                self._refused(name, who, error)
                if request is not None:
                    request.refuse(error)
                return
            except (KernelError, ControlError) as error:
                self._failed(name, who, error, request)
                return
        draining = sorted(self.config.leaving.reals | self.config.leaving.virtuals)
        said = difference.lines(found)
        self._keep(reading.text)
        self._desk.reloaded()
        self._tell(name, who, said)
        for line in warnings:
            logger.warning("%s", line)
        if request is not None:
            documents: list[JSON] = [each.document() for each in found]
            lines: list[JSON] = list(said)
            names: list[JSON] = list(draining)
            warned: list[JSON] = list(warnings)
            request.reply(
                {"differences": documents, "said": lines, "draining": names, "warnings": warned}
            )

    def _examine(self, before: Config, wanted: Config) -> Generator[Step, JSON, list[str]]:
        """What this machine warns of that it did not before.

        Raises _RefusedError with all that stands against it: what needs a restart, and the errors of which a
        start would fail.
        """
        found = yield self._kernel.findings(before, wanted)
        errors, warnings = judged(found)
        fixed = transition.refusals(self.config, wanted, room=self._room)
        if fixed or errors:
            code = "needs-restart" if fixed else "host-refused"
            raise _RefusedError(code, "\n".join([*fixed, *errors]))
        return warnings

    def _change(self, wanted: Config) -> Course:
        """Steps 2 to 6. Raises KernelError or ControlError, with everything as it was before."""
        before = self.config
        after = transition.merged(before, wanted)
        self._prepare(after)
        try:
            yield self._kernel.rules(after)
        except KernelError:
            yield from self._put_back(before)
            raise
        try:
            remaining = yield from self._give(after)
        except ControlError:
            self.in_force(before)
            self._replace_worker()
            yield from self._put_back(before)
            raise
        try:
            yield self._kernel.addresses(transition.settled(after, _places(remaining)))
        except KernelError:
            yield from self._go_back(before)
            raise
        yield from self._let_go(_places(remaining))

    def _put_back(self, before: Config) -> Course:
        """The rules of before. Where even that fails, the guard goes on trying."""
        try:
            yield self._kernel.rules(before)
        except KernelError as error:
            logger.error("the rules of before cannot be put back yet: %s", error)

    def _go_back(self, before: Config) -> Course:
        """Another reload, to what the file said before."""
        back = transition.merged(self.config, transition.without_leftovers(before))
        yield from self._put_back(back)
        remaining = yield from self._give(back)
        try:
            yield self._kernel.addresses(back)
        except KernelError as error:
            logger.error("the addresses of before cannot be put back yet: %s", error)
        yield from self._let_go(_places(remaining))

    def _give(self, config: Config) -> Generator[Step, JSON, JSON]:
        """Let the worker have a configuration; returns what has connections and is leaving.

        One that dies meanwhile has a successor that was born with it. Raises ControlError where it fails.
        """
        self.in_force(config)
        size = self._handover.give(config)
        everything: list[JSON] = [[name, place.real, place.port] for name, place in config.leaving.places]
        for last in (False, False, True):  # to follow twice is to follow once
            try:
                result = yield lambda done, failed: self._worker.call("reload", {"size": size}, done, failed)
                return result.get("remaining", everything) if isinstance(result, dict) else everything
            except ControlError as error:
                if error.code == "worker-restarting":
                    return everything
                if last or error.code != "worker-busy":
                    raise
        return everything

    def _let_go(self, remaining: list[tuple[str, Server]]) -> Course:
        """Step 6. What fails here is tried again with a later look: rules too many do no harm."""
        config = transition.settled(self.config, remaining)
        if config == self.config:
            return
        try:
            yield from self._give(config)
            yield self._kernel.rules(config)
        except (KernelError, ControlError) as error:
            logger.warning("what has drained cannot be let go of yet: %s", error)

    def _look(self) -> Course:
        """What has drained by now?"""
        before = self.config.leaving
        try:
            result = yield lambda done, failed: self._worker.call("remaining", {}, done, failed)
        except ControlError:
            return
        remaining = _places(result.get("remaining") if isinstance(result, dict) else None)
        config = transition.settled(self.config, remaining)
        if config.leaving == before:
            return
        with self._rest():
            try:
                yield self._kernel.addresses(config)
            except KernelError as error:
                logger.warning("what has drained cannot be let go of yet: %s", error)
                return
            yield from self._let_go(remaining)
        for kind, names in (
            ("real server", before.reals - self.config.leaving.reals),
            ("virtual server", before.virtuals - self.config.leaving.virtuals),
        ):
            for name in sorted(names):
                self._desk.events.add("reload", name, f"{kind} {name} has drained and is gone")

    def in_force(self, config: Config) -> None:
        """Another configuration is what runs."""
        self.config = config
        self._follow(config)

    def _replace_worker(self) -> None:
        """It may have followed by half: its successor finds everything in the journal."""
        if self._worker.pid is not None:
            os.kill(self._worker.pid, signal.SIGKILL)

    def _failed(
        self, name: str, who: str, error: KernelError | ControlError, request: Request | None
    ) -> None:
        text = f"{name} cannot be put into force; everything is as it was before: {error}"
        self._desk.reloaded(str(error))
        self._desk.events.add("reload", name, text, who=who, level="error")
        if request is not None:
            request.refuse(ControlError("reload-failed", text))

    def _tell(self, name: str, who: str, said: list[str]) -> None:
        """One event, and in the log every line."""
        if not said:
            self._desk.events.add("reload", name, f"{name} reloaded; nothing is different", who=who)
            return
        more = f"; and {len(said) - _LISTED} more" if len(said) > _LISTED else ""
        text = f"{name} reloaded: {'; '.join(said[:_LISTED])}{more}"
        self._desk.events.add("reload", name, text, who=who)
        for line in said if more else ():
            logger.info("%s", line)

    def _ended(self, defect: Exception | None) -> None:
        request, self._request = self._request, None
        self._looked = time.monotonic()
        if defect is not None:
            logger.error("a reload failed", exc_info=defect)
            self._desk.reloaded(f"internal error: {defect}")
            if request is not None:
                request.fail("internal-error", "the reload failed inside the gateway", "its log says more")
        if self._again:
            self._again = False
            self.signalled()


def _places(rows: JSON) -> list[tuple[str, Server]]:
    """Places as the worker tells of them: virtual server, real server, port."""
    found = []
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, list) and len(row) == 3:
            name, real, port = row
            found.append((str(name), Server(str(real), port if isinstance(port, int) else None)))
    return found
