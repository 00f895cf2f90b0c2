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
from nfqlb.core.states import State
from nfqlb.netfilter.conntrack import (
    CLOSE,
    ESTABLISHED,
    FIN_WAIT,
    LAST_ACK,
    SEEN_REPLY,
    SYN_RECEIVED,
    SYN_SENT,
    TIME_WAIT,
    Entry,
)
from nfqlb.netfilter.errors import KernelError
from nfqlb.packet.translate import CHECKSUM_NOT_READY
from nfqlb.runtime.carrier import KernelCarrier
from nfqlb.runtime.offload import OffloadPath

VIP, CLIENT = "192.0.2.100", "198.51.100.7"
WEB1, WEB2 = Real("web1", ip_address("10.0.0.11")), Real("web2", ip_address("10.0.0.12"))
WEB = Virtual(
    "web", ip_address(VIP), (Server("web1", 8080), Server("web2", 8080)), port=80,
    scheduler="round-robin", datapath="offload",
)  # fmt: skip
CONFIG = Config(Gateway(("eth0",), ("eth1",), datapath="offload"), (WEB1, WEB2), (WEB,))
DNS = Virtual(
    "dns", ip_address(VIP), (Server("web1", 5353), Server("web2", 5353)), protocol="udp", port=53,
    scheduler="round-robin", datapath="offload",
)  # fmt: skip
NAMES = replace(CONFIG, virtuals=(DNS,))
FAST = replace(CONFIG, virtuals=(replace(WEB, scheduler="fastest-response"),))
PREROUTING, FORWARD = 0, 2
TCP, UDP = 6, 17


