"""Keeps ready in the kernel what is to happen should the gateway die: who of the servers is well.

Owns when that is written (`netfilter.fallback` has the rules themselves): when servers, their states or
weights have changed, at most once a second, in a child (`Errands`). Only what a living worker said counts,
so what stands in the kernel is the last that was known to be good.
"""

from collections.abc import Callable
from selectors import BaseSelector

from nfqlb.config.marks import OFFLOAD, LinkMarks
from nfqlb.core.admission import ServerState
from nfqlb.core.spec import Config, Server
from nfqlb.netfilter import fallback
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.fallback import Share
from nfqlb.runtime.errand import Errands
from nfqlb.runtime.guard import Says
from nfqlb.runtime.picture import RUNNING
from nfqlb.runtime.protocol import JSON, JSONObject, objects

#: The marks of the places of each offloaded virtual server, by its name.
Marks = dict[str, dict[Server, int]]

_PATIENCE = 30.0  # seconds that one change may take; two families may wait for iptables' lock
_AGAIN = 30  # ticks between two attempts of which the first failed


class Fallback:
    """Follows one gateway from when it is made until `close`; its rules must be in place by then.

    `state` is the part "fallback" of the snapshot, kept up to date here: `ready` says whether the kernel
    could go on alone by what is known now (None: it is not to), `error` why not. `repairs` counts how often
    the rules were put back by somebody, whereafter the chain is empty, and the kernel may have spread new
    connections alone: to `adopt` is to look for them. `put` is what the child does.
    """

    def __init__(
        self,
        config: Config,
        selector: BaseSelector,
        say: Says,
        state: JSONObject,
        repairs: Callable[[], JSON],
        adopt: Callable[[], None],
        put: Callable[[Config, tuple[Share, ...]], None] = fallback.put,
    ) -> None:
        self.state = state
        self._config = config
        self._errands = Errands(selector, _PATIENCE)
        self._say = say
        self._put = put
        self._repairs = repairs
        self._adopt = adopt
        self._repaired = repairs()
        self._shares: tuple[Share, ...] | None = None  # by the last snapshot
        self._written: tuple[Share, ...] | None = None  # what stands in the kernel
        self._writes: tuple[Share, ...] = ()
        self._wait = 0
        self._marks = marked(config)
        state.update(ready=False if fallback.wanted(config) else None, error="")

    @property
    def pid(self) -> int | None:
        """The child that changes rules at present."""
        return next(iter(self._errands.pids), None)

    def look(self, snapshot: JSONObject) -> None:
        """A snapshot: who is well by it."""
        if snapshot["state"] == RUNNING and fallback.wanted(self._config):
            self._shares = shares(self._marks, snapshot)

    def follow(self, config: Config) -> None:
        """Another configuration is in force, whose marks and chains may be others."""
        self._config = config
        self._marks = marked(config)
        self._shares = None
        self.again()
        if not fallback.wanted(config):
            self.state.update(ready=None, error="")

    def again(self) -> None:
        """The rules may have been put in anew, so the chain is empty."""
        self._written = None
        self._wait = 0

    def tick(self) -> None:
        """To be called about once a second: write what has changed."""
        self._errands.tick()
        if self._errands.pids:
            return
        if (repaired := self._repairs()) != self._repaired:
            self._repaired = repaired
            self.again()
            if fallback.wanted(self._config):
                self._adopt()
        self._wait = max(0, self._wait - 1)
        if self._shares is None or self._shares == self._written or self._wait:
            return
        config, self._writes = self._config, self._shares

        def work() -> JSON:
            self._put(config, self._writes)
            return None

        self._written = self._writes  # unless somebody says `again` meanwhile
        self._errands.begin(work, self._done)

    def close(self) -> None:
        """Write no more; what is under way is waited for."""
        self._errands.close()

    def _done(self, outcome: JSON | KernelError) -> None:
        if isinstance(outcome, KernelError):
            self._fail(str(outcome))
            return
        if self.state["error"]:
            self._say("fallback", "fallback", "the kernel could spread new connections alone again")
        self.state.update(ready=True, error="")

    def _fail(self, why: str) -> None:
        if why != self.state["error"]:
            text = f"should the gateway die, the kernel would not know who is well: {why}"
            self._say("fallback", "fallback", text, level="warning")
        self._written = None
        self._wait = _AGAIN
        self.state.update(ready=False, error=why)


def marked(config: Config) -> Marks:
    """The marks by which the kernel knows the places of offloaded virtual servers."""
    marks = LinkMarks(config)
    return {
        virtual.name: {place: marks.of(virtual, place) for place in config.places(virtual)}
        for virtual in config.virtuals
        if virtual.datapath == OFFLOAD
    }


def shares(marks: Marks, snapshot: JSONObject) -> tuple[Share, ...]:
    """Who may be given new connections of each offloaded virtual server, by a snapshot. Pure.

    Those that take new ones at present, with the part that their weights entitle them to (A35): backups only
    where they serve. A virtual server with nobody is left out, and so is one that is itself out of service.
    """
    listed = {row["name"]: row for row in objects(snapshot["virtuals"])}
    found = []
    for name, places in marks.items():
        row = listed.get(name)
        if row is None or row["state"] != ServerState.IN_SERVICE.shown:
            continue
        if servers := _well(places, row):
            found.append(Share(name, servers))
    return tuple(found)


def _well(places: dict[Server, int], row: JSONObject) -> tuple[tuple[int, float], ...]:
    """The marks of a virtual server's servers that are well, with their weights."""
    found: dict[int, float] = {}
    for each in objects(row["servers"]):
        port, part = each["port"], each["fair_share"]
        mark = places.get(Server(str(each["real"]), port if isinstance(port, int) else None))
        if mark is not None and isinstance(part, int | float) and part > 0:
            found[mark] = found.get(mark, 0.0) + part
    return tuple(found.items())


def spread_alone(config: Config) -> int:
    """New connections that the kernel has spread since a predecessor's death."""
    try:
        return fallback.spread() if fallback.wanted(config) else 0
    except KernelError:
        return 0  # whatever is wrong with iptables, the rules themselves will tell
