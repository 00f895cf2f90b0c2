"""The smallest program that gives the rules' queues a reader: translates, keeps a log, knows nothing else.

    translator.py FIRST_QUEUE PAIRS

PAIRS is a JSON list of [virtual address, virtual port, real address, real port]; ports of 0 are every port,
left as they are. Run inside the gateway's namespace. Prints "bound", then one line a packet as JSON: queue,
protocol, source, destination, ports, flags (TCP, as in the header) or ICMP type, length, before translation.
It knows nothing of connections: what comes for a virtual address and port goes to the real one, what comes
from there gets the virtual address back, everything else passes as it is.
"""

import json
import selectors
import sys
from functools import partial
from ipaddress import ip_address

import dpkt

from nfqlb.netfilter.queue import PacketQueue
from nfqlb.packet.path import ACCEPT, CHANGED

Place = tuple[bytes, int]


class Translator:
    """Translates between pairs of a virtual and a real place."""

    def __init__(self, pairs: list[tuple[Place, Place]]) -> None:
        self.inbound = dict(pairs)
        self.outbound = {real: virtual for virtual, real in pairs}

    def judge(
        self, queue: int, buffer: bytearray, start: int, end: int, hook: int, info: int, _stamp_at: int
    ) -> int:
        """Logs a packet, translates it if it is ours, and lets it pass."""
        payload = bytes(buffer[start:end])
        ip = dpkt.ip.IP(payload) if payload[0] >> 4 == 4 else dpkt.ip6.IP6(payload)
        entry: dict[str, object] = {
            "queue": queue,
            "protocol": ip.p,
            "source": str(ip_address(ip.src)),
            "destination": str(ip_address(ip.dst)),
            "length": len(payload),
            "fragment": isinstance(ip, dpkt.ip.IP) and bool(ip.mf or ip.offset),
        }
        verdict = ACCEPT
        if isinstance(ip.data, dpkt.tcp.TCP | dpkt.udp.UDP):
            entry["ports"] = [ip.data.sport, ip.data.dport]
            entry["flags"] = getattr(ip.data, "flags", 0)
            if self._translate(ip):
                ip.data.sum = ip.sum = 0
                buffer[start:end] = bytes(ip)
                verdict = CHANGED
        elif isinstance(ip.data, dpkt.icmp.ICMP | dpkt.icmp6.ICMP6):
            entry["type"] = ip.data.type
        print(json.dumps(entry), flush=True)
        return verdict

    def _translate(self, ip: dpkt.ip.IP) -> bool:
        if real := _looked_up(self.inbound, ip.dst, ip.data.dport):
            ip.dst, ip.data.dport = real
        elif virtual := _looked_up(self.outbound, ip.src, ip.data.sport):
            ip.src, ip.data.sport = virtual
        else:
            return False
        return True


def _looked_up(places: dict[Place, Place], address: bytes, port: int) -> Place | None:
    if found := places.get((address, port)):
        return found
    every = places.get((address, 0))
    return (every[0], port) if every else None


def main() -> None:
    """Reads both queues until it is killed."""
    first = int(sys.argv[1])
    translator = Translator(
        [
            ((ip_address(vip).packed, vport), (ip_address(real).packed, rport))
            for vip, vport, real, rport in json.loads(sys.argv[2])
        ]
    )
    selector = selectors.DefaultSelector()
    for number in (first, first + 1):
        queue = PacketQueue(number, length=1024, receive_buffer=1 << 22)
        queue.judge = partial(translator.judge, number)
        selector.register(queue.fileno(), selectors.EVENT_READ, queue)
    print("bound", flush=True)
    while True:
        for key, _ in selector.select():
            key.data.run(256)


if __name__ == "__main__":
    main()
