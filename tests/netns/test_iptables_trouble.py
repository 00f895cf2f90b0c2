"""iptables in other people's hands, before a whole gateway: its lock, its kind, its refusals, its absence.

Each ends in one clear line, and the next attempt leaves no half of anything. The programs are the real ones,
called by a script of the test's: so the lock is a file of its own, and waited for a second instead of five.
"""

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfqlb.demo.appliance import Appliance, balancing, nfqlb_command, virtual
from nfqlb.demo.lab import Lab
from nfqlb.demo.programs import LabError, Program
from nfqlb.demo.web import serve
from tests.netns.asking import ask, holding, rows, rules, traces, wait_until
from tests.netns.both import OFFLOAD, REWRITE, Bench, Datapath, configuration, offloads, only

SAME = "the rules are others, iptables is the same"

#: Hands a text of several tables over as far as the first one, and then fails, while "refuse" is there.
SCRIPT = """\
#!/bin/sh
export XTABLES_LOCKFILE={directory}/xtables.lock
[ "$1 $2 $3" != "--noflush -w 5" ] || {{ shift 3; set -- --noflush -w 1 "$@"; }}
[ "$1 $2" != "-w 5" ] || {{ shift 2; set -- -w 1 "$@"; }}
if [ {verb}- = -restore- ] && [ -e {directory}/refuse ]; then
    text=$(cat)
    if [ "$(echo "$text" | grep -c COMMIT)" -gt 1 ]; then
        echo "$text" | sed /COMMIT/q | {program} "$@" || exit
        echo "iptables-restore: line 30 failed" >&2
        exit 1
    fi
    echo "$text" | {program} "$@"
    exit
fi
exec {program} "$@"
"""


class Tables:
    """The programs that the gateway finds, of one kind; `within` is what runs it so."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._directory = directory
        self._place = directory / f"bin-{kind}"
        self._place.mkdir()
        for base in ("iptables", "ip6tables"):
            for verb in ("", "-save", "-restore"):
                script = self._place / f"{base}{verb}"
                program = f"/usr/sbin/{base}-{kind}{verb}"
                script.write_text(SCRIPT.format(directory=directory, verb=verb, program=program))
                script.chmod(0o755)
        self.within = ("env", f"PATH={self._place}:{os.environ['PATH']}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Somebody has the lock."""
        with (self._directory / "xtables.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Every second table is refused."""
        refuse = self._directory / "refuse"
        refuse.touch()
        try:
            yield
        finally:
            refuse.unlink()

    def __call__(self, lab: Lab, *words: str) -> None:
        """Run one of the programs in the gateway's namespace."""
        lab.gateway.run(str(self._place / words[0]), *words[1:])


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, servers=2) as lab:
        for server in lab.servers:
            serve(lab, server)
        yield lab


@pytest.fixture(scope="module")
def legacy(lab: Lab) -> Tables:
    return Tables(lab.directory, "legacy")


@pytest.fixture(scope="module")
def modern(lab: Lab) -> Tables:
    return Tables(lab.directory, "nft")


def everything(lab: Lab) -> dict[str, object]:
    """What may be left, rules of either kind included."""
    return traces(lab) | {"legacy": [line for line in rules(lab, "iptables-legacy-save") if "NFQLB" in line]}


def refused(lab: Lab, tables: Tables) -> str:
    """The one error of a gateway that must not come up."""
    gateway = Appliance(lab, configuration(lab), within=tables.within)
    with pytest.raises(LabError):
        gateway.wait_ready()
    assert gateway.program.wait(10) == 1
    return error_of(gateway.program)


def error_of(program: Program) -> str:
    """The only error of a program that is over."""
    assert "Traceback" not in program.stderr
    (line,) = [line for line in program.stderr.splitlines() if " ERROR: " in line]
    return line


