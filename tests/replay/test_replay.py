"""A capture run through other settings: the same settings decide the same, others what they would."""

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.core import spec
from nfqlb.core.schedulers import SCHEDULERS
from nfqlb.core.segment import ACK, RST
from nfqlb.packet import pcapng
from nfqlb.packet.frame import DamagedError, Frame
from nfqlb.replay.outcome import replay
from tests.core.properties import TRIES
from tests.core.scenario import real, virtual
from tests.replay.town import Conversation, Town, other, rerun, spread

SERVERS = "abc"


def config(scheduler: str = "round-robin", **keys: object) -> spec.Config:
    """A gateway with three servers of unlike weights."""
    reals = tuple(
        replace(real(name, weight=weight), failure_threshold=3, failure_clients=1, retry=5.0, attempts=2)
        for name, weight in zip(SERVERS, (1, 2, 3), strict=True)
    )
    web = replace(virtual("web", SERVERS, scheduler=scheduler), **keys)  # type: ignore[arg-type]  # by name
    return spec.Config(spec.Gateway(("eth0",), ("eth1",), max_connections=1000), reals, (web,))


OUTSIDE, INSIDE = (0, 3), (1, 2)


def test_the_same_settings_decide_the_same() -> None:
    town = Town(config())
    for port in range(1, 8):
        town.fetch("192.0.2.7", port)
    document = rerun(town.file(), town.config)
    (web,) = document["virtuals"]
    assert (web["decisions"], web["same"], web["different"], web["unknown"]) == (7, 7, 0, 0)
    assert spread(document, "captured") == spread(document, "replayed") == {"a": 3, "b": 2, "c": 2}
    assert document["sides"] == "both"
    assert [each["replayed"] for each in document["decisions"]] == [f"{name}:80" for name in "abcabca"]


def test_other_settings_decide_otherwise() -> None:
    town = Town(config())
    for port in range(1, 13):
        town.fetch("192.0.2.7", port)
    document = rerun(town.file(), other(town.config, scheduler="weighted-least-connections"))
    assert spread(document, "captured") == {"a": 4, "b": 4, "c": 4}
    assert spread(document, "replayed") == {"a": 2, "b": 4, "c": 6}
    (web,) = document["virtuals"]
    assert web["same"] + web["different"] == 12
    assert web["different"] == sum(each["captured"] != each["replayed"] for each in document["decisions"])
    assert [each["captured_most"] for each in web["servers"]] == [4, 4, 4]
    assert [each["replayed_most"] for each in web["servers"]] == [2, 4, 6]


@pytest.mark.parametrize(
    ("interfaces", "sides"), [(OUTSIDE, "clients"), (INSIDE, "servers"), (OUTSIDE + INSIDE, "both")]
)
def test_any_side_will_do(interfaces: tuple[int, ...], sides: str) -> None:
    """Of a capture of one side, from tcpdump: what is not in it is said to be unknown."""
    town = Town(config())
    for port in range(1, 7):
        town.close(town.fetch("192.0.2.7", port))
    document = rerun(town.dump(lambda frame: frame.interface in interfaces), town.config)
    assert document["sides"] == sides
    assert document["packets"] == len(town.blocks)  # each once, though it may be there twice
    (web,) = document["virtuals"]
    known = 0 if sides == "clients" else 6
    assert (web["decisions"], web["same"], web["unknown"]) == (6, known, 6 - known)
    assert spread(document, "replayed") == {"a": 2, "b": 2, "c": 2}


def test_clients_alone_will_do() -> None:
    """One direction: nobody answers, as far as the capture tells."""
    town = Town(config())
    for port in range(1, 4):
        town.fetch("192.0.2.7", port)
    document = rerun(town.dump(lambda frame: frame.interface == 0), town.config)
    assert (document["virtuals"][0]["decisions"], document["sides"]) == (3, "clients")


