"""The queue object on the real kernel: every packet gets its verdict, whatever happens to whoever reads.

One network namespace and its loopback, or a forwarding gateway where super-packets are wanted: the kernel
finishes those on their way out, not for itself. Datagrams carry no UDP checksum, so that changed ones pass.
"""

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from time import monotonic

import pytest
from pyroute2 import netns

from nfqlb.demo.lab import Lab
from nfqlb.netfilter.messages import MSG_VERDICT, Place
from nfqlb.netfilter.queue import COPY_RANGE, PacketQueue
from nfqlb.netfilter.queue_status import QueueStatus, read_queues
from nfqlb.packet.path import ACCEPT, CHANGED, DROP, PREROUTING
from nfqlb.packet.translate import CHECKSUM_NOT_READY, SUPER_PACKET, finish_transport_sum
from tests.netns.asking import wait_until

NUMBER = 3
PORT = 4000
_SO_NO_CHECK = 11
_SO_RCVBUFFORCE = 33
_TIMESTAMP = 4  # NFQA_TIMESTAMP
_SO_TIMESTAMP = 29
_HEADERS = 28  # IP and UDP
_serial = count(1)


@pytest.fixture
def space() -> Iterator[str]:
    """A namespace of its own, with this thread in it."""
    name = f"nq-{os.getpid()}-{next(_serial)}"
    netns.create(name)
    netns.pushns(name)
    try:
        run("ip", "link", "set", "lo", "up")
        yield name
    finally:
        netns.popns()
        netns.remove(name)


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=10, capture_output=True)


def divert(*match: str) -> None:
    """Send what arrives on the loopback to the queue."""
    run("iptables", "-w", "-t", "raw", "-A", "PREROUTING", "-i", "lo", *match,
        "-j", "NFQUEUE", "--queue-num", str(NUMBER))  # fmt: skip


@contextmanager
def bound(*, length: int = 4096, receive_buffer: int = 8 << 20) -> Iterator[PacketQueue]:
    """A queue, closed at the end."""
    queue = PacketQueue(NUMBER, length=length, receive_buffer=receive_buffer)
    try:
        yield queue
    finally:
        queue.close()


def status() -> QueueStatus:
    """What the kernel says of the queue."""
    return next(each for each in read_queues() if each.number == NUMBER)


class Line:
    """A sender and a receiver of datagrams, through the queue."""

    def __init__(self) -> None:
        self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        self.receiver.bind(("127.0.0.1", PORT))
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
        self.sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.sender.connect(("127.0.0.1", PORT))

    def send(self, *payloads: bytes) -> None:
        """Send, and wait until the kernel has put all of it somewhere."""
        before = sum(self._counts())
        for payload in payloads:
            self.sender.send(payload)
        wait_until(lambda: sum(self._counts()) == before + len(payloads), "the packets in the queue")

    def number(self, first: int, last: int) -> None:
        """Send datagrams that carry these numbers."""
        self.send(*(str(number).encode() for number in range(first, last)))

    @staticmethod
    def _counts() -> tuple[int, int]:
        now = status()
        return now.last_id, now.dropped_full

    def received(self) -> list[bytes]:
        """Whatever has arrived."""
        found = []
        with suppress(BlockingIOError):
            while True:
                found.append(self.receiver.recv(65_536, socket.MSG_DONTWAIT))
        return found

    def numbers(self) -> list[int]:
        """The numbers that have arrived."""
        return [int(payload) for payload in self.received()]

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()


@pytest.fixture
def line(space: str) -> Iterator[Line]:
    divert("-p", "udp", "--dport", str(PORT))
    line = Line()
    yield line
    line.close()


def accept(_buffer: bytearray, _start: int, _end: int, _hook: int, _info: int, _stamp_at: int) -> int:
    return ACCEPT


def same(_buffer: bytearray, _start: int, _end: int, _hook: int, _info: int, _stamp_at: int) -> int:
    return CHANGED


