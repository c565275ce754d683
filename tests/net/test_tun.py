"""Reading frames in batches; a socket pair keeps frames apart as a TUN does."""

import errno
import os
import socket

import pytest
import trio

from alpha_trio.net.tun import Tun
from alpha_trio.proto.packets import frames
from tests.proto.inner import TCP, UDP, Packet

MOST = 64
SUPER = Packet(protocol=TCP, payload=bytes(range(250)) * 200, segment_size=1000)


def datagram(size: int) -> bytes:
    return bytes(Packet(protocol=UDP, payload=bytes(size)).frame(needs_csum=True))


@pytest.fixture
def link():
    """A Tun, and where what it is to read is sent."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        tun = Tun("alpha9", fd=ours.fileno(), has_virtio=True, takes_uso=True)
        tun.start_batch(MOST)
        yield tun, theirs


def sizes(tun: Tun) -> list[int]:
    """Packets in each frame of what is left of a batch."""
    return [frames.packets(frame) for frame in iter(tun.read_nowait, None)]


def test_equal_datagrams_are_one_frame_and_the_batch_says_when_it_is_all(link):
    tun, other = link
    for size in (9, 9, 9, 40, 9, 9):
        other.send(datagram(size))
    assert (sizes(tun), tun.drained) == ([3, 1, 2], True)


def test_a_batch_ends_after_so_many_reads(link):
    tun, other = link
    for size in (9, 9, 40, 9):
        other.send(datagram(size))
    tun.start_batch(3)
    assert (sizes(tun), tun.drained) == ([2, 1], False)
    tun.start_batch(3)
    assert (sizes(tun), tun.drained) == ([1], True)


async def test_what_was_read_ahead_is_not_waited_for(link):
    """A batch ends early when sending has to wait; the kernel has no more then."""
    tun, other = link
    for size in (9, 9, 40):
        other.send(datagram(size))
    first = tun.read_nowait()
    assert first is not None
    assert frames.packets(first) == 2
    with trio.fail_after(10):
        await tun.wait_readable()
    tun.start_batch(MOST)
    assert bytes(tun.read_nowait() or b"") == datagram(40)


def test_a_train_that_was_read_is_not_lost_when_the_host_refuses_the_next(
    link, monkeypatch
):
    tun, other = link
    other.send(datagram(9))
    refusal, read = OSError(errno.ENOMEM, "no memory"), os.readv
    results = [None, refusal, refusal]

    def refusing(descriptor, buffers):
        if (error := results.pop(0)) is not None:
            raise error
        return read(descriptor, buffers)

    monkeypatch.setattr(os, "readv", refusing)
    assert bytes(tun.read_nowait() or b"") == datagram(9)
    with pytest.raises(OSError, match="no memory"):
        tun.read_nowait()


def test_large_frames_are_kept_as_they_are_read_and_small_ones_between_them_joined(
    link,
):
    tun, other = link
    large = bytes(SUPER.frame())
    sent = [large, large, datagram(9), datagram(9), large, large]
    for frame in sent:
        other.send(frame)
    read = list(iter(tun.read_nowait, None))
    assert [frames.packets(frame) for frame in read] == [50, 50, 2, 50, 50]
    assert [bytes(frame) for frame in read if len(frame) > 100] == 4 * [large]
    tun.start_batch(MOST)
    other.send(bytes(len(large)))
    tun.read_nowait()
    # What lies in the buffer is gone; bytes of their own are nobody else's.
    assert [bytes(frame) == large for frame in (read[1], read[4])] == [True, True]
    assert frames.cut(read[1], 1400).payload is read[1].obj


def test_a_batch_of_large_frames_ends_as_soon(link):
    tun, other = link
    large, count = bytes(SUPER.frame()), 0
    while count <= (1 << 20) // len(large):
        other.send(large)
        if tun.read_nowait() is None:
            break
        count += 1
    assert 10 < count <= (1 << 20) // len(large)
    assert not tun.drained
