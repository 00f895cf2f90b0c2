"""Whatever a file holds: a configuration comes out, or a ConfigError with a report."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfqlb.config.draft import TABLES
from nfqlb.config.load import ConfigError, parse
from nfqlb.config.summary import summary
from nfqlb.core.spec import Config

STEADY = settings(derandomize=True, deadline=None)
WORDS = (
    "web1",
    "web2",
    "web1:80",
    "web2:8080",
    "syn",
    "both",
    "web9",
    "web1:",
    "10.0.0.1",
    "10.0.0.2",
    "192.0.2.1",
    "::1",
    "2001:db8::1",
    "10.0.0.1/8",
    "5m",
    "1h",
    "0s",
    "-1",
    "eth0",
    "eth1",
    "lo",
    "tcp",
    "udp",
    "rr",
    "wlc",
    "least-connections",
    "maglev",
    "/run/x",
    "127.0.0.1:80",
    "ä",
    "drop",
    "host",
    "reset",
    "rewrite",
    "offload",
    "keep",
    "none",
    "now",
    "assignment",
    "syn",
    "activity",
    "any",
    "full",
    "",
    "a b",
    "\\",
    '"',
)
NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    24,
    32,
    33,
    50,
    60,
    128,
    65534,
    65535,
    65536,
    -1,
    10**30,
    1 << 5000,
    0.5,
    1e308,
    float("nan"),
)
SIGNS = ("[", "]", '"', "=", "\n", "'''")
NAMES = st.sampled_from(WORDS)
SCALARS = st.one_of(
    NAMES,
    st.sampled_from(NUMBERS),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4),
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2)
    ),
)
GOOD: dict[str, dict[str, Any]] = {
    "gateway": {"outside": "eth0", "inside": ["eth1"]},
    "real": {"name": "web1", "address": "10.0.0.1"},
    "virtual": {"name": "shop", "address": "192.0.2.1", "port": 80, "servers": ["web1"]},
}


def spelled(value: Any) -> str:
    """A value in TOML, its tables inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, int):
        return hex(value) if value >= 1 << 64 else str(value)
    if isinstance(value, list):
        return f"[{', '.join(spelled(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{spelled(key)} = {spelled(item)}" for key, item in value.items()) + "}"
    return str(value)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Tables in any number, most keys known, most values of some use somewhere."""
    text = ""
    for name in draw(st.lists(st.sampled_from([*GOOD, *TABLES, "gateway", "real", "virtual"]), max_size=6)):
        keys = st.sampled_from([*TABLES[name].model_fields, "nonsense"])
        table = {**GOOD.get(name, {}), **draw(st.dictionaries(keys, VALUES, max_size=4))}
        for key in draw(st.lists(st.sampled_from(sorted(table)), max_size=1)) if table else ():
            del table[key]
        header = f"[[{name}]]" if draw(st.integers(0, 9)) and name in ("real", "virtual") else f"[{name}]"
        text += f"{header}\n" + "".join(f"{key} = {spelled(value)}\n" for key, value in table.items())
    return text


def outcome(text: str) -> Config | ConfigError:
    """What comes out, its text made as well."""
    try:
        config = parse(text, "gw.toml")
    except ConfigError as error:
        return check_report(error, text)
    assert summary(config)
    return config


def check_report(error: ConfigError, text: str) -> ConfigError:
    """What every report has, whatever it tells."""
    report = str(error)
    assert error.findings
    assert report.count(": error: ") >= len(error.findings)
    assert all(line.isprintable() for line in report.split("\n"))
    for finding in error.findings:
        assert finding.message
        assert 0 <= finding.line <= text.count("\n") + 1
    return error


@settings(STEADY, max_examples=300)
@given(documents())
def test_tables_with_any_values(text: str) -> None:
    outcome(text)


@settings(STEADY, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_good_file_mangled(data: st.DataObject, good_with: Callable[..., str]) -> None:
    text = good_with(virtual="sticky = '5m'", real="weight = 2")
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(st.text(max_size=4) | st.sampled_from(SIGNS)) + text[end:]
    outcome(text)


@settings(STEADY)
@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    outcome(text)


@pytest.mark.parametrize("table", sorted(TABLES))
def test_one_key_with_any_value(table: str, good_with: Callable[..., str]) -> None:
    """Each key alone in a good file: some values are taken, others are not, none breaks anything."""
    probes: list[Any] = [*WORDS, *NUMBERS, True, False, [], [1], ["web1"], {}, {"a": 1}, [[]], [{}]]
    for key in sorted(set(TABLES[table].model_fields) - set(GOOD.get(table, {}))):
        taken = 0
        for probe in probes:
            taken += isinstance(outcome(good_with(**{table: f"{key} = {spelled(probe)}"})), Config)
        assert 0 < taken < len(probes), key
