"""What is told of a decision afterwards is what was, whatever happened since (see `hindsight`)."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core.admission import ServerState
from nfqlb.core.states import State
from tests.core.hindsight import MEASURES, Watched, agree
from tests.core.preset import set_weight
from tests.core.properties import TRIES
from tests.core.scenario import Call, Scenario, real, virtual

SERVERS = "abcdz"


@st.composite
def _sites(draw: st.DrawFn) -> Scenario:
    """Two virtual servers on two addresses with the same servers, which are soon full, bad or failed."""
    made = []
    for name in SERVERS:
        server = real(
            name, weight=draw(st.sampled_from([1, 2, 3])), max_connections=draw(st.sampled_from([0, 0, 5]))
        )
        limit = draw(st.integers(0, 3))
        made.append(replace(server, syn_limit=limit, failure_threshold=2, failure_clients=1, retry=20.0))
    if draw(st.booleans()):
        made[0] = replace(made[0], backup="d")
    virtuals = []
    for name, address in (("one", "203.0.113.1"), ("two", "203.0.113.2")):
        scheduler = draw(st.sampled_from([*MEASURES, "weighted-round-robin", "source-hash"]))
        sticky = draw(st.sampled_from([0.0, 15.0]))
        one = virtual(name, "abc", address=address, scheduler=scheduler, sticky=sticky)
        startup = draw(st.sampled_from(["none", "round-robin"]))
        backup = draw(st.sampled_from(["", "z"]))
        virtuals.append(replace(one, startup=startup, startup_time=30.0, backup=backup))
    return Scenario(virtuals, made, max_connections=draw(st.sampled_from([6, 100])))


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("dial"), st.sampled_from(["one", "two"]), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.just("dial"), st.sampled_from(["one", "two"]), st.integers(4, 7), st.integers(0, 99)),
        st.tuples(
            st.sampled_from(["syn", "syn", "answer", "answer", "refuse", "close"]), st.just(""),
            st.integers(0, 99), st.just(0),
        ),
        st.tuples(
            st.sampled_from(["syn", "syn", "answer", "answer", "refuse", "close"]), st.just(""),
            st.integers(0, 9), st.just(0),
        ),
        st.tuples(st.sampled_from(["wait", "set", "weigh"]), st.sampled_from(list(SERVERS)),
            st.integers(0, 9), st.just(0)),
    ),
    min_size=30,
    max_size=80,
)  # fmt: skip
_STATES = [*7 * [ServerState.IN_SERVICE], ServerState.STICKY_ONLY, ServerState.OUT_OF_SERVICE]
_STATES.append(ServerState.MAINTENANCE)


def _play(lab: Scenario, calls: list[Call], step: tuple[str, str, int, int]) -> None:
    what, name, number, port = step
    if what == "dial":
        calls.append(lab.dial(name, client=f"192.0.2.{number}", port=40000 + port))
    elif what == "wait":
        lab.wait(number)
    elif what == "set":
        lab.director.real_servers[name].setting = _STATES[number]
        lab.director.real_servers[name].changed(lab.now)
    elif what == "weigh":
        set_weight_of(lab, name, number % 4)
    elif calls:
        call = calls[-1 - number % len(calls)]
        if call.refused is None and call.connection.state is not State.GONE:
            _go_on(lab, call, what)


def _go_on(lab: Scenario, call: Call, what: str) -> None:
    if what == "syn":
        call.syn()
    elif what == "answer":
        call.syn_ack().ack().says()
        lab.wait(0.1)
        call.hears()
    elif what == "refuse":
        call.refusal()
    else:
        call.fin().server_fin()


def set_weight_of(lab: Scenario, name: str, weight: float) -> None:
    """Another weight, wherever the server stands."""
    if name == "z":  # no link of a virtual server's own
        lab.director.real_servers[name].weight = weight
        lab.director.real_servers[name].changed(lab.now)
    else:
        web = lab.director.virtual_servers[0]
        if any(link.real.spec.name == name for link in web.links):
            set_weight(web, name, weight)


@TRIES
@given(lab=_sites(), steps=_steps)
def test_what_is_told_is_what_was(lab: Scenario, steps: list[tuple[str, str, int, int]]) -> None:
    """R104, R144-R150: facts, reasons and the best, for every decision of a random story."""
    watched = Watched.watch(lab.director)
    calls: list[Call] = []
    for step in steps:
        _play(lab, calls, step)
    for name in ("one", "two"):
        told = reversed(lab.decisions(virtual=name))
        copies = [each for each in watched.copies if each.virtual == name]
        for decision, copy in zip(told, copies, strict=True):
            agree(decision, copy)
