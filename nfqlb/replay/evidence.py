"""What a capture shows: from which side it sees connections, and which server each of them got.

Owns the first reading of a file. A capture may see the client's side of the gateway, the servers' side, or
both, where every packet is there twice. Which server a connection got is known where the servers' side was
seen: the translation changes addresses and ports, but no sequence number.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nfqlb.core.destinations import Destinations
from nfqlb.core.keys import UDP, flipped, protocol_of, server_of
from nfqlb.core.segment import ACK, FIN, NO_STAMP, RST, SYN, Stamp
from nfqlb.core.server import VirtualServer
from nfqlb.packet.frame import Frame
from nfqlb.packet.sight import Seen, see

#: A client's address and port with the sequence number of its SYN; of a UDP flow without one.
Asking = tuple[bytes, bytes]


class Sides(NamedTuple):
    """Which packets of the capture stand for what happened.

    `outside` says that clients' packets are taken as they come to virtual servers, else as they go on to real
    ones; `answers_inside` that servers' packets are taken as servers send them, else as clients get
    them. `handshakes` says that clients' ACKs are not in it, so that a SYN-ACK stands for them.
    """

    outside: bool
    answers_inside: bool
    handshakes: bool


class Evidence:
    """What is learned by reading a capture once, for the virtual servers of a configuration."""

    def __init__(self, virtuals: Iterable[VirtualServer]) -> None:
        virtuals = list(virtuals)
        self.destinations = Destinations(virtuals)
        self._packets = Counter[tuple[bool, bool]]()  # by whether clients sent them, and were seen outside
        self._asked: dict[
            Asking, list[int]
        ] = {}  # the numbers of a SYN's packets, on its way to a virtual server
        self._served: dict[Asking, list[tuple[int, bytes]]] = {}  # by packet, who got it
        self._inside: dict[bytes, bool] = {}  # by key between clients and servers: is it the client's?
        self._others: dict[Asking, bytes] = {}  # who turned to an address that is nobody's here: which
        self._elsewhere = Counter[bytes]()  # how many did, by that address and port
        self.strange: set[bytes] = set()  # keys under which real servers got what was sent there
        self._number = 0
        self._calls_outside = self._calls_inside = 0
        self._answers_outside = self._answers_inside = 0
        self._acks = 0

    # --- the first reading

    def note(self, seen: Seen) -> None:
        """One packet, in the order of the file."""
        self._number += 1
        key = seen.key
        if self.destinations.find(key) is not None:
            self._from_client(seen)
        elif self.destinations.find(flipped(key)) is not None:
            self._packets[False, True] += 1
            self._answers_outside += _answers(seen)
        elif self._is_answer(seen):
            self._packets[False, False] += 1
            self._answers_inside += 1
        elif seen.opens or protocol_of(key) == UDP:
            self._going_on(seen)
        elif key in self._inside:
            self._packets[self._inside[key], False] += 1

    def _from_client(self, seen: Seen) -> None:
        self._packets[True, True] += 1
        if seen.opens or seen.flags is None:
            self._calls_outside += seen.opens
            numbers = self._asked.setdefault(_asking(seen), [])
            if seen.opens or not numbers:
                numbers.append(self._number)
        elif seen.flags & (ACK | FIN | RST) == ACK and not seen.size:
            self._acks += 1

    def _going_on(self, seen: Seen) -> None:
        """A SYN or datagram to a real server, unless it came through an address that is not ours."""
        asking, target = _asking(seen), server_of(flipped(seen.key))
        known = asking in self._asked
        if not known and self.destinations.behind(flipped(seen.key)) is None:
            self._turned_away(seen, asking, target)
        elif not known and self._others.get(asking, target) != target:
            self.strange.add(seen.key)
        else:
            self._packets[True, False] += 1
            self._calls_inside += seen.opens
            self._serve(asking, target, seen.key)

    def _turned_away(self, seen: Seen, asking: Asking, target: bytes) -> None:
        """A SYN or datagram to somebody who is not of this configuration, if it is no answer of one."""
        answers = server_of(seen.key) in self._elsewhere or flipped(seen.key) in self.strange
        if not answers and asking not in self._others:
            self._others[asking] = target
            self._elsewhere[target] += 1

    def _is_answer(self, seen: Seen) -> bool:
        """A SYN-ACK, or a datagram, to somebody who asked a virtual server: it tells who got the question."""
        if not _answers(seen):
            return False
        client = server_of(flipped(seen.key))
        number = b""
        if seen.flags is not None:
            number = ((int.from_bytes(seen.numbers[4:], "big") - 1) & 0xFFFF_FFFF).to_bytes(4, "big")
        if (client, number) not in self._asked and (client, number) not in self._served:
            return False
        self._serve((client, number), server_of(seen.key), flipped(seen.key))
        return True

    def _serve(self, asking: Asking, server: bytes, call: bytes) -> None:
        """`call` is the key of what the client sends to this server."""
        if call not in self._inside:
            self._inside |= {call: True, flipped(call): False}
        found = self._served.setdefault(asking, [])
        if not found or found[-1][1] != server:
            found.append((self._number, server))

    # --- what was learned

    @property
    def packets(self) -> int:
        """Segments and datagrams of these virtual servers, those that were seen on both sides once."""
        both = (True, False)
        return sum(max(self._packets[client, outside] for outside in both) for client in both)

    @property
    def others(self) -> list[tuple[bytes, int]]:
        """Addresses and ports that are of no virtual or real server here, and how many turned to each."""
        return self._elsewhere.most_common()

    @property
    def sides(self) -> Sides:
        """Which packets to take."""
        outside = self._calls_outside > 0 or not self._calls_inside
        answers = self._answers_outside + self._answers_inside
        inside = not outside or 2 * self._answers_inside > self._answers_outside
        return Sides(outside, inside, outside and answers > 0 and 2 * self._acks < answers)

    def server_of(self, seen: Seen, number: int) -> bytes | None:
        """Who got the SYN or datagram that is packet `number`: address and port, None where nobody tells."""
        asking = _asking(seen)
        served = self._served.get(asking)
        if not served:
            return None
        numbers = self._asked.get(asking, [])
        following = bisect_right(numbers, number)
        until = numbers[following] if following < len(numbers) else self._number + 1
        at = bisect_right(served, number, key=lambda each: each[0])
        if at < len(served) and served[at][0] < until:
            return served[at][1]
        return served[at - 1][1] if at else None


def _asking(seen: Seen) -> Asking:
    return server_of(seen.key), seen.numbers[:4]


def _answers(seen: Seen) -> bool:
    return seen.flags is None or seen.flags & (SYN | ACK) == SYN | ACK


class Sightings:
    """The packets of a capture that can be told, each once.

    A capture of several interfaces may have the same packet twice: of those with one key, those count that
    were seen where the first of them was. `frames`, `untold` and `repeated` count what there was, what has no
    segment or datagram, and what was seen twice.
    """

    def __init__(self) -> None:
        self.frames = self.untold = self.repeated = 0
        self.first: Stamp = NO_STAMP
        self.last: Stamp = NO_STAMP
        self._places: dict[bytes, int] = {}

    def of(self, frames: Iterable[Frame]) -> Iterator[Seen]:
        """What these frames are."""
        for frame in frames:
            self.frames += 1
            self.first = self.first or frame.stamp
            self.last = max(self.last, frame.stamp)
            seen = see(frame)
            if seen is None:
                self.untold += 1
            elif self._places.setdefault(seen.key, seen.place) != seen.place:
                self.repeated += 1
            else:
                yield seen
