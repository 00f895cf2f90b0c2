"""Metrics of a running gateway, asked for as Prometheus does, over its worker's death too."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nfqlb.demo.appliance import balancing, nfqlb_command, socket_path, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.runtime.families import FAMILIES, Kind
from tests.netns.asking import ask, wait_until
from tests.netns.both import OFFLOAD, REWRITE, SAME, Datapath, configuration, offloads, only, serving

PLACE = "127.0.0.1:9617"
EXAMPLES = Path(__file__).parents[2] / "examples" / "prometheus"
METRICS = f'metrics = "{PLACE}"'
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

COUNTERS = frozenset(family.name for family in FAMILIES if family.kind is Kind.COUNTER)


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with serving(datapath, clients=1, servers=2) as lab:
        yield lab


def curl(lab: Lab, *words: str, place: str = PLACE) -> str:
    """The metrics; asked for again where nothing has been read yet, as the gateway says then."""
    command = ("curl", "-sSf", "--max-time", "10", "--retry", "5", *words, f"http://{place}/metrics")
    return lab.gateway.run(*command).stdout


def scraped(lab: Lab) -> Samples:
    """Every sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(curl(lab))
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def counters(samples: Samples) -> Samples:
    """What may never fall: counters, and the parts of histograms."""
    return {
        key: each for key, each in samples.items()
        if key[0] in COUNTERS or re.search(r"_(bucket|count|sum)$", key[0])
    }  # fmt: skip


def wait_for(lab: Lab, name: str, least: float, **labels: str) -> Samples:
    """Scrape until a value is at least so much: snapshots are taken once a second."""
    found: list[Samples] = []

    def there() -> bool:
        found[:] = [scraped(lab)]
        return found[0].get((name, frozenset(labels.items())), 0.0) >= least

    wait_until(there, f"{name} {labels} to be {least}")
    return found[0]


def test_what_a_running_gateway_tells(lab: Lab) -> None:
    """Connections are counted where they went; the queues' counters and the response times are there."""
    with balancing(lab, configuration(lab, gateway=METRICS)):
        for _ in range(8):
            ask(lab.client)
        samples = wait_for(lab, "nfqlb_virtual_connections_total", 8, virtual="web")
        assert value(samples, "nfqlb_connections_total") == 8
        assert value(samples, "nfqlb_worker_up") == 1
        served = [value(samples, "nfqlb_real_connections_total", real=name) for name in ("web1", "web2")]
        assert sum(served) == 8
        assert min(served) > 0
        assert value(samples, "nfqlb_real_state", real="web1", state="in-service") == 1
        lost = [dict(labels) for name, labels in samples if name == "nfqlb_queue_dropped_packets_total"]
        assert {each["cause"] for each in lost} == {"queue-full", "socket-full"}
        assert all(each["role"] for each in lost)
        if not offloads(lab):  # there nobody measures where no scheduler asks for it
            measured = [
                value(samples, "nfqlb_real_response_seconds_count", real=name) for name in ("web1", "web2")
            ]
            assert sum(measured) == 8
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=curl(lab), capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


#: What a gateway does not tell before it happens: a reload, a repair, a server's limit being set.
NOT_YET = frozenset(
    {
        "nfqlb_config_last_reload_successful",
        "nfqlb_config_last_reload_timestamp_seconds",
        "nfqlb_rules_last_repair_timestamp_seconds",
    }
)
#: And what is told under one datapath alone.
OF_ONE = {
    REWRITE: frozenset({"nfqlb_offload_missed"}),
    OFFLOAD: frozenset(
        f"nfqlb_real_{name}_seconds" for name in ("response", "last_response", "predicted_response")
    ),
}


def test_everything_is_told(lab: Lab, datapath: Datapath) -> None:
    """Every metric that there is, in one gateway with a limit, a shadow and a packet that was refused."""
    scheduler = "source-hash" if offloads(lab) else "fastest-response"
    web = virtual("web", ["web1", "web2"], scheduler=scheduler, shadow="round-robin")
    config = configuration(lab, web, gateway=METRICS, reals={"web1": "max_connections = 10"})
    with balancing(lab, config):
        for _ in range(4):
            ask(lab.client)
        assert order(lab, "set", "virtual", "web", "out-of-service").returncode == 0
        lab.client.run("curl", "-s", "--max-time", "1", f"http://{VIP}/", check=False)
        wait_for(lab, "nfqlb_virtual_dropped_packets_total", 1, virtual="web", reason="out-of-service")
        told = {family.name for family in text_string_to_metric_families(curl(lab))}
    known = {family.name.removesuffix("_total") for family in FAMILIES}
    assert known - told == NOT_YET | OF_ONE[datapath]
    assert told <= known


def test_counters_do_not_fall_when_the_worker_is_killed(lab: Lab) -> None:
    """A successor begins at nothing; what its predecessor had counted is added to it."""
    with balancing(lab, configuration(lab, gateway=METRICS)) as appliance:
        for _ in range(6):
            ask(lab.client)
        before = wait_for(lab, "nfqlb_connections_total", 6)
        appliance.kill_worker()
        after = wait_for(lab, "nfqlb_worker_restarts_total", 1)
        fallen = {key for key, each in counters(before).items() if after.get(key, -1.0) < each}
        assert not fallen
        ask(lab.client)
        after = wait_for(lab, "nfqlb_connections_total", 7)
        assert value(after, "nfqlb_connections_total") == 7
        assert not {key for key, each in counters(before).items() if after.get(key, -1.0) < each}


