"""The operator's hand on the real kernel: what is set takes effect at once, and survives the worker."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nfqlb.demo.appliance import Appliance, balancing, nfqlb_command, socket_path, virtual
from nfqlb.demo.lab import VIP, Host, Lab
from nfqlb.demo.web import document
from nfqlb.operator.words import WORDS
from nfqlb.runtime.client import Client
from nfqlb.runtime.protocol import ControlError
from tests.netns.asking import ask, holding, rows, spread, summary, wait_until
from tests.netns.both import REWRITE, SAME, Datapath, configuration, only, serving
from tests.operator.test_plurals import wrong

ALL = ("web1", "web2", "web3")
UNPRIVILEGED = 65534


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=2, servers=3) as lab:
        yield lab


def gateway(lab: Lab, *, sticky: int = 0, **keys: object) -> Any:
    """A gateway that takes its servers in turn, on port 80; the keys are the real servers'."""
    lines = {"failure_threshold": 3, "failure_clients": 2, "retry": 3600, **keys}
    text = "\n".join(f"{key} = {str(value).lower()}" for key, value in lines.items())
    web = virtual("web", ALL, scheduler="round-robin", sticky=sticky)
    return balancing(lab, configuration(lab, web, reals=dict.fromkeys(ALL, text)))


def order(lab: Lab, *words: str) -> str:
    """What an order is answered with."""
    done = nfqlb_command(lab, *words, "--socket", str(socket_path(lab)))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def refused(lab: Lab, *words: str) -> str:
    """Why an order is refused."""
    done = nfqlb_command(lab, *words, "--socket", str(socket_path(lab)))
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def real(appliance: Appliance, name: str) -> dict[str, Any]:
    """One real server as the gateway shows it."""
    return next(row for row in rows(appliance, "reals") if row["name"] == name)


def replace_worker(appliance: Appliance) -> None:
    """`kill -9` the worker and wait until another one answers."""
    killed = appliance.kill_worker()

    def replaced() -> bool:
        try:
            return appliance.worker != killed
        except ControlError:
            return False

    wait_until(replaced, "a new worker")


@contextmanager
def refusing(server: Host) -> Iterator[None]:
    """The server answers every SYN with a reset."""
    rule = ("INPUT", "-p", "tcp", "--syn", "-j", "REJECT", "--reject-with", "tcp-reset")
    server.run("iptables", "-w", "-I", *rule)
    try:
        yield
    finally:
        server.run("iptables", "-w", "-D", *rule)


def fail(lab: Lab, appliance: Appliance, name: str) -> None:
    """Both clients ask until the server, which refuses them, has failed."""
    for _ in range(12):
        for client in (*lab.clients, *reversed(lab.clients)):  # so that both come to each of two servers
            client.run("curl", "-s", "-o", "/dev/null", "--max-time", "10", f"http://{VIP}/", check=False)
        if real(appliance, name)["state"] == "failed":
            return
    raise AssertionError(real(appliance, name))


def test_a_drained_server_empties(lab: Lab) -> None:
    """R186, R039 (A7), F23: its download ends intact, its sticky client stays, new clients go elsewhere."""
    digest = document(lab, "drained", 32)  # curl takes the first megabytes at once, whatever its limit
    with gateway(lab, sticky=600) as appliance:
        bound = ask(lab.client)
        film = lab.directory / "drained.got"
        url = f"http://{VIP}/files/drained"
        download = lab.client.start(
            "curl", "-sS", "--limit-rate", "8M", "--max-time", "30", "-o", str(film), url
        )
        wait_until(lambda: film.exists() and film.stat().st_size > 1 << 18, "the first bytes")
        said = order(lab, "set", "real", bound.server, "sticky-only")
        assert re.fullmatch(rf"{bound.server}: in-service -> sticky-only \([1-9] connections?\)\n", said)
        assert {ask(lab.client).server for _ in range(4)} == {bound.server}
        others = [ask(lab.clients[1]) for _ in range(4)]
        assert bound.server not in spread(others)
        assert real(appliance, bound.server)["state"] == "sticky-only"
        assert download.running
        assert download.wait(30) == 0, download.stderr
        assert lab.client.run("sha256sum", str(film)).stdout.split()[0] == digest
        wait_until(lambda: real(appliance, bound.server)["connections"] == 0, "an empty server")


