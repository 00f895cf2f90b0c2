"""Texts of configurations, whole and with one thing changed, and what is found in them."""

from collections.abc import Callable

import pytest

from nfqlb.config.load import ConfigError, Finding, parse

Parts = Callable[..., str]
Findings = Callable[[str], tuple[Finding, ...]]


def _text(
    *, gateway: str = "", timeouts: str = "", strict: str = "", real: str = "", virtual: str = ""
) -> str:
    return f"""\
[gateway]
outside = "eth0"
inside = "eth1"
{gateway}
[timeouts]
{timeouts}
[strict]
{strict}
[[real]]
name = "web1"
address = "10.0.0.1"
{real}
[[real]]
name = "web2"
address = "10.0.0.2"

[[virtual]]
name = "shop"
address = "192.0.2.10"
port = 80
servers = ["web1", "web2"]
{virtual}
"""


def _findings(text: str) -> tuple[Finding, ...]:
    try:
        parse(text, "gw.toml")
    except ConfigError as error:
        return error.findings
    return ()


@pytest.fixture
def good_with() -> Parts:
    """A good configuration, as text, with lines added to its tables (`real` is the first one)."""
    return _text


@pytest.fixture
def findings() -> Findings:
    """What is wrong with a text; nothing, if it is accepted."""
    return _findings
