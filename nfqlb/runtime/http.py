"""As much of HTTP as a scrape needs: a request's head in, a reply's head out.

One request a connection, without a body; whoever sends more is answered and let go. Pure.
"""

import re
from email.utils import formatdate
from http import HTTPStatus
from http.client import HTTPException, parse_headers
from io import BytesIO
from typing import NamedTuple
from urllib.parse import urlsplit

MAX_LINE = 2048  # bytes of a request line; ours has 30
MAX_HEAD = 16384  # bytes of a request, up to the empty line
PLAIN = "text/plain; charset=utf-8"

_END = re.compile(rb"\r?\n\r?\n")
_METHODS = ("GET", "HEAD")


class Asked(NamedTuple):
    """A request that can be answered: `accept` is what the client said of the formats it takes."""

    path: str
    accept: str
    head_only: bool


class Answer(NamedTuple):
    """A reply that is known at once: status, text, and a header more perhaps."""

    status: HTTPStatus
    text: str
    header: str = ""


def request(received: bytes) -> Asked | Answer | None:
    """What a client asks for, or how it is refused; None where its request is not whole yet."""
    text = received.lstrip(b"\r\n")  # a client may send an empty line first (RFC 9112, section 2.2)
    end = _END.search(text)
    line, _, rest = text.partition(b"\n")
    if len(line) > MAX_LINE:
        return Answer(HTTPStatus.REQUEST_URI_TOO_LONG, f"A request line may have {MAX_LINE} bytes.\n")
    if len(received) - len(text) + (end.end() if end else len(text)) > MAX_HEAD:
        return Answer(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"A request may have {MAX_HEAD} bytes.\n"
        )
    if end is None:
        return None
    try:
        method, target, version = line.decode("ascii").split()
        path = urlsplit(target).path
        headers = parse_headers(BytesIO(rest))
    except (ValueError, HTTPException):
        return Answer(HTTPStatus.BAD_REQUEST, "This is not a request of HTTP/1.1.\n")
    if not version.startswith("HTTP/1."):
        return Answer(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 is spoken here.\n")
    if method not in _METHODS:
        allow = f"Allow: {', '.join(_METHODS)}"
        return Answer(HTTPStatus.METHOD_NOT_ALLOWED, "Metrics can be read, and nothing else.\n", allow)
    return Asked(path or "/", ",".join(headers.get_all("Accept") or ()), method == "HEAD")


def accepts(accept: str, media_type: str) -> bool:
    """Whether a client names a media type among those it takes; a weight of 0 says that it does not."""
    for one in accept.split(","):
        name, *parameters = (part.strip().lower() for part in one.split(";"))
        if name == media_type:
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


def head(status: HTTPStatus, content_type: str, length: int, now: float, header: str = "") -> bytes:
    """The head of a reply with so many bytes of body; `now` is wall clock seconds."""
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {formatdate(now, usegmt=True)}",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *([header] if header else ()),
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii")
