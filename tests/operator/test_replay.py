"""`nfqlb replay`: what it prints, and what it says of files that are no captures."""

import json
from pathlib import Path

import pytest

from nfqlb.operator import cli
from nfqlb.packet import pcapng
from tests.replay.test_replay import config
from tests.replay.town import Town, other

TEXT = """
[gateway]
outside = "eth0"
inside = "eth1"

[[real]]
name = "a"
address = "10.0.0.1"

[[real]]
name = "b"
address = "10.0.0.2"

[[virtual]]
name = "web"
address = "203.0.113.1"
port = 80
servers = ["a", "b"]
scheduler = "source-hash"
shadow = "rr"
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A capture of five connections that took turns over three servers, and other settings."""
    town = Town(other(config(), shadow=""))
    for port in range(1, 6):
        town.close(town.fetch("192.0.2.7", port))
    capture, settings = tmp_path / "web.pcapng", tmp_path / "other.toml"
    capture.write_bytes(town.file())
    settings.write_text(TEXT)
    return capture, settings


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Exit status and what was printed."""
    status = cli.main(["replay", *map(str, argv)])
    out, err = capsys.readouterr()
    return status, out, err


def test_side_by_side(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    capture, settings = files
    status, out, err = run(capsys, capture, "-c", settings)
    assert (status, err) == (0, "")
    first, blank, *lines = out.splitlines()
    assert first.startswith(f"{capture}: ")
    assert first.endswith("seen on both sides of the gateway")
    assert blank == ""
    assert lines[0].startswith("web, 203.0.113.1:80/tcp, source-hash: 5 decisions, ")
    assert lines[1].startswith("  shadow round-robin: another server in ")
    assert lines[2].split() == ["SERVER", "CAPTURED", "SHARE", "MOST", "REPLAYED", "SHARE", "MOST", "RESP"]
    assert [line.split()[:3] for line in lines[3:6]] == [
        ["a:80", "2", "40%"], ["b:80", "2", "40%"], ["10.0.0.3:80", "1", "20%"]
    ]  # fmt: skip
    assert sorted(line.split()[4] for line in lines[3:6]) == ["0", "0", "5"]  # one client, one server
    titles = next(line for line in lines if line.startswith("WHEN"))
    assert titles.split() == ["WHEN", "VIRTUAL", "CLIENT", "CAPTURED", "REPLAYED", "BY"]
    assert (
        lines[-1] == "- what an operator did meanwhile, ICMP errors, and resets that the gateway itself sent"
    )


def test_every_decision(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    capture, settings = files
    _, out, _ = run(capsys, capture, "-c", settings, "--all")
    assert sum(" 192.0.2.7:" in line for line in out.splitlines()) == 5


def test_json_is_one_document(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    capture, settings = files
    _, out, _ = run(capsys, capture, "-c", settings, "--json")
    document = json.loads(out)
    assert document["file"] == str(capture)
    assert [each["captured"] for each in document["decisions"]] == [
        "a:80",
        "b:80",
        "10.0.0.3:80",
        "a:80",
        "b:80",
    ]


def test_a_capture_that_was_cut_short_is_read_so_far(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capture, settings = files
    data = capture.read_bytes()
    capture.write_bytes(data[:-5])
    status, out, _ = run(capsys, capture, "-c", settings)
    assert status == 0
    assert f"the file ends within a packet, at byte {len(data) - 5}: read so far" in out.splitlines()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the file is empty"),
        (b"#!/bin/sh\n", "neither pcap nor pcapng"),
        (pcapng.section("", "") + b"\6\0\0\0\7\0\0\0", "damaged at byte 28: a block of 7 bytes"),
    ],
)
def test_what_is_no_capture_is_refused_in_a_line(
    data: bytes, says: str, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capture, settings = files
    capture.write_bytes(data)
    assert run(capsys, capture, "-c", settings) == (1, "", f"nfqlb: {capture}: {says}\n")


def test_a_capture_of_nobody_s_packets_is_no_answer(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A script shall notice; the document is as any other."""
    capture, settings = files
    capture.write_bytes(pcapng.section("", ""))
    status, out, err = run(capsys, capture, "-c", settings)
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        f"nfqlb: {capture}: it has no packet for any of the virtual servers of {settings}:",
        "  web 203.0.113.1:80/tcp",
    ]
    status, out, _ = run(capsys, capture, "-c", settings, "--json")
    assert (status, json.loads(out)["packets"]) == (1, 0)


def test_a_capture_of_another_address_is_no_answer(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the servers are the same: clients have turned to another virtual address."""
    capture, settings = files
    settings.write_text(TEXT.replace("203.0.113.1", "203.0.113.9"))
    status, out, err = run(capsys, capture, "-c", settings)
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        f"nfqlb: {capture}: it has no packet for any of the virtual servers of {settings}:",
        "  web 203.0.113.9:80/tcp",
        "what is in it went to:",
        "  203.0.113.1:80, 5 connections",
    ]
    _, out, _ = run(capsys, capture, "-c", settings, "--json")
    assert json.loads(out)["decisions"] == []


def test_a_capture_that_began_later_than_the_gateway(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capture, settings = files
    town = Town(other(config(), shadow=""))
    old = town.fetch("192.0.2.7", 1)
    del town.blocks[:]
    town.request(old, 0.1)
    town.fetch("192.0.2.7", 2)
    capture.write_bytes(town.file())
    _, out, _ = run(capsys, capture, "-c", settings)
    assert out.splitlines()[1] == (
        "it did not begin with the gateway: 1 connection from before, whose clients sent 1 packet in it, "
        "left out as the opening is not in it"
    )


def test_a_file_that_is_not_there(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, settings = files
    assert run(capsys, "none.pcap", "-c", settings) == (
        1,
        "",
        "nfqlb: none.pcap: No such file or directory\n",
    )
    assert run(capsys, settings.parent, "-c", settings)[2] == f"nfqlb: {settings.parent}: Is a directory\n"
