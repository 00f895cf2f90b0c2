"""What a failover costs: `python -m tests.netns.long_failover power|plan|dead [DATAPATH] [COUNT]`.

COUNT connections (1,000), half of them by IPv6, are kept busy over one of two gateways, and some forty a
second are made, through DATAPATH (offload). Then it loses its `power`, hands over by `plan`, or its nfqlb is
`dead`. Prints what `busy.py` says of it for each family; status 1 where a connection failed.
"""

import json
import os
import sys
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from signal import SIGCONT, SIGTERM
from typing import cast

from nfqlb.demo.lab import VIP, VIP6
from nfqlb.demo.programs import Program
from nfqlb.demo.web import serve
from tests.netns.asking import wait_until
from tests.netns.pair import Machine, Pair
from tests.netns.test_failover import BUSY, told_of

_SETTLED = 4.0  # seconds that connections have for the other gateway, before they are looked at
#: Up to so many connections each asks every 50 ms; more of them this often a second, all together.
_BUSIEST, _QUESTIONS = 2_000, 1_000
_OF_EACH = 5_000  # connections of a client, and of its server, about: nginx there has room for 8,192
_COUNTED = {"kept", "failed", "made", "unmade"}


def fail(lab: Pair, machine: Machine, how: str) -> None:
    """Let a gateway fail."""
    if how == "power":
        lab.cut_off(machine)
    elif how == "plan":
        machine.stop_keepalived()
    else:
        machine.kill()


def configure(lab: Pair, machine: Machine, datapath: str) -> None:
    """The example's configuration, with this datapath and all servers of the laboratory."""
    text = machine.config.read_text().replace('datapath = "offload"', f'datapath = "{datapath}"')
    for end, address in (("", "address"), ("-6", "address6")):
        reals = {f"{server.name}{end}": getattr(server, address) for server in lab.servers}
        text = text.replace(f'servers = ["web1{end}", "web2{end}"]', f"servers = {json.dumps(list(reals))}")
        for name in list(reals)[2:]:
            text += f'[[real]]\nname = "{name}"\naddress = "{reals[name]}"\n'
    machine.config.write_text(text)


def prefer(machine: Machine) -> None:
    """Let its programs go before those of clients and servers, which would be on machines of their own."""
    for program in machine.programs.values():
        with suppress(OSError):  # a kernel that makes no difference between sessions
            Path(f"/proc/{program.pid}/autogroup").write_text("-15")


def keep_busy(lab: Pair, address: str, count: int, pause: float) -> list[Program]:
    """So many connections of each client to an address; the first one makes new ones as well."""
    programs: list[Program] = []
    for client in lab.clients:
        new = "0" if programs else "0.05"
        words = (sys.executable, BUSY, address, "80", str(count), str(pause), new)
        programs.append(client.start(*words))
        programs[-1].wait_for(programs[-1].out, "busy\n", timeout=120.0)
    return programs


def result(programs: list[Program]) -> dict[str, float]:
    """What they say at their end: sums, and the longest times."""
    found = []
    for program in programs:
        program.stop(SIGCONT, timeout=30.0)  # it has been told to end
        assert not program.stderr, program.stderr
        found.append(cast(dict[str, float], json.loads(program.stdout.splitlines()[-1])))
    return {
        name: round((sum if name in _COUNTED else max)(each[name] for each in found), 2) for name in found[0]
    }


def main(how: str, datapath: str = "offload", count: str = "1000") -> int:
    """Returns the exit status."""
    number = int(count)
    pause = 0.05 if number <= _BUSIEST else number / _QUESTIONS
    size = -(-number // _OF_EACH)
    with Pair(clients=size, servers=max(2, size)) as lab:
        for server in lab.servers:
            serve(lab, server, log=False)
        first, second = lab.machines
        for machine in lab.machines:
            configure(lab, machine, datapath)
            machine.boot()
        first.join()
        wait_until(lambda: first.serves, "the first gateway")
        second.join()
        for machine in lab.machines:
            prefer(machine)
        loads = {address: keep_busy(lab, address, number // 2 // size, pause) for address in (VIP, VIP6)}
        wait_until(lambda: told_of(second) >= number, "what the second gateway is told", timeout=60.0)
        begun = time.monotonic()
        fail(lab, first, how)
        wait_until(lambda: second.serves, "the second gateway")
        taken_over = time.monotonic() - begun
        time.sleep(_SETTLED + 1.2 * pause)
        for load in chain(*loads.values()):
            load.send(SIGTERM)
        found = {address: result(load) for address, load in loads.items()}
    sys.stdout.write(f"{how}, {datapath}: taken over after {taken_over:.1f} s\n")
    for address, values in found.items():
        sys.stdout.write(f"{address}: {values}\n")
    return 1 if any(values["failed"] or values["unmade"] for values in found.values()) else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main(*sys.argv[1:]))
