"""Who goes on where no gateway answers: a worker without its supervisor, or the kernel alone.

The kernel is alone where rules of ours let new connections by, and nobody reads their queue. A worker that is
alone has put the moment of its end where it can be seen from outside (`mark`), as the time of the file at
which it can be taken over from: on the monotonic clock, so that it lies decades before any file's. Asked for
where no gateway answers, by commands that start quickly: so nothing is imported that takes long.
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

_QUEUES = Path("/proc/net/netfilter/nfnetlink_queue")
_BYPASSED = re.compile(r"^-A NFQLB-O-QUEUE .*--queue-num (\d+) --queue-bypass", re.MULTILINE)
_PATIENCE = 5  # seconds for a listing
_RUN = Path("/run/nfqlb")
_UNIX = Path("/proc/net/unix")
_DECADES = 1e9  # seconds that no machine is up for, and that every file's time is beyond
_SYSTEM = ":/usr/local/sbin:/usr/sbin:/sbin"  # which `su` and cron leave out


def alone() -> bool:
    """Whether the kernel spreads new connections by itself. Who may not look sees nothing: False."""
    try:
        with _QUEUES.open(encoding="ascii", errors="replace") as file:
            read = {int(line.split()[0]) for line in file if line.strip()}
    except FileNotFoundError:
        read = set()  # the kernel's module is gone, and all that was bound with it
    except (OSError, ValueError):
        return False
    return not read.issuperset(bypassed(_listings()))


def place() -> Path:
    """The socket at which the gateway of this network namespace can be taken over from."""
    return _RUN / f"net-{os.stat('/proc/thread-self/ns/net').st_ino}.sock"  # noqa: PTH116 - as procfs does


def mark(place: Path, left: float) -> None:
    """In a worker that is alone for so many seconds more: let it be seen. `place` is its socket's."""
    with contextlib.suppress(OSError):
        os.utime(place, (time.monotonic() + left,) * 2)


def worker(place: Path) -> float | None:
    """For how many seconds a worker goes on alone there; None where there is none."""
    try:
        until = place.stat().st_mtime
        with _UNIX.open(encoding="utf-8", errors="replace") as sockets:
            there = any(line.endswith(f" {place}\n") for line in sockets)
    except OSError:
        return None
    return max(0.0, until - time.monotonic()) if there and until < _DECADES else None


def bypassed(listing: str) -> set[int]:
    """The queues past which a listing of the raw table leads where nobody reads them."""
    return set(map(int, _BYPASSED.findall(listing)))


def _listings() -> str:
    """The raw tables of both families, as far as they can be listed."""
    return "".join(_output((f"{program}-save", "-t", "raw")) for program in ("iptables", "ip6tables"))


def _output(command: Iterable[str]) -> str:
    name, *words = command
    program = shutil.which(name, path=os.environ.get("PATH", os.defpath) + _SYSTEM)
    if program is None:
        return ""
    try:
        return subprocess.run(
            [program, *words], capture_output=True, text=True, timeout=_PATIENCE, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
