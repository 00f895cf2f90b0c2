"""A capture in the worker and at the supervisor: what is kept, what is lost, and when it ends."""

import io
import json
import struct
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nfqlb.core.segment import ACK, RST, SYN, Reset
from nfqlb.operator.capturing import _INTERFACES, _blocks
from nfqlb.packet import pcapng, reply
from nfqlb.packet.path import CHANGED, DROP, FORWARD, PREROUTING, PacketPath
from nfqlb.packet.pcap import CaptureFile
from nfqlb.runtime import recording as module
from nfqlb.runtime.captures import Captures
from nfqlb.runtime.events import Events
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject, Request
from nfqlb.runtime.recording import PATIENCE, Limits, Recorder, Recording
from tests.bench.flows import segment
from tests.core.scenario import Scenario, reals, virtual

CLIENT, VIP, OTHER, SERVER = 0xC0000201, 0xCB007101, 0xCB007102, 0x0A000001
LIMITS = Limits(packets=100, seconds=60.0, size=1 << 20, snaplen=256)


def site() -> Scenario:
    """Two virtual servers over the same two servers."""
    return Scenario([virtual("web", "ab"), virtual("other", "ab", address="203.0.113.2")], reals("ab"))


class Queue:
    """A queue with its judge, and what is recorded there."""

    def __init__(self, limits: Limits = LIMITS, name: str = "web") -> None:
        self.lab = site()
        self.path = PacketPath(self.lab.director, self.lab.now)
        (web,) = [each for each in self.lab.director.virtual_servers if each.spec.name == name]
        self.recording = Recording(self.lab.director, web, limits, self.lab.now)
        self.judge = self.recording.judging(self.path.judge, "passed")

    def put(self, packet: bytes, hook: int = PREROUTING) -> int:
        """The verdict on a packet."""
        buffer = bytearray(packet) + bytearray(64)
        return self.judge(buffer, 0, len(packet), hook, 0, 0)

    def syn(self, port: int, to: int = VIP) -> int:
        """A client's SYN."""
        return self.put(segment(CLIENT, port, to, 80, SYN, 1000, 0))

    def take(self) -> tuple[JSONObject, list[JSONObject]]:
        """How it stands, and the packets taken."""
        head, *rows = self.recording.take(self.lab.now)
        json.dumps([head, *rows])
        return head, rows


def test_a_packet_is_kept_as_it_came_and_as_it_went() -> None:
    queue = Queue()
    assert queue.syn(1) == CHANGED
    head, (row,) = queue.take()
    assert head == {"seen": 1, "lost": 0, "waiting": 0, "ended": ""}
    came, sent = b64decode(str(row["data"])), b64decode(str(row["sent"]))
    assert came == segment(CLIENT, 1, VIP, 80, SYN, 1000, 0)
    assert sent[16:20] == SERVER.to_bytes(4, "big")
    assert sent[20:] != came[20:]  # its sum
    assert (row["became"], row["real"], row["port"], row["state"]) == ("translated", "a", 80, "syn-sent")
    decision = row["decision"]
    assert isinstance(decision, dict)
    assert (decision["chosen"], decision["client_port"]) == ("a", 1)


def test_what_servers_send_is_kept_as_well() -> None:
    queue = Queue()
    queue.syn(1)
    queue.put(segment(SERVER, 80, CLIENT, 1, SYN | ACK, 7000, 1001), FORWARD)
    _, (_, row) = queue.take()
    assert (row["inbound"], row["became"], row["state"]) == (False, "translated", "syn-received")
    assert b64decode(str(row["sent"]))[12:16] == VIP.to_bytes(4, "big")
    assert "decision" not in row


def test_another_virtual_servers_packets_are_not_kept() -> None:
    """Their verdicts are as they would be."""
    queue = Queue()
    assert queue.syn(1, OTHER) == CHANGED
    assert queue.put(segment(SERVER, 80, CLIENT, 1, SYN | ACK, 7000, 1001), FORWARD) == CHANGED
    assert queue.put(b"\x45" + bytes(3)) == DROP
    assert queue.take()[0]["seen"] == 0


def test_why_a_packet_was_dropped_is_kept() -> None:
    queue = Queue()
    assert queue.put(segment(CLIENT, 1, VIP, 80, ACK, 1, 1)) == DROP
    for name in "ab":
        queue.lab.director.operation.set_real(name, weight=0, now=queue.lab.now)
    assert queue.syn(2) == DROP
    _, (stray, refused) = queue.take()
    assert (stray["became"], stray["reason"]) == ("dropped", "no-connection")
    assert refused["reason"] == "no-server"
    decision = refused["decision"]
    assert isinstance(decision, dict)
    assert decision["refused"] == "no-server"


