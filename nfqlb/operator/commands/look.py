"""`show` and `explain`: what the running gateway does, and why."""

import argparse
import sys

from nfqlb.operator.commands.common import add_config, add_socket, fail, given, say, socket_of
from nfqlb.operator.words import WORDS, positive, seconds
from nfqlb.runtime.protocol import DEFAULT_LIMITS


def add_show(parser: argparse.ArgumentParser) -> None:
    """The words of `show`."""
    subjects = parser.add_subparsers(metavar="SUBJECT", required=True)
    helps = {
        "summary": "the gateway as a whole",
        "virtuals": "virtual servers and their real servers",
        "reals": "real servers",
        "connections": "live connections, then those that have ended and linger",
        "sticky": "which client is bound to which real server",
        "failures": "the latest connections that real servers could not make",
        "decisions": "where connections went lately, and by what; `explain` tells why",
        "events": "what has happened lately: failures, returns, orders and who gave them",
    }
    for subject in WORDS["show"]:
        one = subjects.add_parser(subject, help=helps[subject])
        one.set_defaults(command=_show, subject=subject)
        one.add_argument("--json", action="store_true", help="one JSON document; times are in seconds")
        add_socket(one)
        add_config(one, required=False)
        one.add_argument("--watch", type=seconds, metavar="SECONDS", nargs="?", const=2.0,
                         help="again and again, every 2 seconds or so many")  # fmt: skip
        if subject in DEFAULT_LIMITS:
            one.add_argument("--limit", type=positive, metavar="N", help="at most so many rows")
        if subject in ("connections", "sticky", "decisions"):
            one.add_argument("--client", metavar="ADDRESS", help="those of this client")
        if subject in ("connections", "decisions"):
            one.add_argument("--virtual", metavar="NAME", help="those of this virtual server")
        if subject in ("connections", "failures"):
            one.add_argument("--real", metavar="NAME", help="those of this real server")


def add_explain(parser: argparse.ArgumentParser) -> None:
    """The words of `explain`."""
    parser.set_defaults(command=_explain)
    parser.add_argument("--client", metavar="ADDRESS", help="the decisions about this client")
    parser.add_argument(
        "--connection",
        metavar="QUAD",
        help="about this one: CLIENT:PORT, as `show connections` has it, or CLIENT:PORT-ADDRESS:PORT"
        " with the virtual server's; IPv6 addresses in brackets",
    )
    parser.add_argument("--virtual", metavar="NAME", help="about connections to this virtual server")
    parser.add_argument("--last", type=positive, metavar="N", default=1, help="so many, the newest first (1)")
    parser.add_argument("--json", action="store_true", help="one JSON document; times are in seconds")
    add_socket(parser)
    add_config(parser, required=False)


def _show(options: argparse.Namespace) -> int:
    from nfqlb.operator import show
    from nfqlb.runtime.client import Client

    args = given(options, "limit", "client", "virtual", "real")
    limit: int | None = getattr(options, "limit", None) or DEFAULT_LIMITS.get(options.subject)
    with Client(socket_of(options)) as client:
        if options.watch is not None:
            from functools import partial

            from nfqlb.operator import watch

            found = watch.documents(client, options.subject, args, options.watch)
            render = partial(show.render, options.subject, limit=limit)
            watch.show(found, render, as_json=options.json)
        document = client.call(options.subject, args)
    if not options.json:
        say(show.render(options.subject, document, limit))
        return 0
    say(show.as_json(document))
    if limit is not None and isinstance(document, list) and len(document) >= limit:
        print(f"nfqlb: the first {limit}; --limit N shows more", file=sys.stderr)  # noqa: T201
    return 0


def _explain(options: argparse.Namespace) -> int:
    import time

    from nfqlb.operator import show, story
    from nfqlb.runtime.client import Client

    args = given(options, "client", "connection", "virtual")
    with Client(socket_of(options)) as client:
        document = client.call("decisions", {**args, "limit": options.last})
        if options.json:
            say(show.as_json(document))
        elif document:
            say(story.story(document, now=time.time()))
        if document:
            return 0
        who = options.connection or options.client
        if who is None:
            return fail(f"no decision is recorded{f' for {options.virtual}' if options.virtual else ''} yet")
        address, port = story.asked(who) if options.connection else (who, None)
        live = client.call("connections", {"client": address, **given(options, "virtual")})
        sticky = client.call("sticky", {"client": address})
        to = f" to {options.virtual}" if options.virtual else ""
        return fail("\n".join(story.nothing_kept(who + to, live, sticky, port)))
