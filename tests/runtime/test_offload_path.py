"""The worker's side of datapath offload, without a kernel: what a SYN is answered, what a copy changes.

`Ledger` is conntrack's table as far as it matters: entries by what the client sends.
"""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from struct import pack

import pytest

from nfqlb.config.marks import LinkMarks
from nfqlb.core.director import Director
from nfqlb.core.segment import ACK, FIN, RST, SYN
from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.conntrack import ESTABLISHED, SYN_SENT, TIME_WAIT, Entry
from nfqlb.packet.translate import CHECKSUM_NOT_READY
from nfqlb.runtime.offload import OffloadPath

VIP, CLIENT = "192.0.2.100", "198.51.100.7"
WEB1, WEB2 = Real("web1", ip_address("10.0.0.11")), Real("web2", ip_address("10.0.0.12"))
WEB = Virtual(
    "web", ip_address(VIP), (Server("web1", 8080), Server("web2", 8080)), port=80,
    scheduler="round-robin", datapath="offload",
)  # fmt: skip
CONFIG = Config(Gateway(("eth0",), ("eth1",), datapath="offload"), (WEB1, WEB2), (WEB,))
PREROUTING, FORWARD = 0, 2
TCP = 6


class Ledger:
    """The kernel's table, played by a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Entry] = {}
        self.deleted: list[bytes] = []

    def entries(self, mask: int) -> Iterator[Entry]:
        yield from [entry for entry in self.rows.values() if entry.mark & mask]

    def find(self, inbound: bytes, protocol: int) -> Entry | None:
        return self.rows.get(inbound)

    def delete(self, inbound: bytes, protocol: int) -> bool:
        self.deleted.append(inbound)
        return self.rows.pop(inbound, None) is not None


def key(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    addresses = ip_address(source[0]).packed + ip_address(destination[0]).packed
    return addresses + source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")


def packet(
    source: tuple[str, int], destination: tuple[str, int], flags: int, sequence: int, acknowledged: int = 0
) -> bytearray:
    """An IPv4 header without options and the first 20 bytes of TCP, as the tap copies them."""
    found = key(source, destination)
    ip = pack("!BBHHHBBH8s", 0x45, 0, 40, 0, 0, 64, TCP, 0, found[:8])
    return bytearray(ip + pack("!4sIIHHHH", found[8:], sequence, acknowledged, 0x5000 | flags, 0, 0, 0))


class Worker:
    """One worker's offload path, and a client's words to it."""

    def __init__(self, config: Config = CONFIG, ledger: Ledger | None = None) -> None:
        self.director = Director(config, now=0.0)
        self.ledger = ledger or Ledger()
        self.path = OffloadPath(self.director, self.ledger, 0.0)
        self.marks = LinkMarks(config)
        self.config = config

    def mark(self, server: int) -> int:
        return self.marks.of(self.config.virtuals[0], self.config.virtuals[0].servers[server])

    def syn(self, port: int = 5000, sequence: int = 100) -> int:
        buffer = packet((CLIENT, port), (VIP, 80), SYN, sequence)
        return self.path.judge(buffer, 0, len(buffer), PREROUTING, CHECKSUM_NOT_READY, 0)

    def client(self, flags: int, sequence: int, acknowledged: int, port: int = 5000) -> None:
        buffer = packet((CLIENT, port), (VIP, 80), flags, sequence, acknowledged)
        self.path.tapped(buffer, 0, len(buffer), PREROUTING, ())

    def server(
        self, flags: int, sequence: int, acknowledged: int, port: int = 5000, host: Real = WEB1
    ) -> None:
        buffer = packet((str(host.address), 8080), (CLIENT, port), flags, sequence, acknowledged)
        self.path.tapped(buffer, 0, len(buffer), FORWARD, ())

    def enter(
        self, port: int = 5000, state: int = ESTABLISHED, timeout: int = 3600, host: Real = WEB1
    ) -> bytes:
        """conntrack has an entry for this connection."""
        inbound = key((CLIENT, port), (VIP, 80))
        outbound = key((str(host.address), 8080), (CLIENT, port))
        self.ledger.rows[inbound] = Entry(inbound, outbound, TCP, self.mark(0), 0, state, timeout)
        return inbound

    def states(self) -> list[str]:
        return [row.state for row in self.director.connections(self.path.now, limit=100)]

    def connections(self) -> list[int]:
        return [row.connections for row in self.director.reals(self.path.now)]

    def sweep(self) -> None:
        while not self.path.sweep(1):
            pass


@pytest.fixture
def gateway() -> Worker:
    return Worker()


def test_a_syn_is_answered_with_its_servers_mark(gateway: Worker) -> None:
    assert [gateway.syn(port) for port in (1, 2, 3)] == [gateway.mark(0), gateway.mark(1), gateway.mark(0)]
    assert gateway.ledger.deleted == []


def test_a_connection_opens_with_the_syn_ack_and_ends_with_both_fins(gateway: Worker) -> None:
    """R077, R078, R128: the ACK that follows is taken for granted."""
    gateway.syn()
    gateway.server(SYN | ACK, 900, 101)
    assert gateway.states() == ["established"]
    gateway.client(FIN | ACK, 90_000_000, 1)
    gateway.server(FIN | ACK, 5, 6)
    assert gateway.states() == ["closed"]
    assert gateway.connections() == [0, 0]


def test_a_syn_ack_that_does_not_fit_opens_nothing(gateway: Worker) -> None:
    gateway.syn()
    gateway.server(SYN | ACK, 900, 5_000_000)
    assert gateway.states() == ["syn-sent"]


def test_a_request_is_timed_however_much_was_not_told_before_it() -> None:
    """R082, R085: the second one begins 1 GB after the first, most of which was never copied."""
    virtual = replace(CONFIG.virtuals[0], scheduler="fastest-response")
    worker = Worker(replace(CONFIG, virtuals=(virtual,)))
    worker.syn()
    worker.server(SYN | ACK, 900, 101)
    for at, sequence in ((1, 101), (2, 1_000_000_000)):
        asked = packet((CLIENT, 5000), (VIP, 80), ACK, sequence, 901)
        answered = packet((str(WEB1.address), 8080), (CLIENT, 5000), ACK, 901, sequence + 10)
        for told, hook, stamp in ((asked, PREROUTING, (at, 0)), (answered, FORWARD, (at, 250_000 * at))):
            told[2:4] = (40 + 10).to_bytes(2, "big")  # 10 bytes of data, which were not copied
            worker.path.tapped(told, 0, len(told), hook, stamp)
    assert worker.director.reals(0.0)[0].response == 0.5


def test_a_reset_is_believed_whatever_was_last_seen(gateway: Worker) -> None:
    """conntrack tells only those inside the window, wherever that has moved meanwhile."""
    gateway.syn()
    gateway.server(SYN | ACK, 900, 101)
    gateway.client(RST, 3_000_000_000, 0)
    assert gateway.states() == ["closed"]


def test_a_refusal_must_answer_the_syn(gateway: Worker) -> None:
    """A42."""
    gateway.syn()
    gateway.server(RST | ACK, 0, 77)
    assert gateway.states() == ["syn-sent"]
    gateway.server(RST | ACK, 0, 101)
    assert gateway.states() == ["closed"]
    assert gateway.director.reals(0.0)[0].ditched_reset == 1


def test_a_silent_servers_connection_is_forgotten_by_the_kernel_and_marked_anew(gateway: Worker) -> None:
    """A39: the third SYN goes to another server; conntrack must not send it to the first."""
    assert [gateway.syn(), gateway.syn()] == [gateway.mark(0)] * 2
    assert gateway.ledger.deleted == []
    inbound = gateway.enter(state=SYN_SENT)
    assert gateway.syn() == gateway.mark(1)
    assert gateway.ledger.deleted == [inbound]
    gateway.path.ended(inbound, TCP)  # conntrack tells of what we have deleted
    gateway.server(SYN | ACK, 900, 101, host=WEB2)
    assert gateway.states() == ["established"]


def test_a_port_that_is_used_again_is_a_new_connection_for_the_kernel_too(gateway: Worker) -> None:
    """A18; and the end of the old one, which is told late, does not end the new one."""
    gateway.syn()
    gateway.server(SYN | ACK, 900, 101)
    gateway.client(RST, 101, 0)
    inbound = gateway.enter(state=TIME_WAIT)
    assert gateway.syn(sequence=7_000) == gateway.mark(1)
    assert gateway.ledger.deleted == [inbound]
    gateway.server(SYN | ACK, 4, 7_001, host=WEB2)
    gateway.enter(host=WEB2)
    gateway.path.ended(inbound, TCP)
    assert gateway.states() == ["established"]


def test_what_conntrack_has_forgotten_has_ended(gateway: Worker) -> None:
    """Idle too long, or deleted: the tap cannot tell that."""
    gateway.syn()
    gateway.server(SYN | ACK, 900, 101)
    inbound = key((CLIENT, 5000), (VIP, 80))
    gateway.path.ended(inbound, 17)
    assert gateway.states() == ["established"]
    gateway.path.ended(inbound, TCP)
    assert gateway.states() == []
    assert gateway.connections() == [0, 0]


def test_an_unanswered_syn_is_left_to_the_time_out_that_counts_it(gateway: Worker) -> None:
    """R041."""
    gateway.syn()
    gateway.path.ended(key((CLIENT, 5000), (VIP, 80)), TCP)
    assert gateway.states() == ["syn-sent"]
    gateway.director.tick(31.0)
    assert gateway.director.reals(31.0)[0].ditched_no_answer == 1


@pytest.mark.parametrize(("reject", "refused"), [("drop", False), ("reset", True)])
def test_a_client_that_no_server_takes_is_refused_as_the_operator_says(reject: str, refused: bool) -> None:
    reals = tuple(replace(real, weight=0.0) for real in CONFIG.reals)
    gateway = Worker(replace(CONFIG, reals=reals, virtuals=(replace(WEB, reject=reject),)))
    assert gateway.syn() == 0
    assert len(gateway.path.replies.take()) == refused


@pytest.mark.parametrize("noise", [b"\x45" + bytes(60), b"\x4f" + bytes(40), b"\x60" + bytes(60), bytes(96)])
def test_what_is_no_segment_changes_nothing(gateway: Worker, noise: bytes) -> None:
    buffer = bytearray(noise)
    assert gateway.path.judge(buffer, 0, len(buffer), PREROUTING, 0, 0) == 0
    gateway.path.tapped(buffer, 0, len(buffer), FORWARD, ())
    assert gateway.states() == []


def test_an_eaten_error_is_counted(gateway: Worker) -> None:
    buffer = bytearray(b"\x45" + bytes(8) + b"\x01" + bytes(60))
    gateway.path.tapped(buffer, 0, len(buffer), FORWARD, ())
    assert gateway.director.totals().drops["unreachable-eaten"] == 1


# ---- Comparing with the kernel's table


def test_connections_that_only_the_kernel_knows_are_adopted(gateway: Worker) -> None:
    """After a restart without a journal, or where the tap lost a SYN-ACK."""
    gateway.enter(5000)
    gateway.enter(5001, host=WEB2)
    gateway.enter(5002, state=TIME_WAIT)
    gateway.sweep()
    assert gateway.path.adopted == 2
    assert gateway.connections() == [1, 1]
    gateway.client(RST, 1, 0, port=5001)
    assert gateway.connections() == [1, 0]


def test_an_entry_of_a_server_that_is_no_more_is_not_adopted(gateway: Worker) -> None:
    gateway.enter(host=Real("gone", ip_address("10.0.0.99")))
    gateway.sweep()
    assert gateway.states() == []


def test_what_ended_unnoticed_is_forgotten_and_the_young_are_spared(gateway: Worker) -> None:
    for port in (5000, 5002):
        gateway.syn(port)
        gateway.server(SYN | ACK, 900, 101, port, host=WEB1 if port == 5000 else WEB2)
    gateway.enter(5002, host=WEB2)
    gateway.path.now = 10.0
    assert not gateway.path.sweep(1)
    gateway.syn(5003)
    gateway.server(SYN | ACK, 900, 101, 5003)
    gateway.sweep()
    assert gateway.path.forgotten == 1
    assert gateway.connections() == [1, 1]


def test_a_sweep_tells_when_a_connection_was_last_heard_of(gateway: Worker) -> None:
    """R046: the core's own idle time-out does not end what the kernel still carries."""
    gateway.syn()
    gateway.server(SYN | ACK, 900, 101)
    gateway.path.now = 3599.0
    gateway.enter(timeout=3500)
    gateway.sweep()
    gateway.director.tick(3700.0)
    (row,) = gateway.director.connections(3700.0, limit=1)
    assert row.idle == 201.0


def test_something_lost_makes_a_sweep_due(gateway: Worker) -> None:
    gateway.path.lost(3)
    assert gateway.path.behind
    gateway.sweep()
    assert not gateway.path.behind
