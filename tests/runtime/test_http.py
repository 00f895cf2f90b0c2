"""Requests as clients send them, whole and broken, and what is made of them."""

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.runtime.http import MAX_HEAD, MAX_LINE, Answer, Asked, accepts, head, request

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
OPENMETRICS = "application/openmetrics-text"
TOO_LARGE = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


def asked(text: str) -> Asked:
    found = request(text.encode("latin-1"))
    assert isinstance(found, Asked), found
    return found


def refused(data: bytes) -> Answer:
    found = request(data)
    assert isinstance(found, Answer), found
    assert found.text.endswith("\n")
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Asked("/metrics", "", False)),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", Asked("/metrics", "", True)),
        ("GET / HTTP/1.0\r\n\r\n", Asked("/", "", False)),
        ("GET /metrics?a=/b HTTP/1.1\r\n\r\n", Asked("/metrics", "", False)),
        ("GET http://10.0.0.1:9617/metrics HTTP/1.1\r\n\r\n", Asked("/metrics", "", False)),
        ("GET http://10.0.0.1:9617 HTTP/1.1\r\n\r\n", Asked("/", "", False)),
        ("GET /metrics HTTP/1.1\n\n", Asked("/metrics", "", False)),
        ("\r\nGET /metrics HTTP/1.1\r\n\r\n", Asked("/metrics", "", False)),
        ("GET /metrics HTTP/1.1\r\naccept: a\r\nACCEPT:b\r\n\r\nrest", Asked("/metrics", "a,b", False)),
        ("GET /metrics HTTP/1.1\r\nX: \xe4\r\n\r\n", Asked("/metrics", "", False)),
    ],
)
def test_requests(text: str, expected: Asked) -> None:
    assert asked(text) == expected


@pytest.mark.parametrize(
    "text", ["", "\r\n", "G", "GET /metrics HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: x\r\n"]
)
def test_what_is_not_whole_is_waited_for(text: str) -> None:
    assert request(text.encode()) is None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /metrics\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /a b HTTP/1.1\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET http://[::1/metrics HTTP/1.1\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"\x16\x03\x01\x02\x00\x01\xfc\x03\x03\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /\xff HTTP/1.1\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", HTTPStatus.BAD_REQUEST),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", HTTPStatus.METHOD_NOT_ALLOWED),
        (b"get /metrics HTTP/1.1\r\n\r\n", HTTPStatus.METHOD_NOT_ALLOWED),
        (b"GET /" + b"x" * MAX_LINE, HTTPStatus.REQUEST_URI_TOO_LONG),
        (b"GET /" + b"x" * MAX_LINE + b" HTTP/1.1\r\n\r\n", HTTPStatus.REQUEST_URI_TOO_LONG),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * MAX_HEAD, TOO_LARGE),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * MAX_HEAD + b"\r\n\r\n", TOO_LARGE),
        (b"\r\n" * MAX_HEAD, TOO_LARGE),
    ],
)
def test_refusals(data: bytes, status: HTTPStatus) -> None:
    assert refused(data).status is status


def test_who_is_refused_a_method_is_told_which_there_are() -> None:
    assert refused(b"DELETE /metrics HTTP/1.1\r\n\r\n").header == "Allow: GET, HEAD"


@given(st.binary(max_size=200), st.booleans())
def test_whatever_comes_is_answered_or_waited_for(data: bytes, ended: bool) -> None:
    found = request(data + b"\r\n\r\n" * ended)
    assert found is None or isinstance(found, Asked | Answer)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS, True),
        (OPENMETRICS, True),
        ("text/plain, Application/OpenMetrics-Text ; q=0.5", True),
        ("text/plain;version=0.0.4", False),
        ("*/*", False),
        ("", False),
        (",;,", False),
        (f"{OPENMETRICS};q=0", False),
        (f"{OPENMETRICS}; q=0.000, */*", False),
        (f"{OPENMETRICS};q=0.001", True),
    ],
)
def test_which_format_a_client_takes(accept: str, expected: bool) -> None:
    assert accepts(accept, OPENMETRICS) is expected


def test_the_head_of_a_reply() -> None:
    made = head(HTTPStatus.OK, "text/plain", 12, 1_700_000_000.0, "Allow: GET")
    assert made.decode().split("\r\n") == [
        "HTTP/1.1 200 OK",
        "Date: Tue, 14 Nov 2023 22:13:20 GMT",
        "Content-Type: text/plain",
        "Content-Length: 12",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        "Allow: GET",
        "",
        "",
    ]
