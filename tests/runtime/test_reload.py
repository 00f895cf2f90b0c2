"""The order of things in a reload, and what becomes of it where something fails: no kernel, no worker."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nfqlb.config.transition import without_leftovers
from nfqlb.core.director import Director
from nfqlb.core.spec import Config
from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime.beat import Beat
from nfqlb.runtime.course import Step
from nfqlb.runtime.desk import Desk
from nfqlb.runtime.handover import Handover, Source
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject, Level, Outcome, Peer, Request
from nfqlb.runtime.reload import Reload
from nfqlb.runtime.summary import Losses

BASE = """
[gateway]
outside = "eth0"
inside = "eth1"
{gateway}
[[real]]
name = "web1"
address = "10.0.0.1"
[[real]]
name = "web2"
address = "10.0.0.2"
[[virtual]]
name = "shop"
address = "192.0.2.10"
port = 80
servers = ["web1", "web2"]
"""
ONE = BASE.replace('"web1", "web2"', '"web1"')


class Gateway:
    """Everything that a reload moves. `did` is what was done, in order; `next` what comes of it, by its name.

    What is not in `next` succeeds at once; a step that is "later" waits in `waiting`.
    """

    def __init__(self, tmp_path: Path) -> None:
        self.pid: int | None = None
        self.file = tmp_path / "nfqlb.toml"
        self.write(BASE)
        self.did: list[str] = []
        self.next: dict[str, list[Exception | str | JSON]] = {}
        self.waiting: list[Callable[[], None]] = []
        self.taken: list[Config] = []
        self.remaining: list[JSON] = []
        self.handover = Handover()
        source = Source(self.file)
        config = source.read()
        self.director = Director(config, now=0.0)
        self.beat = Beat(self.director, Losses, 0.0)
        self.desk = Desk(config, self, {}, wall=lambda: 1000.0)
        self.reload = Reload(
            config, source, self.desk, self, self, self.handover, room=1_000_000, prepare=self.prepare,
            follow=self.follow, rest=self.rest, begins=lambda: self.did.append("begins"),
            over=lambda: self.did.append("over"),
        )  # fmt: skip

    restarts = 0

    def write(self, text: str, gateway: str = "") -> None:
        self.file.write_text(text.replace("{gateway}", gateway))

    # --- what it moves

    def prepare(self, _config: Config) -> None:
        self.did.append("prepare")
        if isinstance(outcome := self.outcome("prepare"), KernelError):
            raise outcome

    def follow(self, config: Config) -> None:
        self.did.append(f"in force {servers(config)}")

    @contextmanager
    def rest(self) -> Iterator[None]:
        self.did.append("rest")
        try:
            yield
        finally:
            self.did.append("work")

    def findings(self, _before: Config, after: Config) -> Step:
        outcome = self.outcome("findings")
        assert not isinstance(outcome, Exception)
        return self.step(f"findings {servers(after)}", "", outcome or [])

    def rules(self, config: Config) -> Step:
        return self.step(f"rules {servers(config)}", "rules", None)

    def addresses(self, config: Config) -> Step:
        return self.step(f"addresses {servers(config)}", "addresses", None)

    def verified(self, config: Config) -> Step:
        return self.step(f"verify {servers(config)}", "verify", [])

    def call(
        self, cmd: str, args: JSONObject, done: Callable[[JSON], None], failed: Callable[[ControlError], None]
    ) -> None:
        if cmd == "pulse":
            done([*self.beat.rows(args, 0.0)])
            return
        if cmd == "reload":
            size = args["size"]
            assert isinstance(size, int)
            self.taken.append(self.handover.take(size))
            cmd = f"worker {servers(self.taken[-1])}"
        step = self.step(cmd, cmd.partition(" ")[0], {"remaining": list(self.remaining)})
        step(done, failed)  # type: ignore[arg-type]  # a worker fails with ControlErrors alone

    def forward(self, request: Request) -> None:
        self.call(request.cmd, request.args, request.reply, request.refuse)

    def step(self, what: str, name: str, result: JSON) -> Step:
        def begin(done: Callable[[JSON], None], failed: Callable[[Any], None]) -> None:
            self.did.append(what)
            outcome = self.outcome(name)
            if outcome == "later":
                self.waiting.append(lambda: done(result))
            elif isinstance(outcome, Exception):
                failed(outcome)
            else:
                done(result)

        return begin

    def outcome(self, name: str) -> Exception | str | JSON:
        planned = self.next.get(name)
        return planned.pop(0) if planned else None

    # --- who asks

    def ask(self, cmd: str = "reload", **args: JSON) -> Outcome:
        """What is answered, None as long as nothing is."""
        answers: list[Outcome] = []
        peer = Peer(4242, 0, 0)
        request = Request(1, cmd, args, peer, lambda _, outcome: answers.append(outcome), level=Level.ADMIN)
        try:
            self.desk.answer(request)
        except ControlError as error:
            return error
        self.answers = answers
        return answers[0] if answers else None

    def events(self) -> list[str]:
        return [str(each["text"]) for each in self.desk.events.newest(10) if each["kind"] == "reload"]


def servers(config: Config) -> str:
    """Those of the one virtual server; who leaves in brackets."""
    left = [f"({place.real})" for _, place in config.leaving.places]
    return " ".join([*(each.real for each in config.virtuals[0].servers), *left])


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path)
    yield made
    made.handover.close()


def test_the_order_of_things(gateway: Gateway) -> None:
    """Whatever is needed by before or after is there before the worker changes, and addresses come last."""
    gateway.remaining = [["shop", "web2", 80]]
    gateway.write(ONE)
    answer = gateway.ask()
    assert isinstance(answer, dict)
    assert gateway.did == [
        "rest", "begins", "findings web1", "prepare", "rules web1 (web2)", "in force web1 (web2)",
        "worker web1 (web2)", "addresses web1 (web2)", "over", "work",
    ]  # fmt: skip
    assert answer["said"] == ["virtual server shop: servers: -web2:80"]
    assert gateway.desk.reload == {"at": 1000.0, "ok": True, "error": "", "as_before": False}
    (event,) = gateway.desk.events.newest(1)
    assert (event["kind"], event["level"]) == ("reload", "info")
    assert event["text"] == f"{gateway.file} reloaded: virtual server shop: servers: -web2:80"
    assert "uid 0" in str(event["who"])


def test_what_has_no_connections_is_let_go_of_at_once(gateway: Gateway) -> None:
    gateway.write(ONE)
    gateway.ask()
    assert gateway.did[6:] == [
        "worker web1 (web2)", "addresses web1", "in force web1", "worker web1", "rules web1", "over", "work",
    ]  # fmt: skip
    assert servers(gateway.reload.config) == "web1"


def test_what_drains_is_looked_at_and_let_go_of_later(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.remaining = [["shop", "web2", 80]]
    gateway.write(ONE)
    gateway.ask()
    clock = iter(range(10**6, 10**7, 10))
    monkeypatch.setattr("nfqlb.runtime.reload.time.monotonic", lambda: next(clock))
    gateway.did.clear()
    gateway.reload.tick()
    assert gateway.did == ["remaining"]
    gateway.remaining = []
    gateway.reload.tick()
    assert gateway.did[1:] == [
        "remaining", "rest", "addresses web1", "in force web1", "worker web1", "rules web1", "work",
    ]  # fmt: skip
    gateway.did.clear()
    gateway.reload.tick()
    assert gateway.did == []


def test_a_bad_file_moves_nothing(gateway: Gateway) -> None:
    gateway.write(BASE.replace("port", "prot"))
    answer = gateway.ask()
    assert isinstance(answer, ControlError)
    assert answer.code == "bad-config"
    assert f"{gateway.file}:" in answer.message
    assert gateway.did == []
    assert gateway.desk.reload["ok"] is False
    assert gateway.events()[0].startswith(f"{gateway.file} is refused; nothing is changed: ")


def test_what_needs_a_restart_moves_nothing(gateway: Gateway) -> None:
    gateway.write(ONE, gateway="queue = 5\nmax_connections = 2000000")
    answer = gateway.ask()
    assert isinstance(answer, ControlError)
    assert answer.code == "needs-restart"
    assert answer.message.splitlines() == [
        "[gateway] queue: needs a restart",
        "[gateway] max_connections: more than 1,000,000 needs a restart",
    ]
    assert gateway.did == ["rest", "begins", "findings web1", "over", "work"]
    assert servers(gateway.reload.config) == "web1 web2"


def test_what_is_refused_is_refused_for_all_reasons_at_once(gateway: Gateway) -> None:
    """As `diff` has them: what needs a restart, and what this machine has not."""
    gateway.write(ONE, gateway="queue = 5")
    found: JSON = [["error", "inside interface eth9 does not exist"]]
    gateway.next["findings"] = [found, found]
    answer, compared = gateway.ask(), gateway.ask("diff")
    assert isinstance(answer, ControlError)
    assert isinstance(compared, dict)
    assert answer.message.splitlines() == compared["refused"]
    assert answer.message.splitlines() == [
        "[gateway] queue: needs a restart", "inside interface eth9 does not exist"
    ]  # fmt: skip
    assert answer.code == "needs-restart"


def test_what_this_machine_cannot_do_moves_nothing(gateway: Gateway) -> None:
    gateway.write(ONE)
    gateway.next["findings"] = [[["error", "no route to web1"], ["warning", "odd"], ["error", "no web2"]]]
    answer = gateway.ask()
    assert isinstance(answer, ControlError)
    assert (answer.code, answer.message) == ("host-refused", "no route to web1\nno web2")
    assert gateway.did == ["rest", "begins", "findings web1", "over", "work"]
    assert gateway.events()[0] == (
        f"{gateway.file} cannot run on this machine; nothing is changed: no route to web1"
    )


def test_what_this_machine_warns_of_is_told(gateway: Gateway) -> None:
    gateway.write(ONE)
    gateway.next["findings"] = [[["warning", "odd"]]]
    answer = gateway.ask()
    assert isinstance(answer, dict)
    assert answer["warnings"] == ["odd"]


@pytest.mark.parametrize(
    ("name", "undone"),
    [
        ("prepare", []),
        ("rules", ["rules web1 web2"]),
    ],
)
def test_what_the_kernel_refuses_is_put_back(gateway: Gateway, name: str, undone: list[str]) -> None:
    gateway.write(ONE)
    gateway.next[name] = [KernelError("not today")]
    answer = gateway.ask()
    assert isinstance(answer, ControlError)
    assert answer.code == "reload-failed"
    assert "everything is as it was before: not today" in answer.message
    at = gateway.did.index("prepare" if name == "prepare" else "rules web1 (web2)")
    assert gateway.did[at + 1 :] == [*undone, "over", "work"]
    assert gateway.taken == []
    assert servers(gateway.reload.config) == "web1 web2"
    assert gateway.desk.reload["ok"] is False


def test_an_address_that_cannot_be_had_is_the_way_back(gateway: Gateway) -> None:
    """By another reload: what was new by then drains."""
    gateway.write(ONE.replace('servers = ["web1"]', 'servers = ["web1", "web2:81"]'))
    gateway.next["addresses"] = [KernelError("no such interface")]
    gateway.remaining = [["shop", "web2", 81]]
    answer = gateway.ask()
    assert isinstance(answer, ControlError)
    assert gateway.did[gateway.did.index("addresses web1 web2") + 1 :] == [
        "rules web1 web2 (web2)", "in force web1 web2 (web2)", "worker web1 web2 (web2)",
        "addresses web1 web2 (web2)", "over", "work",
    ]  # fmt: skip
    assert without_leftovers(gateway.reload.config) == Source(gateway.file).read(before(gateway))


def before(gateway: Gateway) -> Path:
    path = gateway.file.with_name("before.toml")
    path.write_text(BASE.replace("{gateway}", ""))
    return path


def test_a_worker_that_fails_is_replaced_by_one_with_the_old_configuration(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr("nfqlb.runtime.reload.os.kill", lambda pid, _number: killed.append(pid))
    gateway.pid = 77
    gateway.write(ONE)
    gateway.next["worker"] = [ControlError("internal-error", "a defect")]
    answer = gateway.ask()
    assert isinstance(answer, ControlError)
    assert gateway.did[-4:] == ["in force web1 web2", "rules web1 web2", "over", "work"]
    assert killed == [77]
    assert servers(gateway.reload.config) == "web1 web2"


def test_a_worker_that_dies_is_followed_by_one_with_the_new_configuration(gateway: Gateway) -> None:
    gateway.write(ONE)
    gateway.next["worker"] = [ControlError("worker-restarting", "gone")]
    answer = gateway.ask()
    assert isinstance(answer, dict)
    assert servers(gateway.reload.config) == "web1 (web2)", "nobody knows yet what has connections"
    assert gateway.desk.reload["ok"] is True


def test_a_worker_that_is_slow_is_asked_again(gateway: Gateway) -> None:
    gateway.write(ONE)
    gateway.next["worker"] = [ControlError("worker-busy", "wait")] * 2
    assert isinstance(gateway.ask(), dict)
    assert gateway.did.count("worker web1 (web2)") == 3


def test_only_one_at_a_time_but_no_signal_is_forgotten(gateway: Gateway) -> None:
    gateway.write(ONE)
    gateway.next["rules"] = ["later"]
    assert gateway.ask() is None
    first = gateway.answers
    answer = gateway.ask()
    assert isinstance(answer, ControlError)
    assert answer.code == "busy"
    gateway.reload.signalled()
    gateway.reload.signalled()
    gateway.reload.tick()
    gateway.write(BASE)
    gateway.waiting.pop()()
    assert isinstance(first[0], dict)
    assert servers(gateway.reload.config) == "web1 web2"
    assert [text.partition(" reloaded")[1] for text in gateway.events()] == [" reloaded"] * 2


def test_a_signal_with_a_bad_file_is_an_event(gateway: Gateway) -> None:
    gateway.write("[gateway")
    gateway.reload.signalled()
    (event,) = gateway.desk.events.newest(1)
    assert (event["who"], event["level"]) == ("SIGHUP", "error")


def test_a_defect_is_answered_too(gateway: Gateway) -> None:
    gateway.write(ONE)
    gateway.next["rules"] = [RuntimeError("a defect")]
    answer = gateway.ask()
    assert isinstance(answer, ControlError)
    assert answer.code == "internal-error"
    assert gateway.did[-2:] == ["over", "work"]
    assert gateway.desk.reload["ok"] is False


def test_nothing_goes_on_once_it_is_closed(gateway: Gateway) -> None:
    gateway.write(ONE)
    gateway.next["rules"] = ["later"]
    gateway.ask()
    gateway.reload.close()
    gateway.waiting.pop()()
    assert gateway.did[-3:] == ["rules web1 (web2)", "over", "work"]


def test_a_difference_before(gateway: Gateway) -> None:
    gateway.write(ONE, gateway="queue = 5")
    answer = gateway.ask("diff")
    assert isinstance(answer, dict)
    assert answer["said"] == ["[gateway] queue: 0 -> 5", "virtual server shop: servers: -web2:80"]
    assert answer["refused"] == ["[gateway] queue: needs a restart"]
    assert gateway.did == ["findings web1"]
    other = before(gateway)
    answer = gateway.ask("diff", file=str(other))
    assert isinstance(answer, dict)
    assert answer["differences"] == []
    assert gateway.ask("diff", file="relative.toml").code == "bad-argument"  # type: ignore[union-attr]


def test_a_difference_tells_what_is_set_by_hand(gateway: Gateway) -> None:
    """Which a reload leaves as it is, but for a weight that the file has changed."""
    gateway.director.operation.set_real("web1", weight=3, now=0.0)
    answer = gateway.ask("diff")
    assert isinstance(answer, dict)
    assert answer["by_hand"] == ["real server web1: weight 3 instead of 1; it stays"]
    gateway.write(BASE.replace('"10.0.0.1"', '"10.0.0.1"\nweight = 5'))
    answer = gateway.ask("diff")
    assert isinstance(answer, dict)
    assert answer["by_hand"] == ["real server web1: weight 3; 5 takes its place"]


def test_a_difference_that_is_nothing_for_this_machine(gateway: Gateway) -> None:
    """Told before a reload or a restart is tried."""
    gateway.write(ONE, gateway="queue = 5")
    gateway.next["findings"] = [[["error", "outside interface eth9 does not exist"], ["warning", "odd"]]]
    answer = gateway.ask("diff")
    assert isinstance(answer, dict)
    assert answer["refused"] == ["[gateway] queue: needs a restart", "outside interface eth9 does not exist"]
    assert answer["warnings"] == ["odd"]


def test_rules_are_those_that_run_or_nobody_can_say(gateway: Gateway) -> None:
    assert gateway.ask("verify") == []
    gateway.write(ONE)
    assert gateway.ask("verify") is None
    assert gateway.did == ["verify web1 web2"]


def test_a_configuration_is_handed_over_whole(gateway: Gateway) -> None:
    config = gateway.reload.config
    size = gateway.handover.give(config)
    assert gateway.handover.take(size) == config
    with pytest.raises(ValueError, match="bytes"):
        gateway.handover.take(size - 1)


def test_the_socket_that_was_asked_for_stays(gateway: Gateway) -> None:
    assert Source(gateway.file, Path("/run/mine.sock")).read().gateway.socket == "/run/mine.sock"
