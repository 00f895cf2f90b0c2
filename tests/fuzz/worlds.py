"""Gateways for fuzzing: every kind of virtual server, few connections allowed, no kernel.

Owns the configuration that packets are thrown at, and the books kept of each packet: what was said of it,
what was counted, what it looks like now.
"""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import islice
from struct import pack

from nfqlb.config.marks import LinkMarks
from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.keys import without_end
from nfqlb.core.segment import ACK, SYN
from nfqlb.core.spec import Config, Gateway, Real, Server, Timeouts, Virtual
from nfqlb.core.verdict import Drop
from nfqlb.netfilter.conntrack import ESTABLISHED, SEEN_REPLY, Entry
from nfqlb.netfilter.messages import QueueMessages
from nfqlb.packet.path import CHANGED, FORWARD, PREROUTING, PacketPath
from nfqlb.packet.replies import Replies
from nfqlb.runtime.carrier import KernelCarrier
from nfqlb.runtime.offload import OffloadPath
from tests.core.recount import audit
from tests.fuzz import mutants, oracle
from tests.fuzz.choices import Choices
from tests.fuzz.mutants import SUPER, TCP, UDP, Made, Way

NUMBER = 7
BUFFER = 131_072
MOST_CONNECTIONS, MOST_STICKY = 6, 3
_MOST_ENTRIES = 12  # of the kernel's table
_PACKET = pack("=IHHIIBBH", 0, 3 << 8, 0, 0, 0, 2, 0, 0)


def _config(datapath: str) -> Config:
    reals, virtuals = [], []
    for version, (first, second) in mutants.VIRTUALS.items():
        names = [f"s{version}{number}" for number in range(len(mutants.REALS[version]))]
        reals += [
            Real(name, ip_address(address), max_connections=9, failure_threshold=3)
            for name, address in zip(names, mutants.REALS[version], strict=True)
        ]

        def site(
            name: str, address: bytes, protocol: str, ports: tuple[int | None, int | None],
            names: list[str] = names,
        ) -> Virtual:  # fmt: skip
            servers = tuple(Server(each, ports[1]) for each in names)
            return Virtual(
                name, ip_address(address), servers, protocol=protocol, port=ports[0], datapath=datapath
            )

        web = site(f"web{version}", first, "tcp", (80, 8080))
        fast = site(f"fast{version}", first, "tcp", (8080, 8080))
        virtuals += [
            replace(web, reject="reset", sticky=60.0),
            replace(fast, scheduler="fastest-response", on_failure="reset"),
            replace(site(f"dns{version}", first, "udp", (53, 5353)), reject="reset"),
            replace(site(f"any{version}", second, "tcp", (None, None)), scheduler="round-robin"),
            site(f"all{version}", second, "udp", (None, None)),
        ]
    gateway = Gateway(
        ("out",), ("in",), datapath=datapath, max_connections=MOST_CONNECTIONS, max_sticky=MOST_STICKY
    )
    return Config(gateway, tuple(reals), tuple(virtuals), Timeouts(half_open=5, closing=2, udp=5))


REWRITE, OFFLOAD = _config("rewrite"), _config("offload")
MARKS = LinkMarks(OFFLOAD)


