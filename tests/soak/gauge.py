"""Memory and descriptors of a process, and whether memory grows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True, slots=True)
class Gauge:
    """What a process holds: memory in KiB as the kernel counts it (proc(5), smaps_rollup), descriptors.

    `rss` is all that is in main memory, `pss` with what is shared divided among those that share it, `anon`
    what is in no file.
    """

    pid: int
    rss: int
    pss: int
    anon: int
    descriptors: int


def gauge(pid: int) -> Gauge:
    """Of a running process. Raises OSError."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0])
    return Gauge(pid, fields["Rss"], fields["Pss"], fields["Anonymous"], descriptors(pid))


def descriptors(pid: int) -> int:
    """How many, without those of clients of the control socket that have just gone."""
    counts = []
    for _ in range(4):
        time.sleep(0.1)
        counts.append(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))
    return min(counts)


def growth(sizes: Sequence[int]) -> float:
    """By how much the median of the last third is above that of the first, as a part of the first."""
    third = max(1, len(sizes) // 3)
    first, last = median(sizes[:third]), median(sizes[-third:])
    return last / first - 1
