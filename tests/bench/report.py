"""The report: tables for the terminal, a document in JSON, tables in Markdown."""

import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tests.bench.load import METRICS, Load
from tests.bench.rounds import Results
from tests.bench.stats import Ratio, paired_ratio, spread
from tests.bench.variants import VARIANTS

BASES = {"dnat": "DNAT", "empty": "empty callback"}


@dataclass(frozen=True, slots=True)
class Target:
    """`variant` is to reach `bound` times `base`, or not to exceed it where less is better.

    Reached when the interval touches it.
    """

    variant: str
    metric: str
    base: str
    bound: float

    def reached(self, found: Ratio) -> bool:
        """Whether a ratio that was found will do."""
        more = METRICS[self.metric].more_is_better
        return found.high >= self.bound if more else found.low <= self.bound


TARGETS = (
    Target("rewrite", "connections", "empty", 0.85),
    Target("rewrite", "requests", "empty", 0.85),
    Target("rewrite", "bulk", "dnat", 0.5),
    Target("rewrite", "bulk", "haproxy", 1.0),
    Target("rewrite", "parallel", "dnat", 0.5),
    Target("rewrite", "parallel", "haproxy", 1.0),
    *(
        target
        for variant in ("offload", "timed")
        for target in (
            Target(variant, "connections", "dnat", 0.9),
            Target(variant, "connections", "haproxy", 1.0),
            Target(variant, "requests", "dnat", 0.95),
            Target(variant, "bulk", "dnat", 0.95),
            Target(variant, "parallel", "dnat", 0.95),
            Target(variant, "p50", "dnat", 1.1),
        )
    ),
)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Where and how was measured."""

    date: str
    kernel: str
    processor: str
    cores: int
    versions: dict[str, str]
    rounds: int
    servers: int
    load: Load
    load_average_before: float
    load_average_after: float


def today() -> str:
    """The date and time, as reports give it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def processor() -> str:
    """The processor's name."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def circumstances(rounds: int, servers: int, load: Load, before: float) -> Circumstances:
    """Of this machine, now. `before` is the load average (one minute) when the run began."""
    return Circumstances(
        date=today(),
        kernel=platform.release(),
        processor=processor(),
        cores=os.cpu_count() or 0,
        versions={
            "Python": platform.python_version(),
            "NetfilterQueue": version("NetfilterQueue"),
            "HAProxy": _said("haproxy", "-v"),
            "nginx": _said("nginx", "-v"),
            "iptables": _said("iptables", "--version"),
            "wrk": _said("wrk", "-v"),
        },
        rounds=rounds,
        servers=servers,
        load=load,
        load_average_before=before,
        load_average_after=os.getloadavg()[0],
    )


def _said(*argv: str) -> str:
    """The first version number that a program tells of itself; empty where it is not installed."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return ""
    found = re.search(r"\d+\.\d[\w.+~-]*", done.stdout + done.stderr)
    return found[0] if found else ""


def ratio(results: Results, name: str, metric: str, base: str) -> Ratio | None:
    """A variant's paired ratio to another; None where it is the same or the base has no such figure."""
    values = results.samples.get(name, {}).get(metric)
    others = results.samples.get(base, {}).get(metric)
    return paired_ratio(values, others) if values and others and name != base else None


def show(console: Console, results: Results, where: Circumstances) -> None:
    """Print everything for a reader at the terminal."""
    for line in _heading(where):
        console.print(line)
    bases = [base for base in BASES if base in results.samples]
    table = Table("", "median", "spread", *(f"to {BASES[base]} (95 %)" for base in bases), box=SIMPLE)
    for key, metric in METRICS.items():
        table.add_row(f"{metric.title}, {metric.unit}{'' if metric.more_is_better else ' (less is better)'}")
        for name, samples in results.samples.items():
            cells = [_ratio_text(ratio(results, name, key, base)) for base in bases]
            noise = f"{100 * spread(samples[key]):.0f} %"
            table.add_row("  " + VARIANTS[name].title, _figure(key, samples[key]), noise, *cells)
        table.add_section()
    console.print(table)
    for line in (*_targets(results), *_losses(results), *_NOTES):
        console.print(line)