class Ledger:
    """conntrack's table, played by a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Entry] = {}

    def entries(self, mask: int) -> Iterator[Entry]:
        """Every entry with a mark within `mask`."""
        yield from [entry for entry in self.rows.values() if entry.mark & mask]

    def find(self, inbound: bytes, protocol: int) -> Entry | None:
        """The entry of what a client sends."""
        return self.rows.get(inbound)

    def delete(self, inbound: bytes, protocol: int) -> bool:
        """Forget an entry."""
        return self.rows.pop(inbound, None) is not None

    def take(self, inbound: bytes, protocol: int) -> Entry | None:
        """Forget an entry, and say what it was."""
        return self.rows.pop(inbound, None)

    def put_back(self, entry: Entry) -> bool:
        """Enter again what was taken."""
        return self.rows.setdefault(entry.inbound, entry) is entry

    def shorten(self, inbound: bytes, protocol: int, seconds: int) -> bool:
        """Let an entry have that much time left."""
        return inbound in self.rows

    def translate(self, connection: Connection, mark: int) -> None:
        """The kernel has sent a connection where its mark says."""
        if len(self.rows) >= _MOST_ENTRIES:
            self.rows.clear()
        inbound, protocol = without_end(connection.inbound)
        outbound, _ = without_end(connection.outbound)
        self.rows[inbound] = Entry(inbound, outbound, protocol, mark, SEEN_REPLY, ESTABLISHED, 100)


class Gatekeeper:
    """What the two datapaths share: a director, a queue's messages, one receive buffer that is used again."""

    most = MOST_CONNECTIONS

    def __init__(self, director: Director, replies: Replies) -> None:
        self.director = director
        self.replies = replies
        self.buffer = bytearray(BUFFER)
        self.view = memoryview(self.buffer)
        self.errors: list[Exception] = []
        self.judging = QueueMessages(NUMBER)
        self.judging.on_error = self.errors.append

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and do what is due."""
        raise NotImplementedError

    def known(self, choices: Choices, inbound: bool) -> Way | None:
        """What the client or the server of one of the connections would send now."""
        table = self.director.table.inbound
        if not table:
            return None
        number = choices.below(min(len(table), 8))
        connection = next(islice(reversed(list(table.values())), number, None))
        move, answering = choices.pick((1, 1, 1, 0, 0, 7, 100_000)), choices.below(4) > 0
        return way_of(connection, inbound=inbound, move=move, answering=answering)

    def receive(self, data: bytes, hook: int, info: int, *, stamp: bytes = b"") -> tuple[int, int]:
        """Put a packet into the buffer as the kernel's message has it; where it lies."""
        header = pack("=HHIHBx", 11, 1, 0x0100_0000, 0x0008, hook)
        front = _PACKET + header + (pack("=HH", 20, 4) + stamp if stamp else b"")
        front += pack("=HHI", 8, 14, int.from_bytes(info.to_bytes(4, "big"), "little"))
        whole = front + pack("=HH", 4 + len(data), 10) + data
        self.buffer[: len(whole)] = whole
        return len(whole) - len(data), len(whole)

    def counted(self) -> int:
        """How many packets have been refused, by whatever reason, passes included."""
        return sum(self.director.tally._counts.values())

    def check(self) -> None:
        """Fail if anything has raised, a counter is wrong, or more is remembered than is allowed."""
        if self.errors:
            raise self.errors[0]
        audit(self.director)
        assert len(self.director.table) <= self.most
        assert len(self.director.fpas) <= MOST_STICKY
        assert len(self.judging._layouts) <= 32
        assert self.director.tally.count(Drop.ERROR) == 0

    def check_replies(self) -> None:
        """Fail unless what goes to clients is whole, not too long, and from a virtual server."""
        for reply in self.replies.take():
            oracle.check_by_scapy(reply)
            assert len(reply) <= (576 if reply[0] >> 4 == 4 else 1280)
            ours = reply[12:16] if reply[0] >> 4 == 4 else reply[8:24]
            assert ours in mutants.VIRTUALS[reply[0] >> 4]


def way_of(connection: Connection, *, inbound: bool, move: int, answering: bool) -> Way:
    """What one side of a connection would send next: its numbers moved on by so much.

    `answering`: it acknowledges what the other side has sent last.
    """
    key, protocol = without_end(connection.inbound if inbound else connection.outbound)
    size = (len(key) - 4) // 2
    sides = [connection.client_numbers or bytes(8), connection.server_numbers or bytes(8)]
    own, other = sides if inbound else sides[::-1]
    ports = int.from_bytes(key[-4:-2], "big"), int.from_bytes(key[-2:], "big")
    sequence = int.from_bytes(own[:4], "big") + move & 0xFFFF_FFFF
    acknowledged = int.from_bytes(own[4:], "big")
    if answering:
        acknowledged = int.from_bytes(other[:4], "big") + 1 & 0xFFFF_FFFF
    version, numbers = 4 if size == 4 else 6, (sequence, acknowledged)
    return Way(version, protocol, key[:size], key[size : 2 * size], ports, numbers)


def ends_of(connection: Connection) -> oracle.Ends:
    """What a connection's packets are translated between, from the configuration alone."""
    virtual, real = connection.link.virtual.spec, connection.link.real.spec
    port = next(server.port for server in virtual.servers if server.real == real.name)
    return oracle.Ends(virtual.address.packed, real.address.packed, virtual.port, port)