class Ledger:
    """The kernel's table, played by a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Entry] = {}
        self.deleted: list[bytes] = []
        self.meanwhile: dict[bytes, int] = {}  # TCP states, or a flow's status, after they were asked for

    def entries(self, mask: int) -> Iterator[Entry]:
        yield from [entry for entry in self.rows.values() if entry.mark & mask]

    def find(self, inbound: bytes, protocol: int) -> Entry | None:
        return self.rows.get(inbound)

    def delete(self, inbound: bytes, protocol: int) -> bool:
        self.deleted.append(inbound)
        return self.rows.pop(inbound, None) is not None

    def take(self, inbound: bytes, protocol: int) -> Entry | None:
        entry = self.rows.get(inbound)
        state = self.meanwhile.pop(inbound, None)
        self.delete(inbound, protocol)
        return entry._replace(tcp_state=state) if entry is not None and state is not None else entry

    def put_back(self, entry: Entry) -> bool:
        self.rows[entry.inbound] = entry
        return True

    def shorten(self, inbound: bytes, protocol: int, seconds: int) -> bool:
        self.rows[inbound] = self.rows[inbound]._replace(timeout=seconds)
        return True


def key(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    addresses = ip_address(source[0]).packed + ip_address(destination[0]).packed
    return addresses + source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")


def packet(
    source: tuple[str, int], destination: tuple[str, int], flags: int, sequence: int, acknowledged: int = 0,
    size: int = 0,
) -> bytearray:  # fmt: skip
    """IPv4 and TCP headers without options, as the tap copies them of a packet with `size` bytes of data."""
    found = key(source, destination)
    ip = pack("!BBHHHBBH8s", 0x45, 0, 40 + size, 0, 0, 64, TCP, 0, found[:8])
    return bytearray(ip + pack("!4sIIHHHH", found[8:], sequence, acknowledged, 0x5000 | flags, 0, 0, 0))


def datagram(source: tuple[str, int], destination: tuple[str, int], payload: bytes = b"") -> bytearray:
    """An IPv4 header without options, a UDP header, and what follows."""
    found = key(source, destination)
    ip = pack("!BBHHHBBH8s", 0x45, 0, 28 + len(payload), 0, 0, 64, UDP, 0, found[:8])
    return bytearray(ip + pack("!4sHH", found[8:], 8 + len(payload), 0) + payload)


class Worker:
    """One worker's offload path, and a client's words to it."""

    def __init__(self, config: Config = CONFIG, ledger: Ledger | None = None) -> None:
        self.ledger = ledger or Ledger()
        self.carrier = KernelCarrier(self.ledger, config.timeouts.udp)
        self.director = Director(config, now=0.0, carrier=self.carrier)
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


def test_a_client_that_has_spoken_is_no_invention() -> None:
    """F24: a flood's SYN-ACKs are told too, its client's FIN is not; that makes a sticky entry firm."""
    config = replace(CONFIG, virtuals=(replace(CONFIG.virtuals[0], sticky=60.0), *CONFIG.virtuals[1:]))
    gateway = Worker(config)
    gateway.syn()
    gateway.server(SYN | ACK, 900, 101)
    ((_, _, entry),) = gateway.director.fpas.entries()
    assert entry.loose
    gateway.client(FIN | ACK, 101, 901)
    assert not entry.loose


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
    assert inbound not in gateway.ledger.rows
    gateway.path.ended(inbound, TCP)  # conntrack tells of what we have deleted
    gateway.server(SYN | ACK, 900, 101, host=WEB2)
    assert gateway.states() == ["established"]


def test_an_answer_that_is_not_told_yet_keeps_the_connection_where_it_is(gateway: Worker) -> None:
    """A39: held up somewhere, three SYNs arrive at once, and the answer to the first is on its way back."""
    assert [gateway.syn(), gateway.syn()] == [gateway.mark(0)] * 2
    gateway.enter(state=SYN_RECEIVED)
    assert gateway.syn() == gateway.mark(0)
    assert gateway.ledger.deleted == []
    gateway.server(SYN | ACK, 900, 101)
    assert gateway.states() == ["established"]
    assert gateway.director.reals(0.0)[0].ditched_no_answer == 0


@pytest.mark.parametrize("state", [SYN_RECEIVED, ESTABLISHED])
def test_an_answer_in_the_moment_of_the_third_syn_keeps_the_connection_where_it_is(
    gateway: Worker, state: int
) -> None:
    """A39: conntrack says what it has forgotten, and is told of it again."""
    assert [gateway.syn(), gateway.syn()] == [gateway.mark(0)] * 2
    inbound = gateway.enter(state=SYN_SENT)
    gateway.ledger.meanwhile[inbound] = state
    assert gateway.syn() == gateway.mark(0)
    assert gateway.ledger.rows[inbound].tcp_state == state
    gateway.path.ended(inbound, TCP)  # conntrack tells of what it has forgotten for a moment
    assert gateway.states() == ["established"]
    assert gateway.connections() == [1, 0]


def test_a_refusal_in_the_moment_of_the_third_syn_is_none_any_more(gateway: Worker) -> None:
    """A39: the SYN is at another server by then."""
    assert [gateway.syn(), gateway.syn()] == [gateway.mark(0)] * 2
    inbound = gateway.enter(state=SYN_SENT)
    gateway.ledger.meanwhile[inbound] = CLOSE
    assert gateway.syn() == gateway.mark(1)
    assert inbound not in gateway.ledger.rows


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


def test_an_eaten_error_is_counted_for_its_virtual_server(gateway: Worker) -> None:
    """It quotes what the server was sent; one about nothing that is known counts for the gateway alone."""
    gateway.syn(port=5000)
    for port in (5000, 6000):
        quoted = packet((CLIENT, port), (str(WEB1.address), 8080), SYN, 100)[:28]
        icmp = pack("!BBHI", 3, 1, 0, 0) + quoted
        ends = key(("10.0.0.1", 0), (CLIENT, 0))[:8]
        ip = pack("!BBHHHBBH8s", 0x45, 0, 20 + len(icmp), 0, 0, 64, 1, 0, ends)
        gateway.path.tapped(bytearray(ip + icmp), 0, 20 + len(icmp), FORWARD, ())
    assert gateway.director.totals().drops == {"unreachable-eaten": 2}
    assert gateway.director.virtuals(0.0)[0].drops == {"unreachable-eaten": 1}


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


@pytest.mark.parametrize(
    ("state", "given", "left"),
    [(ESTABLISHED, 432_000, 3600), (ESTABLISHED, 300, 300), (TIME_WAIT, 3600, 10), (SYN_SENT, 3600, 30)],
)
def test_the_entry_of_a_stranger_has_no_more_time_than_one_of_ours(
    gateway: Worker, state: int, given: int, left: int
) -> None:
    """F36: what another gateway's kernel had comes with a time that somebody chose."""
    inbound = gateway.enter(state=state, timeout=given)
    gateway.sweep()
    assert gateway.ledger.rows[inbound].timeout == left


