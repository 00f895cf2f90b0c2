"""What a configuration would do, for a person who has just checked it.

Owns the text that `nfqlb check` prints for a good file.
"""

from collections.abc import Mapping
from dataclasses import fields

from nfqlb.config.marks import OFFLOAD
from nfqlb.config.numbers import datapaths, queue_numbers, tap_group
from nfqlb.core.plural import several
from nfqlb.core.spec import Address, Config, Gateway, Real, Timeouts, Virtual

_WEIGHTLESS = ("round-robin", "least-connections", "fastest-response")
_OF_GATEWAY = ("secure", "count_on", "close_on", "fallback", "hold_addresses")
_OF_VIRTUAL = (
    "startup", "on_failure", "reject", "sticky_refresh", "sticky_ditched", "ageing", "clamp", "predict",
    "response_start", "shadow", "synguard", "synguard_rate",
)  # fmt: skip
_DURATION_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


def summary(config: Config) -> str:
    """Plain text, without a final newline: the gateway, then each virtual server with its servers."""
    blocks = [_heading(config), _gateway(config)]
    width = max((len(server.real) for virtual in config.virtuals for server in virtual.servers), default=0)
    reals = {real.name: real for real in config.reals}
    blocks += [
        _virtual(virtual, reals, config.timeouts.idle, width, config.gateway.datapath)
        for virtual in config.virtuals
    ]
    used = {server.real for virtual in config.virtuals for server in config.places(virtual)}
    unused = [real.name for real in config.reals if real.name not in used]
    if unused:
        blocks.append(f"in no virtual server: {', '.join(unused)}")
    return "\n\n".join(blocks)


def _heading(config: Config) -> str:
    virtuals, reals = len(config.virtuals), len(config.reals)
    return f"{_counted(virtuals, 'virtual server')}, {_counted(reals, 'real server')}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _gateway(config: Config) -> str:
    gateway, timeouts = config.gateway, config.timeouts
    sticky = several(gateway.max_sticky, "sticky entry", "sticky entries")
    others = "dropped, but for echo" if gateway.other_ports == "drop" else "left to this machine"
    rows = (
        ("outside", ", ".join(gateway.outside)),
        ("inside", ", ".join(gateway.inside)),
        ("datapath", _datapath(config)),
        ("room", f"{several(gateway.max_connections, 'connection')}, {sticky}"),
        ("time-outs", _timeouts(timeouts)),
        ("other ports", others),
        *_said(gateway, _OF_GATEWAY),
        *((("metrics", f"http://{gateway.metrics}/metrics"),) if gateway.metrics else ()),
    )
    return "\n".join(f"{title:<12} {text}" for title, text in rows)


def _datapath(config: Config) -> str:
    """Which there are, and what they are bound to."""
    used, numbers = datapaths(config), list(map(str, queue_numbers(config)))
    *most, last = numbers
    queues = f"queues {', '.join(most)} and {last}" if most else f"queue {last}"
    group = f", NFLOG group {tap_group(config)}" if OFFLOAD in used else ""
    return f"{' and '.join(used)}, {queues}{group}"


def _said(table: Gateway | Virtual, keys: tuple[str, ...]) -> list[tuple[str, str]]:
    """Which of these keys are not as they are where nothing is said, and what they are."""
    usual = {field.name: field.default for field in fields(table)}
    values = [(key, getattr(table, key)) for key in keys]
    return [(key, _spelled(value)) for key, value in values if value != usual[key]]


def _spelled(value: object) -> str:
    """A value as the file has it, but for the quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _timeouts(timeouts: Timeouts) -> str:
    named = (
        ("idle", timeouts.idle),
        ("half-open", timeouts.half_open),
        ("closing", timeouts.closing),
        ("udp", timeouts.udp),
    )
    return ", ".join(f"{name} {duration(seconds)}" for name, seconds in named)


def _virtual(
    virtual: Virtual, reals: Mapping[str, Real], idle: float, width: int, usual: str
) -> str:
    where = endpoint(virtual.address, virtual.port)
    rows = [f"{virtual.name}: {virtual.protocol} {where}, {virtual.scheduler}"]
    if virtual.datapath != usual:
        rows.append(f"  datapath {virtual.datapath}")
    if virtual.sticky:
        group = f", shared in group {virtual.sticky_group}" if virtual.sticky_group else ""
        rows.append(f"  sticky for {duration(virtual.sticky)}, {_clients(virtual)}{group}")
    said = [f"{key} = {value}" for key, value in _said(virtual, _OF_VIRTUAL)]
    rows += [f"  {', '.join(said)}"] if said else []
    places = [endpoint(reals[server.real].address, server.port) for server in virtual.servers]
    longest = max(len(place) for place in places)
    for server, place in zip(virtual.servers, places, strict=True):
        terms = _terms(reals[server.real], virtual, idle)
        rows.append(f"  {server.real:<{width}}  {place:<{longest}}  {terms}".rstrip())
    if virtual.backup:
        place = endpoint(reals[virtual.backup].address, virtual.port)
        rows.append(f"  where none of them can be chosen: {virtual.backup}, {place}")
    return "\n".join(rows)


def _clients(virtual: Virtual) -> str:
    full = 32 if virtual.address.version == 4 else 128
    return "client by client" if virtual.sticky_mask == full else f"by client network /{virtual.sticky_mask}"


def _terms(real: Real, virtual: Virtual, idle: float) -> str:
    """What sets this server apart; a weight only where the scheduler heeds it, `idle` where TCP does."""
    terms = []
    if real.weight == 0:
        terms.append("weight 0: no new clients")
    elif virtual.scheduler not in _WEIGHTLESS:
        terms.append(f"weight {real.weight:.10g}")
    if real.max_connections:
        terms.append(f"at most {several(real.max_connections, 'connection')}")
    if real.idle_timeout != idle and virtual.protocol == "tcp":
        terms.append(f"idle {duration(real.idle_timeout)}")
    if real.backup:
        terms.append(f"backup {real.backup}")
    return ", ".join(terms)


def endpoint(address: Address, port: int | None) -> str:
    """`192.0.2.1:80`, `[2001:db8::1]:80`; the bare address, and "every port", without a port."""
    if port is None:
        return f"{address} every port"
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def duration(seconds: float) -> str:
    """Seconds in the largest unit that needs no fraction: `1h`, `90s`, `0.5s`."""
    for size, unit in _DURATION_UNITS:
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.10g}{unit}"
    return f"{seconds:.10g}s"
