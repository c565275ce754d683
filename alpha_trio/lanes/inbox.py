"""What lanes hand over to one another: packets of the TUN, and datagrams.

Each lane has an inbox; it and all others have the end to write to it.  Who hands over
waits for nobody: what does not fit is dropped, and counted.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator, Sequence
from enum import IntEnum
from struct import Struct

from attrs import define, field

from alpha_trio.net.host import receive_buffer
from alpha_trio.net.udp import grow_buffers
from alpha_trio.proto.batch import Buffer, Remote

_HEAD = Struct("!BBH")  # what it is, by what it was handed over, bytes of its places
_ROOM = 1 << 17  # bytes: a super-packet, or a datagram, with what is in front of it


class What(IntEnum):
    """What is handed over."""

    FRAME = 0  # of the TUN
    DATAGRAM = 1


class By(IntEnum):
    """What says that a datagram is for a lane; each may say so once, in this order."""

    NOBODY = 0
    ID = 1
    PEER = 2


@define(frozen=True)
class Handed:
    """A frame, or a datagram with where it came from and where to."""

    what: What
    data: memoryview
    remote: Remote = ("", 0)
    local: bytes = b""
    by: By = By.PEER


@define(eq=False)
class Inbox:
    """One lane's, and the others' ends."""

    own: socket.socket
    others: Sequence[socket.socket]  # by number; the own one is not used
    _room: memoryview = field(factory=lambda: receive_buffer(_ROOM))

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Where to read, and where to write."""
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in ends:
            end.setblocking(False)
            grow_buffers(end)
        return ends

    def hand_frame(self, lane: int, frame: Buffer) -> bool:
        """Hand over a frame; False if there is no room."""
        return self._send(lane, [_HEAD.pack(What.FRAME, By.PEER, 0), frame])

    def hand_datagram(
        self, lane: int, by: By, datagram: Buffer, remote: Remote, local: bytes
    ) -> bool:
        """Hand over a datagram; False if there is no room."""
        places = pickle.dumps((remote, local))
        head = _HEAD.pack(What.DATAGRAM, by, len(places))
        return self._send(lane, [head, places, datagram])

    def _send(self, lane: int, parts: list[Buffer]) -> bool:
        try:
            self.others[lane].sendmsg(parts)
        except OSError:  # full, or the lane is gone, which ends all of them
            return False
        return True

    def take(self, most: int) -> Iterator[Handed]:
        """What is there, up to ``most``; each holds until the next."""
        for _ in range(most):
            try:
                size = self.own.recv_into(self._room)
            except BlockingIOError:
                return
            what, by, length = _HEAD.unpack_from(self._room)
            at = _HEAD.size + length
            data = self._room[at:size]
            if what == What.FRAME:
                yield Handed(What.FRAME, data)
            else:
                yield Handed(What.DATAGRAM, data, *self._places(at), By(by))

    def _places(self, end: int) -> tuple[Remote, bytes]:
        remote, local = pickle.loads(self._room[_HEAD.size : end])
        return remote, local
