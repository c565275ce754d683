"""As much of HTTP/1.1 (RFC 9112) as a scrape needs.  Pure: bytes in, bytes out.

One request of a connection is answered, and then it is closed: a scrape is one, and
what keeps nothing open needs no further limits.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from attrs import frozen

MOST = 8192  # bytes of the head of a request
END = b"\r\n\r\n"

_REQUEST = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.[0-9]")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")


class BadRequest(Exception):
    """What came is no request that can be answered with a page."""

    def __init__(self, status: HTTPStatus, *fields: str) -> None:
        super().__init__(status)
        self.status = status
        self.fields = fields  # that the answer has to have


@frozen
class Request:
    """What of a request decides about its answer."""

    head: bool  # only the head of the answer is asked for
    accept: str  # which formats are taken


def parse_request_untrusted(head: bytes) -> Request:
    """Read a head, up to and without the empty line.

    Raises:
      BadRequest: it is no such head, or asks for something else than the metrics.
    """
    first, *rest = head.decode("latin-1").split("\r\n")
    line = _REQUEST.fullmatch(first)
    if line is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    fields = [_FIELD.fullmatch(text) for text in rest]
    if not all(fields):
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    method, target = line.groups()
    if target.partition("?")[0] != "/metrics":
        raise BadRequest(HTTPStatus.NOT_FOUND)
    if method not in ("GET", "HEAD"):
        raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
    accepts = [f[2] for f in fields if f is not None and f[1].lower() == "accept"]
    return Request(method == "HEAD", ", ".join(accepts))


def answer_head(status: HTTPStatus, content_type: str, size: int, *more: str) -> bytes:
    """The head of an answer whose body has ``size`` bytes; ``more`` are its fields."""
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {size}",
        "Cache-Control: no-store",
        "Connection: close",
        *more,
    )
    return "\r\n".join(lines).encode("latin-1") + END
