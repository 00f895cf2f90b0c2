"""Packets without a connection that the rules of datapath offload drop, counted like the worker's own drops.

Owns when their counters are read: every few seconds, by a child (`Errands`), as iptables may have to wait for
somebody. Rules that are made anew begin at 0; the sums here go on.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from selectors import BaseSelector

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.spec import Config
from nfqlb.core.verdict import Drop
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.iptables import Iptables
from nfqlb.netfilter.missed import Whose, dropped
from nfqlb.netfilter.render import FAMILIES
from nfqlb.runtime.carry import Path
from nfqlb.runtime.errand import Errands
from nfqlb.runtime.protocol import JSON
from nfqlb.runtime.rising import Rising

logger = logging.getLogger(__name__)

_INTERVAL = 5.0  # seconds
_PATIENCE = 20.0  # seconds that the child may take


class Missed:
    """The sums of one gateway, told to `beside` (`Carry.beside`) whenever they are read anew."""

    def __init__(
        self,
        config: Config,
        selector: BaseSelector,
        beside: Callable[[Mapping[Path, float]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._errands = Errands(selector, _PATIENCE)
        self._beside = beside
        self._clock = clock
        self._sums: dict[Whose, Rising] = {}
        self._gone: Counter[Drop] = Counter()  # of virtual servers that are no more
        self._read_at = clock()
        self._said = ""

    def follow(self, config: Config) -> None:
        """Another configuration is in force."""
        self._config = config
        names = {"", *(virtual.name for virtual in config.virtuals)}
        for name, reason in [whose for whose in self._sums if whose[0] not in names]:
            self._gone[reason] += self._sums.pop((name, reason)).total

    def close(self) -> None:
        """Read no more."""
        self._errands.close()

    def tick(self) -> None:
        """To be called about once a second."""
        self._errands.tick()
        due = self._clock() >= self._read_at + _INTERVAL
        if due and not self._errands.pids and self._versions():
            self._read_at = self._clock()
            self._errands.begin(partial(read, self._config, self._versions()), self._done)

    def _versions(self) -> set[int]:
        """The IP versions that datapath offload has rules for."""
        return {each.address.version for each in self._config.virtuals if each.datapath == OFFLOAD}

    def _done(self, outcome: JSON | KernelError) -> None:
        if isinstance(outcome, KernelError):
            if str(outcome) != self._said:
                self._said = str(outcome)
                logger.warning("what the rules drop cannot be read: %s", outcome)
            return
        self._said = ""
        assert isinstance(outcome, list)
        self.take(outcome)

    def take(self, rows: list[JSON]) -> None:
        """What `read` found."""
        for row in rows:
            assert isinstance(row, list)
            name, reason, packets = row
            assert isinstance(name, str)
            assert isinstance(packets, int)
            self._sums.setdefault((name, Drop(reason)), Rising()).at(packets)
        found: dict[Path, float] = {}
        whole = Counter(self._gone)
        for (name, why), each in self._sums.items():
            whole[why] += each.total
            if name and each.total:
                found["virtuals", name, "drops", why.value] = each.total
        found |= {("drops", why.value): total for why, total in whole.items() if total}
        self._beside(found)


def read(config: Config, versions: set[int]) -> JSON:
    """The counters now: rows of a virtual server's name ("": of none), a reason, and packets.

    Raises KernelError.
    """
    found: Counter[Whose] = Counter()
    for family in FAMILIES:
        if family.version in versions:
            found.update(dropped(config, Iptables(family.program).counted("mangle")))
    return [[name, reason.value, packets] for (name, reason), packets in sorted(found.items(), key=str)]
