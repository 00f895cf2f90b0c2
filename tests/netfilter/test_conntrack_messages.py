"""Entries of conntrack by hand: what is in a message, and what we ask for."""

import socket
from ipaddress import ip_address
from pathlib import Path
from struct import pack
from sys import byteorder

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.netfilter.conntrack import (
    ASSURED,
    DESTINATION_NAT,
    ESTABLISHED,
    TIME_WAIT,
    Entry,
    entry_in,
    room,
    tuple_of,
)
from nfqlb.netfilter.endings import EndingMessages
from nfqlb.netfilter.errors import KernelError
from tests.netfilter.captured import ANSWERED, ENDED_IPV4, ENTRY_IPV4, ENTRY_IPV6

STEADY = settings(derandomize=True, database=None, deadline=None, max_examples=300)


def key(*ends: tuple[str, int]) -> bytes:
    """Addresses, then ports, of a direction's two ends."""
    addresses = b"".join(ip_address(host).packed for host, _ in ends)
    return addresses + b"".join(port.to_bytes(2, "big") for _, port in ends)


def test_an_ipv4_entry_of_the_kernels() -> None:
    entry = entry_in(ENTRY_IPV4, 0, len(ENTRY_IPV4))
    assert entry is not None
    assert entry.inbound == key(("192.0.2.10", 5000), ("192.0.2.100", 80))
    assert entry.outbound == key(("10.0.0.11", 8080), ("192.0.2.10", 5000))
    assert entry.protocol == socket.IPPROTO_TCP
    assert entry.mark == 0x7E0000
    assert entry.status & ASSURED
    assert entry.status & DESTINATION_NAT
    assert entry.tcp_state == TIME_WAIT
    assert entry.timeout == 9


def test_an_ipv6_entry_of_the_kernels() -> None:
    entry = entry_in(ENTRY_IPV6, 0, len(ENTRY_IPV6))
    assert entry is not None
    assert entry.inbound == key(("2001:db8::10", 5000), ("2001:db8::100", 80))
    assert entry.outbound == key(("fd00::11", 80), ("2001:db8::10", 5000))
    assert (entry.mark, entry.tcp_state) == (0x30000, ESTABLISHED)


def test_what_is_left_of_an_entry_when_it_ends() -> None:
    """The same: which of a client's connections from one port it was, an ending does not say."""
    ended, before = entry_in(ENDED_IPV4, 0, len(ENDED_IPV4)), entry_in(ENTRY_IPV4, 0, len(ENTRY_IPV4))
    assert before is not None
    assert ended is not None
    assert ended._replace(status=0) == before._replace(status=0)


def test_a_message_in_the_middle_of_others_is_read_where_it_is() -> None:
    buffer = ANSWERED + ENTRY_IPV4 + ENTRY_IPV6
    begin = len(ANSWERED)
    assert entry_in(buffer, begin, begin + len(ENTRY_IPV4)) == entry_in(ENTRY_IPV4, 0, len(ENTRY_IPV4))


def attribute(kind: int, value: bytes) -> bytes:
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


@STEADY
@given(
    st.sampled_from([4, 16]),
    st.binary(min_size=68, max_size=68),
    st.sampled_from([6, 17]),
    st.integers(0, 2**32 - 1),
)
def test_what_is_written_as_a_tuple_is_read_as_the_same_key(
    size: int, random: bytes, protocol: int, mark: int
) -> None:
    inbound, outbound = random[: 2 * size + 4], random[30 : 30 + 2 * size + 4]
    body = (
        attribute(0x8000 | 1, tuple_of(inbound, protocol))
        + attribute(0x8000 | 2, tuple_of(outbound, protocol))
        + attribute(8, mark.to_bytes(4, "big"))
    )
    message = pack("=IHHIIBBH", 20 + len(body), 0x100, 2, 0, 0, 2, 0, 0) + body
    assert entry_in(message, 0, len(message)) == Entry(inbound, outbound, protocol, mark, 0, 0, 0)


def test_an_entry_of_a_protocol_without_ports_is_none() -> None:
    """ICMP has identifier, type and code where ports would be."""
    addresses = attribute(0x8000 | 1, attribute(1, bytes(4)) + attribute(2, bytes(4)))
    echo = addresses + attribute(
        0x8000 | 2, attribute(1, b"\1") + attribute(4, bytes(2)) + attribute(5, b"\x08")
    )
    short = addresses + attribute(0x8000 | 2, attribute(1, b"\x2f"))
    for inside in (echo, short):
        body = attribute(0x8001, inside) + attribute(0x8002, inside)
        message = pack("=IHHIIBBH", 20 + len(body), 0x100, 2, 0, 0, 2, 0, 0) + body
        assert entry_in(message, 0, len(message)) is None


@STEADY
@given(st.binary(max_size=200), st.integers(0, 212))
def test_nonsense_is_survived(noise: bytes, cut: int) -> None:
    entry_in(ENTRY_IPV4[:20] + noise, 0, 20 + len(noise))
    entry_in(ENTRY_IPV4, 0, cut)


@pytest.mark.parametrize("first", [0, 2])
def test_an_ending_cut_anywhere_tells_of_nothing_behind_its_end(first: int) -> None:
    """The tuple's own length may point past the message: what is there is not its, or not there at all."""
    told: list[tuple[bytes, int]] = []
    endings = EndingMessages(lambda key, protocol: told.append((key, protocol)), lambda _: None)
    whole = bytearray(ENDED_IPV4)
    assert endings.read(whole, len(whole)) == 1
    assert len(told) == 1
    for size in range(20, 20 + 52):
        cut = whole[:size] + b"\xff" * first
        cut[:4] = size.to_bytes(4, byteorder)
        endings.read(cut, size)
    assert len(told) == 1
    assert endings.failed == 0


def test_the_room_is_what_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "nf_conntrack_count").write_text("17\n")
    (tmp_path / "nf_conntrack_max").write_text("262144\n")
    assert room(tmp_path) == (17, 262144)
    with pytest.raises(KernelError, match="nf_conntrack_count"):
        room(tmp_path / "elsewhere")
