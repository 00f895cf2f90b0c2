"""The examples for Prometheus and Grafana: they ask for what there is, and say of it what they should."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfqlb.core.admission import ServerState
from nfqlb.core.verdict import Drop
from nfqlb.runtime.families import FAMILIES, Family, Kind

HERE = Path(__file__).parents[2]
EXAMPLES = HERE / "examples" / "prometheus"
ALERTS, DASHBOARD = EXAMPLES / "alerts.yml", EXAMPLES / "grafana-dashboard.json"
#: What a scrape adds to every sample.
OF_SCRAPES = frozenset({"job", "instance"})
#: What a dashboard's variables and functions stand for.
STAND_INS = {"$__rate_interval": "5m", "$__interval": "15s", "$__range": "1h"}
#: The values of labels that are words of a fixed list.
WORDS = {
    "state": {state.shown for state in ServerState},
    "reason": {reason.value for reason in Drop},
    "direction": {"in", "out"},
}


def promtool(*words: str) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def series() -> dict[str, Family]:
    """Every name that a sample may have, with its family."""
    found = {}
    for family in FAMILIES:
        parts = ("_bucket", "_count", "_sum") if family.kind is Kind.HISTOGRAM else ("",)
        found.update({family.name + part: family for part in parts})
    return found


def every(document: Any, key: str) -> Iterator[str]:
    """Every text under a key, anywhere in a document."""
    if isinstance(document, dict):
        for name, inner in document.items():
            if name == key and isinstance(inner, str):
                yield inner
            else:
                yield from every(inner, key)
    elif isinstance(document, list):
        for inner in document:
            yield from every(inner, key)


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text("utf-8"))


def expressions() -> list[str]:
    """What the dashboard asks, with something in place of its variables."""
    found = list(every(dashboard(), "expr"))
    for name, meaning in STAND_INS.items():
        found = [each.replace(name, meaning) for each in found]
    return found


def texts() -> list[str]:
    """All that asks for metrics."""
    alerts = [line for line in ALERTS.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    return [*alerts, *expressions(), *every(dashboard(), "definition")]


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = {name for text in texts() for name in re.findall(r"\bnfqlb_\w+", text)}
    assert len(asked) > 30
    assert asked <= series().keys()


#: What is not drawn: facts beside numbers, what two panels would show twice, and what alerts alone are for.
NOT_DRAWN = {
    "nfqlb_config_last_reload_timestamp_seconds",
    "nfqlb_link_connections_total",
    "nfqlb_real_connections_limit",
    "nfqlb_real_info",
    "nfqlb_real_last_response_seconds",
    "nfqlb_real_neighbour_info",
    "nfqlb_real_predicted_response_seconds",
    "nfqlb_real_state_age_seconds",
    "nfqlb_rules_last_repair_timestamp_seconds",
    "nfqlb_snapshot_timestamp_seconds",
    "nfqlb_sticky_entries_limit",
    "nfqlb_virtual_info",
    "nfqlb_virtual_packets_total",
}


def test_every_metric_is_on_the_dashboard() -> None:
    asked = {name for text in expressions() for name in re.findall(r"\bnfqlb_\w+", text)}
    missing = {family.name for family in FAMILIES} - {series()[name].name for name in asked}
    assert missing == NOT_DRAWN


def test_every_label_that_is_chosen_by_is_one_of_the_metric() -> None:
    """And where it is of a fixed list, so is the word."""
    chosen = 0
    for text in texts():
        for name, selector in re.findall(r"\b(nfqlb_\w+)\{([^}]*)\}", text):
            for label, value in re.findall(r'(\w+)=~?"([^"]*)"', selector):
                assert label in OF_SCRAPES.union(series()[name].labels), text
                if label in WORDS:
                    assert set(value.split("|")) <= WORDS[label], text
                chosen += 1
    assert chosen > 50


def test_every_label_that_is_shown_is_one_of_some_metric() -> None:
    known = OF_SCRAPES.union({"le"}, *(family.labels for family in FAMILIES))
    legends = list(every(dashboard(), "legendFormat"))
    shown = {name for text in legends for name in re.findall(r"\{\{\s*(\w+)\s*\}\}", text)}
    shown |= set(re.findall(r"\$labels\.(\w+)", ALERTS.read_text("utf-8")))
    assert {"instance", "real", "virtual", "queue"} <= shown <= known


def test_prometheus_takes_the_alerts_and_the_configuration() -> None:
    promtool("check", "rules", str(ALERTS))
    promtool("check", "config", str(EXAMPLES / "prometheus.yml"))


def test_the_alerts_say_what_they_should() -> None:
    """Histories that are known, and what is alerted in each: nothing in one that is well."""
    promtool("test", "rules", str(HERE / "tests" / "prometheus" / "alerts.yml"))


def test_an_alert_that_says_something_else_is_found(tmp_path: Path) -> None:
    """The check above reads the file that it claims to read."""
    (tmp_path / "examples" / "prometheus").mkdir(parents=True)
    (tmp_path / "tests" / "prometheus").mkdir(parents=True)
    spoiled = ALERTS.read_text("utf-8").replace("nfqlb_worker_up == 0", "nfqlb_worker_up == 1")
    assert spoiled != ALERTS.read_text("utf-8")
    (tmp_path / "examples" / "prometheus" / "alerts.yml").write_text(spoiled)
    test = tmp_path / "tests" / "prometheus" / "alerts.yml"
    test.write_text((HERE / "tests" / "prometheus" / "alerts.yml").read_text("utf-8"))
    with pytest.raises(AssertionError, match="NfqlbWorkerDown"):
        promtool("test", "rules", str(test))


def test_prometheus_understands_what_the_dashboard_asks(tmp_path: Path) -> None:
    """Each question as a rule that promtool checks: brackets, functions, types."""
    rules = [{"record": f"dashboard:{number}", "expr": each} for number, each in enumerate(expressions())]
    assert len(rules) > 25
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    promtool("check", "rules", str(path))


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    """Panels with numbers of their own, beside each other, from a data source that is asked for."""
    board = dashboard()
    assert (board["title"], board["uid"]) == ("nfqlb", "nfqlb")
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    variables = {variable["name"] for variable in board["templating"]["list"]}
    using = [text for key in ("expr", "uid", "definition") for text in every(board, key)]
    used = {name.strip("{}") for text in using for name in re.findall(r"\$(\w+|\{\w+\})", text)}
    assert used - {name.strip("$") for name in STAND_INS} == variables


def test_the_dashboard_shows_every_state_of_a_server() -> None:
    (panel,) = [each for each in dashboard()["panels"] if each["type"] == "state-timeline"]
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    shown = {number: each["text"] for number, each in mapping["options"].items()}
    assert set(shown.values()) == {state.shown for state in ServerState}
    (asked,) = every(panel["targets"], "expr")
    for number, state in shown.items():
        assert re.search(rf'\b{number} \* \(nfqlb_real_state{{[^}}]*state="{state}"}} == 1\)', asked)
