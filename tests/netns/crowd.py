"""Fills the connection table of this network namespace, and keeps it full: `crowd.py COUNT SECONDS`.

With entries as of conversations that were answered, which the kernel gives up for nobody, of UDP between
addresses that nobody has (198.18.0.0/15, RFC 2544). They go after SECONDS. Writes how many were taken.
"""

import socket
import sys

from nfqlb.netfilter import netlink
from nfqlb.netfilter.conntrack import ASSURED, SEEN_REPLY, tuple_of
from nfqlb.netfilter.netlink import attribute, nested

_NEW = 1 << 8  # IPCTNL_MSG_CT_NEW
_CREATE = 0x400  # NLM_F_CREATE
_ORIGINAL, _REPLY, _STATUS, _TIMEOUT = 1, 2, 3, 7
_CONFIRMED = 8
_AT_A_TIME = 128
_LAST = socket.inet_aton("198.19.255.254")


def entry(number: int, seconds: int) -> bytes:
    """The message that enters one conversation."""
    client = (0xC6120000 + (number >> 14)).to_bytes(4, "big")
    ports = (1024 + (number & 0x3FFF)).to_bytes(2, "big"), b"\0\x35"
    body = nested(_ORIGINAL, tuple_of(client + _LAST + ports[0] + ports[1], socket.IPPROTO_UDP))
    body += nested(_REPLY, tuple_of(_LAST + client + ports[1] + ports[0], socket.IPPROTO_UDP))
    body += attribute(_STATUS, (_CONFIRMED | ASSURED | SEEN_REPLY).to_bytes(4, "big"))
    body += attribute(_TIMEOUT, seconds.to_bytes(4, "big"))
    return netlink.message(_NEW, _CREATE, body, family=socket.AF_INET)


def main() -> None:
    """Enter them all."""
    count, seconds = map(int, sys.argv[1:])
    line = netlink.connect(receive_buffer=1 << 20)
    line.setblocking(False)
    refused = 0
    for begin in range(0, count, _AT_A_TIME):
        line.send(b"".join(entry(number, seconds) for number in range(begin, min(count, begin + _AT_A_TIME))))
        refused += answers(line)
    print(count - refused)


def answers(line: socket.socket) -> int:
    """How many were refused: only of those the kernel says something."""
    found = 0
    while True:
        try:
            got = line.recv(1 << 16)
        except BlockingIOError:
            return found
        found += sum(1 for _ in netlink.messages(got, len(got)))


if __name__ == "__main__":
    main()
