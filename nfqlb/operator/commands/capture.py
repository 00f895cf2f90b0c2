"""`capture` and `replay`: a virtual server's packets in a file, and what other settings make of them."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nfqlb.operator.commands.common import FailureError, add_config, add_socket, fail, load, say, socket_of
from nfqlb.operator.words import positive, seconds
from nfqlb.runtime.protocol import JSONObject

_STDOUT = Path("-")


def add_capture(parser: argparse.ArgumentParser) -> None:
    """The words of `capture`. What is not said is for the gateway to choose."""
    parser.set_defaults(command=_capture)
    parser.add_argument("virtual", metavar="VIRTUAL", help="the virtual server's name")
    about = "a pcapng file; - is standard output (the default)"
    parser.add_argument("-o", "--output", type=Path, default=_STDOUT, metavar="FILE", help=about)
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there already")
    for name, kind, what in _LIMITS:
        parser.add_argument(f"--{name}", type=kind, metavar=name[0].upper(), help=what)
    add_socket(parser)
    add_config(parser, required=False)


def add_replay(parser: argparse.ArgumentParser) -> None:
    """The words of `replay`."""
    parser.set_defaults(command=_replay)
    about = "a capture, pcap or pcapng; - is standard input"
    parser.add_argument("file", type=Path, metavar="FILE", help=about)
    add_config(parser, required=True)
    parser.add_argument("--all", action="store_true", help="list every decision, not only those that differ")
    parser.add_argument("--json", action="store_true", help="one JSON document; times are in seconds")


_LIMITS: tuple[tuple[str, Callable[[str], float], str], ...] = (
    ("packets", positive, "end after so many packets (10,000)"),
    ("seconds", seconds, "end after so many seconds (60)"),
    ("bytes", positive, "end before the file has more bytes (64 MiB)"),
    ("snaplen", positive, "keep at most so many bytes of each packet (256)"),
)


def _capture(options: argparse.Namespace) -> int:
    from nfqlb.operator.capturing import Capture
    from nfqlb.runtime.client import Client

    args: JSONObject = {"start": options.virtual}
    args |= {name: value for name, *_ in _LIMITS if (value := getattr(options, name)) is not None}
    if options.output == _STDOUT and sys.stdout.isatty():
        raise FailureError("nfqlb: a capture is no text: write it to a file with -o FILE, or to a pipe")
    with _output(options.output, force=options.force) as file, Client(socket_of(options)) as client:
        capture = Capture(client, args)
        with _until_told() as told:
            if options.output != _STDOUT and options.output.is_file():
                file.truncate(0)
            print(f"nfqlb: capturing {options.virtual}; Ctrl-C ends it", file=sys.stderr)  # noqa: T201
            capture.write(file, lambda: bool(told))
    print(f"nfqlb: {capture.told()}", file=sys.stderr)  # noqa: T201
    return 0


def _replay(options: argparse.Namespace) -> int:
    from nfqlb.operator import rerun

    config = load(options.config)
    try:
        file = _readable(options.file)
    except OSError as error:
        raise FailureError(f"nfqlb: {options.file}: {error.strerror}") from None
    with file:
        document = rerun.replayed(config, file, str(options.file))
    if options.json:
        say(rerun.as_json(document))
    elif document["packets"]:
        say(rerun.render(document, everything=options.all))
    if not document["packets"]:
        return fail(rerun.nothing(document, options.config))
    return 0


def _readable(path: Path) -> BinaryIO:
    """A file that can be read twice: of a pipe, a copy. Raises OSError."""
    import os
    from shutil import copyfileobj
    from tempfile import TemporaryFile
    from typing import cast

    file = os.fdopen(os.dup(sys.stdin.fileno()), "rb") if path == _STDOUT else path.open("rb")
    if file.seekable():
        return file
    with file:
        copy = cast(BinaryIO, TemporaryFile())  # noqa: SIM115  whoever gets it closes it
        copyfileobj(file, copy)
    return copy


@contextmanager
def _until_told() -> Iterator[list[int]]:
    """A list that has something in it once Ctrl-C or SIGTERM has asked for an end: what is there is kept."""
    import signal

    told: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in numbers}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _output(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """The file to write, as it was before; a new one is gone again where nothing was written.

    Others may not read it: it holds what clients said. Raises FailureError.
    """
    import os

    if path == _STDOUT:
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as file:
            yield file
        return
    new = not path.exists()
    if path.is_file() and path.stat().st_size and not force:
        raise FailureError(f"nfqlb: {path} is there already; --force overwrites it")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise FailureError(
            f"nfqlb: {path} cannot be written: there is no directory {path.parent}"
        ) from None
    except OSError as error:
        raise FailureError(f"nfqlb: {path} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
    finally:
        with suppress(FileNotFoundError):
            if new and not path.stat().st_size:
                path.unlink()
