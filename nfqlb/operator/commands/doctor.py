"""`doctor`: what is wrong with the gateway and its machine, and what to do about each."""

import argparse
import sys

from nfqlb.operator.commands.common import add_config, add_socket, load, say, socket_of


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """The words of `doctor`."""
    parser.set_defaults(command=_doctor)
    parser.add_argument("--json", action="store_true", help="one JSON document, a finding a row")
    add_socket(parser)
    add_config(parser, required=False)


def _doctor(options: argparse.Namespace) -> int:
    import os
    import shutil

    from nfqlb.operator.doctor import examination, report
    from nfqlb.operator.show import as_json
    from nfqlb.runtime.protocol import JSON

    config = load(options.config) if options.config is not None else None
    findings = examination.findings(socket_of(options), config)
    if options.json:
        rows: list[JSON] = list(findings)
        say(as_json(rows))
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        width = shutil.get_terminal_size((100, 24)).columns
        say(report.lines(findings, colour=colour, width=width))
    return int(any(finding["level"] == "error" for finding in findings))
