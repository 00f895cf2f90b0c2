"""Everything at once, and other configurations in between: the traffic of `traffic`, reloaded all the time.

The books are audited after every step, and what is told of decisions since the last reload is what was.
"""

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from nfqlb.config.transition import merged, settled
from nfqlb.core import spec
from nfqlb.core.admission import ServerState
from nfqlb.core.director import Director
from tests.core.hindsight import Watched, agree
from tests.core.recount import audit
from tests.core.traffic import DATAGRAMS, NAMES, SERVICES, SETTINGS, Traffic

SCHEDULERS = ["round-robin", "least-connections", "weighted-least-connections", "power-of-two", "maglev"]


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """What is to be other than usual; drawn apart from what it is done to, so that it shrinks."""
    return {
        "dropped": draw(st.sets(st.sampled_from(NAMES), max_size=2)),
        "virtuals": draw(st.sets(st.sampled_from(SERVICES + DATAGRAMS), max_size=3)),
        "moved": draw(st.booleans()),
        "weight": draw(st.sampled_from([1.0, 0.0, 3.0])),
        "threshold": draw(st.sampled_from([0, 1, 2])),
        "idle": draw(st.sampled_from([50.0, 300.0])),
        "scheduler": draw(st.sampled_from(["", *SCHEDULERS])),
        "sticky": draw(st.sampled_from(["", "0", "25"])),
        "refresh": draw(st.sampled_from(["assignment", "activity", "never"])),
        "on_failure": draw(st.sampled_from(["keep", "drop", "reset"])),
        "startup": draw(st.sampled_from(["none", "round-robin"])),
        "backups": draw(st.booleans()),
        "count_on": draw(st.sampled_from(["syn", "syn-ack"])),
        "close_on": draw(st.sampled_from(["both", "fin", "time-out"])),
        "half_open": draw(st.sampled_from([30.0, 5.0])),
    }


def changed(base: spec.Config, what: dict[str, Any]) -> spec.Config:
    """A configuration that is `base` but for these changes."""
    gone = what["dropped"]
    servers = [_server(each, what) for each in base.reals if each.name not in gone]
    virtuals = [
        made for each in base.virtuals if each.name not in what["virtuals"] and (made := _virtual(each, what))
    ]
    if what["moved"]:
        servers.reverse()
    return replace(
        base,
        gateway=replace(base.gateway, count_on=what["count_on"], close_on=what["close_on"]),
        reals=tuple(servers),
        virtuals=tuple(virtuals),
        timeouts=replace(base.timeouts, half_open=what["half_open"]),
    )


def _server(real: spec.Real, what: dict[str, Any]) -> spec.Real:
    backup = real.backup if what["backups"] and real.backup not in what["dropped"] else ""
    if real.name != "c":
        return replace(real, backup=backup)
    return replace(
        real, backup=backup, weight=what["weight"], failure_threshold=what["threshold"],
        idle_timeout=what["idle"],
    )  # fmt: skip


def _virtual(virtual: spec.Virtual, what: dict[str, Any]) -> spec.Virtual | None:
    places = tuple(each for each in virtual.servers if each.real not in what["dropped"])
    if not places:
        return None
    if what["moved"]:
        places = places[1:] + places[:1]
    keys: dict[str, Any] = {"on_failure": what["on_failure"], "startup": what["startup"]}
    if what["scheduler"] and virtual.protocol == "tcp":
        keys["scheduler"] = what["scheduler"]
    if not virtual.sticky_group:
        keys["sticky_refresh"] = what["refresh"]
        keys["sticky"] = float(what["sticky"]) if what["sticky"] else virtual.sticky
    backup = virtual.backup if virtual.backup not in what["dropped"] else ""
    return replace(virtual, servers=places, backup=backup, **keys)