@pytest.mark.parametrize(("setting", "kept"), [("maintenance", True), ("out-of-service", False)])
def test_who_comes_back_to_whom(lab: Lab, setting: str, kept: bool) -> None:
    """R186, R132 (A7), F23: after maintenance it returns to its server; out of service it is forgotten."""
    with gateway(lab, sticky=600):
        server = ask(lab.client).server
        with holding(lab.client, 1) as held:
            order(lab, "set", "real", server, setting)
            assert {answer.server for answer in held.again()} == {server}, "what exists goes on"
            assert ask(lab.clients[1]).server != server
        said = order(lab, "set", "real", server, "in-service")
        assert f"{server}: {setting} -> in-service" in said
        assert ("1 sticky entry cleared" in said) is not kept
        answers = [ask(lab.client).server for _ in range(2)]
        assert (answers == [server] * 2) is kept


def test_sticky_entries_can_be_cleared(lab: Lab) -> None:
    """R066: of one client, and of all."""
    with gateway(lab, sticky=600) as appliance:
        for client in lab.clients:
            ask(client)
        address = str(lab.clients[1].address)
        assert order(lab, "clear", "sticky", "--client", address) == f"1 sticky entry of {address} cleared\n"
        assert [row["client"] for row in rows(appliance, "sticky")] == [str(lab.client.address)]
        ask(lab.clients[1])
        assert order(lab, "clear", "sticky", "--virtual", "web") == "2 sticky entries for web cleared\n"
        assert rows(appliance, "sticky") == []
        assert order(lab, "clear", "sticky") == "0 sticky entries cleared\n"


def test_another_weight_under_load(lab: Lab) -> None:
    """R048 (A14): from the next SYN on; nothing that is under way is disturbed."""
    servers = virtual("web", ALL, scheduler="weighted-round-robin")
    with balancing(lab, configuration(lab, servers)) as appliance:
        load = lab.clients[1].start("wrk", "-t1", "-c8", "-d6", "--timeout", "10s", f"http://{VIP}/")
        assert order(lab, "set", "real", "web1", "weight=4") == "web1: weight 1 -> 4\n"
        assert order(lab, "set", "real", "web3", "weight=0") == "web3: weight 1 -> 0\n"
        assert Counter(ask(lab.client).server for _ in range(20)) == {"web1": 16, "web2": 4}
        shown = {row["name"]: row["weight"] for row in rows(appliance, "reals")}
        assert shown == {"web1": 4, "web2": 1, "web3": 0}
        links = rows(appliance, "virtuals")[0]["servers"]
        assert [link["fair_share"] for link in links] == [0.8, 0.2, 0.0]
        said = order(lab, "set", "real", "web3", "maintenance", "weight=2.5")
        assert re.fullmatch(
            r"web3: in-service -> maintenance \(\d+ connections?\)\nweb3: weight 0 -> 2.5\n", said
        )
        assert load.wait(30) == 0
        assert "Socket errors" not in load.stdout, load.stdout


def test_a_virtual_server_out_of_service(lab: Lab) -> None:
    """R025 (A26): no new connections, existing ones go on; and back."""
    with gateway(lab) as appliance, holding(lab.client, 3) as held:
        said = order(lab, "set", "virtual", "web", "out-of-service")
        assert said == "web: in-service -> out-of-service (3 connections)\n"
        done = lab.client.run("curl", "-s", "--max-time", "1", f"http://{VIP}/", check=False)
        assert done.returncode != 0
        assert len(held.again()) == 3
        assert rows(appliance, "virtuals")[0]["state"] == "out-of-service"
        assert summary(appliance)["drops"]["out-of-service"] >= 1
        replace_worker(appliance)
        assert rows(appliance, "virtuals")[0]["state"] == "out-of-service"
        order(lab, "set", "virtual", "web", "in-service")
        assert ask(lab.client).server in ALL


