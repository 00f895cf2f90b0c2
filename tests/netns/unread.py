"""Faults around the gateway that no packet may notice: nobody reads its log, storage is full, and so on.

`python -m tests.netns.unread ROUNDS SECONDS [DATAPATH]` times packets beside each for so long, in turns with
as long without any, in one run; says the median of the rounds' ratios, and the least and the most. An
operator gives orders all the time, so that there is always something to log and to tell.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

from nfqlb.demo.appliance import Appliance, command, python_path, socket_path
from nfqlb.demo.lab import Lab
from nfqlb.demo.web import serve
from nfqlb.runtime.client import Client
from nfqlb.runtime.protocol import ControlError
from tests.netns.beside import Steady, Took, asking_steadily, quantile
from tests.netns.both import Bench, Datapath, configuration

METRICS = 9617
#: Connects stderr to a socket as the journal has one, with little room in it, and runs the rest.
LOGGING = """
import os, socket, sys
log = socket.socket(socket.AF_UNIX)
log.connect(sys.argv[1])
log.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
os.dup2(log.fileno(), 2)
os.execvp(sys.argv[2], sys.argv[2:])
"""
_ORDERS = 0.01  # seconds between two of the operator's
_CLIENTS = 16


class Surroundings:
    """A gateway, and what reads its log and gives it orders; both go on until `close`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.reading = threading.Event()
        self.reading.set()
        self.heard = bytearray()
        self._over = threading.Event()
        places = {name: lab.directory / f"{name}.socket" for name in ("log", "notify")}
        self._journal = socket.socket(socket.AF_UNIX)
        self._journal.bind(str(places["log"]))
        self._journal.listen(1)
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)  # which nobody ever reads
        self._manager.bind(str(places["notify"]))
        storage = 'mount -t tmpfs -o size=2m none /run && exec "$@"'
        within = (
            "unshare", "--mount", "--propagation", "private", "sh", "-c", storage, "sh",
            "env", f"NOTIFY_SOCKET={places['notify']}", sys.executable, "-c", LOGGING, str(places["log"]),
        )  # fmt: skip
        text = configuration(lab, gateway=f'metrics = "127.0.0.1:{METRICS}"')
        self.gateway = Appliance(lab, text, within=within)
        self._threads = [threading.Thread(target=target) for target in (self._read, self._order)]
        self._threads[0].start()
        self.gateway.wait_ready()
        self._threads[1].start()

    def close(self) -> None:
        """End it all."""
        self._over.set()
        self.reading.set()
        try:
            self.gateway.stop()
        finally:
            for thread in self._threads:
                thread.join(10)
            self._journal.close()
            self._manager.close()

    def _read(self) -> None:
        """What the journal does, while `reading` is set; it dies with `close_log`."""
        connection, _ = self._journal.accept()
        self._log = connection
        with contextlib.suppress(OSError):
            while not self._over.is_set():
                self.reading.wait()
                data = connection.recv(65536)
                if not data:
                    break
                self.heard += data
        connection.close()

    def _order(self) -> None:
        """An operator without rest."""
        number = 0
        while not self._over.wait(_ORDERS):
            with contextlib.suppress(ControlError, OSError), Client(socket_path(self.lab)) as client:
                while not self._over.wait(_ORDERS):
                    number += 1
                    client.call("set-real", {"name": "web1", "weight": 1 + number % 2})

    # --- the faults

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Nothing."""
        yield

    @contextmanager
    def log_unread(self) -> Iterator[None]:
        """Nobody reads the log, so that its pipe is full."""
        self.reading.clear()
        try:
            yield
        finally:
            self.reading.set()

    @contextmanager
    def storage_full(self) -> Iterator[None]:
        """Not a byte is left where the journal and the record are."""
        self._inside("cat /dev/zero >/run/filler || true")
        try:
            yield
        finally:
            self._inside("rm /run/filler")

    @contextmanager
    def metrics_unread(self) -> Iterator[None]:
        """All clients that may be there ask for metrics and read nothing."""
        script = (
            "import socket, sys, time\n"
            f"socks = [socket.create_connection(('127.0.0.1', {METRICS})) for _ in range({_CLIENTS})]\n"
            "[s.sendall(b'GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n') for s in socks]\n"
            "time.sleep(3600)\n"
        )
        program = self.lab.gateway.start(sys.executable, "-c", script)
        try:
            yield
        finally:
            program.stop()

    @contextmanager
    def control_unread(self) -> Iterator[None]:
        """Watchers, and one who captures, who read nothing."""
        with contextlib.ExitStack() as stack:
            for number in range(_CLIENTS):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(socket_path(self.lab)))
                line = '{"id":1,"cmd":"watch","args":{"every":1}}\n'
                if not number:
                    line = '{"id":1,"cmd":"capture","args":{"virtual":"web"}}\n'
                sock.sendall(line.encode())
            yield

    @contextmanager
    def captured_to_full(self) -> Iterator[None]:
        """A capture goes to a disk that is full."""
        words = command("capture", "web", "-o", "/run/capture", "--socket", str(socket_path(self.lab)))
        with self.storage_full():
            began = subprocess.run(
                self._entering(" ".join(words)), capture_output=True, text=True, timeout=60, check=False,
                env=os.environ | python_path(),
            )  # fmt: skip
            assert began.returncode == 1, began.stderr
            assert "No space left on device" in began.stderr
            assert "Traceback" not in began.stderr
            yield
        self._inside("rm -f /run/capture")

    @contextmanager
    def journal_down(self) -> Iterator[None]:
        """Whoever had the log's other end is gone."""
        self._log.shutdown(socket.SHUT_RDWR)
        yield

    def _inside(self, script: str) -> None:
        subprocess.run(self._entering(script), check=True, capture_output=True, timeout=60)

    def _entering(self, script: str) -> list[str]:
        """The command that runs a script where the gateway has its storage."""
        return ["nsenter", "-t", str(self.gateway.program.pid), "--mount", "--net", "sh", "-c", script]


