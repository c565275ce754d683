"""Control messages between the daemon and its clients, as bytes.

A frame is a length (4 bytes, big endian) and a msgpack map of that many bytes.
A client sends requests, one at a time; the daemon answers each with any number of
events and then one result or one error.  Fields nobody knows are ignored, so that
either side may be newer.  ``docs/control.md`` describes the same for other clients.

The command line imports this module at every start: nothing heavy may come in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from os.path import splitext
from struct import Struct
from typing import Any, NamedTuple

import msgpack

from alpha_trio.errors import AlphaTrioError, error_of

# The same as config.DEFAULT_SOCKET, which would cost the command line its import.
DEFAULT_SOCKET = "/run/alpha-trio/control.sock"

MAX_REQUEST = 4 * 1024 * 1024  # bytes of body: an import of some 20,000 peers
MAX_QUESTION = 64 * 1024  # the same of who may only ask
MAX_REPLY = 16 * 1024 * 1024  # bytes of body: status of some 20,000 peers

HEADER = Struct(">I")  # length of the body that follows


def status_socket(path: str) -> str:
    """The socket beside ``path`` that answers questions, and changes nothing.

    The same as config.Settings.status_socket.
    """
    return "-status".join(splitext(path))


class BadFrame(AlphaTrioError):
    """The other side does not speak this protocol, or wants more than it may."""


class Request(NamedTuple):
    command: str
    args: dict[str, Any]


class ReplyKind(StrEnum):
    """What a reply is; also the name of the field that carries it."""

    EVENT = "event"  # one of a stream; more replies follow
    RESULT = "result"  # the request is done
    ERROR = "error"  # the request failed


class Reply(NamedTuple):
    kind: ReplyKind
    value: Any


def encode_request(command: str, args: Mapping[str, Any]) -> bytes:
    """Raise BadFrame for what cannot be sent: over 4 MiB or not UTF-8."""
    return _frame({"command": command, "args": args}, MAX_REQUEST)


def encode_event(event: Mapping[str, Any]) -> bytes:
    return _frame({ReplyKind.EVENT.value: event}, MAX_REPLY)


def encode_result(result: Any) -> bytes:
    """Raise BadFrame if the result is over 16 MiB."""
    return _frame({ReplyKind.RESULT.value: result}, MAX_REPLY)


def encode_error(text: str, exit_code: int) -> bytes:
    error = {"text": text, "exit_code": exit_code}
    return _frame({ReplyKind.ERROR.value: error}, MAX_REPLY)


def body_length_untrusted(header: bytes, limit: int) -> int:
    """Length of the body after ``header``; raise BadFrame if it is over ``limit``."""
    if len(header) != HEADER.size:
        raise BadFrame(f"a header has {HEADER.size} bytes, not {len(header)}")
    (length,) = HEADER.unpack(header)
    if length > limit:
        raise BadFrame(f"a message of {length} bytes is over the limit of {limit}")
    return int(length)


def decode_request_untrusted(body: bytes) -> Request:
    """Raise BadFrame, and nothing else, for whatever is not a request."""
    message = _decode_untrusted(body)
    command, args = message.get("command"), message.get("args", {})
    if not isinstance(command, str) or not isinstance(args, dict):
        raise BadFrame("a request needs a command (text) and args (a map)")
    return Request(command, args)


def decode_reply_untrusted(body: bytes) -> Reply:
    """Raise BadFrame for what is no reply; for an error, what the daemon raised."""
    message = _decode_untrusted(body)
    if ReplyKind.ERROR in message:
        raise _remote_error_untrusted(message[ReplyKind.ERROR])
    for kind in (ReplyKind.EVENT, ReplyKind.RESULT):
        if kind in message:
            return Reply(kind, message[kind])
    raise BadFrame("a reply needs one of the fields event, result and error")


def _remote_error_untrusted(error: Any) -> AlphaTrioError:
    match error:
        case {"text": str(text), "exit_code": int(exit_code)}:
            return error_of(text, exit_code)
    return BadFrame("an error needs a text and an exit_code (a number)")


def _frame(message: Mapping[str, Any], limit: int) -> bytes:
    try:
        body = msgpack.packb(message)
    except UnicodeEncodeError as error:
        raise BadFrame(f"{error.object!r} is not valid UTF-8 text") from error
    except OverflowError as error:
        raise BadFrame("a number has more than 64 bits; give a smaller one") from error
    if len(body) > limit:
        raise BadFrame(f"a message of {len(body)} bytes is over the limit of {limit}")
    return HEADER.pack(len(body)) + bytes(body)


def _decode_untrusted(body: bytes) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(body)
    # msgpack reports by seven kinds of exception, not all of them documented;
    # what they have in common is that the bytes were wrong.
    except Exception as error:
        raise BadFrame("a message is not valid msgpack with text keys") from error
    if not isinstance(message, dict) or not all(isinstance(k, str) for k in message):
        raise BadFrame("a message must be a map with text keys")
    return message
