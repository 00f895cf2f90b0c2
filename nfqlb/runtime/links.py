"""The gateway's interfaces: says when one is down, away or called otherwise, and follows their names.

Rules know interfaces by name. A name that is there is always right, whatever stands behind it; where it is
gone, and the interface that had it is there under another one, that one is used until the first is back.
Nobody is asked for that: every client would wait for the answer.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from selectors import EVENT_READ, BaseSelector

from nfqlb.core.spec import Config
from nfqlb.netfilter import links
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.links import Link
from nfqlb.runtime.guard import Says, span
from nfqlb.runtime.protocol import JSON, JSONObject

logger = logging.getLogger(__name__)


class Links:
    """Watches the interfaces of one gateway, whose names are those of `config`.

    `state` is the part "links" of the snapshot, kept up to date here. `renamed` is called with the names of
    before and now, and says whether that was followed; else it is called again with the next tick. `back` is
    called when an interface is there again.
    """

    def __init__(
        self,
        config: Config,
        selector: BaseSelector,
        say: Says,
        state: JSONObject,
        renamed: Callable[[Mapping[str, str]], bool],
        back: Callable[[], None],
        *,
        look: Callable[[], Mapping[str, Link]] = links.look,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = state
        self._selector = selector
        self._say = say
        self._renamed = renamed
        self._back = back
        self._look = look
        self._clock = clock
        gateway = config.gateway
        sides = {**dict.fromkeys(gateway.inside, "inside"), **dict.fromkeys(gateway.outside, "outside")}
        self._sides: dict[str, str] = sides
        self._called = {name: name for name in sides}  # by the name in the configuration
        self._numbers: dict[str, int] = {}
        self._wrong: dict[str, tuple[str, float]] = {}  # what is wrong with each, since when
        self._notices = None
        try:
            self._notices = links.notices()
        except KernelError as error:
            logger.info("interfaces are looked at once a second: %s", error)
        else:
            selector.register(self._notices, EVENT_READ, self._heard)
        self._examine()

    def close(self) -> None:
        """Watch no more."""
        if self._notices is not None:
            self._selector.unregister(self._notices)
            self._notices.close()
            self._notices = None

    def tick(self) -> None:
        """To be called about once a second."""
        self._examine()

    def named(self, config: Config) -> Config:
        """A configuration with the interfaces as they are called at present."""
        return with_interfaces(config, self._called)

    def _heard(self, _mask: int) -> None:
        if self._notices is not None:
            links.forget(self._notices)
            self._examine()

    def _examine(self) -> None:
        here = self._look()
        self._follow(here)
        wrong: list[JSON] = []
        for name, side in self._sides.items():
            called = self._called[name]
            what = _wrong_with(here.get(called))
            self._tell(name, f"{side} interface {called}", what)
            if what:
                wrong.append(f"{side} interface {called} {what}")
            elif called != name:
                wrong.append(f"{side} interface {name} is called {called} now")
        self.state["wrong"] = wrong

    def _follow(self, here: Mapping[str, Link]) -> None:
        """Find out how each is called, and have that followed."""
        now = {}
        names = {link.number: name for name, link in here.items()}
        for name, before in self._called.items():
            present = name if name in here else names.get(self._numbers.get(name, 0), before)
            now[name] = before if present != name and present in self._called else present
        changed = {self._called[name]: now[name] for name in now if now[name] != self._called[name]}
        if changed and not self._renamed(changed):
            return
        for before, after in changed.items():
            text = f"interface {before} is called {after} now, and so the gateway's rules say"
            self._say("gateway", after, text, level="warning")
        self._called = now
        self._numbers |= {name: here[called].number for name, called in now.items() if called in here}

    def _tell(self, name: str, who: str, what: str) -> None:
        before, since = self._wrong.get(name, ("", 0.0))
        if what == before:
            return
        if what:
            self._wrong[name] = (what, since if before else self._clock())
            self._say("gateway", name, f"{who} {what}", level="error")
            return
        del self._wrong[name]
        self._say("gateway", name, f"{who} is there again, after {span(self._clock() - since)}")
        self._back()


def with_interfaces(config: Config, names: Mapping[str, str]) -> Config:
    """A configuration whose interfaces are called otherwise, those of `names` by what it has for them."""
    gateway = config.gateway
    outside, inside = (
        tuple(names.get(name, name) for name in side) for side in (gateway.outside, gateway.inside)
    )
    if (outside, inside) == (gateway.outside, gateway.inside):
        return config
    return replace(config, gateway=replace(gateway, outside=outside, inside=inside))


def _wrong_with(link: Link | None) -> str:
    if link is None:
        return "is gone"
    if not link.up:
        return "is down"
    return "" if link.carrier else "has no link"