class Beside(NamedTuple):
    """One fault: what was asked for just before it, and beside it."""

    name: str
    quiet: Took
    beside: Took


Fault = Callable[[Surroundings], contextlib.AbstractContextManager[None]]
FAULTS: dict[str, Fault] = {
    "log that nobody reads": Surroundings.log_unread,
    "storage full": Surroundings.storage_full,
    "capture to a full disk": Surroundings.captured_to_full,
    "16 metrics clients that do not read": Surroundings.metrics_unread,
    "16 control clients that do not read": Surroundings.control_unread,
    "journal down": Surroundings.journal_down,  # the last one: it does not come back
}


@contextmanager
def surrounded(lab: Lab) -> Iterator[Surroundings]:
    """A gateway and its surroundings for the time of the context."""
    around = Surroundings(lab)
    try:
        yield around
    finally:
        around.close()


def timed(around: Surroundings, steady: Steady, seconds: float, rounds: int = 1) -> Iterator[Beside]:
    """Each fault, with what was asked for beside it, and what was just before it; the last fault once."""
    *lasting, last = FAULTS
    for name in [*lasting * rounds, last]:
        quiet = steady.watch(seconds)
        with FAULTS[name](around):
            time.sleep(min(1.0, seconds))  # until all is full
            beside = steady.watch(seconds)
        yield Beside(name, quiet, beside)


def described(found: list[Beside]) -> str:
    """Medians and 99th percentiles of answers as ratios to those of the same round without the fault."""
    parts = []
    for kind in ("kept", "new"):
        for part in (0.5, 0.99):
            ratios = [quantile(getattr(each.beside, kind), part) / quantile(getattr(each.quiet, kind), part)
                      for each in found]  # fmt: skip
            middle = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            parts.append(f"{kind} p{part * 100:.0f} {middle}")
    return ", ".join(parts)


def main(words: list[str]) -> int:
    """Returns the exit status."""
    datapath: Datapath = "offload" if "offload" in words else "rewrite"
    rounds, seconds = (int(word) for word in words if word.isdigit())
    found: list[Beside] = []
    with Bench(datapath, servers=2) as lab:
        for server in lab.servers:
            serve(lab, server)
        with surrounded(lab) as around, asking_steadily(lab) as steady:
            found += timed(around, steady, seconds, rounds)
    for name in FAULTS:
        mine = [each for each in found if each.name == name]
        requests = sum(len(each.beside.kept) + len(each.beside.new) for each in mine)
        slowest = max(each.beside.worst for each in mine) * 1000
        quiet = max(each.quiet.worst for each in mine) * 1000
        failed = sum(each.beside.failed for each in mine)
        sys.stdout.write(
            f"{datapath}, {name}, {len(mine)} times: {described(mine)}; "
            f"{failed} of {requests:,} requests failed, slowest {slowest:.0f} ms beside {quiet:.0f}\n"
        )
    return 1 if any(each.quiet.failed + each.beside.failed for each in found) else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main(sys.argv[1:]))
