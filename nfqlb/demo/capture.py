"""What passes an interface of the laboratory: recorded by tcpdump, read with dpkt."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import dpkt

from nfqlb.demo.lab import Host, Lab
from nfqlb.demo.programs import require


class Capture:
    """A recording; readable once its context has ended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def frames(self) -> Iterator[dpkt.ethernet.Ethernet]:
        """The recorded frames in order, decoded."""
        with self.path.open("rb") as file:
            for _, octets in dpkt.pcap.Reader(file):
                yield dpkt.ethernet.Ethernet(octets)

    def packets(self) -> list[dpkt.ip.IP]:
        """The recorded IPv4 packets in order."""
        return [frame.data for frame in self.frames() if isinstance(frame.data, dpkt.ip.IP)]

    def errors(self) -> list[tuple[dpkt.ip.IP, dpkt.ip.IP]]:
        """The ICMP errors: each as the packet that carries it and the packet that it quotes."""
        return [
            (packet, dpkt.ip.IP(bytes(packet.data.data.data)))
            for packet in self.packets()
            if packet.p == dpkt.ip.IP_PROTO_ICMP and packet.data.type in (3, 11, 12)
        ]

    def addresses(self) -> set[str]:
        """Every IPv4 address that can be read from it: of packets, of what ICMP errors quote, of ARP."""
        found: set[bytes] = set()
        for frame in self.frames():
            if isinstance(frame.data, dpkt.arp.ARP):
                found |= {frame.data.spa, frame.data.tpa}
            elif isinstance(frame.data, dpkt.ip.IP):
                found |= {frame.data.src, frame.data.dst}
        for _, quoted in self.errors():
            found |= {quoted.src, quoted.dst}
        return {str(IPv4Address(address)) for address in found}


@contextmanager
def capture(lab: Lab, host: Host, interface: str, filters: str = "") -> Iterator[Capture]:
    """Record what passes an interface of a host for the time of the context.

    `filters` is tcpdump's expression. Raises LabError where tcpdump is missing or does not start.
    """
    require("tcpdump")
    path = lab.directory / f"{host.name}-{interface}-{len(list(lab.directory.glob('*.pcap')))}.pcap"
    options = ("-i", interface, "-n", "-U", "--immediate-mode", "-B", "16384", "-s", "0", "-Z", "root")
    program = host.start("tcpdump", *options, "-w", str(path), *filters.split())
    program.wait_for(program.err, "listening on")
    try:
        yield Capture(path)
    finally:
        program.stop(signal.SIGINT)
