"""The command line: exit status, one clear line on stderr, and `show` against a gateway on a real socket."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

import nfqlb
from nfqlb.core.explanation import Wanted
from nfqlb.core.snapshot import (
    ConnectionSnapshot,
    DecisionSnapshot,
    FailureSnapshot,
    LinkSnapshot,
    RealSnapshot,
    StickySnapshot,
    Totals,
    VirtualSnapshot,
)
from nfqlb.core.spec import Address, Gateway
from nfqlb.operator import cli
from nfqlb.operator.change import wanted
from nfqlb.operator.commands.common import SOCKET
from nfqlb.operator.words import WORDS
from nfqlb.runtime import client, views
from nfqlb.runtime import summary as overview
from nfqlb.runtime.control import Request, Server
from nfqlb.runtime.orders import ORDERS
from nfqlb.runtime.protocol import DEFAULT_LIMITS, ControlError, JSONObject
from nfqlb.runtime.views import COMMANDS
from nfqlb.service.install import PLACES, UNIT
from tests.runtime.told import a_decision

CONFIG = """
[gateway]
outside = "eth0"
inside = "eth1"
socket = "{socket}"

[[real]]
name = "web1"
address = "10.0.0.1"

[[virtual]]
name = "shop"
address = "192.0.2.10"
port = 80
servers = ["web1:8080"]
"""


class Director:
    """A director as the views see it, with thousands of connections."""

    def totals(self) -> Totals:
        return Totals(5000, 6000, 1_000_000, 1, 1000, {"no-connection": 1})

    def virtual_names(self) -> list[str]:
        return ["shop"]

    def real_names(self) -> list[str]:
        return ["web1"]

    def virtuals(self, now: float) -> Sequence[VirtualSnapshot]:
        link = LinkSnapshot("web1", 8080, 5000, total=6000, share=1.0, fair=1.0)
        scheduler = "least-connections"
        address = ip_address("192.0.2.10")
        return [
            VirtualSnapshot(
                "shop", address, "tcp", 80, "in-service", scheduler, scheduler, 5000, 6000, (link,)
            )
        ]

    def reals(self, now: float) -> Sequence[RealSnapshot]:
        return [
            RealSnapshot(
                name="web1",
                address=ip_address("10.0.0.1"),
                state="in-service",
                reason="",
                since=1.0,
                setting="in-service",
                weight=1,
                weight_configured=1,
                connections=5000,
                total=6000,
                max_connections=0,
                unanswered=0,
                ditched_no_answer=0,
                ditched_reset=0,
                response=None,
                predicted=None,
                virtuals=("shop",),
            )
        ]

    def connections(
        self, now: float, *, limit: int, client: Address | None, virtual: str | None, real: str | None
    ) -> Sequence[ConnectionSnapshot]:
        who = client or ip_address("198.51.100.7")
        number = 1 if client else min(limit, 5000)
        return [
            ConnectionSnapshot("shop", "tcp", who, port, "web1", 8080, "established", 1.0, 0.5)
            for port in range(1, number + 1)
        ]

    def failures(self, now: float, *, limit: int, real: str | None) -> Sequence[FailureSnapshot]:
        client = ip_address("198.51.100.7")
        return [FailureSnapshot("web1", "failed", 75.0, client, 40000, "shop", "no-answer", 3.02)]

    def decisions(self, now: float, *, limit: int, wanted: Wanted) -> Sequence[DecisionSnapshot]:
        if wanted.client == ip_address("203.0.113.9"):
            return []
        return [a_decision(age=float(number)) for number in range(min(limit, 200))]

    def sticky(self, now: float, client: Address | None) -> Sequence[StickySnapshot]:
        return [StickySnapshot("shop", False, ip_address("198.51.100.7"), "web1", 1.0, 59.0)]


class Running:
    """A gateway's control socket, served while a command runs beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.selector = selectors.DefaultSelector()
        self.server = Server(path, self.selector, self.answer)
        self.orders: list[tuple[str, JSONObject]] = []
        self.batches: list[JSONObject] = []
        self.all_found = True

    def answer(self, request: Request) -> None:
        if request.cmd == "watch":
            rows = views.with_neighbours([*map(views.real, Director().reals(0.0))], {})
            request.stream({"reals": rows})
            return
        if request.cmd == "wait":
            self.orders.append((request.cmd, request.args))
            request.reply({"waited_s": 0.0, "said": ["web1 has no connections"]})
            return
        if request.cmd == "adoption":
            self.orders.append((request.cmd, request.args))
            served = len(self.orders) > 3
            request.reply({"served": served, "over": served and self.all_found, "adopted": 1204})
            return
        if request.cmd == "batch":
            self.batches.append(request.args)
            commands = request.args["commands"]
            assert isinstance(commands, list)
            if len(commands) > 2:
                raise ControlError("bad-argument", "command 3: no such server; nothing was changed", "sorry")
            request.reply({"said": ["one", "two"]})
            return
        if request.cmd in (*ORDERS, "adopt"):
            self.orders.append((request.cmd, request.args))
            if request.args.get("name") == "nobody":
                raise ControlError("bad-argument", "there is no real server 'nobody'", "there is web1")
            request.reply({"said": ["web1: in-service -> sticky-only (3 connections)", "\x1b[2J"]})
            return
        result = views.answer(Director(), request.cmd, request.args, 0.0)
        if request.cmd == "summary":
            assert isinstance(result, dict)
            status = overview.GatewayStatus("1.2.3", "rewrite", "running", 60.0, 4711, 0, [])
            result = overview.summary(result, status)
        request.reply(result)

    def start(self, *words: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        return start(*words, stdout=stdout)

    def run(self, *words: str) -> tuple[int, str, str]:
        """The command's exit status, output and errors."""
        with self.start(*words) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            output = []
            self.selector.register(
                process.stdout, selectors.EVENT_READ, lambda _mask: output.append(self._read(process))
            )
            while not output or output[-1]:
                for key, mask in self.selector.select(5):
                    key.data(mask)
            self.selector.unregister(process.stdout)
            return process.wait(), "".join(output), process.stderr.read()

    @staticmethod
    def _read(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return os.read(process.stdout.fileno(), 1 << 20).decode()


def start(*words: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    root = Path(nfqlb.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-m", "nfqlb", *words],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def run(*words: str) -> tuple[int, str, str]:
    """The exit status, output and errors of a command that needs no gateway."""
    with start(*words) as process:
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path / "s")
    yield made
    made.server.close()
    made.selector.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "nfqlb.toml"
    path.write_text(CONFIG.format(socket=tmp_path / "s"), encoding="utf-8")
    return path


# --- words -----------------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main(["--version"])
    assert exited.value.code == 0
    assert capsys.readouterr().out == f"nfqlb {nfqlb.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["show"],
        ["show", "nothing"],
        ["show", "reals", "--limit", "5"],
        ["set"],
        ["set", "real"],
        ["set", "real", "web1"],
        ["set", "real", "web1", "in-service", "maintenance"],
        ["set", "real", "web1", "weight=1", "weight=2"],
        ["set", "real", "web1", "wieght=1"],
        ["set", "real", "web1", "weight=heavy"],
        ["set", "real", "web1", "weight=nan"],
        ["set", "real", "web1", "weight=inf"],
        ["set", "real", "web1", "weight="],
        ["set", "virtual", "shop", "weight=1"],
        ["clear"],
        ["clear", "sticky", "web1"],
        ["show", "connections", "--limit", "0"],
        ["show", "connections", "--limit", "x"],
        ["show", "reals", "--jason"],
        ["run"],
        ["check"],
        ["rules"],
        ["rules", "apply"],
        ["rules", "show"],
        ["demo", "--duration", "0"],
        ["demo", "--duration", "nan"],
        ["demo", "--duration", "inf"],
        ["r", "-c", "x"],
    ],
)
def test_wrong_usage_is_status_2_with_one_line_and_the_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main(words)
    assert exited.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("usage: nfqlb")
    assert "error: " in output.err.splitlines()[-1]


def test_where_a_word_is_missing_the_words_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["show"], ["rules"], ["set"], ["clear"]):
        with pytest.raises(SystemExit):
            cli.main(words)
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.endswith(f" is missing: {', '.join(WORDS[words[0]] if words else WORDS)}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["shwo"], "there is no COMMAND 'shwo'; did you mean show?"),
        (["show", "realz"], "there is no SUBJECT 'realz'; did you mean reals?"),
        (["set", "rael", "web1", "drain"], "there is no KIND 'rael'; did you mean real?"),
        (["it's"], "there is no COMMAND \"it's\"; there are: run, check, "),
        (["s"], "COMMAND 's' may be any of show, set"),
    ],
)
def test_of_a_word_that_there_is_not_the_nearest_is_named(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main(words)
    assert exited.value.code == 2
    assert f"error: {says}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "order"),
    [
        (["weight", "3"], {"weight": 3.0}),
        (["weight=3", "drain"], {"weight": 3.0, "state": "drain"}),
        (["drain", "weight", ".5"], {"weight": 0.5, "state": "drain"}),
    ],
)
def test_a_weight_may_be_said_in_two_words(words: list[str], order: dict[str, object]) -> None:
    assert wanted(words, weighed=True) == order


