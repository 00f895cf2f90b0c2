"""`--watch`: documents again and again, on a terminal each in the place of the one before."""

import io
from collections.abc import Iterator
from typing import cast

import pytest

from nfqlb.operator import watch
from nfqlb.runtime.client import Client
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


class Gateway:
    """A client's calls, with what they are answered."""

    def __init__(self, *answers: JSON) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, JSONObject, float]] = []

    def call(self, cmd: str, args: JSONObject) -> JSON:
        self.asked.append((cmd, args, 0.0))
        if not self.answers:
            raise ControlError("closed", "it is over")
        return self.answers.pop(0)

    def stream(self, cmd: str, args: JSONObject, *, patience: float) -> Iterator[JSON]:
        self.asked.append((cmd, args, patience))
        yield from self.answers


def documents(gateway: Gateway, subject: str, every: float, **args: JSON) -> Iterator[JSON]:
    return watch.documents(cast(Client, gateway), subject, args, every)


def test_what_is_in_the_snapshots_comes_from_their_stream() -> None:
    gateway = Gateway({"reals": [1]}, {"reals": [2]})
    assert list(documents(gateway, "reals", 3.0)) == [[1], [2]]
    assert gateway.asked == [("watch", {"every": 3.0}, 3.0)]
    whole: JSONObject = {"state": "running"}
    assert list(documents(Gateway(whole), "summary", 1.0)) == [whole]


def test_what_is_not_is_asked_for_each_time() -> None:
    gateway = Gateway([1], [2])
    found = documents(gateway, "connections", 0.001, limit=5)
    assert [next(found), next(found)] == [[1], [2]]
    with pytest.raises(ControlError, match="it is over"):
        next(found)
    assert gateway.asked == [("connections", {"limit": 5}, 0.0)] * 3


def test_a_snapshot_that_is_none_is_an_error() -> None:
    with pytest.raises(ControlError, match="the gateway's snapshot is none"):
        list(documents(Gateway([]), "reals", 1.0))


def shown(monkeypatch: pytest.MonkeyPatch, out: io.StringIO, *found: JSON, as_json: bool = False) -> str:
    """What is written of some documents that are lines already."""
    monkeypatch.setattr("sys.stdout", out)
    watch.show(iter(found), lambda lines: cast(list[str], lines), as_json=as_json)
    return out.getvalue()


def test_on_a_terminal_one_takes_the_place_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of each line is cleared, and what a longer document left below."""
    text = shown(monkeypatch, Terminal(), ["one", "two"], ["three"])
    first, second = text.split("\x1b[H")[1:]
    assert first.endswith("\x1b[K\n\x1b[K\none\x1b[K\ntwo\x1b[K\n\x1b[J")
    assert second.endswith("\x1b[K\n\x1b[K\nthree\x1b[K\n\x1b[J")


def test_elsewhere_one_follows_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, io.StringIO(), ["one"], ["two"])
    lines = text.split("\n")
    assert lines[1:4] == ["", "one", ""]
    assert lines[5:] == ["", "two", "", ""]
    assert "\x1b" not in text


def test_for_programs_there_is_one_document_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Terminal(), [{"a": 1}], [], as_json=True) == '[{"a": 1}]\n[]\n'
