"""Start and stop of the gateway: nothing is left, and what cannot be done is refused with one clear line."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfqlb.demo.appliance import (
    Appliance,
    balancing,
    command,
    nfqlb_command,
    python_path,
    virtual,
)
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.programs import run, search_path
from tests.netns.asking import ask, rules, spread, traces
from tests.netns.both import REWRITE, SAME, Datapath, configuration, only, serving

OWN_RULES = """\
*raw
-A PREROUTING -i outside -p udp --dport 9 -j DROP
-A OUTPUT -p udp --dport 9 -j DROP
COMMIT
*mangle
:mine - [0:0]
-A FORWARD -j mine
-A FORWARD -p udp --dport 9 -j DROP
-A mine -p udp --dport 10 -j RETURN
COMMIT
*filter
-A FORWARD -p udp --dport 9 -j DROP
COMMIT
"""


#: As in most containers, the kernel's settings can be read alone.
READ_ONLY = (
    "unshare", "--mount", "sh", "-c",
    'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"', "sh",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=2) as lab:
        lab.gateway.run("iptables-restore", given=OWN_RULES)
        lab.gateway.sysctl("net.ipv4.conf.outside.rp_filter", "1")
        yield lab


def stop_by(appliance: Appliance, number: signal.Signals, *, group: bool) -> int:
    """Send a signal to the supervisor, or as a terminal does to its whole group; the exit status."""
    if group:
        os.killpg(appliance.program.pid, number)
    else:
        os.kill(appliance.program.pid, number)
    return appliance.program.wait(10)


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGINT, True)]
)
def test_stop_leaves_no_trace(lab: Lab, number: signal.Signals, group: bool) -> None:
    """After SIGTERM and Ctrl-C: status 0; rules, addresses, settings and queues as before, in their order."""
    before = traces(lab)
    appliance = Appliance(lab, configuration(lab))
    appliance.wait_ready()
    assert spread([ask(lab.client) for _ in range(4)]).keys() == {"web1", "web2"}
    during = traces(lab)
    assert f"inet {VIP}/32" in str(during["addresses"])
    assert all(during[name] != before[name] for name in before)
    assert stop_by(appliance, number, group=group) == 0, appliance.program.stderr
    assert traces(lab) == before
    assert "Traceback" not in appliance.program.stderr


def test_address_that_was_there_stays(lab: Lab) -> None:
    """A virtual IP that the operator had put there is not taken away."""
    lab.gateway.run("ip", "address", "add", f"{VIP}/32", "dev", "outside")
    try:
        before = traces(lab)
        with balancing(lab, configuration(lab)):
            assert ask(lab.client).server in ("web1", "web2")
        assert traces(lab) == before
    finally:
        lab.gateway.run("ip", "address", "del", f"{VIP}/32", "dev", "outside")


def test_own_rules_stand_while_it_runs(lab: Lab) -> None:
    """The operator's own rules keep their order; each built-in chain has one jump of ours, placed first."""
    own = [line for line in rules(lab) if line.startswith("-A")]
    with balancing(lab, configuration(lab)):
        now = [line for line in rules(lab) if line.startswith("-A")]
        assert [line for line in now if "NFQLB" not in line] == own
        forward = [line for line in rules_of(lab, "mangle") if line.startswith("-A FORWARD")]
        assert "-j NFQLB" in forward[0]
        assert sum("NFQLB" in line for line in forward) == 1


def rules_of(lab: Lab, table: str) -> list[str]:
    return lab.gateway.run("iptables-save", "-t", table).stdout.splitlines()


def refused(lab: Lab, config: str, name: str = "other.toml", status: int = 1) -> str:
    """Start a second gateway that must not come up; its only line on stderr."""
    path = lab.directory / name
    path.write_text(config)
    done = nfqlb_command(lab, "run", "-c", str(path))
    assert done.returncode == status, done.stderr
    assert "ready" not in done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def one_line(text: str) -> str:
    """The text, in which there must be one line beside what is told of every start."""
    (line,) = [line for line in text.splitlines() if " INFO: " not in line]
    return line


def test_second_instance_is_refused(lab: Lab) -> None:
    """A second gateway on the same queue names the first one's process, which goes on unharmed."""
    config = configuration(lab)
    with balancing(lab, config) as appliance:
        before = traces(lab)
        said = one_line(refused(lab, config.replace("control.sock", "second.sock")))
        assert str(appliance.program.pid) in said
        done = nfqlb_command(lab, "check", "--host", str(appliance.config))
        assert (done.returncode, done.stderr) == (0, ""), "another file may be tried beside it"
        assert f"note: nfqlb, process {appliance.program.pid}, runs here" in done.stdout
        assert traces(lab) == before
        assert ask(lab.client).server in ("web1", "web2")


@only(REWRITE, SAME)
def test_bad_configuration_is_refused_whole(lab: Lab) -> None:
    """Every error is told with file and line, and nothing is touched."""
    before = traces(lab)
    wrong = configuration(lab, virtual("web", ["web1", "web9"], scheduler="round-robbin"))
    said = refused(lab, wrong + "\ncolour = 1\n", status=78)
    for word in ("other.toml:", "web9", "round-robbin", "round-robin", "colour"):
        assert word in said
    assert traces(lab) == before