def test_response_times_are_the_servers_own() -> None:
    """R098: what fastest-response would have seen is how fast each server was, whoever it was asked for."""
    town = Town(config())
    slow = {_address("a"): 0.5, _address("b"): 0.05, _address("c"): 0.2}
    talks = []
    for port in range(1, 31):
        talk = town.syn("192.0.2.7", port)
        town.answer(talk)
        town.request(talk, slow[talk.real])
        talks.append(talk)
        if len(talks) > 3:
            town.close(talks.pop(0))
    fast = other(town.config, scheduler="fastest-response", predict="next", ageing=100.0)
    document = rerun(town.file(), fast)
    servers = {each["real"]: each for each in document["virtuals"][0]["servers"]}
    assert {name: each["response_s"] for name, each in servers.items()} == {"a": 0.5, "b": 0.05, "c": 0.2}
    assert servers["b"]["replayed"] > servers["c"]["replayed"] > servers["a"]["replayed"]
    assert sum(each["responses"] for each in servers.values()) == 30


def _address(name: str) -> int:
    return int(real(name).address)


def test_a_server_that_did_not_answer_fails_again() -> None:
    """R041, R181: SYNs that nobody answered are in the capture, and so is who was asked next."""
    town = Town(config())
    for port in range(1, 12):
        talk = town.syn("192.0.2.7", port)
        if talk.real == _address("b"):
            town.wait(1)
            town.repeat(talk)
        town.answer(talk)
        town.wait(0.2)
    document = rerun(town.file(), town.config)
    (web,) = document["virtuals"]
    assert (web["different"], web["unknown"]) == (0, 0)
    moved = [each for each in document["decisions"] if each["again"]]
    assert [(each["captured"], each["replayed"]) for each in moved] == [("c:80", "c:80")] * len(moved)
    assert len(moved) >= 3
    assert {each["by"] for each in document["decisions"]} <= {"round-robin", "test"}


def test_connections_from_before_are_left_out_and_counted() -> None:
    town = Town(config())
    old = town.fetch("192.0.2.7", 1)
    del town.blocks[:]
    town.request(old, 0.1)
    town.fetch("192.0.2.7", 2)
    document = rerun(town.file(), town.config)
    assert document["earlier"] == 1
    assert document["virtuals"][0]["decisions"] == 1


def test_what_the_replay_refuses_is_not_from_before() -> None:
    """Its client went on, as it was not refused in the capture."""
    town = Town(config())
    for port in range(1, 5):
        town.fetch("192.0.2.7", port)
    full = tuple(replace(each, max_connections=1) for each in town.config.reals)
    document = rerun(town.file(), replace(town.config, reals=full))
    assert document["virtuals"][0]["refused"] == {"no-server": 1}
    assert (document["earlier"], document["unmodelled"]) == (0, 0)


def test_a_server_that_is_not_in_the_configuration() -> None:
    town = Town(config())
    for port in range(1, 7):
        town.fetch("192.0.2.7", port)
    smaller = replace(
        town.config,
        reals=town.config.reals[:2],
        virtuals=(replace(town.config.virtuals[0], servers=town.config.virtuals[0].servers[:2]),),
    )
    document = rerun(town.file(), smaller)
    assert spread(document, "captured") == {"a": 2, "b": 2, "10.0.0.3": 2}
    assert spread(document, "replayed") == {"a": 3, "b": 3, "10.0.0.3": 0}
    assert document["decisions"][2]["captured"] == "10.0.0.3:80"
    assert [each["captured_most"] for each in document["virtuals"][0]["servers"]] == [2, 2, 0]
    assert [each["responses"] for each in document["virtuals"][0]["servers"]] == [2, 2, 0]


def test_what_was_refused_is_told() -> None:
    town = Town(config())
    for port in range(1, 5):
        town.fetch("192.0.2.7", port)
    full = tuple(replace(each, max_connections=1) for each in town.config.reals)
    document = rerun(town.file(), replace(town.config, reals=full))
    (web,) = document["virtuals"]
    assert web["refused"] == {"no-server": 1}
    assert document["decisions"][3]["replayed"] is None
    assert document["decisions"][3]["refused"] == "no-server"


def test_the_same_packet_on_two_interfaces_counts_once() -> None:
    """As a capture of all interfaces has them, where a bridge stands before the gateway."""
    town = Town(config())
    for port in range(1, 5):
        town.close(town.fetch("192.0.2.7", port))
    more = b""
    for number, block in enumerate(town.blocks):
        again = bytearray(block)
        again[8:12] = (4).to_bytes(4, "little")  # the interface's number
        town.blocks[number] = block + again
    for _ in range(4):
        more += pcapng.interface("more", "", 256, 4)
    head = town.file().index(town.blocks[0])
    one = rerun(town.file()[:head] + more + town.file()[head:], town.config)
    assert one["repeated"] > 0
    assert one["virtuals"][0]["same"] == 4


