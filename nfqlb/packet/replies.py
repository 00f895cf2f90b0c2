"""What is to be told to clients whose packets were refused.

Owns `Replies`: it asks the core whether a client is told, has the reply made (see `reply`), and keeps it
until somebody takes it to send.
"""

from nfqlb.core.director import Director
from nfqlb.core.keys import TCP, UDP
from nfqlb.core.reject import Action
from nfqlb.core.segment import Probe
from nfqlb.core.verdict import Refusal
from nfqlb.packet.reply import intact, probe, reset, reset_for, unreachable_for
from nfqlb.packet.translate import CHECKSUM_NOT_READY, SUPER_PACKET

_KERNEL_SUMS = CHECKSUM_NOT_READY | SUPER_PACKET
_QUOTED = 1500  # bytes of a packet from which a reply is made, at most


class Replies:
    """The replies of one director's refusals, not yet sent; none are made while it is `silent`."""

    def __init__(self, director: Director) -> None:
        self._director = director
        self._waiting: list[bytes] = []
        self.silent = False

    def take(self) -> list[bytes]:
        """The packets that are to go to clients, since it was last asked: IP packets, whole."""
        replies, self._waiting = self._waiting, []
        orders = self._director.take_resets()
        return replies + [probe(each) if isinstance(each, Probe) else reset(each) for each in orders]

    def tell(
        self, reason: Refusal, key: bytes, flags: int | None, buffer: bytearray, start: int, end: int,
        transport: int, info: int, now: float,
    ) -> None:  # fmt: skip
        """Let a client know that its packet `buffer[start:end]` was refused, where the policy says so.

        `transport` is where its TCP or UDP header begins; `flags` are TCP's, None for a datagram. `info` is
        what the kernel says of its checksum (NFQA_SKB_INFO), `now` in seconds.
        """
        action = Action.DROP if self.silent else self._director.reply_to(reason, key, flags, now)
        if action is Action.DROP:
            return
        protocol = UDP if flags is None else TCP
        if not info & _KERNEL_SUMS and not intact(buffer, end, transport, key, protocol):
            return
        packet = bytes(memoryview(buffer)[start : min(end, start + _QUOTED)])
        if action is Action.RESET:
            self._waiting.append(reset_for(key, packet, transport - start, end - start))
        elif action is Action.UNREACHABLE:
            self._waiting.append(unreachable_for(key, packet))
