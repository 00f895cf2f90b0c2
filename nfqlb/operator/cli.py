"""The command line: what can be asked for, and the exit status.

Status 0: done. 1: refused, failed, or something was found; one clear line on stderr says what. 2: wrong
usage. 130: interrupted by Ctrl-C. What a command needs is imported when it runs, so that `nfqlb show`
does not wait for pydantic or netlink. The words of a command may be shortened while they stay
unambiguous (`nfqlb sh re`).
"""

import argparse
import io
import os
import sys
from collections.abc import Callable

from nfqlb import __version__
from nfqlb.netfilter.errors import KernelError
from nfqlb.operator.commands import ALL, HIDDEN
from nfqlb.operator.commands.common import FailureError, fail
from nfqlb.operator.words import Parser, expand
from nfqlb.runtime.protocol import ControlError


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit status; wrong usage raises SystemExit(2).

    `argv` is the command line without the program's name.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what the locale cannot say
    try:
        try:
            options = _options(sys.argv[1:] if argv is None else argv)
            command: Callable[[argparse.Namespace], int] = options.command
            return command(options)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _give_up_stdout()
        return 1
    except FailureError as failure:
        return fail(str(failure))
    except (ControlError, KernelError, OSError) as error:
        return fail(f"nfqlb: {error}")
    except KeyboardInterrupt:
        return 130


def _give_up_stdout() -> None:
    """The reader (`| head`) has seen enough: nothing more may be written, not even at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    made = Parser(prog="nfqlb", description="A load balancer: many servers behind one address.")
    made.add_argument("--version", action="version", version=f"nfqlb {__version__}")
    commands = made.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name, (about, add) in ALL.items():
        add(commands.add_parser(name, help=about))
    return made


def _options(words: list[str]) -> argparse.Namespace:
    """The command line, understood. Raises SystemExit(2) for wrong usage."""
    if words and words[0] in HIDDEN:
        hidden = Parser(prog=f"nfqlb {words[0]}")
        HIDDEN[words[0]](hidden)
        return hidden.parse_args(words[1:])
    return parser().parse_args(expand(words))
