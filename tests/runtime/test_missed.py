"""What the rules have dropped, added to what the worker has."""

import selectors
from dataclasses import replace
from ipaddress import ip_address

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.spec import Config, Gateway, Virtual
from nfqlb.runtime.carry import Carry
from nfqlb.runtime.missed import Missed
from nfqlb.runtime.protocol import JSONObject

SHOP = Virtual("shop", ip_address("192.0.2.10"), (), port=80, datapath=OFFLOAD)
MAIL = replace(SHOP, name="mail", port=25)
CONFIG = Config(Gateway(("eth0",), ("eth1",)), (), (SHOP, MAIL))


def account(**drops: int) -> JSONObject:
    """What a worker has counted."""
    shop: JSONObject = {"name": "shop", "drops": dict(drops)}
    return {"drops": dict(drops), "virtuals": [shop, {"name": "mail", "drops": {}}]}


def gateway() -> tuple[Carry, Missed]:
    carry = Carry()
    return carry, Missed(CONFIG, selectors.DefaultSelector(), carry.beside, lambda: 0.0)


def drops(document: JSONObject) -> list[object]:
    """Those of the gateway, then of each virtual server."""
    virtuals = document["virtuals"]
    assert isinstance(virtuals, list)
    return [document["drops"], *(row["drops"] for row in virtuals if isinstance(row, dict))]


def test_they_count_like_the_worker_s_own() -> None:
    carry, missed = gateway()
    missed.take([["shop", "no-connection", 5], ["", "server-no-connection", 2], ["mail", "no-connection", 0]])
    both = {"no-server": 1, "no-connection": 5, "server-no-connection": 2}
    assert drops(carry.add(account(**{"no-server": 1}))) == [both, {"no-server": 1, "no-connection": 5}, {}]


def test_they_do_not_fall_with_the_rules() -> None:
    """Made anew, a rule begins at 0; one that is missing for a moment says nothing."""
    carry, missed = gateway()
    for count in (5, 1):
        missed.take([["shop", "no-connection", count]])
    assert drops(carry.add(account()))[0] == {"no-connection": 6}
    missed.take([])
    assert drops(carry.add(account()))[1] == {"no-connection": 6}


def test_they_do_not_fall_with_a_worker_or_a_virtual_server() -> None:
    carry, missed = gateway()
    missed.take([["shop", "no-connection", 5], ["mail", "no-connection", 3]])
    carry.learn(account(**{"no-connection": 2}))
    carry.succeed({})
    assert drops(carry.add(account()))[:2] == [{"no-connection": 10}, {"no-connection": 7}]
    missed.follow(replace(CONFIG, virtuals=(SHOP,)))
    missed.take([["shop", "no-connection", 6]])
    assert drops(carry.add(account()))[:2] == [{"no-connection": 11}, {"no-connection": 8}]