def _heading(where: Circumstances) -> list[str]:
    load = where.load
    versions = ", ".join(f"{name} {number}" for name, number in where.versions.items() if number)
    return [
        f"{where.date}; Linux {where.kernel}, {where.cores} x {where.processor}; {versions}",
        f"{where.rounds} rounds of {load.seconds} s a figure, {where.servers} servers; wrk -t {load.threads}"
        f" -c {load.connections}, {load.downloads} downloads, {load.rate} paced requests/s on {load.paced}"
        f" connections",
        f"load average {where.load_average_before:.2f} before, {where.load_average_after:.2f} after",
    ]


_NOTES = (
    "Client, gateway and servers share the cores. Ratios are medians of the rounds' own ratios;"
    " spread: half the distance of the quartiles.",
    "Gateway CPU: its processes alone; the kernel's own part of the work shows only in machine CPU,"
    " which also holds client and servers.",
)


def _targets(results: Results) -> list[str]:
    lines = []
    for target in TARGETS:
        found = ratio(results, target.variant, target.metric, target.base)
        if found is not None:
            verdict = "reached" if target.reached(found) else "NOT reached"
            wanted = "at least" if METRICS[target.metric].more_is_better else "at most"
            lines.append(
                f"{VARIANTS[target.variant].title}: {METRICS[target.metric].title} {_ratio_text(found)} of"
                f" {VARIANTS[target.base].title}, wanted {wanted} {target.bound:.2f}: {verdict}"
            )
    return lines


def _losses(results: Results) -> list[str]:
    lines = [f"{name}: {count} requests failed" for name, count in results.errors.items() if count]
    return lines + [
        f"{name}: {count} packets lost by the queue" for name, count in results.drops.items() if count
    ]


def _figure(key: str, values: list[float]) -> str:
    metric = METRICS[key]
    return f"{median(values) * metric.shown:,.{metric.digits}f}"


def _ratio_text(found: Ratio | None) -> str:
    return "-" if found is None else f"{found.median:.2f} ({found.low:.2f}-{found.high:.2f})"


def markdown(results: Results, where: Circumstances) -> str:
    """The same as Markdown: one table of medians, and one of ratios for each base."""
    lines = [*_heading(where), ""]
    titles = [f"{metric.title}, {metric.unit}" for metric in METRICS.values()]
    lines += _rows([["", *titles]])
    for name, samples in results.samples.items():
        lines += _rows([[VARIANTS[name].title, *(_figure(key, samples[key]) for key in METRICS)]], head=False)
    for base in BASES:
        if base not in results.samples:
            continue
        lines += [
            "",
            f"Ratio to {VARIANTS[base].title}, with its 95 % interval:",
            "",
            *_rows([["", *titles]]),
        ]
        for name in results.samples:
            cells = [_ratio_text(ratio(results, name, key, base)) for key in METRICS]
            lines += _rows([[VARIANTS[name].title, *cells]], head=False)
    lines += ["", *(f"- {line}" for line in (*_targets(results), *_losses(results), *_NOTES))]
    return "\n".join(lines) + "\n"


def _rows(rows: list[list[str]], *, head: bool = True) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [*lines, "|---" * len(rows[0]) + "|"] if head else lines


def document(results: Results, where: Circumstances) -> str:
    """Everything as JSON: circumstances, every sample (SI units) of every round, medians and ratios."""
    ratios = {
        name: {
            base: {key: asdict(found) for key in METRICS if (found := ratio(results, name, key, base))}
            for base in (*BASES, "haproxy")
            if base in results.samples
        }
        for name in results.samples
    }
    medians = {
        name: {key: median(values) for key, values in by.items()} for name, by in results.samples.items()
    }
    whole = {"circumstances": asdict(where), **asdict(results), "medians": medians, "ratios": ratios}
    return json.dumps(whole, indent=1)