def test_what_a_killed_worker_leaves(lab: Lab) -> None:
    """R039, R179, R182, R186: failed stays failed, drained stays drained, weights stay; then it is back.

    Each failure and each return is logged once, with who did what.
    """
    with gateway(lab, retry=2) as appliance:
        order(lab, "set", "real", "web2", "sticky-only")
        order(lab, "set", "real", "web3", "weight=3")
        with refusing(lab.servers[0]):
            fail(lab, appliance, "web1")
            before = real(appliance, "web1")
            evidence = rows(appliance, "failures", real="web1")
            assert {row["client"] for row in evidence} == {str(client.address) for client in lab.clients}
            assert {(row["why"], row["virtual"]) for row in evidence} == {("reset", "web")}
            replace_worker(appliance)
            after = real(appliance, "web1")
            assert after["state"] in ("failed", "testing")
            assert after["ditched"]["reset"] >= 3
            assert after["since_s"] >= before["since_s"]
            assert after["reason"] == before["reason"] == "3 connections in a row could not be made"
        assert real(appliance, "web2")["state"] == "sticky-only"
        assert real(appliance, "web3")["weight"] == 3
        wait_until(lambda: "web1" in {ask(lab.client).server for _ in range(2)}, "web1's return")
        assert spread([ask(lab.client) for _ in range(6)]) == {"web1": 3, "web3": 3}
        wait_until(lambda: "web1 is back after" in appliance.program.stderr, "a line of its return")
        log = appliance.program.stderr
        clients = "|".join(re.escape(str(client.address)) for client in lab.clients)
        assert re.search(
            rf"WARNING: web1 failed: 3 connections in a row could not be made, from 2 clients; last: "
            rf"({clients}) to web, refused after \d\.\d s\n",
            log,
        )
        assert log.count("web1 failed") == log.count("web1 is back") == 1
        assert re.search(
            r"web2: in-service -> sticky-only \(0 connections\) "
            r"\(ordered by user root \(uid 0\), process \d+\)",
            log,
        )


def test_an_operator_declares_a_failed_server_well(lab: Lab) -> None:
    """R179, R186: it takes new connections at once."""
    with gateway(lab) as appliance:
        with refusing(lab.servers[0]):
            fail(lab, appliance, "web1")
        assert "web1" not in {ask(lab.client).server for _ in range(6)}
        assert order(lab, "set", "real", "web1", "in-service").startswith("web1: failed -> in-service (")
        assert spread([ask(lab.client) for _ in range(6)]) == dict.fromkeys(ALL, 2)


def test_what_a_killed_gateway_leaves_and_a_stopped_one_does_not(lab: Lab) -> None:
    """R186: settings outlive the supervisor where the name still exists; a clean stop ends them."""
    web = virtual("web", ALL, scheduler="round-robin")
    appliance = Appliance(lab, configuration(lab, web))
    appliance.wait_ready()
    order(lab, "set", "real", "web1", "maintenance")
    worker = appliance.worker
    os.kill(appliance.program.pid, 9)
    appliance.program.wait(5)
    os.kill(worker, 9)  # it would go on alone
    wait_until(lambda: not os.path.exists(f"/proc/{worker}"), "the worker's end")  # noqa: PTH110
    with balancing(lab, configuration(lab, web)) as next_one:
        assert real(next_one, "web1")["state"] == "maintenance"
        assert "web1" not in {ask(lab.client).server for _ in range(6)}
    with balancing(lab, configuration(lab, web)) as last:
        assert real(last, "web1")["state"] == "in-service"


@only(REWRITE, SAME)
def test_of_one_thing_no_command_says_that_it_is_several(lab: Lab) -> None:
    """One server behind one virtual server, with one connection: who counts, counts to 1."""
    web = virtual("web", ["web1"], synguard=1)
    with balancing(lab, configuration(lab, web)) as appliance, holding(lab.client, 1):
        socket, file = ("--socket", str(socket_path(lab))), str(appliance.config)
        lines = ["set real web1 drain", *(f"show {subject}" for subject in WORDS["show"])]
        lines += ["wait connections 0 --timeout 0.1", "explain", "diff", "reload", "doctor", "top"]
        said = [nfqlb_command(lab, *line.split(), *socket) for line in lines]
        said += [nfqlb_command(lab, "check", "--host", file)]
        said += [nfqlb_command(lab, "rules", "verify", "-c", file)]
        assert "1 connection" in said[0].stdout
        found = [each for done in said for each in wrong(done.stdout + done.stderr)]
        assert found == []


