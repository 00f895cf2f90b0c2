"""The desk, with a director for a worker: who answers what, and what is seen."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nfqlb.core.admission import ServerState
from nfqlb.netfilter.queue_status import QueueStatus, Room
from nfqlb.operator.doctor import gateway
from nfqlb.runtime import orders
from nfqlb.runtime.beat import Beat
from nfqlb.runtime.channel import restarting
from nfqlb.runtime.desk import Desk
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject, Level, Outcome, Peer, Request
from nfqlb.runtime.summary import Losses, counts
from tests.core.scenario import Scenario, real, virtual


class Worker:
    """Answers as a worker does, through JSON's types, where it is there and not `silent`."""

    def __init__(self, lab: Scenario) -> None:
        self.lab = lab
        self.pid: int | None = 4711
        self.restarts = 0
        self.asked: list[str] = []
        self.silent = False
        self.later = False  # until it is told to `answer`, each time
        self._waiting: list[Callable[[], None]] = []
        self.beat = Beat(lab.director, Losses, lab.now)

    def call(
        self, cmd: str, args: JSONObject, done: Callable[[JSON], None], failed: Callable[[ControlError], None]
    ) -> None:
        self.asked.append(cmd)
        if self.silent:
            return
        if self.pid is None:
            failed(restarting())
            return
        found: list[JSON] = []
        try:
            self._answer(cmd, args, found.append)
        except ControlError as error:
            failed(error)
            return
        self._waiting.append(lambda: done(found[0]))
        if not self.later:
            self.answer()

    def answer(self) -> None:
        """The oldest answer that it has kept back is given."""
        self._waiting.pop(0)()

    def forward(self, request: Request) -> None:
        self.call(request.cmd, request.args, request.reply, request.refuse)

    def _answer(self, cmd: str, args: JSONObject, done: Callable[[JSON], None]) -> None:
        director, now = self.lab.director, self.lab.now
        self.beat.tell(director.chronicle.drain(now), now)
        if cmd == "pulse":
            done([*self.beat.rows(args, now)])
        elif cmd == "summary":
            done(counts(director.totals()))
        else:
            result = orders.answer(director, cmd, args, now)
            done(result if isinstance(result, str | int | float | dict | None) else [*result])

    def replace(self, lab: Scenario) -> None:
        """Another one is there."""
        self.lab, self.beat = lab, Beat(lab.director, Losses, lab.now)
        self.pid, self.restarts = 4712, self.restarts + 1


def shop() -> Scenario:
    reals = [replace(real(name), failure_threshold=1, failure_clients=1) for name in "ab"]
    return Scenario([virtual("shop", "ab")], reals)


class Office:
    """A desk, its worker, and what the desk answers."""

    def __init__(self) -> None:
        self.lab = shop()
        self.worker = Worker(self.lab)
        self.now = 5000.0
        self.waiting, self.lost = 0, 0  # in the queue
        self.desk = Desk(
            self.lab.config, self.worker, {7: "new"}, lambda: {7: Room(1000, 2_000_000, 0)},
            queues=lambda: [QueueStatus(7, 99, self.waiting, self.lost, 0, 0)],
            clock=lambda: self.now, wall=lambda: 1e9 + self.now,
        )  # fmt: skip

    def ask(self, cmd: str, **args: Any) -> Outcome:
        found: list[Outcome] = []
        request = Request(1, cmd, args, Peer(123, 0, 0), lambda _request, outcome: found.append(outcome))
        try:
            self.desk.answer(request)
        except ControlError as error:
            return error
        assert len(found) == 1, "it is answered once"
        return found[0]

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.lab.now += seconds
        self.desk.tick()

    def snapshot(self) -> dict[str, Any]:
        outcome = self.ask("snapshot")
        assert isinstance(outcome, dict)
        return outcome

    def die(self) -> None:
        self.desk.died(4711, "by signal SIGKILL")
        self.worker.pid = None

    def succeed(self) -> None:
        now = self.lab.now
        self.lab = shop()
        self.lab.now = now
        self.worker.replace(self.lab)
        self.desk.born(4712)


