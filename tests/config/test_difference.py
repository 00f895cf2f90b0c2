"""What is different between two configurations, and how it is put."""

import json

import pytest

from nfqlb.config.difference import Difference, compare, lines
from nfqlb.config.load import parse
from nfqlb.core.spec import Config

BASE = """
[gateway]
outside = "eth0"
inside = "eth1"

[[real]]
name = "web1"
address = "10.0.0.1"

[[real]]
name = "web2"
address = "10.0.0.2"
weight = 2

[[virtual]]
name = "shop"
address = "192.0.2.10"
port = 80
servers = ["web1", "web2:8080"]
"""


def of(text: str) -> Config:
    return parse(text, "test.toml")


def told(text: str, before: str = BASE) -> list[str]:
    return lines(compare(of(before), of(text)))


def test_nothing_is_different() -> None:
    assert compare(of(BASE), of(BASE + "\n# a remark\n")) == []


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("weight = 2", "weight = 2.5", "real server web2: weight: 2 -> 2.5"),
        ("weight = 2", "retry = 90", "real server web2: weight: 2 -> 1\nreal server web2: retry: 1m -> 90s"),
        ('"10.0.0.2"', '"10.0.0.3"', "real server web2: address: 10.0.0.2 -> 10.0.0.3"),
        ('"web2:8080"]', '"web2"]', "virtual server shop: servers: +web2:80, -web2:8080"),
        ('"web1", "web2:8080"', '"web2:8080", "web1"',
         "virtual server shop: servers: web1:80, web2:8080 -> web2:8080, web1:80"),
        ("port = 80", "port = 80\nscheduler = \"lc\"",
         "virtual server shop: scheduler: weighted-least-connections -> least-connections"),
        ("port = 80", "port = 80\nsticky = \"5m\"", "virtual server shop: sticky: 0s -> 5m"),
        ("port = 80", "port = 8080",
         "virtual server shop: servers: +web1:8080, -web1:80\n"
         "virtual server shop: port: 80 -> 8080"),
        ('inside = "eth1"', 'inside = "eth1"\nqueue = 4000', "[gateway] queue: 0 -> 4000"),
        ("port = 80", "port = 80\nbackup = \"web1\"", 'virtual server shop: backup: "" -> web1'),
        ('inside = "eth1"', 'inside = ["eth1", "eth2"]', "[gateway] inside: +eth2"),
        ('inside = "eth1"', 'inside = "eth1"\nsecure = true', "[gateway] secure: false -> true"),
        ('inside = "eth1"', 'inside = "eth1"\nmax_connections = 5000',
         "[gateway] max_connections: 1,000,000 -> 5,000"),
        ('inside = "eth1"', 'inside = "eth1"\nmark_mask = 0xff00',
         "[gateway] mark_mask: 0x00ff0000 -> 0x0000ff00"),
        ("[[virtual]]", "[timeouts]\nudp = \"2m\"\n[[virtual]]", "[timeouts] udp: 30s -> 2m"),
    ],
)  # fmt: skip
def test_a_key_is_told_with_both_values(old: str, new: str, line: str) -> None:
    assert "\n".join(told(BASE.replace(old, new, 1))) == line


def test_servers_that_come_and_go() -> None:
    other = BASE.replace('name = "web2"', 'name = "web3"').replace('"web2:8080"', '"web3:8080"')
    assert told(other) == [
        "real server web2: removed, 10.0.0.2",
        "real server web3: added, 10.0.0.2",
        "virtual server shop: servers: +web3:8080, -web2:8080",
    ]
    more = BASE + '[[virtual]]\nname = "dns"\naddress = "192.0.2.10"\nprotocol = "udp"\nservers = ["web1"]\n'
    assert told(more) == ["virtual server dns: added, udp 192.0.2.10 every port over web1"]
    assert told(BASE, before=more) == ["virtual server dns: removed, udp 192.0.2.10 every port over web1"]


def test_the_order_of_tables_is_a_difference_too() -> None:
    head, one, two, rest = BASE.partition("[[real]]")[0], *BASE.split("[[real]]")[1:], ""
    two, _, tail = two.partition("[[virtual]]")
    swapped = f"{head}[[real]]{two}[[real]]{one}[[virtual]]{tail}{rest}"
    assert told(swapped) == ["[real] order: web1, web2 -> web2, web1"]


def test_a_document_for_programs() -> None:
    (difference,) = compare(of(BASE), of(BASE.replace("weight = 2", "retry = 90")))
    assert json.loads(json.dumps(difference.document())) == {
        "table": "real",
        "name": "web2",
        "what": "changed",
        "keys": [
            {"key": "weight", "before": 2.0, "after": 1.0},
            {"key": "retry", "before": 60.0, "after": 90.0},
        ],
    }


def test_a_difference_says_what_it_is_about() -> None:
    assert Difference("gateway", "", "changed").title == "[gateway]"
    assert Difference("virtual", "shop", "added").title == "virtual server shop"
