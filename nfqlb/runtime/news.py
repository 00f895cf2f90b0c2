"""What the worker logs of state changes: each failure and each return, in one line.

Pure. Tests of a failed server that fail again are not told, or a dead server would fill the log, nor what
an operator did: the supervisor logs that, with who it was.
"""

import logging
from ipaddress import ip_address
from logging import getLevelNamesMapping

from nfqlb.core.admission import ServerState
from nfqlb.core.chronicle import Change, Kind, Notice
from nfqlb.core.health import EVIDENCE, Ditch, Evidence
from nfqlb.core.plural import several

_DOWN = (ServerState.FAILED, ServerState.TESTING)


def told(change: Change | Notice) -> tuple[int, str] | None:
    """The log level and the line for one change; None where nothing is to be said."""
    if isinstance(change, Notice):
        return getLevelNamesMapping()[change.level.upper()], change.text
    if change.by_operator:
        return None
    if change.kind is Kind.VIRTUAL:
        if change.after is ServerState.FAILED:
            return logging.WARNING, f"{change.name} has failed: {change.reason}"
        return logging.INFO, f"{change.name} is back: new connections are taken again"
    if change.after is ServerState.FAILED and change.before is not ServerState.TESTING:
        return logging.WARNING, f"{change.name} failed: {change.reason}{_evidence(change.evidence)}"
    if change.before in _DOWN and change.after not in _DOWN:
        return logging.INFO, f"{change.name} is back after {change.lasted:.0f} s: it answered a connection"
    return None


def _evidence(found: tuple[Evidence, ...]) -> str:
    """From how many clients, and the last one: who, to what, and why it could not be made."""
    if not found:
        return ""
    clients = len({each.client for each in found})
    least = "at least " if len(found) == EVIDENCE else ""  # of a longer run only the latest are known
    last = found[-1]
    how = "no answer" if last.why is Ditch.NO_ANSWER else "refused"
    return (
        f", from {least}{several(clients, 'client')}; last: "
        f"{ip_address(last.client)} to {last.virtual}, {how} after {last.at - last.opened:.1f} s"
    )