@only(REWRITE, SAME)
def test_rules_are_not_taken_from_under_a_running_gateway(lab: Lab) -> None:
    """Its virtual servers would be unreachable."""
    with gateway(lab):
        done = nfqlb_command(lab, "rules", "remove")
        assert (done.returncode, done.stdout) == (1, "")
        assert "is running and would not answer any more" in done.stderr
        assert ask(lab.client).server


@only(REWRITE, SAME)
def test_orders_that_are_refused(lab: Lab) -> None:
    """R039, R025: by name and with what there is; nothing changes."""
    with gateway(lab) as appliance:
        assert refused(lab, "set", "real", "web", "maintenance").startswith(
            "nfqlb: there is no real server 'web'; did you mean 'web"
        )
        listed = "a real server: in-service, sticky-only (or drain), maintenance, out-of-service"
        assert listed in refused(lab, "set", "real", "web1", "dead")
        assert refused(lab, "set", "real", "web1", "failed").startswith("nfqlb: failed is found out, not set")
        assert "weight: -1 is not a weight (allowed: 0, or" in refused(
            lab, "set", "real", "web1", "weight=-1"
        )
        assert "states that can be set of a virtual server: in-service, out-of-service" in refused(
            lab, "set", "virtual", "web", "sticky-only"
        )
        assert "maintenance' is no state of a virtual server" in refused(
            lab, "set", "virtual", "web", "maintenance"
        )
        assert "web has no stickiness" in refused(lab, "clear", "sticky", "--virtual", "web")
        assert {row["state"] for row in rows(appliance, "reals")} == {"in-service"}
        assert {row["weight"] for row in rows(appliance, "reals")} == {1}


@only(REWRITE, SAME)
def test_a_user_without_the_right_is_refused(lab: Lab) -> None:
    """R186: the control socket is root's and its group's."""
    with gateway(lab) as appliance:
        path = socket_path(lab)
        status = path.stat()
        assert status.st_mode & 0o777 == 0o660
        for directory in path.parents:  # it is the socket that keeps the stranger out
            assert directory.stat().st_mode & 0o001 or directory == path.parent
        before = path.parent.stat().st_mode
        path.parent.chmod(0o755)
        child = os.fork()
        if child == 0:
            code = 9
            try:
                os.setgroups([])
                os.setgid(UNPRIVILEGED)
                os.setuid(UNPRIVILEGED)
                with Client(path) as client:
                    client.call("set-real", {"name": "web1", "state": "out-of-service"})
            except ControlError as error:
                code = 3 if error.code == "permission-denied" else 4
            finally:
                os._exit(code)
        _, status_word = os.waitpid(child, 0)
        path.parent.chmod(before & 0o777)
        assert os.waitstatus_to_exitcode(status_word) == 3
        assert real(appliance, "web1")["state"] == "in-service"


@only(REWRITE, SAME)
def test_links_are_shown(lab: Lab) -> None:
    """R037 (A36): each server's MAC as the kernel knows it, and who does not answer for it."""
    with gateway(lab) as appliance:
        for _ in range(3):
            ask(lab.client)
        row = real(appliance, "web1")
        shown = lab.servers[0].run("ip", "-br", "link").stdout
        assert row["mac"] in shown
        assert row["neighbour"] in ("reachable", "stale", "delay", "probe")
        address = row["address"]
        lab.gateway.run("ip", "neigh", "replace", address, "dev", "inside", "nud", "failed")
        try:
            wait_until(lambda: real(appliance, "web1")["neighbour"] == "failed", "what was seen to be old")
            shown = nfqlb_command(lab, "show", "reals", "--socket", str(socket_path(lab))).stdout
            assert f"web1  {address} does not answer for its link address (neighbour failed)" in shown
        finally:
            lab.gateway.run("ip", "neigh", "del", address, "dev", "inside")
