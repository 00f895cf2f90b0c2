"""`nfqlb` with a defect in a part of it, while the file that BROKEN names has that part's word in it.

The parts are those of PARTS; "birth" has every worker end as it starts, "death" with the next packet, as by a
defect in a library. With WITHIN in the environment, five restarts are too many in so many seconds.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nfqlb.core.director import Director
from nfqlb.core.schedulers.round_robin import RoundRobin
from nfqlb.netfilter.messages import QueueMessages
from nfqlb.operator.cli import main
from nfqlb.runtime import scrapes, workers
from nfqlb.runtime.beat import Beat
from nfqlb.runtime.control import Server
from nfqlb.runtime.datapaths import Paths
from nfqlb.runtime.desk import Desk
from nfqlb.runtime.logs import _Out
from nfqlb.runtime.metrics import Metrics
from nfqlb.runtime.queues import QueueWatch
from nfqlb.runtime.worker import Worker

PLACE = Path(os.environ["BROKEN"])
PARTS: dict[str, list[tuple[Any, str]]] = {
    "scheduler": [(RoundRobin, "choose")],
    "logging": [(_Out, "format")],
    "metrics": [(scrapes, "pieces"), (Metrics, "tick")],
    "control": [(Desk, "answer"), (Server, "tick")],
    "snapshot": [(QueueWatch, "look"), (Desk, "glance")],
    "timers": [(Director, "tick")],
    "news": [(Beat, "tell")],
    "queue": [(QueueMessages, "find")],
    "complaint": [(RoundRobin, "choose"), (Worker, "_complain")],
    "birth": [(Paths, "__init__")],
}


def is_broken(part: str) -> bool:
    """Whether a part has its defect now."""
    try:
        return PLACE.read_text() == part
    except OSError:
        return False


def breakable(part: str, works: Callable[..., Any]) -> Callable[..., Any]:
    """`works`, unless its part has its defect."""

    def called(*args: Any, **words: Any) -> Any:
        if is_broken(part):
            raise RuntimeError(f"a defect in {part}")
        return works(*args, **words)

    return called


def mortal(find: Callable[..., Any]) -> Callable[..., Any]:
    """`find`, over which the process may die."""

    def called(*args: Any) -> Any:
        if is_broken("death"):
            os.abort()
        return find(*args)

    return called


if __name__ == "__main__":
    for part, places in PARTS.items():
        for owner, name in places:
            setattr(owner, name, breakable(part, getattr(owner, name)))
    workers.WITHIN = float(os.environ.get("WITHIN", workers.WITHIN))
    QueueMessages.find = mortal(QueueMessages.find)  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
