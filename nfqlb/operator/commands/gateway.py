"""`run`, `check` and `demo`: a gateway from its configuration, and one to look at."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nfqlb.operator.commands.common import add_config, add_socket, fail, load, say
from nfqlb.operator.text import clean, clean_lines, several
from nfqlb.operator.words import seconds

if TYPE_CHECKING:
    from nfqlb.core.spec import Config

MISTAKES = 78
"""Exit status of `run` where its file has mistakes: to try again is of no use (sysexits.h, EX_CONFIG)."""


def add_run(parser: argparse.ArgumentParser) -> None:
    """The words of `run`."""
    parser.set_defaults(command=_run)
    add_config(parser, required=True)
    add_socket(parser)
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="from a gateway that runs here, without losing a connection; it ends",
    )
    parser.add_argument(
        "--log",
        choices=("text", "json", "journal"),
        metavar="STYLE",
        help="text: lines for people; json: an object a line; journal: with systemd's priorities"
        " (default: journal where stderr is the journal, else text)",
    )


def add_check(parser: argparse.ArgumentParser) -> None:
    """The words of `check`."""
    parser.set_defaults(command=_check)
    parser.add_argument("file", type=Path, metavar="FILE", help="the configuration")
    parser.add_argument("--host", action="store_true", help="also look whether this machine can do it")


def add_demo(parser: argparse.ArgumentParser) -> None:
    """The words of `demo`."""
    parser.set_defaults(command=_demo)
    parser.add_argument("--duration", type=seconds, metavar="SECONDS", help="how long; else until Ctrl-C")


def _run(options: argparse.Namespace) -> int:
    from nfqlb.config.report import ConfigError
    from nfqlb.runtime import logs, start
    from nfqlb.runtime.handover import Source

    logs.complete()
    style = logs.set_up(options.log)
    source = Source(options.config, options.socket)
    try:
        return start.run(source, take_over=options.take_over)
    except (ConfigError, OSError) as error:
        if style == "text":
            fail(str(error) if isinstance(error, ConfigError) else f"nfqlb: {error}")
        else:
            logs.say_all(str(error))  # who reads the log by machine finds this in it too
        return MISTAKES if isinstance(error, ConfigError) else 1


def _check(options: argparse.Namespace) -> int:
    from nfqlb.config.summary import summary

    config = load(options.file)
    say([clean_lines(summary(config).rstrip("\n"))])
    return _check_host(options.file, config) if options.host else 0


def _check_host(file: Path, config: "Config") -> int:
    from nfqlb.netfilter import host

    there = _there()
    findings = host.check(config, alone=not there)
    say(["", *(clean(str(finding)) for finding in findings)] if findings else ["", "this machine: ready"])
    if there:
        say([f"note: {there}"])
    if not findings:
        return 0
    errors = sum(finding.level == "error" for finding in findings)
    kinds = ((errors, "error"), (len(findings) - errors, "warning"))
    told = ", ".join(several(number, kind) for number, kind in kinds if number)
    verdict = _refusal(file, config, alone=not there) if errors else "`nfqlb run` would start here"
    return fail(f"nfqlb: {told}: {verdict}")


def _refusal(file: Path, config: "Config", *, alone: bool) -> str:
    """What becomes of a start that cannot have this configuration, and of a reload where a gateway runs."""
    from nfqlb.netfilter.state import Kept, owner
    from nfqlb.runtime.beginning import goes_on
    from nfqlb.runtime.handover import Source

    runs = owner() is not None
    start = "a restart" if runs else "`nfqlb run`"
    if goes_on(Source(file), config, Kept(), alone=alone):
        start += " would go on with the configuration of before"
    else:
        start += " would refuse to start here"
    return f"a reload would refuse it, {start}" if runs else start


def _there() -> str:
    """Who serves this network namespace, beside whom another file may well be tried; "" for nobody."""
    from nfqlb.netfilter.alone import place, worker
    from nfqlb.netfilter.state import owner

    process = owner()
    if process is not None:
        return f"nfqlb, process {process}, runs here; nfqlb diff -c FILE says what a reload would change"
    if worker(place()) is not None:
        return "a worker without supervisor serves here; nfqlb run takes over from it"
    return ""


def _demo(options: argparse.Namespace) -> int:
    from nfqlb.demo import demo

    return demo.main(options.duration)
