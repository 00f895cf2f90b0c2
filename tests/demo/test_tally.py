"""What visitors report is counted once and in its place."""

import json
from dataclasses import asdict
from pathlib import Path

from nfqlb.demo.tally import Reports, Tally
from nfqlb.demo.traffic import Event


def shop(client: str, server: str, begun: float = 0.0) -> Event:
    return Event("answer", "shop", client, 40000, server, 0.01, fresh=True, begun=begun)


def test_connections_count_once_requests_each_time() -> None:
    tally = Tally()
    tally.add(Event("answer", "www", "a", 1, "web1", 0.01, fresh=True))
    tally.add(Event("answer", "www", "a", 1, "web1", 0.03, fresh=False))
    assert (tally.answered, tally.total, tally.typical("web1")) == (2, 1, 0.02)
    assert tally.typical("web2") is None


def test_downloads_are_followed_to_their_end() -> None:
    tally = Tally()
    tally.add(Event("started", "www", "a", 1, "web1"))
    tally.add(Event("started", "www", "a", 2, "web2"))
    assert set(tally.under_way) == {("a", 1), ("a", 2)}
    tally.add(Event("arrived", "www", "a", 1, "web1"))
    tally.add(Event("broken", "www", "a", 2, "web2"))
    assert (tally.under_way, tally.arrived, tally.broken) == ({}, 1, 1)


def test_sticky_client_that_wanders_is_seen() -> None:
    """R132: a client that meets two servers has not stayed."""
    tally = Tally()
    for client, server in (("a", "web1"), ("b", "web2"), ("a", "web1"), ("b", "web3")):
        tally.add(shop(client, server))
    assert (tally.faithful, len(tally.homes)) == (1, 2)


def test_clients_that_move_at_a_kill_are_counted_apart() -> None:
    tally = Tally()
    for client in ("a", "b", "c"):
        tally.add(shop(client, "web1", begun=9.0))
    tally.worker_killed(10.0)
    tally.add(shop("c", "web2", begun=10.1))  # too near to know which worker placed it
    for client, server in (("a", "web1"), ("b", "web2"), ("b", "web2")):
        tally.add(shop(client, server, begun=11.0))
    assert tally.moved == {"b"}
    assert (tally.faithful, len(tally.homes)) == (2, 2)


def test_seconds_make_the_history() -> None:
    tally = Tally()
    for answers in (2, 0, 3):
        for _ in range(answers):
            tally.add(Event("answer", "www", "a", 1, "web1", 0.01))
        tally.second()
    assert tally.history("web1") == [2, 0, 3]
    assert tally.rate("web1") == 3


def test_reports_are_read_as_they_come(tmp_path: Path) -> None:
    """A line that is half written is read when it is whole."""
    path = tmp_path / "events"
    line = json.dumps(asdict(shop("a", "web1"))).encode() + b"\n"
    path.write_bytes(line + line[:9])
    reports = Reports(path)
    assert reports.read() == [shop("a", "web1")]
    with path.open("ab") as file:
        file.write(line[9:] + line)
    assert len(reports.read()) == 2
    assert reports.read() == []
