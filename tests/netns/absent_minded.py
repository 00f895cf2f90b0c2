"""`nfqlb` whose worker is not what it should be once the file that ABSENT_MINDED names is there.

Once for each time that the file is made. With "loop" in it, the worker loses itself over the next packet, for
ever; with "deaf", it goes round and reads no packet any more. As long as it is there with "slow" in it, each
packet takes it five milliseconds more.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nfqlb.netfilter.queue import PacketQueue
from nfqlb.operator.cli import main
from nfqlb.packet.path import PacketPath
from nfqlb.runtime.offload import OffloadPath

Judge = Callable[..., int]
PLACE = Path(os.environ["ABSENT_MINDED"])


def absent_minded(judge: Judge) -> Judge:
    """`judge`, which forgets itself."""

    def judged(self: object, *args: object) -> int:
        if PLACE.exists() and PLACE.read_text() == "loop":
            PLACE.unlink()
            while True:
                pass
        if PLACE.exists() and PLACE.read_text() == "slow":
            time.sleep(0.005)
        return judge(self, *args)

    return judged


def deaf(run: Judge) -> Judge:
    """`run` of a queue, which reads nothing any more once the file has been found."""
    found: list[int] = []

    def read(self: object, budget: int) -> int:
        if PLACE.exists() and PLACE.read_text() == "deaf":
            PLACE.unlink()
            found.append(os.getpid())
        return 0 if os.getpid() in found else run(self, budget)

    return read


if __name__ == "__main__":
    for path in (PacketPath, OffloadPath):
        path.judge = absent_minded(path.judge)  # type: ignore[method-assign]
    PacketQueue.run = deaf(PacketQueue.run)  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
