"""What comes of a snapshot: every metric by name, label and value, in both formats."""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from nfqlb.core.admission import ServerState
from nfqlb.core.histogram import CLASSES
from nfqlb.runtime.exposition import OPENMETRICS, TEXT, Format, SnapshotCollector, pieces
from nfqlb.runtime.families import FAMILIES, Kind
from tests.runtime.sample import CLIENT, link, snapshot, virtual

Samples = dict[tuple[str, ...], float]

both = pytest.mark.parametrize("wanted", [TEXT, OPENMETRICS], ids=["text", "openmetrics"])


def exposed(document: dict[str, Any], wanted: Format = TEXT) -> str:
    return b"".join(pieces(document, wanted)).decode()


def samples(document: dict[str, Any], wanted: Format = TEXT) -> Samples:
    """Every sample by its name and labels (as `label=value`), read as Prometheus reads it."""
    parse = parse_text if wanted is TEXT else parse_openmetrics
    families: Iterable[Metric] = parse(exposed(document, wanted))
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items())))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def named(found: Samples, name: str) -> Samples:
    """The samples of one name, by their labels."""
    return {tuple(labels): value for (each, *labels), value in found.items() if each == name}


# --- the names -------------------------------------------------------------------------------------------


def test_names_and_help_follow_the_rules() -> None:
    """Counters end in _total and nothing else does; everything is said what it is, in base units."""
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert re.fullmatch(r"nfqlb(_[a-z]+)+", family.name), family
        assert family.name.endswith("_total") == (family.kind is Kind.COUNTER), family
        assert family.help.endswith("."), family
        assert not re.search(r"_(ms|us|milliseconds|minutes|kb|percent|bits|count|sum|bucket)\b", family.name)
        assert not {"client", "client_port", "le"} & set(family.labels), family


def test_a_family_of_openmetrics_is_no_other_s_name() -> None:
    """There a counter's family lacks `_total`, and no gauge may have that name."""
    families = [family.name.removesuffix("_total") for family in FAMILIES]
    assert len(set(families)) == len(families)


@both
def test_every_family_is_in_the_sample_and_comes_out(wanted: Format) -> None:
    """So that the tests below see all of them; a real reader takes them, each with its type."""
    parse = parse_text if wanted is TEXT else parse_openmetrics
    read = {family.name: family.type for family in parse(exposed(snapshot(), wanted))}
    assert read == {family.name.removesuffix("_total"): family.kind.value for family in FAMILIES}


def test_promtool_finds_nothing_to_say() -> None:
    """Prometheus's own check of names, units and help."""
    found = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exposed(snapshot()),
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


# --- the values ------------------------------------------------------------------------------------------


@both
def test_the_gateway_as_a_whole(wanted: Format) -> None:
    found = samples(snapshot(), wanted)
    (build,) = named(found, "nfqlb_build_info")
    assert build[1] == "version=1.2.3"
    assert {name: found[name,] for (name, *labels) in found if not labels} == {
        "nfqlb_snapshot_timestamp_seconds": 1_700_000_000.25,
        "nfqlb_uptime_seconds": 3600.5,
        "nfqlb_worker_up": 1.0,
        "nfqlb_worker_restarts_total": 2.0,
        "nfqlb_connections_active": 6.0,
        "nfqlb_connections_limit": 1000.0,
        "nfqlb_connections_total": 80.0,
        "nfqlb_evicted_connections_total": 25.0,
        "nfqlb_evicted_sticky_entries_total": 26.0,
        "nfqlb_audit_drift_total": 27.0,
        "nfqlb_sticky_entries": 7.0,
        "nfqlb_sticky_entries_limit": 2000.0,
        "nfqlb_journal_lost_records_total": 19.0,
        "nfqlb_conntrack_entries": 28.0,
        "nfqlb_conntrack_entries_limit": 29.0,
        "nfqlb_rules_present": 1.0,
        "nfqlb_rules_repairs_total": 23.0,
        "nfqlb_rules_last_repair_timestamp_seconds": 1.69e9,
        "nfqlb_config_last_reload_successful": 0.0,
        "nfqlb_config_last_reload_timestamp_seconds": 1.695e9,
    }
    assert named(found, "nfqlb_problems") == {
        ("level=error",): 1.0,
        ("level=warning",): 0.0,
        ("level=info",): 0.0,
    }


@both
def test_what_was_dropped_and_told_is_there_from_the_beginning(wanted: Format) -> None:
    """A rate needs the 0 before the first drop."""
    found = samples(snapshot(), wanted)
    drops = named(found, "nfqlb_dropped_packets_total")
    assert drops[("reason=no-connection",)] == 21.0
    assert drops[("reason=internal-error",)] == 0.0
    replies = named(found, "nfqlb_client_replies_total")
    assert replies[("kind=reset",)] == 22.0
    assert replies[("kind=not-sent",)] == 0.0
    assert named(found, "nfqlb_offload_missed_total") == {("what=lost",): 20.0}