@pytest.fixture
def office() -> Office:
    made = Office()
    made.desk.born(4711)
    made.tick()
    return made


def test_a_snapshot_shows_the_whole_gateway(office: Office) -> None:
    office.lab.connect()
    office.tick()
    whole = office.snapshot()
    assert whole["at"] == 1e9 + office.now
    assert whole["state"] == "running"
    assert whole["verdict"] == "all well"
    assert whole["problems"] == []
    assert whole["worker"] == {"pid": 4711, "restarts": 0}
    assert whole["connections"] == {"now": 1, "total": 1, "limit": 1000, "rate": 1.0}
    assert [row["rate"] for row in whole["virtuals"]] == [1.0]
    assert sum(row["rate"] for row in whole["reals"]) == 1.0
    assert whole["rules"]["present"] is None
    assert whole["reload"] == {"at": None, "ok": None, "error": "", "as_before": False}
    assert "now" not in whole
    assert "losses" not in whole


def test_a_snapshot_before_the_first_account_waits_for_it() -> None:
    office = Office()
    office.worker.pid = None
    office.desk.born(4711)
    replies: list[Outcome] = []
    office.desk.answer(Request(1, "snapshot", {}, None, lambda _request, outcome: replies.append(outcome)))
    assert replies == []
    office.worker.pid = 4711
    office.tick()
    assert isinstance(replies[0], dict)


def test_a_snapshot_of_now(office: Office) -> None:
    """As what the worker is asked for directly: who reads both finds no contradiction."""
    assert office.ask("set-real", name="a", state="maintenance") is not None
    office.lab.director.operation.set_real("b", setting=ServerState.MAINTENANCE, now=office.lab.now)
    assert [row["state"] for row in office.snapshot()["reals"]] == ["maintenance", "in-service"]
    assert office.ask("summary")["verdict"] == "1 of 1 virtual server (shop) without a server for new clients"  # type: ignore[index,call-overload]
    office.lab.director.operation.set_real("b", setting=ServerState.IN_SERVICE, now=office.lab.now)
    fresh = office.ask("snapshot", fresh=True)
    assert isinstance(fresh, dict)
    assert fresh["verdict"] == "all well"
    assert isinstance(office.ask("snapshot", fresh=1), ControlError)


def test_a_snapshot_of_now_while_an_account_is_under_way_is_the_one_after(office: Office) -> None:
    office.worker.later = True
    office.desk.pulse.ask()
    office.lab.connect()
    replies: list[Outcome] = []
    request = Request(1, "snapshot", {"fresh": True}, None, lambda _, outcome: replies.append(outcome))
    office.desk.answer(request)
    office.worker.answer()
    assert replies == []
    office.worker.answer()
    (whole,) = replies
    assert isinstance(whole, dict)
    assert whole["connections"]["now"] == 1  # type: ignore[index,call-overload]


def test_a_snapshot_of_now_is_the_last_one_where_the_worker_is_silent(office: Office) -> None:
    office.worker.silent = True
    replies: list[Outcome] = []
    request = Request(1, "snapshot", {"fresh": True}, None, lambda _, outcome: replies.append(outcome))
    office.desk.answer(request)
    office.tick()
    office.tick()
    assert len(replies) == 1
    office.die()
    office.worker.silent = False
    office.desk.pulse.born()
    assert office.ask("snapshot", fresh=True)["state"] == "degraded"  # type: ignore[index,call-overload]


def test_a_queue_that_fills_is_seen_between_two_snapshots(office: Office) -> None:
    """F14: the last snapshot says so from then on, and the event is there."""
    office.waiting = 600
    office.desk.glance()
    assert office.snapshot()["verdict"] == "queue filling"
    assert office.snapshot()["queues"][0]["peak"] == 600
    (event, *_) = office.desk.events.newest(1)
    assert event["text"] == "queue 7 (new) fills: 600 of 1,000 packets wait"


