"""Which connections the kernel's table has forgotten: told as it happens.

Owns the listening socket and the reading of its messages (ctnetlink's group DESTROY).
"""

import socket
from collections.abc import Callable

from nfqlb.netfilter import netlink
from nfqlb.netfilter.conntrack import DELETE, TUPLE_ORIGINAL, tuple_in
from nfqlb.netfilter.netlink import FIRST_ATTRIBUTE, attribute_header

_DESTROY_GROUP = 3  # NFNLGRP_CONNTRACK_DESTROY
_RECEIVE_BUFFER = 4 << 20
_BUFFER_SIZE = 1 << 16

#: What is done with an entry that is no more: (the client's key, protocol).
OnEnd = Callable[[bytes, int], None]


class EndingMessages:
    """The message layer of `Endings`, without its socket."""

    def __init__(self, on_end: OnEnd, on_loss: Callable[[int], None]) -> None:
        self.on_end = on_end
        self.on_loss = on_loss
        self.on_error: Callable[[Exception], None] = _ignore
        self.events = 0
        self.failed = 0  # endings that `on_end` raised at

    def read(self, buffer: bytearray, got: int) -> int:
        """Put every ending in the first `got` bytes to `on_end`; how many there were."""
        count = 0
        for kind, _, at, end in netlink.messages(buffer, got):
            if kind == DELETE:
                count += 1
                self._ended(buffer, at, end)
        self.events += count
        return count

    def _ended(self, buffer: bytearray, at: int, end: int) -> None:
        first = at + FIRST_ATTRIBUTE
        if first + 4 > end:
            return
        size, kind = attribute_header(buffer, first)  # the kernel puts the original tuple first
        if kind & netlink.TYPE == TUPLE_ORIGINAL and first + size <= end:
            key, protocol = tuple_in(buffer, first, size)
            if not key:
                return
            try:
                self.on_end(key, protocol)
            except Exception as error:  # noqa: BLE001  one ending must not cost those behind it
                self.failed += 1
                self.on_error(error)


class Endings(EndingMessages):
    """Listens to the table: which connections it has forgotten.

    A connection makes such an event only if it was told to when it began, as our rules do (`CT --ctevents
    destroy`), and, as the kernel is set by default (net.netfilter.nf_conntrack_events=2), only if somebody
    listened then. So whoever holds the queue holds this as well. Those of others come too: the key tells.
    `on_loss` is called where the kernel lost events for lack of room. `inherited` is the descriptor of a
    socket that listens already, which this takes over.
    """

    def __init__(
        self, on_end: OnEnd, on_loss: Callable[[int], None], *, inherited: int | None = None
    ) -> None:
        super().__init__(on_end, on_loss)
        self.overruns = 0
        self._buffer = bytearray(0)
        if inherited is not None:
            self._socket = socket.socket(fileno=inherited)
            self._socket.setblocking(False)
            return
        self._socket = netlink.connect(receive_buffer=_RECEIVE_BUFFER)
        try:
            self._socket.setsockopt(netlink.SOL_NETLINK, netlink.ADD_MEMBERSHIP, _DESTROY_GROUP)
        except OSError as error:
            self._socket.close()
            raise netlink.refused("conntrack events", error.errno or 0) from None
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor that is readable when events wait."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def run(self, budget: int) -> int:
        """Read what waits, at most `budget` events or so; returns how many there were."""
        if not self._buffer:
            self._buffer = bytearray(_BUFFER_SIZE)
        return netlink.drain(self._socket, self._buffer, self.read, self._overrun, budget)

    def _overrun(self) -> None:
        self.overruns += 1
        self.on_loss(0)


def _ignore(_error: Exception) -> None:
    pass
