"""Packets and bytes of each virtual server, in both directions, since the gateway has been started.

Owns the sums: the kernel counts (see `netfilter.accounting`), whatever becomes of worker and rules, and where
somebody clears its counters the sums go on from where they were. What passed until they were there again
nobody knows, and is not in them. Where the kernel does not count, there is no number.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from nfqlb.core.spec import Config
from nfqlb.netfilter import accounting
from nfqlb.netfilter.accounting import Counters, label
from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime.protocol import JSONObject
from nfqlb.runtime.rising import Rising

logger = logging.getLogger(__name__)

#: Seconds until what the kernel refused is tried again.
_AGAIN = 5.0


class Kernel(Protocol):
    """Who counts (`netfilter.accounting`). Raises KernelError."""

    def put(self, config: Config, present: Mapping[str, Counters] | None = None) -> None:
        """Have it count for a configuration, going on with the counters that are `present`."""

    def read(self) -> Mapping[str, Counters]:
        """What has been counted, by the virtual servers' labels."""


#: What is counted of a virtual server, in the order of `_numbers`.
FIELDS = ("packets_in", "bytes_in", "packets_out", "bytes_out")


def _numbers(counters: Counters) -> tuple[int, ...]:
    return (*counters.inbound, *counters.outbound)


class Traffic:
    """The sums of one gateway. `now` is a monotonic clock, in seconds."""

    def __init__(
        self, config: Config, kernel: Kernel = accounting, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._kernel = kernel
        self._now = now
        self._sums: dict[str, tuple[Rising, ...]] = {}  # by label
        self._again = 0.0
        self._said = ""

    def begin(self) -> None:
        """Have the kernel count; why it does not is logged."""
        self._put(None)

    def configured(self, config: Config) -> None:
        """Another configuration is in force: a virtual server that stays goes on, by any name."""
        self._config = config
        labels = {label(virtual) for virtual in config.virtuals}
        self._sums = {name: sums for name, sums in self._sums.items() if name in labels}
        try:
            present = self._kernel.read()
        except KernelError:
            present = {}
        self._put(present or None)

    def complete(self, rows: Iterable[JSONObject]) -> None:
        """Give each row of a virtual server its `traffic`: the numbers of FIELDS, or None."""
        found = self.totals()
        for row in rows:
            sums = found.get(str(row["name"]))
            row["traffic"] = None if sums is None else dict(zip(FIELDS, sums, strict=True))

    def totals(self) -> dict[str, tuple[int, ...]]:
        """What each virtual server has had so far, as FIELDS; without those of whom it is not known now."""
        try:
            found = self._kernel.read()
        except KernelError as error:
            self._complain(error)
            return {}
        labels = {virtual.name: label(virtual) for virtual in self._config.virtuals}
        totals = {name: self._add(each, found[each]) for name, each in labels.items() if each in found}
        if len(totals) < len(labels) and self._now() >= self._again:
            self._put(None)
        return totals

    def _add(self, called: str, counters: Counters) -> tuple[int, ...]:
        sums = self._sums.setdefault(called, tuple(Rising() for _ in FIELDS))
        return tuple(sum_.at(number) for sum_, number in zip(sums, _numbers(counters), strict=True))

    def _put(self, present: Mapping[str, Counters] | None) -> None:
        self._again = self._now() + _AGAIN
        try:
            self._kernel.put(self._config, present)
        except KernelError as error:
            self._complain(error)
            return
        self._said = ""
        if present is None:
            for sums in self._sums.values():
                for each in sums:
                    each.restart()

    def _complain(self, error: KernelError) -> None:
        """Say once why nothing is counted."""
        if str(error) != self._said:
            self._said = str(error)
            logger.warning("packets and bytes of virtual servers are not counted: %s", error)