def journalled(opened: float = 0.0) -> Worker:
    """A successor that knows from the journal of a SYN to the first server, which nobody had answered."""
    gateway = Worker()
    inbound = key((CLIENT, 5000), (VIP, 80))
    server = gateway.config.virtuals[0].servers[0]
    assert gateway.director.restore(
        inbound, WEB1.address.packed + (server.port or 0).to_bytes(2, "big"), State.SYN_SENT.code, -1,
        opened=opened, now=opened,
    )  # fmt: skip
    gateway.path.now = 1.0
    return gateway


def test_a_repeated_syn_that_the_kernel_alone_sent_elsewhere_is_where_it_went() -> None:
    """F37: the dead worker's verdict was lost with it, and the client's second SYN had the other server."""
    gateway = journalled()
    gateway.enter(host=WEB2)
    gateway.sweep()
    assert gateway.states() == ["established"]
    assert gateway.connections() == [0, 1]
    gateway.client(FIN | ACK, 101, 901)
    gateway.server(FIN | ACK, 901, 102, host=WEB2)
    assert gateway.connections() == [0, 0]


def test_what_has_another_server_than_was_read_a_moment_ago_stays() -> None:
    """The entry that was read is one that was deleted meanwhile, as its connection went elsewhere."""
    gateway = journalled()
    inbound = gateway.enter(host=WEB2, state=SYN_SENT)
    read = gateway.ledger.rows[inbound]
    gateway.ledger.entries = lambda mask: iter([read])  # type: ignore[method-assign]
    gateway.enter(host=WEB1)
    gateway.sweep()
    assert (gateway.states(), gateway.connections()) == (["established"], [1, 0])


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


@pytest.mark.parametrize("state", [TIME_WAIT, LAST_ACK, CLOSE])
def test_what_has_ended_for_the_kernel_ends_here_before_its_entry_does(gateway: Worker, state: int) -> None:
    """R041: all that was told of it is lost, and nobody is held to have failed it."""
    gateway.syn()
    gateway.enter(state=state)
    gateway.path.now = 1.0
    gateway.sweep()
    assert gateway.states() == []
    assert gateway.path.forgotten == 1
    assert gateway.director.reals(0.0)[0].ditched_no_answer == 0
    assert gateway.director.reals(0.0)[0].unanswered == 0


@pytest.mark.parametrize(("state", "failed"), [(TIME_WAIT, "in-service"), (CLOSE, "failed")])
def test_an_end_that_only_an_answer_leads_to_speaks_for_the_server(state: int, failed: str) -> None:
    """R179 (A25): of failures in a row the count begins anew."""
    reals = tuple(replace(real, failure_threshold=2, failure_clients=1) for real in CONFIG.reals)
    gateway = Worker(replace(CONFIG, reals=reals, virtuals=(replace(WEB, servers=WEB.servers[:1]),)))
    gateway.syn(5000)
    gateway.server(RST | ACK, 0, 101, 5000)
    gateway.syn(5001)
    gateway.enter(5001, state=state)
    gateway.sweep()
    gateway.syn(5002)
    gateway.server(RST | ACK, 0, 101, 5002)
    assert gateway.director.reals(0.0)[0].state == failed


@pytest.mark.parametrize("state", ["established", "syn-sent"])
def test_a_young_connection_is_no_older_ones_end(gateway: Worker, state: str) -> None:
    """A18: what was read of the kernel's table may be of before its port was used again."""
    gateway.enter(5000, state=TIME_WAIT)
    gateway.enter(5001, state=TIME_WAIT)
    gateway.path.now = 1.0
    assert not gateway.path.sweep(1)
    gateway.syn(5001)
    if state == "established":
        gateway.server(SYN | ACK, 900, 101, 5001)
    gateway.enter(5001, state=ESTABLISHED if state == "established" else SYN_SENT)
    gateway.sweep()
    assert gateway.states() == [state]


def test_a_connection_as_young_as_the_comparison_is_mended_too(gateway: Worker) -> None:
    """The worker's clock does not tell them apart."""
    gateway.syn()
    gateway.enter()
    gateway.syn(5001)
    gateway.enter(5001, state=TIME_WAIT)
    gateway.sweep()
    assert gateway.states() == ["established"]


def test_what_ended_while_it_was_read_is_not_adopted(gateway: Worker) -> None:
    gateway.enter(5000)
    gateway.enter(5001, host=WEB2)
    assert not gateway.path.sweep(1)
    gateway.ledger.rows.clear()
    gateway.sweep()
    assert gateway.path.adopted == 1
    assert gateway.states() == ["established"]


