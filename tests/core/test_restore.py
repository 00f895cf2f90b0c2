"""A successor takes over: it carries on where its predecessor died."""

from collections.abc import Iterator

import pytest

from nfqlb.core.segment import ACK, RST
from nfqlb.core.states import State
from nfqlb.core.verdict import Drop
from tests.core.memory import Memory
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, real, reals, virtual


class Succession:
    """A gateway whose worker dies and is replaced."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.lab = self._worker(now=5000.0)

    def _worker(self, now: float) -> Scenario:
        return Scenario(
            [
                virtual("web", ["a:8080", "b:8080"], scheduler="least-connections"),
                virtual("tls", ["a:8443"], port=443),
                virtual("shop", "cd", port=8080, scheduler="round-robin", sticky=60),
            ],
            [real("a", max_connections=4, idle_timeout=600), real("b"), *reals("cd")],
            recorder=self.memory,
            now=now,
        )

    def die(self, after: float = 1.0) -> Scenario:
        """The worker dies; the one that takes its place has the same calls before it."""
        successor = self._worker(self.lab.now + after)
        for place, (inbound, server, code, opened) in list(self.memory.records.items()):
            taken = successor.director.restore(inbound, server, code, place, opened=opened, now=successor.now)
            assert taken
        successor.director.restored(successor.now)
        self.lab = successor
        return successor

    def resume(self, call: Call) -> Call:
        """The conversation goes on with the worker that is there now."""
        call._scenario = self.lab
        return call


@pytest.fixture
def gateway() -> Succession:
    return Succession()


def every_state(lab: Scenario) -> Iterator[tuple[Call, str]]:
    """One connection in each state."""
    yield lab.dial("web"), "syn-sent"
    yield lab.dial("web").syn_ack(), "syn-received"
    yield lab.connect("tls"), "established"
    yield lab.connect("web").fin(), "fin-client"
    yield lab.connect("web").server_fin(), "fin-server"
    yield lab.connect("web").close(), "closed"


def test_counts_keys_and_states_are_kept(gateway: Succession) -> None:
    """R043, R050, R187: every connection is found under both keys, counted as before."""
    calls = list(every_state(gateway.lab))
    before = gateway.lab.loads(), [gateway.lab.real(name).unanswered for name in "ab"]
    seen_before = gateway.lab.connections()
    lab = gateway.die()
    assert (lab.loads(), [lab.real(name).unanswered for name in "ab"]) == before
    audit(lab.director)
    assert [(each.client_port, each.real, each.real_port, each.state) for each in lab.connections()] == [
        (each.client_port, each.real, each.real_port, each.state) for each in seen_before
    ]
    for call, state in calls:
        gateway.resume(call)
        assert call.server_ack().state == state
        port = int.from_bytes(call.key[8:10], "big")
        assert call.server == next(each.real for each in seen_before if each.client_port == port)


def test_what_goes_on_moves_on(gateway: Succession) -> None:
    """R111, R128, R183: each state's next event works, and the journal hears of it under the old place."""
    syn_sent, syn_received, established, fin_client, fin_server, closed = (
        call for call, _ in every_state(gateway.lab)
    )
    lab = gateway.die()
    for call in (syn_sent, syn_received, established, fin_client, fin_server, closed):
        gateway.resume(call)
    assert syn_sent.syn().syn_ack().ack().state == "established"
    assert syn_received.ack().state == "established"
    assert established.says().hears().close().state == "closed"
    assert fin_client.server_fin().state == "closed"
    assert fin_server.fin().state == "closed"
    assert closed.ack().state == "closed"
    assert {code for _, _, code, _ in gateway.memory.records.values()} == {
        State.ESTABLISHED.code,
        State.CLOSED.code,
    }
    audit(lab.director)
    lab.wait(3700)
    lab.wait(70)
    assert gateway.memory.records == {}
    assert set(lab.loads().values()) == {0}


def test_a_repeated_syn_after_the_change_goes_to_the_same_server(gateway: Succession) -> None:
    """R111: its number is not remembered, so any SYN counts as the repeated one."""
    call = gateway.lab.dial("web")
    server = call.server
    lab = gateway.die()
    assert gateway.resume(call).syn().server == server
    assert sum(lab.loads().values()) == 1


def test_schedulers_see_what_was_taken_over(gateway: Succession) -> None:
    """R095, R104, R184: the next choice counts it, and a full server is full."""
    for _ in range(5):
        gateway.lab.connect("web")
    assert gateway.lab.loads() == {"a": 3, "b": 2, "c": 0, "d": 0}
    gateway.lab.connect("tls")
    lab = gateway.die()
    assert lab.real("a").state == "max-capacity"
    assert lab.dial("tls").refused is Drop.NO_SERVER
    assert lab.connect("web").server == "b"


def test_ages_are_kept_and_idleness_begins_anew(gateway: Succession) -> None:
    """R046: nobody knows when the last packet was; the time-out runs from the change on."""
    gateway.lab.connect("tls")
    gateway.lab.wait(400)
    lab = gateway.die(after=5.0)
    (seen,) = lab.connections()
    assert (seen.age, seen.idle) == (405.0, 0.0)
    lab.wait(599)
    assert len(lab.connections()) == 1
    lab.wait(61)
    assert lab.connections() == []


