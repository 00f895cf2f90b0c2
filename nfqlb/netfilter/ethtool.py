"""What a network card does by itself, as `ethtool -k` and `ethtool -i` tell it.

Owns the ioctls (linux/ethtool.h): the kernel has no shorter way to the names of features.
"""

import ctypes
import fcntl
import socket
from struct import Struct
from sys import byteorder

_SIOCETHTOOL = 0x8946
_GET_DRIVER, _GET_STRINGS, _GET_COUNTS, _GET_FEATURES = 0x03, 0x1B, 0x37, 0x3A
_FEATURES = 4  # ETH_SS_FEATURES
_NAME_LENGTH = 32
_DRIVER_SIZE = 196  # struct ethtool_drvinfo
_request = Struct("@16sP16x").pack


def driver(interface: str) -> str:
    """The name of the interface's driver. Raises OSError where it has none to ask."""
    answer = _ask(interface, _GET_DRIVER.to_bytes(4, byteorder), _DRIVER_SIZE)
    return _text(answer[4:36])


def features(interface: str) -> dict[str, bool]:
    """Which of its features are active, by the kernel's own names ("rx-gro", ...). Raises OSError."""
    count = _number(_ask(interface, _words(_GET_COUNTS, 0) + (1 << _FEATURES).to_bytes(8, byteorder), 20), 16)
    names = _ask(interface, _words(_GET_STRINGS, _FEATURES, count), 12 + count * _NAME_LENGTH)
    blocks = (count + 31) // 32
    bits = _ask(interface, _words(_GET_FEATURES, blocks), 8 + blocks * 16)
    found = {}
    for number in range(count):
        at = 12 + number * _NAME_LENGTH
        active = _number(bits, 8 + number // 32 * 16 + 8)  # after what is available and what was asked for
        if name := _text(names[at : at + _NAME_LENGTH]):
            found[name] = bool(active >> number % 32 & 1)
    return found


def _ask(interface: str, question: bytes, size: int) -> bytes:
    """The kernel's answer of `size` bytes, which it writes over the question."""
    buffer = ctypes.create_string_buffer(question, max(size, len(question)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, _request(interface.encode(), ctypes.addressof(buffer)))
    return buffer.raw


def _words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, byteorder) for number in numbers)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], byteorder)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("ascii", "replace")
