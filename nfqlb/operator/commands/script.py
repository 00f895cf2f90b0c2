"""`wait`, `batch` and `adopt`: what scripts need beside single orders."""

import argparse
import sys
from pathlib import Path

from nfqlb.operator.commands.common import FailureError, add_config, add_socket, say, socket_of
from nfqlb.operator.text import clean
from nfqlb.operator.words import seconds
from nfqlb.runtime.protocol import JSONObject

_LOOK = 0.02  # seconds between two questions of `adopt`


def add_wait(parser: argparse.ArgumentParser) -> None:
    """The words of `wait`."""
    parser.set_defaults(command=_wait)
    parser.add_argument(
        "words",
        metavar="CONDITION",
        nargs="+",
        help="real NAME empty, real|virtual NAME [not] STATE, real|virtual NAME connections N, connections N;"
        " several with `and`",
    )
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="give up then; else never")
    add_socket(parser)
    add_config(parser, required=False)


def add_batch(parser: argparse.ArgumentParser) -> None:
    """The words of `batch`."""
    parser.set_defaults(command=_batch)
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="one `set ...` or `clear ...` a line; # begins a comment; - is the standard input",
    )
    add_socket(parser)
    add_config(parser, required=False)


def add_adopt(parser: argparse.ArgumentParser) -> None:
    """The words of `adopt`."""
    parser.set_defaults(command=_adopt)
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", default=30.0, help="wait so long (30)")
    add_socket(parser)
    add_config(parser, required=False)


def _wait(options: argparse.Namespace) -> int:
    from math import inf

    from nfqlb.operator.change import said
    from nfqlb.runtime.client import Client

    args: JSONObject = {"condition": " ".join(options.words)}
    if options.timeout is not None:
        args["timeout"] = options.timeout
    with Client(socket_of(options)) as client:
        result = client.call("wait", args, patience=inf if options.timeout is None else options.timeout)
    say(map(clean, said(result)))
    return 0


def _adopt(options: argparse.Namespace) -> int:
    import time

    from nfqlb.runtime.client import Client

    deadline = time.monotonic() + options.timeout
    with Client(socket_of(options)) as client:
        client.call("adopt", {})
        while True:
            found = client.call("adoption", {})
            assert isinstance(found, dict)
            if found["served"]:
                break
            if time.monotonic() > deadline:
                raise FailureError("nfqlb: the gateway is still looking for connections")
            time.sleep(_LOOK)
    going_on = "" if found["over"] else "; more are being looked for, and clients may be let in"
    say([f"connections taken over: {found['adopted']:,}{going_on}"])
    return 0


def _batch(options: argparse.Namespace) -> int:
    from nfqlb.operator import batch
    from nfqlb.operator.change import said
    from nfqlb.runtime.client import Client
    from nfqlb.runtime.protocol import ControlError

    stdin = str(options.file) == "-"
    name = "stdin" if stdin else str(options.file)
    text = sys.stdin.read() if stdin else options.file.read_text("utf-8", errors="replace")
    orders, wrong = batch.parse(text)
    if wrong:
        raise FailureError("\n".join(f"{name}:{number}: error: {why}" for number, why in wrong))
    if not orders:
        raise FailureError(f"nfqlb: {name}: there is no order in it")
    with Client(socket_of(options)) as client:
        try:
            result = client.call("batch", {"commands": [order.document() for order in orders]})
        except ControlError as error:
            raise batch.located(error, orders, name) from None
    say(map(clean, said(result)))
    return 0
