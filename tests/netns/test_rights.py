"""What a gateway that root has started may do: as /proc says of its processes, while connections pass."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfqlb.demo.appliance import balancing, virtual
from nfqlb.demo.lab import Lab
from nfqlb.netfilter.procfs import capabilities
from nfqlb.runtime.rights import SUPERVISOR, WORKER
from tests.netns.asking import ask
from tests.netns.both import REWRITE, Datapath, configuration, only, serving
from tests.netns.test_control import command
from tests.netns.test_operator import replace_worker

AS_THE_UNIT = ("setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all", "--no-new-privs")


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=2) as lab:
        yield lab


def no_new_privileges(pid: int) -> bool:
    return bool(re.search(r"^NoNewPrivs:\s*1$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))


def rights(pid: int) -> dict[str, frozenset[int]]:
    return {kind: capabilities(pid, kind) for kind in ("Prm", "Eff", "Inh", "Bnd", "Amb")}


def test_rights_that_are_not_needed_are_given_up(lab: Lab) -> None:
    """The worker keeps CAP_NET_ADMIN and CAP_NET_RAW alone, with which its successor can do a reload, too."""
    none: frozenset[int] = frozenset()
    web = virtual("web", ("web1", "web2"), scheduler="round-robin")
    with balancing(lab, configuration(lab, web)) as appliance:
        assert {ask(lab.client).server for _ in range(4)} == {"web1", "web2"}
        supervisor = appliance.program.pid
        for pid, kept in ((supervisor, SUPERVISOR), (appliance.worker, WORKER)):
            assert rights(pid) == {"Prm": kept, "Eff": kept, "Inh": none, "Bnd": SUPERVISOR, "Amb": none}
            assert no_new_privileges(pid)
        replace_worker(appliance)
        changed = virtual("web", ("web1", "web2"), scheduler="round-robin", reject="reset")  # raw sockets
        appliance.config.write_text(configuration(lab, changed))
        assert command(lab, "reload", "-c", str(appliance.config))[0] == 0
        assert {ask(lab.client).server for _ in range(4)} == {"web1", "web2"}
        assert capabilities(appliance.worker) == WORKER


@only(REWRITE, "who has which rights has nothing to do with packets")
def test_what_the_unit_leaves_is_enough(lab: Lab) -> None:
    """Where systemd has taken the other rights away nothing is left to give up, and nothing is said of it."""
    web = virtual("web", ("web1", "web2"), scheduler="round-robin", reject="reset")
    with balancing(lab, configuration(lab, web), within=AS_THE_UNIT) as appliance:
        assert {ask(lab.client).server for _ in range(4)} == {"web1", "web2"}
        for pid in (appliance.program.pid, appliance.worker):
            assert capabilities(pid) == capabilities(pid, "Bnd") == WORKER
            assert no_new_privileges(pid)
        replace_worker(appliance)
        assert {ask(lab.client).server for _ in range(4)} == {"web1", "web2"}
        assert "given up" not in appliance.program.stderr
    assert appliance.program.wait(5) == 0