@pytest.mark.parametrize(
    ("known", "state"),
    [
        (SYN_SENT, "syn-sent"),
        (SYN_RECEIVED, "established"),
        (ESTABLISHED, "established"),
        (FIN_WAIT, "established"),
    ],
)
def test_a_sweep_brings_a_connection_as_far_as_it_has_come(gateway: Worker, known: int, state: str) -> None:
    """R077, R078: the copy of its SYN-ACK was lost."""
    gateway.syn()
    gateway.enter(state=known)
    gateway.path.now = 1.0
    gateway.sweep()
    assert gateway.states() == [state]
    gateway.path.now = 2.0
    gateway.server(SYN | ACK, 900, 101)
    assert gateway.states() == ["established"]


# ---- What the kernel is asked, and told


def test_a_connection_the_kernel_still_has_does_not_time_out(gateway: Worker) -> None:
    """R046: it is as idle as what is left of its entry's time-out says."""
    gateway.syn()
    gateway.server(SYN | ACK, 900, 101)
    inbound = gateway.enter(timeout=3000)
    gateway.director.tick(3700.0)
    (row,) = gateway.director.connections(3700.0, limit=1)
    assert row.idle == 600.0
    del gateway.ledger.rows[inbound]
    gateway.director.tick(7400.0)
    assert gateway.director.connections(7400.0, limit=1) == []
    assert gateway.ledger.deleted == []


def test_the_kernels_own_time_outs_keep_no_connection_that_was_put_back(gateway: Worker) -> None:
    """R046: an entry that was put back has them from its next packet on: five days."""
    gateway.syn()
    gateway.server(SYN | ACK, 900, 101)
    inbound = gateway.enter(timeout=432_000 - 3_600)
    gateway.director.tick(3_601.0)
    assert gateway.ledger.rows[inbound].timeout == 3_600
    assert gateway.states() == ["established"]
    del gateway.ledger.rows[inbound]
    gateway.director.tick(7_300.0)
    assert gateway.states() == []


def test_a_lost_answer_is_found_when_the_half_open_time_is_over(gateway: Worker) -> None:
    """R041."""
    gateway.syn()
    gateway.enter()
    gateway.director.tick(31.0)
    assert gateway.states() == ["established"]
    assert gateway.ledger.deleted == []


def test_what_nobody_answered_is_cut(gateway: Worker) -> None:
    gateway.syn()
    inbound = gateway.enter(state=SYN_SENT)
    gateway.director.tick(31.0)
    assert gateway.states() == []
    assert gateway.ledger.deleted == [inbound]


def test_connections_of_the_other_datapath_are_none_of_the_kernels() -> None:
    """Neither does it carry them, nor are they cut there."""
    gateway = Worker()
    gateway.syn()
    gateway.enter()
    connection = next(iter(gateway.director.table.inbound.values()))
    assert gateway.carrier.carries(connection, 0.0) is not None
    connection.link.virtual.spec = replace(WEB, datapath="rewrite")
    assert gateway.carrier.carries(connection, 0.0) is None
    gateway.carrier.cut(connection)
    assert gateway.ledger.deleted == []


class Deaf(Ledger):
    """A kernel that refuses to be asked."""

    def find(self, inbound: bytes, protocol: int) -> Entry | None:
        raise KernelError("no buffer space")

    def take(self, inbound: bytes, protocol: int) -> Entry | None:
        raise KernelError("no buffer space")


def test_a_kernel_that_does_not_answer_ends_no_connection() -> None:
    """One that was answered goes on; one that nobody answered has ended all the same."""
    gateway = Worker(ledger=Deaf())
    gateway.syn()
    gateway.server(SYN | ACK, 900, 101)
    gateway.syn(5001)
    gateway.director.tick(31.0)
    gateway.director.tick(3700.0)
    assert gateway.states() == ["established"]
    assert gateway.carrier.failed == 3


# ---- UDP


def ask(gateway: Worker, port: int = 6000) -> int:
    """A client's datagram that conntrack does not know; its mark."""
    buffer = datagram((CLIENT, port), (VIP, 53), b"question")
    return gateway.path.judge(buffer, 0, len(buffer), PREROUTING, CHECKSUM_NOT_READY, 0)


def answer(gateway: Worker, host: Real = WEB1, port: int = 6000) -> None:
    """The server's first datagram, as the tap tells of it: cut short."""
    buffer = datagram((str(host.address), 5353), (CLIENT, port), bytes(68))
    gateway.path.tapped(buffer, 0, len(buffer), FORWARD, ())