@pytest.mark.parametrize("words", [["weight"], ["weight", "drain"], ["drain", "weight"]])
def test_a_weight_without_its_number_is_none(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"which\? weight=N"):
        wanted(words, weighed=True)


def test_words_may_be_shortened_while_unambiguous(running: Running) -> None:
    path = str(running.path)
    assert running.run("sh", "re", "--socket", path) == running.run("show", "reals", "--socket", path)


def test_the_words_are_those_that_the_gateway_knows() -> None:
    assert WORDS["show"] == (*COMMANDS, "events")
    assert Gateway(("o",), ("i",)).socket == str(SOCKET)


# --- show ------------------------------------------------------------------------------------------------


def test_show_prints_a_table(running: Running) -> None:
    status, output, errors = running.run("show", "virtuals", "--socket", str(running.path))
    assert (status, errors) == (0, "")
    assert output == (
        "VIRTUAL      STATE        CONN  TOTAL  SHARE  FAIR\n"
        "shop         in-service  5,000  6,000\n"
        "  192.0.2.10:80/tcp, least-connections\n"
        "  web1:8080  in-service  5,000  6,000   100%\n"
    )


@pytest.mark.parametrize("subject", COMMANDS)
def test_show_json_is_one_document(running: Running, subject: str) -> None:
    status, output, errors = running.run("show", subject, "--json", "--socket", str(running.path))
    cut = "nfqlb: the first 100; --limit N shows more\n" if subject in ("connections", "decisions") else ""
    assert (status, errors) == (0, cut), "a list that is cut says so beside the document"
    document = json.loads(output)
    if subject == "summary":
        assert document["worker"] == {"pid": 4711, "restarts": 0}
    else:
        assert isinstance(document, list)
        assert len(document) == (DEFAULT_LIMITS[subject] if subject in ("connections", "decisions") else 1)


