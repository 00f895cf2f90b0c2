"""What must hold between tables; every breach is found at its place, once."""

from collections.abc import Callable

import pytest

from nfqlb.config.load import Finding, parse

Parts = Callable[..., str]
Findings = Callable[[str], tuple[Finding, ...]]

SECOND = """
[[virtual]]
name = "shop2"
address = "192.0.2.20"
port = 80
servers = ["web1", "web2"]
"""


def told(found: tuple[Finding, ...]) -> list[tuple[str, str]]:
    """Key and message of each finding that is not about what comes later."""
    return [(one.key, one.message) for one in found if "not supported yet" not in one.message]


def test_an_interface_has_one_side(good_with: Parts, findings: Findings) -> None:
    text = good_with().replace('inside = "eth1"', 'inside = ["eth1", "eth0"]')
    assert told(findings(text)) == [("gateway.inside", '"eth0" is the outside interface already')]
    text = good_with().replace('inside = "eth1"', 'inside = ["eth1", "eth1"]')
    assert told(findings(text)) == [("gateway.inside", '"eth1" stands here twice')]


def test_names_are_unique_among_their_kind(good_with: Parts, findings: Findings) -> None:
    found = findings(
        good_with().replace('name = "web2"', 'name = "web1"').replace('"web1", "web2"', '"web1"')
    )
    assert told(found) == [("real[web1].name", 'there is another real server "web1" further up')]
    found = findings(good_with() + SECOND.replace("shop2", "shop"))
    assert told(found) == [("virtual[shop].name", 'there is another virtual server "shop" further up')]
    assert found[0].line == good_with().count("\n") + 3
    assert parse(good_with() + SECOND.replace("shop2", "web1"), "gw.toml").virtuals[1].name == "web1"


def test_a_real_server_has_an_address_of_its_own(good_with: Parts, findings: Findings) -> None:
    (finding,) = findings(good_with().replace("10.0.0.2", "10.0.0.1"))
    assert (finding.key, finding.message) == ("real[web2].address", "10.0.0.1 is web1's address already")
    assert "one [[real]] a machine" in finding.hint


def test_a_virtual_address_is_no_real_servers(good_with: Parts, findings: Findings) -> None:
    found = findings(good_with().replace("192.0.2.10", "10.0.0.2"))
    assert told(found) == [("virtual[shop].address", "10.0.0.2 is the address of the real server web2")]


def test_metrics_have_an_address_of_this_machine(good_with: Parts, findings: Findings) -> None:
    (finding,) = findings(good_with(gateway='metrics = "192.0.2.10:9617"'))
    assert finding.message == "192.0.2.10 is the address of the virtual server shop"
    assert '"127.0.0.1:9617"' in finding.hint
    found = findings(good_with(gateway='metrics = "10.0.0.2:9617"'))
    assert told(found) == [("gateway.metrics", "10.0.0.2 is the address of the real server web2")]
    assert findings(good_with(gateway='metrics = "192.0.2.1:9617"')) == ()


def test_two_virtual_servers_answer_different_packets(good_with: Parts, findings: Findings) -> None:
    same = good_with() + SECOND.replace("192.0.2.20", "192.0.2.10")
    assert told(findings(same)) == [("virtual[shop2].port", "port 80 of tcp 192.0.2.10 is shop's already")]
    assert len(parse(same.replace("port = 80", "port = 81", 1), "gw.toml").virtuals) == 2
    assert told(findings(same + 'protocol = "udp"')) == []


def test_every_port_leaves_nothing_to_others(good_with: Parts, findings: Findings) -> None:
    same = good_with() + SECOND.replace("192.0.2.20", "192.0.2.10")
    first, last = same.replace("port = 80\n", "", 1), same[:-100] + same[-100:].replace("port = 80\n", "")
    assert told(findings(first)) == [
        ("virtual[shop2].port", "every port of tcp 192.0.2.10 is shop's already")
    ]
    assert told(findings(last)) == [
        ("virtual[shop2].port", "not every port of tcp 192.0.2.10 is free: 80 (shop)")
    ]
    both = same.replace("port = 80\n", "")
    assert told(findings(both)) == [("virtual[shop2].port", "every port of tcp 192.0.2.10 is shop's already")]


def test_with_every_port_servers_have_none(good_with: Parts, findings: Findings) -> None:
    text = good_with().replace("port = 80\n", "").replace('"web2"]', '"web2:80"]')
    assert told(findings(text)) == [
        ("virtual[shop].servers", '"web2:80" has a port, the virtual server has none')
    ]


