"""Just enough rtnetlink: requests as bytes, answers as dictionaries of attributes.

pyroute2 would do, at 180 ms of import and about 0.5 ms per request.  With 1,000
peers there are thousands of requests, and many of them fit into one system call.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from attrs import frozen

# struct nlmsghdr: length, type, flags, sequence number, port id
_HEADER = struct.Struct("=IHHII")
# struct nlattr: length, type
_ATTRIBUTE = struct.Struct("=HH")
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF

_ERROR, _DONE = 2, 3  # message types
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400  # flags of requests that add

_SOL_NETLINK = 270
_CAP_ACK, _EXT_ACK, _STRICT = 10, 11, 12  # socket options
_ACK_TLVS = 0x200  # flag: attributes follow the error
_ERROR_TEXT = 1  # NLMSGERR_ATTR_MSG

_RECEIVE = 1 << 18  # bytes; the kernel fills at most 32 KiB of it
# Acknowledgments wait in our receive buffer while the kernel works through a
# batch; this many always fit into the default size of it.
_BATCH = 64


class NetlinkError(OSError):
    """The kernel refused a request; ``errno`` tells, the text has its own words."""


@frozen
class Request:
    """One thing asked of the kernel."""

    kind: int  # RTM_...
    body: bytes  # fixed structure, then attributes
    flags: int = 0


@frozen
class Message:
    """One message of the kernel."""

    kind: int
    port: int  # netlink port of who caused it; 0: the kernel itself
    body: bytes

    def attributes(self, offset: int) -> dict[int, bytes]:
        """Return the attributes that follow a fixed structure of ``offset`` bytes."""
        return parse_attributes(self.body, offset)


def attribute(kind: int, payload: bytes) -> bytes:
    """Encode one attribute, padded to 4 bytes."""
    padding = bytes(-len(payload) % 4)
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + padding


def attribute_u32(kind: int, value: int) -> bytes:
    """Encode an attribute that is a 32-bit number of this machine's byte order."""
    return attribute(kind, value.to_bytes(4, sys.byteorder))


def nested(kind: int, *attributes: bytes) -> bytes:
    """Encode attributes within an attribute."""
    return attribute(kind | _NESTED, b"".join(attributes))


def parse_attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Decode the attributes from ``offset`` on."""
    found = {}
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def number(value: bytes | None, default: int = 0) -> int:
    """Decode an attribute that is a number; ``default`` if it is absent."""
    return default if value is None else int.from_bytes(value, sys.byteorder)


class Netlink:
    """A socket to the kernel's routing, of the namespace it was opened in.

    Its methods block, for microseconds per request.  Not for use by two threads at
    the same time.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0
        )
        self._socket.bind((0, 0))
        for option in (_CAP_ACK, _EXT_ACK, _STRICT):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self.port: int = self._socket.getsockname()[0]
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """Return all objects of a kind; ``body`` narrows it down.  NetlinkError."""
        self._send([Request(kind, body, _DUMP)])
        found = []
        for message in self._replies():
            if message.kind == _DONE:
                status = int.from_bytes(message.body[:4], sys.byteorder, signed=True)
                if status:
                    raise NetlinkError(-status, os.strerror(-status))
                break
            if message.kind == _ERROR:
                raise _error(message) or NetlinkError(0, "unexpected end of a dump")
            found.append(message)
        return found

    def ask(self, requests: Sequence[Request]) -> list[Message | NetlinkError]:
        """Return the kernel's answer, or refusal, to each request, in their order."""
        answers: list[Message | NetlinkError] = []
        for start in range(0, len(requests), _BATCH):
            batch = requests[start : start + _BATCH]
            self._send(batch)
            replies = self._replies()
            for _ in batch:
                message = next(replies)
                answers.append(_error(message) or message)
        return answers

    def change(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        """Carry the requests out in order; return what became of each, None: done.

        A refused one does not keep the kernel from going on with the next.
        """
        outcomes: list[NetlinkError | None] = []
        for start in range(0, len(requests), _BATCH):
            batch = requests[start : start + _BATCH]
            self._send([Request(r.kind, r.body, r.flags | _ACK) for r in batch])
            replies = self._replies()
            outcomes += [_error(next(replies)) for _ in batch]
        return outcomes

    def _send(self, requests: Sequence[Request]) -> None:
        packet = bytearray()
        for request in requests:
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            length = _HEADER.size + len(request.body)
            flags = request.flags | _REQUEST
            packet += _HEADER.pack(length, request.kind, flags, self._sequence, 0)
            packet += request.body + bytes(-length % 4)
        self._socket.send(packet)

    def _replies(self) -> Iterator[Message]:
        while True:
            yield from parse_messages(self._socket.recv(_RECEIVE))


def parse_messages(data: bytes) -> Iterator[Message]:
    """Decode what one receive call on a netlink socket brought."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, _, port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        body = data[offset + _HEADER.size : offset + length]
        if kind == _ERROR and not flags & _ACK_TLVS:
            body = body[: 4 + _HEADER.size]
        yield Message(kind, port, body)
        offset += (length + 3) & ~3


def _error(message: Message) -> NetlinkError | None:
    """Return the refusal a message is, if it is one; an acknowledgment is none."""
    if message.kind != _ERROR:
        return None
    code = -int.from_bytes(message.body[:4], sys.byteorder, signed=True)
    if code == 0:
        return None
    # After the number comes the header of the refused request, then attributes.
    words = message.attributes(4 + _HEADER.size).get(_ERROR_TEXT, b"")
    text = words.rstrip(b"\0").decode(errors="replace").rstrip(".")
    return NetlinkError(code, text or os.strerror(code))
