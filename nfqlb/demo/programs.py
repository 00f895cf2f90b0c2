"""Programs of the laboratory: found, started inside a network namespace, bounded and ended by their own id.

Every program is a session of its own, so that a Ctrl-C at the terminal reaches only the owner, and
carries `PR_SET_PDEATHSIG` (by `setpriv`), so that even a `kill -9` of the owner ends it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import Signals

PACKAGES = {
    "curl": "curl",
    "dig": "bind9-dnsutils",
    "dnsmasq": "dnsmasq-base",
    "haproxy": "haproxy",
    "ip": "iproute2",
    "iperf3": "iperf3",
    "iptables": "iptables",
    "iptables-restore": "iptables",
    "iptables-save": "iptables",
    "nginx": "nginx-light",
    "ping": "iputils-ping",
    "setpriv": "util-linux",
    "tcpdump": "tcpdump",
    "tshark": "tshark",
    "wrk": "wrk",
}
"""Which Debian package brings a program."""

POLL = 0.01
"""Seconds between two looks at something that has no event to wait for."""

_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


class LabError(Exception):
    """The laboratory cannot do what was asked; the text is one line for a person."""


def search_path() -> str:
    """`PATH`, with the directories of the system programs added at its end."""
    return os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin") + ":" + _SYSTEM_PATH


def require(*programs: str) -> None:
    """Raise LabError unless this is root and every program is installed, naming the Debian packages."""
    if os.geteuid() != 0:
        raise LabError("the laboratory makes network namespaces and so needs root: run it with sudo")
    missing = [program for program in programs if shutil.which(program, path=search_path()) is None]
    if missing:
        packages = sorted({PACKAGES.get(program, program) for program in missing})
        raise LabError(f"not installed: {', '.join(missing)}; apt-get install {' '.join(packages)}")


def inside(namespace: str, argv: Sequence[str], *, ending: Signals = Signals.SIGKILL) -> list[str]:
    """The command line that runs `argv` in a network namespace; each step is an exec, so the pid stays.

    `ending` is the signal that it gets when its owner dies.
    """
    death = ("setpriv", "--pdeathsig", ending.name.removeprefix("SIG"), "--")
    return ["ip", "netns", "exec", namespace, *death, *argv]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with a full `PATH`, and `extra` on top."""
    return {**os.environ, "PATH": search_path(), **(extra or {})}


def run(
    namespace: str,
    argv: Sequence[str],
    *,
    timeout: float = 30.0,
    check: bool = True,
    given: str | None = None,
    extra_environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end in a namespace and return its texts and exit status.

    `timeout` is in seconds; `given` is its standard input. Raises LabError where it takes longer, or
    (with `check`) ends with a status other than 0.
    """
    try:
        done = subprocess.run(
            inside(namespace, argv),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            input=given if given is not None else "",
            env=environment(extra_environment),
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{argv[0]} did not end within {timeout:g} s: {' '.join(argv)}") from None
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(argv)} ended with status {done.returncode}: {said}")
    return done


class Program:
    """A program running in a namespace; its standard output and error are files of the laboratory.

    `pid` is the program's own. `stop` ends it, by the signal `ending` where nothing else is said; whoever
    starts a program stops it.
    """

    def __init__(
        self,
        namespace: str,
        argv: Sequence[str],
        *,
        out: Path,
        err: Path,
        ending: Signals = Signals.SIGTERM,
        extra_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.ending = ending
        self.out = out
        self.err = err
        with out.open("wb") as stdout, err.open("wb") as stderr:
            self._process = subprocess.Popen(
                inside(namespace, argv, ending=ending),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment(extra_environment),
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        """The exit status as `subprocess` gives it (-N: ended by signal N), None while it runs."""
        return self._process.poll()

    @property
    def stdout(self) -> str:
        """What it has written to standard output so far."""
        return self.out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return self.err.read_text(errors="replace")

    @property
    def last_words(self) -> str:
        """The last line that it has written to standard error, or else to standard output."""
        lines = (self.stderr.strip() or self.stdout.strip() or "it said nothing").splitlines()
        return lines[-1]

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its end and return the exit status. Raises LabError after `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.argv[0]} still runs after {timeout:g} s") from None

    def wait_for(self, path: Path, text: str = "", *, timeout: float = 10.0) -> None:
        """Wait until a file (its output, or one that it writes) exists and holds `text`.

        Raises LabError after `timeout` seconds or where the program ends before.
        """
        deadline = time.monotonic() + timeout
        while True:
            running = self.running
            if path.exists() and text in path.read_text(errors="replace"):
                return
            if not running:
                raise LabError(f"{' '.join(self.argv)} ended with status {self.status}: {self.last_words}")
            if time.monotonic() > deadline:
                raise LabError(f"{' '.join(self.argv)} is not ready after {timeout:g} s: {self.last_words}")
            time.sleep(POLL)

    def send(self, number: Signals) -> None:
        """Send it a signal, if it still runs."""
        self._process.send_signal(number)

    def stop(self, number: Signals | None = None, *, timeout: float = 5.0) -> int:
        """End it by a signal, by SIGKILL after `timeout` seconds, and return the exit status."""
        self.send(number or self.ending)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
