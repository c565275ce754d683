"""Calls from one process of the daemon to another, in order.

They are pickled, since both ends are one program, forked from one process, and nobody
else has the socket: who could write to it could as well write to their memory.
"""

from __future__ import annotations

import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import trio

from alpha_trio.net.udp import grow_buffers

MOST_WAITING = 100_000
"""Messages that may wait for the other end; it takes them as they come."""

_PIECE = 1 << 15
"""Bytes of a call in one message: for larger ones the kernel needs memory in one piece,
which a host may not have.  A peer's prefixes may take megabytes."""

_RETRY = 0.1  # s until a host without memory for a message is asked again

_MORE, _LAST = 0, 1  # what a message begins with: whether others follow it


class Channel:
    """One end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        grow_buffers(sock)
        self.lost = 0  # calls for which there was no room
        self._sock = sock
        self._waiting: deque[bytes] = deque()
        self._wanted = trio.Event()

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """The sockets of both ends."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def call(self, name: str, *args: Any, **more: Any) -> None:
        """Have the other end call what it has under this name; waits for nothing."""
        if len(self._waiting) >= MOST_WAITING:
            self.lost += 1
            return
        self._waiting.extend(_pieces(pickle.dumps((name, args, more))))
        self._wanted.set()

    def call_last(self, name: str, *args: Any) -> None:
        """The same when ``run`` has ended; what does not fit is lost."""
        self.call(name, *args)
        with suppress(OSError):
            while self._waiting:
                self._sock.send(self._waiting.popleft())

    async def run(self, handlers: Mapping[str, Callable[..., None]]) -> None:
        """Do what the other end calls, and have it do so, until it is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            room, whole = memoryview(bytearray(1 + _PIECE)), bytearray()
            while size := await self._receive(room):
                whole += room[1:size]
                if room[0] == _LAST:
                    name, args, more = pickle.loads(whole)
                    whole.clear()
                    handlers[name](*args, **more)
            nursery.cancel_scope.cancel()

    async def _receive(self, room: memoryview) -> int:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                return self._sock.recv_into(room)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return 0

    async def _send(self) -> None:
        while True:
            while self._waiting:
                try:
                    self._sock.send(self._waiting[0])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._sock)
                except ConnectionError:  # it is gone: the receiver ends this
                    await trio.sleep_forever()
                except OSError:
                    await trio.sleep(_RETRY)
                else:
                    self._waiting.popleft()
            self._wanted = trio.Event()
            await self._wanted.wait()


def _pieces(call: bytes) -> Iterator[bytes]:
    last = (len(call) - 1) // _PIECE * _PIECE
    for at in range(0, len(call), _PIECE):
        yield bytes([_LAST if at == last else _MORE]) + call[at : at + _PIECE]