@both
def test_queues(wanted: Format) -> None:
    """Both drop counters, and what the worker did."""
    found, labels = samples(snapshot(), wanted), ("queue=0", "role=new")
    assert named(found, "nfqlb_queue_dropped_packets_total") == {
        ("cause=queue-full", *labels): 12.0,
        ("cause=socket-full", *labels): 13.0,
    }
    for name, value in (
        ("waiting_packets", 11.0),
        ("overruns_total", 14.0),
        ("refused_verdicts_total", 15.0),
        ("unreadable_packets_total", 16.0),
        ("packets_total", 1700.0),
        ("busy_seconds_total", 1.8),
    ):
        assert named(found, f"nfqlb_queue_{name}") == {labels: value}


@both
def test_a_virtual_server(wanted: Format) -> None:
    found = samples(snapshot(), wanted)
    shop = ("virtual=shop",)
    assert named(found, "nfqlb_virtual_connections_active") == {shop: 6.0}
    assert named(found, "nfqlb_virtual_connections_total") == {shop: 80.0}
    assert named(found, "nfqlb_virtual_packets_total") == {
        ("direction=in", *shop): 10.0,
        ("direction=out", *shop): 20.0,
    }
    assert named(found, "nfqlb_virtual_bytes_total") == {
        ("direction=in", *shop): 1000.0,
        ("direction=out", *shop): 20000.0,
    }
    assert named(found, "nfqlb_virtual_dropped_packets_total") == {("reason=no-server", *shop): 4.0}
    assert named(found, "nfqlb_virtual_half_open_connections") == {shop: 2.0}
    assert named(found, "nfqlb_virtual_evicted_half_open_connections_total") == {shop: 24.0}
    shadow = ("scheduler=least-connections", *shop)
    assert named(found, "nfqlb_virtual_shadow_decisions_total") == {shadow: 50.0}
    assert named(found, "nfqlb_virtual_shadow_differing_decisions_total") == {shadow: 9.0}
    (info,) = named(found, "nfqlb_virtual_info")
    assert info == (
        "acting=round-robin", "address=192.0.2.10", "port=80", "protocol=tcp", "scheduler=fastest-response",
        "virtual=shop",
    )  # fmt: skip
    states = named(found, "nfqlb_virtual_state")
    assert [state for state, value in states.items() if value] == [("state=in-service", *shop)]
    assert len(states) == 4


@both
def test_a_real_server(wanted: Format) -> None:
    found, web1 = samples(snapshot(), wanted), ("real=web1",)
    for name, value in (
        ("state_age_seconds", 12.5),
        ("weight", 2.5),
        ("connections_active", 3.0),
        ("connections_limit", 100.0),
        ("connections_total", 40.0),
        ("unanswered_connections", 1.0),
        ("last_response_seconds", 0.0042),
        ("predicted_response_seconds", 0.011),
    ):
        assert named(found, f"nfqlb_real_{name}")[web1] == value
    ditched = named(found, "nfqlb_real_ditched_connections_total")
    assert (ditched["cause=no-answer", *web1], ditched["cause=reset", *web1]) == (2.0, 5.0)
    info = named(found, "nfqlb_real_neighbour_info")
    assert list(info) == [("mac=02:00:00:00:00:01", *web1, "state=reachable")]
    states = named(found, "nfqlb_real_state")
    assert {state for _, state in states} == {f"state={state.shown}" for state in ServerState}
    assert states[*web1, "state=in-service"] == 1.0
    assert states[*web1, "state=failed"] == 0.0


@both
def test_response_times_are_a_histogram(wanted: Format) -> None:
    """Each class with all shorter ones, as Prometheus adds them up."""
    found = samples(snapshot(), wanted)
    buckets = {
        labels[0].removeprefix("le="): value
        for labels, value in named(found, "nfqlb_real_response_seconds_bucket").items()
        if labels[1] == "real=web1"
    }
    assert list(buckets) == list(CLASSES)
    assert [buckets[bound] for bound in ("0.0001", "0.00025", "0.0005", "10.0", "+Inf")] == [1, 1, 3, 3, 4]
    assert named(found, "nfqlb_real_response_seconds_count")["real=web1",] == 4.0
    assert named(found, "nfqlb_real_response_seconds_sum")["real=web1",] == 11.5


def test_the_states_of_servers_follow_the_snapshot() -> None:
    document = snapshot()
    document["reals"][1]["state"] = "failed"
    document["virtuals"][0]["state"] = "out-of-service"
    document["state"] = "degraded"
    found = samples(document)
    assert named(found, "nfqlb_real_state")["real=web2", "state=failed"] == 1.0
    assert named(found, "nfqlb_real_state")["real=web2", "state=in-service"] == 0.0
    assert named(found, "nfqlb_virtual_state")["state=out-of-service", "virtual=shop"] == 1.0
    assert found["nfqlb_worker_up",] == 0.0


# --- what is not there -----------------------------------------------------------------------------------