class Reloading(Traffic):
    """Traffic whose configuration changes. What is said to a name that is gone is said to nobody."""

    @initialize()
    def remember(self) -> None:
        self.base: spec.Config | None = None

    @rule(what=changes())
    def reload(self, what: dict[str, Any]) -> None:
        self._reload(changed(self._base(), what))

    @rule()
    def back(self) -> None:
        self._reload(self._base())

    @rule()
    def settle(self) -> None:
        director = self.lab.director
        self.decisions_are_told()
        director.reconfigure(settled(director.config, director.remaining()), self.lab.now)
        self.watched.copies.clear()

    def _base(self) -> spec.Config:
        if getattr(self, "base", None) is None:
            self.base = self.lab.config
        assert self.base is not None
        return self.base

    def _reload(self, wanted: spec.Config) -> None:
        director = self.lab.director
        self.decisions_are_told()
        kept = {
            key: connection.link.real.address
            for key, connection in director.table.inbound.items()
            if connection.state.quick
        }
        director.reconfigure(merged(director.config, wanted), self.lab.now)
        self.watched.copies.clear()
        for key, address in kept.items():
            assert director.table.inbound[key].link.real.address == address

    # --- what `Traffic` does to every name

    def _knows(self, name: str) -> bool:
        director = self.lab.director
        return name in director.real_servers and not director.real_servers[name].draining

    @rule(name=st.sampled_from(NAMES), weight=st.sampled_from([0, 1, 2.5]))
    def weigh(self, name: str, weight: float) -> None:
        if self._knows(name):
            self.lab.director.operation.set_real(name, weight=weight, now=self.lab.now)

    @rule(
        name=st.sampled_from(NAMES),
        setting=st.sampled_from([ServerState.IN_SERVICE, *SETTINGS]),
        weight=st.sampled_from([None, None, 0, 1]),
    )
    def put(self, name: str, setting: ServerState, weight: float | None) -> None:
        if self._knows(name):
            self.lab.director.operation.set_real(name, setting=setting, weight=weight, now=self.lab.now)

    @rule(name=st.sampled_from(SERVICES + DATAGRAMS), out=st.booleans())
    def put_virtual(self, name: str, out: bool) -> None:
        setting = ServerState.OUT_OF_SERVICE if out else ServerState.IN_SERVICE
        if any(each.spec.name == name for each in self.lab.director.virtual_servers):
            self.lab.director.operation.set_virtual(name, setting)

    @rule(name=st.sampled_from([None, *SERVICES, *DATAGRAMS]))
    def clear(self, name: str | None) -> None:
        if name is None or any(each.spec.name == name for each in self.lab.director.virtual_servers):
            self.lab.director.operation.clear_sticky(name, None, self.lab.now)

    @rule(after=st.sampled_from([0.0, 0.5, 35.0]))
    def die(self, after: float) -> None:
        """The worker dies, and another takes over, by the configuration that is in force."""
        self.decisions_are_told()
        old = self.lab.director
        self.lab.now += after
        now = self.lab.now
        self.memory, self.notes = self.journals()
        new = Director(old.config, now=now, recorder=self.memory, keeper=self.notes)
        for kept in self.kept():
            new.operation.restore(kept, now)
        for place, inbound, server, code, opened in self.remembered():
            assert new.restore(inbound, server, code, place, opened=opened, now=now)
        new.restored(now)
        self.lab.director = new
        self.watched = Watched.watch(new)
        for name, before in old.real_servers.items():
            after_ = new.real_servers[name]
            assert (after_.setting, after_.weight) == (before.setting, before.weight)
            assert (after_.connections, after_.unanswered) == (before.connections, before.unanswered)

    @invariant()
    def books_are_right(self) -> None:
        audit(self.lab.director, reloaded=True)

    def decisions_are_told(self) -> None:
        for name in SERVICES + DATAGRAMS:
            copies = [each for each in self.watched.copies if each.virtual == name]
            told = [
                each
                for each in reversed(self.lab.decisions(virtual=name))
                if each.refused != "out-of-service"
            ]
            many = min(len(copies), len(told))
            for decision, copy in zip(told[-many:] if many else [], copies[-many:], strict=bool(many)):
                agree(decision, copy)

    def teardown(self) -> None:
        if hasattr(self, "lab"):
            self._reload(self._base())
            super().teardown()


TestReloadInTraffic = Reloading.TestCase
TestReloadInTraffic.settings = settings(
    derandomize=True, database=None, deadline=None, max_examples=50, stateful_step_count=60,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
