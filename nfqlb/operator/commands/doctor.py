"""`doctor`: what is wrong with the gateway and its machine, and what to do about each."""

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nfqlb.operator.commands.common import SOCKET, add_config, add_socket, say

if TYPE_CHECKING:
    from nfqlb.core.spec import Config
    from nfqlb.runtime.protocol import JSONObject


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

    config, findings = _configuration(options.config)
    socket = options.socket or (SOCKET if config is None else Path(config.gateway.socket))
    findings += examination.findings(socket, config)
    if options.json:
        rows: list[JSON] = list(findings)
        say(as_json(rows))
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        width = shutil.get_terminal_size((100, 24)).columns
        say(report.lines(findings, colour=colour, width=width))
    return int(any(finding["level"] == "error" for finding in findings))


def _configuration(file: Path | None) -> "tuple[Config | None, list[JSONObject]]":
    """What to look at this machine for, and what is wrong with the file: then it is what ran before."""
    from nfqlb.config.load import ConfigError, load
    from nfqlb.operator.doctor.gateway import row

    if file is None:
        return None, []
    try:
        return load(file), []
    except ConfigError as error:
        what = f"{file} has {error.many}: {str(error).splitlines()[0]}"
        return _of_before(), [row("error", "file", what, f"nfqlb check {file} says all of it")]


def _of_before() -> "Config | None":
    """What ran before, of a gateway that was not stopped; None where there is none, or it is not for us."""
    from nfqlb.config.load import ConfigError, parse
    from nfqlb.netfilter.state import Kept

    text = Kept().read()
    with suppress(ConfigError):
        return None if text is None else parse(text, "before")
    return None
