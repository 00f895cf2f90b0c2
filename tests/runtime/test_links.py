"""The gateway's interfaces: what is told of them, and whose name is followed. The kernel is a table here."""

import selectors
from collections.abc import Iterator, Mapping
from ipaddress import ip_address

import pytest

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.links import Link
from nfqlb.runtime.links import Links, with_interfaces
from nfqlb.runtime.protocol import JSONObject

CONFIG = Config(
    Gateway(("eth0",), ("eth1", "eth2")),
    (Real("web1", ip_address("10.0.0.1")),),
    (Virtual("web", ip_address("192.0.2.1"), (Server("web1", 80),), port=80),),
)


class Machine:
    """Interfaces that a test changes, and what the gateway says and does of it."""

    def __init__(self) -> None:
        names = ("lo", "eth0", "eth1", "eth2")
        self.here = {name: Link(number, True, True) for number, name in enumerate(names, 1)}
        self.said: list[str] = []
        self.renames: list[dict[str, str]] = []
        self.busy = False
        self.back = 0
        self.now = 100.0
        self.state: JSONObject = {}
        self.selector = selectors.DefaultSelector()
        self.links = Links(
            CONFIG, self.selector, self._say, self.state, self._renamed, self._again,
            look=lambda: self.here, clock=lambda: self.now,
        )  # fmt: skip

    def _say(self, kind: str, name: str, text: str, *, level: str = "info") -> None:
        assert kind == "gateway"
        self.said.append(f"{level}: {text}")

    def _renamed(self, names: Mapping[str, str]) -> bool:
        if not self.busy:
            self.renames.append(dict(names))
        return not self.busy

    def _again(self) -> None:
        self.back += 1

    def rename(self, before: str, after: str) -> None:
        self.here[after] = self.here.pop(before)

    @property
    def outside(self) -> tuple[str, ...]:
        """How the rules call the outside interfaces."""
        return self.links.named(CONFIG).gateway.outside


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.links.close()
    made.selector.close()


def test_as_long_as_all_is_well_nothing_is_said(machine: Machine) -> None:
    machine.links.tick()
    assert (machine.said, machine.renames, machine.state) == ([], [], {"wrong": []})


@pytest.mark.parametrize(
    ("link", "what"),
    [(None, "is gone"), (Link(2, False, False), "is down"), (Link(2, True, False), "has no link")],
)
def test_what_is_wrong_with_one_is_said_once_and_that_it_is_over(
    machine: Machine, link: Link | None, what: str
) -> None:
    before = machine.here.pop("eth0")
    if link is not None:
        machine.here["eth0"] = link
    machine.links.tick()
    machine.links.tick()
    assert machine.said == [f"error: outside interface eth0 {what}"]
    assert machine.state == {"wrong": [f"outside interface eth0 {what}"]}
    machine.now += 3.0
    machine.here["eth0"] = before
    machine.links.tick()
    assert machine.said[1:] == ["info: outside interface eth0 is there again, after 3.0 s"]
    assert (machine.state, machine.back, machine.renames) == ({"wrong": []}, 1, [])


def test_f20_who_is_called_otherwise_is_followed_there_and_back(machine: Machine) -> None:
    machine.rename("eth0", "wan0")
    machine.links.tick()
    machine.links.tick()
    assert machine.renames == [{"eth0": "wan0"}]
    assert machine.outside == ("wan0",)
    assert machine.said == ["warning: interface eth0 is called wan0 now, and so the gateway's rules say"]
    assert machine.state == {"wrong": ["outside interface eth0 is called wan0 now"]}
    machine.rename("wan0", "wan1")
    machine.links.tick()
    machine.rename("wan1", "eth0")
    machine.links.tick()
    assert machine.renames[1:] == [{"wan0": "wan1"}, {"wan1": "eth0"}]
    assert machine.outside == ("eth0",)
    assert machine.state == {"wrong": []}


def test_a_name_that_is_there_is_right_whatever_has_it(machine: Machine) -> None:
    """A new card gets the old one's name."""
    machine.rename("eth0", "old0")
    machine.here["eth0"] = Link(9, True, True)
    machine.links.tick()
    assert (machine.renames, machine.said) == ([], [])
    machine.rename("eth0", "new0")
    machine.links.tick()
    assert machine.renames == [{"eth0": "new0"}], "the one that had the name last"


def test_names_that_are_swapped_stay_with_the_sides(machine: Machine) -> None:
    machine.here["eth0"], machine.here["eth1"] = machine.here["eth1"], machine.here["eth0"]
    machine.links.tick()
    assert (machine.renames, machine.said) == ([], [])


def test_an_interface_that_takes_anothers_place_serves_one_side_alone(machine: Machine) -> None:
    """The inside is called like the outside, which is gone: it is not both."""
    del machine.here["eth0"]
    machine.rename("eth1", "eth0")
    machine.links.tick()
    assert machine.renames == []
    assert machine.said == ["error: inside interface eth1 is gone"]


def test_what_cannot_be_followed_now_is_followed_later(machine: Machine) -> None:
    machine.busy = True
    machine.rename("eth0", "wan0")
    machine.links.tick()
    assert machine.outside == ("eth0",)
    machine.busy = False
    machine.links.tick()
    assert machine.renames == [{"eth0": "wan0"}]
    assert machine.outside == ("wan0",)


def test_a_configuration_with_other_names() -> None:
    gateway = with_interfaces(CONFIG, {"eth0": "wan0", "eth2": "lan2"}).gateway
    assert (gateway.outside, gateway.inside) == (("wan0",), ("eth1", "lan2"))
    assert with_interfaces(CONFIG, {"eth7": "x"}) is CONFIG