class RewritingGateway(Gatekeeper):
    """Datapath rewrite: every packet is judged, and changed in place."""

    def __init__(self) -> None:
        director = Director(REWRITE, now=0.0)
        self.path = PacketPath(director, 1.0)
        super().__init__(director, self.path.replies)
        self.judging.judge = self.path.judge

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and do what is due."""
        self.path.now += seconds
        self.director.tick(self.path.now, 100)

    def put(self, made: Made, hook: int, info: int, *, stamp: bytes = b"", scapy: bool = False) -> int:
        """Have a packet judged through the queue's messages, and check everything that must hold.

        With `scapy`, that has its say too on packets that were not damaged.
        """
        before, counted = made.data, self.counted()
        concerned = self._concerned(before, hook)
        start, end = self.receive(before, hook, info, stamp=stamp)
        place = self.judging.find(self.buffer, end)
        assert place is not None
        assert place[0] == start - 4
        answer = bytes(self.judging.answer(self.buffer, self.view, place))
        if self.errors:
            raise self.errors[0]
        after = bytes(self.buffer[start:end])
        verdict = int.from_bytes(answer[24:28], "big")  # NF_DROP or NF_ACCEPT
        assert answer[28:32] == b"\0\0\0\1", "the packet's own id"
        changed = len(answer) > 32
        assert verdict or not changed
        if changed:
            assert self.counted() == counted
            assert answer[36 : 36 + len(after)] == after
            connection = self._concerned(before, hook) or concerned
            assert connection is not None
            oracle.check(before, after, hook, info, ends_of(connection))
            udp = oracle.spot(before)
            assert hook != PREROUTING or not info & SUPER or udp is None or udp.protocol != UDP
            if scapy and not made.damaged and not info:
                oracle.check_by_scapy(after)
        else:
            assert after == before
            assert self.counted() == counted + 1
        self.check_replies()
        return CHANGED if changed else verdict

    def vanishing(self, made: Made, hook: int) -> Made:
        """The packet, if its connection is known, with a sum that must not become 0."""
        connection = self._concerned(made.data, hook)
        if connection is None:
            return made
        return Made(oracle.vanishing(made.data, hook, ends_of(connection)), damaged=True)

    def open(self, choices: Choices) -> None:
        """Let a client open a connection or a flow; mostly the server answers, and the client goes on."""
        before = len(self.director.table)
        self.put(mutants.opening(choices), PREROUTING, 0)
        if len(self.director.table) == before or not choices.below(4):
            return
        connection = next(reversed(self.director.table.inbound.values()))
        for inbound, flags in ((False, SYN | ACK), (True, ACK)):
            way = way_of(connection, inbound=inbound, move=int(inbound), answering=True)
            self.put(mutants.plain(way, flags), PREROUTING if inbound else FORWARD, 0)

    def _concerned(self, packet: bytes, hook: int) -> Connection | None:
        """The connection that a packet, or the one that it quotes, belongs to; found independently."""
        found = oracle.spot(packet)
        if found is None:
            return None
        table = self.director.table
        if found.protocol in (TCP, UDP):
            key = _key(packet, found)
            return (table.inbound if hook == PREROUTING else table.outbound).get(key)
        quoted = packet[found.at + 8 :]
        inside = oracle.spot(quoted)
        if inside is None:
            return None
        key = _key(quoted, inside, back=True)
        return (table.inbound if hook == PREROUTING else table.outbound).get(key)


def _key(packet: bytes, found: oracle.Spot, *, back: bool = False) -> bytes:
    """A packet's key, or that of what it answers."""
    size = found.size
    source, target = (packet[at : at + size] for at in (found.source, found.source + size))
    ports = packet[found.at : found.at + 2], packet[found.at + 2 : found.at + 4]
    end = b"\x11" if found.protocol == UDP else b""
    if back:
        return target + source + ports[1] + ports[0] + end
    return source + target + ports[0] + ports[1] + end


class OffloadGateway(Gatekeeper):
    """Datapath offload: what opens a connection is marked, and the tap tells of some of the rest.

    What the kernel has, and is found there, is not turned away: its table has a limit of its own.
    """

    most = MOST_CONNECTIONS + _MOST_ENTRIES

    def __init__(self) -> None:
        self.ledger = Ledger()
        director = Director(OFFLOAD, now=0.0, carrier=KernelCarrier(self.ledger, OFFLOAD.timeouts.udp))
        self.path = OffloadPath(director, self.ledger, 1.0)
        super().__init__(director, self.path.replies)
        self.judging.judge = self.path.judge
        self._marks = {
            MARKS.of(virtual, server) for virtual in OFFLOAD.virtuals for server in OFFLOAD.places(virtual)
        }

    def pass_time(self, seconds: float) -> None:
        """Let time pass, do what is due, and compare with the kernel's table now and then."""
        self.path.now += seconds
        self.director.tick(self.path.now, 100)
        if seconds >= 1:
            while not self.path.sweep(100):
                pass

    def put(self, made: Made, info: int, *, stamp: bytes = b"") -> int:
        """Have a packet judged through the queue's messages; the mark, which must be of a server, or 0."""
        before, counted = made.data, self.counted()
        start, end = self.receive(before, PREROUTING, info, stamp=stamp)
        place = self.judging.find(self.buffer, end)
        assert place is not None
        answer = bytes(self.judging.answer_mark(self.buffer, self.view, place, MARKS.number_mask))
        if self.errors:
            raise self.errors[0]
        assert self.buffer[start + 4 : end] == before[4:], "only the beginning of the buffer is written over"
        mark = int.from_bytes(answer[36:40], "big")
        assert (mark in self._marks) == (int.from_bytes(answer[24:28], "big") == 4)  # NF_REPEAT
        assert self.counted() == counted + (not mark)
        if mark:
            found = oracle.spot(before)
            assert found is not None
            assert len(before) >= found.at + (8 if found.protocol == UDP else 14)
            connection = next(reversed(self.director.table.inbound.values()))
            self.ledger.translate(connection, mark)
        self.check_replies()
        return mark
