"""Interfaces, addresses and routes that others take away and give back: service goes on by itself.

Both IP versions, with connections held over each fault, and nothing started anew. What an operator's network
service does when an interface comes back is done here by hand: IPv6 addresses go with an interface that is
down.
"""

import time
from collections.abc import Iterator
from functools import partial

import pytest

from nfqlb.demo.appliance import Appliance, balancing, nfqlb_command, virtual
from nfqlb.demo.lab import VIP, VIP6, Host, Lab, sixth
from nfqlb.demo.web import serve
from tests.netns.asking import Held, holding, rows, rules, summary, traces, wait_until
from tests.netns.beside import asking_steadily
from tests.netns.both import Bench, Datapath, configuration

IN_TIME = 10.0
"""Seconds after which everybody is served again, whatever else this machine does."""

GATEWAY = {"outside": "192.0.2.1/24", "inside": "10.0.0.1/24"}


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, servers=2, ipv6=True, router="inside") as lab:
        for server in lab.servers:
            serve(lab, server)
        yield lab


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Appliance]:
    names = [server.name for server in lab.servers]
    six = virtual("six", [f"{name}-6" for name in names], address=VIP6)
    with balancing(lab, configuration(lab, virtual("web", names), six)) as appliance:
        yield appliance


@pytest.fixture(scope="module")
def held(lab: Lab, gateway: Appliance) -> Iterator[list[Held]]:
    """Connections over both IP versions that must outlive everything."""
    with holding(lab.client, 3) as four, holding(lab.client, 3, address=VIP6) as six:
        yield [four, six]


def answers(client: Host, address: str) -> bool:
    url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    return client.run("curl", "-sS", "--max-time", "0.5", url, check=False).returncode == 0


def back_within(client: Host, seconds: float) -> float:
    """Wait until both virtual addresses answer; how long that took."""
    begun = time.monotonic()
    missing = [VIP, VIP6]
    while missing:
        missing = [address for address in missing if not answers(client, address)]
        took = time.monotonic() - begun
        assert took < seconds, f"{missing} do not answer after {took:.1f} s"
    return took


def routes(side: str) -> str:
    """What goes with an interface that is down: routes to the servers, which stand behind a router."""
    if side == "outside":
        return ""
    return " ; ".join(
        f"ip route replace {net} via {router}"
        for net, router in (("10.0.1.0/24", "10.0.0.2"), (sixth("10.0.1.0/24"), sixth("10.0.0.2")))
    )


def addresses(side: str) -> str:
    """The gateway's own addresses there, as its network service would give them back."""
    four = GATEWAY[side]
    six = f"ip address replace {sixth(four)} dev {side} nodad"
    return f"ip address replace {four} dev {side}; {six}; {routes(side)}"


