"""Another gateway takes over from one that runs, and loses nothing.

Owns both parts of a supervisor in that (see `estate` for the way). `find`, `accepted` and `continued` are the
new one's: from whom it takes, whether it can, and what it has to run first, so that connections of what its
configuration has no more can drain as after a reload. `Bequest` is the old one's: it shows what it has, rests
while the other one prepares, and ends when that says so.

| the one that is there | without `--take-over` | with it |
|---|---|---|
| has a supervisor | is left alone: a second one is refused | is taken over from |
| is a worker whose supervisor is gone | is taken over from | is taken over from |
"""

import logging
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from selectors import EVENT_READ, BaseSelector

from nfqlb.config import transition
from nfqlb.core.spec import Config
from nfqlb.netfilter import state
from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime import estate
from nfqlb.runtime.estate import Heir, Holder
from nfqlb.runtime.listener import peer

logger = logging.getLogger(__name__)

_ANY = 1 << 62  # room: our journal is made anew


def find(*, take_over: bool) -> Heir | None:
    """What a gateway that is there leaves to us; None where there is none to take over from.

    Raises KernelError for one that does not answer.
    """
    if not take_over and state.owner() is not None:
        return None  # refused like any second one
    found = estate.find(estate.place())
    if found is None and take_over:
        logger.info("no gateway runs here to take over from")
    return found


def accepted(found: Heir, config: Config) -> Heir | None:
    """The same gateway where `config` can go on from it; None for a worker alone that cannot be gone on from.

    That has ended then. Raises KernelError where the gateway has a supervisor; it goes on.
    """
    refused = transition.refusals(found.config, config, room=_ANY) if found.config is not None else []
    if refused and found.orphan:
        logger.warning("what the worker of before has is no use: %s", refused[0])
        with found:
            found.end()
        return None
    if refused:
        found.close()
        raise KernelError("\n".join(["the gateway that runs cannot be taken over from:", *refused]))
    return found


def continued(found: Heir, config: Config) -> Config:
    """The configuration to begin with: ours, and what of the other one's may still have connections."""
    if found.config is None:
        logger.warning(
            "nfqlb %s means something else by its configuration; what ours has no more is cut off",
            found.version,
        )
        return config
    return transition.merged(found.config, config)


class Bequest:
    """A running gateway's part. `config` says what it runs, None while that may not be taken from it.

    `holder` is for the worker, should this process end without a word.
    """

    def __init__(self, selector: BaseSelector, config: Callable[[], Config | None]) -> None:
        self.holder = Holder(estate.place())
        self._selector = selector
        self._config = config
        self._heir: socket.socket | None = None
        self._shown: Config | None = None
        self._rests = ExitStack()
        self._ended = False

    def offer(
        self,
        bound: Callable[[], dict[str, int]],
        rest: Callable[[], AbstractContextManager[None]],
        end: Callable[[], None],
    ) -> None:
        """From now on there is something to take over.

        `bound` gives the descriptors of what is bound, by name; `rest` is a context in which another may
        change our rules; `end` ends us.
        """
        self._bound, self._rest, self._end = bound, rest, end
        self._selector.register(self.holder, EVENT_READ, lambda _mask: self._come())

    def close(self, *, remove: bool) -> None:
        """Nobody takes over from here any more; without `remove` a worker that is left can still be found.

        Who has our word sees the end of this process, not before.
        """
        if self.holder.fileno() in {key.fd for key in self._selector.get_map().values()}:
            self._selector.unregister(self.holder)
        self.holder.close(remove=remove)
        if not self._ended:
            self._hang_up()

    def _come(self) -> None:
        heir = self.holder.accept()
        config = self._config()
        if heir is None:
            return
        if self._heir is not None or config is None:
            logger.warning("somebody wants to take over, which cannot be at the moment")
            heir.close()
            return
        if not estate.show(heir, config, self._bound(), orphan=False):
            heir.close()
            return
        logger.info("another nfqlb, process %d, prepares to take over", peer(heir).pid)
        self._heir, self._shown = heir, config
        self._rests.enter_context(self._rest())
        self._selector.register(heir, EVENT_READ, lambda _mask: self._said(heir))

    def _said(self, heir: socket.socket) -> None:
        word = estate.is_end(heir)
        if word is None or heir is not self._heir:
            return
        if word and self._config() is self._shown:
            self._ended = True
            self._selector.unregister(heir)
            self._end()
            return
        logger.warning("it does not take over; everything goes on as before")
        self._hang_up()

    def _hang_up(self) -> None:
        if self._heir is not None:
            self._selector.unregister(self._heir)
            self._heir.close()
            self._heir = None
        self._rests.close()
