"""The log's lines: what they look like, and that nobody else writes them or holds them up."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nfqlb.runtime import logs
from nfqlb.runtime.events import Events
from nfqlb.runtime.logs import STYLES, Style

logger = logging.getLogger("nfqlb.test")
NASTY = "web\x1b[2J\n<0>2026-01-01 nfqlb[1] ERROR: forged\r\x9b1m\u202e\udcff\t{}"


@contextmanager
def logging_to(stream: object) -> Iterator[None]:
    """The root logger as it was, afterwards."""
    root = logging.getLogger()
    before, level, hook = root.handlers[:], root.level, sys.excepthook
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        sys.excepthook = hook
        logging.captureWarnings(False)


class Log:
    """A log in a file."""

    def __init__(self, path: Path, style: Style | None) -> None:
        self.path = path
        self.stream = path.open("w")
        logs.set_up(style, self.stream)

    def lines(self) -> list[str]:
        text = self.path.read_text()
        assert text.endswith("\n") or not text
        return text.split("\n")[:-1]


@pytest.fixture
def text(tmp_path: Path) -> Iterator[Log]:
    yield from opened(tmp_path, "text")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Log]:
    yield from opened(tmp_path, "journal")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Log]:
    yield from opened(tmp_path, "json")


def opened(directory: Path, style: Style) -> Iterator[Log]:
    with logging_to(directory):
        log = Log(directory / "log", style)
        yield log
        log.stream.close()


def fail() -> None:
    try:
        raise ValueError(NASTY)
    except ValueError:
        logger.exception("a packet could not be judged")


def test_text(text: Log) -> None:
    logger.info("%s is %s", "web1", "failed")
    (line,) = text.lines()
    assert line[:4].isdigit()
    assert line.endswith(f" nfqlb[{os.getpid()}] INFO: web1 is failed")


def test_the_journal_gets_priorities(journal: Log) -> None:
    for level in (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO):
        logger.log(level, "said")
    assert [line[:3] for line in journal.lines()] == ["<2>", "<3>", "<4>", "<6>"]
    assert journal.lines()[0] == "<2>said"


def test_json(machine: Log) -> None:
    before = datetime.now(UTC)
    logger.warning("%s failed", "web1", extra={"fields": {"kind": "state", "name": "web1", "level": "mine"}})
    (line,) = machine.lines()
    document = json.loads(line)
    when = datetime.fromisoformat(document.pop("time"))
    assert abs((when - before).total_seconds()) < 5
    assert document == {
        "level": "warning",
        "message": "web1 failed",
        "logger": "nfqlb.test",
        "pid": os.getpid(),
        "kind": "state",
        "name": "web1",
    }


def test_an_event_is_logged_with_what_it_is_about(machine: Log) -> None:
    Events().add("order", "web1", "web1: in-service -> maintenance", who="user 0, process 7")
    document = json.loads(machine.lines()[0])
    assert (document["kind"], document["name"], document["who"]) == ("order", "web1", "user 0, process 7")
    assert document["message"] == "web1: in-service -> maintenance (ordered by user 0, process 7)"


def test_json_that_nobody_can_write_is_written_as_text(machine: Log) -> None:
    logger.info("said", extra={"fields": {"odd": Path("/x")}})
    assert json.loads(machine.lines()[0])["odd"] == "/x"


@pytest.mark.parametrize("style", STYLES)
def test_an_entry_that_cannot_be_written_is_told_of(style: Style, tmp_path: Path) -> None:
    """F13: in the style of the others, and those that follow are not harmed."""
    for log in opened(tmp_path, style):
        logger.info("%d of %s", "web1")
        logger.info("said")
        broken, said = log.lines()
        assert "a log entry could not be written: TypeError in nfqlb.test, line " in broken
        assert "%d of %s" in broken
        assert "said" in said
        assert style != "json" or json.loads(broken)["level"] == "error"


def test_a_log_that_cannot_write_anything_leaves_its_callers_alone(
    text: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F13: not even a line of its own."""
    (handler,) = (each for each in logging.getLogger().handlers if type(each).__module__ == logs.__name__)
    monkeypatch.setattr(handler, "formatter", logging.Formatter("%(nothing)s"))
    logger.error("failed")
    assert text.lines()[0].startswith("ValueError in nfqlb.test, line ")


