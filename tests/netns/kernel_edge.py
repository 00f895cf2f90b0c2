"""The parts of datapath offload at work on a site: queue, tap, endings, rules; decided by a few lines here.

`Edge` does in a thread what a worker would do: it answers SYNs with marks and notes what it is told. So what
is seen is the doing of the rules and of the kernel.
"""

import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address

from nfqlb.config.marks import LinkMarks
from nfqlb.config.numbers import offload_queue, tap_group
from nfqlb.core.segment import Stamp
from nfqlb.core.spec import Config, Real, Server, Virtual
from nfqlb.netfilter import address, netlink, rules, sysctl
from nfqlb.netfilter.conntrack import Conntrack, Entry
from nfqlb.netfilter.endings import Endings
from nfqlb.netfilter.queue import MarkQueue
from nfqlb.netfilter.state import Record
from nfqlb.netfilter.tap import Tap
from tests.netns.site import CONFIG, SIX, VIP, Site, entered, wait_until

NEIGHBOUR = "10.0.9.11"
PREROUTING, FORWARD, OUTPUT = 0, 2, 3
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
MASK = CONFIG.gateway.mark_mask


def offloaded(config: Config = CONFIG, **changes: object) -> Config:
    """A configuration with datapath offload in all of its virtual servers, and with `changes` to them."""
    gateway = replace(config.gateway, datapath="offload", max_connections=1000)
    changed = [replace(virtual, datapath="offload", **changes) for virtual in config.virtuals]  # type: ignore[arg-type]
    return replace(config, gateway=gateway, virtuals=tuple(changed))


OFFLOAD = offloaded()
OFFLOAD6 = offloaded(SIX)
TIMED = offloaded(scheduler="fastest-response")
TWO = replace(
    OFFLOAD,
    reals=(*OFFLOAD.reals, Real("web2", ip_address(NEIGHBOUR))),
    virtuals=(replace(OFFLOAD.virtuals[0], servers=(Server("web1", 8080), Server("web2", 8080))),),
)
DNS = Virtual("dns", ip_address(VIP), (Server("web1", 5353),), protocol="udp", port=53, datapath="offload")
UDP = replace(OFFLOAD, virtuals=(DNS,))


@dataclass(frozen=True, slots=True)
class Copy:
    """What the tap saw of one packet: where, the addresses' and ports' bytes, TCP flags, bytes of data."""

    hook: int
    key: bytes
    flags: int
    data: int
    stamp: float


def copy_of(packet: bytes, hook: int, stamp: float) -> Copy:
    """A TCP packet without IP options as a `Copy`; of another one, only its protocol as `flags` below 0."""
    version, header = packet[0] >> 4, 40 if packet[0] >> 4 == 6 else 20
    protocol = packet[6] if version == 6 else packet[9]
    total = int.from_bytes(packet[4:6], "big") + 40 if version == 6 else int.from_bytes(packet[2:4], "big")
    addresses = packet[8:40] if version == 6 else packet[12:20]
    if protocol != socket.IPPROTO_TCP:
        return Copy(hook, addresses, -protocol, 0, stamp)
    tcp = packet[header:]
    return Copy(hook, addresses + tcp[:4], tcp[13], total - header - (tcp[12] >> 4) * 4, stamp)


def key(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """A direction's addresses and ports, as in a packet."""
    addresses = ip_address(source[0]).packed + ip_address(destination[0]).packed
    return addresses + source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")


class Edge:
    """One gateway's queue, tap and endings. `choose` returns a mark for what opens a connection."""

    def __init__(self, site: Site, config: Config) -> None:
        self.config = config
        self._namespace = site.gateway
        self.marks = LinkMarks(config)
        first = config.virtuals[0]
        self.choose: Callable[[bytes], int] = lambda _key: self.mark(first.name)
        self.opened: list[bytes] = []
        self.copies: list[Copy] = []
        self.ended: list[tuple[bytes, int]] = []
        self.losses: list[int] = []
        number = offload_queue(config)
        self.queue = MarkQueue(number, length=1024, receive_buffer=1 << 20, mask=self.marks.number_mask)
        self.queue.judge = self._judge
        self.tap = Tap(tap_group(config), self._tapped, self.losses.append)
        self.endings = Endings(lambda key, protocol: self.ended.append((key, protocol)), self.losses.append)
        self.conntrack = Conntrack()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def mark(self, virtual: str, place: int = 0) -> int:
        """The mark of a virtual server's n-th server."""
        (found,) = (one for one in self.config.virtuals if one.name == virtual)
        return self.marks.of(found, found.servers[place])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        for part in (self.queue, self.tap, self.endings, self.conntrack):
            part.close()

    def entries(self) -> list[Entry]:
        with entered(self._namespace):
            return list(self.conntrack.entries(self.config.gateway.mark_mask))

    def listen(self, on: bool) -> None:
        """Whether anybody listens to endings."""
        self.endings._socket.setsockopt(netlink.SOL_NETLINK, 1 if on else 2, 3)  # NFNLGRP_CONNTRACK_DESTROY

    def kinds(self) -> Counter[tuple[int, int]]:
        """How many copies there were, by hook and by the flags that open or end; 0 for data."""
        return Counter((copy.hook, copy.flags & (FIN | SYN | RST)) for copy in self.copies)

    def _judge(self, buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int) -> int:
        packet = bytes(buffer[start:end])
        size, ports = (16, 40) if packet[0] >> 4 == 6 else (4, 20)
        first = 8 if size == 16 else 12
        found = packet[first : first + 2 * size] + packet[ports : ports + 4]
        self.opened.append(found)
        return self.choose(found)

    def _tapped(self, buffer: bytearray, start: int, end: int, hook: int, stamp: Stamp) -> None:
        seconds, micros = stamp or (0, 0)
        self.copies.append(copy_of(bytes(buffer[start:end]), hook, seconds + micros / 1e6))

    def _serve(self) -> None:
        poll = select.poll()
        runs = {part.fileno(): part.run for part in (self.queue, self.tap, self.endings)}
        for descriptor in runs:
            poll.register(descriptor, select.POLLIN)
        while not self._stop.is_set():
            for descriptor, _ in poll.poll(50):
                runs[descriptor](100)


@contextmanager
def offloading(site: Site, config: Config = OFFLOAD) -> Iterator[Edge]:
    """What `nfqlb run` will do: queue and tap, settings, rules, address; and back again."""
    record = Record(site.directory)
    with entered(site.gateway):
        edge = Edge(site, config)
    edge.start()
    try:
        with entered(site.gateway):
            sysctl.switch(sysctl.forwarding(config) | sysctl.tracking(config), record)
            rules.apply(config)
            address.bring_up(config)
        yield edge
        assert edge.queue.failed == edge.queue.refused == edge.tap.unreadable == edge.tap.failed == 0
    finally:
        with entered(site.gateway):
            rules.remove(site.directory)
        edge.close()


def settle(edge: Edge, count: int) -> None:
    """Wait until the tap has told so many packets; it collects them for a hundredth of a second."""
    wait_until(lambda: len(edge.copies) >= count)
