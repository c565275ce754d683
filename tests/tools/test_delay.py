"""What a link with a delay does to frames, with sockets in place of TAP devices."""

from __future__ import annotations

import math
import socket

import pytest

from tools import delay
from tools.delay import Direction

HOUR = 3600


@pytest.fixture
def ends():
    """Descriptors of an entry and an exit, and the sockets before and behind them."""
    kind = socket.SOCK_SEQPACKET  # keeps frames apart, as a TAP device does
    before, entry = socket.socketpair(socket.AF_UNIX, kind)
    leaving, behind = socket.socketpair(socket.AF_UNIX, kind)
    with before, entry, leaving, behind:
        for end in (entry, behind):
            end.setblocking(False)
        yield before, entry.fileno(), leaving.fileno(), behind


def test_frames_leave_in_order_and_whole(ends):
    before, entry, leaving, behind = ends
    direction = Direction(entry, leaving, delay=0)
    frames = [bytes([number]) * 1500 for number in range(10)]
    for frame in frames:
        before.send(frame)
    direction.read()
    direction.write()
    assert [behind.recv(9000) for _ in frames] == frames
    assert direction.due == math.inf


def test_nothing_leaves_before_its_time(ends):
    before, entry, leaving, behind = ends
    direction = Direction(entry, leaving, delay=HOUR)
    before.send(b"frame")
    direction.read()
    direction.write()
    assert direction.due < math.inf
    with pytest.raises(BlockingIOError):
        behind.recv(9000)


def test_what_exceeds_the_queue_is_lost(ends, monkeypatch):
    monkeypatch.setattr(delay, "_QUEUE_BYTES", 250)
    before, entry, leaving, behind = ends
    direction = Direction(entry, leaving, delay=0)
    for _ in range(2):  # what has left makes room again
        for _ in range(3):
            before.send(bytes(100))
        direction.read()
        direction.write()
        assert [len(behind.recv(9000)) for _ in range(2)] == [100, 100]
        with pytest.raises(BlockingIOError):
            behind.recv(9000)