@only(REWRITE, SAME)
def test_f18_who_holds_the_lock_is_waited_for_and_told_of(lab: Lab, legacy: Tables) -> None:
    """F18: at a start, while it runs, and at a stop."""
    before = everything(lab)
    with legacy.locked():
        assert "another program held the iptables lock" in refused(lab, legacy)
    assert everything(lab) == before
    gateway = Appliance(lab, configuration(lab), within=legacy.within)
    gateway.wait_ready()
    with holding(lab.client, 2) as held:
        legacy(lab, "iptables", "-t", "mangle", "-F")
        with legacy.locked():
            wait_until(lambda: "held the iptables lock" in summary_of(gateway), "the verdict")
        held.again()
        wait_until(lambda: summary_of(gateway) == "all well", "the repair")
        ask(lab.client)
    with legacy.locked():
        os.kill(gateway.program.pid, signal.SIGTERM)
        wait_until(
            lambda: gateway.program.stderr.count("held the iptables lock") > 1, "a stop that has to wait"
        )
        assert gateway.program.running
    assert gateway.program.wait(10) == 0
    assert everything(lab) == before


def summary_of(gateway: Appliance) -> str:
    snapshot = gateway.ask("snapshot")
    assert isinstance(snapshot, dict)
    return str(snapshot["verdict"])


def test_f18_a_table_that_is_refused_takes_all_back(lab: Lab, legacy: Tables, modern: Tables) -> None:
    """F18: the second table of a start, and of a reload, whose first one is in force by then."""
    tables = modern if offloads(lab) else legacy
    before = everything(lab)
    with tables.refusing():
        assert "the kernel refused it" in refused(lab, tables)
    assert everything(lab) == before
    with balancing(lab, configuration(lab), within=tables.within) as gateway, holding(lab.client, 2) as held:
        now = everything(lab)["rules"], everything(lab)["legacy"]
        gateway.config.write_text(configuration(lab, virtual("web", ["web1", "web2"]),
                                                virtual("more", ["web1:80"], port=81)))  # fmt: skip
        with tables.refusing():
            done = nfqlb_command(lab, "reload", "-c", str(gateway.config))
            assert done.returncode == 1
            assert "everything is as it was before" in done.stderr
        assert (everything(lab)["rules"], everything(lab)["legacy"]) == now
        held.again()
        ask(lab.client)
        assert nfqlb_command(lab, "reload", "-c", str(gateway.config)).returncode == 0
        held.again()
        assert ask(lab.client, port=81).server == "web1"
    assert everything(lab) == before


@only(REWRITE, SAME)
def test_f18_a_gateway_goes_on_with_the_other_kind_of_tables(
    lab: Lab, legacy: Tables, modern: Tables
) -> None:
    """F18: killed with rules in the one, started again with the other, as after `update-alternatives`."""
    before = everything(lab)
    gateway = Appliance(lab, configuration(lab), within=legacy.within)
    gateway.wait_ready()
    worker = gateway.worker
    with holding(lab.client, 2) as held:
        for pid in (gateway.program.pid, worker):
            os.kill(pid, signal.SIGKILL)
        gateway.program.wait()
        with balancing(lab, configuration(lab), within=modern.within) as successor:
            ask(lab.client)
            held.again()
            assert everything(lab)["legacy"] == [], "no packet meets two sets of rules"
            assert "legacy" in successor.program.stderr
    assert everything(lab) == before


@only(OFFLOAD, SAME)
def test_f18_without_iptables_it_goes_on_and_says_so(lab: Lab) -> None:
    """F18: uninstalled while it runs; at the end the rules stay, and the next start clears up."""
    before = everything(lab)
    within = ("unshare", "--mount", "--propagation", "private")
    gateway = Appliance(lab, configuration(lab), within=within)
    gateway.wait_ready()
    hide = ("nsenter", "-t", str(gateway.program.pid), "--mount", "mount", "-t", "tmpfs", "none", "/usr/sbin")
    subprocess.run(hide, check=True, timeout=20)
    lab.gateway.run("iptables", "-t", "mangle", "-F")
    wait_until(lambda: "iptables-save is not installed" in summary_of(gateway), "the verdict")
    assert [row["level"] for row in rows(gateway, "events") if "iptables-save" in row["text"]] == ["error"]
    ask(lab.client)
    assert gateway.stop() == 1
    said = gateway.program.stderr.splitlines()[-1]
    assert "the rules stay: iptables is not installed any more; `nfqlb rules remove`" in said
    assert any("NFQLB" in line for line in rules(lab))
    with balancing(lab, configuration(lab)):
        ask(lab.client)
    assert everything(lab) == before
