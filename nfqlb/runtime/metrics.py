"""Metrics as the configuration wants them: where Prometheus may ask, if anywhere.

Owns when the server of `scrapes` is there. The library behind it is loaded only where somebody wants it:
it takes a tenth of a second.
"""

import logging
from collections.abc import Callable
from selectors import BaseSelector
from typing import TYPE_CHECKING

from nfqlb.config.values import endpoint_of
from nfqlb.core.spec import Config
from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime.events import Events
from nfqlb.runtime.protocol import JSONObject

if TYPE_CHECKING:
    from nfqlb.runtime.scrapes import Scrapes

logger = logging.getLogger(__name__)


class Metrics:
    """The supervisor's server of metrics; `latest` is the newest snapshot, None where there is none yet.

    Raises KernelError where nobody can listen where the configuration says. `events` are told where
    that happens later, with another configuration.
    """

    def __init__(
        self,
        config: Config,
        selector: BaseSelector,
        latest: Callable[[], JSONObject | None],
        events: Events,
    ) -> None:
        self._selector = selector
        self._latest = latest
        self._events = events
        self._place = ""
        self._scrapes: Scrapes | None = None
        self._open(config.gateway.metrics)

    def configured(self, config: Config) -> None:
        """Another configuration is in force; where its place cannot be had, the one before is kept."""
        before, wanted = self._place, config.gateway.metrics
        if wanted == before:
            return
        self.close()  # first: the other place may be the same port
        try:
            self._open(wanted)
        except KernelError as error:
            self._events.add("gateway", "metrics", f"{error}; {self._back(before)}", level="error")

    def tick(self) -> None:
        """To be called about once a second."""
        if self._scrapes is not None:
            self._scrapes.tick()

    def close(self) -> None:
        """Listen no more."""
        if self._scrapes is not None:
            self._scrapes.close()
            self._scrapes = None

    def abandon(self) -> None:
        """In a forked child: give up the descriptors, and leave the selector to the parent."""
        if self._scrapes is not None:
            self._scrapes.abandon()

    def _back(self, place: str) -> str:
        """Listen again where it was before; says where that is."""
        try:
            self._open(place)
        except KernelError:  # taken meanwhile
            self._place = ""
        return f"they stay at {self._place}" if self._place else "there are none"

    def _open(self, place: str) -> None:
        self._place = place
        if not place:
            return
        from nfqlb.runtime.scrapes import Scrapes

        address, port = endpoint_of(place)
        self._scrapes = Scrapes(address, port, self._selector, self._latest)
        logger.info("metrics at http://%s/metrics", place)
