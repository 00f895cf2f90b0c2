"""What a start begins with: the configuration of its file, or the one of before where that cannot be.

Owns the choice. A gateway whose file has been spoilt while it ran must not be lost with its process: who
follows it, after a crash or a restart, goes on with what it ran with (`state.Kept`), says so, and waits for a
reload. A start that follows nobody has nothing to go on with, and fails.
"""

import logging
from collections.abc import Iterable
from typing import NamedTuple

from nfqlb.config.load import ConfigError
from nfqlb.core.spec import Config
from nfqlb.netfilter import host
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.host import Finding
from nfqlb.netfilter.state import Kept
from nfqlb.runtime.handover import Reading, Source

logger = logging.getLogger(__name__)


class Beginning(NamedTuple):
    """The configuration with its text, and why it is not the file's: "" where it is."""

    config: Config
    text: str
    trouble: str = ""


def choose(source: Source, kept: Kept | None, *, alone: bool) -> Beginning | None:
    """What to begin with; None where this machine can run nothing of it, which is in the log.

    Without `kept` there is nobody to follow but by the file. Without `alone` another gateway is there, from
    which we take over. Raises ConfigError where the file is of no use and nothing else is there.
    """
    before = _before(source, kept)
    try:
        reading = source.reading()
    except ConfigError as error:
        if before is None:
            raise
        _log(logging.ERROR, str(error).split("\n"))
        able = not _errors(_told(host.check(before.config, alone=alone)))
        return Beginning(*before, f"{source.path} has {error.many}") if able else None
    errors = _errors(_told(host.check(reading.config, alone=alone)))
    if not errors:
        return Beginning(*reading)
    if before is None or not _other(before, reading.config, alone=alone):
        return None
    return Beginning(*before, f"{source.path} cannot run on this machine: {errors[0].what}")


def goes_on(source: Source, config: Config, kept: Kept, *, alone: bool) -> bool:
    """Whether a start that cannot have `config`, the source's, would go on with what ran before."""
    before = _before(source, kept)
    return before is not None and _other(before, config, alone=alone)


def keep(kept: Kept, text: str) -> None:
    """Have a next start find what we run with. That it cannot be kept is no reason to end."""
    try:
        kept.write(text)
    except KernelError as error:
        logger.warning("a restart with a broken file would find nothing to go on with: %s", error)


def _before(source: Source, kept: Kept | None) -> Reading | None:
    """What ran before."""
    text = kept.read() if kept is not None else None
    if kept is None or text is None:
        return None
    try:
        return source.understood(text, str(kept.file))
    except ConfigError as error:  # another version's
        logger.warning("what ran before is of no use: %s", str(error).split("\n")[0])
        return None


def _other(before: Reading, config: Config, *, alone: bool) -> bool:
    """Whether what ran before is something else than `config`, and can run here."""
    return before.config != config and not _errors(host.check(before.config, alone=alone))


def _errors(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "error"]


def _told(findings: list[Finding]) -> list[Finding]:
    """The same; they are in the log then."""
    for each in findings:
        level = logging.ERROR if each.level == "error" else logging.WARNING
        _log(level, [f"{each.what}; {each.advice}" if each.advice else each.what])
    return findings


def _log(level: int, lines: Iterable[str]) -> None:
    for line in lines:
        logger.log(level, "%s", line)
