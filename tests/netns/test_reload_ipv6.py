"""A virtual server of the other address family comes and goes while the gateway runs."""

from collections.abc import Iterator

import pytest

from nfqlb.demo.appliance import balancing, nfqlb_command, virtual
from nfqlb.demo.lab import VIP6, Lab
from nfqlb.runtime.client import Client
from tests.netns.asking import ask, holding, traces, wait_until
from tests.netns.both import Datapath, configuration, serving


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, servers=2, ipv6=True) as lab:
        yield lab


def rules6(lab: Lab) -> list[str]:
    text = lab.gateway.run("ip6tables-save").stdout
    return [line for line in text.splitlines() if "NFQLB" in line]


def test_ipv6_comes_and_goes(lab: Lab) -> None:
    """Rules, address and connections of it, while those of IPv4 go on."""
    before = traces(lab)
    names = [server.name for server in lab.servers]
    four = configuration(lab, virtual("web", names))
    six = virtual("six", [f"{name}-6" for name in names], address=VIP6, scheduler="round-robin")
    with balancing(lab, four) as gateway, Client(lab.directory / "control.sock") as client:
        assert rules6(lab) == []
        with holding(lab.client, 2) as held:
            first = held.rounds()[0]
            gateway.config.write_text(configuration(lab, virtual("web", names), six))
            client.call("reload", patience=60)
            assert rules6(lab)
            assert {ask(lab.client, address=VIP6).server for _ in range(2)} == set(names)
            with holding(lab.client, 2, address=VIP6) as held6:
                first6 = held6.rounds()[0]
                gateway.config.write_text(four)
                assert isinstance(done := client.call("reload", patience=60), dict)
                assert done["draining"] == ["six"]
                assert VIP6 in lab.gateway.run("ip", "-6", "address", "show").stdout
                assert held6.again() == first6
                refused = nfqlb_command(lab, "rules", "verify", "-c", str(gateway.config))
                assert (refused.returncode, refused.stdout) == (0, "")
            wait_until(lambda: rules6(lab) == [], "the end of its rules", timeout=30)
            assert VIP6 not in lab.gateway.run("ip", "-6", "address", "show").stdout
            assert held.again() == first
        assert "Traceback" not in gateway.program.stderr
    assert traces(lab) == before
