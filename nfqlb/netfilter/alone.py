"""Whether the kernel is alone at present: rules of ours let new connections by, and nobody reads their queue.

Asked for where no gateway answers, by commands that start quickly: so nothing is imported that takes long.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

_QUEUES = Path("/proc/net/netfilter/nfnetlink_queue")
_BYPASSED = re.compile(r"^-A NFQLB-O-QUEUE .*--queue-num (\d+) --queue-bypass", re.MULTILINE)
_PATIENCE = 5  # seconds for a listing
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
