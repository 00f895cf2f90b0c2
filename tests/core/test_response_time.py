"""Response times: what begins and ends an interval, what is kept, what is predicted (figs 4A, 4B, 9, 11)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.core import spec
from nfqlb.core.connection import IN_FLIGHT, Connection
from nfqlb.core.response import LONGEST_REQUEST, Linear, ResponseTime
from nfqlb.core.segment import ACK, FIN
from tests.core.properties import TRIES
from tests.core.recount import audit
from tests.core.scenario import PUSH, Call, Scenario, real, reals, virtual

DATA = ACK | PUSH


Steps = Sequence[tuple[float, Callable[[], object]]]


def site(
    servers: str = "a", *, scheduler: str = "fastest-response", strict: spec.Strict | None = None, **keys: Any
) -> Scenario:
    """One virtual server; `keys` are of its table."""
    web = replace(virtual("web", servers, scheduler=scheduler), **keys)
    return Scenario(web, reals(servers), strict=strict)


def response(lab: Scenario, name: str = "a") -> float | None:
    """The last interval of a server, as operators see it, to the microsecond."""
    seconds = lab.real(name).response
    return None if seconds is None else round(seconds, 6)


def samples(lab: Scenario, steps: Steps) -> list[float]:
    """What is measured while things are done, each at its time in seconds."""
    begin, server = lab.now, lab.director.real_servers["a"]
    found, last = list[float](), server.response.at if server.response.last is not None else None
    for at, act in steps:
        lab.wait(begin + at - lab.now)
        act()
        kept = server.response
        if kept.last is not None and kept.at != last:
            last = kept.at
            found.append(round(kept.last, 6))
    return found


class TestTheInterval:
    """R057, R081-R083, R085, R188: on one connection, from stamps of its packets."""

    def test_from_the_syn_where_the_server_speaks_first(self) -> None:
        """R079, R080, R081, R083, T11: 452, from SYN to the first server data, whatever lies between."""
        lab = site()
        call = lab.call()
        found = samples(
            lab,
            [(0, call.syn), (0.010, call.syn_ack), (0.011, call.ack), (0.300, call.hears)],
        )
        assert found == [0.300]

    def test_from_the_request_where_the_client_speaks(self) -> None:
        """R075, R079, R082, R083, R085, T12 (A3): 460, and one sample only."""
        lab = site()
        call = lab.call()
        steps: Steps = [(0, lambda: call.syn().syn_ack().ack())]
        steps = [*steps, (0.100, call.says), (0.150, call.hears), (0.160, call.hears), (0.170, call.hears)]
        assert samples(lab, steps) == [0.050]

    def test_every_request_of_a_connection_is_a_sample(self) -> None:
        """R082, R094, R162 (A3): kept alive, each request is measured from its own data."""
        lab = site()
        call = lab.connect()
        steps: list[tuple[float, Callable[[], object]]] = []
        for turn in range(4):
            steps += [(turn + 0.1, call.says), (turn + 0.2 + turn / 10, call.hears), (turn + 0.9, call.hears)]
        assert samples(lab, steps) == [0.1, 0.2, 0.3, 0.4]

    def test_from_the_last_data_of_a_request(self) -> None:
        """R083, R162: each new segment of the client overwrites the start."""
        lab = site()
        call = lab.connect()
        assert samples(lab, [(0, call.says), (0.4, call.says), (1.4, call.says), (1.5, call.hears)]) == [0.1]

    def test_a_request_repeated_makes_no_server_faster(self) -> None:
        """R162 (A3b): repeated data does not begin the interval anew, neither whole nor in part."""
        lab = site()
        call = lab.connect()
        begin = call.client_next
        call.says(100)
        for sequence, size in ((begin, 100), (begin, 60), (begin + 50, 50), (begin + 99, 1)):
            lab.wait(0.2)
            call.client_sends(DATA, sequence=sequence, size=size)
        lab.wait(0.2)
        call.hears()
        assert response(lab) == 1.0
        lab.wait(0.5)
        call.client_sends(DATA, sequence=begin, size=100).hears()
        assert response(lab) == 1.0

    def test_a_repetition_that_brings_new_data_counts(self) -> None:
        """R162 (A3b): what advances the highest number seen is new, over the numbers' end too."""
        lab = site()
        call = lab.connect(isn=2**32 - 50)
        call.says(100)
        lab.wait(0.2)
        call.client_sends(DATA, sequence=2**32 - 49, size=101)
        lab.wait(0.2)
        call.hears()
        assert response(lab) == 0.2

    def test_numbers_that_cannot_be_the_client_s(self) -> None:
        """R162 (A3b): data far ahead, sent in the client's name, does not end measuring for good."""
        lab = site()
        call = lab.connect().says().hears()
        call.client_sends(DATA, sequence=call.client_next + IN_FLIGHT + 1, size=100)
        assert not call.connection.interval or not call.connection.interval.armed
        lab.wait(1)
        call.says()
        lab.wait(0.25)
        call.hears()
        assert response(lab) == 0.25

    def test_a_repeated_syn_begins_anew(self) -> None:
        """R057, R162 (A3b, A40): each SYN does, until the server has answered."""
        lab = site()
        call = lab.dial()
        lab.wait(3)
        call.syn().syn_ack().ack()
        lab.wait(0.5)
        call.hears()
        assert response(lab) == 0.5

    def test_nothing_but_client_data_and_syns_begins_it(self) -> None:
        """R162: no bare ACK, FIN or reset out of the window, and nothing that the server sends."""
        lab = site()
        call = lab.connect().says()
        for act in (call.ack, call.server_ack, call.ack, lambda: call.reset(past=2**31), call.fin):
            lab.wait(0.1)
            act()
        lab.wait(0.1)
        call.hears()
        assert response(lab) == 0.6

    def test_only_data_ends_it(self) -> None:
        """R080, R085, R170: a server's bare ACKs and its FIN without data are no response."""
        lab = site()
        call = lab.connect().says()
        lab.wait(0.1)
        call.server_ack().server_fin()
        assert response(lab) is None

    def test_data_that_comes_with_the_end(self) -> None:
        """R085, R086, R128: a response that closes the connection counts, and that connection with it."""
        lab = site()
        call = lab.connect().says().fin()
        lab.wait(0.3)
        call.server_sends(DATA | FIN, size=10)
        assert call.state == "closed"
        assert response(lab) == 0.3
        assert lab.director.real_servers["a"].response.ratio == pytest.approx(0.3)

    def test_a_reset_is_no_response(self) -> None:
        """R170, R187: nor is data after the end."""
        lab = site()
        call = lab.connect().says()
        lab.wait(0.1)
        call.server_reset()
        call.hears()
        assert response(lab) is None
        assert call.connection.interval is None

    def test_data_out_of_the_handshake_s_order(self) -> None:
        """R078, R082: somebody who does not know the server's number has sent no request."""
        lab = site()
        call = lab.dial().syn_ack()
        lab.wait(0.4)
        call.client_sends(DATA, acknowledges=call.server_next + 2**31, size=100)
        call.ack()
        lab.wait(0.1)
        call.hears()
        assert response(lab) == 0.5

    def test_a_connection_sent_to_another_server(self) -> None:
        """R041, R111: the SYN that moves it begins the interval with its new server."""
        lab = site("ab", scheduler="round-robin")
        call = lab.dial()
        for seconds in (1, 2):
            lab.wait(seconds)
            call.syn()
        assert call.server == "b"
        lab.wait(0.125)
        call.syn_ack().ack().hears()
        assert (response(lab), response(lab, "b")) == (None, 0.125)


