"""Sums that the network card would finish, and that it does not: thousands of packets each way, none is bad.

A veth leaves sums unfinished and segments uncut (CHECKSUM_PARTIAL, GSO), as a good card lets it. With that
switched off, every sum is whole on every link, and the kernel at the other end looks at each.
"""

import ctypes
import fcntl
import hashlib
import socket
import struct

import pytest

from nfqlb.demo.appliance import balancing, virtual
from nfqlb.demo.lab import VIP, VIP6, Host
from nfqlb.demo.web import document, home, serve
from tests.netns.both import Bench, Datapath, configuration
from tests.netns.site import entered

_SIOCETHTOOL = 0x8946
#: linux/ethtool.h: sums received and sent, scatter and gather, segments cut by TCP's own rules or any, GRO.
_SETTINGS = (0x15, 0x17, 0x1F, 0x24, 0x2C, 0x19)
_MEGABYTES = 15  # more than 10,000 segments of 1,448 bytes


def switch_off(host: Host) -> None:
    """Let none of a host's links do any of it by itself."""
    with entered(host.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for interface in host.interfaces:
            for setting in _SETTINGS:
                value = ctypes.create_string_buffer(struct.pack("=II", setting, 0), 8)
                fcntl.ioctl(
                    sock, _SIOCETHTOOL, struct.pack("@16sP16x", interface.encode(), ctypes.addressof(value))
                )


def bad_sums(host: Host) -> int:
    """How many packets a host has thrown away for their sums."""
    heads, counts = (
        line.split() for line in host.run("cat", "/proc/net/snmp").stdout.splitlines() if line[:4] == "Tcp:"
    )
    return int(dict(zip(heads[1:], counts[1:], strict=True))["InCsumErrors"])


def segments(host: Host) -> int:
    """How many packets a host's first link has received."""
    name = next(iter(host.interfaces))
    return int(host.run("cat", f"/sys/class/net/{name}/statistics/rx_packets").stdout)


@pytest.mark.parametrize("by_card", [True, False], ids=["unfinished", "finished"])
def test_no_sum_is_bad_in_ten_thousand(datapath: Datapath, by_card: bool) -> None:
    """F08, F05: downloads and uploads over IPv4 and IPv6, whoever finishes the sums and cuts the segments."""
    with Bench(datapath, servers=1, ipv6=True) as lab:
        hosts = (lab.client, lab.gateway, lab.servers[0])
        if not by_card:
            for host in hosts:
                switch_off(host)
        serve(lab, lab.servers[0])
        digest = document(lab, "film", _MEGABYTES)
        virtuals = [virtual("web", ["web1"]), virtual("web6", ["web1-6"], address=VIP6)]
        with balancing(lab, configuration(lab, *virtuals)):
            for vip in (VIP, f"[{VIP6}]"):
                url = f"http://{vip}/files/film"
                got = lab.client.run("sh", "-c", f"curl -gsS --max-time 60 '{url}' | sha256sum", timeout=90)
                assert got.stdout.split()[0] == digest
                source = str(lab.directory / "files" / "film")
                upload = f"http://{vip}/upload/film"
                lab.client.run("curl", "-gsS", "--max-time", "60", "-T", source, upload, timeout=90)
                copy = (home(lab, lab.servers[0]) / "upload" / "film").read_bytes()
                assert hashlib.sha256(copy).hexdigest() == digest
        assert [bad_sums(host) for host in hosts] == [0, 0, 0]
        print(f"{segments(lab.client)} packets to the client, {segments(lab.servers[0])} to the server")
        if not by_card:
            assert min(segments(lab.client), segments(lab.servers[0])) > 20_000
