"""`nfqlb capture` on the real kernel: what it writes, as other programs read it."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

from nfqlb.demo.appliance import (
    Appliance,
    balancing,
    command,
    nfqlb_command,
    python_path,
    socket_path,
    virtual,
)
from nfqlb.demo.capture import capture
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.programs import Program, require, run
from nfqlb.demo.web import serve
from tests.netns.asking import Answer, ask, holding, rows, wait_until
from tests.netns.both import Bench, Datapath, configuration, offloads

SERVERS = ("web1", "web2")


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    require("tcpdump", "tshark")
    with Bench(datapath, clients=1, servers=2) as lab:
        for server in lab.servers:
            serve(lab, server, ports=(80, 81))
        yield lab


@pytest.fixture
def appliance(lab: Lab) -> Iterator[Appliance]:
    shop = virtual("shop", SERVERS, scheduler="weighted-least-connections")
    config = configuration(lab, shop, virtual("other", SERVERS, port=81))
    with balancing(lab, config) as appliance:
        yield appliance


@contextmanager
def capturing(lab: Lab, file: Path, *words: str) -> Iterator[Program]:
    """`nfqlb capture shop` into a file, from when it has begun."""
    argv = command("capture", "shop", "-o", str(file), *words, "--socket", str(socket_path(lab)))
    program = lab.gateway.start(*argv, environment=python_path())
    program.wait_for(program.err, "capturing shop")
    try:
        yield program
    finally:
        program.stop(Signals.SIGINT)


def told(lab: Lab, *argv: str) -> list[str]:
    """The lines that a program prints."""
    return run(lab.gateway.namespace, argv).stdout.splitlines()


def events(appliance: Appliance) -> list[str]:
    """What was told of captures, oldest first."""
    return [str(each["text"]) for each in reversed(rows(appliance, "events")) if each["kind"] == "capture"]


def fields(lab: Lab, file: Path, *names: str, only: str = "tcp") -> list[list[str]]:
    """Fields of every packet, as tshark reads them."""
    words = [word for name in names for word in ("-e", name)]
    shape = ("-Y", only, "-T", "fields", "-E", "separator=|")
    lines = told(lab, "tshark", "-n", "-r", str(file), *shape, *words)
    return [line.split("|") for line in lines]


def test_packets_before_and_after(lab: Lab, appliance: Appliance, tmp_path: Path) -> None:
    """R187: tcpdump and tshark read every packet as it came and as it was sent, and why it went there."""
    file = tmp_path / "shop.pcapng"
    with capturing(lab, file) as program:
        answers = [ask(lab.client) for _ in range(2)]
        ask(lab.client, port=81)
        wait_until(lambda: _is_complete(lab, file, answers), "the requests in the file")
    assert program.status == 0, program.stderr
    assert re.search(r"nfqlb: \d+ packets of shop, [\d,]+ bytes: stopped\n", program.stderr)
    addresses = {each["name"]: each["address"] for each in rows(appliance, "reals")}
    lines = told(lab, "tcpdump", "-n", "-r", str(file))
    assert not [line for line in lines if f"{VIP}.81" in line]
    syns = fields(
        lab, file, "ip.dst", "tcp.srcport", "frame.interface_name", "frame.comment",
        only="tcp.flags.syn == 1 && tcp.flags.ack == 0",
    )  # fmt: skip
    for answer in answers:
        mine = [each for each in syns if each[1] == str(answer.client_port)]
        came, *sent = mine
        assert came[0] == VIP
        assert came[2] == "outside-received"
        assert f"to shop went to {answer.server}:80." in came[3]
        assert "weighted-least-connections compared 2 servers" in came[3]
        if offloads(lab):
            assert came[3].startswith(f"marked, {answer.server}:80, syn-sent")
            assert sent == []
        else:
            assert came[3].startswith(f"translated, {answer.server}:80, syn-sent")
            assert [each[:3] for each in sent] == [[addresses[answer.server], came[1], "inside-sent"]]
    assert events(appliance)[:1] == ["shop: a capture has begun"]
    assert "stopped" in events(appliance)[-1]
    assert int(told(lab, "capinfos", "-M", "-c", "-T", "-r", str(file))[-1].split("\t")[-1]) == len(lines)


def replayed(lab: Lab, file: Path, config: Path) -> dict[str, Any]:
    """What `nfqlb replay` makes of a file."""
    done = nfqlb_command(lab, "replay", str(file), "-c", str(config), "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_what_was_captured_is_decided_again(lab: Lab, appliance: Appliance, tmp_path: Path) -> None:
    """R104: with the same settings alike; with others, by the same traffic, otherwise."""
    file, config = tmp_path / "shop.pcapng", tmp_path / "other.toml"
    config.write_text(appliance.config.read_text().replace("weighted-least-connections", "source-hash"))
    with capturing(lab, file), capture(lab, lab.gateway, "any", "port 80") as dump:
        with holding(lab.client, 3) as held:
            answers = [answer for each in held.rounds() for answer in each]
            answers += [ask(lab.client) for _ in range(4)]
        wait_until(lambda: _is_complete(lab, file, answers), "the requests in the file")
    # what the kernel carries ends some milliseconds before the worker hears of it, which tcpdump cannot know
    for source in (file,) if offloads(lab) else (file, dump.path):
        document = replayed(lab, source, appliance.config)
        assert document["sides"] == "both"
        assert [each["replayed"] for each in document["decisions"]] == [
            f"{answer.server}:80" for answer in answers
        ]
        (shop, _) = document["virtuals"]
        assert (shop["same"], shop["different"], shop["unknown"]) == (7, 0, 0)
    (shop, _) = replayed(lab, file, config)["virtuals"]
    assert {each["replayed"] for each in shop["servers"]} == {0, 7}
    assert sum(each["captured"] for each in shop["servers"]) == 7


def test_it_ends_where_it_was_to_end(lab: Lab, appliance: Appliance, tmp_path: Path) -> None:
    """And there is one at a time."""
    file = tmp_path / "few.pcapng"
    with capturing(lab, file, "--packets", "2", "--snaplen", "40") as program:
        busy = nfqlb_command(lab, "capture", "other", "-o", "/dev/null", "--socket", str(socket_path(lab)))
        assert (busy.returncode, busy.stderr) == (1, "nfqlb: another capture is under way; one at a time\n")
        again = nfqlb_command(lab, "capture", "shop", "-o", str(file), "--socket", str(socket_path(lab)))
        assert "--force overwrites it" in again.stderr
        ask(lab.client)
        assert program.wait() == 0
    assert "nfqlb: 2 packets of shop" in program.stderr
    lengths = fields(lab, file, "frame.cap_len", only="frame")
    assert len(lengths) == (2 if offloads(lab) else 4)
    assert {int(length) for (length,) in lengths} == {40}
    assert events(appliance)[1] == (
        "shop: the capture has ended after 2 packets: it has as many packets as it was to have"
    )


def test_a_client_that_is_gone_ends_its_capture(lab: Lab, appliance: Appliance, tmp_path: Path) -> None:
    """Killed, it says nothing; traffic goes on, and the next capture can begin."""
    with capturing(lab, tmp_path / "lost.pcapng") as program:
        ask(lab.client)
        program.stop(Signals.SIGKILL)
    wait_until(lambda: len(events(appliance)) == 2, "the end of the capture")
    assert "its client is gone" in events(appliance)[1]
    ask(lab.client)
    with capturing(lab, tmp_path / "next.pcapng", "--packets", "1") as program:
        ask(lab.client)
        assert program.wait() == 0


def test_a_dead_worker_ends_it(lab: Lab, appliance: Appliance, tmp_path: Path) -> None:
    """What was captured until then can be read."""
    file = tmp_path / "dead.pcapng"
    with capturing(lab, file) as program:
        ask(lab.client)
        wait_until(lambda: len(fields(lab, file, "frame.number", only="frame")) > 1, "packets")
        appliance.kill_worker()
        assert program.wait() == 1
    assert re.match(r"nfqlb: (this capture is over|the worker is being restarted)", program.last_words)
    assert fields(lab, file, "frame.number", only="frame")
    wait_until(lambda: len(events(appliance)) == 2, "the end of the capture")


def _is_complete(lab: Lab, file: Path, answers: list[Answer]) -> bool:
    """Whether the ends of all connections are in the file."""
    ended = fields(lab, file, "tcp.srcport", "tcp.dstport", only="tcp.flags.fin == 1")
    return all(any(str(answer.client_port) in ports for ports in ended) for answer in answers)


def test_into_a_pipe(lab: Lab, appliance: Appliance) -> None:
    """tcpdump reads along; where it has seen enough, the capture ends as well."""
    argv = shlex.join(command("capture", "shop", "--socket", str(socket_path(lab))))
    program = lab.gateway.start("sh", "-c", f"{argv} | tcpdump -n -c 1 -r -", environment=python_path())
    program.wait_for(program.err, "capturing shop")
    for _ in range(3):
        ask(lab.client)
    wait_until(lambda: f" > {VIP}.80: Flags [S]" in program.stdout, "a packet")
    wait_until(lambda: ask(lab.client) is not None and len(events(appliance)) == 2, "the end of the capture")
    assert program.wait() == 0
    assert "Traceback" not in program.stderr
