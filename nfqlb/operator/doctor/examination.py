"""The doctor's round: the gateway is asked where it runs, else this machine is looked at from here."""

import os
from pathlib import Path

from nfqlb import __version__
from nfqlb.core.spec import Config, Gateway
from nfqlb.operator.doctor import gateway
from nfqlb.runtime.client import Client
from nfqlb.runtime.protocol import ControlError, JSONObject, objects

_PATIENCE = 15.0  # seconds more than usual: iptables may wait for its lock
_NO_CONFIG = Config(Gateway((), ()), (), ())


def findings(socket: Path, config: Config | None) -> list[JSONObject]:
    """All findings. `config` is what to look at this machine for where no gateway answers on the socket."""
    with Client(socket) as client:
        try:
            snapshot = _snapshot(client)
        except ControlError as error:
            return [_absent(error, config), *_of_this_machine(config)]
        assert isinstance(snapshot, dict)
        try:
            host = _rows(client.call("host", patience=_PATIENCE))
        except ControlError as error:
            found = gateway.findings(snapshot, __version__)
            return [*found, gateway.row("unseen", "machine", error.message, error.hint)]
        found = gateway.findings(snapshot, __version__, host)
        return found + [_clock_from_here() if _is_unseen_clock(row) else row for row in host]


def _snapshot(client: Client) -> object:
    """A snapshot of now; of a gateway of an earlier version, which knows no such, its last one."""
    try:
        return client.call("snapshot", {"fresh": True})
    except ControlError as error:
        if error.code != "bad-argument":
            raise
        return client.call("snapshot")


def _is_unseen_clock(row: JSONObject) -> bool:
    """A service may be forbidden to ask the kernel about the clock, which is the whole machine's."""
    return (row["level"], row["area"]) == ("unseen", "clock")


def _clock_from_here() -> JSONObject:
    from nfqlb.netfilter import clock, diagnosis
    from nfqlb.runtime.checkup import row

    try:
        for finding in diagnosis.of_clock(clock.synchronised()):
            return row(finding)
    except OSError as error:
        return gateway.row("unseen", diagnosis.CLOCK, f"could not be looked at: {error.strerror}", "")
    return gateway.row("ok", diagnosis.CLOCK, diagnosis.FINE_CLOCK, "")


def _absent(error: ControlError, config: Config | None) -> JSONObject:
    """No gateway answers. It need not be meant to run yet, but that never goes without saying."""
    level = {"not-running": "warning", "degraded": "error", "timeout": "error"}.get(error.code, "unseen")
    advice = error.hint
    if config is None:
        advice += f"{'; ' if advice else ''}-c FILE looks at this machine for a configuration"
    return gateway.row(level, "gateway", error.message, advice)


def _of_this_machine(config: Config | None) -> list[JSONObject]:
    from nfqlb.netfilter.errors import KernelError
    from nfqlb.runtime.checkup import examine

    try:
        return _rows(examine(config or _NO_CONFIG, running=False))
    except (KernelError, OSError) as error:
        advice = "" if os.geteuid() == 0 else "run as root"
        return [gateway.row("unseen", "machine", f"could not be looked at: {error}", advice)]


def _rows(document: object) -> list[JSONObject]:
    return objects(document.get("findings")) if isinstance(document, dict) else []
