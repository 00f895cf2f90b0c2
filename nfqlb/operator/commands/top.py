"""`top`: the running gateway on the terminal, or once as plain lines where there is none."""

import argparse
import sys
from typing import TYPE_CHECKING

from nfqlb.operator.commands.common import add_config, add_socket, say, socket_of
from nfqlb.operator.words import seconds

if TYPE_CHECKING:
    from nfqlb.operator.dashboard.state import State


def add_top(parser: argparse.ArgumentParser) -> None:
    """The words of `top`."""
    parser.set_defaults(command=_top)
    parser.add_argument("--read-only", action="store_true", help="have no keys that change anything")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII signs; else as the locale says")
    parser.add_argument(
        "--interval", type=_interval, metavar="SECONDS", default=1.0,
        help="how often to look, from 1 (as if not given) to 60; keys + and -",
    )  # fmt: skip
    add_socket(parser)
    add_config(parser, required=False)


def _interval(text: str) -> float:
    """Seconds between two pictures. Raises ArgumentTypeError, as argparse wants it."""
    found = seconds(text)
    if not 1 <= found <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 60")
    return found


def _top(options: argparse.Namespace) -> int:
    import os

    from nfqlb.operator.dashboard.signs import Look
    from nfqlb.operator.dashboard.state import State
    from nfqlb.operator.dashboard.terminal import interactive, knows_ascii_only

    ascii_only = options.ascii or knows_ascii_only(os.environ, sys.stdout.encoding)
    state = State(look=Look(ascii_only), read_only=options.read_only, pace=options.interval)
    return _watch(options, state) if interactive() else _once(options, state)


def _once(options: argparse.Namespace, state: "State") -> int:
    import shutil
    import time

    from nfqlb.operator.dashboard import model
    from nfqlb.operator.dashboard.plain import WIDTH, plain
    from nfqlb.operator.dashboard.series import GATEWAY
    from nfqlb.runtime.client import Client

    with Client(socket_of(options)) as client:
        state.snapshot = model.snapshot(client.call("snapshot"))
        state.series.fill(GATEWAY, client.call("history", {"of": "gateway"}))
    state.now = time.time()
    say(plain(state, shutil.get_terminal_size((WIDTH, 0)).columns))
    return 0


def _watch(options: argparse.Namespace, state: "State") -> int:
    from nfqlb.operator.dashboard.loop import Dashboard
    from nfqlb.operator.dashboard.terminal import EndedError, Terminal
    from nfqlb.runtime.client import Client

    path = socket_of(options)
    with Client(path) as client:
        client.call("snapshot")  # a wrong path is better said before the screen is taken
    try:
        with Terminal(sys.stdin, sys.stdout) as terminal:
            Dashboard(path, terminal, state).run()
    except EndedError as ended:
        return 128 + ended.number
    return 0
