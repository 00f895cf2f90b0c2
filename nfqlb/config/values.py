"""The kinds of value a configuration holds: what each may be, and how it becomes a spec's value.

Owns the single value; what holds between values is in `checks`. Each parser takes what
`tomllib` read and returns the parsed value, or raises `PydanticCustomError` whose context
holds the `message` and the `hint` for the operator.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from nfqlb.config.report import kind, show
from nfqlb.core.spec import Address

SCHEDULER_ALIASES = {
    "rr": "round-robin",
    "wrr": "weighted-round-robin",
    "lc": "least-connections",
    "wlc": "weighted-least-connections",
    "sh": "source-hash",
    "mh": "maglev",
    "twos": "power-of-two",
}
"""The short names of IPVS."""

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
NAME_RULE = "letters, digits, -, _ and ., at most 64 of them"
DURATION_RULE = 'seconds, or a text such as "90s", "5m" or "1h"'
LONGEST = 365 * 86400.0
"""No time-out is longer, in seconds: far beyond any use, far below what arithmetic spoils."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?) *(ms|s|m|h|d)\Z", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS_HINT = f"one number and one unit: {', '.join(_UNITS)}"
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}\Z")  # IFNAMSIZ 16 with its final zero
_LITERAL = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?|0x[0-9a-fA-F]+|true|false)\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
LOOPBACK = "127.0.0.1"
_METRICS_PORT = 9617
_ENDPOINT = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9_.-]{1,15})?)\]|(?P<v4>[0-9.]*))"
    r":(?P<port>[0-9]{1,5})\Z"
)
_URL = re.compile(r"https?://([^/]*).*", re.DOTALL)
_UNIX_PATH_BYTES = 107  # sockaddr_un.sun_path is 108 with its final zero, unix(7)

_UNUSABLE: tuple[tuple[IPv4Network | IPv6Network, str], ...] = (
    (IPv4Network("255.255.255.255/32"), "the broadcast address"),
    (IPv4Network("0.0.0.0/8"), 'an address of "this network" (RFC 1122)'),
    (IPv4Network("127.0.0.0/8"), "a loopback address"),
    (IPv4Network("169.254.0.0/16"), "a link-local address, which no router forwards (RFC 3927)"),
    (IPv4Network("224.0.0.0/4"), "a multicast address"),
    (IPv4Network("240.0.0.0/4"), "a reserved address (RFC 1112)"),
    (IPv6Network("::/128"), "the unspecified address"),
    (IPv6Network("::1/128"), "the loopback address"),
    (IPv6Network("::ffff:0:0/96"), "an IPv4-mapped address"),
    (IPv6Network("fe80::/10"), "a link-local address, which no router forwards (RFC 4291)"),
    (IPv6Network("ff00::/8"), "a multicast address"),
)


@dataclass(frozen=True, slots=True)
class ServerRef:
    """One entry of `servers` as written: a real server's name, and its port where one is given."""

    real: str
    port: int | None


NO_SERVER = ServerRef("", None)
"""Stands in a list of servers for an entry that was refused, so that the others keep their places."""


def refuse(message: str, hint: str = "") -> PydanticCustomError:
    """The error for one value, in the operator's words."""
    return PydanticCustomError("refused", "{message}", {"message": message, "hint": hint})


def unquoted(value: object) -> str:
    """A hint for a number or truth value that was written as a text; else empty."""
    return f"without the quotes: {value}" if isinstance(value, str) and _LITERAL.match(value) else ""


def _text(value: Any, allowed: str) -> str:
    if isinstance(value, str):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    hint = f'in quotes: "{show(value)}"' if number else ""
    raise refuse(f"{show(value)} is {kind(value)} (allowed: {allowed})", hint)


def parse_name(value: Any) -> str:
    """A real server's, virtual server's or group's name."""
    name = _text(value, f"a name of {NAME_RULE}")
    if not NAME.match(name):
        raise refuse(f"{show(name)} is not a name (allowed: {NAME_RULE})")
    return name


def parse_name_or_nothing(value: Any) -> str:
    """A name, or an empty text for none."""
    return "" if value == "" else parse_name(value)


def parse_duration(value: Any) -> float:
    """A number of seconds or a text with its unit -> seconds, from 0 to `LONGEST`."""
    seconds = value
    if isinstance(value, str):
        match = _DURATION.match(value)
        if match is None:
            bare = re.match(r"[0-9]+\Z", value)
            hint = f'with a unit, "{value}s", or without the quotes' if bare else _UNITS_HINT
            raise refuse(f"{show(value)} is not a duration (allowed: {DURATION_RULE})", hint)
        seconds = float(match[1]) * _UNITS[match[2]]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise refuse(f"{show(value)} is {kind(value)} (allowed: {DURATION_RULE})")
    if not 0 <= seconds <= LONGEST:  # NaN fails too
        raise refuse(f'{show(value)} is out of range (allowed: 0 to "365d")')
    return float(seconds)


