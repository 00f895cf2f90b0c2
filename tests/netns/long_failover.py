"""What a failover costs: `python -m tests.netns.long_failover power|plan|dead [DATAPATH] [COUNT]`.

COUNT connections (1,000) are kept busy over one of two gateways and some twenty a second are made, through
DATAPATH (offload). Then it loses its `power`, hands over by `plan`, or its nfqlb is `dead`. Prints what
`busy.py` says of it; status 1 where a connection failed.
"""

import json
import os
import sys
import time
from signal import SIGKILL
from typing import Any, cast

from nfqlb.demo.lab import VIP
from nfqlb.demo.web import serve
from tests.netns.asking import wait_until
from tests.netns.pair import Machine, Pair
from tests.netns.test_failover import BUSY, told_of

_SETTLED = 4.0  # seconds that connections have for the other gateway, before they are looked at


def fail(lab: Pair, machine: Machine, how: str) -> None:
    """Let a gateway fail."""
    if how == "power":
        lab.cut_off(machine)
    elif how == "plan":
        machine.stop_keepalived()
    else:
        worker = cast(dict[str, Any], machine.ask("summary"))["worker"]["pid"]
        os.kill(machine.programs["nfqlb"].pid, SIGKILL)
        os.kill(worker, SIGKILL)


def main(how: str, datapath: str = "offload", count: str = "1000") -> int:
    """Returns the exit status."""
    with Pair(clients=1, servers=2) as lab:
        for server in lab.servers:
            serve(lab, server, log=False)
        first, second = lab.machines
        for machine in lab.machines:
            text = machine.config.read_text()
            machine.config.write_text(text.replace('datapath = "offload"', f'datapath = "{datapath}"'))
            machine.boot()
        first.join()
        wait_until(lambda: first.serves, "the first gateway")
        second.join()
        load = lab.client.start(sys.executable, BUSY, VIP, "80", count)
        load.wait_for(load.out, "busy\n", timeout=60.0)
        wait_until(lambda: told_of(second) >= int(count), "what the second gateway is told")
        begun = time.monotonic()
        fail(lab, first, how)
        wait_until(lambda: second.serves, "the second gateway")
        taken_over = time.monotonic() - begun
        time.sleep(_SETTLED)
        load.stop(timeout=30.0)
        found = json.loads(load.stdout.splitlines()[-1])
    said = {name: round(value, 2) for name, value in found.items()}
    sys.stdout.write(f"{how}, {datapath}: taken over after {taken_over:.1f} s; {said}\n")
    return 1 if found["failed"] or found["unmade"] else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main(*sys.argv[1:]))