def test_debugging_is_not_logged(text: Log) -> None:
    logger.debug("said")
    assert text.lines() == []


@pytest.mark.parametrize("style", STYLES)
def test_what_others_say_is_one_line_of_plain_letters(style: Style, tmp_path: Path) -> None:
    with logging_to(tmp_path):
        log = Log(tmp_path / "log", style)
        logger.info("%s", NASTY)
        (line,) = log.lines()
        assert line.isprintable()
        assert not line.startswith("<0>")
        log.stream.close()


@pytest.mark.parametrize("style", STYLES)
def test_an_exception_forges_no_line(style: Style, tmp_path: Path) -> None:
    with logging_to(tmp_path):
        log = Log(tmp_path / "log", style)
        fail()
        first, *more = log.lines()
        assert all(line.isprintable() for line in (first, *more))
        if style == "json":
            assert not more
            assert "ValueError: web" in json.loads(first)["exception"]
        else:
            start = "<3>    " if style == "journal" else "    "
            assert all(line.startswith(start) for line in more)
            assert any("ValueError: web" in line for line in more)
        log.stream.close()


def test_warnings_and_the_last_words_are_logged(machine: Log) -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    (document,) = map(json.loads, machine.lines())
    assert document["level"] == "critical"
    assert document["exception"].endswith("RuntimeError: broken")


def test_the_style_is_the_journals_where_that_reads(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        ours = f"{status.st_dev}:{status.st_ino}"
        assert logs.fitting({"JOURNAL_STREAM": ours}, stream) == "journal"
        assert logs.fitting({"JOURNAL_STREAM": f"{status.st_dev}:1"}, stream) == "text"
        assert logs.fitting({"JOURNAL_STREAM": "nonsense"}, stream) == "text"
        assert logs.fitting({}, stream) == "text"
    assert logs.fitting({"JOURNAL_STREAM": "1:2"}, io.StringIO()) == "text"


def test_a_reader_that_does_not_read_costs_lines_that_are_counted() -> None:
    reading, writing = os.pipe()
    with logging_to(writing), os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "w") as stream:
        logs.set_up("text", stream)
        for number in range(5000):
            logger.info("line %d %s", number, "x" * 100)
        kept = pipe.read1(1 << 20).decode().splitlines()
        logger.info("the last")
        told, last = pipe.read1(1 << 20).decode().splitlines()
    assert kept[0].endswith("line 0 " + "x" * 100)
    assert f"WARNING: {5000 - len(kept)} log entries were lost" in told
    assert last.endswith("INFO: the last")


def test_a_reader_that_is_gone_is_no_trouble() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with logging_to(writing), os.fdopen(writing, "w") as stream:
        logs.set_up("text", stream)
        logger.info("said")


def test_f30_that_nobody_takes_the_word_is_logged_and_no_more(
    text: Log, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, a reader that is gone, and one that does not read."""
    logs.say("ready")
    assert capfd.readouterr().out == "ready\n"
    gone, broken = os.pipe()
    os.close(gone)
    stuck, full = os.pipe()
    os.set_blocking(full, False)
    with suppress(BlockingIOError):
        while True:
            os.write(full, bytes(4096))
    os.set_blocking(full, True)
    for descriptor in (os.open("/dev/full", os.O_WRONLY), broken, full):
        with os.fdopen(descriptor, "w") as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            logs.say("ready")
    os.close(stuck)
    reasons = [line.split(": ", 2)[2] for line in text.lines()]
    assert reasons == ["No space left on device", "Broken pipe", "nobody reads it"]


def test_f30_closed_descriptors_lead_nowhere_from_then_on() -> None:
    """Else the next file or socket would be standard output to whoever writes there."""
    program = """
import os, sys
from nfqlb.runtime import logs
logs.complete()
logs.set_up("text")
logs.logger.warning("one")
logs.say("two")
print("three", file=sys.stderr)
sys.exit(0 if os.open("/dev/null", os.O_RDONLY) == 3 else 5)
"""
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", sys.executable, "-c", program], timeout=20, check=False
    )
    assert done.returncode == 0
