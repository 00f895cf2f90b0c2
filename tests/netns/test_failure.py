"""Servers that fail, on the real kernel: found out by real connections alone, and tried again by one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nfqlb.demo.appliance import Appliance, balancing, virtual
from nfqlb.demo.lab import VIP, Host, Lab
from nfqlb.demo.web import serve
from tests.netns.asking import Answer, ask, parse, rows, spread, summary, wait_until
from tests.netns.both import Bench, Datapath, configuration

ALL = ("web1", "web2", "web3")


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, clients=2, servers=3) as lab:
        for server in lab.servers:
            serve(lab, server, ports=(80, 81))
        yield lab


def gateway(lab: Lab, *virtuals: str, backup: str = "", **keys: object) -> Any:
    """A gateway whose servers fail after three connections of two clients, or as `keys` say."""
    lines = {"failure_threshold": 3, "failure_clients": 2, "retry": 3600, **keys}
    text = "\n".join(f"{key} = {str(value).lower()}" for key, value in lines.items())
    reals = dict.fromkeys(ALL, text)
    if backup:
        reals["web1"] += f'\nbackup = "{backup}"'
    return balancing(lab, configuration(lab, *virtuals, reals=reals))


def turns(*servers: str, port: int = 80) -> str:
    """A virtual server on `port` that takes its servers in turn."""
    return virtual(f"turns{port}", servers or ALL, port=port, scheduler="round-robin")


@contextmanager
def silent(server: Host) -> Iterator[None]:
    """The server drops whatever comes in, and says nothing."""
    rule = ("INPUT", "-i", next(iter(server.interfaces.values())).name, "-p", "tcp", "-j", "DROP")
    server.run("iptables", "-w", "-I", *rule)
    try:
        yield
    finally:
        server.run("iptables", "-w", "-D", *rule)


def real(appliance: Appliance, name: str) -> dict[str, Any]:
    """One real server as the gateway shows it."""
    return next(row for row in rows(appliance, "reals") if row["name"] == name)


def ask_at_once(lab: Lab, count: int) -> list[Answer]:
    """The answers to so many requests of each client, all under way together."""
    command = ("curl", "-sS", "--max-time", "25", f"http://{VIP}/")
    programs = [client.start(*command) for client in lab.clients for _ in range(count)]
    for program in programs:
        assert program.wait(30) == 0, program.stderr
    return [parse(program.stdout) for program in programs]


@pytest.mark.parametrize("how", ["silent", "unplugged"])
def test_a_server_cut_off_in_mid_traffic(lab: Lab, how: str) -> None:
    """R041, R179, R180, R181, F21: every client is answered, and once the server has failed nobody waits."""
    web1 = lab.servers[0]
    with gateway(lab, turns()) as appliance:
        assert spread(ask_at_once(lab, 6)) == dict.fromkeys(ALL, 4)
        with silent(web1) if how == "silent" else web1.unplugged():
            answers = ask_at_once(lab, 9)
            assert len(answers) == 18
            assert set(spread(answers)) == {"web2", "web3"}
            shown = real(appliance, "web1")
            assert shown["state"] == "failed", shown
            assert shown["ditched"]["no_answer"] >= 3
            assert shown["ditched"]["reset"] == 0
            assert spread([ask(lab.client) for _ in range(30)]) == {"web2": 15, "web3": 15}
            after = real(appliance, "web1")
            assert (after["total"], after["ditched"]) == (shown["total"], shown["ditched"])
        assert summary(appliance)["drops"].get("internal-error", 0) == 0


def test_a_server_returns_by_itself(lab: Lab) -> None:
    """R182, F21: tests with one live connection each fail while it is gone, and one brings it back."""
    with gateway(lab, turns("web1", "web2"), retry=1, failure_threshold=2) as appliance:
        with silent(lab.servers[0]):
            ask_at_once(lab, 4)
            assert real(appliance, "web1")["state"] == "failed"
            before = real(appliance, "web1")["ditched"]["no_answer"]

            def tested_in_vain() -> bool:
                assert ask(lab.client).server == "web2"
                return bool(real(appliance, "web1")["ditched"]["no_answer"] >= before + 2)

            wait_until(tested_in_vain, "two tests in vain", timeout=40.0)

        def back() -> bool:
            ask(lab.client)
            return bool(real(appliance, "web1")["state"] == "in-service")

        wait_until(back, "web1 in service", timeout=40.0)
        assert spread([ask(lab.client) for _ in range(20)]) == {"web1": 10, "web2": 10}


def test_a_server_that_refuses(lab: Lab) -> None:
    """R040, R179 (A42), F21: its clients are told, until three were; then nobody is sent there any more."""
    with gateway(lab, turns("web1:9000", "web2:80")) as appliance:
        refused = 0
        for _ in range(4):
            for client in (client for client in lab.clients for _ in range(2)):
                done = client.run("curl", "-sS", "--max-time", "10", f"http://{VIP}/", check=False)
                refused += done.returncode == 7
                assert done.returncode in (0, 7), done.stderr
        assert refused == 3
        shown = real(appliance, "web1")
        assert (shown["state"], shown["ditched"]) == ("failed", {"no_answer": 0, "reset": 3})
        assert shown["reason"] == "3 connections in a row could not be made"
        assert spread([ask(lab.client) for _ in range(10)]) == {"web2": 10}


def test_a_backup_stands_in(lab: Lab) -> None:
    """R047, R185: on the port of the server that it stands for; packets of its answers are caught too."""
    with gateway(lab, virtual("alone", ["web1:81"]), backup="web3") as appliance:
        assert (ask(lab.client).server, ask(lab.client).port) == ("web1", 81)
        with silent(lab.servers[0]):
            answers = ask_at_once(lab, 4)
            assert {(answer.server, answer.port) for answer in answers} == {("web3", 81)}
            assert real(appliance, "web1")["state"] == "failed"
            assert spread([ask(lab.client) for _ in range(5)]) == {"web3": 5}
            assert real(appliance, "web2")["total"] == 0


def test_a_virtual_servers_backup_serves_where_none_can(lab: Lab) -> None:
    """R027, R185."""
    spare = virtual("spare", ["web1:81"], backup="web3")
    with gateway(lab, spare), silent(lab.servers[0]):
        answers = ask_at_once(lab, 4)
        assert {(answer.server, answer.port) for answer in answers} == {("web3", 80)}
