"""Calls from one process of the daemon to another: each one message, in order.

They are pickled, since both ends are one program, forked from one process, and nobody
else has the socket: who could write to it could as well write to their memory.
"""

from __future__ import annotations

import pickle
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import trio

from alpha_trio.net.host import receive_buffer
from alpha_trio.net.udp import grow_buffers

MOST_WAITING = 100_000
"""Calls that may wait for the other end; it takes them as they come."""

_ROOM = 1 << 20  # bytes of the largest call: a trace of a long path


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
        self._waiting.append(pickle.dumps((name, args, more)))
        self._wanted.set()

    async def run(self, handlers: Mapping[str, Callable[..., None]]) -> None:
        """Do what the other end calls, and have it do so, until it is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            room = receive_buffer(_ROOM)
            while size := await self._receive(room):
                name, args, more = pickle.loads(room[:size])
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
                except OSError:  # the other end is gone: the receiver ends this
                    await trio.sleep_forever()
                else:
                    self._waiting.popleft()
            self._wanted = trio.Event()
            await self._wanted.wait()