def test_resets_count_after_the_change(gateway: Succession) -> None:
    """R129 (A17): the first one, as no window is known; once a segment was seen, its window."""
    for by in ("reset", "server_reset"):
        call = gateway.lab.connect("web")
        gateway.die()
        assert getattr(gateway.resume(call), by)().state == "closed"
    call = gateway.lab.connect("web")
    gateway.die()
    gateway.resume(call).says(10)
    assert call.client_sends(RST, sequence=call.client_next + 2**30).state == "established"
    call.server_ack()
    assert call.client_sends(RST, sequence=call.client_next + 2**30).state == "established"
    assert call.reset().state == "closed"


def test_the_first_ack_after_the_change_establishes(gateway: Succession) -> None:
    """R078: the server's number is not remembered."""
    call = gateway.lab.dial("web").syn_ack()
    gateway.die()
    assert gateway.resume(call).client_sends(ACK, acknowledges=1).state == "established"


def record(lab: Scenario) -> tuple[bytes, bytes]:
    """Key and server of the one connection of a worker that is about to die."""
    (connection,) = lab.director.table.inbound.values()
    return connection.inbound, connection.outbound[:4] + connection.outbound[8:10]


def test_what_has_no_place_any_more_is_not_taken_over() -> None:
    """R187: another config, a damaged record, the same key twice: refused, and nothing is counted."""
    old = Scenario(virtual("web", ["a:8080"]), reals("a"))
    old.connect()
    inbound, server = record(old)
    established = State.ESTABLISHED.code

    def refused_by(
        lab: Scenario, inbound: bytes = inbound, server: bytes = server, code: int = established
    ) -> bool:
        before = len(lab.connections())
        taken = lab.director.restore(inbound, server, code, 1, opened=0.0, now=lab.now)
        lab.director.restored(lab.now)
        audit(lab.director)
        return not taken and len(lab.connections()) == before

    same = Scenario(virtual("web", ["a:8080"]), reals("a"))
    assert refused_by(Scenario(virtual("web", ["a:8080"], port=81), reals("a"))), "no such virtual server"
    assert refused_by(Scenario(virtual("web", ["a:8081"]), reals("a"))), "another port there"
    assert refused_by(Scenario(virtual("web", ["b:8080"]), reals("b"))), "no such real server"
    assert refused_by(same, code=State.GONE.code), "ended"
    assert refused_by(same, code=200), "a state nobody knows"
    assert refused_by(same, inbound=b"")
    assert refused_by(same, server=b"")
    assert not refused_by(same)
    assert refused_by(same), "the same once more"
    two = Scenario(virtual("web", ["a:8080", "b:8080"]), reals("ab"))
    assert not refused_by(two)
    other = real("b").address.packed + server[4:]
    assert refused_by(two, server=other), "the same client, connected to another server"


def test_two_records_whose_replies_would_collide() -> None:
    """R169 (A5): the second is refused."""
    lab = Scenario([virtual("one", "a"), virtual("two", "a", address="203.0.113.2")], reals("a"))
    one, two = lab.call("one", port=40001), lab.call("two", port=40001)
    server = real("a").address.packed + (80).to_bytes(2, "big")
    for place, call in enumerate((one, two)):
        taken = lab.director.restore(call.key, server, State.ESTABLISHED.code, place, opened=0.0, now=lab.now)
        assert taken is (place == 0)
    lab.director.restored(lab.now)
    audit(lab.director)


def test_the_journal_hears_of_everything_once(gateway: Succession) -> None:
    """R187: opened, each change of state, ended; nothing for segments that change nothing."""
    lab, memory = gateway.lab, gateway.memory
    call = lab.dial("web").syn().syn_ack().syn_ack().ack().says().hears().ack()
    assert memory.moves == [(1, State.SYN_RECEIVED.code), (1, State.ESTABLISHED.code)]
    call.close().reset()
    ending = [State.FIN_CLIENT.code, State.CLOSED.code, State.ABORTED.code]
    assert [code for _, code in memory.moves[2:]] == ending
    assert list(memory.records) == [1]
    call.syn(isn=5_000_000)
    assert list(memory.records) == [2]
    lab.wait(60)
    assert memory.records == {}


def test_clients_of_restored_connections_stay_bound(gateway: Succession) -> None:
    """R131, R132: stickiness outlives the worker for whoever is connected."""
    clients = [f"192.0.2.{number}" for number in range(1, 5)]
    bound = {client: gateway.lab.connect("shop", client=client).server for client in clients}
    gateway.die()
    # on its own the scheduler would go on with the other server
    again = {
        client: gateway.lab.connect("shop", client=client, port=50_000).server for client in reversed(clients)
    }
    assert again == bound


def test_a_client_is_bound_to_where_it_was_sent_last(gateway: Succession) -> None:
    """R064, R153 (A6): whatever the order of the records, and places are used again."""
    first = gateway.lab.connect("shop")
    gateway.lab.wait(61)
    second = gateway.lab.connect("shop")
    assert (first.server, second.server) == ("c", "d")
    records = gateway.memory.records
    records[1], records[2] = records[2], records[1]
    lab = gateway.die()
    assert lab.connect("shop", port=50_000).server == "d"


def test_being_taken_over_prolongs_no_entry(gateway: Succession) -> None:
    """R064, R155 (A6): the interval still runs from the last assignment."""
    gateway.lab.connect("shop")
    gateway.lab.wait(40)
    lab = gateway.die(after=5.0)
    assert [(each.age, each.expires) for each in lab.director.sticky(lab.now)] == [(45.0, 15.0)]
    lab.wait(20)
    assert list(lab.director.sticky(lab.now)) == []
    lab = gateway.die(after=5.0)
    assert lab.director.totals().sticky == 0, "nothing is made of an old connection"
