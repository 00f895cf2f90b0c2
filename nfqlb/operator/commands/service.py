"""`install-service`: the unit, the man pages, completion and groups of an installed nfqlb."""

import argparse
from pathlib import Path

from nfqlb.operator.commands.common import SOCKET, FailureError, say
from nfqlb.operator.text import clean


def add_install_service(parser: argparse.ArgumentParser) -> None:
    """The words of `install-service`."""
    parser.set_defaults(command=_install_service)
    parser.add_argument("--remove", action="store_true", help="take it all away again, but the configuration")
    parser.add_argument(
        "--root", type=Path, metavar="DIRECTORY", default=Path("/"), help="of another system's image (/)"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="what the service is to read (/etc/nfqlb/nfqlb.toml); a sample is written where there is none",
    )


def _install_service(options: argparse.Namespace) -> int:
    from nfqlb.service.install import CONFIG, Installation, InstallError, next_steps, this_command

    try:
        config = (options.config or CONFIG).absolute()
        installation = Installation(this_command(), options.root.resolve(), config)
        steps = installation.remove() if options.remove else installation.install()
        for line in steps:
            say([clean(line)])
        if not options.remove:
            say(next_steps(installation))
    except InstallError as error:
        raise FailureError(f"nfqlb: {error}") from None
    except PermissionError as error:
        raise FailureError(f"nfqlb: {error.filename}: permission denied; run as root") from None
    return 0


def add_complete(parser: argparse.ArgumentParser) -> None:
    """The words of `complete`, which shells ask and nobody types."""
    parser.set_defaults(command=_complete)
    parser.add_argument("words", nargs="*", metavar="WORDS", help="of the command line, the last unfinished")


def _complete(options: argparse.Namespace) -> int:
    from nfqlb.operator.cli import parser
    from nfqlb.operator.completion import names_for, offered
    from nfqlb.service.install import CONFIG

    found = offered(parser(), options.words, names_for(options.words, SOCKET, CONFIG))
    if isinstance(found, str):
        say([found])
    else:
        say(clean(each.word) + "\t" + clean(each.about) for each in found)
    return 0
