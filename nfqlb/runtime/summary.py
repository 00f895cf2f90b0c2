"""The document of `summary`: the gateway as a whole.

It has two halves, because the worker knows the connections and what was lost of packets, and the supervisor
the processes and queues. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nfqlb.core.snapshot import Totals
from nfqlb.netfilter.queue_status import QueueStatus, Room
from nfqlb.runtime.protocol import JSON, JSONObject


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """What the supervisor knows of the gateway. `uptime` is in seconds, `worker_pid` None where none runs.

    `roles` is what each queue is for, `rooms` what it has room for, both by its number. `stumbles` are the
    supervisor's own.
    """

    version: str
    datapath: str
    state: str
    uptime: float
    worker_pid: int | None
    worker_restarts: int
    queues: Sequence[QueueStatus]
    roles: Mapping[int, str] = field(default_factory=dict)
    rooms: Mapping[int, Room] = field(default_factory=dict)
    stumbles: int = 0

    def kernel_rows(self) -> dict[JSON, JSONObject]:
        """What the kernel says of each queue, by number: the part of its row that no worker is asked for."""
        return {queue.number: _kernel_row(queue, self.rooms.get(queue.number)) for queue in self.queues}


@dataclass(frozen=True, slots=True)
class Losses:
    """What the worker has judged, and what it could not read, answer or keep. Queues are by number.

    `packets`: judged, in `busy_s` seconds. `overruns`: reports that the kernel had no room to hand a packet
    over; `refused`: verdicts that it did not take; `unreadable`: packets in a message of a shape not
    understood. `unkept` are records that found no room in the journal: connections, and servers.
    `stumbles` are defects that the worker went on from, beside those in judging a packet.
    `followed` is what was not told in time of connections that the kernel carries, by what it is.
    """

    packets: Mapping[int, int] = field(default_factory=dict)
    busy_s: Mapping[int, float] = field(default_factory=dict)
    overruns: Mapping[int, int] = field(default_factory=dict)
    refused: Mapping[int, int] = field(default_factory=dict)
    unreadable: Mapping[int, int] = field(default_factory=dict)
    unkept: int = 0
    stumbles: int = 0
    followed: Mapping[str, int] = field(default_factory=dict)


def counts(totals: Totals, losses: Losses | None = None) -> JSONObject:
    """The worker's half of `summary`."""
    losses = losses or Losses()
    return {
        "losses": {
            name: {str(number): round(count, 6) for number, count in getattr(losses, name).items()}
            for name in ("packets", "busy_s", "overruns", "refused", "unreadable")
        },
        "journal": {"lost": losses.unkept},
        "defects": {"worker": losses.stumbles},
        "followed": dict(losses.followed),
        "connections": {
            "now": totals.connections,
            "total": totals.connections_total,
            "limit": totals.connections_limit,
        },
        "sticky": {"now": totals.sticky, "limit": totals.sticky_limit},
        "evicted": {"connections": totals.evicted, "sticky": totals.sticky_evicted},
        "audit": {"drift": totals.drift},
        "drops": dict(sorted(totals.drops.items())),
        "replies": dict(sorted(totals.replies.items())),
    }


def summary(worker: Mapping[str, JSON], gateway: GatewayStatus) -> JSONObject:
    """The whole `summary`: the worker's half, as `counts` made it, and what the supervisor knows."""
    losses = worker["losses"]
    defects = worker["defects"]
    assert isinstance(losses, dict)
    assert isinstance(defects, dict)
    known = gateway.kernel_rows()
    return {
        "version": gateway.version,
        "datapath": gateway.datapath,
        "state": gateway.state,
        "uptime_s": round(gateway.uptime, 3),
        "worker": {"pid": gateway.worker_pid, "restarts": gateway.worker_restarts},
        "connections": worker["connections"],
        "sticky": worker["sticky"],
        "queues": [
            {
                "number": queue.number,
                "role": gateway.roles.get(queue.number),
                **known[queue.number],
                **{name: _by_queue(counts, queue.number) for name, counts in losses.items()},
            }
            for queue in gateway.queues
        ],
        "journal": worker["journal"],
        "defects": {**defects, "supervisor": gateway.stumbles},
        "followed": worker["followed"],
        "evicted": worker["evicted"],
        "audit": worker["audit"],
        "drops": worker["drops"],
        "replies": worker["replies"],
    }


def _kernel_row(queue: QueueStatus, room: Room | None) -> JSONObject:
    return {
        "depth": queue.depth,
        "limit": None if room is None else room.packets,
        "socket_bytes": None if room is None else room.used,
        "socket_limit": None if room is None else room.bytes,
        "dropped_full": queue.dropped_full,
        "dropped_socket": queue.dropped_socket,
    }


def _by_queue(counts: JSON, number: int) -> JSON:
    return counts.get(str(number), 0) if isinstance(counts, dict) else 0
