"""Keys from bytes, however these come in pieces."""

import pytest

from nfqlb.operator.dashboard.keys import Keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]),
        (b"2j\r", ["2", "j", "enter"]),
        (b"\x1b[A\x1b[B\x1bOA", ["up", "down", "up"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[4~", ["pgup", "pgdn", "home", "end"]),
        (b"\x7f\x08\x15\t\x0c", ["backspace", "backspace", "clear", "tab", "redraw"]),
        ("ä日".encode(), ["ä", "日"]),
        (b"\x1b[1;5Cx", ["x"]),  # Ctrl and an arrow: none of ours, and nothing of it is typed
        (b"\x1bdx", ["x"]),  # Alt and d must not drain anything
        (b"\x1b\x1b[A", ["esc", "up"]),
        (b"\x01\x02", []),
        (b"\xffa", ["\ufffd", "a"]),
    ],
)
def test_keys(data: bytes, keys: list[str]) -> None:
    assert Keys().feed(data) == keys
    one_by_one = Keys()
    assert [key for byte in data for key in one_by_one.feed(bytes([byte]))] == keys


def test_escape_is_a_key_when_nothing_follows() -> None:
    keys = Keys()
    assert keys.feed(b"\x1b") == []
    assert keys.waiting
    assert keys.flush() == ["esc"]
    assert not keys.waiting
    assert keys.feed(b"\x1b[") == []
    assert keys.flush() == []


def test_a_sequence_without_an_end_is_given_up() -> None:
    keys = Keys()
    assert keys.feed(b"\x1b[" + b"1;" * 10) == []
    assert keys.feed(b"q") == ["q"]
