"""The one place that runs iptables: save, restore, and what went wrong in plain words.

Every change goes through `iptables-restore --noflush -w`, which is atomic a table: a table takes
all of its lines or none. `-w` waits for the lock that the legacy variant takes.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from nfqlb.netfilter.errors import KernelError

LOCK_WAIT = 5
"""Seconds to wait for somebody else's iptables to finish."""

_TIMEOUT = 60
"""Seconds after which a run that says nothing is given up: thousands of rules take well under one."""

_LINE = re.compile(r"line:? (\d+)")
_NOISE = re.compile(r"^(?:ip6?tables[\w-]*(?: v[\d.]+)?(?: \(\w+\))?: *)")


class BusyError(KernelError):
    """Somebody else's iptables took too long: the same may be asked again."""


@dataclass(frozen=True, slots=True)
class Iptables:
    """One of the programs: `iptables`, `ip6tables`, or a variant such as `iptables-legacy`."""

    program: str = "iptables"

    @property
    def installed(self) -> bool:
        """Whether the program can be found."""
        return installed(f"{self.program}-restore")

    def kind(self) -> str:
        """Where its rules go: "nf_tables" or "legacy". Raises KernelError where it cannot run."""
        return "nf_tables" if "nf_tables" in self._run([self.program, "--version"], "") else "legacy"

    def other_kind(self) -> "Iptables":
        """The program for the kernel's other set of tables; both sets are evaluated for every packet."""
        base = self.program.split("-")[0]
        return Iptables(f"{base}-legacy" if self.kind() == "nf_tables" else f"{base}-nft")

    def has(self, table: str) -> bool:
        """Whether there is such a table here. Raises BusyError where that cannot be said at the moment."""
        try:
            self._run([self.program, "-w", str(LOCK_WAIT), "-t", table, "-S"], "")
        except BusyError:
            raise
        except KernelError:
            return False
        return True

    def save(self) -> str:
        """All tables there are, as text. Raises KernelError."""
        return self._run([f"{self.program}-save"], "")

    def counted(self, table: str) -> str:
        """One table with its counters, as text. Raises KernelError."""
        return self._run([f"{self.program}-save", "-c", "-t", table], "")

    def restore(self, text: str) -> None:
        """Puts `text` in, a table at a time, other chains untouched. Raises KernelError, naming the rule."""
        self._run([f"{self.program}-restore", "--noflush", "-w", str(LOCK_WAIT)], text)

    def _run(self, command: list[str], text: str) -> str:
        environment = {**os.environ, "LC_ALL": "C", "PATH": search_path()}
        try:
            done = subprocess.run(
                [program(command[0]), *command[1:]],
                input=text,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                env=environment,
                check=False,
            )
        except FileNotFoundError:
            raise KernelError(f"{command[0]} is not installed; on Debian: apt-get install iptables") from None
        except subprocess.TimeoutExpired:
            raise BusyError(f"{command[0]} did not finish within {_TIMEOUT} s") from None
        if done.returncode:
            kind = BusyError if _is_locked(done.stderr) else KernelError
            raise kind(explain(command[0], done.stderr, text))
        return done.stdout


def installed(name: str) -> bool:
    """Whether a program can be found."""
    return shutil.which(name, path=search_path()) is not None


def program(name: str) -> str:
    """Where a program is, by `search_path`; just its name where it is not installed."""
    return shutil.which(name, path=search_path()) or name


def search_path() -> str:
    """PATH with the directories of system programs at its end, which `su` and cron leave out."""
    return os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"


def explain(program: str, stderr: str, text: str) -> str:
    """One line for what `program` said on `stderr` when given `text`.

    Names the rule where the program names a line. The legacy kernel interface only refuses a table
    as a whole; then the table is named.
    """
    if _is_locked(stderr):
        return f"{program}: another program held the iptables lock for {LOCK_WAIT} s; try again"
    if "Permission denied" in stderr or "Operation not permitted" in stderr:
        return f"{program}: not permitted; run as root, or with CAP_NET_ADMIN (legacy: CAP_NET_RAW as well)"
    reason = _reason(stderr)
    place = _place(stderr, text)
    return f"{program}: {place}: {reason}" if place else f"{program}: {reason}"


def _is_locked(stderr: str) -> bool:
    return "xtables lock" in stderr or "lock /run/xtables.lock: Resource" in stderr


def _reason(stderr: str) -> str:
    """The part of the message that says why."""
    if "Failed to initialize nft" in stderr:
        return "this kernel lacks nf_tables, on which it builds; modprobe nf_tables, or use iptables-legacy"
    named = re.search(r"failed \(([^)]*)\)", stderr)
    if named:
        return f"the kernel refused it: {named[1]} (is the module for this match or target there?)"
    if re.search(r"line \d+ failed$", stderr.strip()):
        return "the kernel refused it (is the module for each match and target there? dmesg may tell more)"
    for line in stderr.splitlines():
        said = _NOISE.sub("", line.strip())
        if said and not said.startswith(("#", "Error occurred", "Try ")):
            return said
    return "failed without saying why"


def _place(stderr: str, text: str) -> str:
    """The rule or table that the message is about, "" where it names none."""
    lines = text.splitlines()
    found = _LINE.search(stderr)
    number = int(found[1]) if found else 0
    if not 1 <= number <= len(lines):
        return ""
    if lines[number - 1] != "COMMIT":
        return f'rule "{lines[number - 1]}"'
    table = next((line[1:] for line in reversed(lines[:number]) if line.startswith("*")), "?")
    return f"table {table}"
