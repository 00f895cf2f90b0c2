"""Where metrics are asked for, as configurations say so one after the other."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime import scrapes
from nfqlb.runtime.events import Events
from nfqlb.runtime.metrics import Metrics
from tests.runtime.sample import snapshot

if TYPE_CHECKING:
    from tests.runtime.conftest import Loop

ASK = b"GET /metrics HTTP/1.1\r\n\r\n"


def config(place: str) -> Config:
    return Config(
        Gateway(("eth0",), ("eth1",), metrics=place),
        (Real("web1", ip_address("10.0.0.1")),),
        (Virtual("shop", ip_address("192.0.2.10"), (Server("web1", 80),), port=80),),
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Setting:
    """What the supervisor has, and how a client fares."""

    def __init__(self, loop: "Loop", place: str) -> None:
        self.loop = loop
        self.events = Events(lambda: 0.0)
        self.metrics = Metrics(config(place), loop.selector, snapshot, self.events)

    def answered(self, port: int, address: str = "127.0.0.1") -> bool:
        try:
            sock = socket.create_connection((address, port), timeout=10)
        except ConnectionRefusedError:
            return False
        with sock:
            sock.sendall(ASK)
            self.loop.settle()
            answered = sock.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        self.loop.settle()
        return answered


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def setting(loop: "Loop", port: int) -> Iterator[Setting]:
    made = Setting(loop, f"127.0.0.1:{port}")
    yield made
    made.metrics.close()
    assert not loop.selector.get_map()


def test_where_the_configuration_says(setting: Setting, port: int) -> None:
    assert setting.answered(port)
    setting.metrics.tick()
    setting.metrics.close()
    assert not setting.answered(port)


def test_nowhere(loop: "Loop") -> None:
    setting = Setting(loop, "")
    assert not loop.selector.get_map()
    setting.metrics.tick()
    setting.metrics.abandon()
    setting.metrics.close()


def test_the_library_is_loaded_only_where_it_is_wanted() -> None:
    """It takes a tenth of a second, which a gateway without metrics need not spend."""
    script = "import sys, nfqlb.runtime.supervisor; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_another_configuration_moves_it(setting: Setting, port: int) -> None:
    other = free_port()
    setting.metrics.configured(config(f"127.0.0.1:{other}"))
    assert (setting.answered(port), setting.answered(other)) == (False, True)
    setting.metrics.configured(config(f"0.0.0.0:{other}"))  # the same port, and more addresses
    assert setting.answered(other, "127.0.0.2")
    setting.metrics.configured(config(""))
    assert not setting.answered(other)
    setting.metrics.configured(config(f"127.0.0.1:{port}"))
    assert setting.answered(port)
    assert list(setting.events.newest(10)) == []


def test_the_same_place_is_left_alone(setting: Setting, port: int) -> None:
    """A scrape that is under way goes on."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(ASK[:5])
        setting.loop.settle()
        changed = replace(config(f"127.0.0.1:{port}"), reals=(Real("web2", ip_address("10.0.0.2")),))
        setting.metrics.configured(changed)
        sock.sendall(ASK[5:])
        setting.loop.settle()
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_place_that_cannot_be_had_is_refused_at_the_start(loop: "Loop") -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(KernelError, match=f"{where}: Address already in use"):
            Setting(loop, where)
    assert not loop.selector.get_map()


def test_where_the_place_before_is_taken_meanwhile_there_are_none(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever else has to hear of a configuration does."""

    def taken(address: str, port: int, *_: object) -> None:
        raise KernelError(f"{address}:{port}: Address already in use")

    monkeypatch.setattr(scrapes, "Scrapes", taken)
    setting.metrics.configured(config("127.0.0.1:9"))
    (event,) = setting.events.newest(10)
    assert event["text"] == "127.0.0.1:9: Address already in use; there are none"
    setting.metrics.tick()


def test_a_place_that_cannot_be_had_later_changes_nothing(setting: Setting, port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        setting.metrics.configured(config(f"127.0.0.1:{taken.getsockname()[1]}"))
    assert setting.answered(port)
    (event,) = setting.events.newest(10)
    assert (event["kind"], event["name"], event["level"]) == ("gateway", "metrics", "error")
    assert str(event["text"]).endswith(f"another program has this port; they stay at 127.0.0.1:{port}")
