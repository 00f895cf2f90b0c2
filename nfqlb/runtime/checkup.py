"""The command `host`: what is wrong with the machine that the gateway runs on, for `nfqlb doctor`.

Done where the gateway is, with its rights and its configuration, and in a child of its own, for it takes a
second. Who asks while it is under way gets the same answer.
"""

import time
from collections.abc import Callable, Collection
from selectors import BaseSelector

from nfqlb.core.spec import Config
from nfqlb.netfilter import alone, diagnosis, facts, vitals
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.host import Finding
from nfqlb.runtime import estate
from nfqlb.runtime.errand import Errands
from nfqlb.runtime.protocol import JSON, JSONObject, Request, objects

_PATIENCE = 15.0  # seconds: iptables may wait for its lock
_ASIDE = ("maintenance", "out-of-service")  # servers in these states may be switched off


class Checkup:
    """Answers `host`. `config` says which configuration is in force, `snapshot` how servers are."""

    def __init__(
        self,
        selector: BaseSelector,
        config: Callable[[], Config],
        snapshot: Callable[[], JSONObject | None],
    ) -> None:
        self._errands = Errands(selector, _PATIENCE)
        self._config = config
        self._snapshot = snapshot
        self._waiting: list[Request] = []

    def answer(self, request: Request) -> None:
        """Answer one request, later."""
        self._waiting.append(request)
        if not self._errands.pids:
            config, aside = self._config(), _aside(self._snapshot())
            self._errands.begin(lambda: examine(config, aside, running=True), self._done)

    def tick(self) -> None:
        """To be called about once a second."""
        self._errands.tick()

    def close(self) -> None:
        """Ask no more."""
        self._errands.close()

    def _done(self, outcome: JSON | KernelError) -> None:
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            if isinstance(outcome, KernelError):
                request.fail("host-unseen", f"the machine could not be looked at: {outcome}")
            else:
                request.reply(outcome)


def examine(config: Config, aside: Collection[str] = (), *, running: bool) -> JSONObject:
    """The document of `host`: the findings, and how long it took (seconds). Raises KernelError, OSError."""
    begun = time.monotonic()
    found = facts.read(config)
    seen = vitals.read(config, found, running=running)
    seen.alone = None if running else alone.worker(estate.place())
    findings = diagnosis.diagnose(config, found, seen, aside)
    rows: list[JSON] = [row(finding) for finding in findings]
    return {"findings": rows, "took_s": round(time.monotonic() - begun, 3)}


def row(finding: Finding) -> JSONObject:
    """A finding as in `nfqlb doctor --json`."""
    return {
        "level": finding.level, "area": finding.area, "what": finding.what, "advice": finding.advice,
    }  # fmt: skip


def _aside(snapshot: JSONObject | None) -> list[str]:
    reals = objects((snapshot or {}).get("reals"))
    return [str(each["name"]) for each in reals if each.get("state") in _ASIDE]
