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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nfqlb import __version__
from nfqlb.netfilter.errors import KernelError
from nfqlb.operator.text import clean, clean_lines, several
from nfqlb.operator.words import WORDS, Parser, expand, positive, seconds
from nfqlb.runtime.protocol import DEFAULT_LIMITS, ControlError, JSONObject

if TYPE_CHECKING:
    from nfqlb.core.spec import Config

SOCKET = Path("/run/nfqlb/control.sock")  # the default of nfqlb.core.spec, whose import would take 20 ms


class FailureError(Exception):
    """A command cannot do what it was asked to. Its text is printed as it is; exit status 1."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit status; wrong usage raises SystemExit(2).

    `argv` is the command line without the program's name.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what the locale cannot say
    try:
        try:
            options = _parser().parse_args(expand(sys.argv[1:] if argv is None else argv))
            command: Callable[[argparse.Namespace], int] = options.command
            return command(options)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _give_up_stdout()
        return 1
    except FailureError as failure:
        return _fail(str(failure))
    except (ControlError, KernelError, OSError) as error:
        return _fail(f"nfqlb: {error}")
    except KeyboardInterrupt:
        return 130


def _fail(text: str) -> int:
    print(clean_lines(text), file=sys.stderr)  # noqa: T201 - what an operator reads
    return 1


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)  # noqa: T201 - what an operator reads


def _give_up_stdout() -> None:
    """The reader (`| head`) has seen enough: nothing more may be written, not even at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


# --- the words -------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="nfqlb", description="A load balancer: many servers behind one address.")
    parser.add_argument("--version", action="version", version=f"nfqlb {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_run(commands.add_parser("run", help="balance, in the foreground, until Ctrl-C or SIGTERM"))
    _add_check(commands.add_parser("check", help="say what is wrong with a configuration, or what it does"))
    _add_rules(commands.add_parser("rules", help="show, apply, verify or remove the iptables rules"))
    _add_show(commands.add_parser("show", help="look at the running gateway"))
    _add_set(commands.add_parser("set", help="put a server in or out of service, drain it, weigh it anew"))
    _add_clear(commands.add_parser("clear", help="forget which client is bound to which server"))
    _add_explain(commands.add_parser("explain", help="tell why a connection went where it went"))
    _add_demo(commands.add_parser("demo", help="a gateway with clients and servers, all inside this machine"))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_run)
    _add_config(parser, required=True)
    _add_socket(parser)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_check)
    parser.add_argument("file", type=Path, metavar="FILE", help="the configuration")
    parser.add_argument("--host", action="store_true", help="also look whether this machine can do it")


