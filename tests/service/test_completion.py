"""What bash and zsh offer, in themselves, and how it is found: from the gateway or from its configuration."""

import os
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfqlb.operator.cli import parser
from nfqlb.operator.completion import DIRECTORIES, FILES, names_for, offered
from nfqlb.runtime.control import Request, Server
from nfqlb.runtime.protocol import JSON
from nfqlb.service.install import PLACES, Installation
from tests.service.shells import Shell, program

CONFIG = """
[gateway]
socket = "{socket}"
[[real]]
name = "web1"
[[real]]
name = "web2"
[[real]]
name = "cache"
[[virtual]]
name = "shop"
[[virtual]]
name = "intranet"
"""
NAMES = {"real": ["web1", "web2"], "virtual": ["shop", "intranet"]}


def words(*line: str) -> list[str]:
    """The words that are offered, with the names above."""
    found = offered(parser(), line, NAMES)
    assert not isinstance(found, str)
    return [each.word for each in found]


# --- what is offered


def test_commands_are_offered_with_what_they_do() -> None:
    found = offered(parser(), ["s"], NAMES)
    assert not isinstance(found, str)
    assert [each.word for each in found] == ["show", "set"]
    assert all(each.about for each in found)
    assert {"run", "check", "install-service"} <= set(words(""))
    assert "complete" not in words("")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (("show", "re"), ["reals"]),
        (("sh", "re"), ["reals"]),
        (("set", "real", ""), ["web1", "web2"]),
        (("set", "real", "web2", "main"), ["maintenance"]),
        (("set", "real", "web2", "dr"), ["drain"]),
        (("wait", "real", "web2", "dr"), []),
        (("set", "real", "web2", "maintenance", "we"), ["weight="]),
        (("set", "virtual", "i"), ["intranet"]),
        (("set", "virtual", "shop", ""), ["in-service", "out-of-service"]),
        (("clear", "sticky", "--virtual", ""), ["shop", "intranet"]),
        (("show", "failures", "--real", "web1", "--r"), ["--real"]),
        (("explain", "--cl"), ["--client"]),
        (("show", "reals", "--js"), ["--json"]),
        (("explain", "--client", "192."), []),
        (("wait", ""), ["real", "virtual", "connections"]),
        (("wait", "real", "web"), ["web1", "web2"]),
        (("wait", "real", "web1", "emp"), ["empty"]),
        (("wait", "connections", "0", "and", "virtual", ""), ["shop", "intranet"]),
        (("capture", "sh"), ["shop"]),
        (("nonsense", "re"), []),
        (("show", "nonsense", ""), []),
        (("check", "file", ""), []),
    ],
)
def test_words_that_fit(line: tuple[str, ...], expected: list[str]) -> None:
    assert words(*line) == expected


@pytest.mark.parametrize("line", [("check", ""), ("run", "-c", "/e"), ("show", "reals", "--socket", "")])
def test_files_are_left_to_the_shell(line: tuple[str, ...]) -> None:
    assert offered(parser(), line, NAMES) == FILES


def test_directories_are_left_to_the_shell() -> None:
    assert offered(parser(), ("install-service", "--root", ""), NAMES) == DIRECTORIES


# --- where the names come from


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "nfqlb.toml"
    path.write_text(CONFIG.format(socket=tmp_path / "s"))
    return path


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Path]:
    """A running gateway with other servers than the file has."""
    snapshot: JSON = {"reals": [{"name": "live1"}, {"name": "live2"}], "virtuals": [{"name": "front"}]}
    selector = selectors.DefaultSelector()
    path = tmp_path / "live.sock"

    def answer(request: Request) -> None:
        assert request.cmd == "snapshot"
        request.reply(snapshot)

    server = Server(path, selector, answer)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            for key, mask in selector.select(0.02):
                key.data(mask)

    thread = threading.Thread(target=serve)
    thread.start()
    yield path
    ended.set()
    thread.join()
    server.close()
    selector.close()


def test_names_are_the_running_gateways(gateway: Path, config: Path) -> None:
    assert names_for([], gateway, config) == {"real": ["live1", "live2"], "virtual": ["front"]}
    for line in (["--socket", str(gateway)], ["-c", str(config.with_name("live.toml"))]):
        config.with_name("live.toml").write_text(CONFIG.format(socket=gateway))
        assert names_for(["show", "reals", *line, ""], config, config)["virtual"] == ["front"]


def test_without_a_gateway_they_are_the_configurations(tmp_path: Path, config: Path) -> None:
    nobody = tmp_path / "nobody"
    expected = {"real": ["web1", "web2", "cache"], "virtual": ["shop", "intranet"]}
    assert names_for([], nobody, config) == expected
    assert names_for(["set", "-c", str(config), "real", ""], nobody, nobody) == expected


@pytest.mark.parametrize("text", ["nonsense", "real = 5", "[[real]]\nname = 5\n[virtual]\nname='x'", "\xff"])
def test_a_configuration_with_mistakes_gives_fewer_names_and_no_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text, encoding="latin-1")
    assert all(isinstance(names, list) for names in names_for([], tmp_path / "nobody", path).values())


def test_a_gateway_that_does_not_answer_is_not_waited_for(tmp_path: Path, config: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen()
        begun = time.monotonic()
        assert names_for([], tmp_path / "deaf", config)["real"] == ["web1", "web2", "cache"]
        assert time.monotonic() - begun < 3


def test_whatever_is_typed_the_program_says_nothing_on_the_terminal(tmp_path: Path) -> None:
    path = f"{program(tmp_path / 'bin')}/nfqlb"
    nowhere = ("set", "-c", "/nowhere", "real", "x")
    for line in (("-",), ("--",), ("", ""), nowhere, ("\x1b[2J",), ("--help",), ("--socket", "", "")):
        done = subprocess.run([path, "complete", "--", *line], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


# --- the shells


@pytest.fixture(scope="module", params=["bash", "zsh"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell with what is installed; the names are those of a configuration, given with -c."""
    home = tmp_path_factory.mktemp(request.param)
    (home / "nfqlb.toml").write_text(CONFIG.format(socket=home / "nobody"))
    commands = program(home / "bin")
    list(Installation(commands / "nfqlb", home / "root").install())
    completion = home / "root" / PLACES[f"completion.{request.param}"].relative_to("/")
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "HOME": str(home)}
    made = Shell(request.param, completion, home, environment)
    yield made
    made.close()


def test_a_shell_completes_commands_names_and_files(shell: Shell) -> None:
    for typed, word in (
        ("nfqlb expl", "explain"),
        ("nfqlb show virt", "virtuals"),
        ("nfqlb set real -c nfqlb.toml cac", "cache"),
        ("nfqlb clear sticky -c nfqlb.toml --virtual intr", "intranet"),
        ("nfqlb check nfq", "nfqlb.toml"),
        ("nfqlb set real web1 weigh", "weight="),
    ):
        assert shell.completed(typed) == [*typed.split()[:-1], word]


def test_a_shell_lists_what_there_is(shell: Shell) -> None:
    shown = shell.listed("nfqlb set real -c nfqlb.toml web")
    assert "web1" in shown
    assert "web2" in shown
    assert "cache" not in shown


def test_a_shell_stays_silent_where_nothing_is_known(shell: Shell) -> None:
    shown = shell.listed("nfqlb set real -c /nowhere.toml x")
    assert shown.replace("\x07", "").strip().endswith("x")
    assert "rror" not in shown
    assert "Traceback" not in shown
