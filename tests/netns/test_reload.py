"""Another configuration while the gateway runs, on the real kernel: what is under way goes on."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from subprocess import CompletedProcess
from typing import Any

import pytest

from nfqlb.demo.appliance import Appliance, balancing, nfqlb_command, socket_path, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.web import document
from nfqlb.runtime.client import Client
from tests.netns.asking import ask, holding, rows, rules, spread, summary, traces, wait_until
from tests.netns.both import Datapath, configuration, offloads, serving
from tests.netns.test_worker_death import replace_worker

OTHER = "192.0.2.101"


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=3) as lab:
        yield lab


def web(lab: Lab, *names: str, reals: dict[str, str] | None = None, more: str = "", **keys: Any) -> str:
    """One virtual server over some servers, and whatever `more` there is."""
    keys = {"scheduler": "round-robin", **keys}
    several = (virtual("web", names, **keys), *([more] if more else []))
    return configuration(lab, *several, reals=reals)


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Appliance]:
    before = traces(lab)
    with balancing(lab, web(lab, "web1", "web2", "web3")) as appliance:
        yield appliance
        assert "Traceback" not in appliance.program.stderr
    assert traces(lab) == before


def order(lab: Lab, *words: str) -> CompletedProcess[str]:
    return nfqlb_command(lab, *words, "--socket", str(socket_path(lab)))


def reload(gateway: Appliance, config: str) -> str:
    """Write the file and have it read; what is said of that."""
    gateway.config.write_text(config)
    done = order(gateway.lab, "reload")
    assert done.returncode == 0, done.stderr
    assert verified(gateway) == []
    return done.stdout


def verified(gateway: Appliance) -> list[str]:
    """What `nfqlb rules verify` finds."""
    done = nfqlb_command(gateway.lab, "rules", "verify", "-c", str(gateway.config))
    assert bool(done.stdout) == bool(done.returncode), done
    return done.stdout.splitlines()


def states(gateway: Appliance) -> dict[str, str]:
    return {row["name"]: row["state"] for row in rows(gateway, "reals")}


def marks_of_rules(lab: Lab) -> list[str]:
    """The links' rules: which mark leads where."""
    return [line for line in rules(lab) if "-j DNAT" in line]


def test_nothing_is_different(lab: Lab, gateway: Appliance) -> None:
    before = rules(lab)
    assert reload(gateway, gateway.config.read_text()) == "nothing is different\n"
    assert rules(lab) == before
    assert order(lab, "diff").stdout == "nothing is different\n"


def test_a_removed_server_drains(lab: Lab, gateway: Appliance) -> None:
    """Its connections go on, it gets no new ones, and disappears with its rules when it is empty."""
    with holding(lab.client, 6) as held:
        first = held.rounds()[0]
        assert spread(first) == {"web1": 2, "web2": 2, "web3": 2}
        said = reload(gateway, without(lab, "web3", web(lab, "web1", "web2")))
        assert "real server web3: removed" in said
        assert "until their connections have ended: web3" in said
        assert states(gateway) == {"web1": "in-service", "web2": "in-service", "web3": "draining"}
        assert spread([ask(lab.client) for _ in range(4)]) == {"web1": 2, "web2": 2}
        assert held.again() == first
        replace_worker(gateway)
        assert held.again() == first
        assert states(gateway)["web3"] == "draining"
    wait_until(lambda: "web3" not in states(gateway), "web3's end", timeout=30)
    wait_until(lambda: not any("web3" in rule for rule in rules(lab)), "the end of its rules")
    assert verified(gateway) == []
    assert "real server web3 has drained and is gone" in gateway.program.stderr


def without(lab: Lab, name: str, config: str) -> str:
    """A configuration without one `[[real]]`."""
    tables = re.split(r"(?=^\[\[)", config, flags=re.MULTILINE)
    return "".join(each for each in tables if not each.startswith(f'[[real]]\nname = "{name}"'))


def test_a_removed_server_comes_back(lab: Lab, gateway: Appliance) -> None:
    config = gateway.config.read_text()
    with holding(lab.client, 3) as held:
        first = held.rounds()[0]
        reload(gateway, without(lab, "web2", web(lab, "web1", "web3")))
        before = marks_of_rules(lab)
        reload(gateway, config)
        assert marks_of_rules(lab) == before, "marks keep their meaning"
        assert set(states(gateway).values()) == {"in-service"}
        assert held.again() == first
        assert spread([ask(lab.client) for _ in range(6)]).keys() == {"web1", "web2", "web3"}