def _add_rules(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print the rules of a configuration")
    show.set_defaults(command=_rules_show)
    apply = actions.add_parser("apply", help="put the rules in; `run` does so by itself")
    apply.set_defaults(command=_rules_apply)
    apply.add_argument(
        "--force", action="store_true", help="although nobody reads the queue, so packets will be dropped"
    )
    verify = actions.add_parser("verify", help="say how the rules in place differ from a configuration's")
    verify.set_defaults(command=_rules_verify)
    remove = actions.add_parser("remove", help="take out every rule of nfqlb and undo what it changed here")
    remove.set_defaults(command=_rules_remove)
    for action in (show, apply, verify):
        _add_config(action, required=True)
    remove.add_argument("-c", "--config", type=Path, metavar="FILE", help="accepted, but not needed")
    remove.add_argument("--force", action="store_true", help="although the gateway is running")


def _add_show(parser: argparse.ArgumentParser) -> None:
    subjects = parser.add_subparsers(metavar="SUBJECT", required=True)
    helps = {
        "summary": "the gateway as a whole",
        "virtuals": "virtual servers and their real servers",
        "reals": "real servers",
        "connections": "live connections, then those that have ended and linger",
        "sticky": "which client is bound to which real server",
        "failures": "the latest connections that real servers could not make",
        "decisions": "where connections went lately, and by what; `explain` tells why",
    }
    for subject in WORDS["show"]:
        one = subjects.add_parser(subject, help=helps[subject])
        one.set_defaults(command=_show, subject=subject)
        one.add_argument("--json", action="store_true", help="one JSON document; times are in seconds")
        _add_socket(one)
        _add_config(one, required=False)
        if subject in DEFAULT_LIMITS:
            one.add_argument("--limit", type=positive, metavar="N", help="at most so many rows")
            one.add_argument("--client", metavar="ADDRESS", help="those of this client")
        if subject in ("connections", "decisions"):
            one.add_argument("--virtual", metavar="NAME", help="those of this virtual server")
        if subject == "failures":
            one.add_argument("--real", metavar="NAME", help="those of this real server")


def _add_set(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    words = {
        "real": "in-service, sticky-only, maintenance or out-of-service, weight=N, or both",
        "virtual": "in-service or out-of-service",
    }
    for kind in WORDS["set"]:
        one = kinds.add_parser(kind, help=f"a {kind} server: {words[kind]}")
        one.set_defaults(command=_set, kind=kind, parser=one)
        one.add_argument("name", metavar="NAME", help="its name in the configuration")
        one.add_argument("words", metavar="STATE" if kind == "virtual" else "STATE|weight=N", nargs="+",
                         help=words[kind])  # fmt: skip
        _add_socket(one)
        _add_config(one, required=False)


def _add_clear(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="WHAT", required=True)
    one = kinds.add_parser("sticky", help="sticky entries: clients get servers anew")
    one.set_defaults(command=_clear_sticky)
    one.add_argument("--virtual", metavar="NAME", help="those of this virtual server, or of its group")
    one.add_argument("--client", metavar="ADDRESS", help="the one that this client has")
    _add_socket(one)
    _add_config(one, required=False)


def _add_explain(parser: argparse.ArgumentParser) -> None:
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
    _add_socket(parser)
    _add_config(parser, required=False)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_demo)
    parser.add_argument("--duration", type=seconds, metavar="SECONDS", help="how long; else until Ctrl-C")


def _add_config(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        required=required,
        help="the configuration" if required else "the configuration, for the path of the control socket",
    )


def _add_socket(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", type=Path, metavar="PATH", help=f"the control socket (default: {SOCKET})")


# --- what the commands do --------------------------------------------------------------------------------


def _load(path: Path) -> "Config":
    from nfqlb.config.load import ConfigError, load

    try:
        return load(path)
    except ConfigError as error:
        raise FailureError(str(error)) from None


def _run(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from nfqlb.runtime import supervisor

    config = _load(options.config)
    if options.socket is not None:
        config = replace(config, gateway=replace(config.gateway, socket=str(options.socket)))
    return supervisor.run(config, str(options.config))


def _check(options: argparse.Namespace) -> int:
    from nfqlb.config.summary import summary

    config = _load(options.file)
    _say([clean_lines(summary(config).rstrip("\n"))])
    return _check_host(config) if options.host else 0


def _check_host(config: "Config") -> int:
    from nfqlb.netfilter import host

    findings = host.check(config)
    _say(["", *(clean(str(finding)) for finding in findings)] if findings else ["", "this machine: ready"])
    if not findings:
        return 0
    errors = sum(finding.level == "error" for finding in findings)
    number = f"{several(errors, 'error')}, {several(len(findings) - errors, 'warning')}"
    verdict = "`nfqlb run` would refuse to start here" if errors else "`nfqlb run` would start here"
    return _fail(f"nfqlb: {number}: {verdict}")


def _rules_show(options: argparse.Namespace) -> int:
    from nfqlb.netfilter import rules

    _say(clean_lines(rules.show(_load(options.config)).rstrip("\n")).split("\n"))
    return 0


def _rules_apply(options: argparse.Namespace) -> int:
    from nfqlb.netfilter import rules

    rules.apply(_load(options.config), force=options.force)
    return 0


def _rules_verify(options: argparse.Namespace) -> int:
    from nfqlb.netfilter import rules

    differences = rules.verify(_load(options.config))
    _say(map(clean, differences))
    if differences:
        number = several(len(differences), "difference")
        return _fail(f"nfqlb: the rules in place are not those of {options.config}: {number}")
    return 0


def _rules_remove(options: argparse.Namespace) -> int:
    from nfqlb.netfilter import rules
    from nfqlb.netfilter.state import owner

    process = None if options.force else owner()
    if process is not None:
        raise FailureError(
            f"nfqlb: the gateway, process {process or 'unknown'}, is running and would not answer any more; "
            "stop it, which removes them, or use --force"
        )
    _say(map(clean, rules.remove() or ["nothing of nfqlb was there"]))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from nfqlb.demo import demo

    return demo.main(options.duration)


def _show(options: argparse.Namespace) -> int:
    from nfqlb.operator import show
    from nfqlb.runtime.client import Client

    with Client(_socket(options)) as client:
        document = client.call(options.subject, _given(options, "limit", "client", "virtual", "real"))
    limit: int | None = getattr(options, "limit", None) or DEFAULT_LIMITS.get(options.subject)
    if not options.json:
        _say(show.render(options.subject, document, limit))
        return 0
    _say(show.as_json(document))
    if limit is not None and isinstance(document, list) and len(document) >= limit:
        print(f"nfqlb: the first {limit}; --limit N shows more", file=sys.stderr)  # noqa: T201
    return 0


def _set(options: argparse.Namespace) -> int:
    from nfqlb.operator.change import wanted

    try:
        args = wanted(options.words, weighed=options.kind == "real")
    except ValueError as error:
        options.parser.error(str(error))
    return _order(options, f"set-{options.kind}", {"name": options.name, **args})


def _clear_sticky(options: argparse.Namespace) -> int:
    return _order(options, "clear-sticky", _given(options, "virtual", "client"))


def _order(options: argparse.Namespace, cmd: str, args: JSONObject) -> int:
    """Have the gateway carry out an order, and print what it says of it."""
    from nfqlb.operator.change import said
    from nfqlb.runtime.client import Client

    with Client(_socket(options)) as client:
        _say(map(clean, said(client.call(cmd, args))))
    return 0


def _given(options: argparse.Namespace, *names: str) -> JSONObject:
    """The options that were given, of these."""
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def _explain(options: argparse.Namespace) -> int:
    import time

    from nfqlb.operator import show, story
    from nfqlb.runtime.client import Client

    args = _given(options, "client", "connection", "virtual")
    with Client(_socket(options)) as client:
        document = client.call("decisions", {**args, "limit": options.last})
        if options.json:
            _say(show.as_json(document))
        elif document:
            _say(story.story(document, now=time.time()))
        elif (who := options.connection or options.client) is None:
            _say([f"no decision is recorded{f' for {options.virtual}' if options.virtual else ''} yet"])
        else:
            address, port = story.asked(who) if options.connection else (who, None)
            live = client.call("connections", {"client": address, **_given(options, "virtual")})
            sticky = client.call("sticky", {"client": address})
            to = f" to {options.virtual}" if options.virtual else ""
            _say(story.nothing_kept(who + to, live, sticky, port))
    return 0


def _socket(options: argparse.Namespace) -> Path:
    if options.socket is not None:
        return Path(options.socket)
    return Path(_load(options.config).gateway.socket) if options.config is not None else SOCKET
