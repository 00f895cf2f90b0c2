"""nfqlb itself in the laboratory: configuration, process in the gateway's namespace, read-outs."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from subprocess import CompletedProcess

import nfqlb
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.programs import Program, require, run
from nfqlb.runtime.client import Client
from nfqlb.runtime.protocol import JSON, JSONObject

READY = 15.0
"""Seconds that a start may take."""


def python_path() -> dict[str, str]:
    """The environment in which `python -m nfqlb` is the very package that this process runs."""
    ours = str(Path(nfqlb.__file__).resolve().parents[1])
    return {"PYTHONPATH": os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH", ""))))}


def command(*arguments: str) -> tuple[str, ...]:
    """The command line of an nfqlb command."""
    return (sys.executable, "-P", "-m", "nfqlb", *arguments)


def virtual(
    name: str, servers: Sequence[str], *, address: str = VIP, port: int | None = 80, **keys: object
) -> str:
    """One `[[virtual]]` as TOML; `keys` are further keys of it. Port None: every port."""
    lines = ["[[virtual]]", f'name = "{name}"', f'address = "{address}"']
    lines += [f"port = {port}"] if port else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join([*lines, f"servers = {json.dumps(list(servers))}", ""])


def configuration(lab: Lab, *virtuals: str, gateway: str = "", reals: dict[str, str] | None = None) -> str:
    """A whole configuration file as TOML: every server of the laboratory as `[[real]]` under its own name.

    In one with IPv6 each is there a second time, as `NAME-6`. `gateway` is text for `[gateway]`, `reals`
    text for single `[[real]]` tables by name; without `virtuals` there is one, `web`, on port 80 of all
    servers.
    """
    parts = [f'[gateway]\noutside = "outside"\ninside = "inside"\nsocket = "{socket_path(lab)}"\n{gateway}\n']
    for server in lab.servers:
        extra = (reals or {}).get(server.name, "")
        parts.append(f'[[real]]\nname = "{server.name}"\naddress = "{server.address}"\n{extra}\n')
        if server.address6:
            parts.append(f'[[real]]\nname = "{server.name}-6"\naddress = "{server.address6}"\n{extra}\n')
    parts += virtuals or [virtual("web", [server.name for server in lab.servers])]
    return "\n".join(parts)


def socket_path(lab: Lab) -> Path:
    """Where the gateway of a laboratory answers."""
    return lab.directory / "control.sock"


class Appliance:
    """`nfqlb run` in the gateway's namespace, forwarding packets.

    `within` is a command that runs it, as `env` or `unshare` do.
    """

    def __init__(self, lab: Lab, config: str, *, within: Sequence[str] = ()) -> None:
        self.lab = lab
        self.config = lab.directory / "nfqlb.toml"
        self.config.write_text(config)
        self.program: Program = lab.gateway.start(
            *within, *command("run", "-c", str(self.config)), environment=python_path()
        )

    def wait_ready(self) -> None:
        """Wait until packets flow. Raises LabError, with what it said, where it does not come to that."""
        self.program.wait_for(self.program.out, "ready\n", timeout=READY)

    def ask(self, subject: str, arguments: JSONObject | None = None, *, patience: float = 0.0) -> JSON:
        """What `nfqlb show SUBJECT --json` would print, over the control socket. Raises ControlError.

        `patience` is how many seconds more than usual the answer may take.
        """
        with Client(socket_path(self.lab)) as client:
            return client.call(subject, arguments or {}, patience=patience)

    @property
    def worker(self) -> int:
        """The worker's process id."""
        summary = self.ask("summary")
        assert isinstance(summary, dict)
        worker = summary["worker"]
        assert isinstance(worker, dict)
        pid = worker["pid"]
        assert isinstance(pid, int)
        return pid

    def kill_worker(self) -> int:
        """`kill -9` the worker and return the process id that it had."""
        pid = self.worker
        os.kill(pid, Signals.SIGKILL)
        return pid

    def stop(self, number: Signals = Signals.SIGTERM) -> int:
        """End it by a signal, within ten seconds, and return its exit status."""
        return self.program.stop(number, timeout=10.0)


def nfqlb_command(lab: Lab, *arguments: str, timeout: float = 20.0) -> CompletedProcess[str]:
    """Run an nfqlb command in the gateway's namespace to its end, whatever its exit status."""
    argv = command(*arguments)
    return run(lab.gateway.namespace, argv, timeout=timeout, check=False, extra_environment=python_path())


@contextmanager
def balancing(lab: Lab, config: str, *, within: Sequence[str] = ()) -> Iterator[Appliance]:
    """A running gateway for the time of the context, as `Appliance` has it; stopped after it by SIGTERM."""
    require("iptables-restore")
    appliance = Appliance(lab, config, within=within)
    try:
        appliance.wait_ready()
        yield appliance
    finally:
        appliance.stop()
