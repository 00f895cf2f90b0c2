"""The ways from a client to a web server that are compared.

A variant prepares the gateway of a fresh laboratory and returns the address that clients use.
To add one, write a function and enter it in `VARIANTS`; the rest of the benchmark finds it there.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nfqlb.demo.lab import VIP, Lab, LabError

PORT = 80
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way. `start` takes a laboratory and returns the address to go to; `programs` must be on PATH."""

    title: str
    start: Callable[[Lab], str]
    programs: tuple[str, ...] = ()


def routing(lab: Lab) -> str:
    """No load balancer: the client talks straight to one server, the gateway forwards."""
    lab.gateway.sysctl("net.ipv4.ip_forward", "1")
    return lab.servers[0].address


def dnat(lab: Lab) -> str:
    """iptables alone: every n-th new connection to the n-th server, conntrack translates."""
    lab.gateway.sysctl("net.ipv4.ip_forward", "1")
    lab.gateway.add_address(f"{VIP}/32")
    count = len(lab.servers)
    lines = [
        f"-A PREROUTING -d {VIP}/32 -p tcp --dport {PORT}"
        # the last of them takes whatever is left: 1 in 1
        f" -m statistic --mode nth --every {count - index} --packet 0"
        f" -j DNAT --to-destination {server.address}:{PORT}"
        for index, server in enumerate(lab.servers)
    ]
    _restore(lab, "*nat", *lines, "COMMIT")
    return VIP


def empty(lab: Lab) -> str:
    """Kernel DNAT, and every packet of the virtual IP, both ways, through a callback that only accepts.

    The queue stands where nfqlb's rules stand, so this is the price of the queue alone.
    """
    dnat(lab)
    program = lab.gateway.start(sys.executable, str(Path(__file__).with_name("empty.py")))
    program.wait_for(program.out, "ready")
    back = [
        f"-A FORWARD -i inside -s {server.address}/32 -p tcp --sport {PORT}"
        " -m conntrack --ctdir REPLY -j NFQUEUE --queue-num 0"
        for server in lab.servers
    ]
    there = f"-A PREROUTING -i outside -d {VIP}/32 -p tcp --dport {PORT} -j NFQUEUE --queue-num 0"
    _restore(lab, "*raw", there, "COMMIT", "*mangle", *back, "COMMIT")
    return VIP


def haproxy(lab: Lab) -> str:
    """HAProxy as a TCP proxy, with as many threads as it chooses itself."""
    _prepare_proxy(lab)
    config = lab.directory / "haproxy.cfg"
    servers = "".join(f"    server {server.name} {server.address}:{PORT}\n" for server in lab.servers)
    config.write_text(
        "global\n    maxconn 8000\n"
        "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1m\n    timeout server 1m\n"
        f"listen web\n    bind {VIP}:{PORT}\n    balance roundrobin\n{servers}"
    )
    lab.gateway.start("haproxy", "-db", "-f", str(config))
    return VIP


def nginx(lab: Lab) -> str:
    """nginx's stream module as a TCP proxy, one worker a core."""
    _prepare_proxy(lab)
    place = lab.directory / "stream"
    place.mkdir()
    config = place / "nginx.conf"
    servers = " ".join(f"server {server.address}:{PORT};" for server in lab.servers)
    config.write_text(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"
        f"daemon off;\nworker_processes {os.cpu_count()};\npid {place}/nginx.pid;\n"
        "events { worker_connections 8192; }\n"
        f"stream {{\n    upstream web {{ {servers} }}\n"
        f"    server {{ listen {VIP}:{PORT}; proxy_pass web; }}\n}}\n"
    )
    lab.gateway.start("nginx", "-e", f"{place}/error.log", "-c", str(config))
    return VIP


def nfqlb(lab: Lab, *, datapath: str, scheduler: str = "round-robin") -> str:
    """nfqlb itself, as an operator starts it."""
    lab.gateway.sysctl("net.ipv4.ip_forward", "1")
    config = lab.directory / "nfqlb.toml"
    reals = "".join(
        f'[[real]]\nname = "{server.name}"\naddress = "{server.address}"\n' for server in lab.servers
    )
    names = ", ".join(f'"{server.name}"' for server in lab.servers)
    config.write_text(
        f'[gateway]\noutside = "outside"\ninside = "inside"\ndatapath = "{datapath}"\n'
        f'socket = "{lab.directory}/control.sock"\n{reals}'
        f'[[virtual]]\nname = "web"\naddress = "{VIP}"\nport = {PORT}\nscheduler = "{scheduler}"\n'
        f"servers = [{names}]\n"
    )
    argv = (sys.executable, "-m", "nfqlb", "run", "-c", str(config))
    program = lab.gateway.start(*argv, environment={"PYTHONPATH": str(_ROOT)})
    program.wait_for(program.out, "ready", timeout=20)
    return VIP


def _prepare_proxy(lab: Lab) -> None:
    """A proxy holds the virtual IP and makes connections of its own, so it needs many ports."""
    lab.gateway.add_address(f"{VIP}/32")
    lab.gateway.sysctl("net.ipv4.ip_local_port_range", "1024 65535")


def _restore(lab: Lab, *lines: str) -> None:
    lab.gateway.run("iptables-restore", "--noflush", "-w", given="\n".join(lines) + "\n")


VARIANTS: dict[str, Variant] = {
    "routing": Variant("plain routing", routing),
    "dnat": Variant("kernel DNAT", dnat, ("iptables-restore",)),
    "haproxy": Variant("HAProxy TCP", haproxy, ("haproxy",)),
    "nginx": Variant("nginx stream", nginx, ("nginx",)),
    "empty": Variant("empty callback", empty, ("iptables-restore",)),
    "rewrite": Variant("nfqlb rewrite", partial(nfqlb, datapath="rewrite"), ("iptables-restore",)),
    "offload": Variant("nfqlb offload", partial(nfqlb, datapath="offload"), ("iptables-restore",)),
    "timed": Variant(
        "nfqlb offload, fastest-response",
        partial(nfqlb, datapath="offload", scheduler="fastest-response"),
        ("iptables-restore",),
    ),
}


def choose(names: str) -> dict[str, Variant]:
    """The variants of a comma-separated list, in the order of `VARIANTS`.

    Raises LabError for an unknown name.
    """
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in VARIANTS]
    if unknown:
        raise LabError(f"no such variant: {', '.join(unknown)}; known are: {', '.join(VARIANTS)}")
    return {name: variant for name, variant in VARIANTS.items() if name in wanted}
