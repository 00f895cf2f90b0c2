"""Captures of UDP, IPv6 and of what the worker sees under datapath offload."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from struct import pack

from nfqlb.core import spec
from nfqlb.core.segment import ACK, FIN, SYN
from nfqlb.packet.frame import Frame
from nfqlb.replay.outcome import Document, replay
from tests.core.scenario import real, reals, virtual

CLIENT, VIP = "192.0.2.7", "203.0.113.1"
_PUSH = 0x08


def frame(
    at: float, source: str, port: int, target: str, target_port: int, flags: int | None,
    numbers: tuple[int, int] = (0, 0), data: int = 0,
) -> Frame:  # fmt: skip
    """A packet at a time (seconds), of which the headers were kept; flags None: a datagram."""
    one, other = ip_address(source), ip_address(target)
    ports = pack("!HH", port, target_port)
    if flags is None:
        body, protocol = ports + pack("!HH", 8 + data, 0), 17
    else:
        body, protocol = ports + pack("!IIHHHH", *numbers, 5 << 12 | flags, 64000, 0, 0), 6
    size = len(body) + data
    if one.version == 4:
        head = pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0, 64, protocol, 0)
    else:
        head = pack("!IHBB", 0x60000000, size, protocol, 64)
    packet = head + one.packed + other.packed + body
    whole = round(at * 1_000_000)
    return Frame(divmod(whole + 10**15, 1_000_000), 101, packet, len(packet) + data)


def run(config: spec.Config, frames: Iterable[Frame]) -> Document:
    """What comes of them."""
    told = list(frames)
    return replay(config, lambda: told)


def gateway(*virtuals: spec.Virtual, servers: Iterable[spec.Real] = ()) -> spec.Config:
    """A configuration of servers a and b."""
    return spec.Config(spec.Gateway(("eth0",), ("eth1",)), tuple(servers or reals("ab")), virtuals)


def test_flows_of_datagrams() -> None:
    """R012: the first datagram of a flow is a decision; the inside tells who got it."""
    config = gateway(virtual("dns", "ab", port=53, protocol="udp"))
    frames = []
    for number in range(4):
        server = "10.0.0.2" if number % 2 else "10.0.0.1"
        for again in range(2):
            at, port = number + again / 10, 5000 + number
            frames += [
                frame(at, CLIENT, port, VIP, 53, None, data=30),
                frame(at, CLIENT, port, server, 53, None, data=30),
                frame(at + 0.01, server, 53, CLIENT, port, None, data=90),
                frame(at + 0.01, VIP, 53, CLIENT, port, None, data=90),
            ]
    document = run(config, frames)
    (dns,) = document["virtuals"]
    assert (dns["decisions"], dns["same"], dns["different"]) == (4, 4, 0)
    assert (document["frames"], document["packets"]) == (32, 16)
    assert document["sides"] == "both"


def test_flows_to_another_address_are_not_ours() -> None:
    """Though the servers behind it are: neither questions nor answers count, and where they went is told."""
    config = gateway(virtual("dns", "ab", port=53, protocol="udp"))
    other = "203.0.113.9"
    frames = []
    for number in range(3):
        frames += [
            frame(number, CLIENT, 5000 + number, other, 53, None),
            frame(number, CLIENT, 5000 + number, "10.0.0.1", 53, None),
            frame(number, "10.0.0.1", 53, CLIENT, 5000 + number, None),
            frame(number, other, 53, CLIENT, 5000 + number, None),
        ]
    document = run(config, frames)
    assert (document["packets"], document["decisions"]) == (0, [])
    assert document["elsewhere"] == [{"address": other, "port": 53, "connections": 3}]
    mixed = [frame(9, CLIENT, 6000, VIP, 53, None), frame(9, CLIENT, 6000, "10.0.0.2", 53, None), *frames]
    assert run(config, mixed)["virtuals"][0]["decisions"] == 1


def test_ipv6() -> None:
    servers = [replace(each, address=ip_address(f"fd00::{each.name}")) for each in reals("ab")]
    config = gateway(virtual("six", "ab", address="2001:db8::1"), servers=servers)
    frames = []
    for number in range(1, 5):
        server = f"fd00::{'ab'[number % 2]}"
        asked = ("2001:db8:c::7", 5000 + number)
        frames += [
            frame(number, *asked, "2001:db8::1", 80, SYN, (number * 1000, 0)),
            frame(number, *asked, server, 80, SYN, (number * 1000, 0)),
            frame(number, server, 80, *asked, SYN | ACK, (7, number * 1000 + 1)),
        ]
    document = run(config, frames)
    (six,) = document["virtuals"]
    assert (six["decisions"], six["same"], six["different"]) == (4, 0, 4)  # the other one had the first turn
    assert document["decisions"][0]["replayed"] == "a:80"
    assert document["decisions"][0]["captured"] == "b:80"
    assert [each["address"] for each in six["servers"]] == ["fd00::a", "fd00::b"]


def _offloaded(number: int, server: str) -> list[Frame]:
    """What the worker sees of a connection: its SYN, and copies of SYN-ACK, first data and FINs."""
    at, port, isn = float(number), 5000 + number, number * 1000
    return [
        frame(at, CLIENT, port, VIP, 80, SYN, (isn, 0)),
        frame(at + 0.1, server, 80, CLIENT, port, SYN | ACK, (7000, isn + 1)),
        frame(at + 0.2, CLIENT, port, VIP, 80, ACK | _PUSH, (isn + 1, 7001), data=100),
        frame(at + 0.45, server, 80, CLIENT, port, ACK | _PUSH, (7001, isn + 101), data=1000),
        frame(at + 0.5, server, 80, CLIENT, port, ACK | FIN, (8001, isn + 101)),
        frame(at + 0.5, CLIENT, port, VIP, 80, ACK | FIN, (isn + 101, 8002)),
    ]


def test_what_the_worker_sees_under_offload() -> None:
    """R078: clients' ACKs are not in it, so an answer stands for them; and that is said."""
    config = gateway(virtual("web", "ab", scheduler="least-connections"))
    frames = [each for number in range(1, 7) for each in _offloaded(number, f"10.0.0.{2 - number % 2}")]
    document = run(config, frames)
    (web,) = document["virtuals"]
    assert (web["decisions"], web["same"]) == (6, 6)
    assert [each["response_s"] for each in web["servers"]] == [0.25, 0.25]
    assert any("ACKs are not in the capture" in each for each in document["not_modelled"])
    assert document["sides"] == "both"