def test_show_finds_the_socket_in_a_configuration(running: Running, config: Path) -> None:
    assert running.run("show", "summary", "-c", str(config))[0] == 0


def test_show_passes_limit_client_and_virtual_on(running: Running) -> None:
    path = str(running.path)
    rows = running.run("show", "connections", "--json", "--limit", "4000", "--socket", path)[1]
    assert len(json.loads(rows)) == 4000
    rows = running.run("show", "connections", "--json", "--client", "2001:db8::1", "--socket", path)[1]
    assert [row["client"] for row in json.loads(rows)] == ["2001:db8::1"]
    said = running.run("show", "connections", "--limit", "2", "--socket", path)[1]
    assert said.splitlines()[-1] == "(the first 2; --limit N shows more)"
    assert running.run("show", "sticky", "--limit", "5", "--socket", path)[0] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--virtual", "shp"], "nfqlb: virtual: there is no virtual server 'shp'; did you mean 'shop'?\n"),
        (
            ["--client", "x"],
            "nfqlb: client: 'x' is not an IP address; one such as 192.0.2.7 or 2001:db8::7\n",
        ),
        (["--limit", "10001"], "nfqlb: limit: 10001 is not between 1 and 10000; client, virtual and real"),
    ],
)
def test_what_the_gateway_refuses_is_status_1_with_one_line(
    running: Running, words: list[str], says: str
) -> None:
    status, output, errors = running.run("show", "connections", *words, "--socket", str(running.path))
    assert (status, output) == (1, "")
    assert errors.startswith(says)
    assert errors.count("\n") == 1


# --- explain ---------------------------------------------------------------------------------------------


def test_explain_tells_of_the_last_decision(running: Running) -> None:
    status, output, errors = running.run("explain", "--socket", str(running.path))
    assert (status, errors) == (0, "")
    assert output.splitlines()[0].endswith("  198.51.100.7:40000 to shop went to web2:8080.")
    said = " ".join(output.splitlines()[3].split())
    assert said == "web2 5 connections / weight 2 = 2.5 chosen"


