"""The tables of a configuration file and their keys: names, kinds and defaults.

Owns the shape of the file. One class a table, `extra="forbid"` and strict kinds; the
defaults are those of the specs in `core.spec` (a test holds the two together). What a
version does not do yet is in `support`, what must hold between keys is in `checks`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from nfqlb.config.values import (
    Count,
    Duration,
    Interfaces,
    Limit,
    LimitOrNever,
    MarkMask,
    Metrics,
    Name,
    NameOrNothing,
    Number,
    OneAddress,
    PerCent,
    Port,
    PositiveDuration,
    Servers,
    SocketPath,
    Switch,
    Weight,
    parse_scheduler,
)

SchedulerName = Literal[
    "round-robin",
    "weighted-round-robin",
    "least-connections",
    "weighted-least-connections",
    "fastest-response",
    "source-hash",
    "maglev",
    "power-of-two",
]
Datapath = Literal["rewrite", "offload"]


class TableModel(BaseModel):
    """What all tables have in common.

    `required` keys have a default here too, one that no file can hold: so a table with a
    mistake in it can still be compared with the others, and one run tells of all mistakes.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    required: ClassVar[tuple[str, ...]] = ()


class GatewayTable(TableModel):
    """`[gateway]`: the appliance itself."""

    required = ("outside", "inside")

    outside: Interfaces = []
    inside: Interfaces = []
    datapath: Datapath = "rewrite"
    max_connections: Count = 1_000_000
    max_sticky: Count = 1_000_000
    queue: Annotated[int, Field(ge=0, le=65534, description="a whole number from 0 to 65534")] = 0
    mark_mask: MarkMask = 0x00FF0000
    socket: SocketPath = "/run/nfqlb/control.sock"
    secure: Switch = False
    reject: Literal["drop", "reset"] = "drop"
    count_on: Literal["syn", "syn-ack"] = "syn"
    close_on: Literal["both", "fin", "time-out"] = "both"
    other_ports: Literal["drop", "host"] = "drop"
    metrics: Metrics = ""
    fallback: Switch = True
    hold_addresses: Switch = True


class TimeoutsTable(TableModel):
    """`[timeouts]`, in seconds (A24)."""

    idle: PositiveDuration = 3600.0
    half_open: PositiveDuration = 30.0
    closing: PositiveDuration = 10.0
    udp: PositiveDuration = 30.0


class RealTable(TableModel):
    """`[[real]]`: a real server (the patent's physical machine)."""

    required = ("name", "address")

    name: Name = ""
    address: OneAddress = None
    weight: Weight = 1.0
    max_connections: Limit = 0
    syn_limit: Limit = 5
    failure_threshold: LimitOrNever = 8
    failure_clients: Count = 2
    attempts: LimitOrNever = 3
    reset_counts: Switch = True
    retry: Duration = 60.0
    idle_timeout: PositiveDuration | None = None  # None: as `[timeouts]` has it
    backup: NameOrNothing = ""
    backup_when: Literal["failed", "full"] = "failed"


class VirtualTable(TableModel):
    """`[[virtual]]`: a virtual server (the patent's virtual machine)."""

    required = ("name", "address", "servers")

    name: Name = ""
    address: OneAddress = None
    servers: Servers = []
    protocol: Literal["tcp", "udp"] = "tcp"
    port: Port = None  # None: every port
    scheduler: Annotated[SchedulerName, BeforeValidator(parse_scheduler)] = "weighted-least-connections"
    startup: Literal["none", "round-robin"] = "none"
    startup_share: PerCent = 50.0
    startup_time: Duration = 60.0
    startup_test: Literal["chosen", "any", "before"] = "chosen"
    sticky: Duration = 0.0
    sticky_mask: Annotated[
        int | None, Field(ge=0, le=128, description="a prefix length: 0 to 32, for IPv6 to 128")
    ] = None  # None: single clients
    sticky_group: NameOrNothing = ""
    sticky_refresh: Literal["assignment", "activity", "never"] = "assignment"
    sticky_ditched: Literal["break", "keep"] = "break"
    ageing: Annotated[
        float, Field(gt=0, le=1_000_000, allow_inf_nan=False, description="a number above 0")
    ] = 4.0
    clamp: Number = 0.0
    predict: Literal["now", "next"] = "now"
    response_start: Literal["request", "syn", "syn-ack"] = "request"
    backup: NameOrNothing = ""
    reject: Literal["drop", "reset"] | None = None  # None: as `[gateway]` has it
    on_failure: Literal["keep", "reset", "drop"] = "keep"
    synguard: Limit = 0
    synguard_rate: Number = 0.0
    synguard_share: PerCent = 25.0
    shadow: Annotated[Literal["", SchedulerName], BeforeValidator(parse_scheduler)] = ""
    datapath: Datapath | None = None  # None: as `[gateway]` has it


class StrictTable(TableModel):
    """`[strict]`: literal readings of disputed sentences (A1, A2, A3, A6)."""

    syn_limit: Switch = False
    ratio: Switch = False
    every_packet: Switch = False
    refresh: Switch = False
