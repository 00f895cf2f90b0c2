"""`rules`: the iptables rules of a configuration."""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nfqlb.operator.commands.common import SOCKET, FailureError, add_config, fail, load, say
from nfqlb.operator.text import clean, clean_lines, several

if TYPE_CHECKING:
    from nfqlb.core.spec import Config


def add_rules(parser: argparse.ArgumentParser) -> None:
    """The words of `rules`."""
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
    about = "take out every rule of nfqlb, undo what it changed here, and remove its journal and sockets"
    remove = actions.add_parser("remove", help=about)
    remove.set_defaults(command=_rules_remove)
    for action in (show, apply, verify):
        add_config(action, required=True)
    remove.add_argument("-c", "--config", type=Path, metavar="FILE", help="accepted, but not needed")
    remove.add_argument("--force", action="store_true", help="although the gateway is running")


def _rules_show(options: argparse.Namespace) -> int:
    from nfqlb.netfilter import rules

    say(clean_lines(rules.show(load(options.config)).rstrip("\n")).split("\n"))
    return 0


def _rules_apply(options: argparse.Namespace) -> int:
    from nfqlb.netfilter import rules

    rules.apply(load(options.config), force=options.force)
    return 0


def _rules_verify(options: argparse.Namespace) -> int:
    from nfqlb.netfilter import rules

    config = load(options.config)
    differences = rules.verify(config)
    if differences:
        differences = _as_it_runs(options.config, config, differences)
    say(map(clean, differences))
    if differences:
        number = several(len(differences), "difference")
        return fail(f"nfqlb: the rules in place are not those of {options.config}: {number}")
    return 0


def _as_it_runs(path: Path, config: "Config", differences: list[str]) -> list[str]:
    """The differences from what a gateway that runs with this file needs now.

    What drains has rules too, and what was there before a reload keeps its numbers; the file tells neither.
    """
    from nfqlb.netfilter.state import owner
    from nfqlb.runtime.client import Client
    from nfqlb.runtime.protocol import ControlError

    if owner() is None:
        return differences
    try:
        with Client(Path(config.gateway.socket)) as client:
            found = client.call("verify", {"file": str(path.absolute())}, patience=30.0)
    except ControlError:
        return differences
    return [str(line) for line in found] if isinstance(found, list) else differences


def _rules_remove(options: argparse.Namespace) -> int:
    from nfqlb.netfilter import rules
    from nfqlb.netfilter.state import owner
    from nfqlb.runtime import remains

    process = owner()
    if process is not None and not options.force:
        raise FailureError(
            f"nfqlb: the gateway, process {process or 'unknown'}, is running and would not answer any more; "
            "stop it, which removes them, or use --force"
        )
    control = _control_socket(options.config)  # as long as it is known
    done = rules.remove()
    if process is None:
        done += remains.clear(control)
    say(map(clean, done or ["nothing of nfqlb was there"]))
    return 0


def _control_socket(file: Path | None) -> Path:
    """Where a gateway that is gone had its control socket: as its configuration says, or the usual place."""
    from nfqlb.config.load import ConfigError, parse
    from nfqlb.netfilter.state import Kept

    text = Kept().read()
    with suppress(ConfigError):
        if text is not None:
            return Path(parse(text, "before").gateway.socket)
    with suppress(FailureError):
        if file is not None:
            return Path(load(file).gateway.socket)
    return SOCKET
