"""What a reload changes in the kernel, in a child: rules, settings and addresses of another configuration.

Owns the children. iptables may have to wait for somebody, and the supervisor has a worker to look after.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from selectors import BaseSelector

from nfqlb.core.spec import Config
from nfqlb.netfilter import address, facts, host, repair, rules, sysctl
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.state import Record
from nfqlb.runtime.course import Done, Failed, Step
from nfqlb.runtime.errand import Errands
from nfqlb.runtime.protocol import JSON

logger = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds that one change may take; two families may wait for iptables' lock


class Hands:
    """Does what a reload or a question about the rules asks for; what changes is logged."""

    def __init__(self, selector: BaseSelector) -> None:
        self._errands = Errands(selector, _PATIENCE)

    def findings(self, before: Config, after: Config) -> Step:
        """What stands against running `after` on this machine and did not before: lists of level and text."""
        return self._step(lambda: _fresh(before, after), log=False)

    def rules(self, config: Config) -> Step:
        """Settings and rules as a configuration needs them; where that fails the rules are as before."""
        return self._step(lambda: _change_rules(config))

    def addresses(self, config: Config) -> Step:
        """Virtual addresses as a configuration needs them."""
        return self._step(lambda: list(address.bring_up(config)))

    def verified(self, config: Config) -> Step:
        """How the rules in place differ from those of a configuration, a line each."""
        return self._step(lambda: list(rules.verify(config)), log=False)

    def tick(self) -> None:
        """To be called once a second."""
        self._errands.tick()

    def close(self) -> None:
        """Wait until what is under way is done; nobody is told any more."""
        self._errands.close()

    def _step(self, work: Callable[[], JSON], *, log: bool = True) -> Step:
        def begin(done: Done, failed: Failed) -> None:
            def finished(outcome: JSON | KernelError) -> None:
                if isinstance(outcome, KernelError):
                    failed(outcome)
                    return
                for line in outcome if log and isinstance(outcome, list) else ():
                    logger.info("%s", line)
                done(outcome)

            self._errands.begin(work, finished)

        return begin


def _fresh(before: Config, after: Config) -> JSON:
    virtuals = (*before.virtuals, *after.virtuals)
    everybody = replace(after, reals=(*before.reals, *after.reals), virtuals=virtuals)
    found = facts.read(everybody)  # it takes long: once for both
    known = {str(finding) for finding in host.judge(before, found)}
    fresh = [finding for finding in host.judge(after, found) if str(finding) not in known]
    return [[each.level, each.what + (f"; {each.advice}" if each.advice else "")] for each in fresh]


def _change_rules(config: Config) -> JSON:
    lines: list[JSON] = list(sysctl.switch(repair.settings(config), Record()))
    rules.apply(config)
    return lines
