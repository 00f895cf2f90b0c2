"""`nfqlb top` on a real gateway: what clients do is on the screen, and what is pressed happens."""

from collections.abc import Iterator

import pytest

from nfqlb.demo.appliance import balancing, socket_path, virtual
from nfqlb.demo.lab import Lab
from tests.netns.asking import ask, holding, rows
from tests.netns.both import Datapath, configuration, serving
from tests.operator.dashboard.screen import top


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=2) as lab:
        yield lab


def test_watched_and_drained(lab: Lab) -> None:
    """R018, R186: a connection is on the screen with its server; `d` and `y` drain one from the next SYN."""
    web = virtual("web", ("web1", "web2"), scheduler="round-robin")
    with balancing(lab, configuration(lab, web)) as appliance:
        assert {ask(lab.client).server for _ in range(4)} == {"web1", "web2"}
        with top(socket_path(lab), size=(120, 40)) as screen:
            screen.shows("OK all well", "I 2 in-service", "process")
            screen.shows("4 in all")
            with holding(lab.client, 1):
                screen.press("4")
                screen.shows("established", "web")
                row = screen.row("established").split()
                screen.press("e")
                screen.shows("to web went to", "round-robin took the next in order", "chosen")
                screen.press("q")
                assert row[1] == "web"
            screen.press("3")
            screen.shows("10.0.0.12")
            screen.press("jd")
            screen.shows("Drain web2?")
            assert [real["state"] for real in rows(appliance, "reals")] == ["in-service", "in-service"]
            screen.press("y")
            screen.shows("web2: in-service -> sticky-only")
            assert {ask(lab.client).server for _ in range(4)} == {"web1"}
            screen.until(lambda: screen.row("10.0.0.12").split()[0] == "S", "the server drained")
            screen.press("5")
            screen.shows("web2: in-service -> sticky-only", "user root")
            screen.press("q")
            assert screen.ended() == 0
