"""Netfilter's netlink in plain bytes: headers, attributes, one request and its answer.

Owns what the parts that speak nfnetlink by hand have in common (linux/netlink.h, nfnetlink.h). They do so
because pyroute2 decodes a conntrack entry in 0.65 ms and cannot read NFLOG; NFQUEUE has its own, `messages`.
"""

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from struct import Struct

from nfqlb.netfilter.errors import KernelError

NETLINK_NETFILTER = 12
SO_RCVBUFFORCE = 33
SOL_NETLINK, ADD_MEMBERSHIP = 270, 1
REQUEST, ACK, ECHO = 0x1, 0x4, 0x8
DUMP, CREATE, REPLACE, EXCLUSIVE = 0x300, 0x400, 0x100, 0x200
MSG_ERROR, MSG_DONE = 2, 3
INTERRUPTED = 0x10  # NLM_F_DUMP_INTR: what was dumped changed meanwhile, entries may be missing
NESTED = 0x8000
TYPE = 0x3FFF  # an attribute's type without its flags
FIRST_ATTRIBUTE = 20  # after the netlink header and nfgenmsg

_DUMP_SIZE = 1 << 17
_ANSWER_SIZE = 1 << 14  # bytes: more than the kernel puts into one message, and quickly had
_ANSWER_TIMEOUT = 5.0  # seconds

_serials = itertools.count(1)
_ECHOED = 0  # the sequence number of whatever the kernel tells by itself
_header_of = Struct("=IHHII").unpack_from  # length, type, flags, sequence, port
_put_number = Struct("=I").pack_into
attribute_header = Struct("=HH").unpack_from
_header = Struct("=IHHIIBBH").pack
_attribute = Struct("=HH").pack
_error = Struct("=i").unpack_from


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _attribute(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | NESTED, b"".join(parts))


def attributes(buffer: bytes | bytearray, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The attributes in `buffer[at:end]`: type, where the value begins, where it ends. Stops at nonsense."""
    while at + 4 <= end:
        size, kind = attribute_header(buffer, at)
        if size < 4 or at + size > end:
            return
        yield kind & TYPE, at + 4, at + size
        at += (size + 3) & ~3


def message(kind: int, flags: int, body: bytes, *, family: int = 0, resource: int = 0) -> bytes:
    """A message of `kind` (subsystem << 8 | message); `resource` is nfgenmsg's, a group number say."""
    number = int.from_bytes(resource.to_bytes(2, "big"), "little" if _LITTLE else "big")
    return _header(FIRST_ATTRIBUTE + len(body), kind, REQUEST | flags, 0, 0, family, 0, number) + body


_LITTLE = Struct("=H").pack(1) == b"\1\0"


def messages(buffer: bytes | bytearray, got: int, *numbers: int) -> Iterator[tuple[int, int, int, int]]:
    """The messages in the first `got` bytes: type, flags, where it begins, where it ends.

    With sequence `numbers`, only the answers to requests that have them.
    """
    at = 0
    while at + 16 <= got:
        size, kind, flags, answered, _ = _header_of(buffer, at)
        if size < 16 or at + size > got:
            return
        if not numbers or answered in numbers:
            yield kind, flags, at, at + size
        at += (size + 3) & ~3


def connect(*, receive_buffer: int = 0) -> socket.socket:
    """A netfilter netlink socket. Raises KernelError."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        sock.bind((0, 0))
    except OSError as error:
        raise KernelError(f"netlink: {error.strerror}; has this kernel nfnetlink?") from None
    if receive_buffer:
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
    return sock


def ask(sock: socket.socket, request: bytes, what: str) -> None:
    """Sends a request that has the ACK flag and waits for the kernel's word.

    Raises KernelError that begins with `what`, its `errno` as the kernel says.
    """
    for _ in answers(sock, request, what):
        pass


def answers(
    sock: socket.socket, request: bytes, what: str, *, echo: bool = False
) -> Iterator[tuple[bytearray, int, int]]:
    """Sends a request and yields each message of the answer: buffer, begin, end; valid until the next.

    With `echo` also what the kernel tells of the change it makes, as the request must ask for (ECHO).
    Ends with the acknowledgement or the end of a dump. Raises KernelError as `ask` does, with EINTR where
    what was dumped changed so that entries may be missing.
    """
    sock.settimeout(_ANSWER_TIMEOUT)
    whole_table = _header_of(request, 0)[2] & DUMP == DUMP
    buffer = bytearray(_DUMP_SIZE if whole_table else _ANSWER_SIZE)
    number = next(_serials) & 0x7FFFFFFF
    numbered = bytearray(request)
    _put_number(numbered, 8, number)
    numbers = (number, _ECHOED) if echo else (number,)
    interrupted = False
    try:
        sock.send(numbered)
        while True:
            got = sock.recv_into(buffer)
            for kind, flags, at, end in messages(buffer, got, *numbers):
                interrupted |= bool(flags & INTERRUPTED)
                if kind in (MSG_DONE, MSG_ERROR):
                    code = -_error(buffer, at + 16)[0] if end >= at + 20 else 0
                    if code or interrupted:
                        raise refused(what, code or errno.EINTR)
                    return
                yield buffer, at, end
    except TimeoutError:
        raise refused(what, errno.ETIMEDOUT) from None
    except OSError as error:
        raise refused(what, error.errno or 0) from None


def drain(
    sock: socket.socket,
    buffer: bytearray,
    read: Callable[[bytearray, int], int],
    overrun: Callable[[], None],
    budget: int,
) -> int:
    """Read what waits, about `budget` messages at most; returns how many there were.

    `read(buffer, got)` gets what was received, `got` bytes at the beginning, and says how many messages that
    is; `overrun()` is called where the kernel has lost some for lack of room. Raises OSError for all else.
    """
    receive = sock.recv_into
    count = 0
    while count < budget:
        try:
            got = receive(buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            overrun()
            continue
        count += read(buffer, got)
    return count


class NetlinkError(KernelError):
    """The kernel refused a netlink request; `errno` says why."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.errno = number


def refused(what: str, number: int) -> NetlinkError:
    """The error for a request that the kernel refused with this errno."""
    hint = {
        errno.EPERM: "; run as root, or with CAP_NET_ADMIN",
        errno.EBUSY: "; somebody else uses it",
        errno.EINVAL: "; this kernel may lack the module for it",
        errno.EOPNOTSUPP: "; this kernel has it not",
    }.get(number, "")
    return NetlinkError(f"{what}: {os.strerror(number)}{hint}", number)