def test_queues_are_not_looked_at_for_every_request(office: Office) -> None:
    """F31: whoever asks a thousand things a second does not have the kernel asked as often."""
    office.desk.glance()
    office.waiting = 600
    office.now += 0.1
    office.desk.glance()
    assert office.snapshot()["verdict"] == "all well"
    office.now += 0.15
    office.desk.glance()
    assert office.snapshot()["verdict"] == "queue filling"


def test_queues_are_shown_as_they_are_while_the_worker_does_not_answer(office: Office) -> None:
    """F12, F14: the kernel is asked, not the worker."""
    office.worker.silent = True
    office.tick()
    office.waiting, office.lost = 1000, 3
    office.tick()
    (queue,) = office.snapshot()["queues"]
    assert (queue["depth"], queue["dropped_full"], queue["dropping"]) == (1000, 3, True)
    office.waiting = 400
    office.tick()
    assert office.snapshot()["queues"][0]["depth"] == 400
    office.die()
    office.worker.silent = False
    office.desk.pulse.born()
    assert office.snapshot()["state"] == "degraded"
    office.waiting = 20
    office.tick()
    assert office.snapshot()["queues"][0]["depth"] == 20


def test_a_refused_reload_is_seen_at_once_and_until_one_succeeds(office: Office) -> None:
    """Also where no snapshot has been taken since, and where the worker does not answer."""
    seen: list[object] = []
    office.desk.onlookers.append(lambda snapshot: seen.append(snapshot["verdict"]))
    office.worker.silent = True
    office.desk.reloaded("line 3")
    whole = office.snapshot()
    assert whole["verdict"] == "last reload failed: line 3"
    assert whole["reload"] == {"at": 1e9 + office.now, "ok": False, "error": "line 3", "as_before": False}
    office.worker.silent = False
    for _ in range(3):
        office.tick()
        assert office.snapshot()["verdict"] == "last reload failed: line 3"
    office.desk.reloaded()
    assert seen == ["last reload failed: line 3", "all well"]
    assert office.snapshot()["verdict"] == "all well"


def test_what_runs_as_before_is_a_warning_wherever_it_is_said(office: Office) -> None:
    """F11, F19: it serves; what is wrong with the file is the log's error."""
    said = office.desk.begun_as_before("web.toml has 2 errors")
    (event, *_) = office.desk.events.newest(1)
    assert (event["level"], str(event["text"]).split(";")[0]) == ("warning", said)
    office.tick()
    assert office.snapshot()["problems"] == [{"level": "warning", "what": said}]
    rows = gateway.findings(office.snapshot(), office.snapshot()["version"])
    assert [row["level"] for row in rows if said in str(row["what"])] == ["warning"]


def test_nobody_but_the_pulse_asks_the_worker(office: Office) -> None:
    asked = len(office.worker.asked)
    for _ in range(5):
        office.snapshot()
        office.ask("history")
        office.ask("events")
    assert office.worker.asked[asked:] == []


def test_while_a_worker_is_replaced_the_last_snapshot_is_given(office: Office) -> None:
    office.lab.connect()
    office.tick()
    office.die()
    office.tick()
    whole = office.snapshot()
    assert whole["state"] == "degraded"
    assert whole["verdict"] == whole["why"] == "the worker is being restarted"
    assert whole["worker"] == {"pid": None, "restarts": 0}
    assert whole["connections"] == {"now": 1, "total": 1, "limit": 1000, "rate": None}
    assert [row["rate"] for row in whole["reals"]] == [None, None]
    refused = office.ask("reals")
    assert isinstance(refused, ControlError)
    assert refused.code == "worker-restarting"


