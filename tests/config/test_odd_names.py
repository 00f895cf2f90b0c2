"""Names that are none, or mean something to a terminal, a shell, a log or Prometheus (F32).

A configuration refuses them, with file and line; where they come from elsewhere all the same, from a gateway
of another version perhaps, they are printed literally.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nfqlb.config.load import ConfigError, parse
from nfqlb.config.values import NAME
from nfqlb.operator.completion import _NAME, names_for
from nfqlb.operator.dashboard.grid import Line
from nfqlb.operator.dashboard.signs import PLAIN, Look
from nfqlb.operator.text import table
from nfqlb.runtime.exposition import TEXT, pieces
from tests.runtime.sample import real, snapshot

NAMES = {
    "brackets": "[x]",
    "markup": "[red]x[/red]",
    "closing": "[/]",
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "c1": "\x9b2J",
    "emoji": "\U0001f600",
    "emoji code": ":smile:",
    "flag": "\U0001f1e9\U0001f1ea",
    "right to left": "web\u202e1bew",
    "isolate": "\u2066web\u2069",
    "joiner": "a\u200db",
    "accents": "a" + "\u0301" * 50,
    "wide": "日本語サーバ",
    "200": "x" * 200,
    "200 emoji": "\U0001f600" * 200,
    "65": "x" * 65,
    "line": "web1\nroot",
    "return": "web1\rroot",
    "separator": "web\u20281",
    "nul": "web\x00",
    "tag": "web\U000e0041",
    "format": "%s%n{0}",
    "label": 'a"} 1\nfake{b="',
    "backslash": "a\\",
    "shell": "$(reboot)",
    "words": "a b;c",
    "markdown": "`x`|*y*",
    "option": "--help\x1b",
    "empty": "",
}
odd = pytest.mark.parametrize("name", list(NAMES.values()), ids=list(NAMES))


def toml(text: str) -> str:
    """A text as TOML may write it, so that any character can be in it."""
    plain = {char for char in text if char.isascii() and char.isprintable()} - {'"', "\\"}
    return '"' + "".join(char if char in plain else f"\\U{ord(char):08x}" for char in text) + '"'


def where(good: Callable[..., str], name: str) -> dict[str, tuple[str, int]]:
    """Configurations with the name in each place, and the line where it is."""
    quoted = toml(name)
    texts = {
        "real": good().replace('name = "web2"', f"name = {quoted}"),
        "virtual": good().replace('name = "shop"', f"name = {quoted}"),
        "servers": good().replace('servers = ["web1", "web2"]', f'servers = ["web1", {quoted}]'),
        "group": good(virtual=f"sticky_group = {quoted}"),
        "backup": good(real=f"backup = {quoted}"),
        "table": good().replace("[timeouts]", f"[{quoted}]"),
        "key": good(virtual=f"{quoted} = 1"),
        "interface": good().replace('outside = "eth0"', f"outside = {quoted}"),
    }
    return {place: (text, text[: text.index(quoted)].count("\n") + 1) for place, text in texts.items()}


@odd
def test_a_configuration_refuses_it(name: str, good_with: Callable[..., str]) -> None:
    """F32: in one report of printable lines, with the file and the line."""
    for place, (text, line) in where(good_with, name).items():
        if place in ("group", "backup") and not name:
            continue  # that is none
        with pytest.raises(ConfigError) as caught:
            parse(text, "gw\x1b[2J.toml")
        report = str(caught.value)
        assert any(finding.line == line for finding in caught.value.findings), (place, report)
        assert f"gw?[2J.toml:{line}: error: " in report
        assert all(each.isprintable() for each in report.split("\n"))
        assert max(len(each) for each in report.split("\n")) < 400  # all keys that there are, and the hint


@odd
def test_it_is_printed_literally(name: str) -> None:
    """F32: in a table a line stays a line, and in the dashboard a cell has the width that it has to have."""
    lines = table(["NAME", "STATE"], [[name, "in-service"]])
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    for ascii_only in (False, True):
        segments = Line(20, Look(ascii_only)).cell(name, 12).put("|", PLAIN).done()
        text = "".join(segment.text for segment in segments)
        assert text.isprintable()
        assert sum(segment.cell_length for segment in segments) == 20
        assert text.isascii() or not ascii_only
    for literal in ("[x]", "[red]x[/red]", ":smile:", "[/]"):
        if name == literal:
            assert name in text
            assert name in lines[1]


@odd
def test_it_is_a_label_and_nothing_else(name: str) -> None:
    """F32: Prometheus reads the very name, and no sample more than of any other."""
    document = snapshot()
    document["reals"] = [{**real("web1"), "name": name}]
    document["virtuals"] = []
    text = b"".join(pieces(document, TEXT)).decode()
    families = list(text_string_to_metric_families(text))
    samples = [sample for family in families for sample in family.samples if "real" in sample.labels]
    assert {sample.labels["real"] for sample in samples} - {"web1", "web2"} == {name}
    document["reals"] = [real("web1")]
    assert text.count("\n") == b"".join(pieces(document, TEXT)).count(b"\n")


@odd
def test_no_shell_is_offered_it(name: str, tmp_path: Path) -> None:
    """F32: not even where it stands in a file: what is offered would be run with the line."""
    config = tmp_path / "gw.toml"
    config.write_text(f"[[real]]\nname = {toml(name)}\n[[real]]\nname = 'web1'\n", encoding="utf-8")
    assert names_for([], tmp_path / "nobody", config) == {"real": ["web1"], "virtual": []}


def test_every_name_that_may_be_is_offered() -> None:
    assert _NAME.pattern == NAME.pattern


@pytest.mark.parametrize(
    "words",
    [
        ("set", "real", "web1", "weight=\x1b[2J"),
        ("\x1b[2J",),
        ("show", "reals", "\x1b[2J"),
        ("show", "\x1b[2J"),
        ("top", "--interval", "\x1b[2J"),
        ("--\x1b[2J",),
        ("wait", "real", "\x1b[2J", "failed", "--socket", "/nowhere/\x1b[2J"),
        ("check", "/nowhere/\x1b[2J"),
    ],
    ids=json.dumps,
)
def test_what_was_typed_is_said_literally(words: tuple[str, ...]) -> None:
    """F32: somebody may have been given the line to paste."""
    done = subprocess.run(
        [sys.executable, "-m", "nfqlb", *words], capture_output=True, text=True, check=False, cwd="/",
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert all(line.isprintable() for line in done.stderr.split("\n")), done.stderr
    assert "Traceback" not in done.stderr
