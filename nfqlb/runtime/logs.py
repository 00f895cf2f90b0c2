"""The gateway's log: lines on stderr, for people, for the journal of systemd, or for machines.

Owns what a line looks like and how it gets out. Text that came from packets, clients or configurations
can neither begin a line of its own nor reach a terminal as anything but letters. A reader that does not
read costs lines, which are counted and told of, but never holds a worker up.

| style | a line |
|---|---|
| `text` | `2026-03-01 03:17:37,123 nfqlb[812] INFO: ready` |
| `journal` | `<6>ready`; the number is the priority (sd-daemon(3)), the rest the journal knows |
| `json` | one object: `time` (RFC 3339, UTC), `level`, `message`, `logger`, `pid`, `exception`, fields |

A record has fields of its own where it was logged with `extra={"fields": {...}}`: a flat mapping to JSON
values.
"""

import json
import logging
import os
import select
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Literal, get_args

from nfqlb.runtime.printable import clean

Style = Literal["text", "json", "journal"]
STYLES: tuple[Style, ...] = get_args(Style)

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_PIECE = 4096  # bytes that a pipe takes at once where it takes any (PIPE_BUF)
_PATIENCE = 100  # ms that a reader gets to make room; once it did not, none until it has

logger = logging.getLogger(__name__)


def set_up(style: Style | None = None, stream: IO[str] | None = None) -> Style:
    """Have everything logged to stderr from now on, in this style; None: the one that fits where it goes.

    Python's warnings and an exception that ends the process go there too. Returns the style.
    """
    stream = stream or sys.stderr
    chosen = style or fitting(os.environ, stream)
    out = _Out(stream.fileno())
    out.setFormatter(_FORMATS[chosen]())
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.addHandler(out)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _last_words
    return chosen


def complete() -> None:
    """Have descriptors 0, 1 and 2 lead somewhere, to nowhere where they are closed.

    Else what is opened next gets their numbers, and with them what is meant for people.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def say(line: str) -> None:
    """One line on stdout, where whoever has started us may wait for it. That nobody takes it is logged."""
    descriptor = sys.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    why = "nobody reads it"
    try:
        if poll.poll(_PATIENCE):
            os.write(descriptor, f"{line}\n".encode())
            return
    except OSError as error:
        why = str(error.strerror)
    logger.warning("%r cannot be said on standard output: %s", line, why)


def fitting(environment: Mapping[str, str], stream: IO[str]) -> Style:
    """`journal` where JOURNAL_STREAM names this stream, by device and inode; else `text`."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    with suppress(OSError, ValueError):
        status = os.fstat(stream.fileno())
        if (device, inode) == (str(status.st_dev), str(status.st_ino)):
            return "journal"
    return "text"


def say_all(text: str) -> None:
    """Log an error that takes several lines, each as an entry of its own."""
    for line in text.split("\n"):
        logger.error("%s", line)


class _Text(logging.Formatter):
    """For people. What follows an exception's first line is indented, so that no line looks like another."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s nfqlb[%(process)d] %(levelname)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, and those of its exception."""
        return "\n".join([self._first(record), *(f"    {line}" for line in self._more(record))])

    def _first(self, record: logging.LogRecord) -> str:
        record.message = clean(record.getMessage())
        record.asctime = self.formatTime(record)
        return self.formatMessage(record)

    def _more(self, record: logging.LogRecord) -> list[str]:
        return [clean(line) for line in _exception(self, record).expandtabs().split("\n") if line]


class _Journal(_Text):
    """For systemd's journal, which takes each line for an entry of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The same with a priority before every line."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        lines = [clean(record.getMessage()), *(f"    {line}" for line in self._more(record))]
        return "\n".join(f"<{priority}>{line}" for line in lines)


class _Json(logging.Formatter):
    """For machines: one object, ASCII alone."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's object."""
        fields = getattr(record, "fields", None)
        document: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            "pid": record.process,
        }
        if exception := _exception(self, record):
            document["exception"] = exception
        if isinstance(fields, Mapping):
            document |= {name: value for name, value in fields.items() if name not in document}
        return json.dumps(document, default=str)


_FORMATS: Mapping[Style, type[logging.Formatter]] = {"text": _Text, "json": _Json, "journal": _Journal}


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    return "\n".join([*parts, *([record.stack_info] if record.stack_info else [])])


class _Out(logging.Handler):
    """Writes to a descriptor that may be a pipe, a socket or a terminal which nobody reads."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._patience = _PATIENCE
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record's lines, or count them as lost."""
        line = self._line(record)
        if self._lost:
            lost, self._lost = self._lost, 0
            told = _own(logging.WARNING, "%d log entries were lost: nobody read them", lost)
            if not self._write(self._line(told)):
                self._lost = lost
        if self._lost or not self._write(line):
            self._lost += 1

    def _line(self, record: logging.LogRecord) -> str:
        """A record's lines. A defect in them must neither stop what they tell of, nor leave it untold."""
        try:
            return self.format(record)
        except Exception as error:  # noqa: BLE001
            why = f"{type(error).__name__} in {record.name}, line {record.lineno}: {record.msg!r:.200}"
        try:
            return self.format(_own(logging.ERROR, "a log entry could not be written: %s", why))
        except Exception:  # noqa: BLE001
            return clean(why)

    def _write(self, line: str) -> bool:
        """Whether the line got out whole; one that did not get out at all may come again."""
        data = memoryview((line + "\n").encode(errors="backslashreplace"))
        for start in range(0, len(data), _PIECE):
            if not self._poll.poll(self._patience):
                self._patience = 0
                return start > 0  # the reader has its beginning
            try:
                os.write(self._descriptor, data[start : start + _PIECE])
            except OSError:
                return False
        self._patience = _PATIENCE
        return True


def _own(level: int, message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord(__name__, level, "", 0, message, args, None)


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ends the process: told like everything else."""
    logger.critical("the gateway failed", exc_info=(kind, error, trace))