def test_counters_do_not_fall_when_a_worker_is_replaced(office: Office) -> None:
    for _ in range(3):
        office.lab.connect()
    office.tick()
    office.die()
    office.succeed()
    office.lab.connect()
    office.tick()
    whole = office.snapshot()
    assert whole["state"] == "running"
    assert whole["connections"]["total"] == 4
    assert whole["connections"]["now"] == 1
    assert sum(row["total"] for row in whole["reals"]) == 4
    shown = office.ask("summary")
    assert isinstance(shown, dict)
    assert shown["connections"] == {"now": 1, "total": 4, "limit": 1000}
    virtuals: Any = office.ask("virtuals")
    assert virtuals[0]["total"] == 4
    assert sum(place["total"] for place in virtuals[0]["servers"]) == 4


def test_the_rate_is_not_known_right_after_a_worker_was_replaced(office: Office) -> None:
    office.lab.connect()
    office.tick()
    office.die()
    office.tick()
    office.succeed()
    office.tick()
    assert office.snapshot()["connections"]["rate"] is None
    office.lab.connect()
    office.lab.connect()
    office.tick(2.0)
    assert office.snapshot()["connections"]["rate"] == 1.0


def test_what_happens_to_servers_becomes_an_event_once(office: Office) -> None:
    office.lab.dial().refusal()
    office.tick()
    office.tick()
    rows: Any = office.ask("events")
    assert [(row["kind"], row["name"], row["level"]) for row in rows] == [("state", "a", "warning")]
    assert rows[0]["text"].startswith("a failed: 1 connection could not be made")
    assert office.snapshot()["verdict"] == "1 of 2 servers (a) failed"


