"""Names, addresses, interfaces, ports and servers: the values of required keys."""

import re
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from nfqlb.config.load import Finding, parse
from nfqlb.config.values import endpoint_of, parse_metrics

Parts = Callable[..., str]
Findings = Callable[[str], tuple[Finding, ...]]

NO_NAME = ("5", "false", '"a b"', '"a:b"', '["a"]', f'"{"n" * 65}"', '"ä"', r'"a\n"')
NO_NUMBER = ('"5"', "true", "[5]", "{a = 5}", "nan", "inf", "2024-01-01", "-1")
NO_WHOLE = (*NO_NUMBER, "1.5", "10000000000")
NO_ADDRESS = [
    "5",
    "true",
    '"web1.example"',
    '"10.0.0.300"',
    '"10.0.0.1/24"',
    '"10.0.0.1:80"',
    '["10.0.0.9"]',
    '""',
]


@pytest.mark.parametrize("table", ["real", "virtual"])
@pytest.mark.parametrize("name", NO_NAME)
def test_names(table: str, name: str, good_with: Parts, findings: Findings) -> None:
    old = "web2" if table == "real" else "shop"
    (finding,) = findings(good_with().replace(f'name = "{old}"', f"name = {name}").replace(', "web2"]', "]"))
    assert finding.key == f"{table}[#{2 if table == 'real' else 1}].name"


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "-", "n" * 64, "10.0.0.1"])
def test_names_that_are_fine(name: str, good_with: Parts) -> None:
    config = parse(good_with().replace("web1", name), "gw.toml")
    assert config.reals[0].name == config.virtuals[0].servers[0].real == name


@pytest.mark.parametrize("address", NO_ADDRESS)
def test_addresses(address: str, good_with: Parts, findings: Findings) -> None:
    for old, key in (("10.0.0.1", "real[web1].address"), ("192.0.2.10", "virtual[shop].address")):
        (finding,) = findings(good_with().replace(f'"{old}"', address))
        assert finding.key == key


IMPOSSIBLE = (
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "169.254.1.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:10.0.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "ff02::1",
)


@pytest.mark.parametrize("address", IMPOSSIBLE)
def test_impossible_addresses(address: str, good_with: Parts, findings: Findings) -> None:
    for old in ("10.0.0.1", "192.0.2.10"):
        (finding,) = findings(good_with().replace(old, address))
        assert "no server can be reached" in finding.message or "names an interface" in finding.message


def test_ipv6_addresses(good_with: Parts) -> None:
    """R012: with a mask of 128, which keeps single clients apart."""
    text = good_with().replace("10.0.0.1", "2001:db8::1").replace("10.0.0.2", "2001:db8::2")
    config = parse(text.replace("192.0.2.10", "2001:db8::10"), "gw.toml")
    assert [real.address for real in config.reals] == [ip_address("2001:db8::1"), ip_address("2001:db8::2")]
    assert (config.virtuals[0].address, config.virtuals[0].sticky_mask) == (ip_address("2001:db8::10"), 128)


def test_a_virtual_server_without_a_port_is_on_every_port(good_with: Parts) -> None:
    """R072, R122: and so are its servers, each on the port that the client uses."""
    config = parse(good_with().replace("port = 80\n", ""), "gw.toml")
    assert config.virtuals[0].port is None
    assert [(server.real, server.port) for server in config.virtuals[0].servers] == [
        ("web1", None),
        ("web2", None),
    ]


@pytest.mark.parametrize("port", [*NO_WHOLE, "0", "65536"])
def test_ports(port: str, good_with: Parts, findings: Findings) -> None:
    (finding,) = findings(good_with().replace("port = 80", f"port = {port}"))
    assert (finding.key, finding.column) == ("virtual[shop].port", 8)


GOOD_INTERFACES = ('"wan0"', '["wan0", "br-lan", "eth0.100"]', f'["{"x" * 15}"]', '"_"')
BAD_INTERFACES = (
    "5",
    "true",
    "{}",
    "[]",
    "[5]",
    '""',
    '[""]',
    '"a/b"',
    '"eth+"',
    '"veth0@if5"',
    '"."',
    '".."',
    '"lo"',
    '"all"',
    '"-i"',
    '["wan0","wan0"]',
    f'"{"x" * 16}"',
    '"a b"',
    r'"a\nb"',
)


@pytest.mark.parametrize("side", ["outside", "inside"])
def test_interfaces(side: str, good_with: Parts, findings: Findings) -> None:
    old = '"eth0"' if side == "outside" else '"eth1"'
    for spelling in GOOD_INTERFACES:
        config = parse(good_with().replace(old, spelling), "gw.toml")
        assert getattr(config.gateway, side) == tuple(spelling.strip('[]"').split('", "'))
    for spelling in BAD_INTERFACES:
        (finding,) = findings(good_with().replace(old, spelling))
        assert finding.key == f"gateway.{side}", spelling


@pytest.mark.parametrize(
    "servers",
    [
        "5",
        '"web1"',
        "[]",
        "[5]",
        "{}",
        '["web1:"]',
        '["web1:0"]',
        '["web1:65536"]',
        '["web1:http"]',
        '["web1:+80"]',
        '[":80"]',
        '["web1:8080:80"]',
        '["[::1]:80"]',
        '[["web1"]]',
        '["web 1"]',
    ],
)
def test_servers(servers: str, good_with: Parts, findings: Findings) -> None:
    (finding,) = findings(good_with().replace('["web1", "web2"]', servers))
    assert finding.key == "virtual[shop].servers"


#: What somebody may write for `metrics`, and what the hint then says to write.
MEANT = {
    "9617": '"127.0.0.1:9617"',
    '"9617"': '"127.0.0.1:9617"',
    '":8000"': '"0.0.0.0:8000"',
    '"*:9617"': '"0.0.0.0:9617"',
    '"10.0.0.1"': '"10.0.0.1:9617"',
    '"::1"': '"[::1]:9617"',
    '"[::1]"': '"[::1]:9617"',
    '"::1:8000"': '"[::1]:8000"',
    '"[10.0.0.1]:8000"': '"10.0.0.1:8000"',
    '"[fe80::1]:8000"': '"[fe80::1%eth0]:8000"',
    '"http://127.0.0.1:8000/metrics"': '"127.0.0.1:8000"',
    '"localhost:8000"': '"127.0.0.1:9617"',
    '"127.0.0.1:metrics"': '"127.0.0.1:9617"',
}


@pytest.mark.parametrize("written", MEANT)
def test_a_hint_for_metrics_says_what_works(written: str, good_with: Parts, findings: Findings) -> None:
    """Every text that the hint proposes is one that the key takes."""
    (finding,) = findings(good_with(gateway=f"metrics = {written}"))
    assert finding.key == "gateway.metrics"
    assert MEANT[written] in finding.hint
    for proposed in re.findall(r'"[^"]*"', finding.hint):
        assert parse_metrics(proposed.strip('"'))


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("127.0.0.1:9617", "127.0.0.1", 9617),
        ("[::1]:80", "::1", 80),
        ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65535),
    ],
)
def test_where_metrics_are_asked_for(text: str, address: str, port: int) -> None:
    assert endpoint_of(parse_metrics(text)) == (ip_address(address), port)