def test_explain_tells_of_several_decisions_and_as_json(running: Running) -> None:
    path = str(running.path)
    assert running.run("explain", "--last", "3", "--socket", path)[1].count(" went to ") == 3
    document = json.loads(running.run("explain", "--last", "3", "--json", "--socket", path)[1])
    assert [row["age_s"] for row in document] == [0, 1, 2]


def test_explain_says_what_else_is_known_of_a_client(running: Running) -> None:
    words = ("explain", "--socket", str(running.path))
    assert running.run(*words, "--client", "203.0.113.9") == (
        1,
        "",
        "No decision about 203.0.113.9 is kept any more, or there was none.\n"
        "  203.0.113.9:1 to shop is with web1:8080: established, opened 1.0s ago\n"
        "  sticky entry for shop: web1, for 59s more\n",
    )
    told = running.run(*words, "--connection", "203.0.113.9:2-192.0.2.10:80")[2]
    assert told.splitlines()[1:] == ["  sticky entry for shop: web1, for 59s more"]
    status, document, said = running.run(*words, "--client", "203.0.113.9", "--json")
    assert (status, json.loads(document)) == (1, [])
    assert said.startswith("No decision about")


def test_explain_refuses_what_is_no_connection(running: Running) -> None:
    status, output, errors = running.run("explain", "--connection", "x:80", "--socket", str(running.path))
    assert (status, output) == (1, "")
    assert errors.startswith("nfqlb: connection: 'x:80' is not an address and a port; CLIENT:")
    assert errors.count("\n") == 1


def test_show_without_a_gateway_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", "summary", "--socket", str(tmp_path / "none")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        f"nfqlb: no gateway is running: {tmp_path}/none does not exist; "
        "start it with `nfqlb run -c FILE`, or name its socket with --socket\n"
    )


def test_where_a_unit_is_installed_it_starts_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PLACES[UNIT] == client._UNIT
    assert client._OF_UNIT == SOCKET
    for unit, path, how in (
        (tmp_path, SOCKET, "systemctl start nfqlb"),
        (tmp_path / "none", SOCKET, "nfqlb run -c FILE"),
        (tmp_path, tmp_path / "other.sock", "nfqlb run -c FILE"),
    ):
        monkeypatch.setattr(client, "_UNIT", unit)
        assert f"start it with `{how}`" in client.unreachable(path, FileNotFoundError()).hint


