"""What an operator has set while the gateway runs, and what a reload would make of it."""

from ipaddress import ip_address

from nfqlb.core import spec
from nfqlb.runtime.by_hand import by_hand
from nfqlb.runtime.protocol import JSON
from tests.core.scenario import real, virtual
from tests.runtime import sample


def row(name: str, number: int, **changes: JSON) -> JSON:
    return {**sample.real(name), "address": f"10.0.0.{number}", **changes}


def wanted(**weights: float) -> spec.Config:
    """A configuration with servers of these weights, and one virtual server."""
    reals = [real(name, weight=weight) for name, weight in weights.items()]
    shop = virtual("shop", weights, address="192.0.2.10")
    return spec.Config(spec.Gateway(("eth0",), ("eth1",)), tuple(reals), (shop,))


def test_nothing_is_set() -> None:
    snapshot = {**sample.snapshot(), "reals": [row("a", 1)]}
    assert by_hand(snapshot, wanted(a=2.5)) == []
    assert by_hand(snapshot, wanted(a=7)) == []


def test_what_is_set_stays_but_for_a_weight_that_the_file_has_changed() -> None:
    rows: list[JSON] = [
        row("a", 1, weight=3, weight_configured=1),
        row("b", 2, weight=3, weight_configured=1),
        row("c", 3, set="maintenance"),
        row("z", 26, set="maintenance", weight=3),
    ]
    snapshot = {**sample.snapshot(), "reals": rows}
    assert by_hand(snapshot, wanted(a=1, b=2, c=1)) == [
        "real server a: weight 3 instead of 1; it stays",
        "real server b: weight 3; 2 takes its place",
        "real server c: maintenance; it stays",
    ]


def test_a_virtual_server_stays_out_of_service() -> None:
    snapshot = sample.snapshot()
    snapshot["virtuals"][0]["state"] = "out-of-service"
    config = wanted(y=1)
    assert config.virtuals[0].address == ip_address("192.0.2.10")
    assert by_hand(snapshot, config) == ["virtual server shop: out-of-service; it stays"]
