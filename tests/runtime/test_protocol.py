"""The control protocol's lines: whatever comes in, only the right things come out."""

import itertools
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.runtime.protocol import (
    MAX_DEPTH,
    ControlError,
    JSONObject,
    LineReader,
    LineTooLongError,
    Request,
    command_of,
    decode,
    encode_reply,
    ident_of,
    outcome_of,
)


def lines(reader: LineReader) -> Iterator[bytes | None]:
    """Every line that can be taken; None stands for one that was too long."""
    while True:
        try:
            line = reader.take()
        except LineTooLongError:
            yield None
            continue
        if line is None:
            return
        yield line


@given(st.binary(), st.lists(st.integers(0, 60), max_size=8))
def test_lines_do_not_depend_on_how_the_bytes_arrive(data: bytes, cuts: list[int]) -> None:
    reader = LineReader(1 << 20)
    found = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        reader.feed(data[start:end])
        found += list(lines(reader))
    reader.finish()
    found += list(lines(reader))
    expected = data.split(b"\n")
    assert found == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize("portion", [1, 3, 64])
def test_a_long_line_is_reported_once_and_skipped(portion: int) -> None:
    data = b"ab\n" + b"x" * 40 + b"\ncd\n" + b"y" * 9 + b"\n"
    reader = LineReader(8)
    found: list[bytes | None] = []
    for start in range(0, len(data), portion):
        reader.feed(data[start : start + portion])
        found += list(lines(reader))
    assert found == [b"ab", None, b"cd", None]


def test_the_limit_itself_is_allowed() -> None:
    reader = LineReader(8)
    reader.feed(b"12345678\n")
    assert reader.take() == b"12345678"


def test_a_long_line_is_not_kept_in_memory() -> None:
    reader = LineReader(8)
    for _ in range(100):
        reader.feed(b"x" * 1000)
        list(lines(reader))
    assert len(reader._buffer) == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"hello", "not JSON"),
        (b"", "not JSON"),
        (b'{"id": NaN}', "NaN"),
        (b'{"id": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[1]", "not an object"),
        (b"[" * 500_000, "nested too deeply"),
        (b'{"args": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(line: bytes, says: str) -> None:
    with pytest.raises(ControlError, match=says) as refused:
        decode(line)
    assert refused.value.code == "bad-request"


def test_the_greatest_depth_is_allowed() -> None:
    inner = MAX_DEPTH - 1
    assert "args" in decode(b'{"args": ' + b"[" * inner + b"]" * inner + b"}")


@given(st.binary())
def test_decode_raises_nothing_but_control_errors(line: bytes) -> None:
    try:
        document = decode(line)
    except ControlError as error:
        assert error.code == "bad-request"  # noqa: PT017 - both outcomes are right
    else:
        assert isinstance(document, dict)


@pytest.mark.parametrize("ident", [1.5, True, [1], {"a": 1}, "x" * 65, 2**63])
def test_an_id_that_could_not_come_back_is_refused(ident: object) -> None:
    with pytest.raises(ControlError, match="id must be"):
        ident_of(json.loads(json.dumps({"id": ident})))


@pytest.mark.parametrize(
    "document", [{}, {"cmd": ""}, {"cmd": 3}, {"cmd": "reals", "args": [1]}, {"cmd": "reals", "args": "x"}]
)
def test_a_command_must_be_a_text_and_its_arguments_an_object(document: JSONObject) -> None:
    with pytest.raises(ControlError):
        command_of(document)


def test_arguments_may_be_left_out() -> None:
    assert command_of({"cmd": "reals"}) == ("reals", {})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_a_result_comes_back_as_it_went(result: object) -> None:
    value = json.loads(json.dumps(result))
    line = b"".join(encode_reply(7, value))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    reply = json.loads(line)
    assert reply == {"id": 7, "ok": True, "result": value}


@pytest.mark.parametrize("number", [0, 1, 63, 64, 65, 128, 300])
def test_rows_of_an_iterator_make_the_same_line_as_a_list(number: int) -> None:
    rows: list[JSONObject] = [{"n": n} for n in range(number)]
    pieces = list(encode_reply(1, iter(rows)))
    assert json.loads(b"".join(pieces))["result"] == rows
    assert len(pieces) <= 2 + 1 + -(-number // 64)  # the first piece is a small one


def test_long_rows_make_pieces_of_few_rows() -> None:
    rows: list[JSONObject] = [{"text": "x" * 5000} for _ in range(40)]
    pieces = list(encode_reply(1, iter(rows)))
    assert json.loads(b"".join(pieces))["result"] == rows
    assert max(map(len, pieces)) < 4 * 5100
    assert max(map(len, pieces[2:])) < 3 * 5100


def test_only_the_first_reply_names_the_protocol() -> None:
    assert json.loads(b"".join(encode_reply(1, None, first=True)))["protocol"] == 1
    assert "protocol" not in json.loads(b"".join(encode_reply(1, None)))


def test_an_error_comes_back_as_it_went() -> None:
    reply = decode(b"".join(encode_reply(None, ControlError("busy", "not now", "later"))).rstrip())
    outcome = outcome_of(reply)
    assert isinstance(outcome, ControlError)
    assert (outcome.code, outcome.message, outcome.hint) == ("busy", "not now", "later")
    assert str(outcome) == "not now; later"


@pytest.mark.parametrize("reply", [{}, {"ok": True}, {"ok": False}, {"ok": False, "error": {"code": 3}}])
def test_a_reply_that_says_nothing_is_an_error(reply: JSONObject) -> None:
    with pytest.raises(ControlError, match="neither a result nor an error"):
        outcome_of(reply)


def test_the_first_answer_counts() -> None:
    answers: list[object] = []
    request = Request(1, "reals", {}, None, lambda _request, outcome: answers.append(outcome))
    request.reply("first")
    request.fail("late", "too late")
    request.reply("second")
    assert answers == ["first"]
