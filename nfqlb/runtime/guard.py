"""The guard: sees when somebody takes the gateway's rules, addresses or settings away, and puts them back.

Owns when it is looked, and when repaired. The kernel tells of most changes at once (`changes`); what it
does not tell of, such as the legacy tables of iptables, is looked at every two seconds. Looking and
repairing is done in a child (`Errands`), for iptables may have to wait for somebody. What the guard itself
changes is told of as well: it is known by the child that did it, and looked at once more at most.

Two who put the same thing right in turn would never end. So repairs are counted out (`Patience`): a
firewall's start-up script may flush a dozen times, whoever goes on gets one repair in three seconds, and
it is said that there is somebody.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from selectors import EVENT_READ, BaseSelector
from typing import Protocol

from nfqlb.core.spec import Address, Config
from nfqlb.netfilter import address, repair, sysctl
from nfqlb.netfilter.address import Placement
from nfqlb.netfilter.changes import ADDRESSES, EVERYTHING, RULES, SETTINGS, Author, Changes
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.iptables import Iptables
from nfqlb.runtime.errand import Errands
from nfqlb.runtime.protocol import JSON, JSONObject

logger = logging.getLogger(__name__)

_LOOK = 2.0  # seconds between looks at what nobody tells of
_LOOK_AGAIN = 30.0  # and at what is told of: a notice may be lost
_PAUSE = 0.2  # seconds after a look that found nothing: others may change their own rules all the time
_PATIENCE = 20.0  # seconds that a look and a repair may take
_TOLD = 3  # of so many findings, and authors, an event says what they are
_REMEMBERED = 50  # authors between two looks
_LISTED = 12  # of so many the log does

_OUR_PROGRAMS = ("iptables-restor", "ip6tables-resto")  # as the kernel cuts their names

_BURST, _INTERVAL = 12, 3.0


class Patience:
    """How many repairs there may be: `burst` at once, then one in `interval` seconds. Pure."""

    def __init__(self, burst: int = _BURST, interval: float = _INTERVAL) -> None:
        self._burst = burst
        self._interval = interval
        self._left = float(burst)
        self._at = 0.0

    def has(self, now: float) -> bool:
        """Whether one may be made now."""
        self._left = min(float(self._burst), self._left + max(0.0, now - self._at) / self._interval)
        self._at = now
        return self._left >= 1.0

    def take(self) -> None:
        """One was made."""
        self._left -= 1.0

    @property
    def whole(self) -> bool:
        """Whether nothing has happened for long, as of the last `has`."""
        return self._left >= self._burst


@dataclass(slots=True)
class Heard:
    """What was told of: since when (seconds of the clock, None for nothing), and who did it."""

    since: float | None = None
    authors: list[Author] = field(default_factory=list)

    def add(self, now: float, authors: list[Author]) -> None:
        """Something more."""
        self.since = now if self.since is None else self.since
        self.authors = [*self.authors, *authors][-_REMEMBERED:]

    def who(self, found: list[str]) -> list[str]:
        """Who touched what was found; all who are known where that does not tell them apart.

        Those last who tell most: a program that was gone when it was looked for has no command line.
        """
        places = {" ".join(line.split()[:2]) for line in found} | {line.split()[0] for line in found}
        guilty = [author for author in self.authors if author.touched & places] or list(self.authors)
        guilty.sort(key=lambda author: bool(author.process.command))
        return list(dict.fromkeys(str(author.process) for author in guilty))


class Says(Protocol):
    """Where events go: `Events.add`."""

    def __call__(self, kind: str, name: str, text: str, *, level: str = "info") -> None:
        """Keep an event of this kind, and log it."""


class Guard:
    """Guards one gateway from when it is made until `close`; what it needs must be in place by then.

    `state` is the part "rules" of the snapshot, kept up to date here; `rebind` binds queues again that the
    kernel has let go of, and says which. `clock` is monotonic, `wall` the time
    of day, in seconds.
    """

    def __init__(
        self,
        config: Config,
        selector: BaseSelector,
        say: Says,
        state: JSONObject,
        rebind: Callable[[], list[str]] = list,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.state = state
        self._config = config
        self._selector = selector
        self._say = say
        self._rebind = rebind
        self._clock, self._wall = clock, wall
        self._patience = Patience()
        self._errands = Errands(selector, _PATIENCE)
        self._subjects: frozenset[str] = frozenset()  # that the errand looks at
        self._changes = True  # whether the errand may change anything
        self._wrong: frozenset[str] = frozenset()  # subjects that are so, or could not be looked at
        self._followed = False  # the configuration is another than when it was last looked
        self._follows = False  # the errand is the first one for this configuration
        self._clean = -_PAUSE  # when the last look ended that found nothing
        self._resting = False
        self._due: set[str] = set()
        self.helpers: list[Callable[[], int | None]] = []  # others of the gateway's that change rules, by pid
        self._heard_of = Heard()  # what is not looked at yet
        self._looks_at = Heard()  # what the errand looks at
        self._well = self._looked = self._looked_again = clock()
        self._known: set[Placement] = set(address.held())
        self._failure = ""
        self._contested = 0  # repairs since they are counted out
        self._lately = Heard()  # who made the repairs necessary that are counted
        self._listen()
        state.update(present=True, repairs=0, repaired_at=None, why="", contested="")

    def _listen(self) -> None:
        self._told = False  # of changes to rules
        self._notices: Changes | None = None
        try:
            self._notices = Changes()
            self._told = Iptables().kind() == "nf_tables"
        except KernelError as error:
            logger.info("changes to rules are looked for every %g s: %s", _LOOK, error)
        if self._notices is not None:
            for sock in (self._notices.rules, self._notices.route):
                self._selector.register(sock, EVENT_READ, self._heard)

    def close(self) -> None:
        """Guard no more; a repair that is under way is waited for."""
        self._resting = True
        self._errands.close()
        if self._notices is not None:
            for sock in (self._notices.rules, self._notices.route):
                self._selector.unregister(sock)
            self._notices.close()
            self._notices = None

    def follow(self, config: Config) -> None:
        """Another configuration is in force, and so other rules are right: they are put in, if need be."""
        self._config = config
        self._followed = True
        self.look()

    def look(self) -> None:
        """Look at everything now: something may have gone of which nobody tells."""
        if not self._resting:
            self._due |= EVERYTHING
            self._go()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """For the time of the context, whoever changes anything is the gateway itself.

        A repair that is under way is waited for; afterwards everything is looked at once.
        """
        if self._resting:
            yield
            return
        self._resting = True
        try:
            self._errands.close()
            yield
        finally:
            self._resting = False
            if self._notices is not None:
                self._notices.read()
            self._heard_of = Heard()
            self._well = self._clock()
            self._due |= EVERYTHING
            self._go()

    def tick(self) -> None:
        """To be called about once a second."""
        now = self._clock()
        self._errands.tick()
        if not self._resting and now >= self._looked + _LOOK:
            self._looked = now
            for what in self._rebind():
                self._say("queue", what, f"{what} was not bound any more and is again", level="warning")
            if not self._told:
                self._due |= set(RULES.values())
            if sysctl.overwritten(repair.settings(self._config)):
                self._due.add(SETTINGS)
            if self._failure or self.state["present"] is False or now >= self._looked_again + _LOOK_AGAIN:
                self._looked_again = now
                self._due |= EVERYTHING
        self._patience.has(now)
        if self._patience.whole:
            self._lately = Heard()
        if self._contested and self._patience.whole:
            repaired = "once" if self._contested == 1 else f"{self._contested} times"
            self._say("rules", "rules", f"nobody changes the rules any more; they were repaired {repaired}")
            self._contested = 0
            self.state["contested"] = ""
        self._go()

    # --- notices

    def _heard(self, _mask: int) -> None:
        if self._notices is None:
            return  # closed since this event was reported
        notice = self._notices.read()
        if self._resting or not notice.subjects:
            return
        others = [author for author in notice.authors if not self._is_ours(author)]
        if notice.authors and not others:
            return
        others = [author for author in others if not self._may_be_ours(author)]
        self._heard_of.add(self._clock(), others)
        self._due |= notice.subjects
        self._go()

    def _is_ours(self, author: Author) -> bool:
        ours = {helper() for helper in self.helpers} | self._errands.pids
        return not ours.isdisjoint({author.process.pid, author.process.parent})

    def _may_be_ours(self, author: Author) -> bool:
        """Gone before it could be asked whose child it is: not blamed, but looked after."""
        repairing = bool(self._errands.pids) and self._changes
        return repairing and not author.process.parent and author.process.name in _OUR_PROGRAMS

    # --- looks and repairs

    def _go(self) -> None:
        """Look at what is due, unless a look is under way; what is due meanwhile comes after it."""
        if self._errands.pids or self._resting or not self._due:
            return
        self._subjects, self._due = frozenset(self._due), set()
        self._looks_at, self._heard_of = self._heard_of, Heard()
        self._follows, self._followed = self._followed, False
        self._changes = self._patience.has(self._clock()) or self._follows
        config, subjects, known, changes = self._config, self._subjects, frozenset(self._known), self._changes
        pause = max(0.0, self._clean + _PAUSE - self._clock())

        def work() -> JSON:
            time.sleep(pause)
            return _look(config, subjects, known, change=changes)

        self._errands.begin(work, self._done)

    def _done(self, outcome: JSON | KernelError) -> None:
        if isinstance(outcome, KernelError):
            self._fail(str(outcome))
            self._go()
            return
        assert isinstance(outcome, dict)
        found, failed, held = (_texts(outcome[name]) for name in ("found", "failed", "held"))
        said = str(outcome["brief"])
        self._known |= {Placement(*_placed(text)) for text in held}
        if not found:
            self._clean = self._clock()
        if failed:
            self._fail(failed[0], said)
        elif found and not self._changes:
            self._wrong |= self._subjects
            self.state.update(present=False, why=said)
            self._remember()
        elif found:
            self._repaired(said, found)
        else:
            self._found_well()
        self._go()

    def _found_well(self) -> None:
        self._wrong -= self._subjects
        if self._wrong:
            return
        if self._failure:
            self._say("rules", "rules", "the gateway's rules, addresses and settings are in place again")
        self._failure = ""
        self.state["present"] = True
        if self._subjects >= EVERYTHING - {ADDRESSES, SETTINGS}:
            self._well = self._clock()

    def _remember(self) -> None:
        """What was looked at has not been put right: whose it is counts the next time, too."""
        if self._looks_at.since is not None:
            later, self._heard_of = self._heard_of, self._looks_at
            self._heard_of.authors += later.authors

    def _repaired(self, said: str, found: list[str]) -> None:
        if self._follows:
            logger.info("changed for the configuration in force: %s", said)
            self._found_well()
            return
        now = self._clock()
        since = self._looks_at.since
        self._wrong -= self._subjects
        self._failure = self._failure if self._wrong else ""
        lasted = f"for {span(now - since)}" if since else f"for at most {span(now - self._well)}"
        repairs = self.state["repairs"]
        why = f"{said}; {lasted}; {self._who(found)}"
        self.state.update(
            present=not self._wrong,
            repairs=1 + (repairs if isinstance(repairs, int) else 0),
            repaired_at=round(self._wall(), 3),
            why=why,
        )
        self._patience.take()
        self._lately.add(now, self._looks_at.authors)
        if self._patience.has(now) and not self._contested:
            self._say("rules", "rules", f"repaired: {why}", level="warning")
            for line in found if len(found) > _TOLD else ():
                logger.info("was not as meant: %s", line)
        else:
            self._contest(found)
        self._well = now

    def _contest(self, found: list[str]) -> None:
        """Somebody goes on: say so once, and no more of each repair until that is over."""
        self._contested += 1
        if self._contested > 1:
            return
        by = _by(self._lately.who(found))
        text = (
            f"the gateway's rules, addresses or settings are changed again and again, {by}; "
            f"they are repaired only every {_INTERVAL:g} s until that ends"
        )
        self.state["contested"] = text
        self._say("rules", "rules", text, level="error")

    def _fail(self, why: str, found: str = "") -> None:
        """It could not be looked, or not be repaired. Tried again with a later tick."""
        text = f"{found}; cannot be repaired: {why}" if found else f"cannot be looked at: {why}"
        if why != self._failure:
            self._say("rules", "rules", f"rules: {text}", level="error")
        self._failure = why
        self._wrong |= self._subjects
        self._remember()
        self.state.update(present=False if found else None, why=text)

    def _who(self, found: list[str]) -> str:
        """Whose change it was; one that was told of only while it was looked may be it, too."""
        return _by(self._looks_at.who(found) or self._heard_of.who(found))


def _by(names: list[str]) -> str:
    if not names:
        return "by whom is not known"
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return "by " + ", ".join(names[-_TOLD:]) + more


def _look(
    config: Config, subjects: frozenset[str], known: frozenset[Placement], *, change: bool
) -> JSONObject:
    """What the child does: look, repair, and say so."""
    damage = repair.mend(config, subjects, known, change=change)
    held: list[JSON] = []
    if ADDRESSES in subjects:
        held = [f"{placement.interface} {placement.address}" for placement in address.held()]
    found: list[JSON] = list(damage.found[:_LISTED])
    return {"found": found, "brief": brief(damage.found), "failed": list(damage.failed), "held": held}


def brief(found: list[str]) -> str:
    """Findings in a few words: of a table in which much is missing, how much. "" for none."""
    groups: dict[str, list[str]] = {}
    for line in found:
        words = line.split()
        table = " ".join(words[:2]) if words[0].endswith("tables") else line
        groups.setdefault(table, []).append(line)
    said = [lines[0] if len(lines) == 1 else f"{table}: {len(lines)} rules or chains missing or changed"
            for table, lines in groups.items()]  # fmt: skip
    more = len(said) - _TOLD
    return "; ".join(said[:_TOLD]) + (f"; and {more} more" if more > 0 else "")


def _texts(value: JSON) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def _placed(text: str) -> tuple[str, Address]:
    interface, _, number = text.rpartition(" ")
    return interface, ip_address(number)


def span(seconds: float) -> str:
    """How long something took, in a few characters."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
