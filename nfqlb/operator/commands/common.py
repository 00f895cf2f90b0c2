"""What the commands share: their options, the ways to the gateway, and how they speak.

Imported at every start, so it imports little.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nfqlb.operator.text import clean_lines
from nfqlb.runtime.protocol import JSONObject

if TYPE_CHECKING:
    from nfqlb.core.spec import Config

SOCKET = Path("/run/nfqlb/control.sock")  # the default of nfqlb.core.spec, whose import would take 20 ms


class FailureError(Exception):
    """A command cannot do what it was asked to. Its text is printed as it is; exit status 1."""


def fail(text: str) -> int:
    """Print why on stderr; returns the exit status."""
    print(clean_lines(text), file=sys.stderr)  # noqa: T201 - what an operator reads
    return 1


def say(lines: Iterable[str]) -> None:
    """Print what an operator reads."""
    for line in lines:
        print(line)  # noqa: T201 - what an operator reads


def add_config(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """`-c FILE`."""
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        required=required,
        help="the configuration" if required else "the configuration, for the path of the control socket",
    )


def add_socket(parser: argparse.ArgumentParser) -> None:
    """`--socket PATH`."""
    parser.add_argument("--socket", type=Path, metavar="PATH", help=f"the control socket (default: {SOCKET})")


def load(path: Path) -> "Config":
    """A configuration. Raises FailureError with all that is wrong with it."""
    from nfqlb.config.load import ConfigError, load

    try:
        return load(path)
    except ConfigError as error:
        raise FailureError(str(error)) from None


def given(options: argparse.Namespace, *names: str) -> JSONObject:
    """The options that were given, of these."""
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def socket_of(options: argparse.Namespace) -> Path:
    """Where the control socket is: as said, or as the configuration says."""
    if options.socket is not None:
        return Path(options.socket)
    return Path(load(options.config).gateway.socket) if options.config is not None else SOCKET