def test_weights_and_schedulers_count_for_the_next_client(lab: Lab, gateway: Appliance) -> None:
    reals = {"web1": "weight = 3"}
    said = reload(gateway, web(lab, "web1", "web2", reals=reals, scheduler="weighted-round-robin"))
    assert "real server web1: weight: 1 -> 3" in said
    assert spread([ask(lab.client) for _ in range(8)]) == {"web1": 6, "web2": 2}


def test_a_virtual_server_comes_and_goes(lab: Lab, gateway: Appliance) -> None:
    """Its address comes up after its rules and goes down before them; connections that it has go on."""
    other = virtual("shop", ["web1:80", "web2:80"], address=OTHER, port=8080)
    config = gateway.config.read_text()
    reload(gateway, web(lab, "web1", "web2", "web3", more=other))
    assert f"{OTHER}/32" in lab.gateway.run("ip", "address", "show").stdout
    with holding(lab.client, 2, address=OTHER, port=8080) as held:
        first = held.rounds()[0]
        said = reload(gateway, config)
        assert "until their connections have ended: shop" in said
        assert f"{OTHER}/32" in lab.gateway.run("ip", "address", "show").stdout
        assert held.again() == first
        again = lab.client.run("curl", "-sS", "--max-time", "2", f"http://{OTHER}:8080/", check=False)
        assert again.returncode != 0
        assert held.again() == first
    wait_until(
        lambda: f"{OTHER}/32" not in lab.gateway.run("ip", "address", "show").stdout, "its end", timeout=30
    )
    wait_until(lambda: not any(OTHER in rule for rule in rules(lab)), "the end of its rules")
    assert [row["name"] for row in rows(gateway, "virtuals")] == ["web"]


def test_another_address_is_another_server(lab: Lab, gateway: Appliance) -> None:
    """web2's machine takes web1's name: whoever was on web1 stays there."""
    one, two = (str(lab.servers[index].address) for index in (0, 1))
    config = without(lab, "web2", web(lab, "web1", "web3")).replace(f'"{one}"', f'"{two}"')
    with holding(lab.client, 3) as held:
        first = held.rounds()[0]
        said = reload(gateway, config)
        assert f"real server web1: address: {one} -> {two}" in said
        assert states(gateway) == {"web1": "in-service", "web3": "in-service", "web1@1": "draining"}
        assert spread([ask(lab.client) for _ in range(4)]) == {"web2": 2, "web3": 2}, "machines by their own"
        assert held.again() == first
    wait_until(lambda: "web1@1" not in states(gateway), "its end", timeout=30)


def test_a_bad_file_changes_nothing(lab: Lab, gateway: Appliance) -> None:
    """F16: the rules stand as before; the error is in the answer, the events and the log."""
    before, good = rules(lab), gateway.config.read_text()
    gateway.config.write_text(good.replace("[[virtual]]", "[[virtual]]\nschedular = 1", 1))
    done = order(lab, "reload")
    assert done.returncode == 1
    assert f"{gateway.config}:" in done.stderr
    assert "error: virtual[web].schedular: " in done.stderr
    assert "schedular = 1\n" in done.stderr
    assert rules(lab) == before
    assert [row["kind"] for row in rows(gateway, "events", limit=1)] == ["reload"]
    (event,) = rows(gateway, "events", limit=1)
    assert event["level"] == "error"
    assert "is refused; nothing is changed" in event["text"]
    assert "uid 0" in event["who"]
    assert event["text"] in gateway.program.stderr
    assert order(lab, "diff").returncode == 1
    wait_until(lambda: reload_of(gateway)["ok"] is False, "the next snapshot")
    assert ask(lab.client).server in ("web1", "web2", "web3")
    reload(gateway, good)
    wait_until(lambda: reload_of(gateway)["ok"] is True, "the next snapshot")


def reload_of(gateway: Appliance) -> dict[str, object]:
    snapshot = gateway.ask("snapshot")
    assert isinstance(snapshot, dict)
    found = snapshot["reload"]
    assert isinstance(found, dict)
    return dict(found)