def test_every_port() -> None:
    """R069: a virtual server without a port has its servers' ports from its clients."""
    config = gateway(virtual("all", "ab", port=None))
    frames = []
    for number, server in enumerate(("10.0.0.1", "10.0.0.2")):
        port, at = 8000 + number, float(number)
        frames += [
            frame(at, CLIENT, 5000, VIP, port, SYN, (number, 0)),
            frame(at, CLIENT, 5000, server, port, SYN, (number, 0)),
        ]
    document = run(config, frames)
    assert [each["captured"] for each in document["decisions"]] == ["a:8000", "b:8001"]
    assert document["virtuals"][0]["same"] == 2


def test_two_virtual_servers_of_one_address_on_the_inside_alone() -> None:
    """Where only servers' side was captured, a server's port tells whose the connection was."""
    config = gateway(virtual("web", ["a:8080", "b:8080"]), virtual("api", ["a:9090"], port=81))
    frames = [
        frame(1, CLIENT, 5000, "10.0.0.1", 8080, SYN, (1, 0)),
        frame(2, CLIENT, 5001, "10.0.0.1", 9090, SYN, (2, 0)),
        frame(3, CLIENT, 5002, "10.0.0.9", 8080, SYN, (3, 0)),
    ]
    document = run(config, frames)
    assert document["sides"] == "servers"
    assert [(each["virtual"], each["captured"]) for each in document["decisions"]] == [
        ("web", "a:8080"), ("api", "a:9090")
    ]  # fmt: skip


def test_a_clock_that_goes_back_does_no_harm() -> None:
    config = gateway(virtual("web", "ab"), servers=[real("a"), real("b")])
    frames = [*_offloaded(50, "10.0.0.1"), *_offloaded(3, "10.0.0.2")]
    assert run(config, frames)["virtuals"][0]["decisions"] == 2