def parse_positive_duration(value: Any) -> float:
    """A duration of more than 0 seconds, but no shorter than a millisecond."""
    seconds = parse_duration(value)
    if seconds < 0.001:
        raise refuse(f'{show(value)} is too short (allowed: "1ms" to "365d")')
    return seconds


def parse_weight(value: Any) -> float:
    """A real server's share: 0 (no new connections), or from 0.001 to 1,000,000."""
    allowed = "allowed: 0, or a number from 0.001 to 1000000"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(f"{show(value)} is {kind(value)} ({allowed})", unquoted(value))
    if not (value == 0 or 0.001 <= value <= 1_000_000):
        raise refuse(f"{show(value)} is not a weight ({allowed})")
    return float(value)


def parse_address(value: Any) -> Address:
    """An address that a server can have and a gateway can forward to."""
    text = _text(value, 'an IP address such as "10.0.0.1"')
    try:
        address = ip_address(text)
    except ValueError:
        raise refuse(f"{show(text)} is not an IP address", _address_hint(text)) from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise refuse(f"{show(text)} names an interface", "an address without %")
    for network, what in _UNUSABLE:
        if address in network:
            raise refuse(f"{address} is {what}; no server can be reached under it from another network")
    return address


def _address_hint(text: str) -> str:
    address, slash, _ = text.partition("/")
    if slash and _is_address(address):
        return f"without the prefix length: {show(address)}"
    address, colon, _ = text.rpartition(":")
    if colon and _is_address(address.strip("[]")):
        return f"the port has a key of its own; here only {show(address.strip('[]'))}"
    if re.match(r"[0-9.]+\Z", text):
        return 'four numbers from 0 to 255 without leading zeros, such as "10.0.0.1"'
    return "host names are not looked up; write the address itself"


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def parse_interface(value: Any) -> str:
    """A network interface's name, as iptables can match it: it reads "eth+" as a pattern."""
    name = _text(value, "an interface name")
    if len(name) > 15:
        raise refuse(f"{show(name)} is no interface name (allowed: at most 15 characters)")
    if name in ("lo", "all", "default"):
        reason = "the loopback" if name == "lo" else "a word of the kernel for interfaces in general"
        raise refuse(f"{show(name)} is {reason}; a gateway stands between two networks")
    if not _INTERFACE.match(name):
        hint = f"without what follows the @: {show(name.partition('@')[0])}" if "@" in name[1:] else ""
        allowed = "letters, digits, -, _ and ."
        raise refuse(f"{show(name)} is no interface name (allowed: {allowed})", hint)
    return name


def parse_server(value: Any) -> ServerRef:
    """`"web1"` or `"web1:8080"`. No name holds a colon, so the last one starts the port."""
    if isinstance(value, ServerRef):  # NO_SERVER, on the second pass
        return value
    text = _text(value, 'a real server such as "web1" or "web1:8080"')
    name, colon, port = text.rpartition(":")
    if not colon:
        name = text
    if not NAME.match(name):
        raise refuse(f'{show(text)} is not a server (allowed: "name" or "name:port")')
    if not colon:
        return ServerRef(name, None)
    if not _PORT.match(port) or not 1 <= int(port) <= 65535:
        raise refuse(f"{show(port)} in {show(text)} is not a port (allowed: 1 to 65535)")
    return ServerRef(name, int(port))


def parse_mark_mask(value: Any) -> int:
    """The bits of packet marks that are nfqlb's: neighbouring ones, for they hold a number.

    Two at least: all of them set and the lowest alone mean different things in the rules.
    """
    allowed = "allowed: two or more neighbouring bits of 32, such as 0x00ff0000"
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse(f"{show(value)} is {kind(value)} ({allowed})", unquoted(value))
    if not 0 < value <= 0xFFFFFFFF:
        raise refuse(f"{show(value)} is not a 32-bit mask with at least one bit ({allowed})")
    lowest = value & -value
    if value & (value + lowest):
        raise refuse(f"{value:#010x} has gaps between its bits ({allowed})")
    if value == lowest:
        raise refuse(f"{value:#010x} is a single bit ({allowed})")
    return value


def parse_socket(value: Any) -> str:
    """The path of the control socket."""
    path = _text(value, "an absolute path")
    if not path.startswith("/") or path.endswith("/"):
        raise refuse(f"{show(path)} is not the absolute path of a file")
    if not path.isprintable():
        raise refuse(f"{show(path)} holds characters that cannot be shown")
    if len(path.encode()) > _UNIX_PATH_BYTES:
        size = len(path.encode())
        raise refuse(f"the path has {size} bytes (allowed: at most {_UNIX_PATH_BYTES}, unix(7))")
    return path


