"""Failure without probes: what real connections tell of a server.

Owns `Health`: how many connections in a row a server ditched (R040-R042, R179, A25), from which
clients, the evidence, and the way back: after `retry` seconds one live connection tests a failed
server (R182). An answer to any SYN ends a run of failures.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

from nfqlb.core import spec
from nfqlb.core.plural import several

#: Pieces of evidence kept of one server: the very SYNs that failed it.
EVIDENCE = 32
#: Connections in a row that are many where no number of them fails a server, and that are few in any case.
_MANY, _FEW = 8, 2


class Condition(Enum):
    """What is known of a server's health."""

    WELL = "well"
    FAILED = "failed"
    TESTING = "testing"


class Ditch(Enum):
    """Why a connection could not be made (A42)."""

    NO_ANSWER = "no-answer"
    RESET = "reset"


_WENT = {Ditch.NO_ANSWER: "was not answered", Ditch.RESET: "was refused"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """One connection that could not be made: its client, when, and why.

    `client` is the packed address, `port` the client's in host order; `opened` is when the client first
    asked for it, `at` when it was given up (seconds).
    """

    client: bytes
    port: int
    virtual: str
    opened: float
    at: float
    why: Ditch


class Health:
    """One real server's health."""

    __slots__ = (
        "clients", "condition", "evidence", "failed_at", "fatal", "no_answer", "reason", "reset", "retry_at",
        "run", "run_began", "spec",
    )  # fmt: skip

    def __init__(self, real: spec.Real) -> None:
        self.spec = real
        self.condition = Condition.WELL
        self.no_answer = 0
        self.reset = 0
        self.run = 0
        self.run_began = 0.0
        self.clients: set[bytes] = set()
        self.retry_at = 0.0
        self.reason = ""
        self.evidence: deque[Evidence] = deque(maxlen=EVIDENCE)
        self.failed_at = 0.0  # when it last failed, having been well
        self.fatal: tuple[Evidence, ...] = ()  # what failed it

    def ditched(self, evidence: Evidence, *, alone: bool, test: bool = False) -> bool:
        """A connection could not be made (R041); True if that fails the server just now.

        `alone`: no other client was seen since the run of failures began, so that one is enough.
        `test`: it was the connection that tests the server. While a server has failed or is tested,
        other connections are counted and nothing else.
        """
        if evidence.why is Ditch.RESET:
            self.reset += 1
        else:
            self.no_answer += 1
        self.evidence.append(evidence)
        if self.condition is Condition.TESTING and test:
            self._fail(evidence.at, f"the test connection {_WENT[evidence.why]}")
            return True
        if self.condition is not Condition.WELL:
            return False
        if not self.run:
            self.run_began = evidence.opened
        self.run += 1
        if len(self.clients) < self.spec.failure_clients:
            self.clients.add(evidence.client)
        threshold = self.spec.failure_threshold
        enough = len(self.clients) >= self.spec.failure_clients or (alone and len(self.clients) == 1)
        if threshold and self.run >= threshold and enough:
            row = " in a row" if self.run > 1 else ""
            self._fail(evidence.at, f"{several(self.run, 'connection')}{row} could not be made")
            return True
        return False

    def answered(self) -> bool:
        """A SYN was answered; True if that brings the server back."""
        self.run = 0
        if self.clients:
            self.clients.clear()
        if self.condition is Condition.TESTING:
            self.condition = Condition.WELL
            self.reason = ""
            return True
        return False

    @property
    def suspect(self) -> bool:
        """Whether it made none of so many connections in a row, and yet has not failed (A25)."""
        return self.run > _FEW and self.run >= (self.spec.failure_threshold or _MANY)

    @property
    def whys(self) -> set[Ditch]:
        """Why it made none of those in the present run, as far as that is known."""
        return {each.why for each in tuple(self.evidence)[-self.run :]} if self.run else set()

    def due(self, now: float) -> bool:
        """Whether a failed server may be tested now."""
        return self.condition is Condition.FAILED and now >= self.retry_at

    def test(self) -> None:
        """A live connection is on its way to test the server."""
        self.condition = Condition.TESTING
        self.reason = "one live connection tests it"

    def give_up_test(self, now: float) -> None:
        """The test told nothing: its connection ended in another way. Try again after `retry`."""
        self._fail(now, "the test connection ended without an answer")

    def restore(self, reason: str, *, failed_at: float, retry_at: float) -> None:
        """It has failed, as a predecessor found out."""
        self.condition = Condition.FAILED
        self.reason = reason
        self.failed_at = failed_at
        self.retry_at = retry_at

    def clear(self) -> None:
        """The operator says it is well."""
        self.condition = Condition.WELL
        self.run = 0
        self.clients.clear()
        self.reason = ""

    def _fail(self, now: float, reason: str) -> None:
        if self.condition is Condition.WELL:
            self.failed_at = now
            self.fatal = tuple(self.evidence)[-self.run :]
        self.condition = Condition.FAILED
        self.retry_at = now + self.spec.retry
        self.reason = reason
        self.run = 0
        self.clients.clear()
