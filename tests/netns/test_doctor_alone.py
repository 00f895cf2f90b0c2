"""The doctor where no gateway runs, or one that has had a hard time, and without rights."""

import json
import re
from collections.abc import Iterator

import pytest

from nfqlb.config.load import load
from nfqlb.demo.appliance import balancing, command, nfqlb_command, python_path
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.programs import run
from nfqlb.netfilter import rules
from tests.netns.asking import ask, wait_until
from tests.netns.both import REWRITE, configuration, serving
from tests.netns.site import entered
from tests.netns.test_doctor import doctor, wrong
from tests.netns.test_takeover import follow, kill_supervisor


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serving(REWRITE, servers=2) as lab:
        (lab.directory / "nfqlb.toml").write_text(configuration(lab))
        yield lab


def test_what_others_have_changed_is_told_with_their_name(lab: Lab) -> None:
    with balancing(lab, configuration(lab)) as gateway:
        lab.gateway.run("iptables", "-t", "raw", "-F")
        gateway.kill_worker()

        def areas() -> list[str]:
            return sorted(row["area"] for row in wrong(lab, "clock"))

        wait_until(lambda: areas() == ["changes", "gateway"], "both findings")
        rows = {row["area"]: row for row in wrong(lab, "clock")}
        assert "iptables raw: " in rows["changes"]["what"]
        assert "by iptables" in rows["changes"]["what"]
        assert "its worker has died and was replaced once" in rows["gateway"]["what"]


def test_without_a_gateway_the_machine_is_looked_at(lab: Lab) -> None:
    status, rows = doctor(lab)
    assert status == 0
    said = {row["area"]: row for row in rows}
    assert said["gateway"]["level"] == "warning"
    assert "no gateway is running" in said["gateway"]["what"]
    assert said["servers"]["what"] == "2 ports taking connections"
    assert said["rules"]["what"] == "none of an earlier run"


def test_rules_that_a_gateway_has_left_behind(lab: Lab) -> None:
    with entered(lab.gateway.namespace):
        rules.apply(load(lab.directory / "nfqlb.toml"), force=True)
        try:
            found = [row for row in wrong(lab) if row["area"] == "rules"]
            assert "no gateway runs" in found[0]["what"]
            done = nfqlb_command(lab, *found[0]["advice"].partition(": nfqlb ")[2].split())
            assert done.returncode == 0
            assert [row for row in wrong(lab) if row["area"] == "rules"] == []
        finally:
            rules.withdraw()


def test_a_worker_that_is_alone_is_told_from_nobody(lab: Lab) -> None:
    """F11: what serves is not called lost, and its queues are not somebody else's."""
    with balancing(lab, configuration(lab)) as gateway:
        kill_supervisor(gateway)
        wait_until(lambda: "worker without supervisor" in str(wrong(lab, "clock")), "the worker's word")
        rows = {row["area"]: row for row in wrong(lab, "clock")}
        assert rows.keys() == {"gateway", "rules"}
        assert re.search(r"a worker without supervisor serves for another \d+ s", rows["gateway"]["what"])
        assert "serves for another" in rows["rules"]["what"]
        assert "nfqlb rules remove" not in str(rows)
        good = gateway.config.read_text()
        gateway.config.write_text(good + "flavour = 1\n")
        rows = {row["area"]: row for row in doctor(lab)[1]}
        assert "flavour: unknown key" in rows["file"]["what"], "and all else is looked at"
        assert rows["servers"]["what"] == "2 ports taking connections"
        gateway.config.write_text(good)
        assert ask(lab.client).server in ("web1", "web2")
        follow(gateway)


def test_with_few_files_it_says_so_and_looks_at_all_else(lab: Lab) -> None:
    """F38: more ports stand behind virtual servers than may be knocked at."""
    many = "".join(
        f'[[virtual]]\nname = "more{port}"\naddress = "{VIP}"\nport = {port}\nservers = ["web1:{port}"]\n'
        for port in range(2000, 2100)
    )
    file = lab.directory / "many.toml"
    file.write_text(configuration(lab) + many)
    argv = ("prlimit", "--nofile=64", *command("doctor", "--json", "-c", str(file)))
    done = run(lab.gateway.namespace, argv, check=False, extra_environment=python_path())
    rows = {row["area"]: row for row in json.loads(done.stdout)}
    assert "only 64 files may be open at once" in rows["limits"]["what"]
    assert [row for row in rows.values() if row["level"] == "unseen"] == []


def test_without_rights_it_says_what_it_could_not_look_at(lab: Lab) -> None:
    argv = ("setpriv", "--bounding-set=-all", "--inh-caps=-all",
            *command("doctor", "--json", "-c", str(lab.directory / "nfqlb.toml")))  # fmt: skip
    done = run(lab.gateway.namespace, argv, check=False, extra_environment=python_path())
    assert "Traceback" not in done.stderr
    rows = {row["area"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0
    assert rows["rights"]["level"] == "unseen"
    assert "rules and firewall, other gateways" in rows["rights"]["what"]
    assert not {"alone", "rules", "firewall", "neighbours"} & set(rows)
    assert rows["servers"]["level"] == "ok"
