"""What is measured, and how.

connections  wrk with `Connection: close`: new TCP connections a second, one small page each
requests     wrk: requests a second on connections kept alive
bulk         downloads of a large file: megabytes (10**6 bytes) a second; one at a time, which leaves a
             core to the gateway here and there, and several, which do not
latency      a fixed moderate rate of requests on connections kept alive: median and 99th percentile
cpu          measured beside `connections`: processor seconds a thousand connections

Whatever a measurement lost (socket errors, wrong replies) is counted beside it, never hidden in it.
"""

import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from nfqlb.demo.lab import LabError
from tests.bench.client import Download, Latency
from tests.bench.contender import BULK, Contender
from tests.bench.variants import PORT

_CORES = os.cpu_count() or 1
_CLIENT = str(Path(__file__).with_name("client.py"))


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of the report. `shown` multiplies the stored value (SI units) for people, in `unit`."""

    title: str
    unit: str
    shown: float = 1.0
    digits: int = 0
    more_is_better: bool = True


METRICS: dict[str, Metric] = {
    "connections": Metric("new connections", "1/s"),
    "requests": Metric("requests kept alive", "1/s"),
    "bulk": Metric("bulk, one download", "MB/s", 1e-6),
    "parallel": Metric("bulk, parallel", "MB/s", 1e-6),
    "p50": Metric("latency p50", "us", 1e6, 0, more_is_better=False),
    "p99": Metric("latency p99", "us", 1e6, 0, more_is_better=False),
    "cpu": Metric("gateway CPU per 1000 connections", "s", 1.0, 3, more_is_better=False),
    "machine": Metric("machine CPU per 1000 connections", "s", 1.0, 3, more_is_better=False),
    "memory": Metric("gateway memory", "MB", 1e-6, 1, more_is_better=False),
}


@dataclass(frozen=True, slots=True)
class Load:
    """How hard: wrk's threads and connections, parallel downloads, the paced rate; `seconds` for each."""

    seconds: int = 1
    threads: int = _CORES
    connections: int = max(32, _CORES)
    downloads: int = 4
    rate: int = 300
    paced: int = 8


@dataclass(slots=True)
class Sample:
    """What one measurement gave: values by metric, and errors of the client."""

    values: dict[str, float] = field(default_factory=dict)
    errors: int = 0


def connections(contender: Contender, load: Load) -> Sample:
    """New connections a second, and the processor time that they cost."""
    before = contender.used()
    count, rate, errors = _wrk(contender, load, "-H", "Connection: close")
    used = contender.used().since(before)
    thousands = count / 1000
    values = {
        "connections": rate,
        "cpu": used.processes / thousands,
        "machine": used.machine / thousands,
        "memory": float(contender.memory()),
    }
    return Sample(values, errors)


def requests(contender: Contender, load: Load) -> Sample:
    """Requests a second on connections kept alive."""
    _, rate, errors = _wrk(contender, load)
    return Sample({"requests": rate}, errors)


def bulk(contender: Contender, load: Load) -> Sample:
    """Bytes a second of one download."""
    return Sample({"bulk": _download(contender, load, 1)})


def parallel(contender: Contender, load: Load) -> Sample:
    """Bytes a second of parallel downloads, together."""
    return Sample({"parallel": _download(contender, load, load.downloads)})


def _download(contender: Contender, load: Load, count: int) -> float:
    result = Download(**_own(contender, load, "download", BULK, count))
    return result.octets / result.seconds


def latency(contender: Contender, load: Load) -> Sample:
    """Median and 99th percentile of the latency in seconds."""
    result = Latency(**_own(contender, load, "latency", str(load.rate), load.paced))
    if len(result.seconds) < 2:
        raise LabError(f"{contender.name}: no paced request was answered")
    return Sample({"p50": median(result.seconds), "p99": quantiles(result.seconds, n=100)[98]}, result.lost)


MEASUREMENTS = {
    "connections": connections,
    "requests": requests,
    "bulk": bulk,
    "parallel": parallel,
    "latency": latency,
}


def _wrk(contender: Contender, load: Load, *options: str) -> tuple[int, float, int]:
    size = ("-t", str(load.threads), "-c", str(load.connections), "-d", f"{load.seconds}s")
    url = f"http://{contender.address}:{PORT}/"
    said = contender.lab.client.run("wrk", *size, *options, url, timeout=load.seconds + 20).stdout
    return parse_wrk(said)


def parse_wrk(said: str) -> tuple[int, float, int]:
    """Completed requests, their rate a second, and errors in wrk's report.

    Raises LabError where it holds no request.
    """
    done = re.search(r"(\d+) requests in ", said)
    rate = re.search(r"Requests/sec: +([\d.]+)", said)
    if done is None or rate is None or not float(rate[1]):
        raise LabError(f"wrk completed no request: {' '.join(said.split())}")
    errors = 0
    if failed := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said):
        errors += sum(map(int, failed.groups()))
    if wrong := re.search(r"Non-2xx or 3xx responses: (\d+)", said):
        errors += int(wrong[1])
    return int(done[1]), float(rate[1]), errors


def _own(contender: Contender, load: Load, what: str, third: str, count: int) -> dict[str, Any]:
    argv = (sys.executable, _CLIENT, what, contender.address, str(PORT), third, str(load.seconds), str(count))
    said = contender.lab.client.run(*argv, timeout=load.seconds + 20).stdout
    result: dict[str, Any] = json.loads(said)  # the reader's dataclass checks the names
    return result
