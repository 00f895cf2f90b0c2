"""What came of a replay, as one document: JSON's own kinds, times in seconds, addresses as text.

Owns the names of its fields, and the two lists of what is modelled and what is not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from statistics import median
from typing import Any

from nfqlb.core import spec
from nfqlb.core.keys import client_of, client_port_of
from nfqlb.core.segment import Stamp
from nfqlb.core.server import VirtualServer
from nfqlb.packet.frame import Frame
from nfqlb.replay.evidence import Evidence, Sides, Sightings
from nfqlb.replay.rerun import Load, Placed, Rerun

Document = dict[str, Any]

_MODELLED = (
    "every connection that begins in the capture, in its order and at its times",
    "all settings of the configuration: schedulers, weights, limits, stickiness, failures, time-outs",
    "response times: each server's own, as the capture has them",
)
_NOT_MODELLED = (
    "a connection that goes to another server than in the capture is answered, and lasts, as it did there",
    "a server that gets more connections than in the capture is not slower for it",
    "connections, sticky entries, turns and failures from before the capture: there are none to begin with",
    "what an operator did meanwhile, ICMP errors, and resets that the gateway itself sent",
)
_NO_HANDSHAKES = (
    "clients' ACKs are not in the capture: a connection that the server answers counts as established"
)
_SERVERS_ALONE = (
    "only servers' side is in the capture: which address clients asked is not known, so all that servers got"
    " on these ports is held to have come through these virtual servers"
)
_ONE_SIDE = (
    "only clients' side is in the capture: which servers they got is not known, so they are held to have"
    " got those of the replay"
)


def replay(config: spec.Config, frames: Callable[[], Iterable[Frame]]) -> Document:
    """Run a capture through a configuration.

    `frames` gives the capture's frames from the beginning, and is called twice. Raises DamagedError.
    """
    rerun = Rerun(config)
    evidence = Evidence(rerun.director.virtual_servers)
    sightings = Sightings()
    for seen in sightings.of(frames()):
        evidence.note(seen)
    rerun.begin(evidence)
    for number, seen in enumerate(Sightings().of(frames()), 1):
        rerun.put(seen, number)
    sides = evidence.sides
    begin, end = sightings.first, sightings.last
    names = _names(config)
    return {
        "at": _seconds(begin) if begin else None,
        "seconds": round(_seconds(end) - _seconds(begin), 6) if begin else 0.0,
        "frames": sightings.frames,
        "packets": evidence.packets,
        "untold": sightings.untold,
        "repeated": sightings.repeated,
        "sides": _sides(sides),
        "earlier": rerun.earlier,
        "unmodelled": rerun.unmodelled,
        "elsewhere": [_elsewhere(*each) for each in evidence.others],
        "virtuals": [_virtual(virtual, rerun, names) for virtual in rerun.director.virtual_servers],
        "decisions": [_decision(placed, names) for placed in rerun.placed],
        "modelled": list(_MODELLED),
        "not_modelled": [*_NOT_MODELLED, *_assumed(sides)],
    }


def _elsewhere(target: bytes, number: int) -> Document:
    """An address that is nobody's in the configuration, and how many connections or flows went to it."""
    port = int.from_bytes(target[-2:], "big")
    return {"address": str(ip_address(target[:-2])), "port": port, "connections": number}


def _assumed(sides: Sides) -> Iterator[str]:
    if sides.handshakes:
        yield _NO_HANDSHAKES
    if not sides.outside:
        yield _SERVERS_ALONE
    if sides.outside and not sides.answers_inside:
        yield _ONE_SIDE


def _sides(sides: Sides) -> str:
    if not sides.outside:
        return "servers"
    return "both" if sides.answers_inside else "clients"


def _virtual(virtual: VirtualServer, rerun: Rerun, names: Mapping[bytes, str]) -> Document:
    name = virtual.spec.name
    mine = [placed for placed in rerun.placed if placed.virtual is virtual]
    told = [placed for placed in mine if placed.captured]
    same = sum(placed.captured == placed.server for placed in told)
    refused: dict[str, int] = {}
    for placed in mine:
        if placed.decision.refused is not None and placed.link is None:
            reason = placed.decision.refused.value
            refused[reason] = refused.get(reason, 0) + 1
    shadow = virtual.shadow
    return {
        "name": name,
        "address": str(virtual.spec.address),
        "protocol": virtual.spec.protocol,
        "port": virtual.port,
        "scheduler": virtual.spec.scheduler,
        "decisions": len(mine),
        "same": same,
        "different": len(told) - same,
        "unknown": len(mine) - len(told),
        "refused": refused,
        "shadow": None if shadow is None else {
            "scheduler": shadow.scheduler.name, "evaluated": shadow.evaluated, "differed": shadow.differed,
        },
        "servers": [_server(name, server, rerun, names) for server in _places(virtual, rerun)],
    }  # fmt: skip


def _places(virtual: VirtualServer, rerun: Rerun) -> list[bytes]:
    """The address and port of every server that got one, or might have, the configuration's first."""
    name = virtual.spec.name
    own = [link.real.address + link.port.to_bytes(2, "big") for link in virtual.everybody if link.port]
    used = [
        server for of in (rerun.captured, rerun.replayed, rerun.elsewhere) for at, server in of if at == name
    ]
    return list(dict.fromkeys([*own, *sorted(used)]))


def _server(name: str, server: bytes, rerun: Rerun, names: Mapping[bytes, str]) -> Document:
    captured = rerun.captured.get((name, server), Load())
    replayed = rerun.replayed.get((name, server), Load())
    real = names.get(server[:-2])
    took = rerun.responses.get(real, []) if real is not None else []
    return {
        "real": real,
        "address": str(ip_address(server[:-2])),
        "port": int.from_bytes(server[-2:], "big"),
        "captured": captured.given + rerun.elsewhere[name, server],
        "captured_most": captured.most,
        "replayed": replayed.given,
        "replayed_most": replayed.most,
        "responses": len(took),
        "response_s": round(median(took), 6) if took else None,
    }


def _decision(placed: Placed, names: Mapping[bytes, str]) -> Document:
    decision, key = placed.decision, placed.key
    shadow = decision.shadowed
    return {
        "at": _seconds(placed.at),
        "virtual": placed.virtual.spec.name,
        "client": str(ip_address(client_of(key))),
        "client_port": client_port_of(key),
        "captured": _spelled(placed.captured, names),
        "replayed": _spelled(placed.server, names),
        "by": decision.by or None,
        "refused": decision.refused.value if decision.refused and placed.link is None else None,
        "again": placed.again,
        "shadow": shadow.real.spec.name if shadow is not None else None,
    }


def _spelled(server: bytes, names: Mapping[bytes, str]) -> str | None:
    """A server by its name or address, with its port; None for none."""
    if not server:
        return None
    address = ip_address(server[:-2])
    host = names.get(server[:-2], f"[{address}]" if address.version == 6 else str(address))
    return f"{host}:{int.from_bytes(server[-2:], 'big')}"


def _names(config: spec.Config) -> dict[bytes, str]:
    return {real.address.packed: real.name for real in config.reals}


def _seconds(stamp: Stamp) -> float:
    return round(stamp[0] + stamp[1] / 1_000_000, 6)
