"""`set` and `clear`: what an operator changes while the gateway runs."""

import argparse

from nfqlb.operator.commands.common import add_config, add_socket, given, say, socket_of
from nfqlb.operator.text import clean
from nfqlb.operator.words import WORDS
from nfqlb.runtime.protocol import JSONObject


def add_set(parser: argparse.ArgumentParser) -> None:
    """The words of `set`."""
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    words = {
        "real": "in-service, sticky-only (or drain), maintenance or out-of-service, weight=N, or both",
        "virtual": "in-service or out-of-service",
    }
    for kind in WORDS["set"]:
        one = kinds.add_parser(kind, help=f"a {kind} server: {words[kind]}")
        one.set_defaults(command=_order, order=_set, kind=kind, parser=one)
        one.add_argument("name", metavar="NAME", help="its name in the configuration")
        one.add_argument("words", metavar="STATE" if kind == "virtual" else "STATE|weight=N", nargs="+",
                         help=words[kind])  # fmt: skip
        add_socket(one)
        add_config(one, required=False)


def add_clear(parser: argparse.ArgumentParser) -> None:
    """The words of `clear`."""
    kinds = parser.add_subparsers(metavar="WHAT", required=True)
    one = kinds.add_parser("sticky", help="sticky entries: clients get servers anew")
    one.set_defaults(command=_order, order=_clear_sticky)
    one.add_argument("--virtual", metavar="NAME", help="those of this virtual server, or of its group")
    one.add_argument("--client", metavar="ADDRESS", help="the one that this client has")
    add_socket(one)
    add_config(one, required=False)


def _set(options: argparse.Namespace) -> tuple[str, JSONObject]:
    """The order that the words make."""
    from nfqlb.operator.change import wanted

    try:
        args = wanted(options.words, weighed=options.kind == "real")
    except ValueError as error:
        options.parser.error(str(error))
    return f"set-{options.kind}", {"name": options.name, **args}


def _clear_sticky(options: argparse.Namespace) -> tuple[str, JSONObject]:
    return "clear-sticky", given(options, "virtual", "client")


def _order(options: argparse.Namespace) -> int:
    """Have the gateway carry out an order, and print what it says of it."""
    from nfqlb.operator.change import said
    from nfqlb.runtime.client import Client

    cmd, args = options.order(options)
    with Client(socket_of(options)) as client:
        say(map(clean, said(client.call(cmd, args))))
    return 0
