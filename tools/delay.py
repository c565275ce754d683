"""A link that takes its time, and loses: what enters one TAP leaves the other later.

The kernels this project is tested on lack netem.  ``Lab.connect(..., delay_ms=50)``
makes a TAP device in each of two namespaces and hands both to this file, run as a
program: ``delay.py FD FD MS SHARE``.  It ends when it is killed; the devices go with
it.

Super-packets cross whole, as on a veth link, for both devices have virtio headers
and offloads: one read and one write for up to 64 KiB.  Loss is the packet's all the
same, as behind a network card that has sent them one by one: of a super-packet those
that are lost are cut out, and what is left between them crosses as super-packets.
Without offloads the cutting would be the kernel's, but then a link that loses one in
a thousand would cost its users as much as one without offloads, and a figure of CPU
time would be about that.
"""

from __future__ import annotations

import math
import os
import random
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
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

# Flags, kind of segmentation, length of all headers, payload of a segment, where the
# checksum begins (with the TCP or UDP header), and where in that it is written.
_VIRTIO = Struct("=BBHHHH")
_NEEDS_CHECKSUM = 0x01
_ETHERNET_LENGTH = 14
_NO_GSO, _GSO_TCP4, _GSO_TCP6, _GSO_UDP = 0, 1, 4, 5
_GSO_ECN = 0x80  # beside one of these
_UDP_LENGTH = 8
_FIN_PSH, _CWR = 0x01 | 0x08, 0x80


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


class Loss:
    """Chance, the same for every packet whatever befell the one before it.

    Drawn is how many packets pass until the next one is lost: a draw for each loss,
    not for each packet.
    """

    def __init__(self, share: float, seed: int) -> None:
        """Lose this share of all packets, 0 to 1, the same ones for the same seed."""
        self._share = share
        self._random = random.Random(seed)
        self._passing = self._draw()

    def _draw(self) -> float:
        if self._share <= 0:
            return math.inf
        if self._share >= 1:
            return 0
        # 1 - random() is never 0, which has no logarithm.
        passed = math.log(1 - self._random.random()) / math.log(1 - self._share)
        return math.floor(passed)

    def surviving(self, count: int) -> Iterator[tuple[int, int]]:
        """Runs of the next ``count`` packets that pass: the first, one after the last.

        They are numbered from 0 on.
        """
        first = 0
        while self._passing < count - first:
            lost = first + int(self._passing)
            if lost > first:
                yield first, lost
            first = lost + 1
            self._passing = self._draw()
        self._passing -= count - first
        if first < count:
            yield first, count


class Segments:
    """The packets of which a frame with a virtio header is made."""

    def __init__(self, frame: bytes) -> None:
        """Read the headers; what is no super-packet counts as one packet."""
        self._frame = frame
        flags, kind, _, size, transport, checksum = _VIRTIO.unpack_from(frame)
        # Without a checksum to be completed it does not say where headers are.
        self._kind = kind & ~_GSO_ECN if flags & _NEEDS_CHECKSUM else _NO_GSO
        self._transport: int = _VIRTIO.size + transport
        self._checksum = self._transport + checksum
        self._size = size
        self.count: int = 1
        if self._kind in (_GSO_TCP4, _GSO_TCP6, _GSO_UDP):
            self._payload = self._transport + self._header_length()
            self.count = max(1, math.ceil((len(frame) - self._payload) / size))

    def _header_length(self) -> int:
        if self._kind == _GSO_UDP:
            return _UDP_LENGTH
        words: int = self._frame[self._transport + 12] >> 4
        return 4 * words

    def part(self, first: int, end: int) -> bytes:
        """Return a frame of the packets ``first`` to ``end`` - 1."""
        if (first, end) == (0, self.count):
            return self._frame
        start = self._payload + first * self._size
        payload = self._frame[start : self._payload + end * self._size]
        part = bytearray(self._frame[: self._payload] + payload)
        if end - first == 1:
            flags, _, header, _, *checksum = _VIRTIO.unpack_from(part)
            _VIRTIO.pack_into(part, 0, flags, _NO_GSO, header, 0, *checksum)
        self._number_ip(part, first)
        if self._kind == _GSO_UDP:
            struct.pack_into("!H", part, self._transport + 4, self._length(part))
        else:
            self._number_tcp(part, first, end)
        # So far it is the sum of the pseudo header, in which the length is; the rest
        # is added by who takes the frame apart.
        (partial,) = struct.unpack_from("!H", part, self._checksum)
        changed = partial + self._length(part) - self._length(self._frame)
        struct.pack_into("!H", part, self._checksum, changed % 0xFFFF or 0xFFFF)
        return bytes(part)

    def _length(self, frame: bytes | bytearray) -> int:
        """Return how long a frame is from the TCP or UDP header on."""
        return len(frame) - self._transport

    def _number_ip(self, part: bytearray, first: int) -> None:
        """Set the length, and in IPv4 the identification."""
        ip = _VIRTIO.size + _ETHERNET_LENGTH
        if part[ip] >> 4 == 6:
            struct.pack_into("!H", part, ip + 4, len(part) - ip - 40)
            return
        (identification,) = struct.unpack_from("!H", part, ip + 4)
        number = (identification + first) & 0xFFFF
        struct.pack_into("!HH", part, ip + 2, len(part) - ip, number)
        struct.pack_into("!H", part, ip + 10, 0)
        header = part[ip : ip + (part[ip] & 0x0F) * 4]
        total = sum(word for (word,) in struct.iter_unpack("!H", header))
        struct.pack_into("!H", part, ip + 10, 0xFFFF - (total % 0xFFFF or 0xFFFF))

    def _number_tcp(self, part: bytearray, first: int, end: int) -> None:
        """Set the sequence number, and take off flags of the first or last packet."""
        place = self._transport + 4
        (sequence,) = struct.unpack_from("!I", part, place)
        number = (sequence + first * self._size) & 0xFFFF_FFFF
        struct.pack_into("!I", part, place, number)
        if first > 0:
            part[self._transport + 13] &= ~_CWR & 0xFF
        if end < self.count:
            part[self._transport + 13] &= ~_FIN_PSH & 0xFF


class Direction:
    """Frames on their way from one TAP device to the other."""

    def __init__(
        self, source: int, target: int, delay: float, loss: Loss | None = None
    ) -> None:
        """Carry from ``source`` to ``target``, ``delay`` seconds later."""
        self.source = source
        self._target = target
        self._delay = delay
        self._loss = loss
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
            for left in self._surviving(frame):
                self._append(due, left)

    def _surviving(self, frame: bytes) -> Iterable[bytes]:
        if self._loss is None:
            return [frame]
        packets = Segments(frame)
        return [packets.part(*run) for run in self._loss.surviving(packets.count)]

    def _append(self, due: float, frame: bytes) -> None:
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


def forward(one: int, two: int, delay: float, share: float) -> None:
    """Carry frames between two TAP devices, each ``delay`` seconds late, for ever.

    ``share``: of the packets that get lost in either direction, 0 to 1.
    """
    losses = [Loss(share, seed) if share else None for seed in (1, 2)]
    directions = (
        Direction(one, two, delay, losses[0]),
        Direction(two, one, delay, losses[1]),
    )
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
    _, one, two, milliseconds, share = sys.argv
    forward(int(one), int(two), float(milliseconds) / 1000, float(share))
