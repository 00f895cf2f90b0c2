"""Who clients are, and what they send, is in no metric; nothing in a packet reaches log or terminal raw."""

import random
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from nfqlb.demo.appliance import balancing, nfqlb_command, socket_path, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.demo.web import serve
from nfqlb.operator.words import WORDS
from tests.netns.asking import ask, holding, wait_until
from tests.netns.both import Bench, Datapath, configuration
from tests.netns.site import craft, entered
from tests.netns.test_metrics import METRICS, curl, wait_for
from tests.netns.test_operator import replace_worker

NASTY = b"\x1b[2J\x1b]0;owned\x07\r\nMARKER\n<0>\xe2\x80\xae\x9b31m"
OPENMETRICS = ("-H", "Accept: application/openmetrics-text")


@pytest.fixture(scope="module")
def lab(datapath: Datapath) -> Iterator[Lab]:
    with Bench(datapath, clients=3, servers=2) as lab:
        for server in lab.servers:
            serve(lab, server)
        yield lab


def send_what_no_client_should(lab: Lab) -> None:
    """Payload, odd flags, quotes in errors, broken lengths and mere noise to the virtual address."""
    client, server = lab.clients[0].address, lab.servers[0].address
    source = random.Random(8)
    quoted = craft(IP(src=VIP, dst=client), TCP(sport=80, dport=4444), Raw(NASTY))
    packets = [
        craft(IP(src=client, dst=VIP), TCP(sport=4444, dport=80, flags=flags), Raw(NASTY))
        for flags in (0x00, 0x02, 0x03, 0x10, 0x14, 0x18, 0x3F)
    ]
    packets += [
        craft(IP(src=client, dst=VIP), UDP(sport=4444, dport=80), Raw(NASTY)),
        craft(IP(src=client, dst=VIP), ICMP(type=3, code=1), Raw(quoted)),
        craft(IP(src=client, dst=VIP), ICMP(type=3, code=4), Raw(NASTY)),
        craft(IP(src=client, dst=server), TCP(sport=4444, dport=80, flags=0x10), Raw(NASTY)),
    ]
    packets += [packet[:20] + source.randbytes(20) + NASTY for packet in packets]
    with entered(lab.clients[0].namespace):
        out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with out:
        for packet in packets:
            out.sendto(packet, (VIP, 0))


def test_nothing_of_clients_is_told(lab: Lab) -> None:
    """F32: not in metrics of either format, nor after a worker's death; and the log is plain lines."""
    web = virtual("web", ("web1", "web2"), sticky="10m", scheduler="round-robin")
    with balancing(lab, configuration(lab, web, gateway=METRICS)) as appliance:
        for host in lab.clients:
            ask(host)
            host.run("curl", "-s", "-A", "\x1b[2J", "--max-time", "2", f"http://{VIP}/MARKER", check=False)
        with holding(lab.client, 3):
            send_what_no_client_should(lab)
            scraped = curl(lab) + curl(lab, *OPENMETRICS)
            replace_worker(appliance)
            wait_for(lab, "nfqlb_worker_restarts_total", 1)
            wait_until(lambda: "nfqlb_worker_up 1.0" in curl(lab), "another worker's metrics")
            scraped += curl(lab) + curl(lab, *OPENMETRICS)
            for subject in WORDS["show"]:
                words = ("show", subject, "--socket", str(socket_path(lab)))
                shown = nfqlb_command(lab, *words)
                assert shown.returncode == 0, shown.stderr
                assert all(line.isprintable() for line in shown.stdout.split("\n"))
                assert "MARKER" not in shown.stdout
        assert "nfqlb_virtual_connections_total" in scraped
        for host in lab.clients:
            number = socket.inet_aton(host.address)
            for form in (host.address, number.hex(), str(int.from_bytes(number, "big")), "MARKER"):
                assert form not in scraped
        log = appliance.program.stderr
        assert all(line.isprintable() for line in log.split("\n"))
        assert "MARKER" not in log