class TestOtherStarts:
    """R084: other events may start the interval."""

    def test_the_syn_alone(self) -> None:
        """R081, R084: requests do not overwrite it; one sample a connection."""
        lab = site(response_start="syn")
        call = lab.call()
        steps: Steps = [(0, lambda: call.syn().syn_ack().ack())]
        steps = [*steps, (0.100, call.says), (0.150, call.hears), (0.500, call.says), (0.800, call.hears)]
        assert samples(lab, steps) == [0.150]
        assert call.connection.interval is None

    def test_the_server_s_syn_ack(self) -> None:
        """R077, R084: how long the server took after it had accepted."""
        lab = site(response_start="syn-ack")
        call = lab.call()
        steps: Steps = [(0, call.syn), (0.040, call.syn), (0.050, call.syn_ack), (0.051, call.ack)]
        steps = [*steps, (0.100, call.says), (0.150, call.hears), (0.500, call.says), (0.800, call.hears)]
        assert samples(lab, steps) == [0.100]


class TestStamps:
    """R188: stamps may be missing, and are of a clock that can be set."""

    @pytest.mark.parametrize("missing", ["start", "end", "both"])
    def test_without_a_stamp_there_is_no_sample(self, missing: str) -> None:
        """R171: neither end of the interval is guessed."""
        lab = site()
        wall = lab.wall
        call = lab.connect()
        lab.wall = None if missing != "end" else wall
        call.says()
        lab.wait(0.1)
        lab.wall = None if missing != "start" else wall
        call.hears()
        assert response(lab) is None
        lab.wall = wall
        lab.wait(1)
        call.says()
        lab.wait(0.2)
        call.hears()
        assert response(lab) == 0.2

    @pytest.mark.parametrize("jump", [-0.2, -3600, 60, 3600, 10**9])
    def test_a_clock_that_was_set(self, jump: float) -> None:
        """R171: a time below 0, or one that our own clock did not see pass, is no response."""
        lab = site()
        call = lab.connect().says()
        assert lab.wall is not None
        lab.wall += jump
        lab.wait(0.1)
        call.hears()
        assert response(lab) is None
        lab.wait(0.1)
        call.says()
        lab.wait(0.1)
        call.hears()
        assert response(lab) == 0.1

    def test_a_slow_response_is_one(self) -> None:
        """R171: however long it takes."""
        lab = site()
        call = lab.connect().says()
        lab.wait(1800)
        call.hears()
        assert response(lab) == 1800

    def test_packets_that_waited_for_us(self) -> None:
        """R188: the stamps tell when they came, our own clock when we got to them."""
        lab = site()
        call = lab.connect()
        assert lab.wall is not None
        wall = lab.wall
        lab.wait(5)
        lab.wall = wall - 5
        call.says()
        lab.wall = wall - 4.75
        call.hears()
        assert response(lab) == 0.25