def test_a_server_stands_once_in_a_list(good_with: Parts, findings: Findings) -> None:
    for servers in ('"web1", "web1"', '"web1", "web1:80"', '"web1:80", "web1"'):
        found = findings(good_with().replace('"web1", "web2"', servers))
        assert told(found) == [("virtual[shop].servers", "web1 port 80 stands in this list already")]
    assert (
        parse(good_with().replace('"web1", "web2"', '"web1", "web1:81"'), "gw.toml")
        .virtuals[0]
        .servers[1]
        .port
        == 81
    )


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("web3", 'did you mean "web2"?'),
        ("WEB1", 'did you mean "web1"?'),
        ("mail", ""),
        ("10.0.0.2", 'servers stand here by name; "web2" has this address'),
    ],
)
def test_servers_are_known(written: str, hint: str, good_with: Parts, findings: Findings) -> None:
    (finding,) = findings(good_with().replace('"web1", "web2"', f'"web1", "{written}"'))
    assert (finding.key, finding.message) == ("virtual[shop].servers", f'no [[real]] is named "{written}"')
    assert hint in finding.hint
    assert finding.column == len('servers = ["web1", ') + 1


def test_a_refused_entry_does_not_hide_the_mistakes_beside_it(good_with: Parts, findings: Findings) -> None:
    text = good_with().replace('"web1", "web2"', '"web1:0", "wbe2", "a b", "web1", "web1"')
    assert [(finding.column, finding.message.split(" ")[0]) for finding in findings(text)] == [
        (12, '"0"'),
        (22, "no"),
        (30, '"a'),
        (45, "web1"),
    ]


def test_one_mistake_is_told_once(good_with: Parts, findings: Findings) -> None:
    """A real server refused for another key, or a name that is none, is still known by that name."""
    for old, new in (("10.0.0.1", "nowhere"), ('"web1"', '"web 1"')):
        keys = [key for key, _ in told(findings(good_with().replace(old, new, 1)))]
        assert len(keys) == 1 + (new == '"web 1"')  # "web 1" in servers is found as well
    assert len(findings(good_with().replace("port = 80", "port = 0") + SECOND)) == 1


def test_one_virtual_server_one_ip_version(good_with: Parts, findings: Findings) -> None:
    text = good_with().replace("10.0.0.2", "2001:db8::2")
    assert told(findings(text)) == [
        ("virtual[shop].servers", "web2 has an IPv6 address, the virtual server an IPv4 one")
    ]


def test_backups_are_known_and_lead_nowhere_back(good_with: Parts, findings: Findings) -> None:
    """A27: chains of backups are followed, so they must not run in a circle."""
    unknown = [('no [[real]] is named "web9"')]
    assert [message for _, message in told(findings(good_with(real='backup = "web9"')))] == unknown
    assert [message for _, message in told(findings(good_with(virtual='backup = "web9"')))] == unknown
    own = told(findings(good_with(real='backup = "web1"')))
    assert own == [("real[web1].backup", "a real server is no backup of itself")]
    circle = good_with(real='backup = "web2"').replace('"10.0.0.2"', '"10.0.0.2"\nbackup = "web1"')
    assert told(findings(circle)) == [
        ("real[web1].backup", "the backups run in a circle: web1 -> web2 -> web1"),
        ("real[web2].backup", "the backups run in a circle: web2 -> web1 -> web2"),
    ]
    (first, _) = findings(circle)
    assert first.line == circle.split("\n").index('backup = "web2"') + 1
    into_it = circle + '[[real]]\nname = "web3"\naddress = "10.0.0.3"\nbackup = "web1"\n'
    assert told(findings(into_it)) == told(findings(circle))
    chain = parse(good_with(real='backup = "web2"', virtual='backup = "web1"'), "gw.toml")
    assert [real.backup for real in chain.reals] == ["web2", ""]
    assert chain.virtuals[0].backup == "web1"


def test_a_backup_has_the_same_ip_version(good_with: Parts, findings: Findings) -> None:
    """A27: it stands in for its server's very connections."""
    for place, who in (("real", "web1"), ("virtual", "shop")):
        text = good_with(**{place: 'backup = "web3"'})
        text += '[[real]]\nname = "web3"\naddress = "2001:db8::3"\n'
        message = f"web3 has an IPv6 address, {who} an IPv4 one"
        assert told(findings(text)) == [(f"{place}[{who}].backup", message)]


def test_places_are_all_that_may_ever_serve(good_with: Parts) -> None:
    """R027, R047 (A27): servers, their chains of backups, and the virtual server's own, each once."""
    more = [f'[[real]]\nname = "web{n}"\naddress = "10.0.0.{n}"\n' for n in (3, 4)]
    text = good_with(real='backup = "web3"', virtual='backup = "web4"').replace(
        '"web1", "web2"', '"web1:8080"'
    )
    config = parse(text + more[0] + 'backup = "web4"\n' + more[1], "gw.toml")
    assert [(place.real, place.port) for place in config.places(config.virtuals[0])] == [
        ("web1", 8080),
        ("web3", 8080),
        ("web4", 8080),
        ("web4", 80),
    ]
    again = parse(good_with(real='backup = "web2"', virtual='backup = "web2"'), "gw.toml")
    assert [place.real for place in again.places(again.virtuals[0])] == ["web1", "web2"]


def test_a_sticky_group_needs_stickiness(good_with: Parts, findings: Findings) -> None:
    found = findings(good_with(virtual='sticky_group = "both"'))
    assert told(found) == [("virtual[shop].sticky_group", '"both" has no effect while sticky is 0')]


