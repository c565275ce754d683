import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpha_trio import wire
from alpha_trio.errors import AlphaTrioError
from alpha_trio.settings import DEFAULT_SOCKET, Settings
from alpha_trio.wire import BadFrame, Reply, ReplyKind, Request

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text()
LEAVES = SCALARS | st.binary()
# Two levels by hand: st.recursive takes ten times as long to draw the same.
BRANCHES = st.lists(LEAVES, max_size=2) | st.dictionaries(st.text(), LEAVES, max_size=2)
VALUES = LEAVES | st.lists(BRANCHES, max_size=2) | BRANCHES
ARGS = st.dictionaries(st.text(), VALUES, max_size=3)


def body(frame: bytes, limit: int = wire.MAX_REPLY) -> bytes:
    header, rest = frame[: wire.HEADER.size], frame[wire.HEADER.size :]
    assert wire.body_length_untrusted(header, limit) == len(rest)
    return rest


@given(st.text(), ARGS)
def test_request_survives_the_wire(command, args):
    frame = wire.encode_request(command, args)
    assert wire.decode_request_untrusted(body(frame)) == Request(command, args)


@given(ARGS)
def test_event_survives_the_wire(event):
    reply = wire.decode_reply_untrusted(body(wire.encode_event(event)))
    assert reply == Reply(ReplyKind.EVENT, event)


@given(VALUES)
def test_result_survives_the_wire(result):
    reply = wire.decode_reply_untrusted(body(wire.encode_result(result)))
    assert reply == Reply(ReplyKind.RESULT, result)


def test_error_arrives_as_exception_with_its_exit_code():
    frame = wire.encode_error("no peer is called 'vm9'", 4)
    with pytest.raises(AlphaTrioError, match="no peer is called 'vm9'") as caught:
        wire.decode_reply_untrusted(body(frame))
    assert caught.value.exit_code == 4


@given(st.binary())
def test_random_bytes_raise_only_bad_frame(data):
    for decode in (wire.decode_request_untrusted, wire.decode_reply_untrusted):
        with suppress(BadFrame):
            decode(data)


@given(VALUES)
def test_any_msgpack_raises_only_bad_frame(value):
    data = msgpack.packb(value)
    for decode in (wire.decode_request_untrusted, wire.decode_reply_untrusted):
        with suppress(AlphaTrioError):
            decode(data)


@given(st.text(), ARGS, st.data())
def test_truncated_request_is_a_bad_frame(command, args, data):
    whole = body(wire.encode_request(command, args))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(BadFrame):
        wire.decode_request_untrusted(whole[:cut])


@given(st.text(), ARGS, st.data())
def test_mutated_request_raises_only_bad_frame(command, args, data):
    mutated = bytearray(body(wire.encode_request(command, args)))
    place = data.draw(st.integers(0, len(mutated) - 1))
    mutated[place] = data.draw(st.integers(0, 255))
    with suppress(BadFrame):
        wire.decode_request_untrusted(bytes(mutated))


@given(st.binary(max_size=8))
def test_header_gives_a_length_within_the_limit_or_bad_frame(header):
    try:
        length = wire.body_length_untrusted(header, 100)
    except BadFrame:
        return
    assert len(header) == 4
    assert 0 <= length <= 100


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x91" * 50_000,  # nested deeper than any parser's stack
        b"\xdd\xff\xff\xff\xff",  # an array of four billion
        b"\xc7\x0c\xff" + b"\xff" * 12,  # a timestamp beyond all calendars
        msgpack.packb({1: 2}),
        msgpack.packb({"command": 5}),
        msgpack.packb({"command": "status", "args": []}),
        msgpack.packb({"event": 1}) + b"\x00",
        msgpack.packb({"error": "text alone"}),
    ],
)
def test_what_is_no_message_is_a_bad_frame(data):
    with pytest.raises(BadFrame):
        wire.decode_request_untrusted(data)
    with pytest.raises(BadFrame):
        wire.decode_reply_untrusted(data)


def test_unknown_fields_are_ignored():
    newer = msgpack.packb({"command": "status", "args": {"x": 1}, "trace_id": 7})
    assert wire.decode_request_untrusted(newer) == Request("status", {"x": 1})
    newer = msgpack.packb({"result": 5, "took_seconds": 0.1})
    assert wire.decode_reply_untrusted(newer) == Reply(ReplyKind.RESULT, 5)


def test_request_over_the_limit_is_not_sent():
    with pytest.raises(BadFrame, match="over the limit of 4194304"):
        wire.encode_request("peers.add", {"name": "x" * wire.MAX_REQUEST})


def test_text_that_is_not_utf8_is_not_sent():
    with pytest.raises(BadFrame, match="UTF-8"):
        wire.encode_request("peers.add", {"name": "\udcff"})


def test_a_number_that_no_message_can_hold_is_not_sent():
    with pytest.raises(BadFrame, match="more than 64 bits"):
        wire.encode_request("peers.add", {"settings": {"mtu": 1 << 64}})


def test_default_socket_is_the_one_of_the_configuration():
    assert Path(wire.DEFAULT_SOCKET) == DEFAULT_SOCKET


@pytest.mark.parametrize(
    "path", ["/run/control.sock", "/a.b/control", "/a/.hidden", "x.", "x.y.z", "/a/b."]
)
def test_status_socket_is_the_one_of_the_configuration(path):
    assert wire.status_socket(path) == str(Settings(socket=Path(path)).status_socket)


def test_import_is_light():
    code = "import sys, alpha_trio.wire; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "msgpack" in loaded
    assert not {"trio", "attr", "pyroute2", "rich", "alpha_trio.settings"} & set(loaded)
