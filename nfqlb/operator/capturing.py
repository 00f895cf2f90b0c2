"""`nfqlb capture`: takes a capture's packets from the gateway and writes them to a pcapng file.

Owns the loop, and what is written to each packet. A packet that was changed is in the file twice: as it came,
with a comment on what became of it, and as it was sent. There are four interfaces: each side, received and
sent.
"""

import time
from base64 import b64decode
from binascii import Error as BadBase64
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

from nfqlb import __version__
from nfqlb.operator import document as read
from nfqlb.operator import story
from nfqlb.operator.text import count, endpoint, several
from nfqlb.packet import pcapng
from nfqlb.runtime.client import Client
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject

_INTERVAL = 0.1  # seconds between two looks, where nothing waits
#: By whether a packet is the client's: the interface that it came in by, and the one that it was sent by.
_IN, _OUT = {True: 0, False: 2}, {True: 1, False: 3}
_INTERFACES = (
    ("outside-received", "what clients sent, as it came"),
    ("inside-sent", "what clients sent, as it went on to a server"),
    ("inside-received", "what servers sent, as it came"),
    ("outside-sent", "what servers sent, as it went on to a client"),
)
_OFFLOADED = (
    "datapath offload: the kernel translates, and this is what the worker sees: the first packet of each"
    " connection, and copies of headers of those that answer or end it"
)
_REWRITTEN = "datapath rewrite: every packet, as it came and as it was sent"
_WHY = {
    "packets": "as many packets as were asked for",
    "seconds": "the time is over",
    "bytes": "as many bytes as were asked for",
    "stopped": "stopped",
}


class Capture:
    """One capture, from when it has begun. Raises ControlError where it is refused, or breaks off."""

    def __init__(self, client: Client, args: JSONObject) -> None:
        self._client = client
        self._begun = read.whole(client.call("capture", args))
        self._number = int(read.number(self._begun, "capture"))
        most = args.get("bytes")
        self._most = most if isinstance(most, int) else 64 << 20
        self._seen = self._lost = 0
        self._written = self._bytes = 0
        self._ended = ""

    def write(self, file: BinaryIO, stopped: Callable[[], bool]) -> None:
        """Write until the capture ends, or `stopped` says that it shall. Raises OSError, and ControlError."""
        self._put(file, self._heading())
        try:
            while not self._take(file, "stop" if stopped() else "take"):
                file.flush()
                if not stopped():
                    time.sleep(_INTERVAL)
            self._put(file, self._statistics())
            file.flush()
        finally:
            if not self._ended:
                with suppress(ControlError, OSError):
                    self._client.call("capture", {"stop": self._number})

    def told(self) -> str:
        """What it came to, in a line."""
        lost = f", {count(self._lost)} more lost for want of room" if self._lost else ""
        why = _WHY.get(self._ended, _WHY["bytes"])
        virtual = read.text(self._begun, "virtual")
        return f"{several(self._written, 'packet')} of {virtual}{lost}, {count(self._bytes)} bytes: {why}"

    def _heading(self) -> bytes:
        """The file's first blocks."""
        begun = self._begun
        where = endpoint(read.text(begun, "address"), read.port(begun, "port"))
        offloaded = read.text(begun, "datapath") == "offload"
        lines = (
            f"virtual server {read.text(begun, 'virtual')}, {where}/{read.text(begun, 'protocol')},"
            f" {read.text(begun, 'scheduler')}",
            _OFFLOADED if offloaded else _REWRITTEN,
            f"it had {several(read.number(begun, 'connections'), 'connection')} when this began",
        )
        snaplen = int(read.number(begun, "snaplen"))
        version = 6 if ":" in read.text(begun, "address") else 4
        head = pcapng.section("\n".join(lines), f"nfqlb {__version__}")
        return head + b"".join(pcapng.interface(*each, snaplen, version) for each in _INTERFACES)

    def _statistics(self) -> bytes:
        """The last block: how many packets there were, and how many of them are missing."""
        return pcapng.statistics(0, time.time_ns() // 1000, self._seen, self._lost)

    def _take(self, file: BinaryIO, doing: str) -> bool:
        """Write what there is; True where that was the last."""
        waiting = True
        while waiting:
            head, *rows = read.rows(self._client.call("capture", {doing: self._number}))
            self._seen, self._lost = int(read.number(head, "seen")), int(read.number(head, "lost"))
            for row in rows:
                blocks = _blocks(row)
                if self._bytes + len(blocks) + len(self._statistics()) > self._most:
                    return True  # and the gateway is told to end it
                self._put(file, blocks)
                self._written += 1
            waiting = read.number(head, "waiting") > 0
            doing = "take"
        self._ended = read.text(head, "ended")
        return bool(self._ended)

    def _put(self, file: BinaryIO, data: bytes) -> None:
        file.write(data)
        self._bytes += len(data)


def _blocks(row: JSONObject) -> bytes:
    """A packet's block, or its two."""
    inbound = row.get("inbound") is True
    size, at = int(read.number(row, "size")), int(read.number(row, "at"))
    if read.text(row, "became") == "told":
        said = "made by the gateway: no packet of a server"
        return pcapng.packet(_OUT[False], at, _data(row, "sent"), size, comment=said, inbound=False)
    found = pcapng.packet(_IN[inbound], at, _data(row, "data"), size, comment=comment(row))
    if row.get("sent") is not None:
        judged = int(read.number(row, "judged"))
        found += pcapng.packet(_OUT[inbound], judged, _data(row, "sent"), size, inbound=False)
    return found


def comment(row: JSONObject) -> str:
    """What became of a packet; of one that a server was chosen for, what `nfqlb explain` tells."""
    became = read.text(row, "became")
    real = read.optional_text(row, "real")
    whose = ""
    if real is not None:
        whose = f", {endpoint(real, read.port(row, 'port'))}, {read.text(row, 'state')}"
    reason = read.optional_text(row, "reason")
    lines = [f"{became}: {reason}" if reason else f"{became}{whose}"]
    if row.get("decision") is not None:
        decision: JSON = [row["decision"]]
        lines += story.story(decision, now=read.number(row, "at") / 1_000_000)
    return "\n".join(lines)


def _data(row: JSONObject, name: str) -> bytes:
    try:
        return b64decode(read.text(row, name), validate=True)
    except BadBase64:
        raise ControlError("bad-reply", f"the gateway's answer cannot be read: {name}") from None
