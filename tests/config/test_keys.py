"""Every key of the reference table: its default, what it may hold, what has to wait."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from ipaddress import IPv4Address
from typing import Any, get_args

import pytest

from nfqlb.config.draft import TABLES
from nfqlb.config.load import Finding, parse
from nfqlb.config.model import SchedulerName
from nfqlb.config.support import WORKING
from nfqlb.config.values import SCHEDULER_ALIASES
from nfqlb.core import schedulers
from nfqlb.core.spec import Gateway, Real, Strict, Timeouts, Virtual

Parts = Callable[..., str]
Findings = Callable[[str], tuple[Finding, ...]]


@dataclass(frozen=True)
class Key:
    """One row of the reference: values as TOML spells them."""

    table: str
    name: str
    default: Any  # as the spec holds it
    same: tuple[str, ...]  # spellings of the default
    others: tuple[str, ...]  # values that work now
    later: tuple[str, ...]  # values that are known and not supported yet
    wrong: tuple[str, ...]  # values that will never do

    def __str__(self) -> str:
        return f"{self.table}.{self.name}"


NO_NUMBER = ('"5"', "true", "[5]", "{a = 5}", "nan", "inf", "2024-01-01", "-1")
NO_WHOLE = (*NO_NUMBER, "1.5", "10000000000")
NO_TEXT = ("5", "true", '["drop"]', "{}", '"nonsense"')
NO_SWITCH = ('"true"', "1", "0", "[]", '"yes"')
NO_DURATION = (
    "true",
    '"60"',
    '""',
    "[]",
    "-1",
    '"-1s"',
    "nan",
    "inf",
    '"366d"',
    "1e12",
    '"1h30m"',
    '"5 parsecs"',
)
NO_NAME = ("5", "false", '"a b"', '"a:b"', '["a"]', f'"{"n" * 65}"', '"ä"', r'"a\n"')
SCHEDULERS = (
    '"round-robin"',
    '"weighted-round-robin"',
    '"least-connections"',
    '"source-hash"',
    '"maglev"',
    '"power-of-two"',
    '"fastest-response"',
    '"rr"',
    '"wrr"',
    '"lc"',
    '"sh"',
    '"mh"',
    '"twos"',
)
ZERO = ("0", "0.0")

KEYS = (
    Key("gateway", "datapath", "rewrite", ('"rewrite"',), ('"offload"',), (), NO_TEXT),
    Key("gateway", "max_connections", 1_000_000, ("1_000_000",), ("1", "7000"), (), (*NO_WHOLE, "0")),
    Key("gateway", "max_sticky", 1_000_000, ("1000000",), ("1",), (), (*NO_WHOLE, "0")),
    Key("gateway", "queue", 0, ("0",), ("1", "65534"), (), (*NO_WHOLE, "65535")),
    Key(
        "gateway",
        "mark_mask",
        0x00FF0000,
        ("0x00ff0000",),
        ("3", "0xc0000000", "0xffffffff", "0b110"),
        (),
        ("0", "-1", "1", "0x80000000", "0x100000000", "0x00ff00ff", "5", "true", '"0xff"', "1.0", "[]"),
    ),
    Key(
        "gateway",
        "socket",
        "/run/nfqlb/control.sock",
        ('"/run/nfqlb/control.sock"',),
        ('"/tmp/x"', f'"/{"x" * 106}"'),
        (),
        ("5", "false", '"run/x"', '""', '"/run/"', f'"/{"x" * 107}"', f'"/{"ä" * 54}"', r'"/a\u0000"'),
    ),
    Key("gateway", "secure", False, ("false",), ("true",), (), NO_SWITCH),
    Key("gateway", "fallback", True, ("true",), ("false",), (), NO_SWITCH),
    Key("gateway", "hold_addresses", True, ("true",), ("false",), (), NO_SWITCH),
    Key("gateway", "reject", "drop", ('"drop"',), ('"reset"',), (), NO_TEXT),
    Key("gateway", "count_on", "syn", ('"syn"',), ('"syn-ack"',), (), (*NO_TEXT, '"ack"')),
    Key("gateway", "close_on", "both", ('"both"',), ('"fin"', '"time-out"'), (), (*NO_TEXT, '"timeout"')),
    Key("gateway", "other_ports", "drop", ('"drop"',), ('"host"',), (), NO_TEXT),
    Key(
        "gateway",
        "metrics",
        "",
        ('""',),
        ('"127.0.0.1:9617"', '"[::1]:9617"', '"0.0.0.0:1"', '"[::]:65535"', '"[fe80::1%eth0]:9617"'),
        (),
        (
            "9617",
            "true",
            '["127.0.0.1:9617"]',
            '"9617"',
            '":9617"',
            '"*:9617"',
            '"localhost:9617"',
            '"127.0.0.1"',
            '"127.0.0.1:"',
            '"127.0.0.1:0"',
            '"127.0.0.1:65536"',
            '"127.0.0.1:http"',
            '"127.0.0.1:9617 "',
            '"127.0.0.1:9617\\n"',
            '"127.0.0.999:9617"',
            '"::1:9617"',
            '"[::1]"',
            '"[127.0.0.1]:80"',
            '"[::1%]:9617"',
            '"http://127.0.0.1:9617/metrics"',
            '"224.0.0.1:9617"',
            '"[ff02::1]:9617"',
            '"255.255.255.255:9617"',
            '"[fe80::1]:9617"',
            '"192.0.2.10:9617"',
            '"10.0.0.2:9617"',
        ),
    ),
    Key(
        "timeouts",
        "idle",
        3600.0,
        ("3600", '"1h"', '"60m"'),
        ("0.5", '"90s"', '"500ms"', '"1d"'),
        (),
        (*NO_DURATION, *ZERO),
    ),
    Key("timeouts", "half_open", 30.0, ("30", '"30s"', '"0.5m"'), ('"0.25m"',), (), (*NO_DURATION, *ZERO)),
    Key("timeouts", "closing", 10.0, ("10", '"10s"', '"10 s"'), ("0.001",), (), (*NO_DURATION, *ZERO)),
    Key("timeouts", "udp", 30.0, ("30",), ("31",), (), (*NO_DURATION, *ZERO)),
    Key(
        "real",
        "weight",
        1.0,
        ("1", "1.0"),
        ("0", "0.001", "2.5", "1000000"),
        (),
        (*NO_NUMBER, "1000001", "0.0001"),
    ),
    Key("real", "max_connections", 0, ("0",), ("1", "500"), (), NO_WHOLE),
    Key("real", "syn_limit", 5, ("5",), ("0", "4", "6", "1"), (), NO_WHOLE),
    Key("real", "failure_threshold", 8, ("8",), ("0", "1", "9"), (), NO_WHOLE),
    Key("real", "failure_clients", 2, ("2",), ("1", "3"), (), (*NO_WHOLE, "0")),
    Key("real", "attempts", 3, ("3",), ("0", "2", "4"), (), NO_WHOLE),
    Key("real", "reset_counts", True, ("true",), ("false",), (), NO_SWITCH),
    Key("real", "retry", 60.0, ("60", '"1m"', '"60s"'), ("0", "61", '"5m"'), (), NO_DURATION),
    Key("real", "idle_timeout", 3600.0, ("3600",), ('"5m"', '"2h"'), (), (*NO_DURATION, *ZERO)),
    Key("real", "backup", "", ('""',), ('"web2"',), (), NO_NAME),
    Key("real", "backup_when", "failed", ('"failed"',), ('"full"',), (), NO_TEXT),
    Key("virtual", "protocol", "tcp", ('"tcp"',), ('"udp"',), (), (*NO_TEXT, '"TCP"')),
    Key(
        "virtual",
        "scheduler",
        "weighted-least-connections",
        ('"weighted-least-connections"', '"wlc"'),
        SCHEDULERS,
        (),
        (*NO_TEXT, '""', '"RR"'),
    ),
    Key("virtual", "startup", "none", ('"none"',), ('"round-robin"',), (), NO_TEXT),
    Key(
        "virtual", "startup_share", 50.0, ("50", "50.0"), ("0", "49", "100", "12.5"), (), (*NO_NUMBER, "101")
    ),
    Key("virtual", "startup_time", 60.0, ("60", '"1m"'), ("0", '"0s"', "61", '"1h"'), (), NO_DURATION),
    Key("virtual", "startup_test", "chosen", ('"chosen"',), ('"any"', '"before"'), (), NO_TEXT),
    Key("virtual", "sticky", 0.0, ("0", '"0s"'), ("1", '"5m"', "0.5"), (), NO_DURATION),
    Key("virtual", "sticky_mask", 32, ("32",), ("0", "24"), (), (*NO_WHOLE, "33", "129")),
    Key("virtual", "sticky_group", "", ('""',), ('"both"\nsticky = 5', '"b.o-t_h"\nsticky = 5'), (), NO_NAME),
    Key("virtual", "sticky_refresh", "assignment", ('"assignment"',), ('"never"', '"activity"'), (), NO_TEXT),
    Key("virtual", "sticky_ditched", "break", ('"break"',), ('"keep"',), (), NO_TEXT),
    Key("virtual", "ageing", 4.0, ("4", "4.0"), ("3", "0.5"), (), (*NO_NUMBER, "0")),
    Key("virtual", "clamp", 0.0, ("0",), ("20", "0.5", "200"), (), NO_NUMBER),
    Key("virtual", "predict", "now", ('"now"',), ('"next"',), (), NO_TEXT),
    Key("virtual", "response_start", "request", ('"request"',), ('"syn"', '"syn-ack"'), (), NO_TEXT),
    Key("virtual", "backup", "", ('""',), ('"web2"',), (), NO_NAME),
    Key("virtual", "reject", "drop", ('"drop"',), ('"reset"',), (), NO_TEXT),
    Key("virtual", "on_failure", "keep", ('"keep"',), ('"reset"', '"drop"'), (), NO_TEXT),
    Key("virtual", "synguard", 0, ("0",), ("1", "12000"), (), NO_WHOLE),
    Key("virtual", "synguard_rate", 0.0, ("0",), ("0.5", "2000"), (), NO_NUMBER),
    Key("virtual", "synguard_share", 25.0, ("25",), ("0", "100", "12.5"), (), (*NO_NUMBER, "101")),
    Key("virtual", "shadow", "", ('""',), SCHEDULERS, (), NO_TEXT),
    Key("virtual", "datapath", "rewrite", ('"rewrite"',), ('"offload"',), (), NO_TEXT),
    Key("strict", "syn_limit", False, ("false",), ("true",), (), NO_SWITCH),
    Key("strict", "ratio", False, ("false",), ("true",), (), NO_SWITCH),
    Key("strict", "every_packet", False, ("false",), ("true",), (), NO_SWITCH),
    Key("strict", "refresh", False, ("false",), ("true",), (), NO_SWITCH),
)

REQUIRED = {
    "gateway": {"outside", "inside"},
    "real": {"name", "address"},
    "virtual": {"name", "address", "servers"},
}
PORT = {"virtual": {"port"}}  # its default, every port, stands in the way of the others: tested by itself

every_key = pytest.mark.parametrize("key", KEYS, ids=str)


def held(text: str, key: Key) -> object:
    """The value that `key` has in the specs after parsing."""
    config = parse(text, "gw.toml")
    spec = {
        "gateway": config.gateway,
        "timeouts": config.timeouts,
        "strict": config.strict,
        "real": config.reals[0],
        "virtual": config.virtuals[0],
    }[key.table]
    return getattr(spec, key.name)


def test_the_reference_the_models_and_the_specs_have_the_same_keys() -> None:
    specs = {"gateway": Gateway, "timeouts": Timeouts, "strict": Strict, "real": Real, "virtual": Virtual}
    for table, model in TABLES.items():
        here = {key.name for key in KEYS if key.table == table}
        here |= REQUIRED.get(table, set()) | PORT.get(table, set())
        assert here == set(model.model_fields)
        assert here == {spec.name for spec in fields(specs[table])}
        assert set(model.required) == REQUIRED.get(table, set())


def test_the_defaults_of_models_and_specs_are_the_same(good_with: Parts) -> None:
    config = parse(good_with(), "gw.toml")
    web1 = Real("web1", IPv4Address("10.0.0.1"))
    assert config.gateway == Gateway(("eth0",), ("eth1",))
    assert config.timeouts == Timeouts()
    assert config.strict == Strict()
    assert config.reals[0] == web1
    assert config.virtuals[0] == Virtual(
        "shop", IPv4Address("192.0.2.10"), config.virtuals[0].servers, port=80
    )


def test_every_scheduler_that_is_allowed_is_there() -> None:
    """R028, R095-R099: and none that is there is refused."""
    assert set(get_args(SchedulerName)) == set(schedulers.SCHEDULERS)
    assert ("virtual", "scheduler") not in WORKING
    assert set(SCHEDULER_ALIASES.values()) == set(schedulers.SCHEDULERS) - {"fastest-response"}


@every_key
def test_default_when_left_out(key: Key, good_with: Parts) -> None:
    value = held(good_with(), key)
    assert value == key.default
    assert type(value) is type(key.default)


@every_key
def test_default_written_down(key: Key, good_with: Parts) -> None:
    for spelling in key.same:
        value = held(good_with(**{key.table: f"{key.name} = {spelling}"}), key)
        assert value == key.default
        assert type(value) is type(key.default)


@every_key
def test_values_that_work_now(key: Key, good_with: Parts) -> None:
    for spelling in key.others:
        value = held(good_with(**{key.table: f"{key.name} = {spelling}"}), key)
        assert value != key.default
        assert type(value) is type(key.default)


@every_key
def test_values_for_later_are_refused_as_not_supported_yet(
    key: Key, good_with: Parts, findings: Findings
) -> None:
    assert bool(key.later) == ((key.table, key.name) in WORKING)
    for spelling in key.later:
        (finding,) = findings(good_with(**{key.table: f"{key.name} = {spelling}"}))
        assert "not supported yet (allowed now: " in finding.message
        assert finding.key.endswith(f".{key.name}")


@every_key
def test_wrong_values_are_refused_as_wrong(key: Key, good_with: Parts, findings: Findings) -> None:
    for spelling in key.wrong:
        text = good_with(**{key.table: f"{key.name} = {spelling}"})
        found = findings(text)
        assert len(found) == 1, (spelling, found)
        (finding,) = found
        assert "not supported yet" not in finding.message, spelling
        assert "None" not in finding.message, spelling
        assert text.split("\n")[finding.line - 1].startswith(f"{key.name} = ")
        assert finding.column > len(f"{key.name} = ")


@pytest.mark.parametrize("table", sorted(REQUIRED))
def test_required_keys_are_missed(table: str, good_with: Parts, findings: Findings) -> None:
    for name in REQUIRED[table]:
        lines = good_with().split("\n")
        header = next(at for at, line in enumerate(lines) if line in (f"[{table}]", f"[[{table}]]"))
        at = next(at for at, line in enumerate(lines) if at > header and line.startswith(f"{name} = "))
        del lines[at]
        missed = [one for one in findings("\n".join(lines)) if one.message == "this key is missing"]
        assert [(one.line, one.key.rpartition(".")[2]) for one in missed] == [(header + 1, name)]


def test_servers_take_the_port_of_the_virtual_server_unless_they_name_one(good_with: Parts) -> None:
    """R072, R073: a port as the client sees it, and as the real server has it."""
    config = parse(good_with().replace('"web2"]', '"web2:8080"]'), "gw.toml")
    assert [(server.real, server.port) for server in config.virtuals[0].servers] == [
        ("web1", 80),
        ("web2", 8080),
    ]


def test_an_idle_timeout_left_out_is_the_one_of_timeouts(good_with: Parts) -> None:
    config = parse(good_with(timeouts='idle = "10m"', real="idle_timeout = 5"), "gw.toml")
    assert [real.idle_timeout for real in config.reals] == [5.0, 600.0]