FAULTS = {
    "outside down": ("ip link set outside down", f"ip link set outside up; {addresses('outside')}"),
    "inside down": ("ip link set inside down", f"ip link set inside up; {addresses('inside')}"),
    "outside without addresses": ("ip address flush dev outside", addresses("outside")),
    "inside without addresses": ("ip address flush dev inside", addresses("inside")),
    "virtual addresses taken": (
        f"ip address del {VIP}/32 dev outside; ip address del {VIP6}/128 dev outside",
        "true",
    ),
    "no route": (f"ip route del 10.0.1.0/24; ip route del {sixth('10.0.1.0/24')}", routes("inside")),
    "route to nowhere": (
        f"ip route replace unreachable 10.0.1.0/24; ip route replace unreachable {sixth('10.0.1.0/24')}",
        f"ip route del unreachable 10.0.1.0/24; ip route del unreachable {sixth('10.0.1.0/24')}; "
        + routes("inside"),
    ),
    "outside renamed": ("ip link set outside name wan0", "ip link set wan0 name outside"),
    "inside renamed": ("ip link set inside name lan0", "ip link set lan0 name inside"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_f20_service_goes_on(
    lab: Lab, gateway: Appliance, held: list[Held], fault: str
) -> None:
    """F20: and what was established goes on with its server; no worker is started for it."""
    taken, given = FAULTS[fault]
    before = [each.rounds()[0] for each in held]
    lab.gateway.run("sh", "-c", taken)
    time.sleep(0.2)
    lab.gateway.run("sh", "-c", given)
    back_within(lab.client, IN_TIME)
    begun = time.monotonic()
    now = [each.again() for each in held]
    assert time.monotonic() - begun < IN_TIME
    assert [[each.server for each in one] for one in now] == [[each.server for each in one] for one in before]
    assert summary(gateway)["worker"]["restarts"] == 0
    assert {row["state"] for row in rows(gateway, "reals")} == {"in-service"}


def test_f20_a_route_that_flaps_costs_no_connection(
    lab: Lab, gateway: Appliance, held: list[Held]
) -> None:
    """F20: ten times in two seconds it is gone and there again, while everybody asks."""
    before = [each.rounds()[0] for each in held]
    taken, given = FAULTS["no route"]
    with asking_steadily(lab, interval=0.02) as steady:
        begun = time.monotonic()
        for _ in range(10):
            lab.gateway.run("sh", "-c", f"{taken}; sleep 0.1; {given}; sleep 0.1")
        back = time.monotonic()
        # Retransmissions have fallen into the gaps, each twice as long after the one before.
        wait_until(lambda: len(steady.during(back, time.monotonic()).kept) > 10, "the client's answers")
    took = steady.during(begun, time.monotonic())
    assert took.failed == 0
    assert took.worst < IN_TIME
    now = [each.again() for each in held]
    assert [[each.server for each in one] for one in now] == [[each.server for each in one] for one in before]
    assert {row["state"] for row in rows(gateway, "reals")} == {"in-service"}


def test_f20_an_interface_that_is_called_otherwise_is_followed(
    lab: Lab, gateway: Appliance, held: list[Held]
) -> None:
    """F20: for as long as it takes; a configuration may have the old name meanwhile, or the new one."""
    before = [[each.server for each in one.rounds()[0]] for one in held]
    text = gateway.config.read_text()
    for old, new in (("outside", "wan0"), ("inside", "lan0")):
        lab.gateway.run("ip", "link", "set", old, "name", new)
    try:
        back_within(lab.client, IN_TIME)
        assert [[each.server for each in one.again()] for one in held] == before
        wait_until(partial(says, gateway, "outside interface outside is called wan0 now"), "the verdict")
        renamed = text.replace('"outside"', '"wan0"').replace('"inside"', '"lan0"')
        for config in (text, renamed):
            gateway.config.write_text(config)
            done = nfqlb_command(lab, "reload", "-c", str(gateway.config))
            assert done.returncode == 0, done.stderr
            back_within(lab.client, IN_TIME)
    finally:
        gateway.config.write_text(text)
        for old, new in (("outside", "wan0"), ("inside", "lan0")):
            lab.gateway.run("ip", "link", "set", new, "name", old)
    back_within(lab.client, IN_TIME)
    assert [[each.server for each in one.again()] for one in held] == before
    wait_until(partial(says, gateway, "all well"), "the verdict")


def says(gateway: Appliance, what: str) -> bool:
    """Whether that is in the verdict."""
    snapshot = gateway.ask("snapshot")
    assert isinstance(snapshot, dict)
    return what in str(snapshot["verdict"])


def test_f20_an_interface_that_is_down_or_new_is_told_of(
    lab: Lab, gateway: Appliance, held: list[Held]
) -> None:
    """F20: in the verdict and in the events, with how long it was so."""
    for side in ("outside", "inside"):
        taken, given = FAULTS[f"{side} down"]
        lab.gateway.run("sh", "-c", taken)
        wait_until(partial(says, gateway, f"{side} interface {side} is down"), "the verdict")
        lab.gateway.run("sh", "-c", given)
        back_within(lab.client, IN_TIME)
        again = f"{side} interface {side} is there again, after "
        assert any(row["text"].startswith(again) for row in rows(gateway, "events"))


def test_f20_a_stop_leaves_a_renamed_interface_as_it_was(lab: Lab) -> None:
    """F20: forwarding is put back under the new name, and no address or rule is left."""
    with Bench(lab.datapath, servers=1) as other:  # type: ignore[attr-defined]  # a Bench
        serve(other, other.servers[0])
        before = traces(other)
        with balancing(other, configuration(other)):
            other.gateway.run("ip", "link", "set", "outside", "name", "wan0")
            wait_until(lambda: "-i wan0" in "".join(rules(other)), "rules for the new name")
        other.gateway.run("ip", "link", "set", "wan0", "name", "outside")
        assert traces(other) == before
