"""What a link with delay and loss does to frames; sockets stand for TAP devices."""

from __future__ import annotations

import math
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import delay
from tools.delay import Direction, Loss, Segments

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


def passing(loss, frames):
    """Numbers of the packets that pass, of frames of so many packets each."""
    numbers, before = [], 0
    for count in frames:
        for first, end in loss.surviving(count):
            assert 0 <= first < end <= count
            numbers += range(before + first, before + end)
        before += count
    return numbers


@pytest.mark.parametrize("share", [0.001, 0.01, 0.5])
def test_the_share_that_was_asked_for_is_lost(share):
    count = 1_000_000
    lost = count - len(passing(Loss(share, 1), [count]))
    # Five standard deviations; the seed is fixed, so it holds always or never.
    assert lost == pytest.approx(
        count * share, abs=5 * (count * share * (1 - share)) ** 0.5
    )


def test_nothing_and_everything_can_be_lost():
    assert passing(Loss(0, 1), [5, 5]) == list(range(10))
    assert passing(Loss(1, 1), [5, 5]) == []


@given(st.lists(st.integers(1, 50), max_size=20), st.floats(0.01, 0.9))
def test_what_is_lost_does_not_depend_on_how_packets_come(frames, share):
    one_by_one = passing(Loss(share, 7), [1] * sum(frames))
    assert passing(Loss(share, 7), frames) == one_by_one


def test_directions_lose_different_packets():
    assert passing(Loss(0.1, 1), [100]) != passing(Loss(0.1, 2), [100])


def test_what_is_no_super_packet_is_lost_as_one(ends):
    before, entry, leaving, behind = ends
    direction = Direction(entry, leaving, 0, Loss(0.5, 1))
    frames = [bytes(10) + bytes([number]) * 1500 for number in range(20)]
    for frame in frames:
        before.send(frame)
    direction.read()
    direction.write()
    left = passing(Loss(0.5, 1), [1] * len(frames))
    assert [behind.recv(9000) for _ in left] == [frames[number] for number in left]
    with pytest.raises(BlockingIOError):
        behind.recv(9000)


def tcp_frame(payload, size):
    """A super-packet of TCP over IPv4, with the flags CWR, ACK, PSH and FIN."""
    length = 20 + 32 + len(payload)
    ip = struct.pack("!BBHHHBBH8s", 0x45, 0, length, 0xFFFF, 0, 64, 6, 0, bytes(8))
    tcp = struct.pack("!HHIIBBHHH12x", 1, 2, 2**32 - 10, 0, 0x80, 0x99, 0, 0, 0)
    tcp = tcp[:16] + struct.pack("!H", length - 20 + 6) + tcp[18:]
    virtio = struct.pack("=BBHHHH", 1, 1, 14 + 52, size, 14 + 20, 16)
    return virtio + bytes(14) + ip + tcp + payload


def test_parts_of_a_super_packet_are_numbered_as_if_sent_one_by_one():
    payload = bytes(range(250))
    packets = Segments(tcp_frame(payload, 100))
    assert packets.count == 3
    assert packets.part(0, 3) == tcp_frame(payload, 100)
    parts = [packets.part(0, 1), packets.part(1, 3)]
    assert [part[76:] for part in parts] == [payload[:100], payload[100:]]
    fields = [
        (
            part[1],  # whether it is a super-packet
            *struct.unpack_from("!HH", part, 24 + 2),  # length, identification
            *struct.unpack_from("!I", part, 44 + 4),  # sequence
            part[44 + 13],  # flags
            *struct.unpack_from("!H", part, 44 + 16),  # sum of the pseudo header
        )
        for part in parts
    ]
    assert fields == [
        (0, 152, 0xFFFF, 2**32 - 10, 0x90, 132 + 6),
        (1, 202, 0, 90, 0x19, 182 + 6),
    ]
    for part in parts:
        words = struct.unpack_from("!10H", part, 24)
        assert sum(words) % 0xFFFF == 0  # a header that is right, its checksum included
