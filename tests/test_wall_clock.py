"""F29: nothing is decided by the time of day, which somebody may set at any moment.

Every place that reads it is named here with what it is read for, which is to be shown; all else goes by the
monotonic clock. The layers below read no clock at all (see test_layers).
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

import nfqlb

ROOT = Path(nfqlb.__file__).parent

SHOWN = {
    "netfilter/alone.py": "until when a worker goes on alone, by the monotonic clock",
    "runtime/beat.py": "when a server's state changed, in the events",
    "runtime/desk.py": "when a snapshot was taken, and when it was reloaded",
    "runtime/events.py": "when an event was",
    "runtime/guard.py": "when the rules were repaired",
    "runtime/logs.py": "log lines",
    "runtime/recording.py": "packets and decisions in a capture",
    "runtime/views.py": "when a decision was made",
    "runtime/visit.py": "the Date of a reply",
    "operator/capturing.py": "statistics in a capture",
    "operator/commands/look.py": "how long ago a decision was",
    "operator/commands/top.py": "the dashboard's clock",
    "operator/dashboard/asking.py": "how long ago a decision was",
    "operator/dashboard/loop.py": "the dashboard's clock",
    "operator/dashboard/pictures.py": "the dashboard's clock",
    "operator/dashboard/views/frame.py": "the dashboard's clock",
    "operator/show.py": "times of day",
    "operator/story.py": "times of day",
    "operator/watch.py": "the clock above what is watched",
}

TIME = {"time", "time_ns", "ctime", "gmtime", "localtime", "strftime", "CLOCK_REALTIME", "CLOCK_TAI"}
DATETIME = {"now", "utcnow", "today", "fromtimestamp", "utcfromtimestamp"}
FILES = {"st_mtime", "st_ctime", "st_atime", "st_mtime_ns", "st_ctime_ns", "getmtime", "getctime"}


def readings(tree: ast.AST) -> list[str]:
    """What in a module reads the time of day, or compares with it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [name.name for name in node.names if name.name in TIME]
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        if (
            (owner == "time" and node.attr in TIME)
            or (owner.split(".")[-1] in ("datetime", "date") and node.attr in DATETIME)
            or node.attr in FILES
        ):
            found.append(f"{owner}.{node.attr}")
    return found


def test_f29_the_time_of_day_is_read_to_be_shown_alone() -> None:
    found = Counter(
        str(path.relative_to(ROOT))
        for path in sorted(ROOT.rglob("*.py"))
        for _ in readings(ast.parse(path.read_text(encoding="utf-8")))
    )
    demonstrations = {name for name in found if name.startswith("demo/")}
    assert found.keys() - demonstrations == SHOWN.keys()


@pytest.mark.parametrize(
    "text",
    [
        "import time; time.time()",
        "from time import time_ns",
        "time.clock_gettime(time.CLOCK_REALTIME)",
        "import datetime; datetime.datetime.now()",
        "path.stat().st_mtime",
    ],
)
def test_a_reading_of_the_time_of_day_is_found(text: str) -> None:
    assert readings(ast.parse(text))


def test_other_clocks_are_not_meant() -> None:
    assert readings(ast.parse("time.monotonic(); time.sleep(1); history.now()")) == []
