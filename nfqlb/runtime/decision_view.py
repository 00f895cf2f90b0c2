"""The documents of `decisions`, and how a connection is named that a decision is asked for by.

Owns what the core does not know: the wall time of a decision. Pure: snapshots in, documents out.
"""

import re
from dataclasses import replace
from ipaddress import ip_address
from math import isfinite

from nfqlb.core.explanation import Wanted
from nfqlb.core.snapshot import CandidateSnapshot, DecisionSnapshot
from nfqlb.core.spec import Address
from nfqlb.runtime.protocol import JSONObject

_PORT = re.compile(r"[0-9]{1,5}\Z")
QUAD = "CLIENT:PORT or CLIENT:PORT-ADDRESS:PORT, IPv6 addresses in brackets"


def decision(snapshot: DecisionSnapshot, wall: float) -> JSONObject:
    """One row of `decisions`; `wall` is the wall time (seconds since 1970) that its age is counted from."""
    return {
        "at": round(wall - snapshot.age, 3),
        "age_s": round(snapshot.age, 3),
        "virtual": snapshot.virtual,
        "protocol": snapshot.protocol,
        "address": str(snapshot.address),
        "port": snapshot.port,
        "client": str(snapshot.client),
        "client_port": snapshot.client_port,
        "chosen": snapshot.chosen,
        "chosen_port": snapshot.chosen_port,
        "refused": snapshot.refused,
        "unanswered_by": snapshot.unanswered_by,
        "by": snapshot.by,
        "scheduler": snapshot.scheduler,
        "scheduler_note": list(snapshot.note),
        "ageing": snapshot.ageing,
        "predict": snapshot.predict,
        "set_aside": snapshot.set_aside,
        "last_used": snapshot.last,
        "tie_break": snapshot.equal,
        "sticky": {
            "said": snapshot.sticky.said,
            "real": snapshot.sticky.real,
            "reason": snapshot.sticky.reason,
            "written": snapshot.sticky.written,
        },
        "candidates": [_candidate(each) for each in snapshot.candidates],
        "shadow": None
        if snapshot.shadow is None
        else {
            "scheduler": snapshot.shadow.scheduler,
            "real": snapshot.shadow.real,
            "port": snapshot.shadow.port,
        },
        "others": dict(sorted(snapshot.others.items())),
        "doubted": dict(snapshot.doubted),
        "ditched": snapshot.ditched,
    }


def _candidate(snapshot: CandidateSnapshot) -> JSONObject:
    return {
        "real": snapshot.real,
        "port": snapshot.port,
        "backup_for": snapshot.stands_for,
        "state": snapshot.state,
        "state_age_s": round(snapshot.state_age, 3),
        "weight": snapshot.weight,
        "connections": snapshot.connections,
        "max_connections": snapshot.max_connections,
        "unanswered": snapshot.unanswered,
        "syn_limit": snapshot.syn_limit,
        "response_s": _fine(snapshot.response),
        "ratio_s": _fine(snapshot.ratio),
        "response_age_s": _fine(snapshot.response_age),
        "predicted_s": _fine(snapshot.predicted),
        "indicium": _fine(snapshot.indicium),
        "reason": snapshot.reason,
    }


def _fine(value: float | None) -> float | None:
    """A number to the sixth place; null where JSON has none for it."""
    return None if value is None or not isfinite(value) else round(value, 6)


def of_connection(text: str, wanted: Wanted) -> Wanted:
    """`wanted` narrowed to a connection as QUAD says. Raises ValueError where the text names none."""
    client, _, virtual = text.partition("-")
    address, port = _endpoint(client)
    if wanted.client not in (None, address):
        raise ValueError(f"{text!r} is not one of the client {wanted.client}")
    wanted = replace(wanted, client=address, client_port=port)
    if not virtual:
        return wanted
    address, port = _endpoint(virtual)
    return replace(wanted, address=address, port=port)


def _endpoint(text: str) -> tuple[Address, int]:
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        address = None
    if address is None or bracketed is not (address.version == 6) or not _PORT.match(port):
        raise ValueError(f"{text!r} is not an address and a port")
    return address, int(port)