def test_what_needs_a_restart_is_refused_whole(lab: Lab, gateway: Appliance) -> None:
    """All of it is listed, and what could have been done is not done either."""
    before = rules(lab)
    config = gateway.config.read_text().replace('inside = "inside"', 'inside = "inside"\nqueue = 7', 1)
    config = config.replace('"outside"', '["outside", "else"]', 1).replace("round-robin", "maglev")
    gateway.config.write_text(config)
    diff = order(lab, "diff")
    assert diff.returncode == 1
    assert "virtual server web: scheduler: round-robin -> maglev" in diff.stdout
    for done in (order(lab, "reload"), diff):
        assert done.returncode == 1
        for key in ("outside", "queue"):
            assert f"[gateway] {key}: needs a restart" in done.stderr
    assert rules(lab) == before
    assert rows(gateway, "virtuals")[0]["scheduler"]["desired"] == "round-robin"


def test_what_this_machine_cannot_serve_is_refused(lab: Lab, gateway: Appliance) -> None:
    """As a start would refuse it: no route leads to a server there."""
    before = rules(lab)
    extra = '[[real]]\nname = "far"\naddress = "192.0.2.77"\n'
    config = web(lab, "web1", "web2", "far").replace("[[virtual]]", f"{extra}[[virtual]]", 1)
    gateway.config.write_text(config)
    done = order(lab, "reload")
    assert done.returncode == 1
    assert "nothing is changed" in done.stderr
    assert "192.0.2.77" in done.stderr
    assert rules(lab) == before
    assert set(states(gateway)) == {"web1", "web2", "web3"}


def test_diff_before(lab: Lab, gateway: Appliance) -> None:
    other = lab.directory / "other.toml"
    other.write_text(web(lab, "web1", "web2"))
    done = order(lab, "diff", "-c", str(other))
    assert done.stdout == "virtual server web: servers: -web3:80\n"
    (difference,) = json.loads(order(lab, "diff", "-c", str(other), "--json").stdout)["differences"]
    assert (difference["table"], difference["name"], difference["what"]) == ("virtual", "web", "changed")
    assert rows(gateway, "virtuals")[0]["servers"][2]["real"] == "web3", "nothing is changed"


_SERVE = """
import socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((sys.argv[1], 53))
print("bound", flush=True)
while True:
    _, client = udp.recvfrom(100)
    udp.sendto(sys.argv[2].encode(), client)
"""
_ASK = """
import socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(5)
udp.bind(("", int(sys.argv[2])))
udp.sendto(b"who?", (sys.argv[1], 53))
print(udp.recv(100).decode())
"""


def test_flows_go_on(lab: Lab, gateway: Appliance) -> None:
    """A virtual server for UDP comes; one of its servers goes, and keeps the flows that it has."""
    programs = [
        server.start(sys.executable, "-c", _SERVE, str(server.address), server.name) for server in lab.servers
    ]
    for program in programs:
        program.wait_for(program.out, "bound")

    def who(port: int) -> str:
        return lab.client.run(sys.executable, "-c", _ASK, VIP, str(port)).stdout.strip()

    def config(*names: str) -> str:
        dns = virtual("dns", names, port=53, protocol="udp", scheduler="round-robin")
        return web(lab, "web1", "web2", "web3", more=dns)

    try:
        reload(gateway, config("web1", "web2", "web3"))
        flows = {port: who(port) for port in range(7001, 7007)}
        assert set(flows.values()) == {"web1", "web2", "web3"}
        reload(gateway, config("web1", "web2"))
        assert {port: who(port) for port in flows} == flows
        assert {who(port) for port in range(7011, 7015)} == {"web1", "web2"}
        replace_worker(gateway)
        assert {port: who(port) for port in flows} == flows
        reload(gateway, web(lab, "web1", "web2", "web3"))
        assert {port: who(port) for port in flows} == flows
    finally:
        for program in programs:
            program.stop()


def test_clients_are_told_from_a_reload_on(lab: Lab, gateway: Appliance) -> None:
    """reject = "reset" needs sockets that nobody had opened: now the worker has them, and its successor."""
    reload(gateway, web(lab, "web1", reject="reset"))
    assert order(lab, "set", "real", "web1", "out-of-service").returncode == 0
    for _ in range(2):
        asked = lab.client.run("curl", "-sS", "--max-time", "10", f"http://{VIP}/", check=False)
        assert asked.returncode == 7, asked  # could not connect, at once
        replace_worker(gateway)