def test_a_reload_is_told_and_moves_the_place(lab: Lab) -> None:
    """Counters go on, a refused one is told as well, and metrics are asked for where the new file says."""
    there = "127.0.0.1:9618"
    first = configuration(lab, gateway=METRICS)
    with balancing(lab, first) as appliance:
        ask(lab.client)
        wait_for(lab, "nfqlb_connections_total", 1)
        assert "nfqlb_config_last_reload" not in curl(lab)
        appliance.config.write_text(first.replace(PLACE, "127.0.0.1"))
        assert order(lab, "reload").returncode == 1
        refused = wait_for(lab, "nfqlb_config_last_reload_timestamp_seconds", 1)
        assert value(refused, "nfqlb_config_last_reload_successful") == 0
        appliance.config.write_text(first.replace(PLACE, there))
        assert order(lab, "reload").returncode == 0
        done = "nfqlb_config_last_reload_successful 1.0\n"
        wait_until(lambda: done in curl(lab, place=there), "a snapshot")
        assert "nfqlb_connections_total 1.0\n" in curl(lab, place=there)
        assert "Traceback" not in appliance.program.stderr


def order(lab: Lab, *words: str) -> CompletedProcess[str]:
    return nfqlb_command(lab, *words, "--socket", str(socket_path(lab)))


@only(REWRITE, SAME)
def test_a_worker_does_not_hold_the_place(lab: Lab) -> None:
    """The port is free as soon as the gateway has stopped, however often its worker was replaced."""
    for _ in range(2):
        with balancing(lab, configuration(lab, gateway=METRICS)) as appliance:
            first = appliance.kill_worker()
            wait_for(lab, "nfqlb_worker_restarts_total", 1)
            assert appliance.worker != first
            listening = f":{PLACE.rpartition(':')[2]} "
            holders = lab.gateway.run("ss", "-tlnpH").stdout
            (line,) = [line for line in holders.splitlines() if listening in line]
            assert re.findall(r"pid=(\d+)", line) == [str(appliance.program.pid)]


@only(REWRITE, SAME)
def test_slow_clients_hold_up_neither_scrapes_nor_connections(lab: Lab) -> None:
    """Forty clients that connect and never ask: who asks is served all the same."""
    with balancing(lab, configuration(lab, gateway=METRICS)):
        silent = lab.gateway.start(sys.executable, "-c", SILENT)
        try:
            silent.wait_for(silent.out, "connected\n")
            assert "nfqlb_build_info" in curl(lab)
            assert ask(lab.client).server in ("web1", "web2")
            assert "# EOF" in curl(lab, "-H", "Accept: application/openmetrics-text")
        finally:
            silent.stop()


#: Connects as often as it may, and never asks.
SILENT = f"""
import socket, time
host, port = {PLACE!r}.split(":")
socks = [socket.create_connection((host, int(port))) for _ in range(40)]
print("connected", flush=True)
time.sleep(60)
"""


@only(REWRITE, SAME)
def test_a_place_that_is_taken_is_said(lab: Lab) -> None:
    """The gateway does not come up, and leaves nothing."""
    other = lab.gateway.start(sys.executable, "-c", TAKEN)
    try:
        other.wait_for(other.out, "listening\n")
        path = lab.directory / "taken.toml"
        path.write_text(configuration(lab, gateway=METRICS))
        done = nfqlb_command(lab, "run", "-c", str(path))
    finally:
        other.stop()
    assert done.returncode == 1
    assert "metrics: nobody can listen at 127.0.0.1:9617: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert "NFQLB" not in lab.gateway.run("iptables-save").stdout


TAKEN = """
import socket, time
sock = socket.create_server(("127.0.0.1", 9617))
print("listening", flush=True)
time.sleep(60)
"""


@only(REWRITE, SAME)
def test_metrics_over_ipv6(lab: Lab) -> None:
    with balancing(lab, configuration(lab, gateway='metrics = "[::1]:9618"')):
        wait_until(lambda: "nfqlb_uptime_seconds" in curl(lab, place="[::1]:9618"), "the first snapshot")


@only(REWRITE, SAME)
def test_prometheus_itself_scrapes_it(lab: Lab, tmp_path: Path) -> None:
    """With the example's configuration, but oftener: it takes the answer, and loads the alerts."""
    text = (EXAMPLES / "prometheus.yml").read_text("utf-8")
    (tmp_path / "prometheus.yml").write_text(text.replace("scrape_interval: 15s", "scrape_interval: 1s"))
    (tmp_path / "alerts.yml").write_text((EXAMPLES / "alerts.yml").read_text("utf-8"))
    with balancing(lab, configuration(lab, gateway=METRICS)):
        ask(lab.client)
        prometheus = lab.gateway.start(
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            "--web.listen-address=127.0.0.1:9090",
        )
        try:
            wait_until(lambda: asked_of_prometheus(lab, "nfqlb_connections_total") == ["1"], "a scrape")
            assert asked_of_prometheus(lab, 'up{job="nfqlb"}') == ["1"]
            assert asked_of_prometheus(lab, 'nfqlb_real_state{real="web1",state="in-service"}') == ["1"]
            assert asked_of_prometheus(lab, 'ALERTS{alertstate="firing"}') == []
        finally:
            prometheus.stop()


def asked_of_prometheus(lab: Lab, query: str) -> list[str]:
    """The values that Prometheus has for a query at present; none while it does not answer yet."""
    words = ("--data-urlencode", f"query={query}", "http://127.0.0.1:9090/api/v1/query")
    done = lab.gateway.run("curl", "-sS", "--max-time", "5", "-G", *words, check=False)
    try:
        return [each["value"][1] for each in json.loads(done.stdout)["data"]["result"]]
    except (ValueError, KeyError):
        return []
