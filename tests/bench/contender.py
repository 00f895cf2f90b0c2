"""One variant, up and running in a laboratory of its own, and what its gateway uses.

All contenders stay up during the whole run: nothing of one (rules, conntrack entries, processes) can touch
another, and going from one to the next costs no set-up. An idle one uses no processor time.

Processor time of a process is the scheduler's own count in nanoseconds (`schedstat`; the ticks of `stat`
are too coarse for a round). Work that the kernel does in interrupts, and so all of a gateway without
processes, is in no process: the machine's busy time has it, together with client and servers, which do
the same work in every variant.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nfqlb.demo import web
from nfqlb.demo.lab import Lab, LabError
from nfqlb.demo.network import processes
from tests.bench.variants import PORT, Variant

PREFIX = "nb"
BULK = "/files/bulk"
_BULK_MEBIBYTES = 64
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Used:
    """Processor seconds since boot: of a gateway's processes, and of the whole machine in total."""

    processes: float
    machine: float

    def since(self, before: "Used") -> "Used":
        """What was used between `before` and now."""
        return Used(self.processes - before.processes, self.machine - before.machine)


class Contender:
    """A variant whose laboratory is `lab`, with a page at `http://{address}/` and a large file at `BULK`."""

    def __init__(self, name: str, variant: Variant, lab: Lab, bulk: Path | None) -> None:
        """Starts servers and gateway and returns once a page came through. `bulk`: a large file to share."""
        self.name = name
        self.variant = variant
        self.lab = lab
        self._servers = [web.serve(lab, server, ports=(PORT,), log=False) for server in lab.servers]
        self.bulk = lab.directory / "files/bulk"
        if bulk is None:
            web.document(lab, "bulk", _BULK_MEBIBYTES)
        else:
            self.bulk.hardlink_to(bulk)
        lab.client.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
        self.address = variant.start(lab)
        self._prove()

    def _prove(self) -> None:
        """Fetch a few pages: they must come, and from every server where there is a load balancer."""
        script = (
            f"for i in $(seq {4 * len(self.lab.servers)}); do {_CURL} http://{self.address}:{PORT}/; done"
        )
        answers = self.lab.client.run("sh", "-ec", script, timeout=60.0).stdout.splitlines()
        seen = {answer.split()[0] for answer in answers}
        balanced = self.address not in {server.address for server in self.lab.servers}
        if len(seen) != (len(self.lab.servers) if balanced else 1):
            raise LabError(f"{self.name}: the pages came from {', '.join(sorted(seen)) or 'nowhere'}")

    def used(self) -> Used:
        """Processor time used so far."""
        return Used(sum(map(_seconds, self._pids())), _machine_seconds())

    def memory(self) -> int:
        """Bytes of memory of the gateway's processes; what they share with each other counts once (PSS)."""
        return sum(map(_proportional_bytes, self._pids()))

    def drops(self) -> int:
        """Packets that the gateway's queues lost: the queue or the listener's socket was full."""
        for pid in self._pids():
            with suppress(OSError):
                table = Path(f"/proc/{pid}/net/netfilter/nfnetlink_queue").read_text()
                rows = [line.split() for line in table.splitlines()]
                return sum(int(row[5]) + int(row[6]) for row in rows)
        return 0

    def flush(self) -> None:
        """Empty the gateway's connection tracking, so that its size does not depend on earlier rounds."""
        self.lab.gateway.run("conntrack", "-F")

    def _pids(self) -> Iterator[int]:
        return processes(self.lab.gateway.namespace)


def complaints(lab: Lab) -> str:
    """What the programs of a laboratory's gateway wrote to their error output, the end of it."""
    texts = [path.read_text(errors="replace").strip() for path in lab.directory.glob("*-gateway-*.err")]
    return "\n".join(text[-_SHOWN:] for text in texts if text)


_SHOWN = 2000  # characters
_CURL = "curl -sf --retry 20 --retry-connrefused --retry-delay 1 --max-time 2"


def _seconds(pid: int) -> float:
    total = 0
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _machine_seconds() -> float:
    """Busy time of all processors (proc(5): user, nice, system, then idle, iowait, then irq, softirq)."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:8]]
    return (sum(fields[0:3]) + sum(fields[5:7])) / _TICK


def _proportional_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
