"""`nfqlb show ... --watch`: the same documents again and again, until Ctrl-C.

What is in the gateway's snapshots comes from its stream of them; anything else is asked for each time.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from nfqlb.runtime.client import Client
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject

#: Subjects that a snapshot holds: under this name, or all of it.
_IN_SNAPSHOT = {"summary": None, "virtuals": "virtuals", "reals": "reals"}
_TOP = "\x1b[H"  # the cursor to the top left
_REST = "\x1b[K\n"  # clears what an earlier, longer line left
_BELOW = "\x1b[J"


def documents(client: Client, subject: str, args: JSONObject, every: float) -> Iterator[JSON]:
    """The subject's documents, one in `every` seconds. Raises ControlError."""
    if subject not in _IN_SNAPSHOT:
        while True:
            yield client.call(subject, args)
            time.sleep(every)
    name = _IN_SNAPSHOT[subject]
    for snapshot in client.stream("watch", {"every": every}, patience=every):
        if not isinstance(snapshot, dict):
            raise ControlError("bad-reply", "the gateway's snapshot is none")
        yield snapshot if name is None else snapshot.get(name)


def show(found: Iterator[JSON], render: Callable[[JSON], list[str]], *, as_json: bool) -> None:
    """Print documents as they come: on a terminal each in the place of the one before."""
    out = sys.stdout
    for document in found:
        if as_json:
            out.write(json.dumps(document) + "\n")
        else:
            _print(out, [time.strftime("%H:%M:%S"), "", *render(document)])
        out.flush()


def _print(out: TextIO, lines: list[str]) -> None:
    if out.isatty():
        out.write(_TOP + "".join(line + _REST for line in lines) + _BELOW)
    else:
        out.write("\n".join([*lines, "", ""]))