def test_members_of_a_sticky_group_share_entries(good_with: Parts, findings: Findings) -> None:
    """A8: entries of a group are keyed by the masked client alone, so masks and durations agree."""
    group = 'sticky_group = "both"\nsticky = 300'
    good = good_with(virtual=group) + SECOND + 'sticky_group = "both"\nsticky = "5m"\nsticky_mask = 32\n'
    assert [virtual.sticky_group for virtual in parse(good, "gw.toml").virtuals] == ["both", "both"]
    assert told(findings(good.replace("sticky_mask = 32", "sticky_mask = 24"))) == [
        ("virtual[shop2].sticky_mask", '/24 here, /32 in shop of the sticky group "both"')
    ]
    assert told(findings(good.replace('sticky = "5m"', "sticky = 301"))) == [
        ("virtual[shop2].sticky", '301 s here, 300 s in shop of the sticky group "both"')
    ]
    assert told(findings(good.replace('sticky_group = "both"\nsticky = "5m"', 'sticky = "6m"'))) == []


def test_members_of_a_sticky_group_refresh_alike(good_with: Parts, findings: Findings) -> None:
    """A6, A8: one entry cannot both be renewed and not be renewed by a connection."""
    group = 'sticky_group = "both"\nsticky = 300\n'
    text = good_with(virtual=group + 'sticky_refresh = "never"') + SECOND + group
    message = '"assignment" here, "never" in shop of the sticky group "both"'
    assert told(findings(text)) == [("virtual[shop2].sticky_refresh", message)]
    assert told(findings(text + 'sticky_refresh = "never"\n')) == []
    refused = findings(text + "sticky_refresh = 5\n")
    assert [one.key for one in refused] == ["virtual[shop2].sticky_refresh"]


def test_a_refused_mask_is_not_compared(good_with: Parts, findings: Findings) -> None:
    group = 'sticky_group = "both"\nsticky = 300\nsticky_mask = '
    text = good_with(virtual=f"{group}24") + SECOND + f'{group}"24"\n'
    assert [key for key, _ in told(findings(text))] == ["virtual[shop2].sticky_mask"]


def test_a_table_without_a_proper_name_goes_by_its_number(good_with: Parts, findings: Findings) -> None:
    text = good_with().replace('name = "web1"', "name = 5").replace("10.0.0.2", "10.0.0.1")
    assert ("real[web2].address", "10.0.0.1 is [[real]] number 1's address already") in told(findings(text))


def test_members_of_a_sticky_group_share_servers(good_with: Parts, findings: Findings) -> None:
    """A8: an entry that names a server which the other member lacks would only be overwritten."""
    group = 'sticky_group = "both"\nsticky = 300\n'
    text = good_with(virtual=group).replace('"web1", "web2"', '"web1"')
    text += SECOND.replace('"web1", "web2"', '"web2:8080"') + group
    message = 'shares no real server with the others of the sticky group "both"'
    assert told(findings(text)) == [(f"virtual[{name}].sticky_group", message) for name in ("shop", "shop2")]
    assert told(findings(text.replace('"web2:8080"', '"web2", "web1:8080"'))) == []
    refused = told(findings(text.replace('["web2:8080"]', '"web1"')))
    assert [key for key, _ in refused] == ["virtual[shop2].servers"]


def test_the_mask_fits_the_address(good_with: Parts, findings: Findings) -> None:
    found = findings(good_with(virtual="sticky_mask = 64"))
    assert told(found) == [
        ("virtual[shop].sticky_mask", "64 is not a prefix length of IPv4 (allowed: 0 to 32)")
    ]
    text = good_with(virtual="sticky_mask = 64").replace("192.0.2.10", "2001:db8::10")
    assert [key for key, _ in told(findings(text))] == ["virtual[shop].servers"] * 2


def test_a_virtual_server_may_be_quiesced_whole(good_with: Parts) -> None:
    """Weight 0 everywhere is how an operator lets a service run dry; it is no mistake."""
    text = good_with(real="weight = 0").replace('"10.0.0.2"', '"10.0.0.2"\nweight = 0')
    assert [real.weight for real in parse(text, "gw.toml").reals] == [0, 0]


def test_a_real_server_may_be_in_no_virtual_server(good_with: Parts) -> None:
    assert len(parse(good_with().replace('"web1", "web2"', '"web1"'), "gw.toml").reals) == 2


@pytest.mark.parametrize("key", ["scheduler", "shadow"])
def test_udp_has_no_response_times(key: str, good_with: Parts, findings: Findings) -> None:
    """R011: nothing tells which datagram answers which; the same is fine for TCP."""
    wrong = good_with(virtual=f'protocol = "udp"\n{key} = "fastest-response"')
    message = '"fastest-response" goes by response times, which UDP does not tell'
    assert told(findings(wrong)) == [(f"virtual[shop].{key}", message)]
    assert told(findings(wrong.replace('"udp"', '"tcp"'))) == []
