"""What the gateway tells the service manager that started it: sd_notify(3), without its library.

A `Notifier` sends datagrams to the socket that NOTIFY_SOCKET names; where none is named, it does nothing.
It never blocks and never fails: a manager that does not listen is no reason to stop balancing.
"""

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

from nfqlb.runtime.printable import clean

_STATUS = 400  # characters of a status; systemctl shows one line of it


class Notifier:
    """The way to the service manager.

    `address` is a path, or "@name" for an abstract socket, "" for none. `watchdog` is within how many
    seconds the manager wants to hear of the gateway, 0 where it does not watch.
    """

    def __init__(self, address: str = "", *, watchdog: float = 0.0) -> None:
        self.watchdog = watchdog
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def close(self) -> None:
        """Nothing is sent any more. May be called twice."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def ready(self, status: str = "") -> None:
        """Packets flow; a reload is over. `status` is for people, "" leaves it as it was."""
        self._send("READY=1", *self._changed(status))

    def status(self, text: str) -> None:
        """What `systemctl status` shows, in one line; sent where it has changed."""
        if changed := self._changed(text):
            self._send(*changed)

    def reloading(self) -> None:
        """A reload begins. `ready` says that it is over, however it went."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The gateway is being taken down."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Packets move: the watchdog's time begins anew."""
        self._send("WATCHDOG=1")

    def _changed(self, status: str) -> list[str]:
        line = clean(status)[:_STATUS]
        if not line or line == self._status:
            return []
        self._status = line
        return [f"STATUS={line}"]

    def _send(self, *assignments: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join(assignments).encode(errors="replace"), self._address)


def from_environment(environment: MutableMapping[str, str]) -> Notifier:
    """The notifier that the service manager asks for, which it asks this process alone.

    The variables are taken out of `environment`, so that nothing started from here takes them for its own.
    """
    address = environment.pop("NOTIFY_SOCKET", "")
    microseconds, who = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    ours = who in ("", str(os.getpid()))
    watchdog = int(microseconds) / 1e6 if ours and microseconds.isdigit() else 0.0
    return Notifier(address, watchdog=watchdog)