def test_what_the_gateway_tells_clients_is_kept() -> None:
    """Resets and ICMP errors that it makes itself: no server sent them."""
    site = Site()
    number = site.ask(start="web")["capture"]
    reset = reply.reset(Reset(_key(VIP, CLIENT, 80, 5000), 7, None))
    asked = segment(CLIENT, 5001, VIP, 80, SYN, 1000, 0)
    unreachable = reply.unreachable_for(_key(CLIENT, VIP, 5001, 80), asked)
    other = reply.reset(Reset(_key(OTHER, CLIENT, 80, 5000), 7, None))
    assert site.recorder.saw([reset, other, unreachable]) == [reset, other, unreachable]
    head, *rows = site.ask(take=number)
    assert head["seen"] == 2
    assert [b64decode(row["sent"]) for row in rows] == [reset, unreachable]
    assert {(row["became"], row["inbound"]) for row in rows} == {("told", False)}
    (frame,) = CaptureFile(io.BytesIO(_file(rows[0]))).frames()
    assert (frame.data, frame.interface) == (reset, 3)
    assert frame.comment == "made by the gateway: no packet of a server"


def _key(source: int, target: int, port: int, other: int) -> bytes:
    return struct.pack("!IIHH", source, target, port, other)


def _file(row: JSONObject) -> bytes:
    """What the command writes of a packet."""
    head = pcapng.section("", "") + b"".join(pcapng.interface(*each, 256, 4) for each in _INTERFACES)
    return head + _blocks(row)


def test_a_judge_that_fails_still_fails() -> None:
    """The queue counts it, and drops the packet."""
    queue = Queue()
    queue.judge = queue.recording.judging(lambda *_: 1 // 0, "passed")
    with pytest.raises(ZeroDivisionError):
        queue.syn(1)


def test_marks_and_copies() -> None:
    """Datapath offload: the verdict is a mark, and the rest are copies of headers."""
    queue = Queue()
    told = []
    queue.judge = queue.recording.judging(lambda *args: queue.path.judge(*args) and 2, "marked")
    assert queue.syn(1) == 2
    tapped = queue.recording.tapping(lambda *args: told.append(args))
    answer = segment(SERVER, 80, CLIENT, 1, SYN | ACK, 7000, 1001)
    tapped(bytearray(answer[:40]), 0, 40, FORWARD, (5, 6))
    strange = segment(SERVER + 7, 80, CLIENT, 1, SYN | ACK, 7000, 1001)
    tapped(bytearray(strange), 0, 40, FORWARD, (5, 6))
    _, (syn, copy) = queue.take()
    assert (syn["became"], syn["real"]) == ("marked", "a")
    assert "sent" not in syn
    assert (copy["became"], copy["at"], copy["inbound"]) == ("copy", 5_000_006, False)
    assert len(told) == 2


def test_what_there_is_no_room_for_is_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", 2000)
    queue = Queue()
    verdicts = [queue.syn(port) for port in range(1, 11)]
    assert verdicts == [CHANGED] * 10
    head, rows = queue.take()
    assert (head["seen"], head["lost"], len(rows)) == (10, 6, 4)
    queue.syn(20)
    head, rows = queue.take()
    assert (head["seen"], head["lost"], len(rows)) == (11, 6, 1)


@pytest.mark.parametrize(
    ("limits", "ended", "kept"),
    [
        (LIMITS._replace(packets=3), "packets", 3),
        (LIMITS._replace(size=150), "bytes", 2),
        (LIMITS, "", 6),
    ],
)
def test_it_ends(limits: Limits, ended: str, kept: int) -> None:
    """And what comes after that is judged as ever."""
    queue = Queue(limits)
    assert [queue.syn(port) for port in range(1, 7)] == [CHANGED] * 6
    head, rows = queue.take()
    assert (head["ended"], len(rows)) == (ended, kept)


def test_no_more_than_the_snaplen_is_kept() -> None:
    queue = Queue(LIMITS._replace(snaplen=24))
    queue.syn(1)
    _, (row,) = queue.take()
    assert [len(b64decode(str(row[name]))) for name in ("data", "sent")] == [24, 24]
    assert row["size"] == 40


def test_a_defect_of_the_recording_costs_no_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the verdict or after it: the packet gets it, the capture ends."""
    for name in ("key_of", "_served"):
        queue = Queue()
        with monkeypatch.context() as broken:
            broken.setattr(module, name, lambda *_: 1 // 0)
            assert queue.syn(1) == CHANGED
        assert queue.recording.ended == "internal error"
        assert queue.syn(2) == CHANGED
        assert queue.take()[1] == []


# --- begun and ended by the supervisor


class Site:
    """A recorder whose clock the test moves."""

    def __init__(self) -> None:
        self.lab = site()
        self.attached: list[Recording | None] = []
        self.recorder = Recorder(self.lab.director, self.attached.append)

    def ask(self, **args: Any) -> Any:
        """The answer to a request."""
        result = self.recorder.answer(args, self.lab.now)
        return result if isinstance(result, dict) else list(result)  # type: ignore[arg-type]

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.lab.now += seconds
        self.recorder.look(self.lab.now)


def test_nothing_is_attached_but_while_one_runs() -> None:
    """Off, a capture costs nothing: the judge is the path's own again."""
    here = Site()
    here.wait(1)
    assert here.attached == []
    number = here.ask(start="web", seconds=3)["capture"]
    assert here.attached[-1] is here.recorder.recording
    here.ask(take=number)
    here.wait(3)
    assert here.attached[-1] is None
    assert here.ask(take=number)[0]["ended"] == "seconds"


def test_nobody_takes_it_away() -> None:
    here = Site()
    number = here.ask(start="web")["capture"]
    here.wait(PATIENCE + 0.1)
    assert here.attached[-1] is None
    with pytest.raises(ControlError, match="this capture is over"):
        here.ask(take=number)
    assert here.ask(start="other")["capture"] == number + 1


def test_stopped() -> None:
    here = Site()
    number = here.ask(start="web")["capture"]
    assert here.ask(stop=number) == [{"seen": 0, "lost": 0, "waiting": 0, "ended": "stopped"}]
    assert here.attached[-1] is None


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"start": "wob"}, "there is no virtual server 'wob'; did you mean 'web'?"),
        ({"start": "web", "packets": 0}, "packets: 0 is not a number above 0, and at most 10000000"),
        ({"start": "web", "seconds": True}, "seconds: True is not"),
        ({"start": "web", "snaplen": "all"}, "snaplen: 'all' is not"),
        ({"take": 1}, "this capture is over"),
    ],
)
def test_what_cannot_be_is_refused(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ControlError) as caught:
        Site().ask(**args)
    assert str(caught.value).startswith(says)


