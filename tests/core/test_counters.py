"""The books are right after any order of events (R125-R129, A17)."""

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from nfqlb.core.segment import ACK, FIN, RST, SYN
from tests.core.properties import TRIES
from tests.core.recount import audit
from tests.core.scenario import Call, Scenario, real, virtual
from tests.core.traffic import Traffic


def test_any_order_of_events() -> None:
    """R012, R043, R050, R060, R061, R125, R128, R129, R183, R187 (A4, A5, A17, A23): the books are right.

    After every step every counter of every real server and link equals a recount over the
    table, both indexes agree, schedulers rank by the true numbers, the bounds hold; and when
    all has ended everything is zero and empty.
    """
    run_state_machine_as_test(Traffic, settings=settings(TRIES, max_examples=150, stateful_step_count=50))


def test_every_ending_moves_each_counter_once() -> None:
    """R127-R129, R183 (A17): a thousand connections of every ending, and repeated endings."""
    lab = Scenario(
        virtual("web", "ab", scheduler="least-connections"), [real("a"), real("b")], max_connections=5000
    )

    def endings(call: Call, number: int) -> None:
        if number % 7 == 0:
            call.syn_ack().ack().close()
        elif number % 7 == 1:
            call.syn_ack().ack().server_fin().fin().server_ack().fin().server_fin()
        elif number % 7 == 2:
            call.syn_ack().ack().reset().reset().server_reset()
        elif number % 7 == 3:
            call.syn_ack().ack().says().server_reset().fin().server_fin()
        elif number % 7 == 4:
            call.refusal().refusal()
        elif number % 7 == 5:
            call.syn_ack()
        elif number % 14 == 6:
            call.syn_ack().ack()

    for number in range(1000):
        endings(lab.dial(port=1024 + number), number)
        if number % 50 == 0:
            audit(lab.director)
    audit(lab.director)
    lab.wait(3700)
    lab.wait(70)
    audit(lab.director)
    assert lab.connections() == []
    assert lab.loads() == {"a": 0, "b": 0}
    assert lab.virtual().total == 1000


def test_flags_in_every_combination_on_every_state() -> None:
    """R107 (A17): no combination of flags breaks the books."""
    makers = ("", "syn_ack", "syn_ack ack", "syn_ack ack fin", "syn_ack ack server_fin", "syn_ack ack close")
    for flags in range(0x20):
        lab = Scenario(virtual("web", "ab"), [real("a"), real("b")])
        for maker in makers:
            for side in ("client_sends", "server_sends"):
                call = lab.dial()
                for step in maker.split():
                    getattr(call, step)()
                getattr(call, side)(flags)
                getattr(call, side)(flags)
                if flags == FIN | ACK and maker == "syn_ack ack":
                    assert call.state == ("fin-client" if side == "client_sends" else "fin-server")
                if not flags & (SYN | FIN | RST) and maker == "syn_ack ack":
                    assert call.state == "established"
        audit(lab.director)
