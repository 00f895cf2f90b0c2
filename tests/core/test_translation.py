"""What is changed in a packet, as arithmetic: addresses, ports and the sums over them (figs 10 and 11)."""

from hypothesis import assume, given
from hypothesis import strategies as st

from nfqlb.core.keys import flipped
from nfqlb.core.rewriting import MODULUS, rewritings, words
from tests.core.properties import TRIES
from tests.core.scenario import VIP, Scenario, address_of, reals, virtual

_v4 = st.binary(min_size=4, max_size=4).filter(any)
_v6 = st.binary(min_size=16, max_size=16).filter(any)
_port = st.integers(1, 65535)


def checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2], "big")
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@TRIES
@given(st.binary(max_size=200).filter(lambda data: len(data) % 2 == 0))
def test_a_sum_of_words(data: bytes) -> None:
    """R167, R177 (A22): one number's remainder is the one's-complement sum."""
    assert words(data) % MODULUS == (~checksum(data) & 0xFFFF) % MODULUS
    assert words(bytearray(data)) == words(data)


@TRIES
@given(_v4, _port, _v4, _port, _v4, _port, st.binary(max_size=60))
def test_the_sums_are_right_after_the_change(
    virtual: bytes, virtual_port: int, real: bytes, real_port: int, client: bytes, port: int, data: bytes
) -> None:
    """R167, R177 (A22, RFC 1624): against sums computed in full, in both directions."""
    inbound, outbound = rewritings(virtual, virtual_port, real, real_port)
    data = data[: len(data) // 2 * 2]

    def sums(source: bytes, source_port: int, destination: bytes, destination_port: int) -> tuple[int, int]:
        ports = source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big")
        addresses = source + destination
        return checksum(b"\x45\x00\x40\x06" + addresses), checksum(addresses + b"\x00\x06" + ports + data)

    cases = [
        (inbound, sums(client, port, virtual, virtual_port), sums(client, port, real, real_port)),
        (outbound, sums(real, real_port, client, port), sums(virtual, virtual_port, client, port)),
    ]
    for change, before, after in cases:
        assert (before[0] - change.network) % MODULUS == after[0]
        assert (before[1] - change.transport) % MODULUS == after[1]


@TRIES
@given(st.one_of(st.tuples(_v4, _v4), st.tuples(_v6, _v6)), _port, _port)
def test_there_and_back_is_no_change(
    addresses: tuple[bytes, bytes], virtual_port: int, real_port: int
) -> None:
    """R006, R007, R176 (A22): the outbound change undoes the inbound one, of either IP version."""
    virtual, real = addresses
    inbound, outbound = rewritings(virtual, virtual_port, real, real_port)
    assert (inbound.address, outbound.address) == (real, virtual)
    assert (inbound.port, outbound.port) == (real_port.to_bytes(2, "big"), virtual_port.to_bytes(2, "big"))
    assert (inbound.network + outbound.network) % MODULUS == 0
    assert (inbound.transport + outbound.transport) % MODULUS == 0


@TRIES
@given(st.one_of(st.tuples(_v4, _v4), st.tuples(_v6, _v6)), _port, _port)
def test_a_key_flipped(addresses: tuple[bytes, bytes], source: int, destination: int) -> None:
    """R019, R112 (A5): source and destination exchanged; twice is the same again."""
    ports = source.to_bytes(2, "big"), destination.to_bytes(2, "big")
    key = addresses[0] + addresses[1] + ports[0] + ports[1]
    assert flipped(key) == addresses[1] + addresses[0] + ports[1] + ports[0]
    assert flipped(flipped(key)) == key
    assume(addresses[0] != addresses[1])
    assert flipped(key) != key


def test_inbound_the_destination_becomes_the_server_s() -> None:
    """R006, R161, R163-R166, R168: the connection points to the server's address and port."""
    lab = Scenario(virtual("web", ["a:8080"]), reals("a"))
    change = lab.connect().says().connection.link.inbound
    assert change.address == address_of("a").packed
    assert change.port == (8080).to_bytes(2, "big")


def test_outbound_the_source_becomes_the_virtual_server_s() -> None:
    """R005, R007, R115, R169, R174-R176, R178: the client never learns a real address or port."""
    lab = Scenario(virtual("web", ["a:8080"], port=81), reals("a"))
    change = lab.connect().hears().connection.link.outbound
    assert change.address == bytes(map(int, VIP.split(".")))
    assert change.port == (81).to_bytes(2, "big")


def test_an_unmapped_port_stays() -> None:
    """R122, R166, R176: where the ports agree nothing is changed but the address."""
    lab = Scenario(virtual("web", "a", port=8080), reals("a"))
    link = lab.connect().connection.link
    assert link.inbound.port == link.outbound.port == (8080).to_bytes(2, "big")
    assert link.inbound.transport == link.inbound.network


def test_connections_of_a_link_share_their_change() -> None:
    """R074: kept with the link, not with each of a million connections."""
    lab = Scenario(virtual("web", "a"), reals("a"))
    assert lab.connect().connection.link is lab.connect().connection.link
