"""Two gateways between clients and servers, with keepalived and conntrackd of Debian: `examples/failover`.

    client1 ... -- outside -- gateway1, gateway2 -- inside -- web1 ...
                                  \\__ sync __/

Each gateway runs the very files of the examples, at the very paths that they are meant for: its programs
have /run, /etc/keepalived, /etc/conntrackd and /usr/local/bin of their own (`ip netns exec` gives each a
mount namespace). Only what differs between the two machines is exchanged, as the files say.
"""

import os
from pathlib import Path
from signal import SIGKILL
from typing import Any, cast

from nfqlb.demo.appliance import READY, command, python_path
from nfqlb.demo.lab import VIP, VIP6, Host, sixth
from nfqlb.demo.network import Interface
from nfqlb.demo.programs import Program, require
from nfqlb.runtime.client import Client
from nfqlb.runtime.protocol import JSON, JSONObject
from tests.netns.asking import wait_until
from tests.netns.both import OFFLOAD, Bench

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/failover"
#: What each gateway sees elsewhere than the machine has it.
_PLACES = {
    "run": "/run", "keepalived": "/etc/keepalived", "conntrackd": "/etc/conntrackd", "bin": "/usr/local/bin"
}  # fmt: skip
_NAMES = {"outside": "eth0", "inside": "eth1", "sync": "eth2"}
_NETWORKS = {"outside": "192.0.2", "inside": "10.0.0", "sync": "192.168.100"}


class Pair(Bench):
    """The laboratory; `first` and `second` are the gateways."""

    def __init__(self, **shape: int) -> None:
        super().__init__(OFFLOAD, ipv6=True, **shape)

    def _build_gateways(self, outside: int, inside: int) -> tuple[Host, ...]:
        require("keepalived", "conntrackd", "nft")
        hosts = tuple(self._pair_host(f"gateway{number}", number + 1) for number in (1, 2))
        self.network.switch("sync", [host.interfaces["sync"] for host in hosts])
        self.machines = tuple(Machine(self, host, number) for number, host in enumerate(hosts, 2))
        return hosts

    def _pair_host(self, name: str, number: int) -> Host:
        namespace = self.network.namespace(name)
        ends = {}
        for side, network in _NETWORKS.items():
            address = f"{network}.{number}/24"
            beside = "" if side == "sync" else sixth(address)
            ends[side] = Interface(namespace, _NAMES[side], address, 1500, beside)
        host = Host(self, name, ends, namespace)
        self._forward_ipv6(host)
        return host

    def cut_off(self, machine: "Machine", *, back: bool = False) -> None:
        """Pull a gateway's cables, so that for all others it has lost its power; or put them `back`."""
        for side in ("inside", "outside", "sync"):
            self.network.plugged(machine.host.interfaces[side], back)


class Machine:
    """One of the two: its files and its programs."""

    def __init__(self, lab: Pair, host: Host, number: int) -> None:
        self.lab = lab
        self.host = host
        self.directory = lab.directory / host.name
        for name in _PLACES:
            (self.directory / name).mkdir(parents=True)
        (self.directory / "run/lock").mkdir()
        for name in ("keepalived.conf", "nfqlb-failover", "nfqlb-alive"):
            self._install(name, "keepalived")
        text = (EXAMPLES / "conntrackd.conf").read_text()
        own = text.replace("IPv4_interface 192.168.100.2", f"IPv4_interface 192.168.100.{number}")
        assert number == 2 or own != text
        (self.directory / "conntrackd/conntrackd.conf").write_text(own)
        self.config = self.directory / "nfqlb.toml"
        self.config.write_text((EXAMPLES / "nfqlb.toml").read_text())
        wrapper = self.directory / "bin/nfqlb"
        path = python_path()["PYTHONPATH"]
        wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {" ".join(command())} "$@"\n')
        wrapper.chmod(0o755)
        self.programs: dict[str, Program] = {}

    def _install(self, name: str, place: str) -> None:
        target = self.directory / place / name
        target.write_bytes((EXAMPLES / name).read_bytes())
        target.chmod((EXAMPLES / name).stat().st_mode & 0o755)

    def _inside(self, *argv: str) -> tuple[str, ...]:
        """A command line that runs with this machine's own directories."""
        mounts = "; ".join(f"mount --bind {self.directory}/{name} {at}" for name, at in _PLACES.items())
        return ("sh", "-ec", f'{mounts}; exec "$@"', "sh", *argv)

    def run(self, *argv: str) -> str:
        """Run a program to its end, and return what it says."""
        return self.host.run(*self._inside(*argv)).stdout

    def boot(self) -> None:
        """Start what this machine is for, but for the question who serves."""
        self._start("nfqlb", *command("run", "-c", str(self.config)))
        self._start("conntrackd", "conntrackd", "-C", "/etc/conntrackd/conntrackd.conf")

    def join(self) -> None:
        """Let it be one of the two, from now on, once it is ready for that."""
        nfqlb = self.programs["nfqlb"]
        nfqlb.wait_for(nfqlb.out, "ready\n", timeout=READY)
        wait_until(lambda: (self.directory / "run/conntrackd.ctl").exists(), "conntrackd")
        self._start("keepalived", "keepalived", "--dont-fork", "--log-console", "--vrrp")

    def _start(self, name: str, *argv: str) -> None:
        environment = python_path() if name == "nfqlb" else None
        self.programs[name] = self.host.start(*self._inside(*argv), environment=environment)

    def ask(self, subject: str, arguments: JSONObject | None = None) -> JSON:
        """What the gateway answers."""
        with Client(self.directory / "run/nfqlb/control.sock") as client:
            return client.call(subject, arguments or {})

    @property
    def serves(self) -> bool:
        """Whether it has the virtual addresses."""
        has = self.host.run("ip", "-o", "address", "show", "eth0").stdout
        return f"{VIP}/32" in has and f"{VIP6}/128" in has

    def kill(self) -> None:
        """End nfqlb, supervisor and worker, as if it never came back."""
        worker = cast(dict[str, Any], self.ask("summary"))["worker"]["pid"]
        self.programs["nfqlb"].send(SIGKILL)
        os.kill(worker, SIGKILL)

    def stop_keepalived(self) -> None:
        """Hand over by plan, as `systemctl stop keepalived` does."""
        assert self.programs["keepalived"].stop(timeout=10.0) == 0
