"""A batch file: orders as the command line has them, one a line, and where in it a wrong one stands."""

import argparse
import re
import shlex
from typing import NamedTuple, NoReturn

from nfqlb.operator.commands.change import add_clear, add_set
from nfqlb.operator.words import Parser, expand
from nfqlb.runtime.protocol import ControlError, JSONObject

_WORDS = ("set", "clear")


class Order(NamedTuple):
    """One order, and the number of its line."""

    line: int
    cmd: str
    args: JSONObject

    def document(self) -> JSONObject:
        """As the gateway takes it."""
        return {"cmd": self.cmd, "args": self.args}


def parse(text: str) -> tuple[list[Order], list[tuple[int, str]]]:
    """The orders in a text, and what is wrong in it: line numbers with a reason each."""
    orders: list[Order] = []
    wrong: list[tuple[int, str]] = []
    parser = _parser()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = expand(shlex.split(line, comments=True))
            if words:
                orders.append(Order(number, *_order(parser, words)))
        except ValueError as error:
            wrong.append((number, str(error)))
    return orders, wrong


def located(error: ControlError, orders: list[Order], name: str) -> ControlError:
    """The gateway's refusal with the line of the order that it means, where it means one."""
    found = re.match(r"command (\d+): ", error.message)
    if found is None or not 1 <= int(found[1]) <= len(orders):
        return error
    line = orders[int(found[1]) - 1].line
    return ControlError(error.code, f"{name}:{line}: {error.message[found.end() :]}", error.hint)


def _order(parser: argparse.ArgumentParser, words: list[str]) -> tuple[str, JSONObject]:
    if words[0] not in _WORDS:
        raise ValueError(f"{words[0]}: a batch has {' and '.join(_WORDS)} alone")
    options = parser.parse_args(words)
    if options.socket is not None or options.config is not None:
        raise ValueError("a batch goes to one gateway: --socket and --config belong to `nfqlb batch`")
    cmd, args = options.order(options)
    return cmd, args


class _Line(Parser):
    """A parser whose errors are those of a line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(self.explained(message))

    def print_help(self, _file: object = None) -> None:
        raise ValueError("there is no help in a batch")


def _parser() -> argparse.ArgumentParser:
    parser = _Line(prog="batch", add_help=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Line)
    for name, add in zip(_WORDS, (add_set, add_clear), strict=True):
        add(commands.add_parser(name, add_help=False))
    return parser
