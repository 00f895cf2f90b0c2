"""`nfqlb` whose worker loses itself over the next packet, for ever, where the file ABSENT_MINDED is there."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from nfqlb.operator.cli import main
from nfqlb.packet.path import PacketPath
from nfqlb.runtime.offload import OffloadPath

Judge = Callable[..., int]


def absent_minded(judge: Judge) -> Judge:
    """`judge`, which forgets itself once for each time that the file is made."""
    place = Path(os.environ["ABSENT_MINDED"])

    def judged(self: object, *args: object) -> int:
        if place.exists():
            place.unlink()
            while True:
                pass
        return judge(self, *args)

    return judged


if __name__ == "__main__":
    for path in (PacketPath, OffloadPath):
        path.judge = absent_minded(path.judge)  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