def parse_metrics(value: Any) -> str:
    """`""`, or the address and port to listen on: `"127.0.0.1:9617"`, `"[::1]:9617"`."""
    allowed = f'an address and port such as "{LOOPBACK}:{_METRICS_PORT}"'
    if isinstance(value, int) and not isinstance(value, bool):
        raise refuse(f"{show(value)} is a number (allowed: {allowed})", _endpoint_hint(show(value)))
    text = _text(value, allowed)
    if not text:
        return text
    found = _ENDPOINT.match(text)
    if not found or not _is_address(found["v6"] or found["v4"]):
        allowed = f'"{LOOPBACK}:{_METRICS_PORT}", "[::1]:{_METRICS_PORT}" or "" for none'
        raise refuse(f"{show(text)} is not an address and port (allowed: {allowed})", _endpoint_hint(text))
    address, port = endpoint_of(text)
    if not 1 <= port <= 65535:
        raise refuse(f"{found['port']} in {show(text)} is not a port (allowed: 1 to 65535)")
    if address.is_multicast or address == IPv4Address("255.255.255.255"):
        raise refuse(f"{address} is an address of many machines; nobody can listen there")
    if isinstance(address, IPv6Address) and address.is_link_local and address.scope_id is None:
        hint = f"say on which interface: {show(f'[{address}%eth0]:{port}')}"
        raise refuse(f"{address} is link-local: every interface has it or may have it", hint)
    return text


def endpoint_of(text: str) -> tuple[Address, int]:
    """The address and port of a text that `parse_metrics` has let through, and that is not empty."""
    found = _ENDPOINT.match(text)
    assert found is not None
    return ip_address(found["v6"] or found["v4"]), int(found["port"])


def _endpoint_hint(text: str) -> str:
    """What somebody may have meant who wrote this in place of an address and port."""
    bare = _URL.sub(r"\1", text)
    if bare != text:
        return f"without http:// and a path: {show(bare)}"
    host, _, port = text.rpartition(":")
    if host in ("", "*") and _PORT.match(port):
        return f'with an address: "{LOOPBACK}:{port}", or "0.0.0.0:{port}" for all that this machine has'
    inner = host.strip("[]")
    if _is_address(inner) and _PORT.match(port):
        return f'in brackets: "[{inner}]:{port}"' if ":" in inner else f'without brackets: "{inner}:{port}"'
    whole = text.strip("[]")
    if _is_address(whole) and "]" not in whole:
        return f'with a port: "{f"[{whole}]" if ":" in whole else whole}:{_METRICS_PORT}"'
    if _is_address(inner):
        return f'a port stands after the colon, and nothing else: "{host}:{_METRICS_PORT}"'
    return f'names are not looked up; under "{LOOPBACK}:{_METRICS_PORT}" only this machine can ask'


def parse_scheduler(value: Any) -> Any:
    """IPVS's short names become the long ones; everything else is left for the list of choices."""
    return SCHEDULER_ALIASES.get(value, value) if isinstance(value, str) else value


def _whole(low: int, high: int, note: str = "") -> Any:
    return Field(ge=low, le=high, description=f"a whole number from {low} to {high}{note}")


MANY = 100_000_000
Count = Annotated[int, _whole(1, MANY)]
Limit = Annotated[int, _whole(0, MANY, ", 0 = no limit")]
LimitOrNever = Annotated[int, _whole(0, MANY, ", 0 = never")]
Switch = Annotated[bool, Field(description="true or false")]
Port = Annotated[int | None, _whole(1, 65535)]
Number = Annotated[
    float, Field(ge=0, le=1_000_000, allow_inf_nan=False, description="a number from 0 to 1000000")
]
PerCent = Annotated[
    float, Field(ge=0, le=100, allow_inf_nan=False, description="a number from 0 to 100, in per cent")
]
Name = Annotated[str, PlainValidator(parse_name)]
NameOrNothing = Annotated[str, PlainValidator(parse_name_or_nothing)]
Duration = Annotated[float, PlainValidator(parse_duration)]
PositiveDuration = Annotated[float, PlainValidator(parse_positive_duration)]
Weight = Annotated[float, PlainValidator(parse_weight)]
OneAddress = Annotated[IPv4Address | IPv6Address | None, PlainValidator(parse_address)]
Interface = Annotated[str, PlainValidator(parse_interface)]
Interfaces = Annotated[
    list[Interface],
    BeforeValidator(_as_list),
    Field(min_length=1, description="an interface name, or a list of them"),
]
Servers = Annotated[
    list[Annotated[ServerRef, PlainValidator(parse_server)]],
    Field(min_length=1, description='a list of real servers such as ["web1", "web2:8080"]'),
]
MarkMask = Annotated[int, PlainValidator(parse_mark_mask)]
SocketPath = Annotated[str, PlainValidator(parse_socket)]
Metrics = Annotated[str, PlainValidator(parse_metrics)]
