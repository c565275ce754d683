"""Heads of HTTP requests: what is read, and what is refused."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpha_trio.exporter.request import BadRequest, Request, parse_request_untrusted

GOOD = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: text/plain\r\naccept: */*"


@pytest.mark.parametrize(
    ("head", "request_"),
    [
        (GOOD, Request(False, "text/plain, */*")),
        (b"HEAD /metrics HTTP/1.1\r\nHost: a", Request(True, "")),
        (b"GET /metrics?debug=1 HTTP/1.0", Request(False, "")),
    ],
)
def test_what_asks_for_the_metrics(head, request_):
    assert parse_request_untrusted(head) == request_


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET /metrics", 400),
        (b"GET  /metrics HTTP/1.1", 400),
        (b"GET /metrics HTTP/2.0", 400),
        (b"GET /metrics HTTP/1.1\r\nNo field", 400),
        (b"GET /metrics HTTP/1.1\r\nHost : a", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\n folded", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: \0", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET / HTTP/1.1", 404),
        (b"POST / HTTP/1.1", 404),
        (b"POST /metrics HTTP/1.1", 405),
    ],
)
def test_what_does_not(head, status):
    with pytest.raises(BadRequest) as refused:
        parse_request_untrusted(head)
    assert refused.value.status == status
    assert (refused.value.fields == ("Allow: GET, HEAD",)) == (status == 405)


@given(st.binary() | st.binary().map(lambda tail: GOOD + tail))
def test_anything_else_is_refused(head):
    with suppress(BadRequest):
        assert isinstance(parse_request_untrusted(head), Request)