class Desk:
    """The supervisor's desk, as far as captures need it; a worker that answers at once."""

    def __init__(self) -> None:
        self.events = Events()
        self.listeners: list[Callable[[JSONObject], None]] = []
        self.handlers: dict[str, Callable[[Request], None]] = {}
        self.now = 0.0
        self.site = Site()
        self.dead = False
        Captures(self, self, clock=lambda: self.now)

    def offer(self, cmd: str, handler: Callable[[Request], None]) -> None:
        self.handlers[cmd] = handler

    def call(
        self, cmd: str, args: JSONObject, done: Callable[[JSON], None], failed: Callable[[ControlError], None]
    ) -> None:
        try:
            if self.dead:
                raise ControlError("worker-restarting", "the worker is being restarted")
            done(self.site.ask(**args))
        except ControlError as error:
            failed(error)

    def ask(self, **args: Any) -> Any:
        """What the client gets."""
        answers: list[Any] = []
        self.handlers["capture"](Request(1, "capture", args, None, lambda _, answer: answers.append(answer)))
        return answers[0]

    def told(self) -> list[str]:
        """The events, oldest first."""
        return [f"{each['level']}: {each['text']}" for each in reversed(self.events.newest(10))]


def test_the_supervisor_tells_of_begin_and_end() -> None:
    desk = Desk()
    number = desk.ask(start="web")["capture"]
    desk.ask(stop=number)
    assert desk.told() == [
        "info: web: a capture has begun",
        "info: web: the capture has ended after 0 packets: stopped",
    ]
    (row, _) = desk.events.newest(2)
    assert (row["kind"], row["name"], row["who"]) == ("capture", "web", "the supervisor")


def test_it_tells_of_a_client_that_is_gone_once() -> None:
    desk = Desk()
    desk.ask(start="web")
    for seconds in (1.0, PATIENCE, PATIENCE):
        desk.now += seconds
        for look in desk.listeners:
            look({})
    assert desk.told()[1:] == ["warning: web: the capture has ended after 0 packets: its client is gone"]


def test_who_asks_for_one_that_is_over_does_not_end_the_next() -> None:
    desk = Desk()
    first = desk.ask(start="web")["capture"]
    desk.ask(stop=first)
    second = desk.ask(start="web")["capture"]
    assert str(desk.ask(take=first)).startswith("this capture is over")
    desk.ask(stop=second)
    assert desk.told()[2:] == desk.told()[:2], "begun, and stopped"


def test_it_tells_of_a_worker_that_died() -> None:
    desk = Desk()
    number = desk.ask(start="web")["capture"]
    desk.dead = True
    assert str(desk.ask(take=number)) == "the worker is being restarted"
    assert desk.told()[1:] == ["warning: web: the capture has ended after 0 packets: the worker was replaced"]


@pytest.mark.parametrize(
    "args", [{}, {"start": "web", "stop": 1}, {"take": 1, "packets": 3}, {"start": "web", "speed": 3}]
)
def test_requests_that_mean_nothing_are_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ControlError, match="capture"):
        Desk().ask(**args)


def test_a_reset_is_no_decision() -> None:
    """Only what had a server chosen carries an explanation."""
    queue = Queue()
    queue.syn(1)
    queue.put(segment(CLIENT, 1, VIP, 80, RST, 1001, 0))
    _, rows = queue.take()
    assert ["decision" in row for row in rows] == [True, False]
    assert replace(queue.lab.why(), age=0.0).chosen == "a"