def test_a_hang_up_reloads(lab: Lab, gateway: Appliance) -> None:
    gateway.config.write_text(web(lab, "web3"))
    os.kill(gateway.program.pid, signal.SIGHUP)
    wait_until(lambda: "reloaded: virtual server web: servers" in gateway.program.stderr, "the log")
    wait_until(lambda: spread([ask(lab.client) for _ in range(3)]) == {"web3": 3}, "web3 alone")
    assert "(ordered by SIGHUP)" in gateway.program.stderr


def test_again_and_again_under_load(lab: Lab, gateway: Appliance) -> None:
    """F15: servers, ports of theirs, virtual servers and weights come and go in a load: no socket error."""
    closing = ("-H", "Connection: close")
    loads = [
        lab.client.start("wrk", "-t1", "-c10", "-d120", "--timeout", "10s", *words, f"http://{VIP}/")
        for words in ((), closing)
    ]
    configs = [
        web(lab, "web1", "web2"),
        without(lab, "web1", web(lab, "web2", "web3", scheduler="least-connections")),
        web(lab, "web1", "web2", "web3", more=virtual("shop", ["web1"], address=OTHER), sticky=60),
        web(lab, "web3", "web1", reals={"web1": "weight = 5"}, scheduler="maglev"),
        web(lab, "web1", "web2", "web3"),
    ]
    for config in configs:
        total = summary(gateway)["connections"]["total"]
        wait_until(lambda total=total: summary(gateway)["connections"]["total"] > total + 20, "traffic")  # type: ignore[misc]
        gateway.config.write_text(config)
        with Client(socket_path(lab)) as client:
            client.call("reload", patience=60)
    for load in loads:
        assert load.running, load.stdout
        load.send(signal.SIGINT)  # it reports what was until then
        assert load.wait(30) == 0
        assert "Socket errors" not in load.stdout, load.stdout
        assert "requests in" in load.stdout
    assert summary(gateway)["worker"]["restarts"] == 0


def test_a_worker_that_is_killed_in_a_reload(lab: Lab, gateway: Appliance) -> None:
    """Whatever moment it is killed at: connections go on, and the new configuration is in force."""
    digest = document(lab, "film", 4)
    film = lab.directory / "film.got"
    config = gateway.config.read_text()
    with holding(lab.client, 6) as held:
        first = held.rounds()[0]
        program = lab.client.start(
            "curl", "-sS", "--max-time", "60", "--limit-rate", "800k", "-o", str(film), f"http://{VIP}/film/film"
        )
        for each in (without(lab, "web2", web(lab, "web1", "web3")), config) * 2:
            gateway.config.write_text(each)
            pid = gateway.worker
            done = gateway.program.stderr.count(" reloaded")
            os.kill(gateway.program.pid, signal.SIGHUP)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda done=done: gateway.program.stderr.count(" reloaded") > done, "the reload")  # type: ignore[misc]
            assert held.again() == first
        assert program.wait(60) == 0, program.stderr
    assert lab.client.run("sha256sum", str(film)).stdout.split()[0] == digest
    assert verified(gateway) == []


def test_a_change_that_the_kernel_refuses_is_undone(lab: Lab, gateway: Appliance) -> None:
    """An idle time-out too many for conntrack, or a rule that cannot be: everything is as before."""
    before = rules(lab)
    names = [f"r{number}" for number in range(70)]
    extra = "".join(
        f'[[real]]\nname = "{name}"\naddress = "10.0.0.{number + 100}"\nidle_timeout = {100 + number}\n'
        for number, name in enumerate(names)
    )
    config = gateway.config.read_text().replace("[[virtual]]", f"{extra}[[virtual]]", 1)
    servers = json.dumps(["web1", *names])[:-1]
    gateway.config.write_text(config.replace('servers = ["web1"', f"servers = {servers}"))
    done = order(lab, "reload")
    if not offloads(lab):
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1
    assert "everything is as it was before" in done.stderr
    assert rules(lab) == before
    assert set(states(gateway)) == {"web1", "web2", "web3"}
    assert spread([ask(lab.client) for _ in range(3)]) == {"web1": 1, "web2": 1, "web3": 1}
