"""A worker whose supervisor is gone: it goes on for a while, and gives all it has to the next gateway.

Owns how long that is, and the conversation with whoever takes over (see `estate`). Nobody replaces such a
worker should it die, nor answers questions, so it is not for ever; but while it is there packets have their
verdicts, and rules, addresses and journal are where the next gateway looks for them.
"""

import logging
import select
import socket
from collections.abc import Callable
from contextlib import suppress

from nfqlb.core.spec import Config
from nfqlb.runtime import estate
from nfqlb.runtime.estate import Holder

logger = logging.getLogger(__name__)

ALONE = 60.0
"""Seconds that a worker goes on without a supervisor."""


class Orphan:
    """The worker's part in it, from `now` (monotonic, in seconds) on.

    `config` says what runs, `bound` gives the descriptors of what is bound, by name. `poll` gets the
    descriptors that are to be waited for; what is readable of them is to be given to `ready`. `over` says
    that the worker is to end.
    """

    def __init__(
        self,
        holder: Holder,
        poll: select.poll,
        now: float,
        *,
        config: Callable[[], Config],
        bound: Callable[[], dict[str, int]],
    ) -> None:
        self.over = False
        self._holder = holder
        self._poll = poll
        self._until = now + ALONE
        self._config = config
        self._bound = bound
        self._heir: socket.socket | None = None
        poll.register(holder.fileno(), select.POLLIN)
        holder.alone(ALONE)
        logger.warning(
            "the supervisor is gone; packets are judged for another %.0f s, or until the next one takes over",
            ALONE,
        )

    def ready(self, descriptor: int) -> None:
        """One of its descriptors is readable."""
        if descriptor == self._holder.fileno():
            self._come()
        elif self._heir is not None and descriptor == self._heir.fileno():
            self._said(self._heir)

    def tick(self, now: float) -> None:
        """To be called now and then."""
        if now >= self._until and not self.over:
            logger.error("no supervisor has come; packets are not judged any more")
            self.over = True

    def _come(self) -> None:
        heir = self._holder.accept()
        if heir is None:
            return
        if self._heir is not None:
            heir.close()  # one at a time
            return
        if not estate.show(heir, self._config(), self._bound(), orphan=True):
            heir.close()
            return
        self._heir = heir
        self._poll.register(heir.fileno(), select.POLLIN)

    def _said(self, heir: socket.socket) -> None:
        word = estate.is_end(heir)
        if word:
            logger.info("another supervisor is there")
            self.over = True  # the heir sees the end of this process, not before
        elif word is False:
            with suppress(OSError):
                self._poll.unregister(heir.fileno())
            heir.close()
            self._heir = None
