"""What `nfqlb replay` prints: the spread over servers, as captured and under the configuration, side by side.

Owns the way from a file to the document, and from the document to lines.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nfqlb.core.spec import Config
from nfqlb.operator.commands.common import FailureError
from nfqlb.operator.story import moment
from nfqlb.operator.text import Row, age, clean, count, endpoint, response, several, table
from nfqlb.packet.frame import DamagedError, Frame
from nfqlb.packet.pcap import CaptureFile
from nfqlb.replay.outcome import Document, replay

#: Decisions that are listed one by one, of those that differ.
_LISTED = 20
#: Addresses that are named where none of the capture's is of the configuration.
_NAMED = 8


def replayed(config: Config, file: BinaryIO, name: str) -> Document:
    """The document of a capture run through a configuration. Raises FailureError, which names the file."""
    cut: list[int] = []

    def frames() -> Iterator[Frame]:
        file.seek(0)
        capture = CaptureFile(file)
        yield from capture.frames()
        cut[:] = [] if capture.cut_at is None else [capture.cut_at]

    try:
        document = replay(config, frames)
    except DamagedError as error:
        raise FailureError(f"nfqlb: {name}: {error}") from None
    return {"file": name, "cut_at": cut[0] if cut else None, **document}


def as_json(document: Document) -> list[str]:
    """One JSON document."""
    return json.dumps(document, indent=2).splitlines()


def render(document: Document, *, everything: bool) -> list[str]:
    """The lines for people. `everything` lists every decision, not only some that differ."""
    lines = [*_heading(document)]
    for virtual in document["virtuals"]:
        if virtual["decisions"] or not any(each["decisions"] for each in document["virtuals"]):
            lines += ["", *_virtual(virtual)]
    lines += _decisions(document, everything)
    lines += ["", "Modelled:", *(f"- {each}" for each in document["modelled"])]
    lines += ["Not modelled:", *(f"- {each}" for each in document["not_modelled"])]
    return [clean(line) for line in lines]


_SIDES = {
    "both": "seen on both sides of the gateway",
    "clients": "seen on the clients' side alone",
    "servers": "seen on the servers' side alone",
}


def _heading(document: Document) -> Iterator[str]:
    packets = several(document["packets"], "packet")
    yield (
        f"{document['file']}: {packets} of these virtual servers in {age(document['seconds'])}, "
        + _SIDES[document["sides"]]
    )
    if document["earlier"]:
        earlier, packets = document["earlier"], document["unmodelled"]
        yield (
            f"it did not begin with the gateway: {several(earlier, 'connection')} from before, whose clients"
            f" sent {several(packets, 'packet')} in it, left out as the opening is not in it"
        )
    if document["untold"]:
        yield f"passed over: {several(document['untold'], 'frame')} without a segment or datagram to be read"
    if document["cut_at"] is not None:
        yield f"the file ends within a packet, at byte {document['cut_at']}: read so far"


def nothing(document: Document, config: Path) -> str:
    """Why there is nothing to replay: of whom the capture is instead."""
    wanted = (
        f"{each['name']} {endpoint(each['address'], each['port'])}/{each['protocol']}"
        for each in document["virtuals"]
    )
    lines = [
        f"nfqlb: {document['file']}: it has no packet for any of the virtual servers of {config}:",
        *_some(list(wanted)),
    ]
    others = [
        f"{endpoint(each['address'], each['port'])}, {several(each['connections'], 'connection')}"
        for each in document["elsewhere"]
    ]
    if others:
        lines += ["what is in it went to:", *_some(others)]
    return "\n".join(lines)


def _some(told: list[str]) -> list[str]:
    more = [f"  and {count(len(told) - _NAMED)} more"] if len(told) > _NAMED else []
    return [*(f"  {each}" for each in told[:_NAMED]), *more]


def _virtual(virtual: Document) -> list[str]:
    """What came of a virtual server: how many decisions were the same, and the spread."""
    decisions, known = virtual["decisions"], virtual["same"] + virtual["different"]
    told = [several(decisions, "decision")]
    if known:
        told.append(f"{count(virtual['same'])} as in the capture ({virtual['same'] / known:.0%})")
        told.append(f"{count(virtual['different'])} other")
    if virtual["unknown"]:
        told.append(f"{count(virtual['unknown'])} of which the capture does not tell")
    told += [f"{count(number)} refused ({reason})" for reason, number in virtual["refused"].items()]
    where = endpoint(virtual["address"], virtual["port"])
    lines = [f"{virtual['name']}, {where}/{virtual['protocol']}, {virtual['scheduler']}: {', '.join(told)}"]
    shadow = virtual["shadow"]
    if shadow is not None and shadow["evaluated"]:
        part = shadow["differed"] / shadow["evaluated"]
        lines.append(
            f"  shadow {shadow['scheduler']}: another server in {part:.1%} of"
            f" {several(shadow['evaluated'], 'decision')}"
        )
    return lines + [f"  {line}" for line in _spread(virtual["servers"])]


def _spread(servers: list[Document]) -> list[str]:
    titles = ("SERVER", "CAPTURED", "SHARE", "MOST", "REPLAYED", "SHARE", "MOST", "RESP")
    totals = [sum(each[which] for each in servers) for which in ("captured", "replayed")]
    rows: list[Row] = []
    for each in servers:
        host = each["real"] or each["address"]
        took = each["response_s"]
        cells = [endpoint(host, each["port"])]
        for which, total in zip(("captured", "replayed"), totals, strict=True):
            share = f"{each[which] / total:.0%}" if total else ""
            cells += [
                count(each[which]) if total else "-",
                share,
                count(each[f"{which}_most"]) if total else "",
            ]
        rows.append((*cells, response(took)))
    return table(titles, rows, right=titles[1:])


def _decisions(document: Document, everything: bool) -> list[str]:
    found = [
        each
        for each in document["decisions"]
        if everything or each["captured"] not in (None, each["replayed"])
    ]
    if not found:
        return []
    told = found if everything else found[:_LISTED]
    rows: list[Row] = [
        (
            moment(each["at"], document["at"]),
            each["virtual"],
            endpoint(each["client"], each["client_port"]),
            each["captured"] or "?",
            each["replayed"] or f"- ({each['refused']})",
            _by(each),
        )
        for each in told
    ]
    lines = ["", *table(("WHEN", "VIRTUAL", "CLIENT", "CAPTURED", "REPLAYED", "BY"), rows)]
    if len(found) > len(told):
        lines.append(
            f"(the first {len(told)} of {count(len(found))} that differ; --all lists every decision)"
        )
    return lines


def _by(decision: dict[str, Any]) -> str:
    by = decision["by"] or ""
    return f"{by}, sent on" if decision["again"] else by