class TestWhatIsKept:
    """R032, R036, R086, R091, R172: I, R, and the time of the sample, with the real server."""

    def test_the_ratio_is_by_all_connections_of_the_server(self) -> None:
        """R086 (A35): through whatever virtual server, the measured one among them."""
        lab = Scenario([virtual("web", "a"), virtual("other", "a", port=81)], reals("a"))
        calls = [lab.connect("web"), *(lab.connect("other") for _ in range(2))]
        calls[0].says()
        lab.wait(0.6)
        calls[0].hears()
        kept = lab.director.real_servers["a"].response
        assert (kept.last, kept.at) == (0.6, lab.now)
        assert kept.ratio == pytest.approx(0.2)

    def test_the_raw_ratio(self) -> None:
        """R171, R172, T4 (A2): figure 11 read literally."""
        kept = ResponseTime()
        kept = kept.sampled(0.60, 6, 100.0, clamp=0, raw=True)
        assert kept.ratio == 0.60
        assert kept.predicted(4, Linear(4), 100.4) == pytest.approx(2.30)
        lab = site(strict=spec.Strict(ratio=True))
        calls = [lab.connect() for _ in range(6)]
        calls[0].says()
        lab.wait(0.6)
        calls[0].hears()
        for call in calls[4:]:
            call.close()
        lab.wait(0.4)
        assert lab.real("a").predicted == pytest.approx(2.30)

    def test_every_packet(self) -> None:
        """R085, R171 (A3): figure 11 read literally: each data packet of the server, from the same start."""
        lab = site(strict=spec.Strict(every_packet=True))
        call = lab.connect()
        steps: Steps = [(0.1, call.says), (0.2, call.hears)]
        steps = [*steps, (0.5, call.hears), (0.9, call.hears), (1.0, call.says), (1.1, call.hears)]
        steps = [*steps, (1.3, call.hears)]
        assert samples(lab, steps) == [0.1, 0.4, 0.8, 0.1, 0.3]

    def test_every_packet_from_the_syn(self) -> None:
        """R081, R084 (A3): the two together."""
        lab = site(strict=spec.Strict(every_packet=True), response_start="syn")
        call = lab.connect()
        assert samples(lab, [(0.1, call.says), (0.2, call.hears), (0.5, call.hears)]) == [0.2, 0.5]

    def test_t10(self) -> None:
        """R091, T10 (A16): 20 per cent up at most."""
        kept = ResponseTime()
        kept = kept.sampled(0.10, 1, 0.0, clamp=20, raw=False)
        assert kept.ratio == 0.10
        kept = kept.sampled(0.50, 1, 1.0, clamp=20, raw=False)
        assert kept.ratio == pytest.approx(0.12)
        assert (kept.last, kept.at) == (0.50, 1.0)

    @pytest.mark.parametrize(
        ("before", "interval", "clamp", "ratio"),
        [
            (0.10, 0.01, 20, 0.08),
            (0.10, 0.11, 20, 0.11),
            (0.10, 0.09, 20, 0.09),
            (0.10, 9.0, 0, 9.0),
            (0.10, 9.0, 200, 0.30),
            (0.10, 0.0, 200, 0.0),
            (0.0, 9.0, 20, 9.0),
        ],
    )
    def test_the_clamp(self, before: float, interval: float, clamp: float, ratio: float) -> None:
        """R091 (A16): up and down alike; none where it is 0; R can leave 0."""
        kept = ResponseTime()
        kept = kept.sampled(before, 1, 0.0, clamp=0, raw=False)
        kept = kept.sampled(interval, 1, 1.0, clamp=clamp, raw=False)
        assert kept.ratio == pytest.approx(ratio)

    def test_the_clamp_is_of_the_virtual_server_that_the_sample_came_through(self) -> None:
        """R091, R094 (A16): R belongs to the real server."""
        web = [replace(virtual("calm", "a"), clamp=50), virtual("wild", "a", port=81)]
        lab = Scenario(web, reals("a"))

        def measured(to: str, seconds: float) -> float:
            call = lab.connect(to).says()
            lab.wait(seconds)
            call.hears().close()
            return lab.director.real_servers["a"].response.ratio

        ratios = [measured("wild", 0.1), measured("calm", 0.9), measured("wild", 0.9), measured("calm", 0)]
        assert ratios == pytest.approx([0.1, 0.15, 0.9, 0.45])