def test_show_imports_only_what_it_needs(tmp_path: Path) -> None:
    """`nfqlb show` answers in under 150 ms: none of the slow modules may come along."""
    program = (
        "import sys; from nfqlb.operator.cli import main;"
        f"main(['show', 'reals', '--socket', {str(tmp_path / 'none')!r}]);"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = {name.split(".")[0] for name in done.stdout.split()}
    assert "nfqlb" in modules
    assert not modules & {
        "pydantic",
        "pyroute2",
        "dpkt",
        "asyncio",
        "rich",
        "dataclasses",
        "logging",
        "tomllib",
    }


# --- pipes and interruptions -----------------------------------------------------------------------------


def test_a_reader_that_has_seen_enough_causes_no_traceback(running: Running) -> None:
    """`nfqlb show connections | head`."""
    reading, writing = os.pipe()
    words = ("show", "connections", "--limit", "5000", "--socket", str(running.path))
    with running.start(*words, stdout=writing) as process:
        os.close(writing)
        os.close(reading)
        while process.poll() is None:
            for key, mask in running.selector.select(0.05):
                key.data(mask)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.returncode == 1


def test_ctrl_c_causes_no_traceback(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with start("show", "summary", "--socket", str(tmp_path / "s")) as process:
            listener.settimeout(30)
            connection, _ = listener.accept()
            connection.recv(100)  # it has asked and waits for the answer
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
            connection.close()
        assert (process.returncode, output, errors) == (130, "", "")


# --- orders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "order"),
    [
        (["set", "real", "web1", "sticky-only"], ("set-real", {"name": "web1", "state": "sticky-only"})),
        (["set", "real", "web1", "weight=2.5"], ("set-real", {"name": "web1", "weight": 2.5})),
        (
            ["se", "re", "web1", "weight=0", "in-service"],
            ("set-real", {"name": "web1", "state": "in-service", "weight": 0}),
        ),
        (
            ["set", "virtual", "shop", "out-of-service"],
            ("set-virtual", {"name": "shop", "state": "out-of-service"}),
        ),
        (["clear", "sticky"], ("clear-sticky", {})),
        (
            ["clear", "sticky", "--virtual", "shop", "--client", "192.0.2.7"],
            ("clear-sticky", {"virtual": "shop", "client": "192.0.2.7"}),
        ),
    ],
)
def test_an_order_is_passed_on_and_what_came_of_it_is_said(
    running: Running, words: list[str], order: tuple[str, JSONObject]
) -> None:
    """R039, R025, R048, R066: what changed, in the gateway's words."""
    status, output, errors = running.run(*words, "--socket", str(running.path))
    assert (status, errors) == (0, "")
    assert output == "web1: in-service -> sticky-only (3 connections)\n\\x1b[2J\n"
    assert running.orders == [order]


def test_an_order_that_is_refused(running: Running) -> None:
    """R039: one line says why."""
    status, output, errors = running.run("set", "real", "nobody", "in-service", "--socket", str(running.path))
    assert (status, output, errors) == (1, "", "nfqlb: there is no real server 'nobody'; there is web1\n")


# --- scripts ---------------------------------------------------------------------------------------------


def test_waiting_is_passed_on_and_what_holds_is_said(running: Running) -> None:
    path = str(running.path)
    said = running.run("wait", "re", "web1", "empty", "--socket", path)
    assert said == (0, "web1 has no connections\n", "")
    running.run("wait", "real", "a", "failed", "and", "connections", "0", "--timeout", "5", "--socket", path)
    assert running.orders == [
        ("wait", {"condition": "real web1 empty"}),
        ("wait", {"condition": "real a failed and connections 0", "timeout": 5.0}),
    ]


def test_adopting_is_an_order_and_waits_for_its_end(running: Running) -> None:
    done = running.run("adopt", "--socket", str(running.path))
    assert done == (0, "connections taken over: 1,204\n", "")
    assert [cmd for cmd, _ in running.orders] == ["adopt", "adoption", "adoption", "adoption"]


def test_what_need_not_be_known_is_not_waited_for(running: Running) -> None:
    running.all_found = False
    status, output, _ = running.run("adopt", "--socket", str(running.path))
    assert status == 0
    assert output.startswith("connections taken over: 1,204; more are being looked for")


def test_adopting_is_given_up_after_a_time(running: Running) -> None:
    status, _, errors = running.run("adopt", "--timeout", "0.001", "--socket", str(running.path))
    assert status == 1
    assert "still looking" in errors


def test_a_batch_is_one_request(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "orders"
    file.write_text("# tonight\nset real web1 maintenance\n\n  cl st --client 192.0.2.7 # one of them\n")
    assert running.run("batch", str(file), "--socket", str(running.path)) == (0, "one\ntwo\n", "")
    first: JSONObject = {"cmd": "set-real", "args": {"name": "web1", "state": "maintenance"}}
    second: JSONObject = {"cmd": "clear-sticky", "args": {"client": "192.0.2.7"}}
    assert running.batches == [{"commands": [first, second]}]


def test_what_the_gateway_refuses_of_a_batch_is_told_with_its_line(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "orders"
    file.write_text("\nset real a maintenance\nset real b maintenance\n\nset real c maintenance\n")
    status, output, errors = running.run("batch", str(file), "--socket", str(running.path))
    assert (status, output) == (1, "")
    assert errors == f"nfqlb: {file}:5: no such server; nothing was changed; sorry\n"


def test_all_that_is_wrong_in_a_batch_is_told_and_nothing_is_asked(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "orders"
    file.write_text("set real web1 maintenance\nshow reals\nset real\nset virtual shop weight=2\nset 'real\n")
    status, output, errors = running.run("batch", str(file), "--socket", str(running.path))
    assert (status, output, running.batches) == (1, "", [])
    assert errors.splitlines() == [
        f"{file}:2: error: show: a batch has set and clear alone",
        f"{file}:3: error: the following arguments are required: NAME, STATE|weight=N",
        f"{file}:4: error: weight=2: a virtual server has nothing to set but its state",
        f"{file}:5: error: No closing quotation",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# nothing\n", "nfqlb: {}: there is no order in it"),
        ("set real a in-service --socket /tmp/other", "{}:1: error: a batch goes to one gateway"),
        ("set", "{}:1: error: KIND is missing: real, virtual"),
        ("set real a in-service -h", "{}:1: error: there is no help in a batch"),
    ],
)
def test_what_is_no_batch(text: str, says: str, running: Running, tmp_path: Path) -> None:
    file = tmp_path / "orders"
    file.write_text(text)
    status, _, errors = running.run("batch", str(file), "--socket", str(running.path))
    assert status == 1
    assert errors.startswith(says.format(file))


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_watching_prints_until_ctrl_c(running: Running, more: list[str]) -> None:
    with running.start("show", "reals", "--watch", "1", *more, "--socket", str(running.path)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        output: list[str] = []
        stdout = process.stdout
        running.selector.register(
            stdout, selectors.EVENT_READ, lambda _mask: output.append(running._read(process))
        )
        while not output:
            for key, mask in running.selector.select(5):
                key.data(mask)
        running.selector.unregister(stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr.read() == ""
    text = "".join(output)
    assert '"name": "web1"' in text if more else "web1" in text.splitlines()[3]


def test_words_that_make_no_order_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """R039: wrong usage, before anybody is asked."""
    for word, says in (
        ("wieght=1", "there is no 'wieght' to set; did you mean weight=N"),
        ("color=1", "there is no 'color' to set; there is weight=N"),
        ("weight=x", "weight=x: 'x' is not a number"),
    ):
        with pytest.raises(SystemExit) as exited:
            cli.main(["set", "real", "web1", word])
        assert exited.value.code == 2
        assert says in capsys.readouterr().err


# --- capture: what becomes of the file where no capture comes about --------------------------------------


def captured(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said of a capture into this file while no gateway runs."""
    socket = path.parent / "no-gateway"
    assert cli.main(["capture", "shop", "-o", str(path), *words, "--socket", str(socket)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.strip()


def test_a_capture_says_at_once_where_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a gateway is asked to begin one."""
    path = tmp_path / "none" / "shop.pcapng"
    assert captured(path, capsys) == f"nfqlb: {path} cannot be written: there is no directory {path.parent}"
    assert captured(tmp_path, capsys) == f"nfqlb: {tmp_path} cannot be written: Is a directory"


def test_a_capture_overwrites_nothing_without_being_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shop.pcapng"
    path.write_text("of yesterday")
    assert captured(path, capsys) == f"nfqlb: {path} is there already; --force overwrites it"
    assert "no gateway is running" in captured(path, capsys, "--force")
    assert path.read_text() == "of yesterday"


def test_a_capture_that_is_refused_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, empty = tmp_path / "shop.pcapng", tmp_path / "made-by-mktemp"
    empty.touch()
    for each in (path, empty):
        assert "no gateway is running" in captured(each, capsys)
    assert [path.exists(), empty.exists()] == [False, True]


# --- the other commands ----------------------------------------------------------------------------------


def test_check_says_what_a_good_configuration_does(config: Path) -> None:
    status, output, errors = run("check", str(config))
    assert (status, errors) == (0, "")
    assert "shop" in output
    assert "web1" in output


def test_check_says_what_is_wrong(config: Path) -> None:
    config.write_text(config.read_text(encoding="utf-8").replace("port = 80", "prot = 80"), encoding="utf-8")
    status, output, errors = run("check", str(config))
    assert (status, output) == (1, "")
    assert f"{config}:" in errors
    assert "prot" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "words", [["check"], ["rules", "show", "-c"], ["run", "-c"], ["show", "reals", "-c"]]
)
def test_a_configuration_that_is_not_there_is_one_line(words: list[str], tmp_path: Path) -> None:
    status, output, errors = run(*words, str(tmp_path / "none.toml"))
    assert (status, output) == (78 if "run" in words else 1, "")
    assert str(tmp_path / "none.toml") in errors
    assert "Traceback" not in errors


def test_control_characters_of_a_configuration_do_not_reach_the_terminal(
    config: Path,
) -> None:
    text = (
        config.read_text(encoding="utf-8")
        .replace("eth0", "eth0\\u001b[2J")
        .replace("[gateway]", "[gateway]#\x9b2J")
    )
    config.write_text(text, encoding="utf-8")
    status, output, errors = run("check", str(config))
    assert status == 1
    assert all(line.isprintable() for line in (output + errors).split("\n"))


def test_rules_show_prints_the_rules(config: Path) -> None:
    status, output, errors = run("rules", "show", "-c", str(config))
    assert (status, errors) == (0, "")
    assert "NFQLB" in output
    assert "192.0.2.10" in output