def test_an_order_is_an_event_with_who_gave_it(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        office.ask("set-real", name="a", state="maintenance")
    rows: Any = office.ask("events")
    who = "user root (uid 0), process 123"
    assert (rows[0]["kind"], rows[0]["name"], rows[0]["who"]) == ("order", "a", who)
    assert caplog.messages == [f"a: in-service -> maintenance (0 connections) (ordered by {who})"]
    assert [row["state"] for row in office.snapshot()["reals"]] == ["maintenance", "in-service"]


def test_a_dead_worker_is_an_event(office: Office) -> None:
    office.die()
    rows: Any = office.ask("events", limit=1)
    assert rows[0]["text"] == "worker 4711 died (by signal SIGKILL); starting another"


def test_the_history_has_a_value_a_second_and_none_for_extra_pulses(office: Office) -> None:
    before = office.desk.history.taken
    office.tick()
    office.ask("set-real", name="a", weight=2)
    office.tick()
    assert office.desk.history.taken == before + 2
    document: Any = office.ask("history", of="real", name="a")
    assert document["connections"] == [0.0] * (before + 2)


@pytest.mark.parametrize(
    ("cmd", "args", "says"),
    [
        ("history", {"of": "real", "name": "aa"}, "there is no real server 'aa'; did you mean 'a'?"),
        ("history", {"of": "reals"}, "did you mean 'real'?"),
        ("events", {"limit": 0}, "is not between 1 and 1000"),
        ("events", {"limit": True}, "limit: True is not a whole number"),
        ("snapshot", {"a": 1}, "snapshot has no argument 'a'"),
        ("snapshto", {}, "there is no command 'snapshto'; did you mean 'snapshot'?"),
        ("connection", {}, "did you mean 'connections'?"),
        ("set-rael", {}, "did you mean 'set-real'?"),
        ("pulse", {}, "there is no command 'pulse'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(office: Office, cmd: str, args: JSONObject, says: str) -> None:
    refused = office.ask(cmd, **args)
    assert isinstance(refused, ControlError)
    assert says in str(refused)


def test_others_may_offer_commands_listen_and_add_to_the_snapshot(office: Office) -> None:
    seen: list[JSON] = []
    office.desk.offer("hello", lambda request: request.reply("hello"))
    office.desk.listeners.append(lambda snapshot: seen.append(snapshot["extra"]))
    office.desk.others["extra"] = 1
    office.desk.others["more"] = 2
    office.desk.rules["present"] = False
    office.tick()
    assert office.ask("hello") == "hello"
    assert seen == [1]
    assert office.snapshot()["more"] == 2
    assert office.snapshot()["verdict"] == "rules missing"


def test_an_order_that_leaves_nobody_to_serve_is_a_warning(office: Office) -> None:
    """In events, log and verdict."""
    office.ask("set-real", name="a", state="maintenance")
    result: Any = office.ask("set-real", name="b", state="drain")
    rows: Any = office.ask("events")
    assert [row["level"] for row in rows[:3]] == ["warning", "info", "info"]
    assert rows[0]["text"] == result["said"][1]
    assert office.snapshot()["verdict"] == "1 of 1 virtual server (shop) without a server for new clients"


def test_a_batch_is_many_events(office: Office) -> None:
    commands = [
        {"cmd": "set-real", "args": {"name": "a", "state": "maintenance"}},
        {"cmd": "set-real", "args": {"name": "b", "weight": 2}},
    ]
    asked = len(office.worker.asked)
    result: Any = office.ask("batch", commands=commands)
    assert len(result["said"]) == 2
    assert office.worker.asked[asked:] == ["batch", "pulse"]
    rows: Any = office.ask("events")
    assert [(row["kind"], row["name"]) for row in rows] == [("order", "b"), ("order", "a")]
    assert office.snapshot()["verdict"] == "all well"
    assert office.snapshot()["problems"] == [
        {"level": "info", "what": "1 of 2 servers (a) taken out by the operator"}
    ]


def test_a_reader_gives_no_order_and_the_refusal_says_why(office: Office) -> None:
    request = Request(1, "set-real", {"name": "a", "weight": 2}, None, lambda *_: None, level=Level.READ)
    with pytest.raises(ControlError, match="set-real needs the level operate; you have read"):
        office.desk.answer(request)
    assert "set-real" not in office.worker.asked


def test_waiting_for_what_an_order_brings_about(office: Office) -> None:
    found: list[Outcome] = []
    args: JSONObject = {"condition": "real a maintenance"}
    office.desk.answer(Request(1, "wait", args, None, lambda _request, outcome: found.append(outcome)))
    assert found == []
    office.ask("set-real", name="a", state="maintenance")
    assert found == [{"waited_s": 0.0, "said": ["a is maintenance"]}]


def test_waiting_sees_a_server_fail_with_the_next_pulse(office: Office) -> None:
    found: list[Outcome] = []
    args: JSONObject = {"condition": "real a failed", "timeout": 10}
    office.desk.answer(Request(1, "wait", args, None, lambda _request, outcome: found.append(outcome)))
    office.lab.dial().refusal()
    office.tick()
    assert found == [{"waited_s": 1.0, "said": ["a is failed"]}]


def test_whose_time_is_over_is_told_then_and_not_with_the_next_pulse(office: Office) -> None:
    found: list[Outcome] = []
    args: JSONObject = {"condition": "real a failed", "timeout": 0.3}
    office.desk.answer(Request(1, "wait", args, None, lambda _request, outcome: found.append(outcome)))
    office.now += 0.2
    office.desk.glance()
    assert found == []
    office.now += 0.1
    office.desk.glance()
    assert [str(each) for each in found] == ["after 0.3 s: a is in-service still"]


def test_nothing_is_true_while_nobody_knows(office: Office) -> None:
    """The last snapshot says that the server is in service, but no worker says so."""
    office.die()
    found: list[Outcome] = []
    args: JSONObject = {"condition": "real a in-service"}
    office.desk.answer(Request(1, "wait", args, None, lambda _request, outcome: found.append(outcome)))
    office.tick()
    assert found == []
    office.succeed()
    assert found == [{"waited_s": 1.0, "said": ["a is in-service"]}]