def test_an_empty_capture_is_no_mistake() -> None:
    document = rerun(Town(config()).file(), config())
    assert (document["frames"], document["at"], document["decisions"]) == (0, None, [])


def test_a_long_pause_is_gone_through() -> None:
    """R044: what timed out meanwhile has ended."""
    town = Town(config("least-connections"))
    town.fetch("192.0.2.7", 1)
    town.wait(100_000)
    town.fetch("192.0.2.7", 2)
    document = rerun(town.file(), town.config)
    assert [each["replayed"] for each in document["decisions"]] == ["a:80", "b:80"]
    assert document["seconds"] > 100_000


# --- any story, with every scheduler

_steps = st.lists(
    st.one_of(
        st.tuples(st.just("dial"), st.integers(0, 5)),
        st.tuples(st.just("dial"), st.integers(0, 5)),
        st.tuples(
            st.sampled_from(["answer", "answer", "request", "close", "syn", "reset"]), st.integers(0, 9)
        ),
        st.tuples(st.just("wait"), st.integers(1, 24)),
    ),
    min_size=10,
    max_size=60,
)


def _play(town: Town, steps: list[tuple[str, int]]) -> None:
    talks: list[Conversation] = []
    for what, number in steps:
        talk = talks[-1 - number % len(talks)] if talks else None
        if what == "dial":
            talks.append(town.syn(f"192.0.2.{number}", 1000 + len(talks)))
        elif what == "wait":
            town.wait(number / 4)
        elif talk is None:
            continue
        elif what == "answer":
            town.answer(talk)
        elif what == "request":
            town.request(talk, number / 10)
        elif what == "close":
            town.close(talk)
            town.renew(talk)
        elif what == "syn":
            town.repeat(talk)
        else:
            town.client(talk, RST | ACK)
            town.renew(talk)


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@settings(TRIES, max_examples=30)
@given(steps=_steps, sticky=st.sampled_from([0.0, 3.0]), startup=st.sampled_from(["none", "round-robin"]))
def test_any_capture_replayed_with_its_own_settings_decides_the_same(
    scheduler: str, steps: list[tuple[str, int]], sticky: float, startup: str
) -> None:
    """R104: from the first packet on, with failures, stickiness, time-outs and response times."""
    town = Town(config(scheduler, sticky=sticky, startup=startup, startup_time=3.0))
    town.wait(5)  # servers have been in service for long when a capture begins
    _play(town, steps)
    document = rerun(town.file(), town.config)
    wrong = [each for each in document["decisions"] if each["captured"] != each["replayed"]]
    assert wrong == []
    (web,) = town.director.virtual_servers
    assert len(document["decisions"]) == len(list(web.decisions.newest_first(lambda _: True)))  # type: ignore[union-attr]


def test_frames_of_nobody_are_passed_over() -> None:
    town = Town(config())
    odd = [Frame((1, 1), 147, b"?", 1), Frame((1, 1), 228, b"\x45", 40)]
    document = replay(town.config, lambda: odd)
    assert (document["frames"], document["untold"], document["packets"]) == (2, 2, 0)


def _files() -> list[bytes]:
    town = Town(config("fastest-response"))
    for port in range(1, 4):
        town.close(town.fetch("192.0.2.7", port))
    return [town.file(), town.dump(lambda frame: frame.interface == 0)]


@settings(TRIES, max_examples=200)
@given(
    file=st.sampled_from(_files()),
    changes=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=8),
    length=st.integers(0, 6000),
)
def test_a_hostile_file_gives_a_document_or_one_line(
    file: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    """Whatever its packets say: times that leap, ports and addresses of others, numbers that do not fit."""
    data = bytearray(file[: max(length, 300)])
    for at, value in changes:
        data[at % len(data)] = value
    with suppress(DamagedError):
        json.dumps(rerun(bytes(data), config("fastest-response", shadow="round-robin")), allow_nan=False)