@only(REWRITE, SAME)
def test_missing_interface_is_refused(lab: Lab) -> None:
    """The line names the interface, and nothing is left half-installed."""
    before = traces(lab)
    said = one_line(refused(lab, configuration(lab).replace('inside = "inside"', 'inside = "wan9"')))
    assert "wan9" in said
    assert traces(lab) == before


@only(REWRITE, SAME)
def test_missing_route_is_refused(lab: Lab) -> None:
    """A real server that no route of an inside interface leads to is named."""
    before = traces(lab)
    said = refused(lab, configuration(lab).replace("10.0.0.12", "172.31.0.9"))
    assert "172.31.0.9" in said
    assert traces(lab) == before


@only(REWRITE, SAME)
@pytest.mark.parametrize(
    "without",
    [("setpriv", "--bounding-set", "-net_admin"), ("unshare", "--user"), READ_ONLY],
    ids=["root without CAP_NET_ADMIN", "not root", "in a container"],
)
def test_start_without_the_right_is_refused(lab: Lab, without: tuple[str, ...]) -> None:
    """F38: one line says which right is missing; nothing is touched."""
    before = traces(lab)
    path = lab.directory / "unprivileged.toml"
    path.write_text(configuration(lab))
    argv = (*without, *command("run", "-c", str(path)))
    done = run(lab.gateway.namespace, argv, check=False, extra_environment=python_path())
    assert done.returncode == 1, done.stderr
    said = one_line(done.stderr)
    assert "root" in said or "CAP_NET_ADMIN" in said
    assert traces(lab) == before


@only(REWRITE, SAME)
@pytest.mark.parametrize("subject", ["run", "check"])
def test_root_of_a_user_namespace_has_no_right_to_the_network_of_another(lab: Lab, subject: str) -> None:
    """F38: as in many containers, where every capability is there and none counts."""
    before = traces(lab)
    path = lab.directory / "mapped.toml"
    path.write_text(configuration(lab))
    words = ("run", "-c", str(path)) if subject == "run" else ("check", "--host", str(path))
    argv = ("unshare", "--user", "--map-root-user", *command(*words))
    done = run(lab.gateway.namespace, argv, check=False, extra_environment=python_path())
    assert done.returncode == 1, done.stderr
    assert "no right to change the network" in done.stdout + done.stderr
    assert "of its own" in done.stdout + done.stderr
    assert one_line(done.stderr)
    assert traces(lab) == before


@only(REWRITE, SAME)
@pytest.mark.parametrize("lacks", ["nfnetlink", "nf_tables"])
@pytest.mark.parametrize("subject", ["run", "check", "rules"])
def test_a_kernel_that_lacks_a_module(lab: Lab, lacks: str, subject: str) -> None:
    """F38: one clear line, status 1, no traceback, nothing touched; `nf_tables` is iptables' need alone."""
    before = traces(lab)
    path = lab.directory / "lacking.toml"
    path.write_text(configuration(lab))
    words = {
        "run": ("run", "-c", str(path)),
        "check": ("check", "--host", str(path)),
        "rules": ("rules", "apply", "--force", "-c", str(path)),
    }[subject]
    lacking = (sys.executable, str(Path(__file__).with_name("lacking.py")))
    environment = python_path()
    if lacks == "nf_tables":
        environment["PATH"] = f"{programs_lacking(lab, lacking)}:{os.environ['PATH']}"
    argv = (*(lacking if lacks == "nfnetlink" else ()), *command(*words))
    done = run(lab.gateway.namespace, argv, check=False, extra_environment=environment)
    assert done.returncode == 1, done.stderr
    said = one_line(done.stderr)
    assert "this kernel lacks nf_tables" in said
    assert "Traceback" not in done.stdout + done.stderr
    assert traces(lab) == before


def programs_lacking(lab: Lab, lacking: tuple[str, ...]) -> Path:
    """A directory with the iptables programs, for which a kernel lacks something."""
    directory = lab.directory / "lacking"
    directory.mkdir(exist_ok=True)
    forms = ("", "-restore", "-save")
    for name in (f"{family}{form}" for family in ("iptables", "ip6tables") for form in forms):
        real = shutil.which(name, path=search_path())
        script = directory / name
        script.write_text(f'#!/bin/sh\nexec {" ".join(lacking)} {real} "$@"\n')
        script.chmod(0o755)
    return directory


@only(REWRITE, SAME)
def test_checking_needs_no_right(lab: Lab, tmp_path: Path) -> None:
    """`nfqlb check` reads the file and nothing else."""
    path = lab.directory / "good.toml"
    path.write_text(configuration(lab))
    argv = ("unshare", "--user", "--net", *command("check", str(path)))
    done = run(lab.gateway.namespace, argv, check=False, extra_environment=python_path())
    assert (done.returncode, done.stderr) == (0, "")
    assert VIP in done.stdout


@only(REWRITE, SAME)
def test_show_without_a_gateway_says_so(lab: Lab) -> None:
    """No gateway answers: one line, status 1."""
    done = nfqlb_command(lab, "show", "summary", "--socket", str(lab.directory / "nobody.sock"))
    assert done.returncode == 1
    assert "nobody.sock" in one_line(done.stderr)


@only(REWRITE, SAME)
def test_wrong_usage_has_status_two(lab: Lab) -> None:
    done = run(lab.gateway.namespace, (sys.executable, "-m", "nfqlb", "run"), check=False)
    assert done.returncode == 2
