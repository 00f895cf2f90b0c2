"""Who answers for an address on a link: asked there, not in the kernel's table, which may be old.

Owns the questions: ARP requests (RFC 826), and neighbour solicitations (RFC 4861, 4.3). An address that
should be nobody else's is asked for with a probe that claims nothing (RFC 5227, 2.1.1; RFC 4862, 5.4.2).
"""

import contextlib
import ctypes
import select
import socket
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from struct import Struct, pack

from nfqlb.core.spec import Address
from nfqlb.netfilter.address import icmpv6_frame

_ARP, _IPV6 = 0x0806, 0x86DD
_ARP_HEADER = b"\x00\x01\x08\x00\x06\x04"  # Ethernet, IPv4, their lengths
_REQUEST, _REPLY = b"\x00\x01", b"\x00\x02"
_BROADCAST = b"\xff" * 6
_SOLICITATION, _ADVERTISEMENT = 135, 136
_SOLICITED = bytes.fromhex("ff0200000000000000000001ff")  # ff02::1:ffXX:XXXX, and the address's last 3 bytes
_SO_ATTACH_FILTER = 26
_instruction = Struct("HBBI")
#: A filter (bpf(4) of BSD) that lets neighbour advertisements through, out of all that comes by IPv6.
_ADVERTISEMENTS = b"".join(
    _instruction.pack(*each)
    for each in (
        (0x30, 0, 0, 20), (0x15, 0, 3, 58),  # the next header, ICMPv6?
        (0x30, 0, 0, 54), (0x15, 0, 1, 136),  # its type
        (6, 0, 0, 256), (6, 0, 0, 0),  # these bytes of it, or none
    )
)  # fmt: skip
_AGAIN = 0.25  # seconds after which who has not answered is asked once more


@dataclass(frozen=True, slots=True)
class Question:
    """Who has `address` on this interface? Asked from `source`; None: a probe for somebody else's claim."""

    interface: str
    address: Address
    source: Address | None


def ask(questions: Collection[Question], patience: float) -> dict[Question, str]:
    """The link address (MAC) that answered each question; who is not in there did not answer.

    Takes `patience` seconds, or less where everybody but the probes has answered. Raises OSError without the
    right, or where an interface is down.
    """
    found: dict[Question, str] = {}
    with contextlib.ExitStack() as stack:
        links = {
            place: stack.enter_context(_link(*place)) for place in dict.fromkeys(map(_place, questions))
        }
        deadline = time.monotonic() + patience
        again = time.monotonic() + _AGAIN
        _send(links, questions)
        while (now := time.monotonic()) < deadline:
            waiting = [question for question in questions if question not in found]
            if not waiting:
                break
            if now >= again:
                again = deadline
                _send(links, waiting)
            for sock in select.select(links.values(), [], [], min(deadline, again) - now)[0]:
                for address, hardware in _answers(sock):
                    _note(found, waiting, sock, address, hardware)
    return found


def _note(
    found: dict[Question, str],
    waiting: Collection[Question],
    sock: socket.socket,
    address: bytes,
    hardware: bytes,
) -> None:
    name = sock.getsockname()[0]
    for question in waiting:
        if question.interface == name and question.address.packed == address:
            found[question] = hardware.hex(":")


def _place(question: Question) -> tuple[str, int]:
    """The interface, and the protocol that the answer comes in."""
    return question.interface, _ARP if question.address.version == 4 else _IPV6


def _link(interface: str, protocol: int) -> socket.socket:
    """The answers that arrive on an interface; the kernel gets them all the same."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        if protocol == _IPV6:
            program = ctypes.create_string_buffer(_ADVERTISEMENTS)
            length = len(_ADVERTISEMENTS) // _instruction.size
            sock.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, pack("HL", length, ctypes.addressof(program))
            )
        sock.bind((interface, protocol))
    except OSError:
        sock.close()
        raise
    return sock


def _send(links: dict[tuple[str, int], socket.socket], questions: Collection[Question]) -> None:
    for question in questions:
        sock = links[_place(question)]
        hardware = sock.getsockname()[4]
        if len(hardware) == len(_BROADCAST):
            sock.send(frame(hardware, question))


def frame(hardware: bytes, question: Question) -> bytes:
    """The Ethernet frame that asks a question, from an interface with this link address."""
    target, source = question.address.packed, question.source
    if question.address.version == 4:
        asks = source.packed if source else bytes(4)
        body = hardware + asks + bytes(6) + target
        return _BROADCAST + hardware + _ARP.to_bytes(2) + _ARP_HEADER + _REQUEST + body
    group = _SOLICITED + target[-3:]
    option = b"\x01\x01" + hardware if source else b""
    message = bytes(4) + target + option
    asks = source.packed if source else bytes(16)
    return icmpv6_frame(hardware, b"\x33\x33" + group[-4:], asks, group, _SOLICITATION, message)


def _answers(sock: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """Who has told of an address since: the address, and the link address of who did."""
    while True:
        try:
            data, (_, _, kind, *_) = sock.recvfrom(256)
        except BlockingIOError:
            return
        if kind != socket.PACKET_OUTGOING and (answer := answer_in(data)):
            yield answer


def answer_in(data: bytes) -> tuple[bytes, bytes] | None:
    """The address that a frame says somebody has, and its link address; None for all other frames."""
    kind = int.from_bytes(data[12:14])
    if kind == _ARP and len(data) >= 42 and data[14:20] == _ARP_HEADER:
        said = data[20:22] == _REPLY and any(data[28:32])
        return (data[28:32], data[22:28]) if said else None
    if kind == _IPV6 and len(data) >= 78 and data[20] == socket.IPPROTO_ICMPV6 and data[54] == _ADVERTISEMENT:
        return data[62:78], data[80:86] if data[78:80] == b"\x02\x01" else data[6:12]
    return None