#: Where nothing is known in a snapshot, and the metrics that are absent then.
UNKNOWN = (
    (("rules", "present"), "nfqlb_rules_present"),
    (("rules", "repaired_at"), "nfqlb_rules_last_repair_timestamp_seconds"),
    (("reload", "ok"), "nfqlb_config_last_reload_successful"),
    (("reload", "at"), "nfqlb_config_last_reload_timestamp_seconds"),
    (("queues", 0, "packets"), "nfqlb_queue_packets_total"),
    (("queues", 0, "busy_s"), "nfqlb_queue_busy_seconds_total"),
    (("virtuals", 0, "traffic"), "nfqlb_virtual_bytes_total"),
    (("virtuals", 0, "shadow"), "nfqlb_virtual_shadow_decisions_total"),
    (("virtuals", 0, "drops"), "nfqlb_virtual_dropped_packets_total"),
    (("virtuals", 0, "servers", 0, "fair_share"), "nfqlb_link_fair_share_ratio"),
    (("reals", 0, "response_s"), "nfqlb_real_last_response_seconds"),
    (("reals", 0, "predicted_s"), "nfqlb_real_predicted_response_seconds"),
    (("reals", 0, "neighbour"), "nfqlb_real_neighbour_info"),
    (("response",), "nfqlb_real_response_seconds_count"),
)


@pytest.mark.parametrize("gone", [False, True], ids=["null", "left out"])
@pytest.mark.parametrize(("path", "name"), UNKNOWN, ids=[name for _, name in UNKNOWN])
def test_what_is_not_known_has_no_sample(path: tuple[Any, ...], name: str, gone: bool) -> None:
    document = snapshot(reals=1)
    assert named(samples(document), name)
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    if gone:
        del place[path[-1]]
    else:
        place[path[-1]] = None
    assert not named(samples(document), name)


def test_a_server_without_a_limit_has_none() -> None:
    assert list(named(samples(snapshot()), "nfqlb_real_connections_limit")) == [("real=web1",)]


def test_a_server_that_was_never_measured_has_no_histogram() -> None:
    document = snapshot()
    document["response"]["web2"] = {"counts": {}, "sum_s": 0.0}
    counts = named(samples(document), "nfqlb_real_response_seconds_count")
    assert list(counts) == [("real=web1",)]


@both
def test_no_client_comes_out(wanted: Format) -> None:
    """Not even where the snapshot has one: there may be a million, and they are nobody's business."""
    document = snapshot()
    assert CLIENT in str(document)
    assert CLIENT not in exposed(document, wanted)


# --- places ----------------------------------------------------------------------------------------------


def test_a_server_that_stands_twice_on_a_port_is_one_place() -> None:
    """As a server of its own and as backups of others: two series of the same name would be refused."""
    servers = [link("web1"), link("web1"), link("web1", 9090), {**link("web2", None), "fair_share": None}]
    document = {**snapshot(), "virtuals": [virtual("shop", servers, port=None), virtual("api", servers)]}
    found = samples(document)
    assert named(found, "nfqlb_link_connections_active") == {
        ("port=8080", "real=web1", "virtual=shop"): 6.0,
        ("port=9090", "real=web1", "virtual=shop"): 3.0,
        ("port=", "real=web2", "virtual=shop"): 3.0,
        ("port=8080", "real=web1", "virtual=api"): 6.0,
        ("port=9090", "real=web1", "virtual=api"): 3.0,
        ("port=", "real=web2", "virtual=api"): 3.0,
    }
    assert len(named(found, "nfqlb_link_fair_share_ratio")) == 4


# --- pieces ----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("reals", [1, 19, 20, 21, 61])
def test_the_pieces_are_the_whole(wanted: Format, reals: int) -> None:
    """Each family with its HELP and TYPE once, and nothing lost between two pieces."""
    document = snapshot(reals=reals)
    assert exposed(document, wanted).encode() == wanted.write(SnapshotCollector(document))


@both
def test_no_piece_is_long(wanted: Format) -> None:
    """With a thousand servers: what is written in one go is bounded, whatever the clock says of it."""
    sizes = [piece.count(b"\n") for piece in pieces(snapshot(reals=1000), wanted)]
    assert max(sizes) <= 2 * (len(CLASSES) + 2) + 2
    assert sum(sizes) > 25_000


# --- what is said of them --------------------------------------------------------------------------------


def test_the_readme_has_every_metric_with_its_labels() -> None:
    """Each in one row of the table, and nothing there that does not exist."""
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    section = text.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    said: dict[str, set[str]] = {}
    for row in re.findall(r"^\| (`nfqlb_.*?) \| (.*?) \|", section, re.MULTILINE):
        names, labels = (re.findall(r"`(\w+)`", cell) for cell in row)
        said.update({name: set(labels) for name in names})
    assert said.keys() == {family.name for family in FAMILIES}
    for family in FAMILIES:
        assert set(family.labels) <= said[family.name], family.name