class TestThePrediction:
    """R034, R035, R087-R090, R158-R160: figure 9."""

    def test_t3(self) -> None:
        """R086, R087, R088, R160, T3: 0.60 s at 6 connections, later 4 and an age of 0.4 s."""
        kept = ResponseTime()
        kept = kept.sampled(0.60, 6, 100.0, clamp=0, raw=False)
        assert kept.ratio == pytest.approx(0.10)
        assert kept.predicted(4, Linear(4), 100.4) == pytest.approx(0.30)
        lab = site()
        calls = [lab.connect() for _ in range(6)]
        calls[0].says()
        lab.wait(0.6)
        calls[0].hears()
        for call in calls[4:]:
            call.close()
        lab.wait(0.4)
        assert response(lab) == 0.6
        assert lab.real("a").predicted == pytest.approx(0.30)

    def test_t5(self) -> None:
        """R092, T5 (A15): at an age of 2.0 s it is below 0, which wins; shown as 0."""
        kept = ResponseTime()
        kept = kept.sampled(0.60, 6, 100.0, clamp=0, raw=False)
        assert kept.predicted(4, Linear(4), 102.0) == pytest.approx(-0.10)
        lab = site()
        lab.connect().says().hears()
        lab.wait(10)
        assert lab.real("a").predicted == 0.0

    @pytest.mark.parametrize(("shadow", "predicts"), [("", False), ("fastest-response", True)])
    def test_nothing_is_predicted_that_nobody_goes_by(self, shadow: str, predicts: bool) -> None:
        """R032: the response time is known all the same."""
        lab = Scenario(replace(virtual("web", "a"), shadow=shadow), reals("a"))
        lab.connect().says().hears()
        assert response(lab) == 0.0
        assert (lab.real("a").predicted is not None) is predicts

    def test_nothing_measured_nothing_predicted(self) -> None:
        """R032, R034."""
        assert (site().real("a").response, site().real("a").predicted) == (None, None)

    @given(
        interval=st.floats(0, 100), connections=st.integers(1, 1000), later=st.integers(0, 1000),
        age=st.floats(0, 1000), more=st.floats(0.001, 1000), number=st.floats(0.1, 100),
    )  # fmt: skip
    @TRIES
    def test_it_only_sinks(
        self, interval: float, connections: int, later: int, age: float, more: float, number: float
    ) -> None:
        """R035, R088, R089: with age, by age over the number that is set; and rises with the load."""
        kept = ResponseTime()
        kept = kept.sampled(interval, connections, 50.0, clamp=0, raw=False)
        now = kept.predicted(later, Linear(number), 50.0 + age)
        assert now == pytest.approx(later * interval / connections - age / number, abs=1e-9)
        assert kept.predicted(later, Linear(number), 50.0 + age + more) < now
        assert kept.predicted(later + 1, Linear(number), 50.0 + age) >= now

    def test_shown_for_the_next_connection(self) -> None:
        """R034, R087 (A15b): `predict = "next"` counts the one that is to come."""
        seen = []
        for predict in ("now", "next"):
            lab = site(predict=predict)
            call = lab.connect().says()
            lab.wait(0.5)
            call.hears().close()
            seen.append(lab.real("a").predicted)
        assert seen == [0.0, pytest.approx(0.5)]

    def test_shown_as_who_goes_by_it_sees_it(self) -> None:
        """R034, R088: each virtual server has an ageing; that of one with fastest-response is shown."""
        web = [
            replace(virtual("one", "a"), ageing=1000),
            replace(virtual("two", "a", port=81, scheduler="fastest-response"), ageing=2),
            replace(virtual("three", "a", port=82), ageing=1),
        ]
        lab = Scenario(web, reals("a"))
        call = lab.connect("one").says()
        lab.wait(4)
        call.hears()
        lab.wait(2)
        assert lab.real("a").predicted == pytest.approx(4 - 2 / 2)

    def test_a_backup_is_shown_too(self) -> None:
        """R032, R185: one that only ever stands in for a whole virtual server."""
        web = virtual("web", "a", scheduler="fastest-response")
        lab = Scenario(replace(web, backup="b"), [real("a", weight=0), real("b")])
        call = lab.connect().says()
        lab.wait(0.5)
        assert call.hears().server == "b"
        assert response(lab, "b") == 0.5
        assert lab.real("b").predicted == pytest.approx(0.5)


