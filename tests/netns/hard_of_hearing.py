"""`nfqlb` whose tap has room for next to nothing: what happens while it does something else, it misses."""

import sys
from functools import partial

from nfqlb.netfilter.tap import Tap
from nfqlb.operator.cli import main
from nfqlb.runtime import datapaths

if __name__ == "__main__":
    # each copy by itself, and room for one or two of them
    datapaths.Tap = partial(Tap, receive_buffer=1, threshold=1)  # type: ignore[assignment,attr-defined]
    sys.exit(main(sys.argv[1:]))