def flow(gateway: Worker, status: int, port: int = 6000, timeout: int = 30) -> bytes:
    """conntrack has an entry for this flow."""
    inbound = key((CLIENT, port), (VIP, 53))
    outbound = key((str(WEB1.address), 5353), (CLIENT, port))
    gateway.ledger.rows[inbound] = Entry(inbound, outbound, UDP, gateway.mark(0), status, 0, timeout)
    return inbound


def test_a_flow_is_marked_and_its_first_answer_told() -> None:
    """R012: those that come before it get the same mark."""
    gateway = Worker(NAMES)
    assert [ask(gateway), ask(gateway), ask(gateway, 6001)] == [gateway.mark(0)] * 2 + [gateway.mark(1)]
    assert gateway.ledger.deleted == []
    assert sorted(gateway.states()) == ["udp-new", "udp-new"]
    answer(gateway)
    answer(gateway, port=7000)
    assert sorted(gateway.states()) == ["udp", "udp-new"]
    assert gateway.connections() == [1, 1]


def test_a_flow_ends_with_its_entry() -> None:
    """R046."""
    gateway = Worker(NAMES)
    ask(gateway)
    inbound = key((CLIENT, 6000), (VIP, 53))
    gateway.path.ended(inbound, TCP)
    assert gateway.states() == ["udp-new"]
    gateway.path.ended(inbound, UDP)
    assert gateway.states() == []


@pytest.mark.parametrize(("status", "state"), [(0, "udp-new"), (SEEN_REPLY, "udp")])
def test_flows_are_adopted_and_brought_as_far_as_they_have_come(status: int, state: str) -> None:
    gateway = Worker(NAMES)
    flow(gateway, status)
    gateway.sweep()
    assert (gateway.states(), gateway.path.adopted) == ([state], 1)
    other = Worker(NAMES, gateway.ledger)
    ask(other)
    other.path.now = 1.0
    other.sweep()
    assert (other.states(), other.path.adopted) == ([state], 0)


def test_a_refused_datagram_is_told_of_where_that_is_said() -> None:
    """R114."""
    gateway = Worker(
        replace(
            NAMES,
            reals=tuple(replace(real, weight=0.0) for real in CONFIG.reals),
            virtuals=(replace(DNS, reject="reset"),),
        )
    )
    assert ask(gateway) == 0
    (packet,) = gateway.path.replies.take()
    assert packet[9] == 1, "ICMP"
    assert packet[20:22] == b"\3\3"


# ---- Response times


def test_the_time_from_the_first_of_a_request_to_the_first_of_its_answer() -> None:
    """R082, R085: by the kernel's stamps on the copies; bytes are counted from the headers' words."""
    gateway = Worker(FAST)
    gateway.path.now = 100.0
    gateway.syn()
    gateway.server(SYN | ACK, 900, 101)
    for turn, took in enumerate((0.25, 0.5)):
        asked = packet((CLIENT, 5000), (VIP, 80), ACK, 101 + turn * 10, 901, size=10)
        gateway.path.tapped(asked, 0, len(asked), PREROUTING, (1000 + turn, 0))
        said = packet((str(WEB1.address), 8080), (CLIENT, 5000), ACK, 901 + turn * 5000, 111, size=5000)
        gateway.path.tapped(said, 0, len(said), FORWARD, (1000 + turn, int(took * 1_000_000)))
        assert gateway.director.reals(100.0)[0].response == took


def test_without_a_scheduler_that_goes_by_it_nothing_is_measured(gateway: Worker) -> None:
    """R173."""
    gateway.syn()
    (connection,) = gateway.director.table.inbound.values()
    assert connection.interval is None


@pytest.mark.parametrize("whole", [
    bytes(packet((VIP, 80), (CLIENT, 5000), RST, 1)),
    bytes(datagram((VIP, 53), (CLIENT, 5000))),
    b"\x45\0\0\x38" + bytes(5) + b"\1" + bytes(46),
    b"\x60\0\0\0\0\x38\x3a" + bytes(89),
])  # fmt: skip
def test_a_copy_that_was_cut_short_anywhere_tells_nothing(gateway: Worker, whole: bytes) -> None:
    """What an earlier packet has left in the buffer is not read for it."""
    gateway.syn()
    for size in range(len(whole)):
        gateway.path.tapped(bytearray(whole) + bytes(64), 0, size, FORWARD, ())
    assert gateway.states() == ["syn-sent"]