class TestWhatItCosts:
    """R094, R115, R173: measured from packets that pass anyway; where nobody needs it, once a connection."""

    @pytest.mark.parametrize("scheduler", ["round-robin", "weighted-least-connections", "maglev"])
    def test_elsewhere_the_first_request_is_measured(self, scheduler: str) -> None:
        """R115, R173: operators see response times under every scheduler; then it ends."""
        lab = site(scheduler=scheduler, strict=spec.Strict(every_packet=True))
        call = lab.connect()
        steps: Steps = [(0.1, call.says), (0.3, call.hears)]
        steps = [*steps, (0.4, call.hears), (1.0, call.says), (1.5, call.hears)]
        assert samples(lab, steps) == [0.2]
        assert quick(call.connection) == (True, True)

    def test_a_shadow_goes_by_it_as_well(self) -> None:
        """R115: a scheduler that is evaluated and not obeyed needs the same samples."""
        lab = site(scheduler="round-robin", shadow="fastest-response")
        call = lab.connect()
        steps: Steps = [(0.1, call.says), (0.3, call.hears)]
        assert samples(lab, [*steps, (1.0, call.says), (1.5, call.hears)]) == [0.2, 0.5]

    def test_which_segments_take_the_short_path(self) -> None:
        """R115: under fastest-response no client's; a server's but while a response is waited for."""
        call = site().dial()
        assert quick(call.connection) == (False, False)
        call.syn_ack()
        assert quick(call.connection) == (False, False)
        call.ack()
        assert quick(call.connection) == (False, False)
        call.says()
        assert quick(call.connection) == (False, False)
        call.hears()
        assert quick(call.connection) == (False, True)
        call.hears().says()
        assert quick(call.connection) == (False, False)
        call.hears().fin().server_fin()
        assert call.state == "closed"
        assert quick(call.connection) == (True, True)

    @pytest.mark.parametrize("start", ["request", "syn", "syn-ack"])
    def test_an_upload_is_not_waited_for(self, start: str) -> None:
        """R173: where only the first request is measured, its data soon costs nothing more."""
        lab = site(scheduler="round-robin", response_start=start)
        call = lab.connect()
        for _ in range(LONGEST_REQUEST // 32768):
            call.says(32768)
        assert quick(call.connection) == (False, False)
        call.says(1)
        assert quick(call.connection) == (True, True)
        call.hears()
        assert response(lab) is None

    @pytest.mark.parametrize(("start", "seconds"), [("request", 0.25), ("syn", 4.25), ("syn-ack", 4.25)])
    def test_an_upload_is_waited_for_where_it_matters(self, start: str, seconds: float) -> None:
        """R082, R083, R084: under fastest-response, from its last segment or from the start."""
        lab = site(response_start=start)
        call = lab.connect()
        for _ in range(40):
            lab.wait(0.1)
            call.says(32768)
        lab.wait(0.25)
        call.hears()
        assert response(lab) == seconds

    @pytest.mark.parametrize("scheduler", ["fastest-response", "round-robin"])
    @given(st.lists(st.sampled_from("schfCHFarwq"), max_size=30))
    @TRIES
    def test_short_path_or_not(self, scheduler: str, events: list[str]) -> None:
        """R115: after any conversation the flags are what state and interval say, and the books are right."""
        lab = site("ab", scheduler=scheduler)
        call = lab.dial()
        acts: dict[str, Callable[[], object]] = {
            "s": call.syn_ack, "a": call.ack, "c": call.says, "h": call.hears, "f": call.fin,
            "F": call.server_fin, "r": call.reset, "q": call.syn, "w": lambda: lab.wait(0.1),
            "C": lambda: call.client_sends(DATA, size=5), "H": call.server_ack,
        }  # fmt: skip
        for event in events:
            acts[event]()
            for connection in lab.director.table.inbound.values():
                interval, state = connection.interval, connection.state
                assert connection.quick == (state.quick and not (interval and interval.armed))
                assert interval is None or state.counted
            audit(lab.director)


def quick(connection: Connection) -> tuple[bool, bool]:
    """Whether a plain segment of the client, and of the server, changes nothing but numbers and time."""
    return connection.quick and connection.interval is None, connection.quick


class TestARestart:
    """R057, R172: what a successor knows of measuring."""

    def restored(self, scheduler: str, state: int = 3) -> tuple[Scenario, Call]:
        lab = site(scheduler=scheduler)
        call = lab.connect()
        key, server = call.key, call.reply_key[:4] + call.reply_key[8:10]
        again = site(scheduler=scheduler)
        assert again.director.restore(key, server, state, 7, opened=4000.0, now=again.now)
        again.director.restored(again.now)
        call._scenario = again
        return again, call

    def test_the_next_request_is_measured(self) -> None:
        """R057, R082: under fastest-response; what was under way is not."""
        lab, call = self.restored("fastest-response")
        call.hears()
        assert response(lab) is None
        lab.wait(1)
        call.says()
        lab.wait(0.2)
        call.hears()
        assert response(lab) == 0.2

    def test_elsewhere_nothing_more_is(self) -> None:
        """R173: its first request is over, or unknown."""
        lab, call = self.restored("round-robin")
        assert lab.director.table.inbound[call.key].interval is None
        call.says().hears()
        assert response(lab) is None
        assert quick(call.connection) == (True, True)

    def test_an_unanswered_one(self) -> None:
        """R057, R162: its repeated SYN begins an interval."""
        lab, call = self.restored("fastest-response", state=1)
        call.syn()
        lab.wait(0.3)
        call.syn_ack().ack().hears()
        assert response(lab) == 0.3
