"""`reload` and `diff`: another configuration for the running gateway, and what it would change."""

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from nfqlb.operator.commands.common import SOCKET, FailureError, add_socket, fail, say
from nfqlb.operator.text import clean, clean_lines, several
from nfqlb.runtime.protocol import ControlError, JSONObject

_PATIENCE = 90.0  # seconds: iptables may have to wait for somebody, more than once


def add_reload(parser: argparse.ArgumentParser) -> None:
    """The words of `reload`."""
    parser.set_defaults(command=_reload)
    _add_words(parser)


def add_diff(parser: argparse.ArgumentParser) -> None:
    """The words of `diff`."""
    parser.set_defaults(command=_diff)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    _add_words(parser)


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE",
        help="this file, instead of the one that the gateway was started with",
    )  # fmt: skip
    add_socket(parser)


def _reload(options: argparse.Namespace) -> int:
    answer = _ask(options, "reload")
    said = answer["said"]
    say(map(clean, said or ["nothing is different"]))
    _warn(answer)
    if draining := answer["draining"]:
        say([f"until their connections have ended: {clean(', '.join(map(str, draining)))}"])
    return 0


def _diff(options: argparse.Namespace) -> int:
    answer = _ask(options, "diff")
    if options.json:
        from nfqlb.operator import show

        say(show.as_json(answer))
        return 0
    say(map(clean, answer["said"] or ["nothing is different"]))
    say(f"set by hand: {clean(str(line))}" for line in answer.get("by_hand", ()))
    _warn(answer)
    refused = answer["refused"]
    if refused:
        number = several(len(refused), "reason")
        return fail("\n".join([f"nfqlb: a reload would refuse this, for {number}:", *map(str, refused)]))
    return 0


def _warn(answer: Any) -> None:
    for line in answer["warnings"]:
        print(f"nfqlb: warning: {clean(str(line))}", file=sys.stderr)  # noqa: T201 - what an operator reads


def _ask(options: argparse.Namespace, cmd: str) -> Any:
    """The gateway's answer. Raises FailureError with all that is wrong with the file, else ControlError."""
    from nfqlb.runtime.client import Client

    file = options.config
    args: JSONObject = {} if file is None else {"file": str(file.absolute())}
    with Client(_socket(options)) as client:
        try:
            return client.call(cmd, args, patience=_PATIENCE)
        except ControlError as error:
            if error.code == "bad-config":
                raise FailureError(clean_lines(error.message)) from None
            if error.code in ("needs-restart", "host-refused"):
                number = several(len(error.message.split("\n")), "reason")
                text = f"nfqlb: refused, for {number}; nothing is changed:\n{error.message}"
                raise FailureError(clean_lines(text)) from None
            raise


def _socket(options: argparse.Namespace) -> Path:
    """Where the control socket is: as said, as the file says if that can be read at all, or the usual one."""
    if options.socket is not None:
        return Path(options.socket)
    if options.config is not None:
        from nfqlb.config.load import ConfigError, load

        with suppress(ConfigError):  # the gateway says it, to its log as well
            return Path(load(options.config).gateway.socket)
    return SOCKET
