"""A link that takes its time: what enters one TAP device leaves the other later.

The kernels this project is tested on lack netem.  ``Lab.connect(..., delay_ms=50)``
makes a TAP device in each of two namespaces and hands both to this file, run as a
program: ``delay.py FD FD MS``.  It ends when it is killed; the devices go with it.

Super-packets cross whole, as on a veth link, for both devices have virtio headers
and offloads: one read and one write for up to 64 KiB.
"""

from __future__ import annotations

import math
import os
import select
import sys
import time
from collections import deque
from collections.abc import Iterable
from fcntl import ioctl
from struct import Struct

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFREQ = Struct("16sH22x")  # interface name, flags
_TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000
_TCP_OFFLOADS = 0x01 | 0x02 | 0x04 | 0x08  # checksums, TSO over IPv4 and IPv6, ECN
_UDP_OFFLOADS = 0x20 | 0x40  # USO over IPv4 and IPv6, since Linux 6.2

_FRAME_SIZE = 65_536 + 14 + 10  # of a super-packet with Ethernet and virtio header
_BATCH = 64  # frames read before those due are written
_QUEUE_BYTES = 64 << 20  # in flight in one direction: 5 Gbit/s for 100 ms


def open_tap(name: str) -> int:
    """Make a TAP device in the calling thread's namespace; return its descriptor."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        ioctl(tap, _TUNSETIFF, _IFREQ.pack(name.encode(), _TAP_NO_PI_VNET_HDR))
        _switch_offloads_on(tap)
    except OSError:
        os.close(tap)
        raise
    return tap


def _switch_offloads_on(tap: int) -> None:
    try:
        ioctl(tap, _TUNSETOFFLOAD, _TCP_OFFLOADS | _UDP_OFFLOADS)
    except OSError:  # an older kernel
        ioctl(tap, _TUNSETOFFLOAD, _TCP_OFFLOADS)


class Direction:
    """Frames on their way from one TAP device to the other."""

    def __init__(self, source: int, target: int, delay: float) -> None:
        """Carry from ``source`` to ``target``, ``delay`` seconds later."""
        self.source = source
        self._target = target
        self._delay = delay
        self._frames: deque[tuple[float, bytes]] = deque()  # when due, frame
        self._bytes = 0

    @property
    def due(self) -> float:
        """When the next frame is to leave; infinity when none is on its way."""
        return self._frames[0][0] if self._frames else math.inf

    def read(self) -> None:
        """Take what has come in.  What exceeds the queue is lost, as in a router."""
        due = time.monotonic() + self._delay
        for _ in range(_BATCH):
            try:
                frame = os.read(self.source, _FRAME_SIZE)
            except BlockingIOError:
                return
            if self._bytes + len(frame) <= _QUEUE_BYTES:
                self._bytes += len(frame)
                self._frames.append((due, frame))

    def write(self) -> None:
        """Let out what is due."""
        now = time.monotonic()
        while self.due <= now:
            _, frame = self._frames.popleft()
            self._bytes -= len(frame)
            try:
                os.write(self._target, frame)
            except OSError:
                continue  # the other end is down: lost, as on any link


def forward(one: int, two: int, delay: float) -> None:
    """Carry frames between two TAP devices, each ``delay`` seconds late, for ever."""
    directions = Direction(one, two, delay), Direction(two, one, delay)
    while True:
        # Not epoll: it wakes up on whole milliseconds only.
        readable, _, _ = select.select([one, two], [], [], _patience(directions))
        for direction in directions:
            if direction.source in readable:
                direction.read()
            direction.write()


def _patience(directions: Iterable[Direction]) -> float | None:
    due = min(direction.due for direction in directions)
    return None if due == math.inf else max(0, due - time.monotonic())


if __name__ == "__main__":
    forward(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000)
