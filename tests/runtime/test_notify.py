"""What a service manager hears of the gateway, over a socket as systemd has it."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfqlb.runtime.notify import Notifier, from_environment


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(5)

    def heard(self) -> list[str]:
        return self.socket.recv(65536).decode().split("\n")

    def heard_nothing(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(65536)
        except BlockingIOError:
            return True
        return False


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify") if request.param == "path" else f"@nfqlb-test-{os.getpid()}")
    yield made
    made.socket.close()


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    made = Notifier(manager.address)
    yield made
    made.close()


def test_ready_with_a_status(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("2 servers")
    assert manager.heard() == ["READY=1", "STATUS=2 servers"]


def test_a_status_is_told_when_it_changes(manager: Manager, notifier: Notifier) -> None:
    notifier.status("well")
    notifier.status("well")
    notifier.status("1 of 2 servers failed")
    assert manager.heard() == ["STATUS=well"]
    assert manager.heard() == ["STATUS=1 of 2 servers failed"]
    assert manager.heard_nothing()


def test_a_status_is_one_line_whatever_is_in_it(manager: Manager, notifier: Notifier) -> None:
    notifier.status("web\nREADY=1\n\x1b[2J")
    assert manager.heard() == [r"STATUS=web\nREADY=1\n\x1b[2J"]
    notifier.status("x" * 5000)
    assert len(manager.heard()[0]) < 500


def test_a_reload_begins_with_its_time_and_ends_with_ready(manager: Manager, notifier: Notifier) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    first, second = manager.heard()
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.ready()
    assert manager.heard() == ["READY=1"]


def test_stopping_and_alive(manager: Manager, notifier: Notifier) -> None:
    notifier.alive()
    notifier.stopping()
    assert [manager.heard(), manager.heard()] == [["WATCHDOG=1"], ["STOPPING=1"]]


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "nobody"), "@nobody-listens", "vsock:2:1", "relative"):
        notifier = Notifier(address)
        notifier.ready("well")
        notifier.alive()
        notifier.close()
        notifier.close()


def test_a_manager_that_does_not_read_holds_nobody_up(manager: Manager, notifier: Notifier) -> None:
    for _ in range(10_000):
        notifier.alive()
    assert manager.heard() == ["WATCHDOG=1"]


def test_the_environment_names_the_socket_and_is_cleared_of_it() -> None:
    watched = {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    environment = {"NOTIFY_SOCKET": "@x", **watched, "A": "1"}
    notifier = from_environment(environment)
    notifier.close()
    assert notifier.watchdog == 3.0
    assert environment == {"A": "1"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
    ],
)
def test_a_watchdog_that_is_not_for_us_is_none(environment: dict[str, str]) -> None:
    assert from_environment(environment).watchdog == 0.0