def datagram(size: int) -> bytes:
    """The payload of a datagram whose packet has `size` bytes."""
    return (b"%d " % size * (size // 2))[: size - _HEADERS]


def in_child(work: Callable[[], None]) -> int:
    """Do something in a forked process; its exit status, negative if a signal ended it."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


SIZES = [29, 30, 31, 32, 33, 576, 1500, 1501, 4016, 4017, 4096, 9000, 16_384, 40_001, 65_530, COPY_RANGE]


@pytest.mark.parametrize("judge", [accept, same])
@pytest.mark.parametrize("extras", ["", "mark", "stamp", "mark stamp", "stamp priority mark"])
def test_sizes(line: Line, judge: Callable[..., int], extras: str) -> None:
    """F07, R106, R168, R178: any size up to 65,531 bytes passes whole, whatever else the message carries."""
    stamping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    seen = []
    shapes = set()

    def look(buffer: bytearray, start: int, end: int, hook: int, info: int, stamp_at: int) -> int:
        seen.append((end - start, int.from_bytes(buffer[start + 2 : start + 4], "big"), hook, info))
        shapes.add(tuple(kinds(buffer, start)))
        return judge(buffer, start, end, hook, info, stamp_at)

    with bound() as queue, stamping:
        queue.judge = look
        small = [datagram(100)]
        line.send(*small)  # the usual message first, so that the others differ from it
        if "stamp" in extras:
            stamping.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMP, 1)

            def stamped() -> bool:  # the kernel begins a moment after the first who asks
                small.append(datagram(100))
                line.send(small[-1])
                queue.run(64)
                return any(_TIMESTAMP in shape for shape in shapes)

            wait_until(stamped, "time stamps")
        if "mark" in extras:
            line.sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x00AA0001)
        if "priority" in extras:
            line.sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 5)
        line.send(*(datagram(size) for size in SIZES))
        while queue.run(64):
            pass
        assert line.received() == [*small, *(datagram(size) for size in SIZES)]
        assert [size for size, total, hook, _ in seen if size == total and hook == PREROUTING] == [
            size for size, *_ in seen
        ]
        assert (status().depth, queue.failed, queue.refused, queue.unreadable) == (0, 0, 0, 0)
        # somebody else's stamps may be in the first message already: they are for the whole machine
        assert len(queue._layouts) == len(shapes)
        assert len(shapes) > 1 or extras in ("", "stamp"), "the messages were not of different layouts"


def kinds(buffer: bytearray, start: int) -> Iterator[int]:
    """The kinds of the attributes before the packet that begins at `start`."""
    at = 20
    while at < start - 4:
        size, kind = struct.unpack_from("=HH", buffer, at)
        yield kind
        at += (size + 3) & ~3


def test_longer_packet_is_handed_over_cut(line: Line) -> None:
    """R114: beyond 65,531 bytes the kernel cuts; the packet's own length tells, and it can be dropped."""
    seen = []

    def look(buffer: bytearray, start: int, end: int, _hook: int, _info: int, _stamp_at: int) -> int:
        seen.append((end - start, int.from_bytes(buffer[start + 2 : start + 4], "big")))
        return DROP

    with bound() as queue:
        queue.judge = look
        line.send(datagram(COPY_RANGE + 1), datagram(65_535))
        queue.run(64)
        assert seen == [(COPY_RANGE, COPY_RANGE + 1), (COPY_RANGE, 65_535)]
        assert (line.received(), status().depth) == ([], 0)


RECEIVE = """
import hashlib, socket
listener = socket.create_server(("", 4000))
print("listening", flush=True)
connection = listener.accept()[0]
digest = hashlib.sha256()
while data := connection.recv(1 << 16):
    digest.update(data)
connection.sendall(digest.hexdigest().encode())
"""
SEND = """
import hashlib, os, socket, sys
connection = socket.create_connection((sys.argv[1], 4000), timeout=20)
data = os.urandom(16 << 20)
connection.sendall(data)
connection.shutdown(socket.SHUT_WR)
print(connection.recv(100).decode() == hashlib.sha256(data).hexdigest())
"""


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_super_packets(mtu: int) -> None:
    """R167, R178: a stream forwarded in packets of up to 64 KB, each answered as changed, arrives intact."""
    kinds = set()
    longest = 0

    def finish(buffer: bytearray, start: int, end: int, _hook: int, info: int, _stamp_at: int) -> int:
        nonlocal longest
        if end - start != int.from_bytes(buffer[start + 2 : start + 4], "big"):
            return DROP
        kinds.add(info & SUPER_PACKET)
        longest = max(longest, end - start)
        if info & CHECKSUM_NOT_READY and not info & SUPER_PACKET:
            finish_transport_sum(buffer, end, start + 20, 0)
        return CHANGED

    with Lab(clients=1, servers=1, mtu_outside=mtu, mtu_inside=mtu, prefix="nq") as lab:
        lab.gateway.sysctl("net.ipv4.ip_forward", "1")
        rule = f"iptables -w -t mangle -A FORWARD -p tcp -j NFQUEUE --queue-num {NUMBER}"
        lab.gateway.run(*rule.split())
        server = lab.servers[0]
        receiver = server.start(sys.executable, "-c", RECEIVE)
        receiver.wait_for(receiver.out, "listening", timeout=10.0)
        netns.pushns(lab.gateway.namespace)
        try:
            with bound() as queue:
                queue.judge = finish
                sender = lab.client.start(sys.executable, "-c", SEND, server.address)
                poll = select.poll()
                poll.register(queue.fileno(), select.POLLIN)
                while sender.running:
                    poll.poll(20)
                    queue.run(256)
                assert (sender.stdout, sender.stderr) == ("True\n", "")
                assert (queue.refused, queue.failed, queue.unreadable) == (0, 0, 0)
        finally:
            netns.popns()
    assert kinds == {0, SUPER_PACKET}
    assert longest > 3 * mtu


def test_mixed_verdicts_in_one_batch(line: Line) -> None:
    """R106, R168: dropped, accepted and changed ones, long and short, answered by one system call."""

    def judge(buffer: bytearray, start: int, end: int, _hook: int, _info: int, _stamp_at: int) -> int:
        number = int(buffer[start + _HEADERS : end].split(b" ")[0])
        if number % 3 == CHANGED:
            buffer[end - 1 : end] = b"!"
        return number % 3

    with bound() as queue:
        queue.judge = judge
        payloads = [b"%d " % number + b"." * (number * 37 % 900) for number in range(200)]
        line.send(*payloads)
        while queue.run(64):
            pass
        wanted = [
            payload[:-1] + b"!" if number % 3 == CHANGED else payload
            for number, payload in enumerate(payloads)
            if number % 3 != DROP
        ]
        assert line.received() == wanted
        assert (status().depth, queue.refused, queue.packets) == (0, 0, 200)


def test_judgement_that_raises(line: Line) -> None:
    """R106: the packet is dropped and counted; those before and after it get their own verdicts."""
    told: list[Exception] = []

    def judge(buffer: bytearray, start: int, end: int, _hook: int, _info: int, _stamp_at: int) -> int:
        if int(buffer[start + _HEADERS : end]) % 5 == 0:
            raise LookupError("no verdict")
        return ACCEPT

    with bound() as queue:
        queue.judge = judge
        queue.on_error = told.append
        line.number(0, 100)
        while queue.run(64):
            pass
        assert line.numbers() == [number for number in range(100) if number % 5]
        assert (queue.failed, len(told), status().depth) == (20, 20, 0)


def test_what_ends_the_program_ends_it_after_the_answers(line: Line) -> None:
    """R106: Ctrl-C between two packets: those judged before are answered."""

    def judge(buffer: bytearray, start: int, end: int, _hook: int, _info: int, _stamp_at: int) -> int:
        if int(buffer[start + _HEADERS : end]) == 5:
            raise KeyboardInterrupt
        return ACCEPT

    with bound() as queue:
        queue.judge = judge
        line.number(0, 10)
        with pytest.raises(KeyboardInterrupt):
            queue.run(64)
        assert line.numbers() == [0, 1, 2, 3, 4]
        queue.free_abandoned()
        queue.judge = accept
        queue.run(64)
        assert (line.numbers(), status().depth) == ([6, 7, 8, 9], 0)


def test_lost_messages_are_counted(line: Line) -> None:
    """R106: a socket that is full costs packets; both the kernel and the queue say so, and it goes on."""
    with bound(receive_buffer=16_384) as queue:
        queue.judge = accept
        for number in range(100):
            line.sender.send(b"%d " % number + bytes(1000))
        wait_until(lambda: status().last_id == 100, "the packets")
        assert status().dropped_socket > 0
        delivered = queue.run(1000)
        assert queue.overruns >= 1
        assert delivered == 100 - status().dropped_socket == len(line.received())
        assert status().depth == 0
        line.number(0, 3)
        queue.run(1000)
        assert line.numbers() == [0, 1, 2]


def test_budget(line: Line) -> None:
    """R116: a round ends after its budget, at most a batch later, however much waits."""
    with bound() as queue:
        queue.judge = accept
        line.number(0, 200)
        first = queue.run(40)
        assert 40 <= first < 40 + 16
        assert status().depth == 200 - first
        assert len(line.received()) == first
        assert queue.run(1000) == 200 - first
        assert queue.run(1000) == 0


def test_work_is_counted(line: Line) -> None:
    """Packets, and the seconds that they took: the judgement's own, and no time spent waiting."""
    with bound() as queue:
        queue.judge = accept
        line.number(0, 100)
        assert (queue.packets, queue.busy_s) == (0, 0.0)
        begin = monotonic()
        while queue.packets < 100:
            queue.run(30)
        assert 0 < queue.busy_s <= monotonic() - begin
        assert len(line.received()) == 100


def test_full_queue(line: Line) -> None:
    """R106: what does not fit is dropped by the kernel, which counts it."""
    with bound(length=10) as queue:
        queue.judge = accept
        line.number(0, 25)
        assert (status().depth, status().dropped_full) == (10, 15)
        queue.run(100)
        assert line.numbers() == list(range(10))


def test_second_reader_is_refused(space: str) -> None:
    """R105: a queue number has one owner; the other learns of it as an OSError, and harms nobody."""
    with bound() as queue:
        before = status()
        with pytest.raises(OSError, match="3"):
            PacketQueue(NUMBER, length=16, receive_buffer=1 << 16)
        assert status() == before
        queue.judge = accept
        assert queue.run(10) == 0
    with bound():
        pass


def test_no_program_inherits_the_queue(space: str) -> None:
    """R106: a child program that held a descriptor would keep the queue alive, unanswered, after our end."""
    with bound() as queue:
        ours = os.fstat(queue.fileno()).st_ino
        descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
        held = []
        for descriptor in descriptors:
            with suppress(OSError):
                if os.fstat(descriptor).st_ino == ours:
                    held.append(fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
        assert held == [fcntl.FD_CLOEXEC] * 2
        shown = subprocess.run(
            [sys.executable, "-c", "import os\nfor n in os.listdir('/proc/self/fd'):\n"
             " try: print(os.stat('/proc/self/fd/' + n).st_ino)\n except OSError: pass"],
            close_fds=False, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
        assert shown.stdout
        assert str(ours) not in shown.stdout.split()


def test_close_under_load(line: Line) -> None:
    """R106: closing with packets waiting drops them and frees the number at once."""
    queue = PacketQueue(NUMBER, length=4096, receive_buffer=8 << 20)
    queue.judge = accept
    line.number(0, 500)
    queue.run(20)
    queue.close()
    assert read_queues() == []
    line.received()
    with bound() as again:
        again.judge = accept
        line.number(0, 5)
        again.run(10)
        assert line.numbers() == [0, 1, 2, 3, 4]


def test_message_of_unknown_shape_is_dropped(line: Line) -> None:
    """R106: what we do not understand but NetfilterQueue does gets a verdict too: a drop, counted."""

    class Blind(PacketQueue):
        def find(self, buffer: bytearray, got: int) -> Place | None:
            return super().find(buffer, got) if self.unreadable == 2 else None

    queue = Blind(NUMBER, length=100, receive_buffer=1 << 20)
    try:
        queue.judge = accept
        line.number(0, 5)
        queue.run(100)
        assert line.numbers() == [2, 3, 4]
        assert (queue.unreadable, queue.packets, status().depth) == (2, 3, 0)
    finally:
        queue.close()


# --- a worker dies, another takes over


def killed_at(queue: PacketQueue, number: int) -> None:
    """A worker that is killed while it judges this packet: those of its batch are read and not answered."""

    def judge(buffer: bytearray, start: int, end: int, _hook: int, _info: int, _stamp_at: int) -> int:
        if int(buffer[start + _HEADERS : end]) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return ACCEPT

    def work() -> None:
        queue.judge = judge
        queue.run(1000)

    assert in_child(work) == -signal.SIGKILL


def successor(queue: PacketQueue) -> int:
    """The worker after it, a process of its own, too; the last id it freed."""
    found, told = os.pipe()

    def work() -> None:
        os.write(told, str(queue.free_abandoned()).encode())
        queue.judge = accept
        while queue.run(100):
            pass

    try:
        assert in_child(work) == 0
        return int(os.read(found, 100))
    finally:
        os.close(found)
        os.close(told)


def test_packets_read_by_a_dead_worker_are_freed(line: Line) -> None:
    """R106: exactly what the dead one had read is dropped; what it had answered or not read passes."""
    with bound() as queue:
        line.number(0, 60)
        killed_at(queue, 37)  # two batches of 16 are answered, six packets of the third are read
        assert line.numbers() == list(range(32))
        assert status().depth == 28
        line.number(60, 80)
        assert successor(queue) == 38
        assert line.numbers() == list(range(38, 80))
        assert status().depth == 0


def test_dead_worker_had_read_everything(line: Line) -> None:
    """R106: nothing waits in the socket: all that is queued is freed, and nothing that comes later."""
    with bound() as queue:
        line.number(0, 4)
        killed_at(queue, 3)
        assert status().depth == 4
        assert successor(queue) == 4
        assert status().depth == 0
        line.number(4, 9)
        assert successor(queue) == 4
        assert line.numbers() == list(range(4, 9))
        assert status().depth == 0


def test_nothing_was_abandoned(line: Line) -> None:
    """R106: a worker that died between two rounds leaves only packets for its successor."""
    with bound() as queue:
        assert queue.free_abandoned() == 0
        line.number(0, 10)
        successor(queue)
        assert line.numbers() == list(range(10))


def test_messages_were_lost_while_nobody_read(line: Line) -> None:
    """R106: the socket overflows before the successor is there; what stands in it is still served."""
    with bound(receive_buffer=32_768) as queue:
        line.number(0, 4)
        killed_at(queue, 3)
        for number in range(4, 300):
            line.sender.send(str(number).encode())
        wait_until(lambda: status().last_id == 300, "the packets")
        lost = status().dropped_socket
        assert lost > 0
        assert successor(queue) == 4
        assert len(line.numbers()) == 296 - lost
        assert status().depth == 0


def test_report_of_an_error_stands_first(line: Line) -> None:
    """R106: the answer to a dead worker's last, wrong verdict hides no packet that waits behind it."""
    with bound() as queue:
        line.number(0, 2)
        killed_at(queue, 1)
        queue._socket.send(queue.drop((4711).to_bytes(4, "big"), MSG_VERDICT))
        line.number(2, 10)
        assert successor(queue) == 2
        assert line.numbers() == list(range(2, 10))
        assert status().depth == 0


def test_refused_verdicts_are_counted(line: Line) -> None:
    """R106: a verdict for a packet that is not there does no harm, and shows."""
    with bound() as queue:
        queue.judge = accept
        queue._socket.send(queue.drop((4711).to_bytes(4, "big")))
        line.number(0, 3)
        queue.run(10)
        assert (line.numbers(), queue.refused) == ([0, 1, 2], 1)


def test_a_socket_error_is_not_taken_for_silence(space: str) -> None:
    """R106: any error but "nothing waits" and "messages were lost" reaches the worker."""
    with bound() as queue:
        queue.judge = accept
        assert queue.run(10) == 0
        os.close(queue._socket.detach())
        queue._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with pytest.raises(OSError) as raised:
            queue.run(10)
        assert raised.value.errno == errno.ENOTCONN
